"""A cascade, evaluated point by point: the slow, plain truth that `run` is checked against.

Tensors are dictionaries from coordinates to numbers; what is absent has no entry. Nothing here is
shared with the fast path but the functions themselves and the rule of which operand a merge needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum, Populate, Reduce
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Comparison,
    Condition,
    Coordinate,
    Expression,
    Index,
    Negate,
    Number,
    RankSize,
    accesses,
    variables,
    walk,
)
from einfuse.einsum.language.functions import coordinate_operator, function, monoid
from einfuse.einsum.language.shape import bind, tensor_shape

from .absence import empty_of, empty_of_call, infinite_or_zero, touch_of
from .lifetime import Lifetimes
from .plan import ordered_actions

Point = tuple[int, ...]
Environment = Mapping[str, int]

_COMPARE = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


def run_pointwise(
    cascade: Cascade,
    inputs: Mapping[str, Any],
    shape: Mapping[str, int],
    *,
    all_tensors: bool = False,
) -> dict[str, np.ndarray]:
    """Return the outputs of a cascade in float64, evaluated one point at a time.

    Args:
        cascade: what to compute.
        inputs: an array for every input tensor, axes in the order of its declaration.
        shape: sizes for the ranks (at least as many as `bind` needs); keep them tiny.
        all_tensors: return every tensor.

    >>> from einfuse.einsum.language.parser import parse
    >>> cascade = parse("rank M, P\\ninput A[M]\\noutput Y\\nY[p] = A[m: m<p] :: max(m)")
    >>> run_pointwise(cascade, {"A": [3.0, 5.0]}, {"M": 2, "P": 3})["Y"]
    array([-inf,   3.,   5.])
    """
    with np.errstate(all="ignore"):
        return _Pointwise(cascade, inputs, bind(cascade, shape)).outputs(all_tensors)


class _Pointwise:
    def __init__(
        self, cascade: Cascade, inputs: Mapping[str, Any], sizes: Mapping[str, int]
    ) -> None:
        self.cascade, self.sizes = cascade, sizes
        self.extents = {t.name: tensor_shape(cascade, t.name, sizes) for t in cascade.tensors}
        self.numbers: dict[str, dict[Point, float]] = {t.name: {} for t in cascade.tensors}
        self.empties: dict[str, dict[Point, float]] = {}
        for name in cascade.inputs:
            array = np.asarray(inputs[name])
            self.numbers[name] = {at: float(array[at]) for at in np.ndindex(array.shape)}
        self.lifetimes = Lifetimes(cascade, sizes, cascade.outputs)
        self.in_loop = False

    def outputs(self, all_tensors: bool) -> dict[str, np.ndarray]:
        for einsum in self.cascade.init:
            self._einsum(einsum, {})
        for fixed in self._generations():
            self.in_loop = True
            for einsum in self.cascade.loop:
                self._einsum(einsum, fixed)
            if self._stops(fixed, after=True):
                break
        self.in_loop = False
        for einsum in self.cascade.final:
            self._einsum(einsum, {})
        wanted = [t.name for t in self.cascade.tensors] if all_tensors else self.cascade.outputs
        return {name: self._exported(name) for name in wanted}

    def _exported(self, name: str) -> np.ndarray:
        result = np.zeros(self.extents[name])
        axes = self.lifetimes.generational.get(name, ())
        empties = self.empties.get(name, {})
        for at in np.ndindex(result.shape):
            result[at] = empties.get(tuple(at[axis] for axis in axes), self._last_empty(name))
        for at, number in self.numbers[name].items():
            result[at] = number
        return result

    def _generations(self) -> Iterator[dict[str, int]]:
        if not self.cascade.loop:
            return
        names = [iteration.variable for iteration in self.cascade.iterations]
        ranges = [range(self.sizes[iteration.rank]) for iteration in self.cascade.iterations]
        for at in product(*ranges):
            fixed = dict(zip(names, at, strict=True))
            if self._stops(fixed, after=False):
                return
            yield fixed

    def _stops(self, fixed: Environment, *, after: bool) -> bool:
        stop = self.cascade.stop
        if not stop or self.lifetimes.stop_reads_generation != after:
            return False
        names = [v for v in dict.fromkeys(v for c in stop for v in variables(c)) if v not in fixed]
        return all(self._holds(stop, {**fixed, **env}) for env in self._points(names))

    def _points(self, names: Sequence[str]) -> Iterator[dict[str, int]]:
        for at in product(*(range(self.sizes[self.cascade.rank_of(v)]) for v in names)):
            yield dict(zip(names, at, strict=True))

    # Einsums.

    def _einsum(self, einsum: Einsum, fixed: Environment) -> None:
        names = [v for v in einsum.variables if v not in fixed]
        expression = einsum.expression
        literal = self._literal(expression)
        nothing = literal is not None and math.isinf(literal)
        values: dict[Point, float | None] = {}
        for env in self._points(names):
            point = tuple(env.values())
            whole = {**fixed, **env}
            culled = not all(
                self._holds(index.condition, whole)
                for output in einsum.outputs
                for index in output.indices
                if not set(variables(index)) - whole.keys()
            )
            values[point] = (
                None if nothing or culled else self._value(expression, whole, fixed, einsum.merge)
            )
        empty = literal if nothing else self._empty(expression, fixed, einsum.merge)
        coordinates: dict[Point, float | None] | None = None
        for action in ordered_actions(einsum):
            if isinstance(action, Reduce):
                gone = [v for v in action.variables if v not in fixed]
                values = self._fold(values, names, gone, action.operator)
                names = [v for v in names if v not in gone]
                empty = infinite_or_zero(monoid(action.operator).identity)
            else:
                values, coordinates = self._populate(values, names, action)
                names = [action.target if v == action.source else v for v in names]
        found = [values] if coordinates is None else [values, coordinates]
        for output, chosen in zip(einsum.outputs, found, strict=False):
            scattered = self._place(output, chosen, names, fixed)
            plain = scattered or chosen is coordinates
            generation = self._generation(output, fixed) or ()
            self.empties.setdefault(output.tensor, {})[generation] = 0.0 if plain else empty or 0.0

    def _fold(
        self, values: Mapping[Point, float | None], names: Sequence[str], gone: Sequence[str],
        operator: str,
    ) -> dict[Point, float | None]:  # fmt: skip
        combine = monoid(operator).combine
        kept = [k for k, v in enumerate(names) if v not in gone]
        result: dict[Point, float | None] = {}
        for point, value in values.items():
            at = tuple(point[k] for k in kept)
            before = result.setdefault(at, None)
            if value is not None:
                result[at] = value if before is None else float(combine(before, value))
        return result

    def _populate(
        self, values: Mapping[Point, float | None], names: Sequence[str], action: Populate
    ) -> tuple[dict[Point, float | None], dict[Point, float | None]]:
        axis = list(names).index(action.source)
        rows: dict[Point, list[tuple[int, float]]] = {}
        for point, value in values.items():
            row = rows.setdefault(point[:axis] + point[axis + 1 :], [])
            if value is not None:
                row.append((point[axis], value))
        operator = coordinate_operator(action.operator)
        count = self.sizes[self.cascade.rank_of(action.target)]
        chosen: dict[Point, float | None] = {}
        places: dict[Point, float | None] = {}
        for rest, row in rows.items():
            array = np.array([value for _, value in row])
            best, found = operator.numpy(array, min(count, len(row)), 0)
            for t in range(count):
                at = (*rest[:axis], t, *rest[axis:])
                chosen[at] = float(best[t]) if t < len(row) else None
                places[at] = float(row[int(found[t])][0]) if t < len(row) else None
        return chosen, places

    def _place(
        self,
        output: Access,
        values: Mapping[Point, float | None],
        names: Sequence[str],
        fixed: Environment,
    ) -> bool:
        """Write values; tell whether coordinates were worked out (then what meets adds up)."""
        numbers = self.numbers[output.tensor]
        written: dict[Point, float] = {}
        scattered = any(
            not isinstance(index.expression, Coordinate)
            for axis, index in enumerate(output.indices)
            if axis not in self.lifetimes.generational.get(output.tensor, ())
        )
        for point, value in values.items():
            env = {**fixed, **dict(zip(names, point, strict=True))}
            at = self._at(output, env)
            if value is None or at is None:
                if at is not None and not scattered:
                    numbers.pop(at, None)
                continue
            written[at] = written[at] + value if at in written else value
        numbers.update(written)
        return scattered

    def _at(self, access: Access, env: Environment) -> Point | None:
        """Return the coordinates of an access, None where a filter or an absent index culls it."""
        at: list[int] = []
        for index in access.indices:
            if not self._holds(index.condition, env):
                return None
        for axis, index in enumerate(access.indices):
            found = self._whole(index.expression, env)
            if found is None:
                return None
            extent = self.extents[access.tensor][axis]
            if found != int(found) or not 0 <= found < extent:
                raise EinfuseError(f"index {axis} of {access.tensor} is {found:g}, of {extent}")
            at.append(int(found))
        return tuple(at)

    def _holds(self, condition: Condition, env: Environment) -> bool:
        for comparison in condition:
            left = self._whole(comparison.left, env)
            right = self._whole(comparison.right, env)
            if left is None or right is None or not _COMPARE[comparison.operator](left, right):
                return False
        return True

    def _whole(self, node: Expression, env: Environment) -> float | None:
        """Return an index or a side of a filter at a point."""
        match node:
            case Number(value=value):
                return value
            case RankSize(rank=rank):
                return self.sizes[rank]
            case Coordinate(variable=variable):
                return env[variable]
            case Negate(operand=operand):
                inner = self._whole(operand, env)
                return None if inner is None else -inner
            case Binary(operator=operator, left=left, right=right):
                a, b = self._whole(left, env), self._whole(right, env)
                if a is None or b is None:
                    return None
                match operator:
                    case "+":
                        return a + b
                    case "-":
                        return a - b
                    case "*":
                        return a * b
                    case "/":
                        return a // b
                    case _:
                        return a % b
            case Access():
                return self._read(node, env)
            case Call(function=name):
                raise EinfuseError(f"{name}(...) cannot stand in an index")

    def _read(self, access: Access, env: Environment) -> float | None:
        at = self._at(access, env)
        if at is None:
            return None
        numbers = self.numbers[access.tensor]
        axes = self.lifetimes.generational.get(access.tensor, ())
        if at not in numbers and not self.in_loop and len(axes) == 1 and numbers:
            axis = axes[0]
            fixed_index = not variables(Index(access.indices[axis].expression))
            if fixed_index and at[axis] == self.extents[access.tensor][axis] - 1:
                last = max(key[axis] for key in numbers)  # the loop stopped early
                at = (*at[:axis], last, *at[axis + 1 :])
        return numbers.get(at)

    def _generation(self, access: Access, env: Environment) -> Point | None:
        """Return the generation that an access names, None if it names none."""
        axes = self.lifetimes.generational.get(access.tensor, ())
        indices = [access.indices[axis].expression for axis in axes]
        if any(not set(variables(index)) <= env.keys() for index in indices):
            return None
        return tuple(int(self._whole(index, env) or 0) for index in indices)

    def _last_empty(self, name: str) -> float:
        return next(reversed(self.empties.get(name, {(): 0.0}).values()))

    # Values.

    def _value(
        self, node: Expression, env: Environment, fixed: Environment, merge: str | None = None
    ) -> float | None:
        match node:
            case Number(value=value):
                return float(value)
            case RankSize(rank=rank):
                return float(self.sizes[rank])
            case Coordinate(variable=variable):
                return float(env[variable])
            case Access():
                return self._read(node, env)
            case Negate(operand=operand):
                inner = self._value(operand, env, fixed, merge)
                return None if inner is None else -inner
            case Binary(operator=operator, left=left, right=right):
                a = self._value(left, env, fixed, merge if _is(left, operator) else None)
                b = self._value(right, env, fixed, merge if _is(right, operator) else None)
                return self._joined(operator, merge, (left, a), (right, b), fixed)
            case Call(function=name, arguments=arguments):
                return self._call(name, arguments, env, fixed, merge)

    def _joined(
        self,
        operator: str,
        merge: str | None,
        left: tuple[Expression, float | None],
        right: tuple[Expression, float | None],
        fixed: Environment,
        left_names: frozenset[str] | None = None,
    ) -> float | None:
        (first, a), (second, b) = left, right
        names = left_names if left_names is not None else _names(first, fixed)
        touch = touch_of(operator, merge, names, _names(second, fixed))
        if (touch.left and a is None) or (touch.right and b is None) or (a is None and b is None):
            return None
        if a is None:
            assert b is not None
            match operator:
                case "-":
                    return self._empty(first, fixed) - b
                case "/":
                    return float(np.float64(0) / np.float64(b))
                case _:
                    return b
        if b is None:
            return a
        x, y = np.float64(a), np.float64(b)
        match operator:
            case "+":
                return float(x + y)
            case "-":
                return float(x - y)
            case "*":
                return float(x * y)
            case "/":
                return float(x / y)
            case "max":
                return float(np.maximum(x, y))
            case _:
                return float(np.minimum(x, y))

    def _kept(self, node: Expression, env: Environment, fixed: Environment) -> float | None:
        literal = self._literal(node)
        if literal is not None and math.isinf(literal):
            return None
        return self._value(node, env, fixed)

    def _call(
        self,
        name: str,
        arguments: Sequence[Expression],
        env: Environment,
        fixed: Environment,
        merge: str | None,
    ) -> float | None:
        if name in ("max", "min"):
            result = self._kept(arguments[0], env, fixed)
            names = _names(arguments[0], fixed)
            for argument in arguments[1:]:
                value = self._kept(argument, env, fixed)
                pair = (arguments[0], result), (argument, value)
                result = self._joined(name, merge, *pair, fixed, names)
                names |= _names(argument, fixed)
            return result
        if name == "where":
            condition = self._value(arguments[0], env, fixed)
            if condition is None:
                return None
            return self._kept(arguments[1 if condition != 0 else 2], env, fixed)
        inner = merge if len(arguments) == 1 else None
        values = [self._value(argument, env, fixed, inner) for argument in arguments]
        required = {"left": values[:1], "right": values[-1:]}.get(merge or "", values)
        if merge == "union":
            required = [v for v in values if v is not None] or [None]
        if None in required:
            return None
        filled = [
            self._empty(argument, fixed) if value is None else value
            for argument, value in zip(arguments, values, strict=True)
        ]
        return float(function(name).numpy(*map(np.float64, filled)))

    def _empty(self, node: Expression, fixed: Environment, merge: str | None = None) -> float:
        """Return what an absent value of an expression stands for."""
        match node:
            case Number(value=value):
                return infinite_or_zero(value)
            case Access(tensor=tensor):
                last = self._last_empty(tensor)
                generation = self._generation(node, fixed)
                return self.empties.get(tensor, {}).get(generation or (), last)
            case Negate(operand=operand):
                return 0.0 - self._empty(operand, fixed, merge)
            case Binary(operator=operator, left=left, right=right):
                touch = touch_of(operator, merge, _names(left, fixed), _names(right, fixed))
                a, b = self._empty(left, fixed), self._empty(right, fixed)
                empty = empty_of(operator, touch, a, b)
                signs = [self._literal(side) or 0.0 for side in (left, right)]
                return -empty if operator in "*/" and empty and min(signs) < 0 else empty
            case Call(function=name, arguments=arguments):
                if len(arguments) == 1 and self._is_always_there(arguments[0]):
                    return 0.0
                return empty_of_call(function(name), [self._empty(a, fixed) for a in arguments])
            case _:
                return 0.0

    def _is_always_there(self, node: Expression) -> bool:
        """Tell whether an expression reads whole tensors only, no filter."""
        return not any(isinstance(part, Comparison) for part in walk(node)) and all(
            len(self.numbers[a.tensor]) == math.prod(self.extents[a.tensor]) for a in accesses(node)
        )

    def _literal(self, node: Expression) -> float | None:
        match node:
            case Number(value=value):
                return float(value)
            case Negate(operand=operand):
                inner = self._literal(operand)
                return None if inner is None else -inner
            case _:
                return None


def _names(node: Expression, fixed: Environment) -> frozenset[str]:
    return frozenset(variables(node)).difference(fixed)


def _is(node: Expression, operator: str) -> bool:
    return isinstance(node, Binary) and node.operator == operator
