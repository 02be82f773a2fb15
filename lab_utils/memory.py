"""The memory check: what a server, its stubs and its shared memory hold, message by message and request by request.

``snapshot(server)`` reads it once, ``follow(server, iter_stream(...))`` with each response, and ``leaks(heap)`` says
whether readings taken after equal requests grow.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from lab_utils import arguments
from lab_utils.client import Observation
from lab_utils.server import TritonServer
from lab_utils.stale import SHARED_MEMORY

BLOCK = 512  # bytes: st_blocks counts in these, whatever the file system
SLACK = 64 * 1024  # equal requests differ by some kilobytes
ENDS = 2  # readings looked at on either end: one alone may be an outlier

Response = TypeVar("Response")


@dataclass(frozen=True)
class Memory:
    """What a server holds at one moment, in bytes; no byte counts twice.

    Attributes
    ----------
    server : int
        Private resident memory of the server's process: what it has taken for itself. The usual resident size (RSS)
        has the pages that a process shares as well: the pools would count in the server and in the stubs, and program
        code in all of them.
    stubs : mapping of str to int
        The same for each Python process, by model and version, such as "inference version 1".
    pools : mapping of str to int
        Allocated bytes of each file in /dev/shm, by the stub that shares it with the server.
    """

    server: int
    stubs: Mapping[str, int]
    pools: Mapping[str, int]

    @property
    def shm(self) -> int:
        """Bytes in /dev/shm: all pools together."""
        return sum(self.pools.values())


def snapshot(server: TritonServer) -> Memory:
    """Read what a local server holds now. It takes less than a millisecond, so it can keep up with a stream.

    Raises
    ------
    lab_utils.errors.ServerError
        The server is stopped, runs elsewhere or in a container: its processes cannot be read.
    lab_utils.errors.ServerDiedError
        The server, or the process of one of its models, ended.
    """
    private, owners = Counter(), {}
    for process, name in server.processes.items():
        try:
            private[name] += _private(process)
            owners |= dict.fromkeys(process.cmdline(), name)  # the stub's command line names its file
        except psutil.NoSuchProcess:
            server.check()  # raises where it died; where it does not, somebody unloaded a model a moment ago
    pools = _pools(server.shm_prefix, owners)
    return Memory(private.pop("server"), dict(private), pools)


def follow(server: TritonServer, responses: Iterable[Response]) -> Iterator[tuple[Response, Memory]]:
    """Take a snapshot as each response arrives: ``for message, memory in follow(server, iter_stream(...))``.

    The snapshot tells of the moment of arrival *here*. The model does not wait for it: the node may be some messages
    ahead of the response that the snapshot stands beside, on a busy machine by many.

    Parameters
    ----------
    server : TritonServer
        A local server.
    responses : iterable
        From `lab_utils.client.iter_stream` or `iter_outputs`.

    Raises
    ------
    lab_utils.errors.ServerError
        As for `snapshot`.
    """
    for response in responses:
        yield response, snapshot(server)


def by_message(held: Iterable[tuple[Observation, Memory]], stub: str) -> dict[str, list[int]]:
    """Bytes at each message: of the message itself, and of what stub and server held; as `memory_figure` draws them.

    Parameters
    ----------
    held : iterable of (Observation, Memory)
        From `follow`, of a stream with ``trace_heap=True``.
    stub : str
        Model and version, such as "inference version 1".
    """
    held = list(held)
    return {
        "message": [observation.nbytes for observation, _ in held],
        "Python heap": [observation.heap for observation, _ in held],
        "pool": [memory.pools[stub] for _, memory in held],
        "private, stub": [memory.stubs[stub] for _, memory in held],
        "private, server": [memory.server for _, memory in held],
    }


def leaks(heap: Sequence[int], slack: int = SLACK) -> bool:
    """Whether memory grows from request to request.

    The first reading is left out: a process takes some memory once. Of the others, the lowest of the last two is held
    against the highest of the first two. Of n readings these two are n - 4 requests apart when the heap grows evenly:
    three of seven. Growth of less than `slack` between them is not seen: send more requests.

    Parameters
    ----------
    heap : sequence of int
        Bytes held at the same point of several equal requests, such as the `heap` of each one's last observation;
        5 at least.
    slack : int
        Bytes of growth that still count as none.

    Raises
    ------
    ValueError
        There are too few readings, or one is missing.
    """
    fewest = 2 * ENDS + 1
    heap = arguments.items("heap", heap, "a list of bytes held")
    if len(heap) < fewest or not all(isinstance(one, int | float) for one in heap):
        raise ValueError(f"heap is {list(heap)}; expected {fewest} or more readings, all of them with trace_heap=True")
    settled = heap[1:]
    return min(settled[-ENDS:]) - max(settled[:ENDS]) > slack


def _private(process: psutil.Process) -> int:
    """Resident memory that is not shared.

    The exact "unique set size" takes some milliseconds to read: a stream with a snapshot at each response would fall
    behind its node.
    """
    memory = process.memory_info()
    return memory.rss - memory.shared


def _pools(prefix: str, owners: Mapping[str, str]) -> dict[str, int]:
    pools: Counter = Counter()
    for path in SHARED_MEMORY.glob(f"{prefix}*"):
        with contextlib.suppress(FileNotFoundError):  # a model that is being unloaded removes its file
            pools[owners.get(path.name, path.name)] += _allocated(path)
    return dict(pools)


def _allocated(path: Path) -> int:
    """Bytes that the file takes up; its length may promise more than that."""
    return path.stat().st_blocks * BLOCK
