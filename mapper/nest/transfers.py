"""The words between a home and the one above it, by closed forms over the loops above the home."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from einfuse.mapper.machine.architecture import INSTANCES
from einfuse.mapper.machine.formula import Values

from .coordinates import Coordinates
from .joint_transfers import Nested, joint_words
from .loops import Loop, by_rank, count_pieces, moving_loops, product
from .reuse import Problem


@dataclass(frozen=True, slots=True)
class Sides:
    """Which loops in space make copies of what does not depend on them, on both sides.

    Attributes:
        kind: what crosses: operands or outputs.
        lanes: whether the home is in registers, which every lane has.
        instanced: whether it is at a memory that every instance of the unit has.
        above_instanced: whether the home above is.
    """

    kind: str = "operands"
    lanes: bool = False
    instanced: bool = False
    above_instanced: bool = False

    def above(self, loop: Loop) -> bool:
        """Whether the home above counts a word for each index of a loop in space."""
        over_instances = loop.dimension == INSTANCES
        apart = self.lanes or (self.instanced and over_instances)
        return (apart and loop.shares not in ("any", self.kind)) or (
            self.above_instanced and over_instances
        )

    def own(self, loop: Loop) -> bool:
        """Whether each index of a loop in space has a copy of the home."""
        return self.instanced and loop.dimension == INSTANCES


ONE_MEMORY = Sides()


@dataclass(frozen=True, slots=True)
class Crossing:
    """Words between a home and the one above it, over the whole run.

    ``once`` are the distinct ones among ``words``, as the home above counts them; ``own_words`` and
    ``own_once`` are those of all copies of a memory that has some; ``lane_words`` and ``lane_once``
    are those of one active lane, for registers.
    """

    words: Values
    once: Values
    own_words: Values
    own_once: Values
    lane_words: Values
    lane_once: Values


def whole_crossing(
    loops: Sequence[Loop],
    tiles: Mapping[str, Values],
    ranks: Collection[str],
    moving: Sequence[Values],
    sides: Sides = ONE_MEMORY,
) -> Crossing:
    """Return the words between a home and the one above it, ragged tiles counted as whole ones.

    Args:
        loops: those above the home, outer before inner.
        tiles: the extent of each rank in the home; 1 where it is left out.
        ranks: what lives in the home depends on them.
        moving: what `moving_loops` returns for it.
        sides: whether both homes are one, or one for each of some lanes.

    >>> loops = (Loop("M", 4, False, 8), Loop("E", 2, False, 1))
    >>> whole_crossing(loops, {"M": 8}, ("M",), moving_loops(loops, ("M",), "trailing")).words
    32
    """
    lane_once = product(tiles.get(rank, 1) for rank in ranks)
    loads: Values = 1
    copies: Values = 1
    above: Values = 1
    own: Values = 1
    for loop, moves in zip(loops, moving, strict=True):
        if loop.parallel:
            if loop.rank in ranks:
                copies = copies * loop.count
            elif sides is not ONE_MEMORY:
                above = above * loop.count if sides.above(loop) else above
                own = own * loop.count if sides.own(loop) else own
        elif loop.rank in ranks:
            lane_once = lane_once * loop.count
        elif moves is not False:
            loads = loads * (loop.count if moves is True else np.where(moves, loop.count, 1))
    once = own_once = lane_once * copies
    if sides is not ONE_MEMORY:
        once, own_once = once * above, once * own
    return Crossing(once * loads, once, own_once * loads, own_once, lane_once * loads, lane_once)


def exact_crossing(
    loops: Sequence[Loop],
    ranks: Collection[str],
    moving: Sequence[Values],
    sides: Sides,
    sizes: Mapping[str, Values],
    active: Values,
) -> Crossing:
    """Return the words between a home and the one above it, ragged tiles cut to their true sizes.

    Args:
        loops, ranks, moving, sides: as for `whole_crossing`.
        sizes: the extent of every rank.
        active: the lanes that share the work below.

    >>> loops = (Loop("M", 2, False, 8), Loop("E", 2, False, 1))
    >>> moving = moving_loops(loops, ("M",), "trailing")
    >>> int(exact_crossing(loops, ("M",), moving, ONE_MEMORY, {"M": 11, "E": 2}, 1).words)
    11
    """
    once = product(sizes[rank] for rank in ranks)
    sharing: tuple[Callable[[Loop], bool], ...] = (sides.above, sides.own, lambda loop: True)
    every, first = [once] * 3, [once] * 3  # above, at the home's copies, at all lanes
    for rank, chain in by_rank(loops).items():
        if rank not in ranks:
            moves = [m for loop, m in zip(loops, moving, strict=True) if loop.rank == rank]
            for place, spread in enumerate(sharing):
                more = count_pieces(sizes[rank], chain, moves, spread=spread)
                every[place] = every[place] * more
                more = count_pieces(sizes[rank], chain, None, spread=spread)
                first[place] = first[place] * more
    return Crossing(every[0], first[0], every[1], first[1], every[2] / active, first[2] / active)


def joint_crossing(
    nested: Nested, coordinates: Coordinates, sides: Sides = ONE_MEMORY, active: Values = 1
) -> Crossing:
    """Return the words between a home and the one above it, whatever is visited there.

    Args:
        nested: the loops above the home.
        coordinates: what the Einsums below visit of it.
        sides: as for `whole_crossing`.
        active: the lanes that share the work below.

    >>> from einfuse.mapper.nest.coordinates import Subscript, find_coordinates
    >>> loops = (Loop("P", 4, False, 2), Loop("M", 2, False, 4))
    >>> sizes = {"P": 8, "M": 8, "N": 8}
    >>> nested = Nested(loops, {"P": 2, "M": 4}, sizes, "trailing")
    >>> parts = [(Subscript((rank,), "N"),) for rank in "PM"]
    >>> both = find_coordinates(frozenset(parts))
    >>> int(joint_crossing(nested, both).words)  # 8 along P, 4 x 8 along M, 8 of them there already
    32
    """
    places = (sides.above, sides.own, lambda loop: True)
    words = [joint_words(nested, coordinates, apart) for apart in places]
    once = [joint_words(nested, coordinates, apart, once=True) for apart in places]
    if sides.lanes or sides.instanced:  # what one copy has another may lack
        alone = any(o.parallel and o.rank in coordinates.ranks for o in nested.loops)
        coordinates = replace(coordinates, comparable=coordinates.comparable and not alone)
        words[0] = joint_words(nested, coordinates, sides.above)
    return Crossing(words[0], once[0], words[1], once[1], words[2] / active, once[2] / active)


def find_crossing(
    problem: Problem,
    loops: Sequence[Loop],
    tiles: Mapping[str, Values],
    coordinates: Coordinates,
    sides: Sides,
    active: Values,
) -> Crossing:
    """Return the words between a home and the one above it, under a problem's rules.

    Args:
        problem: its retention, edges and sizes.
        loops, tiles, sides: as for `whole_crossing`.
        coordinates: what the Einsums below visit of it.
        active: the lanes that share the work below.
    """
    if not coordinates.plain:
        nested = Nested(loops, tiles, problem.sizes, problem.retention, problem.exact)
        return joint_crossing(nested, coordinates, sides, active)
    ranks = coordinates.ranks
    moving = moving_loops(loops, ranks, problem.retention)
    if problem.exact:
        return exact_crossing(loops, ranks, moving, sides, problem.sizes, active)
    return whole_crossing(loops, tiles, ranks, moving, sides)
