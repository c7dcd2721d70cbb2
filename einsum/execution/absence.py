"""Arithmetic on values of which some are absent.

Empty is not zero. A filter leaves points absent; ``max`` over nothing, a quotient by an absent
denominator and any function of an absent argument are absent; a sum or maximum skips what is
absent. docs/decisions/0003-absent-values.md gives the reasons.

An absent point stands for its *empty* value only where something must be said of it: on the left
of a difference, and in a result. That is the identity of the maximum or minimum it comes from,
carried through arithmetic while it stays infinite, and 0 otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from einfuse.einsum.language.function_row import Function
from einfuse.einsum.language.functions import DEFAULT_MERGES, Monoid

from .backend import Array, Backend, DType, Operand

_NEUTRAL = {"+": (0.0, 0.0), "*": (1.0, 1.0), "max": (-math.inf,) * 2, "min": (math.inf,) * 2}


@dataclass(frozen=True, slots=True)
class Value:
    """Numbers at the points of a space, some of which may be absent.

    ``data`` is a Python number, or an array with a dimension per axis, of size 1 where it does
    not depend on it. ``present`` likewise, or None where all points are. ``clean`` says that
    absent points hold ``empty``; ``owned`` that nobody else looks at the buffer of ``data``.
    """

    data: Operand
    present: Array | None = None
    empty: float = 0.0
    clean: bool = True
    owned: bool = False


@dataclass(frozen=True, slots=True)
class Touch:
    """Which operands must be present at a point for it to be touched; neither: one of them."""

    left: bool
    right: bool


def touch_of(
    operator: str, merge: str | None, left: frozenset[str], right: frozenset[str]
) -> Touch:
    """Return which operands a merge requires, given the rank variables of both.

    A rank that only one operand has takes its coordinates from there, so that operand is
    required whatever the merge says.

    >>> touch_of("-", None, frozenset("mp"), frozenset("p"))
    Touch(left=True, right=False)
    >>> touch_of("+", None, frozenset("p"), frozenset("p"))
    Touch(left=False, right=False)
    """
    merge = merge or DEFAULT_MERGES.get(operator, "inter")
    return Touch(
        left=merge in ("left", "inter") or not left <= right,
        right=merge in ("right", "inter") or not right <= left or operator == "/",
    )


def empty_of(operator: str, touch: Touch, left: float, right: float) -> float:
    """Return the empty value of ``left operator right``: infinite, or 0."""
    if operator in ("max", "min"):
        return _NEUTRAL[operator][0]
    if operator in ("+", "-"):
        right = -right if operator == "-" else right
        if touch.left != touch.right:
            left, right = (left, 0.0) if touch.left else (0.0, right)
        return infinite_or_zero(left + right)
    if operator == "*":  # a scale keeps the sign
        return infinite_or_zero(left if math.isinf(left) else right)
    return infinite_or_zero(left)


def infinite_or_zero(value: float) -> float:
    """Return the value if it is infinite, else 0."""
    return float(value) if math.isinf(value) else 0.0


def empty_of_call(function: Function, arguments: Sequence[float]) -> float:
    """Return the empty value of a function: what it gives on one infinite empty value, or 0.

    A logarithm of nothing is -inf, as that of 0 is: a log-sum-exp over nothing.
    """
    if function.name in ("max", "min"):
        return _NEUTRAL[function.name][0]
    if function.name == "where":
        return next((e for e in arguments[1:] if math.isinf(e)), 0.0)
    if len(arguments) != 1 or (arguments[0] == 0 and function.at(0.0) != -math.inf):
        return 0.0
    return infinite_or_zero(function.at(arguments[0]))


class Arithmetic:
    """Operators, functions and folds over `Value`, in one dtype of one backend."""

    def __init__(self, backend: Backend, dtype: DType) -> None:
        self.backend = backend
        self.dtype = dtype

    def filled(self, value: Value, fill: float) -> Operand:
        """Return the data with absent points set to a number."""
        if value.present is None or (value.clean and value.empty == fill):
            return value.data
        data = self.as_array(value).data
        if not self.backend.is_floating(data):
            if math.isinf(fill):
                fill = int(math.copysign(2**62, fill))
            data = self.backend.integers(data)
        return self.backend.where(value.present, data, fill)

    def cleaned(self, value: Value) -> Value:
        """Return the value with absent points holding the empty value, and no idle mask."""
        present = value.present
        if present is None:
            return value
        if bool(present.all()):
            return replace(value, present=None, clean=True)
        if value.clean:
            return value
        value = self.as_array(value)
        shape = np.broadcast_shapes(value.data.shape, present.shape)
        if value.owned and self.backend.is_floating(value.data) and value.data.shape == shape:
            data = self.backend.fill(value.data, present, value.empty)
        else:
            data = self.filled(value, value.empty)
        return replace(value, data=data, clean=True, owned=True)

    def as_array(self, value: Value, ndim: int = 0) -> Value:
        """Return the value with a number made an array of the dtype."""
        if self.backend.is_array(value.data):
            return value
        data = self.backend.full((1,) * ndim, value.data, self.dtype)
        return replace(value, data=data, owned=True)

    def absent(self, ndim: int, empty: float) -> Value:
        """Return the value that is absent everywhere."""
        return Value(empty, self.backend.truth((1,) * ndim, False), empty)

    def binary(self, operator: str, left: Value, right: Value, touch: Touch) -> Value:
        """Return ``left operator right`` for ``+ - * / max min``."""
        present = self._touched(touch, left.present, right.present)
        before, after = _NEUTRAL.get(operator, (left.empty if operator == "-" else 0.0, 0.0))
        first, second = left, right
        if not touch.left:
            first = replace(left, data=self.filled(left, before))
        if not touch.right:
            second = replace(right, data=self.filled(right, after))
        if operator in ("*", "/"):
            first, second = self._differentiable(first), self._differentiable(second)
        empty = empty_of(operator, touch, left.empty, right.empty)
        if operator in ("*", "/") and empty and _negative(left, right):
            empty = -empty
        neutral = not touch.left and not touch.right and operator in ("+", "max", "min")
        clean = present is None or (neutral and empty == before)
        data, owned = self._combine(operator, first, second)
        return Value(data, present, empty, clean, owned)

    def negated(self, value: Value) -> Value:
        """Return minus the value."""
        product = self.binary("*", value, Value(-1), Touch(True, True))
        return replace(product, empty=-value.empty if value.empty else 0.0)

    def call(self, function: Function, arguments: Sequence[Value], merge: str | None) -> Value:
        """Return a function's value; `max` and `min` go through `binary`."""
        empty = empty_of_call(function, [a.empty for a in arguments])
        if len(arguments) == 1 and arguments[0].present is None:
            empty = 0.0  # never absent
        if function.name == "where":
            return self._choose(function, arguments, empty)
        present = None
        for count, argument in enumerate(arguments):
            if count == 0:
                present = argument.present
            elif merge == "union":
                present = self._either(present, argument.present)
            elif merge == "right":
                present = argument.present
            elif merge != "left":
                present = self._both(present, argument.present)
        if merge in ("union", "left", "right"):
            arguments = [replace(a, data=self.filled(a, a.empty)) for a in arguments]
        arguments = [self._differentiable(argument) for argument in arguments]
        operands = self._operands(function, [a.data for a in arguments])
        if not any(self.backend.is_array(operand) for operand in operands):
            with np.errstate(all="ignore"):
                return Value(float(function.numpy(*operands)), present, empty, present is None)
        shape = np.broadcast_shapes(*(tuple(getattr(o, "shape", ())) for o in operands))
        out = next(
            (
                operand
                for argument, operand in zip(arguments, operands, strict=True)
                if argument.owned and operand is argument.data and tuple(operand.shape) == shape
            ),
            None,
        )
        data = self.backend.call(function, operands, out)
        return Value(data, present, empty, present is None, True)

    def fold(
        self, monoid: Monoid, value: Value, axes: Sequence[int], sizes: Sequence[int]
    ) -> Value:
        """Return the fold of an array along axes of the given sizes, kept with size 1.

        A fold of nothing is absent; its empty value is the monoid's identity.
        """
        identity = monoid.identity
        empty = infinite_or_zero(identity)
        data, present = self.filled(value, identity), value.present
        repeats = 1
        for axis, size in zip(axes, sizes, strict=True):
            depends = False if present is None else present.shape[axis] != 1
            if data.shape[axis] != 1 or size == 1:
                continue
            if monoid.name == "+" and not depends:
                repeats *= size
            elif depends or monoid.name not in ("max", "min", "any", "all"):
                shape = list(data.shape)
                shape[axis] = size
                data = self.backend.broadcast(data, shape)
        data = self._fold_data(monoid, data, [a for a in axes if data.shape[a] != 1])
        if repeats != 1:
            data = self.backend.binary("*", data, repeats, None)
        if present is not None:
            seen = tuple(a for a in axes if present.shape[a] != 1)
            present = self.backend.any(present, seen) if seen else present
        clean = present is None or identity == empty
        owned = data is not value.data
        return Value(data, present, empty, clean, owned)

    def _fold_data(self, monoid: Monoid, data: Array, axes: Sequence[int]) -> Array:
        if not axes:
            return data
        if not self.backend.is_floating(data):
            data = self.backend.integers(data)
            if monoid.name in ("max", "min") and self.backend.name == "numpy":
                return getattr(data, monoid.name)(axis=tuple(axes), keepdims=True)
        return self.backend.fold(monoid, data, tuple(axes))

    def _combine(self, operator: str, left: Value, right: Value) -> tuple[Operand, bool]:
        a, b = self._aligned(operator, left.data, right.data)
        arrays = [o for o in (a, b) if self.backend.is_array(o)]
        if not arrays:
            return _on_numbers(operator, a, b), False
        shape = np.broadcast_shapes(*(tuple(o.shape) for o in arrays))
        out = None
        for value, operand in ((left, a), (right, b)):
            if (
                value.owned
                and operand is value.data
                and tuple(operand.shape) == shape
                and all(o.dtype == operand.dtype for o in arrays)
                and (self.backend.is_floating(operand))
            ):
                out = operand
                break
        return self.backend.binary(operator, a, b, out), True

    def _aligned(self, operator: str, a: Operand, b: Operand) -> tuple[Operand, Operand]:
        """Return operands in one kind: whole numbers give way to floating ones."""
        is_array, floating = self.backend.is_array, self.backend.is_floating
        whole = [o for o in (a, b) if is_array(o) and not floating(o)]
        if not whole:
            return a, b
        other = [o for o in (a, b) if is_array(o) and floating(o)]
        if other:
            target = other[0].dtype
        elif operator == "/" or any(isinstance(o, float) for o in (a, b)):
            target = self.dtype
        else:
            first, second = (self.backend.integers(o) if is_array(o) else o for o in (a, b))
            return first, second
        return self._as(a, target), self._as(b, target)

    def _as(self, operand: Operand, dtype: DType) -> Operand:
        """Return whole numbers in an array in a dtype, anything else as it is."""
        if self.backend.is_array(operand) and not self.backend.is_floating(operand):
            return self.backend.cast(operand, dtype)
        return operand

    def _operands(self, function: Function, operands: Sequence[Operand]) -> list[Operand]:
        """Return a function's arguments in one kind; all numbers stay numbers."""
        is_array, floating = self.backend.is_array, self.backend.is_floating
        if not any(is_array(o) for o in operands):
            return list(operands)
        whole = function.keeps_whole and not any(
            floating(o) if is_array(o) else isinstance(o, float) for o in operands
        )
        if whole:
            return [
                self.backend.integers(o if is_array(o) else self.backend.arange(1)[0] + o)
                for o in operands
            ]
        return [
            (o if floating(o) else self.backend.cast(o, self.dtype))
            if is_array(o)
            else self.backend.full((), o, self.dtype)
            for o in operands
        ]

    def _choose(self, function: Function, arguments: Sequence[Value], empty: float) -> Value:
        condition, chosen, other = arguments
        operands = self._operands(function, [a.data for a in arguments])
        present = condition.present
        if chosen.present is not None or other.present is not None:
            holds = self.as_array(condition, 0).data != 0
            branches = [
                self.backend.truth((), True) if a.present is None else a.present
                for a in (chosen, other)
            ]
            present = self._both(present, (holds & branches[0]) | (~holds & branches[1]))
        if not any(self.backend.is_array(o) for o in operands):
            data: Operand = operands[1] if operands[0] != 0 else operands[2]
            return Value(data, present, empty, present is None)
        return Value(
            self.backend.call(function, operands, None), present, empty, present is None, True
        )

    def _differentiable(self, value: Value) -> Value:
        """Return the value with absent points at 1, where functions have finite derivatives.

        A derivative of 0 times that of a function at an infinite empty value would be NaN.
        """
        if value.present is None or not self.backend.follows_gradients(value.data):
            return value
        return replace(value, data=self.backend.where(value.present, value.data, 1.0), clean=False)

    def _touched(self, touch: Touch, left: Array | None, right: Array | None) -> Array | None:
        if touch.left and touch.right:
            return self._both(left, right)
        if touch.left:
            return left
        if touch.right:
            return right
        return self._either(left, right)

    @staticmethod
    def _both(left: Array | None, right: Array | None) -> Array | None:
        if left is None or right is None:
            return right if left is None else left
        return left & right

    @staticmethod
    def _either(left: Array | None, right: Array | None) -> Array | None:
        return None if left is None or right is None else left | right


def _negative(*operands: Value) -> bool:
    """Tell whether one of the operands is a negative literal."""
    numbers = [o.data for o in operands if o.present is None and isinstance(o.data, int | float)]
    return any(number < 0 for number in numbers)


def _on_numbers(operator: str, a: float, b: float) -> float:
    """Return a result on Python numbers, by IEEE where Python would raise."""
    match operator:
        case "+":
            return a + b
        case "-":
            return a - b
        case "*":
            return a * b
        case "/":
            with np.errstate(all="ignore"):
                return float(np.float64(a) / np.float64(b))
        case "max":
            return max(a, b)
        case _:
            return min(a, b)
