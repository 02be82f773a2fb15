"""The exercises of lesson 04."""

from lab_utils.exercise_kinds import NO_RETURN, Exercise, equals, function, plain, quiz

KIB = 1024
LOW, LEVEL = 9_000, 2_500_000  # as measured: the first reading is low, because a process takes some memory once
SETTLED = [LOW, *[LEVEL] * 7]
DRIFTING = [LOW, 2_502_104, 2_510_108, 2_514_711, 2_517_208, 2_518_726, 2_519_851]
DOUBLING = [9_374, 2_499_323, 2_504_998, 2_527_464, 2_647_220, 3_571_523, 10_918_598]

# Readings of equal requests, whether they are a leak, and what a check overlooks that says otherwise.
READINGS = [
    ([400 * LEVEL] * 8, False, "no reading differs from the others, and it raises the alarm"),
    (SETTLED, False, "it takes what a process takes once, at its first request, for a leak; leave that reading out"),
    (DRIFTING, False, "it raises the alarm at a few KiB"),
    ([*SETTLED, LEVEL - 10 * KIB, LEVEL + 10 * KIB], False, "it raises the alarm at a few KiB"),
    ([LOW, LEVEL + 400 * KIB, *SETTLED[1:]], False, "it raises the alarm although memory has fallen"),
    ([*SETTLED, 4 * LEVEL, LEVEL, LEVEL], False, "it raises the alarm at one high reading that went down again"),
    (DOUBLING, True, "it misses a heap that doubles"),
    ([LOW, *(LEVEL + 30 * KIB * n for n in range(8))], True, "it misses 30 KiB that stay behind in each request"),
    ([LEVEL, *(400 * LEVEL + 30 * KIB * n for n in range(8))], True, "it misses 30 KiB a request in a large heap"),
    ([LOW, *(LEVEL + 40 * KIB * n - 9_000 * (n % 2) for n in range(8))], True, "it misses growth that is not even"),
]


def _leak_check(answer: object) -> str:
    """Try the learner's function on each list of readings, and say what the first wrong answer overlooks."""
    for heap, leak, words in READINGS:
        problem = function([((list(heap),), leak)], f"for {heap} {words}")(answer)
        if problem == NO_RETURN and any(answer(list(other)) is not None for other, *_ in READINGS):
            return f"for {heap} your function returns None; return {leak} there"
        if problem:
            return problem
    return ""


MESSAGES = (1, 2, 8, 3, 20)
_held_problem = function(
    [((n,), 2**n - 1) for n in MESSAGES],
    "for message {arguments} your function gives {got} ids; add the message and what was pending before it",
)
_bytes_problem = function([((n,), 4 * (2**n - 1)) for n in MESSAGES], "it is not the formula in bytes either")


def _held_check(answer: object) -> str:
    """Compare with the formula; a right one in bytes, or as text, gets words of its own."""
    problem = _held_problem(answer)
    if problem and callable(answer) and not _bytes_problem(answer):
        return "that is the formula in bytes, with 4 for each id; the question is for ids, not bytes"
    if problem and callable(answer) and isinstance(plain(answer(1)), str):
        return "your function returns text; return a number, not text"
    return problem


LESSON_04: dict[str, Exercise] = {
    "04-held": Exercise(
        _held_check,
        "Message n has 2^(n-1) ids, and one fewer was pending: the node holds both. It is about twice the message.",
    ),
    "04-after": Exercise(
        equals(
            {
                "heap, version 1": False,
                "heap, version 2": True,
                "/dev/shm, version 1": False,
                "/dev/shm, version 2": False,
            },
            "ask for each who owns it, and whether that owner ends with the request",
            [
                (
                    dict.fromkeys(("heap, version 1", "/dev/shm, version 1", "/dev/shm, version 2"), False)
                    | {"heap, version 2": False},
                    "in version 2 the last name for the buffer goes with the request; what happens then?",
                ),
                (
                    {
                        "heap, version 1": False,
                        "heap, version 2": True,
                        "/dev/shm, version 1": False,
                        "/dev/shm, version 2": True,
                    },
                    "a block inside the pool is freed; is the file made smaller?",
                ),
                (
                    {
                        "heap, version 1": True,
                        "heap, version 2": True,
                        "/dev/shm, version 1": False,
                        "/dev/shm, version 2": False,
                    },
                    "in version 1 the buffer belongs to the instance; does that end with the request?",
                ),
            ],
        ),
        "Only version 2's heap goes back: its buffer has an owner that ends. The pools belong to the loaded model.",
    ),
    "04-leaks": Exercise(
        _leak_check,
        "It leaves out the first reading, allows for some noise, and compares the end with the beginning.",
    ),
    "04-quiz": Exercise(
        quiz(
            "bca",
            [
                "which name refers to the buffer of version 1, and what does that name belong to?",
                "what grew for both versions, and stayed?",
                "what does a request need from those before it?",
            ],
        ),
        "A buffer lives as long as its owner, resident memory is no proof of a leak, and a cache has an end.",
    ),
}
