"""GPU memory: what a card holds, message by message, as NVML and as Triton's own metrics tell it.

``snapshot(server)`` reads it once, ``follow(server, iter_stream(...))`` with each response, and ``doubles(held)`` says
whether the held bytes double, where they are large enough for NVML to tell.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import pynvml
from prometheus_client.parser import text_string_to_metric_families

from lab_utils.client import Observation
from lab_utils.errors import ServerError, ToldShortly
from lab_utils.server import TritonServer
from lab_utils.watch_server import metrics_page

USED_METRIC = "nv_gpu_memory_used_bytes"
GRANULARITY = 2 * 2**20  # bytes: what the driver hands out, and NVML counts, at once
SMALLEST = 4 * GRANULARITY  # held bytes up to here tell nothing of a factor

Response = TypeVar("Response")


class NoGpuError(ToldShortly, RuntimeError):
    """There is no such GPU, or its driver does not answer; the message says which was asked for."""


@dataclass(frozen=True)
class GpuMemory:
    """What one card holds at one moment, in bytes.

    Attributes
    ----------
    used : int
        All that is in use on the card, by whomever.
    processes : mapping of str to int
        What NVML says that each process of the server holds there: "server", or a stub such as "inference version 1".
        A process that holds nothing on the card is left out. In a container that hides the machine's process ids, NVML
        knows the processes by other ids, and this is empty.
    metric : int or None
        What Triton's metrics page says is in use on the card; the server looks every 100 ms, so this may be a little
        old. None where the page has no such line: Triton needs NVIDIA's DCGM for it.
    """

    used: int
    processes: Mapping[str, int]
    metric: int | None

    @property
    def server(self) -> int:
        """Bytes that all processes of the server hold on the card."""
        return sum(self.processes.values())


def snapshot(server: TritonServer, gpu: int = 0) -> GpuMemory:
    """Read what a card holds now.

    Parameters
    ----------
    server : TritonServer
        A local server.
    gpu : int
        The number of the card, as NVML counts.

    Raises
    ------
    NoGpuError
        There is no such card.
    lab_utils.errors.ServerError
        The server is stopped, runs elsewhere or in a container: its processes cannot be seen.
    """
    with open_card(gpu) as card:
        holders = process_bytes(card)
        names = {process.pid: name for process, name in server.processes.items()}
        held = {name: holders[pid] for pid, name in names.items() if pid in holders}
        uuid = _text(pynvml.nvmlDeviceGetUUID(card))
        return GpuMemory(pynvml.nvmlDeviceGetMemoryInfo(card).used, held, used_metric(server, uuid))


def follow(
    server: TritonServer,
    responses: Iterable[Response],
    gpu: int = 0,
    settle: Callable[[], object] | None = None,
) -> Iterator[tuple[Response, GpuMemory]]:
    """Take a snapshot as each response arrives: ``for message, memory in follow(server, iter_stream(...))``.

    The node does not wait for the snapshot, unless the stream has a `lab_utils.client.Window` of one message. Even then
    it may still be at work on what it keeps of the message that has arrived.

    Parameters
    ----------
    server, gpu
        As for `snapshot`.
    responses : iterable
        From `lab_utils.client.iter_stream` or `iter_outputs`.
    settle : callable, optional
        Called before each snapshot. A request that the same node answers in the same thread tells, by its answer, that
        the node is done with the message.

    Raises
    ------
    NoGpuError, lab_utils.errors.ServerError
        As for `snapshot`.
    """
    with open_card(gpu):  # to load the driver's library takes longer than to ask it
        for response in responses:
            if settle is not None:
                settle()
            yield response, snapshot(server, gpu)


def by_message(held: Iterable[tuple[Observation, GpuMemory]], process: str = "server") -> dict[str, list[int | None]]:
    """Bytes at each message: of the message itself, of the whole card by NVML and by Triton, and of one process.

    Parameters
    ----------
    held : iterable of (Observation, GpuMemory)
        From `follow`.
    process : str
        As `GpuMemory.processes` names it; a node in C++ lives in the server's own process.
    """
    held = list(held)
    return {
        "message": [observation.nbytes for observation, _ in held],
        "card": [memory.used for _, memory in held],
        "metric": [memory.metric for _, memory in held],
        process: [memory.processes.get(process) for _, memory in held],
    }


def told_by_message(server: TritonServer, responses: Iterable[Observation]) -> str:
    """A line for each message: MiB of the message, and MiB in use on the first card. Without a card, why there is none.

    Parameters
    ----------
    server, responses
        As for `follow`.
    """
    try:
        return "\n".join(
            f"{message.nbytes / 2**20:9.3f} MiB sent, {memory.used / 2**20:,.0f} MiB in use on the card"
            for message, memory in follow(server, responses)
        )
    except NoGpuError as error:
        return str(error)


def factors(held: Sequence[int], smallest: int = SMALLEST) -> list[float]:
    """By what factor the held bytes grow from one message to the next, where both are larger than `smallest`.

    Parameters
    ----------
    held : sequence of int
        Bytes above what was held before the stream, message by message.
    smallest : int
        Readings up to here are left out: NVML counts in steps of 2 MiB.
    """
    return [after / before for before, after in _large(held, smallest)]


def doubles(held: Sequence[int], smallest: int = SMALLEST) -> bool:
    """Whether the held bytes double from message to message, as exactly as NVML can tell.

    Each reading may be off by one step of 2 MiB, so a reading may differ from twice the one before by three steps.

    Parameters
    ----------
    held, smallest
        As for `factors`.

    Raises
    ------
    ValueError
        No two neighbours are larger than `smallest`: the stream was too short to tell.
    """
    pairs = _large(held, smallest)
    if not pairs:
        raise ValueError(f"no two neighbouring readings are larger than {smallest} bytes; let the stream run longer")
    return all(abs(after - 2 * before) <= 3 * GRANULARITY for before, after in pairs)


def _large(held: Sequence[int], smallest: int) -> list[tuple[int, int]]:
    return [pair for pair in pairwise(held) if min(pair) > smallest]


@contextlib.contextmanager
def open_card(gpu: int = 0) -> Iterator[object]:
    """NVML's handle of a card, for as long as the block lasts.

    Raises
    ------
    NoGpuError
        There is no driver, or it shows no such card.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoGpuError(f"GPU {gpu} was asked for, but no NVIDIA driver answers: {error}") from None
    try:
        yield _card(gpu)
    finally:
        pynvml.nvmlShutdown()


def _card(gpu: int) -> object:
    count = pynvml.nvmlDeviceGetCount()
    if not 0 <= gpu < count:
        raise NoGpuError(f"GPU {gpu} was asked for; the NVIDIA driver shows {count}, counted from 0")
    return pynvml.nvmlDeviceGetHandleByIndex(gpu)


def process_bytes(card: object) -> dict[int, int]:
    """Bytes that each process holds on a card, by process id; 0 where the driver does not tell how many."""
    holders = pynvml.nvmlDeviceGetComputeRunningProcesses(card)
    return {holder.pid: holder.usedGpuMemory or 0 for holder in holders}


def used_metric(server: TritonServer, uuid: str) -> int | None:
    """Bytes in use on the card with this UUID, by Triton's metrics; None where the page does not say.

    Raises
    ------
    lab_utils.errors.ServerError
        The metrics page cannot be read.
    """
    if not server.metrics_url:
        raise ServerError("this server's metrics cannot be read: it is stopped, or somebody else runs it")
    for family in text_string_to_metric_families(metrics_page(server.metrics_url)):
        for sample in family.samples:
            if sample.name == USED_METRIC and sample.labels.get("gpu_uuid") == uuid:
                return int(sample.value)
    return None


def _text(name: str | bytes) -> str:
    """Older releases of NVML's Python package give bytes."""
    return name.decode() if isinstance(name, bytes) else name
