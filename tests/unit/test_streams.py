"""The instruments of lesson 07 without a server: what is counted, drawn, and said about a wrong decoder."""

import unicodedata

import numpy as np
import pytest
from answers_07 import MISTAKES, VARIANTS

from lab_utils import streams
from lab_utils.client import Observation
from lab_utils.errors import ServerError
from lab_utils.exercises import verdict
from lab_utils.languages import NAMES, RECIPES, SENTENCES, mixed_requests
from lab_utils.streams import Arrival, Backlog, Together, in_turns, inversions, messages_sent, open_streams
from lab_utils.streams_figure import backlog_figure, growth, interleaving_figure, order_figure

MIB = 2**20
METRICS = """# HELP lab_open_streams Streams that a node of the lab holds state for
# TYPE lab_open_streams gauge
lab_open_streams{instance="postprocess_parallel_0_0",model="postprocess_parallel",version="1"} 2
lab_open_streams{instance="postprocess_parallel_0_1",model="postprocess_parallel",version="1"} 3
lab_open_streams{instance="inference_0_0",model="inference",version="4"} 1
lab_open_streams{instance="inference_0_0",model="inference",version="1"} 0
# TYPE nv_inference_count counter
nv_inference_count{model="inference",version="4"} 7
"""


def message(index: int, text: str = "") -> Observation:
    return Observation(index, (1,), 4, 0.0, np.array([16]), text, index, False)


def together(*numbers: int) -> Together:
    arrivals = tuple(Arrival(place / 1000, number, message(1)) for place, number in enumerate(numbers))
    return Together((None,) * max(numbers, default=0), arrivals)


# --- counting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "expected"),
    [([], 0), ([1], 0), ([1, 2, 3], 0), ([2, 3, 1], 2), ([3, 2, 1], 3), ([2, 1, 4, 3], 2), ([1, 1], 0)],
)
def test_inversions_are_the_pairs_in_the_wrong_order(index, expected):
    assert inversions(index) == inversions(iter(index)) == expected


def test_switches_and_messages_by_stream():
    run = together(1, 1, 2, 1, 3, 3)
    assert run.switches == 3
    assert [len(of) for of in run.by_stream] == [3, 1, 2]
    assert together(1, 1).switches == together().switches == 0


def test_streams_are_taken_in_turns_to_the_end_of_both():
    taken = []

    def stream_of(name, length):
        for number in range(1, length + 1):
            taken.append(f"{name}{number}")
            yield message(number)

    first, second = in_turns(stream_of("a", 5), stream_of("b", 3), ahead=2)
    assert taken == ["a1", "a2", "b1", "a3", "b2", "a4", "b3", "a5"]
    assert (len(first.observations), len(second.observations)) == (5, 3)


def test_one_that_is_shorter_than_its_start_does_no_harm():
    first, second = in_turns([message(1)], [message(1), message(2)], ahead=3)
    assert (len(first.observations), len(second.observations)) == (1, 2)


class Stopped:
    metrics_url = ""


class Logging:
    log = (
        'I1123 10:00:00 1 model.cc:1] "loaded"\n'
        '{"time": 1.5, "node": "inference", "request_id": "a", "stream_id": 1, "index": 1, "dims": [], "end": false}\n'
        '{"time": 2, "node": "postprocess", "request_id": "a", "stream_id": 1, "index": 1, "dims": [], "end": false}\n'
        '{"time": 1.7, "node": "inference", "request_id": "b", "stream_id": 2, "index": 1, "dims": [1], "end": true}\n'
        '{"time": 1.8, "node": "inference", "request_id": "a", "stream_id": 1, "index": 2, "dims": [1], "end": true}\n'
        '{"time": 1.9, "node": "infer'  # a line that is being written
    )


def test_the_log_is_counted_by_node_and_request():
    assert messages_sent(Logging(), "a") == 2
    assert messages_sent(Logging(), "a", "postprocess") == 1
    assert messages_sent(Logging(), "c") == 0


def test_the_gauge_is_added_up_over_instances(monkeypatch):
    monkeypatch.setattr(streams, "metrics_page", lambda server: METRICS)
    found = open_streams(None)
    assert found == {"inference version 1": 0, "inference version 4": 1, "postprocess_parallel version 1": 5}


def test_without_metrics_it_is_said_why():
    with pytest.raises(ServerError, match="stopped, or run by somebody else"):
        open_streams(Stopped())


def test_a_node_that_does_not_get_free_is_told(monkeypatch):
    monkeypatch.setattr(streams, "metrics_page", lambda server: METRICS)
    with pytest.raises(ServerError, match=r"inference version 4 still holds 1 stream"):
        streams.wait_until_free(None, "inference version 4", seconds=0)
    assert streams.wait_until_free(None, "inference version 1", seconds=0) < 1


# --- the thirty-two -----------------------------------------------------------------------------------------------


def test_there_are_32_streams_of_many_scripts():
    assert len(NAMES) == len(set(NAMES)) == len(mixed_requests("ensemble_latest")) == 32
    scripts = {
        unicodedata.name(letter).split()[0] for text in SENTENCES.values() for letter in text if letter.isalpha()
    }
    wanted = {"LATIN", "GREEK", "CYRILLIC", "ARABIC", "HEBREW", "DEVANAGARI", "BENGALI", "THAI", "HIRAGANA", "HANGUL"}
    assert wanted < scripts
    assert all(unicodedata.is_normalized("NFC", text) for text in (*SENTENCES.values(), *RECIPES))


# --- figures ------------------------------------------------------------------------------------------------------


def test_the_interleaving_has_a_row_for_each_stream():
    axes = interleaving_figure(together(1, 2, 1).arrivals, ["first", "second"]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    ticks = [line for line in axes.get_lines() if line.get_marker() == "|"]
    assert [list(line.get_xdata()) for line in ticks] == [[0, 2], [1]]
    assert axes.get_xlabel() == "time since the start (ms)"


def test_the_order_shows_what_was_overtaken():
    upper, lower = order_figure({"parallel": [2, 3, 1, 4]}).axes
    assert upper.get_title(loc="left") == "parallel: 2 inversions"
    in_place, late = upper.get_lines()
    assert (list(in_place.get_xdata()), list(late.get_xdata()), list(late.get_ydata())) == ([1, 2, 4], [3], [1])
    assert [list(line.get_ydata()) for line in lower.get_lines()] == [[1, 1, 0], [-2]]


def test_the_backlog_is_what_waits_and_what_it_takes():
    run = [Backlog(0.0, 2, 3, 10 * MIB), Backlog(0.5, 1, 9, 12 * MIB)]
    assert [look.waiting for look in run] == [5, 10]
    assert growth(run) == [0, 2]
    waiting, memory = backlog_figure({"no window": run, "window": run[:1]}).axes
    assert list(waiting.get_lines()[0].get_ydata()) == [5, 10]
    assert list(memory.get_lines()[0].get_ydata()) == [0, 2]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: interleaving_figure([], ["a"]),
        lambda: interleaving_figure(together(1, 2).arrivals, ["only one"]),
        lambda: order_figure({}),
        lambda: order_figure({"a": []}),
        lambda: order_figure({key: [1] for key in "abcde"}),
        lambda: backlog_figure({}),
        lambda: backlog_figure({"a": []}),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw):
    with pytest.raises(ValueError, match="expected"):
        draw()


# --- the exercise -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", VARIANTS, ids=lambda function: function.__name__)
def test_a_right_decoder_is_right_however_it_is_written(decoder):
    assert verdict("07-decoder", decoder).startswith("right. ")


@pytest.mark.parametrize(("decoder", "words"), MISTAKES.items(), ids=lambda one: getattr(one, "__name__", None))
def test_a_wrong_decoder_is_told_its_mistake(decoder, words):
    for _ in range(2):  # the second check finds what the first one left
        assert words in verdict("07-decoder", decoder)
