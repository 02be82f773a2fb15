"""Check the answers to the lessons' exercises: say what is wrong with a wrong one, and why a right one is right."""

import traceback

from lab_utils.exercise_kinds import NOT_ANSWERED, Exercise, plain
from lab_utils.exercises_00_to_03 import LESSONS_00_TO_03
from lab_utils.exercises_04 import LESSON_04
from lab_utils.exercises_05 import LESSON_05
from lab_utils.exercises_06 import LESSON_06
from lab_utils.exercises_07 import LESSON_07
from lab_utils.exercises_08 import LESSON_08
from lab_utils.exercises_09 import LESSON_09
from lab_utils.exercises_10 import LESSON_10
from lab_utils.labbook import open_book
from lab_utils.workshop_share import record_check

EXERCISES: dict[str, Exercise] = {
    **LESSONS_00_TO_03,
    **LESSON_04,
    **LESSON_05,
    **LESSON_06,
    **LESSON_07,
    **LESSON_08,
    **LESSON_09,
    **LESSON_10,
}


def check(name: str, answer: object) -> None:
    """Print the verdict on an answer; never raises because of what the answer is.

    A learner who shares her progress shares that it was right or not yet, never the answer: see `workshop_share`.

    Raises
    ------
    KeyError
        There is no exercise of this name: a mistake in the notebook, not in the answer.
    """
    said = verdict(name, answer)
    print(said)
    if said != NOT_ANSWERED:
        record_check(open_book().path, name, said.startswith("right. "))


def verdict(name: str, answer: object) -> str:
    """One of "not answered yet…", "not yet: …" with what is wrong, or "right. …" with the reason."""
    exercise = EXERCISES[name]
    if _unanswered(answer):
        return NOT_ANSWERED
    try:
        problem = exercise.problem(plain(answer))
    except (Exception, SystemExit) as error:  # whatever a learner wrote must not end in a traceback
        problem = f"your answer could not be used: {''.join(traceback.format_exception_only(error)).strip()}"
    if problem == NOT_ANSWERED:
        return problem
    return f"not yet: {problem}" if problem else f"right. {exercise.why}"


def _unanswered(answer: object) -> bool:
    parts = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, list | tuple | set) else ()
    return answer is ... or any(part is ... for part in parts)
