"""Choices that are made one by one, at many points at once, with bounds on what is left open.

A `Choice` has alternatives; an alternative has a cost in every column (they add) and may open
further choices. The bound of a choice is the columnwise least of its alternatives, so partial
sums plus the bounds of the open choices never exceed any completion. `solve` walks the choices
depth first, with all points (tile sizes) of a structure as arrays, and drops points whose bound
cannot improve the front, those that overflow a capacity, and those at which a sum no higher was
seen with the same choices open.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any

import numpy as np

from .front import Front
from .objective import Numbers

_REMEMBERED = 32  # sums that are remembered for each set of open choices


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
    """A decision between alternatives; the ``late`` ones wait until no other is open."""

    alternatives: tuple[Alternative, ...]
    late: bool = False

    @cached_property
    def bound(self) -> Numbers:
        """The least of every column at every point."""
        return reduce(np.minimum, (a.least for a in self.alternatives))


@dataclass(slots=True)
class Tally:
    """What a search did: candidates costed in full, and how many fell to which reason.

    ``structures`` are those that were worked on.
    """

    candidates: int = 0
    structures: int = 0
    infeasible: Counter[str] = field(default_factory=Counter)
    overflow: dict[str, float] = field(default_factory=dict)  # level -> least words too many

    def add(self, other: Tally) -> None:
        """Count what another one has counted."""
        self.candidates += other.candidates
        self.structures += other.structures
        self.infeasible.update(other.infeasible)
        for level, words in other.overflow.items():
            self.overflow[level] = min(self.overflow.get(level, np.inf), words)

    def check(self, level: str, taken: Numbers, words: float) -> Numbers:
        """Tell where what is taken at a level fits, and count where it does not."""
        beyond = taken > words * (1 + 1e-12)
        if beyond.any():
            self.infeasible[f"capacity of {level}"] += int(beyond.sum())
            least = float((taken - words)[beyond].min())
            self.overflow[level] = min(self.overflow.get(level, np.inf), least)
        return np.asarray(~beyond)


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
    _Walk(rules, front, tally, describe).descend(_Open.of(choices), base, alive, ())


@dataclass(frozen=True, eq=False)
class _Chain:
    """Open choices, the next one first, and the bound of all of them."""

    choice: Choice
    rest: _Chain | None

    @cached_property
    def bound(self) -> Numbers:
        return self.choice.bound if self.rest is None else self.choice.bound + self.rest.bound


@dataclass(frozen=True, slots=True)
class _Open:
    """The choices still open: those that cannot wait, and the late ones."""

    soon: _Chain | None = None
    late: _Chain | None = None

    @classmethod
    def of(cls, choices: Sequence[Choice]) -> _Open:
        return cls().more(choices)

    def more(self, choices: Sequence[Choice]) -> _Open:
        soon, late = self.soon, self.late
        for choice in reversed(choices):
            if choice.late:
                late = _Chain(choice, late)
            else:
                soon = _Chain(choice, soon)
        return _Open(soon, late)

    def next(self) -> tuple[Choice, _Open] | None:
        if self.soon is not None:
            return self.soon.choice, _Open(self.soon.rest, self.late)
        if self.late is not None:
            return self.late.choice, _Open(None, self.late.rest)
        return None

    def plus_bound(self, sums: Numbers, alive: Numbers) -> Numbers:
        for chain in (self.soon, self.late):
            if chain is not None:
                sums = sums + _at(chain.bound, alive)
        return sums


class _Walk:
    def __init__(
        self,
        rules: Rules,
        front: Front,
        tally: Tally,
        describe: Callable[[int, tuple[Hashable, ...]], Any],
    ) -> None:
        self.rules, self.front, self.tally, self.describe = rules, front, tally, describe
        self.seen: dict[_Open, deque[tuple[Numbers, Numbers]]] = {}

    def descend(
        self, pending: _Open, total: Numbers, alive: Numbers, labels: tuple[Hashable, ...]
    ) -> None:
        following = pending.next()
        if following is None:
            fits, figures = self.judge(total, alive)
            self.record(figures, fits, alive, labels)
            return
        if self.rules.expired():
            raise Interrupted
        choice, rest = following
        if rest.next() is not None:  # else looking back takes longer than going on
            fresh = self.fresh(pending, total, alive)
            if not fresh.all():
                if not fresh.any():
                    return
                total, alive = total.compress(fresh, axis=1), alive[fresh]
        ways: list[tuple[float, int, Numbers, Numbers]] = []
        known = rest.plus_bound(total, alive)
        for number, way in enumerate(choice.alternatives):
            bound = known + _at(way.least, alive)
            fits, figures = self.judge(bound, alive)
            if not way.opens and rest.next() is None:
                self.record(figures, fits, alive, (*labels, way.label))
                continue
            stay = fits & self.front.improves(figures)
            if stay.any():
                ways.append((float(figures[0, stay].min()), number, stay, figures[:, stay]))
        for _, number, stay, figures in sorted(ways, key=lambda way: way[:2]):
            again = self.front.improves(figures)
            if again.any():
                keep = np.flatnonzero(stay)[again]
                way = choice.alternatives[number]
                kept = alive[keep]
                self.descend(
                    rest.more(way.opens),
                    total.take(keep, axis=1) + _at(way.columns, kept),
                    kept,
                    (*labels, way.label),
                )

    def fresh(self, pending: _Open, total: Numbers, alive: Numbers) -> Numbers:
        """Tell at which points no sum that was here before, with the same choices open, is as low.

        Whatever completes a sum completes a lower one to something lower.
        """
        fresh = np.ones(len(alive), dtype=bool)
        before = self.seen.setdefault(pending, deque(maxlen=_REMEMBERED))
        for points, sums in before:
            if len(points) == len(alive) and (points == alive).all():
                fresh &= (sums > total).any(axis=0)
            else:
                at = np.minimum(points.searchsorted(alive), len(points) - 1)
                known = points[at] == alive
                fresh &= ~known | (sums.take(at, axis=1) > total).any(axis=0)
            if not fresh.any():
                return fresh
        before.append((alive, total))
        return fresh

    def judge(self, sums: Numbers, alive: Numbers) -> tuple[Numbers, Numbers]:
        """Whether sums fit every level, and their figures."""
        fits = np.ones(len(alive), dtype=bool)
        for row, level, words in self.rules.rooms:
            fits &= self.tally.check(level, sums[row], words)
        return fits, self.rules.figures(sums, alive)

    def record(
        self, figures: Numbers, fits: Numbers, alive: Numbers, labels: tuple[Hashable, ...]
    ) -> None:
        """Put finished combinations onto the front."""
        self.tally.candidates += len(alive)
        kept = np.flatnonzero(fits)
        for index in self.front.add_all(figures[:, kept]):
            place = kept[index]
            self.front.add(figures[:, place], self.describe(int(alive[place]), labels))


def _at(columns: Numbers, points: Numbers) -> Numbers:
    """Columns at some points, row by row in memory; the points are distinct and sorted."""
    if len(points) == columns.shape[1]:
        return columns
    return columns.take(points, axis=1)
