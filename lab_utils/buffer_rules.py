"""Try a learner's buffer rule on hidden texts, and say in words which mistake is in it.

A rule is a generator function of two arguments: the token ids of a stream, one after the other, and `clean(ids)`, which
says whether ids are whole characters. It yields one message for each token, a list or array of ids.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

from lab_utils.exercise_kinds import NO_RETURN, NOT_ANSWERED, plain
from lab_utils.model_files import load_model_file
from lab_utils.server import MODEL_REPOSITORY

Clean = Callable[[Iterable[int]], bool]
Rule = Callable[[Iterable[int], Clean], Iterable[object]]

TEXTS: dict[str, list[int]] = {
    "a text that ends within a character": [16, 11162, 235],
    "plain text": [16, 10525, 19828],
    "a character of two tokens, and plain text": [94305, 247, 10525, 16],
    "a character of three tokens, and plain text": [8908, 234, 114, 103081, 99662, 16],
    "a character of four tokens, and plain text": [172, 95, 104, 237, 10525, 16],
    "characters of one to four tokens": [94305, 247, 8908, 234, 114, 146864, 172, 95, 104, 237, 11162, 235, 99, 16],
    "two texts in one": [8908, 234, 114, 10525, 8908, 234, 114, 8908, 234],
}
"""What is streamed, by what it is; the ids are those of Qwen's vocabulary."""

SHOWN_IDS = 8

WORDS = {
    "leak": "It holds ids of another text: what is pending outlives its stream (lesson 04)",
    "empty": "It is empty; the ids of a character that is not whole yet have to be sent as well",
    "extend": "An id stands in it more often than it was streamed: what is pending takes in a message that holds it "
    "already (extend). Replace what is pending",
    "stale_length": "Behind its own ids stand ids of an older, longer message: a buffer that is used again keeps what "
    "is not overwritten (stale length)",
    "missing_clear": "It holds every id of the stream so far: what is pending is never emptied (missing clear)",
    "late_clear": "It begins with a character that was whole already: what is pending is emptied at the wrong time, "
    "too late. Ask at every message, and ask whether the whole message decodes; or the two branches are swapped",
    "early_clear": "Ids of its character are missing: what is pending is emptied at the wrong time, too early. Only a "
    "message that decodes empties it",
    "latest": "It holds the newest id alone, which is version 4. Here the pieces of the unfinished character come with "
    "it",
    "alias": "It was written into a list or array that you had handed over before, so messages change after they were "
    "sent (alias). Yield a new one each time",
    "order": "These are the right ids in another order; the newest one comes last",
    "other": "Expected are the ids that are pending, and the newest one",
}
"""What is said about each mistake."""


@dataclass(frozen=True)
class Sent:
    """One message of a rule.

    Attributes
    ----------
    streamed : list of int
        The tokens up to this message.
    expected : list of int
        What the message has to be.
    given : list of int
        What it was when it was handed over.
    later : list of int
        What it was when the stream had ended.
    read : int
        Tokens that the rule had taken when it handed the message over.
    """

    streamed: list[int]
    expected: list[int]
    given: list[int]
    later: list[int]
    read: int


@cache
def token_bytes() -> object:
    """The table of token bytes that the models use, from the model repository."""
    table = load_model_file("inference", "token_bytes").TokenBytes
    return table.load(MODEL_REPOSITORY / "inference" / "token_bytes.safetensors")


def replace(tokens: Iterable[int], clean: Clean) -> Iterator[list[int]]:
    """Yield the messages of version 3 of `inference`: the pending ids and the newest one."""
    pending: list[int] = []
    for token in tokens:
        message = [*pending, token]
        yield message
        pending = [] if clean(message) else message


def rule_problem(rule: object) -> str:
    """Return what is wrong with a learner's rule, in words; an empty text for a right one."""
    if not callable(rule):
        return f"expected a function, got {type(rule).__name__}"
    streams = {}
    for name, tokens in TEXTS.items():
        raw = _run(rule, tokens)
        if raw in (..., None):
            return NO_RETURN if raw is None else NOT_ANSWERED
        streams[name] = [_sent(tokens, number, *one) for number, one in enumerate(raw[: len(tokens)], 1)]
        if problem := _content_problem(streams[name]) or _count_problem(len(raw), len(tokens)):
            return f"streaming {name}: {problem}"
    # Only now: whoever keeps old ids in a buffer that is used again has two mistakes, and this one is the smaller.
    problems = (f"streaming {name}: {problem}" for name, sent in streams.items() if (problem := _handing_over(sent)))
    return next(problems, "")


def _content_problem(sent: Sequence[Sent]) -> str:
    for number, message in enumerate(sent, 1):
        if message.given != message.expected:
            is_, words = _short(message.given), WORDS[_mistake(message, sent)]
            return f"message {number} is {is_}; it has to be {message.expected}. {words}"
    return ""


def _run(rule: Rule, tokens: Sequence[int]) -> list[tuple[object, object, int]] | object:
    """Each message as it was handed over, its copy, and the tokens read by then; or `...` or None if that was given."""
    read = 0

    def one_by_one() -> Iterator[int]:
        nonlocal read
        for read, token in enumerate(tokens, 1):  # noqa: B007 (read is looked at outside)
            yield token

    answer = rule(one_by_one(), token_bytes().decodes_cleanly)
    if answer is ... or answer is None:
        return answer
    # One more than there may be: a rule may never end.
    messages = [(message, plain(message), read) for message in islice(answer, len(tokens) + 1)]
    return ... if any(_has_dots(message) for message, *_ in messages) else messages


def _has_dots(message: object) -> bool:
    return message is ... or (isinstance(message, list | tuple) and any(part is ... for part in message))


def _sent(tokens: Sequence[int], number: int, message: object, given: object, read: int) -> Sent:
    if not isinstance(given, list):
        raise TypeError(f"message {number} is of type {type(message).__name__}; expected a list of ids")
    if strange := [type(each).__name__ for each in given if not isinstance(each, int)]:
        raise TypeError(f"message {number} holds a {strange[0]}; expected a list of ids, which are numbers")
    streamed = list(tokens[:number])
    *_, expected = replace(streamed, token_bytes().decodes_cleanly)
    return Sent(streamed, expected, given, plain(message), read)


def _mistake(message: Sent, sent: Sequence[Sent]) -> str:
    """The name of what is wrong with the first wrong message."""
    given, expected, streamed = message.given, message.expected, message.streamed
    size = len(expected)
    changed = any(one.given != one.later for one in sent)
    strangers = set(given) - {token for one in sent for token in one.streamed}
    signs = {
        "empty": not given,
        "leak": strangers and strangers <= {token for tokens in TEXTS.values() for token in tokens},
        "other": strangers,
        "extend": any(given.count(token) > max(1, streamed.count(token)) for token in given),
        "missing_clear": len(given) > size and all(one.given == one.streamed for one in sent),
        "late_clear": len(given) > size and given == streamed[-len(given) :],
        "stale_length": len(given) > size and given[:size] == expected,
        "alias": changed,
        "latest": all(one.given == one.streamed[-1:] for one in sent),
        "early_clear": len(given) < size and given == expected[-len(given) :],
        "order": sorted(given) == sorted(expected),
    }
    return next((name for name, seen in signs.items() if seen), "other")


def _short(ids: Sequence[object]) -> str:
    return (
        str(list(ids)) if len(ids) <= SHOWN_IDS else f"[{', '.join(map(str, ids[:SHOWN_IDS]))}, …] ({len(ids):,} ids)"
    )


def _count_problem(given: int, expected: int) -> str:
    if given == expected:
        return ""
    sent = f"more than {expected}" if given > expected else given
    return f"{sent} message(s) for {expected} tokens; yield one message for each token, also for the last one"


def _handing_over(sent: Sequence[Sent]) -> str:
    """What is wrong with messages that were right when they were handed over."""
    for number, message in enumerate(sent, 1):
        if message.later != message.given:
            return f"message {number} was right when you handed it over, and is {message.later} now. {WORDS['alias']}"
        if message.read > number:
            return (
                f"message {number} left only after {message.read} tokens had been read. A stream does not wait: yield "
                "the message of a token before you take the next one"
            )
    return ""
