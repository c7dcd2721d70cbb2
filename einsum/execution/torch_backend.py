"""Tensors on a device, with autograd: the PyTorch side of `Backend`, where its methods are told.

The torch module is handed in, so that the package imports without it.
"""

# ruff: noqa: D102

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.function_row import Function
from einfuse.einsum.language.functions import CoordinateOperator, Monoid

from .backend import Array, DType, Operand, available_main_memory_bytes


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
        self._tracked = any(
            isinstance(a, torch.Tensor) and a.requires_grad for a in inputs.values()
        )
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

    def follows_gradients(self, *operands: Operand) -> bool:
        return self._torch.is_grad_enabled() and any(
            self.is_array(o) and o.requires_grad for o in operands
        )

    def _keeps_all(self) -> bool:
        """Tell whether autograd may hold on to any array, also one without a gradient itself."""
        return self._tracked and bool(self._torch.is_grad_enabled())

    def is_floating(self, array: Array) -> bool:
        return bool(array.is_floating_point())

    def cast(self, array: Array, dtype: DType) -> Array:
        return array.to(dtype)

    def integers(self, array: Array) -> Array:
        return array.to(self._torch.int64)

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
        result = self.truth((count,), False)
        result[index[truth]] = True
        return result

    def where(self, truth: Array, chosen: Operand, other: Operand) -> Array:
        like = chosen if self.is_array(chosen) else other
        if not self.is_array(chosen):
            chosen = self.full((), chosen, like.dtype)
        if not self.is_array(other):
            other = self.full((), other, like.dtype)
        return self._torch.where(truth, chosen, other)

    def fill(self, array: Array, truth: Array, value: float) -> Array:
        if self._keeps_all() or self.follows_gradients(array):
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
        if out is None or self._keeps_all() or self.follows_gradients(left, right):
            return self._binary[operator](left, right)
        return self._binary[operator](left, right, out=out)

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
        return available_main_memory_bytes() if self.device.type == "cpu" else None

    def quiet(self) -> Any:
        return contextlib.nullcontext()
