"""Name the node that makes a tensor grow, from the sizes that each node received and sent.

A node is guilty when one of its outputs grows from message to message while none of its inputs does. A node whose
input grows as well only passes on what it gets. Sizes come from a trace (`lab_utils.trace`) or a log
(`lab_utils.watch`); nothing here knows a model or a tensor by name.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby, pairwise
from typing import Literal, TypeVar

from lab_utils import arguments
from lab_utils.growth import fit

Kind = Literal["exponential", "linear", "history", "none"]

FEWEST_MESSAGES = 4
FEWEST_WITHOUT_VALUES = 6
"""Four sizes in a row follow a law by chance now and then, so a law alone needs six. Values that come again do not."""

SHOWN_SIZES, SHOWN_LINES = 10, 4
Row = TypeVar("Row", bound=Mapping)

RANK = {"exponential": 2, "linear": 1, "history": 0}
INTEGERS = ("INT16", "INT32", "INT64", "UINT16", "UINT32", "UINT64")
VALUE = "as value"
MAY_BE_MEANT = "this may be meant: all text so far, positions and masks grow so too; ask what the consumer expects"


@dataclass(frozen=True)
class Track:
    """The sizes of one tensor at one side of one node, message by message.

    Attributes
    ----------
    request : str
        The client's request it belongs to; empty for a track that has one message for each request.
    node : str
        Name of the model.
    side : {"input", "output"}
        Where at the node. What a node gets back from models that it calls itself counts as its input.
    tensor : str
        The model's own name for it.
    sizes : tuple of int
        Elements in message 1, 2, 3, …, or bytes where an element can have any length.
    holds_previous : tuple of bool
        Item i tells whether message i + 2 holds the whole message i + 1 and more than one repeated value. Empty where
        the values are unknown.
    unit : str
        Of the sizes: "elements", "bytes", or "as value" where they are the value of a single number, such as a limit
        that the client set: it can explain growth as well.
    """

    request: str
    node: str
    side: Literal["input", "output"]
    tensor: str
    sizes: tuple[int, ...]
    holds_previous: tuple[bool, ...] = ()
    unit: str = "elements"

    def __str__(self) -> str:
        shown = " ".join(map(str, self.sizes[:SHOWN_SIZES])) + (" ..." if len(self.sizes) > SHOWN_SIZES else "")
        return f"{self.tensor} {shown} {self.unit}"


@dataclass(frozen=True)
class Growth:
    """How a track grows.

    Attributes
    ----------
    track : Track
    kind : {"exponential", "linear", "history"}
        Its law; "history" where no law is exact, but each message holds the one before it.
    start, stop : int
        The first and the last message that follow the law, counted from 1.
    repeats : bool
        Whether each of these messages is known to hold the whole message before it.
    """

    track: Track
    kind: Kind
    start: int
    stop: int
    repeats: bool

    @property
    def first(self) -> int:
        """The first message that is larger than the one before it: where the size stops being constant."""
        return self.start + 1

    @property
    def messages(self) -> int:
        """How many messages follow the law."""
        return self.stop - self.start + 1


@dataclass(frozen=True)
class Verdict:
    """Which node makes a tensor grow, and what speaks for it.

    Attributes
    ----------
    node, tensor : str or None
        The guilty node and its output; None where nothing grows, or all that grows is explained by an input.
    kind : {"exponential", "linear", "history", "none"}
        Law of the growth.
    first : int or None
        The first message whose size breaks with the messages before it.
    evidence : tuple of str
        Lines for a person.
    others : tuple of str
        Further nodes that are guilty by the same rule.
    request : str
        Label of the client's request that the evidence is from; empty where it is from many.
    """

    node: str | None
    tensor: str | None
    kind: Kind
    first: int | None
    evidence: tuple[str, ...]
    others: tuple[str, ...] = ()
    request: str = ""

    def __str__(self) -> str:
        head = f"verdict: {self.node}, at its output {self.tensor}" if self.node else "verdict: none"
        return "\n".join([head, *(f"  {line}" for line in self.evidence)])


def judge(tracks: Iterable[Track]) -> Verdict:
    """Name the node whose output grows although its inputs do not.

    Growth is an exact linear or exponential law over at least 6 messages in a row, or over at least 4 if each of them
    holds the message before it; or, where no law is exact, at least 4 messages that each hold the one before it.

    Parameters
    ----------
    tracks : iterable of Track
        All tracks of one or more requests, in any order.

    Returns
    -------
    Verdict
        ``node`` is None where there is no such node.
    """
    tracks = arguments.items("tracks", tracks, "a list of Track")
    if strange := [one for one in tracks if not isinstance(one, Track)]:
        raise TypeError(f"tracks holds a {type(strange[0]).__name__}; expected Track, as `trace_tracks.tracks` yields")
    calls = _by_node(tracks)
    guilty, passing = [], []
    for group in calls:
        for growth in _growing(group):
            (passing if _explained(growth, group) else guilty).append((growth, group))
    if not guilty:
        return Verdict(None, None, "none", None, _acquittal(calls, [growth for growth, _ in passing]))
    guilty.sort(key=lambda found: _weight(found[0]), reverse=True)
    worst, group = guilty[0]
    others = dict.fromkeys(growth.track.node for growth, _ in guilty if growth.track.node != worst.track.node)
    evidence = [*_charge(worst, group), *_how_often(worst, calls)]
    evidence += [f"{name} is guilty by the same rule" for name in others]
    evidence += _passed_on([growth for growth, _ in passing], {growth.track.node for growth, _ in guilty})
    track = worst.track
    return Verdict(track.node, track.tensor, worst.kind, worst.first, tuple(evidence), tuple(others), track.request)


def most_alike(rows: Iterable[Row]) -> list[Row]:
    """Of what one node received and sent in each request, the largest group with the same tensors.

    A request that failed has inputs alone. It must not shift the messages that come after it.

    Parameters
    ----------
    rows : iterable of mapping
        One for each request; its keys are the tensors.

    Returns
    -------
    list of mapping
        In the order given; empty if there are none.
    """
    groups: dict[frozenset, list[Row]] = {}
    for row in rows:
        groups.setdefault(frozenset(row), []).append(row)
    return max(groups.values(), key=len, default=[])


def find_growth(track: Track) -> Growth | None:
    """The longest run of messages that grow by a law or hold each other; None where too few do."""
    found = []
    for start, stop in _runs(track.sizes):
        found += [
            _growth(track, kind, start + first, start + last) for kind, first, last in _windows(track, start, stop)
        ]
    enough = [growth for growth in found if growth.messages >= _needed(growth)]
    return max(enough, key=lambda growth: (growth.messages, RANK[growth.kind]), default=None)


def _by_node(tracks: Iterable[Track]) -> list[list[Track]]:
    """The tracks of one node in one request, together; sorted, because a trace has no order among a node's tensors."""
    ordered = sorted(tracks, key=lambda track: (track.request, track.node, track.side, track.tensor))
    return [list(group) for _, group in groupby(ordered, lambda track: (track.request, track.node))]


def _growing(group: Sequence[Track]) -> list[Growth]:
    return [growth for track in group if track.side == "output" and (growth := find_growth(track))]


def _explained(growth: Growth, group: Sequence[Track]) -> bool:
    return any(_explains(track, growth) for track in group if track.side == "input")


def _explains(given: Track, growth: Growth) -> bool:
    """Whether an input grows too: by a law, or message for message together with the output."""
    sizes = given.sizes[growth.start - 1 : growth.stop]
    together = len(sizes) == growth.messages and all(a < b for a, b in pairwise(sizes))
    if given.unit == VALUE:
        return together and _keeps_up(sizes, growth)
    if together:
        linear = len({b - a for a, b in pairwise(sizes)}) == 1
    else:
        own = find_growth(given)
        if not own:
            return False
        linear = own.kind == "linear"
    return not (linear and growth.kind == "exponential")  # what doubles is not explained by what grows by one


def _keeps_up(values: Sequence[int], growth: Growth) -> bool:
    """Whether a value grows about as much as the output: a limit does, a clock or a counter of requests does not."""
    sizes = growth.track.sizes[growth.start - 1 : growth.stop]
    return values[0] > 0 and sizes[-1] * values[0] <= 2 * values[-1] * max(1, sizes[0])


def _runs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """First and last position, from 0, of each run of strictly growing sizes that is long enough."""
    if len(set(sizes)) < FEWEST_MESSAGES:  # most tracks: all of one size
        return []
    edges = [0, *(i for i in range(1, len(sizes)) if sizes[i] <= sizes[i - 1]), len(sizes)]
    return [(first, stop - 1) for first, stop in pairwise(edges) if stop - first >= FEWEST_MESSAGES]


def _windows(track: Track, start: int, stop: int) -> list[tuple[Kind, int, int]]:
    """Inside a run, the longest stretch that each kind of growth explains; positions relative to the run."""
    sizes = track.sizes[start : stop + 1]
    steps = [b - a for a, b in pairwise(sizes)]
    ratios = [Fraction(b, a) if a else None for a, b in pairwise(sizes)]
    held = [known or None for known in track.holds_previous[start:stop]]
    return [
        (kind, *stretch)
        for kind, values in (("exponential", ratios), ("linear", steps), ("history", held))
        if (stretch := _longest_equal(values))
    ]


def _longest_equal(values: Sequence[object]) -> tuple[int, int] | None:
    """First and last message of the longest stretch whose steps are all equal, and none of them None."""
    best, position = None, 0
    for value, group in groupby(values):
        length = len(list(group))
        if value is not None and (best is None or length > best[1] - best[0]):
            best = position, position + length
        position += length
    return best


def _growth(track: Track, kind: Kind, first: int, last: int) -> Growth:
    held = track.holds_previous[first:last]
    return Growth(track, kind, first + 1, last + 1, repeats=len(held) == last - first and all(held))


def _needed(growth: Growth) -> int:
    return FEWEST_MESSAGES if growth.repeats else FEWEST_WITHOUT_VALUES


def _weight(growth: Growth) -> tuple[bool, bool, int, int]:
    # What doubles comes first even where its messages were too large to compare their values.
    return growth.kind == "exponential", growth.repeats, RANK[growth.kind], growth.messages


def _charge(growth: Growth, group: Sequence[Track]) -> list[str]:
    track = growth.track
    where = f"request {track.request}" if track.request else "one message for each request"
    lines = [f"{track.node} sends {track} ({where})", _law(growth)]
    if growth.repeats:
        lines.append("each of these messages holds the whole message before it")
    inputs = [given for given in group if given.side == "input"]
    how = "do not explain that" if any(map(find_growth, inputs)) else "do not grow"
    seen = f"its inputs {how}: {_some([str(given) for given in inputs])}"
    lines.append(seen if inputs else "its inputs were not seen")
    if growth.kind != "exponential":
        lines.append(MAY_BE_MEANT)
    return lines


def _law(growth: Growth) -> str:
    sizes = growth.track.sizes[growth.start - 1 : growth.stop]
    span = f"it stops being constant at message {growth.first}"
    if growth.kind == "history":
        return f"{span}, and grows up to message {growth.stop}"
    count = "" if growth.start == 1 else f", n counted from message {growth.start}"
    return f"{span}; {str(fit(sizes)).replace('dims(n)', 'size(n)')}{count}"


def _how_often(growth: Growth, calls: Sequence[Sequence[Track]]) -> list[str]:
    """In how many requests the same output grows: a fault that shows only sometimes is worth a line."""
    track = growth.track
    same = [one for group in calls for one in group if _place(one) == _place(track) and len(one.sizes) > 1]
    if not track.request or len(same) < 2:
        return []
    growing = sum(find_growth(one) is not None for one in same)
    return [f"it grows in {growing} of the {len(same)} requests with more than one message"]


def _place(track: Track) -> tuple[str, str, str, bool]:
    return track.node, track.side, track.tensor, bool(track.request)


def _passed_on(passing: Sequence[Growth], guilty: set[str]) -> list[str]:
    outputs: dict[str, set[str]] = {}
    for growth in passing:
        outputs.setdefault(growth.track.node, set()).add(growth.track.tensor)
    return [
        f"{node} passes on what it gets, which grows too: {', '.join(sorted(tensors))}"
        for node, tensors in list(outputs.items())[:SHOWN_LINES]
        if node not in guilty
    ]


def _acquittal(calls: Sequence[Sequence[Track]], passing: Sequence[Growth]) -> tuple[str, ...]:
    outputs = [track for group in calls for track in group if track.side == "output" and len(track.sizes) > 1]
    if not outputs:
        return ("no output with more than one message was seen, so nothing can be said about growth",)
    if passing:
        return (
            "every output that grows has an input that grows too: look at who sends that",
            *_passed_on(passing, set()),
        )
    lines = [f"no output grows by a law; {len(outputs)} with more than one message looked at"]
    given = [track for group in calls for track in group if track.side == "input" and track.request]
    sent = dict.fromkeys(f"{track.node} {track}" for track in given if find_growth(track))
    lines += [
        f"grows at an input, and no output explains it; look at who calls: {one}" for one in list(sent)[:SHOWN_LINES]
    ]
    varying = dict.fromkeys(f"{track.node} {track}" for track in outputs if track.request and len(set(track.sizes)) > 1)
    lines += [f"not constant, but no growth: {line}" for line in list(varying)[:SHOWN_LINES]]
    return tuple(lines)


def _some(texts: Sequence[str]) -> str:
    left = len(texts) - SHOWN_LINES
    return "; ".join(texts[:SHOWN_LINES]) + (f"; and {left} more" if left > 0 else "")
