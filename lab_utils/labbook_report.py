"""The lab book as files for a colleague: report.html to read, data.csv and data.json to compute with."""

import base64
import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path

import jinja2

from lab_utils.files import write_whole
from lab_utils.labbook import Book
from lab_utils.labbook_compare import Comparison, before_after
from lab_utils.labbook_entries import MEASURED, Experiment, Point, Series
from lab_utils.labbook_ladder import HEADERS, ladders
from lab_utils.labbook_text import law_of, moment, short_number, visible
from lab_utils.labbook_values import png_of

TEMPLATE = "labbook_report.html"
SHOWN_FIRST, SHOWN_LAST = 10, 4  # iterations of a long series; the CSV has all of them
SHOWN_TEXT = 600
COLUMNS = (
    *("experiment", "lesson", "title", "started_utc", "state", "ensemble", "series", "unit"),
    *("iteration", "dims", "size", "bytes", "seconds", "predicted_size"),
)


@dataclass(frozen=True)
class Line:
    """One line of a table: an iteration, with what was predicted for it; or how many were left out."""

    point: Point | None
    predicted: int | None = None
    left_out: int = 0


def export(book: Book, folder: Path, experiments: Sequence[Experiment] | None = None) -> list[Path]:
    """Write report.html, data.csv and data.json into a folder, and return their paths.

    The report needs no network and no other file. Files of an earlier export are replaced, the book never is.

    Parameters
    ----------
    book : Book
        Where the figures are.
    folder : pathlib.Path
        Made if need be.
    experiments : sequence of Experiment, optional
        What to export; by default all.

    Raises
    ------
    BookError, OSError
        The book cannot be read, or the folder not be written.
    """
    chosen = book.experiments() if experiments is None else list(experiments)
    texts = {"report.html": report(book, chosen), "data.csv": table_of(chosen), "data.json": data_of(chosen)}
    folder.mkdir(parents=True, exist_ok=True)
    return [_write(folder / name, text) for name, text in texts.items()]


def report(book: Book, experiments: Sequence[Experiment]) -> str:
    """Return the report as one HTML page, with its figures inside."""
    folder = Path(__file__).parent / "data"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.globals.update(
        moment=moment,
        shown=_shown,
        lines=_lines,
        law=law_of,
        short_number=short_number,
        image=lambda figure: _data_uri(book.png(figure.id)),
    )
    ordered = sorted(experiments, key=lambda one: (one.lesson, one.id))
    return environment.get_template(TEMPLATE).render(
        lessons=[(lesson, list(entries)) for lesson, entries in groupby(ordered, key=lambda one: one.lesson)],
        experiments=ordered,
        changes=[(change, _growth(change)) for change in before_after(experiments)],
        ladders=ladders(experiments),
        ladder_headers=HEADERS,
        outcomes=[one.outcome for one in ordered if one.outcome],
        now=datetime.now(timezone.utc),
    )


def table_of(experiments: Iterable[Experiment]) -> str:
    """Return all iterations of all series as CSV, one in a row, with the names of the columns in the first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in experiments:
        start = [one.id, one.lesson, one.title, one.started.isoformat(), one.state, one.configuration.get("ensemble")]
        for series in one.series:
            writer.writerows(_row(start, series, line) for line in _all_lines(one, series))
    return visible(text.getvalue())


def data_of(experiments: Iterable[Experiment]) -> str:
    """Return all that was recorded as JSON, but for the pictures themselves."""
    entries = [asdict(one) | {"state": one.state, "outcome": _as_dict(one.outcome)} for one in experiments]
    return json.dumps({"experiments": entries}, ensure_ascii=False, indent=1, default=_json_value) + "\n"


def _write(path: Path, text: str) -> Path:
    write_whole(path, text.encode())
    return path


def _row(start: Sequence[object], series: Series, line: Line) -> list[object]:
    point = line.point
    measured = [point.iteration, json.dumps(point.dims), point.size, point.nbytes, point.seconds]
    return [_cell(value) for value in (*start, series.label, series.unit, *measured, line.predicted)]


def _cell(value: object) -> object:
    """A spreadsheet computes a text that begins like a formula; an apostrophe keeps it a text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t")) else value


def _all_lines(one: Experiment, series: Series) -> list[Line]:
    compared = one.outcome is not None and series.label == MEASURED
    predicted = dict(enumerate(one.predicted, 1)) if compared else {}
    return [Line(point, predicted.get(point.iteration)) for point in series.points]


def _lines(one: Experiment, series: Series) -> list[Line]:
    """The table of a series; of a long one its beginning and end."""
    found = _all_lines(one, series)
    left_out = len(found) - SHOWN_FIRST - SHOWN_LAST
    if left_out <= 1:
        return found
    return [*found[:SHOWN_FIRST], Line(None, left_out=left_out), *found[-SHOWN_LAST:]]


def _growth(change: Comparison) -> str:
    """The figure of a comparison; empty where it cannot be drawn."""
    try:
        return _data_uri(png_of(change.figure()))
    except ValueError:  # sizes beyond any axis
        return ""


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _shown(value: object) -> str:
    """A value of any kind as text that is not too long to read."""
    whole = isinstance(value, list) and value and all(isinstance(each, int) for each in value)
    text = ", ".join(f"{each:,}" for each in value) if whole else str(value)
    left_out = len(text) - SHOWN_TEXT
    return text if left_out <= 0 else f"{text[:SHOWN_TEXT]} … and {left_out:,} more characters (see data.json)"


def _printable(value: object) -> object:
    """For each value of the template: text becomes visible, and Markup stays Markup."""
    return type(value)(visible(value)) if isinstance(value, str) else value


def _as_dict(outcome: object) -> dict | None:
    return asdict(outcome) if outcome else None


def _json_value(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"no JSON for {type(value).__name__}")
