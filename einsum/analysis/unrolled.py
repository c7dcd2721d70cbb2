"""Cascades written out tile by tile: ``K[e, 0*M0+m0]``, ``K[e, 1*M0+m0]``, and so on.

An Einsum that reads one tile has no variable over the tiles, and yet a sweep over them has to
bring that tile by: it stands in the sweep at the coordinate of its tile. What it makes of the tile
is there from then on, for those that stand no earlier.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from einfuse.einsum.language.affine import linear
from einfuse.einsum.language.expression import Access

from .access_kinds import Sweep


@dataclass(frozen=True, slots=True)
class Tiles:
    """The tile at which each Einsum stands, None for most; and the tensors that are tiles."""

    at: tuple[int | None, ...]
    tensors: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(tile is not None for tile in self.at)


def tiles(sweeps: Sequence[Sweep]) -> Tiles:
    """Return the tiles of Einsums that have no variable over a level but spell out all of it."""
    none = Tiles((None,) * len(sweeps))
    if not sweeps:
        return none
    first = sweeps[0]
    family, level = first.family, first.level
    count = first.sizes[family.levels[level]]
    if level + 1 == len(family.levels):
        return none
    found: list[int | None] = []
    tensors: dict[str, int] = {}
    seen: set[int] = set()
    for sweep in sweeps:
        read = {own for a in sweep.einsum.operands if (own := tile_of(sweep, a)) is not None}
        seen |= read
        read |= {tensors[a.tensor] for a in sweep.einsum.operands if a.tensor in tensors}
        found.append(max(read) if read and sweep.variable is None else None)
        for output in sweep.einsum.outputs if found[-1] is not None else ():
            finer = range(level + 1, len(family.levels))
            ranks = first.ranks[output.tensor]
            if all(any(family.covers_level(r, k) for r in ranks) for k in finer):
                tensors[output.tensor] = max(read)
    known = getattr(count, "is_Integer", False)
    every = int(count) if known else max(2, len(seen))  # an open number is what is written out
    return Tiles(tuple(found), tensors) if seen == set(range(every)) else none


def tile_of(sweep: Sweep, access: Access) -> int | None:
    """Return the tile in which an access stays, if it names one: 2 for ``K[2*M0+m0]``."""
    for rank, index in sweep.dimensions(access):
        form = linear(index.expression, sweep.sizes)
        if form is None or not form.coefficients:
            continue
        ranks = {sweep.cascade.rank_of(v) for v in form.coefficients}
        levels = [sweep.family.covers.get(r, (0, 0)) for r in ranks]
        size = math.prod(
            sweep.sizes[part] for part in sweep.family.inside[sweep.family.levels[sweep.level]]
        ) / math.prod(sweep.sizes[part] for part in sweep.family.inside[rank])
        tile = form.constant / size
        whole = tile == 0 or getattr(tile, "is_Integer", False)
        if whole and all(start > sweep.level for start, _ in levels):
            return int(tile)
    return None
