"""The exercises of lesson 10."""

from lab_utils.exercise_kinds import Exercise

LESSON_10: dict[str, Exercise] = {}
