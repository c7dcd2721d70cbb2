"""The search: the best mapping of a map space, with a proof or with the gap that is left.

Groups hand tensors on through the outermost memory, so figures of groups add (or the larger one
counts), and a mapping is a path through runs of Einsums. Each run has bounds, which are tightened
step by step (`grouped.group_search`): always those that stand behind the mapping that promises
most, until none is left that could improve on what was found. Whenever a run has found something,
the mappings that it completes are kept, so that a search may end at any time.

Several steps may be under way at once, in processes of an executor. What came of them is taken in
in the order in which they were handed out, so that a search does not depend on who was faster.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass, replace
from itertools import combinations
from time import monotonic

import numpy as np

from einfuse.einsum import expect
from einfuse.mapper.design.design import Design
from einfuse.mapper.errors import MappingError
from einfuse.mapper.grouped.best_first import (
    Outcome,
    Part,
    Step,
    Wanted,
    depth,
    rounded,
    take,
    taker,
)
from einfuse.mapper.grouped.bounds import bound_group, bound_plan
from einfuse.mapper.grouped.capacity_bounds import Run, runs_that_fit
from einfuse.mapper.grouped.group_search import Candidate, Family
from einfuse.mapper.grouped.runs import Runs
from einfuse.mapper.sequential.nest import ExplicitPlan
from einfuse.mapper.sequential.search import ExplicitSearch
from einfuse.mapper.space.choices import Interrupted, Tally
from einfuse.mapper.space.constraints import describe
from einfuse.mapper.space.front import Front, find_gaps, may_improve
from einfuse.mapper.space.memo import Pieces
from einfuse.mapper.space.objective import Numbers, Objective, cost_of, join
from einfuse.mapper.space.space import MapSpace, with_few_choices
from einfuse.mapper.space.structures import Plan

from .conflicts import find_conflict

_EXPLAINED = 60.0  # seconds at most to tell which constraints empty a space
_FEW = 4  # tile sizes that are worked out at a time where there are several figures
_TRIES = 24  # steps in a run in which nothing is found, before others come first
_GRACE = 0.5  # seconds to wait for steps under way when a search is stopped
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Solution:
    """A mapping and its figures, in the objective's order.

    The plan is a design where one of those shipped is the best that is known.
    """

    plan: Plan | ExplicitPlan | Design
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
        return cost_of(self.objective, self.best.figures)


def find_best(
    space: MapSpace,
    objective: Objective,
    *,
    seconds: float | None = None,
    report: Report | None = None,
    executor: Executor | None = None,
    at_once: int = 8,
    known: Iterable[tuple[Plan | ExplicitPlan | Design, Sequence[float]]] = (),
) -> SearchResult:
    """Return the best mapping of a space, or the front if the objective has no single score.

    Args:
        space: the mappings.
        objective: what is minimised (`einfuse.simulator.cost.objectives.find_objective`).
        seconds: stop after this long, with the best so far; interrupting does so too.
        report: called with a line of progress now and then.
        executor: takes the steps of the search, side by side; left out, they are taken here.
            `einfuse.mapper.search.processes.worker_processes` makes one that leaves nothing behind.
        at_once: steps that are under way at once with an executor, about four for each process.
            Which of the mappings is found whose costs tie depends on it, but not on the executor.
        known: mappings of the space and their figures, to start from besides the shipped designs.

    Raises:
        MappingError: no mapping is possible, and why; or the executor has lost its processes.

    The constraints say how mappings count, and thereby how they are searched: with ``composition:
    sequential`` by `einfuse.mapper.sequential.search`, which takes no executor, else as this module
    says.

    Spaces, objectives and results go to other processes and back, so that many searches are an
    executor's map: ``ProcessPoolExecutor().map(partial(find_best, objective=objective), spaces)``.
    """
    expect(space, MapSpace, "space", "an einfuse.MapSpace")
    if not hasattr(objective, "columns"):
        raise MappingError("objective: expected what einfuse.find_objective returns")
    expect(0 if seconds is None else seconds, (int, float), "seconds", "a number")
    if at_once < 1:
        raise MappingError(f"expected at least 1 step at once, found {at_once}")
    if not space.einsums:
        raise MappingError(
            f"{space.cascade.name}: nothing to map: each of its Einsums only copies or renames "
            "what it reads, and needs no unit; expected one that computes"
        )
    started = monotonic()
    deadline = None if seconds is None else started + seconds
    report = report or (lambda _: None)
    search: ExplicitSearch | _Search
    if space.constraints.composition == "sequential":
        search = ExplicitSearch(space, objective, deadline, report)
    else:
        search = _Search(space, objective, deadline, lambda _: None, executor, at_once)
        for plan, figures in (*known, *objective.known(space)):
            search.put(np.array(figures, float), plan)
        search.report = report
    try:
        search.run()
        finished = True
    except (Interrupted, KeyboardInterrupt):
        finished = False
    except BrokenExecutor as error:
        raise MappingError(
            "a worker process ended before its step of the search was done (was memory short?): "
            f"use fewer processes; {error}"
        ) from None
    if not search.front.payloads:
        raise MappingError(search.reason(finished))
    order = np.lexsort(search.front.points[::-1])
    solutions = tuple(
        Solution(search.front.payloads[n], tuple(map(float, search.front.points[:, n])))
        for n in order
    )
    if search.scored:
        best = min(solutions, key=lambda s: cost_of(objective, s.figures))
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
    """What may be worked on next: parts of a run (none: the runs are not bounded yet).

    ``version`` is that of the front by which it was chosen; for ``tries`` see `Step`.
    """

    number: int  # of the sizes
    run: Run
    parts: tuple[Part, ...]
    promise: float
    version: int
    points: tuple[int, ...] = ()  # of the one part, a few of the largest promise
    tries: int = 0


class _Search:
    def __init__(
        self,
        space: MapSpace,
        objective: Objective,
        deadline: float | None,
        report: Report,
        executor: Executor | None = None,
        at_once: int = 1,
    ) -> None:
        self.space, self.objective = space, objective
        self.deadline, self.report = deadline, report
        self.pieces = Pieces(space, objective, self.expired)
        self.take = taker(self.pieces, executor)
        self.at_once = 1 if executor is None else at_once
        self.tally = Tally()
        self.figures = len(objective.figures)
        self.front = Front(self.figures)
        self.version = 0  # how often the front has improved
        self.scored = objective.score(np.ones((self.figures, 1))) is not None
        self.sized: list[Runs] = []
        self.runs: list[Run] = []
        self.tasks: dict[int, _Task] = {}  # at each sizes, what promises most, or no less than that

    @property
    def structures(self) -> int:
        """The structures that were worked on."""
        return self.tally.structures

    def expired(self) -> bool:
        """Whether the time is up."""
        return self.deadline is not None and monotonic() > self.deadline

    def run(self) -> None:
        """Work on what promises most, until nothing is left that may improve the front.

        Of equal promises, the smaller sizes of the open splits come first.
        """
        count = len(self.space.einsums)
        sizes = list(self.space.splits())
        some = [sizes[n] for n in dict.fromkeys((len(sizes) // 2, 0, len(sizes) - 1))]
        for one in some:
            if not self.front.payloads:
                self.seed(one, first=True)
        self.runs = runs_that_fit(self.pieces, self.find_runs(), sizes)
        for one in some:
            if not self.front.payloads:
                self.seed(one, first=False)
        self.sized = [Runs(s, bound_plan(self.pieces, s), count) for s in sizes]
        for number in range(len(self.sized)):
            self.plan(number)
        under_way: deque[tuple[_Task, Future[Outcome]]] = deque()
        try:
            while self.begin(under_way):
                task, future = under_way[0]
                outcome = self.result_of(future)
                under_way.popleft()
                self.end(task, outcome)
                if not outcome.ended:
                    raise Interrupted
        finally:
            for _, future in under_way:
                future.cancel()
            wait([future for _, future in under_way], timeout=_GRACE / 2)
            for task, future in under_way:
                if future.done() and not future.cancelled() and future.exception() is None:
                    self.end(task, future.result())

    def result_of(self, future: Future[Outcome]) -> Outcome:
        """What came of a step; no longer than there is time (a process may still be starting)."""
        left = None if self.deadline is None else self.deadline - monotonic() + _GRACE / 2
        try:
            return future.result(None if left is None else max(left, 0.0))
        except TimeoutError:
            raise Interrupted from None

    def seed(self, sizes: dict[str, int], *, first: bool) -> None:
        """Find some mapping soon, of the shortest runs, lest a large space leave nothing.

        Args:
            sizes: the size of every rank.
            first: whether only among few choices, before anything else is known of the runs. That
                is little work, and is done whatever the time: a search ends with a mapping.
        """
        few = with_few_choices(self.space, sizes)
        tried = [Pieces(few, self.objective, self.expired), *(() if first else (self.pieces,))]
        sized = Runs(sizes, np.zeros(self.figures), len(self.space.einsums))
        at = 0
        while at < sized.count:
            longer = ((at, end) for end in range(at + 1, sized.count + 1))
            fits = self.stands if first else self.runs.__contains__
            run = next(filter(fits, longer), None)
            if run is None:
                return
            at = run[1]
            left = None if first else self.seconds_left()
            if not any(self.find(pieces, sized, run, left) for pieces in tried):
                return
        self.gather(sized)

    def find(self, pieces: Pieces, sized: Runs, run: Run, seconds: float | None) -> bool:
        """Work on a run until something is found in it; return whether there is anything."""
        until = None if seconds is None else monotonic() + seconds
        names = self.space.einsums[slice(*run)]
        sized.start(run, Family(names, sized.sizes, np.zeros((self.figures, 1))))
        while sized.parts[run] and not sized.fronts[run].payloads:
            parts = tuple(sized.parts[run])
            left = None if until is None else until - monotonic()
            outcome = take(pieces, Step(parts, sized.fronts[run], _TRIES, left))
            self.tally.add(outcome.tally)
            sized.end(run, parts, outcome)
            if not outcome.ended:
                raise Interrupted
        return bool(sized.fronts[run].payloads)

    # What to do next.

    def find_runs(self) -> list[Run]:
        """The runs that may stand in one group, in order."""
        found: list[Run] = []
        for run in combinations(range(len(self.space.einsums) + 1), 2):
            if self.expired():
                raise Interrupted
            if self.stands(run):
                found.append(run)
        return found

    def stands(self, run: Run) -> bool:
        """Whether the Einsums of a run may stand in one group."""
        return any(self.space.structures(self.space.einsums[slice(*run)]))

    def bound_runs(self, sized: Runs) -> None:
        """Bound every run at some sizes, roughly."""
        for run in self.runs:
            if self.expired():
                raise Interrupted
            names = self.space.einsums[slice(*run)]
            bound = bound_group(self.pieces, names, sized.sizes, exact=False)
            sized.start(run, Family(names, sized.sizes, bound[:, None]))
        sized.bounded = True

    def plan(self, number: int) -> None:
        """Find what promises most at some sizes; of equals, what is done soonest."""
        sized = self.sized[number]
        task = self.most(number, sized)
        self.tasks.pop(number, None)
        if task is not None:
            ahead = self.ahead(sized)
            if ahead is not None:
                task = replace(task, run=ahead, parts=tuple(sized.idle(ahead)), tries=_TRIES)
            self.tasks[number] = task

    def most(self, number: int, sized: Runs) -> _Task | None:
        """What promises most at some sizes by its bound."""
        if not sized.bounded:
            (promise,) = self.promise(sized.floor[:, None])
            task = _Task(number, (0, sized.count), (), promise, self.version)
            return task if promise > -np.inf else None
        before, after = sized.around(self.objective)
        best: tuple[tuple[float, float], _Task] | None = None
        runs = list(sized.parts)
        if self.figures == 1 and not sized.under_way:
            least = {run: sized.least(run)[:, None] for run in sorted(sized.parts)}
            runs = self.path(least, after)
        for run in runs:
            parts = sized.parts[run]
            owners = np.repeat(np.arange(len(parts)), [part.floor.shape[1] for part in parts])
            promises = self.promises(sized, run, before, after)
            if sized.under_way:
                taken = np.array([part in sized.under_way for part in parts], dtype=bool)
                promises = np.where(taken[owners], -np.inf, promises)
            if not len(promises) or (most := promises.max()) == -np.inf:
                continue
            equal = list(dict.fromkeys(owners[promises == most]))
            urgencies = [_urgency(parts[n], parts, sized.fronts[run]) for n in equal]
            urgency = min(urgencies)
            chosen = equal[urgencies.index(urgency)]
            order = (-float(most), urgency)
            if best is None or order < best[0]:
                points = tuple(np.argsort(-promises[owners == chosen], kind="stable")[:_FEW])
                part = (parts[chosen],)
                best = order, _Task(number, run, part, float(most), self.version, points)
        return None if best is None else best[1]

    def next_task(self) -> _Task | None:
        """What promises most; of equals, at the smaller sizes of the open splits."""
        while self.tasks:
            task = max(self.tasks.values(), key=lambda task: (task.promise, task.number))
            if task.version == self.version:
                if task.parts:
                    return task
                self.bound_runs(self.sized[task.number])
            self.plan(task.number)  # it promised more than it may do now
        return None

    def ahead(self, sized: Runs) -> Run | None:
        """A run of the shortest path in which something is to be found, where nothing was yet.

        Runs in which something was found count as that, the others as their bounds: as much above
        them as what was found is elsewhere, and if nothing is left to find then, as they are. None
        right after one.
        """
        if self.figures > 1 or not sized.bounded or sized.went_ahead:
            return None
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
                    return run if sized.idle(run) else None
        return None

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
        self, sized: Runs, run: Run, before: list[Numbers], after: list[Numbers]
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
            scores = (
                -find_gaps(self.objective, self.front, joined) if self.front.payloads else joined[0]
            )
        return np.where(self.may_improve(joined), -rounded(scores), -np.inf)

    def may_improve(self, figures: Numbers) -> Numbers:
        """Tell of many figures which may improve on what is known."""
        return may_improve(self.objective, self.front, figures)

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
                gaps = find_gaps(self.objective, self.front, joined)
                largest = max(largest, float(gaps.max(initial=0.0)))
        return largest

    # Doing it.

    def begin(self, under_way: deque[tuple[_Task, Future[Outcome]]]) -> bool:
        """Hand out the steps that promise most; return whether any is under way."""
        while len(under_way) < self.at_once and (task := self.next_task()) is not None:
            left = self.seconds_left()
            sized, run = self.sized[task.number], task.run
            names = self.space.einsums[slice(*run)]
            self.report(f"{'+'.join(names)} of {self.open_sizes(sized)}")
            front = self.aimed(sized, run)
            parts = task.parts
            if self.figures > 1 and isinstance(parts[0], Candidate) and parts[0].prices is not None:
                parts = (sized.divide(run, parts[0], np.array(task.points)),)
            sized.begin(parts, ahead=task.tries > 0)
            self.tasks[task.number] = replace(task, version=-1)
            future = self.take(Step(parts, front, task.tries, left))
            under_way.append((replace(task, parts=parts), future))
        return bool(under_way)

    def end(self, task: _Task, outcome: Outcome) -> None:
        """Take in what came of a step."""
        sized = self.sized[task.number]
        self.tally.add(outcome.tally)
        if sized.end(task.run, task.parts, outcome):
            self.gather(sized)
        if task.tries and not sized.fronts[task.run].payloads:
            sized.given_up.add(task.run)
        self.plan(task.number)
        if task.tries and task.number in self.tasks:  # use what was found before anything else
            self.tasks[task.number] = replace(self.tasks[task.number], promise=np.inf)

    def seconds_left(self) -> float | None:
        """What is left of the time, if it is limited."""
        if self.expired():
            raise Interrupted
        return None if self.deadline is None else self.deadline - monotonic()

    def aimed(self, sized: Runs, run: Run) -> Front:
        """What is known of a run, and what may be part of something better than the best."""
        front = sized.fronts[run].bare()
        starts, ends = sized.around(self.objective)
        before, after = starts[run[0]], ends[run[1]]
        if self.figures == 1:
            best = self.front.best
            adds = self.objective.adds[0]
            front.limit = float(best - before[0, 0] - after[0, 0]) if adds else best
        else:
            front.wanted = Wanted(self.objective, before, after, self.front.bare())
        return front

    def gather(self, sized: Runs) -> None:
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
            self.put(figures, Plan(self.space.open_sizes(sized.sizes), groups))

    def put(self, figures: Numbers, plan: Plan | ExplicitPlan | Design) -> None:
        """Put a mapping onto the front, if it improves on it."""
        if self.may_improve(figures[:, None])[0]:
            front = Front(self.figures) if self.scored else self.front
            front.add(figures, plan)
            self.front = front
            self.version += 1
            self.report(f"best so far: {', '.join(f'{value:.6g}' for value in figures)}")

    def open_sizes(self, sized: Runs) -> str:
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
        if self.tally.overflow:
            level, words = min(self.tally.overflow.items(), key=lambda item: item[1])
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
    return 4 if looked or front.payloads else -depth(part)
