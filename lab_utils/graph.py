"""Draw an ensemble as a graph of contracts: its steps, and every tensor that travels between them.

Every node has a row and a column of its own, so the nodes go down a staircase from left to right. That leaves two free
corners: an arrow to the next node turns above the stairs, one that skips nodes runs below them, and every label stands
beside its arrow, at full size however many nodes there are. Lengths are inches; y counts downwards.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from lab_utils.contract import CLIENT, Edge
from lab_utils.plots import OKABE_ITO, NotebookFigure

SENDER, RECEIVER = f"{CLIENT} sends", f"{CLIENT} receives"
STYLES = {
    False: {"color": OKABE_ITO["black"], "linestyle": "-", "linewidth": 1.3},
    True: {"color": OKABE_ITO["blue"], "linestyle": (0, (4, 2)), "linewidth": 1.8},
}
KEY = {False: "once per request", True: "once per response"}
OPEN = re.compile(r"(?<=[\[ ])-1(?=[,\]])")

WIDTH = 11.0  # of a notebook's output
MARGIN = 0.2
FONT = {"family": "DejaVu Sans Mono", "fontsize": 9.5}
CHARACTER = 0.602 * FONT["fontsize"] / 72  # in a monospaced font all are equally wide
LINE = 0.185
HEADING = 0.26  # one line of the title
SAMPLE = 0.45  # a line in the key
PAD = 0.1  # between a label and what stands beside it
GAP = 0.06  # between a label and what is above or below it
PORT = 0.14  # between two arrows at one side of a box
CORNER = 0.2  # from the corner of a box to its first arrow above or below
MIDDLE = 0.18  # from the top of a box to its first arrow left or right; half the height of most boxes
DROP = 0.28  # from a box to the next one down, at least
STRETCH = 1.8  # added to a step to the right, at most


@dataclass(frozen=True)
class _Arrow:
    """The tensors of one label, from the node of one row to that of a later row."""

    source: int
    target: int
    per_response: bool
    lines: tuple[str, ...]
    above: bool = False

    @property
    def width(self) -> float:
        return max(map(len, self.lines)) * CHARACTER

    @property
    def height(self) -> float:
        return len(self.lines) * LINE

    def crosses(self, other: _Arrow) -> bool:
        first, second = sorted((self, other), key=lambda arrow: arrow.source)
        return first.source < second.source < first.target < second.target


@dataclass(frozen=True)
class _Box:
    """Where a node is drawn."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height


def graph_figure(edges: Sequence[Edge], title: str = "") -> Figure:
    """Draw the edges of an ensemble: a box for each step, an arrow for the tensors that go from one step to another.

    The client is drawn twice: first as the sender of the inputs, last as the receiver of the outputs. Each tensor is
    labelled with name, dtype and dims, such as ``TOKEN_IDS INT32 [-1]``, or ``[-1] -> [1]`` where producer and
    consumer declare different dims. Every -1 is marked. Dashed arrows carry their tensors once per response.

    Parameters
    ----------
    edges : sequence of Edge
        As `lab_utils.contract.read_edges` returns them.
    title : str, optional
        Text above the graph. A long one is wrapped.

    Returns
    -------
    Figure
        One axes, in inches, y downwards. 11 inches wide; less for few nodes, more where labels leave no other way.

    Raises
    ------
    ValueError
        If there is no edge, or the edges form a cycle.
    """
    rows = _rows(edges)
    arrows = _routed(_arrows(edges, rows))
    heading = textwrap.wrap(title, 60)
    boxes = _boxes(rows, arrows, 2 * MARGIN + LINE + HEADING * len(heading))
    corners = {arrow: _corner(arrow, arrows, boxes) for arrow in arrows}
    ends = [x + PAD + arrow.width for arrow, (x, _) in corners.items() if arrow.above]
    axes = _axes(max(6.0, boxes[-1].right, *ends) + MARGIN, boxes[-1].bottom + MARGIN)
    _draw_heading(axes, heading, sorted({arrow.per_response for arrow in arrows}))
    for node, box in zip(rows, boxes, strict=True):
        _draw_box(axes, box, node)
    for arrow, corner in corners.items():
        _draw_arrow(axes, arrow, corner, boxes)
        _draw_label(axes, arrow, corner, boxes)
    return axes.figure


def _rows(edges: Sequence[Edge]) -> dict[str, int]:
    """Return the row of each node: by depth, then in the order of the producers."""
    producers = _producers(edges)
    sorter = TopologicalSorter(producers)
    try:
        sorter.prepare()
    except CycleError as error:
        cycle = " -> ".join(error.args[1])
        raise ValueError(f"edges form a cycle: {cycle}; expected tensors that never return to a model") from None
    rows: dict[str, int] = {}
    while sorter.is_active():
        ready = sorter.get_ready()
        for node in sorted(ready, key=lambda node: max((rows[one] for one in producers[node]), default=0)):
            rows[node] = len(rows)
        sorter.done(*ready)
    return rows


def _producers(edges: Sequence[Edge]) -> dict[str, list[str]]:
    """Return the nodes that must stand left of each node: its producers, and the client left and right of all models."""
    ends = [_ends(edge) for edge in edges]
    if not ends:
        raise ValueError("edges is empty; expected the edges of an ensemble, such as read_edges returns")
    producers: dict[str, list[str]] = {node: [] for pair in ends for node in pair}
    for source, target in ends:
        producers[target].append(source)
    models = [node for node in producers if node not in (SENDER, RECEIVER)]
    if SENDER in producers:
        for model in models:
            producers[model].append(SENDER)
    if RECEIVER in producers:
        producers[RECEIVER] += models
    return producers


def _ends(edge: Edge) -> tuple[str, str]:
    source = SENDER if edge.producer == CLIENT else edge.producer
    return source, RECEIVER if edge.consumer == CLIENT else edge.consumer


def _arrows(edges: Sequence[Edge], rows: dict[str, int]) -> list[_Arrow]:
    groups: dict[tuple[int, int, bool], list[Edge]] = {}
    for edge in dict.fromkeys(edges):
        source, target = _ends(edge)
        groups.setdefault((rows[source], rows[target], edge.per_response), []).append(edge)
    return [_Arrow(*key, _lines(group)) for key, group in groups.items()]


def _lines(edges: list[Edge]) -> tuple[str, ...]:
    name, dtype = (max(map(len, column)) for column in zip(*((one.tensor, one.dtype) for one in edges), strict=True))
    return tuple(f"{edge.tensor:<{name}} {edge.dtype:<{dtype}} {_dims(edge)}" for edge in edges)


def _dims(edge: Edge) -> str:
    produced, accepted = str(list(edge.produced)), str(list(edge.accepted))
    return produced if produced == accepted else f"{produced} -> {accepted}"


def _routed(arrows: list[_Arrow]) -> list[_Arrow]:
    """Send arrows to the next row above the stairs, others below, or above where that saves a crossing."""
    routed: list[_Arrow] = []
    for arrow in sorted(arrows, key=lambda arrow: (arrow.target - arrow.source, arrow.source)):
        crossing = {other.above for other in routed if other.crosses(arrow)}
        # Two that end at one box from above would have a label between them.
        taken = any(other.above and other.target == arrow.target for other in routed)
        wanted = arrow.target == arrow.source + 1 or False in crossing
        routed.append(replace(arrow, above=wanted and not taken and True not in crossing))
    return routed


def _boxes(rows: dict[str, int], arrows: list[_Arrow], top: float) -> list[_Box]:
    width = max(len(_name(node)) for node in rows) * CHARACTER + 2 * CORNER
    lefts = _stretched(_lefts(len(rows), arrows), arrows, width)
    boxes: list[_Box] = []
    for row, left in enumerate(lefts):
        lanes, leaving = _lanes(arrows, row), [arrow for arrow in arrows if arrow.above and arrow.source == row]
        extra = max(sum(lane.height + PAD for lane in lanes[1:]), PORT * (len(leaving) - 1), 0)
        boxes.append(_Box(left, top + max([0, *(lane.height + GAP  for lane in lanes[:1])]), width, 2 * MIDDLE + extra))
    return boxes
