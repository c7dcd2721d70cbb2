"""One Einsum under ``explicit`` retention: its ranks, the levels for its tensors, and its lanes.

Ranks that the same tensors lack count together: a *group*. Costs are vectors, a number for each
column of the objective (`einfuse.mapper.space.objective`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from einfuse.mapper.machine.architecture import INSTANCES
from einfuse.mapper.nest.workload import EinsumFacts
from einfuse.mapper.space.tiling import tile_choices

Floats = NDArray[np.float64]
Loops = tuple[tuple[str, int], ...]  # rank and tile of each, outer to inner
Spread = NDArray[np.int64]  # the lanes that each group takes along each dimension


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


@dataclass(frozen=True, slots=True)
class Prices:
    """What the words and the operations of an Einsum on a unit cost.

    Attributes:
        words: level and instances in use -> the columns of a word read and of a word written.
        work: lanes in use, and instances -> the columns of the operations, of a word of a lane's
            registers read, and of one written.
        delivered: lanes -> the columns of a word that goes to so many, [lanes, column].
        drained: whether a home that sends its words up is read for it.
    """

    words: Callable[[int, int], tuple[Floats, Floats]]
    work: Callable[[float, float], tuple[Floats, Floats, Floats]]
    delivered: Callable[[Floats], Floats]
    drained: bool


@dataclass(frozen=True)
class Task:
    """An Einsum on a unit at given extents: everything but prices that its cost depends on.

    Attributes:
        extents: of each rank, within one iteration of the loops that it shares with others.
        shared: how many iterations those make, for each rank that they run over.
        levels: those inside the outermost memory, outer to inner, registers last.
        roots: where each tensor comes from or goes to: -1 (outermost memory) or a level's number.
        feeding: for each tensor, whether it may feed the units from a level (-1: the outermost).
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


def spreads(task: Task, every: bool = False) -> NDArray[np.int64]:
    """Return the ways to spread an Einsum over the lanes that use the most of them, or every way.

    Of those that differ only in which dimension has which lanes, where lanes share anything, one.

    Returns:
        The lanes that each group takes along each dimension, [way, dimension, group].
    """
    groups = task.groups
    tiles = [np.array(group.tiles(), dtype=np.int64) for group in groups]
    found = np.ones((1, 0, len(groups)), dtype=np.int64)
    for lanes in task.lanes:
        ways = _along(lanes, groups, tiles)
        rows, columns = np.divmod(np.arange(len(found) * len(ways)), len(ways))
        found = np.concatenate([found[rows], ways[columns, None]], axis=1)
    together = found.prod(axis=1)
    fits = np.ones(len(found), dtype=bool)
    for own, known in zip(together.T, tiles, strict=True):
        fits &= np.isin(own, known)
    if not every:
        used = together.prod(axis=1)
        fits &= used == used[fits].max()
    found, together = found[fits], together[fits]
    tensors = frozenset(task.ranks)
    apart = [d.name == INSTANCES or d.sharing != tensors for d in task.lanes]
    told = np.concatenate([together[:, None], found[:, apart]], axis=1)
    _, first = np.unique(told.reshape(len(found), -1), axis=0, return_index=True)
    return np.asarray(found[np.sort(first)])


def _along(
    lanes: Lanes, groups: tuple[Group, ...], tiles: list[NDArray[np.int64]]
) -> NDArray[np.int64]:
    """The lanes of a dimension that each group may take, [way, group]."""
    ways = np.ones((1, 0), dtype=np.int64)
    for group, own in zip(groups, tiles, strict=True):
        able = own if lanes.spreads >= set(group.ranks) else np.ones(1, dtype=np.int64)
        rows, columns = np.nonzero(ways.prod(axis=1)[:, None] * able[None, :] <= lanes.count)
        ways = np.concatenate([ways[rows], able[columns, None]], axis=1)
    return ways
