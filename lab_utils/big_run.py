"""The guarded run: let the doubling go as far as this machine carries it, one run at a time."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from lab_utils import arguments
from lab_utils.client import stream
from lab_utils.field_report import REPORTED_PROMPT
from lab_utils.server import start_server

SHARED_MEMORY = Path("/dev/shm")
SMALLEST = 20  # a run to here needs about 24 MiB: any machine that runs the lab carries it
MEMORY_AT_28 = 6 * 2**30  # bytes; measured 5.2 GiB for all processes together, rounded up
SHARED_MEMORY_AT_28 = 2 * 2**30  # measured 1.94 GiB
WAIT_SECONDS = 600.0


@dataclass(frozen=True)
class Plan:
    """How far the run may go: `n` iterations, and why not further (`limit`, empty if it may go all the way)."""

    n: int
    limit: str


@dataclass(frozen=True)
class BigRun:
    """What a guarded run measured: the length of each message, its bytes, its time, and why it stopped where it did."""

    lengths: list[int]
    seconds: float
    limit: str

    @property
    def n(self) -> int:
        """Number of iterations."""
        return len(self.lengths)


def needs(n: int) -> tuple[int, int]:
    """Bytes of memory and of /dev/shm that a run to iteration `n` needs; both double with each iteration."""
    return int(MEMORY_AT_28 * 2.0 ** (n - 28)), int(SHARED_MEMORY_AT_28 * 2.0 ** (n - 28))


def available_memory() -> int:
    """Bytes of memory that a big run may still use: what is free, or less where a hub says so."""
    share = os.environ.get("LAB_BIG_RUN_BYTES")  # a hub ends a learner who takes more than her share
    return max(0, min(free_memory(), int(share))) if share else free_memory()


def free_memory() -> int:
    """Bytes of memory that this process may still use: the machine's, or less where a control group says so."""
    limits = [psutil.virtual_memory().available]
    group = _control_group()
    for folder in [group, *group.parents]:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit here
            limits.append(int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text()))
    return max(0, min(limits))


def _control_group() -> Path:
    """The folder of this process' control group (version 2), or the root's where none is told."""
    root = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            if line.startswith("0::/"):
                return root / line.removeprefix("0::/")
    return root


def free_shared_memory() -> int:
    """Free bytes in /dev/shm."""
    return psutil.disk_usage(str(SHARED_MEMORY)).free


def plan(wanted: int, memory: int, shared_memory: int) -> Plan:
    """The largest `n` up to `wanted` that fits into so many bytes, never below `SMALLEST`."""
    limit = ""
    for n in range(wanted, SMALLEST, -1):
        needed_memory, needed_shared_memory = needs(n)
        if needed_memory <= memory and needed_shared_memory <= shared_memory:
            return Plan(n, limit)
        short = "memory" if needed_memory > memory else "/dev/shm"
        needed, free = (needed_memory, memory) if short == "memory" else (needed_shared_memory, shared_memory)
        limit = f"iteration {n} needs {needed / 2**30:.2f} GiB of {short}; {free / 2**30:.2f} GiB are free"
    return Plan(min(wanted, SMALLEST), limit)


@contextlib.contextmanager
def machine_lock(report: Callable[[str], None], path: Path = SHARED_MEMORY) -> Iterator[None]:
    """Hold a lock that all users of this machine share: on /dev/shm itself, so that it needs no file of its own.

    The kernel releases it when the holder ends, however that happens.

    Raises
    ------
    TimeoutError
        Somebody else held it for `WAIT_SECONDS`.
    """
    if not path.exists():  # no embedded server runs without it: nothing to guard
        yield
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not _try_lock(descriptor):
            report("another learner's big run is under way on this machine; waiting for it to end")
        deadline = time.monotonic() + WAIT_SECONDS
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise TimeoutError(f"another big run held the lock on {path} for {WAIT_SECONDS:.0f} s; try again later")
            time.sleep(1.0)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def big_run(wanted: int = 28, report: Callable[[str], None] = print) -> BigRun:
    """Run the bug up to iteration `wanted` (2^(wanted-1) ids in the last message), or as far as this machine can.

    It runs on a server of its own, which is gone afterwards together with all it had grown to. Only dims travel to the
    client. One such run at a time goes on on a machine.

    Parameters
    ----------
    wanted : int
        The last iteration, 1 to 28.
    report : callable
        Called with a line of text for each thing a waiting learner should know.

    Raises
    ------
    ValueError
        `wanted` is out of range.
    """
    if not 1 <= arguments.number("wanted", wanted, "1 to 28") <= 28:
        raise ValueError(f"wanted is {wanted}; expected 1 to 28 (28 means 134,217,728 ids in one message)")
    # The lock goes on until the server has stopped: only then its memory is free again.
    with machine_lock(report), start_server(["ensemble_append"], report=report) as server:
        if server.attached:
            server.reload("inference")
            chosen = Plan(min(wanted, SMALLEST), "the memory of a remote server cannot be checked from here")
        else:
            chosen = plan(wanted, available_memory(), free_shared_memory())
        report(f"running to iteration {chosen.n}" + (f" ({chosen.limit})" if chosen.limit else ""))
        result = stream(
            server,
            "ensemble_append",
            REPORTED_PROMPT,
            max_tokens=chosen.n,
            dims_only=True,
            max_message_ids=2 ** (chosen.n - 1),
            deadline=300.0,
        )
    return BigRun(result.lengths, result.observations[-1].seconds, chosen.limit)
