"""The exercises of lesson 07."""

import codecs
from collections.abc import Callable

from lab_utils.exercise_kinds import NO_RETURN, NOT_ANSWERED, Exercise, equals, function, quiz

Message = tuple[int, bytes, bool]  # stream id, bytes of the newest token, end mark
Decode = Callable[[dict, int, bytes, bool], str]

TEA, COOK, PLAIN, CUT = 8001, 8002, 8003, 8004
STREAMS: list[Message] = [
    (TEA, b" \xe8", False),
    (PLAIN, b"1", False),
    (COOK, b"\xf0\x9f", False),
    (TEA, b"\x8c", False),
    (COOK, b"\x91\xa9", False),
    (CUT, b"a", False),
    (TEA, b"\xb6", False),
    (COOK, b"\xe2\x80", False),
    (PLAIN, b" cup", True),
    (COOK, b"\x8d\xf0", False),
    (TEA, b" for two", True),
    (CUT, b"\xe8\x8c", True),
    (COOK, b"\x9f\x8d\xb3", True),
]
"""Four streams at once: a character of three tokens, plain text, an emoji of three characters, and a text that is cut
off within a character."""

WORDS = {
    "alone": "Each message is decoded by itself, so a character in pieces is never whole. Keep a decoder from message "
    "to message",
    "shared": "It depends on what another stream had sent: one decoder serves them all. Keep one for each stream id",
    "late": "Something in it is whole, and did not come. Return what can be decoded now and keep only the rest: do not "
    "wait for the end mark, nor until all bytes are whole",
    "final": "The stream ends within a character, and the reader has to see that something is missing: tell the "
    "decoder about the end with final=..., and make it with errors='replace'",
    "lost": "A piece that an earlier message of this stream had brought is gone",
    "other": "It has to be the characters that become whole with this message",
}


def decode(decoders: dict, stream_id: int, data: bytes, end: bool) -> str:
    """The text of one message, as `postprocess` makes it; `decoders` has the decoder of each open stream."""
    decoder = decoders.pop(stream_id, None) or codecs.getincrementaldecoder("utf-8")("replace")
    if not end:
        decoders[stream_id] = decoder
    return decoder.decode(data, final=end)


def _wrong_ways() -> dict[str, list[str]]:
    """What each mistake gives for the messages of `STREAMS`."""
    shared: dict = {}
    kept: dict[int, bytes] = {}
    late = []
    for stream_id, data, end in STREAMS:
        kept[stream_id] = kept.get(stream_id, b"") + data
        late.append(kept[stream_id].decode("utf-8", "replace") if end else "")
    unfinished: dict = {}
    return {
        "alone": [data.decode("utf-8", "replace") for _, data, _ in STREAMS],
        "shared": [decode(shared, 0, data, False) for _, data, _ in STREAMS],
        "late": late,
        "final": [decode(unfinished, stream_id, data, False) for stream_id, data, _ in STREAMS],
    }


def _decoder_problem(answer: object) -> str:
    """Give the learner's function the messages of several streams, one after the other."""
    if not callable(answer):
        return f"expected a function, got {type(answer).__name__}"
    if problem := _run(answer, {}):
        return problem
    answer({}, TEA, b"\xe8", False)  # the server is stopped here: whoever keeps state with `decoders` loses it
    again = _run(answer, {})
    answer({}, TEA, b"", True)  # so that the next check begins where this one did
    if again:
        return "with a new, empty `decoders` it knows pieces from before: keep all state in `decoders`"
    return ""


def _run(answer: Decode, decoders: dict) -> str:
    expected_decoders: dict = {}
    opened: set[int] = set()
    given: list[str] = []
    for number, (stream_id, data, end) in enumerate(STREAMS, 1):
        where = f"message {number}, of stream {stream_id}: {data!r}{' with the end mark' if end else ''}"
        try:
            got = answer(decoders, stream_id, data, end)
        except UnicodeDecodeError as error:
            return f"{where} raised {error}. {WORDS['final']}"
        if got is ... or got is None:
            return NOT_ANSWERED if got is ... else NO_RETURN
        if not isinstance(got, str):
            return f"your function returned {type(got).__name__}; it has to return text"
        expected = decode(expected_decoders, stream_id, data, end)
        given.append(got)
        opened = opened - {stream_id} if end else opened | {stream_id}
        if got != expected:
            return f"{where} gave {got!r}; expected {expected!r}. {WORDS[_mistake(given)]}"
        if len(decoders) > len(opened):
            return f"{where}: {len(opened)} stream(s) are open now, and `decoders` holds {len(decoders)}. {FORGET}"
    return ""


FORGET = "Who forgets a stream at its end mark? Otherwise the node keeps state for every request that it ever had"


def _mistake(given: list[str]) -> str:
    """The name of the mistake that gives these texts."""
    number = len(given)
    for name, texts in _wrong_ways().items():
        if texts[:number] == given:
            return name
    return "lost" if "\ufffd" in given[-1] else "other"


PLACES = {
    "the KV cache": "inference",
    "the number of the next message": "inference",
    "the ids that were sent": "nowhere",
    "the bytes of a character that is not whole": "postprocess",
}

LESSON_07: dict[str, Exercise] = {
    "07-place": Exercise(
        equals(
            PLACES,
            'one of "inference", "postprocess", "nowhere" for each of the four; ask which node needs it for its next '
            "message",
            [
                (PLACES | {"the KV cache": "nowhere"}, "the model would have to read the whole text again for a token"),
                (PLACES | {"the ids that were sent": "inference"}, "that is the buffer of version 1: who needs them?"),
                (
                    PLACES | {"the ids that were sent": "postprocess"},
                    "post-processing makes text of the newest id; what would it do with the old ones?",
                ),
                (
                    PLACES | {"the bytes of a character that is not whole": "inference"},
                    "that is version 3; which of the two nodes makes characters of bytes?",
                ),
                (
                    PLACES | {"the number of the next message": "postprocess"},
                    "a consumer that numbers what arrives cannot notice that something is missing",
                ),
            ],
        ),
        "State belongs where it is used, and only what a node needs for its next message is state at all.",
    ),
    "07-decoder": Exercise(
        _decoder_problem,
        "One decoder for each stream keeps the pieces, the end mark flushes it, and then it is forgotten.",
    ),
    "07-inversions": Exercise(
        function(
            [
                (([2, 3, 1],), 2),
                (([1, 2, 3],), 0),
                (([3, 2, 1],), 3),
                (([4, 1, 2, 3],), 3),
                (([1, 3, 2, 5, 4],), 2),
                (([7],), 0),
                (([5, 1, 4, 2, 3],), 6),
            ],
            "for {arguments} your function gives {got}; look at all pairs, also at messages that are not neighbours",
        ),
        "Every pair counts, so one message that comes very late counts more than one that comes a little late.",
    ),
    "07-credit": Exercise(
        equals(
            24,
            "add the credit at the start and what was granted; grants come 8 at a time",
            [
                (16, "the client has taken messages and granted new ones for them"),
                (26, "a grant is for 8 messages; for messages 9 and 10 none has been sent yet"),
                (10, "that is what the client has taken; the node may be ahead of it"),
                (18, "the grant is for 8 messages, not for the 2 after them"),
                (32, "the second grant comes after message 16"),
                (14, "those are the messages that wait; the client has taken 10 besides"),
            ],
        ),
        "16 at the start, and 8 for the first eight that were taken. The next grant would come after message 16.",
    ),
    "07-quiz": Exercise(
        quiz(
            "cab",
            [
                "which of the two tensors went through the node that lost the order?",
                "what does a node in an ensemble hear when the client has gone?",
                "who ends a piece of state, if not the end mark?",
            ],
        ),
        "An index proves the order only where it travels with the data, a node in an ensemble is not told that nobody "
        "waits, and state needs an end that does not depend on good luck.",
    ),
}
