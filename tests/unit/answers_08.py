"""Right answers to the exercises of lesson 08, and plausible wrong ones."""

from itertools import pairwise


def _first_alarm(lengths: list[int], factor: float = 1.5, times: int = 3) -> int:
    steps = 0
    for n in range(1, len(lengths)):
        steps = steps + 1 if lengths[n] >= factor * lengths[n - 1] else 0
        if steps == times:
            return n + 1
    return 0


def _steps(lengths: list[int]) -> list[bool]:
    return [b >= 1.5 * a for a, b in pairwise(lengths)]


def _instruments(**other: object) -> dict[str, object]:
    right = {"ids": "trace", "memory": "metrics", "week": "node log", "code": "verbose log", "port": "statistics"}
    return right | other


def _never_reset(lengths: list[int]) -> int:
    rises = [n for n, grew in enumerate(_steps(lengths), start=2) if grew]
    return rises[2] if len(rises) > 2 else 0


def _any_growth(lengths: list[int]) -> int:
    rises = [b > a for a, b in pairwise(lengths)]
    return next((n + 4 for n in range(len(rises) - 2) if all(rises[n : n + 3])), 0)


def _last_alarm(lengths: list[int]) -> int:
    steps = _steps(lengths)
    return max((n + 4 for n in range(len(steps) - 2) if all(steps[n : n + 3])), default=0)


def _private(metrics: object, node: object, verbose: object, trace: object) -> dict[str, object]:
    return {"metrics": metrics, "node log": node, "verbose log": verbose, "trace": trace}


RIGHT: dict[str, object] = {
    "08-instrument": _instruments(),
    "08-first": 4,
    "08-alarm": _first_alarm,
    "08-private": _private(False, False, False, True),
    "08-quiz": ["c", "b", "a"],
}
NEAR_MISSES: dict[str, list[object]] = {
    "08-instrument": [
        _instruments(memory="statistics"),
        _instruments(memory="node log"),
        _instruments(week="metrics"),
        _instruments(code="metrics"),
        _instruments(port="trace"),
        _instruments(ids="Trace"),
        {"ids": "trace"},
        ["trace", "metrics", "node log", "verbose log", "statistics"],
        "trace",
    ],
    "08-first": [0, 1, 6, 7, 4.0, "4", [4], True],
    "08-alarm": [
        lambda lengths: _first_alarm(lengths, times=1),
        lambda lengths: _first_alarm(lengths, times=2),
        lambda lengths: _first_alarm(lengths, times=4),
        lambda lengths: _first_alarm(lengths, factor=2),
        lambda lengths: _first_alarm(lengths, factor=1),
        lambda lengths: _first_alarm(lengths, factor=1.4),
        lambda lengths: max(0, _first_alarm(lengths) - 1),
        lambda lengths: _first_alarm(lengths) + 1,
        lambda lengths: bool(_first_alarm(lengths)),
        lambda lengths: float(_first_alarm(lengths)),
        lambda lengths: str(_first_alarm(lengths)),
        _never_reset,
        _any_growth,
        _last_alarm,
        lambda lengths: next((n for n, length in enumerate(lengths, start=1) if length > 7), 0),
        lambda lengths: 4 if lengths[:4] == [1, 2, 4, 8] else 0,
        lambda lengths: 4 if max(lengths, default=0) > 100 else 0,
        lambda lengths: 0,
        lambda lengths: 4,
        4,
    ],
    "08-private": [
        _private(True, False, False, True),
        _private(False, True, True, True),
        _private(True, True, True, True),
        _private(False, False, False, "yes"),
        {"trace": True},
        ["trace"],
        "trace",
    ],
}
