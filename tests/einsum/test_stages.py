"""Stages behind a fold that nothing moves: cut there, and streamed with it as an input."""

from __future__ import annotations

import numpy as np
import pytest

from einfuse.einsum import parse, run
from einfuse.einsum.derivation.search import derive

HEAD = (
    "rank E, F, P, M, T = 3\ninput Q[E,P], K[E,M], V[F,M]\noutput AV\nQK[m,p] = Q[e,p] * K[e,m]\n"
)
TAIL = """
GM[p] = W[m,p] :: max(m)
SN[m,p] = exp(W[m,p] - GM[p])
SD[p] = SN[m,p]
AV[f,p] = SN[m,p] / SD[p] * V[f,m]
"""
STAGES = {
    "tanh": ("S[p] = QK[m,p]\nT[p] = tanh(QK[m,p] - S[p]) :: +(m)\nW[m,p] = QK[m,p] * T[p]", 3),
    "threshold": ("(TV[t,p], TI[t,p]) = QK[m,p] :: topk(m -> t)\nTH[p] = TV[t,p] :: min(t)\n"
                  "W[m,p] = where(ge(QK[m,p], TH[p]), QK[m,p], QK[m,p] - 1000)", 2),
    "rounded": ("G[p] = abs(QK[m,p]) :: max(m)\nW[m,p] = floor(QK[m,p] / G[p] * 7 + 0.5)", 2),
}  # fmt: skip


@pytest.mark.parametrize("stage", [pytest.param(s, marks=pytest.mark.slow) for s in STAGES])
def test_attention_behind_a_fold_without_a_correction_streams(stage: str) -> None:
    lines, passes = STAGES[stage]
    cascade = parse(HEAD + lines + TAIL)
    found = [d for d in derive(cascade, "M") if d.stable and d.passes == passes]
    assert any(d.cascade.loop for d in found)
    random = np.random.default_rng(2)
    for scale in (1.0, 1e3):
        inputs = {"Q": random.normal(size=(3, 2)) * scale, "K": random.normal(size=(3, 12))}
        inputs["V"] = random.normal(size=(2, 12))
        expected = run(cascade, inputs)["AV"]
        for derived in found:
            sizes = {"M0": 4} if "M0" in derived.cascade.rank_names else {}
            np.testing.assert_allclose(
                run(derived.cascade, inputs, sizes)["AV"], expected, rtol=1e-9, atol=1e-12
            )
