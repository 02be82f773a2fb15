"""The lab book: what is recorded is read back, nothing is overwritten, and no trouble with it stops an experiment."""

import contextlib
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from dataclasses import FrozenInstanceError
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lab_utils import labbook, labbook_schema
from lab_utils.client import Observation, StreamError, StreamResult
from lab_utils.device import Device
from lab_utils.labbook import Book, BookError, Recorder, experiment, open_book
from lab_utils.labbook_compare import before_after
from lab_utils.labbook_entries import Experiment, Number, Point
from lab_utils.plots import growth_figure

WRITER = Path(__file__).with_name("labbook_writer.py")
ROOT = WRITER.parents[2]
DOUBLING = [1, 2, 4, 8]
ENTRIES = ("experiment", "series", "observation", "verdict", "figure", "number", "note", "ending")


def response(iteration: int, size: int) -> Observation:
    return Observation(iteration, (size,), 4 * size, iteration / 8, np.arange(size, dtype=np.int32), "", 0, False)


def streamed(*sizes: int) -> StreamResult:
    return StreamResult(tuple(response(n, size) for n, size in enumerate(sizes, 1)))


def record(book: Book, sizes: list[int], lesson: str = "02 test", title: str = "a run", **more: object) -> int:
    with book.experiment(lesson, title, **more) as e:
        e.series("measured", sizes)
    return e.id


def rows(path: Path, question: str) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(question).fetchall()


@pytest.fixture
def book(tmp_path) -> Book:
    return Book(tmp_path / "book.sqlite3")


@pytest.fixture(autouse=True)
def _fresh_warnings():
    labbook._warn_once.cache_clear()


# --- recording and reading ----------------------------------------------------------------------------------------


def test_all_that_is_recorded_is_read_back(book):
    server = SimpleNamespace(
        metadata={"version": "2.51.0"}, source=SimpleNamespace(kind="wheel"), device=Device("CPU", "none")
    )
    before = datetime.now(timezone.utc) - timedelta(milliseconds=1)
    with book.experiment("02 doubling", "rung 1", server=server, predicted=DOUBLING, ensemble="e", max_tokens=4) as e:
        e.series("measured", streamed(*DOUBLING))
    e.verdict("it doubles")
    e.number("peak memory", 5.2, "GiB")
    e.number("ids", 134_217_728)
    e.note("after the block")
    (one,) = book.experiments()
    assert (one.lesson, one.title, one.predicted, one.state) == ("02 doubling", "rung 1", DOUBLING, "finished")
    assert one.configuration == {"ensemble": "e", "max_tokens": 4}
    assert (one.server, one.source, one.device) == ("2.51.0", "wheel", "CPU: none")
    assert one.series[0].points == tuple(Point(n, (2 ** (n - 1),), 4 * 2 ** (n - 1), n / 8) for n in range(1, 5))
    assert one.series[0].sizes == DOUBLING
    assert (one.verdicts, one.notes, one.failure) == (("it doubles",), ("after the block",), None)
    assert one.numbers == (Number("peak memory", 5.2, "GiB"), Number("ids", 134_217_728, ""))
    assert before <= one.started <= one.ended
    assert one.started.utcoffset() == timedelta(0)
    assert 0 <= one.seconds <= 60
    assert one == book.get(e.id)
    with pytest.raises(FrozenInstanceError):
        one.title = "another"


def test_a_cell_that_runs_twice_adds_its_entries_once(book):
    with book.experiment("02", "twice") as e:
        pass
    for _ in range(2):
        e.verdict("it doubles")
        e.note("a note")
        e.number("n", 1)
        e.number("n", 2)
        e.figure("growth", growth_figure({"measured": DOUBLING}))
    one = book.get(e.id)
    assert (one.verdicts, one.notes, len(one.numbers), len(one.figures)) == (("it doubles",), ("a note",), 2, 1)
    with book.experiment("02", "another") as e:
        e.note("a note")
    assert book.get(e.id).notes == ("a note",)


def test_a_figure_is_kept_and_returned(book):
    figure = growth_figure({"measured": DOUBLING})
    with book.experiment("02", "figures") as e:
        assert e.figure("growth", figure, alt="It doubles.") is figure
    (picture,) = book.get(e.id).figures
    assert (picture.name, picture.alt) == ("growth", "It doubles.")
    assert book.png(picture.id).startswith(b"\x89PNG")
    path = book.path.with_name("same.png")
    path.write_bytes(book.png(picture.id))
    e.figure("from a file", path)
    e.figure("from bytes", path.read_bytes())
    assert len(book.get(e.id).figures) == 3
    assert len({book.png(one.id) for one in book.get(e.id).figures}) == 1


@pytest.mark.parametrize("wrong", [b"GIF89a", "no_such.png", 3, None])
def test_what_is_no_figure_is_refused(book, wrong):
    with book.experiment("02", "figures") as e, pytest.raises((ValueError, OSError)):
        e.figure("growth", wrong)


@pytest.mark.parametrize(
    ("measured", "points"),
    [
        ([3, 1], [Point(1, (3,)), Point(2, (1,))]),
        ([np.int64(3)], [Point(1, (3,))]),
        (np.array([3, 1]), [Point(1, (3,)), Point(2, (1,))]),
        (np.array([[1, 8], [2, 8]]), [Point(1, (1, 8)), Point(2, (2, 8))]),
        ([[1, 8], (2, 8)], [Point(1, (1, 8)), Point(2, (2, 8))]),
        ([np.zeros((2, 3), dtype=np.float32)], [Point(1, (2, 3), 24)]),
        ([SimpleNamespace(dims=(4,), nbytes=16, seconds=0.5)], [Point(1, (4,), 16, 0.5)]),
        ([SimpleNamespace(shape=(4,))], [Point(1, (4,))]),
        (
            [SimpleNamespace(dims=np.array([4]), nbytes=np.int64(16), seconds=np.float32(0.5))],
            [Point(1, (4,), 16, 0.5)],
        ),
        ((size for size in (1, 2)), [Point(1, (1,)), Point(2, (2,))]),
        ([[]], [Point(1, ())]),
        ([], []),
    ],
)
def test_a_series_takes_sizes_dims_and_observations(book, measured, points):
    with book.experiment("02", "series") as e:
        e.series("measured", measured)
    assert list(book.get(e.id).series[0].points) == points


@pytest.mark.parametrize(
    "wrong", ["1248", b"12", {1: 2}, {1, 2}, 5, None, [1.5], [-1], [True], [np.float64(8)], [["8"]], ["8"], [None]]
)
def test_what_is_no_series_is_refused(book, wrong):
    with book.experiment("02", "series") as e, pytest.raises(ValueError, match="expected"):
        e.series("measured", wrong)
    assert book.get(e.id).series == ()


def test_a_label_that_is_taken_gets_a_number(book):
    with book.experiment("02", "labels", predicted=[1]) as e:
        for sizes in ([1], [2], [3]):
            e.series("measured", sizes)
    one = book.get(e.id)
    assert [(series.label, series.sizes) for series in one.series] == [
        ("measured", [1]),
        ("measured (2)", [2]),
        ("measured (3)", [3]),
    ]
    assert one.outcome.came_true


def spoken(iteration: int, seconds: float, text: str = "", heap: int | None = None) -> Observation:
    ids = np.arange(iteration, dtype=np.int32)
    return Observation(iteration, ids.shape, ids.nbytes, seconds, ids, text, iteration, False, heap)


def record_stream(book: Book, *observations: Observation) -> Experiment:
    with book.experiment("05", "a stream", predicted=[1, 2, 3]) as e:
        e.stream(StreamResult(observations))
    return book.get(e.id)


def test_all_that_a_stream_measured_is_recorded(book):
    one = record_stream(book, spoken(1, 0.5, " 茶", 900), spoken(2, 0.6, "匙", 800), spoken(3, 0.9, "", 700))
    measured, heap = one.series
    points = tuple(Point(n, (n,), 4 * n, seconds) for n, seconds in ((1, 0.5), (2, 0.6), (3, 0.9)))
    assert (measured.label, measured.unit, measured.points) == ("measured", "elements", points)
    assert (heap.label, heap.unit, heap.sizes) == ("heap", "bytes", [900, 800, 700])
    (gap,) = one.numbers
    assert (gap.name, gap.value, gap.unit) == ("time per token", pytest.approx(0.2), "s")  # not counted: the wait
    assert one.notes == ("text:  茶匙",)
    assert one.outcome.came_true


def test_a_stream_without_heap_text_or_gap_is_recorded_as_it_is(book):
    one = record_stream(book, spoken(1, 0.5))
    assert [series.label for series in one.series] == ["measured"]
    assert (one.numbers, one.notes) == ((), ())


def test_a_heap_that_was_not_reported_each_time_is_left_out(book):
    """A series of it would have the wrong iterations."""
    one = record_stream(book, spoken(1, 0.5, heap=900), spoken(2, 0.6))
    assert [series.label for series in one.series] == ["measured"]


def test_the_time_per_token_of_messages_that_arrive_in_bunches_is_the_mean(book):
    """The median of the gaps would be nothing."""
    one = record_stream(book, *(spoken(n, seconds) for n, seconds in enumerate([1, 1, 1, 3, 3, 3], 1)))
    assert one.numbers[0].value == pytest.approx(0.4)


def test_a_stream_without_messages_is_recorded(book):
    one = record_stream(book)
    assert (one.series[0].points, one.numbers, one.notes) == ((), (), ())


def test_the_text_of_a_doubling_stream_is_cut(book):
    one = record_stream(book, spoken(1, 0.5, "茶" * 1_000_000))
    (note,) = one.notes
    assert len(note) == len("text: ") + labbook.NOTED_TEXT
    assert note.endswith("茶…")


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), "5", True, None])
def test_what_is_no_number_is_refused(book, wrong):
    with book.experiment("02", "numbers") as e, pytest.raises(ValueError, match="finite number"):
        e.number("memory", wrong)


def test_numbers_of_any_size_are_kept(book):
    with book.experiment("02", "numbers") as e:
        for value in (2**62, 2**80, np.float32(0.5), np.int32(7)):
            e.number("n", value)
    assert [number.value for number in book.get(e.id).numbers] == [2**62, float(2**80), 0.5, 7]


def test_any_value_fits_into_the_configuration(book):
    odd = {"array": np.arange(3), "path": Path("a/b"), "nan": float("nan"), "nested": {1: (2, None)}, "bytes": b"\xff"}
    with book.experiment("02", "odd", **odd) as e:
        pass
    assert book.get(e.id).configuration == {
        "array": [0, 1, 2],
        "path": "a/b",
        "nan": "nan",
        "nested": {"1": [2, None]},
        "bytes": "b'\\xff'",
    }


@pytest.mark.parametrize("text", ["<b>'\"&amp;", "香草 茶匙", "a\x00b\x1b[31m", "line\nline", "\udcff"])
def test_any_text_is_kept(book, text):
    with book.experiment(text, text, predicted=text, prompt=text) as e:
        e.note(text)
    one = book.get(e.id)
    kept = text.replace("\udcff", "?")
    assert {one.lesson, one.title, one.predicted, one.configuration["prompt"], *one.notes} == {kept}


# --- predictions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predicted", "came_true", "text"),
    [
        ([1, 2, 4, 8], True, "yes, at all 4 iterations"),
        ((1, 2, 4, 8), True, "yes, at all 4 iterations"),
        ([1, 2, 3, 4], False, "no: at iteration 3, 3 was predicted and 4 measured"),
        ([1, 2, 4], False, "no: 3 iterations were predicted and 4 measured"),
        ([1, 2, 4, 8, 16], False, "no: 5 iterations were predicted and 4 measured"),
    ],
)
def test_a_prediction_of_sizes_is_judged(book, predicted, came_true, text):
    outcome = book.get(record(book, DOUBLING, predicted=predicted)).outcome
    assert (outcome.came_true, outcome.text) == (came_true, text)


@pytest.mark.parametrize("predicted", [None, ..., [1, ...], [], "it doubles", 8, [1.5], [True, True]])
def test_other_predictions_are_not_judged(book, predicted):
    one = book.get(record(book, [1, 1], predicted=predicted))
    assert one.outcome is None
    unanswered = predicted in (None, ..., [1, ...])
    assert one.predicted == (None if unanswered else predicted)


def test_a_prediction_without_a_measurement_is_not_judged(book):
    with book.experiment("02", "other", predicted=[1]) as e:
        e.series("something else", [1])
    assert book.get(e.id).outcome is None


# --- experiments that end early -----------------------------------------------------------------------------------


def test_an_error_is_recorded_and_goes_on(book):
    def fail(e: Recorder) -> None:
        e.series("measured", [1])
        raise RuntimeError("it broke")

    with pytest.raises(RuntimeError, match="it broke"), book.experiment("02", "failing") as e:
        fail(e)
    one = book.get(e.id)
    assert (one.state, one.failure, one.series[0].sizes) == ("failed", "RuntimeError: it broke", [1])


def test_an_interrupt_is_recorded(book):
    with pytest.raises(KeyboardInterrupt), book.experiment("02", "interrupted") as e:
        raise KeyboardInterrupt
    assert book.get(e.id).failure == "KeyboardInterrupt"


def test_a_stream_that_broke_off_keeps_what_had_arrived(book):
    refused = StreamError("refused at the second message", streamed(1).observations)
    with pytest.raises(StreamError), book.experiment("02", "refused", predicted=[1, 2]):
        raise refused
    one = book.get(1)
    assert [(series.label, series.sizes) for series in one.series] == [(labbook.ARRIVED, [1])]
    assert one.outcome is None


def test_a_followed_stream_is_recorded_as_it_arrives(book):
    with book.experiment("02", "live") as e:
        arrived = e.follow("measured", iter(streamed(1, 2, 4).observations))
        next(arrived)
        next(arrived)
        assert book.get(e.id).find("measured").sizes == [1, 2]
        assert book.get(e.id).state == "unfinished"
        assert [seen.dims for seen in arrived] == [(4,)]
    assert book.get(e.id).find("measured").points[2] == Point(3, (4,), 16, 3 / 8)


def test_nothing_is_recorded_before_the_block(book):
    with pytest.raises(ValueError, match="with experiment"):
        book.experiment("02", "no block").verdict("?")
    assert not book.path.exists()


@pytest.mark.parametrize(
    "server", [None, object(), "127.0.0.1:8001", SimpleNamespace(metadata={}, source=None, device=Device("CPU", "x"))]
)
def test_any_server_will_do(book, server):
    with book.experiment("02", "server", server=server) as e:
        pass
    one = book.get(e.id)
    assert (one.server, one.source) == (None, None)


# --- finding ------------------------------------------------------------------------------------------------------


def test_experiments_are_filtered(book):
    record(book, [1], "01 the pipeline", "English", ensemble="a", prompt="Pancakes")
    record(book, [1], "02 the doubling bug", "the field's", ensemble="b", prompt="香草")
    with book.experiment("02 the doubling bug", "again", ensemble="b") as e:
        pass
    e.verdict("It DOUBLES")

    def ids(**filters: object) -> list[int]:
        return [one.id for one in book.experiments(**filters)]

    assert ids() == [1, 2, 3]
    assert ids(lesson="02") == ids(lesson="02 THE") == [2, 3]
    assert ids(lesson="2") == []
    assert ids(ensemble="a") == [1]
    assert [ids(text=text) for text in ("pancakes", "香草", "doubles", "english")] == [[1], [2], [3], [1]]
    assert ids(lesson="02", ensemble="b", text="again") == [3]


def test_experiments_since_a_moment(book):
    record(book, [1])
    (one,) = book.experiments()
    today, later = one.started.date(), one.started + timedelta(seconds=1)
    for since in (today, str(today), one.started, one.started.isoformat(), f"{today}T00:00:00Z"):
        assert len(book.experiments(since=since)) == 1
    for since in (later, later.isoformat(), today + timedelta(days=1), date(2999, 1, 1)):
        assert book.experiments(since=since) == []
    for wrong in ("yesterday", "2026-13-01", 5):
        with pytest.raises(ValueError, match="expected a date"):
            book.experiments(since=wrong)


def test_an_empty_book(book):
    assert book.experiments() == []
    assert not book.path.exists()  # looking makes no file
    with pytest.raises(ValueError, match="empty: run a lesson first"):
        book.get(1)
    record(book, [1])
    with pytest.raises(ValueError, match="no experiment 7; it has 1 to 1"):
        book.get(7)
    for wrong in (None, 2**80):  # None is the number of an experiment that was not recorded
        with pytest.raises(ValueError, match=f"no experiment {wrong}"):
            book.get(wrong)
    with pytest.raises(ValueError, match="no figure 7"):
        book.png(7)


def test_where_the_book_is(monkeypatch, tmp_path):
    monkeypatch.setenv("LAB_BOOK", str(tmp_path / "own.sqlite3"))
    with experiment("02", "default book") as e:
        pass
    assert open_book().path == tmp_path / "own.sqlite3"
    assert open_book().get(e.id).title == "default book"
    assert open_book(tmp_path / "another").path == tmp_path / "another"
    assert open_book("~nobody here/book").path == Path("~nobody here/book")
    assert open_book("~/book").path == Path.home() / "book"
    monkeypatch.delenv("LAB_BOOK")
    assert open_book().path == ROOT / "workspace" / "lab_book.sqlite3"


# --- comparing ----------------------------------------------------------------------------------------------------


def test_before_against_after(book):
    before = record(book, DOUBLING, ensemble="append", prompt="p")
    after = record(book, [1, 1, 1], ensemble="latest", prompt="p", extra=1)
    comparison = book.compare(before, after)
    assert comparison.changed == {"ensemble": ("append", "latest"), "extra": (None, 1)}
    assert [row.same for row in comparison.rows] == [True, False, False, False]
    assert comparison.sizes == (DOUBLING, [1, 1, 1])
    assert comparison.summary == (
        "ensemble: append -> latest; extra: None -> 1. They part at iteration 2: [2] before, [1] after"
    )
    assert str(comparison).splitlines()[-1].split() == ["4", "[8]", *"-----"]
    assert comparison.figure().axes


def test_a_run_compared_with_itself_is_the_same(book):
    number = record(book, DOUBLING)
    comparison = book.compare(book.get(number), number)
    assert comparison.same
    assert comparison.summary == "nothing was changed. The same dims in all 4 iterations"
    empty = record(book, [])
    assert book.compare(empty, empty).summary == "nothing was changed. Nothing was measured"


def test_what_cannot_be_compared_is_said(book):
    first = record(book, [1])
    with book.experiment("02", "another series") as e:
        e.series("memory", [5], unit="bytes")
    with pytest.raises(ValueError, match="no series in common to compare; 1 has: measured; 2 has: memory"):
        book.compare(first, e.id)
    with pytest.raises(ValueError, match="experiment 1 has no series 'memory'; it has: measured"):
        book.compare(first, e.id, "memory")


def test_runs_are_paired_before_and_after_a_change_of_ensemble(book):
    for ensemble in ("append", "release", "latest", "append"):
        record(book, DOUBLING, ensemble=ensemble, prompt="p")
    record(book, [1], ensemble="other", prompt="another prompt")
    record(book, [1], prompt="p")
    with book.experiment("02", "nothing measured", ensemble="empty", prompt="p") as e:
        e.series("measured", [])
    pairs = [(one.before.id, one.after.id) for one in before_after(book.experiments())]
    assert pairs == [(4, 2), (2, 3)]


# --- nothing is overwritten ---------------------------------------------------------------------------------------


@pytest.fixture
def full_book(book) -> Book:
    """A book with a row in every table."""
    with book.experiment("02", "all") as e:
        e.series("measured", [1])
        e.figure("growth", growth_figure({"measured": [1]}))
        e.number("n", 1)
        e.verdict("v")
        e.note("n")
    return book


@pytest.mark.parametrize("table", ENTRIES)
def test_no_row_can_be_changed_deleted_or_replaced(full_book, table):
    before = rows(full_book.path, f"SELECT * FROM {table}")
    assert len(before) == 1
    column = {"observation": "iteration", "ending": "experiment"}.get(table, "id")
    with contextlib.closing(sqlite3.connect(full_book.path)) as connection:
        for statement in (
            f"UPDATE {table} SET {column} = 9",
            f"DELETE FROM {table}",
            f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)
    assert rows(full_book.path, f"SELECT * FROM {table}") == before


def test_every_table_is_protected(full_book):
    tables = {name for (name,) in rows(full_book.path, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables - {"sqlite_sequence"} == set(ENTRIES)


# --- versions -----------------------------------------------------------------------------------------------------


@pytest.fixture
def old_book(tmp_path) -> Book:
    """A book of version 1 with data, as that version's code left it."""
    path = tmp_path / "old.sqlite3"
    start, end = "2026-01-02T03:04:05.678+00:00", "2026-01-02T03:04:06.000+00:00"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in labbook_schema.MIGRATIONS[0]:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {labbook_schema.APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
        connection.execute(
            "INSERT INTO experiment VALUES (5, '02 old', 'before', ?, '[1, 2]', '{\"ensemble\": \"append\"}')", [start]
        )
        connection.execute("INSERT INTO series VALUES (1, 5, ?, 'measured')", [start])
        connection.execute("INSERT INTO observation VALUES (1, 1, '[1]', 4, 0.5), (1, 2, '[2]', 8, 0.75)")
        connection.execute("INSERT INTO verdict VALUES (1, 5, ?, 'grows')", [start])
        connection.execute("INSERT INTO figure VALUES (1, 5, ?, 'growth', '', x'89504E470D0A1A0A')", [start])
        connection.execute("INSERT INTO ending VALUES (5, ?, NULL)", [end])
    return Book(path)


def test_a_book_of_version_1_is_brought_up_to_date_with_its_data(old_book):
    (one,) = old_book.experiments()
    assert (one.id, one.lesson, one.state, one.predicted) == (5, "02 old", "finished", [1, 2])
    assert one.started == datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=timezone.utc)
    assert one.series[0].points == (Point(1, (1,), 4, 0.5), Point(2, (2,), 8, 0.75))
    assert (one.series[0].unit, one.server, one.seconds, one.numbers) == ("elements", None, None, ())
    assert (one.verdicts, old_book.png(1)) == (("grows",), b"\x89PNG\r\n\x1a\n")
    assert rows(old_book.path, "PRAGMA user_version") == [(labbook_schema.CURRENT,)]
    assert rows(old_book.path, "PRAGMA journal_mode") == [("wal",)]


def test_an_old_book_goes_on(old_book):
    number = record(old_book, [1, 1], ensemble="latest")
    assert number == 6
    assert not old_book.compare(5, 6).same
    with contextlib.closing(sqlite3.connect(old_book.path)) as connection, pytest.raises(sqlite3.IntegrityError):
        connection.execute("DELETE FROM experiment")


def test_a_migration_that_fails_leaves_the_old_book(old_book, monkeypatch):
    broken = (*labbook_schema.MIGRATIONS, ("CREATE TABLE extra (id)", "NONSENSE"))
    monkeypatch.setattr(labbook_schema, "MIGRATIONS", broken)
    monkeypatch.setattr(labbook_schema, "CURRENT", 3)
    with pytest.raises(BookError, match="NONSENSE"):
        old_book.experiments()
    assert rows(old_book.path, "PRAGMA user_version") == [(1,)]
    assert rows(old_book.path, "SELECT count(*) FROM sqlite_master WHERE name IN ('note', 'extra')") == [(0,)]


def newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {labbook_schema.APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 99")


def foreign(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (name)")


def text_file(path: Path) -> None:
    path.write_text("my notes\n" * 500)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (newer, "version 99, made by a newer lab.*left as it is.*Update the lab"),
        (foreign, "is not a lab book: it is another program's SQLite file.*left as it is"),
        (text_file, "is not a lab book: it is no SQLite file.*left as it is"),
    ],
)
def test_a_file_that_is_not_ours_is_refused_and_left_alone(book, make, message, capsys):
    make(book.path)
    before = book.path.read_bytes()
    with pytest.raises(BookError, match=message):
        book.experiments()
    with book.experiment("02", "goes on") as e:
        e.series("measured", [1])
    assert e.id is None
    assert capsys.readouterr().err.startswith("not recorded: ")
    assert book.path.read_bytes() == before
    assert [path.name for path in book.path.parent.iterdir()] == [book.path.name]


# --- books that cannot be written ---------------------------------------------------------------------------------


def test_an_unwritable_book_is_said_once_and_the_experiment_goes_on(tmp_path, capsys):
    (tmp_path / "file").touch()
    impossible = Book(tmp_path / "file" / "book.sqlite3")
    for _ in range(2):
        with impossible.experiment("02", "goes on") as e:
            e.series("measured", DOUBLING)
            arrived = list(e.follow("live", [1, 2]))
        figure = growth_figure({"measured": DOUBLING})
        assert e.figure("growth", figure) is figure
        assert arrived == [1, 2]
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith(f"not recorded: lab book {impossible.path} cannot be used: ")
    assert "The experiment goes on." in said.err


def test_errors_of_the_experiment_pass_an_unwritable_book(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match="its own"), Book(tmp_path / "file" / "book").experiment("02", "x"):
        raise RuntimeError("its own")


FILL = """
import sys
from pathlib import Path
from lab_utils.labbook import Book
with Book(Path(sys.argv[1])).experiment("02", "large") as e:
    e.series("measured", [1, 2, 4])
    e.figure("too large", b"\\x89PNG\\r\\n\\x1a\\n" + bytes(2_000_000))
    e.series("later", [1])
print("went on")
"""


def run_python(code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, **options)


def test_a_full_disk_keeps_what_was_recorded_and_the_experiment_goes_on(book):
    record(book, [1])
    limit = 1_000_000
    done = run_python(FILL, book.path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert done.stdout == "went on\n"
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("not recorded: ")
    one = book.get(2)
    assert (one.state, one.find("measured").sizes, one.find("later")) == ("unfinished", [1, 2, 4], None)
    assert rows(book.path, "PRAGMA integrity_check") == [("ok",)]


def test_a_size_beyond_64_bits_does_not_stop_the_experiment(book, capsys):
    with book.experiment("02", "goes on") as e:
        e.series("measured", [SimpleNamespace(dims=(1,), nbytes=2**70)])
    assert capsys.readouterr().err.startswith("not recorded: ")


def test_a_locked_book_is_said_and_the_experiment_goes_on(book, capsys, monkeypatch):
    record(book, [1])
    monkeypatch.setattr(labbook_schema, "WAIT_SECONDS", 0.1)
    with contextlib.closing(sqlite3.connect(book.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        record(book, [1])
        assert len(book.experiments()) == 1  # readers wait for nobody
    assert "database is locked" in capsys.readouterr().err


def test_a_book_in_a_read_only_folder_is_read(book, monkeypatch):
    record(book, DOUBLING)
    connect = labbook_schema._connect

    def refused(*_: object) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    def without_wal_files(path: Path, options: str = "") -> object:
        assert options in ("", "?immutable=1")
        return connect(path, options) if options else SimpleNamespace(execute=refused, close=lambda: None)

    monkeypatch.setattr(labbook_schema, "_connect", without_wal_files)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert book.get(1).series[0].sizes == DOUBLING


# --- several processes --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writers(path: Path, names: list[str], count: int):
    """Processes that are about to write; they end with the block."""
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, str(WRITER), str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = [subprocess.Popen([*command, name, str(count)], env=environment, **options) for name in names]
    try:
        for one in started:
            assert one.stdout.readline() == "ready\n"
        yield started
    finally:
        for one in started:
            one.kill()
            one.communicate()


def start_all(started: list[subprocess.Popen]) -> None:
    for one in started:
        one.stdin.write("go\n")
        one.stdin.flush()


def test_several_processes_write_at_once_into_a_book_that_is_not_there_yet(book):
    names, count = ["a", "b", "c", "d"], 15
    with writers(book.path, names, count) as started:
        start_all(started)
        outputs = [one.communicate(timeout=120) for one in started]
    assert [errors for _, errors in outputs] == [""] * len(names)
    found = book.experiments()
    assert sorted((one.lesson, one.title) for one in found) == sorted(
        (n, f"run {i}") for n in names for i in range(count)
    )
    assert all(one.state == "finished" and one.outcome.came_true for one in found)
    assert rows(book.path, "PRAGMA journal_mode") == [("wal",)]
    assert rows(book.path, "PRAGMA integrity_check") == [("ok",)]


def test_several_processes_bring_an_old_book_up_to_date_at_once(old_book):
    with writers(old_book.path, ["a", "b", "c"], 2) as started:
        start_all(started)
        outputs = [one.communicate(timeout=120) for one in started]
    assert [errors for _, errors in outputs] == [""] * 3
    assert len(old_book.experiments()) == 1 + 3 * 2


def test_a_killed_process_loses_nothing_that_it_had_recorded(book):
    acknowledged = []
    for attempt in range(3):
        with writers(book.path, [f"killed {attempt}", "killed too"], 0) as started:
            start_all(started)
            for one in started:
                lines = [one.stdout.readline() for _ in range(3 + attempt)]
                one.send_signal(signal.SIGKILL)
                lines += one.communicate()[0].splitlines()
                acknowledged += [int(line.split()[0]) for line in lines if line.strip()]
    found = {one.id: one for one in book.experiments()}
    assert len(acknowledged) >= 2 * (3 + 4 + 5)
    assert all(found[number].state == "finished" and found[number].outcome.came_true for number in acknowledged)
    assert rows(book.path, "PRAGMA integrity_check") == [("ok",)]
    number = record(book, [1])  # the book goes on
    assert number == max(found) + 1


KILLED = """
import os, signal, sys
from pathlib import Path
from lab_utils.labbook import Book
with Book(Path(sys.argv[1])).experiment("03", "killed", predicted=[1, 2, 4]) as e:
    for size in e.follow("measured", [1, 2, 4]):
        if size == 2:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_experiment_stays_visible_as_unfinished(book):
    assert run_python(KILLED, book.path).returncode == -signal.SIGKILL
    (one,) = book.experiments()
    assert (one.state, one.ended, one.failure) == ("unfinished", None, None)
    assert one.find("measured").sizes == [1, 2]
