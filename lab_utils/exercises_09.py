"""The exercises of lesson 09."""

import re
from collections.abc import Sequence

from lab_utils import custom_backend
from lab_utils.buffer_rules import replace, token_bytes
from lab_utils.client import StreamError, iter_outputs
from lab_utils.custom_backend import BuildError
from lab_utils.errors import ServerDiedError
from lab_utils.exercise_kinds import NOT_ANSWERED, Exercise, equals, function, quiz
from lab_utils.field_report import REPORTED_TOKENS
from lab_utils.server import start_server
from lab_utils.streams import forced_inputs

RUNGS_FILE = "token_stream/rungs.cc"
MODEL = "token_stream_release"
ROW = '{"release", false, repeat_pending, append}'
TABLE = "constexpr Rung kRungs[]"
BEFORE = '#pragma GCC diagnostic ignored "-Wunused-parameter"\n#line 1 "your text"\n'
LONGEST_TEXT = 4_000
PATIENCE_SECONDS = 10.0
TEXTS = {
    "the reported sentence": REPORTED_TOKENS,
    "a text that ends within a character": [16, 11162, 235],
    "characters of one to four tokens": [94305, 247, 8908, 234, 114, 146864, 172, 95, 104, 237, 11162, 235, 99, 16],
}
MISTAKES = {
    (1, 2, 4, 8, 16, 32, 64, 128): "the message, which begins with all that is pending, is still added to it",
    (1, 1, 1, 1, 1, 1, 1, 1): "nothing is kept: the three pieces of the first character must come together, in "
    "message 3",
    (1, 2, 3, 4, 5, 6, 7, 8): "what is pending is never emptied: either nothing empties it, or its ids are in another "
    "order, so that they never make a whole character",
    (1, 2, 2, 2, 2, 1, 1, 1): "only one id is kept; message 3 must hold all three pieces",
    (1, 1, 1, 1, 2, 3, 4, 5): "the two branches are swapped: empty what is pending where the message is clean",
}
"""Lengths for the reported sentence, and what they say."""


def _mend_problem(text: object) -> str:
    """Compile the learner's function into a copy of the backend, serve it, and look at what it sends."""
    if not isinstance(text, str):
        return f"expected the function as text, in quotation marks; got {type(text).__name__}"
    if len(text) > LONGEST_TEXT or not re.search(r"\bvoid\s+keep\s*\(", text):
        return "the text needs the whole function, from `void keep(` to its closing bracket; it is not there"
    if "..." in text:
        return NOT_ANSWERED
    try:
        sent = _sent_by(text)
    except BuildError as error:
        return str(error)
    except (StreamError, ServerDiedError) as error:
        return (
            "it was compiled, but its stream did not end as it should: does it come to an end, and use only ids that "
            f"are there? {str(error).splitlines()[0]}"
        )
    return _difference(sent)


def _sent_by(text: str) -> dict[str, list[list[int]]]:
    """The messages of each text, from a server that runs the node with this function in place of `append`."""
    source = (custom_backend.FOLDER / "src" / RUNGS_FILE).read_text(encoding="utf-8")
    line = source[: source.index(TABLE)].count("\n") + 1
    mended = source.replace(ROW, ROW.replace("append", "keep"))
    mended = mended.replace(TABLE, f'{BEFORE}{text.strip()}\n#line {line} "rungs.cc"\n{TABLE}')
    built = custom_backend.build(patches={RUNGS_FILE: mended})
    options = {"repository": custom_backend.REPOSITORY, "backends": built.folder, "report": lambda _: None}
    with start_server([MODEL], **options) as server:
        return {name: _messages(server, tokens) for name, tokens in TEXTS.items()}


def _messages(server: object, tokens: Sequence[int]) -> list[list[int]]:
    call = {"parameters": {"max_message_ids": 10_000}, "deadline": PATIENCE_SECONDS}
    answers = list(iter_outputs(server, MODEL, forced_inputs(tokens), **call))
    said = [answer["ERROR"][0].decode() for answer in answers if answer["ERROR"][0]]
    if said:
        raise StreamError(f"The node says: {said[0]}")
    return [answer["TOKEN_IDS"].tolist() for answer in answers]


def _difference(sent: dict[str, list[list[int]]]) -> str:
    for name, messages in sent.items():
        expected = [list(map(int, one)) for one in replace(TEXTS[name], token_bytes().decodes_cleanly)]
        if messages != expected:
            lengths = tuple(map(len, messages))
            words = MISTAKES.get(lengths, f"rung 3 sends {' '.join(str(len(one)) for one in expected)}")
            if lengths == tuple(map(len, expected)):
                words = "the lengths are right, but not the ids: the newest one comes last, behind those before it"
            return f"{name}: your library sends messages of {' '.join(map(str, lengths))} ids; {words}"
    return ""


def _complains(leak: bool = True, use: bool = True, append: bool = False, release: bool = False) -> dict[str, bool]:
    return {
        "leak": leak,
        "use_after_free": use,
        "rung append, the buffer grows for ever": append,
        "rung release, a message doubles": release,
    }


LESSON_09: dict[str, Exercise] = {
    "09-mend": Exercise(
        _mend_problem,
        "Your library sends 1 2 3 1 1 1 1 1 for the reported sentence, as rung 3 does: the message takes the place of "
        "what was pending, until it is whole characters.",
    ),
    "09-two": Exercise(
        equals(
            [1, 4, 16, 64, 2, 8, 32, 128],
            "there is one buffer, and it sees eight tokens in a row: which lengths do all eight messages have?",
            [
                ([1, 2, 4, 8, 1, 2, 4, 8], "that is with a buffer for each user; rung append has one for all"),
                ([1, 2, 4, 8, 16, 32, 64, 128], "that is one user after the other; here they go on in turns"),
                ([1, 4, 16, 64, 1, 4, 16, 64], "the second user's first message comes after one of the first user"),
                (
                    [1, 2, 5, 13, 1, 3, 8, 21],
                    "that is version 1 in Python; this node takes a message into the buffer as soon as it is sent",
                ),
                ([2, 8, 32, 128, 1, 4, 16, 64], "the first user begins, so whose is the message of one id?"),
            ],
        ),
        "The buffer sees eight tokens, so the messages have 1 2 4 8 16 32 64 128 ids, and each user gets every second.",
    ),
    "09-sanitizer": Exercise(
        equals(
            _complains(),
            "True or False for each of the four; for which is memory lost, or used after it was given back?",
            [
                (_complains(append=True), "rung append: somebody still knows the address of that buffer; who?"),
                (_complains(release=True), "rung release: a long message is no fault of memory; each byte is its own"),
                (
                    _complains(append=True, release=True),
                    "a sanitizer knows nothing of messages: is any memory lost, or used after it was given back?",
                ),
                (_complains(leak=False), "leak: nobody knows the address of these streams any more"),
                (_complains(use=False), "use_after_free: AddressSanitizer notes what was given back"),
            ],
        ),
        "Memory that is lost, and memory that is used after it was freed, are its business. A buffer that somebody "
        "still holds is not, and neither are ids that are sent twice.",
    ),
    "09-rate": Exercise(
        function(
            [(([1, 4, 2],), 0.25), (([0.5],), 2.0), (([0.25, 0.25],), 4.0), (([0.125, 0.5, 0.25, 0.125],), 2.0)],
            "for steps of {arguments} seconds it returns {got}; while one step works on a message, the others work on "
            "other messages: how often does the slowest one let a message out?",
        ),
        "The other steps wait for the slowest one, and to make them faster changes nothing.",
    ),
    "09-quiz": Exercise(
        quiz(
            "bac",
            [
                "what does LeakSanitizer call lost, and is the buffer lost?",
                "what did `nm` list among the functions that the library lacks, and who had them in the end?",
                "which step does an ensemble wait for, and which one is that after the change?",
            ],
        ),
        "What can still be reached is not lost. The server's process has Triton's functions. And an ensemble is as "
        "fast as its slowest step, so look for that one first.",
    ),
}
