"""The exercises of lesson 06."""

import traceback
from collections.abc import Callable

from lab_utils.exercise_kinds import NO_RETURN, NOT_ANSWERED, Exercise, equals, plain, quiz

WHOLE_NUMBER = "one whole number, without quotes or brackets"
WELL = [False, False, False, True]
STREAMS = [
    ([1, 2, 3, 4], WELL, True, "a healthy stream"),
    ([1], [True], True, "a healthy stream of one message"),
    ([1, 1, 1, 1], WELL, False, "an index that never counts on"),
    ([1, 2, 4, 5], WELL, False, "a message that was lost"),
    ([1, 3, 2, 4], WELL, False, "two messages that changed places"),
    ([2, 3, 4, 5], WELL, False, "a first message that was lost"),
    ([0, 1, 2, 3], WELL, False, "an index that begins with 0"),
    ([1, 2, 3, 4], [False] * 4, False, "an end mark that never comes"),
    ([1, 2, 3, 4], [False, False, True, True], False, "an end mark that comes twice"),
    ([1, 2, 3, 4], [False, True, False, False], False, "an end mark in the middle"),
    ([1, 2, 3, 4], [True, False, False, True], False, "an end mark on the first message, and on the last"),
    ([1], [False], False, "a single message without an end mark"),
    ([], [], False, "a stream without any message: its end mark never came"),
]
"""Index of each message, end mark of each message, whether the stream keeps the contract, and what it shows."""


def _keeps_contract(rule: object) -> str:
    """Try the learner's rule on streams that the lesson does not show."""
    if not callable(rule):
        return f"expected a function, got {type(rule).__name__}"
    for index, ends, expected, name in STREAMS:
        stream = f"{name}, index {index} and ends {ends}"
        try:
            got = plain(rule(list(index), list(ends)))
        except Exception as error:  # whatever a learner wrote must not end in a traceback
            words = "".join(traceback.format_exception_only(error)).strip()
            return f"{stream}: your function stopped with {words}"
        if got is ...:
            return NOT_ANSWERED
        if got is None:
            return NO_RETURN
        if not isinstance(got, bool):
            return f"your function returned {type(got).__name__}; it has to return True or False"
        if got != expected:
            return f"{stream}: your function says {got}"
    return ""


CELLS = {"late_id at the edge": 0, "late_id at the consumer": 2, "lost_end at the consumer": 0}


def _late_at_the_consumer(given: object) -> str:
    if given == 1:
        return "there is no id before the first, so message 1 still holds its own"
    return "the consumer's guard recomputes the checksum of the ids that it received; which is the first wrong one?"


CELL_HINTS: dict[str, Callable[[object], str]] = {
    "late_id at the edge": lambda _: "the edge compares dims and dtype; the late id is one INT32 id like any other",
    "late_id at the consumer": _late_at_the_consumer,
    "lost_end at the consumer": lambda _: (
        "the consumer is called once a message: who calls it to say that no more come?"
    ),
}


def _cells(answer: object) -> str:
    """A hint for each wrong cell."""
    if not isinstance(answer, dict) or set(answer) != set(CELLS):
        return f"expected one number for each of {', '.join(CELLS)}"
    if any(isinstance(given, str | list) for given in answer.values()):
        return f"each of the three is {WHOLE_NUMBER}"
    wrong = [name for name, right in CELLS.items() if answer[name] != right]
    return "; ".join(f"{name}: {CELL_HINTS[name](answer[name])}" for name in wrong)


LESSON_06: dict[str, Exercise] = {
    "06-refused": Exercise(
        equals(
            2,
            "the lengths are 1 2 3 1 1 1 1 1, and only length 1 is allowed: which is the first that is not?",
            [
                (1, "message 1 holds one id, as it should"),
                (3, "message 3 is too long as well, but another one comes before it"),
                (4, "message 4 holds one id again; look at those before it"),
                ("2", f"write {WHOLE_NUMBER}"),
                ([2], f"write {WHOLE_NUMBER}"),
            ],
        ),
        "Message 2 holds two ids, and the consumer declares one.",
    ),
    "06-rule": Exercise(
        _keeps_contract,
        "The whole list is compared, so every way to be wrong is covered: lost, repeated, swapped, too early, missing.",
    ),
    "06-cells": Exercise(
        _cells,
        "Dims do not know values. The checksum does, from the first wrong id on. And the consumer is called once for "
        "each message: nobody calls it to say that there is no more.",
    ),
    "06-quiz": Exercise(
        quiz(
            "bac",
            [
                "who compared the dtype when inference_mutant was called alone?",
                "which of the two ensembles could be unloaded?",
                "a checksum of the ids that are about to be sent agrees with them, right or wrong",
            ],
        ),
        "Triton checks what enters a model, an error inside the message leaves nothing behind, and a checksum proves "
        "only what happened after it was taken.",
    ),
}
