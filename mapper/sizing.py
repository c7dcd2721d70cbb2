"""How many mappings a map space has, without walking them: sums over runs, products over pieces."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import product

import numpy as np

from .space import MapSpace, Structure


def count_space(space: MapSpace) -> int:
    """Return the number of mappings, capacities left aside; those that cost the same count apart.

    >>> from einfuse.einsum.parser import parse
    >>> from einfuse.mapper.architecture import load_architecture
    >>> text = "rank P\\ninput A[P]\\noutput Y\\nY[p] = A[p] + A[p]"
    >>> count_space(MapSpace(parse(text), load_architecture("flat"), {"P": 2}))
    256
    """
    return sum(_count_paths(space, sizes) for sizes in space.splits())


def _count_paths(space: MapSpace, sizes: Mapping[str, int]) -> int:
    names = space.einsums

    @cache
    def after(first: int) -> int:
        if first == len(names):
            return 1
        return sum(
            after(last)
            * sum(count_structure(space, s, sizes) for s in space.structures(names[first:last]))
            for last in range(first + 1, len(names) + 1)
        )

    return after(0)


def count_structure(space: MapSpace, structure: Structure, sizes: Mapping[str, int]) -> int:
    """Return the number of mappings of one structure of a group."""
    roles = space.roles(structure.einsums)
    faces = dict(structure.faces)
    block_of = {n: b for b, block in enumerate(structure.blocks) for n in block}
    single = {
        r for r in structure.loops if space.loop_tiles(r, sizes[r], structure.einsums) == (1,)
    }
    total = _count_tiles(space, structure, sizes)

    def homes(tensor: str, face: int, path: tuple[str, ...]) -> int:
        return sum(1 for _ in space.chains(tensor, face, space.depths(tensor, path)))

    shared = [t for t in roles.outside if len(roles.touched_by[t]) > 1]
    blocks_of = {t: {block_of[n] for n in roles.touched_by[t]} for t in shared}
    for tensor in shared:
        path = structure.loops
        if len(blocks_of[tensor]) == 1:
            path = (*path, *structure.inner[min(blocks_of[tensor])])
        total *= homes(tensor, faces[tensor], path)
    for number, (block, inner) in enumerate(zip(structure.blocks, structure.inner, strict=True)):
        path = (*structure.loops, *inner)
        ways = 0
        for tiles in product(*(space.loop_tiles(r, sizes[r], block) for r in inner)):
            done = single | {r for r, tile in zip(inner, tiles, strict=True) if tile == 1}
            each = 1
            for name in structure.blocks[number]:
                ranks = tuple(
                    r
                    for r in space.legality.order
                    if r in space.facts.einsums[name].ranks - done and sizes[r] > 1
                )
                each *= sum(1 for _ in space.leaves(name, ranks))
                for tensor in space.touched(name):
                    if tensor in roles.outside and len(roles.touched_by[tensor]) == 1:
                        each *= sum(homes(tensor, f, path) for f in space.face_levels(tensor))
            ways += each
        total *= ways
    return total


def _count_tiles(space: MapSpace, structure: Structure, sizes: Mapping[str, int]) -> int:
    """The tile sizes of the group's loops; those at which its Einsums may overlap count twice."""
    tiles = np.ones(1)
    for rank in structure.loops:
        own = np.array(space.loop_tiles(rank, sizes[rank], structure.einsums))
        tiles = np.outer(tiles, np.ceil(sizes[rank] / own)).ravel()
    deepest = space.overlap_depth(structure.einsums)
    return len(tiles) + (0 if deepest is None else int((tiles > deepest).sum()))
