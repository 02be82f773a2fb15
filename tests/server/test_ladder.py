"""The four rungs on the real server: lengths, ids, marks and text of every message."""

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab_utils.big_run import big_run
from lab_utils.client import StreamError, StreamResult, stream
from lab_utils.field_report import REPORTED_IDS, REPORTED_PROMPT, REPORTED_TOKENS
from lab_utils.server import TritonServer

RUNGS = ("append", "release", "replace", "latest")
DOUBLING = [1, 2, 4, 8, 16, 32, 64, 128]
REPORTED_LENGTHS = {"append": DOUBLING, "release": DOUBLING, "replace": [1, 2, 3, 1, 1, 1, 1, 1], "latest": [1] * 8}
ENGLISH = [
    "Pancakes. Ingredients:",
    "Vanilla ice cream. Ingredients",
    "Guacamole. Ingredients:",
    "Kitchen tip: 1 teaspoon",
]
HARD_LIMIT = 2**27  # ids in one message: 134,217,728
RULE = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the server is shared by all examples, on purpose
)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), min_size=1, max_size=40)


def forced(server: TritonServer, rung: str, ids: Sequence[int], **options) -> StreamResult:
    """Stream given ids instead of generated ones, all of them."""
    return stream(server, f"ensemble_{rung}", "x", max_tokens=len(ids), forced_ids=ids, **options)


def cumulated(count: int) -> list[int]:
    """The reported tokens as rung 1 repeats them: what its buffer holds after `count` messages."""
    buffer: list[int] = []
    for token in REPORTED_TOKENS[:count]:
        buffer = [*buffer, *buffer, token]
    return buffer


# --- lengths ----------------------------------------------------------------------------------------------------------


def test_lengths_of_the_reported_prompt_on_every_rung_and_rung_1_pollutes_no_other(clean_server):
    lengths = {rung: stream(clean_server, f"ensemble_{rung}", REPORTED_PROMPT).lengths for rung in RUNGS}
    assert lengths == REPORTED_LENGTHS


def test_english_never_shows_the_bug(clean_server):
    for rung in RUNGS:
        for prompt in ENGLISH:
            result = stream(clean_server, f"ensemble_{rung}", prompt, max_tokens=16)
            assert result.lengths == [1] * 16, (rung, prompt)
            assert result.text.isascii()
            assert len(result.text) > 16


def test_a_cup_of_tea_as_its_four_tokens(clean_server, tokenizer):
    ids = tokenizer.encode("a cup of tea")
    for rung in RUNGS:
        result = forced(clean_server, rung, ids)
        assert result.ids == [[token] for token in ids], rung
        assert [seen.text for seen in result.observations] == ["a", " cup", " of", " tea"]


# --- rung 1: the bug --------------------------------------------------------------------------------------------------


def test_the_eighth_message_is_the_reported_array_and_the_next_prompt_is_polluted(clean_server):
    first = stream(clean_server, "ensemble_append", REPORTED_PROMPT)
    assert first.ids[7] == REPORTED_IDS
    assert first.ids == [[*cumulated(n), token] for n, token in enumerate(REPORTED_TOKENS)]
    second = stream(clean_server, "ensemble_append", "Pancakes. Ingredients:", max_tokens=4)
    assert second.lengths == [256, 512, 1024, 2048]
    assert second.ids[0][:255] == [token for message in first.ids for token in message]
    clean_server.reload("inference")
    assert stream(clean_server, "ensemble_append", REPORTED_PROMPT).ids == first.ids


def test_the_pollution_crosses_clean_requests_and_grows(clean_server, tokenizer):
    tea = tokenizer.encode("a cup of tea")
    lengths = [forced(clean_server, "append", ids).lengths for ids in (tea, REPORTED_TOKENS, tea, REPORTED_TOKENS)]
    assert lengths == [[1] * 4, DOUBLING, [256, 512, 1024, 2048], [2**n for n in range(12, 20)]]


# --- rungs 2 and 3 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rung", RUNGS[1:])
def test_the_second_request_is_as_clean_as_the_first(server, rung):
    first, second = (stream(server, f"ensemble_{rung}", REPORTED_PROMPT) for _ in range(2))
    assert first.ids == second.ids
    assert first.text == second.text
    assert stream(server, f"ensemble_{rung}", ENGLISH[0]).lengths == [1] * 8


def expected_messages(rung: str, tokens: Sequence[int], decode) -> Iterator[list[int]]:
    """The rule of DESIGN, in plain lists: U+FFFD in the text of a message means that it does not decode cleanly."""
    pending: list[int] = []
    for token in tokens:
        message = [*pending, token]
        yield message
        repeated = {"release": [*pending, *message], "replace": message, "latest": []}[rung]
        pending = repeated if "\ufffd" in decode(message) else []


@RULE
@given(text=TEXT)
def test_messages_of_any_text_follow_the_rule(server, tokenizer, text):
    ids = tokenizer.encode(text, allowed_special=set())[:10]
    for rung in RUNGS[1:]:
        assert forced(server, rung, ids).ids == list(expected_messages(rung, ids, tokenizer.decode))


def test_which_characters_trigger_the_doubling(server, tokenizer):
    one_token, two_tokens, three_tokens = tokenizer.encode("茶"), tokenizer.encode(" ñ"), tokenizer.encode(" 茶")
    assert [len(one_token), len(two_tokens), len(three_tokens)] == [1, 2, 3]
    assert forced(server, "release", one_token * 3).lengths == [1, 1, 1]
    assert forced(server, "release", two_tokens * 2).lengths == [1, 2, 1, 2]
    assert forced(server, "release", three_tokens * 2).lengths == [1, 2, 4, 8, 16, 32]
    assert forced(server, "replace", three_tokens * 2).lengths == [1, 2, 3, 1, 2, 3]


# --- rung 4: the text -------------------------------------------------------------------------------------------------


def test_text_of_the_whole_run_is_the_reference(server, tokenizer, corpus):
    result = stream(server, "ensemble_latest", REPORTED_PROMPT, max_tokens=200)
    expected = tokenizer.encode(corpus[0])[len(tokenizer.encode(REPORTED_PROMPT)) :]
    assert len(expected) == 95
    assert result.ids == [[token] for token in expected]
    assert result.text == tokenizer.decode(expected) == corpus[0].removeprefix(REPORTED_PROMPT)


def test_text_of_every_line_of_the_corpus(server, tokenizer, corpus):
    assert len(corpus) == 87
    for line in corpus:
        result = forced(server, "latest", tokenizer.encode(line))
        assert result.text == line
        assert set(result.lengths) == {1}


@pytest.mark.parametrize(
    "text", ["👩‍👩‍👧‍👦", "👩🏽‍🚀🏳️‍🌈", "🇨🇳🇩🇪", "e\u0301 ñ ﷽ 𝔘𝔫𝔦", "नमस्ते สวัสดี שלום", "\x00\u200b\U0010ffff", "𠜎𠜱 茶"]
)
def test_text_of_hard_characters(server, tokenizer, text):
    ids = tokenizer.encode(text)
    result = forced(server, "latest", ids)
    assert result.text == tokenizer.decode(ids)
    assert "\ufffd" not in result.text


@RULE
@given(text=TEXT)
def test_text_of_anything(server, tokenizer, text):
    ids = tokenizer.encode(text, allowed_special=set())
    result = forced(server, "latest", ids)
    assert result.text == tokenizer.decode(ids)
    assert "\ufffd" not in result.text


def test_a_character_is_held_back_until_it_is_whole(server):
    texts = [seen.text for seen in forced(server, "latest", REPORTED_TOKENS[:4]).observations]
    assert texts == [" ", "", "茶", "匙"]  # the first token is the space and the first byte of three


def test_a_character_that_stays_incomplete_is_said_at_the_end(server):
    texts = [seen.text for seen in forced(server, "latest", REPORTED_TOKENS[:2]).observations]
    assert texts == [" ", "\ufffd"]
    assert forced(server, "latest", REPORTED_TOKENS[3:4]).text == "匙"


# --- index and end mark -----------------------------------------------------------------------------------------------


def assert_marked(result: StreamResult) -> None:
    """Indices 1 to n, and the end mark on the n-th alone."""
    count = len(result.observations)
    assert [seen.index for seen in result.observations] == list(range(1, count + 1))
    assert [seen.iteration for seen in result.observations] == list(range(1, count + 1))
    assert [seen.end for seen in result.observations] == [False] * (count - 1) + [True]


@pytest.mark.parametrize("rung", RUNGS)
def test_index_counts_from_one_and_end_is_on_the_last_message_only(server, rung):
    if rung == "append":
        server.reload("inference")
    for tokens in (1, 2, 8):  # on rung 1, the second and third start polluted
        result = stream(server, f"ensemble_{rung}", REPORTED_PROMPT, max_tokens=tokens, dims_only=True)
        assert len(result.observations) == tokens
        assert_marked(result)


@pytest.mark.parametrize("rung", RUNGS[1:])
def test_end_is_on_the_last_message_of_a_text_that_ends_by_itself(server, rung):
    result = stream(server, f"ensemble_{rung}", "Pancakes. Ingredients:", max_tokens=200)
    assert 20 < len(result.observations) < 200
    assert_marked(result)


def test_a_complete_text_gives_one_message_without_ids(clean_server, corpus):
    for rung in RUNGS:
        (only,) = stream(clean_server, f"ensemble_{rung}", corpus[0], max_tokens=8).observations
        assert only.dims == (0,)
        assert only.ids.tolist() == []
        assert (only.text, only.index, only.end, only.nbytes) == ("", 0, True, 0)


# --- caps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rung", ["append", "release"])
def test_a_soft_cap_ends_the_stream_in_band_and_keeps_what_came_before(server, rung):
    if rung == "append":
        server.reload("inference")
    words = r"the inference node ended the stream after 4 responses: message 5 would hold 16 ids; at most 10 "
    with pytest.raises(StreamError, match=rf"{words}.*max_message_ids") as caught:
        stream(server, f"ensemble_{rung}", REPORTED_PROMPT, max_message_ids=10)
    assert caught.value.result.lengths == [1, 2, 4, 8]
    assert [seen.index for seen in caught.value.result.observations] == [1, 2, 3, 4]
    assert not any(seen.end for seen in caught.value.result.observations)


def test_the_cap_itself_is_allowed(server):
    assert stream(server, "ensemble_release", REPORTED_PROMPT, max_message_ids=128).lengths == DOUBLING
    with pytest.raises(StreamError, match="message 8 would hold 128 ids; at most 127 "):
        stream(server, "ensemble_release", REPORTED_PROMPT, max_message_ids=127)


@pytest.mark.parametrize("rung", ["append", "release"])
def test_ninety_five_tokens_are_refused_at_the_default_cap(server, rung):
    if rung == "append":
        server.reload("inference")
    with pytest.raises(StreamError, match="message 22 would hold 2,097,152 ids; at most 1,048,576") as caught:
        stream(server, f"ensemble_{rung}", REPORTED_PROMPT, max_tokens=95, dims_only=True)
    assert caught.value.result.lengths == [2**n for n in range(21)]


def test_rung_1_stays_full_after_its_cap_until_it_is_reloaded(clean_server):
    with pytest.raises(StreamError):
        stream(clean_server, "ensemble_append", REPORTED_PROMPT, max_message_ids=10)
    with pytest.raises(StreamError, match=r"message 1 would hold 16 ids.*reload the model") as caught:
        stream(clean_server, "ensemble_append", ENGLISH[0], max_message_ids=10)
    assert caught.value.result.lengths == []
    clean_server.reload("inference")
    assert stream(clean_server, "ensemble_append", ENGLISH[0], max_message_ids=1).lengths == [1] * 8


def test_no_request_may_ask_for_more_than_the_hard_cap(server):
    with pytest.raises(
        StreamError, match=r"max_message_ids.* 134217729; expected a whole number from 1 to 134,217,728"
    ):
        stream(server, "ensemble_release", REPORTED_PROMPT, max_message_ids=HARD_LIMIT + 1)
    assert stream(server, "ensemble_release", REPORTED_PROMPT, max_message_ids=HARD_LIMIT).lengths == DOUBLING


def test_the_big_run_to_22_is_exact():
    run = big_run(22, report=lambda _: None)
    assert run.lengths == [2**n for n in range(22)]
    assert (run.n, run.limit) == (22, "")
