"""What a little more of the figure that was minimised saves of another: points near the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_MORE = (0.01, 0.05, 0.25)  # of the figure that was minimised, how far to look
_WORTH = 0.005  # a smaller saving than this is not told


@dataclass(frozen=True, slots=True)
class TradeOff:
    """A mapping that has more of one figure and less of another, relatively to the best."""

    more: float
    less: float
    plan: Any
    figures: tuple[float, ...]


def nearest_trade_offs(
    front: Sequence[tuple[Any, Sequence[float]]], own: Sequence[float], asked: int, other: int
) -> tuple[TradeOff, ...]:
    """Return the mappings with the least of another figure at 1, 5 and 25 % more of the one asked.

    Args:
        front: mappings and their figures.
        own: the figures of the best mapping.
        asked: which figure was minimised.
        other: which figure may be saved.

    >>> front = [("a", (1.0, 9.0)), ("b", (1.01, 6.0)), ("c", (1.2, 5.0)), ("d", (3.0, 1.0))]
    >>> [(one.plan, round(one.more, 3), round(one.less, 3)) for one in
    ...  nearest_trade_offs(front, (1.0, 9.0), 0, 1)]
    [('b', 0.01, 0.333), ('c', 0.2, 0.444)]
    """
    if not (own[asked] > 0 and own[other] > 0):
        return ()
    every = [
        TradeOff(found[asked] / own[asked] - 1, 1 - found[other] / own[other], plan, tuple(found))
        for plan, found in front
    ]
    chosen: list[TradeOff] = []
    for most in _MORE:
        near = [one for one in every if one.more <= most * (1 + 1e-9)]
        best = max(near, key=lambda one: (one.less, -one.more), default=None)
        least = max((one.less for one in chosen), default=0.0) + _WORTH
        if best is not None and best.less >= least:
            chosen.append(best)
    return tuple(chosen)
