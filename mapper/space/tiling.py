"""The tiles that a loop over a rank may have."""

from __future__ import annotations

from .constraints import TileChoices


def tile_choices(size: int, kind: TileChoices = "standard") -> tuple[int, ...]:
    """Return the tiles of a rank, largest first; the whole rank and 1 are always among them.

    ``divisors`` divide the size; ``powers`` are powers of two (the last tile is ragged where they
    do not divide it); ``standard`` are both; ``ragged`` are the smallest tile for each number of
    iterations.

    >>> tile_choices(12)
    (12, 8, 6, 4, 3, 2, 1)
    >>> tile_choices(12, "divisors"), tile_choices(5, "ragged")
    ((12, 6, 4, 3, 2, 1), (5, 3, 2, 1))
    """
    found = {1, size}
    if kind in ("standard", "divisors"):
        small = [d for d in range(1, int(size**0.5) + 1) if size % d == 0]
        found |= {*small, *(size // d for d in small)}
    if kind in ("standard", "powers"):
        found |= {2**k for k in range(size.bit_length()) if 2**k < size}
    if kind == "ragged":
        count = 1
        while count < size:
            tile = -(-size // count)
            found.add(tile)
            count = -(-size // (tile - 1)) if tile > 1 else size
    return tuple(sorted(found, reverse=True))
