"""Sums of products as matrix products: `contract`.

Factors are arrays over one space, with a dimension for each axis, of size 1 where a factor does
not depend on it. Pairs are contracted in the order that keeps intermediates smallest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from .backend import Array, Backend, DType, Operand

_EXACT = 2**53  # whole numbers that float64 holds exactly


@dataclass(frozen=True, slots=True)
class Result:
    """A contracted array, the summed axes kept with size 1, and whether its buffer is new."""

    data: Array
    owned: bool


def contract(
    backend: Backend,
    dtype: DType,
    factors: Sequence[Operand],
    extents: Sequence[int],
    summed: Sequence[int],
    layout: Sequence[int],
) -> Result:
    """Return the product of the factors, summed over axes.

    Args:
        backend: the array library.
        dtype: what plain numbers become if there is no other factor.
        factors: arrays over the space, or numbers.
        extents: the extent of every axis of the space.
        summed: the axes to sum over.
        layout: the axes that are kept, in the order in which the result should lie in memory.
    """
    numbers: list[Operand] = []
    arrays: list[Array] = []
    for factor in factors:
        if backend.is_array(factor) and any(size != 1 for size in factor.shape):
            arrays.append(factor)
        else:
            numbers.append(factor)
    covered = {a for array in arrays for a in summed if array.shape[a] != 1}
    repeats = math.prod(extents[a] for a in summed if a not in covered)
    if repeats != 1:
        numbers.append(repeats)
    if not arrays:
        data: Operand = backend.full((1,) * len(extents), 1, dtype)
        for number in numbers:
            data = backend.binary("*", data, number, None)
        return Result(data, True)
    fresh = [False] * len(arrays)
    arrays = _of_one_kind(backend, dtype, arrays, numbers)
    arrays, fresh = _fold_lonely(backend, arrays, fresh, summed)
    smallest = min(range(len(arrays)), key=lambda k: _elements(arrays[k].shape))
    for number in numbers:
        arrays[smallest] = backend.binary("*", arrays[smallest], number, None)
        fresh[smallest] = True
    while len(arrays) > 1:
        i, j = _cheapest_pair(arrays, summed)
        others = [array for k, array in enumerate(arrays) if k not in (i, j)]
        done = tuple(a for a in summed if all(other.shape[a] == 1 for other in others))
        product = _pair(backend, arrays[i], arrays[j], done, layout)
        arrays, fresh = [*others, product], [False] * len(others) + [True]
    return Result(arrays[0], fresh[0])


def _elements(shape: Sequence[int]) -> int:
    return math.prod(shape)


def _of_one_kind(
    backend: Backend, dtype: DType, arrays: Sequence[Array], numbers: Sequence[Operand]
) -> list[Array]:
    """Return the factors in one dtype: the floating one they promote to, or 64-bit integers."""
    floating = [a for a in arrays if backend.is_floating(a)]
    scalars = [n for n in numbers if backend.is_array(n) and backend.is_floating(n)]
    if floating or scalars:
        target = backend.dtype_of([*floating, *scalars])
    elif any(isinstance(n, float) for n in numbers):
        target = dtype
    else:
        return [backend.integers(a) for a in arrays]
    return [backend.cast(a, target) for a in arrays]


def _fold_lonely(
    backend: Backend, arrays: list[Array], fresh: list[bool], summed: Sequence[int]
) -> tuple[list[Array], list[bool]]:
    """Sum over axes that only one factor has."""
    for k, array in enumerate(arrays):
        lonely = tuple(
            a
            for a in summed
            if array.shape[a] != 1
            and all(other.shape[a] == 1 for n, other in enumerate(arrays) if n != k)
        )
        if lonely:
            arrays[k], fresh[k] = backend.sum(array, lonely), True
    return arrays, fresh


def _cheapest_pair(arrays: Sequence[Array], summed: Sequence[int]) -> tuple[int, int]:
    def growth(pair: tuple[int, int]) -> int:
        i, j = pair
        others = [array for k, array in enumerate(arrays) if k not in pair]
        a, b = arrays[i].shape, arrays[j].shape
        size = math.prod(
            1
            if axis in summed and all(other.shape[axis] == 1 for other in others)
            else max(a[axis], b[axis])
            for axis in range(len(a))
        )
        grown: int = size - _elements(a) - _elements(b)
        return grown

    return min(combinations(range(len(arrays)), 2), key=growth)


def _pair(
    backend: Backend, a: Array, b: Array, summed: Sequence[int], layout: Sequence[int]
) -> Array:
    """Return ``sum(a * b)`` over axes, as a product of matrices where both sides have rows."""
    axes = range(len(a.shape))
    inner = [k for k in summed if a.shape[k] != 1 or b.shape[k] != 1]
    if not inner:
        return backend.binary("*", a, b, None)
    batch = [k for k in axes if k not in inner and a.shape[k] != 1 and b.shape[k] != 1]
    rows = [k for k in axes if k not in inner and a.shape[k] != 1 and b.shape[k] == 1]
    columns = [k for k in axes if k not in inner and a.shape[k] == 1 and b.shape[k] != 1]
    if not rows and not columns:
        return backend.row_dot(a, b, tuple(inner))
    place = {axis: n for n, axis in enumerate(layout)}
    order = sorted([*rows, *columns], key=lambda k: place.get(k, -1))
    if order[-1] in rows:
        a, b, rows, columns = b, a, columns, rows
    batch.sort(key=lambda k: place.get(k, -1))
    rows.sort(key=lambda k: place.get(k, -1))
    columns.sort(key=lambda k: place.get(k, -1))
    product = backend_matmul(
        backend,
        _matrices(backend, a, batch, rows, inner),
        _matrices(backend, b, batch, inner, columns),
    )
    dims = [*batch, *rows, *columns]
    sizes = [max(a.shape[k], b.shape[k]) for k in dims]
    product = product.reshape(sizes)
    order = sorted(range(len(dims)), key=lambda n: dims[n])
    product = backend.transpose(product, order)
    return product[tuple(slice(None) if k in dims else None for k in axes)]


def _matrices(
    backend: Backend,
    array: Array,
    batch: Sequence[int],
    rows: Sequence[int],
    columns: Sequence[int],
) -> Array:
    """Return the array as matrices, ``[*batch, rows, columns]``."""
    kept = [*batch, *rows, *columns]
    shape = [array.shape[k] for k in kept]
    gone = tuple(slice(None) if k in kept else 0 for k in range(len(array.shape)))
    left = sorted(kept)
    moved = backend.transpose(array[gone], [left.index(k) for k in kept])
    first = shape[: len(batch)]
    split = len(batch) + len(rows)
    return moved.reshape([*first, math.prod(shape[len(batch) : split]), math.prod(shape[split:])])


def backend_matmul(backend: Backend, left: Array, right: Array) -> Array:
    """Return the batched matrix product; of whole numbers through float64 where that is exact."""
    if backend.is_floating(left):
        return backend.matmul(left, right)
    bound = _largest(left) * _largest(right) * left.shape[-1]
    if bound < _EXACT:
        return backend.integers(backend.matmul(backend.as_float64(left), backend.as_float64(right)))
    return backend.matmul(left, right)


def _largest(array: Array) -> int:
    return max(abs(int(array.max())), abs(int(array.min()))) if math.prod(array.shape) else 0
