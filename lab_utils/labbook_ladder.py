"""Runs of one experiment on many ensembles, on one page: every step of a ladder of fixes at a glance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from lab_utils.labbook import ARRIVED, HEAP, TEXT_NOTE, TIME_PER_TOKEN
from lab_utils.labbook_compare import by_ensemble, without_ensemble
from lab_utils.labbook_entries import MEASURED, Experiment, Series
from lab_utils.labbook_text import cut, short_sizes, visible
from lab_utils.plots import MARKERS, format_bytes, growth_figure
from lab_utils.tables import table

HEADERS = ("ensemble", "sizes of the messages", "bytes in all", "largest heap", "ms per token", "text")
MOST_DRAWN = len(MARKERS)
SIZES_WIDTH, SETTING_WIDTH, TEXT_WIDTH = 32, 60, 20  # a line fits into a notebook beside JupyterLab's side bar


@dataclass(frozen=True)
class Rung:
    """One ensemble's run. What a run did not record is None.

    Attributes
    ----------
    sizes : list of int
        Elements of the tensor in each message; of a failed run those that had arrived.
    nbytes : int or None
        Bytes of all messages together.
    heap : int or None
        Largest Python heap of the node, in bytes.
    time_per_token : float or None
        Mean of the gaps between arrivals, in seconds.
    text : str or None
        The streamed text as it was noted, or the failure.
    """

    run: Experiment
    ensemble: str
    sizes: list[int] = field(hash=False)
    nbytes: int | None
    heap: int | None
    time_per_token: float | None
    text: str | None


@dataclass(frozen=True)
class Ladder:
    """Runs that share their configuration but for the ensemble, in the order in which the ensembles were first run."""

    configuration: Mapping[str, object] = field(hash=False)
    rungs: tuple[Rung, ...]

    @property
    def settings(self) -> str:
        """What all runs share, in a line."""
        shared = [f"{name}: {cut(str(value), SETTING_WIDTH)}" for name, value in self.configuration.items()]
        return "; ".join(shared) or "no further settings"

    @property
    def rows(self) -> list[list[object]]:
        """One row for each ensemble, under `HEADERS`; None for what was not recorded."""
        return [_cells(rung) for rung in self.rungs]

    def __str__(self) -> str:
        """Return what the runs share, and a table with one row for each ensemble."""
        return visible(f"{self.settings}\n{table(HEADERS, self.rows)}")

    def figure(self) -> Figure:
        """Draw the growth of all ensembles over each other; of more than six, those that came last.

        Raises
        ------
        ValueError
            A run has sizes beyond any axis.
        """
        return growth_figure({rung.ensemble: rung.sizes for rung in self.rungs[-MOST_DRAWN:]})


def ladders(experiments: Sequence[Experiment]) -> list[Ladder]:
    """Find the runs that differ in their ensemble alone. Of each ensemble the newest run counts.

    Parameters
    ----------
    experiments : sequence of Experiment
        From `lab_utils.labbook.Book.experiments`.

    Returns
    -------
    list of Ladder
        Those of two ensembles or more; the one with most ensembles first, of equal ones the newest.
    """
    found = [runs for runs in by_ensemble(filter(_measured, experiments)) if len(runs) > 1]
    found.sort(key=lambda runs: (len(runs), max(run.id for run in runs)), reverse=True)
    return [Ladder(without_ensemble(runs[0]), tuple(map(_rung, runs))) for runs in found]


def _measured(one: Experiment) -> Series | None:
    """What was measured; of a run that broke off, what had arrived. None where that is nothing."""
    series = one.find(MEASURED) or one.find(ARRIVED)
    return series if series and series.points else None


def _rung(one: Experiment) -> Rung:
    measured, heap = _measured(one), one.find(HEAP)
    nbytes = [point.nbytes for point in measured.points]
    return Rung(
        run=one,
        ensemble=str(one.configuration["ensemble"]),
        sizes=measured.sizes,
        nbytes=None if None in nbytes else sum(nbytes),
        heap=max(heap.sizes) if heap and heap.points else None,
        time_per_token=next((number.value for number in one.numbers if number.name == TIME_PER_TOKEN), None),
        text=_text(one),
    )


def _text(one: Experiment) -> str | None:
    if one.failure:
        return f"failed: {one.failure}"
    texts = (note.removeprefix(TEXT_NOTE) for note in one.notes if note.startswith(TEXT_NOTE))
    return next(texts, None)


def _cells(rung: Rung) -> list[object]:
    sizes = " ".join(map(str, rung.sizes))
    sizes = sizes if len(sizes) <= SIZES_WIDTH else short_sizes(rung.sizes)
    milliseconds = None if rung.time_per_token is None else round(1_000 * rung.time_per_token, 2)
    heap = None if rung.heap is None else format_bytes(rung.heap)
    text = None if rung.text is None else cut(rung.text, TEXT_WIDTH)
    return [rung.ensemble, sizes, rung.nbytes, heap, milliseconds, text]
