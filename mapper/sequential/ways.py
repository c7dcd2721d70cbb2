"""The ways to run one Einsum: nests of least bound first, worked out as far as a question needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from einfuse.mapper.space.choices import Interrupted, Tally
from einfuse.mapper.space.front import Front
from einfuse.mapper.space.objective import Objective

from .einsum import Floats, Prices, Task
from .rows import Nest, Row, nests


@dataclass(frozen=True, slots=True)
class Way:
    """The figures of an Einsum that runs in one way, and the way."""

    figures: Floats
    nest: Nest
    spread: int
    trail: Any

    @property
    def row(self) -> Row:
        """Its homes and lanes."""
        return self.nest.row(self.spread, self.trail)


class Ways:
    """The ways to run an Einsum, on any of its units, where its tensors come from given.

    With ``every`` they use any number of lanes: their bounds hold under shared loops, too.
    """

    def __init__(
        self,
        tasks: Sequence[tuple[Task, Prices]],
        objective: Objective,
        tally: Tally,
        expired: Callable[[], bool],
        every: bool = False,
    ) -> None:
        self.objective, self.tally, self.expired = objective, tally, expired
        self.nests = [nest for task, prices in tasks for nest in nests(task, prices, every)]
        fits: list[Any] = []
        for nest in self.nests:
            right = np.ones(len(nest.spreads), dtype=bool)
            for level, words in nest.overflow.items():
                beyond = words > 0
                right &= ~beyond
                if beyond.any():
                    self._lacking(level, int(beyond.sum()), float(words[beyond].min()))
            fits.append(np.flatnonzero(right))
        columns = len(objective.columns)
        none = np.zeros((0, columns))
        least = [nest.least[own] for nest, own in zip(self.nests, fits, strict=True)]
        rooms = [nest.least_room[own] for nest, own in zip(self.nests, fits, strict=True)]
        self.least = np.concatenate([none, *least]).T  # [column, nest and spread]
        self.least_rooms = np.concatenate([np.zeros(0), *rooms])
        self.places = [(n, int(s)) for n, own in enumerate(fits) for s in own]
        self._fronts: dict[int, tuple[Floats, Floats, Any]] = {}
        self._bounds: dict[bytes, Floats] = {}
        self._kept: dict[tuple[float, float, bytes], tuple[Way, ...]] = {}

    @property
    def worked_on(self) -> int:
        """The nests whose rows were worked out."""
        return len(self._fronts)

    def bounds(self, extra: Floats) -> Floats:
        """Figures that no way goes below, with further columns on top; infinite if there is none.

        Args:
            extra: columns of what is charged to the Einsum besides, such as of tensors that come
                to the first level with it.
        """
        key = extra.tobytes()
        if key not in self._bounds:
            every = self._every(extra, 0.0)
            self._bounds[key] = every.min(axis=1, initial=np.inf)
        return self._bounds[key]

    def within(self, words: float, held: float, extra: Floats) -> tuple[Way, ...]:
        """The best ways with so much room at the first level.

        Args:
            words: the room that is left to the Einsum.
            held: the words that others take there, if the figures tell.
            extra: see `bounds`.
        """
        key = (words, held, extra.tobytes())
        if key not in self._kept:
            self._kept[key] = self._within(words, held, extra)
        return self._kept[key]

    def _within(self, words: float, held: float, extra: Floats) -> tuple[Way, ...]:
        front = Front(len(self.objective.figures))
        bounds = self._every(extra, held)
        for n in np.lexsort(bounds[::-1]):
            if not front.improves(bounds[:, [n]])[0]:
                if len(bounds) == 1:
                    break
                continue
            if self.least_rooms[n] > words * (1 + 1e-12):
                level = self.nests[0].task.levels[0].name
                self._lacking(level, 1, float(self.least_rooms[n] - words))
                continue
            columns, rooms, states = self._front(int(n))
            fits = np.flatnonzero(rooms <= words * (1 + 1e-12))
            figures = self._close(columns[fits].T + extra[:, None], rooms[fits] + held)
            for index in front.add_all(figures):
                trail = states.trail[fits[index]]
                nest, spread = self.places[n]
                own = figures[:, index]
                front.add(own, Way(own, self.nests[nest], spread, trail))
        return tuple(front.payloads)

    def _lacking(self, level: str, count: int, words: float) -> None:
        """Tally what has no room at a level, and the fewest words that it lacks."""
        self.tally.infeasible[f"capacity of {level}"] += count
        self.tally.overflow[level] = min(self.tally.overflow.get(level, np.inf), words)

    def _front(self, n: int) -> tuple[Floats, Floats, Any]:
        if n not in self._fronts:
            if self.expired():
                raise Interrupted
            nest, spread = self.places[n]
            self._fronts[n] = self.nests[nest].front(spread, self.tally)
        return self._fronts[n]

    def _every(self, extra: Floats, held: float) -> Floats:
        """The bounds of all nests."""
        return self._close(self.least + extra[:, None], self.least_rooms + held)

    def _close(self, columns: Floats, rooms: Floats) -> Floats:
        return np.asarray(self.objective.close(columns, rooms, np.zeros(len(rooms), dtype=bool)))
