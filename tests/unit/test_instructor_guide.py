"""The guides say what the lessons say: minutes, titles, answers, and commands that are there."""

import re
from itertools import accumulate
from pathlib import Path

import make_answers
import nbformat
import pytest
import yaml

from lab_utils.__main__ import parser
from lab_utils.exercises import EXERCISES
from lab_utils.workshop_share import WHAT

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "instructor.md").read_text(encoding="utf-8")
WEEK = (ROOT / "docs" / "onboarding.md").read_text(encoding="utf-8")
WORKFLOW = ROOT / "deploy" / "ci" / "ensemble-gate.yml"
SCHEDULE = re.compile(r"^### (.+)\n(?:.*\n)*?\| from .*\n.*\n((?:\|.*\n)+)", re.MULTILINE)
LESSON = re.compile(r"^\[lesson \d\d\]\(\.\./notebooks/(\S+\.ipynb)\)$")
LENGTHS = {"90 minutes": 90, "Half a day (4 hours)": 240, "A day (8 hours)": 480}


def minutes_of(name: str) -> int:
    """What stands at a lesson's top."""
    first = nbformat.read(ROOT / "notebooks" / name, as_version=4).cells[0].source
    return int(re.search(r"\*\*Time\.\*\* (\d+) minutes", first)[1])


def schedules() -> dict[str, list[tuple[int, int, str]]]:
    """Title of each schedule, with the beginning, the minutes and the content of its rows."""
    found = {}
    for title, rows in SCHEDULE.findall(GUIDE):
        cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.strip().splitlines()]
        starts = [tuple(map(int, cell[0].split(":"))) for cell in cells]
        found[title] = [(60 * h + m, int(cell[1]), cell[2]) for (h, m), cell in zip(starts, cells, strict=True)]
    return found


def test_there_are_three_schedules():
    assert list(schedules()) == list(LENGTHS)


@pytest.mark.parametrize(("title", "length"), LENGTHS.items())
def test_a_schedule_adds_up(title, length):
    starts, minutes, _ = zip(*schedules()[title], strict=True)
    assert list(starts) == list(accumulate(minutes, initial=0))[:-1]
    assert sum(minutes) == length


@pytest.mark.parametrize("title", LENGTHS)
def test_a_lesson_gets_the_minutes_that_stand_at_its_top(title):
    planned = {match[1]: minutes for _, minutes, what in schedules()[title] if (match := LESSON.match(what))}
    assert len(planned) >= 3
    assert planned == {name: minutes_of(name) for name in planned}


@pytest.mark.parametrize("title", LENGTHS)
def test_a_lesson_comes_after_those_that_it_needs(title):
    done: set[str] = set()
    for match in filter(None, (LESSON.match(what) for _, _, what in schedules()[title])):
        first = nbformat.read(ROOT / "notebooks" / match[1], as_version=4).cells[0].source
        needed = re.search(r"\*\*You need\*\* lessons? ([\d, and]+)", first)
        assert set(re.findall(r"\d\d", needed[1] if needed else "")) <= done, match[1]
        done.add(match[1][:2])


def test_the_week_counts_the_minutes_of_its_lessons():
    days = re.findall(r"^(Lessons? .*?), (\d+) minutes", WEEK, re.MULTILINE | re.DOTALL)
    told = [int(minutes) for _, minutes in days]
    names = [re.findall(r"notebooks/(\d\d_\w+\.ipynb)", lessons) for lessons, _ in days]
    assert told == [sum(map(minutes_of, each)) for each in names]
    assert len(told) == 5


def test_the_answers_are_those_of_the_lessons():
    assert make_answers.rewritten(GUIDE) == GUIDE, "run: python tools/make_answers.py"


def test_every_exercise_has_its_answer_behind_a_fold():
    folded = re.findall(r"<details><summary>Lesson \d\d: .*?</summary>\n\n(.*?)\n\n</details>", GUIDE, re.DOTALL)
    assert re.findall(r"^\*\*(\d\d-[a-z-]+)\*\*$", "\n".join(folded), re.MULTILINE) == sorted_as_in_lessons()
    assert "<details>" not in "".join(folded)


def sorted_as_in_lessons() -> list[str]:
    sources = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
    found = [name for source in sources for name in re.findall(r'check\(\\"(\d\d-[a-z-]+)\\"', source)]
    assert set(found) == set(EXERCISES)
    return list(dict.fromkeys(found))


def test_a_page_without_its_marks_is_refused():
    with pytest.raises(ValueError, match="needs the lines"):
        make_answers.rewritten("a page")


def test_commands_in_the_guides_are_there():
    """Each is read by the lab's own parser, which ends with status 2 where it does not know it."""
    text = (GUIDE + WEEK).replace("reports/*.json", "reports/a.json")
    commands = re.findall(r"python -m lab_utils ((?:[\w./:@=-]+ ?)+)", text)
    assert len(commands) > 12
    for command in commands:
        prompt = ["a prompt"] if command.startswith("stream ") else []  # in the pages it is a variable of the shell
        parser().parse_args([*command.split(), *prompt])


def test_what_is_shared_is_said_in_the_same_words():
    told = " ".join(GUIDE.split())
    for words in (
        "which lessons were run and when",
        "how many of those runs failed",
        "Never an answer, a prompt, a text",
    ):
        assert words in told
    for words in (
        "which lessons you ran and when",
        "how many of those runs failed",
        "never an answer, a prompt, a text",
    ):
        assert words in WHAT


def test_nothing_is_left_to_fill_in():
    assert re.findall(r"\b[A-Z]+_(?:LINE|TABLE)\b", GUIDE + WEEK) == []


def test_the_workflow_runs_the_files_that_the_week_names():
    workflow = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    steps = workflow["jobs"]["gate"]["steps"]
    assert [step["name"] for step in steps if "run" in step] == [
        "set up",
        "contract",
        "the mended ensemble passes",
        "the ensemble with the bug is refused",
    ]
    assert f'prompt="{workflow["jobs"]["gate"]["env"]["PROMPT"]}"' in WEEK
    assert workflow["permissions"] == {"contents": "read"}
