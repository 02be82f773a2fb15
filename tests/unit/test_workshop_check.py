"""The check of the day before: what it says of a machine that is not ready, and the table of many."""

import functools
import json
import os
import sys
from pathlib import Path

import pytest

from lab_utils import doctor, workshop_check, workshop_cli
from lab_utils.__main__ import main
from lab_utils.doctor import OK, PROBLEM, Finding
from lab_utils.workshop_check import Report, Room, Step

GOOD = Finding(OK, "server start", "ready after 0.3 s")
BAD = Finding(PROBLEM, "memory", "0.1 GiB free", "give it more")


def report(*findings: Finding, host: str = "anna-pc", lessons: str = "a1") -> Report:
    named = [GOOD, Finding(OK, "lesson", "ran"), Finding(OK, "jupyterlab", "answers"), *findings]
    return Report(host, "2026-11-23T20:00:00+00:00", "3.12.1", lessons, tuple(Step(one, 1.5) for one in named))


@pytest.fixture
def room(tmp_path, monkeypatch) -> Room:
    """A place for tracked lessons of this test's own."""
    room = Room(tmp_path / "tracked", tmp_path / "own")
    room.tracked.mkdir()
    monkeypatch.setattr(workshop_check, "ROOM", room)
    return room


def without_steps(monkeypatch, *checks) -> None:
    """Leave only these of the checks, so that nothing is started."""
    monkeypatch.setattr(doctor, "CHECKS", checks)
    for name in ("check_packages", "check_disk", "check_server_start", "check_jupyterlab"):
        monkeypatch.setattr(workshop_check, name, lambda: GOOD)
    for name in ("check_room", "check_lesson"):
        monkeypatch.setattr(workshop_check, name, lambda _: GOOD)


# --- the last line ----------------------------------------------------------------------------------------------------


def test_a_machine_without_a_problem_is_ready():
    assert str(report()).startswith("READY: anna-pc can take part")


def test_a_machine_with_a_problem_is_not_and_the_line_says_what_to_do():
    assert str(report(BAD)) == "NOT READY: anna-pc, 1 problem(s). To do: memory: give it more"


def test_the_command_ends_with_the_verdict_and_a_status(monkeypatch, capsys):
    without_steps(monkeypatch, lambda: GOOD)
    assert main(["workshop", "check"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("READY: ")
    without_steps(monkeypatch, lambda: GOOD, lambda: BAD)
    assert main(["workshop", "check"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("NOT READY: ")


def test_with_json_nothing_but_json_is_on_stdout(monkeypatch, capsys):
    without_steps(monkeypatch, lambda: BAD)
    assert main(["workshop", "check", "--json"]) == 1
    told = capsys.readouterr()
    record = json.loads(told.out)
    assert (record["ready"], record["steps"][0]["advice"]) == (False, "give it more")
    assert "give it more" in told.err


def test_a_check_that_breaks_is_a_problem_and_the_others_go_on(monkeypatch, capsys):
    def check_something() -> Finding:
        raise RuntimeError("out of luck")

    without_steps(monkeypatch, check_something)
    assert main(["workshop", "check"]) == 1
    out = capsys.readouterr().out
    assert "problem something" in out
    assert "RuntimeError: out of luck" in out
    assert out.count("server start") == 6


@pytest.mark.parametrize("step", workshop_check.TIMED)
def test_a_step_has_one_name_whether_it_works_or_breaks(step):
    check = getattr(workshop_check, f"check_{step.replace(' ', '_')}")
    assert workshop_check.timed(functools.partial(check, "too", "many")).finding.name == step


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--learners", "0"], "expected 1 or more"), (["--lesson", "99"], "expected one of")],
)
def test_a_mistake_is_told_without_a_traceback(arguments, words, capsys):
    assert main(["workshop", "check", *arguments]) == 2
    assert words in capsys.readouterr().err


# --- single checks ----------------------------------------------------------------------------------------------------


def test_memory_for_so_many_learners(monkeypatch):
    monkeypatch.setattr(workshop_check, "available_memory", lambda: 8 * workshop_check.LEARNER_MEMORY)
    assert workshop_check.check_room(8).level == OK
    refused = workshop_check.check_room(9)
    assert (refused.level, "at most 8 learner(s)" in refused.advice) == (PROBLEM, True)


def test_a_full_disk_is_a_problem(monkeypatch):
    assert workshop_check.check_disk().level == OK
    monkeypatch.setattr(workshop_check, "FREE_DISK", 2**60)
    assert workshop_check.check_disk().level == PROBLEM


def test_a_package_of_another_version_is_a_problem(monkeypatch):
    assert workshop_check.check_packages().level == OK
    monkeypatch.setattr(workshop_check.importlib.metadata, "version", lambda name: "0.0.1")
    assert "numpy==1.26.4" in workshop_check.check_packages().found


def test_a_lesson_that_fails_is_a_problem_with_its_error(room):
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": "1 / 0", "outputs": [], "execution_count": None}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (room.tracked / "00_broken.ipynb").write_text(json.dumps(notebook))
    found = workshop_check.check_lesson("00_broken.ipynb")
    assert (found.level, found.found) == (PROBLEM, "00_broken.ipynb: ZeroDivisionError: division by zero")
    assert json.loads((room.tracked / "00_broken.ipynb").read_text()) == notebook


def test_a_jupyterlab_that_ends_at_once_is_told_with_its_last_words(monkeypatch):
    command = [sys.executable, "-c", "raise SystemExit('no such module')"]
    monkeypatch.setattr(workshop_check, "lab_arguments", lambda room, extra: command)
    with pytest.raises(RuntimeError, match="JupyterLab did not start: no such module"):
        workshop_check.check_jupyterlab()


@pytest.mark.parametrize(("without", "with_token", "level"), [(403, 200, OK), (200, 200, PROBLEM), (403, 500, PROBLEM)])
def test_what_jupyterlab_answers(monkeypatch, without, with_token, level):
    command = [sys.executable, "-c", "input()"]
    monkeypatch.setattr(workshop_check, "lab_arguments", lambda room, extra: command)
    monkeypatch.setattr(workshop_check, "wait_for_lab", lambda *_: ("http://127.0.0.1:9/", "token"))
    monkeypatch.setattr(workshop_check, "status", lambda url, token="": with_token if token else without)
    assert workshop_check.check_jupyterlab().level == level


# --- many machines ----------------------------------------------------------------------------------------------------


def files(folder: Path, **reports: Report | str) -> list[str]:
    """One file for each machine."""
    for name, one in reports.items():
        text = one if isinstance(one, str) else workshop_check.to_json(one)
        (folder / f"{name}.json").write_text(text)
    return [str(folder / f"{name}.json") for name in reports]


def test_a_table_of_machines(tmp_path, capsys):
    paths = files(tmp_path, anna=report(), ben=report(BAD, host="ben-pc"), cleo="", dan='{"host": 1}')
    assert main(["workshop", "table", *paths, str(tmp_path / "absent.json")]) == 1
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines()[2:-1]}
    assert set(lines) == {"anna-pc", "ben-pc", "cleo", "dan", "absent"}
    assert ("NOT READY" in lines["anna-pc"], lines["ben-pc"].endswith("memory")) == (False, True)
    assert all(lines[name].endswith("no report: run the check there") for name in ("cleo", "dan", "absent"))
    assert out.splitlines()[-1] == "1 of 5 machine(s) ready"


def test_a_room_that_is_ready(tmp_path, capsys):
    assert main(["workshop", "table", *files(tmp_path, anna=report(), ben=report())]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 of 2 machine(s) ready"


def test_machines_with_different_lessons_are_told(tmp_path, capsys):
    assert main(["workshop", "table", *files(tmp_path, anna=report(), ben=report(lessons="b2"))]) == 1
    assert "different lessons or packages" in capsys.readouterr().out


def test_a_report_cannot_steer_the_terminal(tmp_path, capsys):
    main(["workshop", "table", *files(tmp_path, anna=report(host="\x1b[2Janna"))])
    assert "\x1b" not in capsys.readouterr().out


def test_the_fingerprint_is_of_the_lessons():
    assert len(workshop_check.fingerprint()) == 12
    assert workshop_check.fingerprint() == workshop_check.fingerprint()
    assert workshop_cli.workshop_check is workshop_check
    assert os.sep not in workshop_check.fingerprint()
