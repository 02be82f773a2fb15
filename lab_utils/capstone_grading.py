"""What the capstone's pipeline must answer, and the hidden runs that grade a patch.

The contract: the answer is the prompt, or its first MAX_TOKENS bytes. Each byte is an id and a message of its own, with
an index from 1; the last one has the end mark. A character is in the text of the message that brings its last byte.
"""

import codecs
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lab_utils.client import StreamError, StreamResult, stream
from lab_utils.errors import ServerDiedError
from lab_utils.server import TritonServer
from lab_utils.tables import table

DEADLINE_SECONDS = 10.0
ENOUGH = 400  # tokens: more than any hidden prompt has bytes
SHOWN = 110  # characters of an error
ASCII = ["tea", "milk", "sugar", "butter", "flour", "a", "pinch", "of", "salt", "two", "cups", "vanilla", "cream"]
TWO = ["é", "ü", "ñ", "ø", "ж", "д", "λ", "ω"]
THREE = list("茶匙香草精杯牛奶糖あ한क€")
FOUR = ["😀", "🍵", "👩‍🍳", "🇫🇷", "𝄞"]
ODD = ["½", "²", "ﬁ", "①", "Å", "e\u0301", "é", "ｱ", "한"]

Answer = StreamResult | StreamError | ServerDiedError
Ask = Callable[[Sequence[tuple[str, int]]], Sequence[Answer]]


@dataclass(frozen=True)
class Message:
    """One message as it has to arrive."""

    ids: tuple[int, ...]
    index: int
    end: bool
    text: str


@dataclass(frozen=True)
class HiddenRun:
    """Prompts with their token limits, sent side by side."""

    name: str
    prompts: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Graded:
    """A hidden run and what was wrong in it; nothing where all was right."""

    name: str
    problems: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether every answer was as the contract says."""
        return not self.problems


def expected(prompt: str, max_tokens: int = ENOUGH) -> list[Message]:
    """The messages that a healthy pipeline answers with."""
    data = prompt.encode("utf-8")[:max_tokens]
    if not data:
        return [Message((), 1, True, "")]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    ends = [n == len(data) for n in range(1, len(data) + 1)]
    return [
        Message((byte,), n, end, decoder.decode(bytes([byte]), final=end))
        for n, (byte, end) in enumerate(zip(data, ends, strict=True), 1)
    ]


def differences(answer: Answer, prompt: str, max_tokens: int = ENOUGH) -> list[str]:
    """What differs from the contract: "error", "number of messages", "lengths", "ids", "index", "end", "text".

    "text" is the joined text; "text per message" is named where only the moment differs at which a piece is sent.
    """
    if not isinstance(answer, StreamResult):
        return [f"error: {_short(answer)}"]
    wanted, got = expected(prompt, max_tokens), answer.observations
    pairs = {
        "number of messages": (len(wanted), len(got)),
        "lengths": ([len(message.ids) for message in wanted], answer.lengths),
        "ids": ([id_ for message in wanted for id_ in message.ids], [id_ for ids in answer.ids for id_ in ids]),
        "index": ([message.index for message in wanted], [one.index for one in got]),
        "end": ([message.end for message in wanted], [one.end for one in got]),
        "text": ("".join(message.text for message in wanted), answer.text),
    }
    found = [name for name, (right, measured) in pairs.items() if right != measured]
    late = not found and [message.text for message in wanted] != [one.text for one in got]
    return found + ["text per message"] * late


def asker(server: TritonServer, ensemble: str, deadline: float = DEADLINE_SECONDS) -> Ask:
    """Return a function that sends prompts with their limits, all at the same time, and gives an answer for each."""

    def one(request: tuple[str, int]) -> Answer:
        try:
            return stream(server, ensemble, *request, deadline=deadline)
        except (StreamError, ServerDiedError) as error:
            return error

    def ask(requests: Sequence[tuple[str, int]]) -> list[Answer]:
        with ThreadPoolExecutor(max_workers=len(requests)) as pool:
            return list(pool.map(one, requests))

    return ask


def hidden_runs(seed: int) -> list[HiddenRun]:
    """The runs that grade a patch; other prompts for another seed."""
    dice = random.Random(f"hidden {seed}")
    plain = words(dice, ASCII, 4)
    wide = words(dice, THREE + FOUR, 5)
    alone = {
        "plain text": (plain, ENOUGH),
        "two bytes a character": (words(dice, TWO, 6), ENOUGH),
        "three bytes a character": (words(dice, THREE, 6), ENOUGH),
        "four bytes a character": (words(dice, FOUR, 4), ENOUGH),
        "look-alikes": (words(dice, ODD, len(ODD)), ENOUGH),
        "long": (words(dice, ASCII + THREE, 16), ENOUGH),
        "one letter": (dice.choice("abc"), ENOUGH),
        "empty": ("", ENOUGH),
        "cut": (plain, len(plain) // 2),
        "cut in a character": (wide, first_cut(wide)),
        "the same again": (plain, ENOUGH),
    }
    together = [words(dice, kind, 5) for kind in (ASCII, TWO, THREE, FOUR, THREE)]
    runs = [HiddenRun(name, (request,)) for name, request in alone.items()]
    side_by_side = tuple((prompt, ENOUGH) for prompt in [*together, together[2]])
    return [*runs, HiddenRun("side by side", side_by_side), HiddenRun("after them", ((wide, ENOUGH),))]


def words(dice: random.Random, kind: Sequence[str], count: int) -> str:
    """So many words of a kind, in any order, with blanks between them."""
    return " ".join(dice.sample(kind, count) if count <= len(kind) else dice.choices(kind, k=count))


def first_cut(text: str) -> int:
    """A number of bytes that ends inside a character."""
    return next(n for n, byte in enumerate(text.encode("utf-8")) if n > 3 and byte & 0xC0 == 0x80)


def grade(ask: Ask, runs: Sequence[HiddenRun]) -> list[Graded]:
    """Run them one after the other; after a run without an answer in time, the rest is not tried."""
    graded: list[Graded] = []
    for run in runs:
        answers = ask(run.prompts)
        found = [
            each for answer, request in zip(answers, run.prompts, strict=True) for each in differences(answer, *request)
        ]
        graded.append(Graded(run.name, tuple(dict.fromkeys(found))))
        if any(map(_gone, answers)):
            left = runs[len(graded) :]
            return graded + [Graded(each.name, ("not tried: the pipeline no longer answers",)) for each in left]
    return graded


def graded_table(graded: Sequence[Graded]) -> str:
    """The runs as a table, with what differed in each."""
    rows = [(each.name, "right" if each.right else "wrong", ", ".join(each.problems)) for each in graded]
    return table(["hidden run", "result", "what differs"], rows)


def _gone(answer: Answer) -> bool:
    return isinstance(answer, ServerDiedError) or (isinstance(answer, StreamError) and "deadline" in str(answer))


def _short(error: Exception) -> str:
    line = str(error).splitlines()[0]
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
