"""The exercise checks: what is right is called right, and nothing else is, whatever a learner writes."""

import inspect
import itertools
import math
import sys
from collections.abc import Callable

import answers_04
import answers_05
import answers_06
import answers_07
import answers_08
import answers_09
import answers_10
import numpy as np
import pytest

from lab_utils import custom_backend
from lab_utils.exercises import EXERCISES, NOT_ANSWERED, check, verdict
from lab_utils.field_report import REPORTED_IDS

RIGHT = {
    "00-messages": 5,
    "00-text": "".join,
    "00-quiz": ["b", "a", "c"],
    "01-open": {"PROMPT_IDS", "TOKEN_IDS"},
    "01-lengths": [1, 1, 1, 1, 1, 1],
    "01-decoupled": "inference",
    "01-quiz": ["c", "a", "b"],
    "02-lengths": [1, 2, 4, 8, 16, 32, 64, 128],
    "02-formula": lambda n: 2 ** (n - 1),
    "02-gib": 29,
    "02-next": 256,
    "02-quiz": ["b", "c", "a"],
    "03-node": "inference",
    "03-previous": REPORTED_IDS[63:127],
    "03-rule": lambda pending, message: pending + message,
    "03-trigger": {"a": False, "茶": False, " 匙": False, " 茶": True},
    "03-quiz": ["b", "c", "a"],
    **answers_04.RIGHT,
    **answers_05.RIGHT,
    **answers_06.RIGHT,
    **answers_07.RIGHT,
    **answers_08.RIGHT,
    **answers_09.RIGHT,
    **answers_10.RIGHT,
}

NEAR_MISSES = {
    "00-messages": [0, 4, 10, 24, "5", [5], "five", [1, 2, 3, 4, 5]],
    "00-text": [
        " ".join,
        "\n".join,
        ", ".join,
        str,
        len,
        list,
        lambda pieces: pieces,
        lambda pieces: pieces[0],
        lambda pieces: "".join(pieces).strip(),
        lambda pieces: "".join(piece.strip() for piece in pieces),
        lambda pieces: "".join(reversed(pieces)),
        lambda pieces: "1 cup flour",
        lambda pieces: pieces[0] + pieces[1] + pieces[2],
        "1 cup flour",
    ],
    "01-open": [
        set(),
        {"TEXT"},
        {"RECEIVED_IDS"},
        {"PROMPT_IDS", "TOKEN_IDS", "STREAM_ID"},
        {"PROMPT_IDS", "TOKEN_IDS", "RECEIVED_IDS", "RECEIVED_DIMS"},
        {"prompt_ids", "token_ids"},
        "TOKEN_IDS",
        "PROMPT_IDS, TOKEN_IDS",
        2,
    ],
    "01-lengths": [[1] * 5, [1] * 7, [1] * 8, [6], [0] * 6, [[1]] * 6, [6] * 6, [1, 2, 4, 8, 16, 32], 1, "1 1 1 1 1 1"],
    "01-decoupled": [
        "client",
        "inference version 1",
        ["inference"],
        "ensemble",
        "decoupled",
        "INFERENCE",
        True,
        {"inference"},
    ],
    "02-lengths": [
        [1, 2, 4, 8, 16, 32, 64],
        [0, 2, 4, 8, 16, 32, 64, 128],
        [0, 1, 2, 4, 8, 16, 32, 64],
        [1, 2, 4, 8, 16, 32, 64, 128, 256],
        [128, 64, 32, 16, 8, 4, 2, 1],
        [1, 4, 9, 16, 25, 36, 49, 64],
        [16] * 8,
        [128] * 8,
        128,
        "1 2 4 8 16 32 64 128",
    ],
    "02-formula": [
        lambda n: n,
        lambda n: 2 * n,
        lambda n: n**2,
        lambda n: 2**n,
        lambda n: 2 ** (n + 1),
        lambda n: 2 ** (n - 2),
        lambda n: 2**n - 1,
        lambda n: 2 * (n - 1),
        lambda n: 2 ^ (n - 1),
        lambda n: 128,
        lambda n: min(2 ** (n - 1), 128),
        lambda n: [1, 2, 4, 8, 16, 32, 64, 128][n - 1],
        lambda n: 2 ** (n - 1) if n <= 20 else 524_288,
        lambda n: str(2 ** (n - 1)),
        lambda n: print(2 ** (n - 1)),
        lambda: 128,
        "2 ** (n - 1)",
        128,
    ],
    "02-gib": [26, 27, 32, 2**28, 2**30, "29", [29], 1],
    "02-next": [0, 2, 64, 254, 257, 511, 512, "256", [256]],
    "03-node": ["client", "TOKEN_IDS", "Inference", ["inference"], {"inference"}, "inference version 1", 2],
    "03-previous": [
        REPORTED_IDS,
        REPORTED_IDS[63:128],
        REPORTED_IDS[63:126],
        REPORTED_IDS[62:126],
        REPORTED_IDS[64:128],
        REPORTED_IDS[::2],
        REPORTED_IDS[126:62:-1],
        64,
        slice(63, 127),
    ],
    "03-rule": [
        lambda pending, message: message,  # the mended one
        lambda pending, message: message + pending,
        lambda pending, message: pending + message[-1:],
        lambda pending, message: [],
        lambda pending, message: pending,
        lambda pending, message: pending.extend(message),
        lambda pending, message: message + message,
        lambda pending, message: len(pending + message),
        lambda pending, message: str(pending + message),
        lambda pending, message: REPORTED_IDS[:127],
        lambda message: message,
        [1, 2, 4],
    ],
    "03-trigger": [
        {"a": True, "茶": True, " 匙": True, " 茶": True},
        {"a": False, "茶": False, " 匙": False, " 茶": False},
        {"a": False, " 茶": True},
        [False, False, False, True],
        " 茶",
        True,
    ],
    **answers_04.NEAR_MISSES,
    **answers_05.NEAR_MISSES,
    **answers_06.NEAR_MISSES,
    **answers_07.NEAR_MISSES,
    **answers_08.NEAR_MISSES,
    **answers_09.NEAR_MISSES,
    **answers_10.NEAR_MISSES,
}
QUIZZES = [name for name in EXERCISES if name.endswith("-quiz")]
for quiz_name in QUIZZES:
    letters = list(itertools.product("abcd", repeat=3))
    NEAR_MISSES[quiz_name] = [list(given) for given in letters if list(given) != RIGHT[quiz_name]]
    NEAR_MISSES[quiz_name] += [
        "".join(RIGHT[quiz_name]),
        RIGHT[quiz_name][:2],
        [*RIGHT[quiz_name], "a"],
        set("abc"),
        [],
    ]

FUNCTIONS = [name for name in EXERCISES if callable(RIGHT.get(name))]


def listed_mistakes() -> list[tuple[str, object, str]]:
    """Every wrong answer that has words of its own: exercise, answer, words."""
    found = []
    for name, exercise in EXERCISES.items():
        known = inspect.getclosurevars(exercise.problem).nonlocals.get("mistakes", ())
        found += [(name, answer, words) for answer, words in known]
    return found


def cases(table: dict[str, list]) -> list:
    return [pytest.param(name, answer, id=f"{name}-{i}") for name in table for i, answer in enumerate(table[name])]


def test_every_exercise_is_tested_here():
    assert set(RIGHT) == set(NEAR_MISSES) == set(EXERCISES)
    assert min(map(len, NEAR_MISSES.values())) >= 3


@pytest.mark.parametrize("name", EXERCISES)
def test_a_right_answer_is_right_and_says_why(name):
    assert verdict(name, RIGHT[name]) == f"right. {EXERCISES[name].why}"
    assert EXERCISES[name].why.endswith(".")


@pytest.mark.parametrize(("name", "answer"), cases(NEAR_MISSES))
def test_a_plausible_wrong_answer_is_not_right(name, answer):
    said = verdict(name, answer)
    assert said.startswith("not yet: ")
    assert len(said) > len("not yet: ") + 10


@pytest.mark.parametrize(("name", "answer", "words"), listed_mistakes())
def test_a_known_mistake_gets_words_of_its_own(name, answer, words):
    assert verdict(name, answer) == f"not yet: {words}"


@pytest.mark.parametrize(
    ("name", "answer", "part"),
    [
        ("00-messages", 1, "a plain model answers once"),
        ("00-messages", 6, "the end of the stream is a flag"),
        ("01-open", {"PROMPT_IDS"}, "one more, after the decoupled step"),
        ("01-open", {"TOKEN_IDS"}, "one more, before the decoupled step"),
        ("01-open", {"PROMPT_IDS", "TOKEN_IDS", "FORCED_IDS"}, "it comes from the client"),
        ("01-lengths", 6, "that is the number of messages"),
        ("01-lengths", [1, 2, 3, 4, 5, 6], "all ids so far"),
        ("01-decoupled", "postprocess", "answers once for each call"),
        ("01-decoupled", "preprocess", "one list of ids for one text"),
        ("01-decoupled", "ensemble_append", "because one of its steps does"),
        ("02-lengths", [1] * 8, "what the contract says"),
        ("02-lengths", [1, 2, 3, 4, 5, 6, 7, 8], "growth by one"),
        ("02-lengths", [2, 4, 8, 16, 32, 64, 128, 256], "so the first has 1"),
        ("02-gib", 28, "half a GiB"),
        ("02-gib", 30, "2 GiB"),
        ("02-gib", 31, "one byte for an id"),
        ("02-next", 1, "nothing has thrown ids away"),
        ("02-next", 129, "all eight of them"),
        ("02-next", 128, "all eight of them"),
        ("02-next", 255, "the new id comes on top"),
        ("04-held", lambda n: 4 * (2**n - 1), "ids, not bytes"),
        ("04-held", lambda n: str(2**n - 1), "return a number, not text"),
        ("04-leaks", lambda heap: True if heap[-1] - heap[1] > 2**16 else None, "returns None; return False there"),
        ("05-rule", answers_05.swapped_branches, "or the two branches are swapped"),
        ("06-refused", "2", "without quotes or brackets"),
        ("06-refused", [2], "without quotes or brackets"),
        ("06-rule", answers_06.fails_without_messages, "index [] and ends []: your function stopped with IndexError: "),
        ("06-cells", answers_06.cells(0, "2", 0), "without quotes or brackets"),
        ("06-cells", answers_06.cells(2, 2, 0), "like any other"),
        ("06-cells", answers_06.cells(0, 1, 0), "there is no id before the first"),
        ("06-cells", answers_06.cells(0, 2, 9), "who calls it to say that no more come?"),
        ("09-mend", "pending = message;", "the text needs the whole function"),
        ("09-mend", answers_09.KEEP % "pending = message", "expected ';'"),
        ("09-mend", answers_09.KEEP % "pending.clear();", "messages of 1 1 1 1 1 1 1 1 ids; nothing is kept"),
    ],
)
def test_the_mistakes_to_expect_are_known(name, answer, part):
    assert part in verdict(name, answer)


def test_there_are_known_mistakes_and_no_two_hide_each_other():
    found = [(name, repr(answer)) for name, answer, _ in listed_mistakes()]
    assert len(found) == len(set(found)) > 10
    assert all(answer != RIGHT[name] for name, answer, _ in listed_mistakes())


@pytest.mark.parametrize("unanswered", [..., [...], (..., ...), [1, ...], [..., ..., ...], {...}, {"a": ...}], ids=repr)
@pytest.mark.parametrize("name", EXERCISES)
def test_dots_are_no_answer(name, unanswered):
    assert verdict(name, unanswered) == NOT_ANSWERED


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_returns_dots_is_no_answer(name):
    assert verdict(name, lambda *_: ...) == NOT_ANSWERED


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_without_return_is_told_so(name):
    assert verdict(name, lambda *_: None) == "not yet: your function returns nothing yet: it needs a return"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_value_where_a_function_is_asked_for_is_told_so(name):
    assert verdict(name, 5) == "not yet: expected a function, got int"


class Hostile:
    """Nothing can be done with it."""

    def _refuse(self, *_):
        raise RuntimeError("no")

    __eq__ = __ne__ = __iter__ = __len__ = __str__ = __repr__ = __hash__ = __bool__ = _refuse


class SilentError(Exception):
    def __str__(self):
        raise RuntimeError("not even words")


def raising(error: BaseException) -> Callable:
    def function(*_):
        raise error

    return function


def endless(_):
    return endless(_)


def holds_itself(kind: type) -> object:
    if kind is dict:
        answer: dict | list = {}
        answer["me"] = answer
    else:
        answer = []
        answer.append(answer)
    return answer


STRANGE = {
    "None": None,
    "nan": math.nan,
    "inf": math.inf,
    "huge number": 10**10_000,
    "huge text": "x" * 1_000_000,
    "huge list": [0] * 100_000,
    "bytes": b"5",
    "dict": {"a": 1},
    "object": object(),
    "class": Hostile,
    "hostile": Hostile(),
    "list of hostile": [Hostile(), Hostile(), Hostile()],
    "list in itself": holds_itself(list),
    "dict in itself": holds_itself(dict),
    "array of objects": np.array([None, "a", 3], dtype=object),
    "empty array": np.array([]),
    "no arguments": lambda: 1,
    "raises": raising(ValueError("no")),
    "asserts": raising(AssertionError()),
    "raises without words": raising(SilentError()),
    "exits": raising(SystemExit(1)),
    "never ends": endless,
    "returns hostile": lambda _: Hostile(),
    "returns huge number": lambda _: 10**10_000,
    "returns huge text": lambda _: "x" * 1_000_000,
    "returns nan": lambda _: math.nan,
    "returns a function": lambda _: len,
    "returns an array": lambda _: np.arange(3),
    "is a generator": lambda _: (part for part in "ab"),
}


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("name", EXERCISES)
def test_no_answer_ends_in_a_traceback(name, strange):
    assert verdict(name, STRANGE[strange]).startswith("not yet: ")


def test_the_interrupt_key_gets_through():
    """Interrupting a cell whose function never ends must end the cell."""
    with pytest.raises(KeyboardInterrupt):
        verdict("02-formula", raising(KeyboardInterrupt()))


def test_an_error_in_a_function_is_named():
    assert verdict("02-formula", lambda n: n / 0).startswith(
        "not yet: your answer could not be used: ZeroDivisionError: "
    )


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("00-messages", np.int64(5)),
        ("00-messages", np.array(5)),
        ("00-text", lambda pieces: np.str_("".join(pieces))),
        ("00-quiz", ("b", "a", "c")),
        ("00-quiz", np.array(["b", "a", "c"])),
        ("00-quiz", [" B", "A ", "c"]),
        ("00-quiz", ["b)", "A) ", "c."]),
        ("01-lengths", (1, 1, 1, 1, 1, 1)),
        ("01-lengths", np.ones(6, dtype=np.int32)),
        ("01-lengths", [np.int64(1)] * 6),
        ("01-decoupled", np.str_("inference")),
        ("02-lengths", 2 ** np.arange(8)),
        ("02-lengths", tuple(2**n for n in range(8))),
        ("02-formula", lambda n: np.int64(2) ** (n - 1)),
        ("02-formula", lambda n: np.array(1 << (n - 1))),
        ("02-next", np.int32(256)),
    ],
)
def test_how_an_answer_is_written_does_not_matter(name, answer):
    assert verdict(name, answer).startswith("right. ")


def test_the_right_names_in_a_list_are_told_that_a_set_is_asked_for():
    """The names are right, so "look for -1" would send the learner the wrong way."""
    assert "set" in verdict("01-open", ["PROMPT_IDS", "TOKEN_IDS"])


@pytest.mark.parametrize("name", QUIZZES)
def test_a_quiz_says_which_questions_are_wrong(name):
    right = RIGHT[name]
    for i, letter in enumerate(right):
        given = [*right]
        given[i] = "abc"[("abc".index(letter) + 1) % 3]
        said = verdict(name, given)
        assert [f"question {n}:" in said for n in (1, 2, 3)] == [n == i + 1 for n in (1, 2, 3)]


def test_each_wrong_cell_of_the_matrix_gets_its_hint():
    said = verdict("06-cells", answers_06.cells(2, 1, 8))
    assert said.startswith("not yet: late_id at the edge: ")
    assert all(f"{name}: " in said for name in answers_06.RIGHT["06-cells"])


def test_a_quiz_given_as_text_is_told_to_use_a_list():
    assert verdict("00-quiz", "bac") == 'not yet: expected 3 letters in a list, such as ["a", "b", "c"]'


def test_a_function_that_is_not_written_yet_is_not_compiled(monkeypatch):
    monkeypatch.delattr(custom_backend, "build")
    assert verdict("09-mend", answers_09.KEEP % "...") == NOT_ANSWERED
    assert "could not be used: AttributeError" in verdict("09-mend", answers_09.KEEP % "")


def test_the_answers_agree_with_the_report():
    assert RIGHT["02-lengths"][-1] == len(REPORTED_IDS) == RIGHT["02-formula"](8)
    assert RIGHT["02-next"] == sum(RIGHT["02-lengths"]) + 1
    first_gib = next(n for n in itertools.count(1) if 4 * RIGHT["02-formula"](n) >= 2**30)
    assert RIGHT["02-gib"] == first_gib


def test_check_prints_the_verdict(capsys):
    check("00-messages", ...)
    check("00-messages", 5)
    printed = capsys.readouterr()
    assert printed.out == f"{NOT_ANSWERED}\n{verdict('00-messages', 5)}\n"
    assert printed.err == ""


def test_an_exercise_that_does_not_exist_is_a_mistake_in_the_notebook():
    with pytest.raises(KeyError, match="99-nothing"):
        check("99-nothing", 1)


def test_a_number_too_long_to_print_is_no_traceback():
    """Python refuses to write out integers of more than 4,300 digits."""
    assert sys.get_int_max_str_digits() > 0
    assert verdict("02-formula", lambda n: 10 ** (5_000 * n)).startswith("not yet: ")
