"""What the models run on: a GPU with its name and memory, or the CPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import pynvml

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Device:
    """`kind` is "GPU", "CPU", or "unknown" for a server elsewhere; `memory` is the GPU's, in bytes (0 for the CPU)."""

    kind: str
    name: str
    memory: int = 0

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}" + (f", {self.memory / 2**30:.0f} GiB" if self.memory else "")


CPU = Device("CPU", "no NVIDIA GPU found")


def first_device() -> Device:
    """The first GPU that the NVIDIA driver shows, or the CPU where there is no driver or no GPU."""
    return _ask_driver(_first_gpu, CPU)


def gpu_count() -> int:
    """How many GPUs the NVIDIA driver shows; 0 where there is no driver."""
    return _ask_driver(pynvml.nvmlDeviceGetCount, 0)


def has_gpu() -> bool:
    """Whether the NVIDIA driver shows a GPU."""
    return first_device().kind == "GPU"


def _ask_driver(question: Callable[[], Answer], otherwise: Answer) -> Answer:
    """The driver's answer; `otherwise` where there is no driver, or it has no answer."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return otherwise
    try:
        return question()
    except pynvml.NVMLError:
        return otherwise
    finally:
        pynvml.nvmlShutdown()


def _first_gpu() -> Device:
    if pynvml.nvmlDeviceGetCount() == 0:
        return CPU
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    return Device("GPU", pynvml.nvmlDeviceGetName(gpu), pynvml.nvmlDeviceGetMemoryInfo(gpu).total)
