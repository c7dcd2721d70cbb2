"""The search: the best mapping of a map space, with a proof or with the gap that is left.

Groups hand tensors on through the outermost memory, so figures of groups add (or the larger one
counts), and a mapping is a path through runs of Einsums. Each run has a bound; the search works
out the run on the path of the smallest bound first, until that path has no bound left in it: then
no other mapping is better. For a front it works out every run that could be part of a point on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from time import monotonic

import numpy as np

from .bounds import bound_group
from .choices import Interrupted
from .errors import MappingError
from .front import Front
from .groups import Candidate, GroupSearch
from .objective import Numbers, Objective, join
from .space import MapSpace
from .structure import Group, Plan

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

    @property
    def score(self) -> float:
        """What the best mapping costs: the objective's score, or its first figure."""
        figures = np.array(self.best.figures)[:, None]
        found = self.objective.score(figures)
        return float(figures[0, 0] if found is None else found[0])


def find_best(
    space: MapSpace,
    objective: Objective,
    *,
    seconds: float | None = None,
    report: Report | None = None,
) -> SearchResult:
    """Return the best mapping of a space, or the front if the objective has no single score.

    Args:
        space: the mappings.
        objective: what is minimised (`einfuse.simulator.objectives.find_objective`).
        seconds: stop after this long, with the best so far; interrupting does so too.
        report: called with a line of progress now and then.

    Raises:
        MappingError: no mapping is possible, and why.
    """
    started = monotonic()
    deadline = None if seconds is None else started + seconds
    search = _Search(space, objective, deadline, report or (lambda _: None))
    try:
        search.run()
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
        search.groups.tally.candidates,
        search.groups.structures,
        dict(search.groups.tally.infeasible),
        monotonic() - started,
    )


@dataclass(slots=True)
class _Sized:
    """The runs of Einsums at one choice of the open splits: bounds, and fronts once worked out."""

    sizes: dict[str, int]
    bounds: dict[Run, Numbers]
    fronts: dict[Run, Front] = field(default_factory=dict)
    candidates: dict[Run, list[Candidate]] = field(default_factory=dict)


class _Search:
    def __init__(
        self, space: MapSpace, objective: Objective, deadline: float | None, report: Report
    ) -> None:
        self.space, self.objective = space, objective
        self.deadline, self.report = deadline, report
        self.groups = GroupSearch(space, objective, self.expired)
        self.figures = len(objective.figures)
        self.front = Front(self.figures)
        self.additive = self.figures == 1
        self.scored = objective.score(np.ones((self.figures, 1))) is not None
        self.lower = 0.0

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

    def run(self) -> None:
        """Search the sizes of the open splits, those of the smallest bound first."""
        sizes = [_Sized(s, self.bound_runs(s)) for s in self.space.splits()]
        if not self.additive:
            for sized in sorted(sizes, key=self.bound):
                self.whole_front(sized)
            return
        # The least bound first, whole again after it is tightened; of equals, the smaller sizes.
        waiting = [(_rounded(self.bound(sized)), -n, False) for n, sized in enumerate(sizes)]
        heapify(waiting)
        while waiting:
            self.lower = min(waiting[0][0], self.front.best)
            _, number, tight = heappop(waiting)
            sized = sizes[-number]
            if tight:
                self.shortest(sized, [sizes[-n] for _, n, _ in waiting])
            else:
                self.tightened(sized)
                heappush(waiting, (_rounded(self.bound(sized)), number, True))

    def bound(self, sized: _Sized) -> float:
        """What no mapping with these sizes goes below, in the first figure."""
        return float(self.rest(sized)[0][0])

    # Runs of Einsums.

    def bound_runs(self, sizes: dict[str, int]) -> dict[Run, Numbers]:
        """The bound of every run that may stand in one group."""
        names = self.space.einsums
        found: dict[Run, Numbers] = {}
        for first in range(len(names)):
            for last in range(first + 1, len(names) + 1):
                run = names[first:last]
                if any(True for _ in self.space.structures(run)):
                    found[first, last] = bound_group(self.groups.pieces, run, sizes)
        return found

    def rest(self, sized: _Sized) -> list[Numbers]:
        """From every Einsum on, the least of the first figure's bounds (figures for one alone)."""
        count = len(self.space.einsums)
        least = [np.full(self.figures, np.inf) for _ in range(count)] + [np.zeros(self.figures)]
        for first in reversed(range(count)):
            for start, end in sized.bounds:
                if start == first:
                    own = self.known(sized, (start, end))
                    joined = join(self.objective, own[:, None], least[end][:, None])[:, 0]
                    least[first] = np.minimum(least[first], joined)
        return least

    def until(self, sized: _Sized) -> list[Numbers]:
        """Up to every Einsum, the least of the bounds of the runs before it."""
        count = len(self.space.einsums)
        least = [np.zeros(self.figures)] + [np.full(self.figures, np.inf) for _ in range(count)]
        for start, end in sorted(sized.bounds):
            own = self.known(sized, (start, end))
            joined = join(self.objective, least[start][:, None], own[:, None])[:, 0]
            least[end] = np.minimum(least[end], joined)
        return least

    def known(self, sized: _Sized, run: Run) -> Numbers:
        """The least figures of a run: found if it is worked out, else bounds."""
        found = sized.fronts.get(run)
        if found is None:
            return sized.bounds[run]
        return np.asarray(found.points.min(axis=1, initial=np.inf))

    def candidates(self, sized: _Sized, run: Run) -> list[Candidate]:
        """The structures of a run where they have room; they tighten its bound."""
        if run not in sized.candidates:
            names = self.space.einsums[run[0] : run[1]]
            found = self.groups.prepare(names, sized.sizes)
            least = [candidate.floor.min(axis=1) for candidate in found]
            floor = np.min(least, axis=0) if least else np.full(self.figures, np.inf)
            sized.bounds[run] = np.maximum(sized.bounds[run], floor)
            sized.candidates[run] = found
        return sized.candidates[run]

    def solve_run(self, sized: _Sized, run: Run, front: Front) -> None:
        """Work out a run: put its figures onto a front."""
        names = self.space.einsums[run[0] : run[1]]
        self.report(f"{'+'.join(names)} of {self.open_sizes(sized)}")
        for candidate in self.candidates(sized, run):
            if not front.improves(sized.bounds[run][:, None])[0]:
                break
            self.groups.solve(candidate, front)

    # One figure: the shortest path over bounds.

    def shortest(self, sized: _Sized, others: list[_Sized]) -> None:
        """Work out runs on the shortest path until it has no bound in it."""
        while True:
            self.lower = min([self.front.best, *(self.bound(one) for one in (sized, *others))])
            least = self.tightened(sized)
            if not self.front.improves(least[0][:, None])[0]:
                return
            path = self.path(sized, least)
            todo = [run for run in path if run not in sized.fronts]
            for run in todo:
                front = Front(1, self.limit(sized, run, least))
                self.solve_run(sized, run, front)
                sized.fronts[run] = front
                if not front.payloads:
                    break
            else:
                self.finish(sized, path)

    def tightened(self, sized: _Sized) -> list[Numbers]:
        """The bounds from every Einsum on, once those on the shortest path are tight."""
        while True:
            least = self.rest(sized)
            if not np.isfinite(least[0]).all():
                return least
            loose = [r for r in self.path(sized, least) if r not in sized.candidates]
            if not loose or not self.front.improves(least[0][:, None])[0]:
                return least
            self.candidates(sized, loose[0])

    def path(self, sized: _Sized, least: list[Numbers]) -> list[Run]:
        """The runs of the shortest path."""
        at, runs = 0, []
        while at < len(self.space.einsums):
            for start, end in sorted(sized.bounds):
                if start != at:
                    continue
                own = self.known(sized, (start, end))
                joined = join(self.objective, own[:, None], least[end][:, None])[:, 0]
                if joined[0] == least[at][0]:
                    runs.append((start, end))
                    at = end
                    break
            else:  # pragma: no cover - a path of that length is there
                raise AssertionError("no path")
        return runs

    def limit(self, sized: _Sized, run: Run, least: list[Numbers]) -> float:
        """What a run has to stay below for any path through it to be better than the best."""
        best = self.front.best
        if not self.objective.adds[0]:
            return best
        return float(best - self.until(sized)[run[0]][0] - least[run[1]][0])

    def finish(self, sized: _Sized, path: list[Run]) -> None:
        """Put a path that is worked out onto the front."""
        total = np.zeros((self.figures, 1))
        groups: list[Group] = []
        for run in path:
            found = sized.fronts[run]
            total = join(self.objective, total, found.points[:, [0]])
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
                before_it = self.until(sized)[start]

                def wanted(
                    figures: Numbers,
                    before: Numbers = before_it[:, None],
                    after: Numbers = ahead[end][:, None],
                ) -> Numbers:
                    joined = join(self.objective, before, figures)
                    return self.may_improve(join(self.objective, joined, after))

                self.candidates(sized, (start, end))
                front = Front(self.figures, wanted=wanted)
                self.solve_run(sized, (start, end), front)
                for before, groups in partial[first]:
                    for point, group in zip(front.points.T, front.payloads, strict=True):
                        joined = join(self.objective, before[:, None], point[:, None])[:, 0]
                        if end == count:
                            self.offer(sized, joined, (*groups, group))
                        elif self.open(joined, np.zeros(self.figures), ahead[end]):
                            partial[end].append((joined, (*groups, group)))
                if end < count:
                    partial[end] = _nondominated(partial[end])

    def open(self, before: Numbers, bound: Numbers, after: Numbers) -> bool:
        """Whether a path may still come onto the front."""
        joined = join(self.objective, before[:, None], bound[:, None])
        joined = join(self.objective, joined, after[:, None])
        return bool(self.may_improve(joined)[0])

    def may_improve(self, figures: Numbers) -> Numbers:
        """Tell of many figures which may improve on what is known."""
        if not self.scored:
            return self.front.improves(figures)
        known = min((self.score(point) for point in self.front.points.T), default=np.inf)
        scores = self.objective.score(figures)
        assert scores is not None
        return np.asarray(np.isfinite(figures).all(axis=0) & (scores < known * (1 - 1e-12)))

    def offer(self, sized: _Sized, figures: Numbers, groups: tuple[Group, ...]) -> None:
        """Put a finished path onto the front if it improves it."""
        if self.may_improve(figures[:, None])[0]:
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
        if self.groups.tally.infeasible:
            level, words = min(self.groups.tally.overflow.items(), key=lambda item: item[1])
            count = words * self.space.values["word_bytes"]
            return (
                f"{name}: no tile fits: the smallest needs {count:.0f} bytes more than {level} "
                f"has; raise {level}.bytes, or allow smaller tiles"
            )
        return (
            f"{name}: the constraints leave no mapping: no way to group all Einsums meets 'fuse', "
            "'split', 'keep', 'exchange' and 'tiles' together"
        )


def _rounded(value: float) -> float:
    """A bound for an order that rounding does not disturb."""
    return float(f"{value:.9g}")


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
