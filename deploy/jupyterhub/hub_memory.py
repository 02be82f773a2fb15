"""What each learner's processes hold, and the end of those who hold too much.

Learners of one hub may be one user of the machine, so a mark in the environment tells their processes apart, however
they were started and whoever their parent is now. Everybody can set such a mark: it counts only on processes of the
learner's own user.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
PAGE = os.sysconf("SC_PAGE_SIZE")
LOOK_SECONDS = 0.5
END_SECONDS = 15.0  # a supervisor gives its server 8 s, and cleans up
MARK = b"LAB_LEARNER="
SUPERVISOR = b"supervisor.py"
ENDING = ThreadPoolExecutor(8, "ending")  # an end can take its time, and logins and looks must not wait for it


class Learner(NamedTuple):
    """Whose processes are meant: those of this user of the machine (an id) that have this folder as their mark."""

    folder: str
    user: int


def processes() -> dict[Learner, list[int]]:
    """The process ids of all learners here whose processes may be read, by learner."""
    found: dict[Learner, list[int]] = defaultdict(list)
    for pid in filter(str.isdigit, os.listdir(PROC)):
        with contextlib.suppress(OSError):
            user = (PROC / pid).stat().st_uid
            for variable in (PROC / pid / "environ").read_bytes().split(b"\0"):
                if variable.startswith(MARK):
                    found[Learner(os.fsdecode(variable.removeprefix(MARK)), user)].append(int(pid))
    return dict(found)


def resident(pids: list[int]) -> int:
    """Bytes of resident memory; quick to read, and never less than `proportional`: what is shared counts for each."""
    return sum(_resident(pid) for pid in pids)


def proportional(pids: list[int]) -> int:
    """Bytes of memory (PSS): what processes share is divided among them; takes some milliseconds for a process."""
    return sum(_proportional(pid) for pid in pids)


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError):
        return int((PROC / str(pid) / "statm").read_text().split()[1]) * PAGE
    return 0


def _proportional(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def above(bounds: dict[Learner, int]) -> dict[Learner, int]:
    """Those learners who hold more than their bound, each with what she holds, in bytes."""
    held = {}
    for learner, pids in processes().items():
        if learner in bounds and resident(pids) > bounds[learner]:
            held[learner] = proportional(pids)
    return {learner: size for learner, size in held.items() if size > bounds[learner]}


def kill(learner: Learner) -> None:
    """Kill a learner's processes, the biggest first; supervisors live, to clean up after their servers."""
    pids = [pid for pid in processes().get(learner, []) if not _is_supervisor(pid)]
    _signal(sorted(pids, key=_resident, reverse=True))


def end(learner: Learner, seconds: float = END_SECONDS) -> None:
    """Wait until no process of a learner is left, and kill those that are left after some seconds."""
    deadline = time.monotonic() + seconds
    while pids := processes().get(learner, []):
        if time.monotonic() > deadline:
            _signal(pids)
        time.sleep(0.05)


def _is_supervisor(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return any(part.endswith(SUPERVISOR) for part in (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")[:4])
    return False


def _signal(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Watch:
    """Looks at all learners of a hub twice a second while there are any, and ends those above their bound."""

    def __init__(self) -> None:
        self._learners: dict[Learner, tuple[int, Callable[[int], Awaitable[None]]]] = {}
        self._task: asyncio.Task | None = None
        self._told: set[asyncio.Task] = set()  # asyncio itself keeps no reference, and a task could vanish

    def add(self, learner: Learner, bound: int, ended: Callable[[int], Awaitable[None]]) -> None:
        """Watch a learner; `ended` is awaited with the bytes she held, after her processes were killed."""
        self._learners[learner] = bound, ended
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._run())

    def remove(self, learner: Learner) -> None:
        """Watch a learner no longer."""
        self._learners.pop(learner, None)

    async def _run(self) -> None:
        while self._learners:
            try:
                await self._look()
            except Exception as error:  # a watch that ends by an error would leave the room without a bound
                print(f"hub: a look at the learners' memory failed: {error!r}", file=sys.stderr)
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        bounds = {learner: bound for learner, (bound, _) in self._learners.items()}
        for learner, size in (await asyncio.to_thread(above, bounds)).items():
            watched = self._learners.pop(learner, None)
            if watched is not None:  # she did not stop her server meanwhile
                await asyncio.to_thread(kill, learner)
                self._tell(watched[1], size)

    def _tell(self, ended: Callable[[int], Awaitable[None]], size: int) -> None:
        """Let the learner's end take its time beside the looks at the others."""
        task = asyncio.ensure_future(_reported(ended(size)))
        self._told.add(task)
        task.add_done_callback(self._told.discard)


async def _reported(call: Awaitable[None]) -> None:
    try:
        await call
    except Exception as error:
        print(f"hub: what follows a learner's end failed: {error!r}", file=sys.stderr)
