"""Who may log in, and how a learner's server is started, watched and ended."""

import asyncio
import os
import pwd
import sys
from collections.abc import Callable
from pathlib import Path

import hub_memory
import hub_settings
from jupyter_server.auth import passwd_check
from jupyterhub.auth import Authenticator
from jupyterhub.spawner import LocalProcessSpawner, SimpleLocalProcessSpawner
from traitlets import Int, Unicode

from lab_utils.launch import shm_prefix

HERE = Path(__file__).parent
WATCH = hub_memory.Watch()
NOTICES: dict[str, str] = {}  # learner's name -> why her last server was ended


class WorkshopAuthenticator(Authenticator):
    """One password for the room, known here only as a hash; each learner chooses a name.

    Who knows the password can log in under every name.
    """

    password_hash = Unicode(config=True, help="What jupyter_server.auth.passwd made of the password.")

    async def authenticate(self, handler: object, data: dict[str, str]) -> str | None:
        """The learner's name, or None where name or password is wrong."""
        name = self.normalize_username(data["username"])
        if not self.validate_username(name):
            return None
        right = await asyncio.to_thread(passwd_check, self.password_hash, data["password"])
        return name if right else None


class BoundedSpawner(LocalProcessSpawner):
    """A learner's server in her own folder, with what is hers alone, and a bound of memory that holds."""

    bound = Int(hub_settings.BOUND, config=True, help="Bytes of memory (PSS) for all of a learner's processes.")

    @property
    def folder(self) -> Path:
        """The learner's own folder."""
        return Path(pwd.getpwnam(self.user.name).pw_dir) / "triton-ensemble-lab"

    @property
    def user_id(self) -> int:
        """Who the learner is for the machine."""
        return pwd.getpwnam(self.user.name).pw_uid

    @property
    def learner(self) -> hub_memory.Learner:
        """Whose processes are watched and ended."""
        return hub_memory.Learner(str(self.folder), self.user_id)

    def get_args(self) -> list[str]:
        """Options of the server; root's own needs one more."""
        return [*super().get_args(), *(["--allow-root"] if self.user_id == 0 else [])]

    def get_env(self) -> dict[str, str]:
        """The environment of the learner's processes: folders, names and small pools of her own."""
        return {**super().get_env(), **learner_environment(self.folder, self.bound, NOTICES.get(self.user.name, ""))}

    async def start(self) -> tuple[str, int]:
        """Start the server and watch its memory."""
        self.cmd = ["setpriv", "--pdeathsig", "TERM", sys.executable, str(HERE / "learner.py")]  # ends with the hub
        place = await super().start()
        NOTICES.pop(self.user.name, None)
        WATCH.add(self.learner, self.bound, self._was_ended)
        return place

    async def _was_ended(self, size: int) -> None:
        NOTICES[self.user.name] = notice(size, self.bound)
        self.log.warning("%s: %s", self.user.name, NOTICES[self.user.name])
        await _beside(self.proc.wait)
        await self.poll_and_notify()

    async def run_post_stop_hook(self) -> None:
        """However the server ended: wait until all that it had started is gone, and remove its shared memory."""
        WATCH.remove(self.learner)
        await _beside(hub_memory.end, self.learner)
        for path in Path("/dev/shm").glob(f"{shm_prefix(self.user_id, str(self.folder))}*"):
            path.unlink(missing_ok=True)


async def _beside(function: Callable[..., object], *arguments: object) -> None:
    await asyncio.get_running_loop().run_in_executor(hub_memory.ENDING, function, *arguments)


class SharedAccountSpawner(BoundedSpawner, SimpleLocalProcessSpawner):
    """The same for learners who share the hub's own account: convenient, and no wall between them."""

    learners_folder = Unicode(config=True, help="Where the learners' folders are.")

    @property
    def folder(self) -> Path:
        """The learner's own folder."""
        return Path(self.learners_folder) / hub_settings.check_name(self.user.name)

    @property
    def user_id(self) -> int:
        """Who the learner is for the machine: whoever runs the hub."""
        return os.getuid()


def learner_environment(folder: Path, bound: int, said: str = "") -> dict[str, str]:
    """What makes a learner's processes hers: her folders, her mark, and pools for a machine that she shares.

    Parameters
    ----------
    folder : pathlib.Path
        The learner's own folder.
    bound : int
        Bytes of memory that she may hold.
    said : str
        What to tell her when her server starts, empty for nothing.
    """
    own = {
        "LAB_LEARNER": str(folder),
        "LAB_WORKSPACE": str(folder / "lessons"),
        "LAB_BOOK": str(folder / "lessons/lab_book.sqlite3"),
        "XDG_STATE_HOME": str(folder / "state"),
        "MEM_LIMIT": str(bound),
        "LAB_BIG_RUN_BYTES": str(max(0, bound - hub_settings.WITHOUT_BIG_RUN)),
    }
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**own, **threads, **({"LAB_NOTICE": said} if said else {})}


def notice(size: int, bound: int) -> str:
    """What a learner reads after her server was ended for its memory."""
    gib = 2**30
    return (
        f"Your server held {size / gib:.1f} GiB of memory. Each learner has {bound / gib:.1f} GiB here, so it was "
        "ended, and all kernels with it. Your files are kept. Start it again and run the cells with less data."
    )


def last_notice(user: object) -> str:
    """Why a learner's last server was ended by the hub; empty where it was not. The hub asks this for its pages."""
    return NOTICES.get(user.name, "") if user else ""
