"""Right answers to the exercises of lesson 04, and plausible wrong ones."""

import itertools
import statistics

NOISE = 64 * 1024


def growth_of_the_last(heap: list[int]) -> bool:
    return heap[-1] - heap[1] > NOISE


AFTER = {
    "heap, version 1": False,
    "heap, version 2": True,
    "/dev/shm, version 1": False,
    "/dev/shm, version 2": False,
}

RIGHT: dict[str, object] = {
    "04-held": lambda n: 2**n - 1,
    "04-after": AFTER,
    "04-leaks": growth_of_the_last,
    "04-quiz": ["b", "c", "a"],
}

NEAR_MISSES: dict[str, list[object]] = {
    "04-held": [
        lambda n: 2 ** (n - 1),
        lambda n: 2**n,
        lambda n: 2 ** (n - 1) - 1,
        lambda n: 2 ** (n + 1) - 1,
        lambda n: 2 * n,
        lambda n: 4 * (2**n - 1),  # bytes, not ids
        lambda n: 3 * 2 ** (n - 1),
        lambda n: 2 ^ n - 1,
        lambda n: str(2**n - 1),
        255,
        "2**n - 1",
    ],
    "04-after": [
        dict.fromkeys(AFTER, True),
        dict.fromkeys(AFTER, False),
        {name: not value for name, value in AFTER.items()},
        {**AFTER, "/dev/shm, version 2": True},
        {**AFTER, "heap, version 1": True},
        {**AFTER, "/dev/shm, version 1": True},
        {"heap, version 2": True},
        [False, True, False, False],
        "heap, version 2",
        True,
    ],
    "04-leaks": [
        lambda heap: heap[-1] > heap[0],
        lambda heap: heap[-1] > heap[1],
        lambda heap: heap[-1] - heap[0] > NOISE,
        lambda heap: max(heap) > 2 * min(heap),
        lambda heap: heap[-1] > 2 * heap[1],
        lambda heap: heap[-1] > 1.01 * heap[1],
        lambda heap: max(heap[1:]) - min(heap[1:]) > NOISE,
        lambda heap: max(heap[1:]) - heap[1] > NOISE,
        lambda heap: abs(heap[-1] - heap[1]) > NOISE,
        lambda heap: heap[-1] - heap[-2] > NOISE,
        lambda heap: heap[2] - heap[1] > NOISE,
        lambda heap: heap[-1] - heap[1] > 1_000_000,
        lambda heap: all(later > earlier for earlier, later in itertools.pairwise(heap[1:])),
        lambda heap: statistics.mean(heap[1:]) > heap[1],
        lambda heap: sum(heap) > NOISE,
        lambda heap: heap[-1] > 2_600_000,
        lambda heap: heap == sorted(heap),
        lambda heap: True,
        lambda heap: False,
        lambda heap: "leak",
        lambda heap: True if growth_of_the_last(heap) else None,
        True,
        [False, True],
    ],
}
