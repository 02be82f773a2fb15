"""Draw many streams at once: whose message arrived when, in which order, and what waited for the client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lab_utils.plots import MARKERS, OKABE_ITO, NotebookFigure
from lab_utils.streams import Arrival, Backlog, inversions

MIB = 2**20
MOST_PANELS = 4
LABEL_GAP = 0.07  # height of a label, as a fraction of the axes


def interleaving_figure(arrivals: Sequence[Arrival], names: Sequence[str]) -> Figure:
    """Draw a row for each stream, with a mark where one of its messages arrived.

    Parameters
    ----------
    arrivals : sequence of Arrival
        From `lab_utils.streams.stream_together`.
    names : sequence of str
        A name for each stream, in order.

    Returns
    -------
    Figure
        One axes; time 0 is the moment when all streams were started. The last message of a stream is a wide mark.

    Raises
    ------
    ValueError
        If there is no message, or one of a stream without a name.
    """
    if not arrivals or max(arrival.stream for arrival in arrivals) > len(names):
        raise ValueError(f"{len(arrivals)} arrivals, {len(names)} names; expected messages, and a name for each stream")
    figure = NotebookFigure(figsize=(11, 1 + 0.2 * len(names)), layout="constrained")
    axes = figure.subplots()
    for number in range(1, len(names) + 1):
        _draw_stream(axes, [arrival for arrival in arrivals if arrival.stream == number], number)
    axes.set_yticks(range(1, len(names) + 1), names, fontsize=8)
    axes.set_ylim(len(names) + 0.7, 0.3)
    axes.set_xlim(left=0)
    axes.set_xlabel("time since the start (ms)")
    _plain(axes)
    return figure


def _draw_stream(axes: Axes, arrivals: Sequence[Arrival], number: int) -> None:
    color = list(OKABE_ITO.values())[number % 4]  # neighbours differ
    times = [1000 * arrival.seconds for arrival in arrivals]
    axes.plot(times, [number] * len(times), "|", color=color, ms=7, mew=1)
    axes.plot(times[-1:], [number] * len(times[-1:]), MARKERS[1], color=color, ms=5)


def order_figure(panels: Mapping[str, Sequence[int]]) -> Figure:
    """Draw the index of each message against its place in the order of arrival, and below it how far the two differ.

    Parameters
    ----------
    panels : mapping of str to sequence of int
        Title of each panel, and the index of the messages as they arrived; up to four panels.

    Returns
    -------
    Figure
        Two axes a panel, one above the other. A message that a later one has overtaken is an orange mark.

    Raises
    ------
    ValueError
        If there is nothing to draw, or too much of it.
    """
    if not 1 <= len(panels) <= MOST_PANELS or not all(panels.values()):
        raise ValueError(f"panels has {len(panels)} series; expected 1 to {MOST_PANELS}, each with messages")
    figure = NotebookFigure(figsize=(11, 6), layout="constrained")
    grid = figure.subplots(2, len(panels), sharex=True, sharey="row", squeeze=False)
    for upper, lower, (title, index) in zip(*grid, panels.items(), strict=True):
        _draw_order(upper, index, index)
        _draw_order(lower, index, [number - place for place, number in enumerate(index, 1)])
        upper.set_title(f"{title}: {inversions(index):,} inversions", loc="left", fontsize=10)
        lower.set_xlabel("place in the order of arrival")
    grid[0][0].set_ylabel("index")
    grid[1][0].set_ylabel("index minus place")
    return figure


def _draw_order(axes: Axes, index: Sequence[int], values: Sequence[int]) -> None:
    for late, name, marker, size in ((False, "blue", "o", 2.5), (True, "vermillion", "D", 4)):
        places = [place for place, is_late in enumerate(_late(index), 1) if is_late is late]
        axes.plot(places, [values[place - 1] for place in places], marker, color=OKABE_ITO[name], ms=size)
    _plain(axes)


def _late(index: Sequence[int]) -> list[bool]:
    """Whether a message with a larger index had arrived before it."""
    highest, late = 0, []
    for number in index:
        late.append(number < highest)
        highest = max(highest, number)
    return late


def backlog_figure(runs: Mapping[str, Sequence[Backlog]]) -> Figure:
    """Draw what waits for a client, and the memory that the server took meanwhile, over time.

    Parameters
    ----------
    runs : mapping of str to sequence of Backlog
        Label, and what `lab_utils.streams.paused_client` gave; up to six runs.

    Returns
    -------
    Figure
        Two axes: waiting messages, and growth of the server's private memory since the first look, in MiB.

    Raises
    ------
    ValueError
        If there is nothing to draw, or too much of it.
    """
    if not 1 <= len(runs) <= len(MARKERS) or not all(runs.values()):
        raise ValueError(f"runs has {len(runs)} series; expected 1 to {len(MARKERS)}, each with a look or more")
    figure = NotebookFigure(figsize=(11, 4.2), layout="constrained")
    waiting, memory = figure.subplots(1, 2)
    _draw_runs(waiting, {label: [one.waiting for one in run] for label, run in runs.items()}, runs)
    _draw_runs(memory, {label: growth(run) for label, run in runs.items()}, runs)
    waiting.set_title("messages that wait for the client", loc="left", fontsize=10)
    memory.set_title("memory that the server took meanwhile (MiB)", loc="left", fontsize=10)
    waiting.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


def growth(run: Sequence[Backlog]) -> list[float]:
    """Growth of the server's private memory since the first look, in MiB."""
    return [(one.memory - run[0].memory) / MIB for one in run]


def _draw_runs(axes: Axes, values: Mapping[str, Sequence[float]], runs: Mapping[str, Sequence[Backlog]]) -> None:
    top = max(1.0, *(max(series) for series in values.values()))
    heights = _spread({label: series[-1] / top for label, series in values.items()})
    for position, (label, series) in enumerate(values.items()):
        look = {"color": list(OKABE_ITO.values())[position], "marker": MARKERS[position], "ms": 5, "lw": 1.3}
        axes.plot([one.seconds for one in runs[label]], series, **look)
        height = 0.04 + 0.9 * heights[label]
        axes.plot(1.03, height, transform=axes.transAxes, clip_on=False, **look)
        axes.text(1.05, height, label, transform=axes.transAxes, va="center")
    axes.set_ylim(-0.045 * top, 1.06 * top)
    axes.set_xlabel("time since the client paused (s)")
    _plain(axes)


def _spread(heights: Mapping[str, float]) -> dict[str, float]:
    """Push labels apart, from the lowest up, so that no two touch."""
    placed: dict[str, float] = {}
    for label in sorted(heights, key=heights.get):
        placed[label] = max([heights[label], *(height + LABEL_GAP for height in placed.values())])
    return placed


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
