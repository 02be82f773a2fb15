#!/usr/bin/env python3
"""Write the answers of all exercises into docs/instructor.md, from the lessons' own solutions.

``python tools/make_answers.py`` rewrites the part between the two marks; a test says when that is due.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from lab_utils.exercises import EXERCISES

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs" / "instructor.md"
BEGIN, END = "<!-- answers: written by tools/make_answers.py -->", "<!-- end of answers -->"
NAME = re.compile(r'^check\("([^"]+)"', re.MULTILINE)
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n(.*?)\n</details>", re.DOTALL)


def answers(notebook: NotebookNode) -> str:
    """The solutions of one lesson, each with its exercise's name and the reason that its check gives."""
    parts = []
    for cell, below in zip(notebook.cells, notebook.cells[1:], strict=False):
        if cell.cell_type == "code" and (match := NAME.search(cell.source)):
            parts.append(f"**{match[1]}**\n\n{SOLUTION.search(below.source)[1]}\n\n{EXERCISES[match[1]].why}")
    return "\n\n".join(parts)


def section(folder: Path = ROOT / "notebooks") -> str:
    """The answers of all lessons, each lesson behind a fold."""
    parts = []
    for path in sorted(folder.glob("[0-9]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        title = notebook.cells[0].source.partition("\n")[0].removeprefix("# ")
        parts.append(f"<details><summary>{title}</summary>\n\n{answers(notebook)}\n\n</details>")
    return "\n\n".join(parts)


def rewritten(page: str) -> str:
    """The page with the answers of now.

    Raises
    ------
    ValueError
        The page has not both marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{GUIDE.name} needs the lines {BEGIN!r} and {END!r}, in this order")
    return f"{before}{BEGIN}\n\n{section()}\n\n{END}{after}"


def main() -> int:
    """Rewrite the guide."""
    GUIDE.write_text(rewritten(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
