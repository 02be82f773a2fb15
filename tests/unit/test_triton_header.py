"""Our own Triton header says what Triton says: the same constants, the same functions, all of them in the library."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from lab_utils.sources import ServerNotFoundError, Source, find_source

SRC = Path(__file__).parents[2] / "custom_backend/src"
HEADER = (SRC / "triton_minimal.h").read_text()
OFFICIAL = "triton/core/tritonbackend.h"
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
COMPILERS = [name for name in ("g++", "clang++") if shutil.which(name)]

# The fingerprint of what was last compared with the official headers, of release 24.10. After a change of the header
# run this file with TRITON_INCLUDE_DIR set to the folder `include` of triton-inference-server/core, at r24.10. When
# the comparison passes, put here what `test_the_declarations_are_those_that_were_compared` reports.
COMPARED = "e6cc5d85dfd8ddf2"

# Written from the documentation of the C API. Numbers count from 0 where none is given.
DOCUMENTED = {
    "TRITONBACKEND_API_VERSION": "MAJOR=1 MINOR=19",
    "TRITONSERVER_TYPE": "INVALID BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 FP32 FP64 BYTES BF16",
    "TRITONSERVER_MEMORY": "CPU CPU_PINNED GPU",
    "TRITONSERVER_PARAMETER": "STRING INT BOOL DOUBLE BYTES",
    "TRITONSERVER_INSTANCEGROUPKIND": "AUTO CPU GPU MODEL",
    "TRITONSERVER_LOG": "INFO WARN ERROR VERBOSE",
    "TRITONSERVER_ERROR": "UNKNOWN INTERNAL NOT_FOUND INVALID_ARG UNAVAILABLE UNSUPPORTED ALREADY_EXISTS CANCELLED",
    "TRITONSERVER_REQUEST_RELEASE": "ALL=1 RESCHEDULE=2",
    "TRITONSERVER_RESPONSE_COMPLETE": "FINAL=1",
    "TRITONSERVER_METRIC_KIND": "COUNTER GAUGE HISTOGRAM",
    "TRITONBACKEND_ARTIFACT": "FILESYSTEM",
}


# Reading the header ----------------------------------------------------------------------------------------------


class Function(NamedTuple):
    """A declaration; `ours` if the backend defines it and the server calls it."""

    name: str
    returns: str
    parameters: str
    ours: bool


def code(header: str) -> str:
    """The header without comments and preprocessor lines."""
    return re.sub(r"(//|#).*", "", header)


def versions(header: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"^#define (\w+_VERSION_\w+) (\d+)$", header, re.MULTILINE)}


def enums(header: str) -> dict[str, dict[str, int]]:
    """The constants of each enum type."""
    found = re.findall(r"typedef enum \{(.*?)\} (\w+);", code(header), re.DOTALL)
    return {name: dict(constant(item) for item in body.split(",")) for body, name in found}


def constant(item: str) -> tuple[str, int]:
    name, value = item.split("=")
    return name.strip(), int(value)


def functions(header: str) -> list[Function]:
    pattern = r"^(TRITONBACKEND_ISPEC )?([\w* ]+?) ?(TRITON\w+)\(([^()]*)\);"
    found = re.findall(pattern, code(header), re.MULTILINE)
    return [Function(name, returns, " ".join(inside.split()), bool(ours)) for ours, returns, name, inside in found]


def fingerprint(header: str) -> str:
    """Changes with every constant and signature, and not with comments, layout or order."""
    content = json.dumps([versions(header), enums(header), sorted(functions(header))], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def documented(prefix: str) -> dict[str, int]:
    items = [f"{item}={number}".split("=") for number, item in enumerate(DOCUMENTED[prefix].split())]
    return {f"{prefix}_{name}": int(value) for name, value, *_ in items}


def test_the_reader_of_the_header_misses_nothing():
    assert len(functions(HEADER)) == code(HEADER).count("(") > 50
    assert len(enums(HEADER)) == len(re.findall(r"\benum\b", code(HEADER)))


def test_the_header_declares_only_what_is_used():
    files = [path for path in SRC.rglob("*.*") if path.suffix in (".cc", ".h") and path.name != "triton_minimal.h"]
    used = set(re.findall(r"TRITON\w+", "".join(path.read_text() for path in files)))
    assert {function.name for function in functions(HEADER)} - used == set()


def test_constants_are_the_documented_ones():
    ours = versions(HEADER) | {name: value for members in enums(HEADER).values() for name, value in members.items()}
    assert ours == {name: value for prefix in DOCUMENTED for name, value in documented(prefix).items()}


# Compiling it ----------------------------------------------------------------------------------------------------


def compiled(source: str, folder: Path, *options: str, compiler: str = "") -> subprocess.CompletedProcess:
    """Check C++ source, without making anything from it."""
    assert COMPILERS, "neither g++ nor clang++ is on PATH; this project needs one of them"
    file = folder / "source.cc"
    file.write_text(source)
    command = [compiler or COMPILERS[0], "-std=c++17", *options, "-fsyntax-only", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("standard", ["c++17", "c++20"])
@pytest.mark.parametrize("compiler", COMPILERS or ["g++"])
def test_the_header_compiles_alone_without_a_warning(compiler, standard, tmp_path):
    source = '#include "triton_minimal.h"\n#include "triton_minimal.h"\n'
    result = compiled(source, tmp_path, *STRICT, f"-I{SRC}", f"-std={standard}", compiler=compiler)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("installed", [False, True])
def test_the_official_header_is_taken_where_it_is_installed(installed, tmp_path):
    if installed:
        install(tmp_path, "#define OFFICIAL 1\n")
    included = '#include "triton_api.h"\n'
    chosen = f"#if OFFICIAL != {int(installed)} || defined(TRITONBACKEND_API_VERSION_MAJOR) == {int(installed)}"
    result = compiled(f"{included}{chosen}\n#error wrong header\n#endif\n", tmp_path, f"-I{SRC}", f"-I{tmp_path}")
    assert result.returncode == 0, result.stderr


def install(folder: Path, header: str) -> None:
    """Make `folder` an include folder that holds `header` under the official name."""
    (folder / OFFICIAL).parent.mkdir(parents=True)
    (folder / OFFICIAL).write_text(header)


# Against the official header -------------------------------------------------------------------------------------


def official_include() -> Path | None:
    """The include folder of a Triton installation or checkout, if this machine has one."""
    named = os.environ.get("TRITON_INCLUDE_DIR")
    if named:
        assert (Path(named) / OFFICIAL).is_file(), f"TRITON_INCLUDE_DIR is {named}, which has no {OFFICIAL}"
        return Path(named)
    installed = Path("/opt/tritonserver/include")
    return installed if (installed / OFFICIAL).is_file() else None


def comparison(header: str) -> str:
    """C++ that compiles only where the official header says the same as `header`, and as much."""
    lines = [f'#include "{OFFICIAL}"', "#include <type_traits>"]
    for name, value in versions(header).items():
        lines.append(f'static_assert({name} {">=" if name.endswith("MINOR") else "=="} {value}, "{name}");')
    for kind, members in enums(header).items():
        for name, value in members.items():
            lines.append(f'static_assert(std::is_same_v<decltype({name}), {kind}> && {name} == {value}, "{name}");')
    for name, returns, parameters, _ in functions(header):
        lines.append(f'static_assert(std::is_same_v<decltype(&{name}), {returns} (*)({parameters})>, "{name}");')
    return "\n".join(lines) + "\n"


def test_the_declarations_are_those_that_were_compared(tmp_path):
    official = official_include()
    if official:
        result = compiled(comparison(HEADER), tmp_path, f"-I{official}")
        assert result.returncode == 0, result.stderr
    assert fingerprint(HEADER) == COMPARED, "the header has changed since it was compared with Triton's; see COMPARED"


def test_the_comparison_passes_for_equal_headers(tmp_path):
    install(tmp_path, HEADER)
    assert compiled(comparison(HEADER), tmp_path, f"-I{tmp_path}").returncode == 0


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("TRITONBACKEND_API_VERSION_MAJOR", "VERSION_MAJOR 1", "VERSION_MAJOR 2"),
        ("TRITONBACKEND_API_VERSION_MINOR", "VERSION_MINOR 19", "VERSION_MINOR 18"),
        ("TRITONSERVER_TYPE_INT32", "TYPE_INT32 = 8", "TYPE_INT32 = 7"),
        ("TRITONSERVER_ERROR_CANCELLED", "TRITONSERVER_ERROR_CANCELLED", "TRITONSERVER_ERROR_STOPPED"),
        ("TRITONBACKEND_ModelVersion", "uint64_t* version", "uint32_t* version"),
        ("TRITONSERVER_ErrorMessage", "const char* TRITONSERVER_ErrorMessage", "char* TRITONSERVER_ErrorMessage"),
        ("TRITONBACKEND_RequestRelease", "request, uint32_t release_flags", "request"),
        ("TRITONBACKEND_RequestOutputCount", "RequestOutputCount", "RequestOutputs"),
    ],
)
def test_the_comparison_names_what_differs(name, ours, theirs, tmp_path):
    assert HEADER.count(ours) == 1
    install(tmp_path, HEADER.replace(ours, theirs))
    result = compiled(comparison(HEADER), tmp_path, f"-I{tmp_path}")
    assert result.returncode != 0
    assert set(re.findall(r"static_assert\(.*\"(\w+)\"\);", result.stderr)) == {name}


# Against the server library --------------------------------------------------------------------------------------

# Run in a process of its own, because where a library's own libraries are is settled when a process starts.
PROBE = """
import ctypes, json, sys

library = ctypes.CDLL(sys.argv[1])
library.TRITONSERVER_ErrorNew.restype = ctypes.c_void_p

def text(function, value):
    function = getattr(library, function)
    function.restype = ctypes.c_char_p
    return function(value).decode()

def error(value):
    return text("TRITONSERVER_ErrorCodeString", ctypes.c_void_p(library.TRITONSERVER_ErrorNew(value, b"")))

def log(value):
    library.TRITONSERVER_LogMessage(value, b"header.cc", 1, b"a line of the probe")

def version():
    parts = ctypes.c_uint32(), ctypes.c_uint32()
    library.TRITONBACKEND_ApiVersion(*map(ctypes.byref, parts))
    return [part.value for part in parts]

asked = json.loads(sys.argv[2])
answers = {"ErrorCode": [error(value) for value in asked.pop("ErrorCode")], "version": version()}
for level in asked.pop("LogMessage"):
    log(level)
for kind, values in asked.items():
    answers[kind] = [text(f"TRITONSERVER_{kind}String", value) for value in values]
print(json.dumps(answers))
"""

# The enum of our header, and what the library calls its constants.
NAMED = {
    "DataType": ("TRITONSERVER_DataType", "TRITONSERVER_TYPE_"),
    "MemoryType": ("TRITONSERVER_MemoryType", "TRITONSERVER_MEMORY_"),
    "ParameterType": ("TRITONSERVER_ParameterType", "TRITONSERVER_PARAMETER_"),
    "InstanceGroupKind": ("TRITONSERVER_InstanceGroupKind", "TRITONSERVER_INSTANCEGROUPKIND_"),
    "ErrorCode": ("TRITONSERVER_Error_Code", "TRITONSERVER_ERROR_"),
    "LogMessage": ("TRITONSERVER_LogLevel", "TRITONSERVER_LOG_"),
}


def found(kind: str) -> bool:
    try:
        return bool(find_source(kind))
    except ServerNotFoundError:
        return False


# The wheel's server is part of the environment, so without it the tests fail.
@pytest.fixture(scope="module", params=["wheel", *filter(found, ["native"])])
def source(request) -> Source:
    return find_source(request.param)


def server_library(source: Source) -> Path:
    home = Path(source.place)
    folder = home / "lib" if source.kind == "native" else home.parents[1] / "nvidia_pytriton.libs"
    (library,) = folder.glob("libtritonserver*.so")
    return library


@pytest.fixture(scope="module")
def library(source) -> subprocess.CompletedProcess:
    """What the server library answers about the constants of our header."""
    asked = {kind: list(enums(HEADER)[enum].values()) for kind, (enum, _) in NAMED.items()}
    command = [sys.executable, "-c", PROBE, str(server_library(source)), json.dumps(asked)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | source.environment)


def test_the_server_library_exports_every_function_of_the_header(source):
    command = ["nm", "--dynamic", "--defined-only", str(server_library(source))]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    exported = {line.split()[-1].split("@")[0] for line in symbols.splitlines()}
    assert {function.name for function in functions(HEADER) if not function.ours} - exported == set()


def test_the_server_speaks_the_version_of_the_header(library):
    major, minor = json.loads(library.stdout)["version"]
    ours = versions(HEADER)
    assert major == ours["TRITONBACKEND_API_VERSION_MAJOR"]
    assert minor >= ours["TRITONBACKEND_API_VERSION_MINOR"]


@pytest.mark.parametrize("kind", sorted(set(NAMED) - {"LogMessage"}))
def test_the_server_library_calls_the_constants_by_our_names(kind, library):
    enum, prefix = NAMED[kind]
    theirs = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in json.loads(library.stdout)[kind]]
    ours = [name.removeprefix(prefix).replace("_", "").lower() for name in enums(HEADER)[enum]]
    if kind == "ErrorCode":  # This release has no text for the newest code, and writes "Invalid argument" in full.
        theirs = [{"invalidcode": "cancelled", "invalidargument": "invalidarg"}.get(name, name) for name in theirs]
    assert theirs == ours


def test_the_server_library_logs_with_our_levels(library):
    logged = [line[0] for line in library.stderr.splitlines() if "a line of the probe" in line]
    assert logged == ["I", "W", "E"]  # and verbose, the fourth, is off
