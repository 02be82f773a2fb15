"""The faults that a room of learners meets, and `docs/faults.md`: what each test saw, as a table.

A test that provokes a fault calls ``seen("its name", message)``: the message, with ports, paths and process ids
replaced, must be the one that the document shows. ``python tests/faults/fault_matrix.py`` runs all these tests and
writes the document anew from what they saw.
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "faults.md"
WRITE = "WRITE_FAULTS"  # the environment variable that has the messages written instead of compared
UNSEEN = "not seen yet"
HEADERS = ("fault", "what the learner sees", "what to do", "test")
HEAD = f"""# What can go wrong, what is said, and what to do

Written by the tests that provoke each fault (`python tests/faults/{Path(__file__).name}`); do not edit it. Every
message was seen in a run. Ports, paths, numbers that differ from run to run, and names that the lab generates are
replaced by words in capitals, and the end of a log by three dots. After each fault the same test did the same work
again and got the right result, and nothing was left: no process, no port, no file in /dev/shm.

In a notebook, an error of the lab shows the line of your cell and the message, without the lab's own lines. The whole
traceback is printed by `import sys, traceback; traceback.print_exception(sys.last_value)` in the next cell.
"""


@dataclass(frozen=True)
class Fault:
    """One row: what happens, how work goes on afterwards, and the test that provokes it and goes on."""

    group: str
    what: str
    then: str
    test: str


SERVER, DISK, MACHINE, LEARNER = "The server", "Disk and memory", "The machine", "The learner"
LIFE, ROOMS, TOOLS, LESSON = (
    "tests/server/test_lifecycle.py::",
    "tests/faults/test_full_disks.py::",
    "tests/faults/test_broken_machine.py::",
    "tests/faults/test_learner.py::",
)
RESTART = "`server.restart()` and the cell again, or restart the kernel and run all"
FAULTS = {
    "server killed": Fault(
        SERVER,
        "tritonserver is killed in the middle of a stream",
        RESTART,
        f"{LIFE}test_a_killed_server_is_noticed_at_once_and_can_be_restarted",
    ),
    "stub killed": Fault(
        SERVER,
        "the Python process (stub) of the inference node is killed in the middle of a stream"
        " (now and then it takes the server along: then the words are those above)",
        RESTART,
        f"{LIFE}test_a_killed_stub_is_noticed_by_a_running_stream",
    ),
    "stub killed before": Fault(
        SERVER,
        "a stub is killed between two cells",
        RESTART,
        f"{LIFE}test_a_killed_stub_is_noticed_by_the_next_stream",
    ),
    "port taken": Fault(
        SERVER,
        "another program takes the port (HTTP, gRPC or metrics) that was just chosen",
        "nothing: the server is started again on other ports by itself",
        f"{LIFE}test_a_taken_port_is_no_failure",
    ),
    "ports taken": Fault(
        SERVER,
        "this happens every time",
        "run the cell again",
        f"{LIFE}test_ports_taken_every_time_are_said",
    ),
    "nothing listens": Fault(
        SERVER,
        "`TRITON_GRPC_URL` names an address where nothing listens",
        "correct or unset the variable, run all",
        "tests/server/test_sources.py::test_an_address_where_nothing_listens_is_said",
    ),
    "state full": Fault(
        DISK,
        "the disk that takes the server's log is full",
        "free space, run all",
        f"{ROOMS}test_a_full_disk_under_the_servers_log",
    ),
    "state full later": Fault(
        DISK,
        "it becomes full while the server runs",
        "nothing: streams, reloads and the stop go on, the log lacks its last lines",
        f"{ROOMS}test_a_full_disk_under_the_servers_log",
    ),
    "book full": Fault(
        DISK,
        "the disk of the lab book is full",
        "free space and run all, or go on without the record",
        f"{ROOMS}test_a_full_disk_under_what_a_learner_writes",
    ),
    "figure full": Fault(
        DISK,
        "the disk that shall take a figure is full",
        "free space, the same command again; no part of the file is left",
        f"{ROOMS}test_a_full_disk_under_what_a_learner_writes",
    ),
    "report full": Fault(
        DISK,
        "the disk that shall take the lab book's report is full",
        "free space, the same command again",
        f"{ROOMS}test_a_full_disk_under_what_a_learner_writes",
    ),
    "workspace full": Fault(
        DISK,
        "the disk of `workspace/` is full at `make lab`",
        "free space, `make lab` again; lessons that were there are as they were",
        f"{ROOMS}test_a_full_disk_under_what_a_learner_writes",
    ),
    "reset full": Fault(
        DISK,
        "the disk of `workspace/` is full at `make reset`",
        "free space, `make reset` again; the lesson is as it was",
        f"{ROOMS}test_a_full_disk_under_what_a_learner_writes",
    ),
    "build full": Fault(
        DISK,
        "the disk is full while lesson 09 builds the C++ backends",
        "free space, the cell again",
        f"{ROOMS}test_a_full_disk_under_the_build",
    ),
    "shm full": Fault(
        DISK,
        "/dev/shm is full when the server starts",
        "make room there, run all",
        f"{ROOMS}test_a_full_shared_memory",
    ),
    "shm full later": Fault(
        DISK,
        "/dev/shm becomes full in the middle of a stream",
        "make room there, run all",
        f"{ROOMS}test_a_full_shared_memory",
    ),
    "no compiler": Fault(
        MACHINE,
        "no C++ compiler, lesson 09",
        "install one, or skip lesson 09: no other lesson needs it",
        f"{TOOLS}test_no_compiler",
    ),
    "no compiler for make": Fault(
        MACHINE, "no C++ compiler, `make backend`", "install one, the command again", f"{TOOLS}test_no_compiler"
    ),
    "no compiler for doctor": Fault(
        MACHINE, "no C++ compiler, `make doctor`", "install one before lesson 09", f"{TOOLS}test_no_compiler"
    ),
    "no driver": Fault(MACHINE, "no GPU driver", "nothing: the lessons run on the CPU", f"{TOOLS}test_no_gpu_driver"),
    "broken driver": Fault(
        MACHINE,
        "a GPU driver whose libraries fail",
        "nothing: the lessons run on the CPU, as without one",
        f"{TOOLS}test_a_broken_gpu_driver",
    ),
    "wrong numpy": Fault(
        MACHINE,
        "NumPy 2 in the environment, `start_server`",
        "`make setup`, restart the kernel, run all",
        f"{TOOLS}test_the_wrong_numpy",
    ),
    "wrong numpy for doctor": Fault(
        MACHINE, "NumPy 2 in the environment, `make doctor`", "`make setup`", f"{TOOLS}test_the_wrong_numpy"
    ),
    "no libpython": Fault(
        MACHINE,
        "a Python without its shared library",
        "`make setup`, which finds one that has it",
        f"{TOOLS}test_a_python_without_its_library",
    ),
    "wrong python": Fault(
        MACHINE,
        "a Python that the server has no stub for",
        "`make setup`, which chooses one",
        "tests/server/test_sources.py::test_a_python_without_stub_is_said",
    ),
    "cell too early": Fault(
        LEARNER,
        "a later cell is run first",
        "run all above, or run all",
        f"{LESSON}test_a_lesson_survives_what_learners_do_to_it",
    ),
    "stream after stop": Fault(
        LEARNER,
        "a cell streams although `server.stop()` was run",
        "run the cell that starts the server again",
        f"{LESSON}test_a_lesson_survives_what_learners_do_to_it",
    ),
    "stopped twice": Fault(
        LEARNER,
        "the last cell, with `server.stop()`, is run twice",
        "nothing",
        f"{LESSON}test_a_lesson_survives_what_learners_do_to_it",
    ),
    "started twice": Fault(
        LEARNER,
        "the cell that starts the server is run twice",
        "nothing: the first server ends by itself",
        f"{LIFE}test_a_cell_shows_progress_and_running_it_again_leaves_one_server",
    ),
    "server killed in a lesson": Fault(
        LEARNER,
        "the server is killed under an open lesson",
        "run all",
        f"{LESSON}test_a_lesson_survives_what_learners_do_to_it",
    ),
    "interrupted start": Fault(
        LEARNER,
        "the kernel is interrupted while the server starts",
        "run the cell again, or run all",
        f"{LESSON}test_a_lesson_survives_what_learners_do_to_it",
    ),
    "interrupted stream": Fault(
        LEARNER,
        "the kernel is interrupted in the middle of a stream",
        "run the cell again, or run all",
        f"{LESSON}test_a_lesson_survives_what_learners_do_to_it",
    ),
    "interrupted stop": Fault(
        LEARNER,
        "the kernel is interrupted while the server stops",
        "run the cell again, or run all",
        f"{LESSON}test_a_lesson_survives_what_learners_do_to_it",
    ),
    "kernel killed": Fault(
        LEARNER,
        "the kernel is killed in the middle of a lesson",
        "nothing is left of its server; run all in the new kernel",
        f"{LESSON}test_a_lesson_survives_what_learners_do_to_it",
    ),
    "two kernels": Fault(
        LEARNER,
        "two lessons run at the same time",
        "nothing: each has its own server",
        f"{LESSON}test_two_lessons_at_the_same_time",
    ),
}


# --- what was seen ----------------------------------------------------------------------------------------------------


def seen(name: str, message: str) -> None:
    """Compare what a learner saw with the document, or write it there; an empty message means that nothing was said."""
    shown = masked(message) or "(nothing)"
    rows = read()
    if not os.environ.get(WRITE):
        assert rows.get(FAULTS[name].what) == shown, f"{DOCUMENT} says otherwise; {__file__} writes it anew"
        return
    rows[FAULTS[name].what] = shown
    DOCUMENT.write_text(document(rows), encoding="utf-8")


def masked(message: str) -> str:
    """The message without what differs from machine to machine and from run to run, as one line of a table."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", message)
    text = re.sub(r"(The end of its log:)\n.*?\n(?=Start )", r"\1 … ", text, flags=re.S)
    text = re.sub(r"The end of its log:\n.*", "The end of its log: …", text, flags=re.S)
    for pattern, word in MASKS:
        text = re.sub(pattern, word, text)
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


MASKS = (
    (re.escape(str(ROOT)), "CHECKOUT"),
    (r"\.\d{8}-\d{6}-\d{6}\.", "-TIME."),
    (r"/tmp/[^:]*?(?=/workspace/)", "FOLDER"),
    (rf"(?:{re.escape(tempfile.gettempdir())}|/tmp)/[^\s:;,'()]*?(?=/triton-ensemble-lab)", "STATE"),
    (rf"(?:{re.escape(tempfile.gettempdir())}|/tmp)/[^\s:;,'()]*?(?=/[\w.]+(?:[\s:;,'()]|$))", "FOLDER"),
    (r"triton_lab\w*_\d+_[0-9a-f]{12}_[0-9a-f-]{36}", "NAME"),
    (r"\b[0-9a-f]{12}\b", "ID"),
    (r"(?<=127\.0\.0\.1:)\d+", "PORT"),
    (r"(?<=ready after )[\d.]+", "SECONDS"),
    (r"(?<=after )\d+(?= responses)|(?<=to )\d+(?= bytes)|\d+(?= KiB are free| times in a row)", "NUMBER"),
    (r"\[Errno \d+\] ", ""),
)


# --- the document -----------------------------------------------------------------------------------------------------


def read() -> dict[str, str]:
    """What the document shows for each fault, by the words of its first column."""
    text = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
    rows = (re.split(r"(?<!\\)\|", line) for line in text.splitlines() if line.startswith("| "))
    return {cells[1].strip(): cells[2].strip() for cells in rows if len(cells) == len(HEADERS) + 2}


def document(rows: dict[str, str]) -> str:
    """The document with these messages, in the order of `FAULTS`."""
    parts = [HEAD]
    for group in dict.fromkeys(fault.group for fault in FAULTS.values()):
        faults = [fault for fault in FAULTS.values() if fault.group == group]
        lines = [HEADERS, ("---",) * len(HEADERS)]
        lines += [(one.what, rows.get(one.what, UNSEEN), one.then, _named(one.test)) for one in faults]
        parts.append(f"## {group}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))
    return "\n".join(parts)


def _named(test: str) -> str:
    file, _, name = test.partition("::")
    return f"[`{name}`](../{file})"


def main() -> int:
    """Run every test that the faults name, and write the document from what they see."""
    DOCUMENT.unlink(missing_ok=True)
    tests = sorted({fault.test for fault in FAULTS.values()})
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, WRITE: "1"}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
