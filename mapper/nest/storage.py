"""Storage nodes: a tensor at a level, its tiles, and the most words that are there at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from einfuse.mapper.machine.architecture import INSTANCES
from einfuse.mapper.machine.formula import Values

from .coordinates import Coordinates, find_coordinates, of_ranks
from .loops import Loop, count_pieces, moving_loops, product
from .nest import Keep, Nest, computes_of
from .reuse import REGISTERS, Problem
from .workload import Facts


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A tensor at a memory or in registers, with the Einsums below that read and write it.

    Attributes:
        tensor: the one behind views.
        level: a memory, or "registers".
        parent: the storage that it is filled from; None for the backing storage.
        loops: those above it, outer before inner.
        tiles: the extent of each rank in it.
        keep: the step of the mapping; None where it follows from an Einsum, or is implied.
        copies: how many tiles are there at once.
        spilled: the share of it that lives elsewhere.
        copy: the view that is copied here, if one is.
        own_words: those of its copies.
        place: the words of its place, which it may share with what it overlays.
        words: those beyond what it overlays.
        readers, writers: Einsums below, with what they visit; the walk over a nest fills them.
    """

    tensor: str
    level: str
    parent: Storage | None
    loops: tuple[Loop, ...]
    tiles: Mapping[str, Values]
    keep: Keep | None = None
    copies: Values = 1
    spilled: Values = 0
    copy: str = ""
    own_words: Values = 0
    place: Values = 0
    words: Values = 0
    readers: list[tuple[str, Coordinates]] = field(default_factory=list)
    writers: list[tuple[str, Coordinates]] = field(default_factory=list)

    @property
    def depth(self) -> int:
        """How many loops stand above it."""
        return len(self.loops)

    @property
    def forwarded(self) -> bool:
        """Whether it comes from the unit that makes it."""
        return self.keep is not None and self.keep.forwarded

    @property
    def streamed(self) -> bool:
        """Whether what is here only passes through."""
        return self.keep is not None and self.keep.streamed

    @property
    def overlaying(self) -> str | None:
        """The tensor with which it takes turns in one place."""
        return None if self.keep is None else self.keep.overlaying

    @property
    def moved(self) -> Coordinates:
        """What goes to and from its parent: what its writer, else its readers, visit."""
        every = dict.fromkeys(visited for _, visited in self.writers or self.readers)
        if len(every) == 1:
            return next(iter(every))
        parts = frozenset(part for visited in every for part in visited.parts)
        return find_coordinates(parts) if parts else of_ranks(frozenset())

    @property
    def outermost(self) -> Storage | None:
        """The storage that what is read here comes from; None if another unit makes it."""
        if self.forwarded:
            return None
        return self if self.parent is None else self.parent.outermost


def touched_below(facts: Facts, tensor: str, nest: Nest) -> bool:
    """Tell whether an Einsum of a nest reads or writes a tensor."""
    return bool(facts.accesses(tensor, (compute.einsum for compute in computes_of(nest))))


def tile_words(
    problem: Problem,
    level: str,
    visited: Coordinates,
    loops: Sequence[Loop],
    tiles: Mapping[str, Values],
) -> Values:
    """Return the words of what lanes side by side have at a level, of one lane in registers.

    Args:
        problem: its sizes, its edges, and the memories of which each instance has its own.
        level: a memory, or "registers".
        visited: what the Einsums below read and write there.
        loops: those above, outer before inner.
        tiles: the extent of each rank there.
    """

    def extent(rank: str) -> Values:
        own = [loop for loop in loops if loop.rank == rank]
        if level in problem.instanced:
            own = [replace(o, parallel=False) if o.dimension == INSTANCES else o for o in own]
        if level == REGISTERS or not any(loop.parallel for loop in own):
            return tiles[rank]
        if problem.exact:
            return count_pieces(problem.sizes[rank], own, None, spread=True, words=True)
        return tiles[rank] * product(o.count for o in own if o.parallel)

    return visited.words({rank: extent(rank) for rank in visited.ranks}, problem.sizes)


@dataclass(frozen=True, slots=True)
class Held:
    """The words that live at a level at once, and the tensors that they are of."""

    words: Values
    holders: tuple[tuple[str, Values], ...] = ()


Peak = Mapping[str, Held]  # of each level


def held_by(storages: Iterable[Storage]) -> Peak:
    """Return what storages take that are there together."""
    return together([{s.level: Held(s.words, ((s.tensor, s.words),))} for s in storages])


def together(peaks: Iterable[Peak]) -> Peak:
    """Return what is there at once of nests that run side by side.

    >>> together([{"buffer": Held(3)}, {"buffer": Held(4), "dram": Held(1)}])["buffer"].words
    7
    """
    total: dict[str, Held] = {}
    for peak in peaks:
        for level, held in peak.items():
            so_far = total.get(level, Held(0))
            total[level] = Held(so_far.words + held.words, (*so_far.holders, *held.holders))
    return total


def in_turn(peaks: Iterable[Peak]) -> Peak:
    """Return the most that is there at once of nests that run one after another.

    >>> int(in_turn([{"buffer": Held(3)}, {"buffer": Held(4), "dram": Held(1)}])["buffer"].words)
    4
    """
    longest: dict[str, Held] = {}
    for peak in peaks:
        for level, held in peak.items():
            so_far = longest.get(level, Held(0))
            larger = held if np.max(held.words) > np.max(so_far.words) else so_far
            longest[level] = Held(np.maximum(so_far.words, held.words), larger.holders)
    return longest


def staying(storages: Iterable[Storage], depth: int, retention: str) -> Peak:
    """Return what storages hold on to while the loops down to a depth go on.

    That is the tiles that ``trailing`` retention keeps over one of those loops.
    """
    if retention != "trailing" or not depth:
        return {}
    return together(
        {storage.level: Held(words, ((storage.tensor, words),))}
        for storage in storages
        if storage.keep is not None and np.any(words := _staying_words(storage, depth, retention))
    )


def _staying_words(storage: Storage, depth: int, retention: str) -> Values:
    moving = moving_loops(storage.loops, storage.moved.ranks, retention)
    stays: Values = False
    for loop, moves in zip(storage.loops[:depth], moving, strict=False):
        if not loop.parallel and moves is not True:
            stays = stays | (np.logical_not(moves) & (loop.count > 1))
    return np.where(stays, storage.words, 0)[()]
