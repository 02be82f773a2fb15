"""What a function was given, checked before it is used: an error names the argument, and says what was expected."""

import os
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path

SHOWN = 60  # characters of a value


def text(name: str, value: object, such_as: str = "") -> str:
    """The value, if it is text.

    Raises
    ------
    TypeError
        It is not.
    """
    if not isinstance(value, str):
        raise TypeError(_problem(name, value, "text" + (f", such as {such_as}" if such_as else "")))
    return value


def sendable(name: str, value: object) -> str:
    """The value, if it is text that can be sent as UTF-8.

    Raises
    ------
    TypeError
        It is no text.
    ValueError
        It holds half a character.
    """
    try:
        text(name, value).encode("utf-8")
    except UnicodeEncodeError as error:
        broken = f"{error.object[error.start]!r} at position {error.start}"
        raise ValueError(
            f"{name} has {broken}, half a character (a lone surrogate), which cannot be sent; leave it out"
        ) from None
    return value


def name_of_file(name: str, value: object) -> str:
    """The value, if it is text that can name a file.

    Raises
    ------
    TypeError
        It is no text.
    ValueError
        No file can have this name.
    """
    if "\0" in text(name, value) or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(_problem(name, value, "a name that a file can have"))
    return value


def texts(name: str, value: object) -> list[str]:
    """The items of a list of texts; a single text is a list of one.

    Raises
    ------
    TypeError
        It is none.
    """
    found = [value] if isinstance(value, str) else items(name, value, "a list of texts")
    if not all(isinstance(item, str) for item in found):
        raise TypeError(_problem(name, value, "a list of texts"))
    return found


def path(name: str, value: object) -> Path:
    """The value as a path.

    Raises
    ------
    TypeError
        It is neither text nor a path.
    ValueError
        No file can have this name.
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(_problem(name, value, "a path"))
    if "\0" in str(value) or any("\ud800" <= character <= "\udc7f" for character in str(value)):
        raise ValueError(_problem(name, value, "a path that a file can have"))
    return Path(value)


def paths(name: str, value: object) -> list[Path]:
    """The items of a list of paths; a single path is a list of one.

    Raises
    ------
    TypeError, ValueError
        As for `path`.
    """
    single = isinstance(value, str | os.PathLike)
    return [path(name, item) for item in ([value] if single else items(name, value, "a path or a list of paths"))]


def number(name: str, value: object, expected: str = "a number") -> float:
    """The value, if it is a real number and no truth value.

    Raises
    ------
    TypeError
        It is not.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(_problem(name, value, expected))
    return value


def whole(name: str, value: object, least: int, most: int | None = None) -> int:
    """The value, if it is a whole number from `least` to `most`.

    Raises
    ------
    TypeError
        It is no whole number.
    ValueError
        It is outside of this range.
    """
    expected = f"a whole number from {least} {'up' if most is None else f'to {most}'}"
    if isinstance(value, bool) or not hasattr(value, "__index__") or isinstance(value, type):
        raise TypeError(_problem(name, value, expected))
    if value < least or (most is not None and value > most):
        raise ValueError(_problem(name, value, expected))
    return value


def items(name: str, value: object, expected: str) -> list[object]:
    """The items of a list, or of anything else that has an order.

    Raises
    ------
    TypeError
        It has none.
    """
    if isinstance(value, str | bytes | Mapping | set | frozenset | type) or not isinstance(value, Iterable):
        raise TypeError(_problem(name, value, expected))
    return list(value)


def _problem(name: str, value: object, expected: str) -> str:
    return f"{name} is {_shown(value)}; expected {expected}"


def _shown(value: object) -> str:
    try:
        shown = repr(value)
    except ValueError:  # a whole number too long to print
        shown = f"a {type(value).__name__}"
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"
