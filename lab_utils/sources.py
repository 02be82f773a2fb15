"""Where a tritonserver comes from: an address, an installation, the embedded wheel, or Docker."""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lab_utils.errors import ToldShortly

DOCKER_IMAGE = "nvcr.io/nvidia/tritonserver:24.10-py3"
NATIVE_HOME = Path("/opt/tritonserver")
SOURCES = ("attach", "native", "wheel", "docker")


class ServerNotFoundError(ToldShortly, RuntimeError):
    """No tritonserver can be used; the message says what was looked for and what to do."""


@dataclass(frozen=True)
class Source:
    """A way to get a server.

    `kind` is one of `SOURCES`. `place` says where it is, for people. For an attached server `grpc_url` is its address,
    HOST:PORT; for the others `binary` and `backends` are paths, and `environment` holds the variables to add. `stub` is
    set where the backends folder lacks the Python stub.
    """

    kind: str
    place: str
    grpc_url: str = ""
    binary: str = ""
    backends: str = ""
    stub: str = ""
    environment: dict[str, str] = field(default_factory=dict)


def find_source(kind: str | None = None) -> Source:
    """The server to use: `kind` if given, otherwise the first that is there of address, installation, wheel.

    Parameters
    ----------
    kind : str, optional
        One of `SOURCES`, or None. Docker is used only when it is named here or in ``TRITON_SOURCE``.

    Raises
    ------
    ServerNotFoundError
        Nothing usable was found.
    ValueError
        `kind` is not one of `SOURCES`.
    """
    kind = kind or os.environ.get("TRITON_SOURCE") or None
    if kind is not None and kind not in SOURCES:
        raise ValueError(f"server source {kind!r} is not known; use one of {', '.join(SOURCES)}")
    finders = {"attach": _attach, "native": _native, "wheel": _wheel, "docker": _docker}
    wanted = [kind] if kind else ["attach", "native", "wheel"]
    problems = []
    for name in wanted:
        found = finders[name]()
        if isinstance(found, Source):
            return found
        problems.append(f"{name}: {found}")
    raise ServerNotFoundError("no tritonserver found. Looked for:\n  " + "\n  ".join(problems))


def _attach() -> Source | str:
    url = os.environ.get("TRITON_GRPC_URL", "")
    if not url:
        return "TRITON_GRPC_URL is not set (set it to HOST:PORT of a running server)"
    if not re.fullmatch(r"[^/\s]+:\d+", url):
        raise ServerNotFoundError(
            f"TRITON_GRPC_URL is {url!r}; expected HOST:PORT without a scheme, such as 127.0.0.1:8001. Unset it to use "
            "a server of this machine"
        )
    return Source("attach", url, grpc_url=url)


def _native() -> Source | str:
    home = Path(os.environ.get("TRITONSERVER_HOME") or NATIVE_HOME)
    binary, backends = home / "bin" / "tritonserver", home / "backends"
    if not os.access(binary, os.X_OK):
        return f"no executable {binary} (set TRITONSERVER_HOME to an installation)"
    stub = backends / "python" / "triton_python_backend_stub"
    if not stub.exists():
        return f"{home} has no Python backend ({stub} is missing)"
    environment = {}
    if stub_python(stub) == python_version():
        environment = stub_environment()
    return Source("native", str(home), binary=str(binary), backends=str(backends), environment=environment)


def _wheel() -> Source | str:
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return f"the embedded server runs on Linux x86-64 only; this is {sys.platform} {os.uname().machine}"
    found = importlib.util.find_spec("pytriton")
    if found is None or not found.submodule_search_locations:
        return "the Python package nvidia-pytriton is not installed (make setup)"
    home = Path(found.submodule_search_locations[0]) / "tritonserver"
    stub = home / "python_backend_stubs" / python_version() / "triton_python_backend_stub"
    if not stub.exists():
        return f"nvidia-pytriton has no stub for Python {python_version()} (make setup chooses one it has)"
    if problem := stub_problem():
        return problem
    libraries = home.parents[1] / "nvidia_pytriton.libs"
    return Source(
        "wheel",
        str(home),
        binary=str(_executable(home / "bin" / "tritonserver")),
        backends=str(home / "backends"),
        stub=str(_executable(stub)),
        environment=stub_environment(libraries),
    )


def _docker() -> Source | str:
    docker = shutil.which("docker")
    if docker is None:
        return "no docker command on PATH"
    running = subprocess.run([docker, "info"], capture_output=True, text=True, check=False)
    if running.returncode != 0:
        return f"docker is installed, but no Docker engine answers: {running.stderr.strip().splitlines()[-1:]}"
    return Source("docker", DOCKER_IMAGE, binary=docker)


def python_version() -> str:
    """Version of the running Python as the stubs are named, such as "3.12"."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def stub_problem() -> str:
    """Why the embedded server's Python stub would not run in this environment; empty where it will."""
    if int(np.__version__.partition(".")[0]) >= 2:
        return (
            f"NumPy is {np.__version__}, and string tensors kill this server's stub with NumPy 2 (make setup mends it)"
        )
    library = Path(sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("INSTSONAME") or "")
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return f"this Python's shared library, which the stub needs, does not load: {error} (make setup finds one)"
    return ""


def stub_python(stub: Path) -> str | None:
    """The Python version that a stub was built for, read from the name of the library it needs."""
    match = re.search(rb"libpython(3\.\d+)\.so", stub.read_bytes())
    return match.group(1).decode() if match else None


def stub_environment(*libraries: Path) -> dict[str, str]:
    """Variables that let the stub find its own libpython and this environment's packages."""
    library_path = [*map(str, libraries), sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        "LD_LIBRARY_PATH": ":".join(filter(None, library_path)),
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
    }


def _executable(path: Path) -> Path:
    """Let everybody read and execute the file: wheels do not always keep that, and not only its owner may use it."""
    mode = path.stat().st_mode
    try:
        path.chmod(mode | 0o555) if mode & 0o555 != 0o555 else None
    except PermissionError:  # somebody else's environment
        if not os.access(path, os.R_OK | os.X_OK):
            raise ServerNotFoundError(
                f"{path} may not be executed by you; its owner's next `make doctor` makes it so"
            ) from None
    return path
