"""The search: the best mapping of a map space, with a proof or with the gap that is left.

Groups hand tensors on through the outermost memory, so figures of groups add (or the larger one
counts), and a mapping is a path through runs of Einsums. Each run has bounds, which are tightened
step by step (`einfuse.mapper.groups`): always those that stand behind the mapping that promises
most, until none is left that could improve on what was found. Whenever a run has found something,
the mappings that it completes are kept, so that a search may end at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import combinations
from time import monotonic

import numpy as np

from .bounds import bound_group, bound_plan
from .choices import Interrupted, Tally
from .constraints import describe
from .emptiness import find_conflict
from .errors import MappingError
from .explicit_plan import ExplicitPlan
from .explicit_search import ExplicitSearch
from .front import Front
from .groups import Candidate, Family, GroupSearch
from .objective import Numbers, Objective, join
from .room import Run, runs_that_fit
from .space import MapSpace
from .structure import Plan

_EXPLAINED = 60.0  # seconds at most to tell which constraints empty a space
_FEW = 4  # tile sizes that are worked out at a time where there are several figures
_TRIES = 24  # steps in a run in which nothing is found, before others come first
_NONE = np.arange(0)
Part = Family | Candidate
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Solution:
    """A mapping and its figures, in the objective's order."""

    plan: Plan | ExplicitPlan
    figures: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found.

    Attributes:
        solutions: the best mapping, or the front, best first in its first figure.
        optimal: whether the space was searched to its end.
        gap: by how much, relatively, the best may be above the optimum (0 if optimal); of a front,
            every mapping of the space has one on the front that is no more than that above it in
            any figure.
        candidates: mappings (of groups) whose full costs were worked out.
        structures: structures that were worked on.
        infeasible: how many partial mappings fell to which reason.
    """

    space: MapSpace
    objective: Objective
    solutions: tuple[Solution, ...]
    optimal: bool
    gap: float
    candidates: int
    structures: int
    infeasible: Mapping[str, int]
    seconds: float

    @property
    def best(self) -> Solution:
        """The best mapping; of a front, that of the least first figure."""
        return self.solutions[0]

    @property
    def is_front(self) -> bool:
        """Whether the objective asks for a front, not for a single best."""
        return self.objective.score(np.array(self.best.figures)[:, None]) is None

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

    The constraints say how mappings count, and thereby how they are searched: with ``composition:
    sequential`` by `einfuse.mapper.explicit_search`, else as this module says.

    A search works on one core. Spaces, objectives and results go to other processes and back, so
    that many searches are an executor's map:
    ``ProcessPoolExecutor().map(partial(find_best, objective=objective), spaces)``.
    """
    started = monotonic()
    deadline = None if seconds is None else started + seconds
    sequential = space.constraints.composition == "sequential"
    kind = ExplicitSearch if sequential else _Search
    search = kind(space, objective, deadline, report or (lambda _: None))
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
        search.tally.candidates,
        search.structures,
        dict(search.tally.infeasible),
        monotonic() - started,
    )


@dataclass(frozen=True, slots=True)
class _Task:
    """What may be worked on next: a part of a run (None: the runs are not bounded yet)."""

    run: Run
    part: Part | None
    promise: float
    points: Numbers  # of the part, that of the largest promise first


class _Sized:
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


class _Search:
    def __init__(
        self, space: MapSpace, objective: Objective, deadline: float | None, report: Report
    ) -> None:
        self.space, self.objective = space, objective
        self.deadline, self.report = deadline, report
        self.groups = GroupSearch(space, objective, self.expired)
        self.figures = len(objective.figures)
        self.front = Front(self.figures)
        self.version = 0  # how often the front has improved
        self.scored = objective.score(np.ones((self.figures, 1))) is not None
        self.sized: list[_Sized] = []
        self.runs: list[Run] = []

    @property
    def tally(self) -> Tally:
        """What the search did."""
        return self.groups.tally

    @property
    def structures(self) -> int:
        """The structures that were worked on."""
        return self.groups.structures

    def expired(self) -> bool:
        """Whether the time is up."""
        return self.deadline is not None and monotonic() > self.deadline

    def run(self) -> None:
        """Work on what promises most, until nothing is left that may improve the front.

        Of equal promises, the smaller sizes of the open splits come first.
        """
        count = len(self.space.einsums)
        sizes = list(self.space.splits())
        self.runs = runs_that_fit(self.groups.pieces, self.find_runs(), sizes)
        self.seed(sizes[len(sizes) // 2])
        self.sized = [_Sized(s, bound_plan(self.groups.pieces, s), count) for s in sizes]
        waiting: list[tuple[float, int, int]] = []

        def put(number: int) -> None:
            task = self.task(self.sized[number])
            if task is not None:
                heappush(waiting, (-task.promise, -number, self.version))

        for number in range(len(self.sized)):
            put(number)
        while waiting:
            _, number, version = heappop(waiting)
            if version == self.version:
                sized = self.sized[-number]
                if self.expired():
                    raise Interrupted
                self.go_ahead(sized)
                task = self.task(sized)
                if task is not None:
                    self.work(sized, task)
            put(-number)

    def seed(self, sizes: dict[str, int]) -> None:
        """Find some mapping soon, one of the shortest runs, lest a large space leave nothing."""
        names, at = self.space.einsums, 0
        sized = _Sized(sizes, np.zeros(self.figures), len(names))
        while at < len(names):
            end = next((last for first, last in self.runs if first == at), None)
            if end is None:
                return
            sized.start((at, end), Family(names[at:end], sizes, np.zeros((self.figures, 1))))
            parts, front = sized.parts[at, end], sized.fronts[at, end]
            while parts and not front.payloads:
                self.reach(parts, front)
            if not front.payloads:
                return
            at = end
        self.gather(sized)

    def reach(self, parts: list[Part], front: Front) -> None:
        """Work on what promises most of a run, until something is found there (or for a while)."""
        for _ in range(_TRIES):
            if not parts or front.payloads:
                return
            if self.expired():
                raise Interrupted
            part = min(parts, key=self.order)
            if isinstance(part, Family):
                found = self.groups.narrow(part)
            else:
                looked = self.groups.look(part, front)
                found = [] if looked is None else [looked]
            parts.remove(part)
            parts += found

    def order(self, part: Part) -> tuple[float, float]:
        """What comes first of a run: by the score or the first figure, then what is decided."""
        scores = self.objective.score(part.floor)
        least = (part.floor[0] if scores is None else scores).min()
        return float(_rounded(least)), -_depth(part)

    # What to do next.

    def find_runs(self) -> list[Run]:
        """The runs that may stand in one group, in order."""
        names = self.space.einsums
        every = combinations(range(len(names) + 1), 2)
        return [run for run in every if any(self.space.structures(names[slice(*run)]))]

    def bound_runs(self, sized: _Sized) -> None:
        """Bound every run at some sizes, roughly."""
        for run in self.runs:
            if self.expired():
                raise Interrupted
            names = self.space.einsums[slice(*run)]
            bound = bound_group(self.groups.pieces, names, sized.sizes, exact=False)
            sized.start(run, Family(names, sized.sizes, bound[:, None]))
        sized.bounded = True

    def task(self, sized: _Sized) -> _Task | None:
        """What promises most at some sizes; of equals, what is done soonest."""
        if not sized.bounded:
            (promise,) = self.promise(sized.floor[:, None])
            return _Task((0, sized.count), None, promise, _NONE) if promise > -np.inf else None
        before, after = sized.around(self.objective)
        best: tuple[tuple[float, float], _Task] | None = None
        least = {run: sized.least(run)[:, None] for run in sorted(sized.parts)}
        runs = self.path(least, after) if self.figures == 1 else list(sized.parts)
        for run in runs:
            promises = self.promises(sized, run, before, after)
            if not len(promises) or (most := promises.max()) == -np.inf:
                continue
            parts = sized.parts[run]
            owners = np.repeat(np.arange(len(parts)), [part.floor.shape[1] for part in parts])
            equal = list(dict.fromkeys(owners[promises == most]))
            urgencies = [_urgency(parts[n], parts, sized.fronts[run]) for n in equal]
            urgency = min(urgencies)
            chosen = equal[urgencies.index(urgency)]
            order = (-float(most), urgency)
            if best is None or order < best[0]:
                points = np.argsort(-promises[owners == chosen], kind="stable")
                best = order, _Task(run, parts[chosen], float(most), points)
        return None if best is None else best[1]

    def go_ahead(self, sized: _Sized) -> None:
        """Find something in a run of the shortest path, where nothing was found yet.

        Runs in which something was found count as that, the others as their bounds: as much above
        them as what was found is elsewhere, and if nothing is left to find then, as they are.
        """
        if self.figures > 1 or not sized.bounded:
            return
        found = {r: float(f.points.min()) for r, f in sized.fronts.items() if f.payloads}
        above = [found[run] / sized.bounds[run] for run in found if sized.bounds[run] > 0]
        for times in (float(np.median(above)) if above else 1.0, 1.0):
            least = {
                run: np.full(
                    (1, 1), found.get(run, times * float(sized.open(run).min(initial=np.inf)))
                )
                for run in sorted(sized.parts)
                if run not in sized.given_up
            }
            _, after = sized.sums(self.objective, least)
            if not self.may_improve(after[0] / times)[0]:
                continue
            for run in self.path(least, after):
                if run not in found:
                    try:
                        self.reach(sized.parts[run], self.aimed(sized, run))
                    finally:
                        self.gather(sized)
                    if not sized.fronts[run].payloads:
                        sized.given_up.add(run)
                    return

    def path(self, least: Mapping[Run, Numbers], after: list[Numbers]) -> list[Run]:
        """The runs of a shortest path, by the figure of each; none if there is no path."""
        at, runs = 0, list[Run]()
        while at < len(after) - 1 and np.isfinite(after[at][0, 0]):
            for (start, end), own in least.items():
                if start == at and join(self.objective, own, after[end])[0, 0] == after[at][0, 0]:
                    runs.append((start, end))
                    at = end
                    break
        return runs

    def promises(
        self, sized: _Sized, run: Run, before: list[Numbers], after: list[Numbers]
    ) -> Numbers:
        """How far what is open in a run may improve the front; minus infinity where it may not."""
        joined = join(self.objective, before[run[0]], sized.open(run))
        return self.promise(join(self.objective, joined, after[run[1]]))

    def promise(self, joined: Numbers) -> Numbers:
        """How far mappings that do not go below some figures may improve the front.

        With a single score that is its bound, below 0; else the gap that it leaves.
        """
        scores = self.objective.score(joined)
        if scores is None:
            scores = -self.gaps(joined) if self.front.payloads else joined[0]
        return np.where(self.may_improve(joined), -_rounded(scores), -np.inf)

    def may_improve(self, figures: Numbers) -> Numbers:
        """Tell of many figures which may improve on what is known."""
        scores = self.objective.score(figures)
        if scores is None or self.figures == 1:
            return self.front.improves(figures)
        known = min((self.score(point) for point in self.front.points.T), default=np.inf)
        return np.asarray(np.isfinite(figures).all(axis=0) & (scores < known * (1 - 1e-12)))

    def score(self, figures: Numbers) -> float:
        """The single number of figures."""
        found = self.objective.score(figures.reshape(self.figures, 1))
        assert found is not None
        return float(found[0])

    def gaps(self, figures: Numbers) -> Numbers:
        """How far each of many figures is below the point of the front that is closest to it."""
        gaps = np.full(figures.shape[1], np.inf)
        for point in self.front.points.T[:, :, None]:
            below = np.divide(point - figures, point, out=np.zeros_like(figures), where=point > 0)
            gaps = np.minimum(gaps, below.max(axis=0))
        return np.asarray(np.maximum(gaps, 0.0))

    def gap(self) -> float:
        """How far, relatively, the best may be above what is still open; 1 if nothing is known."""
        largest = 0.0 if self.sized else 1.0
        for sized in self.sized:
            before, after = sized.around(self.objective)
            every = [sized.floor[:, None]] if not sized.bounded else []
            for start, end in sized.parts if sized.bounded else ():
                joined = join(self.objective, before[start], sized.open((start, end)))
                every.append(join(self.objective, joined, after[end]))
            for joined in every:
                joined = joined[:, np.isfinite(joined).all(axis=0)]
                if not joined.shape[1]:
                    continue
                scores = self.objective.score(joined)
                if scores is None:
                    largest = max(largest, float(self.gaps(joined).max()))
                else:
                    best = min(self.score(point) for point in self.front.points.T)
                    largest = max(largest, float((best - scores.min()) / best) if best else 0.0)
        return largest

    # Doing it.

    def work(self, sized: _Sized, task: _Task) -> None:
        """Take a step at some sizes."""
        run, part = task.run, task.part
        names = self.space.einsums[slice(*run)]
        self.report(f"{'+'.join(names)} of {self.open_sizes(sized)}")
        if part is None:
            self.bound_runs(sized)
            return
        front = self.aimed(sized, run)
        known = front.points
        rest = [one for one in sized.parts[run] if one is not part]
        try:
            if isinstance(part, Family):
                rest += self.dive(self.groups.narrow(part), front)
            elif part.prices is None:
                looked = self.groups.look(part, front)
                rest += [] if looked is None else [looked]
            else:
                few = task.points[:_FEW] if self.figures > 1 else task.points
                first, others = part.split(few)
                rest += [] if others is None else [others]
                self.groups.solve(first, front)
            sized.parts[run] = rest
        finally:
            if front.points is not known:
                self.gather(sized)

    def dive(self, parts: list[Part], front: Front) -> list[Part]:
        """Look at the most promising structure of some parts, lest only bounds be worked on."""
        ready = [part for part in parts if isinstance(part, Candidate)]
        if not ready:
            return parts
        best = min(ready, key=self.order)
        looked = self.groups.look(best, front)
        others = [part for part in parts if part is not best]
        return others if looked is None else [looked, *others]

    def aimed(self, sized: _Sized, run: Run) -> Front:
        """The front of a run, which takes what may be part of something better than the best."""
        front = sized.fronts[run]
        starts, ends = sized.around(self.objective)
        before, after = starts[run[0]], ends[run[1]]
        if self.figures == 1:
            best = self.front.best
            adds = self.objective.adds[0]
            front.limit = float(best - before[0, 0] - after[0, 0]) if adds else best
        else:

            def wanted(figures: Numbers) -> Numbers:
                joined = join(self.objective, before, figures)
                return self.may_improve(join(self.objective, joined, after))

            front.wanted = wanted
        return front

    def gather(self, sized: _Sized) -> None:
        """Put the mappings that the fronts of runs make together onto the front."""
        _, after = sized.around(self.objective)
        partial = [Front(self.figures) for _ in range(sized.count + 1)]
        partial[0].add(np.zeros(self.figures), ())
        for (start, end), front in sorted(sized.fronts.items()):
            first = partial[start]
            if not first.payloads or not front.payloads:
                continue
            joined = join(self.objective, first.points[:, :, None], front.points[:, None, :])
            joined = joined.reshape(self.figures, -1)
            whole = join(self.objective, joined, after[end])
            stay = np.flatnonzero(self.may_improve(whole))
            for index in partial[end].add_all(joined[:, stay]):
                one, other = divmod(int(stay[index]), len(front.payloads))
                groups = (*first.payloads[one], front.payloads[other])
                partial[end].add(joined[:, stay[index]], groups)
        found = partial[-1]
        for figures, groups in zip(found.points.T, found.payloads, strict=True):
            if self.may_improve(figures[:, None])[0]:
                if self.scored:
                    self.front = Front(self.figures)
                self.front.add(figures, Plan(self.space.open_sizes(sized.sizes), groups))
                self.version += 1
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
        given = self.space.constraints
        fits = ""
        if self.groups.tally.overflow:
            level, words = min(self.groups.tally.overflow.items(), key=lambda item: item[1])
            count = words * self.space.values["word_bytes"]
            fits = (
                f"no tile fits: the smallest needs {count:.0f} bytes more than {level} has; raise "
                f"{level}.bytes, or allow smaller tiles"
            )
        until = monotonic() + _EXPLAINED
        self.deadline = until if self.deadline is None else min(self.deadline, until)
        conflict = [describe(given, part) for part in find_conflict(self.space, self.is_empty)]
        if not conflict:
            return f"{name}: {fits or 'the architecture leaves no mapping'}"
        *others, last = conflict
        emptied = (
            f"the constraints {', '.join(others)} and {last} together leave"
            if others
            else f"the constraint {last} leaves"
        )
        return f"{name}: {emptied} no mapping{fits and f': {fits}'}"

    def is_empty(self, space: MapSpace) -> bool:
        """Tell whether a space has no mapping; False where the time is up before it is known."""
        search = _Search(space, self.objective, self.deadline, lambda _: None)

        def stop(line: str) -> None:
            if search.front.payloads:
                raise Interrupted

        search.report = stop
        try:
            search.run()
        except Interrupted:
            return False
        return not search.front.payloads


def _urgency(part: Part, parts: list[Part], front: Front) -> float:
    """Which of equal promises comes first: what finds something in a run soonest."""
    looked = any(isinstance(one, Candidate) and one.prices is not None for one in parts)
    if isinstance(part, Candidate) and looked:
        return 2 if part.prices is not None else 3
    return 4 if looked or front.payloads else -_depth(part)


def _depth(part: Part) -> float:
    """How much of a part is decided."""
    if isinstance(part, Candidate):
        return np.inf
    return len(part.decided) + (part.structures is not None)


def _rounded(scores: Numbers) -> Numbers:
    """Numbers to nine significant digits, so that equals tie whatever order they were added in.

    >>> _rounded(np.array([0.12345678949, 0.0, -1234567890.1, np.inf]))
    array([ 1.23456789e-01,  0.00000000e+00, -1.23456789e+09,             inf])
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = 10.0 ** (8 - np.floor(np.log10(np.abs(scores))))
        rounded = np.round(scores * scale) / scale
    return np.asarray(np.where(np.isfinite(rounded), rounded, scores))
