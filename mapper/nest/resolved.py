"""A loop nest at a shape: walked once, then counted, simulated, and asked for what it holds.

`einfuse.mapper.nest.resolve.resolve` makes it. What stands above several Einsums is one object,
shared by their chains: `shared_loops` finds it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from einfuse.mapper.machine.formula import Values

from .loops import Loop
from .nest import Compute
from .reuse import Problem
from .storage import Peak, Storage
from .workload import Operand


@dataclass(frozen=True, slots=True)
class Use:
    """An access of an Einsum, and the storage in registers that it goes to; None: forwarded."""

    operand: Operand
    registers: Storage | None


@dataclass(frozen=True, slots=True)
class Chain:
    """The way down to an Einsum.

    Attributes:
        einsum: its name.
        step: its step of the mapping.
        loops: those above it, those in space with their waves in time before them.
        homes: the storages on the way that the mapping asks for, outer before inner.
        reads, writes: its accesses.
    """

    einsum: str
    step: Compute
    loops: tuple[Loop, ...]
    homes: tuple[Storage, ...]
    reads: tuple[Use, ...] = ()
    writes: tuple[Use, ...] = ()

    @property
    def unit(self) -> str:
        """The unit that does it."""
        return self.step.unit

    @property
    def steps_in_time(self) -> tuple[Loop, ...]:
        """The loops in time above the first loop in space: what a tile of work stands under."""
        found: list[Loop] = []
        for loop in self.loops:
            if loop.parallel:
                break
            found.append(loop)
        return tuple(found)


@dataclass(frozen=True, slots=True)
class ResolvedNest:
    """Every loop with its count, every storage with its tiles and parent, every Einsum.

    Attributes:
        problem: what the nest was resolved for.
        chains: the way down to each Einsum, in the order of the mapping.
        storages: all of them but those that inputs and outputs have without being asked for.
        peak: the most that lives at each level at once.
        valid: false at points of an array where a tile comes out below 1.
    """

    problem: Problem
    chains: Mapping[str, Chain]
    storages: tuple[Storage, ...]
    peak: Peak
    valid: Values = True


def shared_loops(chains: Iterable[Chain]) -> tuple[Loop, ...]:
    """Return the loops in time that stand above all of them (the same loops, not equal ones)."""
    first, *others = [chain.steps_in_time for chain in chains]
    depth = 0
    for depth, loop in enumerate(first, start=1):
        if not all(len(other) >= depth and other[depth - 1] is loop for other in others):
            return first[: depth - 1]
    return first[:depth]


def iterations(loops: Collection[Loop]) -> int:
    """Return how many iterations nested loops make."""
    return int(np.prod([loop.count for loop in loops], dtype=float))
