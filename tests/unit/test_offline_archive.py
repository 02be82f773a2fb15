"""The archive for a room without network: what it asks for, and a small one that is packed, unpacked and set up."""

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import offline_archive
import pytest
import setup_env
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
THIS = ".".join(map(str, sys.version_info[:2]))
PROJECT = """[build-system]
requires = []
build-backend = "builder"
backend-path = ["."]

[project]
name = "small-lab"
version = "1"
"""
# An editable build without setuptools: what the real archive brings as a wheel, a test must not fetch.
BUILDER = """import zipfile

def build_editable(folder, settings=None, metadata=None):
    name = "small_lab-1-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr("small_lab-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: small-lab\\nVersion: 1\\n")
        tags = "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr("small_lab-1.dist-info/WHEEL", tags)
        wheel.writestr("small_lab-1.dist-info/RECORD", "")
    return name
"""


def wheel(folder: Path, name: str) -> Path:
    """A package with one module."""
    folder.mkdir(parents=True)
    path = folder / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", "HERE = True\n")
        file.writestr(f"{name}-1.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        file.writestr(f"{name}-1.dist-info/WHEEL", tags)
        file.writestr(f"{name}-1.dist-info/RECORD", "")
    return path


@pytest.fixture
def unpacked(tmp_path) -> Path:
    """A small archive with the real set-up and the real start, unpacked in a folder with a space in its name."""
    staged = tmp_path / "staged"
    package = wheel(staged / "wheels", "brought")
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    (staged / "requirements.lock").write_text(f"brought==1 \\\n    --hash=sha256:{digest}\n")
    (staged / "pyproject.toml").write_text(PROJECT)
    (staged / "builder.py").write_text(BUILDER)
    (staged / "lab_utils").mkdir()
    (staged / "lab_utils/workspace.py").write_text("import sys, brought\nprint('opened', *sys.argv[1:])\n")
    (staged / "tools").mkdir()
    (staged / "tools/setup_env.py").write_bytes((ROOT / "tools/setup_env.py").read_bytes())
    offline_archive.seal(staged)
    offline_archive.pack(staged, tmp_path / "lab.tar")
    room = tmp_path / "a room"
    with tarfile.open(tmp_path / "lab.tar") as archive:
        archive.extraction_filter = getattr(tarfile, "tar_filter", None)
        archive.extractall(room)
    return room / offline_archive.NAME


def start(folder: Path) -> subprocess.CompletedProcess:
    """Run its one command with an empty home, an empty cache and no way out."""
    uv = setup_env.find_uv(ROOT)
    home, nobody = folder.parent / "home", "http://127.0.0.1:9"
    home.mkdir(exist_ok=True)
    environment = {"HOME": str(home), "PATH": f"{Path(uv).parent}{os.pathsep}{os.defpath}", "PYTHON": sys.executable}
    environment |= {"http_proxy": nobody, "https_proxy": nobody, "ALL_PROXY": nobody, "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        [folder / "start.sh", "--no-browser"],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_small_archive_sets_itself_up_without_network(unpacked):
    done = start(unpacked)
    assert "setup: ready (.venv, Python " in done.stdout, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "opened lab --no-browser"
    assert done.returncode == 0


def test_a_file_that_was_changed_on_the_way_is_refused(unpacked):
    with (unpacked / "builder.py").open("a") as file:
        file.write("# changed\n")
    done = start(unpacked)
    assert done.returncode != 0
    assert "builder.py: FAILED" in done.stdout
    assert not (unpacked / ".venv").exists()


def test_a_wheel_that_is_missing_is_not_fetched_elsewhere(unpacked):
    (unpacked / "requirements.lock").write_text(LOCK[LOCK.index("anyio==") : LOCK.index("argon2-cffi==")])
    (unpacked / "SHA256SUMS").write_text("")
    done = subprocess.run(
        [sys.executable, unpacked / "tools/setup_env.py"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert "anyio" in done.stderr
    assert not (unpacked / ".venv" / setup_env.STAMP).exists()


def test_only_a_folder_with_wheels_is_kept_from_the_network(tmp_path):
    assert setup_env.offline(tmp_path) == []
    (tmp_path / "wheels").mkdir()
    assert setup_env.offline(tmp_path) == ["--offline", "--no-index", "--find-links", str(tmp_path / "wheels")]


def test_the_sums_name_every_file_of_the_archive(unpacked):
    sums = dict(reversed(line.split("  ")) for line in (unpacked / "SHA256SUMS").read_text().splitlines())
    files = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert set(sums) == files - {"SHA256SUMS"}
    assert os.access(unpacked / "start.sh", os.X_OK)


@pytest.mark.parametrize("python", setup_env.VERSIONS)
def test_every_package_of_the_lock_is_asked_for_where_its_condition_holds(python):
    pins = offline_archive.pins(LOCK, python)
    names = [pin.partition("==")[0] for pin in pins]
    assert len(names) == len(set(names))
    assert {"nvidia-pytriton", "numpy", "jupyterlab", "grpcio", "pytest"} <= set(names)
    assert ("exceptiongroup" in names) == (python == "3.10")
    assert {"pywinpty", "colorama", "appnope"}.isdisjoint(names)
    assert all(re.fullmatch(r"[a-z0-9.-]+==\S+(?: --hash=sha256:[0-9a-f]{64})+", pin) for pin in pins)


def test_what_is_asked_for_is_what_is_installed_here():
    pins = {canonicalize_name(pin.partition("==")[0]) for pin in offline_archive.pins(LOCK, THIS)}
    installed = {canonicalize_name(one.metadata["Name"]) for one in distributions()}
    assert pins - installed == set()


def test_what_the_project_is_built_with_is_brought():
    assert offline_archive.builders((ROOT / "pyproject.toml").read_text(encoding="utf-8")) == ["setuptools==80.9.0"]


def test_no_lock_has_an_entry_that_is_not_understood():
    entries = re.findall(r"^[a-z0-9][a-z0-9._-]*(?:\[[^]]*\])?==", LOCK, re.MULTILINE)
    understood = set().union(
        *({pin.partition(" ")[0] for pin in offline_archive.pins(LOCK, v)} for v in setup_env.VERSIONS)
    )
    elsewhere = len(re.findall(r"^[a-z0-9].*; .*(?:win32|darwin|Windows|emscripten)", LOCK, re.MULTILINE))
    assert len(understood) >= len(entries) - elsewhere


def test_a_package_that_cannot_be_had_is_told(tmp_path, monkeypatch):
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\necho 'some lines' >&2\necho 'ERROR: no such wheel' >&2\nexit 1\n")
    uv.chmod(0o755)
    monkeypatch.setattr(setup_env, "find_uv", lambda root: str(uv))
    with pytest.raises(
        offline_archive.ArchiveError, match=r"packages for Python 3\.11 cannot be had: ERROR: no such wheel"
    ):
        offline_archive.fetch(["a==1"], tmp_path, "3.11")
