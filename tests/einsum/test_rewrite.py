"""The normal form: one operator a fold, one variable at a time, means as sums and counts."""

from __future__ import annotations

import pytest

from einfuse.einsum.derivation.normal_form import fresh, names_of, normalise, prune
from einfuse.einsum.derivation.verification import Verification
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.printer import render_einsum


def cascade(lines: str, head: str = "rank M, P\ninput X[M,P]\noutput Y") -> Cascade:
    return parse(f"{head}\n{lines}")


def texts(found: Cascade) -> list[str]:
    return [render_einsum(einsum) for einsum in found.init]


def test_a_chain_of_reductions_becomes_one_einsum_each() -> None:
    found = normalise(cascade("Y[] = X[m,p] :: max(m); +(p)"), "m")
    assert texts(found) == ["Y0[p] = X[m,p] :: max(m)", "Y[] = Y0[p] :: +(p)"]


def test_a_fold_is_taken_apart_where_its_reference_varies_along_it() -> None:
    lines = "G[p] = X[m,p] :: max(m)\nY[] = exp(X[m,p] - G[p]) :: +(m,p)"
    assert texts(normalise(cascade(lines), "m"))[1:] == [
        "Y0[p] = exp(X[m,p] - G[p]) :: +(m)",
        "Y[] = Y0[p] :: +(p)",
    ]


def test_a_mean_becomes_a_sum_and_a_count() -> None:
    assert texts(normalise(cascade("Y[p] = X[m,p] / M :: +(m)"), "m")) == [
        "Y0[p] = X[m,p] :: +(m)",
        "Y[p] = Y0[p] / M",
    ]


def test_a_division_by_another_rank_stays() -> None:
    lines = "Y[p] = X[m,p] / P :: +(m)"
    assert texts(normalise(cascade(lines), "m")) == [lines]


def test_functions_of_references_are_computed_once() -> None:
    lines = "S[p] = sq(X[m,p]) :: +(m)\nY[p] = X[m,p] / sqrt(S[p]) :: +(m)"
    assert texts(normalise(cascade(lines), "m"))[1:] == [
        "SH[p] = sqrt(S[p])",
        "Y[p] = X[m,p] / SH[p] :: +(m)",
    ]


@pytest.mark.parametrize(
    "lines",
    [
        "Y[] = X[m,p] :: max(m); +(p)",
        "G[p] = X[m,p] :: max(m)\nY[] = exp(X[m,p] - G[p]) :: +(m,p)",
        "G[p] = X[m,p] / M :: +(m)\nY[] = sq(X[m,p] - G[p]) / sqrt(G[p] * G[p] + 1)",
    ],
)
def test_the_normal_form_computes_the_same(lines: str) -> None:
    origin = cascade(lines)
    assert Verification(origin, "M").agrees(normalise(origin, "m"))


def test_the_normal_form_is_its_own() -> None:
    once = normalise(cascade("Y[] = X[m,p] / M :: +(m); max(p)"), "m")
    assert normalise(once, "m") == once


def test_pruning_keeps_what_outputs_need() -> None:
    found = prune(cascade("A[p] = X[m,p]\nB[p] = A[p]\nC[p] = X[m,p]\nY[p] = B[p]"))
    assert [einsum.name for einsum in found.init] == ["A", "B", "Y"]


def test_fresh_names_avoid_tensors_inputs_and_ranks() -> None:
    taken = names_of(cascade("A[p] = X[m,p]\nY[p] = A[p]"))
    assert taken == {"A", "Y", "X", "M", "P"}
    assert fresh("A", taken) == "A2"
