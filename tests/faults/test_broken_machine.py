"""A machine that lacks something, or has it in a wrong version: what start_server, doctor and make say of it."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from fault_matrix import ROOT, seen

from lab_utils import custom_backend, doctor
from lab_utils.client import stream
from lab_utils.field_report import REPORTED_PROMPT
from lab_utils.server import start_server
from lab_utils.sources import ServerNotFoundError

RIGHT = [1, 2, 4, 8, 16, 32, 64, 128]
TOOLS = ("make", "sh", "mkdir", "grep", "cksum", "cmp", "rm", "mv", "awk")
SECONDS = 120

# --- no compiler ------------------------------------------------------------------------------------------------------


@pytest.fixture
def without_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH that has what make needs, and no compiler."""
    for name in TOOLS:
        (tmp_path / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def test_no_compiler(without_compiler, monkeypatch):
    with pytest.raises(custom_backend.BuildError) as refused:
        custom_backend.build()
    seen("no compiler", str(refused.value))
    seen("no compiler for doctor", str(doctor.check_compiler()))
    folder = f"BUILD={without_compiler / 'build'}"
    made = subprocess.run(
        ["make", "--directory", ROOT / "custom_backend", folder], capture_output=True, text=True, check=False
    )
    assert made.returncode == 2
    assert not (without_compiler / "build").exists()
    seen("no compiler for make", made.stderr.splitlines()[0])
    monkeypatch.undo()
    assert all(library.exists() for library in custom_backend.build().libraries)


def test_no_make(tmp_path, monkeypatch):
    (tmp_path / "g++").symlink_to(shutil.which(custom_backend.compiler().split()[0]))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(custom_backend.BuildError, match=r"no make on PATH\. Install it"):
        custom_backend.build()


# --- the driver of a GPU ----------------------------------------------------------------------------------------------

USE = """
import json, sys
from lab_utils import doctor
from lab_utils.client import stream
from lab_utils.field_report import REPORTED_PROMPT
from lab_utils.server import start_server
said = []
with start_server(["ensemble_append"], report=said.append) as server:
    lengths = stream(server, "ensemble_append", REPORTED_PROMPT).lengths
print(json.dumps([lengths, said[-1], str(doctor.check_gpu())]))
"""
# Whatever is asked of NVML after its start, and of CUDA at its start, fails: as after an update without a reboot.
FAILING = """
#define FAILS(name) extern "C" int name(...) { return 999; }
extern "C" int nvmlInit_v2() { return STARTS; }
extern "C" int nvmlInitWithFlags(unsigned) { return STARTS; }
extern "C" int nvmlShutdown() { return 0; }
extern "C" const char* nvmlErrorString(int) { return "Driver/library version mismatch"; }
FAILS(nvmlDeviceGetCount_v2) FAILS(nvmlDeviceGetHandleByIndex_v2) FAILS(nvmlDeviceGetName)
FAILS(nvmlSystemGetDriverVersion) FAILS(cuInit) FAILS(cuDeviceGetCount) FAILS(cuDriverGetVersion)
"""


def use_with(folder: Path, **variables: str) -> tuple[list[int], str, str]:
    """Start a server and stream, in a process that finds its libraries in this folder first."""
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")]))
    environment = {**os.environ, "LD_LIBRARY_PATH": path, **variables}
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return tuple(json.loads(done.stdout))


def test_no_gpu_driver(tmp_path):
    for name in ("libnvidia-ml.so.1", "libcuda.so.1"):  # on a machine with a driver, these hide it
        (tmp_path / name).write_bytes(b"no library")
    lengths, ready, doctors = use_with(tmp_path)
    assert lengths == RIGHT
    assert doctors == "ok      gpu            none; the lessons run on the CPU"
    seen("no driver", ready)


@pytest.mark.parametrize("starts", [18, 0])
def test_a_broken_gpu_driver(starts, tmp_path):
    """Its first call fails, as where driver and library do not fit each other; or all but the first."""
    (tmp_path / "failing.cc").write_text(FAILING)
    compiler = [*custom_backend.compiler().split(), "-shared", "-fPIC", f"-DSTARTS={starts}", "failing.cc"]
    subprocess.run([*compiler, "-o", "libnvidia-ml.so.1"], cwd=tmp_path, check=True)
    shutil.copy(tmp_path / "libnvidia-ml.so.1", tmp_path / "libcuda.so.1")
    lengths, ready, doctors = use_with(tmp_path)
    assert lengths == RIGHT
    assert doctors == "ok      gpu            none; the lessons run on the CPU"
    seen("broken driver", ready)


# --- Python and NumPy -------------------------------------------------------------------------------------------------

FAKE_NUMPY = """
import importlib, sys
folder = sys.path.pop(sys.path.index({folder!r}))
del sys.modules["numpy"]
importlib.import_module("numpy").__version__ = "2.1.3"
sys.path.insert(0, folder)
"""
TRY = """
from lab_utils import doctor
from lab_utils.server import start_server
try:
    start_server(["postprocess"])
except Exception as error:
    print(type(error).__name__, error, sep=": ")
print(doctor.check_numpy())
"""


def test_the_wrong_numpy(tmp_path):
    """The real one that calls itself 2.1.3: the check must come before the stub dies of it."""
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text(FAKE_NUMPY.format(folder=str(tmp_path)))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", TRY], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    refused, _, doctors = done.stdout.rpartition("\nproblem ")
    seen("wrong numpy", refused)
    seen("wrong numpy for doctor", f"problem {doctors}")
    run_all()


def test_a_python_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sysconfig.get_config_vars(), "LIBDIR", str(tmp_path))
    monkeypatch.setitem(sysconfig.get_config_vars(), "INSTSONAME", "libpython3.so")
    with pytest.raises(ServerNotFoundError) as refused:
        start_server(["postprocess"])
    seen("no libpython", str(refused.value))
    monkeypatch.undo()
    run_all()


def run_all() -> None:
    with start_server(["ensemble_append"]) as server:
        assert stream(server, "ensemble_append", REPORTED_PROMPT).lengths == RIGHT
