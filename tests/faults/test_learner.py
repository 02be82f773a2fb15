"""What learners do to a lesson: cells out of order, interrupts, a kernel that is killed, two lessons at once."""

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from fault_matrix import ROOT, seen
from leftovers import RUN_MARK, SECONDS, marked_processes, until_none
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from lab_utils import launch

LESSONS = ROOT / "notebooks"
SLOW = {"l00-04", "l00-06", "l00-27", "l00-29", "l00-31"}  # cells that start servers of their own
MANY = 'iter_stream(server, "ensemble_latest", "x", 30_000, forced_ids=[64] * 30_000)'
STREAM = f"from pathlib import Path\nfor message in {MANY}:\n    Path('began').touch()"
KILL = "server._process.kill()"


class Lesson:
    """A lesson in a kernel of its own, cell by cell, as in JupyterLab."""

    def __init__(self, name: str, folder: Path):
        self.folder = folder
        self.notebook = nbformat.read(LESSONS / name, as_version=4)
        place = {"metadata": {"path": str(folder)}}
        self.client = NotebookClient(self.notebook, timeout=SECONDS * 4, allow_errors=True, resources=place)

    def cell(self, cell_id: str) -> str:
        """The source of a cell of the lesson."""
        return next(cell.source for cell in self.notebook.cells if cell.id == cell_id)

    def run(self, source: str) -> str:
        """Run a cell; what it prints and, where it fails, the error as the notebook shows it."""
        self.notebook.cells.append(nbformat.v4.new_code_cell(source))
        done = self.client.execute_cell(self.notebook.cells[-1], len(self.notebook.cells) - 1)
        return "".join(output.get("text", "") or "\n".join(output.get("traceback", [])) for output in done.outputs)

    def error(self, source: str) -> str:
        """Run a cell that must fail: the name and the message of its error. What is shown is short and has the cell."""
        shown = self.run(source)
        (output,) = [one for one in self.notebook.cells[-1].outputs if one.output_type == "error"]
        if output.ename not in ("NameError", "KeyboardInterrupt"):  # those are Python's own
            assert "lab_utils/" not in shown.partition("It happened here:")[2]
            assert source.splitlines()[-1].strip() in shown.partition("It happened here:")[2]
        return f"{output.ename}: {output.evalue}".removesuffix(": ")

    def interrupted(self, source: str, when: Callable[[], bool], after: float = 0.0) -> str:
        """Run a cell and interrupt the kernel some seconds after `when` is true."""
        with ThreadPoolExecutor(1) as pool:
            pool.submit(self._signal_when, signal.SIGINT, when, after)
            return self.error(source)

    def killed(self, source: str, when: Callable[[], bool]) -> str:
        """Run a cell and kill the kernel once `when` is true: what is shown then."""
        with ThreadPoolExecutor(1) as pool:
            pool.submit(self._signal_when, signal.SIGKILL, when, 0.0)
            with pytest.raises(DeadKernelError) as caught:
                self.run(source)
        return str(caught.value)

    def _signal_when(self, number: int, when: Callable[[], bool], after: float) -> None:
        deadline = time.monotonic() + SECONDS
        while not when() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(after)  # the moment is what is tested
        os.kill(self.client.km.provisioner.pid, number)

    def run_all(self, without: set[str] = frozenset()) -> None:
        """Run the lesson from its first cell to its last; what it prints is what is stored, and nothing fails."""
        for stored in nbformat.read(LESSONS / "00_start_here.ipynb", as_version=4).cells:
            if stored.cell_type == "code" and stored.id not in without:
                printed = self.run(stored.source)
                assert not any(one.output_type == "error" for one in self.notebook.cells[-1].outputs), printed
                if "nbval-ignore-output" not in stored.metadata.get("tags", []):
                    assert printed == "".join(output.get("text", "") for output in stored.outputs), stored.id


def servers() -> set[str]:
    folder = launch.STATE / "servers"
    return set(os.listdir(folder)) if folder.exists() else set()


def test_a_lesson_survives_what_learners_do_to_it(tmp_path):
    lesson, began = Lesson("00_start_here.ipynb", tmp_path), tmp_path / "began"
    start, stop = lesson.cell("l00-08"), "server.stop()"
    with lesson.client.setup_kernel():
        lesson.run("from lab_utils.client import iter_stream, stream\nfrom lab_utils.server import start_server")
        seen("cell too early", lesson.error(lesson.cell("l00-10")))
        before = servers()
        seen("interrupted start", lesson.interrupted(start, lambda: servers() != before))
        lesson.run(start)
        seen("interrupted stream", lesson.interrupted(STREAM, began.exists))
        assert (
            lesson.run('print(stream(server, "ensemble_latest", "Pancakes. Ingredients:").lengths)') == f"{[1] * 8}\n"
        )
        lesson.run(KILL)
        one_stream = 'result = stream(server, "ensemble_latest", "Pancakes. Ingredients:")'
        seen("server killed in a lesson", lesson.error(one_stream))
        lesson.run_all(SLOW)
        seen("stopped twice", lesson.run(stop))
        seen("stream after stop", lesson.error(one_stream))
        lesson.run(start)
        began.unlink()
        stopping = f"from pathlib import Path\nPath('began').touch()\n{stop}"
        seen("interrupted stop", lesson.interrupted(stopping, began.exists, 0.3))
        lesson.run(start)
        began.unlink()
        seen("kernel killed", lesson.killed(STREAM, began.exists))
    until_none(lambda: marked_processes(RUN_MARK, os.environ[RUN_MARK]), "the killed kernel")


def test_two_lessons_at_the_same_time(tmp_path):
    """Each in a kernel of its own, both started at the same moment, from the first cell to the last."""
    together = threading.Barrier(2)

    def learn(number: int) -> None:
        folder = tmp_path / f"learner {number}"
        folder.mkdir()
        lesson = Lesson("00_start_here.ipynb", folder)
        with lesson.client.setup_kernel():
            together.wait()
            lesson.run_all()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(learn, range(2)))
    seen("two kernels", "")
