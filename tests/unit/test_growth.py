"""The growth law: what is recognised, what is refused, and exact prediction."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_utils.growth import TOLERANCE, Law, fit

DOUBLING = [1, 2, 4, 8, 16, 32, 64, 128]


@pytest.mark.parametrize(
    ("dims", "kind", "start", "slope", "factor"),
    [
        (DOUBLING, "exponential", 1, 0, 2),
        ([8, 16, 32], "exponential", 8, 0, 2),
        ([256, 512, 1024, 2048], "exponential", 256, 0, 2),
        ([1, 3, 9, 27], "exponential", 1, 0, 3),
        ([4, 6, 9], "exponential", 4, 0, Fraction(3, 2)),
        ([128, 64, 32, 16], "exponential", 128, 0, Fraction(1, 2)),
        ([2**94, 2**95, 2**96], "exponential", 2**94, 0, 2),
        ([1, 1, 1, 1], "constant", 1, 0, 1),
        ([0, 0, 0], "constant", 0, 0, 1),
        ([1, 2, 3, 4], "linear", 1, 1, 1),
        ([0, 1, 2], "linear", 0, 1, 1),
        ([9, 7, 5], "linear", 9, -2, 1),
        ([1.5, 2.0, 2.5], "linear", Fraction(3, 2), Fraction(1, 2), 1),
    ],
)
def test_exact_laws_are_recognised(dims, kind, start, slope, factor):
    """Kind and parameters are found without rounding."""
    law = fit(dims)
    assert (law.kind, law.start, law.slope, law.factor) == (kind, start, slope, factor)
    assert law.exact
    assert law.points == len(dims)
    assert law.errors[kind] == 0


@pytest.mark.parametrize(
    "dims",
    [
        [1, 2, 3, 1, 1, 1, 1, 1],
        [1, 4, 9, 16],
        [1, 1, 2, 3, 5, 8, 13, 21],
        [1, 2, 4, 8, 16, 32, 64, 1],
        [1] * 20 + [2],
        [5, 0, 0],
        [0, 1, 2, 4, 8],
    ],
)
def test_other_sequences_have_no_law(dims):
    """A sequence that only begins like a law, or bends, is of no kind."""
    assert fit(dims).kind == "none"


@pytest.mark.parametrize("seed", range(20))
def test_random_noise_has_no_law(seed):
    """Eight random lengths are not mistaken for a law."""
    assert fit(np.random.default_rng(seed).integers(1, 1000, 8)).kind == "none"


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["constant", "linear", "exponential"])
def test_a_noisy_law_is_named_but_not_exact(kind, seed):
    """Amounts within 2 % of a law, such as memory in MiB, are named and the parameters are close."""
    truth = Law(kind, 8, start=100, slope=50 if kind == "linear" else 0, factor=2 if kind == "exponential" else 1)
    noise = np.random.default_rng(seed).uniform(0.98, 1.02, 8)
    law = fit([truth.predict(n) * factor for n, factor in enumerate(noise, 1)])
    assert (law.kind, law.exact) == (kind, False)
    assert law.errors[kind] <= TOLERANCE
    assert law.start == pytest.approx(truth.start, rel=0.04)
    assert law.slope == pytest.approx(truth.slope, rel=0.06)
    assert law.factor == pytest.approx(truth.factor, rel=0.02)


def test_the_tolerance_decides():
    """The same values have a law within 5 % and none within 1 %."""
    dims = [100, 204, 392, 816]
    assert fit(dims).kind == "exponential"
    assert fit(dims, tolerance=0.01).kind == "none"


def test_slow_growth_is_not_called_constant():
    """A constant within tolerance yields to a law that is more than twice as good."""
    assert fit([100, 101.01, 101.99, 103, 104]).kind != "constant"
    assert fit([100, 101, 99, 100.5]).kind == "constant"


def test_the_competing_laws_are_kept_as_evidence():
    """Errors of all three laws are there; a law that cannot be has an infinite one."""
    assert set(fit(DOUBLING).errors) == {"constant", "linear", "exponential"}
    assert fit(DOUBLING).errors["linear"] > 0.5
    assert fit([0, 1, 2]).errors["exponential"] == math.inf


def test_prediction_is_exact_at_any_size():
    """Whole numbers, no floats: 2^27 and 2^94 to the last digit, in ids and bytes."""
    law = fit(DOUBLING)
    assert law.predict(28) == 134_217_728
    assert law.predict_bytes(28) == 536_870_912
    assert law.predict_bytes(28, itemsize=8) == 2**30
    assert law.predict(95) == 2**94
    assert law.predict(2001) == 2**2000
    assert type(law.predict(np.int64(28))) is int


def test_an_inexact_law_predicts_a_whole_number():
    """The prediction is rounded and near the truth."""
    value = fit([101, 203, 398, 811]).predict(5)
    assert type(value) is int
    assert value == pytest.approx(1600, rel=0.05)


@pytest.mark.parametrize("n", [0, -1, 1.0, "8", None, True, 100_001])
def test_what_is_no_iteration_is_refused(n):
    """Iterations are whole numbers from 1."""
    with pytest.raises(ValueError, match=r"n is .*expected a whole number from 1 to 100,000"):
        fit(DOUBLING).predict(n)


def test_a_bad_itemsize_is_refused():
    """An id has at least one byte."""
    with pytest.raises(ValueError, match="itemsize is 0"):
        fit(DOUBLING).predict_bytes(8, itemsize=0)


def test_no_law_predicts_nothing():
    """The refusal says why and where to look."""
    with pytest.raises(ValueError, match=r"nothing to predict from: none: .*Look for the iteration"):
        fit([1, 2, 3, 1, 1, 1, 1, 1]).predict(9)


def test_a_law_below_zero_is_refused():
    """A falling line does not predict a negative length."""
    law = fit([5, 4, 3])
    assert law.predict(6) == 0
    with pytest.raises(ValueError, match="below zero at n = 7"):
        law.predict(7)


@pytest.mark.parametrize(
    ("dims", "text"),
    [
        (DOUBLING, "exponential: dims(n) = 1 * 2^(n-1), exact for all 8 points"),
        ([4, 2, 1], "exponential: dims(n) = 4 * (1/2)^(n-1), exact for all 3 points"),
        ([1, 1, 1, 1], "constant: dims(n) = 1, exact for all 4 points"),
        ([1, 3, 5], "linear: dims(n) = 1 + 2 * (n-1), exact for all 3 points"),
        ([9, 7, 5], "linear: dims(n) = 9 - 2 * (n-1), exact for all 3 points"),
        ([101, 203, 398, 811, 1630], "exponential: dims(n) = 100.7 * 2.003^(n-1), within 1.6% of all 5 points"),
        ([0.1, 0.2, 0.1 + 0.2], "linear: dims(n) = 0.1 + 0.1 * (n-1), within 0.001% of all 3 points"),
        (
            [1, 4, 9, 16],
            "none: no constant, linear or exponential law fits these 4 points; the nearest, linear, is off by 22%",
        ),
        ([0, 1, 2, 4], "none: no constant, linear or exponential law fits these 4 points"),
    ],
)
def test_the_sentence(dims, text):
    """A law reads as one sentence."""
    assert str(fit(dims)) == text


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ([], "dims has 0 values; a law needs at least 3"),
        ([1, 2], "dims has 2 values; a law needs at least 3"),
        ([1, 2, -4], "item 3 is negative"),
        ([1, 2, math.nan], "item 3 is out of range"),
        ([1, 2, math.inf], "item 3 is out of range"),
        ([1, 2, 10**5000], "item 3 is out of range"),
        ([1, 2, "4"], "item 3 is a str"),
        ([1, 2, None], "item 3 is a NoneType"),
        ([1, 2, True], "item 3 is a bool"),
        ([1, 2, 4j], "item 3 is a complex"),
        ([[1], [2], [4]], "item 1 is a list"),
        (np.ones((3, 1)), "item 1 is a ndarray"),
        ("124", "dims is a str"),
        (b"124", "dims is a bytes"),
        ({1: 1, 2: 2, 3: 4}, "dims is a dict"),
        ({1, 2, 4}, "dims is a set"),
        (None, "dims is not a list"),
        (np.array(8), "dims is not a list"),
    ],
)
def test_bad_input_is_named(dims, message):
    """The error says which item is wrong, and how."""
    with pytest.raises(ValueError, match=message):
        fit(dims)


@pytest.mark.parametrize("tolerance", [-0.1, 1.5, math.nan])
def test_a_bad_tolerance_is_refused(tolerance):
    """A tolerance is a fraction."""
    with pytest.raises(ValueError, match="tolerance is"):
        fit(DOUBLING, tolerance)


@pytest.mark.parametrize("cast", [iter, tuple, np.array, lambda dims: np.array(dims, np.int32), lambda dims: [*dims]])
def test_any_iterable_of_numbers_will_do(cast):
    """Generators, tuples and arrays of NumPy ints or floats are read like lists."""
    assert fit(cast(DOUBLING)) == fit(DOUBLING)
    assert fit(np.array(DOUBLING, np.float32)) == fit(DOUBLING)


def test_a_law_can_be_a_key():
    """Frozen and hashable."""
    assert {fit(DOUBLING): 1}[fit(DOUBLING)] == 1
    with pytest.raises(AttributeError):
        fit(DOUBLING).start = 2


counts = st.integers(3, 40)


@given(start=st.integers(0, 2**100), points=counts)
def test_any_constant_is_recovered(start, points):
    """Every constant sequence is constant."""
    law = fit([start] * points)
    assert (law.kind, law.start, law.exact) == ("constant", start, True)


@given(start=st.integers(0, 2**64), slope=st.integers(1, 2**64), points=counts)
def test_any_line_is_recovered(start, slope, points):
    """Every rising or falling line is linear, and predict gives its values back."""
    dims = [start + slope * step for step in range(points)]
    for sequence, first, step in ((dims, start, slope), (dims[::-1], dims[-1], -slope)):
        law = fit(sequence)
        assert (law.kind, law.start, law.slope, law.exact) == ("linear", first, step, True)
        assert [law.predict(n) for n in range(1, points + 1)] == sequence


@given(start=st.integers(1, 2**64), factor=st.integers(2, 64), points=counts)
def test_any_geometric_sequence_is_recovered(start, factor, points):
    """Every rising or falling geometric sequence is exponential, and predict gives its values back."""
    dims = [start * factor**step for step in range(points)]
    for sequence, first, ratio in ((dims, start, factor), (dims[::-1], dims[-1], Fraction(1, factor))):
        law = fit(sequence)
        assert (law.kind, law.start, law.factor, law.exact) == ("exponential", first, ratio, True)
        assert [law.predict(n) for n in range(1, points + 1)] == sequence


numbers = st.one_of(st.integers(), st.floats(), st.integers(0, 2**300), st.floats(0, 10), st.booleans(), st.text())
anything = st.one_of(numbers, st.none(), st.binary(), st.dictionaries(numbers, numbers), st.sets(st.integers()))


@given(dims=st.one_of(st.lists(numbers), st.lists(st.floats(1e-100, 1e100)), st.lists(anything), anything))
def test_whatever_comes_in_there_is_a_law_or_a_clear_error(dims):
    """No input ends in another exception, a warning, or an empty sentence."""
    try:
        answer = str(fit(dims))
    except ValueError as error:
        answer = str(error)
    assert answer.startswith(("constant: ", "linear: ", "exponential: ", "none: ", "dims"))


@given(
    dims=st.one_of(st.lists(st.integers(0, 2**40), min_size=3), st.lists(st.integers(1, 9), min_size=3, max_size=4)),
    n=st.one_of(st.integers(), st.integers(1, 50), st.floats(), st.text()),
)
def test_predict_gives_a_whole_number_or_a_clear_error(dims, n):
    """No iteration ends in another exception."""
    try:
        answer = fit(dims).predict(n)
    except ValueError as error:
        answer = str(error)
    assert type(answer) is int or answer.startswith(("n is ", "nothing to predict", "the law is below zero"))
