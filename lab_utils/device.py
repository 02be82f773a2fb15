"""What the models run on: a GPU with its name and memory, or the CPU."""

from dataclasses import dataclass

import pynvml


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
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return CPU
    try:
        if pynvml.nvmlDeviceGetCount() == 0:
            return CPU
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        return Device("GPU", pynvml.nvmlDeviceGetName(gpu), pynvml.nvmlDeviceGetMemoryInfo(gpu).total)
    except pynvml.NVMLError:
        return CPU
    finally:
        pynvml.nvmlShutdown()


def has_gpu() -> bool:
    """Whether the NVIDIA driver shows a GPU."""
    return first_device().kind == "GPU"
