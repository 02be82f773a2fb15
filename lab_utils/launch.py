"""The command line of a tritonserver, its ports, and the process that watches over it."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from lab_utils import supervisor
from lab_utils.device import has_gpu
from lab_utils.errors import ServerStartError
from lab_utils.sources import Source

STATE = platformdirs.user_state_path("triton-ensemble-lab")
SHM_PREFIX = f"triton_lab_{os.getuid()}_"
EXIT_SECONDS = 5  # with less, shared-memory files stayed behind
KEEP_LOGS_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Ports:
    """The three ports of a server, all on loopback."""

    http: int
    grpc: int
    metrics: int


@dataclass(frozen=True)
class Launch:
    """What one start of a server needs: where it comes from, what it serves, its name, ports and folder."""

    source: Source
    repository: Path
    models: Sequence[str]
    id: str
    ports: Ports
    folder: Path
    flags: Sequence[str] = ()

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


def server_flags(launch: Launch, repository: str, backends: str) -> list[str]:
    """Flags of the server; the two paths are as the server sees them.

    Loopback only, models only as named, no auto-completion of configs (it starts every stub twice), and no memory pools
    that a lab does not need.
    """
    ports = launch.ports
    return [
        f"--id={launch.id}",
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--disable-auto-complete-config",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in launch.models),
        *("--http-address=127.0.0.1", f"--http-port={ports.http}", "--reuse-http-port=true"),
        *("--grpc-address=127.0.0.1", f"--grpc-port={ports.grpc}", "--reuse-grpc-port=true"),
        f"--metrics-port={ports.metrics}",
        "--metrics-interval-ms=100",
        "--http-thread-count=2",
        "--pinned-memory-pool-byte-size=0",
        f"--exit-timeout-secs={EXIT_SECONDS}",
        f"--backend-config=python,shm-region-prefix-name={launch.shm_prefix}",
        *launch.flags,
    ]


def server_command(launch: Launch) -> list[str]:
    """The whole command line, as an argument list."""
    if launch.source.kind == "docker":
        return docker_command(launch)
    backends = _linked_backends(launch) if launch.source.stub else launch.source.backends
    return [launch.source.binary, *server_flags(launch, str(_without_space(launch)), str(backends))]


def docker_command(launch: Launch) -> list[str]:
    """Run the image on the host's network, so that loopback is the host's loopback."""
    gpus = ["--gpus", "all"] if has_gpu() else []
    return [
        *(launch.source.binary, "run", "--rm", "--name", launch.id, "--network", "host", "--shm-size", "6g", *gpus),
        *("--volume", f"{launch.repository}:/models:ro", docker_image(launch), "tritonserver"),
        *server_flags(launch, "/models", "/opt/tritonserver/backends"),
    ]


def docker_image(launch: Launch) -> str:
    """The stock image with the models' Python packages added, built where it is not there yet.

    Raises
    ------
    ServerStartError
        The image could not be built; the message holds the end of Docker's output.
    """
    docker, tag = launch.source.binary, f"triton-ensemble-lab:{launch.source.place.rpartition(':')[2]}"
    if subprocess.run([docker, "image", "inspect", tag], capture_output=True, check=False).returncode == 0:
        return tag
    requirements = (launch.repository / "requirements.txt").read_text(encoding="utf-8").splitlines()
    packages = [line for line in requirements if line and not line.startswith("#")]
    install = json.dumps(["python3", "-m", "pip", "install", "--no-cache-dir", *packages])
    recipe = f"FROM {launch.source.place}\nRUN {install}\n"
    built = subprocess.run(
        [docker, "build", "--tag", tag, "-"], input=recipe, capture_output=True, text=True, check=False
    )
    if built.returncode != 0:
        raise ServerStartError(f"docker build of {tag} failed:\n{built.stderr[-2000:]}")
    return tag


def _without_space(launch: Launch) -> Path:
    """The model repository, or a link to it where its path holds white space: the stub's arguments break there."""
    if not re.search(r"\s", str(launch.repository)):
        return launch.repository
    link = launch.folder / "models"
    link.symlink_to(launch.repository)
    return link


def _linked_backends(launch: Launch) -> Path:
    """A backend folder of links: the wheel's Python backend, and beside it the stub of this Python."""
    folder = launch.folder / "backends" / "python"
    folder.mkdir(parents=True)
    for file in [*Path(launch.source.backends, "python").iterdir(), Path(launch.source.stub)]:
        (folder / file.name).symlink_to(file)
    return folder.parent


def start_supervised(launch: Launch) -> subprocess.Popen:
    """Start the server under a supervisor that ends it when this process closes the pipe or dies.

    The returned process is the supervisor; closing its `stdin` stops the server.
    """
    cleanup = [launch.source.binary, "rm", "--force", launch.id] if launch.source.kind == "docker" else []
    job = {
        "command": server_command(launch),
        "shm_prefix": launch.shm_prefix,
        "cleanup": cleanup,
        "owner": os.getpid(),
    }
    environment = {**os.environ, **launch.source.environment}
    environment.setdefault("OMP_NUM_THREADS", "1")  # the tiny model's matrices are too small for more
    with launch.log_path.open("wb") as log:
        fcntl.flock(log, fcntl.LOCK_SH)  # held by whoever has the log open: the server's processes, until the last ends
        return subprocess.Popen(
            [sys.executable, "-I", "-S", supervisor.__file__, json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def new_folder(name: str) -> Path:
    """A folder for one server's log; folders older than a day are removed, unless their server still runs."""
    home = Path(tempfile.gettempdir(), f"triton-ensemble-lab-{os.getuid()}") if re.search(r"\s", str(STATE)) else STATE
    runs = home / "servers"
    runs.mkdir(parents=True, exist_ok=True, mode=0o700)
    for folder in runs.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > KEEP_LOGS_SECONDS and not _in_use(folder):
                shutil.rmtree(folder, ignore_errors=True)
    (runs / name).mkdir()
    return runs / name


def _in_use(folder: Path) -> bool:
    """Whether a process still has this folder's log open."""
    with contextlib.suppress(FileNotFoundError), (folder / "server.log").open("rb") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
