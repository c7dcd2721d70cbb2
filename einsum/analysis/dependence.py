"""Dependences along one rank, as facts: who reads what how, and which barriers lie between.

See `lineage`, which finds them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import product

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.errors import EinfuseError

from .access_kinds import Kind
from .operations import is_view
from .partition import Partition


class Direction(Enum):
    """Which way an Einsum has to sweep."""

    ANY = "either way"
    UP = "upwards"
    DOWN = "downwards"


@dataclass(frozen=True, slots=True)
class Read:
    """An Einsum (by its position in the text) reads a tensor.

    ``gathered`` tells that a tensor of coordinates says where; ``mirrored`` that the order is
    reversed.
    """

    einsum: int
    tensor: str
    kind: Kind
    gathered: bool = False
    mirrored: bool = False


@dataclass(frozen=True, slots=True)
class Edge:
    """``consumer`` reads what ``producer`` writes, ``generations`` later.

    ``reason`` says in words why it is a barrier; it is empty where it is none.
    """

    producer: int
    consumer: int
    tensor: str
    kind: Kind
    reason: str = ""
    generations: int = 0

    @property
    def barrier(self) -> bool:
        """Whether the consumer waits for the producer's whole fiber."""
        return bool(self.reason)


@dataclass(frozen=True)
class Dependence:
    """The dependences of a cascade along one level of a rank; see `trace`.

    ``tiles`` are tensors of one tile; ``fixed`` those written at a fixed coordinate of the level;
    ``held`` pairs of Einsums of which the second reads the first at a fixed coordinate.
    """

    cascade: Cascade
    partition: Partition
    level: int
    indexed: tuple[bool, ...]
    reads: tuple[Read, ...]
    edges: tuple[Edge, ...]
    directions: tuple[Direction, ...]
    tiles: frozenset[str] = frozenset()
    fixed: frozenset[str] = frozenset()
    held: frozenset[tuple[int, int]] = frozenset()

    @property
    def einsums(self) -> tuple[Einsum, ...]:
        """The Einsums of the cascade, in the order of the text."""
        return self.cascade.einsums

    @cached_property
    def full(self) -> frozenset[str]:
        """The tensors that have the level and every finer one; those of a tile written out too."""
        levels = range(self.level, len(self.partition.levels))
        return self.tiles | frozenset(
            tensor.name
            for tensor in self.cascade.tensors
            if all(any(self.partition.covers_level(r, k) for r in tensor.ranks) for k in levels)
        )

    @property
    def sweepers(self) -> frozenset[int]:
        """The Einsums that are indexed and no mere names for what others sweep."""
        indexed = frozenset(i for i, indexed in enumerate(self.indexed) if indexed)
        return indexed - self.views

    @cached_property
    def views(self) -> frozenset[int]:
        """The Einsums that only rename, for others to read: they sweep nothing themselves."""
        return frozenset(
            i
            for i, e in enumerate(self.einsums)
            if e.name not in self.cascade.outputs and is_view(e) and len(e.operands) == 1
        )

    @property
    def roots(self) -> tuple[str, ...]:
        """The inputs that are full."""
        return tuple(name for name in self.cascade.inputs if name in self.full)

    def lineage(self, root: str) -> frozenset[str]:
        """Return the root and every full tensor computed from it element by element."""
        found = {root}
        pending = [root]
        while pending:
            tensor = pending.pop()
            for read in self._sweeping.get(tensor, ()):
                for output in self.einsums[read.einsum].outputs:
                    image = output.tensor in self.full - self.fixed
                    if image and output.tensor not in found:
                        found.add(output.tensor)
                        pending.append(output.tensor)
        return frozenset(found)

    def readers(self, root: str) -> frozenset[int]:
        """Return the Einsums whose sweep reads the fiber of a root, itself or its lineage."""
        found = {read.einsum for t in self.lineage(root) for read in self._sweeping.get(t, ())}
        return self.sweepers & found

    def barrier_between(self, x: str, y: str) -> Edge | None:
        """Return a barrier on a path between two Einsums, in either direction; None if none is.

        Einsums are named by the tensor they write. Two Einsums may share a loop over the level
        only where this is None.

        Raises:
            EinfuseError: the cascade has no such Einsum.
        """
        sources = self._named(x)
        targets = self._named(y)
        return self._barrier_on_path(sources, targets) or self._barrier_on_path(targets, sources)

    def can_share(self, x: str, y: str) -> bool:
        """Tell whether two Einsums may share a loop over the level: no barrier lies between."""
        ways = {self.directions[i] for i in self._named(x) | self._named(y)} - {Direction.ANY}
        pairs = {*product(self._named(x), self._named(y)), *product(self._named(y), self._named(x))}
        return len(ways) < 2 and pairs.isdisjoint(self.held) and not self.barrier_between(x, y)

    @cached_property
    def _sweeping(self) -> dict[str, list[Read]]:
        passing = {Kind.ALIGNED, Kind.PREFIX, Kind.SUFFIX, Kind.UNALIGNED}
        found: dict[str, list[Read]] = {}
        for read in self.reads:
            if self.indexed[read.einsum] and read.kind in passing:
                found.setdefault(read.tensor, []).append(read)
        return found

    @cached_property
    def _successors(self) -> dict[int, list[Edge]]:
        found: dict[int, list[Edge]] = {}
        for edge in self.edges:
            if not edge.generations:
                found.setdefault(edge.producer, []).append(edge)
        return found

    def _named(self, name: str) -> frozenset[int]:
        found = frozenset(
            i for i, e in enumerate(self.einsums) if any(o.tensor == name for o in e.outputs)
        )
        if not found:
            known = ", ".join(dict.fromkeys(e.name for e in self.einsums))
            raise EinfuseError(
                f"{self.cascade.name}: expected an Einsum, one of {known}; found {name!r}"
            )
        return found

    def _barrier_on_path(self, sources: frozenset[int], targets: frozenset[int]) -> Edge | None:
        """Search states (Einsum, the first barrier met) and stop at a target behind one."""
        first: dict[tuple[int, bool], Edge | None] = {(s, False): None for s in sources}
        pending = deque(first)
        while pending:
            state = pending.popleft()
            met = first[state]
            if met and state[0] in targets:
                return met
            for edge in self._successors.get(state[0], ()):
                behind = met or (edge if edge.barrier else None)
                if (step := (edge.consumer, behind is not None)) not in first:
                    first[step] = behind
                    pending.append(step)
        return None
