"""Sums of products against numpy.einsum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from einfuse.einsum.execution.contraction import contract
from einfuse.einsum.execution.numpy_backend import NumpyBackend

EXTENTS = (2, 3, 4, 5, 3)


def over(axes: str, dtype: type = np.float64) -> np.ndarray:
    """Return random numbers over some of the axes a to e, of size 1 along the others."""
    shape = [n if "abcde"[k] in axes else 1 for k, n in enumerate(EXTENTS)]
    return np.random.default_rng(len(axes)).integers(-4, 5, shape).astype(dtype)


def contracted(factors: list[np.ndarray], summed: str) -> np.ndarray:
    places = ["abcde".index(axis) for axis in summed]
    layout = [k for k in range(5) if k not in places]
    dtype = np.dtype(np.float64)
    return contract(NumpyBackend(), dtype, factors, EXTENTS, places, layout).data


def expected(factors: list[np.ndarray], summed: str) -> np.ndarray:
    product = np.ones(EXTENTS)
    for factor in factors:
        product = product * factor
    return product.sum(tuple("abcde".index(axis) for axis in summed), keepdims=True)


AXES = st.sets(st.sampled_from("abcde")).map(lambda s: "".join(sorted(s)))


@settings(max_examples=150, deadline=None)
@given(st.lists(AXES, min_size=1, max_size=4), AXES)
def test_any_product_sums_as_einsum_says(factors: list[str], summed: str) -> None:
    arrays = [over(axes) for axes in factors]
    found, truth = contracted(arrays, summed), expected(arrays, summed)
    np.testing.assert_allclose(np.broadcast_to(found, truth.shape), truth, rtol=1e-12)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)])
def test_any_memory_layout_is_taken(order: tuple[int, ...]) -> None:
    a = over("abc").transpose(order).copy().transpose(np.argsort(order))
    b = over("bcd")[..., ::-1, :]
    found, truth = contracted([a, b], "c"), expected([a, b], "c")
    np.testing.assert_allclose(np.broadcast_to(found, truth.shape), truth)


def test_whole_numbers_are_exact_beyond_what_a_double_holds() -> None:
    a = np.full((1, 3, 1, 1, 1), 2**40, np.int64)
    b = np.full((1, 3, 4, 1, 1), 2**21 + 1, np.int64)
    found = contracted([a, b], "b")
    assert found.dtype == np.int64
    assert set(found.ravel().tolist()) == {3 * 2**40 * (2**21 + 1)}


def test_half_precision_adds_up_in_single() -> None:
    ones = np.ones((2, 3, 4, 5, 3), np.float16)
    backend = NumpyBackend()
    many = np.ones((5000, 2), np.float16)  # 2049 is no half: a half sum would stop at 2048
    assert backend.sum(many, (0,)).ravel().tolist() == [5000, 5000]
    assert contracted([ones, ones], "c").dtype == np.float16
