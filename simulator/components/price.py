"""One figure of a component, with its source."""

from __future__ import annotations

from dataclasses import dataclass

from einfuse.mapper import Values


@dataclass(frozen=True, slots=True)
class Price:
    """One figure of a component, and where it comes from.

    Attributes:
        value: in the unit that the quantity's name ends in; NaN at points of an array that are
            outside what the model knows.
        how: the rows or the call that it stands on, and the scaling, for the first point.
        source: who published it.
    """

    value: Values
    how: str
    source: str
