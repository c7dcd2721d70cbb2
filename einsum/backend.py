"""Where arrays live: NumPy and PyTorch behind one thin class, `Backend`.

Both libraries share operators, ``reshape`` and indexing; a backend holds only what differs.
Truth arrays are boolean; coordinates are 64-bit integers.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from .errors import EinfuseError
from .functions import CoordinateOperator, Function, Monoid

Array: TypeAlias = Any  # numpy.ndarray or torch.Tensor, whichever the backend handles
DType: TypeAlias = Any  # the backend's own kind of dtype
Operand: TypeAlias = Any  # an Array or a Python number

NAMES = ("numpy", "torch")
"""The backends there are."""


class Backend(Protocol):
    """The operations an execution needs of an array library."""

    name: str

    def import_input(self, name: str, array: object) -> Array:
        """Return an input as an array of this library; EinfuseError if it is none."""

    def dtype_of(self, arrays: Iterable[Array]) -> DType:
        """Return the dtype to compute in: what the floating arrays promote to."""

    def item_bytes(self, dtype: DType) -> int:
        """Return the bytes of one element."""

    def is_array(self, value: Operand) -> bool:
        """Tell an array from a Python number."""

    def is_floating(self, array: Array) -> bool:
        """Tell floating from integer and truth arrays."""

    def is_truth(self, array: Array) -> bool:
        """Tell truth arrays from numbers."""

    def cast(self, array: Array, dtype: DType) -> Array:
        """Return the array in a dtype, itself if it has it."""

    def integers(self, array: Array) -> Array:
        """Return the array as 64-bit integers."""

    def numbers(self, truth: Array, dtype: DType) -> Array:
        """Return a truth array as zeros and ones."""

    def arange(self, count: int) -> Array:
        """Return the coordinates 0 to count - 1."""

    def full(self, shape: Sequence[int], value: float, dtype: DType) -> Array:
        """Return a constant array."""

    def truth(self, shape: Sequence[int], value: bool) -> Array:
        """Return a constant truth array."""

    def transpose(self, array: Array, axes: Sequence[int]) -> Array:
        """Return a view with permuted axes."""

    def broadcast(self, array: Array, shape: Sequence[int]) -> Array:
        """Return a read-only view of that shape."""

    def copy(self, array: Array) -> Array:
        """Return a contiguous copy."""

    def compact(self, array: Array) -> Array:
        """Return the array, copied only if it is not contiguous."""

    def stack(self, arrays: Sequence[Array], axis: int) -> Array:
        """Return arrays of one shape joined along a new axis."""

    def strided(
        self,
        array: Array,
        start: Sequence[int],
        sizes: Sequence[int],
        steps: Sequence[Sequence[int]],
    ) -> Array | None:
        """Return ``view[i] = array[start + sum_n i_n * steps[n]]``, or None if it cannot."""

    def scatter_sum(self, count: int, values: Array, index: Array) -> Array:
        """Return zeros, ``count`` rows of them, with the rows of values added at an index."""

    def scatter_any(self, count: int, truth: Array, index: Array) -> Array:
        """Return ``count`` rows of truth: whether any row that goes there is true."""

    def where(self, truth: Array, chosen: Operand, other: Operand) -> Array:
        """Return chosen where true, other elsewhere, in the dtype of the array among them."""

    def fill(self, array: Array, truth: Array, value: float) -> Array:
        """Return the array with a value where truth is false, overwriting it if it can."""

    def binary(self, operator: str, left: Operand, right: Operand, out: Array | None) -> Array:
        """Return ``left operator right`` for ``+ - * / max min``, into ``out`` if it can."""

    def call(self, function: Function, arguments: Sequence[Operand], out: Array | None) -> Array:
        """Return the function's value, into ``out`` if it can."""

    def fold(self, monoid: Monoid, array: Array, axes: tuple[int, ...]) -> Array:
        """Return the fold along axes, kept with size 1."""

    def any(self, truth: Array, axes: tuple[int, ...]) -> Array:
        """Return whether any is true along axes, kept with size 1."""

    def select(
        self, operator: CoordinateOperator, array: Array, count: int, axis: int
    ) -> tuple[Array, Array]:
        """Return values and coordinates that a coordinate operator chooses along an axis."""

    def take_along(self, array: Array, coordinates: Array, axis: int) -> Array:
        """Return the elements at coordinates along an axis."""

    def sum(self, array: Array, axes: tuple[int, ...]) -> Array:
        """Return the sum along axes, kept with size 1; half precision adds up in single."""

    def as_float64(self, array: Array) -> Array:
        """Return the array in double precision."""

    def matmul(self, left: Array, right: Array) -> Array:
        """Return the batched matrix product."""

    def row_dot(self, left: Array, right: Array, axes: tuple[int, ...]) -> Array:
        """Return ``sum(left * right)`` along axes, kept with size 1, without the product."""

    def is_finite(self, array: Array) -> bool:
        """Tell whether every element is finite."""

    def available_bytes(self) -> int | None:
        """Return the memory that is free for arrays, None where it cannot be told."""

    def quiet(self) -> Any:
        """Return a context in which inf and NaN come about without a warning."""


def backend_of(name: str, inputs: Mapping[str, object]) -> Backend:
    """Return a backend by its name, for the device of the inputs.

    Raises:
        EinfuseError: the name is unknown, torch is not installed, or the inputs stand on
            several devices.
    """
    if name == "numpy":
        return NumpyBackend()
    if name == "torch":
        try:
            torch = importlib.import_module("torch")
        except ModuleNotFoundError:
            raise EinfuseError(
                "backend torch: PyTorch is not installed; pip install 'einfuse[gpu]' or torch"
            ) from None
        return TorchBackend(torch, inputs)
    raise EinfuseError(f"unknown backend '{name}'; there is {', '.join(NAMES)}")


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

    def is_floating(self, array: Array) -> bool:
        return bool(array.dtype.kind == "f")

    def is_truth(self, array: Array) -> bool:
        return bool(array.dtype.kind == "b")

    def cast(self, array: Array, dtype: DType) -> Array:
        return array.astype(dtype, copy=False)

    def integers(self, array: Array) -> Array:
        return array.astype(np.int64, copy=False)

    def numbers(self, truth: Array, dtype: DType) -> Array:
        return truth.astype(dtype)

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
        np.add.at(result, index, values)
        return result

    def scatter_any(self, count: int, truth: Array, index: Array) -> Array:
        result = np.zeros((count, *truth.shape[1:]), dtype=bool)
        np.logical_or.at(result, index, truth)
        return result

    def where(self, truth: Array, chosen: Operand, other: Operand) -> Array:
        return np.asarray(np.where(truth, chosen, other))

    def fill(self, array: Array, truth: Array, value: float) -> Array:
        np.copyto(array, value, where=~truth)
        return array

    def binary(self, operator: str, left: Operand, right: Operand, out: Array | None) -> Array:
        return np.asarray(self._BINARY[operator](left, right, out=out))

    def call(self, function: Function, arguments: Sequence[Operand], out: Array | None) -> Array:
        if out is not None and isinstance(function.numpy, np.ufunc):
            return function.numpy(*arguments, out=out)
        return np.asarray(function.numpy(*arguments))

    def fold(self, monoid: Monoid, array: Array, axes: tuple[int, ...]) -> Array:
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
        wide = np.float32 if array.dtype == np.float16 else array.dtype
        total = np.asarray(array.sum(axis=axes, keepdims=True, dtype=wide))
        return total.astype(array.dtype, copy=False)

    def as_float64(self, array: Array) -> Array:
        return array.astype(np.float64)

    def matmul(self, left: Array, right: Array) -> Array:
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
        return _available_main_memory()

    def quiet(self) -> Any:
        return np.errstate(all="ignore")


def _for_blas(array: Array) -> Array:
    """Return an array whose matrices BLAS takes as they are, transposed or not."""
    rows, columns = array.strides[-2:]
    item = array.itemsize
    plain = columns == item and rows >= item * array.shape[-1] and rows % item == 0
    turned = rows == item and columns >= item * array.shape[-2] and columns % item == 0
    return array if plain or turned else np.ascontiguousarray(array)


class TorchBackend:
    """Tensors on the device of the inputs; autograd follows every operation."""

    name = "torch"

    def __init__(self, torch: Any, inputs: Mapping[str, object]) -> None:
        self._torch = torch
        devices = {n: a.device for n, a in inputs.items() if isinstance(a, torch.Tensor)}
        if len(set(devices.values())) > 1:
            listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
            raise EinfuseError(f"expected all inputs on one device, found {listed}")
        self.device = next(iter(devices.values()), torch.device("cpu"))
        self._binary: Mapping[str, Callable[..., Array]] = {
            "+": torch.add,
            "-": torch.sub,
            "*": torch.mul,
            "/": torch.true_divide,
        }

    def import_input(self, name: str, array: object) -> Array:
        try:
            result = self._torch.as_tensor(array, device=self.device)
        except (ValueError, TypeError, RuntimeError) as error:
            raise EinfuseError(f"input {name}: expected a tensor of numbers: {error}") from None
        if result.is_complex():
            raise EinfuseError(
                f"input {name}: expected real or whole numbers, found dtype {result.dtype}"
            )
        return result

    def dtype_of(self, arrays: Iterable[Array]) -> DType:
        floating = [a.dtype for a in arrays if a.is_floating_point()]
        if not floating:
            return self._torch.get_default_dtype()
        return functools.reduce(self._torch.promote_types, floating)

    def item_bytes(self, dtype: DType) -> int:
        return int(dtype.itemsize)

    def is_array(self, value: Operand) -> bool:
        return bool(self._torch.is_tensor(value))

    def is_floating(self, array: Array) -> bool:
        return bool(array.is_floating_point())

    def is_truth(self, array: Array) -> bool:
        return bool(array.dtype == self._torch.bool)

    def cast(self, array: Array, dtype: DType) -> Array:
        return array.to(dtype)

    def integers(self, array: Array) -> Array:
        return array.to(self._torch.int64)

    def numbers(self, truth: Array, dtype: DType) -> Array:
        return truth.to(dtype)

    def arange(self, count: int) -> Array:
        return self._torch.arange(count, device=self.device)

    def full(self, shape: Sequence[int], value: float, dtype: DType) -> Array:
        return self._torch.full(tuple(shape), value, dtype=dtype, device=self.device)

    def truth(self, shape: Sequence[int], value: bool) -> Array:
        return self._torch.full(tuple(shape), value, dtype=self._torch.bool, device=self.device)

    def transpose(self, array: Array, axes: Sequence[int]) -> Array:
        return array.permute(tuple(axes))

    def broadcast(self, array: Array, shape: Sequence[int]) -> Array:
        return array.expand(tuple(shape))

    def copy(self, array: Array) -> Array:
        return array.clone(memory_format=self._torch.contiguous_format)

    def compact(self, array: Array) -> Array:
        return array.contiguous()

    def stack(self, arrays: Sequence[Array], axis: int) -> Array:
        return self._torch.stack(list(arrays), axis)

    def strided(
        self,
        array: Array,
        start: Sequence[int],
        sizes: Sequence[int],
        steps: Sequence[Sequence[int]],
    ) -> Array | None:
        strides = [sum(c * s for c, s in zip(step, array.stride(), strict=True)) for step in steps]
        if min(strides, default=0) < 0:  # torch has no backward views
            return None
        offset = sum(s * stride for s, stride in zip(start, array.stride(), strict=True))
        return array.as_strided(tuple(sizes), strides, array.storage_offset() + offset)

    def scatter_sum(self, count: int, values: Array, index: Array) -> Array:
        shape = (count, *values.shape[1:])
        result = self._torch.zeros(shape, dtype=values.dtype, device=self.device)
        return result.index_add(0, index, values)

    def scatter_any(self, count: int, truth: Array, index: Array) -> Array:
        counts = self._torch.zeros((count, *truth.shape[1:]), dtype=self._torch.int64)
        return counts.to(self.device).index_add(0, index, truth.long()) > 0

    def where(self, truth: Array, chosen: Operand, other: Operand) -> Array:
        like = chosen if self.is_array(chosen) else other
        if not self.is_array(chosen):
            chosen = self.full((), chosen, like.dtype)
        if not self.is_array(other):
            other = self.full((), other, like.dtype)
        return self._torch.where(truth, chosen, other)

    def fill(self, array: Array, truth: Array, value: float) -> Array:
        if array.requires_grad:
            return array.masked_fill(~truth, value)
        return array.masked_fill_(~truth, value)

    def binary(self, operator: str, left: Operand, right: Operand, out: Array | None) -> Array:
        if operator in ("max", "min"):
            choose = self._torch.maximum if operator == "max" else self._torch.minimum
            like = left if self.is_array(left) else right
            left, right = (
                v if self.is_array(v) else self.full((), v, like.dtype) for v in (left, right)
            )
            return choose(left, right)
        if out is None or self._follows_gradients(left, right):
            return self._binary[operator](left, right)
        return self._binary[operator](left, right, out=out)

    def _follows_gradients(self, *operands: Operand) -> bool:
        return any(self.is_array(o) and o.requires_grad for o in operands)

    def call(self, function: Function, arguments: Sequence[Operand], out: Array | None) -> Array:
        return function.torch(*arguments)

    def fold(self, monoid: Monoid, array: Array, axes: tuple[int, ...]) -> Array:
        result = monoid.torch(array, axes)
        for axis in sorted(axes):
            result = result.unsqueeze(axis)
        return result

    def any(self, truth: Array, axes: tuple[int, ...]) -> Array:
        return truth.any(dim=axes, keepdim=True)

    def select(
        self, operator: CoordinateOperator, array: Array, count: int, axis: int
    ) -> tuple[Array, Array]:
        values, coordinates = operator.torch(array, count, axis)
        return values, coordinates

    def take_along(self, array: Array, coordinates: Array, axis: int) -> Array:
        return self._torch.take_along_dim(array, coordinates, axis)

    def sum(self, array: Array, axes: tuple[int, ...]) -> Array:
        return array.sum(dim=axes, keepdim=True)

    def as_float64(self, array: Array) -> Array:
        return array.to(self._torch.float64)

    def matmul(self, left: Array, right: Array) -> Array:
        return self._torch.matmul(left, right)

    def row_dot(self, left: Array, right: Array, axes: tuple[int, ...]) -> Array:
        return (left * right).sum(dim=axes, keepdim=True)

    def is_finite(self, array: Array) -> bool:
        return bool(self._torch.isfinite(array).all())

    def available_bytes(self) -> int | None:
        if self.device.type == "cuda":
            return int(self._torch.cuda.mem_get_info(self.device)[0])
        return _available_main_memory() if self.device.type == "cpu" else None

    def quiet(self) -> Any:
        return np.errstate(all="ignore")


def _available_main_memory() -> int | None:
    """Return the bytes this process may still take, by the kernel's and the group's account."""
    from pathlib import Path

    found = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = (group / "memory.current").read_text(encoding="ascii").strip()
        if limit != "max":
            found.append(max(0, int(limit) - int(used)))
    except (OSError, ValueError):
        pass
    return min(found, default=None) if found else None
