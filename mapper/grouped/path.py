"""The loops above a place of a mapping, at many tile sizes at once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from einfuse.mapper.machine.formula import Values
from einfuse.mapper.nest.loops import Loop, loop_in_time


@dataclass(frozen=True, eq=False)
class Path:
    """The loops above a place: ranks, loops, and the tiles that are left beneath each."""

    ranks: tuple[str, ...]
    loops: tuple[Loop, ...]
    tiles: tuple[Mapping[str, Values], ...]  # at every depth

    @cached_property
    def key(self) -> Hashable:
        """What tells it from others at the same sizes."""
        tiles = (np.asarray(one.tile) for one in self.loops)
        return (self.ranks, tuple((tile.shape, tile.tobytes()) for tile in tiles))

    def extend(self, rank: str, tile: Values) -> Path:
        """Return the path with one more loop."""
        left = self.tiles[-1]
        below = {**left, rank: tile}
        return Path(
            (*self.ranks, rank),
            (*self.loops, loop_in_time(rank, left[rank], tile)),
            (*self.tiles, below),
        )


@dataclass(frozen=True)
class Batch:
    """Tiles of a block's loops, and the path that has all of them at once."""

    tiles: tuple[tuple[int, ...], ...]
    path: Path

    @property
    def count(self) -> int:
        """How many tiles."""
        return len(self.tiles)
