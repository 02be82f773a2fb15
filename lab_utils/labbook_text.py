"""Experiments of the lab book as plain text, for a terminal and for notebooks."""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone

from lab_utils.growth import FEWEST_POINTS, fit
from lab_utils.labbook_entries import MEASURED, Experiment, Series
from lab_utils.tables import table

SHOWN_SIZES = 6
LISTED = ("id", "when (UTC)", "lesson", "title", "sizes", "result")
NOTHING = "no experiment is recorded here: run a lesson, or ask for less"
CONTROLS = re.compile(r"[^\t\n -\x7e\xa0-\U0010ffff]")
WIDTHS = {"lesson": 12, "title": 38}  # a line fits into a notebook beside JupyterLab's side bar


def listing(experiments: Iterable[Experiment]) -> str:
    """Return one line for each experiment, in aligned columns; of no experiments, what to do about that.

    Parameters
    ----------
    experiments : iterable of Experiment
        From `lab_utils.labbook.Book.experiments`.
    """
    lines = [_line(one) for one in experiments]
    return table(LISTED, lines) if lines else NOTHING


def details(one: Experiment) -> str:
    """Return all that was recorded of one experiment, but for the pictures themselves."""
    parts = [f"{one.id}. {one.title}\n{one.lesson}; {_times(one)}", _facts(one)]
    parts += [_series(series) for series in one.series]
    parts += [f"{number.name}: {short_number(number.value)} {number.unit}".rstrip() for number in one.numbers]
    parts += [f"verdict: {text}" for text in one.verdicts]
    parts += [f"figure: {figure.name}. {figure.alt}".rstrip() for figure in one.figures]
    parts += [f"note: {text}" for text in one.notes]
    return visible("\n\n".join(filter(None, parts)))


def short_sizes(sizes: Sequence[int]) -> str:
    """Return sizes with thousands separators; of a long list its beginning and its last."""
    if len(sizes) > SHOWN_SIZES:
        return f"{short_sizes(sizes[: SHOWN_SIZES - 2])} … {sizes[-1]:,}"
    return " ".join(f"{size:,}" for size in sizes)


def short_number(value: float) -> str:
    """Return a whole number in full, any other with six digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def law_of(series: Series) -> str:
    """Return the law of a series in a sentence; empty where there are too few iterations, or sizes beyond any law."""
    if len(series.points) < FEWEST_POINTS:
        return ""
    try:
        return str(fit(series.sizes))
    except ValueError:
        return ""


def visible(text: str) -> str:
    """Return text that cannot steer a terminal and that HTML and CSV can hold: control characters become U+FFFD."""
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def cut(text: str, width: int) -> str:
    """Return text of at most so many characters; "…" stands for the rest."""
    return text if len(text) <= width else text[: width - 1] + "…"


def moment(when: datetime) -> str:
    """Return a moment in UTC, such as "2026-11-23 14:30:00 UTC"."""
    return f"{when.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def _line(one: Experiment) -> list[object]:
    number = one.lesson.partition(" ")[0]
    lesson = number if number.isdigit() else one.lesson
    words = {"lesson": lesson, "title": one.title}
    measured = one.find(MEASURED) or (one.series[0] if one.series else None)
    started = f"{one.started.astimezone(timezone.utc):%m-%d %H:%M}"
    short = [cut(" ".join(visible(text).splitlines()), WIDTHS[name]) for name, text in words.items()]
    return [one.id, started, *short, short_sizes(measured.sizes if measured else []) or "-", _result(one)]


def _result(one: Experiment) -> str:
    if one.state != "finished":
        return one.state
    if one.outcome is None:
        return "-"
    return "as predicted" if one.outcome.came_true else "not as predicted"


def _times(one: Experiment) -> str:
    took = "" if one.seconds is None else f", took {one.seconds:.2f} s"
    return f"{moment(one.started)}{took}, {one.state}"


def _facts(one: Experiment) -> str:
    facts = [
        ("predicted", one.predicted),
        ("came true", one.outcome),
        *one.configuration.items(),
        ("server", _server(one)),
        ("device", one.device),
        ("lab commit", one.lab_commit),
        ("failure", one.failure),
    ]
    return "\n".join(f"{name}: {value}" for name, value in facts if value is not None)


def _server(one: Experiment) -> str | None:
    return " ".join(filter(None, [one.server, one.source and f"({one.source})"])) or None


def _series(series: Series) -> str:
    rows = [[point.iteration, str(list(point.dims)), point.nbytes, _seconds(point.seconds)] for point in series.points]
    unit = "dims" if series.unit == "elements" else series.unit
    return f"{series.label}\n{table(['iteration', unit, 'bytes', 'seconds'], rows)}\n{law_of(series)}".rstrip()


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.4f}"
