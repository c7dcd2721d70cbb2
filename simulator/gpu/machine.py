"""A GPU at the points of an evaluation: its parameters, and the names that formulas read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from einfuse.mapper import Architecture, Formula, MappingError, Scope, Values

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Machine:
    """An architecture with its values at the points, and the names that formulas read."""

    architecture: Architecture
    values: Mapping[str, Values | None]
    scope: Scope
    points: int
    scalar: bool  # one point: what does not fit is an error

    def number(self, path: str) -> Array:
        """A parameter at every point."""
        return self.spread(self.values[path])

    def spread(self, value: Any) -> Array:
        """A value at every point."""
        return np.broadcast_to(np.asarray(value, float), (self.points,))

    def of(self, formula: Formula) -> Array:
        """A formula's value at every point."""
        return self.spread(formula.evaluate(self.scope))

    def added(self, formulas: Mapping[str, Formula]) -> Array:
        """The sum of some formulas at every point."""
        return sum((self.of(f) for f in formulas.values()), np.zeros(self.points))

    def whole(self, formula: Formula, what: str) -> NDArray[np.int64]:
        """A formula that must be a whole number of at least 1."""
        found = self.of(formula)
        wrong = ~(np.isfinite(found) & (found >= 1) & (found == np.floor(found)))
        if np.any(wrong):
            raise MappingError(
                f"{what}: expected a whole number of at least 1, found {found[wrong][0]:g} "
                f"({formula.text})"
            )
        return found.astype(np.int64)

    @property
    def vector_units(self) -> tuple[str, ...]:
        """The units with lanes."""
        units = self.architecture.file.units
        return tuple(name for name, unit in units.items() if unit.lanes is not None)
