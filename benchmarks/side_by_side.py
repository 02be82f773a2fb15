"""Measure several things in turns, in one run, and compare them: so that what else the machine does meets all alike.

A benchmark is a module of this folder that has

    measure() -> dict           run everything, and return what ``results/NAME.json`` is to hold
    rows(results) -> [Row]      its lines of the table in README.md
    remarks(results) -> str     what else was measured, as Markdown, for the benchmark's part of README.md

`rows` and `remarks` say what the results hold and measure nothing: a test holds README.md against them.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import psutil

from lab_utils.device import first_device

Measured = TypeVar("Measured")
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Spread:
    """Median, least and most of several measurements."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:,.4g} ({self.least:,.4g} to {self.most:,.4g})"


def spread(values: list[float]) -> Spread:
    """The spread of one or more values."""
    return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """One line of the table in README.md.

    Attributes
    ----------
    what, against, reach, measured : str
        What is measured, what it is compared with, what is to be reached, and the values found, with their units.
    figure : Spread
        The figure that `bound` is for, over all rounds; its median is what counts.
    bound : float
        The most that the figure may be; with `least`, what it has to be at least.
    """

    what: str
    against: str
    reach: str
    measured: str
    figure: Spread
    bound: float
    least: bool = False

    @property
    def reached(self) -> bool:
        """Whether the median keeps the bound."""
        return self.figure.median >= self.bound if self.least else self.figure.median <= self.bound


def spreads(found: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """The spread of what each case measured, as the results hold it."""
    return {name: asdict(spread(values)) for name, values in found.items()}


def in_turns(cases: Mapping[str, Callable[[], Measured]], rounds: int) -> dict[str, list[Measured]]:
    """Run every case once to warm up, then `rounds` times in turns; what each case measured, in order."""
    for case in cases.values():
        case()
    found: dict[str, list[Measured]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            found[name].append(case())
    return found


def ratios(found: Mapping[str, list[float]], name: str, against: str) -> Spread:
    """How many times `against` the case `name` is, round by round."""
    return spread([mine / other for mine, other in zip(found[name], found[against], strict=True)])


def processor_seconds(processes: Iterable[psutil.Process]) -> float:
    """Seconds of processor time that these processes have used so far, in the system too."""
    times = [process.cpu_times() for process in processes]
    return sum(time.user + time.system for time in times)


def machine() -> dict[str, str | int]:
    """What this machine is: processor, cores that may be used, memory in GiB, GPU, system, Python."""
    models = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "device": str(first_device()),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def load(name: str) -> dict:
    """What ``benchmarks/results/NAME.json`` holds."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def run(name: str, module: ModuleType) -> None:
    """Measure one benchmark, write ``benchmarks/results/NAME.json``, and print its rows and remarks."""
    began = time.monotonic()
    content = {"machine": machine(), "day": time.strftime("%Y-%m-%d"), **module.measure()}
    content["total_seconds"] = round(time.monotonic() - began, 1)
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    results = load(name)
    for row in module.rows(results):
        verdict = "reached" if row.reached else "NOT REACHED"
        print(f"{row.what}, against {row.against}: {row.measured}; {row.figure} ({row.reach}: {verdict})")
    print(f"\n{module.remarks(results)}\n({content['total_seconds']:.0f} s)", flush=True)


def main(module: str) -> None:
    """What a benchmark's ``if __name__ == "__main__"`` calls, with its ``__file__``."""
    run(Path(module).stem, sys.modules["__main__"])
