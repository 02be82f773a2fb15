"""The exercises of lesson 07."""

from lab_utils.exercise_kinds import Exercise

LESSON_07: dict[str, Exercise] = {}
