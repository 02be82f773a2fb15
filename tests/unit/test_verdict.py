"""The verdict: which node makes a tensor grow, told from the sizes at its inputs and outputs."""

import random

import pytest

from lab_utils.verdict import Track, find_growth, judge

DOUBLING = [1, 2, 4, 8, 16, 32, 64, 128]


def track(node: str, side: str, tensor: str, sizes: list[int], held: bool | None = None, **more: str) -> Track:
    holds = () if held is None else (held,) * (len(sizes) - 1)
    return Track(more.pop("request", "1"), node, side, tensor, tuple(sizes), holds, **more)


def pipeline(sent: list[int], received: list[int], text: list[int], held: bool = True, request: str = "1"):
    """preprocess -> inference -> postprocess, with the sizes that inference sends and postprocess gets and sends."""
    return [
        track("preprocess", "input", "PROMPT", [40], unit="bytes", request=request),
        track("preprocess", "output", "IDS", [12], request=request),
        track("inference", "input", "IDS", [12], request=request),
        track("inference", "output", "TOKENS", sent, held, request=request),
        track("postprocess", "input", "NEWEST", received, held, request=request),
        track("postprocess", "output", "TEXT", text, held, unit="bytes", request=request),
    ]


def test_doubling_node_is_named_and_the_one_after_it_is_not():
    verdict = judge(pipeline(DOUBLING, DOUBLING, [3 * size for size in DOUBLING]))
    assert (verdict.node, verdict.tensor, verdict.kind, verdict.first) == ("inference", "TOKENS", "exponential", 2)
    assert verdict.request == "1"
    assert "size(n) = 1 * 2^(n-1), exact for all 8 points" in str(verdict)
    assert "each of these messages holds the whole message before it" in verdict.evidence
    assert any(line.startswith("postprocess passes on what it gets") for line in verdict.evidence)
    assert verdict.others == ()


def test_resending_the_history_is_linear():
    verdict = judge(pipeline([1, 2, 3, 4], [1, 2, 3, 4], [3, 6, 9, 12]))
    assert (verdict.node, verdict.kind, verdict.first) == ("inference", "linear", 2)


def test_growth_inside_postprocess_is_its_own():
    verdict = judge(pipeline([1] * 6, [1] * 6, [3, 5, 8, 9, 12, 13]))
    assert (verdict.node, verdict.tensor, verdict.kind) == ("postprocess", "TEXT", "history")
    assert "its inputs do not grow: NEWEST 1 1 1 1 1 1 elements" in verdict.evidence


def test_growth_over_requests():
    over = [
        track("preprocess", "input", "PROMPT", [12] * 4, request="", unit="bytes"),
        track("preprocess", "output", "IDS", [12, 24, 36, 48], True, request=""),
        track("inference", "input", "IDS", [12, 24, 36, 48], True, request=""),
    ]
    verdict = judge([*over, *pipeline([1] * 5, [1] * 5, [3] * 5)])
    assert (verdict.node, verdict.tensor, verdict.kind, verdict.first) == ("preprocess", "IDS", "linear", 2)


def test_a_client_that_resends_its_chat_explains_the_growth():
    over = [
        track("preprocess", "input", "PROMPT", [10, 21, 35, 60], request="", unit="bytes"),
        track("preprocess", "output", "IDS", [3, 6, 9, 12], True, request=""),
    ]
    verdict = judge(over)
    assert verdict.node is None
    assert "every output that grows has an input that grows too" in verdict.evidence[0]


@pytest.mark.parametrize("sent", [[1] * 8, [7] * 8, [1], []])
def test_healthy(sent):
    verdict = judge(pipeline(sent, sent, [3] * len(sent)))
    assert (verdict.node, verdict.tensor, verdict.kind, verdict.first) == (None, None, "none", None)
    assert str(verdict).startswith("verdict: none")


def test_varying_sizes_are_said_but_accuse_nobody():
    verdict = judge(pipeline([1, 2, 3, 1, 1, 1, 1, 1], [1, 2, 3, 1, 1, 1, 1, 1], [0, 0, 4, 6, 3, 3, 6, 3]))
    assert verdict.node is None
    assert "not constant, but no growth: inference TOKENS 1 2 3 1 1 1 1 1 elements" in verdict.evidence


@pytest.mark.parametrize("most", [5, 9, 20, 1000])
def test_noise_accuses_nobody(most):
    draw = random.Random(most)
    for _ in range(300):
        sizes = [draw.randint(1, most) for _ in range(100)]
        assert judge([track("inference", "output", "TOKENS", sizes, held=False)]).node is None


@pytest.mark.parametrize(
    ("sizes", "start", "stop"),
    [
        ([1, 1, 1, 2, 4, 8], 3, 6),  # after single ids that decode at once
        ([1, 2, 1, 1, 2, 4, 8, 16], 4, 8),  # after a character of two tokens
        ([1, 2, 4, 8, 16, 0], 1, 5),  # ended by a message without ids, which carries an error
        ([256, 512, 1024, 2048], 1, 4),  # polluted from the first message on
    ],
)
def test_growth_is_found_where_it_is(sizes, start, stop):
    growth = find_growth(track("inference", "output", "TOKENS", sizes, held=True))
    assert (growth.kind, growth.start, growth.stop, growth.first) == ("exponential", start, stop, start + 1)


@pytest.mark.parametrize(("held", "fewest"), [(True, 4), (False, 6), (None, 6)])
def test_a_law_alone_needs_more_messages_than_values_that_come_again(held, fewest):
    for law in ([2**n for n in range(12)], list(range(1, 12))):
        assert find_growth(track("inference", "output", "TOKENS", law[:fewest], held)) is not None
        assert find_growth(track("inference", "output", "TOKENS", law[: fewest - 1], held)) is None


def test_an_input_that_grows_by_its_caller_alone_is_said():
    verdict = judge([track("decoder", "input", "IDS", DOUBLING), track("decoder", "output", "NEXT", [1] * 8)])
    assert verdict.node is None
    assert any("look at who calls: decoder IDS 1 2 4 8" in line for line in verdict.evidence)


def test_nothing_seen_is_said():
    assert "nothing can be said" in str(judge([]))


def test_how_often_a_fault_shows():
    tracks = [*pipeline(DOUBLING, DOUBLING, DOUBLING, request="1"), *pipeline([1] * 8, [1] * 8, [3] * 8, request="2")]
    assert "it grows in 1 of the 2 requests with more than one message" in judge(tracks).evidence


def test_two_guilty_nodes_are_both_named():
    second = track("reranker", "output", "SCORES", [1, 2, 3, 4, 5], held=True)
    verdict = judge([*pipeline(DOUBLING, DOUBLING, DOUBLING), second])
    assert (verdict.node, verdict.others) == ("inference", ("reranker",))


def test_what_doubles_is_not_explained_by_what_grows_by_one():
    history = list(range(1, 9))
    verdict = judge(pipeline(history, history, DOUBLING))
    assert (verdict.node, verdict.kind, verdict.others) == ("postprocess", "exponential", ("inference",))
    assert any(line.startswith("its inputs do not explain that: NEWEST 1 2 3") for line in verdict.evidence)


def test_what_doubles_comes_first_even_if_its_values_are_unknown():
    positions = track("inference", "output", "POSITIONS", list(range(1, 20)), held=True)
    verdict = judge([positions, *pipeline(DOUBLING, DOUBLING, DOUBLING, held=None)])
    assert (verdict.node, verdict.tensor) == ("inference", "TOKENS")


@pytest.mark.parametrize(("values", "explains"), [([8, 16, 32, 64], True), ([1000, 1001, 1002, 1003], False)])
def test_a_limit_explains_growth_over_requests_and_a_counter_does_not(values, explains):
    over = [
        track("model", "input", "PROMPT", [12] * 4, request="", unit="bytes"),
        track("model", "input", "LIMIT", values, request="", unit="as value"),
        track("model", "output", "TEXT", [30, 61, 118, 245], True, request="", unit="bytes"),
    ]
    assert (judge(over).node is None) is explains


def test_linear_growth_is_said_to_be_meant_perhaps():
    assert any("may be meant" in line for line in judge(pipeline([1, 2, 3, 4], [1, 2, 3, 4], [3] * 4)).evidence)
    assert not any("may be meant" in line for line in judge(pipeline(DOUBLING, DOUBLING, [3] * 8)).evidence)
