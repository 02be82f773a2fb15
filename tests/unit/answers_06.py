"""Right answers to the exercises of lesson 06, and plausible wrong ones."""

from itertools import pairwise


def _keeps_contract(index: list[int], ends: list[bool]) -> bool:
    numbers = list(range(1, len(index) + 1))
    marks = [False] * (len(ends) - 1) + [True]
    return index == numbers and ends == marks


def fails_without_messages(index: list[int], ends: list[bool]) -> bool:
    return index[0] == 1 and _keeps_contract(index, ends)


def cells(edge: object, late: object, lost: object) -> dict[str, object]:
    return {"late_id at the edge": edge, "late_id at the consumer": late, "lost_end at the consumer": lost}


RIGHT: dict[str, object] = {
    "06-refused": 2,
    "06-rule": _keeps_contract,
    "06-cells": cells(0, 2, 0),
    "06-quiz": ["b", "a", "c"],
}
NEAR_MISSES: dict[str, list[object]] = {
    "06-refused": [0, 8, 2.0, "2", [2], (1, 2), True],
    "06-rule": [
        lambda index, ends: True,
        lambda index, ends: False,
        lambda index, ends: index == sorted(index) and ends[-1:] == [True],
        lambda index, ends: index == list(range(1, len(index) + 1)),
        lambda index, ends: index == list(range(1, len(index) + 1)) and any(ends),
        lambda index, ends: index == list(range(1, len(index) + 1)) and ends[-1:] == [True],
        lambda index, ends: index == list(range(1, len(index) + 1)) and sum(ends) == 1,
        lambda index, ends: index == list(range(1, len(index) + 1)) and ends.index(True) == len(ends) - 1,
        lambda index, ends: index == list(range(len(index))) and sum(ends) == 1 and ends[-1],
        lambda index, ends: len(set(index)) == len(index) and sum(ends) == 1 and ends[-1],
        lambda index, ends: sorted(index) == list(range(1, len(index) + 1)) and sum(ends) == 1 and ends[-1],
        lambda index, ends: index == list(range(1, len(index) + 1)) and not any(ends[:-1]),
        lambda index, ends: index[-1] == len(index) and sum(ends) == 1 and ends[-1],
        lambda index, ends: index == [1, 2, 3, 4] and ends == [False, False, False, True],
        lambda index, ends: all(b == a + 1 for a, b in pairwise(index)) and sum(ends) == ends[-1],
        lambda index, ends: 1 if _keeps_contract(index, ends) else 0,
        lambda index, ends: str(_keeps_contract(index, ends)),
        lambda index: index == list(range(1, len(index) + 1)),
        fails_without_messages,
        True,
    ],
    "06-cells": [
        cells(2, 2, 8),
        cells(0, 1, 8),
        cells(1, 1, 1),
        cells(0, "2", 0),
        cells(None, 2, None),
        cells("-", 2, "-"),
        {"late_id at the consumer": 2},
        [0, 2, 0],
    ],
}
