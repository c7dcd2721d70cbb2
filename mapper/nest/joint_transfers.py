"""The words between a storage and its parent where accesses visit common coordinates.

What is read along two ranks (``X[p] * X[m]``) is one tile of several parts. A part that a step does
not move stays; what comes is what no other part has there. So the words are those of each part,
less what parts have in common, by inclusion and exclusion; and no more than a whole tile each time
that any part moves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from einfuse.mapper.machine.formula import Values

from .coordinates import Coordinates, Part, least, part_sums
from .loops import Loop, by_rank, count_pieces, moving_loops, product

Spread = Callable[[Loop], bool]
"""Whether each index of a loop in space has words of its own."""


@dataclass(frozen=True, slots=True)
class Nested:
    """Loops above a storage, at a shape.

    Attributes:
        loops: outer before inner.
        tiles: the extent of each rank in the storage; 1 where it is left out.
        sizes: the extent of every rank.
        retention: "trailing" or "explicit".
        exact: whether ragged tiles are cut to their true sizes.
    """

    loops: Sequence[Loop]
    tiles: Mapping[str, Values]
    sizes: Mapping[str, Values]
    retention: str
    exact: bool = False

    def total(self, rank: str) -> Values:
        """The extent of a rank over the whole run."""
        if self.exact:
            return self.sizes[rank]
        own = (loop.count for loop in self.loops if loop.rank == rank)
        return self.tiles.get(rank, 1) * product(own)

    def pieces(self, rank: str, moves: Sequence[Values] | bool | None, spread: Spread) -> Values:
        """How many tiles of a rank there are; see `count_pieces`."""
        own = [loop for loop in self.loops if loop.rank == rank]
        if self.exact:
            return count_pieces(self.sizes[rank], own, moves, spread=spread)
        found: Values = 1
        for number, loop in enumerate(own):
            each = moves[number] if isinstance(moves, Sequence) else bool(moves)
            each = spread(loop) if loop.parallel else each
            found = found * np.where(each, loop.count, 1)
        return found

    def moves(self, ranks: frozenset[str]) -> Mapping[str, list[Values]]:
        """Of each rank, whether a step of each of its loops brings other words in."""
        found: dict[str, list[Values]] = {rank: [] for rank in by_rank(self.loops)}
        every = moving_loops(self.loops, ranks, self.retention)
        for loop, moving in zip(self.loops, every, strict=True):
            found[loop.rank].append(moving)
        return found

    def strided(self, loop: Loop) -> bool:
        """Whether the lanes of a loop in space have tiles that do not touch."""
        inside = self.loops[next(n for n, o in enumerate(self.loops) if o is loop) + 1 :]
        return any(
            o.rank == loop.rank and not o.parallel and bool(np.any(np.asarray(o.count) > 1))
            for o in inside
        )


def joint_words(
    nested: Nested, coordinates: Coordinates, apart: Spread, *, once: bool = False
) -> Values:
    """Return the words between a storage and its parent over the run.

    Args:
        nested: the loops above the storage.
        coordinates: what is visited there.
        apart: which loops in space have words of their own, though what is visited is the same.
        once: count each word once for those that are apart.
    """
    parts = sum(_part_words(nested, part, apart, once) for part in coordinates.parts)
    if len(coordinates.parts) == 1:
        return parts
    if coordinates.comparable:
        for number in range(2, len(coordinates.parts) + 1):
            for own in combinations(coordinates.parts, number):
                parts = parts - (-1) ** number * _common_words(nested, own, apart, once)
    return np.minimum(parts, _whole_words(nested, coordinates, apart, once))[()]


def _merged(nested: Nested, apart: Spread) -> Spread:
    """Which lanes have tiles of their own: the others make one tile side by side."""
    return lambda loop: apart(loop) or nested.strided(loop)


def _others(nested: Nested, ranks: frozenset[str], apart: Spread, once: bool) -> Values:
    """How often words that depend on some ranks come, for the loops over other ranks."""
    moves = nested.moves(ranks)
    return product(
        nested.pieces(rank, None if once else moves[rank], apart)
        for rank in moves
        if rank not in ranks
    )


def _part_words(nested: Nested, part: Part, apart: Spread, once: bool) -> Values:
    """The words of one part, whatever the others have."""
    ranks = frozenset(rank for subscript in part for rank in subscript.ranks)
    merged = apart if once else _merged(nested, apart)
    every = []
    for terms in part_sums(part, nested.sizes):
        total: Values = 0
        for times, kept in terms:
            total = total + times * product(
                nested.total(rank) if rank in kept else nested.pieces(rank, not once, merged)
                for rank in sorted(ranks)
            )
        every.append(total)
    return least(every) * _others(nested, ranks, apart, once)


def _common_words(nested: Nested, parts: Sequence[Part], apart: Spread, once: bool) -> Values:
    """The words that comparable parts have in common: each coordinate comes up once in each."""
    ranks = frozenset(rank for part in parts for subscript in part for rank in subscript.ranks)
    words: Values = 1
    for subscripts in zip(*parts, strict=True):
        own = dict.fromkeys(subscripts)
        words = words * least(product(map(nested.total, s.ranks)) for s in own)
    return words * _others(nested, ranks, apart, once)


def _whole_words(nested: Nested, coordinates: Coordinates, apart: Spread, once: bool) -> Values:
    """The words if every part came whenever one does."""
    merged = _merged(nested, apart)
    extents: dict[str, Values] = {}
    for rank in coordinates.ranks:
        side = product(
            loop.count
            for loop in nested.loops
            if loop.rank == rank and loop.parallel and not merged(loop)
        )
        whole = nested.total(rank)
        extents[rank] = whole if once else np.minimum(nested.tiles.get(rank, 1) * side, whole)
    words = coordinates.words(extents, nested.sizes)
    if not once:
        words = words * product(
            nested.pieces(rank, True, merged) for rank in sorted(coordinates.ranks)
        )
    else:
        words = words * product(
            nested.pieces(rank, None, apart) for rank in sorted(coordinates.ranks)
        )
    return words * _others(nested, coordinates.ranks, apart, once)
