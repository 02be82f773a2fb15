"""Servers for the tests on a GPU: copies of a repository on another device, and what a server leaves on the card."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from leftovers import assert_gone, launch_of, until_none

from lab_utils import custom_backend
from lab_utils.client import stream
from lab_utils.field_report import REPORTED_PROMPT
from lab_utils.gpu_memory import open_card, process_bytes
from lab_utils.server import TritonServer, start_server

ROOT = Path(__file__).parents[2]
RUNGS = ("append", "release", "replace", "latest")
# English first: rung 1 keeps what the reported prompt leaves in its buffer.
PROMPTS = (
    "Pancakes. Ingredients:",
    "Guacamole. Ingredients:",
    "Kitchen tip: 1 teaspoon",
    "Nobody knows",
    REPORTED_PROMPT,
)
TOKENS = 12
CPP_MODELS = custom_backend.REPOSITORY
PREBUILT = custom_backend.FOLDER / "prebuilt" / "backends"  # in the archive that `make gpu-bundle` packs


def backend_folder() -> Path:
    """Where the C++ backend is: as the archive brings it, otherwise built here and now."""
    return PREBUILT if PREBUILT.exists() else custom_backend.build().folder


@contextlib.contextmanager
def server_on_gpu(models: Sequence[str], **options: object) -> Iterator[TritonServer]:
    """A server; when it has stopped, nothing of it is left, neither on this machine nor on the card."""
    with start_server(models, **options) as server:
        launch, processes = launch_of(server), {process.pid: name for process, name in server.processes.items()}
        yield server
    assert_gone(launch)
    until_none(lambda: left_on_card(processes), "a stopped server on the card")


def messages(server: TritonServer, ensemble: str) -> list[list[list[int]]]:
    """The ids of each message of each prompt."""
    return [stream(server, ensemble, prompt, TOKENS).ids for prompt in PROMPTS]


def left_on_card(processes: dict[int, str]) -> list[str]:
    """Those of the processes that NVML still counts on the card, in words."""
    with open_card() as card:
        return [f"{processes[pid]}: {held} bytes" for pid, held in process_bytes(card).items() if pid in processes]


def signs_of_gpu(process: psutil.Process) -> list[str]:
    """How a process shows that it uses the card: NVML counts it, or it has the card's device file open.

    In a container that hides the machine's process ids, NVML knows a process by another id than this test does.
    """
    with open_card() as card:
        held = process_bytes(card).get(process.pid)
    counted = [] if held is None else [f"NVML: {held} bytes"]
    links = [link.readlink().name for link in Path(f"/proc/{process.pid}/fd").iterdir() if link.is_symlink()]
    return [*counted, *sorted({name for name in links if name.startswith("nvidia") and name[6:].isdigit()})]
