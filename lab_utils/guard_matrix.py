"""Which guard catches which fault, at which message: every fault of `inference_mutant`, run on the live server.

No cell is written down by hand. Each fault runs five times: in the producing node alone, which tells what it sends, and
in three ensembles, one of them twice, which tells what each guard makes of it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from tritonclient.utils import np_to_triton_dtype

from lab_utils.alarm import AlarmState
from lab_utils.attribution import Message
from lab_utils.client import FAILURES, StreamError, StreamResult, infer, iter_outputs, stream
from lab_utils.field_report import REPORTED_PROMPT
from lab_utils.labbook import experiment
from lab_utils.model_files import load_model_file
from lab_utils.plots import NotebookFigure
from lab_utils.server import TritonServer
from lab_utils.tables import table
from lab_utils.verdict import Track, judge

PRODUCER = "inference_mutant"
OPEN, STRICT, GUARDED = ENSEMBLES = ("ensemble_mutant", "ensemble_mutant_strict", "ensemble_mutant_guarded")
HEALTHY = "none"
LESSON = "06 contract and assertions"

GUARDS = {
    "edge": "Triton, at a consumer whose config has the dims [1]",
    "producer": "the assertion in the node that sends",
    "consumer": "the assertion in the node that receives",
    "client": "index and end mark, checked by the client when the stream has ended",
    "alarm": "the dims grow by half or more, three times in a row",
    "verdict": "the sizes follow a law, judged when the stream has ended",
    "known answer": "the ids of a healthy run of the same prompt",
}
"""What each guard looks at, in the order of the matrix."""

SHAPE_REFUSED = re.compile(r"unexpected shape .* Expected \[[-\d,]*\], got \[([\d,]*)\]")
DTYPE_REFUSED = re.compile(r"data-type is '(\w+)', but model")
MESSAGE_REFUSED = re.compile(r"the next one does not \((\w+)\)")
NO_END_MARK = re.compile(r"none has the end mark \((\w+)\)")


@dataclass(frozen=True)
class Catch:
    """Where a guard finds a fault: the number of the message, from 1, and the rule that this message breaks.

    Where an end mark is missing, it is the message that should have had it.
    """

    message: int
    rule: str

    def __str__(self) -> str:
        return f"{self.message} {self.rule}"


@dataclass(frozen=True)
class Row:
    """One fault, and what each guard makes of it.

    Attributes
    ----------
    fault : str
        Value of the request parameter "mutation".
    caught : mapping of str to Catch or None
        One for each key of `GUARDS`; None where the guard says nothing.
    unguarded : str
        The error that ends the stream where there is no guard at all; empty where it ends as if all were well.
    """

    fault: str
    caught: Mapping[str, Catch | None]
    unguarded: str

    @property
    def guards(self) -> tuple[str, ...]:
        """The guards that catch it."""
        return tuple(guard for guard, catch in self.caught.items() if catch)


@dataclass(frozen=True)
class _Outcome:
    """How a stream went: what arrived, and the error that ended it, if one did."""

    result: StreamResult
    error: str = ""


def faults() -> dict[str, str]:
    """The faults that `inference_mutant` can make: name, and what it does in one line."""
    module = load_model_file("inference_mutant", "mutations")
    return {name: fault.__doc__.strip() for name, fault in {**module.BUFFER, **module.MESSAGES}.items()}


def guard_matrix(
    server: TritonServer, names: Iterable[str] = (), prompt: str = REPORTED_PROMPT, max_tokens: int = 8
) -> tuple[Row, ...]:
    """Run faults on a server, past every guard.

    Where Triton refuses a message, the request stays in flight until the server is stopped, and that takes longer.

    Parameters
    ----------
    server : TritonServer
        It serves `ENSEMBLES`.
    names : iterable of str
        The faults; by default "none", which no guard may report, and then all `faults`.
    prompt : str
        The text to continue.
    max_tokens : int
        Most tokens to generate.

    Returns
    -------
    tuple of Row
        One for each name.
    """
    known = _run(server, OPEN, prompt, max_tokens, mutation=HEALTHY)
    if known.error:
        raise StreamError(f"the healthy run failed, so there is no known answer: {known.error}")
    names = tuple(names) or (HEALTHY, *faults())
    return tuple(_row(server, name, known.result.ids, (prompt, max_tokens)) for name in names)


def outcome(server: TritonServer, title: str, ensemble: str, **options: object) -> list[int] | str:
    """Stream the reported prompt, record it in the lab book, and return how it went.

    Parameters
    ----------
    server : TritonServer
    title : str
        Of the experiment in the lab book.
    ensemble : str
        The ensemble.
    **options
        As for `lab_utils.client.stream`.

    Returns
    -------
    list of int or str
        The length of each message, or the words of the error if one ended the stream.
    """
    request = {"ensemble": ensemble, "prompt": REPORTED_PROMPT, "max_tokens": 8, **options}
    try:
        with experiment(LESSON, title, server=server, **request) as entry:
            result = stream(server, **request)
            entry.series("measured", result)
    except StreamError as error:
        return str(error).partition(": ")[2].strip()
    return result.lengths


def sent_alone(
    server: TritonServer, fault: str, prompt: str = REPORTED_PROMPT, max_tokens: int = 8
) -> list[np.ndarray]:
    """TOKEN_IDS of each message, from the producing node alone: nothing stands behind it that could refuse one."""
    text = np.array([prompt.encode("utf-8")], dtype=np.object_)
    prompt_ids = infer(server, "preprocess", {"PROMPT": text})["PROMPT_IDS"]
    inputs = {"PROMPT_IDS": prompt_ids, "MAX_TOKENS": np.array([max_tokens], dtype=np.int32)}
    responses = iter_outputs(server, PRODUCER, inputs, parameters={"mutation": fault})
    return [response["TOKEN_IDS"] for response in responses]


def refused_at(error: str, sent: Sequence[np.ndarray]) -> Catch | None:
    """The message that Triton itself refused, found by what its error names.

    How many responses a client had by then says nothing: the error overtakes them. But messages are checked in the
    order in which they were sent, so the one refused is the first with the dims, or the dtype, of the error.

    Parameters
    ----------
    error : str
        Text of the error; empty where there was none.
    sent : sequence of numpy.ndarray
        What the producer sends, message by message.
    """
    if refused := SHAPE_REFUSED.search(error):
        dims = tuple(map(int, refused[1].split(",")))
        found = (Catch(n, "dims" if array.ndim == 1 else "rank") for n, array in _counted(sent) if array.shape == dims)
        return next(found, None)
    if refused := DTYPE_REFUSED.search(error):
        found = (Catch(n, "dtype") for n, array in _counted(sent) if np_to_triton_dtype(array.dtype) == refused[1])
        return next(found, None)
    return None


def client_check(result: StreamResult) -> Catch | None:
    """What a client can check when its stream has ended: index 1, 2, 3, …, and one end mark, on the last message."""
    ended = False
    for number, seen in _counted(result.observations):
        if seen.index != number:
            return Catch(number, "index")
        if ended:
            return Catch(number, "end")
        ended = seen.end
    return None if ended else Catch(len(result.observations), "end")


def alarm_on(dims: Iterable[tuple[int, ...]]) -> Catch | None:
    """The message at which the alarm of `lab_utils.alarm` fires, with its default rules."""
    state = AlarmState()
    for number, shape in _counted(dims):
        message = Message(0.0, "", PRODUCER, 1, "output", "TOKEN_IDS", "INT32", shape, None, number)
        if state.message(message):
            return Catch(number, "dims")
    return None


def verdict_on(sizes: Sequence[int]) -> Catch | None:
    """The first message that the verdict of `lab_utils.verdict` objects to, and the law it names."""
    verdict = judge([Track("", PRODUCER, "output", "TOKEN_IDS", tuple(sizes))])
    return Catch(verdict.first, verdict.kind) if verdict.node else None


def compare(ids: Sequence[Sequence[int]], known: Sequence[Sequence[int]]) -> Catch | None:
    """The first message whose ids are not those of a known answer."""
    return next((Catch(number, "ids") for number, (a, b) in _counted(zip_longest(ids, known)) if a != b), None)


def matrix_table(rows: Sequence[Row]) -> str:
    """One line for each fault: the message and the rule for each guard, "-" where it says nothing."""
    cells = [(row.fault, *(row.caught[guard] or "-" for guard in GUARDS)) for row in rows]
    return table(["fault", *GUARDS], cells)


def matrix_figure(rows: Sequence[Row]) -> Figure:
    """Draw the matrix: a cell holds the message at which the guard catches the fault, darker where it is earlier.

    Parameters
    ----------
    rows : sequence of Row
        At least one.

    Returns
    -------
    Figure
        One axes.

    Raises
    ------
    ValueError
        There is no row.
    """
    if not rows:
        raise ValueError("rows is empty; expected those of guard_matrix")
    figure = NotebookFigure(figsize=(10, 1.2 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    messages = [[getattr(row.caught[guard], "message", np.nan) for guard in GUARDS] for row in rows]
    last = int(np.nanmax([1, *np.ravel(messages)]))
    axes.pcolormesh(messages, cmap=_blues(last), vmin=0.5, vmax=last + 0.5, edgecolors="white", linewidth=2)
    for down, row in enumerate(rows):
        for right, guard in enumerate(GUARDS):
            axes.text(right + 0.5, down + 0.5, str(row.caught[guard] or "-"), ha="center", va="center")
    _label(axes, rows)
    return figure


def _row(server: TritonServer, fault: str, known: Sequence[Sequence[int]], request: tuple[str, int]) -> Row:
    """Run one fault past every guard."""
    sent = sent_alone(server, fault, *request)
    seen = _run(server, OPEN, *request, mutation=fault)
    strict = _run(server, STRICT, *request, mutation=fault)
    within = _run(server, OPEN, *request, mutation=fault, guard=True)
    guarded = _run(server, GUARDED, *request, mutation=fault)
    catches = (
        refused_at(strict.error, sent),
        _said(within, FAILURES["ERROR"]),
        _said(guarded, FAILURES["STATUS"]),
        None if seen.error else client_check(seen.result),
        alarm_on([array.shape for array in sent]),
        verdict_on([array.size for array in sent]),
        None if seen.error else compare(seen.result.ids, known),
    )
    return Row(fault, dict(zip(GUARDS, catches, strict=True)), seen.error)


def _run(server: TritonServer, ensemble: str, prompt: str, max_tokens: int, **options: object) -> _Outcome:
    try:
        return _Outcome(stream(server, ensemble, prompt, max_tokens, **options))
    except StreamError as error:
        return _Outcome(error.result, str(error))


def _said(outcome: _Outcome, node: str) -> Catch | None:
    """What an assertion in a node said in-band: it comes in the order of the messages, so those before it count."""
    arrived = len(outcome.result.observations)
    if not outcome.error.startswith(node):
        return None
    if broken := MESSAGE_REFUSED.search(outcome.error):
        return Catch(arrived + 1, broken[1])
    unmarked = NO_END_MARK.search(outcome.error)
    return Catch(arrived, unmarked[1]) if unmarked else None


def _counted(items: Iterable) -> Iterable[tuple[int, object]]:
    return enumerate(items, start=1)


def _blues(steps: int) -> ListedColormap:
    """Darker to lighter, one colour for each message; black can be read on all of them."""
    dark, light = np.array([0.34, 0.71, 0.91]), np.array([0.86, 0.93, 0.98])
    return ListedColormap([dark + (light - dark) * share for share in np.linspace(0, 1, steps)])


def _label(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_xticks(np.arange(len(GUARDS)) + 0.5, list(GUARDS))
    axes.set_yticks(np.arange(len(rows)) + 0.5, [row.fault for row in rows])
    axes.xaxis.tick_top()
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    title = "what each guard (column) makes of each fault (row): first failing message, and the rule it breaks"
    axes.set_title(title, loc="left", pad=12)
