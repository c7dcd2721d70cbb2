"""The search of one group of Einsums: its structures at all their tile sizes.

First every structure drops the tile sizes at which what it exchanges does not fit, and bounds the
others by the least time of each Einsum on each unit; structures are then solved in the order of
their bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from .bounds import assignment_floor
from .choices import Interrupted, Rules, Tally, solve
from .front import Front
from .objective import Numbers, Objective
from .space import MapSpace, Structure
from .tree import GroupTree, Pieces

CHUNK = 8192  # points at a time, so that their columns stay in the cache


@dataclass(frozen=True, slots=True)
class Candidate:
    """A structure at tile sizes that leave room for what it exchanges, with bounds on figures."""

    structure: Structure
    sizes: Mapping[str, int]
    points: Mapping[str, Numbers]
    floor: Numbers


class GroupSearch:
    """The search of groups of a space for an objective; it counts what it does.

    Args:
        space: the mappings.
        objective: what is minimised.
        expired: whether the time is up.
    """

    def __init__(self, space: MapSpace, objective: Objective, expired: Callable[[], bool]) -> None:
        self.space, self.objective, self.expired = space, objective, expired
        self.pieces = Pieces(space, objective)
        self.tally = Tally()
        self.structures = 0
        self.rooms = tuple(
            (row, level, space.values[f"{level}.bytes"] / space.values["word_bytes"])
            for level, row in self.pieces.rooms.items()
            if space.values[f"{level}.bytes"] is not None
        )

    def prepare(self, einsums: tuple[str, ...], sizes: Mapping[str, int]) -> list[Candidate]:
        """Return the structures of a group where they have room, those of the least bound first."""
        found: list[Candidate] = []
        for structure in self.space.structures(einsums):
            if self.expired():
                raise Interrupted
            found += self._candidates(structure, sizes)
        return sorted(found, key=lambda one: float(one.floor[0].min()))

    def solve(self, candidate: Candidate, front: Front) -> None:
        """Put what a structure has to offer onto a front."""
        stay = np.asarray(front.improves(candidate.floor))
        if not stay.any():
            return
        self.structures += 1
        points = {rank: column[stay] for rank, column in candidate.points.items()}
        tree = GroupTree(self.pieces, candidate.structure, candidate.sizes, points)
        floor = np.maximum(candidate.floor[:, stay], self._traffic(tree, self._spare(tree)))
        stay = np.asarray(front.improves(floor))
        if not stay.any():
            return
        points = {rank: column[stay] for rank, column in points.items()}
        floor = floor[:, stay]
        tree = GroupTree(self.pieces, candidate.structure, candidate.sizes, points)
        overlapped = np.broadcast_to(tree.overlapped, (tree.count,))
        rows = len(self.objective.columns)

        def figures(sums: Numbers, alive: Numbers) -> Numbers:
            peak = sums[rows] if len(sums) > rows else np.zeros(sums.shape[1])
            found = self.objective.close(sums[:rows], peak, overlapped[alive])
            return np.asarray(np.maximum(found, floor[:, alive]))

        rules = Rules(figures, self.rooms, self.expired)
        solve(tree.choices(), tree.base(), rules, front, self.tally, tree.group)

    def _candidates(self, structure: Structure, sizes: Mapping[str, int]) -> list[Candidate]:
        axes = [
            np.array(self.space.loop_tiles(rank, sizes[rank], structure.einsums))
            for rank in structure.loops
        ]
        grid = [axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")]
        found: list[Candidate] = []
        for start in range(0, len(grid[0]) if grid else 1, CHUNK):
            points = {
                rank: column[start : start + CHUNK]
                for rank, column in zip(structure.loops, grid, strict=True)
            }
            tree = GroupTree(self.pieces, structure, sizes, points)
            fits = self._spare(tree) >= 0
            if fits.any():
                floor = self._floor(tree)[:, fits]
                points = {rank: column[fits] for rank, column in points.items()}
                found.append(Candidate(structure, sizes, points, floor))
        return found

    def _spare(self, tree: GroupTree) -> Numbers:
        """The words that the largest room has left at most; below 0 where a group does not fit."""
        taken = tree.least_rooms()
        spare = np.zeros(tree.count)
        fits = np.ones(tree.count, dtype=bool)
        limited = {level: words for _, level, words in self.rooms}
        for level, row in self.pieces.rooms.items():
            words = limited.get(level, np.inf)
            used = taken[row - len(self.pieces.rows)]
            fits &= self.tally.check(level, used, words)
            spare = np.maximum(spare, words - used)
        return np.where(fits, spare, -1.0)

    def _traffic(self, tree: GroupTree, spare: Numbers) -> Numbers:
        """Figures that the traffic of the outermost memory alone does not go below."""
        rows = len(self.objective.columns)
        columns = tree.least_traffic(spare)[:rows]
        return self.objective.close(columns, np.zeros(tree.count), tree.overlapped)

    def _floor(self, tree: GroupTree) -> Numbers:
        """Figures that no leaves and no assignment of Einsums to units go below, at every point."""
        out = np.zeros((len(self.objective.figures), tree.count))
        if self.objective.times:
            busy = tree.least_times()
            serial: Any = sum(reduce(np.minimum, task.values()) for task in busy)
            side_by_side = assignment_floor(self.pieces, busy)
            place = self.objective.figures.index(self.objective.timed)
            out[place] = np.where(tree.overlapped, side_by_side, serial)
        return out
