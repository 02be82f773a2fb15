"""Measure what this machine holds: ``python deploy/jupyterhub/sizing.py``.

Simulates workshops of 1, 2, 4 and 8 learners, writes what they took into sizing.json and prints it as the table that
deploy/README.md shows.
"""

import json
import os
import platform
import sys
from pathlib import Path

import psutil
import simulate
from hub_settings import GIB
from simulate import Workshop

FILE = Path(__file__).with_name("sizing.json")
SIZES = (1, 2, 4, 8)


def summary(workshop: Workshop) -> dict[str, float]:
    """The figures of one workshop, of the learner who waited longest or held most."""
    passed = workshop.passed
    return {
        "learners": len(workshop.visits),
        "passed": len(passed),
        "server_seconds": max(one.seconds["spawn"] for one in passed),
        "lesson_seconds": max(one.seconds["lesson"] for one in passed),
        "learner_bytes": max(one.peak for one in passed),
        "together_bytes": workshop.peak_bytes,
        "hub_bytes": workshop.hub_bytes,
    }


def machine() -> dict[str, object]:
    """What it was measured on, without its name. `load` is that of the last minute before."""
    memory = round(psutil.virtual_memory().total / GIB)
    python = platform.python_version()
    return {"cores": len(os.sched_getaffinity(0)), "memory_gib": memory, "python": python, "load": os.getloadavg()[0]}


def as_table(measured: dict) -> str:
    """The Markdown table of deploy/README.md."""
    head = "| learners | passed | own server ready | lesson 02 done | one learner | all together | hub and proxy |"
    rows = [
        f"| {run['learners']} | {run['passed']} | {run['server_seconds']:.0f} s | {run['lesson_seconds']:.0f} s "
        f"| {_gib(run['learner_bytes'])} | {_gib(run['together_bytes'])} | {_gib(run['hub_bytes'])} |"
        for run in measured["runs"]
    ]
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


def machine_line(measured: dict) -> str:
    """The line below the table."""
    here = measured["machine"]
    return (
        f"Measured on {here['cores']} cores and {here['memory_gib']} GiB, Python {here['python']}; "
        f"the machine's load just before was {here['load']:.1f}."
    )


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def main() -> int:
    """Measure, write and print; exit status 0 only if all lessons passed and nothing is left."""
    measured = {"command": "python deploy/jupyterhub/sizing.py", "machine": machine(), "runs": []}
    clean = True
    for size in SIZES:
        workshop = simulate.simulate(size)
        print(simulate.report(workshop), flush=True)
        clean &= len(workshop.passed) == size and not workshop.left
        measured["runs"].append(summary(workshop))
    FILE.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(f"{as_table(measured)}\n\n{machine_line(measured)}")
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
