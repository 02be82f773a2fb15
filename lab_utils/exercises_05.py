"""The exercises of lesson 05."""

from lab_utils.buffer_rules import rule_problem
from lab_utils.exercise_kinds import Exercise, equals, quiz

MUTATIONS = {"extend": "A", "stale_length": "C", "missing_clear": "D", "late_clear": "B", "alias": "E"}
HINTS = {
    "extend": "extend adds to the pending ids a message that begins with them; how many ids are pending after message "
    "2, and after message 3?",
    "stale_length": "stale_length never sends fewer ids than in its longest message; which list never falls, and stops "
    "rising?",
    "missing_clear": "missing_clear never empties what is pending; how many ids come on top in each message?",
    "late_clear": "late_clear looks at the newest id alone; the third piece of the character does not decode alone, "
    "and the id after it does",
    "alias": "alias changes values after the message was made; does that change a length?",
}


def _matches(answer: object) -> str:
    if not isinstance(answer, dict) or set(answer) != set(MUTATIONS):
        return f"expected one letter for each of {', '.join(MUTATIONS)}"
    given = {name: str(letter).strip().upper() for name, letter in answer.items()}
    return "; ".join(HINTS[name] for name, letter in MUTATIONS.items() if given[name] != letter)


LESSON_05: dict[str, Exercise] = {
    "05-lengths": Exercise(
        equals(
            [1, 2, 3, 1, 1, 1, 1, 1],
            "eight numbers; the first character is in three pieces, and each later token is whole characters",
            [
                ([1, 1, 1, 1, 1, 1, 1, 1], "a message still holds what is pending, and the first two do not decode"),
                ([1, 2, 3, 4, 5, 6, 7, 8], "message 3 holds the whole character, so it decodes: what is pending then?"),
                ([1, 2, 4, 8, 16, 32, 64, 128], "that is version 2; after message 2 only message 2 is pending now"),
                ([1, 2, 4, 1, 1, 1, 1, 1], "after message 2 only its two ids are pending; one more makes three"),
                ([1, 2, 3, 4, 1, 1, 1, 1], "message 3 decodes, so nothing is pending when token 4 comes"),
            ],
        ),
        "Message 3 holds the three pieces of the character once, it decodes, and the buffer is emptied.",
    ),
    "05-rule": Exercise(
        rule_problem,
        "A message is what is pending and the newest id; what is pending is replaced by the message until it decodes, "
        "and what you have handed over stays as it is.",
    ),
    "05-match": Exercise(
        _matches,
        "Four of the mistakes can be told by their lengths. alias cannot: its lengths are those of a healthy stream.",
    ),
    "05-quiz": Exercise(
        quiz(
            "bac",
            [
                "what did the buffer do with the ids that it held already?",
                "which ids of a message has the consumer seen before, and what tells it so?",
                "compare what the lengths say with what the ids say",
            ],
        ),
        "Replacing ends the doubling, but a message that repeats ids does not tell which are new, and right lengths do "
        "not make right ids.",
    ),
}
