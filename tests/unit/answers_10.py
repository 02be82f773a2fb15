"""Right answers to the exercises of lesson 10, and plausible wrong ones."""

LAWS = {"A": "order", "B": "late", "C": "lost_end", "D": "leak"}

RIGHT: dict[str, object] = {
    "10-messages": lambda text: len(text.encode()) or 1,
    "10-laws": LAWS,
    "10-quiz": ["c", "a", "b"],
}
NEAR_MISSES: dict[str, list[object]] = {
    "10-messages": [
        len,
        lambda text: len(text) or 1,
        lambda text: len(text.encode()),
        lambda text: len(text.encode()) + 1,
        lambda text: len(text.encode("utf-16")) // 2,
        lambda text: len(text.split()) or 1,
        lambda text: str(len(text.encode()) or 1),
        lambda text: 7,
        7,
    ],
    "10-laws": [
        LAWS | {"A": "stale_index"},
        LAWS | {"B": "history"},
        LAWS | {"B": "held_back"},
        LAWS | {"B": "doubling"},
        LAWS | {"C": "held_back"},
        LAWS | {"C": "altered"},
        LAWS | {"D": "history"},
        LAWS | {"D": "altered"},
        LAWS | {"D": "Leak"},
        {"A": "order", "B": "late", "C": "lost_end"},
        list(LAWS.values()),
        "order",
    ],
}
