"""The contract of a stream, checked message by message: each rule, their order, and any stream with one change."""

import zlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pytest
from guard import ContractError, StreamGuard
from hypothesis import assume, given
from hypothesis import strategies as st

VOCABULARY = 1_000
STREAM = 7
RULES = ["dtype", "rank", "length", "vocabulary", "stream", "index", "end", "checksum"]


class Sent(NamedTuple):
    """One message, in the order of the arguments of `StreamGuard.check`."""

    ids: np.ndarray
    index: int
    stream_id: int
    end: bool
    checksum: int


def array(*ids: int) -> np.ndarray:
    return np.array(ids, dtype=np.int32)


def healthy(*ids: int) -> list[Sent]:
    crcs = [zlib.crc32(np.array(ids[:n], dtype="<i4").tobytes()) for n in range(1, len(ids) + 1)]
    return [
        Sent(array(one), n, STREAM, n == len(ids), crc) for n, (one, crc) in enumerate(zip(ids, crcs, strict=True), 1)
    ]


def verdict(messages: Iterable[Sent]) -> tuple[int, str]:
    """The first message that is refused, from 1, and the rule it breaks; (0, "") where all pass and the end is told."""
    guard, passed = StreamGuard(VOCABULARY), 0
    try:
        for message in messages:
            guard.check(*message)
            passed += 1
        guard.finish()
    except ContractError as error:
        return passed + 1, error.rule
    return 0, ""


def changed(messages: list[Sent], number: int, **change: object) -> list[Sent]:
    """The stream with one message changed; `number` counts from 1."""
    return [one._replace(**change) if n == number else one for n, one in enumerate(messages, 1)]


# --- each rule --------------------------------------------------------------------------------------------------------

BREAKS = {
    "int64": ({"ids": np.array([20])}, "dtype", "TOKEN_IDS is int64; expected int32"),
    "float": ({"ids": np.array([20.0])}, "dtype", "TOKEN_IDS is float64; expected int32"),
    "big-endian": ({"ids": array(20).astype(">i4")}, "dtype", "TOKEN_IDS is >i4; expected int32"),
    "matrix": ({"ids": array(20).reshape(1, 1)}, "rank", r"TOKEN_IDS has dims \[1, 1\]; expected \[1\]"),
    "scalar": ({"ids": np.int32(20)}, "rank", r"TOKEN_IDS has dims \[\]; expected \[1\]"),
    "two ids": ({"ids": array(10, 20)}, "length", "TOKEN_IDS holds 2 ids; expected 1"),
    "no id": ({"ids": array()}, "length", "TOKEN_IDS holds 0 ids; expected 1"),
    "many ids": ({"ids": np.zeros(134_217_728 // 64, np.int32)}, "length", "holds 2,097,152 ids; expected 1"),
    "negative id": ({"ids": array(-1)}, "vocabulary", r"id -1 is not in the vocabulary \(0 to 999\)"),
    "id too large": ({"ids": array(1_000)}, "vocabulary", r"id 1000 is not in the vocabulary \(0 to 999\)"),
    "other stream": ({"stream_id": 8}, "stream", "STREAM_ID is 8; the stream began with 7"),
    "index again": ({"index": 1}, "index", "INDEX is 1; expected 2"),
    "index skipped": ({"index": 3}, "index", "INDEX is 3; expected 2"),
    "index of nothing": ({"index": 0}, "index", "INDEX is 0; expected 2"),
    "other id": ({"ids": array(21)}, "checksum", "its ids are not those that the model made"),
    "other checksum": ({"checksum": 0}, "checksum", "its ids are not those that the model made"),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_broken_rule_is_named_at_its_message_with_what_was_expected(case):
    change, rule, words = BREAKS[case]
    first, second, _ = changed(healthy(10, 20, 30), 2, **change)
    guard = StreamGuard(VOCABULARY)
    guard.check(*first)
    kept = rf"^1 message\(s\) of the stream kept the contract; the next one does not \({rule}\): "
    with pytest.raises(ContractError, match=f"{kept}.*{words}$") as caught:
        guard.check(*second)
    assert caught.value.rule == rule


def test_the_bounds_of_the_vocabulary_are_in_it():
    assert verdict(healthy(0, VOCABULARY - 1)) == (0, "")


def test_nothing_comes_after_the_end_mark():
    guard = StreamGuard(VOCABULARY)
    first, last, after = changed(healthy(10, 20, 30), 2, end=True)
    guard.check(*first)
    guard.check(*last)
    with pytest.raises(ContractError, match=r"^2 message\(s\).*\(end\): it comes after the end mark$"):
        guard.check(*after)


def test_a_stream_without_an_end_mark_is_refused_when_it_is_over():
    guard = StreamGuard(VOCABULARY)
    for message in changed(healthy(10, 20), 2, end=False):
        guard.check(*message)
    with pytest.raises(ContractError, match=r"the stream has 2 message\(s\), and none has the end mark") as caught:
        guard.finish()
    assert caught.value.rule == "end"


def test_a_stream_of_no_messages_has_no_end_mark():
    with pytest.raises(ContractError, match=r"the stream has 0 message\(s\)"):
        StreamGuard(VOCABULARY).finish()


def test_a_first_message_may_not_be_the_second():
    assert verdict(healthy(10, 20)[1:]) == (1, "index")


def test_a_lost_message_shows_at_the_next_one():
    first, _, third, _ = healthy(10, 20, 30, 40)
    assert verdict([first, third._replace(index=2)]) == (2, "checksum")
    assert verdict([first, third]) == (2, "index")


def test_a_stream_that_broke_its_contract_stays_broken():
    """Out of order, 1 3 2: the second message is well by itself, but the stream is not."""
    first, second, third = healthy(10, 20, 30)
    guard = StreamGuard(VOCABULARY)
    guard.check(*first)
    for message in (third, second, third):
        with pytest.raises(ContractError, match="INDEX is 3; expected 2"):
            guard.check(*message)
    assert guard.index == 1


def test_a_contract_error_is_bad_input_in_its_own_words():
    """The nodes tell a client a ValueError without the name of its class."""
    assert issubclass(ContractError, ValueError)


# --- their order ------------------------------------------------------------------------------------------------------

# For each rule a change that breaks it, on the third message; "end" is broken on the second, so that it is seen there.
CHANGES = {
    "dtype": {"ids": lambda ids: ids.astype(np.int64)},
    "rank": {"ids": lambda ids: ids.reshape(1, -1)},
    "length": {"ids": lambda ids: np.repeat(ids, 2, axis=-1)},
    "vocabulary": {"ids": lambda ids: ids + np.int32(VOCABULARY)},
    "stream": {"stream_id": lambda stream_id: stream_id + 1},
    "index": {"index": lambda index: index + 1},
    "checksum": {"checksum": lambda checksum: checksum ^ 1},
}


def broken(rules: Iterable[str]) -> list[Sent]:
    first, second, third = healthy(10, 20, 30)
    for rule in rules:
        if rule == "end":
            second = second._replace(end=True)
            continue
        ((name, change),) = CHANGES[rule].items()
        third = third._replace(**{name: change(getattr(third, name))})
    return [first, second, third]


@pytest.mark.parametrize("place", range(len(RULES)))
def test_of_several_broken_rules_the_first_is_named(place):
    assert verdict(broken(RULES[place:])) == (3, RULES[place])


@given(st.sets(st.sampled_from(RULES), min_size=1))
def test_of_any_broken_rules_the_first_is_named(rules):
    assert verdict(broken(rules)) == (3, min(rules, key=RULES.index))


# --- any stream -------------------------------------------------------------------------------------------------------

ids_of_a_stream = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20)


@given(ids_of_a_stream)
def test_any_valid_stream_passes(ids):
    assert verdict(healthy(*ids)) == (0, "")


def a_change(rule: str, data: st.DataObject, sent: Sent) -> dict[str, object]:
    """A way to break the rule in this message, and no rule before it."""
    numbers, ids = st.integers(-(2**31), 2**31 - 1), sent.ids
    made = {
        "dtype": lambda: {"ids": ids.astype(data.draw(st.sampled_from([">i4", "i8", "u4", "i2", "f4", "?"])))},
        "rank": lambda: {"ids": ids.reshape(data.draw(st.sampled_from([(), (1, 1), (1, 1, 1)])))},
        "length": lambda: {"ids": np.resize(ids, data.draw(st.integers(0, 50).filter(lambda n: n != 1)))},
        "vocabulary": lambda: {"ids": array(data.draw(numbers.filter(lambda n: not 0 <= n < VOCABULARY)))},
        "stream": lambda: {"stream_id": data.draw(st.integers(0, 2**63 - 1))},
        "index": lambda: {"index": data.draw(numbers)},
        "checksum": lambda: {"ids": array(data.draw(st.integers(0, VOCABULARY - 1)))},
    }[rule]()
    ((name, value),) = made.items()
    old = getattr(sent, name)
    assume(rule in ("dtype", "rank", "length") or not np.array_equal(old, value))
    return made


@given(ids=ids_of_a_stream, rule=st.sampled_from([rule for rule in RULES if rule != "end"]), data=st.data())
def test_any_single_change_is_refused_at_its_message_by_its_rule(ids, rule, data):
    at = data.draw(st.integers(1, len(ids)))
    assume(rule != "stream" or at > 1)  # the first message tells the stream's id
    messages = healthy(*ids)
    assert verdict(changed(messages, at, **a_change(rule, data, messages[at - 1]))) == (at, rule)


@given(ids=ids_of_a_stream, data=st.data())
def test_an_end_mark_too_early_or_lost_is_refused(ids, data):
    at = data.draw(st.integers(1, len(ids)))
    messages = healthy(*ids)
    assert verdict(changed(messages, at, end=at < len(ids))) == (at + 1, "end")


@given(ids=ids_of_a_stream, data=st.data())
def test_a_message_lost_repeated_or_moved_is_refused(ids, data):
    at = data.draw(st.integers(0, len(ids) - 1))
    messages = healthy(*ids)
    lost = verdict([*messages[:at], *messages[at + 1 :]])
    assert lost == ((at + 1, "index") if at < len(ids) - 1 else (len(ids), "end"))
    assert verdict([*messages[: at + 1], *messages[at:]]) == (at + 2, "index")
    if at:
        assert verdict([*messages[: at - 1], messages[at], messages[at - 1], *messages[at + 1 :]]) == (at, "index")
