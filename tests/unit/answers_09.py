"""Right answers to the exercises of lesson 09, and plausible wrong ones."""

KEEP = """
void keep(Ids& pending, const Ids& message, bool clean) {
  if (clean) {
    pending.clear();
  } else {
    %s
  }
}
"""


def _complains(leak: object, use: object, append: object, release: object) -> dict[str, object]:
    return {
        "leak": leak,
        "use_after_free": use,
        "rung append, the buffer grows for ever": append,
        "rung release, a message doubles": release,
    }


RIGHT: dict[str, object] = {
    "09-mend": KEEP % "pending = message;",
    "09-two": [1, 4, 16, 64, 2, 8, 32, 128],
    "09-sanitizer": _complains(True, True, False, False),
    "09-rate": lambda seconds: 1 / max(seconds),
    "09-quiz": ["b", "a", "c"],
}
NEAR_MISSES: dict[str, list[object]] = {
    "09-mend": [
        "pending = message;",
        "pending = message",
        "void replace(Ids& pending, const Ids& message, bool clean) { pending = message; }",
        KEEP % "pending = message",
        KEEP % "pending.insert(pending.end(), message.begin(), message.end());",
        lambda pending, message: message,
        True,
    ],
    "09-two": [
        [1, 4, 16, 64],
        [[1, 4, 16, 64], [2, 8, 32, 128]],
        [1, 2, 8, 32, 4, 16, 64, 128],
        [1, 1, 1, 1, 1, 1, 1, 1],
        "1 4 16 64 2 8 32 128",
        128,
    ],
    "09-sanitizer": [
        _complains(True, True, True, True),
        _complains(False, False, False, False),
        _complains(False, True, True, False),
        _complains("yes", "yes", "no", "no"),
        {"leak": True, "use_after_free": True},
        ["leak", "use_after_free"],
        True,
    ],
    "09-rate": [
        lambda seconds: 1 / sum(seconds),
        lambda seconds: 1 / min(seconds),
        lambda seconds: len(seconds) / sum(seconds),
        lambda seconds: sum(1 / each for each in seconds),
        max,
        min,
        sum,
        lambda seconds: 1 / seconds[-1],
        lambda seconds: 1 / seconds[0],
        lambda seconds: str(1 / max(seconds)),
        0.25,
    ],
}
