"""What an instructor decides about a hub, and how many learners the machine admits."""

import json
import os
import re
import socket
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs

LOOPBACK = "127.0.0.1"
NAME_PATTERN = r"[a-z][a-z0-9-]{0,31}"  # also a folder's name
PASSWORD_LENGTH = 8
GIB = 2**30
# A learner's share of the machine. The hub ends a learner who passes the bound. Measured with `simulate.py`: lesson 02
# takes 0.5 GiB without its big run, and the big run keeps to what the bound leaves it.
BOUND = 2 * GIB
WITHOUT_BIG_RUN = GIB // 2
RESERVE = 2 * GIB  # the hub, the system, and what a learner can take between two looks
LEARNERS_PER_CORE = 4  # measured: 8 learners on 2 cores; see sizing.json


class HubError(Exception):
    """A hub cannot be started so; the text says why and what to do."""


@dataclass(frozen=True)
class Settings:
    """What one run of the hub needs to know.

    Attributes
    ----------
    state : str
        Folder for the hub's own files; only its owner can read it.
    learners_folder : str
        Where learners that share the hub's account have their folders.
    address, port : str, int
        Where browsers connect.
    api_port, hub_port : int
        Loopback ports of the proxy's API and of the hub itself.
    learners : int
        How many the hub admits at once.
    bound : int
        Bytes of memory (PSS) that one learner may hold.
    password_hash : str
        Argon2 hash of the workshop password; empty: users of the system log in with their own.
    system_users : tuple of str
        Who may log in where there is no workshop password.
    certificate, key : str
        Files for TLS; empty: none.
    progress : str
        Folder that `lab_utils workshop share` offers to learners; empty: none.
    idle_minutes : int
        A kernel without work for so long is ended, and a server without kernels too.
    """

    state: str
    learners_folder: str
    port: int
    api_port: int
    hub_port: int
    learners: int
    bound: int = BOUND
    address: str = LOOPBACK
    password_hash: str = ""
    system_users: tuple[str, ...] = ()
    certificate: str = ""
    key: str = ""
    progress: str = ""
    idle_minutes: int = 90

    @property
    def url(self) -> str:
        """Where a browser finds the hub."""
        return f"{'https' if self.certificate else 'http'}://{self.address}:{self.port}/"


def read(path: str | Path) -> Settings:
    """The settings that `write` wrote."""
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    return Settings(**{**found, "system_users": tuple(found["system_users"])})


def write(settings: Settings) -> Path:
    """Write the settings into the state folder, for its owner's eyes only; returns the file.

    Raises
    ------
    HubError
        The folder was there before, and is not this user's alone.
    """
    path = own_folder(Path(settings.state)) / "settings.json"
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(asdict(settings), file, indent=1)
    return path


def own_folder(folder: Path) -> Path:
    """The folder, made where it was not there, for this user alone. One that was there stays as it is.

    Raises
    ------
    HubError
        It is no folder, or somebody else's, or others may read or write in it.
    """
    try:
        folder.mkdir(parents=True, mode=0o700)
        return folder
    except FileExistsError:
        found = folder.stat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise HubError(
            f"--state {folder} is not for your eyes only, and the hub's secrets go there: expected a folder of your "
            "own with mode 0700. Name a folder that does not exist yet, or chmod 700 one that holds nothing else"
        )
    return folder


def default_state(port: int) -> Path:
    """A folder of this user for the files of the hub on this port."""
    return platformdirs.user_state_path("triton-ensemble-lab") / f"hub-{port}"


def admitted(memory: int, cores: int, bound: int = BOUND) -> int:
    """How many learners fit, each with her bound of memory; at least one.

    Parameters
    ----------
    memory : int
        Bytes that are free before the first learner comes.
    cores : int
        CPU cores.
    bound : int
        Bytes for each learner.
    """
    return max(1, min((memory - RESERVE) // bound, LEARNERS_PER_CORE * cores))


def admitted_here(bound: int = BOUND) -> int:
    """How many learners this machine admits now, or the control group (a container, say) in which the hub runs."""
    from lab_utils import big_run  # brings the whole client with it, which the running hub has no use for

    return admitted(big_run.free_memory(), len(os.sched_getaffinity(0)), bound)


def free_ports(count: int) -> list[int]:
    """Different loopback ports that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def check_name(name: str) -> str:
    """The name, where a learner may have it.

    Raises
    ------
    HubError
        It could lead out of the learners' folder, or is no name in a URL.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise HubError(f"{name!r} is no learner's name: expected 1 to 32 of a-z, 0-9 and -, a letter first")
    return name


def learner_folder(settings: Settings, name: str) -> Path:
    """The folder of a learner who shares the hub's account."""
    return Path(settings.learners_folder) / check_name(name)


def check_reach(settings: Settings) -> None:
    """Refuse to send passwords over a network in the clear.

    Raises
    ------
    HubError
        Others than this machine could connect, and there is no certificate.
    """
    if settings.address != LOOPBACK and not (settings.certificate and settings.key):
        raise HubError(
            f"--address {settings.address} needs --tls-certificate and --tls-key: passwords would cross the room "
            f"in the clear. Or leave the address out, and put a proxy with TLS in front of http://{LOOPBACK}:{settings.port}"
        )
