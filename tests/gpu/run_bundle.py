"""Run tests of the archive that `make gpu-bundle` packed, in the folder where it was unpacked.

`./run.sh [pytest arguments]` calls it with the Python that has torch. Nothing is installed or fetched: it makes a
virtual environment of links, which finds the archive's packages first (NumPy below 2, as this server needs it) and
those of this Python after them. The server's stubs find their packages through it as well; they ignore PYTHONPATH.
Standard library only.
"""

import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SITE, OWN, LIBPYTHON = ROOT / "site", ROOT / "env", ROOT / "lib"
SERVER = SITE / "pytriton" / "tritonserver"
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
STUB = SERVER / "python_backend_stubs" / VERSION / "triton_python_backend_stub"
PROGRAMS = [STUB, SERVER / "bin" / "tritonserver", SERVER / "backends" / "python" / "libtriton_python.so"]
PLUGINS = "pytest_timeout,nbval.plugin,_hypothesis_pytestplugin"  # the archive's; never those of this Python
BENT = ("TRITON_GRPC_URL", "TRITON_SOURCE", "TRITONSERVER_HOME", "PYTEST_ADDOPTS", "MPLBACKEND", "PYTHONPATH")


def main(arguments: list[str]) -> int:
    """Check what this machine has to bring, and run pytest; returns the exit status."""
    if not STUB.exists():
        wanted = ", ".join(sorted(path.name for path in STUB.parents[1].iterdir()))
        return refuse(
            f"this is Python {VERSION}; the archive is for Python {wanted}. PYTHON=... ./run.sh names another"
        )
    variables = tests_variables()
    missing = sorted({name for program in PROGRAMS for name in not_found(program, variables)})
    if missing:
        return refuse(f"this system lacks the libraries {', '.join(missing)}: install them")
    command = [make_environment(variables), "-m", "pytest", *(arguments or ["-rP", "tests/gpu"])]
    return subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode


def refuse(reason: str) -> int:
    """Say why nothing can be run; returns the exit status."""
    print(f"gpu-bundle: {reason}", file=sys.stderr)
    return 1


def make_environment(variables: dict[str, str]) -> str:
    """Make the virtual environment anew; returns its Python.

    Where the stub runs on the archive's libpython, modules that are built into this Python may be missing there.
    """
    venv.create(OWN, clear=True, symlinks=True)
    mine = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    mine += filter(None, os.environ.get("PYTHONPATH", "").split(":"))
    modules = [str(LIBPYTHON / "lib-dynload")] if str(LIBPYTHON) in variables["LD_LIBRARY_PATH"] else []
    lines = "\n".join([str(SITE), str(ROOT), *mine, *modules])
    (OWN / "lib" / f"python{VERSION}" / "site-packages" / "gpu_bundle.pth").write_text(lines + "\n", encoding="utf-8")
    return str(OWN / "bin" / "python3")


def tests_variables() -> dict[str, str]:
    """Variables of the tests: what this shell has, less what would bend them, and where the stub finds a libpython."""
    found = {name: value for name, value in os.environ.items() if name not in BENT}
    found |= {"LC_ALL": "C.UTF-8", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": PLUGINS}
    folders = [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
    found["LD_LIBRARY_PATH"] = ":".join(filter(None, folders))
    if any(name.startswith("libpython") for name in not_found(STUB, found)):
        found["LD_LIBRARY_PATH"] = ":".join(filter(None, [*folders, str(libpython_folder())]))
    return found


def not_found(program: Path, variables: dict[str, str]) -> list[str]:
    """Names of the shared libraries of a program that the loader does not find."""
    done = subprocess.run(["ldd", str(program)], env=variables, capture_output=True, text=True, check=False)
    return re.findall(r"(\S+) => not found", done.stdout)


def libpython_folder() -> Path:
    """Where there is a libpython for the stub: the shared one that runs this very program, or the archive's."""
    loaded = re.findall(r"(/\S+/libpython3\S+)", Path("/proc/self/maps").read_text(encoding="utf-8"))
    return Path(loaded[0]).parent if loaded else LIBPYTHON


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
