"""Which tiles of a structure's loops the constraints leave: relations, and the order of loops.

What a relation says of a block depends on the group's tiles as well, and so does what the order
says of a block's loop beneath a group's: where either has the whole rank, there is no such loop.
Tiles of a group's loops that leave each block the same tiles are worked on together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from .objective import Numbers
from .space import MapSpace, Structure

CHUNK = 2048  # points at a time

Mask = NDArray[np.bool_]


def group_tiles(
    space: MapSpace,
    structure: Structure,
    sizes: Mapping[str, int],
    infeasible: Counter[str] | None = None,
) -> Iterator[dict[str, Numbers]]:
    """Yield the tiles of a group's loops in arrays, all of an array with the same block tiles.

    Args:
        space: the mappings.
        structure: the loops.
        sizes: the size of every rank.
        infeasible: where to count what fell to which constraint.
    """
    axes = [
        np.array(space.loop_tiles(rank, sizes[rank], structure.einsums)) for rank in structure.loops
    ]
    grid = [axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")]
    for start in range(0, len(grid[0]) if grid else 1, CHUNK):
        points = {
            rank: column[start : start + CHUNK]
            for rank, column in zip(structure.loops, grid, strict=True)
        }
        if not _restricted(space):
            yield points
            continue
        for alike in _alike(space, structure, sizes, points, infeasible):
            yield {rank: column[alike] for rank, column in points.items()}


def block_tiles(
    space: MapSpace,
    structure: Structure,
    number: int,
    sizes: Mapping[str, int],
    points: Mapping[str, Numbers],
) -> list[tuple[int, ...]]:
    """Return the tiles of a block's loops at points that `group_tiles` gave."""
    every = _every(space, structure, number, sizes)
    if not _restricted(space):
        return every
    first = {rank: column[:1] for rank, column in points.items()}
    allowed = np.ones((len(every), 1), dtype=bool)
    for _, mask in _conditions(space, structure, number, sizes, first, every):
        allowed &= mask
    return [tiles for tiles, stays in zip(every, allowed[:, 0], strict=True) if stays]


def _restricted(space: MapSpace) -> bool:
    return bool(space.relations or space.constraints.order)


def _every(
    space: MapSpace, structure: Structure, number: int, sizes: Mapping[str, int]
) -> list[tuple[int, ...]]:
    block, ranks = structure.blocks[number], structure.inner[number]
    return list(product(*(space.loop_tiles(rank, sizes[rank], block) for rank in ranks)))


def _alike(
    space: MapSpace,
    structure: Structure,
    sizes: Mapping[str, int],
    points: Mapping[str, Numbers],
    infeasible: Counter[str] | None,
) -> list[NDArray[np.intp]]:
    """The points at which every block has tiles left, by the tiles that they leave."""
    count = len(next(iter(points.values()))) if points else 1
    fell: Counter[str] = Counter() if infeasible is None else infeasible
    alive = np.ones(count, dtype=bool)
    differing: list[Mask] = []
    for number in range(len(structure.blocks)):
        every = _every(space, structure, number, sizes)
        allowed = np.ones((len(every), count), dtype=bool)
        for reason, mask in _conditions(space, structure, number, sizes, points, every):
            if len(mask) == 1:  # it is the same for all tiles of the block
                gone = int((alive & ~mask[0]).sum())
                alive &= mask[0]
            else:
                gone = int((allowed & alive & ~mask).sum())
                allowed &= mask
            if gone:
                fell[reason] += gone
        alive &= allowed.any(axis=0)
        differing.append(allowed)
    found = np.flatnonzero(alive)
    if not len(found):
        return []
    patterns = np.packbits(np.concatenate(differing)[:, found], axis=0)
    _, kinds = np.unique(patterns, axis=1, return_inverse=True)
    kinds = kinds.reshape(-1)
    return [found[kinds == kind] for kind in dict.fromkeys(kinds.tolist())]


def _conditions(
    space: MapSpace,
    structure: Structure,
    number: int,
    sizes: Mapping[str, int],
    points: Mapping[str, Numbers],
    every: list[tuple[int, ...]],
) -> Iterator[tuple[str, Mask]]:
    """Each constraint on the tiles above a block, and where it holds: [tiles of the block, point].

    An axis on which it does not depend has one entry.
    """
    inner = structure.inner[number]
    tiles: dict[str, Numbers] = {rank: np.full((1, 1), size) for rank, size in sizes.items()}
    tiles |= {rank: column[None, :] for rank, column in points.items()}
    columns = zip(*every, strict=True)
    tiles |= {r: np.array(one)[:, None] for r, one in zip(inner, columns, strict=False)}
    ranks = [space.facts.einsums[name].ranks for name in structure.blocks[number]]
    for relation in space.relations:
        if any(relation.ranks <= own for own in ranks):
            yield f"relation {relation}", relation.holds(tiles)
    place = {rank: n for n, rank in enumerate(space.constraints.order)}
    for outer, beneath in combinations((*structure.loops, *inner), 2):
        if outer in place and beneath in place and place[outer] > place[beneath]:
            free = (tiles[outer] == sizes[outer]) | (tiles[beneath] == sizes[beneath])
            yield f"order {', '.join(space.constraints.order)}", free
