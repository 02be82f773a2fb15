"""Say what this machine has and lacks for the lab, and what to do about it."""

import ctypes
import importlib.util
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lab_utils import big_run
from lab_utils.device import first_device
from lab_utils.server import MODEL_REPOSITORY, start_server
from lab_utils.sources import find_source

OK, NOTE, PROBLEM = "ok", "note", "problem"


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `level` is "ok", "note" (the lab runs without it) or "problem"; `advice` says what to do."""

    level: str
    name: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        found = self.found.replace(f"{MODEL_REPOSITORY.parent}/", "")  # paths inside the checkout, as seen from there
        return f"{self.level:8}{self.name:15}{found}" + (f"\n{'':23}-> {self.advice}" if self.advice else "")


def check_system() -> Finding:
    """Linux x86-64 runs the embedded server."""
    found = f"{platform.system()} {platform.machine()}"
    if found == "Linux x86_64":
        return Finding(OK, "system", found)
    return Finding(NOTE, "system", found, "the embedded server needs Linux x86-64: use a container or TRITON_GRPC_URL")


def check_python() -> Finding:
    """The stub loads the shared libpython of this interpreter."""
    library = Path(sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("INSTSONAME") or "")
    found = f"{platform.python_version()} in {sys.prefix}"
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return Finding(PROBLEM, "python", f"{found}: {error}", "run make setup: it chooses a Python with libpython")
    return Finding(OK, "python", f"{found}, {library.name} loads")


def check_numpy() -> Finding:
    """This server's stub dies of string tensors with NumPy 2."""
    if int(np.__version__.partition(".")[0]) < 2:
        return Finding(OK, "numpy", np.__version__)
    return Finding(PROBLEM, "numpy", np.__version__, "string tensors kill this server's stub with NumPy 2: make setup")


def check_server() -> Finding:
    """Start the server with one model, ask its version, and stop it."""
    try:
        source = find_source()
        with start_server(["postprocess"]) as server:
            version = server.metadata["version"]
    except (RuntimeError, ValueError, OSError) as error:
        return Finding(PROBLEM, "server", str(error), "see README, What is supported")
    return Finding(OK, "server", f"tritonserver {version} ({source.kind}: {source.place}), starts and stops")


def check_gpu() -> Finding:
    """With a GPU, the inference node runs there if torch with CUDA is installed."""
    device = first_device()
    if device.kind == "CPU":
        return Finding(OK, "gpu", "none; the lessons run on the CPU")
    if importlib.util.find_spec("torch") is None:
        return Finding(NOTE, "gpu", f"{device}; no torch", "uv pip install torch, to run the inference node on the GPU")
    import torch  # only here: it is no dependency of the lab, and slow to import

    if not torch.cuda.is_available():
        return Finding(NOTE, "gpu", f"{device}; torch {torch.__version__} without CUDA", "install torch with CUDA")
    return Finding(OK, "gpu", f"{device}; torch {torch.__version__}")


def check_compiler() -> Finding:
    """Lesson 09 builds a backend in C++."""
    for name in ("g++", "clang++"):
        if path := shutil.which(name):
            version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
            return Finding(OK, "compiler", version.partition("\n")[0])
    return Finding(NOTE, "compiler", "no g++ or clang++", "apt-get install g++ (only the C++ backend needs it)")


def check_memory() -> Finding:
    """Memory and /dev/shm decide how far the big run of lesson 02 goes."""
    try:
        memory, shared = big_run.available_memory(), big_run.free_shared_memory()
    except FileNotFoundError as error:
        return Finding(NOTE, "memory", f"no shared memory here: {error}", "use a container or TRITON_GRPC_URL")
    n = big_run.plan(28, memory, shared).n
    found = f"{memory / 2**30:.1f} GiB free, {shared / 2**30:.1f} GiB in /dev/shm: the big run goes to iteration {n}"
    if shared < 64 * 2**20:
        return Finding(PROBLEM, "memory", found, "give /dev/shm at least 64 MiB (docker run --shm-size=2g)")
    return Finding(OK, "memory", found)


def check_ports() -> Finding:
    """Servers listen on loopback, on ports that the system hands out."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind(("127.0.0.1", 0))
    except OSError as error:
        return Finding(PROBLEM, "ports", f"no free port on 127.0.0.1: {error}", "bring the loopback interface up")
    return Finding(OK, "ports", "127.0.0.1 hands out free ports")


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_system,
    check_python,
    check_numpy,
    check_server,
    check_gpu,
    check_compiler,
    check_memory,
    check_ports,
)


def examine() -> list[Finding]:
    """All findings, in order."""
    return [check() for check in CHECKS]
