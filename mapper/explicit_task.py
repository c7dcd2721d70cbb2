"""One Einsum under ``explicit`` retention: its ranks, the levels for its tensors, and its lanes.

Ranks that the same tensors lack count together: a *group*. Costs are vectors, a number for each
column of the objective (`einfuse.mapper.objective`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from .architecture import INSTANCES
from .facts import EinsumFacts
from .tiling import tile_choices

Floats = NDArray[np.float64]
Spread = tuple[tuple[int, ...], ...]  # for each dimension, the lanes that each group takes


@dataclass(frozen=True, slots=True)
class Level:
    """A level between the outermost memory and the units, and what it holds.

    ``must`` and ``may`` are tensors of one Einsum; ``apart`` tells that every instance of the unit
    has its own.
    """

    name: str
    words: float
    apart: bool
    must: frozenset[str]
    may: frozenset[str]


@dataclass(frozen=True, slots=True)
class Lanes:
    """A dimension of the unit: its lanes, the tensors whose words they share, and what spreads.

    ``spreads`` are the ranks over which a loop in space may run along it.
    """

    name: str
    count: int
    sharing: frozenset[str]
    spreads: frozenset[str]


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that the same tensors lack: outer to inner, their extents, and who lacks them."""

    ranks: tuple[str, ...]
    extents: tuple[int, ...]
    lacking: frozenset[str]

    @property
    def size(self) -> int:
        """Points of all ranks together."""
        return prod(self.extents)

    def tiles(self) -> tuple[int, ...]:
        """The tiles that nested loops over the ranks, one rank inside the other, may leave.

        >>> Group(("A", "B"), (2, 3), frozenset()).tiles()
        (1, 3, 6)
        """
        found, inner = {1}, 1
        for extent in reversed(self.extents):
            found |= {inner * d for d in tile_choices(extent, "divisors")}
            inner *= extent
        return tuple(sorted(found))

    def split(self, tile: int) -> dict[str, int]:
        """A tile of all ranks together as a tile of each."""
        found = {}
        for rank, extent in zip(reversed(self.ranks), reversed(self.extents), strict=True):
            own = extent if tile % extent == 0 else tile
            found[rank] = own
            tile //= own
        return found


@dataclass(frozen=True)
class Task:
    """An Einsum on a unit at given extents: everything that its cost depends on.

    Attributes:
        extents: of each rank, within one iteration of the loops that it shares with others.
        shared: how many iterations those make, for each rank that they run over.
        levels: those inside the outermost memory, outer to inner, registers last.
        roots: where each tensor comes from or goes to: -1 (outermost memory) or a level's number.
        feeding: for each tensor, whether it may feed the units from a level (-1: the outermost).
        prices: level and instances in use -> the columns of a word read and of a word written.
        work: lanes in use, and instances -> columns of the operations and of a lane's register
            words that no mapping changes, of a register word read, and of one written.
        drained: whether a home that sends its words up is read for it.
    """

    einsum: EinsumFacts
    unit: str
    pipelined: bool
    extents: Mapping[str, int]
    shared: Mapping[str, int]
    levels: tuple[Level, ...]
    lanes: tuple[Lanes, ...]
    roots: Mapping[str, int]
    feeding: Mapping[str, frozenset[int]]
    prices: Callable[[int, int], tuple[Floats, Floats]]
    work: Callable[[float, float], tuple[Floats, Floats, Floats]]
    drained: bool

    @cached_property
    def ranks(self) -> dict[str, frozenset[str]]:
        """The ranks of each tensor."""
        used = (*self.einsum.operands, *self.einsum.outputs)
        return {u.tensor: u.ranks for u in used}

    @cached_property
    def made(self) -> frozenset[str]:
        """What it writes."""
        return frozenset(o.tensor for o in self.einsum.outputs)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The ranks by who lacks them; those of one point left out."""
        found: dict[frozenset[str], list[str]] = {}
        for rank in sorted(self.einsum.ranks):
            if self.extents[rank] > 1:
                lacking = frozenset(t for t, ranks in self.ranks.items() if rank not in ranks)
                found.setdefault(lacking, []).append(rank)
        return tuple(
            Group(tuple(ranks), tuple(self.extents[r] for r in ranks), lacking)
            for lacking, ranks in sorted(found.items(), key=lambda item: sorted(item[0]))
        )

    def size(self, tensor: str) -> float:
        """Words of a tensor in one iteration of the shared loops."""
        return float(prod(self.extents[rank] for rank in self.ranks[tensor]))

    def times(self, tensor: str | None = None) -> float:
        """Iterations of the shared loops; those that a tensor depends on."""
        known = None if tensor is None else self.ranks[tensor]
        return float(prod(n for rank, n in self.shared.items() if known is None or rank in known))

    def instances(self, spread: Spread) -> int:
        """The instances of the unit that a spread uses."""
        ways = zip(self.lanes, spread, strict=True)
        return prod(prod(way) for lanes, way in ways if lanes.name == INSTANCES)


def spreads(task: Task) -> list[Spread]:
    """Return the ways to spread an Einsum over the lanes that use the most of them.

    Of those that differ only in which dimension has which lanes, where lanes share anything, one.
    """
    groups = task.groups
    tiles = [set(group.tiles()) for group in groups]
    every = frozenset(task.ranks)
    free = [d.name != INSTANCES and d.sharing == every for d in task.lanes]
    found: dict[Spread, Spread] = {}
    most = 0
    ways = [[(prod(way), way) for way in _along(d, groups, tiles)] for d in task.lanes]
    for chosen in product(*ways):
        used = prod(lanes for lanes, _ in chosen)
        if used < most:
            continue
        spread = tuple(way for _, way in chosen)
        together = tuple(map(prod, zip(*spread, strict=True))) if spread else ()
        if not all(n in own for n, own in zip(together, tiles, strict=False)):
            continue
        if used > most:
            found, most = {}, used
        rest = (way for way, anything in zip(spread, free, strict=True) if not anything)
        found.setdefault((together, *rest), spread)
    return list(found.values())


def _along(lanes: Lanes, groups: tuple[Group, ...], tiles: list[set[int]]) -> list[tuple[int, ...]]:
    """The lanes of a dimension that each group may take."""
    ways: list[tuple[int, ...]] = [()]
    for group, own in zip(groups, tiles, strict=True):
        able = sorted(own) if lanes.spreads >= set(group.ranks) else [1]
        ways = [(*way, n) for way in ways for n in able if prod(way) * n <= lanes.count]
    return ways
