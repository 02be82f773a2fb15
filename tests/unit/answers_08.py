"""Right answers to the exercises of lesson 08, and plausible wrong ones."""

RIGHT: dict[str, object] = {}
NEAR_MISSES: dict[str, list[object]] = {}
