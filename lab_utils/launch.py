"""The command line of a tritonserver, its ports, and the process that watches over it."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import platformdirs

from lab_utils import supervisor
from lab_utils.api_key import ApiKey, new_key
from lab_utils.device import gpu_count, has_gpu
from lab_utils.errors import ServerStartError
from lab_utils.sources import Source

STATE = platformdirs.user_state_path("triton-ensemble-lab")
EXIT_SECONDS = 5  # with less, shared-memory files stayed behind
KEEP_LOGS_SECONDS = 24 * 3600
THREADS = 4  # of each pool: Triton's own sizes are twice the cores, and 32 for each Python model
LOG_BYTES = 2**20  # a start logs 30 KB
# Triton takes this much of a card at its start and never more; tensors that do not fit go to host memory, with one
# warning in the log. It is Triton's own default, said here so that what eight learners need on one card is known.
CUDA_POOL_BYTES = 64 * 2**20
DOCKER_BACKENDS = "/opt/tritonserver/backends"


def shm_prefix(user: int, learner: str = "") -> str:
    """How the names of shared-memory files begin, for a user of this machine and a learner among those that share it.

    The name of a learner may hold anything, so a hash stands for it; no prefix is the beginning of another.
    """
    mark = f"-{hashlib.sha256(learner.encode()).hexdigest()[:8]}" if learner else ""
    return f"triton_lab_{user}{mark}_"


# A hub may run several learners as one user of the machine.
SHM_PREFIX = shm_prefix(os.getuid(), os.environ.get("LAB_LEARNER", ""))


@dataclass(frozen=True)
class Ports:
    """The three ports of a server, all on loopback."""

    http: int
    grpc: int
    metrics: int


@dataclass(frozen=True)
class Launch:
    """What one start of a server needs: where it comes from, what it serves, its name, ports and folder.

    `backends` are the folders of further backends, each with its own name, as `extra_backends` finds them. Without a
    `key` every user of the machine can use and control the server.
    """

    source: Source
    repositories: Sequence[Path]
    models: Sequence[str]
    id: str
    ports: Ports
    folder: Path
    flags: Sequence[str] = ()
    backends: Sequence[Path] = ()
    key: ApiKey | None = field(default_factory=new_key)

    @property
    def key_flags(self) -> list[str]:
        """The flags that close the server to everybody without its key; none where it has no key."""
        return self.key.flags if self.key else []

    @property
    def shm_prefix(self) -> str:
        """How the names of this server's shared-memory files begin."""
        return f"{SHM_PREFIX}{self.id}_"

    @property
    def log_path(self) -> Path:
        """The file that takes the server's standard output and error."""
        return self.folder / "server.log"


@contextlib.contextmanager
def reserved_ports() -> Iterator[Ports]:
    """Three free loopback ports, held until the block ends, so that no other process can be given one in between.

    The sockets are bound with SO_REUSEPORT and never listen: a server started with ``--reuse-http-port`` and
    ``--reuse-grpc-port`` can listen on the same ports meanwhile. The metrics listener has no such flag, so its port is
    given free at once; a server that misses it is started again.
    """
    with contextlib.ExitStack() as held:
        http, grpc = held.enter_context(_bound_socket()), held.enter_context(_bound_socket())
        with _bound_socket() as metrics:
            ports = Ports(*(s.getsockname()[1] for s in (http, grpc, metrics)))
        yield ports


def _bound_socket() -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", 0))
    return bound


def server_flags(launch: Launch, repositories: Sequence[str], backends: str) -> list[str]:
    """Flags of the server; the paths are as the server sees them.

    Loopback only, models only as named, no auto-completion of configs (it starts every stub twice), and no memory pools
    that a lab does not need.
    """
    ports = launch.ports
    return [
        f"--id={launch.id}",
        *(f"--model-repository={repository}" for repository in repositories),
        f"--backend-directory={backends}",
        "--disable-auto-complete-config",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in launch.models),
        *("--http-address=127.0.0.1", f"--http-port={ports.http}", "--reuse-http-port=true"),
        *("--grpc-address=127.0.0.1", f"--grpc-port={ports.grpc}", "--reuse-grpc-port=true"),
        f"--metrics-port={ports.metrics}",
        "--metrics-interval-ms=100",
        "--http-thread-count=2",
        f"--model-load-thread-count={THREADS}",
        f"--backend-config=python,thread-pool-size={THREADS}",
        "--pinned-memory-pool-byte-size=0",
        *(f"--cuda-memory-pool-byte-size={gpu}:{CUDA_POOL_BYTES}" for gpu in range(gpu_count())),
        f"--exit-timeout-secs={EXIT_SECONDS}",
        f"--backend-config=python,shm-region-prefix-name={launch.shm_prefix}",
        *launch.flags,
    ]


def server_command(launch: Launch) -> list[str]:
    """The whole command line, as an argument list."""
    if launch.source.kind == "docker":
        return docker_command(launch)
    linked = launch.source.stub or launch.backends
    backends = _linked_backends(launch) if linked else launch.source.backends
    return [launch.source.binary, *server_flags(launch, _without_space(launch), str(backends))]


def docker_command(launch: Launch) -> list[str]:
    """Run the image on the host's network, so that loopback is the host's loopback."""
    gpus = ["--gpus", "all"] if has_gpu() else []
    models = _mount_points(launch.repositories)
    mounted = dict(zip(models, launch.repositories, strict=True))
    mounted |= {f"{DOCKER_BACKENDS}/{backend.name}": backend for backend in launch.backends}
    volumes = [part for target, place in mounted.items() for part in ("--volume", f"{place}:{target}:ro")]
    return [
        *(launch.source.binary, "run", "--rm", "--name", launch.id, "--network", "host", "--shm-size", "6g", *gpus),
        *(*volumes, docker_image(launch), "tritonserver"),
        *server_flags(launch, models, DOCKER_BACKENDS),
        *launch.key_flags,  # for all to read: what runs in a container cannot be reached from here
    ]


def _mount_points(repositories: Sequence[Path]) -> list[str]:
    """Where the repositories are in a container: side by side as here, so that links from one to another lead there."""
    root = repositories[0] if len(repositories) == 1 else Path(os.path.commonpath(repositories))
    return [str(Path("/models") / repository.relative_to(root)) for repository in repositories]


def _folder_name(number: int) -> str:
    """What the repository of this number is called where it gets a new path: models, models_2 and so on."""
    return f"models_{number + 1}" if number else "models"


def docker_image(launch: Launch) -> str:
    """The stock image with the models' Python packages added, built where it is not there yet.

    Where no repository names any packages, it is the stock image itself.

    Raises
    ------
    ServerStartError
        The image could not be built; the message holds the end of Docker's output.
    """
    docker, packages = launch.source.binary, _packages(launch.repositories)
    if not packages:
        return launch.source.place
    release = launch.source.place.rpartition(":")[2]
    tag = f"triton-ensemble-lab:{release}-{zlib.crc32(' '.join(packages).encode()):08x}"
    if subprocess.run([docker, "image", "inspect", tag], capture_output=True, check=False).returncode == 0:
        return tag
    install = json.dumps(["python3", "-m", "pip", "install", "--no-cache-dir", *packages])
    recipe = f"FROM {launch.source.place}\nRUN {install}\n"
    built = subprocess.run(
        [docker, "build", "--tag", tag, "-"], input=recipe, capture_output=True, text=True, check=False
    )
    if built.returncode != 0:
        raise ServerStartError(f"docker build of {tag} failed:\n{built.stderr[-2000:]}")
    return tag


def _packages(repositories: Sequence[Path]) -> list[str]:
    """The Python packages that the repositories name in their `requirements.txt`, those that have one."""
    files = [file for repository in repositories if (file := repository / "requirements.txt").exists()]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


def _without_space(launch: Launch) -> list[str]:
    """The model repositories; a link to each whose path holds white space: the stub's arguments break there."""
    paths = list(launch.repositories)
    for number, repository in enumerate(paths):
        if re.search(r"\s", str(repository)):
            paths[number] = launch.folder / _folder_name(number)
            paths[number].symlink_to(repository)
    return [str(path) for path in paths]


def extra_backends(folders: Sequence[str | Path], source: Source) -> list[Path]:
    """The backends in these folders: every `<name>/` that holds a `libtriton_<name>.so`.

    Parameters
    ----------
    folders : sequence of paths
        Each holds one backend or more, as Triton's own backends folder does.
    source : Source
        The server that shall find them beside its own backends.

    Raises
    ------
    ServerStartError
        A folder holds no backend, or two backends have the same name.
    """
    taken = {backend.name: backend for backend in _own_backends(source)}
    found = []
    for folder in folders:
        backends = _backends_in(folder)
        if not backends:
            raise ServerStartError(
                f"no backend in {folder}: expected <name>/libtriton_<name>.so there; build the backend first"
            )
        for backend in backends:
            if backend.name in taken:
                raise ServerStartError(
                    f"two backends are named {backend.name!r}: {taken[backend.name]} and {backend}; leave one out"
                )
            taken[backend.name] = backend
        found += backends
    return found


def _backends_in(folder: str | Path) -> list[Path]:
    libraries = Path(folder).resolve().glob("*/libtriton_*.so")
    return sorted(library.parent for library in libraries if library.stem == f"libtriton_{library.parent.name}")


def _own_backends(source: Source) -> list[Path]:
    """The backend folders of the server itself; of those in an image only the one that the lab needs is known here."""
    if not source.backends:
        return [Path(DOCKER_BACKENDS, "python")]
    return [folder for folder in Path(source.backends).iterdir() if folder.is_dir()]


def _linked_backends(launch: Launch) -> Path:
    """A backend folder of links: to the source's backends, to further ones, and to the stub of this Python."""
    folder = launch.folder / "backends"
    folder.mkdir()
    for backend in [*_own_backends(launch.source), *launch.backends]:
        (folder / backend.name).symlink_to(backend)
    if launch.source.stub:
        _add_stub(folder / "python", Path(launch.source.stub))
    return folder


def _add_stub(backend: Path, stub: Path) -> None:
    """Put a folder of links in the place of the link to a backend, and the stub into it."""
    files = list(backend.resolve().iterdir())
    backend.unlink()
    backend.mkdir()
    for file in [*files, stub]:
        (backend / file.name).symlink_to(file)


def start_supervised(launch: Launch) -> subprocess.Popen:
    """Start the server under a supervisor that ends it when this process closes the pipe or dies.

    The returned process is the supervisor; closing its `stdin` stops the server.
    """
    in_docker = launch.source.kind == "docker"
    cleanup = [launch.source.binary, "rm", "--force", launch.id] if in_docker else []
    job = {
        "command": server_command(launch),
        "hidden": [] if in_docker else launch.key_flags,
        "shm_prefix": [launch.shm_prefix],
        "cleanup": cleanup,
        "owner": [str(os.getpid())],
    }
    environment = {**os.environ, **launch.source.environment}
    environment.setdefault("OMP_NUM_THREADS", "1")  # the tiny model's matrices are too small for more
    with launch.log_path.open("wb") as log, _in_memory(supervisor.write_job(job)) as file:
        fcntl.flock(log, fcntl.LOCK_SH)  # held by whoever has the log open: the server's processes, until the last ends
        return subprocess.Popen(
            [sys.executable, "-I", "-S", supervisor.__file__, str(file.fileno()), launch.shm_prefix],
            pass_fds=[file.fileno()],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=launch.log_path.parent,  # the stub imports "1.model" from where it runs first, and from its model then
            start_new_session=True,
        )


def _in_memory(content: bytes) -> BinaryIO:
    """A file without a name, open at its start."""
    file = os.fdopen(os.memfd_create("job"), "w+b")
    file.write(content)
    file.seek(0)
    return file


def new_folder(name: str) -> Path:
    """A folder for one server's log; folders older than a day are removed, unless their server still runs."""
    runs = _closed_folder() / "servers"
    runs.mkdir(exist_ok=True, mode=0o700)
    for folder in runs.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > KEEP_LOGS_SECONDS and not _in_use(folder):
                shutil.rmtree(folder, ignore_errors=True)
    (runs / name).mkdir(mode=0o700)
    _reserve(runs / name / "server.log")
    return runs / name


def _closed_folder() -> Path:
    """A folder that is closed to other users, and whose path holds no white space: the stub's arguments break there."""
    home = Path(tempfile.gettempdir(), f"triton-ensemble-lab-{os.getuid()}") if re.search(r"\s", str(STATE)) else STATE
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    if home != STATE and home.lstat().st_uid != os.getuid():
        raise ServerStartError(
            f"{home} belongs to another user, who could exchange what the lab puts there. Have it removed, or let the "
            "variable TMPDIR name a folder of your own"
        )
    home.chmod(0o700)
    return home


def _reserve(log: Path) -> None:
    """Find out whether the disk has room for a log: a server whose log is cut off cannot be seen to be ready."""
    try:
        log.touch(mode=0o600)
        with log.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, LOG_BYTES)
    except OSError:
        shutil.rmtree(log.parent, ignore_errors=True)
        raise


def _in_use(folder: Path) -> bool:
    """Whether a process still has this folder's log open."""
    with contextlib.suppress(FileNotFoundError), (folder / "server.log").open("rb") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
