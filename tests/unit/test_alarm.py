"""The alarm rules: at which message or sample each fires, and where it stays silent."""

import pytest

from lab_utils import alarm
from lab_utils.alarm import AlarmState, Rules, Sample
from lab_utils.attribution import Message


def message(
    number: int | None, *dims: int, request: str | None = "r", node: str = "n", side: str = "output"
) -> Message:
    return Message(float(number or 0), request, node, 1, side, "T", "INT32", dims, None, number)


def fired_at(sizes: list[int], **rules: float) -> list[int]:
    """The messages at which the rule fires on a tensor of one dimension."""
    state = AlarmState(Rules(**rules))
    return [found.number for number, size in enumerate(sizes, 1) for found in state.message(message(number, size))]


def samples_at(values: list[float], quantity: str = "backlog", node: str = "n", **rules: float) -> list[int]:
    state = AlarmState(Rules(**rules))
    return [n for n, value in enumerate(values, 1) if state.sample(Sample(float(n), quantity, node, value))]


@pytest.mark.parametrize(
    ("sizes", "at"),
    [
        ([1, 2, 4, 8, 16, 32, 64, 128], [4]),
        ([1, 1, 1, 1, 1, 1], []),
        ([1, 2, 3, 1, 1, 1], []),
        ([1, 2, 3, 4, 5, 6, 7], []),  # linear: 4 is less than 1.5 times 3
        ([5, 5, 5, 10, 20, 40], [6]),
        ([1, 2, 4, 4, 8, 16, 32], [7]),
        ([1, 2, 4, 8, 1, 2, 4, 8], [4, 8]),
        ([2, 3, 5, 8], [4]),  # exactly 1.5, then more
        ([4, 5, 10, 20], []),
        ([0, 0, 0, 0, 0], []),
        ([0, 1, 2, 4], [4]),
        ([8, 4, 2, 1], []),
        ([], []),
    ],
)
def test_factor_one_and_a_half_three_times_in_a_row(sizes, at):
    assert fired_at(sizes) == at


@pytest.mark.parametrize(("times", "at"), [(1, [2]), (2, [3]), (5, [6]), (8, [])])
def test_fires_at_the_first_message_that_completes_the_row(times, at):
    assert fired_at([2**n for n in range(8)], times=times) == at


def test_factor_one_takes_any_growth():
    assert fired_at([1, 2, 3, 4, 5], factor=1) == [4]
    assert fired_at([3, 3, 3, 3], factor=1) == []


def test_an_alarm_says_what_where_and_when():
    state = AlarmState()
    found = [one for n in range(1, 5) for one in state.message(message(n, 1, 2**n, request="r7"))]
    (one,) = found
    assert (one.rule, one.node, one.tensor, one.side, one.request) == ("dims", "n", "T", "output", "r7")
    assert (one.axis, one.number, one.seconds, one.sizes) == (1, 4, 4.0, (2, 4, 8, 16))
    assert str(one) == "ALARM dims: n, output T, dimension 1, message 4 of request r7: 2 4 8 16"


def test_requests_nodes_and_sides_have_rows_of_their_own():
    state = AlarmState()
    for n in range(1, 9):
        for place in (
            {"request": f"r{n % 3}"},
            {"node": f"n{n % 3}"},
            {"side": ("input", "output")[n % 2], "node": "x"},
        ):
            row = n // 3 if "side" not in place else n // 2
            assert not [one for one in state.message(message(n, 2**n, **place)) if row < 3]


def test_messages_of_nobody_known_are_passed_over():
    state = AlarmState()
    assert not [one for n in range(9) for one in state.message(message(None, 2**n, request=None))]


def test_another_number_of_dimensions_breaks_the_row():
    state = AlarmState()
    rows = [message(1, 1), message(2, 2), message(3, 4), message(4, 8, 1), message(5, 16, 1)]
    assert not [one for row in rows for one in state.message(row)]


@pytest.mark.parametrize(
    ("values", "at"),
    [([0, 1, 2, 3, 4, 5], [4]), ([0, 0, 5, 5, 5], []), ([0, 1, 2, 2, 3, 4, 5], [7]), ([3, 2, 1, 0], [])],
)
def test_backlog_that_rises_three_times_in_a_row(values, at):
    assert samples_at(values) == at


def test_memory_has_to_rise_far_enough_and_fires_once():
    assert samples_at([0, 10, 20, 30, 40], "memory", memory_bytes=1000) == []
    assert samples_at([5000, 5010, 5020, 5030], "memory", memory_bytes=1000) == []
    assert samples_at([5000, 5400, 5800, 6200, 6300], "memory", memory_bytes=1000) == [4]
    assert samples_at([0, 10, 20, 30, 40, 2000, 2001, 2002], "memory", memory_bytes=1000) == [6]
    assert samples_at([0, 5000, 5000, 5000], "memory", memory_bytes=1000) == []  # once is no row


def test_one_step_is_a_row_too():
    assert samples_at([0, 5, 5, 6], times=1) == [2, 4]
    assert samples_at([0, 5, 2000, 2001], "memory", times=1, memory_bytes=1000) == [3]


def test_the_whole_machines_memory_and_calls_raise_no_alarm():
    assert samples_at([0, 1e9, 2e9, 3e9, 4e9], "memory", node="(machine)") == []
    assert samples_at([1, 2, 3, 4, 5], "executions") == []


def test_a_long_row_stays_short_in_memory_and_what_is_remembered_is_bounded(monkeypatch):
    state = AlarmState()
    for n in range(1000):
        state.sample(Sample(n, "memory", "n", n))
    ((_, row),) = state._rows.values()
    assert row == (0, 997, 998, 999)
    monkeypatch.setattr(alarm, "MOST_TRACKED", 10)
    for n in range(100):
        state.message(message(1, 1, request=str(n)))
    assert len(state._rows) == 10


@pytest.mark.parametrize(
    ("name", "value"),
    [("factor", 0.5), ("factor", float("nan")), ("times", 0), ("times", 1.5), ("times", True), ("memory_bytes", -1)],
)
def test_limits_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*expected"):
        Rules(**{name: value})
