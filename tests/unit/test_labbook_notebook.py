"""The lab book's notebook shows any book: an empty one, one run, hundreds; what is compared is the same for all."""

import contextlib
import io
from pathlib import Path

import nbformat
import pytest

from lab_utils.labbook import Book

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "lab_book.ipynb"


def fill(book: Book, runs: int) -> None:
    for number in range(runs):
        ensemble = f"ensemble_{number % 3}"
        with book.experiment(f"{number % 4:02} lesson", "a run", predicted=[1, 2], ensemble=ensemble, prompt="p") as e:
            e.series("measured", [1] * (number % 5))
    if runs:
        book.experiment("02 lesson", "killed").__enter__()
        with contextlib.suppress(ValueError), book.experiment("02 lesson", "failing"):
            raise ValueError("it broke")


def run_cells(cells: list) -> list[str]:
    """Run the code cells in one namespace; return what each printed."""
    namespace, said = {}, []
    for cell in cells:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(cell.source, cell.id, "exec"), namespace)
        said.append(out.getvalue())
    return said


@pytest.mark.parametrize("runs", [0, 1, 2, 200])
def test_the_notebook_shows_any_book(tmp_path, monkeypatch, runs):
    monkeypatch.setenv("LAB_BOOK", str(tmp_path / "book.sqlite3"))
    fill(Book(tmp_path / "book.sqlite3"), runs)
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    said = run_cells(cells)
    for cell, text in zip(cells, said, strict=True):
        if "nbval-ignore-output" not in cell.metadata.get("tags", []):
            assert text == "".join(output.get("text", "") for output in cell.outputs), cell.source
    assert ("run a lesson" in said[0]) == (runs == 0)
    assert (tmp_path / "lab_book_report" / "report.html").exists()
