"""The check of the buffer rule tells the mistakes apart, and takes every rule that sends the same."""

import itertools
import sys

import answers_05
import numpy as np
import pytest

from lab_utils.buffer_rules import TEXTS, WORDS, replace, rule_problem, token_bytes
from lab_utils.exercises import verdict
from lab_utils.server import MODEL_REPOSITORY
from lab_utils.survey import tokens_of


@pytest.fixture(autouse=True)
def _nothing_left_over():
    answers_05.LEFT_OVER.clear()


@pytest.mark.parametrize("rule", answers_05.VARIANTS, ids=lambda rule: rule.__name__)
def test_every_rule_that_sends_the_same_is_right(rule):
    assert rule_problem(rule) == ""
    assert rule_problem(rule) == ""  # and again: nothing is kept


@pytest.mark.parametrize(
    ("rule", "words"), [pytest.param(rule, words, id=rule.__name__) for rule, words in answers_05.MISTAKES.items()]
)
def test_each_mistake_is_told_apart(rule, words):
    said = verdict("05-rule", rule)
    assert words in said
    others = {text for name, text in WORDS.items() if words not in text}
    assert not [text for text in others if text in said]


@pytest.mark.parametrize("name", ["extend", "stale_length", "missing_clear", "late_clear"])
def test_the_shipped_mutations_get_the_words_of_their_mistake(name, monkeypatch):
    monkeypatch.syspath_prepend(str(MODEL_REPOSITORY / "inference_mutant"))
    mutations = pytest.importorskip("mutations")

    def rule(tokens, clean):
        as_arrays = (mutations.np.array([token], dtype=mutations.np.int32) for token in tokens)
        yield from mutations.BUFFER[name](as_arrays, clean)

    said = rule_problem(rule)
    sys.modules.pop("mutations")
    assert WORDS[name] in said


def test_a_rule_that_keeps_ids_fails_at_the_second_try_as_well():
    for _ in range(2):
        assert WORDS["leak"] in rule_problem(answers_05.leak)


@pytest.mark.parametrize("message", [..., [..., 5], (...,)], ids=repr)
def test_dots_in_place_of_a_message_are_no_answer(message):
    def unanswered(tokens, clean):
        for _ in tokens:
            yield message

    assert verdict("05-rule", unanswered).startswith("not answered yet")


def test_the_texts_are_tokens_of_characters_in_one_to_four_pieces():
    table = token_bytes()
    spoken = {name: table.join(np.array(ids)).decode("utf-8", "replace") for name, ids in TEXTS.items()}
    assert [name for name, text in spoken.items() if "\ufffd" in text] == [
        "a text that ends within a character",
        "two texts in one",
    ]
    for name, text in spoken.items():
        if "\ufffd" not in text:
            assert tokens_of(text) == TEXTS[name]
    lengths = {len(m) for ids in TEXTS.values() for m in replace(ids, table.decodes_cleanly)}
    assert lengths == {1, 2, 3, 4}


def test_the_reference_rule_is_that_of_version_3():
    source = (MODEL_REPOSITORY / "inference" / "3" / "model.py").read_text(encoding="utf-8")
    assert "pending = NO_IDS if clean else message" in source
    reported = [8908, 234, 114, 103081, 99662, 99808, 99219, 9909]
    assert list(map(len, replace(reported, token_bytes().decodes_cleanly))) == [1, 2, 3, 1, 1, 1, 1, 1]


def test_no_two_mistakes_are_told_in_the_same_words():
    assert all(first != second for first, second in itertools.combinations(WORDS.values(), 2))
    assert all(
        text in "".join(map(verdict, itertools.repeat("05-rule"), answers_05.MISTAKES))
        for text in {words for name, words in WORDS.items() if name != "other"}
    )
