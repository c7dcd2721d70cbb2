"""Open choices without their capacities: what is best of them at every point, at a price of room.

Without capacities the choices do not meet, so that the best of all of them is found one by one.
With a price on the words beyond a capacity (Lagrange multipliers, a set for every point) the best
sum stays a bound on what fits: prices are raised where too much is taken, lowered where there is
room. The combinations met on the way that fit are mappings.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from einfuse.mapper.space.choices import Alternative, Choice
from einfuse.mapper.space.objective import Numbers

Weights = Mapping[int, Numbers | float]
_PUSHES = (0.3, 3.0, 100.0)
_STEPS = 12  # in which the prices of room are sought


@dataclass(frozen=True, slots=True)
class _Level:
    """Choices that open nothing but those of the levels before, all their alternatives in a row.

    ``first`` is the place of the first choice, ``columns`` are [alternative, row, point]; starts
    say where each choice begins, ``owner`` whose an alternative is. The alternatives ``opening``
    open the choices ``opened``, those of each from ``offsets`` on.
    """

    first: int
    columns: Numbers
    starts: Numbers
    owner: Numbers
    opening: Numbers
    opened: Numbers
    offsets: Numbers

    @classmethod
    def of(cls, choices: Sequence[Choice], first: int, places: Mapping[int, int]) -> _Level:
        ways = [way for choice in choices for way in choice.alternatives]
        counts = [len(choice.alternatives) for choice in choices]
        opening = [number for number, way in enumerate(ways) if way.opens]
        opens = [[places[id(choice)] for choice in ways[number].opens] for number in opening]
        lengths = [len(one) for one in opens]
        return cls(
            first,
            np.stack([way.columns for way in ways]),
            np.concatenate([[0], np.cumsum(counts)[:-1]]),
            np.repeat(np.arange(len(choices)), counts),
            np.array(opening, dtype=int),
            np.array([place for one in opens for place in one], dtype=int),
            np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(int),
        )


@dataclass(frozen=True, slots=True)
class Prices:
    """The price of a word at each limited level, [level, point], and the bound that it gives."""

    words: Numbers
    bound: Numbers


class Relaxation:
    """Choices at many points, level by level: what they open comes before them.

    Args:
        choices: the decisions.
        base: columns that every combination has, a row each, at every point.
    """

    def __init__(self, choices: Sequence[Choice], base: Numbers) -> None:
        self.base = base
        depth: dict[int, int] = {}
        every: list[list[Choice]] = []

        def visit(choice: Choice) -> int:
            if id(choice) not in depth:
                opened = [visit(one) for way in choice.alternatives for one in way.opens]
                depth[id(choice)] = 1 + max(opened, default=-1)
                while len(every) <= depth[id(choice)]:
                    every.append([])
                every[depth[id(choice)]].append(choice)
            return depth[id(choice)]

        for choice in choices:
            visit(choice)
        self.choices = [choice for level in every for choice in level]
        self.places = {id(choice): place for place, choice in enumerate(self.choices)}
        self.top = np.array([self.places[id(choice)] for choice in choices], dtype=int)
        self.levels: list[_Level] = []
        first = 0
        for level in every:
            self.levels.append(_Level.of(level, first, self.places))
            first += len(level)

    def best(self, weights: Weights) -> tuple[Numbers, Numbers]:
        """Return the least weighted sum of rows at every point, and what each choice picks.

        What is picked is the number of an alternative in its level, [choice, point].
        """
        count = self.base.shape[1]
        values = np.empty((len(self.choices), count))
        picks = np.empty((len(self.choices), count), dtype=int)
        for level in self.levels:
            own = sum(level.columns[:, row] * weight for row, weight in weights.items())
            assert isinstance(own, np.ndarray)
            if len(level.opening):
                own[level.opening] += np.add.reduceat(values[level.opened], level.offsets, axis=0)
            at = slice(level.first, level.first + len(level.starts))
            least = np.minimum.reduceat(own, level.starts, axis=0)
            numbers = np.arange(len(own))[:, None]
            found = np.where(own == least[level.owner], numbers, len(own))
            values[at], picks[at] = least, np.minimum.reduceat(found, level.starts, axis=0)
        total = sum(self.base[row] * weight for row, weight in weights.items())
        return np.asarray(total + values[self.top].sum(axis=0)), picks

    def sums(self, picks: Numbers) -> Numbers:
        """Return the columns of what is picked, a row each, at every point."""
        count = self.base.shape[1]
        active = np.zeros((len(self.choices), count), dtype=bool)
        active[self.top] = True
        out = self.base.copy()
        for level in reversed(self.levels):
            at = slice(level.first, level.first + len(level.starts))
            where, point = np.nonzero(active[at])
            chosen = picks[at][where, point]
            for row in range(len(out)):
                own = level.columns[chosen, row, point]
                out[row] += np.bincount(point, weights=own, minlength=count)
            if len(level.opening):
                owner = level.first + level.owner[level.opening]
                mask = active[owner] & (picks[owner] == level.opening[:, None])
                lengths = np.diff([*level.offsets, len(level.opened)])
                np.logical_or.at(active, level.opened, np.repeat(mask, lengths, axis=0))
        return out

    def labels(self, picks: Numbers, point: int) -> tuple[Hashable, ...]:
        """Return the labels of what is picked at a point."""
        found: list[Hashable] = []
        starts = np.concatenate([level.starts for level in self.levels])

        def visit(place: int) -> None:
            way = self.choices[place].alternatives[int(picks[place, point] - starts[place])]
            found.append(way.label)
            for choice in way.opens:
                visit(self.places[id(choice)])

        for place in self.top:
            visit(int(place))
        return tuple(found)

    def price(
        self,
        aim: Weights,
        rooms: Mapping[int, float],
        visit: Callable[[Numbers, Numbers], Numbers],
    ) -> Prices:
        """Seek the prices of room under which the least weighted sum bounds what fits most.

        Args:
            aim: what is minimised: row -> weight, at every point.
            rooms: row -> words that fit.
            visit: told of every combination met (picks and sums), and whether they fit.
        """
        count = self.base.shape[1]
        limits = np.array([*rooms.values()])[:, None]
        price = np.zeros((len(rooms), count))
        kept = Prices(price, np.full(count, -np.inf))
        known = np.full(count, np.inf)
        pace = 1.0
        for _ in range(_STEPS):
            weights = dict(aim)
            for own, one in zip(rooms, price, strict=True):
                weights[own] = weights.get(own, 0.0) + one
            found, picks = self.best(weights)
            found = found - (price * limits).sum(axis=0)
            better = found > kept.bound
            kept = Prices(np.where(better, price, kept.words), np.where(better, found, kept.bound))
            sums = self.sums(picks)
            reached = sum(sums[row] * weight for row, weight in aim.items())
            known = np.where(visit(picks, sums), np.minimum(known, reached), known)
            beyond = sums[[*rooms]] / limits - 1
            target = np.where(np.isfinite(known), known, kept.bound * 1.05)
            slope = np.where((price > 0) | (beyond > 0), beyond, 0.0)
            steep = (slope**2).sum(axis=0)
            if not (steep > 0).any():
                break
            missing = np.maximum(target - found, 1e-6 * np.abs(found))
            missing = np.where(np.isfinite(missing), missing, 0.0)
            step = np.divide(pace * missing, steep, out=np.zeros(count), where=steep > 0)
            price = np.maximum(price + step * slope / limits, 0.0)
            pace *= 0.85
        for push in _PUSHES:  # nothing has fitted yet at some points: room at almost any price
            if np.isfinite(known).all():
                break
            weights = dict(aim)
            for own, limit in zip(rooms, limits, strict=True):
                weights[own] = weights.get(own, 0.0) + push * np.abs(kept.bound) / limit
            _, picks = self.best(weights)
            known = np.where(visit(picks, self.sums(picks)), 0.0, known)
        return kept


def with_sums(choices: Sequence[Choice], sums: Sequence[Weights]) -> tuple[Choice, ...]:
    """Return choices with further rows, which are weighted sums of theirs.

    Args:
        choices: the decisions.
        sums: for each further row, row -> weight at each point.
    """
    made: dict[int, Choice] = {}

    def renew(choice: Choice) -> Choice:
        if id(choice) not in made:
            ways = [
                Alternative(
                    way.label,
                    add_sums(way.columns, sums),
                    tuple(map(renew, way.opens)),
                )
                for way in choice.alternatives
            ]
            made[id(choice)] = replace(choice, alternatives=tuple(ways))
        return made[id(choice)]

    return tuple(map(renew, choices))


def add_sums(columns: Numbers, sums: Sequence[Weights]) -> Numbers:
    """Return columns with further rows, which are weighted sums of theirs."""
    rows = [
        sum((columns[row] * weight for row, weight in one.items()), np.zeros(columns.shape[1]))
        for one in sums
    ]
    return np.vstack([columns, *rows]) if rows else columns
