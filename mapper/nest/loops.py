"""The loops above a node, and what follows from them alone.

Everything works on scalars and on arrays alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from einfuse.mapper.machine.formula import Values


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop above a node: over a rank, in time or in space, in tiles, of so many iterations."""

    rank: str
    count: Values
    parallel: bool
    tile: Values
    dimension: str = ""  # of a loop in space
    shares: str = "any"  # what its lanes share: any, operands, outputs, or none


def loop_in_time(rank: str, extent: Values, tile: Values) -> Loop:
    """Return a loop in time over an extent in tiles.

    >>> float(loop_in_time("M", 10, 4).count)
    3.0
    """
    return Loop(rank, ceil_divide(extent, tile), False, tile)


def moving_loops(loops: Sequence[Loop], ranks: Collection[str], retention: str) -> list[Values]:
    """Return for each loop whether a step of it brings another tile in: not if it is trailing.

    Args:
        loops: those above a home, outer before inner.
        ranks: what lives in the home depends on them.
        retention: "trailing" or "explicit".
    """
    trailing: Values = retention == "trailing"
    moving: list[Values] = []
    for loop in reversed(loops):
        if loop.parallel or loop.rank in ranks:
            moving.append(True)
            if not loop.parallel and trailing is not False:
                trailing = trailing & (loop.count == 1)
                trailing = trailing if np.ndim(trailing) else bool(trailing)
        else:
            moving.append(np.logical_not(trailing) if np.ndim(trailing) else not trailing)
    return moving[::-1]


def count_pieces(
    size: Values,
    loops: Sequence[Loop],
    moves: Sequence[Values] | bool | None,
    *,
    spread: Callable[[Loop], bool] | bool,
    words: bool = False,
) -> Values:
    """How many pieces nested loops over one rank of a size make, the ragged ones cut to size.

    Args:
        size: the extent that the loops share out.
        loops: outer before inner, tiles no larger than what they share out.
        moves: whether each loop in time makes pieces of its own (one for all; None: none does).
        spread: whether a loop in space makes a piece for each lane, or one for all.
        words: count the coordinates in the pieces instead of the pieces.
    """
    if not loops:
        return size if words else np.where(np.asarray(size) > 0, 1, 0)[()]
    loop, rest = loops[0], loops[1:]
    own, others = (moves[0], moves[1:]) if isinstance(moves, Sequence) else (bool(moves), moves)
    one = count_pieces(np.minimum(size, loop.tile), rest, others, spread=spread, words=words)
    if loop.parallel:
        own = spread(loop) if callable(spread) else spread
    if own is False:
        return one
    full = np.floor(np.asarray(size) / loop.tile)
    ragged = count_pieces(size - full * loop.tile, rest, others, spread=spread, words=words)
    every = full * count_pieces(loop.tile, rest, others, spread=spread, words=words) + ragged
    return every if own is True else np.where(own, every, one)


def by_rank(loops: Iterable[Loop]) -> dict[str, list[Loop]]:
    """Return the loops over each rank, in their order."""
    chains: dict[str, list[Loop]] = {}
    for loop in loops:
        chains.setdefault(loop.rank, []).append(loop)
    return chains


def product(factors: Iterable[Values]) -> Values:
    """Return the product of numbers or arrays, 1 where there are none."""
    result: Values = 1
    for factor in factors:
        result = result * factor
    return result


def ceil_divide(value: Values, by: Values) -> Values:
    """Return how many parts of a size it takes to cover a value."""
    return np.ceil(np.asarray(value) / by)[()]
