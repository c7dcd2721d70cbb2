"""Thread blocks on processors: the tiles that each walks over, and when the last one ends.

A block owns ``tile`` elements of a rank and sees, for element i, the elements j of the loop's rank
with i + below <= j <= i + above: causal masks and windows from either side. A tile of the loop that
no owned element sees is skipped, one that some do not see is *partial* and costs a whole tile and
its masking. Blocks go to slots in the order of the grid (or longest first), each to the slot that
is free first; static, block n goes to slot n modulo the slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

IN_ORDER, LONGEST_FIRST, STATIC = 0, 1, 2
ORDERS = {"in-order": IN_ORDER, "longest-first": LONGEST_FIRST, "static": STATIC}
UNBOUNDED = 2**60  # a side on which nothing is masked
_SCHEDULED = 2**12  # blocks that are placed one by one; the copies beyond repeat at a steady rate


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of a launch at each point of a flat array; counts are whole numbers."""

    owned: NDArray[np.int64]  # elements of the owned rank
    tile: NDArray[np.int64]  # of them a block
    looped: NDArray[np.int64]  # elements of the loop's rank
    step: NDArray[np.int64]  # of them a tile
    below: NDArray[np.int64]
    above: NDArray[np.int64]
    copies: NDArray[np.int64]
    density: NDArray[np.float64]  # part of the tiles that are kept
    split: NDArray[np.float64]  # blocks that share the tiles of one


@dataclass(frozen=True, slots=True)
class Tiles:
    """What all blocks walk over: tiles, partial ones among them, and the number of blocks."""

    tiles: NDArray[np.float64]
    partial: NDArray[np.float64]
    blocks: NDArray[np.float64]


def count_tiles(blocks: Blocks) -> Tiles:
    """Return the tiles of all blocks together.

    >>> one = lambda n: np.array([n], dtype=np.int64)
    >>> causal = Blocks(one(4), one(2), one(4), one(1), one(-UNBOUNDED), one(0), one(1),
    ...                 np.ones(1), np.ones(1))
    >>> count_tiles(causal)  # two keys and four; the last two of either are partial
    Tiles(tiles=array([6.]), partial=array([2.]), blocks=array([2.]))
    """
    counted: Any = _count
    return Tiles(*counted(*_columns(blocks)))


def find_makespan(
    blocks: Blocks,
    slots: NDArray[np.int64],
    tile_cycles: NDArray[np.float64],
    partial_cycles: NDArray[np.float64],
    block_cycles: NDArray[np.float64],
    order: str,
) -> NDArray[np.float64]:
    """Return the cycles until the last block ends.

    Args:
        blocks: the blocks.
        slots: that take blocks side by side (a processor has as many as blocks resident on it).
        tile_cycles: of a tile.
        partial_cycles: of a partial tile beyond a whole one.
        block_cycles: of a block beyond its tiles.
        order: "in-order", "longest-first" or "static".
    """
    makespans: Any = _makespans
    found: NDArray[np.float64] = makespans(
        *_columns(blocks),
        np.array(slots, dtype=np.int64),
        *_floats(tile_cycles, partial_cycles, block_cycles),
        ORDERS[order],
    )
    return found


def _columns(blocks: Blocks) -> tuple[Any, ...]:
    """The columns as arrays of one layout and kind, so that one compiled function takes them."""
    whole = ("owned", "tile", "looped", "step", "below", "above", "copies")
    counts = [np.array(getattr(blocks, name), dtype=np.int64) for name in whole]
    return (*counts, *_floats(blocks.density, blocks.split))


def _floats(*columns: Any) -> list[NDArray[np.float64]]:
    return [np.array(column, dtype=np.float64) for column in columns]


@njit(cache=True)
def _walk(
    number: int, owned: int, tile: int, looped: int, step: int, below: int, above: int
) -> tuple[int, int]:
    """The tiles of a block, and the partial ones among them."""
    first = number * tile
    last = min(first + tile, owned) - 1
    low, high = max(first + below, 0), min(last + above, looped - 1)
    if high < low:
        return 0, 0
    tiles = high // step - low // step + 1
    low_whole, high_whole = max(last + below, 0), min(first + above, looped - 1)
    whole = max((high_whole + 1) // step - -(-low_whole // step), 0)
    return tiles, tiles - min(whole, tiles)


@njit(cache=True)
def _count(
    owned: Any,
    tile: Any,
    looped: Any,
    step: Any,
    below: Any,
    above: Any,
    copies: Any,
    density: Any,
    split: Any,
) -> tuple[Any, Any, Any]:
    points = len(owned)
    tiles, partials, blocks = np.zeros(points), np.zeros(points), np.zeros(points)
    for n in range(points):
        number = -(-owned[n] // tile[n])
        total, partial = 0.0, 0.0
        for block in range(number):
            walked, cut = _walk(block, owned[n], tile[n], looped[n], step[n], below[n], above[n])
            total += np.ceil(walked * density[n])
            partial += np.ceil(cut * density[n])
        tiles[n] = total * copies[n]
        partials[n] = partial * copies[n]
        blocks[n] = np.ceil(number * copies[n] * split[n])
    return tiles, partials, blocks


@njit(cache=True)
def _push(heap: Any, work: float) -> None:
    """Give work to the slot that is free first: the root of a heap of end times."""
    end, place, slots = heap[0] + work, 0, len(heap)
    while True:
        child = 2 * place + 1
        if child >= slots:
            break
        if child + 1 < slots and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= end:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = end


@njit(cache=True)
def _place(works: Any, copies: int, slots: int, order: int) -> float:
    """The makespan of the works of one copy, ``copies`` times."""
    ends = np.zeros(slots)
    if order == STATIC:
        for n in range(copies * len(works)):
            ends[n % slots] += works[n % len(works)]
    elif order == LONGEST_FIRST:
        for work in np.sort(works)[::-1]:
            for _ in range(copies):
                _push(ends, work)
    else:
        for _ in range(copies):
            for work in works:
                _push(ends, work)
    return float(ends.max())


@njit(cache=True)
def _makespans(
    owned: Any,
    tile: Any,
    looped: Any,
    step: Any,
    below: Any,
    above: Any,
    copies: Any,
    density: Any,
    split: Any,
    slots: Any,
    tile_cycles: Any,
    partial_cycles: Any,
    block_cycles: Any,
    order: int,
) -> Any:
    found = np.zeros(len(owned))
    for n in range(len(owned)):
        number = -(-owned[n] // tile[n])
        works = np.empty(number)
        for block in range(number):
            walked, cut = _walk(block, owned[n], tile[n], looped[n], step[n], below[n], above[n])
            kept = np.ceil(np.ceil(walked * density[n]) / split[n])
            masked = np.ceil(np.ceil(cut * density[n]) / split[n])
            works[block] = kept * tile_cycles[n] + masked * partial_cycles[n] + block_cycles[n]
        repeats = int(np.ceil(copies[n] * split[n]))
        if works.max() == works.min():
            found[n] = -(-repeats * number // slots[n]) * works[0]
            continue
        some = min(repeats, max(_SCHEDULED // number, 1))
        found[n] = _place(works, some, slots[n], order)
        found[n] += (repeats - some) * works.sum() / slots[n]
    return found
