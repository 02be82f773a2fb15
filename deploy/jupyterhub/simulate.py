"""Simulate a workshop: ``python deploy/jupyterhub/simulate.py --learners 8``.

Starts the hub, lets N learners log in at once, each run lesson 02 on her own server, and stops everything. It prints
what each one waited for and held, and whether anything is left. Exit status 0 only if all passed and nothing is left.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import hub_memory
import hub_settings
import psutil
import requests
from hub_proxy import install
from hub_settings import GIB, HubError
from hub_visitor import VisitError, Visitor, direct_session, printed

from lab_utils.launch import shm_prefix
from lab_utils.plots import table

HERE = Path(__file__).parent
LESSON = "02_the_doubling_bug.ipynb"
RESULTS = (
    "[1, 2, 4, 8, 16, 32, 64, 128]",
    "the eighth message equals the reported array: True",
    "every message had exactly 2^(n-1) ids: True",
)
LESSON_SECONDS = 900.0  # for one cell: learners wait for each other's big run
HUB_SECONDS = 60.0
SAMPLE_SECONDS = 0.5  # a look at eight learners takes the machine a tenth of a second or more
STEPS = ("login", "spawn", "lesson", "stop")


@dataclass(frozen=True)
class Visit:
    """What one learner met.

    Attributes
    ----------
    name : str
        Who she is.
    seconds : dict of str to float
        How long each step took: `login`, `spawn` (from the request to JupyterLab's page), `lesson` and `stop`.
    error : str
        What went wrong, in the hub's or the lesson's words; empty where all passed.
    peak : int
        The most memory that her processes held (PSS), in bytes.
    """

    name: str
    seconds: dict[str, float]
    error: str = ""
    peak: int = 0


@dataclass(frozen=True)
class Workshop:
    """What a simulated workshop found: each visit, the hub's own memory, what is left, and the whole time."""

    visits: list[Visit]
    admitted: int
    hub_bytes: int
    peak_bytes: int
    left: list[str]
    seconds: float

    @property
    def passed(self) -> list[Visit]:
        """Those who finished the lesson."""
        return [visit for visit in self.visits if not visit.error]


# The hub ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hub:
    """A running hub: its address, its process and folder, and the workshop password."""

    url: str
    process: subprocess.Popen
    folder: Path
    password: str

    @property
    def log(self) -> str:
        """All that the hub and the learners' servers wrote."""
        return (self.folder / "hub.log").read_text(encoding="utf-8", errors="replace")

    def learner(self, name: str) -> hub_memory.Learner:
        """The mark of a learner's processes, and who runs them."""
        return hub_memory.Learner(str(self.folder / "learners" / name), os.getuid())


@contextlib.contextmanager
def running_hub(folder: Path, *options: str) -> Iterator[Hub]:
    """Start a hub with a workshop password of its own in `folder`, and end it as Ctrl-C does.

    Raises
    ------
    HubError
        It did not start; the text holds the end of its log.
    """
    install()
    (port,) = hub_settings.free_ports(1)
    password = secrets.token_urlsafe(12)
    file = folder / "password"
    file.write_text(password, encoding="utf-8")
    ends_with_this = ["setpriv", "--pdeathsig", "INT"]
    command = [
        *ends_with_this,
        sys.executable,
        str(HERE / "run.py"),
        f"--port={port}",
        f"--workshop-password-file={file}",
    ]
    command += [f"--state={folder / 'state'}", f"--learners-folder={folder / 'learners'}", *options]
    command += ["--allow-root"] if os.geteuid() == 0 else []
    with (folder / "hub.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    hub = Hub(f"http://{hub_settings.LOOPBACK}:{port}/", process, folder, password)
    try:
        _wait_for(hub)
        yield hub
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(HUB_SECONDS)


def _wait_for(hub: Hub) -> None:
    deadline = time.monotonic() + HUB_SECONDS
    while not _answers(hub.url):
        if hub.process.poll() is not None or time.monotonic() > deadline:
            raise HubError(f"the hub did not start:\n{hub.log[-2000:]}")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    with contextlib.suppress(requests.RequestException):
        return direct_session().get(f"{url}hub/login", timeout=5).ok
    return False


# A learner -------------------------------------------------------------------------------------------------------


def visit(hub: Hub, name: str, lesson: str, expected: tuple[str, ...]) -> Visit:
    """Log in, get a server, run the lesson, save it and stop the server."""
    visitor, seconds = Visitor(hub.url, name), {}
    steps: dict[str, Callable[[], None]] = {
        "login": lambda: visitor.log_in(hub.password),
        "spawn": visitor.spawn,
        "lesson": lambda: run_lesson(visitor, lesson, expected),
        "stop": visitor.stop,
    }
    try:
        for step, act in steps.items():
            began = time.monotonic()
            act()
            seconds[step] = round(time.monotonic() - began, 2)
    except (VisitError, requests.RequestException) as error:
        return Visit(name, seconds, str(error))
    return Visit(name, seconds)


def run_lesson(visitor: Visitor, lesson: str, expected: tuple[str, ...]) -> None:
    """Run all cells of a lesson in her own copy, and look for its main results.

    Raises
    ------
    VisitError
        A cell failed, or a result is not there.
    """
    with visitor.open(lesson) as notebook:
        notebook.run_all(LESSON_SECONDS)
        notebook.save()
        notebook.close()
    text = printed(notebook.content)
    for result in expected:
        if result not in text:
            raise VisitError(f"{visitor.name}: the lesson ran, but it did not print {result!r}")


# The room --------------------------------------------------------------------------------------------------------


class Meter:
    """Samples what each learner of a hub holds, and all together, while its block runs."""

    def __init__(self, hub: Hub):
        self.peaks: dict[hub_memory.Learner, int] = {}
        self.together = self.hub = 0
        self._hub, self._ended = hub, threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "Meter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            groups = hub_memory.processes()
            held = {
                learner: hub_memory.proportional(pids)
                for learner, pids in groups.items()
                if Path(learner.folder).parent == self._hub.folder / "learners"
            }
            for learner, size in held.items():
                self.peaks[learner] = max(size, self.peaks.get(learner, 0))
            self.together = max(self.together, sum(held.values()))
            self.hub = max(self.hub, hub_memory.proportional(_hub_processes(self._hub)))


def _hub_processes(hub: Hub) -> list[int]:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(hub.process.pid)
        return [process.pid, *(child.pid for child in process.children() if "node" in child.name())]
    return []


def simulate(learners: int, lesson: str = LESSON, expected: tuple[str, ...] = RESULTS, *options: str) -> Workshop:
    """Run a workshop with so many learners at once in a folder of its own, which is removed.

    Parameters
    ----------
    learners : int
        How many come.
    lesson : str
        The notebook that all of them run.
    expected : tuple of str
        What it must print.
    *options : str
        More options for `run.py`.
    """
    began = time.monotonic()
    names = [f"learner-{number}" for number in range(1, learners + 1)]
    with tempfile.TemporaryDirectory(prefix="lab hub ") as place:
        folder = Path(place)
        with running_hub(folder, *options) as hub, Meter(hub) as meter, ThreadPoolExecutor(learners) as pool:
            visits = list(pool.map(lambda name: visit(hub, name, lesson, expected), names))
            admitted = hub_settings.read(folder / "state/settings.json").learners
        seconds = time.monotonic() - began
        left = left_of(hub, names)
    visits = [dataclasses.replace(one, peak=meter.peaks.get(hub.learner(one.name), 0)) for one in visits]
    return Workshop(visits, admitted, meter.hub, meter.together, left, round(seconds, 1))


def left_of(hub: Hub, names: list[str]) -> list[str]:
    """What is left of a workshop, in words: processes, shared memory and the hub's port."""
    groups = hub_memory.processes()
    learners = [hub.learner(name) for name in names]
    found = [f"process {pid} of {learner.folder}" for learner in learners for pid in groups.get(learner, [])]
    for learner in learners:
        found += map(str, Path("/dev/shm").glob(f"{shm_prefix(learner.user, learner.folder)}*"))
    found += [f"process {p.pid} {' '.join(p.cmdline())}" for p in psutil.process_iter() if _belongs(p, hub.folder)]
    settings = hub_settings.read(hub.folder / "state/settings.json")
    ports = (settings.port, settings.api_port, settings.hub_port)
    return found + [f"port {port}" for port in ports if _is_taken(port)]


def _belongs(process: psutil.Process, folder: Path) -> bool:
    with contextlib.suppress(psutil.Error):
        return str(folder) in process.environ().get("LAB_HUB_SETTINGS", "") or str(folder) in " ".join(
            process.cmdline()
        )
    return False


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((hub_settings.LOOPBACK, port)) == 0


# What it says ----------------------------------------------------------------------------------------------------


def report(workshop: Workshop) -> str:
    """The table of all learners and what it means for this machine, in lines."""
    rows = [
        (one.name, *(f"{one.seconds[step]:.1f} s" if step in one.seconds else "-" for step in STEPS), _gib(one.peak))
        for one in workshop.visits
    ]
    lines = [table(["learner", "login", "server ready", "lesson", "stop", "memory at peak"], rows)]
    lines += [f"{one.name}: {one.error}" for one in workshop.visits if one.error]
    lines.append(
        f"{len(workshop.passed)} of {len(workshop.visits)} lessons passed in {workshop.seconds:.0f} s. The hub admits "
        f"{workshop.admitted} here; all learners held {_gib(workshop.peak_bytes)} together, hub and proxy "
        f"{_gib(workshop.hub_bytes)}."
    )
    lines.append(f"left over: {', '.join(workshop.left) or 'nothing'}")
    return "\n".join(lines)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"


def as_json(workshop: Workshop) -> str:
    """Everything, for scripts."""
    machine = {"cores": len(os.sched_getaffinity(0)), "memory": psutil.virtual_memory().total}
    return json.dumps({"machine": machine, **dataclasses.asdict(workshop)}, indent=1)


def main(arguments: list[str]) -> int:
    """Simulate one workshop; exit status 0 only if all passed and nothing is left."""
    parser = argparse.ArgumentParser(prog="simulate.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--learners", type=int, default=8, metavar="N")
    parser.add_argument("--lesson", default="", metavar="NAME", help="another notebook; then no result is looked for")
    parser.add_argument("--admit", type=int, metavar="N", help="what the hub admits (default: what the machine holds)")
    parser.add_argument("--memory", type=float, metavar="GIB", help="each learner's bound (default: the hub's)")
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args(arguments)
    if parsed.learners < 1:
        parser.error(f"--learners is {parsed.learners}; expected 1 or more")
    options = [f"--learners={parsed.admit}"] if parsed.admit else []
    options += [f"--memory={parsed.memory}"] if parsed.memory else []
    try:
        workshop = simulate(parsed.learners, parsed.lesson or LESSON, () if parsed.lesson else RESULTS, *options)
    except (HubError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(as_json(workshop) if parsed.json else report(workshop))
    return 0 if len(workshop.passed) == parsed.learners and not workshop.left else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
