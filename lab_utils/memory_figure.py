"""Draw bytes held against the messages of one request, or of several in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from math import ceil, log2

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullLocator

from lab_utils.plots import GREY, MARKERS, OKABE_ITO, NotebookFigure, format_bytes

Quantities = Mapping[str, Sequence[int]]

MOST_SERIES = len(MARKERS)
LARGEST_MARKER = 9.0
TICKS = 8  # at most, on a linear axis
HIGH = ("data", "axes fraction")


def memory_figure(panels: Mapping[str, Quantities], requests: Sequence[int] = (), log: bool = False) -> Figure:
    """Draw what is held at each message, one panel beside the other, all with the same axes.

    Parameters
    ----------
    panels : mapping of str to mapping of str to sequence of int
        Title of each panel to its series: label, and bytes at message 1, 2, 3, …; up to six series each. Panels that
        have a label in common draw it alike.
    requests : sequence of int, optional
        Messages in each request, in order: a dashed line stands where the next one begins.
    log : bool
        Draw a log2 axis in place of a linear one.

    Returns
    -------
    Figure
        One axes a panel.

    Raises
    ------
    ValueError
        If there is nothing to draw, too much of it, or a size below 1 byte.
    """
    labels = list(dict.fromkeys(label for quantities in panels.values() for label in quantities))
    longest, top = _check(panels, labels)
    figure = NotebookFigure(figsize=(11, 4.4), layout="constrained")
    row = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (title, quantities) in zip(row, panels.items(), strict=True):
        _draw(axes, quantities, labels, requests or [longest])
        _dress(axes, title)
    _scale(row[0], top, log)
    for axes in row:
        _mark_requests(axes, requests)
    figure.legend(*_handles(row, labels), loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _check(panels: Mapping[str, Quantities], labels: Sequence[str]) -> tuple[int, int]:
    """The length of the longest series and the largest value, if all can be drawn."""
    every = [series for quantities in panels.values() for series in quantities.values()]
    values = [value for series in every for value in series]
    if not values or len(labels) > MOST_SERIES:
        raise ValueError(f"panels has {len(labels)} labels, {len(values)} values; expected 1 to {MOST_SERIES} labels")
    if None in values or min(values) < 1:
        raise ValueError("panels holds a size below 1 byte, or none at all; were the readings taken?")
    return max(map(len, every)), max(values)


def _draw(axes: Axes, quantities: Quantities, labels: Sequence[str], requests: Sequence[int]) -> None:
    """A line for each series, with a gap where a request ends: nothing is sent in between."""
    for label, series in quantities.items():
        position = labels.index(label)
        # Wide to narrow: a later series that lies on an earlier one leaves a rim of it in sight.
        size = LARGEST_MARKER - 5 * position / MOST_SERIES
        look = {"color": list(OKABE_ITO.values())[position], "marker": MARKERS[position], "ms": size, "lw": 1.3}
        for begin, end in pairwise(accumulate(requests, initial=0)):
            part = series[begin:end]
            axes.plot(range(begin + 1, begin + 1 + len(part)), part, label=label, **look)


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left")
    axes.set_xlabel("message")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def _scale(axes: Axes, top: int, log: bool) -> None:
    """The axes of all panels are shared: one is scaled for all."""
    if log:
        axes.set_yscale("log", base=2)
        axes.set_ylim(top=8 * top)  # room for the words "request 2"
        axes.yaxis.set_major_locator(LogLocator(base=2, numticks=12))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(-0.03 * top, 1.15 * top)  # small values are seen in full
        axes.yaxis.set_major_locator(MultipleLocator(2 ** ceil(log2(top / TICKS))))  # whole binary units
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value)))
    axes.set_xlim(left=0.4)  # there is no message 0
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_ylabel("bytes")


def _mark_requests(axes: Axes, requests: Sequence[int]) -> None:
    for number, (begin, _) in enumerate(pairwise(accumulate(requests, initial=0)), 1):
        axes.annotate(f"request {number}", (begin + 0.7, 0.98), xycoords=HIGH, color=GREY, va="top")
        if begin:
            axes.axvline(begin + 0.5, color=GREY, lw=1, ls="--")


def _handles(row: Sequence[Axes], labels: Sequence[str]) -> tuple[list, list[str]]:
    known = {line.get_label(): line for axes in row for line in axes.get_lines()}
    return [known[label] for label in labels], list(labels)
