"""Random inputs, and small shapes to try a cascade on."""

from __future__ import annotations

import numpy as np
import pytest

from einfuse.einsum.execution.sampling import draw_inputs, shrunk
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.shape import check_ranges
from einfuse.einsum.library.cascades import load, names


def test_a_seed_gives_the_same_numbers_in_the_dtype_asked_for() -> None:
    cascade = load("attention/3-pass")
    sizes = {"E": 2, "F": 3, "M": 4, "P": 5}
    first, again = (draw_inputs(cascade, sizes, 3, np.float32) for _ in range(2))
    assert {n: a.shape for n, a in first.items()} == {"Q": (2, 5), "K": (2, 4), "V": (3, 4)}
    for name, array in first.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, again[name])
    assert (draw_inputs(cascade, sizes, 4)["Q"] != first["Q"]).any()


def test_what_stands_in_an_index_is_a_coordinate() -> None:
    text = "rank M, N, T\ninput V[M], I[T], J[T], W[N]\noutput Y\nY[t] = V[I[t]] * W[J[I[t]]]"
    inputs = draw_inputs(parse(text), {"M": 9, "N": 3, "T": 100}, 0)
    assert inputs["I"].dtype.kind == inputs["J"].dtype.kind == "i"
    assert set(inputs["I"]) == set(range(9))
    assert set(inputs["J"]) == set(range(3))


def test_coordinates_that_are_copied_first_are_coordinates() -> None:
    text = "rank M, T\ninput V[M], I[T]\noutput Y\nJ[t] = I[t]\nY[t] = V[J[t]]"
    assert set(draw_inputs(parse(text), {"M": 4, "T": 100}, 0)["I"]) == {0, 1, 2, 3}


def test_what_stands_in_a_filter_is_a_length() -> None:
    text = "rank M, B\ninput V[B,M], LEN[B]\noutput Y\nY[b] = V[b, m: m<LEN[b]]"
    lengths = draw_inputs(parse(text), {"M": 3, "B": 100}, 0)["LEN"]
    assert set(lengths) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", names())
def test_small_shapes_keep_indices_inside(name: str) -> None:
    cascade = load(name)
    opened, tiny = shrunk(cascade, dict.fromkeys(cascade.rank_names, 1000), 4)
    check_ranges(opened, tiny)
    wholes = {split.whole for split in cascade.splits}
    assert max(size for rank, size in tiny.items() if rank not in wholes) <= 12


def test_sizes_in_the_text_shrink_too() -> None:
    cascade = parse("rank M = 4096, P\ninput A[M,P]\noutput Y\nY[p] = A[m,p]")
    _, tiny = shrunk(cascade, {"M": 4096, "P": 4096}, 4)
    assert max(tiny.values()) <= 4


def test_a_cascade_that_needs_large_ranks_says_why() -> None:
    cascade = parse("rank M\ninput A[M]\noutput Y\nY[] = A[500]")
    with pytest.raises(EinfuseError, match="reaches 500"):
        shrunk(cascade, {"M": 1000}, 4)
