"""Accesses, tallied as every loop is walked, over all lanes at once (see `lanes`).

A home is visited at each step of the loops above it. Where it comes to another tile, the old one is
drained, if an Einsum below writes it, and the new one is fetched. A *block* is what of a tensor one
lane is given there, named by the steps that lead to it; lanes side by side that are given one block
share it in a memory, and have a copy each in their registers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from einfuse.mapper import (
    REGISTERS,
    Chain,
    Compute,
    Keep,
    Loop,
    MappingError,
    Nest,
    Operand,
    Traffic,
    computes_of,
    moving_loops,
)
from einfuse.simulator.cost.point import Point

from .lanes import Lanes, Seen, walk_lanes
from .steps import Piece, Pieces, Steps, walk_steps

LARGEST_STEPS = 1e11
"""The most steps of loops, times lanes, that are walked: twenty minutes of one core."""


@dataclass(slots=True, eq=False)
class Place:
    """A tensor at a memory or in registers, with the Einsums below that read and write it."""

    tensor: str
    level: str
    parent: Place | None
    loops: tuple[Loop, ...]
    keep: Keep | None = None
    readers: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    writers: list[tuple[str, frozenset[str]]] = field(default_factory=list)

    @property
    def ranks(self) -> list[str]:
        """The ranks of what lives here: those that its writer, else its readers, index."""
        return sorted(frozenset[str]().union(*(own for _, own in self.writers or self.readers)))

    @property
    def forwarded(self) -> bool:
        """Whether the unit that makes it fills it, and no home above."""
        return self.keep is not None and self.keep.forwarded


class Tally:
    """The homes of a mapping, and what goes in and out of them."""

    def __init__(self, point: Point, chains: Mapping[str, Chain], nest: Nest) -> None:
        self.point, self.chains, self.facts = point, chains, point.facts
        self.exact = point.design.edges == "exact"
        self.retention = point.design.retention
        self.found: dict[tuple[str, str, str], list[float]] = {}
        self.lanes: dict[str, int] = {}
        self.whole: dict[str, tuple[Piece, ...]] = {
            rank: (Piece((), (), int(size)),) for rank, size in point.sizes.items()
        }
        cascade, outer = self.facts.cascade, point.architecture.memories[0]
        ends = {self.facts.root(t) for t in (*cascade.inputs, *cascade.outputs)}
        self.roots = {t: Place(t, outer, None, ()) for t in ends if t in self.facts.ranks}
        self.kept: dict[tuple[str, int], Place] = {}
        self.homes: list[Place] = []
        self.computes = computes_of(nest)

        for step in self.computes:
            self.attach(step)

    def run(self) -> None:
        """Walk every Einsum's points and every home's visits."""
        for step in self.computes:
            self._compute(step)
        for home in self.homes:
            if home.parent is not None:
                self._move(home, home.parent)

    def attach(self, step: Compute) -> None:
        """Find the homes of what an Einsum reads and writes, its registers included."""
        chain, einsum = self.chains[step.einsum], self.facts.einsums[step.einsum]
        above = dict(self.roots)
        for own in chain.homes:
            parent = above.get(own.tensor)
            if own.streamed:
                continue
            if parent is not None and parent.keep is None and parent.level == own.level:
                continue  # it lives there anyway
            key = (own.tensor, id(own.keep))
            if key not in self.kept:
                loops = chain.loops[: own.depth]
                self.kept[key] = Place(own.tensor, own.level, parent, loops, own.keep)
                self.homes.append(self.kept[key])
            above[own.tensor] = self.kept[key]

        def register(used: Operand) -> Place | None:
            home = above.get(used.tensor)
            if home is None or home.level == REGISTERS:
                return home
            self.homes.append(Place(used.tensor, REGISTERS, home, chain.loops))
            return self.homes[-1]

        for operand in einsum.operands:
            if not {operand.name, operand.tensor} & set(step.forwarding):
                place = register(operand)
                while place is not None:
                    place.readers.append((step.einsum, operand.ranks))
                    place = None if place.forwarded else place.parent
        for output in einsum.outputs:
            place = register(output)
            while place is not None:
                place.writers.append((step.einsum, output.ranks - set(step.accumulating)))
                place = place.parent

    def _compute(self, step: Compute) -> None:
        """What the points of an Einsum read and write in the registers of their lanes."""
        chain, einsum = self.chains[step.einsum], self.facts.einsums[step.einsum]
        ranks = {loop.rank for loop in chain.loops}
        lanes = Seen(chain.loops, (), ranks)
        written = [output.ranks - set(step.accumulating) for output in einsum.outputs]
        summed = [Seen(chain.loops, own & ranks, ranks - own) for own in written]
        points, active, new = 0, 0, [0] * len(einsum.outputs)
        for found in self._lanes(chain.loops, [True] * len(chain.loops), ranks):
            points += prod(len(found[rank].piece) for rank in ranks)
            active += int(lanes.see(found).sum())
            for number, seen in enumerate(summed):
                new[number] += int(seen.see(found).sum())
        self.lanes[step.einsum] = active
        for operand in einsum.operands:
            self._add(step.einsum, operand.tensor, REGISTERS, reads=points)
        for number, output in enumerate(einsum.outputs):
            self._add(step.einsum, output.tensor, REGISTERS, points - new[number], points)

    def _move(self, home: Place, parent: Place) -> None:
        """What goes between a home and the one above it: all that is there, visit by visit.

        What is written here goes up, and comes back where it was here before: it is read above
        where it had arrived before, and filled here where it had been sent from here.
        """
        users = home.writers or home.readers
        if not users or (home.forwarded and not home.writers):
            return
        inside = home.level == REGISTERS
        ranks = {loop.rank for loop in home.loops} | set(home.ranks)
        others = ranks - set(home.ranks)
        written = bool(home.writers)
        arrived = Seen(home.loops, home.ranks if written else (), ())  # at the home above
        sent = Seen(home.loops, home.ranks, others) if inside and written else None  # from here
        fills = up_reads = up_writes = 0.0
        for found in self._lanes(home.loops, self._moving(home), ranks):
            words = float(prod(int(found[rank].extent.sum()) for rank in home.ranks))
            up = words * prod(len(np.unique(found[rank].step)) for rank in others)
            copies = words * prod(len(found[rank].lane) for rank in others) if inside else up
            if not written:
                fills += copies
                up_reads += up
                continue
            again = up - arrived.words(arrived.see(found), found)
            up_reads += again
            up_writes += up
            fills += again if sent is None else copies - sent.words(sent.see(found), found)
        stay = 1 - self._share(home)
        self._add(users[0][0], home.tensor, home.level, writes=fills)
        self._access(parent, users[0][0], stay * up_reads, stay * up_writes)

    def visit(self, home: Place) -> Iterator[tuple[object, Pieces]]:
        """Yield what tells the tiles of a home apart, and the pieces of it, at every visit."""
        moving = [
            moves
            for loop, moves in zip(home.loops, self._moving(home), strict=True)
            if not loop.parallel
        ]
        for path, pieces in self._visits(home.loops):
            if self.exact:
                yield tuple(k for k, moves in zip(path, moving, strict=True) if moves), pieces
            else:
                yield tuple(pieces[rank] for rank in home.ranks), pieces

    def _visits(self, loops: Sequence[Loop]) -> Iterator[tuple[Steps, Pieces]]:
        return walk_steps(loops, self.whole, self.exact)

    def _moving(self, home: Place) -> list[bool]:
        return [bool(moves) for moves in moving_loops(home.loops, home.ranks, self.retention)]

    def _lanes(
        self, loops: Sequence[Loop], moving: Sequence[bool], ranks: Collection[str]
    ) -> Iterator[Mapping[str, Lanes]]:
        sizes = {rank: int(self.point.sizes[rank]) for rank in ranks}
        return walk_lanes(loops, moving, sizes, self.exact)

    def _share(self, home: Place) -> float:
        spill = home.keep.spill if home.keep is not None else None
        return 0.0 if spill is None else float(spill.share.evaluate(self.point.scope))

    def _access(self, home: Place, einsum: str, reads: float, writes: float) -> None:
        self._add(einsum, home.tensor, home.level, reads, writes)
        if home.keep is not None and home.keep.spill is not None:
            share, level = self._share(home), home.keep.spill.level
            self._add(einsum, home.tensor, level, share * reads, share * writes)

    def _add(
        self, einsum: str, tensor: str, level: str, reads: float = 0, writes: float = 0
    ) -> None:
        entry = self.found.setdefault((einsum, tensor, level), [0.0, 0.0])
        entry[0] += reads
        entry[1] += writes


def tally(
    point: Point, chains: Mapping[str, Chain], nest: Nest
) -> dict[tuple[str, str, str], Traffic]:
    """Return the words read and written by (Einsum, tensor, level), as `Counts.traffic` does.

    Args:
        point: the design at a shape.
        chains: the loops above each Einsum.
        nest: the mapping, its conditions decided.

    Raises:
        MappingError: a shape with too many steps to walk.

    >>> from einfuse.mapper.design.design import load_design
    >>> from einfuse.mapper.nest.nest import select
    >>> from einfuse.simulator.events.simulation import prepare
    >>> tiny = {"array_2d.rows": 4, "array_2d.columns": 4, "array_1d.lanes": 4}
    >>> shape = {"B": 1, "H": 1, "M": 16, "P": 16, "E": 4, "F": 4}
    >>> prepared = prepare(load_design("fusemax"), shape, set=tiny)
    >>> nest = select(prepared.point.design.nest, prepared.point.scope)
    >>> found = tally(prepared.point, prepared.chains, nest)
    >>> counted = prepared.point.counts.traffic["QK", "K", "dram"]
    >>> found["QK", "K", "dram"].reads == int(counted.reads)
    True
    """
    check_steps(chains)
    found = Tally(point, chains, nest)
    found.run()

    def each(key: tuple[str, str, str]) -> float:
        return found.lanes[key[0]] if key[2] == REGISTERS else 1

    return {
        key: Traffic(reads / each(key), writes / each(key))
        for key, (reads, writes) in found.found.items()
    }


def is_walkable(point: Point) -> bool:
    """Tell whether the walk knows all that a mapping and its architecture say.

    It does not know instances, what lanes share, reads of what drains, copies, and words that
    several accesses have in common.
    """
    machine, storages = point.architecture, point.nest.storages
    plain = all(storage.moved.plain and not storage.copy for storage in storages)
    shared = any(machine.shares(unit) for unit in machine.units)
    return plain and not shared and not machine.instanced and point.design.drains == "free"


def check_steps(chains: Mapping[str, Chain]) -> None:
    """Refuse a shape with more steps, times lanes, than can be walked one by one."""
    steps = sum(prod(float(loop.count) for loop in chain.loops) for chain in chains.values())
    if steps > LARGEST_STEPS:
        raise MappingError(
            f"every point is worked on and every access tallied, {steps:.3g} steps of lanes, and "
            f"more than {LARGEST_STEPS:.0e} take too long: choose a smaller shape"
        )
