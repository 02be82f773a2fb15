"""Name the law that a sequence of message lengths follows, and predict from it.

A law gives the length of the message at iteration n, counted from 1:

===========  ===============================
constant     ``start``
linear       ``start + slope * (n - 1)``
exponential  ``start * factor ** (n - 1)``
none         no prediction
===========  ===============================

An exact law meets every value. It is found with fractions, so no digit is lost at any size.
A law that is not exact is fitted by least squares and named only if every value is within a tolerance of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from fractions import Fraction
from numbers import Integral, Real
from typing import Literal

import numpy as np

Kind = Literal["constant", "linear", "exponential", "none"]
Number = int | float | Fraction

TOLERANCE = 0.05
"""Default for the largest relative error at which a law that is not exact still counts."""

FEWEST_POINTS = 3
LAST_ITERATION = 100_000
SMALLEST, LARGEST = 1e-100, 1e100  # least squares divides by the values: their squares must stay floats


@dataclass(frozen=True)
class Law:
    """How message length depends on the iteration n = 1, 2, 3, ….

    Parameters
    ----------
    kind : {"constant", "linear", "exponential", "none"}
        Name of the law. A geometric decrease is exponential with a factor below 1.
    points : int
        Number of values that were fitted.
    exact : bool
        True if every value equals the law.
    start : int, float or Fraction
        Value at iteration 1.
    slope : int, float or Fraction
        Added per iteration; 0 unless the law is linear.
    factor : int, float or Fraction
        Multiplied per iteration; 1 unless the law is exponential.
    errors : mapping of str to float
        Worst relative error of each competing law, 0.0 for an exact one, ``inf`` for one that cannot be.
    """

    kind: Kind
    points: int
    exact: bool = False
    start: Number = 0
    slope: Number = 0
    factor: Number = 1
    errors: Mapping[str, float] = field(default_factory=dict, hash=False, repr=False)

    def predict(self, n: int) -> int:
        """Return the length at iteration `n`, rounded to a whole number; no digit is lost if the law is exact.

        Parameters
        ----------
        n : int
            Iteration, 1 to 100,000.

        Returns
        -------
        int
            Ids in the message.

        Raises
        ------
        ValueError
            If there is no law, `n` is not an iteration, or the law is below zero at `n`.
        """
        if self.kind == "none":
            raise ValueError(f"nothing to predict from: {self}. Look for the iteration where the sequence changes.")
        value = self._value(_whole("n", n, LAST_ITERATION))
        if value < 0:
            raise ValueError(f"the law is below zero at n = {n}, and no message is that short: {self}")
        return round(value)

    def predict_bytes(self, n: int, itemsize: int = 4) -> int:
        """Return the size of the message at iteration `n` in bytes.

        Parameters
        ----------
        n : int
            Iteration, 1 to 100,000.
        itemsize : int
            Bytes per id; an INT32 has 4.

        Returns
        -------
        int
            Bytes of the ids alone.

        Raises
        ------
        ValueError
            As in `predict`, or if `itemsize` is not a positive whole number.
        """
        return self.predict(n) * _whole("itemsize", itemsize)

    def __str__(self) -> str:
        """Return the law and its evidence in one sentence."""
        if self.kind == "none":
            return f"none: no constant, linear or exponential law fits these {self.points} points{self._nearest()}"
        evidence = "exact for" if self.exact else f"within {_percent(self.errors[self.kind])} of"
        return f"{self.kind}: dims(n) = {self._formula()}, {evidence} all {self.points} points"

    def _nearest(self) -> str:
        best = min(self.errors, key=self.errors.__getitem__, default="")
        if not best or math.isinf(self.errors[best]):
            return ""
        return f"; the nearest, {best}, is off by {_percent(self.errors[best])}"

    def _formula(self) -> str:
        if self.kind == "constant":
            return _show(self.start)
        if self.kind == "linear":
            return f"{_show(self.start)} {'-' if self.slope < 0 else '+'} {_show(abs(self.slope))} * (n-1)"
        return f"{_show(self.start)} * {_show(self.factor)}^(n-1)"

    def _value(self, n: int) -> Fraction:
        # One formula for all kinds: slope is 0 and factor is 1 where the law has none.
        return (Fraction(self.start) + Fraction(self.slope) * (n - 1)) * Fraction(self.factor) ** (n - 1)


def fit(dims: Iterable[Real], tolerance: float = TOLERANCE) -> Law:
    """Name the law of a sequence: constant, linear, exponential or none of these.

    An exact law wins. Otherwise the law with the smallest worst relative error is taken if that error is at most
    `tolerance`. "constant" has one parameter less than the others, so it is taken unless another law is twice as good.

    Parameters
    ----------
    dims : iterable of int or float, shape (n,), n >= 3
        One value per iteration, first to last: ids in a message, or any other amount (MiB, say).
        0 is allowed; only an exact law can hold a 0, and an exponential one never does.
    tolerance : float
        Largest relative error, 0 to 1, that a law may have and still be named.

    Returns
    -------
    Law
        The law with its evidence. ``kind`` is "none" if no law fits.

    Raises
    ------
    ValueError
        If there are fewer than three values, or one is negative, not finite, not a number, or itself a list.
    """
    values = numbers_of(dims)
    if len(values) < FEWEST_POINTS:
        raise ValueError(f"dims has {len(values)} values; a law needs at least {FEWEST_POINTS}: run more iterations")
    if isinstance(tolerance, bool) or not isinstance(tolerance, Real) or not 0 <= tolerance <= 1:
        raise ValueError(f"tolerance is {tolerance!r}; expected a fraction from 0 to 1, such as {TOLERANCE}")
    fits = _least_squares(values)
    errors = {kind: error for kind, (_, error) in fits.items()}
    for law in _candidates(values):
        if all(law._value(n) == value for n, value in enumerate(values, 1)):
            return replace(law, errors=errors | {law.kind: 0.0})
    kind = _nearest(errors, tolerance)
    parameters = {} if kind == "none" else fits[kind][0]
    return Law(kind, len(values), **parameters, errors=errors)


def numbers_of(dims: Iterable[Real], name: str = "dims") -> list[Fraction]:
    """Check a sequence of amounts and return it as exact fractions.

    Parameters
    ----------
    dims : iterable of int or float, shape (n,)
        Each value is 0 or from 1e-100 to 1e100.
    name : str
        What to call the sequence in an error.

    Returns
    -------
    list of Fraction, shape (n,)
        The same values, nothing rounded.

    Raises
    ------
    ValueError
        If it is not a sequence of such numbers.
    """
    # Text and bytes are iterable and sets have no order: none of them is a sequence of lengths.
    if isinstance(dims, str | bytes | bytearray | Mapping | Set):
        raise ValueError(f"{name} is a {type(dims).__name__}; expected a list of numbers, one per iteration")
    try:
        items = list(dims)
    except TypeError as error:
        raise ValueError(f"{name} is not a list ({error}); expected numbers, one per iteration") from error
    return [_number(item, f"{name}, item {position}") for position, item in enumerate(items, 1)]


def _number(item: object, where: str) -> Fraction:
    if isinstance(item, bool) or not isinstance(item, Integral | float | np.floating):
        raise ValueError(
            f"{where} is a {type(item).__name__}; expected one int or float per iteration"
            " (from a shape such as [1, 8] take the length that you want to follow)"
        )
    number = int(item) if isinstance(item, Integral) else float(item)
    if number < 0:
        raise ValueError(f"{where} is negative; a measured length is 0 or more (-1 in a config means: any length)")
    if number and not SMALLEST <= number <= LARGEST:  # NaN and infinity end here too
        raise ValueError(f"{where} is out of range; expected 0, or a finite number from {SMALLEST:g} to {LARGEST:g}")
    return Fraction(number)


def _whole(name: str, value: int, most: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1 or (most and value > most):
        limit = f"to {most:,}" if most else "up"
        raise ValueError(f"{name} is {value!r}; expected a whole number from 1 {limit}")
    return int(value)


def _candidates(values: list[Fraction]) -> Iterator[Law]:
    """Yield the only law of each kind that meets the first two values."""
    points, start, second = len(values), _tidy(values[0]), values[1]
    yield Law("constant", points, exact=True, start=start)
    yield Law("linear", points, exact=True, start=start, slope=_tidy(second - start))
    if start and second:
        yield Law("exponential", points, exact=True, start=start, factor=_tidy(second / start))


def _tidy(value: Fraction) -> int | Fraction:
    return value.numerator if value.denominator == 1 else value


def _least_squares(values: list[Fraction]) -> dict[Kind, tuple[dict[str, float], float]]:
    """Return the parameters and the worst relative error of each law's best fit."""
    if not min(values):  # the relative error of a 0 is infinite
        return dict.fromkeys(("constant", "linear", "exponential"), ({}, math.inf))
    y, step, ones = np.array(values, dtype=float), np.arange(len(values)), np.ones(len(values))
    # Rows are divided by their value, or lengths taken as logarithms: either way the residuals are relative errors.
    (level,) = _solve([1 / y], ones)
    start, slope = _solve([1 / y, step / y], ones)
    log_start, log_factor = _solve([ones, step], np.log2(y))
    exponential = {"start": 2.0**log_start, "factor": 2.0**log_factor}
    return {
        "constant": ({"start": level}, _worst(y, level * ones)),
        "linear": ({"start": start, "slope": slope}, _worst(y, start + slope * step)),
        "exponential": (exponential, _worst(y, np.exp2(log_start + log_factor * step))),
    }


def _solve(columns: list[np.ndarray], target: np.ndarray) -> list[float]:
    return np.linalg.lstsq(np.column_stack(columns), target, rcond=None)[0].tolist()


def _worst(y: np.ndarray, fitted: np.ndarray) -> float:
    return float(np.max(np.abs(fitted / y - 1)))


def _nearest(errors: Mapping[Kind, float], tolerance: float) -> Kind:
    best = min(errors, key=errors.__getitem__)
    if errors["constant"] <= min(tolerance, 2 * errors[best]):
        return "constant"
    return best if errors[best] <= tolerance else "none"


def _show(value: Number) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value) if isinstance(value, int) else f"({value})"


def _percent(error: float) -> str:
    # Below 0.001 % the digits are rounding noise of this machine.
    return f"{100 * max(error, 1e-5):.2g}%" if error < 0.1 else f"{100 * error:,.0f}%"
