"""The learner's copies: copied once, refreshed while unedited, never overwritten, brought back with a backup."""

import json
import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lab_utils import workspace
from lab_utils.workspace import LessonError, Room

FIRST, SECOND, BOOK = "00_start_here.ipynb", "02_the_doubling_bug.ipynb", "lab_book.ipynb"


def write_lesson(path: Path, source: str) -> None:
    """Write a lesson as it is tracked: with outputs and counts."""
    output = new_output("stream", name="stdout", text="1 2 4 8\n")
    code = new_code_cell(source, id="code", execution_count=1, outputs=[output], metadata={"tags": ["check"]})
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Lesson", id="text"), code]), path)


def run_as_jupyterlab_does(path: Path) -> None:
    """Store what running a notebook changes: counts, outputs, times, the kernel's version, an empty last cell."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.language_info = {"name": "python", "version": "3.12.99"}
    notebook.cells[1].execution_count = 7
    notebook.cells[1].outputs = [new_output("stream", name="stdout", text="mine\n")]
    notebook.cells[1].metadata["execution"] = {"iopub.execute_input": "2026-01-01T00:00:00Z"}
    notebook.cells.append(new_code_cell(""))
    nbformat.write(notebook, path)


def edit(path: Path, source: str) -> None:
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source = source
    nbformat.write(notebook, path)


def sources(path: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def english(monkeypatch) -> None:
    """The user's own choice of a language counts nothing here."""
    monkeypatch.delenv("LAB_LANGUAGE", raising=False)


@pytest.fixture
def room(tmp_path) -> Room:
    tracked = tmp_path / "notebooks"
    tracked.mkdir()
    for name in (FIRST, SECOND, BOOK):
        write_lesson(tracked / name, f"print({name!r})")
    return Room(tracked, tmp_path / "workspace")


def test_lessons_are_copied_without_outputs_and_counts(room):
    assert workspace.update(room) == [f"{FIRST}: copied", f"{SECOND}: copied", f"{BOOK}: copied"]
    cell = nbformat.read(room.own / SECOND, as_version=4).cells[1]
    assert (cell.source, cell.outputs, cell.execution_count) == (f"print({SECOND!r})", [], None)
    assert cell.metadata.tags == ["check"]


def test_using_the_lessons_leaves_the_tracked_ones_untouched(room):
    before = contents(room.tracked)
    workspace.update(room)
    edit(room.own / FIRST, "mine")
    workspace.update(room)
    workspace.reset(room, "00")
    assert contents(room.tracked) == before


def test_a_second_update_changes_nothing(room):
    workspace.update(room)
    before = contents(room.own)
    assert workspace.update(room) == []
    assert contents(room.own) == before


def test_an_edited_lesson_is_kept_while_the_tracked_one_stays(room):
    workspace.update(room)
    edit(room.own / SECOND, "my answer")
    assert workspace.update(room) == []
    assert sources(room.own / SECOND)[1] == "my answer"


def test_an_edited_lesson_is_kept_when_a_newer_one_exists_and_the_line_says_what_to_do(room):
    workspace.update(room)
    edit(room.own / SECOND, "my answer")
    write_lesson(room.tracked / SECOND, "newer")
    for _ in range(2):
        (line,) = workspace.update(room)
        assert line.startswith(SECOND)
        assert "make reset LESSON=02" in line
    assert sources(room.own / SECOND)[1] == "my answer"


def test_an_unedited_lesson_follows_the_tracked_one(room):
    workspace.update(room)
    write_lesson(room.tracked / SECOND, "newer")
    assert workspace.update(room) == [f"{SECOND}: refreshed, the lesson is newer"]
    assert sources(room.own / SECOND)[1] == "newer"


def test_a_lesson_that_was_only_run_follows_the_tracked_one(room):
    workspace.update(room)
    run_as_jupyterlab_does(room.own / SECOND)
    write_lesson(room.tracked / SECOND, "newer")
    assert workspace.update(room) == [f"{SECOND}: refreshed, the lesson is newer"]
    assert sources(room.own / SECOND)[1] == "newer"


def test_a_lesson_that_was_only_run_keeps_its_outputs_while_the_tracked_one_stays(room):
    workspace.update(room)
    run_as_jupyterlab_does(room.own / SECOND)
    run_as_jupyterlab_does(room.tracked / SECOND)
    notebook = nbformat.read(room.tracked / SECOND, as_version=4)
    nbformat.write(nbformat.from_dict({**notebook, "cells": notebook.cells[:2], "metadata": {}}), room.tracked / SECOND)
    assert workspace.update(room) == []
    assert nbformat.read(room.own / SECOND, as_version=4).cells[1].execution_count == 7


@pytest.mark.parametrize("state", [None, "{half", "[]"])
def test_edited_lessons_survive_the_loss_of_the_state(room, state):
    workspace.update(room)
    edit(room.own / SECOND, "my answer")
    path = room.own / workspace.STATE
    path.unlink() if state is None else path.write_text(state)
    lines = workspace.update(room)
    assert sources(room.own / SECOND)[1] == "my answer"
    assert [line for line in lines if "LESSON=02" in line]


@pytest.mark.parametrize("state", ["kept", "lost"])
def test_a_copy_that_cannot_be_read_is_kept(room, state):
    workspace.update(room)
    (room.own / SECOND).write_bytes(b"\xff{half a file")
    if state == "lost":
        (room.own / workspace.STATE).unlink()
    write_lesson(room.tracked / SECOND, "newer")
    assert [line for line in workspace.update(room) if line.startswith(f"{SECOND}: yours is kept")]
    assert (room.own / SECOND).read_bytes() == b"\xff{half a file"


def test_a_page_that_lessons_link_to_is_copied_and_followed_but_not_when_edited(room):
    page = room.tracked / "glossary.md"
    page.write_text("# Glossary\n")
    assert f"{page.name}: copied" in workspace.update(room)
    page.write_text("# Glossary\n\n**step**\n")
    assert workspace.update(room) == ["glossary.md: refreshed, the lesson is newer"]
    (room.own / page.name).write_text("my notes")
    page.write_text("# Newest\n")
    assert "make reset LESSON=glossary" in workspace.update(room)[0]
    workspace.reset(room, "glossary")
    assert (room.own / page.name).read_text() == "# Newest\n"
    assert [path.suffix for path in (room.own / workspace.BACKUP).iterdir()] == [".md"]


def test_a_tracked_lesson_that_is_no_notebook_is_named(room):
    (room.tracked / SECOND).write_text("<<<<<<< HEAD")
    with pytest.raises(LessonError, match=r"02_the_doubling_bug\.ipynb is no notebook"):
        workspace.update(room)


def test_reset_brings_the_lesson_back_and_keeps_each_version_of_the_learner(room):
    workspace.update(room)
    for answer in ("first answer", "second answer"):
        edit(room.own / SECOND, answer)
        workspace.reset(room, "02")
    assert sources(room.own / SECOND)[1] == f"print({SECOND!r})"
    kept = sorted((room.own / workspace.BACKUP).iterdir())
    assert [sources(path)[1] for path in kept] == ["first answer", "second answer"]
    assert all(path.name.startswith("02_the_doubling_bug.20") for path in kept)


def test_reset_takes_the_newer_lesson_and_later_ones_too(room):
    workspace.update(room)
    edit(room.own / SECOND, "my answer")
    write_lesson(room.tracked / SECOND, "newer")
    workspace.reset(room, "02")
    assert sources(room.own / SECOND)[1] == "newer"
    write_lesson(room.tracked / SECOND, "newest")
    assert workspace.update(room) == [f"{SECOND}: refreshed, the lesson is newer"]


def test_reset_without_a_copy_makes_one(room):
    workspace.reset(room, "00")
    assert sources(room.own / FIRST)[1] == f"print({FIRST!r})"
    assert not (room.own / workspace.BACKUP).exists()


@pytest.mark.parametrize("wanted", ["2", "02", "02_the_doubling_bug", SECOND])
def test_a_lesson_is_found_by_number_and_by_name(wanted):
    assert workspace.find_lesson([FIRST, SECOND, BOOK], wanted) == SECOND


@pytest.mark.parametrize("wanted", ["07", "", "-2", "../02", "book"])
def test_an_unknown_lesson_is_refused_with_the_list_of_lessons(room, wanted):
    workspace.update(room)
    before = contents(room.own)
    with pytest.raises(LessonError) as refusal:
        workspace.reset(room, wanted)
    assert all(name in str(refusal.value) for name in (FIRST, SECOND, BOOK))
    assert contents(room.own) == before


def test_no_lessons_at_all_is_an_error(tmp_path):
    with pytest.raises(LessonError, match="no lessons in"):
        workspace.update(Room(tmp_path, tmp_path / "workspace"))


def test_jupyterlab_listens_on_loopback_and_keeps_its_token(room, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    arguments = workspace.lab_arguments(room, ["--no-browser"])
    assert arguments[:3] == [sys.executable, "-m", "jupyterlab"]
    assert "--ServerApp.ip=127.0.0.1" in arguments
    assert f"--ServerApp.root_dir={room.own}" in arguments
    assert "--LabApp.default_url=/lab/tree/00_start_here.ipynb" in arguments
    assert arguments[-1] == "--no-browser"
    assert not [each for each in arguments if "token" in each or "password" in each or "allow" in each]


def test_only_root_is_allowed_as_root(room, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "--allow-root" in workspace.lab_arguments(room, [])


def test_the_news_question_is_off_without_the_users_settings_being_touched(room):
    given = {"HOME": "/home/me", "MPLBACKEND": "Agg", "JUPYTER_CONFIG_PATH": "/etc/mine", "PATH": "/usr/bin"}
    environment = workspace.lab_environment(room, given)
    ours, theirs = environment["JUPYTER_CONFIG_PATH"].split(os.pathsep)
    overrides = json.loads(Path(ours, "labconfig/default_setting_overrides.json").read_text())
    assert overrides[workspace.NEWS]["fetchNews"] == "false"
    assert (theirs, environment["HOME"]) == ("/etc/mine", "/home/me")
    assert environment["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]
    assert "MPLBACKEND" not in environment
    assert room.own in Path(ours).parents


def test_opening_turns_the_process_into_jupyterlab(room, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    monkeypatch.setattr(workspace, "ROOM", room)
    assert workspace.main(["lab", "--no-browser"]) == 0
    ((program, arguments, environment),) = calls
    assert (program, arguments) == (sys.executable, workspace.lab_arguments(room, ["--no-browser"]))
    assert environment["JUPYTER_PREFER_ENV_PATH"] == "1"
    assert (room.own / FIRST).exists()


@pytest.mark.parametrize("value", [None, ""])
def test_the_copies_are_in_the_checkout_unless_a_folder_is_named(value):
    assert workspace.chosen_room({} if value is None else {"LAB_WORKSPACE": value}).own == workspace.ROOT / "workspace"


def test_a_folder_for_the_copies_can_be_named_from_where_the_user_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    room = workspace.chosen_room({"LAB_WORKSPACE": "my copies"})
    assert (room.own, room.tracked) == (tmp_path / "my copies", workspace.ROOT / "notebooks")


# --- in another language ----------------------------------------------------------------------------------------------


@pytest.fixture
def chinese(room, monkeypatch) -> Room:
    """The Chinese lessons beside the English ones, chosen as a learner chooses them."""
    (room.tracked / "zh").mkdir()
    for name in (FIRST, SECOND, BOOK):
        write_lesson(room.tracked / "zh" / name, f"print('zh', {name!r})")
    monkeypatch.setenv("LAB_LANGUAGE", "zh")
    monkeypatch.setattr(workspace, "ROOM", room)
    return room.translated("zh")


def test_another_language_opens_in_a_folder_of_its_own(room, chinese, monkeypatch):
    workspace.update(room)
    english, calls = sources(room.own / FIRST), []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    assert workspace.main(["lab"]) == 0
    assert f"--ServerApp.root_dir={room.own / 'zh'}" in calls[0][1]
    assert sources(room.own / "zh" / FIRST)[1] == f"print('zh', {FIRST!r})"
    assert sources(room.own / FIRST) == english
    assert workspace.update(room) == []


def test_reset_in_another_language_leaves_the_english_copy_alone(room, chinese, capsys):
    for each in (room, chinese):
        workspace.update(each)
        edit(each.own / SECOND, "my answer")
    assert workspace.main(["reset", "02"]) == 0
    assert f"kept as {room.own.name}/zh/.backup/02_the_doubling_bug.20" in capsys.readouterr().out
    assert sources(chinese.own / SECOND)[1] == f"print('zh', {SECOND!r})"
    assert sources(room.own / SECOND)[1] == "my answer"


def test_a_newer_lesson_in_another_language_is_taken_with_its_switch(chinese):
    workspace.update(chinese)
    edit(chinese.own / SECOND, "my answer")
    write_lesson(chinese.tracked / SECOND, "newer")
    assert "`make reset LESSON=02 LAB_LANGUAGE=zh`" in workspace.update(chinese)[0]


@pytest.mark.parametrize("language", ["fr", "..", "zh/..", "/"])
def test_a_language_without_lessons_is_refused_with_the_languages(room, chinese, monkeypatch, capsys, language):
    monkeypatch.setenv("LAB_LANGUAGE", language)
    assert workspace.main(["lab"]) == 1
    assert capsys.readouterr().err.endswith("use: zh\n")
    assert not room.own.exists()


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["reset"], 2), (["open"], 2), (["reset", "99"], 1)])
def test_wrong_commands_end_with_a_status_and_a_line(room, monkeypatch, capsys, arguments, status):
    monkeypatch.setattr(workspace, "ROOM", room)
    assert workspace.main(arguments) == status
    assert capsys.readouterr().err.startswith(("usage", "error"))
