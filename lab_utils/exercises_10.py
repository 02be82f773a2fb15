"""The exercises of lesson 10; the diagnosis and the patch are judged by the case itself (`lab_utils.capstone`)."""

from lab_utils.exercise_kinds import Exercise, equals, function, quiz

LAWS_OF = {"A": "order", "B": "late", "C": "lost_end", "D": "leak"}


def _laws(**wrong: str) -> dict[str, str]:
    return LAWS_OF | wrong


LESSON_10: dict[str, Exercise] = {
    "10-messages": Exercise(
        function(
            [(("tea",), 3), (("é",), 2), (("茶",), 3), (("😀",), 4), (("a 茶 b",), 7), (("",), 1)],
            "for {arguments!r} your function says {got}; count the bytes in UTF-8, and think of the empty answer",
        ),
        "One message for each byte; the empty answer is one message too, because its end mark has to travel.",
    ),
    "10-laws": Exercise(
        equals(
            LAWS_OF,
            "one law for each letter; A: all messages are there. B: compare with the bytes of the prompt. "
            "C: what is missing at the end? D: whose words are these?",
            [
                (_laws(A="stale_index"), "A: the text is out of order as well, so the index tells the truth"),
                (_laws(B="history"), "B: with a history the messages would get longer"),
                (_laws(B="held_back"), "B: something is held back there, and ids come twice: which law says so?"),
                (_laws(C="held_back"), "C: all ids and the whole text arrived"),
                (_laws(D="history"), "D: the history of a stream is its own; whose words are these?"),
                (_laws(D="altered"), "D: `milk` was not changed into other letters; somebody else said `oats`"),
            ],
        ),
        "Each law breaks one promise of the contract, and leaves the others alone. That is how they are told apart.",
    ),
    "10-quiz": Exercise(
        quiz(
            "cab",
            [
                "a node that passes on what it gets shows the same symptom as the node that made it",
                "what does a fault that needs two streams at once show to one stream?",
                "the grade is about the contract, not about the examples that you tried",
            ],
        ),
        "Compare what goes in with what comes out, node by node; vary one thing at a time; and let runs decide that "
        "you did not choose.",
    ),
}
