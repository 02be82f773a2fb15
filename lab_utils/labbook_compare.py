"""Two experiments of the lab book side by side: before against after."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest

from matplotlib.figure import Figure

from lab_utils.labbook_entries import MEASURED, Experiment, Point, Series
from lab_utils.labbook_text import cut
from lab_utils.plots import growth_figure
from lab_utils.tables import table

HEADERS = ("iteration", "before", "after", "bytes before", "bytes after", "seconds before", "seconds after")
WIDTH = 60  # of a setting in the summary


@dataclass(frozen=True)
class Row:
    """One iteration of both; None where one of them had ended."""

    iteration: int
    before: Point | None
    after: Point | None

    @property
    def same(self) -> bool:
        """Whether both had the same dims."""
        return bool(self.before and self.after) and self.before.dims == self.after.dims


@dataclass(frozen=True)
class Comparison:
    """Two experiments, iteration by iteration.

    Attributes
    ----------
    label : str
        The series that is compared.
    changed : dict
        What the configurations do not share: name to values before and after, None for a missing one.
    rows : tuple of Row
        One for each iteration of the longer one.
    """

    before: Experiment
    after: Experiment
    label: str
    changed: dict[str, tuple[object, object]] = field(hash=False)
    rows: tuple[Row, ...]

    @property
    def same(self) -> bool:
        """Whether both had the same dims in every iteration."""
        return all(row.same for row in self.rows)

    @property
    def sizes(self) -> tuple[list[int], list[int]]:
        """The sizes of both, before and after."""
        before = [row.before.size for row in self.rows if row.before]
        return before, [row.after.size for row in self.rows if row.after]

    @property
    def summary(self) -> str:
        """What was changed, and what came of it, in a sentence."""
        settings = [
            f"{name}: {cut(str(old), WIDTH)} -> {cut(str(new), WIDTH)}" for name, (old, new) in self.changed.items()
        ]
        return f"{'; '.join(settings) or 'nothing was changed'}. {self._result()}"

    def __str__(self) -> str:
        """Return the comparison as a table."""
        return table(HEADERS, [_cells(row) for row in self.rows])

    def figure(self) -> Figure:
        """Draw both growths in one figure.

        Raises
        ------
        ValueError
            One of them measured nothing.
        """
        names = [f"before (#{self.before.id})", f"after (#{self.after.id})"]
        return growth_figure(dict(zip(names, self.sizes, strict=True)))

    def _result(self) -> str:
        if not self.rows:
            return "Nothing was measured"
        if self.same:
            return f"The same dims in all {len(self.rows)} iterations"
        row = next(row for row in self.rows if not row.same)
        texts = [str(list(point.dims)) if point else "nothing" for point in (row.before, row.after)]
        return f"They part at iteration {row.iteration}: {texts[0]} before, {texts[1]} after"


def compare_runs(before: Experiment, after: Experiment, label: str = "") -> Comparison:
    """Put two experiments side by side; see `lab_utils.labbook.Book.compare`."""
    label = label or _common_label(before, after)
    points = zip_longest(_series(before, label).points, _series(after, label).points)
    rows = tuple(Row(n, first, second) for n, (first, second) in enumerate(points, 1))
    return Comparison(before, after, label, _changed(before, after), rows)


def before_after(experiments: Sequence[Experiment]) -> list[Comparison]:
    """Compare the runs that differ in their ensemble alone: the same prompt before a change and after it.

    Of each ensemble the newest run counts. Ensembles follow each other as they were first run.

    Parameters
    ----------
    experiments : sequence of Experiment
        From `lab_utils.labbook.Book.experiments`.
    """
    measured = [one for one in experiments if (series := one.find(MEASURED)) and series.points]
    return [compare_runs(*pair, MEASURED) for runs in by_ensemble(measured) for pair in pairwise(runs)]


def by_ensemble(experiments: Iterable[Experiment]) -> list[list[Experiment]]:
    """Put together what differs in its ensemble alone; of each ensemble the newest run.

    Groups, and the ensembles in them, follow each other as they were first run. Runs without an ensemble are left out.
    """
    groups: dict[str, dict[str, Experiment]] = {}
    for one in experiments:
        if "ensemble" in one.configuration:
            shared = repr(sorted(without_ensemble(one).items()))
            groups.setdefault(shared, {})[str(one.configuration["ensemble"])] = one
    return [list(group.values()) for group in groups.values()]


def without_ensemble(one: Experiment) -> dict[str, object]:
    """The configuration but for the ensemble."""
    return {name: value for name, value in one.configuration.items() if name != "ensemble"}


def _common_label(before: Experiment, after: Experiment) -> str:
    labels = [one.label for one in before.series if after.find(one.label)]
    if not labels:
        had = [", ".join(one.label for one in run.series) or "none" for run in (before, after)]
        raise ValueError(
            f"experiments {before.id} and {after.id} have no series in common to compare; "
            f"{before.id} has: {had[0]}; {after.id} has: {had[1]}"
        )
    return MEASURED if MEASURED in labels else labels[0]


def _series(run: Experiment, label: str) -> Series:
    found = run.find(label)
    if found is None:
        labels = ", ".join(one.label for one in run.series) or "none"
        raise ValueError(f"experiment {run.id} has no series {label!r}; it has: {labels}")
    return found


def _changed(before: Experiment, after: Experiment) -> dict[str, tuple[object, object]]:
    first, second = before.configuration, after.configuration
    names = [*first, *(name for name in second if name not in first)]
    pairs = {name: (first.get(name), second.get(name)) for name in names}
    return {name: (old, new) for name, (old, new) in pairs.items() if old != new}


def _cells(row: Row) -> list[object]:
    sides = [side or Point(row.iteration, ()) for side in (row.before, row.after)]
    dims = [str(list(side.dims)) if there else None for side, there in zip(sides, (row.before, row.after), strict=True)]
    seconds = [None if side.seconds is None else f"{side.seconds:.4f}" for side in sides]
    return [row.iteration, *dims, *(side.nbytes for side in sides), *seconds]
