"""Measure several things in turns, in one run, and compare them: so that what else the machine does meets all alike."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
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


def save(name: str, **results: object) -> Path:
    """Write results, with the machine and the day, to ``benchmarks/results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"machine": machine(), "day": time.strftime("%Y-%m-%d"), **results}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
