"""What no mapping of a group can beat: compute roofs and compulsory traffic.

An Einsum takes at least its points over all lanes of a unit; which units is decided exactly, as
in the search, so that the bound on the longest unit is that of the best assignment. A tensor from
outside a group crosses the outermost memory at least once. Both hold for every tiling, order and
placement, so a group whose bound does not improve on what is known is never searched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from .choices import Alternative, Choice, Interrupted
from .counts import Traffic, Work
from .objective import Numbers
from .tree import Pieces

_NODES = 4096  # assignments looked at, in part or whole, before the bound does without


def bound_group(pieces: Pieces, einsums: tuple[str, ...], sizes: Mapping[str, int]) -> Numbers:
    """Return figures that no mapping of a group of Einsums goes below."""
    objective = pieces.objective
    base = _compulsory(pieces, einsums, sizes)
    choices = [_roofs(pieces, name, sizes) for name in einsums]
    overlapped = pieces.space.overlap_depth(einsums) is not None
    least = base + sum(choice.bound for choice in choices)
    rows = len(objective.columns)
    figures = objective.close(least[:rows], np.zeros(1), overlapped)[:, 0]
    if overlapped and objective.times:
        busy = [
            {
                str(way.label): way.columns[pieces.rows[objective.times[str(way.label)]]]
                for way in choice.alternatives
            }
            for choice in choices
        ]
        floor = assignment_floor(pieces, busy)[0]
        place = objective.figures.index(objective.timed)
        figures[place] = max(figures[place], floor)
    return np.asarray(figures)


def assignment_floor(pieces: Pieces, busy: Sequence[Mapping[str, Numbers]]) -> Numbers:
    """Return the least time of the longest unit at every point, whichever Einsum runs where.

    Args:
        pieces: of the space and the objective.
        busy: for each Einsum, unit -> least time at every point.
    """
    units = sorted({unit for task in busy for unit in task})
    weights = np.array([[mix[unit] for unit in units] for mix in pieces.objective.mixes])
    key = (
        "longest",
        frozenset(
            (number, unit, time.tobytes())
            for number, task in enumerate(busy)
            for unit, time in task.items()
        ),
    )
    return pieces.keep(key, lambda: least_longest(busy, weights))


def least_longest(busy: Sequence[Mapping[str, Numbers]], weights: Numbers) -> Numbers:
    """Return the least time of the longest unit over all assignments of tasks, at every point.

    Args:
        busy: for each task, unit -> time at every point.
        weights: rows of weights of the units (in sorted order) that add up to 1 each: weighted
            means of the units' times bound the longest from below.

    Returns:
        The exact value, or a lower bound where there are too many assignments to look at.

    >>> tasks = [{"a": np.array([3.0]), "b": np.array([4.0])}] * 3
    >>> least_longest(tasks, np.array([[0.5, 0.5]]))
    array([6.])
    """
    units = sorted({unit for task in busy for unit in task})
    tasks = sorted(busy, key=lambda task: -max(float(np.min(v)) for v in task.values()))
    times = [
        {u: np.where(np.array(units)[:, None] == u, time, 0.0) for u, time in task.items()}
        for task in tasks
    ]
    mixed = [
        np.min([weights @ time for time in task.values()], axis=0) for task in times
    ]  # [weight, point] for each task
    after = [np.zeros_like(mixed[0])]
    for one in reversed(mixed):
        after.append(after[-1] + one)
    after.reverse()
    quickest = [min(task.values(), key=lambda time: float(time.sum())) for task in times]
    best = np.asarray(np.sum(quickest, axis=0).max(axis=0))
    nodes = 0

    def descend(number: int, sums: Numbers, points: Numbers) -> None:
        nonlocal nodes
        nodes += 1
        if nodes > _NODES:
            raise Interrupted
        if number == len(times):
            best[points] = np.minimum(best[points], sums.max(axis=0))
            return
        ways = []
        for unit, time in times[number].items():
            more = sums + time[:, points]
            bound = np.maximum(
                more.max(axis=0), (weights @ more + after[number + 1][:, points]).max(axis=0)
            )
            ways.append((float(bound.min()), unit, more, bound))
        for _, _, more, bound in sorted(ways, key=lambda way: way[:2]):
            stay = bound < best[points] * (1 - 1e-12)
            if stay.any():
                descend(number + 1, more[:, stay], points[stay])

    count = len(best)
    try:
        descend(0, np.zeros((len(units), count)), np.arange(count))
    except Interrupted:
        return np.asarray(after[0].max(axis=0))
    return np.asarray(best)


def _roofs(pieces: Pieces, name: str, sizes: Mapping[str, int]) -> Choice:
    space = pieces.space
    einsum = space.facts.einsums[name]
    points = prod(float(sizes[rank]) for rank in einsum.ranks)
    ways = []
    for unit in space.units_of[name]:
        extents = [float(np.floor(n)) for n in space.lanes[unit].values()]
        lanes = prod(extents)
        # A unit whose lanes outnumber the points still takes a step.
        active = min(lanes, points)
        steps = points / active
        operations: dict[str, float] = {}
        per_point: dict[str, int] = {}
        for operation in einsum.operations:
            done = prod(float(sizes[rank]) for rank in operation.ranks) / active
            operations[operation.name] = operations.get(operation.name, 0) + operation.times * done
            if operation.ranks == einsum.ranks:
                known = per_point.get(operation.name, 0)
                per_point[operation.name] = known + operation.times
        pipelined = unit in space.pipelined
        work = Work(unit, steps, active, lanes, operations, per_point, pipelined)
        # Every step reads each operand and writes the output, and reads it back but for the first.
        written = sum(prod(float(sizes[r]) for r in o.ranks) for o in einsum.outputs) / active
        reads = steps * (len(einsum.operands) + len(einsum.outputs)) - written
        registers = Traffic(max(reads, 0.0), steps * len(einsum.outputs))
        ways.append(Alternative(unit, pieces.stack(1, pieces.objective.compute(work, registers))))
    return Choice(tuple(ways))


def _compulsory(pieces: Pieces, einsums: tuple[str, ...], sizes: Mapping[str, int]) -> Numbers:
    space, objective = pieces.space, pieces.objective
    roles = space.roles(einsums)
    outer = space.memories[0]
    out = pieces.stack(1)
    for tensor in (*roles.outside, *roles.through):
        every = [space.facts.einsums[name] for name in roles.touched_by[tensor]]
        made = [o.ranks for e in every for o in e.outputs if o.tensor == tensor]
        read = [o.ranks for e in every for o in e.operands if o.tensor == tensor]
        ranks = frozenset[str]().union(*(made or read))
        words = prod(float(sizes[rank]) for rank in ranks)
        traffic = Traffic(0.0, words) if made else Traffic(words, 0.0)
        out += pieces.stack(1, objective.access(outer, traffic))
    return out
