"""Which constraints empty a map space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from einfuse.mapper.space.constraints import Part, parts, without
from einfuse.mapper.space.space import MapSpace


def find_conflict(space: MapSpace, is_empty: Callable[[MapSpace], bool]) -> tuple[Part, ...]:
    """Return constraints that together leave an empty space no mapping; without any of them it has.

    None if the space is empty without any constraints.

    Args:
        space: one without a mapping.
        is_empty: tells whether a space has none.
    """
    given = space.constraints
    every = parts(given)

    def empty_with(kept: list[Part]) -> bool:
        dropped = [part for part in every if part not in kept]
        return is_empty(replace(space, constraints=without(given, dropped)))

    if not every or empty_with([]):
        return ()
    kept = list(every)
    for part in every:
        fewer = [one for one in kept if one != part]
        if fewer and empty_with(fewer):
            kept = fewer
    return tuple(kept)
