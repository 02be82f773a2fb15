"""Draw an ensemble as a graph of contracts: its steps, and every tensor that travels between them.

Every node has a row and a column of its own, so the nodes go down a staircase from left to right. That leaves two free
corners: an arrow to the next node turns above the stairs, one that skips nodes runs below them, and every label stands
beside its arrow, at full size however many nodes there are. Lengths are inches, y counts downwards.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from itertools import accumulate

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
PAD = 0.1  # between a label and what stands beside it
GAP = 0.06  # between a label and what is above or below it
PORT = 0.14  # between two arrows at one side of a box
CORNER = 0.2  # from the corner of a box to its first arrow below or above
MIDDLE = 0.18  # from the top of a box to its first arrow left or right; half the height of most boxes
DROP = 0.26  # from a box to the next, at least
STRETCH = 1.8  # of a step to the right, at most


@dataclass(frozen=True)
class _Arrow:
    """The tensors of one label, from a row to a later row."""

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
    """One node."""

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
    """Draw the edges of an ensemble: one box a step, one arrow for the tensors that go from one step to another.

    The client is drawn twice: first as the sender of the inputs, last as the receiver of the outputs. Each tensor is
    labelled with name, dtype and dims, such as ``TOKEN_IDS INT32 [-1]``, or ``[-1] -> [1]`` where producer and
    consumer declare different dims. Every -1 is marked. Dashed arrows carry their tensors once per response.

    Parameters
    ----------
    edges : sequence of Edge
        As `lab_utils.contract.read_edges` returns them.
    title : str, optional
        Text above the figure; long ones are wrapped.

    Returns
    -------
    Figure
        One axes in inches, y downwards; 11 inches wide, less for a few nodes.

    Raises
    ------
    ValueError
        If there is no edge, or the edges form a cycle.
    """
    edges = list(dict.fromkeys(edges))
    nodes = _ordered(edges)
    arrows = _routed(_grouped(edges, nodes))
    header = textwrap.wrap(title, 70)
    boxes = _boxes(nodes, arrows, MARGIN + 0.3 * len(header) + 0.4)
    ...
