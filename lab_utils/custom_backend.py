"""Build the C++ backends of `custom_backend/` from Python: a C++ compiler is enough, there is no Triton checkout.

``with start_server([...], repository=[MODEL_REPOSITORY, REPOSITORY], backends=build().folder) as server:`` serves it.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from lab_utils import launch
from lab_utils.server import MODEL_REPOSITORY

PROJECT = MODEL_REPOSITORY.parent
FOLDER = PROJECT / "custom_backend"
REPOSITORY = FOLDER / "models"
SOURCES = FOLDER / "src"
NATIVE_INCLUDE = Path("/opt/tritonserver/include")
OFFICIAL_HEADER = Path("triton", "core", "tritonbackend.h")
COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fPIC")
LIBRARIES = ("-pthread", "-ldl")
BACKENDS = ("token_stream", "token_text")
ERROR_LINES = 20


class BuildError(RuntimeError):
    """The backends could not be built; the message holds the compiler's own words and says what to do."""


@dataclass(frozen=True)
class Build:
    """Backends that were built.

    `folder` is what `start_server` takes as `backends`, `libraries` are the files in it. `command` has a line for each
    library: one compiler call that makes the same, to be typed in the project's folder. `seconds` is the time that the
    build took; where nothing had changed it is 0.0, and `fresh` is False. `warnings` are the compiler's lines about
    warnings that were not errors.
    """

    folder: Path
    libraries: tuple[Path, ...]
    command: str
    seconds: float
    warnings: tuple[str, ...] = ()
    fresh: bool = True

    @property
    def library(self) -> Path:
        """The library of the first backend, `token_stream`."""
        return self.libraries[0]


@dataclass(frozen=True)
class _Recipe:
    """The folder of the sources, the flags in the order of the command line, and where compiled sources are kept."""

    sources: Path
    flags: tuple[str, ...]
    cache: Path = Path()

    def files(self, backend: str) -> list[Path]:
        """What a backend is made of: the sources that all backends share, and its own."""
        files = [*sorted(self.sources.glob("*.cc")), *sorted((self.sources / backend).glob("*.cc"))]
        if not files:
            raise BuildError(f"no C++ source (*.cc) in {self.sources}")
        return files

    def key(self, file: Path) -> str:
        """The same for the same object: it depends on the source, all headers, the flags and the processor."""
        contents = [file, *sorted(self.sources.rglob("*.h"))]
        known = [(str(one.relative_to(self.sources)), one.read_bytes().hex()) for one in contents]
        words = [os.environ.get("CXX", ""), *self.flags, *_headers(), *LIBRARIES, _processor(), *known]
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:24]


def compiler() -> list[str]:
    """The C++ compiler: what the variable CXX says, otherwise the first of g++, clang++ and c++ that is there.

    Returns
    -------
    list of str
        One word, or more where CXX has more, such as "ccache g++".

    Raises
    ------
    BuildError
        There is none.
    """
    wanted = shlex.split(os.environ.get("CXX", ""))
    if wanted and not shutil.which(wanted[0]):
        raise BuildError(f"the variable CXX says {wanted[0]!r}, but there is no such command; unset it, or correct it")
    found = wanted or [name for name in COMPILERS if shutil.which(name)][:1]
    if not found:
        raise BuildError(
            f"no C++ compiler: none of {', '.join(COMPILERS)} is on PATH. Install one (Debian and Ubuntu: apt-get "
            "install g++, Fedora: dnf install gcc-c++, conda: conda install gxx_linux-64), or set CXX to its path"
        )
    return found


def compile_command(
    output: str | Path,
    sources: str | Path | None = None,
    *,
    backend: str = BACKENDS[0],
    sanitize: str | None = None,
    extra: Sequence[str] = (),
) -> list[str]:
    """One compiler call that makes a backend's library, to be run in the project's folder.

    Parameters
    ----------
    output : path
        The library.
    sources : path, optional
        A folder of sources as `SOURCES` is, which is the default.
    backend : str
        One of `BACKENDS`.
    sanitize : str, optional
        "address", "undefined", "thread", or several with commas between them.
    extra : sequence of str
        More flags; a later flag wins over an earlier one.

    Returns
    -------
    list of str
        Arguments; paths inside the project are relative to it.

    Raises
    ------
    BuildError
        There is no compiler, no source, or no official header where TRITON_INCLUDE_DIR says.
    """
    recipe = _Recipe(Path(sources or SOURCES), _flags(sanitize, extra))
    files = [_shown(file) for file in recipe.files(backend)]
    return [*_call(recipe), "-shared", "-o", _shown(output), *files, *LIBRARIES]


def _flags(sanitize: str | None, extra: Sequence[str]) -> tuple[str, ...]:
    sanitizer = [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-g", "-O1"] if sanitize else []
    return (*FLAGS, *sanitizer, *extra)


def _call(recipe: _Recipe) -> list[str]:
    """The beginning of every compiler call."""
    return [*compiler(), *recipe.flags, f"-I{_shown(recipe.sources)}", *_headers()]


def _headers() -> list[str]:
    """The flag for Triton's official headers; none where they are not installed, and `triton_minimal.h` is used."""
    said = os.environ.get("TRITON_INCLUDE_DIR")
    include = Path(said or NATIVE_INCLUDE)
    if (include / OFFICIAL_HEADER).exists():
        return [f"-I{include}"]
    if said:
        raise BuildError(
            f"TRITON_INCLUDE_DIR is {said}, which has no {OFFICIAL_HEADER}. Set it to Triton's include folder, or "
            "unset it: the backend brings a header of its own"
        )
    return []


def _shown(path: str | Path) -> str:
    """The path as seen from the project's folder, where it is inside."""
    absolute = PROJECT / path
    return str(absolute.relative_to(PROJECT) if absolute.is_relative_to(PROJECT) else absolute)


def default_folder() -> Path:
    """`custom_backend/build`, or a folder of this user where the checkout cannot be written."""
    build = FOLDER / "build"
    writable = os.access(build if build.exists() else FOLDER, os.W_OK)
    return build if writable else launch.STATE / "custom_backend"


def build(
    folder: str | Path | None = None,
    *,
    patches: Mapping[str, str] | None = None,
    sanitize: str | None = None,
    extra: Sequence[str] = (),
) -> Build:
    """Compile the backends: those sources that changed since they were compiled last, and several at a time.

    Two processes can build at once: one waits for the other. A server that has the old library loaded keeps it.

    Parameters
    ----------
    folder : path, optional
        Where to build; the libraries become ``backends/<name>/libtriton_<name>.so`` in it. By default
        `default_folder`, and inside it a folder for each different `patches`, `sanitize` and `extra`.
    patches : mapping of str to str, optional
        Names of files in `SOURCES`, such as "rungs.cc" or "token_text/backend.cc", each with a new text that is
        compiled in its place. The tracked file stays as it is.
    sanitize, extra
        As `compile_command` takes them.

    Raises
    ------
    BuildError
        There is no compiler, or it refused the sources.
    ValueError
        A patch is for a file that is not there, or for one of several with the same name.
    """
    texts = {_source_named(name): text for name, text in (patches or {}).items()}
    place = Path(folder).resolve() if folder else _own_folder(texts, sanitize, extra)
    place.mkdir(parents=True, exist_ok=True)
    with _locked(place / ".lock"):
        sources = _patched(place / "src", texts) if texts else SOURCES
        cache = (place if folder else default_folder()) / "cache"
        recipe = _Recipe(sources, _flags(sanitize, extra), cache)
        return _made_before(place, recipe) or _make(place, recipe)


def _source_named(name: str) -> str:
    """The path of a source inside `SOURCES`; it may be told by its last part."""
    present = sorted(str(file.relative_to(SOURCES)) for file in SOURCES.rglob("*") if file.suffix in (".cc", ".h"))
    meant = [path for path in present if path == name] or [path for path in present if path.endswith(f"/{name}")]
    if len(meant) != 1:
        found = "two sources are" if meant else "no source is"
        raise ValueError(f"{found} named {name!r}; {_shown(SOURCES)} has: {', '.join(meant or present)}")
    return meant[0]


def _own_folder(patches: Mapping[str, str], sanitize: str | None, extra: Sequence[str]) -> Path:
    """The default folder, or one inside it that is the same for the same changes."""
    if not (patches or sanitize or extra):
        return default_folder()
    changes = json.dumps([sorted(patches.items()), sanitize, list(extra)])
    return default_folder() / "changed" / hashlib.sha256(changes.encode()).hexdigest()[:12]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _patched(folder: Path, patches: Mapping[str, str]) -> Path:
    """A copy of all sources with the patches in it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(SOURCES, folder)
    for name, text in patches.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def _processor() -> str:
    """The instructions that this processor has: -march=native compiles for them, and another one may lack some."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        return next((line.strip() for line in lines if line.startswith(("flags", "Features"))), "")
    return ""


def _library(place: Path, backend: str) -> Path:
    return place / "backends" / backend / f"libtriton_{backend}.so"


def _state(place: Path, recipe: _Recipe) -> dict:
    """Of each library, what it is made of and when it was made."""
    return {
        name: [[recipe.key(file) for file in recipe.files(name)], _library(place, name).stat().st_mtime_ns]
        for name in BACKENDS
    }


def _made_before(place: Path, recipe: _Recipe) -> Build | None:
    """The build that is there, if it is what was asked for."""
    try:
        record = json.loads((place / "build.json").read_text(encoding="utf-8"))
        if record["state"] != _state(place, recipe):
            return None
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return replace(_built(place, record["command"], record["warnings"]), fresh=False)


def _make(place: Path, recipe: _Recipe) -> Build:
    began = time.monotonic()
    files = list(dict.fromkeys(file for name in BACKENDS for file in recipe.files(name)))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        objects = dict(zip(files, threads.map(lambda file: _object(file, recipe), files), strict=True))
    for name in BACKENDS:
        _link([objects[file] for file in recipe.files(name)], _library(place, name), recipe)
    seconds = time.monotonic() - began
    printed = [line for made in objects.values() for line in made.with_suffix(".txt").read_text().splitlines()]
    warnings = [line for line in printed if "warning: " in line]
    command = "\n".join(_one_line(_library(place, name), recipe, name) for name in BACKENDS)
    record = {"state": _state(place, recipe), "command": command, "warnings": warnings}
    (place / "build.json").write_text(json.dumps(record), encoding="utf-8")
    return replace(_built(place, command, warnings), seconds=seconds)


def _built(place: Path, command: str, warnings: Sequence[str]) -> Build:
    libraries = tuple(_library(place, name) for name in BACKENDS)
    return Build(place / "backends", libraries, command, 0.0, tuple(warnings))


def _object(file: Path, recipe: _Recipe) -> Path:
    """The compiled source, and beside it what the compiler printed; builds of the default folder share them."""
    made = recipe.cache / f"{recipe.key(file)}.o"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        with _unfinished(made) as output:
            printed = _run([*_call(recipe), "-c", "-o", str(output), _shown(file)], recipe)
            made.with_suffix(".txt").write_text(printed, encoding="utf-8")
    return made


def _link(objects: Sequence[Path], library: Path, recipe: _Recipe) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with _unfinished(library) as output:
        _run([*_call(recipe), "-shared", "-o", str(output), *map(str, objects), *LIBRARIES], recipe)


@contextlib.contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """Another name beside the path, which the file gets when it is whole: nobody ever sees half of it."""
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        yield Path(folder, path.name)
        Path(folder, path.name).replace(path)


def _run(command: list[str], recipe: _Recipe) -> str:
    """What the compiler prints, with the sources named as in their folder."""
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    printed = done.stderr.replace(f"{_shown(recipe.sources)}/", "")
    if done.returncode != 0:
        raise BuildError(
            f"{command[0]} ended with exit status {done.returncode}:\n{_first_errors(printed)}\n{_advice(recipe)}"
        )
    return printed


def _first_errors(printed: str) -> str:
    lines = printed.splitlines()
    first = next((n for n, line in enumerate(lines) if "error: " in line and not line.startswith("collect2")), 0)
    return "\n".join(lines[first : first + ERROR_LINES])


def _advice(recipe: _Recipe) -> str:
    if recipe.sources == SOURCES:
        return (
            f"What was compiled is {_shown(SOURCES)}: `git diff {_shown(SOURCES)}` shows what you changed there. Where "
            "you changed nothing, the compiler is too old for C++17; set CXX to another one."
        )
    return (
        f"What was compiled is your text, in a copy: {_shown(SOURCES)} is as it was. Correct the text and build again."
    )


def _one_line(library: Path, recipe: _Recipe, backend: str) -> str:
    """The compiler call as one types it: patterns in the place of the sources."""
    folders = [recipe.sources, recipe.sources / backend]
    patterns = [f"{shlex.quote(_shown(folder))}/*.cc" for folder in folders if any(folder.glob("*.cc"))]
    output = shlex.join([*_call(recipe), "-shared", "-o", _shown(library)])
    return " ".join([output, *patterns, *LIBRARIES])
