"""What the lessons recorded while nbval ran them; `make test` runs this behind nbval, on the book in LAB_BOOK."""

import os
from pathlib import Path

import pytest

from lab_utils.labbook import Book, open_book
from lab_utils.labbook_entries import Experiment
from lab_utils.labbook_report import export

LESSONS = [path.stem[:2] for path in sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9]*.ipynb"))]


@pytest.fixture(scope="module")
def book() -> Book:
    assert "LAB_BOOK" in os.environ, "set LAB_BOOK to the book that nbval's run wrote, as `make test` does"
    return open_book()


@pytest.fixture(scope="module")
def experiments(book: Book) -> list[Experiment]:
    found = book.experiments()
    assert found, f"{book.path} is empty: nbval recorded nothing"
    return found


def test_every_lesson_recorded(experiments):
    assert sorted({experiment.lesson[:2] for experiment in experiments}) == LESSONS


def test_every_experiment_ended_as_its_lesson_meant_it(experiments):
    """Only lesson 06 has failures: what a contract or a guard refused."""
    refused = [each for each in experiments if each.state != "finished"]
    assert {(each.lesson[:2], each.state, each.failure.partition(":")[0]) for each in refused} == {
        ("06", "failed", "StreamError")
    }
    kept = [each for each in experiments if each not in refused]
    assert [each.title for each in kept if not (each.series or each.numbers or each.verdicts)] == []


def test_the_main_results_are_in_the_book(experiments):
    found = {each.title: each for each in reversed(experiments)}  # the first of each title
    assert [found["the reported sentence"].find("measured").sizes[n] for n in (0, 1, 7)] == [1, 2, 128]
    assert found["as far as this machine can go"].outcome
    edge = found["ids sent by inference and received by postprocess"]
    assert "verdict: inference" in "".join(edge.verdicts)
    assert edge.figures
    assert [number.value for number in found["200 characters: which start it?"].numbers] == [0, 0, 50, 50]


def test_the_report_tells_every_experiment(book, experiments, tmp_path):
    report = next(path for path in export(book, tmp_path) if path.suffix == ".html").read_text(encoding="utf-8")
    assert [each.title for each in experiments if each.title not in report] == []
    assert report.count("data:image/png;base64,") >= 3
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert "https://" not in report
