"""CMake builds the backends: each where Triton looks for it, and lacking nothing but Triton's own functions."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BACKEND = Path(__file__).parents[2] / "custom_backend"
SRC = BACKEND / "src"
HEADER = (SRC / "triton_minimal.h").read_text()
NAMES = sorted(path.parent.name for path in SRC.glob("*/backend.cc"))


def run(*command: str | Path) -> subprocess.CompletedProcess:
    """Run a program without what a user's shell sets for CMake."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CMAKE_")}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment)


def cmake(*arguments: str | Path) -> subprocess.CompletedProcess:
    """Run the environment's CMake; the test dependencies bring it."""
    here = Path(sys.executable).parent
    program = shutil.which("cmake", path=f"{here}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    assert program, f"no cmake in {here} or on PATH; run `make setup`"
    return run(program, *arguments)


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    configured = cmake("-S", BACKEND, "-B", folder)
    assert configured.returncode == 0, configured.stderr
    built = cmake("--build", folder, "--parallel", "2")
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture(params=NAMES)
def library(build, request) -> Path:
    return build / f"backends/{request.param}/libtriton_{request.param}.so"


def symbols(library: Path, which: str) -> set[str]:
    listed = run("nm", "--dynamic", f"--{which}-only", library)
    assert listed.returncode == 0, listed.stderr
    return {line.split()[-1] for line in listed.stdout.splitlines()}


def test_each_library_is_where_triton_looks_for_it(build):
    backends = build / "backends"
    built = sorted(str(path.relative_to(backends)) for path in backends.rglob("*") if path.is_file())
    assert built == [f"{name}/libtriton_{name}.so" for name in NAMES]


def test_it_has_the_functions_that_the_server_calls(library):
    called = re.findall(r"^TRITONBACKEND_ISPEC .*?(TRITONBACKEND_\w+)\(", HEADER, re.MULTILINE)
    assert "TRITONBACKEND_ModelInstanceExecute" in called
    assert {name for name in symbols(library, "defined") if name.startswith("TRITON")} == set(called)


def test_it_leaves_nothing_of_its_own_undefined(library):
    missing = symbols(library, "undefined")
    assert not [name for name in missing if "token_" in name]
    assert {name for name in missing if name.startswith("TRITON")} <= set(re.findall(r"(TRITON\w+)\(", HEADER))


def test_the_build_is_optimised_and_names_every_source(build):
    named = re.findall(r"^  src/(\S+)$", (BACKEND / "CMakeLists.txt").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(str(path.relative_to(SRC)) for path in SRC.rglob("*.cc"))
    cache = (build / "CMakeCache.txt").read_text()
    assert "CMAKE_BUILD_TYPE:STRING=Release" in cache
    assert "TOKEN_STREAM_NATIVE:BOOL=ON" in cache


def test_a_wrong_include_folder_is_refused_with_the_way_out(tmp_path):
    result = cmake("-S", BACKEND, "-B", tmp_path / "build", f"-DTRITON_INCLUDE_DIR={tmp_path}")
    assert result.returncode != 0
    assert f"TRITON_INCLUDE_DIR is {tmp_path}" in " ".join(result.stderr.split())
    assert "a header of its own" in " ".join(result.stderr.split())
