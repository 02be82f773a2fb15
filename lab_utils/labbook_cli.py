"""``python -m lab_utils labbook {list,show,compare,export,path}``."""

import argparse
from collections.abc import Callable
from pathlib import Path

from lab_utils.files import save_figure
from lab_utils.labbook import open_book
from lab_utils.labbook_entries import Experiment
from lab_utils.labbook_report import export
from lab_utils.labbook_text import details, listing, visible


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add ``labbook`` and its own commands to the lab's command line."""
    parser = commands.add_parser("labbook", help="list, show, compare and export the recorded experiments")
    actions = parser.add_subparsers(dest="action", required=True)
    _add(actions, "list", _list, "one line for each experiment", filters=True)
    one = _add(actions, "show", _show, "one experiment with all that was recorded")
    one.add_argument("id", type=int, help="its number in the list")
    one = _add(actions, "compare", _compare, "two experiments side by side")
    one.add_argument("before", type=int)
    one.add_argument("after", type=int)
    one.add_argument("--series", default="", help='the series to compare (default: "measured", or one that both have)')
    one.add_argument("--figure", type=Path, help="save the figure here (PNG)")
    one = _add(actions, "export", _export, "write report.html, data.csv and data.json", filters=True)
    one.add_argument("--out", type=Path, metavar="FOLDER", help="default: lab_book_report beside the book")
    _add(actions, "path", _path, "where the book is")


def _add(
    actions: argparse._SubParsersAction,
    name: str,
    run: Callable[[argparse.Namespace], int],
    help_text: str,
    filters: bool = False,
) -> argparse.ArgumentParser:
    one = actions.add_parser(name, help=help_text)
    one.set_defaults(run=run)
    if filters:
        one.add_argument("--lesson", default="", help="how its name begins, such as 02")
        one.add_argument("--ensemble", default="")
        one.add_argument("--since", metavar="DATE", help="such as 2026-11-23 or 2026-11-23T14:30 (UTC)")
        one.add_argument("--text", default="", help="words in title, configuration, verdict, notes or failure")
    return one


def _chosen(arguments: argparse.Namespace) -> list[Experiment]:
    book = open_book()
    return book.experiments(arguments.lesson, arguments.ensemble, arguments.since, arguments.text)


def _list(arguments: argparse.Namespace) -> int:
    print(listing(_chosen(arguments)))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    print(details(open_book().get(arguments.id)))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    comparison = open_book().compare(arguments.before, arguments.after, arguments.series)
    print(visible(f"{comparison.summary}.\n\n{comparison}"))
    if arguments.figure:
        save_figure(comparison.figure(), arguments.figure)
        print(f"\nfigure: {arguments.figure}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    book, found = open_book(), _chosen(arguments)
    paths = export(book, arguments.out or book.path.parent / "lab_book_report", found)
    print(f"{len(found)} experiment(s) written to:", *paths, sep="\n")
    return 0


def _path(_: argparse.Namespace) -> int:
    path = open_book().path
    print(path if path.exists() else f"{path} (not there yet: run a lesson first)")
    return 0
