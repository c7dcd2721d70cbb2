"""Arrays in main memory: the NumPy side of `Backend`, where its methods are described."""

# ruff: noqa: D102

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.function_row import Function
from einfuse.einsum.language.functions import CoordinateOperator, Monoid

from .backend import Array, DType, Operand, available_main_memory_bytes


class NumpyBackend:
    """Arrays in main memory."""

    name = "numpy"

    _BINARY: Mapping[str, np.ufunc] = {
        "+": np.add,
        "-": np.subtract,
        "*": np.multiply,
        "/": np.true_divide,
        "max": np.maximum,
        "min": np.minimum,
    }

    def import_input(self, name: str, array: object) -> Array:
        if isinstance(array, np.ma.MaskedArray) and np.any(np.ma.getmask(array)):
            raise EinfuseError(
                f"input {name}: a masked array, whose mask a cascade does not see: fill it, and "
                "give the mask as an input of its own"
            )
        try:
            result = np.asarray(array)
        except (ValueError, TypeError, RuntimeError) as error:
            raise EinfuseError(f"input {name}: expected an array of numbers: {error}") from None
        if result.dtype.kind not in "biuf":
            raise EinfuseError(
                f"input {name}: expected real or whole numbers, found dtype {result.dtype}"
            )
        if not result.dtype.isnative:
            result = result.astype(result.dtype.newbyteorder("="))
        return result

    def dtype_of(self, arrays: Iterable[Array]) -> DType:
        floating = [a.dtype for a in arrays if a.dtype.kind == "f"]
        return np.result_type(*floating) if floating else np.dtype(np.float64)

    def item_bytes(self, dtype: DType) -> int:
        return int(np.dtype(dtype).itemsize)

    def is_array(self, value: Operand) -> bool:
        return isinstance(value, np.ndarray)

    def follows_gradients(self, *operands: Operand) -> bool:
        return False

    def is_floating(self, array: Array) -> bool:
        return bool(array.dtype.kind == "f")

    def cast(self, array: Array, dtype: DType) -> Array:
        return array.astype(dtype, copy=False)

    def integers(self, array: Array) -> Array:
        if array.dtype.kind != "i" and array.dtype.itemsize == 8:
            _require_range(_largest(array), 2.0**53 if array.dtype.kind == "f" else 2.0**63)
        return array.astype(np.int64, copy=False)

    def arange(self, count: int) -> Array:
        return np.arange(count, dtype=np.int64)

    def full(self, shape: Sequence[int], value: float, dtype: DType) -> Array:
        return np.full(tuple(shape), value, dtype=dtype)

    def truth(self, shape: Sequence[int], value: bool) -> Array:
        return np.full(tuple(shape), value, dtype=bool)

    def transpose(self, array: Array, axes: Sequence[int]) -> Array:
        return array.transpose(axes)

    def broadcast(self, array: Array, shape: Sequence[int]) -> Array:
        return np.broadcast_to(array, tuple(shape))

    def copy(self, array: Array) -> Array:
        return np.array(array, order="C")

    def compact(self, array: Array) -> Array:
        return array if array.flags.c_contiguous else array.copy()

    def stack(self, arrays: Sequence[Array], axis: int) -> Array:
        return np.stack(arrays, axis)

    def strided(
        self,
        array: Array,
        start: Sequence[int],
        sizes: Sequence[int],
        steps: Sequence[Sequence[int]],
    ) -> Array | None:
        corner = array[tuple(slice(s, None) for s in start)]
        strides = [sum(c * s for c, s in zip(step, array.strides, strict=True)) for step in steps]
        return np.lib.stride_tricks.as_strided(corner, tuple(sizes), strides, writeable=False)

    def scatter_sum(self, count: int, values: Array, index: Array) -> Array:
        result = np.zeros((count, *values.shape[1:]), dtype=values.dtype)
        if np.bincount(index, minlength=1).max() <= 1:  # nothing meets: no sum, which is faster
            result[index] = values
        else:
            np.add.at(result, index, values)
        return result

    def scatter_any(self, count: int, truth: Array, index: Array) -> Array:
        result = np.zeros(count, dtype=bool)
        result[index[truth]] = True
        return result

    def where(self, truth: Array, chosen: Operand, other: Operand) -> Array:
        return np.asarray(np.where(truth, chosen, other))

    def fill(self, array: Array, truth: Array, value: float) -> Array:
        np.copyto(array, value, where=~truth)
        return array

    def binary(self, operator: str, left: Operand, right: Operand, out: Array | None) -> Array:
        if operator in ("+", "-", "*") and _is_whole(left) and _is_whole(right):
            one, other = _largest(left), _largest(right)
            _require_range(one * other if operator == "*" else one + other)
        return np.asarray(self._BINARY[operator](left, right, out=out))

    def call(self, function: Function, arguments: Sequence[Operand], out: Array | None) -> Array:
        if out is not None and isinstance(function.numpy, np.ufunc):
            return function.numpy(*arguments, out=out)
        return np.asarray(function.numpy(*arguments))

    def fold(self, monoid: Monoid, array: Array, axes: tuple[int, ...]) -> Array:
        if _is_whole(array) and monoid.operation in ("add", "multiply"):
            count = math.prod(array.shape[axis] for axis in axes)
            largest = _largest(array)
            grown = count * math.log2(max(1.0, largest))
            sums = monoid.operation == "add"
            _require_range(largest * count if sums else 2.0 ** min(grown, 64.0))
        return np.expand_dims(np.asarray(monoid.fold(array, axes)), axes)

    def any(self, truth: Array, axes: tuple[int, ...]) -> Array:
        return np.asarray(truth.any(axis=axes, keepdims=True))

    def select(
        self, operator: CoordinateOperator, array: Array, count: int, axis: int
    ) -> tuple[Array, Array]:
        return operator.numpy(array, count, axis)

    def take_along(self, array: Array, coordinates: Array, axis: int) -> Array:
        return np.take_along_axis(array, coordinates, axis)

    def sum(self, array: Array, axes: tuple[int, ...]) -> Array:
        if _is_whole(array):
            _require_range(_largest(array) * math.prod(array.shape[axis] for axis in axes))
        wide = np.float32 if array.dtype == np.float16 else array.dtype
        total = np.asarray(array.sum(axis=axes, keepdims=True, dtype=wide))
        return total.astype(array.dtype, copy=False)

    def as_float64(self, array: Array) -> Array:
        return array.astype(np.float64)

    def matmul(self, left: Array, right: Array) -> Array:
        if _is_whole(left) and _is_whole(right):
            _require_range(_largest(left) * _largest(right) * left.shape[-1])
        if left.dtype == np.float16:  # BLAS has no half precision
            return np.matmul(left.astype(np.float32), right.astype(np.float32)).astype(np.float16)
        return np.matmul(_for_blas(left), _for_blas(right))

    def row_dot(self, left: Array, right: Array, axes: tuple[int, ...]) -> Array:
        every = list(range(left.ndim))
        kept = [axis for axis in every if axis not in axes]
        return np.expand_dims(np.asarray(np.einsum(left, every, right, every, kept)), axes)

    def is_finite(self, array: Array) -> bool:
        return bool(np.isfinite(array.sum(dtype=np.float64)) or np.isfinite(array).all())

    def available_bytes(self) -> int | None:
        return available_main_memory_bytes()

    def quiet(self) -> Any:
        return np.errstate(all="ignore")


def _for_blas(array: Array) -> Array:
    """Return an array whose matrices BLAS takes as they are, transposed or not."""
    rows, columns = array.strides[-2:]
    item = array.itemsize
    plain = columns == item and rows >= item * array.shape[-1] and rows % item == 0
    turned = rows == item and columns >= item * array.shape[-2] and columns % item == 0
    return array if plain or turned else np.ascontiguousarray(array)


def _is_whole(operand: Operand) -> bool:
    return isinstance(operand, int) or (
        isinstance(operand, np.ndarray | np.generic) and operand.dtype.kind in "iu"
    )


def _largest(operand: Operand) -> float:
    """The largest absolute value."""
    if not isinstance(operand, np.ndarray):
        return abs(float(operand))
    if not operand.size:
        return 0.0
    return max(abs(float(operand.min())), abs(float(operand.max())))


def _require_range(largest: float, limit: float = 2.0**63) -> None:
    if largest >= limit:
        raise EinfuseError(
            "whole numbers may grow beyond 64 bits: give the inputs as float64, or smaller ones"
        )
