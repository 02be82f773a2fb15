"""Which guard catches which fault: every mutation, on servers of their own, as what Triton refuses stays in flight."""

from statistics import median

import pytest

from lab_utils.client import stream
from lab_utils.field_report import REPORTED_PROMPT
from lab_utils.guard_cost import guard_cost
from lab_utils.guard_matrix import ENSEMBLES, HEALTHY, alarm_on, faults, guard_matrix, outcome, verdict_on
from lab_utils.in_flight import in_flight_at_stop, unload_state
from lab_utils.server import start_server
from lab_utils.watch import watch

OPEN, STRICT, GUARDED = ENSEMBLES
LONGER = {"edge": "2 dims", "producer": "2 length", "consumer": "2 length", "known answer": "2 ids"}
EXPECTED = {
    "none": {},
    "extend": LONGER | {"alarm": "4 dims", "verdict": "2 exponential"},
    "stale_length": LONGER,
    "missing_clear": LONGER | {"verdict": "2 linear"},
    "late_clear": LONGER,
    "alias": {"producer": "1 checksum", "consumer": "1 checksum", "known answer": "1 ids"},
    "late_id": {"producer": "2 checksum", "consumer": "2 checksum", "known answer": "2 ids"},
    "wrong_dtype": {"edge": "1 dtype", "producer": "1 dtype"},
    "wrong_rank": {"edge": "1 rank", "producer": "1 rank"},
    "end_token": {"producer": "9 vocabulary", "consumer": "9 vocabulary"},
    "lost_end": {"producer": "8 end", "client": "8 end"},
    "early_end": {"producer": "8 end", "consumer": "8 index", "client": "8 end"},
    "stale_index": {"producer": "2 index", "consumer": "2 index", "client": "2 index"},
    "swapped_stream": {"producer": "3 stream", "consumer": "3 index"},
}


@pytest.fixture(scope="module")
def mutants(_nothing_left_behind):
    """A server with the three ensembles."""
    with start_server(ENSEMBLES) as running:
        yield running


@pytest.fixture(scope="module")
def matrix(mutants):
    """All rows, by fault."""
    return {row.fault: row for row in guard_matrix(mutants)}


def test_every_fault_is_caught_by_a_guard_and_the_healthy_node_by_none(matrix):
    assert set(matrix) == {HEALTHY, *faults()}
    assert [fault for fault, row in matrix.items() if not row.guards] == [HEALTHY]


@pytest.mark.parametrize("fault", EXPECTED)
def test_each_guard_catches_it_at_this_message_by_this_rule(matrix, fault):
    caught = {guard: str(catch) for guard, catch in matrix[fault].caught.items() if catch}
    assert caught == EXPECTED[fault]


def test_without_a_guard_most_faults_end_as_if_all_were_well(matrix):
    ended_badly = {fault for fault, row in matrix.items() if row.unguarded}
    assert ended_badly == {"wrong_dtype", "wrong_rank", "end_token"}


def test_the_matrix_does_not_depend_on_what_ran_before(mutants, matrix):
    names = ("swapped_stream", HEALTHY, "missing_clear")
    assert guard_matrix(mutants, names) == tuple(matrix[name] for name in names)


def test_a_prompt_without_a_broken_character_hides_what_depends_on_one(mutants):
    rows = guard_matrix(mutants, ("extend", "late_id"), prompt="Pancakes. Ingredients:", max_tokens=6)
    assert [row.guards for row in rows] == [(), ("producer", "consumer", "known answer")]


def test_the_live_watch_raises_the_alarm_and_gives_the_verdict_of_the_matrix(mutants, matrix):
    with watch(mutants) as seen:
        stream(mutants, OPEN, REPORTED_PROMPT, mutation="extend")
    dims = seen.dims("inference_mutant", "TOKEN_IDS")
    assert seen.alarms[0].number == alarm_on(dims).message == matrix["extend"].caught["alarm"].message
    verdict = seen.verdict()
    assert (verdict.first, verdict.kind) == (2, "exponential")
    assert str(verdict_on([size for (size,) in dims])) == str(matrix["extend"].caught["verdict"])


def test_the_words_of_triton_and_of_a_guard(mutants, monkeypatch, tmp_path):
    monkeypatch.setenv("LAB_BOOK", str(tmp_path / "book.sqlite3"))
    assert outcome(mutants, "healthy", STRICT, mutation=HEALTHY) == [1] * 8
    assert outcome(mutants, "refused", STRICT, mutation="extend") == (
        f"in ensemble '{STRICT}', [request id: <id_unknown>] unexpected shape for input 'TOKEN_IDS' for model "
        "'postprocess_strict'. Expected [1], got [2]."
    )
    assert outcome(mutants, "in-band", GUARDED, mutation="alias") == (
        "0 message(s) of the stream kept the contract; the next one does not (checksum): its ids are not those that "
        "the model made"
    )


def test_a_check_costs_less_than_two_percent_of_a_token(mutants):
    runs = [guard_cost(stream(mutants, OPEN, REPORTED_PROMPT, max_tokens=95)) for _ in range(5)]
    assert median(run.share for run in runs) < 0.02  # now and then a stream arrives in one bunch


@pytest.mark.usefixtures("_nothing_left_behind")
def test_what_triton_refused_is_never_given_back_and_what_a_guard_refused_is():
    """A server of its own, for it is stopped here."""
    with start_server((STRICT, GUARDED)) as server:
        for ensemble, state in ((GUARDED, "UNAVAILABLE"), (STRICT, "UNLOADING")):
            outcome(server, ensemble, ensemble, mutation="extend")
            assert unload_state(server, ensemble) == state
            server.load(ensemble)
        for ensemble in (GUARDED, STRICT, STRICT):
            outcome(server, ensemble, ensemble, mutation="extend")
        assert in_flight_at_stop(server) == {STRICT: 2}
        assert not server.running
