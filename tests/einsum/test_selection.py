"""Selections before what increases, and factors out of inner sums: fewer passes, executed."""

from __future__ import annotations

import numpy as np
import pytest

from einfuse.einsum import parse, run
from einfuse.einsum.derivation.dataflow import Dataflow
from einfuse.einsum.derivation.search import Derived, derive
from einfuse.einsum.derivation.selection import select_first

GATE = """
rank E, P, M, T = 3
input Q[E,P], K[E,M]
output W
S[m,p] = Q[e,p] * K[e,m]
G[p] = S[m,p] :: max(m)
N[m,p] = exp(S[m,p] - G[p])
D[p] = N[m,p]
A[m,p] = N[m,p] / D[p]
(TV[t,p], TI[t,p]) = A[m,p] :: topk(m -> t)
TS[p] = TV[t,p]
W[t,p] = TV[t,p] / TS[p]
"""
QUANTISED = """
rank E, F, P, M
input Q[E,P], K[E,M], V[F,M]
output AV
AM[] = abs(K[e,m]) :: max(e,m)
KQ[e,m] = {rounded}
QK[m,p] = Q[e,p] * KQ[e,m]
S[m,p] = QK[m,p] * AM[]
GM[p] = S[m,p] :: max(m)
SN[m,p] = exp(S[m,p] - GM[p])
SD[p] = SN[m,p]
AV[f,p] = SN[m,p] / SD[p] * V[f,m]
"""


def _best(text: str) -> tuple[int, list[Derived]]:
    """Return the fewest passes of stable cascades, and all stable ones, each run in float64."""
    cascade = parse(text)
    found = [d for d in derive(cascade, "M") if d.stable]
    random = np.random.default_rng(4)
    for scale in (1.0, 30.0):
        inputs = {
            "Q": random.normal(size=(3, 2)) * scale,
            "K": random.normal(size=(3, 12)),
            "V": random.normal(size=(2, 12)),
        }
        inputs = {name: inputs[name] for name in cascade.inputs}
        expected = run(cascade, inputs)
        for derived in found:
            sizes = {"M0": 4} if "M0" in derived.cascade.rank_names else {}
            for name, value in run(derived.cascade, inputs, sizes).items():
                np.testing.assert_allclose(value, expected[name], rtol=1e-9, atol=1e-12)
    return min(d.passes for d in found), found


@pytest.mark.slow
def test_the_best_of_a_softmax_are_found_in_one_pass() -> None:
    passes, found = _best(GATE)
    assert passes == 1
    assert any("K" in [s.rule for s in d.steps] and d.cascade.loop for d in found)


@pytest.mark.slow
def test_what_decreases_is_not_selected_first() -> None:
    found = derive(parse(GATE.replace("S[m,p] - G[p]", "G[p] - S[m,p]")), "M")
    assert all(step.rule != "K" for derived in found for step in derived.steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rounded", "passes"),
    [("K[e,m] / AM[]", 1), ("floor(K[e,m] / AM[] * 127 + 0.5) / 127", 2)],
)
def test_quantised_attention_needs_another_pass_only_where_it_rounds(
    rounded: str, passes: int
) -> None:
    assert _best(QUANTISED.format(rounded=rounded))[0] == passes


def test_products_with_what_may_be_zero_are_selected_after_it() -> None:
    """All products with 0 are equal, and the first are selected, not those of the largest."""
    text = "rank M, T = 2\ninput X[M]\noutput Y, I\nG[] = {} :: max(m)\n"
    text += "(Y[t], I[t]) = X[m] * G[] :: topk(m -> t)"
    flow = Dataflow(parse(text.format("abs(X[m])")), "m")
    assert select_first(flow) is None
    assert select_first(Dataflow(parse(text.format("exp(X[m])")), "m")) is not None
