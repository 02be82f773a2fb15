"""``python -m lab_utils workshop {check,table,share,progress}``: for the instructor, and for learners who agree."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from lab_utils import workshop_check, workshop_progress, workshop_share
from lab_utils.exercises import EXERCISES
from lab_utils.labbook import open_book
from lab_utils.labbook_text import visible
from lab_utils.tables import table
from lab_utils.workshop_progress import Limits


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add ``workshop`` and its own commands to the lab's command line."""
    parser = commands.add_parser("workshop", help="check a machine the day before; see how far learners are")
    actions = parser.add_subparsers(dest="action", required=True)
    one = _add(actions, "check", _check, "run a real lesson here, and say whether this machine is ready")
    one.add_argument("--lesson", default="02", help="the lesson to run (02)")
    one.add_argument("--learners", type=int, default=1, metavar="N", help="how many share this machine (1)")
    one.add_argument("--json", action="store_true", help="the report as JSON, progress on stderr")
    one = _add(actions, "table", _table, "the reports of many machines as one table")
    one.add_argument("files", nargs="+", type=Path, metavar="FILE.json", help="what `check --json` printed")
    one = _add(actions, "share", _share, "let your instructor see how far you are")
    one.add_argument("folder", nargs="?", default="", metavar="FOLDER", help="where the instructor looks")
    one.add_argument("--name", default="", help="what the instructor calls you")
    one.add_argument("--stop", action="store_true", help="stop sharing, and remove what was shared")
    one = _add(actions, "progress", _progress, "who is where, and who is stuck, of those who share it")
    one.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    one.add_argument("--wrong", type=int, default=Limits.wrong, metavar="K", help="stuck: wrong answers in a row (3)")
    one.add_argument("--quiet", type=float, default=Limits.quiet, metavar="MIN", help="quiet: minutes of nothing (20)")
    one.add_argument("--gone", type=float, default=Limits.gone, metavar="MIN", help="gone: minutes of nothing (120)")
    one.add_argument("--json", action="store_true")


def _add(
    actions: argparse._SubParsersAction, name: str, run: Callable[[argparse.Namespace], int], help_text: str
) -> argparse.ArgumentParser:
    one = actions.add_parser(name, help=help_text)
    one.set_defaults(run=run)
    return one


def _check(arguments: argparse.Namespace) -> int:
    """Exit status 0 where the machine is ready, 1 where it is not."""
    stream = sys.stderr if arguments.json else sys.stdout
    report = workshop_check.examine(
        arguments.lesson, arguments.learners, lambda line: print(line, file=stream, flush=True)
    )
    print(workshop_check.to_json(report) if arguments.json else report)
    return 0 if report.ready else 1


def _table(arguments: argparse.Namespace) -> int:
    """Exit status 0 where all machines are ready, 1 where one is not."""
    rows = workshop_check.rows(arguments.files)
    headers = ["machine", "ready", "server start, s", "lesson, s", "jupyterlab, s", "problems"]
    print(table(headers, map(_machine, rows)))
    ready, versions = sum(bool(row["ready"]) for row in rows), {row["lessons"] for row in rows if row["lessons"]}
    if len(versions) > 1:
        print("the machines have different lessons or packages: bring all to the same version")
    print(f"{ready} of {len(rows)} machine(s) ready")
    return 0 if ready == len(rows) and len(versions) <= 1 else 1


def _machine(row: dict[str, object]) -> list[object]:
    ready = workshop_check.READY if row["ready"] else workshop_check.NOT_READY
    problems = ", ".join(map(str, row["problems"])) or "-"
    return [visible(row["host"]), ready, row["server start"], row["lesson"], row["jupyterlab"], visible(problems)]


def _share(arguments: argparse.Namespace) -> int:
    """Start or stop sharing; says in a sentence what is shared."""
    book = open_book().path
    if arguments.stop:
        stopped = workshop_share.stop_sharing(book)
        print("stopped: what you shared is removed" if stopped else "nothing was shared")
        return 0
    folder, name = workshop_share.offered(os.environ)
    folder, name = arguments.folder or folder, arguments.name or name
    if not folder or not name:
        missing = "a folder" if not folder else "your name"
        raise ValueError(f"{missing} is missing: python -m lab_utils workshop share --name YOU FOLDER")
    consent = workshop_share.share(book, name, Path(folder))
    print(f"{workshop_share.WHAT}\nyour file: {consent.file}\nto stop: python -m lab_utils workshop share --stop")
    return 0


def _progress(arguments: argparse.Namespace) -> int:
    """One line for each learner who shares; files that could not be used are told on stderr."""
    limits = Limits(arguments.wrong, arguments.quiet, arguments.gone)
    read = [workshop_progress.read_folder(folder) for folder in arguments.folders]
    learners = workshop_progress.latest_of_each(one for found, _ in read for one in found)
    rows = workshop_progress.rows(learners, EXERCISES, datetime.now(timezone.utc), limits)
    for problem in (problem for _, problems in read for problem in problems):
        print(f"problem: {problem}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(rows, ensure_ascii=False))
    elif rows:
        print(table(workshop_progress.HEADERS, workshop_progress.lines(rows)))
    else:
        print("nobody shares progress here; learners do with: python -m lab_utils workshop share --name YOU FOLDER")
    return 0
