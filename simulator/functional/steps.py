"""The steps of loops, walked one by one: what of each rank the lanes have there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from einfuse.mapper import Loop

Steps = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a rank: the lane that has it (along this rank), the steps to it, its extent."""

    lane: Steps
    steps: Steps
    extent: int


Pieces = Mapping[str, tuple[Piece, ...]]
"""Of each rank, the pieces of the lanes side by side along it."""


def walk_steps(
    loops: Sequence[Loop], pieces: Pieces, exact: bool, path: Steps = ()
) -> Iterator[tuple[Steps, Pieces]]:
    """Yield the steps of the loops in time, and the pieces that the lanes have there.

    Args:
        loops: outer before inner.
        pieces: what there is of each rank above them.
        exact: cut ragged tiles to their size; else they count as whole ones.
        path: the steps above.

    >>> whole = {"M": (Piece((), (), 5),)}
    >>> found = walk_steps([Loop("M", 3, False, 2)], whole, exact=True)
    >>> [pieces["M"][0].extent for _, pieces in found]
    [2, 2, 1]
    """
    if not loops:
        yield path, pieces
        return
    for index, inner in take_loop(loops[0], pieces, exact):
        onward = path if index is None else (*path, index)
        yield from walk_steps(loops[1:], inner, exact, onward)


def take_loop(loop: Loop, pieces: Pieces, exact: bool) -> Iterator[tuple[int | None, Pieces]]:
    """Yield what a loop makes of pieces, step by step in time, or all at once in space (None)."""
    cuts = [list(_cut(piece, int(loop.tile), exact)) for piece in pieces[loop.rank]]
    if loop.parallel:
        side = [
            Piece((*part.lane, number), part.steps, part.extent)
            for cut in cuts
            for number, part in enumerate(cut)
        ]
        yield None, {**pieces, loop.rank: tuple(side)}
        return
    for step in range(max(map(len, cuts))):
        now = tuple(cut[step] for cut in cuts if step < len(cut))  # a lane that is done pauses
        yield step, {**pieces, loop.rank: now}


def _cut(piece: Piece, tile: int, exact: bool) -> Iterator[Piece]:
    for number, first in enumerate(range(0, piece.extent, tile)):
        extent = min(tile, piece.extent - first) if exact else tile
        yield Piece(piece.lane, (*piece.steps, number), extent)
