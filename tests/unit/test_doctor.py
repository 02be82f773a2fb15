"""Each thing the doctor looks at, as it is and as it should not be."""

import contextlib
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from lab_utils import doctor
from lab_utils.device import CPU, Device
from lab_utils.doctor import NOTE, OK, PROBLEM, Finding
from lab_utils.server import MODEL_REPOSITORY, ServerStartError
from lab_utils.sources import ServerNotFoundError, Source

GIB = 2**30
GPU = Device("GPU", "NVIDIA Test", 80 * GIB)


def raising(error: Exception) -> Callable:
    def function(*_, **__):
        raise error

    return function


def fake_torch(available: bool) -> ModuleType:
    torch = ModuleType("torch")
    torch.__spec__ = ModuleSpec("torch", loader=None)
    torch.__version__ = "2.0"
    torch.cuda = SimpleNamespace(is_available=lambda: available)
    return torch


# --- findings -----------------------------------------------------------------------------------------------------


def test_a_finding_is_a_line_in_columns():
    assert str(Finding(OK, "gpu", "none")) == "ok      gpu            none"


def test_advice_stands_below_in_the_third_column():
    first, second = str(Finding(PROBLEM, "gpu", "none", "buy one")).split("\n")
    assert first == "problem gpu            none"
    assert second == " " * 23 + "-> buy one"
    assert first.index("none") == second.index("->")


def test_a_place_inside_the_checkout_is_told_as_seen_from_there():
    """Lesson 00 shows the findings, and is committed with its outputs."""
    place = MODEL_REPOSITORY.parent / ".venv" / "lib"
    assert str(Finding(OK, "server", f"at {place}, starts")) == "ok      server         at .venv/lib, starts"


def test_everything_is_looked_at_in_order(monkeypatch):
    names = ["system", "python", "numpy", "server", "gpu", "compiler", "memory", "ports"]
    assert [check.__name__ for check in doctor.CHECKS] == [f"check_{name}" for name in names]
    monkeypatch.setattr(doctor, "CHECKS", [lambda name=name: Finding(OK, name, "") for name in names])
    assert [finding.name for finding in doctor.examine()] == names


@pytest.mark.parametrize("check", [check for check in doctor.CHECKS if check is not doctor.check_server])
def test_every_finding_has_a_name_that_fits_its_column_and_says_what_to_do(check):
    finding = check()
    assert f"check_{finding.name}" == check.__name__
    assert len(finding.name) < 15
    assert finding.found
    assert bool(finding.advice) == (finding.level != OK)


# --- system, Python, NumPy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "machine", "level"),
    [("Linux", "x86_64", OK), ("Linux", "aarch64", NOTE), ("Darwin", "arm64", NOTE), ("Windows", "AMD64", NOTE)],
)
def test_system(monkeypatch, system, machine, level):
    monkeypatch.setattr(doctor.platform, "system", lambda: system)
    monkeypatch.setattr(doctor.platform, "machine", lambda: machine)
    finding = doctor.check_system()
    assert (finding.level, finding.found) == (level, f"{system} {machine}")
    assert ("TRITON_GRPC_URL" in finding.advice) == (level == NOTE)


def test_python_as_it_is_here():
    finding = doctor.check_python()
    assert finding.level == OK
    assert "libpython3" in finding.found


@pytest.mark.parametrize(
    ("folder", "name"),
    [("/nowhere", "libpython3.12.so.1.0"), (None, None), ("/nowhere", ""), (None, "libpython3.12.a")],
)
def test_python_without_its_library(monkeypatch, folder, name):
    answers = {"LIBDIR": folder, "INSTSONAME": name}
    monkeypatch.setattr(doctor.sysconfig, "get_config_var", answers.get)
    finding = doctor.check_python()
    assert finding.level == PROBLEM
    assert "make setup" in finding.advice


def test_python_with_a_library_that_is_none(monkeypatch, tmp_path):
    """A static Python has an archive of that name."""
    (tmp_path / "libpython3.12.a").write_bytes(b"!<arch>\n")
    answers = {"LIBDIR": str(tmp_path), "INSTSONAME": "libpython3.12.a"}
    monkeypatch.setattr(doctor.sysconfig, "get_config_var", answers.get)
    assert doctor.check_python().level == PROBLEM


@pytest.mark.parametrize(
    ("version", "level"), [("1.26.4", OK), ("1.21.0", OK), ("2.0.0", PROBLEM), ("2.3.1rc1", PROBLEM)]
)
def test_numpy(monkeypatch, version, level):
    monkeypatch.setattr(doctor, "np", SimpleNamespace(__version__=version))
    finding = doctor.check_numpy()
    assert (finding.level, finding.found) == (level, version)
    assert ("NumPy 2" in finding.advice) == (level == PROBLEM)


# --- server -------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch) -> list[str]:
    """A server that can be found and started; the list tells what was done to it."""
    events = []

    @contextlib.contextmanager
    def start(models, **_):
        events.append(f"start {models}")
        yield SimpleNamespace(metadata={"version": "2.51.0"})
        events.append("stop")

    monkeypatch.setattr(doctor, "find_source", lambda: Source("wheel", "the wheel"))
    monkeypatch.setattr(doctor, "start_server", start)
    return events


def test_a_server_that_works(server):
    finding = doctor.check_server()
    assert (finding.level, finding.advice) == (OK, "")
    assert "tritonserver 2.51.0 (wheel" in finding.found
    assert server == ["start ['postprocess']", "stop"]


def test_no_server(server, monkeypatch):
    monkeypatch.setattr(doctor, "find_source", raising(ServerNotFoundError("no tritonserver found. Looked for: …")))
    assert doctor.check_server() == Finding(
        PROBLEM, "server", "no tritonserver found. Looked for: …", "see README, What is supported"
    )
    assert server == []


def test_a_server_that_does_not_start(server, monkeypatch):
    monkeypatch.setattr(
        doctor, "start_server", raising(ServerStartError("postprocess failed to load", ["postprocess"]))
    )
    finding = doctor.check_server()
    assert (finding.level, finding.name, finding.found) == (PROBLEM, "server", "postprocess failed to load")


def test_a_server_source_with_a_spelling_mistake(monkeypatch):
    """The doctor is asked when something is wrong: it must not fall over itself."""
    monkeypatch.setenv("TRITON_SOURCE", "podman")
    finding = doctor.check_server()
    assert finding.level == PROBLEM
    assert "podman" in finding.found


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "servers"), RuntimeError("docker build failed")], ids=repr
)
def test_a_server_that_cannot_even_be_tried(server, monkeypatch, error):
    """A state folder that cannot be written; an image that cannot be built."""
    monkeypatch.setattr(doctor, "start_server", raising(error))
    finding = doctor.check_server()
    assert finding.level == PROBLEM
    assert str(error) in finding.found


# --- GPU ----------------------------------------------------------------------------------------------------------


def test_no_gpu_is_fine(monkeypatch):
    monkeypatch.setattr(doctor, "first_device", lambda: CPU)
    assert doctor.check_gpu() == Finding(OK, "gpu", "none; the lessons run on the CPU")


def test_a_gpu_without_torch(monkeypatch):
    monkeypatch.setattr(doctor, "first_device", lambda: GPU)
    monkeypatch.setitem(sys.modules, "torch", None)
    finding = doctor.check_gpu()
    assert (finding.level, finding.found) == (NOTE, "GPU: NVIDIA Test, 80 GiB; no torch")
    assert "torch" in finding.advice


def test_a_gpu_with_a_torch_that_cannot_use_it(monkeypatch):
    monkeypatch.setattr(doctor, "first_device", lambda: GPU)
    monkeypatch.setitem(sys.modules, "torch", fake_torch(available=False))
    finding = doctor.check_gpu()
    assert (finding.level, finding.found) == (NOTE, "GPU: NVIDIA Test, 80 GiB; torch 2.0 without CUDA")
    assert "CUDA" in finding.advice


def test_a_gpu_with_torch(monkeypatch):
    monkeypatch.setattr(doctor, "first_device", lambda: GPU)
    monkeypatch.setitem(sys.modules, "torch", fake_torch(available=True))
    assert doctor.check_gpu() == Finding(OK, "gpu", "GPU: NVIDIA Test, 80 GiB; torch 2.0")


# --- compiler, memory, ports --------------------------------------------------------------------------------------


def compiler(folder: Path, name: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{name} (Test) 12.2.0'\necho 'second line'\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("present", "found"),
    [
        (["g++"], "g++ (Test) 12.2.0"),
        (["clang++"], "clang++ (Test) 12.2.0"),
        (["g++", "clang++"], "g++ (Test) 12.2.0"),
    ],
)
def test_a_compiler(monkeypatch, tmp_path, present, found):
    for name in present:
        compiler(tmp_path, name)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.check_compiler() == Finding(OK, "compiler", found)


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = doctor.check_compiler()
    assert (finding.level, finding.name, finding.found) == (NOTE, "compiler", "no g++ or clang++")
    assert "g++" in finding.advice


@pytest.mark.parametrize(
    ("memory", "shared", "level", "n"),
    [
        (32 * GIB, 16 * GIB, OK, 28),
        (4 * GIB, 16 * GIB, OK, 27),
        (32 * GIB, 64 * 2**20, OK, 23),
        (32 * GIB, 64 * 2**20 - 1, PROBLEM, 22),
        (32 * GIB, 0, PROBLEM, 20),
    ],
)
def test_memory(monkeypatch, memory, shared, level, n):
    monkeypatch.setattr(doctor.big_run, "available_memory", lambda: memory)
    monkeypatch.setattr(doctor.big_run, "free_shared_memory", lambda: shared)
    finding = doctor.check_memory()
    assert (finding.level, finding.name) == (level, "memory")
    free = f"{memory / GIB:.1f} GiB free, {shared / GIB:.1f} GiB in /dev/shm"
    assert finding.found == f"{free}: the big run goes to iteration {n}"
    assert ("--shm-size" in finding.advice) == (level == PROBLEM)


def test_memory_where_there_is_no_shared_memory_folder(monkeypatch, tmp_path):
    """macOS: the embedded server does not run there, but the doctor does, and a remote server can be used."""
    monkeypatch.setattr(doctor.big_run, "SHARED_MEMORY", tmp_path / "shm")
    finding = doctor.check_memory()
    assert finding.level != OK
    assert finding.advice


def test_ports(monkeypatch):
    assert doctor.check_ports().level == OK


@pytest.mark.parametrize("step", ["setsockopt", "bind"])
def test_no_ports(monkeypatch, step):
    class Socket:
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = setsockopt = bind = lambda self, *_: None

    monkeypatch.setattr(Socket, step, raising(OSError(99, "Cannot assign requested address")))
    monkeypatch.setattr(doctor.socket, "socket", Socket)
    finding = doctor.check_ports()
    assert (finding.level, finding.name) == (PROBLEM, "ports")
    assert "Cannot assign requested address" in finding.found
    assert "loopback" in finding.advice
