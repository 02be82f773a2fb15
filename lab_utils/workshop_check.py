"""The day before: does a real lesson run on this machine, from a fresh kernel to its last cell, and how fast.

`examine` does on a machine what a learner will do there, in a folder of its own, and leaves nothing behind.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from lab_utils import doctor
from lab_utils.big_run import available_memory
from lab_utils.doctor import OK, PROBLEM, Finding
from lab_utils.server import start_server
from lab_utils.workspace import ROOM, ROOT, LessonError, Room, find_lesson, lab_arguments, lab_environment

PROJECT = "triton-ensemble-lab"
FREE_DISK = 2**30  # bytes: logs, figures, the lab book, and the C++ backends of lesson 09
LEARNER_MEMORY = 2**30  # bytes for JupyterLab, a kernel and a server; docs/instructor.md says what was measured
LESSON_SECONDS = 900.0
LAB_SECONDS = 120.0
POLL_SECONDS = 0.5
COLOURS = re.compile(r"\x1b\[[\d;]*m")  # IPython's, in a traceback
TIMED = ("server start", "lesson", "jupyterlab")  # the steps whose times tell machines apart
READY, NOT_READY = "READY", "NOT READY"


@dataclass(frozen=True)
class Step:
    """One finding, and the seconds that finding it took."""

    finding: Finding
    seconds: float

    def __str__(self) -> str:
        return f"{self.seconds:6.1f} s  {self.finding}"


@dataclass(frozen=True)
class Report:
    """What was found on a machine; `lessons` tells two checkouts apart."""

    host: str
    when: str
    python: str
    lessons: str
    steps: tuple[Step, ...] = field(default=())

    @property
    def problems(self) -> list[Finding]:
        """What keeps this machine from a workshop."""
        return [step.finding for step in self.steps if step.finding.level == PROBLEM]

    @property
    def ready(self) -> bool:
        """Whether nothing does."""
        return not self.problems

    def __str__(self) -> str:
        seconds = sum(step.seconds for step in self.steps)
        if self.ready:
            return f"{READY}: {self.host} can take part (checked in {seconds:.0f} s)"
        todo = "; ".join(f"{one.name}: {one.advice or one.found}" for one in self.problems)
        return f"{NOT_READY}: {self.host}, {len(self.problems)} problem(s). To do: {todo}"


def examine(lesson: str = "02", learners: int = 1, say: Callable[[str], None] = print) -> Report:
    """Check this machine for a workshop.

    Parameters
    ----------
    lesson : str
        Number of the lesson to run, such as "02".
    learners : int
        How many learners share this machine.
    say : callable
        Called with a line as soon as a step is done.

    Raises
    ------
    ValueError
        `learners` is below 1.
        Or there is no such lesson.
    """
    if learners < 1:
        raise ValueError(f"learners is {learners}; expected 1 or more")
    name = notebook_of(lesson)
    own = (
        check_packages,
        check_disk,
        partial(check_room, learners),
        check_server_start,
        partial(check_lesson, name),
        check_jupyterlab,
    )
    steps = []
    for check in (*doctor.CHECKS, *own):
        steps.append(timed(check))
        say(str(steps[-1]))
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Report(platform.node(), when, platform.python_version(), fingerprint(), tuple(steps))


def notebook_of(lesson: str) -> str:
    """The file name of a lesson; ValueError where there is no such lesson."""
    try:
        return find_lesson([name for name in ROOM.lessons() if name.endswith(".ipynb")], lesson)
    except LessonError as error:
        raise ValueError(str(error)) from error


def timed(check: Callable[[], Finding]) -> Step:
    """Do one check. One that breaks is a finding, too: the others still tell something."""
    began = time.monotonic()
    try:
        finding = check()
    except Exception as error:
        name = getattr(check, "func", check).__name__.removeprefix("check_").replace("_", " ")
        finding = Finding(PROBLEM, name, f"{type(error).__name__}: {error}", "see docs/faults.md")
    return Step(finding, time.monotonic() - began)


def fingerprint() -> str:
    """Twelve digits that are equal where the lessons and the packages' lock are."""
    files = [*sorted((ROOT / "notebooks").rglob("*.ipynb")), ROOT / "requirements.lock"]
    parts = [path.read_bytes() for path in files if ".ipynb_checkpoints" not in path.parts]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


# --- the checks ----------------------------------------------------------------------------------------------------


def check_packages() -> Finding:
    """What the lab depends on is installed, in the versions that it was tested with."""
    wanted = [Requirement(line) for line in importlib.metadata.requires(PROJECT) or []]
    wrong = [str(one) for one in wanted if installed(one.name) not in one.specifier]
    if wrong:
        return Finding(PROBLEM, "packages", f"missing or of another version: {', '.join(wrong)}", "run make setup")
    return Finding(OK, "packages", f"all {len(wanted)} as pinned")


def installed(name: str) -> str:
    """The version of an installed package; "0" where it is not there."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return "0"


def check_disk() -> Finding:
    """The lessons write logs, figures and the lab book."""
    places = {"the lab's folder": ROOT, "the folder for temporary files": Path(tempfile.gettempdir())}
    free = {what: shutil.disk_usage(path).free for what, path in places.items()}
    found = ", ".join(f"{count / 2**30:.1f} GiB free in {what}" for what, count in free.items())
    if min(free.values()) < FREE_DISK:
        return Finding(PROBLEM, "disk", found, f"free {FREE_DISK / 2**30:.0f} GiB in each")
    return Finding(OK, "disk", found)


def check_room(learners: int) -> Finding:
    """Memory for so many learners at once, and for the one big run that goes on at a time."""
    needed, free = learners * LEARNER_MEMORY, available_memory()
    found = f"{free / 2**30:.1f} GiB of memory for {learners} learner(s), who need {needed / 2**30:.1f}"
    if free < needed:
        fitting = free // LEARNER_MEMORY
        return Finding(PROBLEM, "room", found, f"let at most {fitting} learner(s) use it, or close other programs")
    return Finding(OK, "room", found)


def check_server_start() -> Finding:
    """A server with the first ensemble becomes ready."""
    began = time.monotonic()
    with start_server(["ensemble_append"], report=lambda _: None):
        return Finding(OK, "server start", f"ready after {time.monotonic() - began:.1f} s")


def check_lesson(name: str) -> Finding:
    """Run a copy of the lesson from a fresh kernel to its end, with a lab book of its own."""
    with scratch_room() as room:
        copy, log = room.own / name, room.own / "run.log"
        shutil.copyfile(room.tracked / name, copy)
        environment = lab_environment(room, {**os.environ, "LAB_BOOK": str(room.own / "lab_book.sqlite3")})
        command = [sys.executable, str(ROOT / "tools/run_notebooks.py"), str(copy)]
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=environment, cwd=room.own, stdout=output, stderr=output)
        try:
            most = highest_memory(process)
        finally:
            end(process)
        if process.returncode != 0:
            advice = "run it in JupyterLab; docs/faults.md has the messages"
            return Finding(PROBLEM, "lesson", f"{name}: {last_line(log)}", advice)
        cells = json.loads(copy.read_text(encoding="utf-8"))["cells"]
        cells = [cell for cell in cells if cell["cell_type"] == "code"]
    found = f"{name}: all {len(cells)} code cells ran without an error, in at most {most / 2**20:.0f} MiB"
    return Finding(OK, "lesson", found)


def highest_memory(process: subprocess.Popen) -> int:
    """Wait for a process; gives the most bytes that it and its descendants had.

    Raises
    ------
    TimeoutError
        It takes longer than `LESSON_SECONDS`.
    """
    most, deadline = 0, time.monotonic() + LESSON_SECONDS
    while process.poll() is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the lesson takes longer than {LESSON_SECONDS:.0f} s")
        most = max(most, memory_of(process.pid))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=POLL_SECONDS)
    return most


def memory_of(pid: int) -> int:
    """Bytes of a process and its descendants, shared pages counted once (PSS); 0 where one ended meanwhile."""
    with contextlib.suppress(psutil.Error):
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        return sum(one.memory_full_info().pss for one in family)
    return 0


def last_line(log: Path) -> str:
    """The end of a log, without the colours of a terminal."""
    text = COLOURS.sub("", log.read_text(encoding="utf-8", errors="replace")).strip()
    return text.splitlines()[-1] if text else "no message"


def check_jupyterlab() -> Finding:
    """JupyterLab starts as `make lab` starts it, asks for its token, and shows its page to who has it."""
    with scratch_room() as room, running_lab(room) as (url, token, pid):
        refused, shown, memory = status(f"{url}api/contents"), status(f"{url}lab", token), memory_of(pid)
    if shown != 200:
        return Finding(PROBLEM, "jupyterlab", f"answers {shown}", "run make lab and read what it prints")
    if refused == 200:
        advice = "remove the empty token or password from your Jupyter settings"
        return Finding(PROBLEM, "jupyterlab", "lets everybody in without a token", advice)
    return Finding(OK, "jupyterlab", f"starts, answers, and asks for its token, in {memory / 2**20:.0f} MiB")


@contextlib.contextmanager
def scratch_room() -> Iterator[Room]:
    """A learner's folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="lab-check-", ignore_cleanup_errors=True) as folder:
        yield Room(ROOM.tracked, Path(folder))


@contextlib.contextmanager
def running_lab(room: Room) -> Iterator[tuple[str, str, int]]:
    """A JupyterLab on a free port; gives its address, its token and its process id.

    Raises
    ------
    RuntimeError
        It ended, or did not become ready in time; the text is the end of its log.
    """
    runtime, log = room.own / "runtime", room.own / "lab.log"
    environment = lab_environment(room, {**os.environ, "JUPYTER_RUNTIME_DIR": str(runtime)})
    command = lab_arguments(room, ["--no-browser", "--ServerApp.port=0"])
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield (*wait_for_lab(process, runtime, log), process.pid)
    finally:
        end(process)


def wait_for_lab(process: subprocess.Popen, runtime: Path, log: Path) -> tuple[str, str]:
    """Wait for the file in which a Jupyter server says where it is, and for its first answer."""
    deadline = time.monotonic() + LAB_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        for path in runtime.glob("jpserver-*.json"):
            with contextlib.suppress(ValueError, KeyError, OSError):  # half written, or not listening yet
                told = json.loads(path.read_text(encoding="utf-8"))
                status(f"{told['url']}api", told["token"])
                return told["url"], told["token"]
        time.sleep(0.05)
    raise RuntimeError(f"JupyterLab did not start: {last_line(log)}")


def end(process: subprocess.Popen) -> None:
    """End a process as a service manager does; by force where it does not listen. One that ended is no trouble."""
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def status(url: str, token: str = "") -> int:
    """The HTTP status of a page on this machine, whatever proxy the user has."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers={"Authorization": f"token {token}"} if token else {})
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


# --- reports of many machines --------------------------------------------------------------------------------------


def to_json(report: Report) -> str:
    """The report as one line of JSON."""
    steps = [{**asdict(step.finding), "seconds": round(step.seconds, 2)} for step in report.steps]
    plain = {name: getattr(report, name) for name in ("host", "when", "python", "lessons", "ready")}
    return json.dumps({**plain, "steps": steps}, ensure_ascii=False)


def rows(files: Sequence[Path]) -> list[dict[str, object]]:
    """One record for each report; a file without one is a machine that is not ready."""
    return [_row(path) for path in files]


def _row(path: Path) -> dict[str, object]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        steps = {step["name"]: step for step in told["steps"]}
        bad = [name for name, step in steps.items() if step["level"] == PROBLEM]
        seconds = {name: steps.get(name, {}).get("seconds") for name in TIMED}
        return {
            "host": str(told["host"]),
            "ready": not bad,
            "lessons": str(told["lessons"]),
            "problems": bad,
            **seconds,
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        nothing = dict.fromkeys(TIMED)
        return {
            "host": path.stem,
            "ready": False,
            "lessons": "",
            "problems": ["no report: run the check there"],
            **nothing,
        }
