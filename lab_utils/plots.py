"""Figures and tables for the lessons: growth of a message, and the way to the first token.

Every function returns its figure and shows nothing: a notebook shows a figure that is the last line of its cell, once.
Colours are those of Okabe and Ito, which colour-blind readers can tell apart; markers and labels say the same again.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from lab_utils import arguments
from lab_utils.growth import Law, numbers_of
from lab_utils.tables import table as table  # figures and tables: the lessons take both from here

OKABE_ITO = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "yellow": "#F0E442",
    "black": "#000000",
}
"""Name to hex code. Series take the first six in this order; black is for predictions and text."""

MARKERS = "PvDs^o"  # wide shapes first: a later one on top of it leaves the corners in sight
BYTES_PER_ID = 4
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB")
GREY = "#666666"
POWER = re.compile(r"\$(\\mathdefault\{)?-?\d+\^\{-?\d+\}\}?\$")
LABEL_GAP = 0.075  # height of one line of text, as a fraction of the axes


class NotebookFigure(Figure):
    """A figure that a notebook can show without pyplot, and so never shows a second time.

    Text is drawn as it is, powers on an axis apart: a name with "$" in it is no formula, and may not be a valid one.
    """

    def draw(self, renderer: RendererBase) -> None:
        """Draw it."""
        for text in self.findobj(Text):
            text.set_parse_math(POWER.fullmatch(text.get_text()) is not None)
        super().draw(renderer)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        # Twice the pixels at the same size: sharp on a dense screen.
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=2 * self.dpi)
        width, height = (int(inches * self.dpi) for inches in self.get_size_inches())
        return buffer.getvalue(), {"width": width, "height": height}


@dataclass(frozen=True)
class _Series:
    label: str
    lengths: list[float]
    style: dict[str, object] = field(default_factory=dict)


def growth_figure(
    measured: Mapping[str, Sequence[int]],
    predicted: Law | None = None,
    predict_to: int | None = None,
    reached: int | None = None,
) -> Figure:
    """Draw message length against iteration, on a linear and on a log2 axis.

    Measured values are filled markers on a line; the prediction is open markers on a dashed line. Where series lie on
    each other, the first is drawn widest and the last narrowest, so that all of them stay visible. Markers that
    would run into each other are thinned out; the line still has every value.

    Parameters
    ----------
    measured : mapping of str to sequence of int
        1 to 6 series: label, and the ids in the messages of iterations 1, 2, 3, …. A 0 has no place on the log2 axis
        and is left out there.
    predicted : Law, optional
        Law to draw beside the measurement.
    predict_to : int, optional
        Iteration to draw the law to; by default the last one measured, or `reached` if that is later.
    reached : int, optional
        Iteration to point out, with its length and size, as the end of a run.

    Returns
    -------
    Figure
        Two axes: linear, and log2 with a second scale in bytes (4 an id).

    Raises
    ------
    ValueError
        If there is nothing to draw or too much of it, if the law is of kind "none" or leaves the drawable range,
        or if `reached` is neither measured nor predicted.
    """
    series = _measured(measured)
    if predicted is not None:
        longest = _last(series)
        series.append(_predicted(predicted, max(longest, reached or 0) if predict_to is None else predict_to))
    figure = NotebookFigure(figsize=(11, 4.2), layout="constrained")
    linear, log2 = figure.subplots(1, 2)
    _linear_axes(linear, series)
    _log2_axes(log2, series)
    _label_ends(linear, series)
    if reached is not None:
        _point_out(linear, series, reached)
    return figure


def timeline_figure(events: Sequence[tuple[str, float, float]]) -> Figure:
    """Draw steps as horizontal bars, each with its seconds, and the total below them.

    Parameters
    ----------
    events : sequence of (str, float, float)
        Label, start and end of each step, in seconds of any one clock; drawn from the top in this order.

    Returns
    -------
    Figure
        One axes; time 0 is the earliest start.

    Raises
    ------
    ValueError
        If there is no event, or one is not a label with a finite start and an end that is not before it.
    """
    steps = [
        _event(event, position)
        for position, event in enumerate(arguments.items("events", events, "a list of steps"), 1)
    ]
    if not steps:
        raise ValueError("events is empty; expected at least one (label, start in s, end in s)")
    zero, end = min(start for _, start, _ in steps), max(end for _, _, end in steps)
    steps.append(("total", zero, end))
    figure = NotebookFigure(figsize=(9, 0.8 + 0.42 * len(steps)), layout="constrained")
    axes = figure.subplots()
    colors = [OKABE_ITO["blue"]] * (len(steps) - 1) + [GREY]
    spans = [stop - start for _, start, stop in steps]
    bars = axes.barh(range(len(steps)), spans, left=[start - zero for _, start, _ in steps], height=0.6, color=colors)
    axes.bar_label(bars, [_seconds(span) for span in spans], padding=4)
    axes.set_yticks(range(len(steps)), [label for label, _, _ in steps])
    _time_axis(axes, end - zero)
    return figure


def _measured(measured: Mapping[str, Sequence[int]]) -> list[_Series]:
    if not isinstance(measured, Mapping) or not 1 <= len(measured) <= len(MARKERS):
        raise ValueError(f"measured is not a mapping of 1 to {len(MARKERS)} series: label to lengths")
    count = len(measured)
    # Wide to narrow: a later series that lies on an earlier one leaves a rim of it in sight.
    sizes = np.linspace(min(4.5 + 2.8 * (count - 1), 13), 4.5, count)
    widths = np.linspace(min(1.5 + 2 * (count - 1), 7.5), 1.5, count)
    looks = zip(OKABE_ITO.values(), MARKERS[-count:], sizes, widths, strict=False)
    return [
        _Series(str(label), _lengths(lengths, label), {"color": color, "marker": marker, "ms": size, "lw": width})
        for (label, lengths), (color, marker, size, width) in zip(measured.items(), looks, strict=False)
    ]


def _predicted(law: Law, last: int) -> _Series:
    law.predict(last)  # refuses what is not an iteration
    lengths = _lengths((law.predict(n) for n in range(1, last + 1)), "predicted")
    style = {"color": OKABE_ITO["black"], "marker": "o", "mfc": "none", "ms": 8, "lw": 1.1, "ls": "--"}
    return _Series("predicted", lengths, style)


def _lengths(lengths: Iterable[int], label: str) -> list[float]:
    numbers = numbers_of(lengths, f"series {label!r}")
    if not numbers:
        raise ValueError(f"series {label!r} is empty; expected the ids in each message, first to last")
    if any(number.denominator != 1 for number in numbers):
        raise ValueError(f"series {label!r} holds a fraction; expected whole numbers of ids")
    return [float(number) for number in numbers]


def _draw(axes: Axes, series: list[_Series], title: str) -> None:
    last = _last(series)
    # Markers that would run into each other are thinned out, counted back from the last iteration.
    every = math.ceil(last * max(one.style["ms"] for one in series) / 280)
    for one in series:
        n = range(1, len(one.lengths) + 1)
        axes.plot(n, one.lengths, label=one.label, markevery=((last - 1) % every, every), **one.style)
    ticks = MaxNLocator(8, integer=True, steps=[1, 2, 4, 5, 10]).tick_values(1, last)
    axes.set_xticks([1, *(tick for tick in ticks if 1 < tick <= last)])
    margin = max(0.5, 0.02 * last)
    axes.set(xlim=(1 - margin, last + margin), xlabel="iteration n", ylabel="ids in one message")
    axes.set_title(title, loc="left")
    _plain(axes)


def _last(series: list[_Series]) -> int:
    return max(len(one.lengths) for one in series)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def _linear_axes(axes: Axes, series: list[_Series]) -> None:
    _draw(axes, series, "linear axis")
    top = max(2.0, *(max(one.lengths) for one in series))
    axes.set_yticks(
        [
            tick
            for tick in MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]).tick_values(0, top)
            if 0 <= tick <= 1.08 * top
        ]
    )
    axes.set_ylim(-0.05 * top, 1.08 * top)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _count(value)))


def _log2_axes(axes: Axes, series: list[_Series]) -> None:
    _draw(axes, series, "log2 axis")
    shown = [length for one in series for length in one.lengths if length] or [1.0]
    low = math.floor(math.log2(min(shown)))
    high = max(2, low + 1, math.ceil(math.log2(max(shown))))
    exponents = range(low, high + 1, math.ceil((high - low) / 10))
    ticks = [2.0**exponent for exponent in exponents]
    margin = 0.06 * (high - low)
    axes.set_ylim(2 ** (low - margin), 2 ** (high + margin))  # before the scale, which warns when all lengths are 0
    axes.set_yscale("log", base=2, nonpositive="mask")
    axes.set_yticks(ticks, [f"$2^{{{exponent}}}$" for exponent in exponents])
    size = axes.secondary_yaxis("right", functions=(lambda ids: ids * BYTES_PER_ID, lambda size: size / BYTES_PER_ID))
    size.set_yticks([tick * BYTES_PER_ID for tick in ticks], [format_bytes(tick * BYTES_PER_ID) for tick in ticks])
    size.set_ylabel(f"size ({BYTES_PER_ID} bytes an id)")
    for axis in (axes.yaxis, size.yaxis):
        axis.set_minor_locator(NullLocator())


def _label_ends(axes: Axes, series: list[_Series]) -> None:
    """Write each label with its marker in the right margin, at the height of its last value."""
    bottom, top = axes.get_ylim()
    ends = sorted(series, key=lambda one: one.lengths[-1], reverse=True)
    heights = _spread([(one.lengths[-1] - bottom) / (top - bottom) for one in ends])
    for one, height in zip(ends, heights, strict=True):
        style = one.style | {"ls": "none", "ms": min(one.style["ms"], 8)}
        axes.plot(1.06, height, transform=axes.transAxes, clip_on=False, **style)
        axes.text(1.085, height, one.label, transform=axes.transAxes, va="center")
        if len(one.lengths) == _last(series):  # the line to a series that ended earlier would cross the others
            _lead(axes, one, height)


def _lead(axes: Axes, one: _Series, height: float) -> None:
    """Draw a thin line from the end of a series to its label."""
    style = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 6}
    end = (len(one.lengths), one.lengths[-1])
    axes.annotate("", end, (1.04, height), textcoords="axes fraction", annotation_clip=False, arrowprops=style)


def _spread(heights: list[float]) -> list[float]:
    """Push falling heights apart, so that no two labels touch, and keep them at or below 1."""
    placed: list[float] = []
    for height in reversed(heights):
        placed.append(max(height, placed[-1] + LABEL_GAP) if placed else height)
    return [min(height, 1 - LABEL_GAP * above) for above, height in enumerate(reversed(placed))]


def _point_out(axes: Axes, series: list[_Series], reached: int) -> None:
    lengths = next((one.lengths for one in series if reached in range(1, len(one.lengths) + 1)), None)
    if lengths is None:
        raise ValueError(f"reached is {reached!r}; expected an iteration that is measured or predicted")
    length = lengths[reached - 1]
    # The space to the left of a high point and above a low one is free of curves.
    high = length > 0.6 * axes.get_ylim()[1]
    axes.annotate(
        f"n = {reached}\n{length:,.0f} {'id' if length == 1 else 'ids'}\n{format_bytes(length * BYTES_PER_ID)}",
        (reached, length),
        (-48, 10) if high else (-24, 24),
        textcoords="offset points",
        ha="right",
        va="top" if high else "bottom",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        arrowprops={"arrowstyle": "->", "color": GREY, "relpos": (1, 0.8) if high else (1, 0.2), "shrinkB": 7},
    )


def _event(event: tuple[str, float, float], position: int) -> tuple[str, float, float]:
    match event:
        case (str(label), Real() as start, Real() as end) if math.isfinite(start) and start <= end < math.inf:
            return label, float(start), float(end)
    raise ValueError(
        f"event {position} is {event!r}; expected (label, start in s, end in s), the end not before the start"
    )


def _time_axis(axes: Axes, total: float) -> None:
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * total or 1)  # room for the last label
    axes.set_xlabel("time since start (s)")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)


def _count(value: float) -> str:
    if value >= 1e12:
        return f"{value:.3g}"
    return f"{value / 1e6:g} million" if value >= 1e6 else f"{value:,.0f}"


def format_bytes(size: float) -> str:
    """Bytes with a binary unit and four digits at most, such as "512 MiB"."""
    power = min(int(math.log2(size)) // 10, len(UNITS) - 1) if size >= 1 else 0
    return f"{size / 1024**power:,.4g} {UNITS[power]}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds:.3f} s"
