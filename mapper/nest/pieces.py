"""The pieces of a mapping at many tile sizes at once: what an Einsum does, what a home moves.

The closed forms are those of `nest.reuse`, over the loops above a piece alone, so that
a piece is counted once for all mappings that have it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from einfuse.mapper.machine.formula import Values

from .coordinates import Coordinates
from .joint_transfers import Nested
from .loops import Loop, loop_in_time, moving_loops, product
from .reuse import Traffic, Work
from .transfers import ONE_MEMORY, Crossing, Sides, joint_crossing, whole_crossing
from .workload import EinsumFacts

NOTHING_APART: Mapping[str, str] = MappingProxyType({})
NOTHING_HELD: Mapping[str, Values] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Leaf:
    """An Einsum on a unit: its loops in time, outer to inner, and its ranks in space."""

    einsum: str
    unit: str
    order: tuple[str, ...]
    spatial: tuple[tuple[str, str], ...]  # rank, dimension
    pipelined: bool = False


@dataclass(frozen=True, slots=True)
class LeafCounts:
    """What an Einsum does: its work, the register traffic of a lane, words at tensors' homes.

    ``delivered`` are the words that go between a home and the lanes, and the lanes of each word.
    """

    work: Work
    registers: Traffic
    homes: Mapping[str, Traffic]
    delivered: tuple[tuple[Values, Values], ...] = ()


def count_leaf(
    einsum: EinsumFacts,
    leaf: Leaf,
    above: Sequence[Loop],
    tiles: Mapping[str, Values],
    lanes: Mapping[str, Values],
    sizes: Mapping[str, Values],
    retention: str,
    shares: Mapping[str, str] = NOTHING_APART,
    held: Mapping[str, Values] = NOTHING_HELD,
) -> LeafCounts:
    """Return what an Einsum does on a unit.

    Args:
        einsum: its facts.
        leaf: its loops.
        above: the loops of its group and block.
        tiles: the extent of each rank that they leave.
        lanes: the lanes of each dimension of the unit.
        sizes: the extent of every rank.
        retention: see `einfuse.mapper.nest.reuse`.
        shares: what the lanes of a dimension share, where it is not anything.
        held: tensors that are forwarded, where they are: those do not go to a home.
    """
    loops = [*above, *leaf_loops(leaf, tiles, lanes, shares)]
    steps = product(o.count for o in loops if not o.parallel)
    active = product(o.count for o in loops if o.parallel)
    operations: dict[str, Values] = {}
    per_point: dict[str, int] = {}
    for operation in einsum.operations:
        gone = einsum.ranks - operation.ranks
        done = product(o.count for o in loops if not o.parallel and o.rank not in gone)
        if gone:
            done = done / product(o.count for o in loops if o.parallel and o.rank in gone)
        operations[operation.name] = operations.get(operation.name, 0) + operation.times * done
        if operation.ranks == einsum.ranks:
            per_point[operation.name] = per_point.get(operation.name, 0) + operation.times
    work = Work(
        leaf.unit, steps, active, product(lanes.values()), operations, per_point, leaf.pipelined
    )
    reads: Values = 0.0
    writes: Values = 0.0
    homes: dict[str, Traffic] = {}
    delivered: list[tuple[Values, Values]] = []

    def at_home(tensor: str, more_reads: Values, more_writes: Values) -> None:
        known, part = homes.get(tensor, Traffic(0.0, 0.0)), share(tensor)
        homes[tensor] = Traffic(known.reads + part * more_reads, known.writes + part * more_writes)

    def share(tensor: str) -> Values:
        """1 where a tensor goes to a home, 0 where it is held."""
        return np.where(held[tensor], 0.0, 1.0) if tensor in held else 1.0

    operands = Sides("operands", lanes=True) if shares else ONE_MEMORY
    outputs = Sides("outputs", lanes=True) if shares else ONE_MEMORY
    for operand in einsum.operands:
        cross = _crossing(loops, {}, operand.visited, retention, sizes, operands, active)
        reads, writes = reads + steps, writes + share(operand.tensor) * cross.lane_words
        at_home(operand.tensor, cross.words, 0.0)
        lanes_of_each = active * cross.lane_words / cross.words
        delivered.append((share(operand.tensor) * cross.words, lanes_of_each))
    for output in einsum.outputs:
        cross = _crossing(loops, {}, output.visited, retention, sizes, outputs, active)
        reads = reads + steps - cross.lane_once
        returned = cross.lane_words - cross.lane_once
        writes = writes + steps + share(output.tensor) * returned
        at_home(output.tensor, cross.words - cross.once, cross.words)
        moved = share(output.tensor) * (2 * cross.words - cross.once)
        delivered.append((moved, active * cross.lane_words / cross.words))
    return LeafCounts(work, Traffic(reads, writes), homes, tuple(delivered))


def leaf_loops(
    leaf: Leaf,
    tiles: Mapping[str, Values],
    lanes: Mapping[str, Values],
    shares: Mapping[str, str] = NOTHING_APART,
) -> list[Loop]:
    """Return the loops of a leaf: waves and steps in time, then those in space."""
    width: dict[str, Values] = {}
    for rank, dimension in leaf.spatial:
        extent = np.asarray(tiles[rank])
        width[rank] = np.ceil(extent / np.ceil(extent / np.floor(lanes[dimension])))[()]
    in_time = [loop_in_time(rank, tiles[rank], width.get(rank, 1)) for rank in leaf.order]
    in_space = (Loop(r, width[r], True, 1, d, shares.get(d, "any")) for r, d in leaf.spatial)
    return [*in_time, *in_space]


@dataclass(frozen=True, slots=True)
class HomeCounts:
    """Words at a home, and at the one above it."""

    own: Traffic
    parent: Traffic


def count_home(
    above: Sequence[Loop],
    tiles: Mapping[str, Values],
    visited: Coordinates,
    written: bool,
    sizes: Mapping[str, Values],
    retention: str,
    beneath: Loop | None = None,
) -> HomeCounts:
    """Return what a home exchanges with the one above it.

    Args:
        above: the loops above the home.
        tiles: the extent of each rank in it.
        visited: what Einsums below read or write of it.
        written: whether an Einsum below makes it.
        sizes: the extent of every rank.
        retention: see `einfuse.mapper.nest.reuse`.
        beneath: a loop over a part of what lives there, if that part is all that stays.
    """
    cross = _crossing(above, tiles, visited, retention, sizes, beneath=beneath)
    if written:
        again = cross.words - cross.once
        return HomeCounts(Traffic(0.0, again), Traffic(again, cross.words))
    return HomeCounts(Traffic(0.0, cross.words), Traffic(cross.words, 0.0))


def _crossing(
    loops: Sequence[Loop],
    tiles: Mapping[str, Values],
    visited: Coordinates,
    retention: str,
    sizes: Mapping[str, Values],
    sides: Sides = ONE_MEMORY,
    active: Values = 1,
    beneath: Loop | None = None,
) -> Crossing:
    """The words beneath loops; those of a part alone where a loop over it stands beneath."""
    if visited.plain:
        every = loops if beneath is None else (*loops, beneath)
        moving = moving_loops(every, visited.ranks, retention)[: len(loops)]
        return whole_crossing(loops, tiles, visited.ranks, moving, sides)
    return joint_crossing(Nested(loops, tiles, sizes, retention), visited, sides, active)
