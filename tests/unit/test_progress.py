"""The instructor's view: what a learner agreed to share, nothing else; who is where, and who is stuck."""

import dataclasses
import fcntl
import json
import os
import shutil
import sqlite3
import stat
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from lab_utils import exercises, workshop_progress, workshop_share
from lab_utils.__main__ import main
from lab_utils.exercises import EXERCISES, check
from lab_utils.labbook import Book, experiment
from lab_utils.workshop_progress import Limits, Progress, ProgressError, Tried, Visit, read_folder, state

NOW = datetime(2026, 11, 23, 20, 0, tzinfo=timezone.utc)
RIGHT, WRONG, SECRET = 256, 77777, "a private prompt"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Where the instructor looks."""
    path = tmp_path / "shared"
    path.mkdir()
    return path


@pytest.fixture
def book(tmp_path, monkeypatch) -> Path:
    """The lab book of one learner, which all lessons of this test write into."""
    path = tmp_path / "anna" / "lab_book.sqlite3"
    path.parent.mkdir()
    monkeypatch.setenv("LAB_BOOK", str(path))
    for name in ("LAB_PROGRESS", "JUPYTERHUB_USER"):
        monkeypatch.delenv(name, raising=False)
    return path


def run_lesson(lesson: str = "02 the doubling bug", fail: bool = False) -> None:
    try:
        with experiment(lesson, "a title", prompt=SECRET) as entry:
            entry.series("measured", [1, 2, 4])
            if fail:
                raise ValueError(SECRET)
    except ValueError:
        pass


def only(folder: Path) -> Progress:
    found, problems = read_folder(folder)
    assert problems == []
    (one,) = found
    return one


def share(*arguments: object) -> int:
    return main(["workshop", "share", *map(str, arguments)])


def shown(capsys, *arguments: object) -> list[dict]:
    """What `progress --json` says."""
    capsys.readouterr()
    assert main(["workshop", "progress", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# --- consent ----------------------------------------------------------------------------------------------------------


def test_without_consent_nothing_is_kept_or_shared(book, folder):
    run_lesson()
    check("02-next", RIGHT)
    assert sorted(path.name for path in book.parent.iterdir() if "sqlite3" not in path.name) == []
    assert list(folder.iterdir()) == []
    assert read_folder(book.parent) == ([], [])


def test_an_offered_folder_is_no_consent(book, folder, monkeypatch):
    monkeypatch.setenv("LAB_PROGRESS", str(folder))
    monkeypatch.setenv("JUPYTERHUB_USER", "anna")
    run_lesson()
    check("02-next", RIGHT)
    assert list(folder.iterdir()) == []
    assert share() == 0
    assert only(folder).name == "anna"


def test_sharing_says_in_words_what_is_shared(book, folder, capsys):
    assert share("--name", "Anna", folder) == 0
    assert workshop_share.WHAT in capsys.readouterr().out
    fields = {field.name for kind in (Progress, Visit, Tried) for field in dataclasses.fields(kind)}
    told = {"name", "lessons", "exercises", "lesson", "runs", "failed", "last", "exercise", "tries", "wrong", "right"}
    assert fields == told, "what is shared has changed: WHAT has to say so"


def test_what_was_done_before_is_shared_and_what_comes_after_follows(book, folder):
    run_lesson()
    share("--name", "Anna", folder)
    assert [(one.lesson, one.runs) for one in only(folder).lessons] == [("02", 1)]
    run_lesson("03 find the node", fail=True)
    assert [(one.lesson, one.runs, one.failed) for one in only(folder).lessons] == [("02", 1, 0), ("03", 1, 1)]
    check("02-next", WRONG)
    check("02-next", ...)
    check("02-next", RIGHT)
    check("02-next", WRONG)
    (tried,) = only(folder).exercises
    assert (tried.exercise, tried.tries, tried.wrong, tried.right) == ("02-next", 3, 1, True)


def test_no_answer_prompt_or_text_is_shared_and_no_experiment_of_ones_own(book, folder):
    share("--name", "Anna", folder)
    run_lesson("our server")
    run_lesson(fail=True)
    check("02-next", WRONG)
    (file,) = folder.iterdir()
    for path in (file, book.with_name(workshop_progress.CHECKS)):
        assert not [word for word in (str(WRONG), SECRET, "our server", "title") if word in path.read_text()]
    assert {one.lesson for one in only(folder).lessons} == {"02"}


def test_stop_removes_everything(book, folder, capsys):
    share("--name", "Anna", folder)
    check("02-next", RIGHT)
    assert share("--stop") == 0
    assert "stopped" in capsys.readouterr().out
    assert list(folder.iterdir()) == []
    assert [path for path in book.parent.iterdir() if path.suffix in (".json", ".jsonl")] == []
    check("02-next", RIGHT)
    assert list(folder.iterdir()) == []
    assert share("--stop") == 0
    assert "nothing was shared" in capsys.readouterr().out


def test_what_cannot_be_removed_is_not_forgotten(book, folder, capsys):
    share("--name", "Anna", folder)
    (file,) = folder.iterdir()
    file.unlink()
    file.mkdir()
    assert share("--stop") == 2
    assert str(file) in capsys.readouterr().err
    file.rmdir()
    file.write_text("{}")
    assert share("--stop") == 0
    assert "stopped" in capsys.readouterr().out
    assert list(folder.iterdir()) == []


def test_a_refresh_that_waits_while_sharing_stops_writes_nothing(book, folder, monkeypatch):
    share("--name", "Anna", folder)
    flock = fcntl.flock

    def stop_comes_first(*arguments: object) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        assert workshop_share.stop_sharing(book)
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", stop_comes_first)
    workshop_share.refresh(book)
    assert fcntl.flock is flock, "the refresh took no lock"
    assert list(folder.iterdir()) == []


def test_a_check_that_waits_while_the_consent_is_replaced_takes_the_new_lock(book, folder, tmp_path, monkeypatch):
    share("--name", "Anna", folder)
    other = tmp_path / "other"
    other.mkdir()
    flock, replace = fcntl.flock, workshop_share._replace

    def share_comes_first(*arguments: object) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        workshop_share.share(book, "Anna", other)
        flock(*arguments)

    def while_locked(*arguments: object, **options: object) -> None:
        assert is_locked(book)
        replace(*arguments, **options)

    monkeypatch.setattr(fcntl, "flock", share_comes_first)
    monkeypatch.setattr(workshop_share, "_replace", while_locked)
    workshop_share.refresh(book)
    assert list(folder.iterdir()) == []
    assert only(other).name == "Anna"


def test_sharing_stops_when_no_refresh_is_under_way(book, folder, monkeypatch):
    share("--name", "Anna", folder)
    unlink, locked = Path.unlink, []

    def seen(path: Path, missing_ok: bool = False) -> None:
        locked.append(is_locked(book))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", seen)
    workshop_share.stop_sharing(book)
    assert locked == [True] * 3


def is_locked(book: Path) -> bool:
    with open(book.with_name(workshop_progress.CONSENT)) as consent:
        try:
            fcntl.flock(consent, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


GOOD = {"id": "0" * 32, "name": "Anna", "folder": "/tmp", "book": "lab_book.sqlite3"}


@pytest.mark.parametrize(
    "text",
    [
        *(json.dumps(GOOD | wrong) for wrong in ({"folder": 5}, {"folder": "here"}, {"id": "../x"}, {"id": 5})),
        *(json.dumps(GOOD | wrong) for wrong in ({"name": 5}, {"name": ""}, {"book": None}, {"more": 1})),
        "[" * 5000,
        "",
    ],
)
def test_a_broken_consent_is_none_and_stops_no_lesson(book, capsys, text):
    book.with_name(workshop_progress.CONSENT).write_text(text)
    check("02-next", RIGHT)
    run_lesson()
    assert capsys.readouterr().out.splitlines()[-1].startswith("right. ")
    assert not book.with_name(workshop_progress.CHECKS).exists()
    assert share("--stop") == 0
    assert not book.with_name(workshop_progress.CONSENT).exists()


def test_a_pipe_in_place_of_the_consent_stops_no_lesson(book):
    os.mkfifo(book.with_name(workshop_progress.CONSENT))
    check("02-next", RIGHT)
    assert share("--stop") == 0
    assert list(book.parent.glob("*.json*")) == []


def test_another_folder_or_name_replaces_the_first(book, folder, tmp_path):
    share("--name", "Anna", folder)
    share("--name", "Anna B.", folder)
    assert only(folder).name == "Anna B."
    other = tmp_path / "other"
    other.mkdir()
    share("--name", "Anna", other)
    assert list(folder.iterdir()) == []
    assert only(other).name == "Anna"


def test_two_learners_of_one_name_do_not_overwrite_each_other(book, folder, tmp_path, monkeypatch):
    share("--name", "Anna", folder)
    monkeypatch.setenv("LAB_BOOK", str(tmp_path / "second" / "lab_book.sqlite3"))
    (tmp_path / "second").mkdir()
    share("--name", "Anna", folder)
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "a folder is missing"),
        (["--name", "Anna"], "a folder is missing"),
        (["--name", "x" * 41, "{folder}"], "expected 1 to 40 characters"),
        (["{folder}"], "your name is missing"),
        (["--name", "Anna", "{folder}/absent"], "is no folder"),
    ],
)
def test_a_mistake_is_told_in_one_line(book, folder, capsys, arguments, words):
    assert share(*(argument.format(folder=folder) for argument in arguments)) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
    assert list(folder.iterdir()) == []


def test_a_lesson_goes_on_when_nothing_can_be_shared(book, folder, capsys):
    share("--name", "Anna", folder)
    next(folder.iterdir()).unlink()
    folder.rmdir()
    run_lesson()
    check("02-next", RIGHT)
    told = capsys.readouterr()
    assert (told.out.splitlines()[-1].startswith("right. "), told.err) == (True, "")


def test_others_may_read_the_shared_file_but_not_what_is_beside_the_book(book, folder):
    before = os.umask(0o077)
    try:
        share("--name", "Anna", folder)
    finally:
        os.umask(before)
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert stat.S_IMODE(book.with_name(workshop_progress.CONSENT).stat().st_mode) == 0o600


# --- reading books ------------------------------------------------------------------------------------------------


def test_a_learners_own_folder_is_read_while_her_book_is_open(book, folder):
    share("--name", "Anna", folder)
    run_lesson()
    with closing(sqlite3.connect(book)) as in_use:
        in_use.execute("SELECT * FROM experiment").fetchall()
        run_lesson("04 memory")
        assert book.with_name(f"{book.name}-wal").stat().st_size > 0
        before = book.read_bytes()
        assert only(book.parent).lesson == "04"
        assert only(book.parent.parent / "anna").lessons == only(book.parent).lessons
        assert book.read_bytes() == before
    assert {one.name for one in read_folder(book.parent.parent)[0]} == {"Anna"}


def test_a_book_at_rest_in_a_folder_that_cannot_be_written(book, folder):
    share("--name", "Anna", folder)
    run_lesson()
    with closing(sqlite3.connect(book)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert not book.with_name(f"{book.name}-wal").exists()
    book.parent.chmod(0o555)
    changed = book.parent.stat().st_mtime_ns  # by a file that came, and by one that came and went
    try:
        assert only(book.parent).lesson == "02"
        assert book.parent.stat().st_mtime_ns == changed
    finally:
        book.parent.chmod(0o755)


def test_a_file_that_is_no_lab_book_is_told(book, folder):
    share("--name", "Anna", folder)
    book.write_text("not a database, but a text that is long enough for a header of a hundred bytes" * 3)
    found, (problem,) = read_folder(book.parent)
    assert found == []
    assert "cannot be read" in problem
    book.unlink()
    with closing(sqlite3.connect(book)) as connection:
        connection.execute("CREATE VIEW experiment AS SELECT 1")
    assert "is not a lab book" in read_folder(book.parent)[1][0]


@pytest.fixture
def beside(book, folder) -> Path:
    """The book of Bea, who shares her folder beside Anna's; at rest."""
    share("--name", "Anna", folder)
    run_lesson()
    run_lesson()
    shutil.copytree(book.parent, book.parent.with_name("bea"))
    path = book.parent.with_name("bea") / book.name
    consent = path.with_name(workshop_progress.CONSENT)
    consent.write_text(consent.read_text().replace("Anna", "Bea"))
    return path


def only_anna(folder: Path, capsys) -> str:
    """What is said of the others when the instructor looks at a folder where Anna alone can be shown."""
    capsys.readouterr()
    assert main(["workshop", "progress", str(folder), "--json"]) == 0
    told = capsys.readouterr()
    assert [row["name"] for row in json.loads(told.out)] == ["Anna"]
    return told.err


@pytest.mark.parametrize(
    ("value", "words"),
    [("2026-11-23T20:00:00", "a time without its zone"), ("soon", "soon"), (b"x", "cannot be read")],
)
def test_a_wrong_time_in_one_book_leaves_the_others(beside, capsys, value, words):
    with closing(sqlite3.connect(beside)) as connection, connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        assert connection.execute("UPDATE ending SET ended = ? WHERE experiment = 1", [value]).rowcount == 1
    said = only_anna(beside.parents[1], capsys)
    assert str(beside) in said
    assert words in said


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_a_pipe_in_place_of_one_book_leaves_the_others(beside, capsys, suffix):
    path = beside.with_name(beside.name + suffix)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert f"{path.name} is no regular file" in only_anna(beside.parents[1], capsys)


def test_a_link_to_the_book_of_somebody_else_is_not_followed(beside, book, capsys):
    beside.unlink()
    beside.symlink_to(book)
    assert "is a link" in only_anna(beside.parents[1], capsys)


def test_a_learner_whose_own_book_is_a_link_can_share(book, folder, tmp_path):
    (tmp_path / "disk").mkdir()
    book.symlink_to(tmp_path / "disk" / "book.sqlite3")
    run_lesson()
    share("--name", "Anna", folder)
    assert only(folder).lesson == "02"


def test_a_nested_line_among_the_outcomes_is_passed_over(beside):
    beside.with_name(workshop_progress.CHECKS).write_text("[" * 100_000 + "\n")
    found, problems = read_folder(beside.parents[1])
    assert ({one.name for one in found}, problems) == ({"Anna", "Bea"}, [])


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_name_that_cannot_be_printed_is_told_and_the_others_are_shown(book, folder, capsys, options):
    share("--name", "Anna", folder)
    (folder / "bad.progress.json").write_text('{"name": "a\\ud800", "lessons": [], "exercises": []}')
    capsys.readouterr()
    assert main(["workshop", "progress", str(folder), *options]) == 0
    told = capsys.readouterr()
    assert "Anna" in told.out
    assert "bad.progress.json: not a progress file" in told.err
    assert share("--name", "a\ud800", folder) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "\0",
        "[" * 5000,
        '{"name": "x", "lessons": [{"lesson": "../../x"}], "exercises": []}',
        '{"name": "", "lessons": [], "exercises": []}',
        '{"name": ["x"], "lessons": [], "exercises": []}',
        '{"name": "x", "lessons": [], "exercises": [{"exercise": "02-gib", "tries": "1"}]}',
        '{"name": "x", "lessons": [{"lesson": "02", "runs": 1, "failed": 0, "last": "2026-11-23"}], "exercises": []}',
    ],
)
def test_a_broken_file_is_told_and_the_others_are_shown(book, folder, text):
    share("--name", "Anna", folder)
    (folder / "bad.progress.json").write_text(text)
    found, (problem,) = read_folder(folder)
    assert [one.name for one in found] == ["Anna"]
    assert problem.startswith("bad.progress.json: not a progress file")


def test_links_pipes_and_large_files_are_not_opened(folder, tmp_path):
    (tmp_path / "private").write_text('{"name": "x", "lessons": [], "exercises": []}')
    (folder / "link.progress.json").symlink_to(tmp_path / "private")
    os.mkfifo(folder / "pipe.progress.json")
    (folder / "large.progress.json").write_text(" " * (2**20 + 1))
    found, problems = read_folder(folder)
    assert (found, len(problems)) == ([], 3)


def test_a_name_cannot_steer_the_instructors_terminal(book, folder):
    share("--name", "Anna\x1b[2J", folder)
    assert only(folder).name == "Anna\N{REPLACEMENT CHARACTER}[2J"


def test_json_comes_back_as_it_was(book, folder):
    share("--name", "Anna", folder)
    run_lesson()
    check("02-next", WRONG)
    one = only(folder)
    assert workshop_progress.from_json(workshop_progress.to_json(one)) == one


# --- who is stuck -----------------------------------------------------------------------------------------------------


def tried(exercise: str = "02-next", tries: int = 1, wrong: int = 0, minutes: float = 1, right: bool = False) -> Tried:
    return Tried(exercise, tries, wrong, right, NOW - timedelta(minutes=minutes))


def learner(*parts: Tried, name: str = "Anna") -> Progress:
    return Progress(name, (), parts)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (learner(), "nothing yet"),
        (learner(tried(right=True)), "at work"),
        (learner(tried(tries=2, wrong=2)), "at work"),
        (learner(tried(tries=3, wrong=3)), "stuck"),
        (learner(tried(tries=9, wrong=3, right=True)), "stuck"),
        (learner(tried(tries=5, wrong=5, minutes=6), tried("02-gib", right=True)), "at work"),
        (learner(tried(minutes=19.9)), "at work"),
        (learner(tried(minutes=20)), "quiet"),
        (learner(tried(wrong=3, tries=3, minutes=30)), "stuck"),
        (learner(tried(wrong=3, tries=3, minutes=120)), "gone"),
        (learner(tried(minutes=-60)), "at work"),
    ],
)
def test_states(one, expected):
    assert state(one, NOW, Limits())[0] == expected


def test_a_run_counts_as_a_sign_of_life_and_tells_the_lesson():
    run = Visit("03", 1, 0, NOW - timedelta(minutes=2))
    one = Progress("Anna", (run,), (tried(tries=3, wrong=1, minutes=50),))
    assert (one.lesson, state(one, NOW, Limits())[0]) == ("03", "at work")


def test_those_who_need_somebody_come_first():
    learners = [
        learner(tried(right=True), name="fine"),
        learner(name="new"),
        learner(tried(minutes=25), name="quiet"),
        learner(tried(tries=4, wrong=4), name="stuck"),
        learner(tried(minutes=500), name="gone"),
    ]
    rows = workshop_progress.rows(learners, EXERCISES, NOW, Limits())
    assert [row["name"] for row in rows] == ["stuck", "quiet", "fine", "new", "gone"]
    assert rows[0]["words"] == "stuck on 02-next: wrong 4 times in a row"
    in_lesson = sum(name.startswith("02-") for name in EXERCISES)
    assert (rows[2]["right"], rows[2]["exercises"], rows[2]["right_in_all"]) == (1, in_lesson, 1)


@pytest.mark.parametrize("wrong", [{"wrong": 0}, {"quiet": 0}, {"quiet": 130}, {"gone": float("nan")}])
def test_limits_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match="expected 1 or more, 0 < quiet < gone"):
        Limits(**wrong)


def test_the_command_shows_each_learner_once(book, folder, capsys):
    run_lesson()
    share("--name", "Anna", folder)
    for _ in range(3):
        check("02-next", WRONG)
    (row,) = shown(capsys, folder, book.parent)
    assert (row["name"], row["lesson"], row["state"]) == ("Anna", "02", "stuck")
    assert main(["workshop", "progress", str(folder)]) == 0
    assert "stuck on 02-next: wrong 3 times in a row" in capsys.readouterr().out
    (row,) = shown(capsys, folder, "--wrong", 4)
    assert row["state"] == "at work"


def test_an_empty_and_an_absent_folder(folder, capsys):
    assert main(["workshop", "progress", str(folder)]) == 0
    assert "nobody shares progress here" in capsys.readouterr().out
    assert main(["workshop", "progress", str(folder / "absent")]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_exercises_have_names_that_are_shared():
    assert [name for name in EXERCISES if not workshop_progress.EXERCISE.fullmatch(name)] == []
    assert exercises.record_check is workshop_share.record_check
    with pytest.raises(ProgressError):
        workshop_progress.from_json('{"name": "x", "lessons": [], "exercises": [{"exercise": "no such"}]}')
    assert isinstance(Book(Path("x")), Book)
