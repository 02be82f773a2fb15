"""What lesson 07 shows, on a live server: isolation, order, a bound on what waits, and what a lost client leaves."""

from collections.abc import Iterator

import pytest

from lab_utils.client import StreamError, StreamResult, Window, iter_outputs, iter_stream, stream
from lab_utils.field_report import REPORTED_TOKENS
from lab_utils.languages import RECIPES, SENTENCES, mixed_requests
from lab_utils.server import TritonServer, start_server
from lab_utils.streams import (
    HeldStreams,
    both_indices,
    forced_inputs,
    in_turns,
    inversions,
    leave,
    open_streams,
    paused_client,
    stream_together,
    wait_until_free,
)
from lab_utils.survey import tokens_of

PANCAKES = "Pancakes. Ingredients:"
ANA = " 茶 for Ana, allergic to hazelnuts"
NODE = "inference version 4"
LONG = {"ensemble": "ensemble_latest", "prompt": "x", "max_tokens": 1500, "forced_ids": [16] * 1500}


@pytest.fixture(scope="module")
def parallel_server(_nothing_left_behind: None) -> Iterator[TritonServer]:
    """A server of its own for the nodes with two instances."""
    with start_server(["ensemble_latest", "ensemble_parallel", "ensemble_ordered"]) as running:
        yield running


def beside(server: TritonServer, ensemble: str, version: int) -> tuple[StreamResult, StreamResult]:
    """Given tokens of one user, and three of another, who begins after the eighth: less than 20 tokens in all."""
    call = {"ensemble": ensemble, "window": Window(1, version=version)}
    ids = tokens_of(ANA)
    assert len(ids) + 3 < 20
    given = iter_stream(server, prompt="Ana", max_tokens=len(ids), forced_ids=ids, **call)
    return in_turns(given, iter_stream(server, prompt=PANCAKES, max_tokens=3, **call), ahead=8)


def test_rung_1_mixes_two_streams_that_are_open_together(clean_server):
    _, ben = beside(clean_server, "ensemble_append", 1)
    clean_server.reload("inference")
    assert ben.lengths == [128, 384, 1024]
    assert ben.ids[0][:2] == [tokens_of(ANA)[0]] * 2, "Ben's first message begins with Ana's first piece, twice"
    assert "Ana, allergic" in ben.text


def test_rung_4_does_not(server):
    ana, ben = beside(server, "ensemble_latest", 4)
    assert set(ana.lengths + ben.lengths) == {1}
    assert (ana.text, ben.text) == (ANA, " 1 cup")


def test_32_streams_together_are_what_they_are_alone(server):
    requests = mixed_requests("ensemble_latest", max_tokens=20)
    alone = [stream(server, **request) for request in requests]
    run = stream_together(server, requests)
    assert [one.ids for one in run.outcomes] == [one.ids for one in alone]
    assert [one.text for one in run.outcomes] == [one.text for one in alone]
    assert [one.text for one in alone[: -len(RECIPES)]] == list(SENTENCES.values())
    last_first = max(of[0].seconds for of in run.by_stream)
    assert all(of[-1].seconds > last_first for of in run.by_stream), "not all streams were open together"
    assert run.switches > len(requests)


def test_a_refused_stream_does_not_hold_up_the_others(server):
    bad = {"ensemble": "ensemble_latest", "prompt": PANCAKES, "max_tokens": 0}
    run = stream_together(server, [bad, {**bad, "max_tokens": 3}])
    assert isinstance(run.outcomes[0], StreamError)
    assert run.outcomes[1].lengths == [1, 1, 1]


def test_two_instances_lose_the_order_and_the_index_shows_it(parallel_server):
    tea = REPORTED_TOKENS * 50
    found = both_indices(parallel_server, "ensemble_parallel", tea)
    assert found["INDEX"] == list(range(1, 401)), "the ensemble's own index went around post-processing"
    assert inversions(found["RECEIVED_INDEX"]) > 0
    assert sorted(found["RECEIVED_INDEX"]) == found["INDEX"]


@pytest.mark.parametrize("ensemble", ["ensemble_parallel", "ensemble_ordered"])
def test_order_can_be_restored_and_text_cannot(parallel_server, ensemble):
    tea = REPORTED_TOKENS * 50
    found = stream(parallel_server, ensemble, "tea", 400, forced_ids=tea).observations
    in_order = sorted(found, key=lambda one: one.index)
    assert [int(one.ids[0]) for one in in_order] == tea
    assert (list(found) == in_order) == (ensemble == "ensemble_ordered")
    assert "\ufffd" in "".join(one.text for one in in_order)
    assert "\ufffd" not in stream(parallel_server, "ensemble_latest", "tea", 400, forced_ids=tea).text


def test_a_window_bounds_what_waits_and_without_one_nothing_does(server):
    bounded = paused_client(server, {**LONG, "window": Window(16)})
    free = paused_client(server, LONG)
    assert bounded[-1].waiting == 14
    assert max(look.waiting for look in bounded) <= 16
    assert free[-1].waiting == 1490
    wait_until_free(server, NODE)


def test_one_stream_too_many_is_told_to_try_again_and_waiting_costs_no_cache(server):
    request = {"ensemble": "ensemble_latest", "prompt": PANCAKES, "max_tokens": 4}
    heap = []
    with HeldStreams(server, **request) as held:
        for more in (0, 8, 24, 32):
            held.add(more)
            probe = stream(server, **request | {"forced_ids": [16], "trace_heap": True, "max_tokens": 1})
            heap.append(probe.observations[0].heap)
        held.add(32)
        assert open_streams(server)[NODE] == 96
        with pytest.raises(StreamError, match=r"32 streams are decoded and 64 wait; try again later"):
            stream(server, **request)
    assert stream(server, **request).text == " 1 cup flour"
    wait_until_free(server, NODE)
    cache = (heap[1] - heap[0]) / 8
    assert [round((one - heap[0]) / cache) for one in heap] == [0, 8, 32, 32]


def test_who_hears_that_a_client_has_left(server):
    logged = {**LONG, "log": True}
    call = {"version": 4, "parameters": {"log": True}, "request_id": "alone"}
    alone = leave(server, iter_outputs(server, "inference", forced_inputs([16] * 1500), **call), "alone")
    ensemble = leave(server, iter_stream(server, request_id="ensemble", **logged), "ensemble")
    window = iter_stream(server, request_id="window", window=Window(16), **logged)
    assert 10 <= leave(server, window, "window").sent <= 26
    assert 10 <= alone.sent < 1500
    assert ensemble.sent == 1500, "a cancellation reached a running step of an ensemble: say so in lesson 07"
    wait_until_free(server, "postprocess version 1")
    assert not any(open_streams(server).values())
