"""Weighted variances in one pass: the centre stays where weights cancel or are all 0."""

from __future__ import annotations

import numpy as np
import pytest

from einfuse.einsum import parse, run
from einfuse.einsum.derivation.search import Derived, derive

WEIGHTED = """
rank N
input X[N], A[N]
output Y
SW[] = A[n]
SX[] = A[n] * X[n]
MU[] = SX[] / SW[]
V[] = A[n] * sq(X[n] - MU[]) :: +(n)
Y[] = V[] / SW[]
"""
INERTIA = """
rank N, D, C
input X[N,D], A[N,C]
output Y
CN[c] = A[n,c]
CS[c,d] = A[n,c] * X[n,d]
MU[c,d] = CS[c,d] / CN[c]
Y[] = A[n,c] * sq(X[n,d] - MU[c,d]) :: +(n,c,d)
"""
RANDOM = np.random.default_rng(6)


def _derived(text: str) -> Derived:
    return next(d for d in derive(parse(text), "N") if d.passes == 1 and d.stable)


def _run(derived: Derived, x: np.ndarray, a: np.ndarray) -> float:
    return float(run(derived.cascade, {"X": x, "A": a}, {"N0": 4})["Y"])


@pytest.mark.slow
def test_a_weighted_variance_keeps_its_digits_whatever_the_weights_begin_with() -> None:
    derived, x = _derived(WEIGHTED), RANDOM.normal(size=24) + 1000
    weights = RANDOM.uniform(0.1, 1, size=24)
    signed = RANDOM.normal(size=24)
    signed[:4] = [1, -1, 1, -1]  # they cancel in the first tile
    for a in (weights, weights * (np.arange(24) >= 9), weights * (np.arange(24) < 7), signed):
        mean = (a * x).sum() / a.sum()
        expected = (a * (x - mean) ** 2).sum() / a.sum()
        np.testing.assert_allclose(_run(derived, x, a), expected, rtol=1e-7)
        if a is not signed:
            found = _run(derived, x.astype(np.float32), a.astype(np.float32))
            np.testing.assert_allclose(found, expected, rtol=2e-3)


@pytest.mark.slow
def test_the_inertia_of_clusters_that_come_one_after_the_other() -> None:
    derived = _derived(INERTIA)
    own = np.repeat(np.arange(3), 8)
    x = RANDOM.normal(size=(24, 2)) + 100 * own[:, None]
    a = (own[:, None] == np.arange(3)).astype(float)
    expected = sum(((x[own == c] - x[own == c].mean(0)) ** 2).sum() for c in range(3))
    np.testing.assert_allclose(_run(derived, x, a), expected, rtol=1e-10)
    found = _run(derived, x.astype(np.float32), a.astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
