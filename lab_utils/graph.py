"""Draw an ensemble as a graph of contracts: its steps, and every tensor that travels between them.

Every node has a row and a column of its own, so the nodes go down a staircase from left to right. That leaves two free
corners: an arrow to the next node turns above the stairs, one that skips nodes runs below them, and every label stands
beside its arrow, at full size however many nodes there are. Lengths are inches; y counts downwards.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from lab_utils.contract import CLIENT, Edge, edge_dims
from lab_utils.plots import OKABE_ITO, NotebookFigure

SENDER, RECEIVER = f"{CLIENT} sends", f"{CLIENT} receives"
STYLES = {
    False: {"color": OKABE_ITO["black"], "linestyle": "-", "linewidth": 1.3},
    True: {"color": OKABE_ITO["blue"], "linestyle": (0, (4, 2)), "linewidth": 1.8},
}
KEY = {False: "once per request", True: "once per response"}
OPEN = re.compile(r"-1(?=[,\]])")

WIDTH, NARROWEST = 11.0, 5.2  # a notebook's output; what the key needs
MARGIN = 0.2
FONT = {"family": "DejaVu Sans Mono", "fontsize": 9.5, "parse_math": False}
CHARACTER = 0.602 * FONT["fontsize"] / 72  # in a monospaced font all are equally wide
LINE = 0.185
TITLE_CHARACTER, HEADING = 0.12, 0.26  # width and height of a character in the title, generously
SAMPLE = 0.45  # a line in the key
PAD = 0.1  # between a label and what stands beside it
GAP = 0.06  # between a label and what is above or below it
HEAD = 0.11  # of an arrow
PORT = 0.14  # between two arrows at one side of a box
CORNER = 0.2  # from the corner of a box to its first arrow above or below
MIDDLE = 0.18  # from the top of a box to its first arrow left or right; half the height of most boxes
DROP = 0.28  # from a box to the next one down, at least
STEPS = [step / 20 for step in range(8, 45)]  # from the left end of a box to that of the next


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
    box_width = _box_width(rows, arrows)
    lefts = _lefts(len(rows), arrows, box_width)
    width = max(_end(lefts, arrows, box_width) + MARGIN, NARROWEST)
    heading = textwrap.wrap(title, int(width / TITLE_CHARACTER))
    boxes = _boxes(lefts, box_width, arrows, 2 * MARGIN + LINE + HEADING * len(heading))
    axes = _axes(width, boxes[-1].bottom + MARGIN)
    _draw_heading(axes, heading, sorted({arrow.per_response for arrow in arrows}))
    for node, box in zip(rows, boxes, strict=True):
        _draw_box(axes, box, node)
    for arrow in arrows:
        x, y = _corner(arrow, arrows, boxes)
        _draw_arrow(axes, arrow, x, y, boxes)
        if arrow.above:
            _draw_label(axes, arrow, x + PAD, y - LINE / 2)
        else:
            _draw_label(axes, arrow, _spot(arrow, arrows, lefts), y - GAP - arrow.height)
    return axes.figure


def _rows(edges: Sequence[Edge]) -> dict[str, int]:
    """Return the row of each node: by depth, then in the order of the producers."""
    sorter = TopologicalSorter(_producers(edges))
    try:
        sorter.prepare()
    except CycleError as error:
        cycle = " -> ".join(error.args[1])
        raise ValueError(f"edges form a cycle: {cycle}; expected tensors that never return to a model") from None
    rows: dict[str, int] = {}
    while sorter.is_active():
        ready = sorter.get_ready()
        rows |= {node: row for row, node in enumerate(ready, len(rows))}
        sorter.done(*ready)
    return rows


def _producers(edges: Sequence[Edge]) -> dict[str, list[str]]:
    """Return the nodes that must stand left of each node: its producers; the client also stands at both ends."""
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
    return tuple(f"{edge.tensor:<{name}} {edge.dtype:<{dtype}} {edge_dims(edge)}" for edge in edges)


def _routed(arrows: list[_Arrow]) -> list[_Arrow]:
    """Send arrows to the next row above the stairs, and others below, or above where they cross fewer."""
    routed: list[_Arrow] = []
    for arrow in sorted(arrows, key=lambda arrow: (arrow.target - arrow.source, arrow.source)):
        crossed = Counter(other.above for other in routed if other.crosses(arrow))
        # Of two that come down on one box, the outer would cut off the label of the inner.
        taken = any(other.above and other.target == arrow.target for other in routed)
        wanted = arrow.target == arrow.source + 1 or crossed[True] < crossed[False]
        routed.append(replace(arrow, above=wanted and not taken))
    return routed


def _box_width(rows: dict[str, int], arrows: list[_Arrow]) -> float:
    names = [len(_name(node)) * CHARACTER for node in rows]
    return 2 * CORNER + max(names + [PORT * _rank(arrow, arrows) for arrow in arrows])


def _boxes(lefts: list[float], width: float, arrows: list[_Arrow], top: float) -> list[_Box]:
    boxes: list[_Box] = []
    for row, left in enumerate(lefts):
        top = _top(boxes[-1], row, arrows) if boxes else top
        leaving = sum(arrow.above and arrow.source == row for arrow in arrows)
        entering = sum(lane.height + PAD for lane in _lanes(row, arrows)[1:])
        boxes.append(_Box(left, top, width, 2 * MIDDLE + max(entering, PORT * (leaving - 1), 0)))
    return boxes


def _name(node: str) -> str:
    return CLIENT if node in (SENDER, RECEIVER) else node


def _lefts(count: int, arrows: list[_Arrow], width: float) -> list[float]:
    """Return the left end of each box, with the widest even steps that fit a page."""
    tries = [_packed(count, arrows, step) for step in STEPS]
    fitting = [lefts for lefts in tries if _end(lefts, arrows, width) + MARGIN <= WIDTH]
    return fitting[-1] if fitting else tries[0]


def _end(lefts: list[float], arrows: list[_Arrow], width: float) -> float:
    """Return where the last box or label ends."""
    labels = [lefts[arrow.target] - CORNER + PAD + arrow.width for arrow in arrows if arrow.above]
    return width + max([lefts[-1], *labels])


def _packed(count: int, arrows: list[_Arrow], step: float) -> list[float]:
    lefts = [MARGIN]
    for row in range(1, count):
        ports = [_port(arrow, arrows, lefts) for arrow in arrows if arrow.source == row - 1 and not arrow.above]
        lefts.append(max([lefts[-1] + step, *(port + CORNER for port in ports), *_label_ends(row, arrows, lefts)]))
    return lefts


def _label_ends(row: int, arrows: list[_Arrow], lefts: list[float]) -> list[float]:
    """Return where the labels end that a box must leave room for at its left."""
    entering = [arrow for arrow in arrows if arrow.target == row]
    ends = [_spot(arrow, arrows, lefts) + arrow.width + PAD for arrow in entering if not arrow.above]
    for arrow in entering:
        if arrow.above:  # it comes down right of the labels that it spans
            spanned = [one for one in arrows if one.above and one.source >= arrow.source and one.target < row]
            ends += [lefts[one.target] + one.width + 2 * PAD for one in spanned]
    return ends


def _spot(arrow: _Arrow, arrows: list[_Arrow], lefts: list[float]) -> float:
    """Return where the label of an arrow below the stairs starts: between others that cross it, or right of them."""
    crossing = [one for one in arrows if not one.above and arrow.source < one.source < arrow.target < one.target]
    ports = sorted(_port(one, arrows, lefts) for one in [arrow, *crossing])
    for left, right in pairwise(ports):
        if right - left >= arrow.width + 2 * PAD:
            return left + PAD
    return ports[-1] + PAD


def _port(arrow: _Arrow, arrows: list[_Arrow], lefts: list[float]) -> float:
    return lefts[arrow.source] + CORNER + PORT * _rank(arrow, arrows)


def _rank(arrow: _Arrow, arrows: list[_Arrow]) -> int:
    """Return how many arrows go further, from the same side of the same box: they are the outer ones."""
    siblings = [one for one in arrows if (one.source, one.above) == (arrow.source, arrow.above)]
    return sum((one.target, one.per_response) > (arrow.target, arrow.per_response) for one in siblings)


def _lanes(row: int, arrows: list[_Arrow]) -> list[_Arrow]:
    """Return the arrows that reach a box from the left, the topmost first: those from near by are the inner ones."""
    entering = [arrow for arrow in arrows if arrow.target == row and not arrow.above]
    return sorted(entering, key=lambda arrow: (-arrow.source, arrow.per_response))


def _top(previous: _Box, row: int, arrows: list[_Arrow]) -> float:
    needs = [previous.bottom + DROP]
    needs += [previous.bottom + lane.height + 2 * GAP - MIDDLE for lane in _lanes(row, arrows)[:1]]
    for arrow in arrows:
        if arrow.above and arrow.source == row - 1:
            label = previous.top + MIDDLE + PORT * _rank(arrow, arrows) - LINE / 2
            needs.append(label + arrow.height + GAP)
    return max(needs)


def _corner(arrow: _Arrow, arrows: list[_Arrow], boxes: list[_Box]) -> tuple[float, float]:
    """Return where an arrow turns."""
    if arrow.above:
        y = boxes[arrow.source].top + MIDDLE + PORT * _rank(arrow, arrows)
        return boxes[arrow.target].right - CORNER, y
    lanes = _lanes(arrow.target, arrows)
    y = boxes[arrow.target].top + MIDDLE + sum(lane.height + PAD for lane in lanes[1 : lanes.index(arrow) + 1])
    return _port(arrow, arrows, [box.left for box in boxes]), y


def _axes(width: float, height: float) -> Axes:
    axes = NotebookFigure(figsize=(width, height)).add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return axes


def _draw_heading(axes: Axes, heading: list[str], kinds: list[bool]) -> None:
    for number, line in enumerate(heading):
        axes.text(MARGIN, MARGIN + number * HEADING, line, fontsize=13, va="top", parse_math=False)
    x, y = MARGIN, MARGIN + HEADING * len(heading) + LINE / 2
    for kind in kinds:
        axes.plot([x, x + SAMPLE], [y, y], **STYLES[kind])
        axes.text(x + SAMPLE + PAD, y, KEY[kind], color=STYLES[kind]["color"], va="center", **FONT)
        x += SAMPLE + len(KEY[kind]) * CHARACTER + 5 * PAD


def _draw_box(axes: Axes, box: _Box, node: str) -> None:
    client = node in (SENDER, RECEIVER)
    shape = {
        "boxstyle": "round,pad=0,rounding_size=0.08",
        "edgecolor": OKABE_ITO["black"],
        "linewidth": 1.2,
        "zorder": 2.5,
    }
    color = "white" if client else "#E3F1FA"
    axes.add_patch(FancyBboxPatch((box.left, box.top), box.width, box.height, facecolor=color, **shape))
    middle = (box.left + box.width / 2, box.top + box.height / 2)
    axes.text(*middle, _name(node), ha="center", va="center", weight="bold", **FONT)


def _draw_arrow(axes: Axes, arrow: _Arrow, x: float, y: float, boxes: list[_Box]) -> None:
    source, target = boxes[arrow.source], boxes[arrow.target]
    if arrow.above:
        points, head = [(source.right, y), (x, y), (x, target.top - HEAD / 2)], "v"
    else:
        points, head = [(x, source.bottom), (x, y), (target.left - HEAD / 2, y)], ">"
    # The head is a marker: that of a dashed FancyArrowPatch has a dashed outline.
    look = {"marker": head, "markevery": [2], "markersize": 72 * HEAD, "markeredgewidth": 0}
    axes.plot(*zip(*points, strict=True), **look, **STYLES[arrow.per_response])


def _draw_label(axes: Axes, arrow: _Arrow, left: float, top: float) -> None:
    for number, line in enumerate(arrow.lines):
        middle = top + (number + 0.5) * LINE
        axes.text(left, middle, line, va="center", color=STYLES[arrow.per_response]["color"], **FONT)
        for found in OPEN.finditer(line):
            _mark(axes, left + found.start() * CHARACTER, middle)


def _mark(axes: Axes, left: float, middle: float) -> None:
    """Mark one -1, so that it is found at a glance."""
    look = {"facecolor": "#FBE3D3", "edgecolor": OKABE_ITO["vermillion"], "linewidth": 1.2, "zorder": 1}
    axes.add_patch(Rectangle((left, middle - 0.43 * LINE), 2 * CHARACTER, 0.86 * LINE, **look))
