"""Choices that are made one by one, at many points at once, with bounds on what is left open.

A `Choice` has alternatives; an alternative has a cost in every column (they add) and may open
further choices. The bound of a choice is the columnwise least of its alternatives, so partial
sums plus the bounds of the open choices never exceed any completion. `solve` walks the choices
depth first, with all points (tile sizes) of a structure as arrays, and drops points whose bound
cannot improve the front, and those that overflow a capacity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any

import numpy as np

from .front import Front
from .objective import Numbers


@dataclass(frozen=True, eq=False)
class Alternative:
    """One way to decide: a label, its columns at every point, and the choices that it opens."""

    label: Hashable
    columns: Numbers
    opens: tuple[Choice, ...] = ()

    @cached_property
    def least(self) -> Numbers:
        """Its columns with the bounds of what it opens."""
        return reduce(np.add, (choice.bound for choice in self.opens), self.columns)


@dataclass(frozen=True, eq=False)
class Choice:
    """A decision between alternatives."""

    alternatives: tuple[Alternative, ...]

    @cached_property
    def bound(self) -> Numbers:
        """The least of every column at every point."""
        return reduce(np.minimum, (a.least for a in self.alternatives))


@dataclass(slots=True)
class Tally:
    """What a search did: candidates costed in full, and how many fell to which reason."""

    candidates: int = 0
    infeasible: Counter[str] = field(default_factory=Counter)
    overflow: dict[str, float] = field(default_factory=dict)  # level -> least words too many


class Interrupted(Exception):  # noqa: N818
    """The time is up; what was found stands."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How sums become figures, what must fit, and when to stop."""

    figures: Callable[[Numbers, Numbers], Numbers]  # (columns, points) -> figures
    rooms: tuple[tuple[int, str, float], ...]  # row, level, words that fit
    expired: Callable[[], bool] = lambda: False


def solve(
    choices: Sequence[Choice],
    base: Numbers,
    rules: Rules,
    front: Front,
    tally: Tally,
    describe: Callable[[int, tuple[Hashable, ...]], Any],
) -> None:
    """Put every combination of alternatives and points that improves the front onto it.

    Args:
        choices: the decisions.
        base: columns that every combination has, a row each, at every point.
        rules: figures, capacities, and the end of time.
        front: where to put what is found; what it holds already prunes.
        tally: where to count.
        describe: the payload of a point's index and the labels chosen.
    """
    alive = np.arange(base.shape[1])
    _Walk(rules, front, tally, describe).descend(_chain(choices), base, alive, ())


@dataclass(frozen=True, eq=False)
class _Open:
    """The choices still open: the next one, the others, and the bound of all of them."""

    choice: Choice
    rest: _Open | None

    @cached_property
    def bound(self) -> Numbers:
        return self.choice.bound if self.rest is None else self.choice.bound + self.rest.bound


def _chain(choices: Sequence[Choice], rest: _Open | None = None) -> _Open | None:
    for choice in reversed(choices):
        rest = _Open(choice, rest)
    return rest


class _Walk:
    def __init__(
        self,
        rules: Rules,
        front: Front,
        tally: Tally,
        describe: Callable[[int, tuple[Hashable, ...]], Any],
    ) -> None:
        self.rules, self.front, self.tally, self.describe = rules, front, tally, describe

    def descend(
        self, pending: _Open | None, total: Numbers, alive: Numbers, labels: tuple[Hashable, ...]
    ) -> None:
        if pending is None:
            self.record(total, alive, labels)
            return
        if self.rules.expired():
            raise Interrupted
        ways: list[tuple[float, int, Numbers, Numbers]] = []
        rest = pending.rest
        for number, way in enumerate(pending.choice.alternatives):
            bound = total + way.least[:, alive]
            if rest is not None:
                bound = bound + rest.bound[:, alive]
            fits, figures = self.judge(bound, alive)
            stay = fits & self.front.improves(figures)
            if stay.any():
                ways.append((float(figures[0, stay].min()), number, stay, figures[:, stay]))
        for _, number, stay, figures in sorted(ways, key=lambda way: way[:2]):
            again = self.front.improves(figures)
            if again.any():
                keep = np.flatnonzero(stay)[again]
                way = pending.choice.alternatives[number]
                kept = alive[keep]
                self.descend(
                    _chain(way.opens, rest),
                    total[:, keep] + way.columns[:, kept],
                    kept,
                    (*labels, way.label),
                )

    def judge(self, sums: Numbers, alive: Numbers) -> tuple[Numbers, Numbers]:
        """Whether sums fit every level, and their figures."""
        fits = np.ones(len(alive), dtype=bool)
        for row, level, words in self.rules.rooms:
            over = sums[row] - words
            beyond = over > 1e-9 * words
            if beyond.any():
                fits &= ~beyond
                least = float(over[beyond].min())
                self.tally.infeasible[f"capacity of {level}"] += int(beyond.sum())
                known = self.tally.overflow.get(level, np.inf)
                self.tally.overflow[level] = min(known, least)
        return fits, self.rules.figures(sums, alive)

    def record(self, total: Numbers, alive: Numbers, labels: tuple[Hashable, ...]) -> None:
        fits, figures = self.judge(total, alive)
        self.tally.candidates += len(alive)
        kept = np.flatnonzero(fits)
        for index in self.front.add_all(figures[:, kept]):
            place = kept[index]
            self.front.add(figures[:, place], self.describe(int(alive[place]), labels))
