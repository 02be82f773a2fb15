"""Draw an ensemble as a graph of contracts: its steps, and every tensor that travels between them.

Each node has a row and a column of its own, so the nodes go down a staircase from left to right. That leaves two free
corners: an arrow to the next node turns the corner above the stairs, one that skips nodes runs below them. Labels stand
beside their arrows there, at full size however many nodes there are. All lengths are inches.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from lab_utils.contract import CLIENT, Edge
from lab_utils.plots import OKABE_ITO, NotebookFigure

SENDER, RECEIVER = f"{CLIENT} sends", f"{CLIENT} receives"
STYLES = {
    False: {"color": OKABE_ITO["black"], "linestyle": "-", "linewidth": 1.4},
    True: {"color": OKABE_ITO["blue"], "linestyle": (0, (4, 2)), "linewidth": 1.8},
}
KEY = {False: "once per request", True: "once per response"}

WIDTH = 11.0  # of a notebook's output
MARGIN = 0.2
FONT = {"family": "DejaVu Sans Mono", "fontsize": 9.5}
CHARACTER = 0.602 * FONT["fontsize"] / 72  # every character of a monospaced font is as wide as any other
LINE = 0.185
PAD = 0.1  # between a label and what stands next to it
PORT = 0.14  # between two arrows on one side of a box
CORNER = 0.2  # from the end of a box to its first arrow
MIDDLE = 0.18  # from the top of a box to its first arrow, and to the middle of one line
LONGEST_STEP = 2.2


@dataclass(frozen=True)
class _Arrow:
    """The tensors of one label: from row to row, above the stairs or below them."""

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


@dataclass
class _Layout:
    """Where everything is: boxes by row, y counted downwards from the top."""

    nodes: list[str]
    arrows: list[_Arrow]
    top: float
    lefts: list[float] = field(default_factory=list)
    tops: list[float] = field(default_factory=list)

    @property
    def box(self) -> float:
        """Width of every box."""
        return max(len(_name(node)) for node in self.nodes) * CHARACTER + 0.4
