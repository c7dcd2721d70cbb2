"""What a search minimises, declared so that it can prune: columns that add, figures that bound.

A mapping's cost is built from *pieces*: an Einsum on a unit, a tensor's traffic at a level. Each
piece has a number in every *column*; columns add over the pieces of a group (Einsums fused under
common loops). From a group's columns follow its *figures* (seconds, energy, ...), which never fall
when a column grows: so figures of partial sums are lower bounds. Figures of groups that run one
after the other add, or the larger one counts (`peak_bytes`).

The mapper knows no prices: an objective is injected (see `einfuse.simulator.cost.objectives`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from einfuse.mapper.machine.formula import Values
from einfuse.mapper.nest.reuse import Traffic, Work

if TYPE_CHECKING:
    from einfuse.mapper.design.design import Design

    from .space import MapSpace

Numbers = NDArray[Any]


class Objective(Protocol):
    """The columns of pieces, the figures of groups, and what is best."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns; they add over the pieces of a group."""

    @property
    def figures(self) -> tuple[str, ...]:
        """The figures that the search keeps a front over, each the better the smaller."""

    @property
    def timed(self) -> str:
        """The figure that is the time of a group."""

    @property
    def times(self) -> Mapping[str, str]:
        """The column of each unit's time; none if no figure depends on time."""

    @property
    def rates(self) -> Mapping[str, float]:
        """Figures that are a column and so much for each second of the group's time."""

    @property
    def mixes(self) -> Sequence[Mapping[str, float]]:
        """Weights of the units, each adding up to 1: such means of times bound the longest."""

    @property
    def adds(self) -> tuple[bool, ...]:
        """Whether a figure adds over groups; otherwise the larger one counts."""

    def compute(self, work: Work, registers: Traffic) -> Mapping[str, Values]:
        """Return the columns of an Einsum's steps; ``registers`` is the traffic of one lane."""

    def access(self, level: str, traffic: Traffic, instances: Values = 1) -> Mapping[str, Values]:
        """Return the columns of words read and written at a memory level, all of its instances."""

    def deliver(self, unit: str, words: Values, lanes: Values) -> Mapping[str, Values]:
        """Return the columns of words between a memory and a unit, to or from so many lanes each.

        They are on top of those of the memory and of the registers.
        """

    def prices(self, level: str) -> bool:
        """Tell whether traffic at a level changes any column."""

    def close(
        self,
        columns: Numbers,
        peak_words: Numbers,
        overlapped: Values,
        least_seconds: Values = 0.0,
    ) -> Numbers:
        """Return the figures of a group, a row each.

        Args:
            columns: a row for each column, a column for each point.
            peak_words: the words that the group keeps in the outermost memory on chip.
            overlapped: where units work side by side; elsewhere one Einsum runs at a time.
            least_seconds: what the time is known not to go below.
        """

    def score(self, figures: Numbers) -> Numbers | None:
        """Return the number to minimise; None if the whole front is asked for."""

    def known(self, space: MapSpace) -> Iterable[tuple[Design, tuple[float, ...]]]:
        """Return mappings from elsewhere and their figures, to start from: shipped designs."""


def cost_of(objective: Objective, figures: Sequence[float] | Numbers) -> float:
    """Return what a mapping with some figures costs: their score; of a front, the first of them."""
    column = np.array(figures, float)[:, None]
    scores = objective.score(column)
    return float(column[0, 0] if scores is None else scores[0])


def join(objective: Objective, first: Numbers, second: Numbers) -> Numbers:
    """Return the figures of groups that run one after the other, of those of both parts."""
    rows = [
        a + b if adds else np.maximum(a, b)
        for adds, a, b in zip(objective.adds, first, second, strict=True)
    ]
    return np.stack(np.broadcast_arrays(*rows))
