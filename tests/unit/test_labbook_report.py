"""The exported report, its data, and the command line of the lab book."""

import argparse
import base64
import csv
import functools
import io
import json
import re
import sqlite3
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from lab_utils.labbook import Book
from lab_utils.labbook_cli import add_command
from lab_utils.labbook_report import COLUMNS, data_of, export, report, table_of
from lab_utils.plots import growth_figure

DOUBLING = [1, 2, 4, 8]
NASTY = "<script>alert(1)</script> & \"quotes\" '香草' </style>"


@functools.cache
def png() -> bytes:
    return growth_figure({"measured": DOUBLING})._repr_png_()[0]


class Page(HTMLParser):
    """The tags, attributes and text of a page. Tags that were not closed in order are an error."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.parts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.parts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def book(tmp_path, monkeypatch) -> Book:
    path = tmp_path / "book.sqlite3"
    monkeypatch.setenv("LAB_BOOK", str(path))
    return Book(path)


def record(book: Book, sizes: list, lesson: str = "02 the doubling bug", title: str = "a run", **more: object) -> int:
    with book.experiment(lesson, title, **more) as e:
        e.series("measured", sizes)
    return e.id


@pytest.fixture
def filled(book) -> Book:
    """A failed and an unfinished experiment, one of a later lesson first, a long one, and a pair before and after."""
    record(book, DOUBLING, "10 capstone", "the last lesson, recorded first")
    with book.experiment("02 the doubling bug", "rung 1", predicted=DOUBLING, ensemble="append", prompt="茶") as e:
        e.series("measured", DOUBLING)
        e.number("peak memory", 5.2500001234, "GiB")
        e.number("ids", 134_217_728)
    e.verdict("exponential, exact")
    e.figure("growth", png(), alt="Every message is twice as long.")
    e.note("seen on the first try")
    record(book, [1, 1, 1, 1], title="rung 4", predicted=[1, 1, 1, 2], ensemble="latest", prompt="茶")
    with pytest.raises(ValueError, match="no such model"), book.experiment("03 find the node", "failing"):
        raise ValueError("no such model")
    book.experiment("03 find the node", "killed").__enter__()
    record(book, list(range(1, 101)), "03 find the node", "a long run")
    return book


def page_of(book: Book) -> Page:
    return Page(report(book, book.experiments()))


# --- the report ---------------------------------------------------------------------------------------------------


def test_the_report_tells_each_experiment_whole(filled):
    text = page_of(filled).text
    for part in (
        "6 experiments in 3 lessons",
        "1 of 2 predictions of sizes came true",
        "Predicted 1, 2, 4, 8",
        "Predicted Nothing was written down before the run.",
        "Came true: yes, at all 4 iterations.",
        "Came true: no: at iteration 4, 2 was predicted and 1 measured.",
        "Configuration ensemble append prompt 茶",
        "exponential: dims(n) = 1 * 2^(n-1), exact for all 4 points",
        "peak memory 5.25 GiB ids 134,217,728",
        "Verdict exponential, exact",
        "growth . Every message is twice as long.",
        "Notes seen on the first try",
        "Failure ValueError: no such model",
        "no end was recorded",
        "Before against after",
        "ensemble: append -> latest. They part at iteration 2: [2] before, [1] after.",
    ):
        assert part in text.replace("growth.", "growth .")


def test_lessons_come_in_order_and_the_contents_link_to_each(filled):
    page = page_of(filled)
    ids = [each["id"] for each in page.all("article") if "id" in each]
    assert ids == [f"experiment-{number}" for number in (2, 3, 4, 5, 6, 1)]
    anchors = {each["id"] for _, each in page.tags if "id" in each}
    links = [each["href"] for each in page.all("a")]
    assert all(link.startswith("#") and link[1:] in anchors for link in links)
    assert set(links) >= {f"#{name}" for name in (*ids, "lesson-1", "lesson-2", "lesson-3", "before-after")}
    assert len(anchors) == len([each for _, each in page.tags if "id" in each])


def test_the_report_needs_no_other_file_and_no_network(filled):
    text = report(filled, filled.experiments())
    page = Page(text)
    addresses = [each[key] for _, each in page.tags for key in ("src", "href") if key in each]
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in addresses)
    assert not re.search(r"https?:|url\(|@import", text)
    assert page.all("script") == page.all("link") == []


def test_figures_are_inside_with_alternative_text(filled):
    images = page_of(filled).all("img")
    assert base64.b64decode(images[0]["src"].partition(",")[2]) == png()
    assert images[0]["alt"] == "Every message is twice as long."
    assert len(images) == 2  # the second is before against after
    assert all(each["alt"].strip() for each in images)


def test_a_figure_without_words_points_to_the_numbers(book):
    with book.experiment("02", "no words") as e:
        e.figure("growth", png())
    assert page_of(book).all("img")[0]["alt"] == "growth: the numbers are in the tables of experiment 1"


def test_any_text_is_shown_and_none_is_taken_as_html(book):
    with book.experiment(NASTY, NASTY, predicted=NASTY, **{NASTY: NASTY}) as e:
        e.series(NASTY, DOUBLING, unit=NASTY)
        e.number(NASTY, 1, NASTY)
        e.verdict(NASTY)
        e.note(NASTY)
        e.figure(NASTY, png(), alt=NASTY)
    page = page_of(book)
    assert page.all("script") == []
    assert len(page.all("style")) == 1
    assert page.text.count(NASTY) >= 12
    assert page.all("img")[0]["alt"] == NASTY


def test_control_characters_are_replaced(book):
    record(book, [1], title="a\x00b\x1b[31m\x08", prompt="\x00")
    assert "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}[31m" in page_of(book).text
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", report(book, book.experiments()) + table_of(book.experiments()))


def test_a_long_series_is_shortened_and_says_so(filled):
    text = Page(report(filled, [filled.get(6)])).text
    table = text[text.index("iteration dims") : text.index("Exported")]
    shown = [*range(1, 11), 97, 98, 99, 100]
    gap = "… 86 more iterations, in data.csv …"
    expected = " ".join(f"{n} {n}" for n in shown).replace("10 10 97", f"10 10 {gap} 97")
    assert table.strip() == f"iteration dims {expected}"


def test_what_differs_from_the_prediction_is_marked(filled):
    cells = [each for each in page_of(filled).all("td") if each.get("class") == "differs"]
    assert len(cells) == 1


def test_shapes_scalars_and_empty_series(book):
    record(book, [[1, 8], [2, 8], []])
    record(book, [])
    text = page_of(book).text
    assert "1 1 × 8 2 2 × 8 3 scalar" in text
    assert "nothing arrived" in text


def test_an_empty_book_says_what_to_do(book):
    assert "No experiment is recorded here yet. Run a lesson" in page_of(book).text


def test_a_book_of_hundreds(book):
    for number in range(100):
        record(book, DOUBLING, f"{number % 4:02} lesson", f"run {number}", ensemble=f"e{number % 4}", prompt="p")
    page = page_of(book)
    assert "100 experiments in 4 lessons" in page.text
    assert len(page.all("img")) == 3  # before against after: only the newest of each ensemble


# --- the data -----------------------------------------------------------------------------------------------------


def test_the_csv_has_a_row_for_each_iteration(filled):
    rows = list(csv.DictReader(io.StringIO(table_of(filled.experiments()))))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 3 * 4 + 100
    first = rows[4]
    expected = {"experiment": "2", "lesson": "02 the doubling bug", "ensemble": "append", "series": "measured"}
    assert first | expected == first
    assert [row["size"] for row in rows[4:8]] == [row["predicted_size"] for row in rows[4:8]] == ["1", "2", "4", "8"]
    assert [row["dims"] for row in rows[4:6]] == ["[1]", "[2]"]


def test_the_csv_keeps_commas_quotes_and_line_ends(book):
    record(book, [1], title='a, "b"\nc')
    (row,) = csv.DictReader(io.StringIO(table_of(book.experiments())))
    assert row["title"] == 'a, "b"\nc'


def test_the_json_has_all_but_the_pictures(filled):
    entries = json.loads(data_of(filled.experiments()))["experiments"]
    one = next(each for each in entries if each["title"] == "rung 1")
    assert one["configuration"] == {"ensemble": "append", "prompt": "茶"}
    assert one["outcome"] == {"came_true": True, "text": "yes, at all 4 iterations"}
    assert one["numbers"][0] == {"name": "peak memory", "value": 5.2500001234, "unit": "GiB"}
    assert [point["dims"] for point in one["series"][0]["points"]] == [[1], [2], [4], [8]]
    assert one["figures"] == [{"id": 1, "name": "growth", "alt": "Every message is twice as long."}]
    assert {each["state"] for each in entries} == {"finished", "failed", "unfinished"}


def test_export_writes_three_files_and_again(filled, tmp_path):
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        paths = export(filled, folder)
    assert [path.name for path in paths] == ["report.html", "data.csv", "data.json"]
    assert sorted(path.name for path in folder.iterdir()) == ["data.csv", "data.json", "report.html"]
    assert "rung 1" in paths[0].read_text(encoding="utf-8")


# --- the command line ---------------------------------------------------------------------------------------------


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers(required=True))
    parsed = parser.parse_args(["labbook", *map(str, arguments)])
    return parsed.run(parsed)


def test_list(filled, capsys):
    assert run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.split(r"  +", lines[0]) == ["id", "when (UTC)", "lesson", "title", "sizes", "result"]
    assert [line.split()[0] for line in lines[2:]] == list("123456")
    results = [re.split(r"  +", line)[-1] for line in lines[2:]]
    assert results == ["-", "as predicted", "not as predicted", "failed", "unfinished", "-"]
    assert re.split(r"  +", lines[3])[2:4] == ["02", "rung 1"]
    assert "1 2 3 4 … 100" in lines[7]
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        (["--lesson", "02"], "23"),
        (["--ensemble", "latest"], "3"),
        (["--text", "NO SUCH"], "4"),
        (["--since", "2000-01-01", "--lesson", "10"], "1"),
    ],
)
def test_list_filtered(filled, capsys, filters, ids):
    assert run("list", *filters) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == list(ids)


def test_list_of_nothing(book, capsys):
    assert run("list") == 0
    record(book, [1])
    assert run("list", "--lesson", "99") == 0
    assert capsys.readouterr().out == 2 * "no experiment is recorded here: run a lesson, or ask for less\n"


def test_show(filled, capsys):
    assert run("show", 2) == 0
    said = capsys.readouterr().out
    for part in (
        "2. rung 1",
        "predicted: [1, 2, 4, 8]",
        "came true: yes",
        "verdict: exponential",
        "peak memory: 5.25 GiB",
    ):
        assert part in said
    for number in (1, 3, 4, 5, 6):
        assert run("show", number) == 0
    with pytest.raises(ValueError, match="no experiment 77"):
        run("show", 77)


def test_show_keeps_apart_what_was_configured_and_what_the_server_told(book, capsys):
    server = SimpleNamespace(metadata={"version": "2.51.0"}, device="GPU: real")
    record(book, [1], server=server, device="asked for")
    run("show", 1)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith(("server", "device"))] == [
        "device: asked for",
        "server: 2.51.0",
        "device: GPU: real",
    ]


def test_a_title_cannot_steer_the_terminal(book, capsys):
    for prompt in ("\x1b[2J", "\x1b[3J"):
        record(book, [1], title="\x1b[2J\r", lesson="\x1b]0;x\x07", prompt=prompt)
    run("list")
    run("show", 1)
    run("compare", 1, 2)
    assert not set("\x1b\r\x07") & set(capsys.readouterr().out)


def test_a_title_of_two_lines_is_listed_in_one(book, capsys):
    record(book, [1], title="one\ntwo")
    run("list")
    assert "one two" in capsys.readouterr().out.splitlines()[2]


def test_letters_of_any_script_are_shown(book, capsys):
    record(book, [1], title="香草\u3000茶匙")
    run("list")
    assert "香草\u3000茶匙" in capsys.readouterr().out


def test_compare(filled, capsys, tmp_path):
    assert run("compare", 2, 3, "--figure", tmp_path / "new" / "figure.png") == 0
    said = capsys.readouterr().out
    assert said.startswith("ensemble: append -> latest. They part at iteration 2: [2] before, [1] after.\n")
    assert (tmp_path / "new" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert run("compare", 2, 2) == 0
    assert "The same dims in all 4 iterations" in capsys.readouterr().out


def test_export_to_the_default_folder_and_filtered(filled, capsys):
    assert run("export") == 0
    assert "6 experiment(s)" in capsys.readouterr().out
    folder = filled.path.parent / "lab_book_report"
    assert (folder / "report.html").exists()
    assert run("export", "--out", folder, "--lesson", "02") == 0
    assert "10 capstone" not in (folder / "report.html").read_text(encoding="utf-8")


def test_path(book, capsys):
    assert run("path") == 0
    assert capsys.readouterr().out == f"{book.path} (not there yet: run a lesson first)\n"
    record(book, [1])
    assert run("path") == 0
    assert capsys.readouterr().out == f"{book.path}\n"


def test_a_file_that_is_no_book_is_an_error_that_main_shows(book):
    sqlite3.connect(book.path).execute("CREATE TABLE other (id)")
    with pytest.raises(OSError, match="is not a lab book"):
        run("list")
