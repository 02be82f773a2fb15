"""When to raise an alarm: a dimension that grows, a backlog that rises, memory that rises.

Every rule counts steps in a row and fires with the first message or sample that completes them; it can fire again for
the same tensor or node only after the row was broken.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

from lab_utils import arguments
from lab_utils.attribution import Message

MEBIBYTE = 1 << 20
MACHINE = "(machine)"
MOST_TRACKED = 20_000  # of tensors of single requests: a watch may last for weeks

Rule = Literal["dims", "backlog", "memory"]


@dataclass(frozen=True)
class Rules:
    """The limits.

    Parameters
    ----------
    factor : float, 1 or more
        A dimension has to grow by at least this factor from one message to the next. With 1 any growth counts.
    times : int, 1 or more
        Steps in a row, for each rule.
    memory_bytes : float
        Memory has to rise by at least this much over the whole row.

    Raises
    ------
    ValueError
        A limit is out of its range.
    """

    factor: float = 1.5
    times: int = 3
    memory_bytes: float = 64 * MEBIBYTE

    def __post_init__(self) -> None:
        if not arguments.number("factor", self.factor) >= 1:  # NaN ends here too
            raise ValueError(f"factor is {self.factor!r}; expected 1 or more, such as 1.5: growth of a half")
        if isinstance(self.times, bool) or not isinstance(self.times, int) or self.times < 1:
            raise ValueError(f"times is {self.times!r}; expected a whole number from 1 up: steps in a row")
        if not arguments.number("memory_bytes", self.memory_bytes) >= 0:
            raise ValueError(f"memory_bytes is {self.memory_bytes!r}; expected 0 or more")


@dataclass(frozen=True)
class Sample:
    """One value of one quantity of one node, as it was polled.

    Attributes
    ----------
    seconds : float
        When: since 1970, UTC, by this machine's clock.
    quantity : {"backlog", "executions", "memory"}
        Requests that wait; calls so far; bytes.
    node : str
        A model, or a name in brackets for what belongs to no model: "(server)", "(machine)", "(GPU …)", "(pinned)".
    value : float
    """

    seconds: float
    quantity: str
    node: str
    value: float


@dataclass(frozen=True)
class Alarm:
    """A rule that fired.

    Attributes
    ----------
    seconds : float
        When the message or sample was there: since 1970, UTC.
    rule : {"dims", "backlog", "memory"}
    node : str
    sizes : tuple of float
        The values of the row: the one before it and one for each step.
    tensor, side, request : str
        Of the message; empty for a sample.
    axis : int or None
        Which dimension, from 0.
    number : int or None
        Of the message that completed the row.
    """

    seconds: float
    rule: Rule
    node: str
    sizes: tuple[float, ...]
    tensor: str = ""
    side: str = ""
    request: str = ""
    axis: int | None = None
    number: int | None = None

    def __str__(self) -> str:
        shown = " ".join(f"{size:,.0f}" for size in self.sizes)
        if self.rule == "dims":
            place = f"{self.side} {self.tensor}, dimension {self.axis}, message {self.number} of request {self.request}"
            return f"ALARM dims: {self.node}, {place}: {shown}"
        unit = "requests wait" if self.rule == "backlog" else "bytes"
        return f"ALARM {self.rule}: {self.node}: {shown} {unit}"


class AlarmState:
    """What the rules remember from one message or sample to the next."""

    def __init__(self, rules: Rules | None = None):
        self.rules = rules or Rules()
        self._rows: OrderedDict[Hashable, tuple[int, tuple[float, ...]]] = OrderedDict()

    def message(self, message: Message) -> list[Alarm]:
        """The alarms that this message completes: one for each dimension. Messages of nobody known are passed over."""
        if message.number is None:
            return []
        found = []
        for axis, size in enumerate(message.dims):
            key = (message.request, message.node, message.side, message.tensor, axis, len(message.dims))
            steps, row = self._extended(key, size, self.rules.factor)
            if steps == self.rules.times:
                place = (message.tensor, message.side, message.request, axis, message.number)
                found.append(Alarm(message.seconds, "dims", message.node, row, *place))
        return found

    def sample(self, sample: Sample) -> list[Alarm]:
        """The alarm that this sample completes, if it does. The machine's own memory belongs to everybody: no rule."""
        if sample.quantity not in ("backlog", "memory") or sample.node == MACHINE:
            return []
        steps, row = self._extended((sample.quantity, sample.node), sample.value, 1)
        needed = self.rules.memory_bytes if sample.quantity == "memory" else 0
        # Memory may be late: the steps were there before the bytes. It fires once, when both are.
        before = steps > self.rules.times and row[-2] - row[0] >= needed
        if steps < self.rules.times or row[-1] - row[0] < needed or before:
            return []
        return [Alarm(sample.seconds, sample.quantity, sample.node, row)]

    def _extended(self, key: Hashable, value: float, factor: float) -> tuple[int, tuple[float, ...]]:
        """How many steps in a row this value completes, and the row: its first value and the last ones."""
        steps, row = self._rows.pop(key, (0, ()))
        grew = bool(row) and value > row[-1] and value >= factor * row[-1]
        if grew:
            kept = max(self.rules.times, 2) - 1  # beside the first value and this one
            steps, row = steps + 1, (row[0], *row[max(1, len(row) - kept) :], value)
        else:
            steps, row = 0, (value,)
        self._rows[key] = steps, row
        if len(self._rows) > MOST_TRACKED:
            self._rows.popitem(last=False)
        return steps, row
