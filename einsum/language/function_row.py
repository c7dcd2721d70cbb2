"""One function of the language with all that analyses know of it: a row of the function table."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np

from .errors import EinfuseError
from .expression import Expression

Interval = tuple[float, float]
Loader = Callable[[ModuleType], Callable[..., Any]]
"""Takes a module (torch, sympy) and gives a function there: the module stays optional."""
Partials = tuple[Expression | None, ...]
Derivative = Callable[[tuple[Expression, ...], Expression], Partials]
"""Takes the arguments and the value of a call: the derivative by each argument, None for 0."""

ANYTHING: Interval = (-math.inf, math.inf)


class Sign(IntEnum):
    """What is known of the sign of a value."""

    UNKNOWN = 0
    NOT_NEGATIVE = 1
    POSITIVE = 2


SignRule = Callable[..., Sign]
"""Takes the sign of each argument."""


def positive(*arguments: Sign) -> Sign:
    """Return the sign of an exponential: positive whatever the argument."""
    return Sign.POSITIVE


def magnitude(*arguments: Sign) -> Sign:
    """Return the sign of an absolute value: 0 where the argument is, else positive."""
    return max(Sign.NOT_NEGATIVE, *arguments)


def of_all(*arguments: Sign) -> Sign:
    """Return the sign of what is positive where all arguments are: a root, a minimum."""
    return min(arguments)


def of_any(*arguments: Sign) -> Sign:
    """Return the sign of a maximum, which is that of its largest argument."""
    return max(arguments)


def unknown(*arguments: Sign) -> Sign:
    """Return that the sign may be any."""
    return Sign.UNKNOWN


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """A function of values: ``exp(x)``, and what analyses may conclude from it.

    What is left out is unknown, which is always safe.

    Attributes:
        numpy: the NumPy meaning, element by element, broadcasting.
        arity: number of arguments; None for two or more.
        operation: the operation class it is costed under; its own name if left out.
        torch_loader: takes the torch module and gives the function there.
        sympy: takes the sympy module and gives the function there, for what algebra may open.
        derivative: see `Derivative`.
        sign: what its value's sign follows from.
        power: ``f(c*x) = c**power * f(x)`` for every positive ``c``; 0 for logarithms, which grow
            by little.
        base: of an exponential.
        increasing: a larger argument gives a larger value.
        interval: takes the interval of each argument and gives that of the value.
        keeps_whole: of whole numbers it gives whole numbers.
        aten: names of the operations of PyTorch that it is, element by element.
    """

    name: str
    numpy: Callable[..., Any]
    arity: int | None = 1
    operation: str = ""
    torch_loader: Loader | None = None
    sympy: Loader | None = None
    derivative: Derivative | None = None
    sign: SignRule = unknown
    power: Fraction | int | None = None
    base: float | None = None
    increasing: bool = False
    interval: Callable[..., Interval] | None = None
    keeps_whole: bool = False
    aten: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.operation:
            object.__setattr__(self, "operation", self.name)

    def accepts(self, count: int) -> bool:
        """Tell whether it can be called with that many arguments."""
        return count >= 2 if self.arity is None else count == self.arity

    @property
    def torch(self) -> Callable[..., Any]:
        """The PyTorch meaning; EinfuseError if it was registered without one."""
        return torch_meaning(self.torch_loader, f"function {self.name}")

    def at(self, x: float) -> float:
        """Return the value of a function of one argument at a number; NaN where it has none."""
        return _value_at(self, x)


@functools.cache
def _value_at(function: Function, x: float) -> float:
    try:
        with np.errstate(all="ignore"):
            return float(function.numpy(np.float64(x)))
    except (ArithmeticError, ValueError):
        return math.nan


def torch_meaning(loader: Loader | None, what: str) -> Callable[..., Any]:
    """Return what a loader gives of torch; EinfuseError if there is no loader."""
    if loader is None:
        raise EinfuseError(f"{what} has no PyTorch meaning: register it with torch=...")
    return loader(importlib.import_module("torch"))
