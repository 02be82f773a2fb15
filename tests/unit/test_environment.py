"""pyproject.toml, the locks, environment.yml, the set-up and the running environment name the same versions."""

import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import setup_env
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
LOCKS = {name: (ROOT / name).read_text() for name in (setup_env.LOCK, setup_env.WORKSHOP_LOCK)}
DIRECT = [*PYPROJECT["project"]["dependencies"], *PYPROJECT["dependency-groups"]["test"]]
WORKSHOP = PYPROJECT["dependency-groups"]["workshop"]
ASKED = {setup_env.LOCK: DIRECT, setup_env.WORKSHOP_LOCK: WORKSHOP}


def pin(requirement: str) -> tuple[str, str]:
    """Split "Name[extra]==1.0" into ("name", "1.0")."""
    match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==([0-9][^ ;*]*)", requirement)
    assert match, f"{requirement!r} is no exact pin"
    return re.sub(r"[-_.]+", "-", match[1]).lower(), match[2]


def locked_requirements(lock: str) -> list[str]:
    """Return a lock's requirements, each with its hashes on one line, without comments."""
    text = "\n".join(line for line in LOCKS[lock].splitlines() if not line.lstrip().startswith("#"))
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def locked_pins(lock: str) -> set[tuple[str, str]]:
    return {pin(re.split(r" ;| --", line)[0].strip()) for line in locked_requirements(lock)}


def conda_pins(dependencies: list) -> dict[str, str]:
    return dict(item.split("=", 1) for item in dependencies if isinstance(item, str))


def conda_pip() -> list[str]:
    return next(item["pip"] for item in CONDA["dependencies"] if isinstance(item, dict))


@pytest.mark.parametrize(("lock", "requirement"), [(lock, each) for lock, asked in ASKED.items() for each in asked])
def test_a_direct_pin_is_in_the_lock_with_the_same_version(lock, requirement):
    assert pin(requirement) in locked_pins(lock)


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_exactly_the_direct_pins_as_asked_for_by_the_project(lock):
    entries = re.split(r"\n(?=\S)", LOCKS[lock])
    asked = {pin(re.split(r" [;\\]", entry)[0]) for entry in entries if "triton-ensemble-lab (pyproject.toml" in entry}
    assert asked == set(map(pin, ASKED[lock]))


def test_the_workshop_changes_nothing_that_the_lab_has_installed():
    below, above = ({line.split(" --")[0] for line in locked_requirements(lock)} for lock in LOCKS)
    names = {pin(re.split(" ;", line)[0].strip())[0] for line in below}
    shared = {line for line in above if pin(re.split(" ;", line)[0].strip())[0] in names}
    versions = {pin(re.split(" ;", line)[0].strip()) for line in below}
    assert len(shared) > 20
    assert {pin(re.split(" ;", line)[0].strip()) for line in shared} <= versions


def test_the_conda_environment_pins_exactly_what_pyproject_pins():
    assert sorted(conda_pip()) == sorted([*DIRECT, "-e ."])


def test_every_conda_package_is_pinned():
    names = [item for item in CONDA["dependencies"] if isinstance(item, str)]
    assert all(re.fullmatch(r"[a-z-]+=[0-9.]+", name) for name in names), names
    assert {"python", "pip", "make", "cxx-compiler"} <= set(conda_pins(names))
    assert (CONDA["name"], CONDA["channels"]) == (PYPROJECT["project"]["name"], ["conda-forge"])


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_requirement_is_an_exact_pin_with_hashes(lock):
    assert len(locked_pins(lock)) > len(ASKED[lock])
    without = [line for line in locked_requirements(lock) if not re.search(r"--hash=sha256:[0-9a-f]{64}", line)]
    assert without == []


@pytest.mark.parametrize("text", LOCKS.values(), ids=LOCKS)
def test_a_lock_names_no_place_to_download_from(text):
    assert "://" not in text
    assert not re.search(r"^\s*(-i|-f|--index-url|--extra-index-url|--find-links|-e)\b| @ ", text, re.MULTILINE)


def test_the_python_versions_agree():
    minors = [int(each.split(".")[1]) for each in setup_env.VERSIONS]
    assert PYPROJECT["project"]["requires-python"] == f">=3.{min(minors)},<3.{max(minors) + 1}"
    assert conda_pins(CONDA["dependencies"])["python"] == setup_env.VERSIONS[0] == "3.12"
    assert f"--python-version 3.{min(minors)} " in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("requirement", [*DIRECT, *WORKSHOP])
def test_the_running_environment_has_the_pinned_version(requirement):
    name, expected = pin(requirement)
    assert version(name) == expected
