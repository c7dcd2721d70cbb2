"""The search: the best mapping of a map space, with a proof or with the gap that is left.

Groups hand tensors on through the outermost memory, so figures of groups add (or the larger one
counts), and a mapping is a path through runs of Einsums. Each run has a bound; the search works
out the run on the path of the smallest bound first, until that path has no bound left in it: then
no other mapping is better. For a front it works out every run that could be part of a point on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import numpy as np

from .bounds import assignment_floor, bound_group
from .choices import Choice, Interrupted, Rules, Tally, solve
from .errors import MappingError
from .front import Front
from .objective import Numbers, Objective
from .space import MapSpace, Structure
from .structure import Group, Plan
from .tree import GroupTree, Pieces

CHUNK = 8192  # points at a time, so that their columns stay in the cache

Run = tuple[int, int]
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Solution:
    """A mapping and its figures, in the objective's order."""

    plan: Plan
    figures: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found.

    Attributes:
        solutions: the best mapping, or the front, best first in its first figure.
        optimal: whether the space was searched to its end.
        gap: by how much, relatively, the best may be above the optimum (0 if optimal; of a front
            None while it is open).
        candidates: mappings (of groups) whose full costs were worked out.
        structures: structures that were worked on.
        infeasible: how many partial mappings fell to which reason.
    """

    space: MapSpace
    objective: Objective
    solutions: tuple[Solution, ...]
    optimal: bool
    gap: float | None
    candidates: int
    structures: int
    infeasible: Mapping[str, int]
    seconds: float

    @property
    def best(self) -> Solution:
        """The best mapping; of a front, that of the least first figure."""
        return self.solutions[0]


def find_best(
    space: MapSpace,
    objective: Objective,
    *,
    seconds: float | None = None,
    report: Report | None = None,
    executor: Executor | None = None,
) -> SearchResult:
    """Return the best mapping of a space, or the front if the objective has no single score.

    Args:
        space: the mappings.
        objective: what is minimised (`einfuse.simulator.objectives.find_objective`).
        seconds: stop after this long, with the best so far; interrupting does so too.
        report: called with a line of progress now and then.
        executor: works on the sizes of open splits side by side (a pool of processes, say).

    Raises:
        MappingError: no mapping is possible, and why.
    """
    started = monotonic()
    deadline = None if seconds is None else started + seconds
    search = _Search(space, objective, deadline, report or (lambda _: None))
    try:
        search.run(executor)
        finished = True
    except (Interrupted, KeyboardInterrupt):
        finished = False
    if not search.front.payloads:
        raise MappingError(search.reason(finished))
    order = np.lexsort(search.front.points[::-1])
    solutions = tuple(
        Solution(search.front.payloads[n], tuple(map(float, search.front.points[:, n])))
        for n in order
    )
    if search.scored:
        best = min(solutions, key=lambda s: float(search.score(np.array(s.figures))))
        solutions = (best,)
    return SearchResult(
        space,
        objective,
        solutions,
        finished,
        0.0 if finished else search.gap(),
        search.tally.candidates,
        search.structures,
        dict(search.tally.infeasible),
        monotonic() - started,
    )


@dataclass(slots=True)
class _Sized:
    """The runs of Einsums at one choice of the open splits: bounds, and fronts once worked out."""

    sizes: dict[str, int]
    bounds: dict[Run, Numbers]
    fronts: dict[Run, Front] = field(default_factory=dict)


class _Search:
    def __init__(
        self, space: MapSpace, objective: Objective, deadline: float | None, report: Report
    ) -> None:
        self.space, self.objective = space, objective
        self.deadline, self.report = deadline, report
        self.tally = Tally()
        self.structures = 0
        self.pieces = Pieces(space, objective)
        self.figures = len(objective.figures)
        self.front = Front(self.figures)
        self.additive = self.figures == 1
        self.scored = objective.score(np.ones((self.figures, 1))) is not None
        self.lower = 0.0
        self.blocked: Counter[str] = Counter()

    def score(self, figures: Numbers) -> float:
        """The single number of figures."""
        found = self.objective.score(figures.reshape(self.figures, 1))
        assert found is not None
        return float(found[0])

    def gap(self) -> float | None:
        """How far, relatively, the best may be above the optimum."""
        if not self.additive:
            return None
        best = self.front.best
        return float(max(0.0, (best - self.lower) / best)) if best else 0.0

    def expired(self) -> bool:
        """Whether the time is up."""
        return self.deadline is not None and monotonic() > self.deadline

    def run(self, executor: Executor | None) -> None:
        """Search the sizes of the open splits, those of the smallest bound first."""
        ways: list[tuple[float, int, _Sized]] = []
        for number, sizes in enumerate(self.space.splits()):
            sized = _Sized(sizes, self.bound_runs(sizes))
            ways.append((float(self.rest(sized)[0][0]), number, sized))
        ways.sort(key=lambda way: (way[0], -way[1]))  # of equals, the smaller sizes
        for bound, _, sized in ways:
            self.lower = bound
            if self.additive:
                self.shortest(sized, bound)
            else:
                self.whole_front(sized)
        self.lower = self.front.best

    # Runs of Einsums.

    def bound_runs(self, sizes: dict[str, int]) -> dict[Run, Numbers]:
        """The bound of every run that may stand in one group."""
        names = self.space.einsums
        found: dict[Run, Numbers] = {}
        for first in range(len(names)):
            for last in range(first + 1, len(names) + 1):
                run = names[first:last]
                if any(True for _ in self.space.structures(run)):
                    found[first, last] = bound_group(self.pieces, run, sizes)
        return found

    def rest(self, sized: _Sized) -> list[Numbers]:
        """From every Einsum on, the least of the first figure's bounds (figures for one alone)."""
        count = len(self.space.einsums)
        least = [np.full(self.figures, np.inf) for _ in range(count)] + [np.zeros(self.figures)]
        for first in reversed(range(count)):
            for (start, end), bound in sized.bounds.items():
                if start == first:
                    found = sized.fronts.get((start, end))
                    if found is not None:
                        bound = found.points.min(axis=1, initial=np.inf)
                    joined = self.objective.join(bound[:, None], least[end][:, None])[:, 0]
                    least[first] = np.minimum(least[first], joined)
        return least

    def solve_run(self, sized: _Sized, run: Run, limit: float) -> Front:
        """Work out a run: the front of its figures, or what beats a limit."""
        names = self.space.einsums[run[0] : run[1]]
        front = Front(self.figures, limit)
        bound = sized.bounds[run]
        self.report(f"{'+'.join(names)} of {self.open_sizes(sized)}")
        for structure in self.space.structures(names):
            if self.additive and not front.improves(bound[:, None])[0]:
                break
            self.structures += 1
            self.solve_structure(sized.sizes, structure, front)
        return front

    def solve_structure(self, sizes: dict[str, int], structure: Structure, front: Front) -> None:
        """Put what a structure has to offer onto a front."""
        axes = [
            np.array(self.space.loop_tiles(rank, sizes[rank], structure.einsums))
            for rank in structure.loops
        ]
        grid = [axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")] if axes else []
        total = len(grid[0]) if grid else 1
        rows = len(self.objective.columns)
        rooms = tuple(
            (row, level, self.space.values[f"{level}.bytes"] / self.space.values["word_bytes"])
            for level, row in self.pieces.rooms.items()
            if self.space.values[f"{level}.bytes"] is not None
        )
        for start in range(0, total, CHUNK):
            part = {
                rank: column[start : start + CHUNK]
                for rank, column in zip(structure.loops, grid, strict=True)
            }
            tree = GroupTree(self.pieces, structure, sizes, part)
            overlapped = np.broadcast_to(tree.overlapped, (tree.count,))
            choices = tree.choices()
            floor = self.floor(tree, choices, overlapped)

            def figures(
                sums: Numbers, points: Numbers, over: Any = overlapped, floor: Numbers = floor
            ) -> Numbers:
                peak = sums[rows] if len(sums) > rows else np.zeros(sums.shape[1])
                found = self.objective.close(sums[:rows], peak, over[points])
                return np.maximum(found, floor[:, points])

            solve(
                choices,
                tree.base(),
                Rules(figures, rooms, self.expired),
                front,
                self.tally,
                tree.group,
            )

    def floor(self, tree: GroupTree, choices: tuple[Choice, ...], overlapped: Numbers) -> Numbers:
        """Figures that no assignment of the Einsums to units goes below, at every point."""
        out = np.zeros((self.figures, tree.count))
        if self.objective.times and overlapped.any():
            leaves = tree.least_leaves(choices)
            floor = np.where(overlapped, assignment_floor(self.pieces, leaves), 0.0)
            out[self.objective.figures.index(self.objective.timed)] = floor
        return out

    # One figure: the shortest path over bounds.

    def shortest(self, sized: _Sized, bound: float) -> None:
        """Work out runs on the shortest path until it has no bound in it."""
        while True:
            least = self.rest(sized)
            self.lower = max(self.lower, min(float(least[0][0]), self.front.best))
            if not self.front.improves(least[0][:, None])[0]:
                return
            path = self.path(sized, least)
            todo = [run for run in path if run not in sized.fronts]
            if not todo:
                self.finish(sized, path)
                return
            for run in todo:
                others = self.without(path, run, sized)
                limit = self.allowed(others)
                sized.fronts[run] = self.solve_run(sized, run, limit)
                if not sized.fronts[run].payloads:
                    break

    def path(self, sized: _Sized, least: list[Numbers]) -> list[Run]:
        """The runs of the shortest path."""
        at, runs = 0, []
        while at < len(self.space.einsums):
            for (start, end), bound in sorted(sized.bounds.items()):
                if start != at:
                    continue
                found = sized.fronts.get((start, end))
                own = bound if found is None else found.points.min(axis=1, initial=np.inf)
                joined = self.objective.join(own[:, None], least[end][:, None])[:, 0]
                if joined[0] == least[at][0]:
                    runs.append((start, end))
                    at = end
                    break
            else:  # pragma: no cover - a path of that length is there
                raise AssertionError("no path")
        return runs

    def without(self, path: list[Run], run: Run, sized: _Sized) -> float:
        """The least that the other runs of a path cost."""
        total = np.zeros((self.figures, 1))
        for other in path:
            if other != run:
                found = sized.fronts.get(other)
                own = sized.bounds[other] if found is None else found.points.min(axis=1)
                total = self.objective.join(total, own[:, None])
        return float(total[0, 0])

    def allowed(self, others: float) -> float:
        """What a run may cost: no limit, since another path may need it."""
        del others
        return np.inf

    def finish(self, sized: _Sized, path: list[Run]) -> None:
        """Put a path that is worked out onto the front."""
        total = np.zeros((self.figures, 1))
        groups: list[Group] = []
        for run in path:
            found = sized.fronts[run]
            total = self.objective.join(total, found.points[:, [0]])
            groups.append(found.payloads[0])
        self.put(sized, total[:, 0], tuple(groups))

    # A front: every run that may be part of it.

    def whole_front(self, sized: _Sized) -> None:
        """Join the fronts of runs, Einsum by Einsum."""
        count = len(self.space.einsums)
        ahead = self.rest(sized)
        partial: list[list[tuple[Numbers, tuple[Group, ...]]]] = [[] for _ in range(count + 1)]
        partial[0] = [(np.zeros(self.figures), ())]
        for first in range(count):
            for (start, end), bound in sorted(sized.bounds.items(), key=lambda i: -i[0][1]):
                if start != first or not partial[first]:
                    continue
                if not any(self.open(before, bound, ahead[end]) for before, _ in partial[first]):
                    continue
                front = self.solve_run(sized, (start, end), np.inf)
                for before, groups in partial[first]:
                    for point, group in zip(front.points.T, front.payloads, strict=True):
                        joined = self.objective.join(before[:, None], point[:, None])[:, 0]
                        if end == count:
                            self.offer(sized, joined, (*groups, group))
                        elif self.open(joined, np.zeros(self.figures), ahead[end]):
                            partial[end].append((joined, (*groups, group)))
                if end < count:
                    partial[end] = _nondominated(partial[end])

    def open(self, before: Numbers, bound: Numbers, after: Numbers) -> bool:
        """Whether a path may still come onto the front."""
        joined = self.objective.join(before[:, None], bound[:, None])
        joined = self.objective.join(joined, after[:, None])
        return self.wanted(joined[:, 0])

    def wanted(self, figures: Numbers) -> bool:
        """Whether figures may improve on what is known."""
        if not self.scored:
            return bool(self.front.improves(figures[:, None])[0])
        known = min((self.score(point) for point in self.front.points.T), default=np.inf)
        return bool(np.isfinite(figures).all() and self.score(figures) < known * (1 - 1e-12))

    def offer(self, sized: _Sized, figures: Numbers, groups: tuple[Group, ...]) -> None:
        """Put a finished path onto the front if it improves it."""
        if self.wanted(figures):
            if self.scored:
                self.front = Front(self.figures)
            self.put(sized, figures, groups)

    def put(self, sized: _Sized, figures: Numbers, groups: tuple[Group, ...]) -> None:
        self.front.add(figures, Plan(self.space.open_sizes(sized.sizes), groups))
        self.report(f"best so far: {', '.join(f'{value:.6g}' for value in figures)}")

    def open_sizes(self, sized: _Sized) -> str:
        """The sizes of the open splits, for a line of progress."""
        chosen = self.space.open_sizes(sized.sizes)
        return ", ".join(f"{rank}={size}" for rank, size in chosen) or "the shape"

    def reason(self, finished: bool) -> str:
        """Why there is no mapping."""
        name = f"{self.space.cascade.name} on {self.space.architecture.name}"
        if not finished:
            return f"{name}: the time was up before a mapping was found; give it more seconds"
        if self.tally.infeasible:
            level, words = min(self.tally.overflow.items(), key=lambda item: item[1])
            count = words * self.space.values["word_bytes"]
            return (
                f"{name}: no tile fits: the smallest needs {count:.0f} bytes more than {level} "
                f"has; raise {level}.bytes, or allow smaller tiles"
            )
        return (
            f"{name}: the constraints leave no mapping: no way to group all Einsums meets 'fuse', "
            "'split', 'keep', 'exchange' and 'tiles' together"
        )


def _nondominated(
    entries: list[tuple[Numbers, tuple[Group, ...]]],
) -> list[tuple[Numbers, tuple[Group, ...]]]:
    front = Front(len(entries[0][0])) if entries else None
    for figures, groups in entries:
        assert front is not None
        if front.improves(figures[:, None])[0]:
            front.add(figures, groups)
    if front is None:
        return []
    return list(zip(front.points.T, front.payloads, strict=True))
