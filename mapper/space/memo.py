"""What was counted, kept for the structures that share it, and the rows that columns stand in."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import numpy as np

from einfuse.mapper.machine.formula import Values

from .choices import Interrupted
from .objective import Numbers, Objective
from .space import MapSpace

_KEPT_NUMBERS = 16_000_000  # how many are kept of leaves, homes and times under loops
T = TypeVar("T")


class Pieces:
    """Counted leaves and their columns, kept for the structures that share them."""

    def __init__(
        self, space: MapSpace, objective: Objective, expired: Callable[[], bool] = lambda: False
    ) -> None:
        self.space, self.objective, self.expired = space, objective, expired
        self.inner_levels = space.memories[1:]
        self.rows = {name: n for n, name in enumerate(objective.columns)}
        self.rooms = {level: len(self.rows) + n for n, level in enumerate(self.inner_levels)}
        self.height = len(self.rows) + len(self.rooms)
        self._kept: dict[Hashable, Any] = {}
        self._numbers = 0

    def keep(self, key: Hashable, make: Callable[[], T], numbers: int = 0) -> T:
        """Return what was made under a key, making it once; the last ones are kept.

        Args:
            key: what it depends on.
            make: makes it.
            numbers: about how many it holds.

        Raises:
            Interrupted: it would have to be made, and the time is up.
        """
        if key not in self._kept:
            if self.expired():
                raise Interrupted
            found = make()
            if self._numbers > _KEPT_NUMBERS:
                self._kept.clear()
                self._numbers = 0
            self._kept[key] = found
            self._numbers += numbers + 100
        kept: T = self._kept[key]
        return kept

    def stack(self, shape: tuple[int, ...], *parts: Mapping[str, Values]) -> Numbers:
        """Return the sum of columns by name as rows, each of a shape."""
        out = np.zeros((self.height, *shape))
        for part in parts:
            for name, value in part.items():
                out[self.rows[name]] += value
        return out
