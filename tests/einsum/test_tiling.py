"""Rule T: views of inputs, tiles of folds, what stays whole."""

from __future__ import annotations

import numpy as np
import pytest

from einfuse.einsum.derivation.tiling import size_of, tile, tile_size
from einfuse.einsum.derivation.verification import Verification
from einfuse.einsum.execution.run import run
from einfuse.einsum.language.cascade import Cascade, Split
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.printer import render_einsum


def tiled(text: str) -> tuple[Cascade, list[str]]:
    origin = parse(text)
    found = tile(origin, "m", "M1", "M0", None)
    assert Verification(origin, "M").agrees(found)
    assert Split("M", "M1", "M0") in found.splits
    return found, [render_einsum(einsum) for einsum in found.init]


def test_inputs_are_read_through_views_and_folds_run_over_both_ranks() -> None:
    _, lines = tiled("rank M, P\ninput X[M,P]\noutput Y\nY[p] = X[m,p] :: max(m)")
    assert lines == ["BX[m1,m0,p] = X[m1*M0+m0,p]", "Y[p] = BX[m1,m0,p] :: max(m1,m0)"]


def test_filters_and_coordinates_follow() -> None:
    _, lines = tiled("rank M, P\ninput X[M,P]\noutput Y\nY[p] = X[m: m<=p,p] * (m + 1)")
    assert lines[1] == "Y[p] = BX[m1,m0: m1*M0+m0<=p,p] * (m1 * M0 + m0 + 1)"


def test_outputs_along_the_rank_stay_whole_and_are_viewed() -> None:
    text = "rank M\ninput X[M]\noutput Y, Z\nY[m] = X[m] + 1\nZ[] = Y[m] * Y[m]"
    _, lines = tiled(text)
    assert lines == [
        "Y[m] = X[m] + 1",
        "BY[m1,m0] = Y[m1*M0+m0]",
        "Z[] = BY[m1,m0] * BY[m1,m0]",
    ]


def test_outputs_that_wait_for_a_fold_are_computed_again_in_tiles() -> None:
    text = "rank M\ninput X[M]\noutput Y, Z\nS[] = X[m]\nY[m] = X[m] - S[]\nZ[] = Y[m] * Y[m]"
    _, lines = tiled(text)
    assert "Y[m] = X[m] - S[]" in lines
    assert "BY[m1,m0] = BX[m1,m0] - S[]" in lines


def test_inputs_at_other_places_of_the_rank_are_read_in_place() -> None:
    _, lines = tiled("rank M, N = M\ninput X[N]\noutput Y\nY[] = sq(X[M-1-m]) :: +(m)")
    assert lines == ["Y[] = sq(X[M-1-(m1*M0+m0)]) :: +(m1,m0)"]


def test_tensors_read_at_other_places_of_the_rank_stay_whole() -> None:
    text = "rank M\ninput X[M]\noutput Y\nZ[m] = sq(X[m])\nY[] = Z[m] * Z[M-1-m]"
    _, lines = tiled(text)
    assert lines[0] == "Z[m] = sq(X[m])"


@pytest.mark.parametrize("size", range(1, 65))
def test_tiles_divide_the_rank_and_leave_two_or_more(size: int) -> None:
    inner = tile_size(size)
    assert size % inner == 0
    assert inner <= 256
    assert size == 1 or size // inner >= 2


def test_sizes_follow_aliases() -> None:
    found = parse("rank M = P, P = N, N = 12\ninput X[M]\noutput Y\nY[] = X[m]")
    assert size_of(found, "M") == 12
    assert size_of(parse("rank M\ninput X[M]\noutput Y\nY[] = X[m]"), "M") is None


def test_a_tensor_read_along_a_rank_that_is_not_its_own_is_read_in_tiles() -> None:
    cascade = parse(
        "rank M = 6, N = 6\ninput X[N]\noutput Y\nA[n] = exp(X[n])\nG[n] = A[m] * A[n] :: max(m)\n"
        "Y[n] = exp(A[m] * A[n] - G[n]) :: +(m)"
    )
    tiled = tile(cascade, "m", "M1", "M0", 2)
    x = np.linspace(-1, 1, 6)
    found, expected = (run(c, {"X": x})["Y"] for c in (tiled, cascade))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
