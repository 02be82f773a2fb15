"""What is handed to the lab book, checked and brought into the form of its rows."""

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Integral, Real
from pathlib import Path

import numpy as np

FIGURE_DPI = 144
PNG = b"\x89PNG\r\n\x1a\n"


def clean(text: object) -> str:
    """Text as UTF-8 can hold it: file names may carry bytes that are none."""
    return str(text).encode("utf-8", "replace").decode("utf-8")


def free_label(label: str, taken: Set[str]) -> str:
    """The label, or the next of "label (2)", "label (3)", … that is free."""
    names = [label, *(f"{label} ({count})" for count in range(2, len(taken) + 2))]
    return next(name for name in names if name not in taken)


def is_unanswered(predicted: object) -> bool:
    """Whether nothing was predicted: None, or an exercise with ``...`` left in its answer."""
    parts = predicted if isinstance(predicted, list | tuple) else [predicted]
    return predicted is None or any(part is ... for part in parts)


def as_json(value: object) -> str:
    """Any value as JSON: arrays as lists, and what JSON does not know as text."""
    return json.dumps(_plain(value), ensure_ascii=False)


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping):
        return {clean(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [_plain(each) for each in value]
    return clean(value)


def listed(observations: object) -> list[object]:
    """The iterations of a series, from a StreamResult or anything else that can be iterated in order."""
    observations = getattr(observations, "observations", observations)
    if isinstance(observations, np.ndarray):  # of sizes, or with dims in each row
        observations = observations.tolist()
    if isinstance(observations, str | bytes | bytearray | Mapping | Set) or not isinstance(observations, Iterable):
        raise ValueError(
            f"the series is a {type(observations).__name__}; expected a StreamResult or a list with one size, "
            "shape or observation for each iteration"
        )
    return list(observations)


def as_row(iteration: int, one: object) -> dict[str, object]:
    """One iteration as a row: a size, a list of dims, or an object with `dims` (or `shape`), `nbytes` and `seconds`."""
    if isinstance(one, Real | np.generic):  # a NumPy number has a shape too, ()
        one = [one]
    dims = getattr(one, "dims", getattr(one, "shape", one))
    dims = dims.tolist() if isinstance(dims, np.ndarray) else dims
    nbytes, seconds = getattr(one, "nbytes", None), getattr(one, "seconds", None)
    whole = isinstance(dims, list | tuple) and all(isinstance(d, Integral) and not isinstance(d, bool) for d in dims)
    if not whole or min(dims, default=0) < 0:
        raise ValueError(f"iteration {iteration} is {str(one)[:60]}; expected a size or dims: whole numbers from 0 up")
    return {
        "iteration": iteration,
        "dims": json.dumps([int(dim) for dim in dims]),
        "bytes": None if nbytes is None else int(nbytes),
        "seconds": None if seconds is None else float(seconds),
    }


def finite(name: str, value: object) -> int | float:
    """The number as SQLite can hold it: whole numbers have 64 bits there."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"number {name!r} is {value!r}; expected a finite number")
    return int(value) if isinstance(value, Integral) and abs(value) < 2**63 else float(value)


def png_of(figure: object) -> bytes:
    """Return a figure as PNG.

    Parameters
    ----------
    figure : matplotlib Figure, or bytes or path of a PNG
        The figure.

    Raises
    ------
    ValueError
        It is none of these.
    """
    if isinstance(figure, str | Path):
        figure = Path(figure).read_bytes()
    elif hasattr(figure, "savefig"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=FIGURE_DPI)
        figure = buffer.getvalue()
    if not isinstance(figure, bytes) or not figure.startswith(PNG):
        raise ValueError(
            f"the figure is a {type(figure).__name__}; expected a matplotlib Figure, or a PNG's bytes or path"
        )
    return figure
