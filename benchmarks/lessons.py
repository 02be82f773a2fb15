"""How long the lessons take when a machine runs them: the nbval part of `make test`, and each lesson in it.

Run it with `make bench`: one round, which takes some minutes; ``LESSON_ROUNDS=5`` takes more. Every cell runs and is
compared, as in `make test`. A cell that fails ends the benchmark: that is no time.

Lesson 09 compiles the C++ backends where they are not there yet, as in a fresh clone. What that takes is measured
apart, in a folder of its own.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

from side_by_side import Row, Spread, main, spread, spreads

from lab_utils import custom_backend

PROJECT = custom_backend.PROJECT
ROUNDS = int(os.environ.get("LESSON_ROUNDS", "1"))
RUN_SECONDS, LESSON_SECONDS = 180, 20
SHOWN_LINES = 20
# What `make test` sets, and what it takes away; see the Makefile.
SETTINGS = {"LC_ALL": "C.UTF-8", "JUPYTER_PREFER_ENV_PATH": "1"}
TAKEN_AWAY = re.compile(r"PYTHON\w*|MPLBACKEND|PYTEST_ADDOPTS|PYTEST_PLUGINS|FORCE_COLOR|COLUMNS|LINES|LANG|LANGUAGE")
BUILT = {"C++ backends": "backends/token_stream", "program with the sanitizer": "address/drive"}


class LessonFailedError(RuntimeError):
    """A cell failed; the message names it and holds the end of what nbval printed."""


def measure() -> dict:
    """Run all lessons `ROUNDS` times: seconds of each run, of each lesson in it, and of its slowest cell."""
    before = {what: (custom_backend.default_folder() / place).exists() for what, place in BUILT.items()}
    runs = [run_lessons() for _ in range(ROUNDS)]
    lessons = runs[0][1]
    return {
        "rounds": ROUNDS,
        "built_beforehand": before,
        "compile_s": compile_seconds(),
        "run_s": asdict(spread([whole for whole, _ in runs])),
        "lessons_s": spreads({name: [sum(found[name]) for _, found in runs] for name in lessons}),
        "slowest_cell_s": spreads({name: [max(found[name]) for _, found in runs] for name in lessons}),
    }


def run_lessons() -> tuple[float, dict[str, list[float]]]:
    """One run of nbval over all lessons: its seconds from start to end, and those of the cells of each lesson.

    Raises
    ------
    LessonFailedError
        A cell failed, or nbval found none.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", *nbval_options(), "-p", "no:cacheprovider", f"--junitxml={report}"]
        began = time.monotonic()
        done = subprocess.run(
            [*command, "notebooks"], cwd=PROJECT, env=environment(folder), capture_output=True, text=True, check=False
        )
        seconds = time.monotonic() - began
        if done.returncode != 0:
            end = "\n".join((done.stdout + done.stderr).splitlines()[-SHOWN_LINES:])
            raise LessonFailedError(f"{', '.join(failed(report)) or 'nbval'} failed, so nothing was measured:\n{end}")
        return seconds, seconds_of_cells(report)


def nbval_options() -> list[str]:
    """The options of nbval in the Makefile."""
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    return shlex.split(re.search(r"^NBVAL := (.*)$", makefile, re.MULTILINE)[1])


def environment(folder: str) -> dict[str, str]:
    """The variables that `make test` runs nbval with; what it writes goes into the folder."""
    kept = {name: value for name, value in os.environ.items() if not TAKEN_AWAY.fullmatch(name)}
    places = {"IPYTHONDIR": "ipython", "MPLCONFIGDIR": "matplotlib", "LAB_BOOK": "lab_book.sqlite3"}
    return kept | SETTINGS | {name: str(Path(folder, place)) for name, place in places.items()}


def seconds_of_cells(report: Path) -> dict[str, list[float]]:
    """Seconds of the cells of each lesson, by pytest's report: the kernel starts in the first and ends in the last."""
    seconds: dict[str, list[float]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        lesson = case.get("classname", "").removeprefix("notebooks.").removesuffix(".ipynb")
        seconds.setdefault(lesson, []).append(float(case.get("time", "0")))
    return dict(sorted(seconds.items()))


def failed(report: Path) -> list[str]:
    """The cells that failed, by pytest's report, where there is one."""
    if not report.exists():
        return []
    cases = ElementTree.parse(report).iter("testcase")
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    return [f"{case.get('classname')} {case.get('name')}" for case in bad]


def compile_seconds() -> float:
    """Seconds of the compiler for what lesson 09 needs: the backends, and the program with the sanitizer."""
    variables = {name: value for name, value in os.environ.items() if name not in custom_backend.OUTER_MAKE}
    with tempfile.TemporaryDirectory() as folder:
        place = os.path.relpath(folder, custom_backend.FOLDER)  # make takes no white space in paths
        began = time.monotonic()
        for target, settings in (("all", []), ("drive", ["SANITIZE=address"])):
            command = ["make", f"--jobs={len(os.sched_getaffinity(0))}", f"BUILD={place}/{target}", *settings, target]
            subprocess.run(command, cwd=custom_backend.FOLDER, env=variables, capture_output=True, check=True)
        return time.monotonic() - began


def rows(results: dict) -> list[Row]:
    """The whole run, and the slowest lesson."""
    times = {name: Spread(**one) for name, one in results["lessons_s"].items()}
    slowest = max(times, key=lambda name: times[name].median)
    whole, rounds = Spread(**results["run_s"]), _runs(results)
    return [
        Row("the whole nbval run", "-", "at most 3 min", f"{whole.median:.0f} s, {rounds}", whole, RUN_SECONDS),
        Row(
            "the slowest lesson in it",
            "-",
            f"at most {LESSON_SECONDS} s",
            f"{times[slowest].median:.1f} s, `{slowest}`, {rounds}",
            times[slowest],
            LESSON_SECONDS,
        ),
    ]


def remarks(results: dict) -> str:
    """Every lesson's seconds, and what lesson 09 has to compile in a fresh clone."""
    parts = [f"{what}: {'yes' if there else 'no'}" for what, there in results["built_beforehand"].items()]
    lines = ["| lesson | seconds, median | least | most | of that, its slowest cell |", "|---|---|---|---|---|"]
    for name, one in sorted(results["lessons_s"].items(), key=lambda item: -item[1]["median"]):
        seconds = [one["median"], one["least"], one["most"], results["slowest_cell_s"][name]["median"]]
        lines.append(f"| {name} | {' | '.join(f'{each:.1f}' for each in seconds)} |")
    return (
        f"Seconds of each lesson, with the start and the end of its kernel ({_runs(results)}). Lesson 09 compiles what "
        f"is not there yet. Compiled before the first run: {', '.join(parts)}. To compile all of it takes "
        f"{results['compile_s']:.0f} s here.\n\n" + "\n".join(lines)
    )


def _runs(results: dict) -> str:
    return "1 run" if results["rounds"] == 1 else f"{results['rounds']} runs"


if __name__ == "__main__":
    main(__file__)
