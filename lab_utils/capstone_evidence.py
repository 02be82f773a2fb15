"""The vocabulary of a diagnosis, and what speaks against a wrong one: measured, and without naming the right one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lab_utils import trace
from lab_utils.capstone_grading import ENOUGH, Answer, Ask
from lab_utils.client import StreamResult

PROBES = ((" 茶 é ½", ENOUGH), ("tea", ENOUGH), ("coffee", 3))
TOGETHER = (("茶茶茶茶", ENOUGH), ("éééééé", ENOUGH), ("abcdefgh", ENOUGH), ("😀😀😀", ENOUGH))
SHOWN = 12


@dataclass(frozen=True)
class Evidence:
    """What probes to the running pipeline brought: three, one after the other, and four side by side."""

    alone: Sequence[Answer]
    together: Sequence[Answer]


@dataclass(frozen=True)
class Law:
    """A kind of fault: what it is, what it would show, and where to look for that in the evidence."""

    words: str
    shows: str
    measured: Callable[[Evidence], str]


def collect(ask: Ask) -> Evidence:
    """Send the probes."""
    return Evidence([ask([probe])[0] for probe in PROBES], ask(TOGETHER))


def _of(pick: Callable[[StreamResult], object], *which: int) -> Callable[[Evidence], str]:
    def words(evidence: Evidence) -> str:
        parts = []
        for n in which:
            answer, (prompt, most) = evidence.alone[n], PROBES[n]
            limit = "" if most == ENOUGH else f", {most} tokens"
            got = _row(pick(answer)) if isinstance(answer, StreamResult) else f"an error: {answer}"
            parts.append(f"{prompt!r}{limit}: {got}")
        return "; ".join(parts)

    return words


def _foreign(evidence: Evidence) -> str:
    pairs = [*zip(PROBES, evidence.alone, strict=True), *zip(TOGETHER, evidence.together, strict=True)]
    texts = [(prompt, answer.text) for (prompt, _), answer in pairs if isinstance(answer, StreamResult)]
    sent = set("".join(prompt for (prompt, _), _ in pairs))
    count = sum(bool(set(text) & (sent - set(prompt))) for prompt, text in texts)
    return f"{count} of {len(texts)} answers hold a character of another prompt and not of their own"


def _lost(evidence: Evidence) -> str:
    pairs = [pair for pair in zip(PROBES, evidence.alone, strict=True) if isinstance(pair[1], StreamResult)]
    return "; ".join(
        f"{prompt!r}: its ids end in {_said(answer)[-2:]!r}, its text in {answer.text[-2:]!r}"
        for (prompt, _), answer in pairs
    )


def _said(answer: StreamResult) -> str:
    """What the ids that reached the client say."""
    return bytes(id_ for ids in answer.ids for id_ in ids if 0 <= id_ < 256).decode("utf-8", "replace")


def _errors(evidence: Evidence) -> str:
    answers = [*evidence.alone, *evidence.together]
    refused = sum("data-type" in str(answer) for answer in answers if not isinstance(answer, StreamResult))
    return f"{refused} of {len(answers)} streams were refused for a type"


LAWS = {
    "doubling": Law(
        "what is held back is sent again, and kept again: messages grow by a factor",
        "lengths such as 1 2 4 8 after a wide character",
        _of(lambda answer: answer.lengths, 0),
    ),
    "history": Law(
        "each message holds all that came before it in its stream",
        "ids or text of every message with those of the one before in front",
        _of(lambda answer: [one.text for one in answer.observations], 1),
    ),
    "order": Law(
        "messages overtake each other",
        "an index that goes back",
        _of(lambda answer: [one.index for one in answer.observations], 0),
    ),
    "leak": Law(
        "what belongs to one stream turns up in another, or disturbs it",
        "characters of another prompt in an answer",
        _foreign,
    ),
    "lost_end": Law(
        "a stream's last message has no end mark",
        "False as the last end mark of some stream",
        _of(lambda answer: [one.end for one in answer.observations], 1, 2),
    ),
    "stale_index": Law(
        "messages come in order, and their index does not count them",
        "a number that comes again or is left out",
        _of(lambda answer: [one.index for one in answer.observations], 0),
    ),
    "late": Law(
        "a message brings the id of the step before",
        "the first id twice and the last one never",
        _of(lambda answer: [id_ for ids in answer.ids for id_ in ids], 1),
    ),
    "dtype": Law(
        "a tensor has another type than its consumer declares",
        "a refusal by Triton in place of an answer",
        _errors,
    ),
    "held_back": Law(
        "something is held back for too long, and its last piece never sent",
        "a text that lacks its end although the ids are there",
        _lost,
    ),
    "altered": Law(
        "the text is changed or cut before the model sees it",
        "an answer that is right for other words than those of the prompt",
        _of(lambda answer: answer.text, 0),
    ),
}

RULES = {
    "encode": "sends the bytes of the text that it was given, as INT32",
    "generate": "sends the ids that it was given, one a message, counted from 1, with the end mark on the last",
    "decode": "sends each text with the message that completes it, and hands the rest on as it was given",
}
SEEN = {
    "encode": (("input", "PROMPT"), ("output", "PROMPT_IDS")),
    "generate": (("input", "PROMPT_IDS"), ("output", "TOKEN_IDS"), ("output", "INDEX"), ("output", "END")),
    "decode": (("input", "TOKEN_IDS"), ("input", "INDEX"), ("output", "TEXT"), ("output", "RECEIVED_INDEX")),
}


def against_law(law: str, evidence: Evidence) -> str:
    """What the law would show, and what was measured."""
    claimed = LAWS[law]
    return f"{law} does not fit: it would show {claimed.shows}. Measured: {claimed.measured(evidence)}."


def against_node(node: str, request: trace.Request | None) -> str:
    """What the node was given and what it sent, from the trace of one request."""
    calls = [call for call in request.calls if call.model == node] if request else []
    if not calls:
        return f"{node} does not fit: in the trace of such a request it is not even called."
    lines = [f"  {side:6} {name}: {_row(_values(calls, side, name))}" for side, name in SEEN[node]]
    head = f"{node} does not fit: it {RULES[node]}. In the trace of {PROBES[0][0]!r} it does:"
    return "\n".join([head, *lines])


def _values(calls: Sequence[trace.Call], side: str, name: str) -> list[object]:
    """All values of a tensor, of one call after the other."""
    tensors = [tensor for call in calls for tensor in call.tensors if (tensor.side, tensor.name) == (side, name)]
    found = [np.asarray(trace.values(tensor)).ravel().tolist() for tensor in tensors]
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for row in found for value in row]


def _row(values: object) -> str:
    if isinstance(values, str):
        return repr(values)
    shown = " ".join(repr(value) for value in values[:SHOWN])
    return shown + (" …" if len(values) > SHOWN else "")
