"""How many mappings a map space has, without walking them: sums over runs, products over pieces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from math import inf, prod

import numpy as np

from einfuse.mapper.grouped.forwarding import (
    Seat,
    State,
    Strands,
    find_bunches,
    forwardable,
    seats_of,
)
from einfuse.mapper.space.space import MapSpace, Structure
from einfuse.mapper.space.tile_sizes import block_tiles, group_tiles


def count_space(space: MapSpace) -> int:
    """Return the number of mappings, capacities left aside; those that cost the same count apart.

    >>> from einfuse.einsum.language.parser import parse
    >>> from einfuse.mapper.machine.architecture import load_architecture
    >>> text = "rank P\\ninput A[P]\\noutput Y\\nY[p] = A[p] + A[p]"
    >>> count_space(MapSpace(parse(text), load_architecture("flat"), {"P": 2}))
    256
    """
    return sum(_Sizing(space, sizes).count() for sizes in space.splits())


class _Sizing:
    """The size of a space at one choice of the open splits; what recurs is counted once."""

    def __init__(self, space: MapSpace, sizes: Mapping[str, int]) -> None:
        self.space, self.sizes = space, sizes
        self.homes = cache(self._homes)
        self.leaves = cache(self._leaves)
        self.runs = cache(self._runs)

    def count(self) -> int:
        """All paths through groups."""
        names = self.space.einsums
        after = [0] * len(names) + [1]
        for first in reversed(range(len(names))):
            after[first] = sum(
                after[last] * self.group(names[first:last])
                for last in range(first + 1, len(names) + 1)
                if after[last]
            )
        return after[0]

    def group(self, einsums: tuple[str, ...]) -> int:
        """The mappings of one group; the levels of tensors are free of each other."""
        (_, exchange), *faces = self.space.levels(einsums)
        structures = self.space.structures_at(einsums, 0, ())
        return len(exchange) * sum(self.structure(one, dict(faces)) for one in structures)

    def structure(self, structure: Structure, faces: Mapping[str, tuple[int, ...]]) -> int:
        """The mappings of a structure whose levels are open."""
        space, sizes, einsums = self.space, self.sizes, structure.einsums
        roles = space.roles(einsums)
        block_of = {n: b for b, block in enumerate(structure.blocks) for n in block}
        single = {r for r in structure.loops if space.loop_tiles(r, sizes[r], einsums) == (1,)}
        deepest = space.overlap_depth(einsums)
        total = 1
        for tensor, levels in faces.items():
            path, blocks = structure.loops, {block_of[n] for n in roles.touched_by[tensor]}
            if len(blocks) == 1:
                path = (*path, *structure.inner[min(blocks)])
            total *= sum(self.homes(tensor, level, path) for level in levels)
        bunches = find_bunches(structure)

        @cache
        def ways(bunch: tuple[int, ...], tiles: tuple[int, ...]) -> int:
            """The leaves of blocks at tiles of their loops, and the homes of what each touches."""
            inner = structure.inner[bunch[0]]
            names = tuple(name for number in bunch for name in structure.blocks[number])
            done = single | {r for r, tile in zip(inner, tiles, strict=True) if tile == 1}
            left = tuple(r for r in space.legality.order if sizes[r] > 1 and r not in done)
            may = forwardable(space, structure, bunch, sizes)
            each = self.runs(names, left, tuple((t, roles.touched_by[t]) for t in may))
            alone = (
                tensor
                for name in names
                for tensor in space.touched(name)
                if tensor in roles.outside and len(roles.touched_by[tensor]) == 1
            )
            path = (*structure.loops, *inner)
            for tensor in alone:
                each *= sum(self.homes(tensor, f, path) for f in space.face_levels(tensor))
            return each

        found = 0
        for points in group_tiles(space, structure, sizes):
            tiles = np.ones(1)
            for rank, column in points.items():
                tiles = tiles * np.ceil(sizes[rank] / column)
            # those at which its Einsums may overlap count twice
            often = len(tiles) + (0 if deepest is None else int((tiles > deepest).sum()))
            found += often * prod(
                sum(ways(b, own) for own in block_tiles(space, structure, b[0], sizes, points))
                for b in bunches
            )
        return total * found

    def _homes(self, tensor: str, face: int, path: tuple[str, ...]) -> int:
        """The chains of homes of a tensor down to a level."""
        depths = self.space.depths(tensor, path)
        return sum(1 for _ in self.space.chains(tensor, face, depths))

    def _leaves(self, name: str, ranks: tuple[str, ...]) -> Counter[Seat]:
        """How many ways there are to run an Einsum, by where they run."""
        return Counter(
            Seat(leaf.unit, frozenset(leaf.spatial)) for leaf in self.space.leaves(name, ranks)
        )

    def _runs(
        self,
        names: tuple[str, ...],
        left: tuple[str, ...],
        forwarded: tuple[tuple[str, tuple[str, ...]], ...],
    ) -> int:
        """The ways to run Einsums under the same loops, with what may be forwarded between them."""
        space, touched_by = self.space, dict(forwarded)
        own = {n: tuple(r for r in left if r in space.facts.einsums[n].ranks) for n in names}

        def count(name: str, seat: Seat | None) -> int:
            leaves = self.leaves(name, own[name])
            return leaves.total() if seat is None else leaves[seat]

        strands = Strands(
            touched_by,
            seats_of(space, touched_by, left),
            {tensor: (tensor,) for tensor in touched_by},
            dict.fromkeys(touched_by, 0),
            dict.fromkeys(space.architecture.units, inf),
        )

        @cache
        def after(state: State) -> int:
            return sum(
                prod(count(ready.einsum, ready.seat) for ready in decision.ready)
                * (after(decision.then) if decision.then else 1)
                for decision in strands.decide(state)
            )

        alone = prod(count(name, None) for name in names if name not in strands.einsums)
        return alone * (after(State()) if strands.seats else 1)
