"""The search of one group of Einsums: its structures at all their tile sizes, in three steps.

`narrow` divides the structures into families by their levels, each with a bound, and prepares a few
of a family at a time: it drops the tile sizes at which what a structure exchanges does not fit, and
bounds the others by the least time of each Einsum on each unit. `look` lays the choices of a
structure out, bounds them without their capacities and at prices of room
(`einfuse.mapper.grouped.relaxation`), and keeps the mappings that it comes across. `solve` ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice
from typing import Any

import numpy as np

from einfuse.mapper.space.choices import Interrupted, Rules, Tally, solve
from einfuse.mapper.space.front import Front
from einfuse.mapper.space.memo import Pieces
from einfuse.mapper.space.objective import Numbers
from einfuse.mapper.space.space import Structure
from einfuse.mapper.space.tile_sizes import group_tiles

from .bounds import assignment_floor, bound_group, bound_structure, bound_work
from .group_tree import GroupTree
from .relaxation import Relaxation, Weights, add_sums, with_sums
from .tile_bounds import least_rooms, least_times, least_transfers

_PORTION = 16  # structures that are prepared at a time: first one, then more and more, at most


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A structure at tile sizes that leave room for what it exchanges, with bounds on figures.

    ``prices`` are those of a word at each limited level for each figure, [figure, level, point],
    once it was looked at.
    """

    structure: Structure
    sizes: Mapping[str, int]
    points: Mapping[str, Numbers]
    overlapped: Numbers
    floor: Numbers
    prices: Numbers | None = None

    def at(self, points: Numbers) -> Candidate:
        """The candidate at some of its points."""
        return replace(
            self,
            points={rank: column[points] for rank, column in self.points.items()},
            overlapped=self.overlapped[points],
            floor=self.floor[:, points],
            prices=None if self.prices is None else self.prices[:, :, points],
        )

    def split(self, points: Numbers) -> tuple[Candidate, Candidate | None]:
        """The candidate at some of its points, and at the others."""
        others = np.ones(self.floor.shape[1], dtype=bool)
        others[points] = False
        if not others.any():
            return self, None
        return self.at(~others), self.at(others)


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """Structures of a group that agree on some levels, and figures that none of them goes below.

    ``decided`` are the levels that are (see `MapSpace.levels`); once all are, the first
    ``prepared`` structures are gone.
    """

    einsums: tuple[str, ...]
    sizes: Mapping[str, int]
    floor: Numbers  # a single column
    bounded: bool = False
    decided: tuple[tuple[str, int], ...] = ()
    prepared: int = 0


class GroupSearch:
    """The search of groups of a space for an objective; it counts what it does.

    Args:
        pieces: the space and the objective, with what was counted of them before.
        expired: whether the time is up.
    """

    def __init__(self, pieces: Pieces, expired: Callable[[], bool]) -> None:
        self.pieces, self.expired = pieces, expired
        pieces.expired = expired
        self.space, self.objective = pieces.space, pieces.objective
        space = self.space
        self.tally = Tally()
        self.rooms = tuple(
            (row, level, space.values[f"{level}.bytes"] / space.values["word_bytes"])
            for level, row in self.pieces.rooms.items()
            if space.values[f"{level}.bytes"] is not None
        )

    def narrow(self, family: Family) -> list[Family | Candidate]:
        """Return what a family consists of: smaller families, and structures where they have room.

        First it is bounded, then a level is decided at a time, then a few structures are prepared.
        """
        einsums = family.einsums
        if not family.bounded:
            return [self._decide(family, ())]
        undecided = self.space.levels(einsums)[len(family.decided) :]
        if undecided:
            name, levels = undecided[0]
            return [self._decide(family, ((name, level),)) for level in levels]
        until = family.prepared + min(family.prepared + 1, _PORTION)
        portion = self._structures(family, until)[family.prepared : until]
        found: list[Family | Candidate] = []
        for structure in portion:
            if self.expired():
                raise Interrupted
            bound = bound_structure(self.pieces, structure, family.sizes)[:, None]
            least = np.maximum(family.floor, bound)
            found += [
                replace(one, floor=np.maximum(one.floor, least))
                for one in self._candidates(structure, family.sizes)
            ]
        rest = [replace(family, prepared=until)] if len(portion) == until - family.prepared else []
        return [*found, *rest]

    def _structures(self, family: Family, until: int) -> list[Structure]:
        """The structures of a family, so many at least if there are; those known are kept."""
        (_, exchange), *faces = family.decided

        def every() -> tuple[list[Structure], Iterator[Structure]]:
            return [], self.space.structures_at(family.einsums, exchange, tuple(faces))

        known, others = self.pieces.keep(("structures", family.einsums, family.decided), every)
        known += islice(others, max(0, until - len(known)))
        return known

    def _decide(self, family: Family, more: tuple[tuple[str, int], ...]) -> Family:
        decided = (*family.decided, *more)
        bound = bound_group(self.pieces, family.einsums, family.sizes, dict(decided))
        floor = np.maximum(family.floor, bound[:, None])
        return replace(family, floor=floor, bounded=True, decided=decided)

    def look(self, candidate: Candidate, front: Front) -> Candidate | None:
        """Bound a structure's choices, and put the mappings met on the way onto a front.

        Returns the candidate with better bounds at the points that may still improve the front;
        None if there are none.
        """
        found = self._alive(candidate, front)
        if found is None:
            return None
        self.tally.structures += 1
        tree = self._tree(found)
        spare, _ = self._spare(tree)
        floor = np.maximum(found.floor, self._transfers(tree, spare))
        found = self._alive(replace(found, floor=floor), front)
        if found is None:
            return None
        tree = self._tree(found)
        choices, base = tree.choices(), tree.base()
        if not all(choice.alternatives for choice in choices):
            return None
        relaxed = Relaxation(choices, base)
        floor = np.maximum(found.floor, self._figures(tree, base + sum(c.bound for c in choices)))
        prices = np.zeros((len(self.objective.figures), len(self.rooms), tree.count))
        limits = {row: words for row, _, words in self.rooms}

        def visit(picks: Numbers, sums: Numbers) -> Numbers:
            if self.expired():
                raise Interrupted
            figures = self._figures(tree, sums)
            fits = np.ones(tree.count, dtype=bool)
            for row, words in limits.items():
                fits &= sums[row] <= words * (1 + 1e-12)
            self.tally.candidates += tree.count
            kept = np.flatnonzero(fits)
            for index in front.add_all(figures[:, kept]):
                point = int(kept[index])
                group = tree.group(point, relaxed.labels(picks, point))
                front.add(figures[:, point], group)
            return fits

        aims = self._aims(tree)
        if len(aims) > 1:
            aims.append(_together(aims, floor))
        for number, aim in enumerate(aims):
            priced = relaxed.price(aim, limits, visit)
            if number < len(floor) and self._bounds(number):
                prices[number] = priced.words
                floor[number] = np.maximum(floor[number], priced.bound)
        return self._alive(replace(found, floor=floor, prices=prices), front)

    def solve(self, candidate: Candidate, front: Front) -> None:
        """Put what a structure has to offer onto a front."""
        found = self._alive(candidate, front)
        if found is None:
            return
        tree = self._tree(found)
        height, rows = self.pieces.height, len(self.objective.columns)
        sums: list[Weights] = []
        priced: list[tuple[int, Numbers]] = []  # figure, what its capacities take off
        for number, aim in enumerate(self._aims(tree)):
            prices = None if found.prices is None else found.prices[number]
            if prices is None or not prices.any():
                continue
            weights = {row: np.broadcast_to(w, (tree.count,)) for row, w in aim.items()}
            for (row, _, _), one in zip(self.rooms, prices, strict=True):
                weights[row] = weights.get(row, 0.0) + one
            words = np.array([words for _, _, words in self.rooms])
            sums.append(weights)
            priced.append((number, words @ prices))
        floor = found.floor

        def figures(columns: Numbers, points: Numbers) -> Numbers:
            peak = columns[rows] if height > rows else np.zeros(columns.shape[1])
            known = self.objective.close(columns[:rows], peak, tree.overlapped[points])
            known = np.maximum(known, floor[:, points])
            for place, (number, taken) in enumerate(priced):
                known[number] = np.maximum(known[number], columns[height + place] - taken[points])
            return np.asarray(known)

        rules = Rules(figures, self.rooms, self.expired)
        choices = with_sums(tree.choices(), sums)
        solve(choices, add_sums(tree.base(), sums), rules, front, self.tally, tree.group)

    def _alive(self, candidate: Candidate, front: Front) -> Candidate | None:
        """A candidate at the points that may improve a front."""
        stay = np.asarray(front.improves(candidate.floor))
        if stay.all():
            return candidate
        if not stay.any():
            return None
        return candidate.at(stay)

    def _tree(self, candidate: Candidate) -> GroupTree:
        return GroupTree(
            self.pieces, candidate.structure, candidate.sizes, candidate.points,
            candidate.overlapped,
        )  # fmt: skip

    def _aims(self, tree: GroupTree) -> list[Weights]:
        """For each figure the weighted sum of columns to minimise: itself, or close to it."""
        rows, objective = self.pieces.rows, self.objective
        # the mean of the units' times, or their sum where they do not overlap
        time: Weights = {
            rows[column]: np.where(tree.overlapped, objective.mixes[0][unit], 1.0)
            for unit, column in objective.times.items()
        }
        aims: list[Weights] = []
        for figure in objective.figures:
            if figure in rows:
                rate = objective.rates.get(figure, 0.0)
                grown = {row: rate * weight for row, weight in time.items() if rate}
                aims.append({rows[figure]: 1.0, **grown})
            elif figure == objective.timed and time:
                aims.append(time)
            else:
                aims.append({len(rows): 1.0} if self.pieces.height > len(rows) else {})
        return aims

    def _bounds(self, figure: int) -> bool:
        """Whether the sum that is minimised for a figure bounds it."""
        name = self.objective.figures[figure]
        return name in self.pieces.rows or (name == self.objective.timed)

    def _figures(self, tree: GroupTree, sums: Numbers) -> Numbers:
        rows = len(self.objective.columns)
        peak = sums[rows] if len(sums) > rows else np.zeros(sums.shape[1])
        return np.asarray(self.objective.close(sums[:rows], peak, tree.overlapped))

    def _candidates(self, structure: Structure, sizes: Mapping[str, int]) -> list[Candidate]:
        found: list[Candidate] = []
        for points in group_tiles(self.space, structure, sizes, self.tally.infeasible):
            every, overlapped = self._with_overlap(structure, sizes, points)
            tree = GroupTree(self.pieces, structure, sizes, every, overlapped)
            _, fits = self._spare(tree)
            if fits.any():
                candidate = Candidate(structure, sizes, every, overlapped, self._floor(tree))
                found.append(candidate if fits.all() else candidate.at(fits))
        return found

    def _with_overlap(
        self, structure: Structure, sizes: Mapping[str, int], points: Mapping[str, Numbers]
    ) -> tuple[Mapping[str, Numbers], Numbers]:
        """Points at which Einsums overlap where they may, and all of them one Einsum at a time.

        What is under way takes room, and only time is won.
        """
        may = GroupTree(self.pieces, structure, sizes, points).may_overlap()
        if not self.objective.times or not may.any():
            return points, np.zeros(len(may), dtype=bool)
        both = {rank: np.concatenate([column[may], column]) for rank, column in points.items()}
        return both, np.arange(may.sum() + len(may)) < may.sum()

    def _spare(self, tree: GroupTree) -> tuple[Mapping[str, Numbers], Numbers]:
        """The words that each level has left at most, and where a group fits at all."""
        taken = least_rooms(tree)
        limited = {level: words for _, level, words in self.rooms}
        spare: dict[str, Numbers] = {}
        fits = np.ones(tree.count, dtype=bool)
        for level, row in self.pieces.rooms.items():
            words = limited.get(level, np.inf)
            used = taken[row - len(self.pieces.rows)]
            fits &= self.tally.check(level, used, words)
            spare[level] = words - used
        return spare, fits

    def _transfers(self, tree: GroupTree, spare: Mapping[str, Numbers]) -> Numbers:
        """Figures that the work and what it moves do not go below, whatever feeds what."""
        columns = least_transfers(tree, spare)
        columns += bound_work(self.pieces, tree.structure.einsums, tree.sizes)
        rows = len(self.objective.columns)
        return self.objective.close(columns[:rows], np.zeros(tree.count), tree.overlapped)

    def _floor(self, tree: GroupTree) -> Numbers:
        """Figures that no leaves and no assignment of Einsums to units go below, at every point."""
        nothing = np.zeros((len(self.objective.columns), tree.count))
        least: Any = 0.0
        if self.objective.times:
            busy = least_times(tree)
            serial: Any = sum(reduce(np.minimum, task.values()) for task in busy)
            side_by_side = assignment_floor(self.pieces, busy)
            least = np.where(tree.overlapped, side_by_side, serial)
        return self.objective.close(nothing, np.zeros(tree.count), tree.overlapped, least)


def _together(aims: list[Weights], floor: Numbers) -> Weights:
    """The sum of all figures, each in terms of its bound."""
    found: dict[int, Numbers | float] = {}
    for aim, least in zip(aims, floor, strict=True):
        scale = np.where(least > 0, least, 1.0)
        for row, weight in aim.items():
            found[row] = found.get(row, 0.0) + weight / scale
    return found
