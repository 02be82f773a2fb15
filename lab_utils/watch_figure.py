"""Draw what a watch saw: dims, bytes, backlog and memory over time, for each node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from math import prod

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lab_utils.alarm import MACHINE, MEBIBYTE, Alarm, Sample
from lab_utils.attribution import Message
from lab_utils.plots import GREY, MARKERS, OKABE_ITO, NotebookFigure, format_bytes

MOST_SERIES = len(MARKERS)
MOST_POINTS = 2_000  # of one line: more are not to be seen

Line = Sequence[tuple[float, float]]


def watch_figure(
    messages: Iterable[Message], samples: Iterable[Sample], alarms: Iterable[Alarm], began: float
) -> Figure:
    """Draw four axes over one time: elements and bytes of each message, backlog and memory of each node.

    Each axes has at most six series, those that change most, and of equals the longest; the rest is counted in a line
    of text. A line connects the messages of one request. Alarms are black crosses.

    Parameters
    ----------
    messages, samples, alarms
        As `lab_utils.watch.Watch` has them. Messages whose node is not known are left out.
    began : float
        Time 0 of the axis, in seconds since 1970.

    Returns
    -------
    Figure
        Four axes, one above the other.
    """
    messages, samples = [one for one in messages if one.node], list(samples)
    fired = {(alarm.rule, alarm.node, alarm.side, alarm.tensor, alarm.seconds) for alarm in alarms}
    figure = NotebookFigure(figsize=(11, 10), layout="constrained")
    dims, size, backlog, memory = figure.subplots(4, 1, sharex=True)
    _draw(dims, "elements in one message", _by_tensor(messages, lambda one: prod(one.dims), began), log=True)
    _draw(size, "bytes of one message", _by_tensor(messages, lambda one: one.nbytes, began), log=True, in_bytes=True)
    _draw(backlog, "requests that wait", _by_node(samples, "backlog", began))
    _draw(memory, "memory (MiB)", _by_node(samples, "memory", began, MEBIBYTE))
    points = [
        (one.seconds - began, prod(one.dims))
        for one in messages
        if ("dims", one.node, one.side, one.tensor, one.seconds) in fired
    ]
    _cross(dims, points)
    for axes, quantity, unit in ((backlog, "backlog", 1), (memory, "memory", MEBIBYTE)):
        _cross(axes, [(a[4] - began, _value(samples, a) / unit) for a in fired if a[0] == quantity])
    memory.set_xlabel("time since the watch began (s)")
    return figure


def _value(samples: Sequence[Sample], fired: tuple) -> float:
    return next(one.value for one in samples if (one.quantity, one.node, one.seconds) == (fired[0], fired[1], fired[4]))


def _by_tensor(
    messages: Sequence[Message], value: Callable[[Message], float | None], began: float
) -> dict[str, dict[str, Line]]:
    """Label of a tensor to its lines: one for each request."""
    found: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for one in messages:
        if value(one):  # 0 has no place on a logarithmic axis
            label = f"{one.node} {'in' if one.side == 'input' else 'out'} {one.tensor}"
            found[label][one.request or "?"].append((one.seconds - began, value(one)))
    return found


def _by_node(samples: Sequence[Sample], quantity: str, began: float, unit: float = 1) -> dict[str, dict[str, Line]]:
    found: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for one in samples:
        if one.quantity == quantity and one.node != MACHINE:  # the whole machine's would dwarf the others
            found[one.node][""].append((one.seconds - began, one.value / unit))
    return found


def _draw(
    axes: Axes, title: str, series: dict[str, dict[str, Line]], log: bool = False, in_bytes: bool = False
) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    if not series:
        axes.text(0.5, 0.5, "nothing seen", transform=axes.transAxes, ha="center", color=GREY)
        return
    kept = sorted(series, key=lambda label: (_change(series[label]), _points(series[label])), reverse=True)[
        :MOST_SERIES
    ]
    for position, label in enumerate(kept):
        _draw_lines(axes, label, series[label], position)
    _scale(axes, log, in_bytes)
    left = len(series) - len(kept)
    _legend(axes, f"and {left} more that change less" if left else None)


def _draw_lines(axes: Axes, label: str, lines: dict[str, Line], position: int) -> None:
    # Wide to narrow: a later series that lies on an earlier one leaves a rim of it in sight.
    look = {"color": list(OKABE_ITO.values())[position], "marker": MARKERS[position], "ms": 9 - position, "lw": 1.2}
    for request, line in lines.items():
        x, y = zip(*line[:: len(line) // MOST_POINTS + 1], strict=True)
        axes.plot(x, y, ls="none" if request == "?" else "-", **look)
    axes.plot([], [], label=label, **look)


def _scale(axes: Axes, log: bool, in_bytes: bool) -> None:
    if log:
        axes.set_yscale("log", base=2)
    else:
        axes.set_ylim(0, max(1, 1.08 * axes.get_ylim()[1]))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    show = format_bytes if in_bytes else (lambda value: f"{value:,.6g}")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))


def _legend(axes: Axes, title: str | None = None) -> None:
    title = title or (old.get_title().get_text() if (old := axes.get_legend()) else None)
    axes.legend(fontsize=8, frameon=False, title=title, title_fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _change(lines: dict[str, Line]) -> float:
    values = [value for line in lines.values() for _, value in line]
    return max(values) / max(1.0, min(values))


def _points(lines: dict[str, Line]) -> int:
    """Where nothing changes, a whole stream says more than a single message."""
    return sum(map(len, lines.values()))


def _cross(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), "x", color=OKABE_ITO["black"], ms=13, mew=2.2, label="alarm")
        _legend(axes)
