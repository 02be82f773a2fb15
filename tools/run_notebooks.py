"""Run the lessons in place and store their outputs: ``python tools/run_notebooks.py [NOTEBOOK...]``.

What differs from run to run for no good reason is kept out of the files: time stamps, the kernel's patch version, the
way a stream was cut into pieces, the name of a widget that ended with its kernel. Everything else is stored as the
kernel gave it.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
CELL_SECONDS = 600
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDGET = "application/vnd.jupyter.widget-view+json"
LANGUAGE_INFO = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}


def normalise(notebook: nbformat.NotebookNode) -> None:
    """Set the notebook's metadata to what every machine would write, in place; of a widget its text stays."""
    notebook.metadata.kernelspec = KERNELSPEC
    notebook.metadata.language_info = LANGUAGE_INFO
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Replace a notebook file in one step, so that an interruption leaves the old one."""
    temporary = path.with_name(f".{path.name}.new")
    nbformat.write(notebook, temporary)
    os.replace(temporary, path)


def run(path: Path) -> None:
    """Run one notebook from a fresh kernel, in its own folder, and store the outputs in it.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        When a cell fails; the file is left as it was.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
    )
    client.execute()
    normalise(notebook)
    write(notebook, path)


def main(arguments: list[str]) -> int:
    """Run the named notebooks, or all in order; return 1 at the first that fails."""
    paths = [Path(argument).resolve() for argument in arguments] or sorted(NOTEBOOKS.glob("*.ipynb"))
    if not paths:
        print(f"no notebooks in {NOTEBOOKS}", file=sys.stderr)
        return 1
    for path in paths:
        print(path.name, flush=True)
        try:
            run(path)
        except (CellExecutionError, OSError) as error:
            print(f"{path.name} failed and was left as it was:\n{error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
