"""The capstone on real servers: what each fault shows, and a case from the first stream to the graded patch."""

import functools
import re
import tempfile
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import make_capstone  # noqa: F401 (it makes the sources importable)
import nbformat
import pytest
from family import ensemble, write_faults
from faults import FAULTS

from lab_utils import capstone, capstone_cases, capstone_grading, trace
from lab_utils.capstone_grading import ENOUGH, asker, differences, grade, hidden_runs
from lab_utils.client import StreamError, stream
from lab_utils.exercise_kinds import NOT_ANSWERED
from lab_utils.labbook import open_book
from lab_utils.server import TritonServer, start_server
from lab_utils.trace_tracks import tracks
from lab_utils.verdict import judge
from lab_utils.watch import watch

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "10_capstone.ipynb"
BATTERY = (
    ("tea for two", ENOUGH),
    ("one cup", ENOUGH),
    (" 茶匙 é ½ 😀", ENOUGH),
    ("flour and butter, 250 grams of each", ENOUGH),
    ("sugar", 3),
)
TOGETHER = (("茶匙香草精" * 3, ENOUGH), ("é" * 20, ENOUGH), ("😀" * 8, ENOUGH))
ALL = {"number of messages", "lengths", "ids", "index", "end", "text"}


@dataclass(frozen=True)
class Shows:
    """What a fault shows: differences at the client, one stream after the other; node and law by the trace's verdict;
    node that the alarm names; and whether it takes streams side by side to see it."""

    client: set[str]
    verdict: tuple[str, str] | None = None
    alarm: str | None = None
    side_by_side_only: bool = False


SHOWS = {
    "buffer appended": Shows({"error"}, ("generate", "exponential"), "generate"),
    "answer kept": Shows({"lengths", "ids", "text"}, ("generate", "linear")),
    "text kept": Shows({"text"}, ("decode", "linear")),
    "parallel consumer": Shows({"ids", "index", "text"}),
    "one decoder for all": Shows(set(), side_by_side_only=True),
    "context kept": Shows({"ids", "text"}),
    "end of a cut answer lost": Shows({"end"}),
    "index counts characters": Shows({"index"}),
    "id of the step before": Shows({"ids", "text"}),
    "long integers": Shows({"error"}),
    "character held back": Shows({"text"}),
    "characters made simple": Shows(ALL),
    "prompt cut": Shows(ALL),
}


FAULT = next(fault for fault in FAULTS if fault.name == "character held back")


# --- every fault, on one server -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trace_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trace") / "trace.json"


@pytest.fixture(scope="module")
def family(_nothing_left_behind: None, tmp_path_factory: pytest.TempPathFactory, trace_file: Path):
    folder = tmp_path_factory.mktemp("models")
    with start_server(write_faults(folder), repository=folder, flags=trace.server_flags(trace_file)) as server:
        yield server


def numbered(name: str) -> str:
    return ensemble([fault.name for fault in FAULTS].index(name) + 1)


def ask_battery(server: TritonServer, model: str) -> set[str]:
    """Kinds of differences over the battery, one stream after the other, with request ids of its own."""
    found: set[str] = set()
    for n, (prompt, most) in enumerate(BATTERY):
        try:
            answer = stream(server, model, prompt, most, request_id=f"{model} {n}")
        except StreamError as error:
            answer = error
        found |= {each.partition(":")[0] for each in differences(answer, prompt, most)}
    return found


def verdict_of(trace_file: Path, model: str) -> tuple[str, str] | None:
    trace.wait_for(trace_file, f"{model} {len(BATTERY) - 1}")
    requests = trace.requests(trace.read(trace_file))
    verdict = judge(tracks(one for one in requests if one.request_id.startswith(f"{model} ")))
    return (verdict.node.partition("_")[0], verdict.kind) if verdict.node else None


def side_by_side_differs(server: TritonServer, model: str) -> bool:
    answers = asker(server, model)(TOGETHER)
    return any(differences(answer, *request) for answer, request in zip(answers, TOGETHER, strict=True))


@pytest.mark.parametrize("name", [fault.name for fault in FAULTS])
def test_what_a_fault_shows(family, trace_file, name):
    model, shows = numbered(name), SHOWS[name]
    with watch(family) as seen:
        client = ask_battery(family, model)
    assert client == shows.client or (name == "parallel consumer" and client >= {"index"})
    assert verdict_of(trace_file, model) == shows.verdict
    assert {alarm.node.partition("_")[0] for alarm in seen.alarms[:1]} == ({shows.alarm} - {None})
    if shows.side_by_side_only:
        assert side_by_side_differs(family, model)


def test_the_healthy_pipeline_shows_nothing(family, trace_file):
    with watch(family) as seen:
        assert ask_battery(family, ensemble(0)) == set()
    assert (verdict_of(trace_file, ensemble(0)), seen.alarms) == (None, ())
    assert not side_by_side_differs(family, ensemble(0))


@pytest.mark.parametrize("name", [fault.name for fault in FAULTS])
def test_the_shipped_fault_fails_the_hidden_runs(family, name):
    assert not all(run.right for run in grade(asker(family, numbered(name)), hidden_runs(1)))


def test_the_healthy_pipeline_passes_the_hidden_runs(family):
    assert [run for run in grade(asker(family, ensemble(0)), hidden_runs(1)) if not run.right] == []


# --- a case, from the first stream to the grade -------------------------------------------------------------------


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("LAB_BOOK", str(tmp_path / "book.sqlite3"))
    return tmp_path / "book.sqlite3"


@pytest.fixture
def case(_nothing_left_behind: None, book: Path) -> Iterator[capstone.Case]:
    """Case 22, the one that the lesson ships with."""
    with capstone.open_case(22) as opened:
        yield opened
    opened.close()
    assert not opened.trace_file.parent.exists()
    assert not opened.server.running


def notebook_answers() -> list[str]:
    """Diagnosis and patch of the lesson's own solutions, each with the last line of its cell."""
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells]
    assert "otherwise=22" in cells[1]
    shipped = [source for source in cells if re.search(r"^print\(case\.(diagnose|patch)\(", source, re.M)]
    assert all("= ..." in source or "= ..., ..." in source for source in shipped)
    solutions = re.findall(r"```python\n((?:node, law|patched) = .*?)```", "\n".join(cells), re.S)
    return [right + source.splitlines()[-1] for source, right in zip(shipped, solutions, strict=True)]


def run(code: str, case: capstone.Case) -> str:
    said: list[str] = []
    exec(code, {"case": case, "print": said.append})
    return said[0]


def test_a_case_with_the_solutions_of_the_lesson(case, book, capsys):
    diagnosis, patch = notebook_answers()
    capsys.readouterr()
    shown = repr(case) + str(case.report) + case.server.log + case.laws()
    assert not [line for line in FAULT.source.splitlines() if "kept" in line and line in shown]
    assert "kept" not in case.server.log
    assert case.patch(FAULT.solved) == case.grade() == case.source() == capstone.CLOSED
    assert case.diagnose(..., "late") == case.diagnose("encode", ...) == NOT_ANSWERED
    assert case.diagnose("encoder", "late").startswith("not counted: expected a node of encode, generate, decode")

    said = case.diagnose("generate", "held_back")
    assert said.startswith("not right (try 1 of 3)\ngenerate does not fit: it sends the ids that it was given")
    assert "decode" not in said
    assert case.source() == capstone.CLOSED
    assert run(diagnosis, case) == "right: decode, held_back. The node decode is open: print(case.source())"
    assert case.source() == FAULT.source
    assert case.patch(...) == NOT_ANSWERED
    assert case.grade() == "nothing to grade yet: hand in a source with case.patch(...)"

    assert case.patch(FAULT.patches["flushed at the end"]).startswith("loaded")
    report = case.grade()
    assert (report.diagnosis, report.patch) == ("right", "wrong")
    assert {problem for one in report.runs for problem in one.problems} == {"text per message"}
    assert run(patch, case).startswith("loaded")
    assert case.report.patch == "none"
    report = case.grade()
    assert report.verdict == "diagnosis right (try 2 of 3); patch right (13 of 13 hidden runs)"
    verdicts = [words for one in open_book(book).experiments(lesson="10") for words in one.verdicts]
    assert len(verdicts) == 2
    assert verdicts[-1] == report.verdict


def test_wrong_diagnosis_then_every_kind_of_patch(case, monkeypatch):
    monkeypatch.setattr(capstone, "asker", functools.partial(capstone_grading.asker, deadline=2.0))
    for law in ("late", "altered", "dtype"):
        assert f"{law} does not fit: it would show" in case.diagnose("encode", law)
    assert case.report.opened == "three tries"
    assert case.diagnose("decode", "held_back").startswith("the node is open")

    assert case.patch(5) == "not loaded: expected the source as text, got int"
    assert case.patch("def x(:\n    pass") == "not loaded: line 1: invalid syntax: def x(:"
    assert case.patch("x = 1").startswith("not loaded: it has no class TritonPythonModel")
    said = case.patch(FAULT.solved + "\nimport nothing_of_this_name\n")
    assert said.startswith("not loaded, the node is as it was: ")
    assert "No module named 'nothing_of_this_name'" in said
    assert case.stream("tea").lengths == [1, 1, 1]

    head = "        decoder = self.decoders"
    for statement, words in (("os._exit(1)", "the Python process (stub) of decode"), ("time.sleep(3600)", "deadline")):
        assert case.patch(FAULT.solved.replace(head, f"        import os; {statement}\n{head}")).startswith("loaded")
        report = case.grade()
        assert report.verdict == (
            "diagnosis wrong (try 3 of 3); opened after three tries; patch wrong (0 of 13 hidden runs)"
        )
        assert words in report.runs[0].problems[0]
        assert report.runs[-1].problems == ("not tried: the pipeline no longer answers",)
        case.server.check()  # it was started anew


def test_giving_up_opens_the_node_and_is_reported(monkeypatch, tmp_path):
    server = types.SimpleNamespace(stop=lambda: None)
    case = capstone.Case(22, capstone_cases.draw(22), tempfile.TemporaryDirectory(dir=tmp_path), server)
    assert case.give_up() == case.give_up() == "The node decode is open: print(case.source())"
    assert case.source() == FAULT.source
    assert case.report.verdict == "diagnosis none; opened on request; patch none"
    case.close()
