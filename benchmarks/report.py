"""The table, the figure and the measured parts of README.md, all of them made from ``benchmarks/results/``."""

import re
from collections.abc import Iterator
from pathlib import Path

import contract_check
import decode_step
import first_token
import growth
import install
import launcher
import lessons
import observability
import throughput
import trace_reader
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from side_by_side import RESULTS, Row, load

import custom_backend
from lab_utils.plots import OKABE_ITO

BENCHMARKS = {
    module.__name__: module
    for module in (
        launcher,
        first_token,
        throughput,
        custom_backend,
        decode_step,
        growth,
        observability,
        trace_reader,
        contract_check,
        lessons,
        install,
    )
}
README = Path(__file__).with_name("README.md")
FIGURE = RESULTS / "benchmarks.png"
HEAD = "| what | against | to reach | measured | figure (least to most) | reached |"
FARTHEST = 10  # times better than its bound: where a figure that is nearly 0 is drawn
PART = re.compile(r"<!-- (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def all_rows() -> list[Row]:
    """The rows of all benchmarks, in the order of the table."""
    return [row for name, benchmark in BENCHMARKS.items() for row in benchmark.rows(load(name))]


def readme(text: str) -> str:
    """The text of README.md with its measured parts written anew.

    Raises
    ------
    ValueError
        It lacks the part of a benchmark.
    """
    parts = {"table": table()} | {name: remarks(name) for name in BENCHMARKS}
    missing = parts.keys() - {found[1] for found in PART.finditer(text)}
    if missing:
        raise ValueError(
            f"README.md has no part for {', '.join(sorted(missing))}: add a line <!-- NAME --> and <!-- end -->"
        )
    return PART.sub(lambda found: f"<!-- {found[1]} -->\n{parts[found[1]]}\n<!-- end -->", text)


def remarks(name: str) -> str:
    """What a benchmark says below its explanation."""
    return BENCHMARKS[name].remarks(load(name)).strip()


def table() -> str:
    """The one table, with the machine that its values come from, and how many targets were reached."""
    rows = all_rows()
    lines = [f"| {' | '.join(_cells(row))} |" for row in rows]
    head = [*machines(), "", HEAD, "|" + "---|" * HEAD.count(" | ") + "---|"]
    reached = sum(row.reached for row in rows)
    return "\n".join([*head, *lines, "", f"Reached: {reached} of {len(rows)}. Measured in {minutes():.0f} minutes."])


def _cells(row: Row) -> list[str]:
    return [row.what, row.against, row.reach, row.measured, str(row.figure), "yes" if row.reached else "**no**"]


def machines() -> list[str]:
    """A line for the machine, or for each of them with its benchmarks where the results come from several."""
    found: dict[str, list[str]] = {}
    for name in BENCHMARKS:
        found.setdefault(_machine(load(name)), []).append(name)
    if len(found) == 1:
        return list(found)
    return [f"- {', '.join(names)}: {machine}" for machine, names in found.items()]


def _machine(results: dict) -> str:
    one = results["machine"]
    place = f"{one['processor']}, {one['cores']} cores, {one['memory_gib']} GiB; {one['device']}"
    return f"{results['day']}; {place}; Python {one['python']}."


def minutes() -> float:
    """What all benchmarks took together."""
    return sum(load(name)["total_seconds"] for name in BENCHMARKS) / 60


def figure() -> Figure:
    """How far each figure is from its bound, and how cost grows."""
    drawn = Figure(figsize=(10, 11), layout="constrained")
    above, below = drawn.subfigures(2, 1, height_ratios=[3, 2])
    _distances(above.subplots(), all_rows())
    growth.draw(load("growth"), below.subplots(1, 2))
    return drawn


def _distances(axes: Axes, rows: list[Row]) -> None:
    """A line for each row: its figure over its bound, or the bound over it, so that right of 1 is reached."""
    for place, row in enumerate(rows):
        median, *ends = _times_better(row)
        colour = OKABE_ITO["blue" if row.reached else "vermillion"]
        axes.plot(ends, [place, place], color=colour, linewidth=2, alpha=0.6)
        axes.plot(median, place, "o" if row.reached else "X", color=colour, markersize=7)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [f"{row.what} ({row.reach})" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("times better than the bound (median, and from the least to the most)")
    axes.set_title("Right of the line: reached", loc="left")


def _times_better(row: Row) -> Iterator[float]:
    for value in (row.figure.median, row.figure.least, row.figure.most):
        yield value / row.bound if row.least else min(FARTHEST, row.bound / max(value, 1e-9))


def write() -> None:
    """Write README.md and the figure anew."""
    figure().savefig(FIGURE, dpi=110, metadata={"Software": None})
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write()
