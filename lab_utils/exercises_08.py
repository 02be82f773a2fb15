"""The exercises of lesson 08."""

from lab_utils.exercise_kinds import NO_RETURN, NOT_ANSWERED, Exercise, equals, plain, quiz

SERIES = [
    ([2**n for n in range(12)], 4, "a doubling from the first message on"),
    ([1, 2, 4, 8], 4, "a doubling that has only just begun"),
    ([1, 2, 4], 0, "two steps of growth, and no third"),
    (list(range(1, 41)), 0, "growth by one in each message: after the third message less than a half is added"),
    ([5, 4, 7, 12, 5, 6, 9, 14, 3, 5, 8, 4], 0, "lengths that go up and down, at most twice in a row by a half"),
    ([1] * 5_000, 0, "5,000 messages of one id"),
    ([1] * 30 + [100_000] + [1] * 30, 0, "one very long message"),
    ([1, 2, 3, 1, 1, 1, 1, 1], 0, "rung 3, which holds a character back"),
    ([1] * 20 + [2, 4, 8, 16, 32], 23, "a doubling that begins after 20 messages"),
    ([8, 12, 18, 27], 4, "growth by exactly a half"),
    ([100, 149, 222, 331, 494], 0, "growth by a little less than a half"),
    ([1, 2, 2, 4, 8, 16], 6, "a pause in the growth: the row begins anew"),
    ([1, 2, 4, 3, 6, 12, 24], 7, "a message that is shorter: the row begins anew"),
    ([7], 0, "a single message"),
    ([4, 8, 16, 1], 0, "two steps, and then a short message: the first message has none before it"),
    ([], 0, "a stream without any message"),
]
"""Lengths, the message at which the rule fires (0: never), and what the lengths show."""


def _fires_right(rule: object) -> str:
    """Try the learner's rule on lengths that the lesson does not show."""
    if not callable(rule):
        return f"expected a function, got {type(rule).__name__}"
    for lengths, expected, name in SERIES:
        got = plain(rule(list(lengths)))
        if got is ...:
            return NOT_ANSWERED
        if got is None:
            return NO_RETURN
        if type(got) is not int:
            return f"your function returned {type(got).__name__}; it has to return a whole number, 0 for never"
        if got != expected:
            shown = f"{lengths[:12]}{' …' if len(lengths) > 12 else ''}"
            return f"{name}, lengths {shown}: your function says {got}"
    return ""


def _instruments(**other: str) -> dict[str, str]:
    right = {
        "ids": "trace",
        "memory": "metrics",
        "week": "node log",
        "code": "verbose log",
        "port": "statistics",
    }
    return right | other


def _private(**other: bool) -> dict[str, bool]:
    return {"metrics": False, "node log": False, "verbose log": False, "trace": True} | other


LESSON_08: dict[str, Exercise] = {
    "08-instrument": Exercise(
        equals(
            _instruments(),
            "one of the five names for each question; go through the columns of the table, and through its last one",
            [
                (_instruments(ids="node log"), "ids: a node log has the dims of a message, never its content"),
                (_instruments(ids="verbose log"), "ids: the verbose log has the dims of a message, no values"),
                (
                    _instruments(week="trace"),
                    "week: the trace would keep every value of the week, and its users' texts",
                ),
                (_instruments(week="verbose log"), "week: which line of the verbose log has a message's own number?"),
                (_instruments(code="node log"), "code: a node writes its log itself, so its code would have to do it"),
                (_instruments(code="trace"), "code: the trace needs no change either, but it writes the values down"),
                (_instruments(port="metrics"), "port: the metrics have a port of their own, which is not gRPC's"),
            ],
        ),
        "Values: only the trace. Memory: only the metrics. Order over a long time, without content: the node log. "
        "Sizes without touching a node, and without values: the verbose log. And statistics come over gRPC.",
    ),
    "08-first": Exercise(
        equals(
            4,
            "the lengths are 256 512 1024 2048 4096: which message ends the third step of growth in a row?",
            [
                (1, "message 1 is long, but in its own request nothing came before it: there is no step yet"),
                (2, "that is one step, from 256 to 512; the rule wants three in a row"),
                (3, "that is two steps, to 512 and to 1024; the rule wants three in a row"),
                (5, "message 5 ends the fourth step; the third was there before"),
                (8, "the third step in a row comes long before the last message"),
            ],
        ),
        "To 512, to 1024, to 2048: message 4 ends the third step, however long the first message was.",
    ),
    "08-alarm": Exercise(
        _fires_right,
        "A row of steps is counted, and anything but growth sets it back to nothing: so neither a long message, nor "
        "noise, nor slow growth raises it, and a doubling that begins late does.",
    ),
    "08-private": Exercise(
        equals(
            _private(),
            "True or False for each of the four; which of them have values at all?",
            [
                (_private(trace=False), "the trace has the values of every tensor, and a text is a tensor"),
                (
                    _private(**{"verbose log": True}),
                    "the verbose log has the names, dims and bytes of tensors, no values",
                ),
                (_private(**{"node log": True}), "look at the keys of its lines: is there one for content?"),
            ],
        ),
        "The text is a value, and only the trace has values.",
    ),
    "08-quiz": Exercise(
        quiz(
            "cba",
            [
                "what did the metrics of rung 1 and of rung 4 differ in?",
                "what can be switched at run time, and what has to be named at the start?",
                "what does the last value of a gauge say about the 200 messages before it?",
            ],
        ),
        "No metric has the length of a message. A trace file that is named at the start costs nothing while the trace "
        "is off. And counters keep what happened between two looks.",
    ),
}
