"""Right answers to the exercises of lesson 05, and plausible wrong ones."""

import itertools
from collections.abc import Iterator

import numpy as np

from lab_utils.buffer_rules import Clean


def replace(tokens: Iterator[int], clean: Clean) -> Iterator[list[int]]:
    pending = []
    for token in tokens:
        message = pending + [token]  # noqa: RUF005 (as a learner writes it)
        yield message
        pending = [] if clean(message) else message


def replace_with_arrays(tokens, clean):
    pending = np.empty(0, dtype=np.int32)
    for token in tokens:
        message = np.concatenate([pending, [token]])
        yield message
        pending = message[:0] if clean(message) else message


def replace_by_append(tokens, clean):
    pending = []
    for token in tokens:
        pending.append(token)
        yield list(pending)
        if clean(pending):
            pending.clear()


def replace_before_the_message(tokens, clean):
    message = ()
    for token in tokens:
        if clean(message):
            message = ()
        message = (*message, token)
        yield message


def replace_in_parts(tokens, clean):
    pending = []
    for token in tokens:
        whole = clean([*pending, token])
        yield [*pending, token]
        pending = [] if whole else [*pending, token]


VARIANTS = [replace, replace_with_arrays, replace_by_append, replace_before_the_message, replace_in_parts]


def extend(tokens, clean):
    pending = []
    for token in tokens:
        message = pending + [token]  # noqa: RUF005
        yield message
        pending = [] if clean(message) else pending + message


def extend_in_place(tokens, clean):
    pending = []
    for token in tokens:
        message = [*pending, token]
        yield message
        pending.extend(message)
        if clean(message):
            pending.clear()


def stale_length(tokens, clean):
    buffer, longest, pending = np.zeros(64, dtype=np.int32), 0, []
    for token in tokens:
        message = [*pending, token]
        buffer[: len(message)] = message
        longest = max(longest, len(message))
        yield buffer[:longest].copy()
        pending = [] if clean(message) else message


def stale_length_in_one_buffer(tokens, clean):
    buffer, longest, pending = [], 0, []
    for token in tokens:
        message = [*pending, token]
        buffer[: len(message)] = message
        longest = max(longest, len(message))
        yield buffer[:longest]
        pending = [] if clean(message) else message


def missing_clear(tokens, clean):
    pending = []
    for token in tokens:
        pending = [*pending, token]
        yield pending


def missing_clear_in_place(tokens, clean):
    pending = []
    for token in tokens:
        pending.append(token)
        yield pending


def late_clear(tokens, clean):
    pending = []
    for token in tokens:
        message = [*pending, token]
        yield message
        pending = [] if clean([token]) else message


def swapped_branches(tokens, clean):
    pending = []
    for token in tokens:
        message = [*pending, token]
        yield message
        pending = message if clean(message) else []


def clear_one_later(tokens, clean):
    pending, whole = [], False
    for token in tokens:
        message = [*pending, token]
        yield message
        pending, whole = ([] if whole else message), clean(message)


def early_clear(tokens, clean):
    pending = []
    for token in tokens:
        message = [*pending, token]
        yield message
        pending = [] if len(message) == 3 else message if not clean(message) else []


def alias(tokens, clean):
    message = []
    for token in tokens:
        message.append(token)
        yield message
        if clean(message):
            message.clear()


def alias_of_an_array(tokens, clean):
    shared, size = np.zeros(64, dtype=np.int32), 0
    for token in tokens:
        shared[size] = token
        size += 1
        yield shared[:size]
        size = 0 if clean(shared[:size]) else size


def alias_held_back(tokens, clean):
    shared, held = [0], None
    for message in replace(tokens, clean):
        shared[:] = message
        if held:
            yield held
        held = shared
    yield held


def zeros_behind(tokens, clean):
    for message in replace(tokens, clean):
        yield message + [0] * (4 - len(message))


LEFT_OVER: list[int] = []


def leak(tokens, clean, pending=LEFT_OVER):
    for token in tokens:
        message = [*pending, token]
        yield message
        pending[:] = [] if clean(message) else message


def latest(tokens, clean):
    for token in tokens:
        yield [token]


def only_whole(tokens, clean):
    pending = []
    for token in tokens:
        pending = [*pending, token]
        yield pending if clean(pending) else []
        pending = [] if clean(pending) else pending


def skips_what_is_not_whole(tokens, clean):
    pending = []
    for token in tokens:
        pending = [*pending, token]
        if clean(pending):
            yield pending
            pending = []


def newest_first(tokens, clean):
    for message in replace(tokens, clean):
        yield message[::-1]


def all_at_once(tokens, clean):
    return list(replace(tokens, clean))


def reads_ahead(tokens, clean):
    yield from replace(list(tokens), clean)


def never_ends(tokens, clean):
    yield from replace(tokens, clean)
    while True:
        yield [0]


def ids_alone(tokens, clean):
    yield from tokens


def a_matrix(tokens, clean):
    for message in replace(tokens, clean):
        yield np.array([message])


def yields_nothing(tokens, clean):
    yield from ()


def first_piece_for_ever(tokens, clean):
    first = None
    for message in replace(tokens, clean):
        first = first or message
        yield [first[0]] * len(message)


# A wrong rule, and what has to be in the words about it.
MISTAKES = {
    extend: "(extend)",
    extend_in_place: "(extend)",
    stale_length: "(stale length)",
    stale_length_in_one_buffer: "(stale length)",
    missing_clear: "(missing clear)",
    missing_clear_in_place: "(missing clear)",
    late_clear: "at the wrong time, too late",
    swapped_branches: "or the two branches are swapped",
    clear_one_later: "at the wrong time, too late",
    early_clear: "at the wrong time, too early",
    alias: "(alias)",
    alias_of_an_array: "(alias)",
    alias_held_back: "(alias)",
    leak: "ids of another text",
    latest: "version 4",
    only_whole: "It is empty",
    skips_what_is_not_whole: "1 message(s) for 3 tokens",
    newest_first: "in another order",
    all_at_once: "A stream does not wait",
    reads_ahead: "A stream does not wait",
    never_ends: "more than 3 message(s) for 3 tokens",
    zeros_behind: "Expected are the ids that are pending",
    ids_alone: "expected a list of ids",
    a_matrix: "expected a list of ids",
    yields_nothing: "0 message(s) for 3 tokens",
}

MATCH = {"extend": "A", "stale_length": "C", "missing_clear": "D", "late_clear": "B", "alias": "E"}
OTHER_MATCHES = [dict(zip(MATCH, letters, strict=True)) for letters in itertools.permutations("ABCDE")]

RIGHT: dict[str, object] = {
    "05-lengths": [1, 2, 3, 1, 1, 1, 1, 1],
    "05-rule": replace,
    "05-match": MATCH,
    "05-quiz": ["b", "a", "c"],
}
NEAR_MISSES: dict[str, list[object]] = {
    "05-lengths": [
        [1] * 8,
        [1, 2, 3, 4, 5, 6, 7, 8],
        [1, 2, 4, 8, 16, 32, 64, 128],
        [1, 2, 4, 1, 1, 1, 1, 1],
        [1, 2, 3, 4, 1, 1, 1, 1],
        [1, 2, 3, 3, 3, 3, 3, 3],
        [1, 2, 3, 1, 2, 3, 1, 2],
        [1, 2, 3, 1, 1, 1, 1],
        [3, 1, 1, 1, 1, 1],
        [0, 0, 3, 1, 1, 1, 1, 1],
        "1 2 3 1 1 1 1 1",
        3,
    ],
    "05-rule": [*MISTAKES, first_piece_for_ever, "pending = message", [[1], [1, 2]]],
    "05-match": [
        *(other for other in OTHER_MATCHES if other != MATCH),
        list("ACDBE"),
        "ACDBE",
        {"extend": "A"},
        {letter: name for name, letter in MATCH.items()},
        MATCH | {"alias": "A"},
        MATCH | {"none": "F"},
    ],
}
