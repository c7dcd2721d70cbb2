"""What lanes have, as arrays: the steps of the inner loops taken together, the outer one by one.

A *piece* of a rank is what one lane has of it at one step; its number says where it lies. What is
counted by pieces does not depend on the order of steps, so that as many inner loops are taken
together as fill an array.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from einfuse.mapper import Loop

_Numbers = NDArray[np.int64]
_MOST = 1 << 24  # lane steps that are taken together


@dataclass(frozen=True, slots=True)
class Lanes:
    """Pieces of a rank: for each, where it lies, its lane along the rank, its step, its extent."""

    piece: _Numbers
    lane: _Numbers
    step: _Numbers
    extent: _Numbers

    @classmethod
    def whole(cls, size: int) -> Lanes:
        """A rank that one lane has at one step."""
        zero = np.zeros(1, np.int64)
        return cls(zero, zero, zero, np.array([size]))

    def spread(self, loop: Loop, exact: bool) -> Lanes:
        """All that a loop makes of the pieces; of one in time, its steps taken together."""
        parts = self.parts(loop)
        of = np.repeat(np.arange(len(parts)), parts)
        number = np.arange(len(of)) - np.repeat(np.cumsum(parts) - parts, parts)
        lane, step = self.lane[of], self.step[of]
        if loop.parallel:
            lane = lane * int(loop.count) + number
        else:
            step = step * int(loop.count) + number
        return self._cut(of, number, lane, step, loop, exact)

    def at(self, loop: Loop, step: int, exact: bool) -> Lanes:
        """What the lanes have at one step of a loop in time; a lane that is done pauses."""
        of = np.flatnonzero(self.parts(loop) > step)
        number = np.full(len(of), step)
        return self._cut(of, number, self.lane[of], self.step[of], loop, exact)

    def parts(self, loop: Loop) -> _Numbers:
        """How many parts a loop makes of each piece."""
        return -(-self.extent // int(loop.tile))

    def _cut(
        self, of: _Numbers, number: _Numbers, lane: _Numbers, step: _Numbers, loop: Loop,
        exact: bool,
    ) -> Lanes:  # fmt: skip
        tile = int(loop.tile)
        left = self.extent[of] - number * tile
        extent = np.minimum(left, tile) if exact else np.full(len(of), tile)
        return Lanes(self.piece[of] * int(loop.count) + number, lane, step, extent)


def walk_lanes(
    loops: Sequence[Loop], moving: Sequence[bool], sizes: Mapping[str, int], exact: bool
) -> Iterator[Mapping[str, Lanes]]:
    """Yield what the lanes have of each rank, over as many steps as are taken together.

    Args:
        loops: outer before inner.
        moving: of each loop, whether its steps count; of one that does not, the first is taken.
        sizes: rank -> size.
        exact: cut ragged tiles to their size; else they count as whole ones.

    >>> found = list(walk_lanes([Loop("M", 3, False, 2)], [True], {"M": 5}, exact=True))
    >>> found[0]["M"].extent.tolist()
    [2, 2, 1]
    """
    alone, together = len(loops), 1
    while alone:
        loop = loops[alone - 1]
        together *= int(loop.count) if moving[alone - 1] else 1
        if together > _MOST and not loop.parallel:
            break
        alone -= 1

    def walk(depth: int, lanes: Mapping[str, Lanes]) -> Iterator[Mapping[str, Lanes]]:
        if depth == len(loops):
            yield lanes
            return
        loop, own = loops[depth], lanes[loops[depth].rank]
        if moving[depth] and (loop.parallel or depth >= alone):
            yield from walk(depth + 1, {**lanes, loop.rank: own.spread(loop, exact)})
            return
        for step in range(int(own.parts(loop).max()) if moving[depth] else 1):
            yield from walk(depth + 1, {**lanes, loop.rank: own.at(loop, step, exact)})

    yield from walk(0, {rank: Lanes.whole(size) for rank, size in sizes.items()})


class Seen:
    """Which combinations of pieces, along some ranks, and lanes, along others, were seen.

    Args:
        loops: those that make the pieces.
        pieces: ranks whose pieces are told apart.
        lanes: ranks along which only lanes are.
    """

    def __init__(
        self, loops: Sequence[Loop], pieces: Collection[str], lanes: Collection[str]
    ) -> None:
        self.pieces, self.lanes = sorted(pieces), sorted(lanes)
        counts = [
            [int(loop.count) for loop in loops if loop.rank == rank and (loop.parallel or whole)]
            for ranks, whole in ((self.pieces, True), (self.lanes, False))
            for rank in ranks
        ]
        self.seen = np.zeros([prod(own) for own in counts], bool)

    def see(self, lanes: Mapping[str, Lanes]) -> NDArray[np.bool_]:
        """See what lanes have; return what of it is new, along ranks of pieces, then of lanes."""
        axes = [
            *(lanes[rank].piece for rank in self.pieces),
            *(np.unique(lanes[rank].lane) for rank in self.lanes),
        ]
        spans = [_span(axis) for axis in axes]
        at: tuple[slice | _Numbers, ...] = tuple(span for span in spans if span is not None)
        if len(at) < len(axes):
            at = np.ix_(*axes)
        new = ~self.seen[at]
        self.seen[at] = True
        return new

    def words(self, new: NDArray[np.bool_], lanes: Mapping[str, Lanes]) -> float:
        """How many words those are."""
        words = new.sum(axis=tuple(range(len(self.pieces), new.ndim)), dtype=float)
        for rank in reversed(self.pieces):
            words = words @ lanes[rank].extent
        return float(words)


def _span(numbers: _Numbers) -> slice | None:
    """The span of increasing numbers without a gap."""
    first, last = int(numbers[0]), int(numbers[-1])
    return slice(first, last + 1) if last - first + 1 == len(numbers) else None
