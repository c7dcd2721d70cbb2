"""Corrections stay in range where what they correct does."""

from __future__ import annotations

import numpy as np
import pytest

from einfuse.einsum.derivation.search import derive
from einfuse.einsum.execution.run import run
from einfuse.einsum.language.parser import parse

SCALED = "rank M = 64\ninput X[M]\noutput Y\nG[] = abs(X[m]) :: max(m)\nZ[m] = X[m] / G[]\n"

NORMS = {
    "two": ("S[] = sq(Z[m]) :: +(m)\nY[] = G[] * sqrt(S[])", 2),
    "three": ("S[] = abs(Z[m]) * sq(Z[m]) :: +(m)\nY[] = G[] * exp(log(S[]) / 3)", 3),
    "four": ("S[] = sq(sq(Z[m])) :: +(m)\nY[] = G[] * sqrt(sqrt(S[]))", 4),
    "one half": ("S[] = sqrt(abs(Z[m])) :: +(m)\nY[] = G[] * sq(S[])", 0.5),
}


@pytest.mark.parametrize("scale", [1e20, 1e-25])
@pytest.mark.parametrize(("lines", "order"), NORMS.values(), ids=NORMS)
def test_scaled_norms_keep_their_range(lines: str, order: float, scale: float) -> None:
    values = (np.random.default_rng(0).normal(size=64) * scale).astype(np.float32)
    wide = np.abs(values.astype(np.float64))
    expected = (wide**order).sum() ** (1 / order)
    stable = [d for d in derive(parse(SCALED + lines), "M") if d.stable]
    assert any(d.passes == 1 for d in stable)
    for derived in stable:
        found = run(parse(derived.text), {"X": values})["Y"]
        assert found == pytest.approx(expected, rel=1e-5)


QUOTIENTS = {
    "a sum of magnitudes": "G[] = abs(X[m]) :: +(m)\nZ[m] = X[m] / G[]",
    "a signed sum": "G[] = X[m]\nZ[m] = X[m] / G[]",
    "a root of squares": "S[] = sq(X[m]) :: +(m)\nZ[m] = X[m] * rsqrt(S[])",
    "a maximum": "G[] = abs(X[m]) :: max(m)\nZ[m] = X[m] / G[]",
    "a maximum that others are divided by": "G[] = abs(X[m]) :: max(m)\nZ[m] = V[m] / G[]",
    "a scale": "G[] = abs(X[m]) :: max(m)\nR[] = 127 / G[]\nZ[m] = X[m] * R[]",
    "the inverse of a scale": "G[] = abs(X[m]) :: max(m)\nR[] = G[] / 127\nZ[m] = X[m] / R[]",
}


@pytest.mark.parametrize("lines", QUOTIENTS.values(), ids=QUOTIENTS)
@pytest.mark.parametrize("start", [0.0, 1.0], ids=["zeros", "cancelling"])
def test_stable_quotients_bear_tiles_that_vanish(lines: str, start: float) -> None:
    text = f"rank M = 64, N = 3\ninput X[M], V[M], W[M,N]\noutput Y\n{lines}\nY[n] = Z[m] * W[m,n]"
    random = np.random.default_rng(2)
    inputs = {"V": random.normal(size=64), "W": random.normal(size=(64, 3))}
    inputs["X"] = np.concatenate([np.tile([start, -start], 16), random.normal(size=32)])
    origin = parse(text)
    expected = run(origin, inputs)["Y"]
    for derived in derive(origin, "M"):
        if derived.stable:
            np.testing.assert_allclose(run(derived.cascade, inputs)["Y"], expected, rtol=1e-9)
