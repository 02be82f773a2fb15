"""The exercises of lesson 08."""

from lab_utils.exercise_kinds import Exercise

LESSON_08: dict[str, Exercise] = {}
