"""What a cascade may call: functions, reduction monoids, coordinate operators, merges.

Each entry has a NumPy meaning, a PyTorch meaning (made from the module when it is first asked
for, so that torch stays optional) and the operation class under which a use of it is costed.
Users add their own with `register_function`, `register_monoid` and `register_coordinate`.

A cascade treats empty as absent, not as zero; the fold of nothing is a monoid's identity.
"""

from __future__ import annotations

import functools
import importlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .errors import EinfuseError
from .errors import closest as closest

Array = npt.NDArray[Any]
_T = TypeVar("_T")
TorchLoader = Callable[[ModuleType], Callable[..., Any]]

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
class Function:
    """A function of values: ``exp(x)``. ``arity`` None takes two or more arguments."""

    name: str
    arity: int | None
    operation: str
    numpy: Callable[..., Any]
    torch_loader: TorchLoader | None = None

    def accepts(self, count: int) -> bool:
        """Tell whether it can be called with that many arguments."""
        return count >= 2 if self.arity is None else count == self.arity

    @property
    def torch(self) -> Callable[..., Any]:
        """The PyTorch meaning; EinfuseError if it was registered without one."""
        return _torch(self.torch_loader, f"function {self.name}")


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
    torch_loader: TorchLoader | None = None

    @property
    def torch(self) -> Callable[..., Any]:
        """The PyTorch fold, (tensor, axes) -> tensor; EinfuseError if it has none."""
        return _torch(self.torch_loader, f"monoid {self.name}")


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
    torch_loader: TorchLoader | None = None
    absent: float = -math.inf

    @property
    def torch(self) -> Callable[..., Any]:
        """The PyTorch meaning; EinfuseError if it was registered without one."""
        return _torch(self.torch_loader, f"coordinate operator {self.name}")


def _torch(loader: TorchLoader | None, what: str) -> Callable[..., Any]:
    if loader is None:
        raise EinfuseError(f"{what} has no PyTorch meaning: register it with torch=...")
    return loader(importlib.import_module("torch"))


# NumPy meanings. Limits at -inf are those of the function, so that a masked value stays finite.


def _sigmoid(x: Any) -> Any:
    return 0.5 * (1 + np.tanh(np.multiply(x, 0.5)))


def _gated(x: Any, gate: Any) -> Any:
    """Return x * gate with the limit 0 at x = -inf, where the gate has closed."""
    closed = np.isneginf(x)
    return np.where(closed, 0, np.where(closed, 0, x) * gate)


_erf = np.vectorize(math.erf, otypes=[float])


def _silu(x: Any) -> Any:
    return _gated(x, _sigmoid(x))


def _gelu(x: Any) -> Any:
    return _gated(x, 0.5 * (1 + _erf(np.divide(x, math.sqrt(2)))))


def _elu1(x: Any) -> Any:
    return np.where(np.greater(x, 0), np.add(x, 1), np.exp(np.minimum(x, 0)))


def _compare(ufunc: np.ufunc) -> Callable[[Any, Any], Any]:
    return lambda a, b: ufunc(a, b).astype(np.result_type(a, b, np.int8))


def _variadic(binary: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda *values: functools.reduce(binary, values)


# PyTorch meanings; a plain number beside a tensor becomes a tensor of its kind.


def _tensors(torch: ModuleType, values: Iterable[Any]) -> list[Any]:
    values = list(values)
    like = next((v for v in values if torch.is_tensor(v)), torch.zeros(()))
    return [v if torch.is_tensor(v) else torch.as_tensor(v).to(like) for v in values]


def _on_tensors(make: Callable[[ModuleType], Callable[..., Any]]) -> TorchLoader:
    def load(torch: ModuleType) -> Callable[..., Any]:
        function = make(torch)
        return lambda *values: function(*_tensors(torch, values))

    return load


def _torch_gated(torch: ModuleType, x: Any, gate: Any) -> Any:
    closed = torch.isneginf(x)
    return torch.where(closed, torch.zeros_like(x), x.masked_fill(closed, 0) * gate)


def _torch_compare(name: str) -> Callable[[ModuleType], Callable[..., Any]]:
    return lambda torch: lambda a, b: getattr(torch, name)(a, b).to(torch.result_type(a, b))


_FUNCTIONS: dict[str, Function] = {}
_MONOIDS: dict[str, Monoid] = {}
_COORDINATES: dict[str, CoordinateOperator] = {}


def register_function(
    name: str,
    numpy: Callable[..., Any],
    *,
    arity: int | None = 1,
    operation: str | None = None,
    torch: TorchLoader | None = None,
) -> Function:
    """Add a function, or replace one, and return it.

    Args:
        name: how a cascade calls it.
        numpy: its NumPy meaning, element by element, broadcasting.
        arity: number of arguments; None for two or more (costed one operation fewer than that).
        operation: the operation class it is costed under; its own name if left out.
        torch: takes the torch module and gives the function there.

    >>> _ = register_function("cube", lambda x: x**3)
    >>> function("cube").numpy(2.0)
    8.0
    """
    _check_name(name, "function")
    _FUNCTIONS[name] = Function(name, arity, operation or name, numpy, torch)
    return _FUNCTIONS[name]


def register_monoid(
    name: str,
    combine: Callable[[Any, Any], Any],
    identity: float,
    *,
    operation: str | None = None,
    fold: Callable[[Array, tuple[int, ...]], Array] | None = None,
    torch: TorchLoader | None = None,
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
    torch: TorchLoader | None = None,
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


def _torch_truth(name: str) -> TorchLoader:
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


def _torch_select(largest: bool) -> TorchLoader:
    def load(torch: ModuleType) -> Callable[..., Any]:
        def select(values: Any, count: int, axis: int) -> tuple[Any, Any]:
            order = torch.sort(values, dim=axis, descending=largest, stable=True)
            return order.values.narrow(axis, 0, count), order.indices.narrow(axis, 0, count)

        return select

    return load


def _register_defaults() -> None:
    f, on = register_function, _on_tensors
    f("exp", np.exp, torch=on(lambda t: t.exp))
    f("exp2", np.exp2, operation="exp", torch=on(lambda t: t.exp2))
    f("log", np.log, torch=on(lambda t: t.log))
    f("log2", np.log2, operation="log", torch=on(lambda t: t.log2))
    f("sqrt", np.sqrt, torch=on(lambda t: t.sqrt))
    f("rsqrt", lambda x: 1 / np.sqrt(x), torch=on(lambda t: t.rsqrt))
    f("sq", np.square, operation="multiply", torch=on(lambda t: t.square))
    f("abs", np.abs, torch=on(lambda t: t.abs))
    f("sigmoid", _sigmoid, torch=on(lambda t: t.sigmoid))
    f("tanh", np.tanh, torch=on(lambda t: t.tanh))
    f("relu", lambda x: np.maximum(x, 0), operation="max", torch=on(lambda t: t.relu))
    f("silu", _silu, torch=on(lambda t: lambda x: _torch_gated(t, x, t.sigmoid(x))))
    f(
        "gelu",
        _gelu,
        torch=on(lambda t: lambda x: _torch_gated(t, x, 0.5 * (1 + t.erf(x / math.sqrt(2))))),
    )
    f("elu1", _elu1, torch=on(lambda t: lambda x: t.where(x > 0, x + 1, t.exp(x.clamp(max=0)))))
    f(
        "softplus",
        lambda x: np.logaddexp(x, 0),
        torch=on(lambda t: lambda x: t.logaddexp(x, t.zeros_like(x))),
    )
    f("sin", np.sin, torch=on(lambda t: t.sin))
    f("cos", np.cos, torch=on(lambda t: t.cos))
    f(
        "sign",
        np.sign,
        operation="compare",
        torch=on(lambda t: lambda x: t.where(t.isnan(x), x, t.sign(x))),
    )
    f("clamp", np.clip, arity=3, torch=on(lambda t: t.clamp))
    f("floor", np.floor, torch=on(lambda t: t.floor))
    f(
        "max",
        _variadic(np.maximum),
        arity=None,
        operation="max",
        torch=on(lambda t: _variadic(t.maximum)),
    )
    f(
        "min",
        _variadic(np.minimum),
        arity=None,
        operation="max",
        torch=on(lambda t: _variadic(t.minimum)),
    )
    comparisons: dict[str, np.ufunc] = {
        "ge": np.greater_equal,
        "gt": np.greater,
        "le": np.less_equal,
        "lt": np.less,
    }
    for name, compare in comparisons.items():
        f(name, _compare(compare), arity=2, operation="compare", torch=on(_torch_compare(name)))
    f(
        "where",
        lambda c, a, b: np.where(np.not_equal(c, 0), a, b),
        arity=3,
        operation="select",
        torch=on(lambda t: lambda c, a, b: t.where(c != 0, a, b)),
    )

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
    either, both = _compare(np.logical_or), _compare(np.logical_and)
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
