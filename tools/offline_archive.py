#!/usr/bin/env python3
"""Pack one archive that sets the lab up on a machine without network.

``make offline-archive`` writes ``artifacts/offline_lab.tar``: this checkout's last commit, every package of
requirements.lock as a wheel for Linux on x86-64 and for Python 3.12, 3.11 and 3.10, and uv. The packages are fetched
from the package index, each checked against the hash in the lock. There:

    tar xf offline_lab.tar && offline_lab/start.sh

The other machine has to bring Python 3.10, 3.11 or 3.12 with its shared libpython, as for ``make lab``.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import gpu_bundle
import setup_env
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
ARCHIVE = ROOT / "artifacts" / "offline_lab.tar"
NAME = "offline_lab"  # the one folder in the archive
SUMS = "SHA256SUMS"
PIP = "pip==26.3"
GLIBC = 35  # 2.35, as the server's own wheel
PLATFORMS = [*(f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC, 4, -1)), "manylinux2014_x86_64"]
PLATFORMS += ["manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
START = """#!/bin/sh
# Sets the lab up from this folder alone, and opens it. What you add goes to JupyterLab, such as --no-browser.
set -e
cd "$(dirname "$0")"
[ -e .venv/.lab-setup.json ] || sha256sum --check --quiet SHA256SUMS
"${PYTHON:-python3}" tools/setup_env.py
exec .venv/bin/python -m lab_utils.workspace lab "$@"
"""


class ArchiveError(Exception):
    """The archive cannot be made; the text says why and what to do."""


def pins(lock: str, python: str) -> list[str]:
    """What a lock asks for with one Python on Linux x86-64.

    Parameters
    ----------
    lock : str
        The text of a lock with hashes.
    python : str
        A version such as "3.11".

    Returns
    -------
    list of str
        Lines for pip, with hashes and without conditions: pip would judge those for the Python that it runs on.
    """
    entries = re.findall(r"^([a-z0-9][^\n\\]*?) *\\\n((?: +--hash=\S+(?: \\)?\n)+)", lock, re.MULTILINE)
    there = {"python_version": python, "python_full_version": f"{python}.0", "implementation_name": "cpython"}
    there |= {"sys_platform": "linux", "platform_machine": "x86_64", "platform_python_implementation": "CPython"}
    there |= {"platform_system": "Linux", "os_name": "posix", "extra": ""}
    wanted = [(Requirement(head), re.findall(r"--hash=\S+", hashes)) for head, hashes in entries]
    return [
        f"{one.name}{one.specifier} {' '.join(hashes)}"
        for one, hashes in wanted
        if one.marker is None or one.marker.evaluate(there)
    ]


def fetch(lines: Iterable[str], folder: Path, python: str, *options: str) -> None:
    """Download wheels, and nothing that would have to be compiled.

    Raises
    ------
    ArchiveError
        One cannot be had, or has another hash than the lock says.
    """
    uv = setup_env.find_uv(ROOT) or setup_env.install_uv(ROOT)
    tags = [f"--platform={tag}" for tag in PLATFORMS]
    tags += [f"--abi={abi}" for abi in (f"cp{python.replace('.', '')}", "abi3", "none")]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        print(*lines, sep="\n", file=file, flush=True)
        command = [uv, "tool", "run", "--quiet", PIP, "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--dest", str(folder), "--python-version", python, "--implementation=cp", *tags, *options]
        done = subprocess.run(
            [*command, "-r", file.name], env=setup_env.child_environment(), capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        raise ArchiveError(
            f"packages for Python {python} cannot be had: {(done.stderr.strip().splitlines() or [''])[-1]}"
        )


def fetch_wheels(checkout: Path) -> None:
    """Download the packages of this checkout's lock for each Python, and what builds the project itself."""
    lock = (checkout / setup_env.LOCK).read_text(encoding="utf-8")
    wheels = checkout / setup_env.WHEELS
    for python in setup_env.VERSIONS:
        print(f"offline-archive: fetching packages for Python {python}", flush=True)
        fetch(pins(lock, python), wheels, python, "--require-hashes")
    fetch(builders((checkout / "pyproject.toml").read_text(encoding="utf-8")), wheels, setup_env.VERSIONS[0])


def builders(project: str) -> list[str]:
    """What pyproject.toml says that the project is built with, such as ["setuptools==80.9.0"]."""
    found = re.search(r"^\[build-system\]\nrequires = \[(.*)\]$", project, re.MULTILINE)
    return re.findall(r'"([^"]+)"', found[1]) if found else []


def put_uv(folder: Path) -> None:
    """Take uv out of its wheel, and lay it where the set-up looks for it."""
    with tempfile.TemporaryDirectory() as scratch:
        fetch([f"uv=={setup_env.UV_VERSION}"], Path(scratch), setup_env.VERSIONS[0])
        with zipfile.ZipFile(next(Path(scratch).glob("uv-*.whl"))) as wheel:
            (name,) = [name for name in wheel.namelist() if name.endswith("/scripts/uv")]
            gpu_bundle.write(folder / ".tools/bin/uv", wheel.read(name), 0o755)


def copy_commit(folder: Path) -> None:
    """Copy the last commit of this checkout: nothing that is not in it can be private to somebody."""
    content = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extraction_filter = getattr(tarfile, "tar_filter", None)  # keeps execute bits; not in 3.11.2
        archive.extractall(folder)


def seal(folder: Path) -> None:
    """Add the script that starts it all, and the sums of all files."""
    gpu_bundle.write(folder / "start.sh", START.encode(), 0o755)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SUMS)
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files]
    (folder / SUMS).write_text("".join(sums), encoding="utf-8")


def stage(folder: Path) -> None:
    """Lay out everything that the archive holds in an empty folder.

    Raises
    ------
    ArchiveError, setup_env.SetupError
        A package cannot be had.
    """
    copy_commit(folder)
    fetch_wheels(folder)
    put_uv(folder)
    seal(folder)


def pack(folder: Path, archive: Path) -> None:
    """Write a staged folder as one file. It is not compressed: wheels are, already."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(gpu_bundle.tar(folder, NAME))


def main(arguments: list[str]) -> int:
    """Pack the archive; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ARCHIVE, help="the archive to write")
    chosen = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            stage(Path(scratch))
            pack(Path(scratch), chosen.out)
    except (ArchiveError, setup_env.SetupError, subprocess.CalledProcessError, OSError) as error:
        print(f"offline-archive: {error}", file=sys.stderr)
        return 1
    print(f"{chosen.out}: {chosen.out.stat().st_size / 2**20:.0f} MiB, for Python {', '.join(setup_env.VERSIONS)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
