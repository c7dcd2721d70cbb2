"""How many mappings a map space has, without walking them: sums over runs, products over pieces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from math import inf, prod

import numpy as np

from .forwarding import Seat, State, Strands, find_bunches, find_strands
from .rules import block_tiles, group_tiles
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
    deepest = space.overlap_depth(structure.einsums)

    def homes(tensor: str, face: int, path: tuple[str, ...]) -> int:
        return sum(1 for _ in space.chains(tensor, face, space.depths(tensor, path)))

    total = 1
    shared = [t for t in roles.outside if len(roles.touched_by[t]) > 1]
    blocks_of = {t: {block_of[n] for n in roles.touched_by[t]} for t in shared}
    for tensor in shared:
        path = structure.loops
        if len(blocks_of[tensor]) == 1:
            path = (*path, *structure.inner[min(blocks_of[tensor])])
        total *= homes(tensor, faces[tensor], path)
    bunches = find_bunches(structure)

    @cache
    def ways(bunch: tuple[int, ...], tiles: tuple[int, ...]) -> int:
        """The leaves of blocks at tiles of their loops, and the homes of what they alone touch."""
        inner = structure.inner[bunch[0]]
        names = tuple(name for number in bunch for name in structure.blocks[number])
        path = (*structure.loops, *inner)
        done = single | {r for r, tile in zip(inner, tiles, strict=True) if tile == 1}
        left = tuple(r for r in space.legality.order if sizes[r] > 1 and r not in done)
        strands = find_strands(space, structure, bunch, sizes, left)
        each = _count_leaves(space, strands, names, left)
        for name in names:
            for tensor in space.touched(name):
                if tensor in roles.outside and len(roles.touched_by[tensor]) == 1:
                    each *= sum(homes(tensor, f, path) for f in space.face_levels(tensor))
        return each

    found = 0
    for points in group_tiles(space, structure, sizes):
        runs = np.ones(1)
        for rank, column in points.items():
            runs = runs * np.ceil(sizes[rank] / column)
        # those at which its Einsums may overlap count twice
        often = len(runs) + (0 if deepest is None else int((runs > deepest).sum()))
        found += often * prod(
            sum(ways(b, tiles) for tiles in block_tiles(space, structure, b[0], sizes, points))
            for b in bunches
        )
    return total * found


def _count_leaves(
    space: MapSpace, strands: Strands, names: tuple[str, ...], left: tuple[str, ...]
) -> int:
    """The ways to run the Einsums of blocks, with what may be forwarded between them."""
    strands = replace(strands, limits=dict.fromkeys(strands.limits, inf))

    def leaves(name: str, seat: Seat | None) -> int:
        ranks = tuple(r for r in left if r in space.facts.einsums[name].ranks)
        every = space.leaves(name, ranks)
        return sum(seat is None or seat.takes(leaf) for leaf in every)

    @cache
    def after(state: State) -> int:
        return sum(
            prod(leaves(ready.einsum, ready.seat) for ready in decision.ready)
            * (after(decision.then) if decision.then else 1)
            for decision in strands.decide(state)
        )

    alone = prod(leaves(name, None) for name in names if name not in strands.einsums)
    return alone * (after(State()) if strands.seats else 1)
