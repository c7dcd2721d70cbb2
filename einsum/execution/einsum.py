"""One Einsum, evaluated over its whole iteration space: map, reduce, populate.

Sums of products become matrix products; everything else is element-wise over whole arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from einfuse.einsum.language.equation import Einsum, Populate, Reduce
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Coordinate,
    Expression,
    Index,
    Negate,
    Number,
    RankSize,
    accesses,
    walk,
)
from einfuse.einsum.language.functions import coordinate_operator, function, monoid

from .absence import Arithmetic, Value, touch_of
from .backend import Array
from .contraction import contract
from .plan import Plan
from .reading import Reader, Space, coordinate
from .writing import Target, place


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor as it is read: its value, an index and an extent for each of its axes.

    ``value`` is None where nothing has been written yet. ``last`` says that it is read for the
    last time, so that its buffer may be overwritten.
    """

    value: Value | None
    indices: tuple[Index, ...]
    extents: tuple[int, ...]
    last: bool


Fetch = Callable[[Access, Space], Operand]


def evaluate(
    plan: Plan,
    fixed: Mapping[str, int],
    targets: Sequence[Target],
    arithmetic: Arithmetic,
    fetch: Fetch,
) -> tuple[Value, ...]:
    """Return the value of every output, with an axis for each index of its target.

    Args:
        plan: the Einsum's plan.
        fixed: the coordinates of the iterative variables.
        targets: where the outputs go.
        arithmetic: the operators, in the dtype to compute in.
        fetch: gives a tensor's value for an access.
    """
    return _Evaluation(plan, plan.space(fixed), arithmetic, fetch).outputs(targets)


def read_number(
    access: Access, space: Space, arithmetic: Arithmetic, fetch: Fetch
) -> tuple[Array, Array | None]:
    """Return the numbers of an access over a space, and where they are present."""
    alone = Plan(
        Einsum((access,), access), space.variables, space.extents, (), (), frozenset(), {},
        space.sizes, {},
    )  # fmt: skip
    return _Evaluation(alone, space, arithmetic, fetch).number(access)


class _Evaluation:
    """The evaluation of one Einsum; holds what all parts of it need."""

    def __init__(self, plan: Plan, space: Space, arithmetic: Arithmetic, fetch: Fetch) -> None:
        self.plan, self.einsum, self.space = plan, plan.einsum, space
        self.arithmetic, self.backend = arithmetic, arithmetic.backend
        self.fetch = fetch
        self.axes = list(space.variables)
        self.extents = list(space.extents)

    def outputs(self, targets: Sequence[Target]) -> tuple[Value, ...]:
        actions = list(self.plan.actions)
        expression = self.einsum.expression
        match actions:
            case [Reduce(operator="+", variables=summed), *actions]:
                value = self._sum(expression, self._free(summed))
            case _:
                value = self._kept(expression, self.einsum.merge)
        coordinates: Value | None = None
        for action in actions:
            if isinstance(action, Reduce):
                value = self._folded(action.operator, value, self._free(action.variables))
            else:
                value, coordinates = self._populated(value, action)
        found = [value] if coordinates is None else [value, coordinates]
        space = replace(self.space, variables=tuple(self.axes), extents=tuple(self.extents))
        return tuple(
            place(v, space, access, target, self.arithmetic, self.number)
            for v, access, target in zip(found, self.einsum.outputs, targets, strict=False)
        )

    def _free(self, names: Sequence[str]) -> list[str]:
        return [v for v in names if v not in self.space.fixed]

    def _names(self, node: Expression) -> frozenset[str]:
        return self.plan.names[id(node)]

    # Values of expressions.

    def _value(self, node: Expression, merge: str | None = None) -> Value:
        match node:
            case Number(value=number):
                return Value(number)
            case RankSize(rank=rank):
                return Value(self.space.sizes[rank])
            case Coordinate(variable=variable):
                if variable in self.space.fixed:
                    return Value(self.space.fixed[variable])
                return Value(coordinate(variable, self.space, self.backend))
            case Access():
                return self._access(node)
            case Negate(operand=operand):
                return self.arithmetic.negated(self._value(operand, merge))
            case Binary(operator=operator, left=left, right=right):
                touch = touch_of(operator, merge, self._names(left), self._names(right))
                a = self._value(left, merge if _is_binary(left, operator) else None)
                b = self._value(right, merge if _is_binary(right, operator) else None)
                return self.arithmetic.binary(operator, a, b, touch)
            case Call(function=name, arguments=arguments):
                return self._call(name, arguments, merge)

    def _kept(self, node: Expression, merge: str | None = None) -> Value:
        """Return a value that is kept as it is: an infinite literal stands for nothing yet."""
        number = _literal(node)
        if number is not None and math.isinf(number):
            return self.arithmetic.absent(self.space.ndim, number)
        return self._value(node, merge)

    def _call(self, name: str, arguments: Sequence[Expression], merge: str | None) -> Value:
        if name in ("max", "min"):
            result, names = self._kept(arguments[0]), self._names(arguments[0])
            for argument in arguments[1:]:
                touch = touch_of(name, merge, names, self._names(argument))
                result = self.arithmetic.binary(name, result, self._kept(argument), touch)
                names |= self._names(argument)
            return result
        if name == "where":
            values = [self._value(arguments[0]), *map(self._kept, arguments[1:])]
        else:
            inner = merge if len(arguments) == 1 else None
            values = [self._value(argument, inner) for argument in arguments]
        return self.arithmetic.call(function(name), values, merge)

    def _access(self, access: Access) -> Value:
        operand = self.fetch(access, self.space)
        reader = Reader(
            self.backend, self.space, access, operand.indices, operand.extents, self.number
        )
        live = reader.live
        if live is not None and bool(live.all()):
            live = None
        if operand.value is None or (live is not None and not bool(live.any())):
            if operand.value is None and (live is None or bool(live.any())):
                raise EinfuseError(f"{self.einsum.name} reads {access.tensor} before it is written")
            empty = operand.value.empty if operand.value else 0.0
            return self.arithmetic.absent(self.space.ndim, empty)
        value = operand.value
        data, simple = reader(value.data)
        present = live
        if value.present is not None:
            present = reader(value.present)[0]
            present = present if live is None else present & live
        owned = operand.last and simple and value.owned and access.tensor in self.plan.read_once
        return Value(data, present, value.empty, value.clean and live is None, owned)

    def number(self, access: Access) -> tuple[Array, Array | None]:
        """Return an access inside an index or a filter."""
        value = self._access(access)
        data = self.arithmetic.as_array(value, self.space.ndim).data
        return data if self.backend.is_floating(data) else self.backend.integers(
            data
        ), value.present

    # Sums.

    def _sum(self, node: Expression, summed: Sequence[str]) -> Value:
        """Return the sum of an expression over variables."""
        if self.einsum.merge is None:
            match node:
                case Negate(operand=operand):
                    return self.arithmetic.negated(self._sum(operand, summed))
                case Binary(operator="+" | "-" as operator, left=left, right=right):
                    if self._distributes(left, right, summed):
                        touch = touch_of(operator, None, self._names(left), self._names(right))
                        a, b = self._sum(left, summed), self._sum(right, summed)
                        return self.arithmetic.binary(operator, a, b, touch)
                case Binary(operator="*" | "/"):
                    return self._product(node, summed)
                case _:
                    pass
        return self._folded("+", self._kept(node, self.einsum.merge), summed)

    def _folded(self, operator: str, value: Value, names: Sequence[str]) -> Value:
        axes = [self.axes.index(v) for v in names]
        sizes = [self.extents[axis] for axis in axes]
        value = self.arithmetic.as_array(value, self.space.ndim)
        return self.arithmetic.fold(monoid(operator), value, axes, sizes)

    def _distributes(self, left: Expression, right: Expression, summed: Sequence[str]) -> bool:
        """Tell whether the sides of a sum can be, and are better, summed one by one.

        Better where a side is a matrix product. It cannot be where a point that one side lacks
        would be counted on the other.
        """
        names = self._names(left), self._names(right)
        if names[0] != names[1] and (self._may_miss(left) or self._may_miss(right)):
            return False
        return self._is_contraction(left, summed) or self._is_contraction(right, summed)

    def _is_contraction(self, node: Expression, summed: Sequence[str]) -> bool:
        match node:
            case Negate(operand=operand):
                return self._is_contraction(operand, summed)
            case Binary(operator="+" | "-", left=left, right=right):
                return self._is_contraction(left, summed) or self._is_contraction(right, summed)
            case Binary(operator="*" | "/"):
                numerators, denominators, _ = self._factors(node)
                names = [self._names(factor) for factor in (*numerators, *denominators)]
                together = frozenset[str]().union(*names)
                return bool(together & set(summed)) and all(own != together for own in names)
            case _:
                return False

    def _may_miss(self, node: Expression) -> bool:
        """Tell whether the value of an expression can be absent somewhere."""
        for access in accesses(node):
            if any(index.condition for index in access.indices):
                return True
            value = self.fetch(access, self.space).value
            if value is None or value.present is not None:
                return True
        return any(isinstance(n, Number) and math.isinf(n.value) for n in walk(node))

    def _factors(self, node: Expression) -> tuple[list[Expression], list[Expression], int]:
        """Return numerators, denominators and the sign of a product."""
        match node:
            case Negate(operand=operand):
                above, below, sign = self._factors(operand)
                return above, below, -sign
            case Binary(operator="*", left=left, right=right):
                above, below, sign = self._factors(left)
                more, fewer, other = self._factors(right)
                return above + more, below + fewer, sign * other
            case Binary(operator="/", left=left, right=right):
                if not self._names(left) <= self._names(right) or not self._may_miss(left):
                    above, below, sign = self._factors(left)
                    return above, [*below, right], sign
                return [node], [], 1
            case _:
                return [node], [], 1

    def _product(self, node: Expression, summed: Sequence[str]) -> Value:
        """Return the sum of a product: a quotient by what does not vary is taken afterwards."""
        above, below, sign = self._factors(node)
        factors = [self._value(factor) for factor in above]
        names = [self._names(factor) for factor in above]
        after: list[Value] = []
        for divisor in below:
            value, own = self._value(divisor), self._names(divisor)
            if not own & set(summed):
                after.append(value)
                continue
            touch = touch_of("/", "inter", own, own)
            holders = [k for k, n in enumerate(names) if own <= n]
            if holders:
                k = min(holders, key=lambda k: len(names[k]))
                factors[k] = self.arithmetic.binary("/", factors[k], value, touch)
            else:
                factors.append(self.arithmetic.binary("/", Value(1.0), value, touch))
                names.append(own)
        if sign < 0:
            factors.append(Value(-1))
        result = self._contracted(factors, [self.axes.index(v) for v in summed])
        for value in after:
            touch = touch_of("/", "inter", frozenset(), frozenset())
            result = self.arithmetic.binary("/", result, value, touch)
        return result

    def _contracted(self, factors: Sequence[Value], summed: Sequence[int]) -> Value:
        """Return the sum of a product.

        A mask that does not vary along the summed axes is applied to the result. One that does
        is applied to its factor, or is a factor of its own if it has more axes than that.
        """
        present: Array | None = None
        for factor in factors:
            if factor.present is not None:
                present = factor.present if present is None else present & factor.present
        kept = present
        if present is not None:
            kept = self._any(present, summed)
            if not bool(kept.any()):
                return self.arithmetic.absent(self.space.ndim, 0.0)
            if self._spoils(factors, summed):
                return self._pointwise_sum(factors, present, kept, summed)
        data: list[Array] = []
        clean = True
        for factor in factors:
            if factor.present is None:
                data.append(factor.data)
            elif not _varies(factor.present, summed):
                data.append(factor.data)
                clean = False
            elif _covers(factor):
                data.append(self.arithmetic.filled(factor, 0.0))
            else:
                data += [factor.data, factor.present]
        layout = [axis for axis in range(self.space.ndim) if axis not in summed]
        result = contract(
            self.backend, self.arithmetic.dtype, data, self.space.extents, summed, layout
        )
        return Value(result.data, kept, 0.0, clean, result.owned)

    def _any(self, present: Array, axes: Sequence[int]) -> Array:
        seen = tuple(axis for axis in axes if present.shape[axis] != 1)
        return self.backend.any(present, seen) if seen else present

    def _spoils(self, factors: Sequence[Value], summed: Sequence[int]) -> bool:
        """Tell whether a factor that is not finite meets an absent one: 0 * inf would be NaN."""
        masked = [
            k for k, f in enumerate(factors) if f.present is not None and _varies(f.present, summed)
        ]
        for k, factor in enumerate(factors):
            data = factor.data
            alone = masked in ([], [k])
            if (alone and (k not in masked or _covers(factor))) or not self.backend.is_array(data):
                continue
            if k in masked and _covers(factor):
                data = self.arithmetic.filled(factor, 0.0)
            if self.backend.is_floating(data) and not self.backend.is_finite(data):
                return True
        return False

    def _pointwise_sum(
        self, factors: Sequence[Value], present: Array, kept: Array, summed: Sequence[int]
    ) -> Value:
        """Return the sum with absent products left out one by one: IEEE for all that is there."""
        product = replace(factors[0], present=None)
        touch = touch_of("*", None, frozenset(), frozenset())
        for factor in factors[1:]:
            product = self.arithmetic.binary("*", product, replace(factor, present=None), touch)
        product = replace(product, present=present, clean=False)
        total = self._folded("+", product, [self.axes[axis] for axis in summed])
        return replace(total, present=kept)

    # Populate.

    def _populated(self, value: Value, action: Populate) -> tuple[Value, Value]:
        """Return values and coordinates, the target's axis in the place of the source's."""
        operator = coordinate_operator(action.operator)
        axis = self.axes.index(action.source)
        count = self.plan.counts[action.target]
        if count > self.extents[axis]:
            raise EinfuseError(
                f"{action.operator}({action.source} -> {action.target}) asks for {count} of "
                f"{self.extents[axis]}"
            )
        value = self.arithmetic.as_array(value, self.space.ndim)
        data = self._along(self.arithmetic.filled(value, operator.absent), axis)
        taken = count if value.present is None else self.extents[axis]
        values, found = self.backend.select(operator, data, taken, axis)
        present = None
        if value.present is not None:
            full = list(map(max, data.shape, value.present.shape))
            values, found = (self.backend.broadcast(a, full) for a in (values, found))
            present = self.backend.take_along(
                self.backend.broadcast(value.present, full), found, axis
            )
            # what is there goes first, even where it equals what stands for an absent point
            present, first = self.backend.select(
                coordinate_operator("topk"), self.backend.integers(present), count, axis
            )
            values, found = (self.backend.take_along(a, first, axis) for a in (values, found))
            present = present != 0
        self.axes[axis], self.extents[axis] = action.target, count
        clean = present is None
        return (
            Value(values, present, value.empty, clean, True),
            Value(found, present, 0.0, clean, True),
        )

    def _along(self, data: Array, axis: int) -> Array:
        """Return the array with an axis at its full extent."""
        shape = list(data.shape)
        shape[axis] = self.extents[axis]
        return self.backend.broadcast(data, shape)


def _varies(present: Array, axes: Sequence[int]) -> bool:
    return any(present.shape[axis] != 1 for axis in axes)


def _covers(factor: Value) -> bool:
    """Tell whether the data have every axis of the mask."""
    if factor.present is None or not hasattr(factor.data, "shape"):
        return factor.present is None
    pairs = zip(factor.present.shape, factor.data.shape, strict=True)
    return all(mask == 1 or size != 1 for mask, size in pairs)


def _is_binary(node: Expression, operator: str) -> bool:
    return isinstance(node, Binary) and node.operator == operator


def _literal(node: Expression) -> float | None:
    """Return the number of a literal, signs included, None for anything else."""
    match node:
        case Number(value=value):
            return float(value)
        case Negate(operand=operand):
            inner = _literal(operand)
            return None if inner is None else -inner
        case _:
            return None
