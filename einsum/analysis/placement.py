"""The least positions of Einsums in passes, and the counts and proofs that follow from them.

Every Einsum gets the earliest position that its dependences allow. Positions count half passes:
an even position 2k lies in pass k, an odd one between two passes. A barrier moves its consumer
past the producer's pass, and an Einsum that is counted (it reads the lineage) must stand in a
pass. Least solutions exist for all Einsums at once, so the greatest of them is the count.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

from einfuse.einsum.language.errors import EinfuseError

from .dependence import Dependence, Direction, Edge

SEARCH_LIMIT = 2**12
"""How many orders of directions are tried for an exact count; beyond, alternation bounds it."""


@dataclass(frozen=True, slots=True)
class Barrier:
    """``consumer`` cannot start its sweep before ``producer`` has ended the last one."""

    producer: str
    consumer: str
    tensor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Count:
    """A count with its witness.

    Attributes:
        count: passes or sweeps; per generation where it grows with the iterations.
        path: Einsums in the order of dependence, from a first one to one in the last pass.
        barriers: those on the path, one fewer than ``count`` (as many, per generation).
        grows: whether every generation adds ``count`` more.
        exact: False where opposite directions left too many orders to try: an upper bound then.
    """

    count: int | Fraction
    path: tuple[str, ...] = ()
    barriers: tuple[Barrier, ...] = ()
    grows: bool = False
    exact: bool = True


def fewest_passes(dependence: Dependence, counted: frozenset[int], what: str) -> Count:
    """Return the least number of passes that hold all counted Einsums, with its witness.

    Args:
        dependence: the dependences along one level.
        counted: the Einsums that must stand in a pass: the readers of a root, or all that are
            indexed (the passes are sweeps then).
        what: the root, or the rank, for the witness.

    Raises:
        EinfuseError: an Einsum waits within a sweep for the end of that sweep.
    """
    incoming = _edges_in(dependence)
    placed = _place(dependence, counted, incoming, None)
    if placed is None:
        return _slope(dependence, counted)
    least = _passes(placed, counted)
    first, edges = _critical_path(counted, placed)
    path = tuple(dependence.einsums[i].name for i in (first, *(e.consumer for e in edges)))
    barriers = tuple(
        _barrier(dependence, e) for e in edges if e.barrier and not placed.positions[e.producer] % 2
    )
    if not counted:
        return Count(0)
    if not _opposed(dependence):
        return Count(least, path, barriers)
    order, exact = _directed(dependence, counted, incoming, least)
    turns = itertools.islice(itertools.cycle(_turns(dependence, what)), len(order) - least)
    return Count(len(order), path, (*barriers, *turns), exact=exact)


def positions(dependence: Dependence, counted: frozenset[int]) -> tuple[int, ...]:
    """Return the least position of every Einsum in half passes, within the first generation."""
    now = within_generation(dependence)
    incoming = _edges_in(now)
    placed = _place(now, counted, incoming, None)
    assert placed is not None, "a cycle without generations would have been refused by count"
    if not _opposed(now):
        return tuple(placed.positions)
    order, _ = _directed(now, counted, incoming, _passes(placed, counted))
    directed = _place(now, counted, incoming, order)
    assert directed is not None, "the order was found by placing"
    return tuple(directed.positions)


def critical_path(dependence: Dependence, counted: frozenset[int]) -> tuple[Edge, ...]:
    """Return the edges of a path that forces the last pass, within the first generation."""
    now = within_generation(dependence)
    placed = _place(now, counted, _edges_in(now), None)
    return _critical_path(counted, placed)[1] if placed and counted else ()


def within_generation(dependence: Dependence) -> Dependence:
    """Return the dependences without those that reach into a later generation."""
    return replace(dependence, edges=tuple(e for e in dependence.edges if not e.generations))


@dataclass(frozen=True, slots=True)
class _Placed:
    positions: list[int]
    causes: list[Edge | None]


def _passes(placed: _Placed, counted: frozenset[int]) -> int:
    return max((placed.positions[i] for i in counted), default=0) // 2


def _opposed(dependence: Dependence) -> bool:
    """Tell whether some Einsums have to sweep upwards and others downwards."""
    return {Direction.UP, Direction.DOWN} <= set(dependence.directions)


def _edges_in(dependence: Dependence) -> list[list[Edge]]:
    incoming: list[list[Edge]] = [[] for _ in dependence.einsums]
    for edge in dependence.edges:
        incoming[edge.consumer].append(edge)
    return incoming


def _place(
    dependence: Dependence,
    counted: frozenset[int],
    incoming: list[list[Edge]],
    order: Sequence[Direction] | None,
) -> _Placed | None:
    """Put every Einsum at its least position; None if it has none.

    With an ``order`` pass k sweeps in the direction ``order[k-1]``, and there are no others. One
    round settles an acyclic cascade; recurrences without a barrier need a second.
    """
    n = len(incoming)
    positions = [0] * n
    causes: list[Edge | None] = [None] * n
    for _ in range(2 * n + 2):
        changed = False
        for i in range(n):
            least, cause = (1 if dependence.indexed[i] else 0), causes[i]
            for edge in incoming[i]:
                after = positions[edge.producer] | 1 if edge.barrier else positions[edge.producer]
                if after > least:
                    least, cause = after, edge
            settled = _settled(least, i in counted, dependence.directions[i], order)
            if settled is None:
                return None
            if settled > positions[i]:
                positions[i], causes[i], changed = settled, cause, True
        if not changed:
            return _Placed(positions, causes)
    return None


def _settled(
    position: int, counted: bool, direction: Direction, order: Sequence[Direction] | None
) -> int | None:
    """Return the first position from one on where an Einsum may stand."""
    if counted:
        position += position % 2
        while order is not None:
            if position > 2 * len(order):
                return None
            if direction in (Direction.ANY, order[position // 2 - 1]):
                break
            position += 2
    elif order is not None and position % 2 == 0 and 0 < position <= 2 * len(order):
        position += direction not in (Direction.ANY, order[position // 2 - 1])
    return position


def _directed(
    dependence: Dependence, counted: frozenset[int], incoming: list[list[Edge]], least: int
) -> tuple[tuple[Direction, ...], bool]:
    """Return the shortest order of directions that holds all, and whether it is surely that.

    Shortest common supersequences have no polynomial algorithm; cascades are short enough.
    """
    ways = (Direction.UP, Direction.DOWN)
    alternating = (
        tuple(itertools.islice(itertools.cycle(start), length))
        for length in range(least, least + 2 * len(incoming) + 3)
        for start in (ways, ways[::-1])
    )

    def fits(order: tuple[Direction, ...]) -> bool:
        return _place(dependence, counted, incoming, order) is not None

    bound = next(filter(fits, alternating), None)
    if bound is None:
        raise EinfuseError(
            f"{dependence.cascade.name}: no order of directions holds all Einsums: a recurrence "
            "has to sweep upwards and downwards at once; write it along one direction"
        )
    for length in range(least, len(bound)):
        if 2**length > SEARCH_LIMIT:
            return bound, False
        if order := next(filter(fits, itertools.product(ways, repeat=length)), None):
            return order, True
    return bound, True


def _turns(dependence: Dependence, what: str) -> tuple[Barrier, Barrier]:
    """Return the first Einsums that sweep in opposite directions, both ways round."""
    up, down = (dependence.directions.index(way) for way in (Direction.UP, Direction.DOWN))
    names = {i: dependence.einsums[i].name for i in (up, down)}
    reason = f"{names[up]} has to sweep upwards and {names[down]} downwards: no sweep serves both"
    one, other = sorted((up, down))
    return (
        Barrier(names[one], names[other], what, reason),
        Barrier(names[other], names[one], what, reason),
    )


def _critical_path(counted: frozenset[int], placed: _Placed) -> tuple[int, tuple[Edge, ...]]:
    """Return the Einsum that a path to the last pass starts with, and the path's edges."""
    here = max(sorted(counted), key=lambda i: placed.positions[i], default=0)
    edges: list[Edge] = []
    seen = {here}
    while (edge := placed.causes[here]) is not None:
        edges.append(edge)
        here = edge.producer
        if here in seen:
            break
        seen.add(here)
    return here, tuple(reversed(edges))


def _barrier(dependence: Dependence, edge: Edge) -> Barrier:
    return Barrier(
        dependence.einsums[edge.producer].name,
        dependence.einsums[edge.consumer].name,
        edge.tensor,
        edge.reason,
    )


def _slope(dependence: Dependence, counted: frozenset[int]) -> Count:
    """Return the passes that each generation adds: the greatest ratio of passes to generations.

    Every Einsum is two nodes: the pass it stands in, and the passes that must be complete before
    its value is. Newton's iteration on the ratio: while some cycle gains more passes than the
    ratio allows, take that cycle's own ratio.
    """
    n = len(dependence.einsums)
    arcs = [_Arc(i, n + i, 0, None) for i in counted]
    for edge in dependence.edges:
        x, y = edge.producer, edge.consumer
        arcs.append(_Arc(n + x, n + y, 0, edge))
        if not dependence.indexed[y]:
            arcs.append(_Arc(n + x, y, 0, edge))
        elif edge.barrier:
            arcs.append(_Arc(n + x, y, 1, edge))
        else:
            arcs.append(_Arc(x, y, 0, edge))
    ratio = Fraction(0)
    found: list[_Arc] = []
    while cycle := _gaining_cycle(2 * n, arcs, ratio):
        found = cycle
        names = dict.fromkeys(dependence.einsums[arc.target % n].name for arc in cycle)
        generations = sum(arc.generations for arc in cycle)
        if not generations:
            raise EinfuseError(
                f"{dependence.cascade.name}: {' -> '.join(names)} wait for each other: the value "
                "is needed within the sweep whose end completes it"
            )
        ratio = Fraction(sum(arc.passes for arc in cycle), generations)
    path = tuple(dict.fromkeys(dependence.einsums[arc.target % n].name for arc in found))
    barriers = tuple(_barrier(dependence, arc.edge) for arc in found if arc.edge and arc.passes)
    slope = ratio.numerator if ratio.denominator == 1 else ratio
    return Count(slope, path, barriers, grows=bool(found))


class _Arc(NamedTuple):
    """From node to node of `_slope`, with the passes that it adds."""

    source: int
    target: int
    passes: int
    edge: Edge | None

    @property
    def generations(self) -> int:
        return self.edge.generations if self.edge else 0


def _gaining_cycle(nodes: int, arcs: list[_Arc], ratio: Fraction) -> list[_Arc]:
    """Return a cycle that gains more than ``ratio`` passes a generation (Bellman-Ford), or []."""
    height = [Fraction(0)] * nodes
    via: dict[int, _Arc] = {}
    raised: _Arc | None = None
    for _ in range(nodes + 1):
        raised = None
        for arc in arcs:
            reached = height[arc.source] + arc.passes - ratio * arc.generations
            if reached > height[arc.target]:
                height[arc.target], via[arc.target], raised = reached, arc, arc
        if raised is None:
            return []
    assert raised is not None
    node = raised.target
    for _ in range(nodes):  # as many steps back end on the cycle
        node = via[node].source
    cycle = [via[node]]
    while cycle[-1].source != node:
        cycle.append(via[cycle[-1].source])
    return cycle[::-1]
