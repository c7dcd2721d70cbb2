"""Reading and placing arrays by index expressions, whole arrays at a time.

Affine indices (``m1*M0 + m0``, ``S-1-v``, ``p+k``, constants) are views wherever the library can
make one; all others gather. A space fixes which axis stands for which rank variable; an array
has a dimension for each axis, of size 1 where it does not depend on the variable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from einfuse.einsum.language.affine import Linear, linear
from einfuse.einsum.language.errors import CascadeError, EinfuseError
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Comparison,
    Coordinate,
    Expression,
    Index,
    Negate,
    Number,
    RankSize,
)
from einfuse.einsum.language.printer import render_expression

from .backend import Array, Backend, Operand


@dataclass(frozen=True, slots=True)
class Space:
    """The rank variables of an Einsum with their extents, and those fixed to a coordinate."""

    variables: tuple[str, ...]
    extents: tuple[int, ...]
    fixed: Mapping[str, int]
    sizes: Mapping[str, int]

    def extent(self, variable: str) -> int:
        """Return the extent of a variable."""
        return self.extents[self.variables.index(variable)]

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.variables)


ReadAccess = Callable[[Access], tuple[Array, Array | None]]
"""Gives the values of an access over a space, and where they are present."""


def linear_form(node: Expression, space: Space) -> Linear | None:
    """Return an index as a linear form over the free variables of a space, None if it is none.

    >>> space = Space(("m0",), (4,), {"m1": 2}, {"M0": 4})
    >>> index = Binary("+", Binary("*", Coordinate("m1"), RankSize("M0")), Coordinate("m0"))
    >>> linear_form(index, space)
    Linear(coefficients={'m0': 1}, constant=8)
    """
    form = linear(node, space.sizes)
    if form is None:
        return None
    fixed = {v: space.fixed[v] for v in form.coefficients if v in space.fixed}
    constant = form.constant + sum(form.coefficients[v] * place for v, place in fixed.items())
    return Linear({v: c for v, c in form.coefficients.items() if v not in fixed}, constant)


def whole_numbers(
    node: Expression, space: Space, backend: Backend, read: ReadAccess
) -> tuple[Array, Array | None]:
    """Return an index or a side of a filter over a space, and where it is present.

    ``/`` and ``%`` are those of whole numbers, rounding down. A tensor read here keeps its dtype.
    """
    match node:
        case Number(value=value):
            return _constant(value, space, backend), None
        case RankSize(rank=rank):
            return _constant(space.sizes[rank], space, backend), None
        case Coordinate(variable=variable):
            return coordinate(variable, space, backend), None
        case Negate(operand=operand):
            data, present = whole_numbers(operand, space, backend, read)
            return -data, present
        case Binary(operator=operator, left=left, right=right):
            a, here = whole_numbers(left, space, backend, read)
            b, there = whole_numbers(right, space, backend, read)
            present = here if there is None else there if here is None else here & there
            return _WHOLE[operator](a, b), present
        case Access():
            return read(node)
        case Call(function=function):
            raise CascadeError(f"{function}(...) cannot stand in an index", node.span)


def coordinate(variable: str, space: Space, backend: Backend) -> Array:
    """Return a variable's coordinates along its axis."""
    if variable in space.fixed:
        return _constant(space.fixed[variable], space, backend)
    shape = [1] * space.ndim
    axis = space.variables.index(variable)
    shape[axis] = space.extents[axis]
    return backend.arange(space.extents[axis]).reshape(shape)


def condition(
    comparisons: Sequence[Comparison], space: Space, backend: Backend, read: ReadAccess
) -> Array | None:
    """Return where all comparisons hold, None for no comparison; an absent side holds nowhere."""
    result: Array | None = None
    for comparison in comparisons:
        a, here = whole_numbers(comparison.left, space, backend, read)
        b, there = whole_numbers(comparison.right, space, backend, read)
        for truth in (_COMPARE[comparison.operator](a, b), here, there):
            if truth is not None:
                result = truth if result is None else result & truth
    return result


def coordinates_of(
    backend: Backend,
    space: Space,
    access: Access,
    indices: Sequence[Index],
    extents: Sequence[int],
    read: ReadAccess,
) -> tuple[list[Array], Array | None]:
    """Return the coordinates of an access over a space, and where it is not live.

    Raises:
        CascadeError: a coordinate that no filter culls lies outside, or is no whole number.
    """
    comparisons = [c for index in indices for c in index.condition]
    live = condition(comparisons, space, backend, read)
    found: list[Array] = []
    for index in indices:
        numbers, present = whole_numbers(index.expression, space, backend, read)
        if present is not None:
            live = present if live is None else live & present
        found.append(numbers)
    result = []
    for index, numbers, extent in zip(indices, found, extents, strict=True):
        whole = backend.integers(numbers)
        if backend.is_floating(numbers):
            odd = whole != numbers
            if bool((odd if live is None else odd & live).any()):
                raise CascadeError(
                    f"index {render_expression(index.expression)} of {access.tensor}: "
                    "expected whole numbers, found fractions",
                    access.span,
                )
        outside = (whole < 0) | (whole >= extent)
        if bool(outside.any()):
            read_outside = outside if live is None else outside & live
            if bool(read_outside.any()):
                _complain(backend, access, index, whole, read_outside, extent)
            whole = backend.where(outside, whole * 0, whole)
        result.append(whole)
    return result, live


def _complain(
    backend: Backend, access: Access, index: Index, found: Array, outside: Array, extent: int
) -> NoReturn:
    full = np.broadcast_shapes(tuple(found.shape), tuple(outside.shape))
    values = backend.broadcast(found, full)[backend.broadcast(outside, full)]
    worst = int(values.min()) if int(values.min()) < 0 else int(values.max())
    raise CascadeError(
        f"index {render_expression(index.expression)} of {access.tensor} reaches {worst}, "
        f"outside 0..{extent - 1}",
        index.expression.span or access.span,
    )


class Reader:
    """Reads an array at the indices of an access, over a space.

    The indices are worked out once; `view` or `gather` then serves values and presence alike.
    ``live`` is where no filter and no absent index culls the access, None for everywhere.
    """

    def __init__(
        self,
        backend: Backend,
        space: Space,
        access: Access,
        indices: Sequence[Index],
        extents: Sequence[int],
        read: ReadAccess,
    ) -> None:
        self.backend, self.space, self.access = backend, space, access
        self.extents = tuple(extents)
        self.forms = [linear_form(index.expression, space) for index in indices]
        self.coordinates: list[Array] | None = None
        if all(map(self._stays_inside, self.forms, self.extents)):
            comparisons = [c for index in indices for c in index.condition]
            self.live = condition(comparisons, space, backend, read)
        else:
            self.coordinates, self.live = coordinates_of(
                backend, space, access, indices, extents, read
            )

    def __call__(self, array: Array) -> tuple[Array, bool]:
        """Return the array over the space, and whether each of its elements appears at most once.

        ``array`` has an axis for each index; an axis of size 1 is the same at every coordinate.
        """
        if self.coordinates is None:
            viewed = self._sliced(array)
            if viewed is not None:
                return viewed, True
            viewed = self._strided(array)
            if viewed is not None:
                return viewed, False
            self.coordinates = [self._form_array(form) for form in self._linear()]
        return self._gathered(array), False

    def _linear(self) -> list[Linear]:
        return [form for form in self.forms if form is not None]

    def _stays_inside(self, form: Linear | None, extent: int) -> bool:
        if form is None:
            return False
        steps = [c * (self.space.extent(v) - 1) for v, c in form.coefficients.items()]
        least = form.constant + sum(step for step in steps if step < 0)
        most = form.constant + sum(step for step in steps if step > 0)
        return bool(least >= 0 and most < extent)

    def _sliced(self, array: Array) -> Array | None:
        """Return a view by slices and a permutation, where each axis has a variable of its own."""
        chosen: list[int | slice] = []
        axes: list[str] = []
        for form, size in zip(self._linear(), array.shape, strict=True):
            if size == 1:
                chosen.append(0)
            elif not form.coefficients:
                chosen.append(form.constant)
            else:
                (variable, step), *more = form.coefficients.items()
                if more or step < 1 or variable in axes:
                    return None
                last = form.constant + step * (self.space.extent(variable) - 1)
                chosen.append(slice(form.constant, last + 1, step))
                axes.append(variable)
        result = array[(*chosen, ...)]
        order = sorted(range(len(axes)), key=lambda k: self.space.variables.index(axes[k]))
        if order != list(range(len(axes))):
            result = self.backend.transpose(result, order)
        shape = [self.space.extent(v) if v in axes else 1 for v in self.space.variables]
        if len(shape) == len(axes):
            return result
        return result[tuple(slice(None) if v in axes else None for v in self.space.variables)]

    def _strided(self, array: Array) -> Array | None:
        forms = self._linear()
        live = [size != 1 for size in array.shape]
        start = [form.constant if on else 0 for form, on in zip(forms, live, strict=True)]
        steps = [
            [form.coefficients.get(v, 0) if on else 0 for form, on in zip(forms, live, strict=True)]
            for v in self.space.variables
        ]
        sizes = [
            self.space.extent(v) if any(step) else 1
            for v, step in zip(self.space.variables, steps, strict=True)
        ]
        return self.backend.strided(array, start, sizes, steps)

    def _form_array(self, form: Linear) -> Array:
        result = _constant(form.constant, self.space, self.backend)
        for variable, step in form.coefficients.items():
            result = result + step * coordinate(variable, self.space, self.backend)
        return result

    def _gathered(self, array: Array) -> Array:
        """Return the array taken at the coordinates; axes that run in step stay whole."""
        coordinates = self.coordinates
        assert coordinates is not None
        space = self.space
        whole = self._whole_axes(array)
        taken = [k for k in range(array.ndim) if k not in whole and array.shape[k] != 1]
        kept = [self._variable_of(k) for k in whole]
        if not taken:
            at: Array = array.reshape([array.shape[k] for k in whole])
            over: list[int] = []
        else:
            over = [
                a for a in range(space.ndim) if any(coordinates[k].shape[a] != 1 for k in taken)
            ]
            places = tuple(
                coordinates[k].reshape([coordinates[k].shape[a] for a in over]) for k in taken
            )
            flat = [
                0 if k not in whole and k not in taken else slice(None) for k in range(array.ndim)
            ]
            left = [k for k in range(array.ndim) if k in whole or k in taken]
            order = [left.index(k) for k in (*taken, *whole)]
            at = self.backend.transpose(array[(*flat, ...)], order)[places]
        axes = [*(space.variables[a] for a in over), *kept]
        order = sorted(range(len(axes)), key=lambda k: space.variables.index(axes[k]))
        result = self.backend.transpose(at, order)
        return result[tuple(slice(None) if v in axes else None for v in space.variables)]

    def _variable_of(self, axis: int) -> str:
        form = self.forms[axis]
        assert form is not None
        return next(iter(form.coefficients))

    def _whole_axes(self, array: Array) -> list[int]:
        """Return the axes indexed by a variable of their own, over their whole extent."""
        assert self.coordinates is not None
        found = []
        for k, form in enumerate(self.forms):
            if form is None or array.shape[k] == 1 or form.constant or len(form.coefficients) != 1:
                continue
            ((variable, step),) = form.coefficients.items()
            axis = self.space.variables.index(variable)
            alone = all(
                other == k or array.shape[other] == 1 or self.coordinates[other].shape[axis] == 1
                for other in range(array.ndim)
            )
            if step == 1 and alone and self.space.extents[axis] == array.shape[k]:
                found.append(k)
        return found


_LARGEST = 2**63

_WHOLE: Mapping[str, Callable[[Array, Array], Array]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b,
    "%": lambda a, b: a % b,
}
_COMPARE: Mapping[str, Callable[[Array, Array], Array]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


def _constant(value: Operand, space: Space, backend: Backend) -> Array:
    if isinstance(value, float) and not value.is_integer():
        return backend.arange(1).reshape((1,) * space.ndim) + value
    if not -_LARGEST <= value < _LARGEST:
        raise EinfuseError(f"a number in an index has to fit in 64 bits, found {value}")
    return backend.arange(1).reshape((1,) * space.ndim) + int(value)
