"""Find servers of this user's lab that nobody owns any more, end them, and remove their shared memory."""

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from lab_utils.launch import SHM_PREFIX

SHARED_MEMORY = Path("/dev/shm")
SERVER_ID = re.compile(re.escape(SHM_PREFIX) + r"([0-9a-f]{12})_")
SUPERVISOR = "supervisor.py"
ROLES = {SUPERVISOR, "tritonserver", "triton_python_backend_stub", "docker"}  # who a server's processes are
END_SECONDS = 12.0


@dataclass
class LabServer:
    """The processes of one server: its supervisor, if that still lives, and the rest."""

    id: str
    supervisor: psutil.Process | None = None
    others: list[psutil.Process] = field(default_factory=list)


@dataclass(frozen=True)
class Stopped:
    """What `stop_servers` did: ids of ended servers, ids of servers left alone, and the number of files removed."""

    ended: list[str]
    in_use: list[str]
    files: int


def lab_servers() -> list[LabServer]:
    """This user's lab servers, known by the shared-memory prefix on the command line of each of their processes."""
    servers: dict[str, LabServer] = {}
    for process, command in _own_processes():
        match = SERVER_ID.search(" ".join(command))
        if match is None or not ROLES & {Path(part).name for part in command[:4]}:
            continue  # not ours, or somebody who only looks at our files
        server = servers.setdefault(match[1], LabServer(match[1]))
        if SUPERVISOR in {Path(part).name for part in command[:4]}:
            server.supervisor = process
        else:
            server.others.append(process)
    return list(servers.values())


def _own_processes() -> Iterator[tuple[psutil.Process, list[str]]]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.uids().real == os.getuid() and process.pid != os.getpid():
                yield process, process.cmdline()


def stop_servers(everything: bool = False) -> Stopped:
    """End stale servers and remove the shared memory that no live server owns.

    A server is stale when its supervisor is gone; one whose supervisor lives is in use, or is about to end by itself.

    Parameters
    ----------
    everything : bool
        End the servers that are in use too.
    """
    ended, in_use = [], []
    for server in lab_servers():
        if server.supervisor is not None and not everything:
            in_use.append(server.id)
            continue
        _end(server)
        ended.append(server.id)
    return Stopped(ended, in_use, _remove_shared_memory())


def _end(server: LabServer) -> None:
    """SIGTERM to the supervisor, which ends the rest in order; without one, SIGTERM and then SIGKILL to the rest."""
    first = [server.supervisor] if server.supervisor else server.others
    _signal(first, signal.SIGTERM)
    psutil.wait_procs(first, timeout=END_SECONDS)
    _signal([*first, *server.others], signal.SIGKILL)
    psutil.wait_procs(server.others, timeout=END_SECONDS)


def _signal(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _remove_shared_memory() -> int:
    files = [(path, SERVER_ID.match(path.name)) for path in SHARED_MEMORY.glob(f"{SHM_PREFIX}*")]
    live = {server.id for server in lab_servers()}  # looked up after the files: a server is there before its files are
    ownerless = [path for path, match in files if match and match[1] not in live]
    for path in ownerless:
        path.unlink(missing_ok=True)
    return len(ownerless)
