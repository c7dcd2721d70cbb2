"""What Einsums do along a rank, and what waits for what."""

from __future__ import annotations

from einfuse.einsum.derivation.dataflow import Dataflow, Kind
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.printer import render_expression
from einfuse.einsum.library.cascades import load

TEXT = """
rank M, P, T
input X[M,P]
output Y
A[p] = X[m,p] :: max(m)
B[m,p] = X[m,p] - A[p]
C[p] = 2 * A[p]
D[m] = B[m,p] * C[p]
(V[t], I[t]) = D[m] :: topk(m -> t)
Y[p] = D[m] * B[m,p] * V[0]
"""


def flow() -> Dataflow:
    return Dataflow(parse(TEXT), "m")


def test_kinds_along_a_rank() -> None:
    kinds = flow().kinds
    assert [kinds[n] for n in "ABCDVY"] == [
        Kind.FOLD,
        Kind.MAP,
        Kind.FREE,
        Kind.MAP,
        Kind.OPAQUE,
        Kind.FOLD,
    ]


def test_what_waits_for_a_fold_and_what_stands_for_one() -> None:
    found = flow()
    assert found.waits_for["Y"] == {"A", "V"}
    assert not found.dependent("X")
    assert [n for n in "ABCDY" if found.is_reference(n)] == ["A", "C", "Y"]


def test_the_cone_inlines_maps_down_to_references() -> None:
    found = flow()
    assert render_expression(found.cone(found.producer["Y"])) == "D[m] * (X[m,p] - A[p]) * V[0]"
    assert found.blocking_maps(found.cone(found.producer["Y"])) == ("D", "V")


def test_the_cone_of_one_reference_leaves_others_alone() -> None:
    attention = Dataflow(load("attention/3-pass"), "m")
    fold = attention.producer["AV"]
    assert render_expression(attention.cone(fold, "SD")) == "SN[m,p] / SD[p] * V[f,m]"
    assert render_expression(attention.cone(fold)) == "exp(QK[m,p] - GM[p]) / SD[p] * V[f,m]"


def test_barriers_of_long_outputs_count() -> None:
    text = "rank M\ninput X[M]\noutput Y\nS[] = X[m]\nY[m] = X[m] / S[]"
    barriers = Dataflow(parse(text), "m").barriers()
    assert [(e.name, [a.tensor for a in found]) for e, found in barriers] == [("Y", ["S"])]
