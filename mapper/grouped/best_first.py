"""Steps of a search as values: what to work on and what is known; what stays open, what was found.

A step has a copy of the fronts as they were when it was handed out. They only get better, and
bounds only rise, so what a step drops by them need not come back: steps may be taken side by side,
in this process or in others.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import lru_cache
from time import monotonic
from typing import Any

import numpy as np

from einfuse.mapper.errors import MappingError
from einfuse.mapper.space.choices import Interrupted, Tally
from einfuse.mapper.space.front import Front, may_improve
from einfuse.mapper.space.memo import Pieces
from einfuse.mapper.space.objective import Numbers, Objective, join

from .group_search import Candidate, Family, GroupSearch

Part = Family | Candidate


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the search of one group.

    Attributes:
        parts: what is worked on.
        front: what is known of the group, and what else is wanted.
        tries: how often to go on with what promises most of it, until something is found; 0: take
            the one part that there is a step further.
        seconds: what is left of the time.
    """

    parts: tuple[Part, ...]
    front: Front
    tries: int = 0
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step leaves open of its parts, and the groups that it found with their figures.

    ``ended`` is false where it was interrupted.
    """

    parts: tuple[Part, ...]
    found: tuple[tuple[Numbers, Any], ...]
    tally: Tally
    ended: bool = True


@dataclass(frozen=True, slots=True)
class Wanted:
    """Tells of figures of a run which may be part of a mapping that improves on those known.

    Attributes:
        objective: what is minimised.
        before: the least figures of what comes before the run, a column.
        after: those of what comes after it.
        known: the front of mappings.
    """

    objective: Objective
    before: Numbers
    after: Numbers
    known: Front

    def __call__(self, figures: Numbers) -> Numbers:
        """Return whether each column of figures is wanted."""
        joined = join(self.objective, self.before, figures)
        return may_improve(self.objective, self.known, join(self.objective, joined, self.after))


def take(pieces: Pieces, step: Step) -> Outcome:
    """Take a step; one that is interrupted gives what it has found.

    Args:
        pieces: the space and the objective, with what was counted of them before.
        step: what to do.
    """
    deadline = None if step.seconds is None else monotonic() + step.seconds
    search = GroupSearch(pieces, lambda: deadline is not None and monotonic() > deadline)
    front = step.front.bare()
    front.limit, front.wanted = step.front.limit, step.front.wanted
    parts = list(step.parts)
    ended = True
    try:
        if step.tries:
            _reach(search, parts, front, step.tries)
        else:
            parts = _advance(search, parts[0], front)
    except (Interrupted, KeyboardInterrupt):
        ended = False
    every = zip(front.points.T, front.payloads, strict=True)
    return Outcome(
        tuple(parts), tuple(one for one in every if one[1] is not None), search.tally, ended
    )


def _advance(search: GroupSearch, part: Part, front: Front) -> list[Part]:
    """Take a part a step further; return what it leaves open."""
    if search.expired():
        raise Interrupted
    if isinstance(part, Family):
        # look at the most promising structure, lest only bounds be worked on
        parts = search.narrow(part)
        ready = [one for one in parts if isinstance(one, Candidate)]
        if not ready:
            return parts
        best = min(ready, key=lambda one: _order(search.objective, one))
        looked = search.look(best, front)
        others = [one for one in parts if one is not best]
        return others if looked is None else [looked, *others]
    if part.prices is None:
        looked = search.look(part, front)
        return [] if looked is None else [looked]
    search.solve(part, front)
    return []


def _reach(search: GroupSearch, parts: list[Part], front: Front, tries: int) -> None:
    """Work on what promises most of some parts, until something is found (or for a while)."""
    known = front.points
    for _ in range(tries):
        if not parts or front.points is not known:
            return
        part = min(parts, key=lambda one: _order(search.objective, one))
        found = _advance(search, part, front)
        parts.remove(part)
        parts += found


def _order(objective: Objective, part: Part) -> tuple[float, float]:
    """What comes first of a run: by the score or the first figure, then what is decided."""
    scores = objective.score(part.floor)
    least = (part.floor[0] if scores is None else scores).min()
    return float(rounded(least)), -depth(part)


def depth(part: Part) -> float:
    """How much of a part is decided."""
    if isinstance(part, Candidate):
        return np.inf
    return len(part.decided) + (part.prepared > 0)


def rounded(scores: Numbers) -> Numbers:
    """Numbers to nine significant digits, so that equals tie whatever order they were added in.

    >>> rounded(np.array([0.12345678949, 0.0, -1234567890.1, np.inf]))
    array([ 1.23456789e-01,  0.00000000e+00, -1.23456789e+09,             inf])
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = 10.0 ** (8 - np.floor(np.log10(np.abs(scores))))
        near = np.round(scores * scale) / scale
    return np.asarray(np.where(np.isfinite(near), near, scores))


def taker(pieces: Pieces, executor: Executor | None) -> Callable[[Step], Future[Outcome]]:
    """Return what takes steps: at once and here, or by an executor.

    Raises:
        MappingError: the space or the objective does not go to other processes.
    """
    if executor is None:

        def here(step: Step) -> Future[Outcome]:
            future: Future[Outcome] = Future()
            future.set_result(take(pieces, step))
            return future

        return here
    try:
        problem = pickle.dumps((pieces.space, pieces.objective))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise MappingError(
            f"the space and the objective {pieces.objective.name} have to go to other processes, "
            f"and do not pickle: {error}; define their classes in a module, or leave the executor "
            "out"
        ) from None
    return lambda step: executor.submit(_take_elsewhere, problem, step)


def _take_elsewhere(problem: bytes, step: Step) -> Outcome:
    return take(_pieces_of(problem), step)


@lru_cache(maxsize=1)
def _pieces_of(problem: bytes) -> Pieces:
    """The pieces of a pickled space and objective, made once by each process."""
    return Pieces(*pickle.loads(problem))
