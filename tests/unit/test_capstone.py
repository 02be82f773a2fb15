"""The capstone without a server: the draw, what is shown before the diagnosis, and the grading of every patch."""

import json
import tempfile
import zlib
from collections import Counter
from pathlib import Path

import make_capstone  # it makes the sources importable
import pytest
from faults import FAULTS, NODES, healthy
from simulated import Pipeline

from lab_utils import capstone, capstone_cases, capstone_evidence, capstone_grading
from lab_utils.client import StreamError
from lab_utils.exercise_kinds import NOT_ANSWERED

SEED = 5
CASES = [(fault, name) for fault in FAULTS for name in fault.patches]
WORDS = ("doubling", "history", "order", "leak", "lost", "stale", "late", "held", "altered", "fault", "pending")


def pipeline(node: str = "", source: str = "") -> Pipeline:
    return Pipeline({name: healthy(name) for name in NODES} | ({node: source} if node else {}))


def graded(pipe: Pipeline, seed: int = SEED) -> list[capstone_grading.Graded]:
    return capstone_grading.grade(pipe.ask, capstone_grading.hidden_runs(seed))


def fails(pipe: Pipeline) -> bool:
    """Whether a hidden run goes wrong; those after it are not needed."""
    return any(not capstone_grading.grade(pipe.ask, [run])[0].right for run in capstone_grading.hidden_runs(SEED))


# --- the family ---------------------------------------------------------------------------------------------------


def test_what_is_shipped_is_packed_from_the_readable_sources():
    packed = zlib.decompress(capstone_cases.PACKED.read_bytes())
    assert json.loads(packed) == json.loads(zlib.decompress(make_capstone.packed())), "run tools/make_capstone.py"


def test_the_family_is_large_and_every_law_has_a_fault():
    assert len(FAULTS) >= 9
    assert {fault.law for fault in FAULTS} == set(capstone_evidence.LAWS)
    assert {fault.node for fault in FAULTS} == set(NODES) == set(capstone_evidence.RULES)
    assert all(len(fault.patches) >= 2 for fault in FAULTS)


def test_seeds_draw_every_fault_about_equally_often():
    drawn = Counter(capstone_cases.draw(seed).source for seed in range(100 * len(FAULTS)))
    assert set(drawn) == {fault.source for fault in FAULTS}
    assert all(50 < count < 150 for count in drawn.values())


def test_a_seed_draws_the_same_fault_each_time():
    assert capstone_cases.draw(7).source == capstone_cases.draw(7).source


@pytest.mark.parametrize("seed", ["7", 7.0, None, True])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(TypeError, match="expected a whole number"):
        capstone_cases.draw(seed)


def test_an_instructor_sets_the_seed(monkeypatch):
    monkeypatch.setenv("CAPSTONE_SEED", "42")
    assert capstone.choose_seed() == capstone.choose_seed(otherwise=7) == 42
    monkeypatch.setenv("CAPSTONE_SEED", "tea")
    with pytest.raises(ValueError, match="CAPSTONE_SEED is 'tea'; expected a whole number"):
        capstone.choose_seed()
    monkeypatch.delenv("CAPSTONE_SEED")
    assert capstone.choose_seed(otherwise=7) == 7
    assert len({capstone.choose_seed() for _ in range(20)}) > 1


# --- nothing to read before the diagnosis ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_repository_tells_nothing(tmp_path, seed):
    drawn = capstone_cases.draw(seed)
    capstone_cases.write_repository(tmp_path, drawn)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert {path.parts[-1] for path in files} == {"config.pbtxt", "model.py", "node.bin"}
    assert len({path.read_bytes() for path in files if path.name == "model.py"}) == 1
    shown = repr(drawn).encode() + b"".join(path.read_bytes() for path in files)
    assert not [word for word in WORDS if word.encode() in shown]


def test_configurations_are_the_same_for_every_seed(tmp_path):
    written = set()
    for seed in range(30):
        capstone_cases.write_repository(tmp_path / str(seed), capstone_cases.draw(seed))
        written.add(tuple(path.read_text() for path in sorted((tmp_path / str(seed)).rglob("config.pbtxt"))))
    assert len(written) == 1


def test_no_source_of_a_fault_is_plain_text_in_the_lab():
    lab = Path(capstone.__file__).parent
    shipped = b"".join(path.read_bytes() for path in [*lab.glob("capstone*.py"), *lab.glob("data/capstone*")])
    for fault in FAULTS:
        changed = [
            line
            for _, new in fault.edits
            for line in new.splitlines()
            if len(line.strip()) > 20 and not line.startswith(("from", "import", "class"))
        ]
        assert not [line for line in changed if line.strip().encode() in shipped]


# --- grading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_healthy_pipeline_passes(seed):
    assert [run for run in graded(pipeline(), seed) if not run.right] == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_shipped_fault_fails(fault):
    assert fails(pipeline(fault.node, fault.source))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_mended_fault_passes(fault):
    assert [run for run in graded(pipeline(fault.node, fault.solved)) if not run.right] == []


@pytest.mark.parametrize(("fault", "name"), [pytest.param(*case, id=f"{case[0].name}: {case[1]}") for case in CASES])
def test_a_half_fix_fails(fault, name):
    assert fails(pipeline(fault.node, fault.patches[name]))


# --- a case without a server ----------------------------------------------------------------------------------------


class FakeServer:
    """Stands in for a server: what it "runs" is what lies in the repository."""

    starts = 0

    def stop(self) -> None:
        pass

    def restart(self) -> None:
        self.starts += 1


@pytest.fixture
def case(tmp_path, monkeypatch):
    """Case 22, a fault of decode, in the simulated pipeline."""
    monkeypatch.setenv("LAB_BOOK", str(tmp_path / "book.sqlite3"))
    folder = tempfile.TemporaryDirectory(dir=tmp_path)
    models = Path(folder.name) / "models"
    drawn = capstone_cases.draw(22)
    capstone_cases.write_repository(models, drawn)

    def ask(requests):
        written = (models / drawn.node / "1" / "model.py").read_text()
        source = drawn.source if written == capstone_cases.CLOSED else written
        return pipeline(drawn.node, source).ask(requests)

    def no_trace(*_, **__):
        raise StreamError("no server")

    monkeypatch.setattr(capstone, "asker", lambda server, ensemble: ask)
    monkeypatch.setattr(capstone, "stream", no_trace)
    return capstone.Case(22, drawn, folder, FakeServer())


FAULT = next(fault for fault in FAULTS if fault.name == "character held back")


def outcome(case: capstone.Case) -> tuple[str, str]:
    report = case.grade()
    return report.diagnosis, report.patch


def test_diagnosis_and_patch_are_judged_apart(case):
    assert (case.source(), case.grade(), case.patch(FAULT.solved)) == (capstone.CLOSED,) * 3
    for node, law in (("decode", "late"), ("generate", "held_back"), ("encode", "dtype")):
        assert case.diagnose(node, law).startswith("not right")
    assert case.report.opened == "three tries"
    assert case.patch(FAULT.patches["two kept"]).startswith("loaded")
    assert outcome(case) == ("wrong", "wrong")
    assert case.patch(FAULT.solved).startswith("loaded")
    assert case.report.patch == "none"
    assert outcome(case) == ("wrong", "right")


def test_a_right_diagnosis_and_a_wrong_patch(case):
    assert case.diagnose("decode", "held_back").startswith("right: ")
    assert case.patch(FAULT.source).startswith("loaded")
    assert outcome(case) == ("right", "wrong")
    assert case.patch(FAULT.solved).startswith("loaded")
    assert outcome(case) == ("right", "right")
    assert str(case.report).startswith("seed 22: diagnosis right (try 1 of 3); patch right (13 of 13 hidden runs)")


@pytest.mark.parametrize(
    ("node", "law", "named", "unnamed"),
    [
        ("decode", "late", ["late does not fit"], ["decode does not fit", "held_back"]),
        ("generate", "held_back", ["generate does not fit"], ["held_back does not fit", "decode"]),
        ("encode", "altered", ["altered does not fit", "encode does not fit"], ["held_back", "decode"]),
    ],
)
def test_a_wrong_half_is_contradicted_and_the_right_one_not_named(case, node, law, named, unnamed):
    said = case.diagnose(node, law)
    assert [words for words in named if words not in said] == []
    assert [words for words in unnamed if words in said] == []


def test_what_is_no_diagnosis_is_not_counted(case):
    assert case.diagnose(..., "late") == case.diagnose("decode", ...) == NOT_ANSWERED
    for node, law in (
        ("decoder", "late"),
        ("decode", "slow"),
        (None, None),
        (["decode"], "late"),
        ("decode", ["late"]),
    ):
        assert case.diagnose(node, law).startswith("not counted: ")
    assert (case.report.claims, case.report.diagnosis) == ((), "none")


def test_after_the_node_is_open_no_diagnosis_counts(case):
    assert case.give_up() == case.give_up() == "The node decode is open: print(case.source())"
    assert case.diagnose("decode", "held_back").startswith("the node is open, opened by: given up.")
    assert case.source() == FAULT.source
    assert case.report.verdict == "diagnosis none; opened on request; patch none"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (5, "expected the source as text, got int"),
        ("def x(:\n    pass", "line 1: invalid syntax: def x(:"),
        ("x = 1", "it has no class TritonPythonModel; hand in the whole source"),
        ("", "it has no class TritonPythonModel; hand in the whole source"),
        ("a\0b", "null bytes"),
    ],
)
def test_a_source_that_cannot_be_one_never_reaches_the_server(case, source, words):
    case.give_up()
    assert words in case.patch(source)
    assert case.server.starts == 0
    assert case.grade() == "nothing to grade yet: hand in a source with case.patch(...)"


def test_an_answer_learnt_by_heart_fails(case):
    """The hidden prompts of a seed are not those of the lesson, and not those of another seed."""
    prompts = [{prompt for one in capstone_grading.hidden_runs(seed) for prompt, _ in one.prompts} for seed in (1, 2)]
    assert prompts[0] & prompts[1] <= {"", "a", "b", "c"}
