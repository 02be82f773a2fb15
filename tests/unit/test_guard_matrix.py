"""The guard matrix without a server: what each guard makes of messages that are made up here."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from lab_utils.client import Observation, StreamResult
from lab_utils.guard_cost import GuardCost, guard_cost, token_seconds
from lab_utils.guard_matrix import (
    GUARDS,
    Catch,
    Row,
    alarm_on,
    client_check,
    compare,
    faults,
    load_model_file,
    matrix_figure,
    matrix_table,
    refused_at,
    verdict_on,
)
from lab_utils.in_flight import IN_FLIGHT, in_flight_at_stop

SHAPE = (
    "in ensemble 'e', [request id: <id_unknown>] unexpected shape for input 'IDS' for model 'm'. Expected {}, got {}. "
)
DTYPE = "in ensemble 'e', [request id: x] inference input 'IDS' data-type is 'INT64', but model 'm' expects 'INT32'"
VOCABULARY = "in ensemble 'e', token id 151643 at position 0 is not in the vocabulary (0 to 151,642)"
NOTHING = dict.fromkeys(GUARDS)


def result(indexes, ends, step=0.001):
    """A stream with these indexes and end marks."""
    ids = np.array([7], dtype=np.int32)
    pairs = enumerate(zip(indexes, ends, strict=True), start=1)
    return StreamResult(tuple(Observation(n, (1,), 4, n * step, ids, "x", i, e) for n, (i, e) in pairs))


def messages(*lengths, dtype=np.int32):
    return [np.zeros(length, dtype=dtype) for length in lengths]


@pytest.mark.parametrize(
    ("error", "sent", "expected"),
    [
        ("", messages(1, 2), None),
        (VOCABULARY, messages(1, 1), None),
        (SHAPE.format("[1]", "[2]"), messages(1, 2, 2), Catch(2, "dims")),
        (SHAPE.format("[1]", "[3]"), messages(1, 1, 3), Catch(3, "dims")),
        (SHAPE.format("[-1]", "[1,1]"), [np.zeros((1, 1), np.int32)] * 2, Catch(1, "rank")),
        (SHAPE.format("[1]", "[0]"), messages(1, 0), Catch(2, "dims")),
        (DTYPE, messages(1, 1, dtype=np.int64), Catch(1, "dtype")),
        (DTYPE, messages(1) + messages(1, dtype=np.int64), Catch(2, "dtype")),
        (SHAPE.format("[1]", "[9]"), messages(1, 2), None),
    ],
)
def test_the_message_that_triton_refused_is_found_by_what_its_error_names(error, sent, expected):
    assert refused_at(error, sent) == expected


@pytest.mark.parametrize(
    ("indexes", "ends", "expected"),
    [
        ([1, 2, 3], [False, False, True], None),
        ([1], [True], None),
        ([1, 1, 1], [False, False, True], Catch(2, "index")),
        ([2, 3], [False, True], Catch(1, "index")),
        ([1, 2, 3], [False, False, False], Catch(3, "end")),
        ([1, 2, 3], [False, True, True], Catch(3, "end")),
        ([1, 2, 3], [True, False, True], Catch(2, "end")),
        ([], [], Catch(0, "end")),
    ],
)
def test_the_client_sees_order_and_end_mark(indexes, ends, expected):
    assert client_check(result(indexes, ends)) == expected


def test_the_alarm_fires_at_the_third_step_of_growth_and_not_on_what_stays():
    assert alarm_on([(1,), (2,), (4,), (8,), (16,)]) == Catch(4, "dims")
    assert alarm_on([(1,), (2,), (3,), (4,), (1,), (1,)]) is None
    assert alarm_on([(1,), (2,), (3,), (3,), (3,), (3,)]) is None
    assert alarm_on([(1, 1)] * 8) is None


def test_the_verdict_names_the_law_and_where_it_begins():
    assert verdict_on([1, 2, 4, 8, 16, 32, 64, 128]) == Catch(2, "exponential")
    assert verdict_on([1, 2, 3, 4, 5, 6, 7, 8]) == Catch(2, "linear")
    assert verdict_on([1] * 8) is None


def test_a_known_answer_sees_other_ids_missing_messages_and_further_ones():
    known = [[1], [2], [3]]
    assert compare(known, known) is None
    assert compare([[1], [3], [3]], known) == Catch(2, "ids")
    assert compare([[1], [2]], known) == Catch(3, "ids")
    assert compare([[1], [2], [3], [4]], known) == Catch(4, "ids")


def test_every_mutation_of_the_node_is_a_fault_and_says_what_it_does():
    module = load_model_file("inference_mutant", "mutations")
    assert set(faults()) == {*module.BUFFER, *module.MESSAGES}
    assert all(said.endswith(".") and "\n" not in said for said in faults().values())


ROWS = (
    Row("none", NOTHING, ""),
    Row("early", NOTHING | {"producer": Catch(1, "checksum"), "known answer": Catch(1, "ids")}, ""),
    Row("late", NOTHING | {"client": Catch(9, "end")}, "an error"),
)


def test_a_row_names_the_guards_that_catch_its_fault():
    assert [row.guards for row in ROWS] == [(), ("producer", "known answer"), ("client",)]


def test_the_table_has_every_cell_in_the_order_of_the_guards():
    head, _, *lines = matrix_table(ROWS).splitlines()
    assert head.split() == ["fault", "edge", "producer", "consumer", "client", "alarm", "verdict", "known", "answer"]
    assert lines[0].split() == ["none", *"-------"]
    assert lines[1].split() == ["early", "-", "1", "checksum", "-", "-", "-", "-", "1", "ids"]
    assert lines[2].split() == ["late", "-", "-", "-", "9", "end", "-", "-", "-"]


def test_the_figure_says_in_every_cell_what_the_table_says():
    figure = matrix_figure(ROWS)
    (axes,) = figure.axes
    written = [text.get_text() for text in axes.texts]
    assert isinstance(figure, Figure)
    assert written == [str(row.caught[guard] or "-") for row in ROWS for guard in GUARDS]
    assert [label.get_text() for label in axes.get_xticklabels()] == list(GUARDS)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["none", "early", "late"]


def contrast(one, other):
    """As WCAG defines it, of two colours with values from 0 to 1."""

    def luminance(color):
        parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
        return np.dot([0.2126, 0.7152, 0.0722], parts)

    lighter, darker = sorted([luminance(one), luminance(other)], reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_what_is_written_in_a_cell_can_be_read():
    """At least 4.5 to 1 between letters and ground, for every message of a long stream."""
    rows = [Row(str(n), NOTHING | {"edge": Catch(n, "dims")}, "") for n in range(1, 13)]
    (axes,) = matrix_figure(rows).axes
    (mesh,) = axes.collections
    grounds = mesh.cmap(mesh.norm(range(1, 13)))
    letters = [text.get_color() for text in axes.texts if text.get_text() != "-"]
    colors = {"white": (1, 1, 1), "black": (0, 0, 0)}
    assert min(contrast(colors[one], ground) for one, ground in zip(letters, grounds, strict=True)) > 4.5


def test_a_figure_of_no_row_is_refused():
    with pytest.raises(ValueError, match="rows is empty"):
        matrix_figure([])


def test_a_matrix_without_a_catch_can_be_drawn():
    assert len(matrix_figure(ROWS[:1]).axes[0].texts) == len(GUARDS)


# --- cost ---------------------------------------------------------------------------------------------------------


def test_the_time_of_a_token_is_the_mean_step_however_the_messages_are_bunched():
    assert token_seconds(result([1, 2, 3, 4], [False] * 3 + [True], step=0.5)) == 0.5
    with pytest.raises(ValueError, match="2 messages; expected at least 3"):
        token_seconds(result([1, 2], [False, True]))


def test_the_cost_is_measured_on_messages_that_keep_the_contract():
    cost = guard_cost(result([1, 2, 3], [False, False, True], step=1.0))
    assert cost.token_seconds == 1.0
    assert 0 < cost.check_seconds < 0.01
    assert cost.share == GuardCost(cost.check_seconds, 1.0).share == cost.check_seconds


# --- requests in flight -------------------------------------------------------------------------------------------


def test_the_log_of_a_stop_is_read():
    line = "I1123 13:23:47.073970 14291 server.cc:325] \"Model 'ensemble_x' (version 1) has 2 in-flight inferences\""
    (match,) = IN_FLIGHT.finditer(f'"Timeout 5: Found 1 model versions that have in-flight inferences"\n{line}\n')
    assert match.groupdict() == {"model": "ensemble_x", "count": "2"}


def test_a_server_that_is_stopped_cannot_be_asked():
    class Stopped:
        running, log_path = False, None

    with pytest.raises(RuntimeError, match="only a server that was started here"):
        in_flight_at_stop(Stopped())
