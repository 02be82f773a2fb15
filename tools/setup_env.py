#!/usr/bin/env python3
"""Make the project's own environment in ``.venv``: find uv, choose a Python, install the lock.

Run as ``python3 tools/setup_env.py`` (``make setup``) with any Python >= 3.10 that is at hand; only the standard
library is used. ``python3 tools/setup_env.py workshop`` adds what a room full of people needs: a hub, a browser
driver, the static site. ``python3 tools/setup_env.py uv ARG...`` runs the uv that the set-up uses (``make lock``).

The set-up is finished when ``.venv/.lab-setup.json`` exists: it is removed before anything is changed and written
last, so an interrupted set-up is seen by the next one, which starts again.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV_VERSION = "0.13.9"
OLDEST_UV = (0, 5, 0)
VERSIONS = ("3.12", "3.11", "3.10")
STAMP = ".lab-setup.json"
LOCK = "requirements.lock"
WORKSHOP_STAMP = ".lab-workshop.json"
WORKSHOP_LOCK = "requirements-workshop.lock"
WHEELS = "wheels"  # what an archive for a room without network brings: see tools/offline_archive.py
STUB = "backends/python/triton_python_backend_stub"

# Runs in the interpreter under test. Triton's stub asks for exactly this name, and a libpython of another patch
# release must not pass for the right one: load it and ask for its version.
PROBE = """
import ctypes, json, os, platform, sys, sysconfig
name = "libpython%d.%d.so.1.0" % sys.version_info[:2]
folders = [sysconfig.get_config_var("LIBDIR") or "", os.path.join(sys.base_prefix, "lib")]
paths = [path for path in (os.path.join(folder, name) for folder in folders) if os.path.isfile(path)]
found = {"version": platform.python_version(), "libpython": paths[0] if paths else "", "error": ""}
try:
    library = ctypes.CDLL(paths[0] if paths else os.path.join(folders[0], name))
    library.Py_GetVersion.restype = ctypes.c_char_p
    loaded = library.Py_GetVersion().decode().split()[0]
    if loaded != sys.version.split()[0]:
        found["error"] = "%s is Python %s" % (paths[0], loaded)
except OSError as error:
    found["error"] = str(error)
print(json.dumps(found))
"""
WHERE = "import platform, sys; print(platform.python_version()); print(sys.prefix)"


class SetupError(Exception):
    """The set-up cannot go on; the text says why and what to do."""


@dataclass(frozen=True)
class Interpreter:
    """A Python that can carry Triton's stub.

    Attributes
    ----------
    path : str
        The executable.
    version : str
        Its full version, such as "3.12.1".
    libpython : str
        The shared library that was really loaded.
    """

    path: str
    version: str
    libpython: str


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"setup: {text}", flush=True)


# Running other programs ------------------------------------------------------------------------------------------


def child_environment() -> dict[str, str]:
    """Return the environment for child programs: the user's, less what would bend pip, uv or Python."""
    bent = {"VIRTUAL_ENV", "UV_SYSTEM_PYTHON", "UV_PYTHON", "PIP_TARGET", "PIP_PREFIX"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k not in bent}
    return {**kept, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_ROOT_USER_ACTION": "ignore"}


def run(arguments: list[str], root: Path) -> None:
    """Run a program in `root` and show its output.

    Raises
    ------
    SetupError
        When it cannot be started or ends with a status other than 0.
    """
    try:
        # close_fds=False: the child shares the set-up lock, and keeps it should this process be killed.
        status = subprocess.run(arguments, cwd=root, env=child_environment(), close_fds=False).returncode
    except OSError as error:
        raise SetupError(f"cannot run {arguments[0]}: {error.strerror}") from error
    if status != 0:
        command = " ".join(map(str, arguments[:4]))
        raise SetupError(f"'{command} ...' failed with status {status}; its message is above")


def ask(arguments: list[str]) -> str | None:
    """Return what a program prints, or None when it fails, is not there or takes longer than a minute."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, env=child_environment())
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# uv --------------------------------------------------------------------------------------------------------------


def uv_version(uv: str) -> tuple[int, ...] | None:
    """Return the version of a uv executable, or None when it does not run."""
    match = re.match(r"uv (\d+)\.(\d+)\.(\d+)", ask([uv, "--version"]) or "")
    return tuple(map(int, match.groups())) if match else None


def find_uv(root: Path) -> str | None:
    """Return a uv that runs and is new enough: the one on PATH, else the one in `.tools`."""
    for uv in (shutil.which("uv"), str(root / ".tools/bin/uv")):
        if uv and (uv_version(uv) or (0,)) >= OLDEST_UV:
            return uv
    return None


def uv_install_command(root: Path) -> list[str]:
    """Return the command that puts the pinned uv into `.tools`; --target makes it work under PEP 668 too."""
    target = ["--target", str(root / ".tools"), "--upgrade"]
    return [sys.executable, "-m", "pip", "install", "--quiet", *target, f"uv=={UV_VERSION}"]


def install_uv(root: Path) -> str:
    """Install the pinned uv into `.tools` and return its path.

    Raises
    ------
    SetupError
        When this Python has no pip, or pip fails.
    """
    if ask([sys.executable, "-m", "pip", "--version"]) is None:
        raise SetupError(
            f"uv is not installed, and {sys.executable} has no pip to fetch it with. Install either one "
            "(Debian, Ubuntu: 'apt-get install python3-pip'; Fedora: 'dnf install uv'), then run it again."
        )
    say(f"installing uv {UV_VERSION} into .tools")
    run(uv_install_command(root), root)
    uv = find_uv(root)
    if uv is None:
        raise SetupError(f"uv {UV_VERSION} was installed into {root / '.tools'} but does not run on this machine.")
    return uv


# The interpreter -------------------------------------------------------------------------------------------------


def native_stub_version() -> str | None:
    """Return the Python version that an installed tritonserver's stub was built for, such as "3.10", or None."""
    stub = Path(os.environ.get("TRITONSERVER_HOME") or "/opt/tritonserver") / STUB
    match = re.search(rb"libpython(3\.\d+)\.so", stub.read_bytes()) if stub.is_file() else None
    return match.group(1).decode() if match else None


def wanted_versions(native: str | None) -> tuple[str, ...]:
    """Return the Python versions to try, best first; that of an installed tritonserver leads."""
    return tuple(sorted(VERSIONS, key=lambda version: version != native))


def pyenv_pythons(version: str) -> list[str]:
    """Return pyenv's interpreters of a version, newest patch release first."""
    root = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    found = glob.glob(os.path.join(glob.escape(root), "versions", f"{version}.*", "bin", "python3"))
    return sorted(found, key=lambda path: list(map(int, re.findall(r"\d+", path))), reverse=True)


def candidates(version: str, uv: str) -> list[str]:
    """Return the executables that may be a Python of this version, best first, each once."""
    # --system: never the .venv that this very script is about to replace.
    known = ask([uv, "python", "find", "--system", "--no-project", "--no-python-downloads", version])
    running = sys.executable if platform.python_version().startswith(f"{version}.") else None
    found = [known, shutil.which(f"python{version}"), *pyenv_pythons(version), running, f"/usr/bin/python{version}"]
    return list(dict.fromkeys(path for path in found if path and os.path.exists(path)))


def probe(python: str, version: str) -> Interpreter:
    """Load the shared libpython in the interpreter itself and return what was found.

    Raises
    ------
    SetupError
        When it does not run, is of another version or cannot load its library; the text is the reason.
    """
    answer = ask([python, "-I", "-c", PROBE])
    if not answer:
        raise SetupError("does not run")
    found = json.loads(answer)
    if not found["version"].startswith(f"{version}."):
        raise SetupError(f"is Python {found['version']}")
    if found["error"]:
        raise SetupError(f"has no shared libpython: {found['error']}")
    return Interpreter(python, found["version"], found["libpython"])


def choose_interpreter(versions: tuple[str, ...], find: Callable[[str], list[str]]) -> Interpreter:
    """Return the first interpreter that passes the probe.

    Parameters
    ----------
    versions : tuple of str
        Python versions, best first.
    find : callable
        Gives the candidate executables of a version, best first.

    Raises
    ------
    SetupError
        When none passes; the text has one line per interpreter with the reason.
    """
    refused = []
    for version in versions:
        for python in find(version):
            try:
                return probe(python, version)
            except SetupError as reason:
                refused.append(f"  {python}: {reason}")
    raise SetupError("\n".join(["no Python here can carry Triton's stub.", *(refused or ["  (none was found)"])]))


def get_interpreter(uv: str, root: Path) -> Interpreter:
    """Return an interpreter of this machine or, when it has none that fits, one that uv downloads.

    Raises
    ------
    SetupError
        When there is none and none can be downloaded; the text says what to install.
    """
    versions = wanted_versions(native_stub_version())
    try:
        return choose_interpreter(versions, lambda version: candidates(version, uv))
    except SetupError as error:
        say(str(error))
    say(f"asking uv for Python {versions[0]}")
    try:
        run([uv, "python", "install", versions[0]], root)
        return choose_interpreter(versions[:1], lambda version: candidates(version, uv))
    except SetupError as error:
        raise SetupError(
            f"found no usable Python ({', '.join(VERSIONS)}) and could not download one: {error}\n"
            "Needed is CPython with its shared library. Install one, then run it again:\n"
            "  Debian, Ubuntu: apt-get install python3 libpython3-dev\n"
            f"  pyenv:          PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install {versions[0]}\n"
            "  conda:          conda env create -f environment.yml"
        ) from error


# The environment -------------------------------------------------------------------------------------------------


def inventory(venv: Path) -> list[str]:
    """Return the names in the environment's bin and site-packages folders, relative to it, sorted."""
    folders = [venv / "bin", *venv.glob("lib/python3.*/site-packages")]
    paths = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    return sorted(str(path.relative_to(venv)) for path in paths if path.name != "__pycache__")


def fingerprint(root: Path) -> str:
    """Return the hash of everything that decides what belongs into the environment."""
    parts = [(root / name).read_bytes() for name in (LOCK, "pyproject.toml")]
    parts += [(native_stub_version() or "").encode(), str(root).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def read_stamp(venv: Path, name: str = STAMP) -> dict:
    """Return what the last finished set-up wrote, or an empty dict."""
    try:
        return json.loads((venv / name).read_text())
    except (OSError, ValueError):
        return {}


def write_stamp(root: Path, venv: Path) -> None:
    """Record that the environment is complete."""
    stamp = {"fingerprint": fingerprint(root), "root": str(root), "python": running_version(venv)}
    write_text(venv / STAMP, json.dumps({**stamp, "inventory": inventory(venv)}))


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: it is there whole, or not at all."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(text)
    os.replace(temporary, path)


def running_version(venv: Path) -> str | None:
    """Return the version of the environment's Python, or None when it does not run or is not in `venv`."""
    lines = (ask([str(venv / "bin/python"), "-I", "-c", WHERE]) or "").splitlines()
    if len(lines) != 2 or os.path.realpath(lines[1]) != os.path.realpath(venv):
        return None
    return lines[0]


def is_ready(root: Path) -> bool:
    """Tell whether `.venv` is complete, runs, and was made from this lock for this folder."""
    venv = root / ".venv"
    stamp = read_stamp(venv)
    return (
        stamp.get("fingerprint") == fingerprint(root)
        and set(stamp["inventory"]) <= set(inventory(venv))
        and stamp["python"] == running_version(venv)
    )


def can_be_updated(root: Path, python: Interpreter) -> bool:
    """Tell whether `.venv` is a finished one of this folder and this Python, so that packages can be laid over it."""
    venv = root / ".venv"
    stamp = read_stamp(venv)
    return stamp.get("root") == str(root) and stamp["python"] == running_version(venv) == python.version


def make_venv(uv: str, python: Interpreter, root: Path) -> None:
    """Make an empty `.venv`, in place of whatever stands there."""
    venv = root / ".venv"
    say(f"making .venv with Python {python.version} ({python.path})")
    if venv.is_symlink() or venv.is_file():
        venv.unlink()
    elif venv.exists():
        shutil.rmtree(venv)
    run([uv, "venv", "--quiet", "--no-project", "--python", python.path, str(venv)], root)


def install(uv: str, root: Path, over: bool) -> None:
    """Install the lock, every file checked against its hash, then the project itself, editable.

    Parameters
    ----------
    uv : str
        The uv executable.
    root : pathlib.Path
        The checkout.
    over : bool
        Lay all packages anew over those that are there; what a user added stays. uv would trust the metadata: a
        package whose files were deleted counts as installed.
    """
    say(f"installing {LOCK}")
    options = ["--reinstall"] if over else []
    install_lock(uv, root, LOCK, *options)
    run([*install_command(uv, root), *options, "--no-deps", "-e", "."], root)


def install_command(uv: str, root: Path) -> list[str]:
    """Return the command, less what to install, that installs into `.venv`."""
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    return [uv, "pip", "install", *quiet, *offline(root), "--python", str(root / ".venv/bin/python")]


def offline(root: Path) -> list[str]:
    """Return the options that keep uv to the packages that came with this folder, where it brought some."""
    wheels = root / WHEELS
    return ["--offline", "--no-index", "--find-links", str(wheels)] if wheels.is_dir() else []


def install_lock(uv: str, root: Path, lock: str, *options: str) -> None:
    """Install a lock, every file checked against its hash."""
    run([*install_command(uv, root), *options, "--require-hashes", "-r", lock], root)


def build(root: Path) -> None:
    """Bring `.venv` to the state that the lock describes."""
    uv = find_uv(root) or install_uv(root)
    python = get_interpreter(uv, root)
    update = can_be_updated(root, python)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        (root / ".venv" / STAMP).unlink()
    if not update:
        make_venv(uv, python, root)
    install(uv, root, over=update)
    write_stamp(root, root / ".venv")


@contextlib.contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Hold the set-up lock of this folder; wait for it while another set-up runs."""
    (root / ".tools").mkdir(exist_ok=True)
    with open(root / ".tools/setup.lock", "w") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up of this folder is running; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_platform() -> None:
    """Stop on a system for which the server has no build.

    Raises
    ------
    SetupError
        On anything but Linux.
    """
    if sys.platform != "linux":
        raise SetupError(f"Triton runs on Linux, this is {sys.platform}. The README says how to use a container.")
    if platform.machine() != "x86_64":
        say(f"this lab is tested on x86_64 only; this is {platform.machine()}")


def set_up(root: Path) -> None:
    """Make or repair the environment of the checkout in `root`; do nothing when it is complete."""
    if not is_ready(root):
        check_platform()
        with only_one(root):
            if not is_ready(root):
                build(root)
    say(f"ready (.venv, Python {read_stamp(root / '.venv')['python']})")


# The workshop's packages, on top -----------------------------------------------------------------------------------


def workshop_fingerprint(root: Path) -> str:
    """Return the hash of the environment below and of the workshop's lock."""
    return hashlib.sha256(fingerprint(root).encode() + (root / WORKSHOP_LOCK).read_bytes()).hexdigest()


def workshop_is_ready(root: Path) -> bool:
    """Tell whether `.venv` holds the workshop's packages of this lock."""
    venv = root / ".venv"
    stamp = read_stamp(venv, WORKSHOP_STAMP)
    return stamp.get("fingerprint") == workshop_fingerprint(root) and set(stamp["inventory"]) <= set(inventory(venv))


def add_workshop(root: Path) -> None:
    """Install the workshop's lock over a finished `.venv`; do nothing when it is there.

    Where it was there before, all its packages are laid anew: see `install`.
    """
    if not workshop_is_ready(root):
        with only_one(root):
            if not workshop_is_ready(root):
                install_workshop(find_uv(root) or install_uv(root), root)
    say("ready for a workshop")


def install_workshop(uv: str, root: Path) -> None:
    """Install the workshop's lock and record it."""
    say(f"installing {WORKSHOP_LOCK}")
    stamp = root / ".venv" / WORKSHOP_STAMP
    install_lock(uv, root, WORKSHOP_LOCK, *(["--reinstall"] if stamp.exists() else []))
    write_text(stamp, json.dumps({"fingerprint": workshop_fingerprint(root), "inventory": inventory(root / ".venv")}))


def main(arguments: list[str]) -> int:
    """Run the set-up, or uv when the first argument is "uv"; return the exit status."""
    try:
        if arguments[:1] == ["uv"]:
            run([find_uv(ROOT) or install_uv(ROOT), *arguments[1:]], ROOT)
        else:
            set_up(ROOT)
            if arguments == ["workshop"]:
                add_workshop(ROOT)
    except SetupError as error:
        print(f"setup: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: interrupted; the next run goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
