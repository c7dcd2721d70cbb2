"""The runs of Einsums that may stand in one group, at one choice of the open splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from einfuse.mapper.space.front import Front
from einfuse.mapper.space.objective import Numbers, Objective, join

from .best_first import Outcome, Part
from .capacity_bounds import Run
from .group_search import Candidate, Family


class Runs:
    """The runs of Einsums at one choice of the open splits: what is open, and what was found.

    ``floor`` are figures that nothing at these sizes goes below; ``bounded`` says whether runs are.
    """

    def __init__(self, sizes: dict[str, int], floor: Numbers, count: int) -> None:
        self.sizes, self.floor, self.count = sizes, floor, count
        self.bounded = False
        self.parts: dict[Run, list[Part]] = {}
        self.bounds: dict[Run, float] = {}  # on the first figure, before anything was looked at
        self.given_up: set[Run] = set()  # where nothing was found for a while
        self.fronts: dict[Run, Front] = {}
        self.went_ahead = False
        self.under_way: list[Part] = []

    def open(self, run: Run) -> Numbers:
        """Figures that nothing still open in a run goes below, a column each."""
        none = np.empty((len(self.floor), 0))
        return np.hstack([none, *(part.floor for part in self.parts[run])])

    def least(self, run: Run) -> Numbers:
        """The least that each figure of a run may be: of what was found, or of what is open."""
        columns = np.hstack([self.open(run), self.fronts[run].points])
        return np.asarray(columns.min(axis=1, initial=np.inf))

    def start(self, run: Run, family: Family) -> None:
        """Open a run."""
        self.parts[run] = [family]
        self.bounds[run] = float(family.floor[0, 0])
        self.fronts[run] = Front(len(self.floor))

    def around(self, objective: Objective) -> tuple[list[Numbers], list[Numbers]]:
        """The least figures of the runs before every Einsum, and of those from it on."""
        return self.sums(objective, {run: self.least(run)[:, None] for run in sorted(self.parts)})

    def sums(
        self, objective: Objective, least: Mapping[Run, Numbers]
    ) -> tuple[list[Numbers], list[Numbers]]:
        """The least figures of runs before every Einsum, and from it on, by those of each run."""
        figures = len(objective.figures)
        never = np.full((figures, 1), np.inf)
        before = [np.zeros((figures, 1))] + [never for _ in range(self.count)]
        for (start, end), own in least.items():
            before[end] = np.minimum(before[end], join(objective, before[start], own))
        after = [never for _ in range(self.count)] + [np.zeros((figures, 1))]
        for (start, end), own in reversed([*least.items()]):
            after[start] = np.minimum(after[start], join(objective, own, after[end]))
        return before, after

    def idle(self, run: Run) -> list[Part]:
        """The open parts of a run that nobody works on."""
        return [part for part in self.parts[run] if part not in self.under_way]

    def divide(self, run: Run, part: Candidate, points: Numbers) -> Candidate:
        """Divide a candidate of a run into itself at some points, and at the others."""
        first, others = part.split(points)
        rest = [one for one in self.parts[run] if one is not part]
        self.parts[run] = [*rest, *([] if others is None else [others]), first]
        return first

    def begin(self, parts: Sequence[Part], *, ahead: bool) -> None:
        """Parts are being worked on; they stay open until that has ended."""
        self.under_way += parts
        self.went_ahead = ahead

    def end(self, run: Run, parts: Sequence[Part], outcome: Outcome) -> bool:
        """Take in what came of parts; return whether something better was found in their run."""
        self.under_way = [part for part in self.under_way if part not in parts]
        if outcome.ended:
            rest = [part for part in self.parts[run] if part not in parts]
            self.parts[run] = [*rest, *outcome.parts]
        front, better = self.fronts[run], False
        for figures, group in outcome.found:
            if front.improves(figures[:, None])[0]:
                front.add(figures, group)
                better = True
        return better
