"""Where a nest keeps tensors, the words that takes, and how much of it is there at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from einfuse.mapper.machine.architecture import INSTANCES
from einfuse.mapper.machine.formula import Values

from .coordinates import Coordinates, find_coordinates, of_ranks
from .loops import Loop, count_pieces, moving_loops, product
from .nest import Keep, Nest, computes_of
from .reuse import REGISTERS, Problem
from .workload import Facts


@dataclass(slots=True, eq=False)
class Home:
    """A tensor at a memory or in registers, with the Einsums below that read and write it.

    ``place`` are the words of its place, which it may share with what it overlays; ``room`` those
    beyond what it overlays. ``copies`` tiles are there at once; ``spilled`` is the share of it that
    lives elsewhere. ``visited`` is what the Einsums below read and write of it, of a carried tensor
    in one generation; ``copy`` is the view that is copied here, if one is.
    """

    tensor: str
    level: str
    parent: Home | None
    loops: tuple[Loop, ...]
    tiles: Mapping[str, Values]
    keep: Keep | None = None
    copies: Values = 1
    spilled: Values = 0
    visited: Coordinates | None = None
    copy: str = ""
    place: Values = 0
    room: Values = 0
    readers: list[tuple[str, Coordinates]] = field(default_factory=list)
    writers: list[tuple[str, Coordinates]] = field(default_factory=list)

    @property
    def forwarded(self) -> bool:
        """Whether it comes from the unit that makes it."""
        return self.keep is not None and self.keep.forwarded

    @property
    def moved(self) -> Coordinates:
        """What goes to and from the home above: what its writer, else its readers, visit."""
        every = dict.fromkeys(visited for _, visited in self.writers or self.readers)
        if len(every) == 1:
            return next(iter(every))
        parts = frozenset(part for visited in every for part in visited.parts)
        return find_coordinates(parts) if parts else of_ranks(frozenset())

    @property
    def outermost(self) -> Home | None:
        """The home that what is read here comes from; None if another unit makes it."""
        if self.forwarded:
            return None
        return self if self.parent is None else self.parent.outermost


def touched_below(facts: Facts, tensor: str, nest: Nest) -> bool:
    """Tell whether an Einsum of a nest reads or writes a tensor."""
    return bool(facts.accesses(tensor, (compute.einsum for compute in computes_of(nest))))


def words_of(home: Home, problem: Problem) -> Values:
    """Return the words that a home takes: of a generational tensor, one generation."""
    visited = home.visited or problem.facts.visited(home.tensor, problem.facts.einsums)
    words = visited.words(
        {rank: _extent(home, rank, problem) for rank in visited.ranks}, problem.sizes
    )
    return words * home.copies * (1 - home.spilled)


def _extent(home: Home, rank: str, problem: Problem) -> Values:
    """How much of a rank the tiles have that lie side by side at a home."""
    own = [loop for loop in home.loops if loop.rank == rank]
    if home.level in problem.instanced:
        own = [replace(o, parallel=False) if o.dimension == INSTANCES else o for o in own]
    if home.level == REGISTERS or not any(loop.parallel for loop in own):
        return home.tiles[rank]
    if problem.exact:
        return count_pieces(problem.sizes[rank], own, None, spread=True, words=True)
    return home.tiles[rank] * product(o.count for o in own if o.parallel)


@dataclass(frozen=True, slots=True)
class Held:
    """The words that live at a level at once, and the tensors that they are of."""

    words: Values
    holders: tuple[tuple[str, Values], ...] = ()


Peak = Mapping[str, Held]  # of each level


def held_by(homes: Iterable[Home]) -> Peak:
    """Return what homes take that are there together."""
    return together([{home.level: Held(home.room, ((home.tensor, home.room),))} for home in homes])


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


def staying(homes: Iterable[Home], depth: int, retention: str) -> Peak:
    """Return what homes hold on to while the loops down to a depth go on.

    That is the tiles that ``trailing`` retention keeps over one of those loops.
    """
    if retention != "trailing" or not depth:
        return {}
    return together(
        {home.level: Held(words, ((home.tensor, words),))}
        for home in homes
        if home.keep is not None and np.any(words := _staying_words(home, depth, retention))
    )


def _staying_words(home: Home, depth: int, retention: str) -> Values:
    moving = moving_loops(home.loops, home.moved.ranks, retention)
    stays: Values = False
    for loop, moves in zip(home.loops[:depth], moving, strict=False):
        if not loop.parallel and moves is not True:
            stays = stays | (np.logical_not(moves) & (loop.count > 1))
    return np.where(stays, home.room, 0)[()]
