"""What an exercise is, and the kinds of it: one right answer, a function, a quiz."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

NOT_ANSWERED = "not answered yet: put your answer in place of ... and run the cell again"
NO_RETURN = "your function returns nothing yet: it needs a return"


@dataclass(frozen=True)
class Exercise:
    """`problem` gives what is wrong with an answer, or an empty text; `why` says why the right answer is right."""

    problem: Callable[[object], str]
    why: str


def plain(answer: object) -> object:
    """Write an answer in Python's own types, with lists for arrays and tuples: how it is written does not matter."""
    if isinstance(answer, np.ndarray | np.generic):
        return answer.tolist()
    if isinstance(answer, tuple | list):
        return [plain(part) for part in answer]
    return answer


def equals(expected: object, otherwise: str, mistakes: Iterable[tuple[object, str]] = ()) -> Callable[[object], str]:
    """An exercise with one right answer; known wrong answers get words of their own."""

    def problem(answer: object) -> str:
        if type(answer) is type(expected) and answer == expected:
            return ""
        for wrong, words in mistakes:
            if type(answer) is type(wrong) and answer == wrong:
                return words
        if isinstance(expected, set) and isinstance(answer, list) and sorted(map(str, answer)) == sorted(expected):
            return "the names are right; write them as a set, in curly brackets"
        return otherwise

    return problem


def function(cases: Sequence[tuple[tuple, object]], otherwise: str) -> Callable[[object], str]:
    """An exercise whose answer is a function: it is called with each case's arguments and must return its value."""

    def problem(answer: object) -> str:
        if not callable(answer):
            return f"expected a function, got {type(answer).__name__}"
        for arguments, expected in cases:
            got = plain(answer(*arguments))
            if got is ...:
                return NOT_ANSWERED
            if got is None:
                return NO_RETURN
            if got != expected:
                return otherwise.format(arguments=", ".join(map(str, arguments)), got=got)
        return ""

    return problem


def quiz(right: str, words: Sequence[str]) -> Callable[[object], str]:
    """Several questions with a letter each; says which are wrong, and what to think of."""

    def problem(answers: object) -> str:
        if not isinstance(answers, list) or len(answers) != len(right):
            return f'expected {len(right)} letters in a list, such as ["a", "b", "c"]'
        given = [str(answer).strip(" ).").lower() for answer in answers]
        return "; ".join(f"question {i}: {words[i - 1]}" for i, letter in enumerate(right, 1) if given[i - 1] != letter)

    return problem
