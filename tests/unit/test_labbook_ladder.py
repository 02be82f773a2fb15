"""The ladder: the same experiment on many ensembles, on one page."""

import numpy as np
import pytest

from lab_utils.client import Observation, StreamError, StreamResult
from lab_utils.labbook import Book
from lab_utils.labbook_ladder import ladders
from lab_utils.labbook_report import report

LADDER = {
    "ensemble_append": [1, 2, 4, 8],
    "ensemble_release": [1, 2, 4, 8],
    "ensemble_replace": [1, 2, 3, 1],
    "ensemble_latest": [1, 1, 1, 1],
}


def streamed(sizes: list[int], text: str = "", heap: int | None = None) -> StreamResult:
    def observation(n: int, size: int) -> Observation:
        ids = np.zeros(size, dtype=np.int32)
        return Observation(n, ids.shape, ids.nbytes, n / 100, ids, text, n, False, heap and heap - n)

    return StreamResult(tuple(observation(n, size) for n, size in enumerate(sizes, 1)))


def record(book: Book, ensemble: str, sizes: list[int], prompt: str = "p", **more: object) -> int:
    with book.experiment("05 test", "a run", ensemble=ensemble, prompt=prompt) as e:
        e.stream(streamed(sizes, **more))
    return e.id


@pytest.fixture
def book(tmp_path) -> Book:
    return Book(tmp_path / "book.sqlite3")


def test_every_rung_stands_on_one_page(book):
    for ensemble, sizes in LADDER.items():
        record(book, ensemble, sizes, text="茶", heap=5_001)
    (ladder,) = ladders(book.experiments())
    assert {rung.ensemble: rung.sizes for rung in ladder.rungs} == LADDER
    assert [rung.ensemble for rung in ladder.rungs] == list(LADDER)
    assert [rung.nbytes for rung in ladder.rungs] == [60, 60, 28, 16]
    assert {(rung.heap, rung.text) for rung in ladder.rungs} == {(5_000, "茶茶茶茶")}
    assert [rung.time_per_token for rung in ladder.rungs] == pytest.approx([0.01] * 4)
    assert str(ladder).splitlines() == [
        "prompt: p",
        "ensemble          sizes of the messages  bytes in all  largest heap  ms per token  text",
        "----------------  ---------------------  ------------  ------------  ------------  --------",
        *(
            f"{ensemble:16}  {' '.join(map(str, sizes)):21}  {4 * sum(sizes):12}  4.883 KiB            10.00  茶茶茶茶"
            for ensemble, sizes in LADDER.items()
        ),
    ]


def test_of_each_ensemble_the_newest_run_counts(book):
    for sizes in ([1, 1], [1, 2], [1, 3]):
        record(book, "a", sizes)
        record(book, "b", sizes)
    (ladder,) = ladders(book.experiments())
    assert [(rung.ensemble, rung.sizes) for rung in ladder.rungs] == [("a", [1, 3]), ("b", [1, 3])]


def test_only_runs_with_the_same_settings_stand_together(book):
    for prompt in ("one", "two"):
        record(book, "a", [1], prompt)
        record(book, "b", [1], prompt)
    record(book, "c", [1], "two")
    record(book, "a", [1], "alone")
    first, second = ladders(book.experiments())
    assert (first.configuration, len(first.rungs)) == ({"prompt": "two"}, 3)
    assert (second.configuration, len(second.rungs)) == ({"prompt": "one"}, 2)


def test_of_equal_ladders_the_newest_comes_first(book):
    for prompt in ("one", "two", "one"):
        record(book, "a", [1], prompt)
        record(book, "b", [1], prompt)
    assert [ladder.configuration["prompt"] for ladder in ladders(book.experiments())] == ["one", "two"]


def test_a_run_that_broke_off_shows_what_had_arrived_and_why(book):
    record(book, "a", [1, 2])
    error = StreamError("the server ended the stream: Expected [1], got [2].", streamed([1]).observations)
    with pytest.raises(StreamError), book.experiment("06", "strict", ensemble="b", prompt="p"):
        raise error
    (ladder,) = ladders(book.experiments())
    assert ladder.rungs[1].sizes == [1]
    assert ladder.rungs[1].text.startswith("failed: StreamError: the server ended")
    assert "failed: StreamError" in str(ladder)


def test_what_a_run_did_not_record_is_a_dash(book):
    for ensemble in ("a", "b"):
        with book.experiment("05", "sizes alone", ensemble=ensemble) as e:
            e.series("measured", [1, 2])
    (ladder,) = ladders(book.experiments())
    rung = ladder.rungs[0]
    assert (rung.nbytes, rung.heap, rung.time_per_token, rung.text) == (None,) * 4
    lines = str(ladder).splitlines()
    assert lines[0] == "no further settings"
    assert lines[-1].split() == ["b", "1", "2", "-", "-", "-", "-"]


def test_runs_without_ensemble_or_measurement_make_no_ladder(book):
    for number in range(2):
        with book.experiment("05", "no ensemble", prompt="p") as e:
            e.series("measured", [1])
        with book.experiment("05", "nothing measured", ensemble=str(number), prompt="p") as e:
            e.series("measured", [])
    assert ladders(book.experiments()) == ladders([]) == []


def test_a_long_run_and_a_long_text_fit_into_the_page(book):
    for ensemble in ("a", "b"):
        record(book, ensemble, [2**n for n in range(20)], prompt="p" * 500, text="茶\x1b[31m" * 50)
    text = str(ladders(book.experiments())[0])
    assert "1 2 4 8 … 524,288" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 140


def test_the_report_has_a_table_of_each_ladder(book):
    record(book, "ensemble_append", [1, 2, 4, 8])
    assert "ladders" not in report(book, book.experiments())
    record(book, "<b>latest</b>", [1, 1, 1, 1], text="茶", heap=5_001)
    page = report(book, book.experiments())
    assert '<a href="#ladders">' in page
    assert '<section id="ladders">' in page
    cells = ("ensemble_append", "1 2 4 8", "60", "-", "10", "-")
    assert f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" in page
    assert "<td>&lt;b&gt;latest&lt;/b&gt;</td><td>1 1 1 1</td><td>16</td><td>4.883 KiB</td>" in page


def test_the_figure_has_a_line_for_each_ensemble_and_six_at_most(book):
    for ensemble in "abcdefgh":
        record(book, ensemble, [1, 2])
    (ladder,) = ladders(book.experiments())
    linear, log2 = ladder.figure().axes[:2]
    assert {text.get_text() for text in linear.texts} >= set("cdefgh")
    assert not {text.get_text() for text in linear.texts} & set("ab")
    assert len(log2.get_lines()) == 6
    assert len(ladder.rungs) == 8
