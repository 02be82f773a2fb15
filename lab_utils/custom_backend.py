"""Build the C++ backends of `custom_backend/` from Python; the Makefile there does it, with a C++ compiler alone.

``with start_server([...], repository=[MODEL_REPOSITORY, REPOSITORY], backends=build().folder) as server:`` serves it.
"""

import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab_utils import launch
from lab_utils.errors import ToldShortly
from lab_utils.files import disk_problem
from lab_utils.server import MODEL_REPOSITORY

PROJECT = MODEL_REPOSITORY.parent
FOLDER = PROJECT / "custom_backend"
REPOSITORY = FOLDER / "models"
SOURCES = FOLDER / "src"
BACKENDS = ("token_stream", "token_text")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-Wall", "-Wextra", "-Werror")
LIBRARIES = ("-pthread", "-ldl")
COMPILERS = ("g++", "clang++")
ERROR_LINES = 20
KEEP_CHANGED = 8  # builds with patches: each learner's answer is one
OUTER_MAKE = {"MAKEFLAGS", "MFLAGS", "SANITIZE"}  # what an outer make, or the user, has said is not for this one


class BuildError(ToldShortly, RuntimeError):
    """The backends could not be built; the message holds the compiler's own words and says what to do."""


@dataclass(frozen=True)
class Build:
    """Backends that were built.

    `folder` is what `start_server` takes as `backends`, `libraries` are the files in it. `seconds` is the time that the
    build took, and `fresh` says whether anything had to be compiled.
    """

    folder: Path
    libraries: tuple[Path, ...]
    seconds: float
    fresh: bool


def build(*, patches: Mapping[str, str] | None = None, sanitize: str | None = None, march: str = "native") -> Build:
    """Build both backends; only what has changed since last time is compiled.

    Two processes can build at once: one waits for the other. A server that has the old library loaded keeps it.

    Parameters
    ----------
    patches : mapping of str to str, optional
        Names of files in ``custom_backend/src``, such as "token_stream/rungs.cc", each with a new text that is compiled
        in its place. The tracked file stays as it is.
    sanitize : str, optional
        "address", "undefined", "thread", or several with commas between them.
    march : str
        The processor to compile for; by default this machine's.

    Raises
    ------
    BuildError
        There is no compiler, or it refused the sources.
    ValueError
        A patch is for a file that is not there.
    """
    began = time.monotonic()
    place, fresh = make("all", patches=patches, sanitize=sanitize, march=march)
    libraries = tuple(place / "backends" / name / f"libtriton_{name}.so" for name in BACKENDS)
    return Build(place / "backends", libraries, time.monotonic() - began, fresh)


def make(
    target: str, *, patches: Mapping[str, str] | None = None, sanitize: str | None = None, march: str = "native"
) -> tuple[Path, bool]:
    """Run the Makefile for one of its targets; as `build`, which makes "all".

    Returns
    -------
    path
        The folder that it built in.
    bool
        Whether anything had to be made.
    """
    settings = [f"MARCH={march}", *([f"SANITIZE={sanitize}"] if sanitize else [])]
    place = default_folder() / "_".join([*(sanitize or "").split(","), *([march] if march != "native" else [])])
    if not patches:
        return place, _run(place, target, settings)
    _run(place, target, settings)  # what the patches leave alone need not be compiled again
    with _locked(place):
        changed = _changed(place, patches)
    return changed, _run(changed, target, settings)


def compile_command(backend: str = BACKENDS[0]) -> str:
    """One compiler call that makes a backend's library as `build` does, to be typed in the project's folder.

    Parameters
    ----------
    backend : str
        One of `BACKENDS`.
    """
    source = SOURCES.relative_to(PROJECT)
    library = default_folder() / "backends" / backend / f"libtriton_{backend}.so"
    output = library.relative_to(PROJECT) if library.is_relative_to(PROJECT) else library
    files = f"{source}/*.cc {source}/{backend}/*.cc"
    return (
        shlex.join([*shlex.split(compiler()), *FLAGS, f"-I{source}", "-shared", "-o", str(output)])
        + f" {files} "
        + " ".join(LIBRARIES)
    )


def compiler() -> str:
    """The C++ compiler: what the variable CXX says, otherwise the first of g++ and clang++ that is there.

    Raises
    ------
    BuildError
        There is none.
    """
    wanted = os.environ.get("CXX", "").strip()
    if wanted and not shutil.which(wanted.split()[0].strip("'\"")):
        raise BuildError(f"the variable CXX says {wanted!r}, but there is no such command; unset it, or correct it")
    found = wanted or next(filter(shutil.which, COMPILERS), None)
    if not found:
        raise BuildError(
            f"no C++ compiler: none of {', '.join(COMPILERS)} is on PATH. Install one (Debian and Ubuntu: apt-get "
            "install g++, Fedora: dnf install gcc-c++, conda: conda install gxx_linux-64), or set CXX to its path"
        )
    return found


def default_folder() -> Path:
    """`custom_backend/build`, or a folder of this user where the checkout cannot be written."""
    build = FOLDER / "build"
    writable = os.access(build if build.exists() else FOLDER, os.W_OK)
    return build if writable else launch.STATE / "custom_backend"


def _changed(place: Path, patches: Mapping[str, str]) -> Path:
    """A folder with all sources, the patches in them, and the objects of `place`; another one for other sources."""
    sources = {str(file.relative_to(SOURCES)): file for file in SOURCES.rglob("*.*")}
    unknown = sorted(patches.keys() - sources.keys())
    if unknown:
        raise ValueError(f"there is no source {unknown[0]!r}; custom_backend/src has: {', '.join(sorted(sources))}")
    known = [name.encode() + file.read_bytes() for name, file in sorted(sources.items())]
    texts = [f"{name}\0{text}".encode() for name, text in sorted(patches.items())]
    folder = place / "changed" / hashlib.sha256(b"\0".join(known + texts)).hexdigest()[:12]
    if not folder.exists():
        with _unfinished(folder) as new:
            _copy(place, new, patches)
        for old in sorted(folder.parent.iterdir(), key=lambda one: one.stat().st_mtime)[:-KEEP_CHANGED]:
            shutil.rmtree(old)
    return folder


def _copy(place: Path, new: Path, patches: Mapping[str, str]) -> None:
    """What lies in the sources and in the objects, with its times, by which make sees what is new."""
    shutil.copytree(SOURCES, new / "src")
    (new / "tests").symlink_to(FOLDER / "tests")
    if all(name.endswith(".cc") for name in patches):  # a header changes what others compile to, too
        shutil.copytree(place / "objects", new / "objects")
        shutil.copy2(place / "compiler", new)
    for name, text in patches.items():
        (new / "src" / name).write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """Another name beside the folder, which it gets when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as beside:
        new = Path(beside, folder.name)
        new.mkdir()
        yield new
        new.replace(folder)


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    place.mkdir(parents=True, exist_ok=True)
    with (place / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(place: Path, target: str, settings: list[str]) -> bool:
    """Run make in the folder that holds the sources; says whether it made anything.

    make cannot handle white space in paths, so all that it sees are paths inside that folder.
    """
    used = compiler()
    if not shutil.which("make"):
        raise BuildError("no make on PATH. Install it (Debian and Ubuntu: apt-get install make), and build again")
    with _locked(place):
        root = _source_folder(place)
        command = [
            *("make", f"--jobs={len(os.sched_getaffinity(0))}", f"--directory={root}", f"--file={FOLDER / 'Makefile'}"),
            *(f"CXX={used}", f"BUILD={os.path.relpath(place, root)}", *settings, target),
        ]
        ours = {name: value for name, value in os.environ.items() if name not in OUTER_MAKE}
        environment = {**ours, "LC_ALL": "C"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        _refuse_full_disk(place)
        raise BuildError(f"the build failed:\n{_first_errors(done.stderr)}\n{_advice(root)}")
    return any(line.startswith(used) for line in done.stdout.splitlines())


def _source_folder(place: Path) -> Path:
    """The folder whose `src` is compiled into `place`, which lies inside it."""
    if (place / "src").exists():
        return place
    if place.is_relative_to(FOLDER):
        return FOLDER
    for name in ("src", "tests"):
        (place / name).symlink_to(FOLDER / name)
    return place


def _first_errors(printed: str) -> str:
    lines = printed.splitlines()
    first = next((n for n, line in enumerate(lines) if "error: " in line and not line.startswith("collect2")), 0)
    return "\n".join(lines[first : first + ERROR_LINES])


def _refuse_full_disk(place: Path) -> None:
    """Name the reason that make and a compiler tell in words of their own, or not at all."""
    for folder in (place, Path(tempfile.gettempdir())):
        if full := disk_problem(folder):
            raise BuildError(f"the build failed: {full}. Free space there and build again")


def _advice(root: Path) -> str:
    if root.parent.name == "changed":
        return "What was compiled is your text, in a copy. Correct it and build again."
    return (
        "`git diff custom_backend` shows what you changed there. Where you changed nothing, the compiler is too old "
        "for C++17: set CXX to another one."
    )
