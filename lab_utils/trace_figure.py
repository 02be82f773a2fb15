"""The figure of a trace: what producers sent, and over it what consumers received, iteration by iteration."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lab_utils.attribution import Place
from lab_utils.plots import GREY, OKABE_ITO, NotebookFigure
from lab_utils.tables import table
from lab_utils.trace import Tensor
from lab_utils.trace_tracks import Pair

SHOWN_PAIRS = 6


def repeated(pairs: Sequence[Pair], focus: Place | None = None) -> list[Pair]:
    """The pairs worth a figure: those with more than one message, and of these the ones whose size changes, if any.

    Parameters
    ----------
    pairs : sequence of Pair
        From `lab_utils.trace_tracks.pairs`.
    focus : (str, str), optional
        Producer and output to put first, such as a verdict's node and tensor.

    Returns
    -------
    list of Pair
        After the focus, those whose size changes most come first.
    """
    several = [pair for pair in pairs if max(len(pair.sent), len(pair.received)) > 1]
    changing = [pair for pair in several if _spread(pair)[0] > 1]
    found = sorted(changing or several, key=_spread, reverse=True)
    return sorted(found, key=lambda pair: (pair.producer, pair.output) != focus)


def pair_figure(pairs: Sequence[Pair], title: str = "", focus: Place | None = None) -> Figure:
    """Draw the size of each message as its producer sent it and as its consumer received it.

    Parameters
    ----------
    pairs : sequence of Pair
        From `lab_utils.trace_tracks.pairs`; the first `SHOWN_PAIRS` of `repeated` are drawn.
    title : str
        Above all of it.
    focus : (str, str), optional
        As for `repeated`.

    Returns
    -------
    Figure
        One axes for each pair: wide blue squares for what was sent, narrow orange circles on them for what was
        received. The scale is log2 where the largest message is 16 times the smallest or more.

    Raises
    ------
    ValueError
        No pair has more than one message.
    """
    shown = _shown(pairs, focus)[:SHOWN_PAIRS]
    columns = min(2, len(shown))
    rows = ceil(len(shown) / columns)
    figure = NotebookFigure(figsize=(5.6 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for one, pair in zip(axes, shown, strict=False):
        _draw(one, pair)
    for unused in list(axes)[len(shown) :]:
        unused.remove()
    if title:
        figure.suptitle(title)
    return figure


def pair_table(pairs: Sequence[Pair], rows: int | None = None, focus: Place | None = None) -> str:
    """The numbers of the first pair of `pair_figure` as text, one line for each iteration.

    Parameters
    ----------
    pairs : sequence of Pair
        As for `pair_figure`.
    rows : int, optional
        Most lines to print; all if not given.
    focus : (str, str), optional
        As for `repeated`.

    Returns
    -------
    str
        A dash stands for a message that is missing at that side.

    Raises
    ------
    ValueError
        No pair has more than one message.
    """
    pair = _shown(pairs, focus)[0]
    count = max(len(pair.sent), len(pair.received))
    cells = [(n + 1, *_cells(pair.sent, n), *_cells(pair.received, n)) for n in range(count)][:rows]
    sender, receiver = f"{pair.producer} sent", f"{pair.consumer} received"
    headers = ["iteration", f"{sender}, shape", "bytes", f"{receiver}, shape", "bytes"]
    return f"{_name(pair)}\n{table(headers, cells)}"


def _shown(pairs: Sequence[Pair], focus: Place | None) -> list[Pair]:
    shown = repeated(pairs, focus)
    if not shown:
        raise ValueError(
            "no tensor has more than one message that its consumer got: no iterations to show; trace a"
            " request to a decoupled ensemble, with level TENSORS"
        )
    return shown


def _cells(messages: Sequence[Tensor], place: int) -> tuple[str | None, int | None]:
    return (str(list(messages[place].dims)), messages[place].nbytes) if place < len(messages) else (None, None)


def _name(pair: Pair) -> str:
    return f"{pair.producer} {pair.output} → {pair.consumer}" + (f" {pair.input}" if pair.input != pair.output else "")


def _unit(pair: Pair) -> str:
    return "bytes of text" if (pair.sent or pair.received)[0].dtype == "BYTES" else "elements"


def _sizes(pair: Pair, messages: Sequence[Tensor]) -> list[int]:
    return [one.nbytes if _unit(pair) != "elements" else one.elements for one in messages]


def _spread(pair: Pair) -> tuple[float, int]:
    sizes = _sizes(pair, pair.sent) + _sizes(pair, pair.received)
    return max(sizes) / max(1, min(sizes)), max(sizes)


def _draw(axes: Axes, pair: Pair) -> None:
    sent, received = _sizes(pair, pair.sent), _sizes(pair, pair.received)
    style = {"color": OKABE_ITO["blue"], "marker": "s", "ms": 9, "lw": 5, "alpha": 0.6}
    axes.plot(range(1, len(sent) + 1), sent, label=f"sent by {pair.producer}", **style)
    style = {"color": OKABE_ITO["orange"], "marker": "o", "ms": 4, "lw": 1.5}
    axes.plot(range(1, len(received) + 1), received, label=f"received by {pair.consumer}", **style)
    sizes = sent + received
    if min(sizes) and max(sizes) >= 16 * min(sizes):
        axes.set_yscale("log", base=2)
    else:
        axes.set_ylim(0, 1.15 * max(1, *sizes))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.set(xlabel="iteration (message or call)", ylabel=f"{_unit(pair)} in one message")
    axes.set_title(_name(pair), loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8, labelcolor=GREY)
