"""What definitions say of signs, and of what a maximum has seen."""

from __future__ import annotations

import pytest

from einfuse.einsum.derivation.dataflow import Dataflow
from einfuse.einsum.derivation.value_facts import (
    is_magnitude,
    is_never_zero,
    is_positive,
    may_be_minus_infinity,
)
from einfuse.einsum.language.parser import parse

HEAD = "rank M, E\ninput X[M], B[M], Q[E], K[E,M]\noutput Y\n"

pytestmark = pytest.mark.filterwarnings("ignore:input")


def flow(lines: str) -> Dataflow:
    return Dataflow(parse(HEAD + lines), "m")


@pytest.mark.parametrize(
    ("expression", "positive"),
    [
        ("exp(X[m])", True),
        ("exp(X[m]) / sq(B[m])", True),
        ("X[m] * X[m]", True),
        ("sqrt(sq(X[m]) + 0.1)", True),
        ("sigmoid(X[m]) * M", True),
        ("X[m]", False),
        ("exp(X[m]) - 1", False),
        ("X[m] * B[m]", False),
        ("log(exp(X[m]))", False),
    ],
)
def test_signs_follow_from_definitions(expression: str, positive: bool) -> None:
    found = flow(f"Y[] = {expression} :: +(m)")
    assert is_positive(found.producer["Y"].output, found) == positive


@pytest.mark.parametrize(
    ("expression", "never"),
    [
        ("exp(X[m])", True),
        ("exp(X[m]) / (sq(B[m]) + 1)", True),
        ("sqrt(sq(X[m]) + 0.1)", True),
        ("max(abs(X[m]), 0.1)", True),
        ("min(abs(X[m]), 0.1)", False),
        ("sq(X[m])", False),
        ("exp(X[m]) * abs(B[m])", False),
        ("X[m] + 1", False),
        ("exp(X[m]) - 1", False),
        ("sigmoid(X[m]) * M", True),
    ],
)
def test_what_is_never_zero_follows_from_definitions(expression: str, never: bool) -> None:
    found = flow(f"Y[] = {expression} :: +(m)")
    assert is_never_zero(found.producer["Y"].output, found) == never


@pytest.mark.parametrize(
    ("expression", "infinite"),
    [
        ("Q[e] * K[e,m]", False),
        ("X[m]", True),
        ("X[m] * 2", False),
        ("X[m] + tanh(B[m])", True),
        ("where(B[m], tanh(X[m]), -inf)", False),  # a literal is absence, not data
        ("log(B[m])", True),
        ("30 * tanh(X[m] / 30)", False),
    ],
)
def test_a_maximum_may_see_only_infinite_data(expression: str, infinite: bool) -> None:
    lines = f"S[m] = {expression}\nY[] = S[m] :: max(m)"
    assert may_be_minus_infinity(flow(lines), "Y") == infinite


def test_magnitudes_are_maxima_of_what_is_never_negative() -> None:
    assert is_magnitude(flow("Y[] = abs(X[m]) :: max(m)"), "Y")
    assert not is_magnitude(flow("Y[] = X[m] :: max(m)"), "Y")
    assert not is_magnitude(flow("Y[] = abs(X[m]) :: +(m)"), "Y")
