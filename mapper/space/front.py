"""The best figures found so far: one, or those that no other beats in every figure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .objective import Numbers, Objective, cost_of

_GLANCE = 64  # numbers by which most are told apart
_TIE = 1e-12  # figures this close, relatively, count as equal: what was found first stays


class Front:
    """Points that none dominates, with what stands behind each; grows as a search goes on.

    ``limit`` is a figure that a point has to beat (for a front over one figure); ``wanted`` tells
    of many figures which are wanted at all.
    """

    def __init__(
        self,
        figures: int,
        limit: float = np.inf,
        wanted: Callable[[Numbers], Numbers] | None = None,
    ) -> None:
        self.points: Numbers = np.empty((figures, 0))
        self.payloads: list[Any] = []
        self.limit = limit
        self.wanted = wanted

    def bare(self) -> Front:
        """Its points alone, with nothing behind them, limit or wishes."""
        front = Front(len(self.points))
        front.points, front.payloads = self.points, [None] * len(self.payloads)
        return front

    @property
    def best(self) -> float:
        """The smallest value of the first figure, or the limit."""
        return float(self.points[0].min(initial=self.limit))

    def improves(self, bounds: Numbers) -> Numbers:
        """Tell for each column of figures (or of lower bounds on them) whether it may be new."""
        if len(self.points) == 1:
            return np.asarray(bounds[0] < self.best * (1 - _TIE))
        new: Numbers = np.asarray(np.isfinite(bounds).all(axis=0))
        slack = 1 - _TIE
        for point in self.points.T:
            if not new.any():
                break
            new &= (bounds < point[:, None] * slack).any(axis=0)
        if self.wanted is not None and new.any():
            new[new] = self.wanted(bounds[:, new])
        return new

    def add(self, point: Numbers, payload: Any) -> None:
        """Add a point that improves; those that it dominates go."""
        stay: Numbers = np.asarray(~(self.points >= point[:, None]).all(axis=0))
        self.points = np.column_stack([self.points[:, stay], point])
        self.payloads = [p for p, s in zip(self.payloads, stay, strict=True) if s] + [payload]

    def add_all(self, points: Numbers) -> list[int]:
        """Return which of many points come onto the front, in the order in which they are best."""
        new = np.flatnonzero(self.improves(points))
        if len(points) == 1:
            return [int(new[np.argmin(points[0, new])])] if len(new) else []
        chosen: list[int] = []
        for index in new[np.lexsort(points[::-1, new])]:
            if (
                not chosen
                or (points[:, [index]] < points[:, chosen] * (1 - _TIE)).any(axis=0).all()
            ):
                chosen.append(int(index))
        return chosen


def may_improve(objective: Objective, known: Front, figures: Numbers) -> Numbers:
    """Tell of many figures of mappings, a column each, which may improve on those known."""
    scores = objective.score(figures)
    if scores is None or len(figures) == 1:
        return known.improves(figures)
    found = objective.score(known.points)
    best = np.inf if found is None else found.min(initial=np.inf)
    return np.asarray(np.isfinite(figures).all(axis=0) & (scores < best * (1 - 1e-12)))


def find_gaps(objective: Objective, known: Front, figures: Numbers) -> Numbers:
    """Return how far, relatively, each column of figures is below those known; never below 0.

    With a single score that is below the best of them, else below the point of the front that is
    closest to it, in every figure at once.
    """
    scores = objective.score(figures)
    if scores is not None:
        best = min(cost_of(objective, point) for point in known.points.T)
        return np.maximum((best - scores) / best, 0.0) if best else np.zeros(len(scores))
    gaps = np.full(figures.shape[1], np.inf)
    for point in known.points.T[:, :, None]:
        below = np.divide(point - figures, point, out=np.zeros_like(figures), where=point > 0)
        gaps = np.minimum(gaps, below.max(axis=0))
    return np.asarray(np.maximum(gaps, 0.0))


def undominated(vectors: Numbers) -> list[int]:
    """Return which vectors no other equals or beats in every number; of equals the first.

    >>> undominated(np.array([[2.0, 1.0], [1.0, 1.0], [0.0, 5.0], [1.0, 1.0]]))
    [1, 2]
    """
    flat = vectors.reshape(len(vectors), int(np.prod(vectors.shape[1:])))
    few = flat[:, :_GLANCE]
    kept: list[int] = []
    for number, one in enumerate(flat):
        at = np.array(kept, dtype=int)
        below = at[(few[at] <= few[number]).all(axis=1)]
        if any((flat[other] <= one).all() for other in below):
            continue
        above = at[(few[at] >= few[number]).all(axis=1)]
        beaten = {int(other) for other in above if (flat[other] >= one).all()}
        kept = [other for other in kept if other not in beaten] + [number]
    return kept
