"""A Triton server as another team would run it: own process, own copy of the models, nothing of the lab's launcher."""

import contextlib
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from lab_utils.sources import Source, find_source

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "model_repository"
MANIFEST = ROOT / "deploy" / "kubernetes" / "triton.yaml"
START_SECONDS = 60.0  # a deadline, not a delay
STOP_SECONDS = 30.0


@dataclass(frozen=True)
class Remote:
    """A server of somebody else: its process, address and key, and how its files in /dev/shm begin."""

    process: subprocess.Popen
    grpc_url: str
    api_key: str
    shm_prefix: str

    @property
    def environment(self) -> dict[str, str]:
        """What a learner is told to set."""
        return {"TRITON_GRPC_URL": self.grpc_url, "TRITON_API_KEY": self.api_key}


@contextlib.contextmanager
def remote_server(folder: Path) -> Iterator[Remote]:
    """Run a server on loopback with a copy of the lab's models in `folder`; no model is loaded."""
    name = f"remote_{secrets.token_hex(4)}"
    key = f"remote-team={secrets.token_hex(8)}"
    source, log = find_source("wheel"), folder / "server.log"
    command = [source.binary, *_flags(folder, key, f"{name}_")]
    shutil.copytree(MODELS, folder / "models", ignore=shutil.ignore_patterns("__pycache__"))
    _link_backend(folder / "backends" / "python", source)
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | source.environment | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    try:
        yield Remote(process, f"127.0.0.1:{_port(process, log)}", key, f"{name}_")
    finally:
        _end(process)


def _flags(folder: Path, key: str, shm_prefix: str) -> list[str]:
    """Those of the Deployment in `deploy/kubernetes`, on loopback and on a port that the system chooses."""
    documents = yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))
    (pod,) = [one["spec"]["template"]["spec"] for one in documents if one["kind"] == "Deployment"]
    here = {"=/models": f"={folder / 'models'}", "-port=8001": "-port=0", "$(TRITON_API_KEY)": key}
    flags = "\n".join(pod["containers"][0]["args"])
    for there, replacement in here.items():
        assert there in flags, f"{MANIFEST.name} has no {there}"
        flags = flags.replace(there, replacement)
    own = ["--grpc-address=127.0.0.1", f"--backend-directory={folder / 'backends'}"]
    return [*flags.splitlines(), *own, f"--backend-config=python,shm-region-prefix-name={shm_prefix}"]


def _link_backend(folder: Path, source: Source) -> None:
    """The wheel's Python backend, and beside it the stub for this Python, as in a stock installation."""
    folder.mkdir(parents=True)
    for file in [*Path(source.backends, "python").iterdir(), Path(source.stub)]:
        (folder / file.name).symlink_to(file)


def _port(process: subprocess.Popen, log: Path) -> int:
    """The port of the server's only listener, when it has one."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        listeners = [one for one in psutil.Process(process.pid).net_connections("tcp") if one.status == "LISTEN"]
        if listeners and b"Started GRPCInferenceService" in log.read_bytes():
            return listeners[0].laddr.port
        time.sleep(0.05)
    raise AssertionError(f"the remote server did not start:\n{log.read_text(errors='replace')[-3000:]}")


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
