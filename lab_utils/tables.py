"""Tables as plain text."""

import unicodedata
from collections.abc import Iterable, Sequence
from numbers import Integral, Real

from lab_utils import arguments


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows as plain text in aligned columns, to print under a figure.

    Parameters
    ----------
    headers : sequence of str
        Name of each column, with its unit.
    rows : iterable of sequences
        One value per column. Whole numbers get thousands separators, floats two decimals, None a dash.

    Returns
    -------
    str
        Columns of numbers are aligned right, others left.

    Raises
    ------
    ValueError
        If there are no headers, or a row is not as long as they are.
    """
    headers = [str(header) for header in arguments.items("headers", headers, "the names of the columns")]
    rows = arguments.items("rows", rows, "a list of rows")
    rows = [arguments.items(f"row {place}", row, "a list of values") for place, row in enumerate(rows, 1)]
    for position, row in enumerate(rows, 1):
        if len(row) != len(headers):
            raise ValueError(f"row {position} has {len(row)} values; expected one per header: {len(headers)}")
    if not headers:
        raise ValueError("headers is empty; expected the name of at least one column")
    columns = [_column(header, cells) for header, *cells in zip(headers, *rows, strict=True)]
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _column(header: str, cells: list[object]) -> list[str]:
    texts = [header, *map(_text, cells)]
    width = max(map(_width, texts))
    numeric = bool(cells) and all(cell is None or _is_number(cell) for cell in cells)
    pads = [" " * (width - _width(text)) for text in texts]
    lines = [pad + text if numeric else text + pad for text, pad in zip(texts, pads, strict=True)]
    return [lines[0], "-" * width, *lines[1:]]


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    if _is_number(cell):
        return f"{cell:,}" if isinstance(cell, Integral) else f"{cell:,.2f}"
    return str(cell).replace("\n", "\\n")


def _is_number(cell: object) -> bool:
    return isinstance(cell, Real) and not isinstance(cell, bool)


def _width(text: str) -> int:
    # A Chinese character takes two columns.
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
