"""What benchmarks/README.md shows is what benchmarks/results/ holds; so are the words of the project's README."""

import ast
import json
import re
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from lab_utils.server import MODEL_REPOSITORY

ROOT = MODEL_REPOSITORY.parent
FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def report() -> Iterator[ModuleType]:
    """The benchmarks' report as a module; their folder is on the path for as long as these tests last."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        import report

        yield report
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_every_benchmark_is_in_the_report_and_has_results(report):
    measuring = {path.stem for path in FOLDER.glob("*.py") if "def measure() -> dict" in path.read_text("utf-8")}
    assert measuring == set(report.BENCHMARKS)
    assert {path.stem for path in (FOLDER / "results").glob("*.json")} - {"gpu"} == set(report.BENCHMARKS)


def test_the_readme_is_made_of_the_results(report):
    """Every row's values, whether its target was reached, and what stands below each explanation."""
    readme = report.README.read_text(encoding="utf-8")
    assert report.readme(readme) == readme


def test_another_result_makes_another_readme(report, monkeypatch):
    def changed(name: str) -> dict:
        text = (FOLDER / "results" / f"{name}.json").read_text(encoding="utf-8")
        return json.loads(text, parse_float=lambda number: 1.5 * float(number))

    readme = report.README.read_text(encoding="utf-8")
    for name in report.BENCHMARKS:
        with monkeypatch.context() as patch:
            load = report.load
            patch.setattr(
                report, "load", lambda asked, name=name, load=load: (changed if asked == name else load)(asked)
            )
            assert report.readme(readme) != readme, name


def test_a_readme_without_a_part_is_refused(report):
    readme = report.README.read_text(encoding="utf-8").replace("<!-- growth -->", "")
    with pytest.raises(ValueError, match="no part for growth"):
        report.readme(readme)


def test_the_table_has_no_empty_cell(report):
    rows = report.all_rows()
    assert len(rows) >= 18
    for row in rows:
        assert all(cell.strip() for cell in report._cells(row)), row
        assert row.figure.least <= row.figure.median <= row.figure.most, row
        assert row.bound > 0, row


def test_only_what_is_generated_holds_measured_numbers(report):
    """The explanations say what is done, the generated parts what was found."""
    prose = report.PART.sub("", report.README.read_text(encoding="utf-8"))
    assert not re.findall(r"\d[\d,.]* (?:tokens/s|µs|ms|times|%)", prose)


def test_no_benchmark_fails_because_of_a_time():
    """An `assert` may say that both sides did the same work; it never looks at a clock or a ratio."""
    words = re.compile(r"second|median|ratio|rate\b|elapsed|perf_counter|faster|bound")
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assert):
                assert not words.search(ast.unparse(node.test)), f"{path.name}:{node.lineno}"


def test_the_words_of_the_projects_readme_hold(report):
    """C++, one stream: over twice as fast as Python."""
    one = report.load("custom_backend")["one stream"]
    assert one["pipelines"]["all in C++"]["times_python"]["median"] > 2


def test_rounds_take_turns(report):
    from side_by_side import in_turns, ratios, spread

    calls = []
    cases = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    found = in_turns(cases, 3)
    assert calls == ["a", "b"] + ["a", "b"] * 3, "each once to warm up, then in turns"
    assert found == {"a": [3, 5, 7], "b": [4, 6, 8]}
    assert (spread([3, 1, 2]).median, spread([3, 1, 2]).least, spread([3, 1, 2]).most) == (2, 1, 3)
    assert ratios({"a": [2.0, 9.0], "b": [1.0, 3.0]}, "a", "b").least == 2


@pytest.mark.parametrize(
    ("median", "bound", "least", "reached"), [(1, 1, True, 1), (0.9, 1, True, 0), (2, 1, False, 0)]
)
def test_a_row_says_whether_its_target_was_reached(report, median, bound, least, reached):
    from side_by_side import Row, Spread

    row = Row("a", "b", "c", "d", Spread(median, median, median), bound, least)
    assert row.reached is bool(reached)
