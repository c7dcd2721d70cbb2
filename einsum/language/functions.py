"""What a cascade may call: functions, reduction monoids, coordinate operators, merges.

The functions of the language are the rows of `function_table`. Each entry has a NumPy meaning, a
PyTorch meaning (made from the module when it is first asked for, so that torch stays optional) and
the operation class under which a use of it is costed. Users add their own with
`register_function`, `register_monoid` and `register_coordinate`.

A cascade treats empty as absent, not as zero; the fold of nothing is a monoid's identity.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .errors import EinfuseError
from .errors import closest as closest
from .expression import Call, Expression
from .function_row import (
    Derivative,
    Function,
    Interval,
    Loader,
    Partials,
    SignRule,
    torch_meaning,
    unknown,
)
from .function_table import FUNCTIONS, compare

Array = npt.NDArray[Any]
_T = TypeVar("_T")

BINARY_OPERATIONS: Mapping[str, str] = {"+": "add", "-": "add", "*": "multiply", "/": "divide"}
"""The operation class of each infix operator of a value (``%`` stands in indices only)."""

MERGES = ("union", "inter", "left", "right")
"""Which coordinates the outermost operator of an Einsum touches."""

DEFAULT_MERGES: Mapping[str, str] = {
    "*": "inter",
    "+": "union",
    "-": "union",
    "max": "union",
    "min": "union",
    "/": "right",
}
"""The merge of the outermost operator where the text gives none."""


@dataclass(frozen=True, slots=True)
class Monoid:
    """An associative, commutative operator with an identity: what a reduction folds with.

    ``combine`` takes two arrays; ``fold`` takes an array and a tuple of axes.
    """

    name: str
    identity: float
    operation: str
    combine: Callable[[Any, Any], Any]
    fold: Callable[[Array, tuple[int, ...]], Array]
    torch_loader: Loader | None = None

    @property
    def torch(self) -> Callable[..., Any]:
        """The PyTorch fold, (tensor, axes) -> tensor; EinfuseError if it has none."""
        return torch_meaning(self.torch_loader, f"monoid {self.name}")


@dataclass(frozen=True, slots=True)
class CoordinateOperator:
    """Chooses coordinates along an axis: ``topk(m -> t)``.

    ``numpy`` takes (values, count, axis) and gives (values, coordinates), the axis now
    ``count`` long; torch likewise. ``absent`` is a value that it chooses last: what stands in
    for an absent point.
    """

    name: str
    operation: str
    numpy: Callable[[Array, int, int], tuple[Array, Array]]
    torch_loader: Loader | None = None
    absent: float = -math.inf

    @property
    def torch(self) -> Callable[..., Any]:
        """The PyTorch meaning; EinfuseError if it was registered without one."""
        return torch_meaning(self.torch_loader, f"coordinate operator {self.name}")


_FUNCTIONS: dict[str, Function] = {row.name: row for row in FUNCTIONS}
_MONOIDS: dict[str, Monoid] = {}
_COORDINATES: dict[str, CoordinateOperator] = {}


def register_function(
    name: str,
    numpy: Callable[..., Any],
    *,
    arity: int | None = 1,
    operation: str | None = None,
    torch: Loader | None = None,
    sympy: Loader | None = None,
    derivative: Derivative | None = None,
    sign: SignRule = unknown,
    power: Fraction | int | None = None,
    base: float | None = None,
    increasing: bool = False,
    interval: Callable[..., Interval] | None = None,
    keeps_whole: bool = False,
    aten: tuple[str, ...] = (),
) -> Function:
    """Add a function, or replace one, and return it.

    Args:
        name: how a cascade calls it.
        numpy: its NumPy meaning, element by element, broadcasting.
        arity: number of arguments; None for two or more (costed one operation fewer than that).
        operation: the operation class it is costed under; its own name if left out.
        torch: takes the torch module and gives the function there.
        sympy, derivative, sign, power, base, increasing, interval, keeps_whole, aten: what
            analyses may conclude, see `Function`; what is left out is unknown to them.

    >>> _ = register_function("cube", lambda x: x**3)
    >>> function("cube").numpy(2.0)
    8.0
    """
    _check_name(name, "function")
    _FUNCTIONS[name] = Function(
        name,
        numpy,
        arity,
        operation or name,
        torch,
        sympy,
        derivative,
        sign,
        power,
        base,
        increasing,
        interval,
        keeps_whole,
        aten,
    )
    return _FUNCTIONS[name]


def register_derivative(name: str, rule: Derivative) -> None:
    """Give a registered function a derivative, or replace it.

    Args:
        name: the function's.
        rule: takes the arguments and the value of a call, and returns the derivative by each
            argument (None for 0), all as expressions.
    """
    _FUNCTIONS[name] = replace(function(name), derivative=rule)


def register_monoid(
    name: str,
    combine: Callable[[Any, Any], Any],
    identity: float,
    *,
    operation: str | None = None,
    fold: Callable[[Array, tuple[int, ...]], Array] | None = None,
    torch: Loader | None = None,
) -> Monoid:
    """Add a reduction, or replace one, and return it.

    Args:
        name: how an action names it (``:: name(m)``).
        combine: associative and commutative, of two arrays.
        identity: the fold of nothing.
        operation: the operation class it is costed under; its own name if left out.
        fold: (array, axes) -> array; made from ``combine`` if left out.
        torch: takes the torch module and gives the fold there.

    >>> import numpy as np
    >>> _ = register_monoid("hypot", np.hypot, 0.0)
    >>> float(monoid("hypot").fold(np.array([3.0, 4.0]), (0,)))
    5.0
    """
    if name not in {"+", "*"}:
        _check_name(name, "monoid")
    if fold is None:
        fold = functools.partial(_fold, combine, identity)
    _MONOIDS[name] = Monoid(name, identity, operation or name, combine, fold, torch)
    return _MONOIDS[name]


def register_coordinate(
    name: str,
    numpy: Callable[[Array, int, int], tuple[Array, Array]],
    *,
    operation: str | None = None,
    torch: Loader | None = None,
    absent: float = -math.inf,
) -> CoordinateOperator:
    """Add a coordinate operator, or replace one, and return it."""
    _check_name(name, "coordinate operator")
    _COORDINATES[name] = CoordinateOperator(name, operation or name, numpy, torch, absent)
    return _COORDINATES[name]


def function(name: str) -> Function:
    """Return a function by its name; EinfuseError with the closest names if there is none."""
    return _look_up(_FUNCTIONS, name, "function")


def monoid(name: str) -> Monoid:
    """Return a reduction by its name; EinfuseError with the closest names if there is none.

    >>> monoid("max").identity
    -inf
    """
    return _look_up(_MONOIDS, name, "operator to reduce with")


def coordinate_operator(name: str) -> CoordinateOperator:
    """Return a coordinate operator; EinfuseError with the closest names if there is none."""
    return _look_up(_COORDINATES, name, "coordinate operator")


def partials(call: Call, value: Expression) -> Partials:
    """Return the derivative of a call by each argument; None where it is 0 everywhere.

    Args:
        call: of a function of the language, or one registered with a derivative.
        value: an expression that equals the call, to use in its place.

    Raises:
        EinfuseError: no derivative of the function is known.

    >>> from .expression import Access
    >>> from .printer import render_expression
    >>> call = Call("tanh", (Access("X"),))
    >>> print(*map(render_expression, partials(call, Access("Y"))))
    1 - sq(Y[])
    """
    rule = function(call.function).derivative
    if rule is None:
        raise EinfuseError(
            f"not differentiable: no derivative of {call.function} is known; "
            "register one with register_derivative"
        )
    return rule(call.arguments, value)


def aten_functions() -> dict[str, str]:
    """Return name of an operation of PyTorch -> the function that it is."""
    return {name: row.name for row in _FUNCTIONS.values() for name in row.aten}


def function_names() -> tuple[str, ...]:
    """Return the names of all functions."""
    return tuple(_FUNCTIONS)


def monoid_names() -> tuple[str, ...]:
    """Return the names of all reductions."""
    return tuple(_MONOIDS)


def coordinate_names() -> tuple[str, ...]:
    """Return the names of all coordinate operators."""
    return tuple(_COORDINATES)


def _look_up(registry: Mapping[str, _T], name: str, what: str) -> _T:
    if name not in registry:
        raise EinfuseError(f"unknown {what} '{name}'{closest(name, registry)}")
    return registry[name]


def _check_name(name: str, what: str) -> None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise EinfuseError(f"a {what}'s name has letters, digits and '_', found '{name}'")


def _fold(
    combine: Callable[[Any, Any], Any], identity: float, values: Array, axes: tuple[int, ...]
) -> Array:
    axes = tuple(axis % values.ndim for axis in axes)
    moved = np.moveaxis(values, axes, tuple(range(len(axes))))
    kept = moved.shape[len(axes) :]
    rows = moved.reshape(-1, *kept)
    return np.asarray(functools.reduce(combine, rows, np.full(kept, identity)))


def _ufunc_fold(ufunc: np.ufunc, identity: float) -> Callable[[Array, tuple[int, ...]], Array]:
    return lambda values, axes: np.asarray(ufunc.reduce(values, axis=axes, initial=identity))


def _truth(name: str) -> Callable[[Array, tuple[int, ...]], Array]:
    return lambda values, axes: getattr(np, name)(values != 0, axis=axes).astype(values.dtype)


def _torch_prod(torch: ModuleType) -> Callable[..., Any]:
    return lambda values, axes: functools.reduce(
        lambda x, axis: torch.prod(x, dim=axis), sorted(axes, reverse=True), values
    )


def _torch_truth(name: str) -> Loader:
    return lambda torch: (
        lambda values, axes: functools.reduce(
            lambda x, axis: getattr(torch, name)(x, dim=axis),
            sorted(axes, reverse=True),
            values != 0,
        ).to(values.dtype)
    )


def _select(largest: bool, values: Array, count: int, axis: int) -> tuple[Array, Array]:
    """Return the extreme ``count`` values along an axis, best first, ties by coordinate."""
    key = -values if largest else values
    if not 0 <= count <= values.shape[axis]:
        raise EinfuseError(f"cannot select {count} of {values.shape[axis]} coordinates")
    coordinates = np.take(np.argsort(key, axis=axis, kind="stable"), np.arange(count), axis=axis)
    return np.take_along_axis(values, coordinates, axis), coordinates


def _torch_select(largest: bool) -> Loader:
    def load(torch: ModuleType) -> Callable[..., Any]:
        def select(values: Any, count: int, axis: int) -> tuple[Any, Any]:
            order = torch.sort(values, dim=axis, descending=largest, stable=True)
            return order.values.narrow(axis, 0, count), order.indices.narrow(axis, 0, count)

        return select

    return load


def _register_defaults() -> None:
    register_monoid(
        "+",
        np.add,
        0.0,
        operation="add",
        fold=_ufunc_fold(np.add, 0),
        torch=lambda t: lambda x, axes: t.sum(x, dim=axes),
    )
    register_monoid(
        "*",
        np.multiply,
        1.0,
        operation="multiply",
        fold=_ufunc_fold(np.multiply, 1),
        torch=_torch_prod,
    )
    register_monoid(
        "max",
        np.maximum,
        -math.inf,
        operation="max",
        fold=_ufunc_fold(np.maximum, -math.inf),
        torch=lambda t: lambda x, axes: t.amax(x, dim=axes),
    )
    register_monoid(
        "min",
        np.minimum,
        math.inf,
        operation="max",
        fold=_ufunc_fold(np.minimum, math.inf),
        torch=lambda t: lambda x, axes: t.amin(x, dim=axes),
    )
    either, both = compare(np.logical_or), compare(np.logical_and)
    register_monoid(
        "any", either, 0.0, operation="compare", fold=_truth("any"), torch=_torch_truth("any")
    )
    register_monoid(
        "all", both, 1.0, operation="compare", fold=_truth("all"), torch=_torch_truth("all")
    )
    register_coordinate("topk", functools.partial(_select, True), torch=_torch_select(True))
    register_coordinate(
        "bottomk", functools.partial(_select, False), torch=_torch_select(False), absent=math.inf
    )


_register_defaults()
