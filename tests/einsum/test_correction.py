"""Corrections stay in range where what they correct does."""

from __future__ import annotations

import numpy as np
import pytest

from einfuse.einsum.derivation import derive
from einfuse.einsum.execute import run
from einfuse.einsum.parser import parse

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
