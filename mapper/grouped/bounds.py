"""What no mapping of a group can beat: compute roofs and compulsory traffic.

An Einsum takes at least its points over the lanes that it uses; which units is decided exactly, as
in the search, so that the bound on the longest unit is that of the best assignment. A tensor from
outside a group crosses the outermost memory at least once. An operand that depends on the innermost
loop in time comes to the registers anew in every step, from the level where that costs least; the
others come once at least. All of it holds for every tiling, order and placement, so a group whose
bound does not improve on what is known is never searched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from math import prod
from types import MappingProxyType

import numpy as np

from einfuse.mapper.machine.formula import Values
from einfuse.mapper.nest.coordinates import find_coordinates
from einfuse.mapper.nest.reuse import Traffic, Work
from einfuse.mapper.nest.workload import Operand
from einfuse.mapper.space.choices import Alternative, Choice, Interrupted
from einfuse.mapper.space.memo import Pieces
from einfuse.mapper.space.objective import Numbers
from einfuse.mapper.space.space import Structure

from .forwarding import find_bunches, forwardable, may_forward

_NODES = 4096
_OPEN: Mapping[str, int] = MappingProxyType({})


def bound_plan(pieces: Pieces, sizes: Mapping[str, int]) -> Numbers:
    """Return figures that no mapping of all Einsums goes below, however they are grouped.

    As if they were one group, all of it side by side: groups one after the other take no less.
    """
    space = pieces.space
    einsums = space.einsums
    every = tuple(range(len(space.memories)))
    inside = {t: () if may_forward(space, t) else every for t in space.facts.ranks}
    outside = {tensor: space.face_levels(tensor) for tensor in space.roles(einsums).outside}
    return _bound(pieces, einsums, sizes, {**inside, **outside}, overlapped=True, exact=False)


def bound_group(
    pieces: Pieces,
    einsums: tuple[str, ...],
    sizes: Mapping[str, int],
    decided: Mapping[str, int] = _OPEN,
    *,
    exact: bool = True,
) -> Numbers:
    """Return figures that no mapping of a group of Einsums goes below, whatever its tiles.

    Args:
        pieces: of the space and the objective.
        einsums: those of the group.
        sizes: the size of every rank.
        decided: the levels that are decided (see `MapSpace.levels`).
        exact: whether all assignments of Einsums to units are looked at, for which time is bounded
            by a mean of the units' times otherwise.
    """
    space = pieces.space
    roles = space.roles(einsums)
    outside = {tensor: space.face_levels(tensor) for tensor in roles.outside}
    within = space.exchange_levels((*roles.inside, *roles.through))
    if "" in decided:
        within = (decided[""],)
    inside = {
        tensor: () if tensor in roles.inside and may_forward(space, tensor) else within
        for tensor in (*roles.inside, *roles.through)
    }
    faces = {tensor: (level,) for tensor, level in decided.items()}
    overlapped = space.overlap_depth(einsums) is not None
    return _bound(
        pieces, einsums, sizes, {**outside, **inside, **faces}, overlapped=overlapped, exact=exact
    )


def bound_structure(pieces: Pieces, structure: Structure, sizes: Mapping[str, int]) -> Numbers:
    """Return figures that no mapping of a structure goes below, whatever its tiles."""
    space = pieces.space
    einsums = structure.einsums
    roles = space.roles(einsums)
    outside = {tensor: space.face_levels(tensor) for tensor in roles.outside}
    free = frozenset(
        tensor
        for bunch in find_bunches(structure)
        for tensor in forwardable(space, structure, bunch, sizes)
    )
    inside = {
        tensor: () if tensor in free else (structure.exchange,)
        for tensor in (*roles.inside, *roles.through)
    }
    levels = {**outside, **inside, **{tensor: (level,) for tensor, level in structure.faces}}
    overlapped = space.overlap_depth(einsums) is not None
    key = ("bound", einsums, tuple(levels.items()), tuple(sorted(sizes.items())))
    return pieces.keep(
        key, lambda: _bound(pieces, einsums, sizes, levels, overlapped=overlapped, exact=True)
    )


def bound_work(pieces: Pieces, einsums: tuple[str, ...], sizes: Mapping[str, int]) -> Numbers:
    """Return the least columns of what Einsums compute, by registers alone: [row, 1]."""
    out = pieces.stack((1,))
    for name in einsums:
        free = dict.fromkeys(pieces.space.touched(name), ())
        out += _roofs(pieces, name, sizes, free, frozenset()).bound
    return out


def _bound(
    pieces: Pieces,
    einsums: tuple[str, ...],
    sizes: Mapping[str, int],
    levels: Mapping[str, tuple[int, ...]],
    *,
    overlapped: bool,
    exact: bool,
) -> Numbers:
    """Bound a group whose tensors come to the units from one of some levels each, or from none."""
    objective = pieces.objective
    base = _compulsory(pieces, einsums, sizes)
    roles = pieces.space.roles(einsums)
    homed = {  # what several touch is filled once: count it where it is touched first
        name: frozenset(t for t in roles.outside if roles.touched_by[t][0] == name)
        for name in einsums
    }
    choices = [_roofs(pieces, name, sizes, levels, homed[name]) for name in einsums]
    least = base + sum(choice.bound for choice in choices)
    rows = len(objective.columns)
    figures = objective.close(least[:rows], np.zeros(1), overlapped)[:, 0]
    if objective.times:
        busy = [
            {
                str(way.label): way.columns[pieces.rows[objective.times[str(way.label)]]]
                for way in choice.alternatives
            }
            for choice in choices
        ]
        place = objective.figures.index(objective.timed)
        if overlapped:
            floor = assignment_floor(pieces, busy, _NODES if exact else 0)[0]
        else:
            floor = sum(min(float(time[0]) for time in task.values()) for task in busy)
        figures[place] = max(figures[place], floor)
    return np.asarray(figures)


def assignment_floor(
    pieces: Pieces, busy: Sequence[Mapping[str, Numbers]], most: int = _NODES
) -> Numbers:
    """Return the least time of the longest unit at every point, whichever Einsum runs where.

    Args:
        pieces: of the space and the objective.
        busy: for each Einsum, unit -> least time at every point.
        most: see `least_longest`.
    """
    units = sorted({unit for task in busy for unit in task})
    weights = np.array([[mix[unit] for unit in units] for mix in pieces.objective.mixes])
    key = (
        "longest",
        most,
        frozenset(
            (number, unit, time.tobytes())
            for number, task in enumerate(busy)
            for unit, time in task.items()
        ),
    )
    return pieces.keep(key, lambda: least_longest(busy, weights, most))


def least_longest(
    busy: Sequence[Mapping[str, Numbers]], weights: Numbers, most: int = _NODES
) -> Numbers:
    """Return the least time of the longest unit over all assignments of tasks, at every point.

    Args:
        busy: for each task, unit -> time at every point.
        weights: rows of weights of the units (in sorted order) that add up to 1 each: weighted
            means of the units' times bound the longest from below.
        most: how many assignments are looked at, in part or whole, before it does without.

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
        if nodes > most:
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


def _roofs(
    pieces: Pieces,
    name: str,
    sizes: Mapping[str, int],
    levels: Mapping[str, tuple[int, ...]],
    homed: frozenset[str],
) -> Choice:
    """The least columns of an Einsum on each unit.

    Args:
        pieces: of the space and the objective.
        name: of the Einsum.
        sizes: the size of every rank.
        levels: those that may feed the units with each tensor; none if it may be forwarded.
        homed: the tensors from outside the group that it is the first to touch.
    """
    touched = pieces.space.touched(name)
    own = {tensor: levels[tensor] for tensor in touched}
    from_home = homed & {*touched}
    key = ("roofs", name, tuple(sorted(sizes.items())), tuple(own.items()), from_home)
    return pieces.keep(key, lambda: _find_roofs(pieces, name, sizes, own, from_home))


def _find_roofs(
    pieces: Pieces,
    name: str,
    sizes: Mapping[str, int],
    levels: Mapping[str, tuple[int, ...]],
    homed: frozenset[str],
) -> Choice:
    space = pieces.space
    einsum = space.facts.einsums[name]
    ranks = [r for r in space.legality.order if r in einsum.ranks and sizes[r] > 1]
    points = prod(float(sizes[rank]) for rank in ranks)
    per_point: dict[str, int] = {}
    for operation in einsum.operations:
        if operation.ranks == einsum.ranks:
            per_point[operation.name] = per_point.get(operation.name, 0) + operation.times
    uses = [*((o, False) for o in einsum.operands), *((o, True) for o in einsum.outputs)]
    ways = []
    for unit in space.units_of[name]:
        extents = [float(np.floor(n)) for n in space.lanes[unit].values()]
        # The innermost loop in time is over any rank; there is none where all are in space.
        every: list[tuple[tuple[str | None, ...], str | None]] = [
            (spatial, inner)
            for spatial in space.spreads(name, unit, ranks)
            for inner in (*ranks, None)
            if inner is not None or {*ranks} <= {*spatial}
        ]
        width = {rank: np.ones(len(every)) for rank in ranks}
        for number, (spatial, _) in enumerate(every):
            for rank, lanes in zip(spatial, extents, strict=True):
                if rank is not None:
                    width[rank][number] = min(lanes, float(sizes[rank]))
        active = np.prod([*width.values(), np.ones(len(every))], axis=0)
        steps = points / active
        operations: dict[str, Values] = {}
        for operation in einsum.operations:
            done = prod(float(sizes[rank]) for rank in operation.ranks) / active
            operations[operation.name] = operations.get(operation.name, 0) + operation.times * done
        pipelined = unit in space.pipelined
        work = Work(unit, steps, active, prod(extents), operations, per_point, pipelined)
        # Every step reads each operand and writes the output, and reads it back but for the first.
        # A lane's first word of an output is its own, also where lanes add theirs up.
        firsts = {
            o: prod((sizes[r] / width.get(r, 1.0) for r in o.ranks), start=np.ones(len(every)))
            for o in einsum.outputs
        }
        reads = steps * (len(einsum.operands) + len(einsum.outputs)) - sum(firsts.values())
        last = [inner for _, inner in every]
        writes = steps * len(einsum.outputs)
        for used, made in uses:
            if levels[used.tensor]:
                first = firsts[used] if made else None
                writes = writes + _arrivals(used, first, last, sizes, steps, active)
        registers = Traffic(np.maximum(reads, 0.0), writes)
        columns = pieces.stack((len(every),), pieces.objective.compute(work, registers))
        for used, made in uses:
            once = float(used.visited.words(sizes, sizes))
            again = np.prod([sizes[r] / width[r] for r in ranks if r not in used.ranks], axis=0)
            words = once * np.where([inner in used.ranks for inner in last], again, 1.0)
            place = levels[used.tensor]
            if not place:
                continue  # it may be forwarded
            columns += _fed(pieces, place, once, words, made, used.tensor in homed)
        ways.append(Alternative(unit, columns.min(axis=1, keepdims=True)))
    return Choice(tuple(ways))


def _arrivals(
    used: Operand,
    first: Values | None,
    last: Sequence[str | None],
    sizes: Mapping[str, int],
    steps: Numbers,
    active: Numbers,
) -> Numbers:
    """The least words that come to the registers of a lane from a tensor's home.

    A lane holds a word of it. So in every step one comes anew where the tensor depends on the
    innermost loop in time; else each word comes to some lane once. Of an output, the parts that
    were there before come back: all but the first that each lane has of a word. Fewer lanes than
    are counted here take as many steps more, so that all lanes together have no less.

    Args:
        used: an operand or an output.
        first: of an output, the words that a lane has of it at least; None: it is an operand.
        last: the innermost loop in time of each way to run the Einsum.
        sizes: the size of every rank.
        steps: those of each way.
        active: the lanes of each way.
    """
    moves = np.array([inner in used.ranks for inner in last])
    if first is not None:
        return np.where(moves, np.maximum(steps - first, 0.0), 0.0)
    once = float(used.visited.words(sizes, sizes)) / active
    return np.where(moves & used.visited.plain, np.maximum(steps, once), once)


def _fed(
    pieces: Pieces,
    levels: tuple[int, ...],
    once: float,
    words: Numbers,
    made: bool,
    homed: bool,
) -> Numbers:
    """The least columns of words that go between the registers and one of some levels.

    What crosses the outermost memory once is counted apart; at a level below, that is a fill.
    """
    space, objective = pieces.space, pieces.objective
    found = []
    for number in levels:
        level = space.memories[number]
        if number == 0:
            less = words - once
            traffic = Traffic(less, less) if made else Traffic(less, 0.0)
        elif made:
            traffic = Traffic(words - once, words)
        else:
            traffic = Traffic(words, once if homed else 0.0)
        found.append(pieces.stack((len(words),), objective.access(level, traffic)))
    return reduce(np.minimum, found)


def _compulsory(pieces: Pieces, einsums: tuple[str, ...], sizes: Mapping[str, int]) -> Numbers:
    space, objective = pieces.space, pieces.objective
    roles = space.roles(einsums)
    outer = space.memories[0]
    out = pieces.stack((1,))
    for tensor in (*roles.outside, *roles.through):
        every = [space.facts.einsums[name] for name in roles.touched_by[tensor]]
        made = [o.part for e in every for o in e.outputs if o.tensor == tensor]
        read = [o.part for e in every for o in e.operands if o.tensor == tensor]
        words = float(find_coordinates(frozenset(made or read)).words(sizes, sizes))
        traffic = Traffic(0.0, words) if made else Traffic(words, 0.0)
        out += pieces.stack((1,), objective.access(outer, traffic))
    return out
