"""Degrees of values in the number of points, by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest

from einfuse.einsum.derivation.dataflow import Dataflow
from einfuse.einsum.derivation.value_facts import degree
from einfuse.einsum.language.parser import parse

pytestmark = pytest.mark.filterwarnings("ignore:input")

HEAD = "rank M, K\ninput X[M], W[M,K], A[]\noutput Y\nS[] = X[m]\n"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("Y[] = X[m] :: max(m)", 0),
        ("Y[] = A[] * S[]", 1),
        ("Y[] = S[] / M", 0),
        ("Y[] = S[] / K", 1),
        ("Y[] = S[] / 64", 1),
        ("Y[k] = W[m,k] * S[] / M", 1),
        ("N[] = abs(X[m]) :: +(m)\nY[] = S[] / N[]", 0),
        ("Z[] = sq(S[]) * M\nY[] = rsqrt(Z[])", Fraction(-3, 2)),
        ("Y[] = S[] + A[]", None),
        ("Y[] = exp(S[])", None),
        ("Y[] = exp(S[] / M)", 0),
        ("Y[] = log(abs(S[]))", 0),
        ("Z[k] = W[m,k] :: *(m)\nY[] = Z[k]", None),
        ("Z[m] = W[m,k] :: *(k)\nY[] = Z[m]", 1),
    ],
)
def test_degrees(lines: str, expected: Fraction | int | None) -> None:
    flow = Dataflow(parse(HEAD + lines), "m")
    assert degree(flow, flow.producer["Y"].output) == expected


def test_the_tiles_of_a_rank_count_its_points() -> None:
    text = (
        "rank M1, M0\nsplit M -> M1, M0\ninput X[M]\noutput Y\nB[m1,m0] = X[m1*M0+m0]\n"
        "S[m1] = B[m1,m0] :: +(m0)\nT[] = S[m1] :: +(m1)\nY[] = T[] / M"
    )
    flow = Dataflow(parse(text), "m1")
    assert [degree(flow, e.output) for e in flow.einsums] == [0, 0, 1, 0]
