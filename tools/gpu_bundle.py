#!/usr/bin/env python3
"""Pack one archive that runs ``make test-gpu`` on a machine with a GPU and torch, but without network.

``make gpu-bundle`` runs it with the environment in ``.venv`` and writes ``artifacts/gpu_bundle.tar.xz``: the server and
the libraries that it really loads, this checkout, the C++ backends built for any x86-64-v3 processor, and the Python
packages that the tests need and that a GPU image with torch lacks. All packages come from ``.venv``, which holds what
requirements.lock says; each file is checked against the hash that it was installed with.

The archive is for one Python version, that of ``.venv``. `BROUGHT` says what the other machine has to bring.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import lzma
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import Distribution, PackagePath, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lab_utils.custom_backend import build

ROOT = Path(__file__).resolve().parents[1]
ARCHIVE = ROOT / "artifacts" / "gpu_bundle.tar.xz"
NAME = "gpu_bundle"  # the one folder in the archive
LIMIT = 60 * 2**20  # bytes
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PROJECT = "triton-ensemble-lab"
TEST_PACKAGES = ("hypothesis", "nbval", "pytest", "pytest-timeout")
# Of these the archive has nothing: the lessons' figures need matplotlib, which a GPU image with torch mostly has;
# jedi and debugpy are optional parts of IPython and its kernel, jupyterlab-widgets and widgetsnbextension are for
# browsers; of nvidia-pytriton only the server is taken.
BROUGHT = ("torch", "matplotlib")
LEFT_OUT = {
    "jupyterlab",
    "matplotlib",
    "nvidia-pytriton",
    "jedi",
    "debugpy",
    "jupyterlab-widgets",
    "widgetsnbextension",
}
NOT_RUN = re.compile(r"(^|/)(tests|__pycache__)/|^\.\.|\.(pyc|pyi|pxd|h|a|lib)$")
SERVER = "pytriton/tritonserver"
SERVER_FILES = ("bin/tritonserver", "backends/python/", f"python_backend_stubs/{PYTHON}/")
BACKENDS = "custom_backend/prebuilt/backends"  # where tests/gpu looks first
PROCESSOR = "x86-64-v3"  # what any server processor of the last ten years can do
# What the other machine has: glibc, zlib, and the runtime libraries of GCC, as every Python with torch needs them.
SYSTEM = {"linux-vdso.so.1", "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libresolv.so.2"}
SYSTEM |= {"libutil.so.1", "libz.so.1", "libstdc++.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"}
LARGE = 2**20  # bytes: smaller files are not worth it
CHUNK = 24 * 2**20  # bytes that one thread compresses at a time
PRESET = 6  # of xz; 2 takes a third of the time for a tenth more

RUN = """#!/bin/sh
# Runs the tests of this folder: ./run.sh [what to test, tests/gpu by default; any options of pytest]
# PYTHON=/path/to/python3 names the Python that has torch, where it is not the first python3 on the PATH.
exec "${PYTHON:-python3}" "$(dirname "$0")/tests/gpu/run_bundle.py" "$@"
"""
MAKEFILE = """# In this folder nothing is set up and nothing is fetched: everything but torch is here.
.PHONY: test-gpu
test-gpu:
\t@./run.sh
"""


class BundleError(Exception):
    """The archive cannot be made; the text says why and what to do."""


# --- Python packages ---------------------------------------------------------------------------------------------


def wanted_distributions() -> list[Distribution]:
    """What the tests import, directly or not: the project's dependencies and the test packages, less `LEFT_OUT`."""
    found: dict[str, Distribution] = {}
    for line in [*(distribution(PROJECT).requires or []), *TEST_PACKAGES]:
        _add(Requirement(line), found)
    return [found[name] for name in sorted(found)]


def _add(requirement: Requirement, found: dict[str, Distribution]) -> None:
    name = canonicalize_name(requirement.name)
    if name in LEFT_OUT or name in found:
        return
    found[name] = distribution(name)
    for line in found[name].requires or []:
        needed = Requirement(line)
        if any(needed.marker is None or needed.marker.evaluate({"extra": e}) for e in (*requirement.extras, "")):
            _add(needed, found)


def check_locked(packages: Iterable[Distribution]) -> None:
    """Stop where `.venv` holds another version of a package than requirements.lock.

    Raises
    ------
    BundleError
        A package is not locked in the version that is installed.
    """
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked = set(re.findall(r"^([a-z0-9.-]+==[^ ;\\]+)", lock, re.MULTILINE))
    for package in packages:
        pin = f"{canonicalize_name(package.metadata['Name'])}=={package.version}"
        if pin not in locked:
            raise BundleError(f"{pin} is installed, but not in requirements.lock: run 'make setup' first")


def copy_package(package: Distribution, site: Path) -> None:
    """Copy what a package needs to run: without tests, headers and the scripts of other folders."""
    for file in package.files or []:
        if not NOT_RUN.search(file.as_posix()):
            copy_checked(file, site / file)


def copy_checked(file: PackagePath, target: Path) -> None:
    """Copy one file of a package.

    Raises
    ------
    BundleError
        Its content is not what was installed.
    """
    content = Path(file.locate()).read_bytes()
    if file.hash is not None and digest(content) != file.hash.value:
        raise BundleError(f"{file} was changed after it was installed: run 'make setup', or remove .venv first")
    write(target, content, Path(file.locate()).stat().st_mode)


def digest(content: bytes) -> str:
    """SHA-256 as the RECORD of a package writes it."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def write(path: Path, content: bytes, mode: int) -> None:
    """Write a file, and the folders on the way to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755 if mode & 0o100 else 0o644)


# --- the server ---------------------------------------------------------------------------------------------------


def copy_server(site: Path) -> None:
    """Copy the server, its Python backend, the stub of this Python, and the libraries that these three load."""
    package = distribution("nvidia-pytriton")
    files = {file.as_posix(): file for file in package.files or []}
    wanted = [name for name in files if name.startswith(tuple(f"{SERVER}/{part}" for part in SERVER_FILES))]
    binaries = [name for name in wanted if not name.endswith(".py")]
    libraries = {library for name in binaries for library in loaded_libraries(Path(files[name].locate()))}
    for name in [*wanted, *(name for name in files if Path(name).name in libraries)]:
        copy_checked(files[name], site / name)
    for name in binaries:
        (site / name).chmod(0o755)


def loaded_libraries(binary: Path) -> dict[str, Path]:
    """The shared libraries that the loader finds for a program or library, by name; those of the system too."""
    told = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=True).stdout
    return {Path(path).name: Path(path) for path in re.findall(r"=> (/.+?) \(0x", told)}


def copy_libpython(folder: Path) -> None:
    """Copy the shared libpython: the stub needs it, and a Python on the other machine may come without one.

    The extension modules of the standard library go with it. Distributions differ in which of them are built in.

    Raises
    ------
    BundleError
        This Python has no shared libpython.
    """
    name = f"libpython{PYTHON}.so.1.0"
    places = [Path(sysconfig.get_config_var("LIBDIR") or ""), Path(sys.base_prefix, "lib")]
    found = next((place / name for place in places if (place / name).is_file()), None)
    if found is None:
        raise BundleError(f"no {name} in {' or '.join(map(str, places))}: 'make setup' picks a Python that has one")
    modules = Path(os.__file__).parent.glob("lib-dynload/*.so")
    for file in [
        found,
        *(module for module in modules if not re.search("test|xxlimited|codecs|curses|tkinter", module.name)),
    ]:
        place = file.name if file == found else f"lib-dynload/{file.name}"
        write(folder / place, file.read_bytes(), 0o644)
    for library, path in loaded_libraries(found).items():  # a distribution's own Python may use its libexpat
        if library not in SYSTEM:
            write(folder / library, path.read_bytes(), 0o644)


def strip_symbols(folder: Path) -> None:
    """Take symbols that only a debugger reads out of programs and extension modules.

    The libraries that came repaired into a wheel (`*.libs`) stay as they are, but for the server's largest.
    """
    large = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > LARGE]
    programs = [path for path in large if path.read_bytes()[:4] == b"\x7fELF" and path.parent.suffix != ".libs"]
    others = [*folder.glob("site/*.libs/libtritonserver*"), *folder.glob("lib/lib-dynload/*")]
    subprocess.run(["strip", *map(str, [*programs, *others])], check=True)


# --- the checkout -------------------------------------------------------------------------------------------------


def copy_checkout(folder: Path) -> None:
    """Copy the files of this checkout: those that git knows, and new ones that it does not ignore.

    The Chinese lessons stay: their code is that of the English ones.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in listed:
        if not name or name.startswith("notebooks/zh/"):
            continue
        if (ROOT / name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to((ROOT / name).readlink())
        elif (ROOT / name).is_file():
            write(folder / name, (ROOT / name).read_bytes(), (ROOT / name).stat().st_mode)
    write(folder / "Makefile", MAKEFILE.encode(), 0o644)
    write(folder / "run.sh", RUN.encode(), 0o755)


def build_backends(folder: Path) -> None:
    """Compile the C++ backends for the processors that the other machine may have, not for this machine's own."""
    built = build(march=PROCESSOR).folder
    for library in built.glob("*/libtriton_*.so"):
        write(folder / BACKENDS / library.relative_to(built), library.read_bytes(), 0o644)


# --- the archive --------------------------------------------------------------------------------------------------


def stage(folder: Path) -> None:
    """Lay out everything that the archive holds in an empty folder.

    Raises
    ------
    BundleError
        The environment is not what requirements.lock says, or has no libpython.
    lab_utils.custom_backend.BuildError
        The C++ backends cannot be built.
    """
    packages = wanted_distributions()
    check_locked([*packages, distribution("nvidia-pytriton")])
    copy_checkout(folder)
    for package in packages:
        copy_package(package, folder / "site")
    copy_server(folder / "site")
    copy_libpython(folder / "lib")
    strip_symbols(folder)
    build_backends(folder)


def pack(folder: Path, archive: Path, preset: int = PRESET) -> None:
    """Compress a staged folder. The same folder always gives the same archive.

    Parameters
    ----------
    folder : Path
        As `stage` laid it out.
    archive : Path
        The file to write.
    preset : int
        How hard xz tries, 0 to 9.

    Raises
    ------
    BundleError
        The archive would be larger than `LIMIT`; nothing is written then.
    """
    compressed = b"".join(compress(tar(folder), preset))
    if len(compressed) >= LIMIT:
        raise BundleError(f"the archive would have {len(compressed):,} bytes, {LIMIT:,} are the limit: see LEFT_OUT")
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(compressed)


def tar(folder: Path, name: str = NAME) -> bytes:
    """An uncompressed tar of a folder, called `name` in it, with no owner and no times."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for path in sorted(folder.rglob("*")):
            file.add(path, f"{name}/{path.relative_to(folder)}", recursive=False, filter=plain)
    return buffer.getvalue()


def compress(content: bytes, preset: int) -> Iterator[bytes]:
    """Xz streams, one after the other, as `xz`, `tar` and Python read them; a thread for each processor makes them."""
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": preset}]  # half of it is machine code
    chunks = [content[start : start + CHUNK] for start in range(0, len(content), CHUNK)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(lambda chunk: lzma.compress(chunk, lzma.FORMAT_XZ, filters=filters), chunks)


def main(arguments: list[str]) -> int:
    """Pack the archive, or with --stage only lay out its content; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ARCHIVE, help="the archive to write")
    parser.add_argument("--stage", type=Path, metavar="FOLDER", help="write the content into this folder instead")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.stage:
            if chosen.stage.exists() and any(chosen.stage.iterdir()):
                raise BundleError(f"{chosen.stage} is not empty; name a new folder")
            stage(chosen.stage)
            return 0
        with tempfile.TemporaryDirectory() as scratch:
            stage(Path(scratch))
            pack(Path(scratch), chosen.out)
    except (BundleError, RuntimeError, subprocess.CalledProcessError, FileNotFoundError) as error:
        print(f"gpu-bundle: {error}", file=sys.stderr)
        return 1
    print(
        f"{chosen.out}: {chosen.out.stat().st_size / 2**20:.1f} MiB, for Python {PYTHON} with {' and '.join(BROUGHT)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
