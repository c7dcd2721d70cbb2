"""What a simulation charges beyond the analytic model: each overhead off unless asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from einfuse.einsum import closest
from einfuse.mapper import MappingError


@dataclass(frozen=True, slots=True)
class Overheads:
    """Overheads of a simulation; all off is the analytic model under ``pipelined`` composition.

    Attributes:
        dependencies: a task waits for the tiles it reads, also inside a phase, where a pair that
            streams starts and ends no earlier than its producer; tiles in flight are limited to
            those that the offsets leave room for.
        drain: what leaves a 2D array for another unit comes out after as many cycles as it has
            rows; the rows work skewed, so that the next task follows without a gap.
        fill: the rows do not work skewed: what enters a 2D array from another unit has to reach
            the last row before work begins, which takes as many cycles as there are rows.
        skew: the columns start one after another, and the unit that reads them does not: a task
            that reads a whole tile waits for the last column.
        bandwidth: reads and writes of every memory take the time of their bandwidth, tile by
            tile; tiles of input are fetched ahead into a second copy.
        buffering: there is a second copy only where the mapping says ``double``.
        decoupled: units go on with their next phase without waiting for the others.
        interleaved: the tasks of a phase on one unit alternate on it cycle by cycle, as many as
            have what they wait for; else one runs after the other.
    """

    dependencies: bool = False
    drain: bool = False
    fill: bool = False
    skew: bool = False
    bandwidth: bool = False
    buffering: bool = False
    decoupled: bool = False
    interleaved: bool = False

    @property
    def waits(self) -> bool:
        """Whether tasks wait for the tiles they read."""
        return self.dependencies or self.drain or self.fill or self.skew or self.decoupled

    @property
    def fetches(self) -> bool:
        """Whether memories take time tile by tile."""
        return self.bandwidth or self.buffering

    @property
    def names(self) -> tuple[str, ...]:
        """The names of those that are on."""
        return tuple(item.name for item in fields(self) if getattr(self, item.name))


NONE = Overheads()
NAMES = tuple(item.name for item in fields(Overheads))


def find_overheads(names: Iterable[str]) -> Overheads:
    """Return overheads by their names; ``all`` leaves out those that are another machine.

    Those are rows or columns that do not work skewed (``fill``, ``skew``), units without lockstep
    (``decoupled``), and units that tasks share (``interleaved``).

    >>> find_overheads(["drain", "bandwidth"]).names
    ('drain', 'bandwidth')
    """
    chosen: set[str] = set()
    for name in names:
        if name == "all":
            chosen |= set(NAMES) - {"fill", "skew", "decoupled", "interleaved"}
        elif name in NAMES:
            chosen.add(name)
        else:
            raise MappingError(f"no overhead '{name}'{closest(name, (*NAMES, 'all'))}")
    return Overheads(**dict.fromkeys(chosen, True))
