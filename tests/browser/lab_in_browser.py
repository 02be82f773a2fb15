"""JupyterLab as a learner has it: started by the project's own command, looked at and used in a real browser."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from get_browser import find_browser
from leftovers import RUN_MARK, marked_processes, shm_files, until_none
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from lab_utils.launch import shm_prefix

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "artifacts/browser"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
OPTIONS = ("--no-browser", "--LabApp.expose_app_in_browser=True")
SECONDS = 120.0  # a deadline, not a delay
LESSON_SECONDS = 300.0  # also one: a lesson of half a minute takes four on a machine that is busy
OWN_FILES = ("LAB_BOOK", "LAB_WORKSPACE", "IPYTHONDIR", "MPLCONFIGDIR", "XDG_STATE_HOME")
USERS = re.compile("JUPYTER|IPYTHON|XDG_|LAB_|TRITON|PYTHON")  # what a user's or a test's shell may have set

NOTEBOOK = ".jp-NotebookPanel:not(.lm-mod-hidden)"
RUN_ALL, RESTART_AND_RUN_ALL = "notebook:run-all-cells", "notebook:restart-run-all"
EXECUTE = "name => { window.running = window.jupyterapp.commands.execute(name) }"
ENDED = "deadline => Promise.race([window.running, new Promise(tooLate => setTimeout(tooLate, deadline))])"
CELLS = "() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells"
END_KERNELS = "() => window.jupyterapp.serviceManager.sessions.shutdownAll()"


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab: its address with and without token, and how its processes and shared memory are known."""

    start: str
    url: str
    token: str
    process: subprocess.Popen
    mark: str

    def kernels(self) -> list[str]:
        """Its kernels' processes."""
        return [line for line in marked_processes(RUN_MARK, self.mark) if "ipykernel_launcher" in line]

    def servers(self) -> list[str]:
        """Its processes that are neither JupyterLab itself nor kernels, and its files in /dev/shm."""
        known = {*self.kernels(), str(self.process.pid)}
        others = [line for line in marked_processes(RUN_MARK, self.mark) if not {line, line.split()[0]} & known]
        return others + self.shared_memory()

    def shared_memory(self) -> list[str]:
        """Its files in /dev/shm."""
        return shm_files(shm_prefix(os.getuid(), self.mark))


# JupyterLab ----------------------------------------------------------------------------------------------------------


@contextmanager
def running_lab(folder: Path) -> Iterator[Lab]:
    """Start JupyterLab with a home of its own, and end it as a service does; then nothing of it may be left."""
    mark, log = uuid.uuid4().hex, folder / "lab.log"
    command = [sys.executable, "-m", "lab_utils.workspace", "lab", *OPTIONS]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(folder, mark), stdout=file, stderr=file)
    try:
        start = address(process, log)
        yield Lab(start, *re.fullmatch(r"(.*)/lab/tree/.*token=(\w+)", start).groups(), process, mark)
    finally:
        process.send_signal(signal.SIGTERM)  # after SIGINT it would ask
        process.wait(SECONDS)
        until_none(lambda: marked_processes(RUN_MARK, mark), "JupyterLab, after its end")
        until_none(lambda: shm_files(shm_prefix(os.getuid(), mark)), "JupyterLab, in /dev/shm")


def environment(folder: Path, mark: str) -> dict[str, str]:
    """The user's environment, with an empty home and without what would change how the lab looks or runs."""
    kept = {name: value for name, value in os.environ.items() if not USERS.match(name)}
    own = {name: str(folder / name.lower()) for name in OWN_FILES}
    # Lesson 02's big run goes as far as nbval takes it; here a smaller one saves minutes.
    return {**kept, **own, "HOME": str(folder), RUN_MARK: mark, "LAB_LEARNER": mark, "LAB_BIG_RUN_BYTES": str(2**30)}


def address(process: subprocess.Popen, log: Path) -> str:
    """Wait until Lab has written the address to open into its log, and return it."""
    deadline = time.monotonic() + SECONDS
    while not (found := re.search(r"http://127\.0\.0\.1:\d+/lab/tree/\S*\?token=\w+", log.read_text())):
        assert process.poll() is None, f"JupyterLab ended: {log.read_text()[-2000:]}"
        assert time.monotonic() < deadline, f"no address in {SECONDS:g} s: {log.read_text()[-2000:]}"
        time.sleep(0.05)
    return found[0]


# The browser ---------------------------------------------------------------------------------------------------------


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Start the Chromium of this machine; a missing one is a failure."""
    path = find_browser()
    assert path, "no Chromium runs here; get one with: python tools/get_browser.py"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, address: str) -> Iterator[Page]:
    """A page of a notebook whose kernel is ready; at the end its kernel is ended, as with "Shut Down All Kernels"."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    try:
        page.goto(address)
        page.locator(NOTEBOOK).wait_for(timeout=1000 * SECONDS)
        expect(page.locator("#jp-main-statusbar")).to_contain_text("Idle", timeout=1000 * SECONDS)
        yield page
        page.evaluate(END_KERNELS)
    finally:
        page.close()


# A notebook in a page ------------------------------------------------------------------------------------------------


def code_cells(page: Page) -> list[dict]:
    """The code cells of the notebook with their outputs, from JupyterLab's model and not from what is drawn."""
    return [cell for cell in page.evaluate(CELLS) if cell["cell_type"] == "code"]


def run_all(page: Page) -> bool:
    """Run all cells; returns whether JupyterLab says that they succeeded."""
    page.evaluate(EXECUTE, RUN_ALL)
    return until_ended(page)


def restart_and_run_all(page: Page) -> bool:
    """Restart the kernel, say yes to the question, and run all cells."""
    page.evaluate(EXECUTE, RESTART_AND_RUN_ALL)
    page.locator(".jp-Dialog .jp-mod-accept").click()
    return until_ended(page)


def until_ended(page: Page) -> bool:
    """Wait until all cells have run; where they do not end, the failure says how far they came."""
    succeeded = page.evaluate(ENDED, 1000 * LESSON_SECONDS)
    if succeeded is None:
        cells, said = code_cells(page), page.locator("#jp-main-statusbar").inner_text()
        done = sum(cell["execution_count"] is not None for cell in cells)
        pytest.fail(f"{done} of {len(cells)} cells ended in {LESSON_SECONDS:g} s; the status bar says {said!r}")
    return succeeded


def sources(cells: list[dict]) -> list[str]:
    """The code of each cell."""
    return ["".join(cell["source"]) for cell in cells]


def outputs(cells: list[dict], kind: str) -> list[dict]:
    """All outputs of a kind such as "error", "stream"."""
    return [output for cell in cells for output in cell["outputs"] if output["output_type"] == kind]


def number_of_figures(cells: list[dict]) -> int:
    """How many outputs hold a picture."""
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])


def compared_text(cells: list[dict]) -> list[str]:
    """What each cell printed that must be the same in each run."""
    kept = [cell for cell in cells if "nbval-ignore-output" not in cell["metadata"].get("tags", [])]
    return ["".join("".join(output.get("text", "")) for output in cell["outputs"]) for cell in kept]


def code_cell(page: Page, words: str) -> Locator:
    """The only code cell on the page with these words in its code."""
    return page.locator(f"{NOTEBOOK} .jp-CodeCell", has=page.locator(".jp-InputArea", has_text=words))


def type_line(page: Page, cell: Locator, old: str, new: str) -> None:
    """Replace the only line of a cell that holds `old`, with mouse and keyboard, and run the cell."""
    line = cell.locator(".cm-line", has_text=old)
    line.click()
    page.keyboard.press("End")
    page.keyboard.press("Shift+Home")
    page.keyboard.type(new)
    page.keyboard.press("Control+Enter")
