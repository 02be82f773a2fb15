"""Draw the same node in two languages side by side: what it sends, and how fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lab_utils.plots import MARKERS, OKABE_ITO, NotebookFigure

MOST_PANELS, MOST_LANGUAGES, MOST_BARS = 4, 3, 6
WIDEST, NARROWER = 11.0, 3.5  # size of the first language's marks, and how much smaller those of the next one are


def backends_figure(lengths: Mapping[str, Mapping[str, Sequence[int]]], speeds: Mapping[str, float]) -> Figure:
    """Draw message lengths, a panel for each rung, and below them tokens a second as bars.

    Parameters
    ----------
    lengths : mapping of str to (mapping of str to sequence of int)
        Language, and for each rung the ids in each message; at most three languages and four rungs, the same for all.
        The marks of the first language are the widest, so that those of the next lie visibly on top of them.
    speeds : mapping of str to float
        Label, and tokens a second; at most six.

    Returns
    -------
    Figure
        An axes for each rung, on a logarithmic scale to base 2, and one for the bars.

    Raises
    ------
    ValueError
        There is nothing to draw, too much of it, or the languages differ in their rungs.
    """
    rungs = list(next(iter(lengths.values()), {}))
    if not (1 <= len(lengths) <= MOST_LANGUAGES and 1 <= len(rungs) <= MOST_PANELS and 1 <= len(speeds) <= MOST_BARS):
        raise ValueError(
            f"{len(lengths)} languages, {len(rungs)} rungs and {len(speeds)} speeds; expected 1 to {MOST_LANGUAGES}, "
            f"1 to {MOST_PANELS} and 1 to {MOST_BARS}"
        )
    if any(list(of) != rungs for of in lengths.values()):
        raise ValueError(f"the languages have different rungs: {[list(of) for of in lengths.values()]}")
    figure = NotebookFigure(figsize=(11, 5.2), layout="constrained")
    panels, bars = figure.subfigures(2, 1, height_ratios=(1.5, 1))
    grid = panels.subplots(1, len(rungs), sharex=True, sharey=True, squeeze=False)[0]
    for axes, rung in zip(grid, rungs, strict=True):
        _draw_lengths(axes, {language: of[rung] for language, of in lengths.items()})
        axes.set_title(rung, loc="left", fontsize=10)
    grid[0].set_ylabel("ids in the message")
    grid[0].legend(frameon=False, loc="upper left")
    _draw_speeds(bars.subplots(), speeds)
    return figure


def _draw_lengths(axes: Axes, lengths: Mapping[str, Sequence[int]]) -> None:
    for number, (language, series) in enumerate(lengths.items()):
        color, size = list(OKABE_ITO.values())[number], WIDEST - NARROWER * number
        look = {"color": color, "marker": MARKERS[number], "ms": size, "lw": 0.4 * size, "label": language}
        axes.plot(range(1, len(series) + 1), series, **look)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("message")
    _plain(axes)


def _draw_speeds(axes: Axes, speeds: Mapping[str, float]) -> None:
    drawn = axes.barh(list(speeds), list(speeds.values()), height=0.6, color=OKABE_ITO["sky"])
    axes.bar_label(drawn, [f"{speed:,.0f}" for speed in speeds.values()], padding=5)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(speeds.values()))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("tokens a second, one stream")
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
