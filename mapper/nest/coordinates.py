"""The coordinates of a tensor that accesses visit, and how many of them are distinct.

An access has a *subscript* for each dimension of the tensor behind it (views are looked through).
Where each point of its ranks has a coordinate of its own (``p``, ``m1*M0+m0``), it visits as many
as there are points; a window (``p+w``), a stride or a division visits fewer, and a gather as many
as there are points, but no more than the dimension has coordinates.

Accesses that differ in constants alone (``X[k]``, ``X[k+1]``) are one *part* of what is read. What
two parts have in common is known where each point of them has a coordinate of its own; else it is
taken for nothing, so that no count is too low.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from itertools import product as combinations

import numpy as np

from einfuse.mapper.machine.formula import Values

from .loops import product

Extents = Mapping[str, Values]
Sum = tuple[tuple[Values, frozenset[str]], ...]
"""How many coordinates there are: the sum of numbers times the extents of some ranks."""


@dataclass(frozen=True, slots=True)
class Subscript:
    """The index of an access along one dimension.

    Attributes:
        ranks: it depends on them.
        size: the rank that the dimension has.
        distinct: whether each point of its ranks has a coordinate of its own.
        first: whether these are the first coordinates, in the order of the points.
        strides: how far a step along each rank goes; None where that is no whole number.
        offsets: the constants that are added to it.
        origin: what else is added, as text.
    """

    ranks: tuple[str, ...]
    size: str = ""
    distinct: bool = True
    first: bool = True
    strides: tuple[int, ...] | None = None
    offsets: tuple[int, ...] = (0,)
    origin: str = ""

    def sums(self, sizes: Extents) -> list[Sum]:
        """Return sums of which the least is how many coordinates there are in a tile.

        >>> window = Subscript(("P", "W"), "X", distinct=False, strides=(1, 1))
        >>> tile = {"P": 4, "W": 3}
        >>> [int(evaluate(found, tile)) for found in window.sums({"X": 99})]
        [12, 6, 99]
        """
        found: list[Sum] = [((len(self.offsets), frozenset(self.ranks)),)]
        if self.distinct:
            return found
        if self.strides is not None:
            strides = tuple(map(abs, self.strides))
            steps = tuple((n, frozenset({r})) for r, n in zip(self.ranks, strides, strict=True))
            rest = 1 + self.offsets[-1] - self.offsets[0] - sum(strides)
            found.append((*steps, (rest, frozenset())))
        if self.size in sizes:
            found.append(((sizes[self.size], frozenset()),))
        return found

    def count(self, extents: Extents, sizes: Extents) -> Values:
        """Return how many coordinates there are in a tile."""
        if self.distinct:
            return product(extents[rank] for rank in self.ranks)
        return least(evaluate(found, extents) for found in self.sums(sizes))


Part = tuple[Subscript, ...]
"""The subscripts of an access, one for each dimension."""


@dataclass(frozen=True, slots=True)
class Coordinates:
    """What accesses visit of a tensor.

    Attributes:
        parts: of accesses that differ in more than constants.
        ranks: they depend on them.
        plain: whether it is one part, and each point of its ranks has coordinates of its own.
        comparable: whether it is known what parts have in common.
    """

    parts: tuple[Part, ...]
    ranks: frozenset[str]
    plain: bool
    comparable: bool

    def without(self, ranks: Iterable[str]) -> Coordinates:
        """Return it for one coordinate of some ranks.

        >>> of_ranks(frozenset("PM")).without("M").ranks
        frozenset({'P'})
        """
        gone = frozenset(ranks) & self.ranks
        if not gone:
            return self
        return find_coordinates(frozenset(tuple(_cut(s, gone) for s in p) for p in self.parts))

    def words(self, extents: Extents, sizes: Extents) -> Values:
        """Return the most words of a tile, wherever it stands.

        >>> one, other = ((Subscript((rank,), "N"),) for rank in "PM")
        >>> both = find_coordinates(frozenset({one, other}))
        >>> sizes = {"N": 8, "P": 8, "M": 8}
        >>> [int(both.words({"P": p, "M": 3}, sizes)) for p in (2, 8)]
        [5, 8]
        """
        if self.plain:
            return product(extents[rank] for rank in sorted(self.ranks))
        every = [part_words(part, extents, sizes) for part in self.parts]
        if len(every) == 1:
            return every[0]
        whole = {r: np.maximum(sizes[r], extents[r]) for r in self.ranks}
        box: Values = 1
        for subscripts in zip(*self.parts, strict=True):
            own = dict.fromkeys(subscripts)
            most = [subscript.count(whole, sizes) for subscript in own]
            together = sum(subscript.count(extents, sizes) for subscript in own)
            box = box * np.minimum(together, np.maximum.reduce(np.broadcast_arrays(*most)))
        return np.minimum(sum(every), box)[()]


def part_words(part: Part, extents: Extents, sizes: Extents) -> Values:
    """Return the words of a part's tile: no more than the tile has points."""
    points = {rank for subscript in part for rank in subscript.ranks}
    return least(
        (
            product(subscript.count(extents, sizes) for subscript in part),
            product(extents[rank] for rank in sorted(points)) * shifts(part),
        )
    )


def part_sums(part: Part, sizes: Extents) -> list[Sum]:
    """Return sums of which the least are the words of a part's tile."""
    ranks = [rank for subscript in part for rank in subscript.ranks]
    found: list[Sum] = [((shifts(part), frozenset(ranks)),)]
    if len(set(ranks)) < len(ranks):  # along a diagonal
        return found
    for chosen in combinations(*(subscript.sums(sizes) for subscript in part)):
        terms: Sum = ((1, frozenset()),)
        for terms_of_one in chosen:
            terms = tuple((a * b, r | s) for a, r in terms for b, s in terms_of_one)
        found.append(terms)
    return found


def shifts(part: Part) -> int:
    """Return how many accesses the offsets of a part stand for at most."""
    found = 1
    for subscript in part:
        found *= len(subscript.offsets)
    return found


def evaluate(terms: Sum, extents: Extents) -> Values:
    """Return a sum at some extents."""
    return sum(times * product(extents[rank] for rank in ranks) for times, ranks in terms)


def least(values: Iterable[Values]) -> Values:
    """Return the least of numbers or arrays."""
    first, *others = values
    for other in others:
        first = np.minimum(first, other)[()]
    return first


@lru_cache(maxsize=4096)
def find_coordinates(accesses: frozenset[Part]) -> Coordinates:
    """Return what accesses visit, those that differ in constants alone as one part."""
    alike: dict[Part, list[Part]] = {}
    for access in sorted(accesses, key=repr):
        bare = tuple(replace(subscript, offsets=(0,), first=True) for subscript in access)
        alike.setdefault(bare, []).append(access)
    parts = tuple(_joined(own) for own in alike.values())
    ranks = frozenset(rank for part in parts for subscript in part for rank in subscript.ranks)
    comparable = len({len(part) for part in parts}) == 1
    every: list[str] = []
    for subscripts in zip(*parts, strict=False):
        own = dict.fromkeys(subscripts)
        comparable &= len(own) == 1 or all(subscript.first for subscript in own)
        comparable &= all(subscript.distinct for subscript in own)
        every += [rank for subscript in own for rank in subscript.ranks]
    comparable &= len(set(every)) == len(every)  # no rank stands in two places
    return Coordinates(parts, ranks, comparable and len(parts) == 1, comparable)


@lru_cache(maxsize=4096)
def of_ranks(ranks: frozenset[str]) -> Coordinates:
    """Return those of a tensor that is named by its ranks."""
    return find_coordinates(frozenset({tuple(Subscript((r,)) for r in sorted(ranks))}))


def _joined(accesses: list[Part]) -> Part:
    """Accesses that differ in constants as one: of a single rank, neighbours visit common ones."""
    if len(accesses) == 1:
        return accesses[0]
    joined: list[Subscript] = []
    for subscripts in zip(*accesses, strict=True):
        offsets = tuple(sorted(set(chain.from_iterable(s.offsets for s in subscripts))))
        alone = len(offsets) == 1
        joined.append(
            replace(
                subscripts[0],
                offsets=offsets,
                distinct=subscripts[0].distinct and alone,
                first=subscripts[0].first and alone,
            )
        )
    return tuple(joined)


def _cut(subscript: Subscript, gone: frozenset[str]) -> Subscript:
    kept = [n for n, rank in enumerate(subscript.ranks) if rank not in gone]
    if len(kept) == len(subscript.ranks):
        return subscript
    strides = subscript.strides
    single = len(kept) < 2 and len(subscript.offsets) == 1 and (strides is not None or not kept)
    return replace(
        subscript,
        ranks=tuple(subscript.ranks[n] for n in kept),
        strides=None if strides is None else tuple(strides[n] for n in kept),
        distinct=subscript.distinct or single,
        first=False,
    )
