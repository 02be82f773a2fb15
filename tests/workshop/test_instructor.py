"""What an instructor runs, on real servers: the check of the day before, and the gate of the week after."""

import json
import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from leftovers import RUN_MARK, marked_processes, until_none

from lab_utils.__main__ import main
from lab_utils.labbook import Book

ROOT = Path(__file__).parents[2]
JOB = yaml.safe_load((ROOT / "deploy/ci/ensemble-gate.yml").read_text(encoding="utf-8"))["jobs"]["gate"]
STEPS = {step["name"]: step["run"] for step in JOB["steps"] if "run" in step}
GATE = ROOT / "deploy" / "ci" / "ensemble_gate.py"


@pytest.fixture
def environment(tmp_path) -> Iterator[dict[str, str]]:
    """A learner's variables, with a lab book of this test; afterwards nothing that was started with them is left."""
    mark = uuid.uuid4().hex
    mine = {RUN_MARK: mark, "LAB_BOOK": str(tmp_path / "book.sqlite3"), "TMPDIR": str(tmp_path)}
    unwanted = {"TRITON_GRPC_URL", "TRITON_API_KEY", "MPLBACKEND"}
    yield {**{name: value for name, value in os.environ.items() if name not in unwanted}, **mine}
    until_none(lambda: marked_processes(RUN_MARK, mark), "what the instructor ran")


def run(command: list[object], environment: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=280
    )


def step(name: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """A step of the workflow as GitHub runs it, but with this Python."""
    script = STEPS[name].replace(".venv/bin/python", shlex.quote(sys.executable))
    return run(["bash", "-eo", "pipefail", "-c", script], {**environment, "PROMPT": JOB["env"]["PROMPT"]})


def test_this_machine_is_ready_for_a_workshop_and_the_check_leaves_nothing(environment, tmp_path):
    before = sorted(path.name for path in (ROOT / "workspace").glob("*"))
    done = run([sys.executable, "-m", "lab_utils", "workshop", "check", "--lesson", "00", "--json"], environment)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["ready"] is True
    steps = {each["name"]: each for each in report["steps"]}
    assert {"system", "server", "packages", "disk", "room", "server start", "lesson", "jupyterlab"} <= set(steps)
    assert "00_start_here.ipynb: all" in steps["lesson"]["found"]
    assert all(steps[name]["seconds"] > 0 for name in ("server start", "lesson", "jupyterlab"))
    assert sorted(path.name for path in (ROOT / "workspace").glob("*")) == before
    assert not (tmp_path / "book.sqlite3").exists()
    assert list(tmp_path.glob("lab-check-*")) == []


def test_the_first_step_of_the_workflow_passes(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(STEPS["contract"])[3:]) == 0
    assert "0 errors" in capsys.readouterr().out


def test_the_gate_opens_for_the_mended_ensemble_and_writes_it_down(environment, tmp_path):
    done = step("the mended ensemble passes", environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ensemble_latest passed: 1 request(s) traced. verdict: none" in done.stdout
    (written,) = Book(tmp_path / "book.sqlite3").experiments("CI")
    assert written.configuration["ensemble"] == "ensemble_latest"
    assert written.verdicts[0].startswith("passed: 1 request(s) traced.")


def test_the_gate_refuses_the_bug_and_names_the_node(environment):
    done = step("the ensemble with the bug is refused", environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ensemble_append refused: verdict: inference, at its output TOKEN_IDS" in done.stderr
    assert "1 2 4 8 16 32 64 128" in done.stderr


def test_a_broken_contract_is_refused_before_anything_starts(environment, tmp_path):
    (tmp_path / "models" / "talk").mkdir(parents=True)
    config = (ROOT / "model_repository/ensemble_latest/config.pbtxt").read_text(encoding="utf-8")
    (tmp_path / "models/talk/config.pbtxt").write_text(config.replace("ensemble_latest", "talk"), encoding="utf-8")
    done = run([sys.executable, GATE, tmp_path / "models", "talk", "--", "false"], environment)
    assert done.returncode == 1
    assert "talk refused: " in done.stderr
    assert "missing-model" in done.stderr
