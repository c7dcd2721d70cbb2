"""Index arithmetic against plain enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from einfuse.einsum.execution.run import run
from einfuse.einsum.language.affine import (
    Linear,
    at_most_zero,
    coordinates,
    evaluate,
    extremes,
    holds,
    interval,
    linear,
    offset,
)
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.expression import Comparison, Expression
from einfuse.einsum.language.parser import parse

SIZES = {"M": 7, "P": 5, "W": 3}


def index(text: str) -> Expression:
    return parse(f"rank M, P, W\ninput A[M]\nY[m,p] = A[{text}]").einsums[0].operands[0].indices[
        0
    ].expression  # fmt: skip


def condition(text: str) -> tuple[Comparison, ...]:
    return parse(f"rank M, P, W\ninput A[M]\nY[p] = A[m: {text}]").einsums[0].operands[0].indices[
        0
    ].condition  # fmt: skip


@pytest.mark.parametrize(
    ("text", "coefficients", "constant"),
    [
        ("m", {"m": 1}, 0),
        ("3", {}, 3),
        ("M-1-m", {"m": -1}, 6),
        ("2*(m+p)-m*W", {"m": -1, "p": 2}, 0),
        ("m-m+p", {"p": 1}, 0),
        ("-(m-W)", {"m": -1}, 3),
    ],
)
def test_linear_forms(text: str, coefficients: dict[str, int], constant: int) -> None:
    assert linear(index(text), SIZES) == Linear(coefficients, constant)


@pytest.mark.parametrize("text", ["m/2", "m%2", "m*p", "A[m]"])
def test_other_indices_have_no_linear_form(text: str) -> None:
    assert linear(index(text), SIZES) is None


def test_an_unknown_size_makes_a_form_unknown() -> None:
    assert linear(index("m+W"), {}) is None
    assert offset(index("m+W"), "m") is None


@pytest.mark.parametrize(("text", "expected"), [("m", 0), ("1+m", 1), ("m-2", -2)])
def test_offset_from_a_variable(text: str, expected: int) -> None:
    assert offset(index(text), "m") == expected


@pytest.mark.parametrize("text", ["2*m", "p+0", "m+p", "3"])
def test_no_offset_from_a_variable(text: str) -> None:
    assert offset(index(text), "m") is None


@pytest.mark.parametrize("text", ["m<=p", "m<p", "m>=p", "m>p", "m==p", "m+W>p", "2*m<3*p-1"])
def test_forms_at_most_zero_hold_where_the_comparison_does(text: str) -> None:
    (comparison,) = condition(text)
    forms = at_most_zero(comparison, SIZES)
    assert forms is not None
    for m, p in itertools.product(range(7), range(5)):
        point = {"m": m, "p": p}
        inside = all(
            f.constant + sum(c * point[v] for v, c in f.coefficients.items()) <= 0 for f in forms
        )
        assert inside == eval(text, {}, point | SIZES)


def test_unequal_has_no_form() -> None:
    assert at_most_zero(condition("m!=p")[0], SIZES) is None
    assert at_most_zero(condition("m%2==0")[0], SIZES) is None


@settings(max_examples=60, deadline=None)
@given(
    extents=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    factors=st.tuples(st.integers(-2, 2), st.integers(-2, 2), st.integers(-3, 3)),
    cuts=st.lists(st.tuples(st.sampled_from([-1, 1]), st.integers(-4, 4)), max_size=2),
)
def test_extremes_are_those_of_the_points(
    extents: tuple[int, int], factors: tuple[int, int, int], cuts: list[tuple[int, int]]
) -> None:
    a, b, c = factors
    form = Linear({v: f for v, f in (("m", a), ("p", b)) if f}, c)
    constraints = [Linear({"m": sign, "p": -sign}, constant) for sign, constant in cuts]
    values = [
        a * m + b * p + c
        for m, p in itertools.product(range(extents[0]), range(extents[1]))
        if all(sign * (m - p) + constant <= 0 for sign, constant in cuts)
    ]
    found = extremes(form, dict(zip("mp", extents, strict=True)), constraints)
    assert found == ((min(values), max(values)) if values else None)


@pytest.mark.parametrize("text", ["m", "m*3-p", "m/2+p%3", "(m-p)/2", "-m*p", "M-m", "m%W", "5%W"])
def test_an_interval_covers_all_values(text: str) -> None:
    grid = coordinates({"m": 7, "p": 5})
    values = np.broadcast_to(evaluate(index(text), grid, SIZES), (7, 5))
    low, high = interval(index(text), {"m": 7, "p": 5}, SIZES)
    assert low <= values.min() and values.max() <= high
    if text not in {"m%W"}:
        assert (low, high) == (values.min(), values.max())


def test_division_rounds_down_as_python_does() -> None:
    grid = coordinates({"m": 7, "p": 5})
    values = evaluate(index("(m-p)/2"), grid, SIZES)
    assert values[0, 3] == -2 == (0 - 3) // 2


def test_a_divisor_that_is_zero_at_a_size_is_refused() -> None:
    with pytest.raises(EinfuseError, match="an index divides by 0"):
        interval(index("m/(W-3)"), {"m": 7}, SIZES)


def test_holds_is_a_mask_over_the_grid() -> None:
    grid = coordinates({"m": 4, "p": 4})
    assert np.array_equal(holds(condition("m<=p & m!=2"), grid, SIZES)[:3].sum(1), [4, 3, 0])
    assert holds((), grid, SIZES).all()


def test_a_filter_lets_a_longer_rank_read_a_shorter_one() -> None:
    text = "rank M, L, N\ninput A[M], B[L]\noutput C\nC[n] = A[n: n<M] + B[n-M: n>=M]"
    inputs = {"A": np.arange(3.0), "B": np.arange(3.0, 5.0)}
    found = run(parse(text), inputs, {"N": 5})["C"]
    assert found.tolist() == [0, 1, 2, 3, 4]


def test_a_filter_that_leaves_a_rank_is_refused() -> None:
    cascade = parse("rank M, N\ninput A[M]\noutput Y\nY[n] = A[n: n>0]")
    with pytest.raises(EinfuseError, match=r"outside 0\.\.2"):
        run(cascade, {"A": np.arange(3.0)}, {"N": 5})
