"""Installing the lab's locked packages: uv, as `make setup` does it, against the newest pip; cold, warm, and on disk.

Each round installs the whole lock, every file checked against its hash, into a fresh environment of the same Python,
with the cases in turns. Neither side compiles bytecode in these rounds: uv does not by default, pip is told not to.
Cold: an empty cache, all files over the network. Warm: uv with its own filled cache; pip with all files in a folder,
and no network at all, which is more than its cache could give it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import distributions
from pathlib import Path

from side_by_side import Row, Spread, main, ratios, spread, spreads

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import setup_env  # noqa: E402

ROUNDS = 5
LOCK = ("--require-hashes", "-r", str(ROOT / setup_env.LOCK))
UV_COLD, PIP_COLD, UV_WARM, PIP_WARM = "uv cold", "pip cold", "uv warm", "pip warm"
MIB = 2**20


@dataclass(frozen=True)
class Tools:
    """The two installers, and a folder for all that is made here: on one file system, so that links can be used."""

    uv: str
    pip: str
    folder: Path

    @property
    def cache(self) -> Path:
        """The filled cache of uv."""
        return self.folder / "uv_cache"

    @property
    def wheels(self) -> Path:
        """Every file of the lock, for pip."""
        return self.folder / "wheels"


@dataclass(frozen=True)
class Installed:
    """Seconds that it took, MiB of the environment, MiB of environment and cache together, and what is in it."""

    seconds: float
    environment: float
    with_cache: float
    packages: frozenset[tuple[str, str]]


def settings() -> dict[str, str]:
    """The environment for both: what a user has configured, less other places to take packages from.

    A PIP_INDEX_URL, where a network has a package index of its own, is taken for both.
    """
    bent = {"PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_CACHE_DIR", "PIP_NO_INDEX", "PIP_TARGET", "PIP_PREFIX"}
    kept = {name: value for name, value in setup_env.child_environment().items() if name not in bent}
    kept |= {"PIP_CONFIG_FILE": os.devnull, "UV_NO_CONFIG": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return kept | ({"UV_DEFAULT_INDEX": kept["PIP_INDEX_URL"]} if "PIP_INDEX_URL" in kept else {})


def run(*command: str | Path, **variables: str | Path) -> float:
    """Run an installer; the seconds that it took."""
    environment = settings() | {name: str(value) for name, value in variables.items()}
    began = time.monotonic()
    done = subprocess.run(list(map(str, command)), env=environment, cwd=ROOT, capture_output=True, text=True)
    seconds = time.monotonic() - began
    if done.returncode != 0:
        lines = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise SystemExit(
            f"{Path(command[0]).name} could not install {setup_env.LOCK}; this benchmark needs the network and a "
            f"package index (PIP_INDEX_URL names another one than PyPI for both sides). It said:\n{lines}"
        )
    return seconds


@contextlib.contextmanager
def fresh(tools: Tools) -> Iterator[Path]:
    """An empty environment of this Python, removed at the end."""
    with tempfile.TemporaryDirectory(dir=tools.folder) as folder:
        run(tools.uv, "venv", "--quiet", "--no-project", "--python", sys.executable, f"{folder}/venv")
        yield Path(folder, "venv")


def size(*folders: Path) -> float:
    """MiB that the folders take on disk, a file with several names counted once."""
    files = [path.lstat() for folder in folders for path in folder.rglob("*")]
    return sum({file.st_ino: file.st_blocks * 512 for file in files}.values()) / MIB


def install(tools: Tools, installer: str, cache: Path | None, *options: str) -> Installed:
    """Install the lock into a fresh environment; with an empty cache where no filled one is given."""
    with fresh(tools) as venv, tempfile.TemporaryDirectory(dir=tools.folder) as empty:
        cache = cache or Path(empty)
        command = with_uv(tools, venv) if installer == "uv" else with_pip(tools, venv)
        seconds = run(*command, *LOCK, *options, UV_CACHE_DIR=cache, PIP_CACHE_DIR=cache)
        places = [str(place) for place in venv.glob("lib/*/site-packages")]
        found = {(one.name.lower(), one.version) for one in distributions(path=places)}
        return Installed(seconds, size(venv), size(venv, cache), frozenset(found))


def with_uv(tools: Tools, venv: Path) -> list[str]:
    """How `make setup` installs."""
    return [tools.uv, "pip", "install", "--quiet", "--python", str(venv / "bin/python")]


def with_pip(tools: Tools, venv: Path) -> list[str]:
    """The same with pip."""
    return [tools.pip, "--python", str(venv / "bin/python"), "install", "--quiet"]


@contextlib.contextmanager
def prepared() -> Iterator[Tools]:
    """Both installers, a filled cache and a folder of wheels; all of it is removed at the end."""
    artifacts = ROOT / "artifacts"
    artifacts.mkdir(exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # not before the folder is removed
    with tempfile.TemporaryDirectory(prefix="bench_install_", dir=artifacts) as folder:
        tools = Tools(setup_env.find_uv(ROOT) or setup_env.install_uv(ROOT), f"{folder}/pip/bin/pip", Path(folder))
        run(tools.uv, "venv", "--quiet", "--no-project", "--seed", "--python", sys.executable, f"{folder}/pip")
        install(tools, "uv", tools.cache)
        run(tools.pip, "download", "--quiet", *LOCK, "--dest", tools.wheels, PIP_CACHE_DIR=f"{folder}/none")
        yield tools


def in_rounds(tools: Tools) -> dict[str, list[Installed]]:
    """All four cases in turns; filling the caches was the warm-up."""
    wheels = ("--no-index", "--find-links", str(tools.wheels))
    cases = {
        UV_COLD: partial(install, tools, "uv", None),
        PIP_COLD: partial(install, tools, "pip", None, "--no-compile"),
        UV_WARM: partial(install, tools, "uv", tools.cache),
        PIP_WARM: partial(install, tools, "pip", tools.wheels, "--no-compile", *wheels),
    }
    found = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, case in cases.items():
            found[name].append(case())
    return found


def with_bytecode(tools: Tools) -> dict[str, Installed]:
    """Both once with bytecode compiled: what plain pip does, and what uv can be told to do."""
    wheels = ("--no-index", "--find-links", str(tools.wheels))
    return {
        UV_WARM: install(tools, "uv", tools.cache, "--compile-bytecode"),
        PIP_WARM: install(tools, "pip", tools.wheels, *wheels),
    }


def unchanged() -> list[float]:
    """Seconds of `make setup` where nothing changed; empty where the environment is not the set-up's own."""
    if not setup_env.is_ready(ROOT):
        return []
    return [run(sys.executable, ROOT / "tools/setup_env.py") for _ in range(ROUNDS)]


def measure() -> dict:
    """All cases; every environment must hold the same packages."""
    with prepared() as tools:
        found, compiled = in_rounds(tools), with_bytecode(tools)
        versions = {"uv": run_version(tools.uv), "pip": run_version(tools.pip)}
    everything = [*(one for ones in found.values() for one in ones), *compiled.values()]
    assert len({one.packages for one in everything}) == 1, "the two installers did not install the same packages"
    seconds = {name: [one.seconds for one in ones] for name, ones in found.items()}
    quick = unchanged()
    return {
        "rounds": ROUNDS,
        "versions": versions,
        "packages": len(everything[0].packages),
        "seconds": spreads(seconds),
        "cold": asdict(ratios(seconds, UV_COLD, PIP_COLD)),
        "warm": asdict(ratios(seconds, UV_WARM, PIP_WARM)),
        "mib": {name: round(ones[0].environment) for name, ones in found.items()},
        "mib_with_cache": {name: round(ones[0].with_cache) for name, ones in found.items()},
        "compiled": {name: {"seconds": one.seconds, "mib": round(one.environment)} for name, one in compiled.items()},
        "unchanged_seconds": asdict(spread(quick)) if quick else None,
    }


def run_version(installer: str) -> str:
    """The version that an installer tells."""
    return subprocess.run([installer, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]


def rows(results: dict) -> list[Row]:
    """Cold, and warm."""
    return [_row(results, "cold", UV_COLD, PIP_COLD), _row(results, "warm", UV_WARM, PIP_WARM)]


def _row(results: dict, part: str, mine: str, other: str) -> Row:
    mine_seconds, other_seconds = (results["seconds"][name]["median"] for name in (mine, other))
    mib = results["mib"]
    measured = f"{mine_seconds:.1f} s and {mib[mine]} MiB, pip {other_seconds:.1f} s and {mib[other]} MiB"
    against = "plain pip, told to compile no bytecode"
    return Row(f"install, {part}", against, "a third of the time", measured, Spread(**results[part]), 1 / 3)


def remarks(results: dict) -> str:
    """Bytecode, sizes with the cache, and a set-up that finds nothing to do."""
    compiled, mib, both = results["compiled"], results["mib"], results["mib_with_cache"]
    uv, pip = compiled[UV_WARM], compiled[PIP_WARM]
    quick = results["unchanged_seconds"]
    empty = both[PIP_COLD] == mib[PIP_COLD]
    empty_cache = " (the index that was used lets pip keep no files in its cache)" if empty else ""
    lines = [
        f"{results['packages']} packages, uv {results['versions']['uv']}, pip {results['versions']['pip']}; "
        f"{results['rounds']} rounds, the ratios are round by round.",
        f"- On disk the environment takes {mib[UV_COLD]} MiB from uv and {mib[PIP_COLD]} MiB from pip; with its cache, "
        f"files of several names counted once, {both[UV_COLD]} MiB and {both[PIP_COLD]} MiB{empty_cache}.",
        f"- With bytecode, once each, warm: uv {uv['seconds']:.1f} s and {uv['mib']} MiB, pip, as it is by default, "
        f"{pip['seconds']:.1f} s and {pip['mib']} MiB. Where nothing is compiled, Python does it at each first import.",
    ]
    if quick:
        lines.append(f"- `make setup` with nothing changed: {quick['median']:.2f} s.")
    return "\n".join(lines)


if __name__ == "__main__":
    main(__file__)
