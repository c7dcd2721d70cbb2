"""Reuse analysis: what a mapping reads, writes, computes and holds, by closed forms over the tree.

A *home* is a tensor at a memory, or in the registers of each lane; every operand and output of an
Einsum has at least one word of registers. What crosses between a home and the one above it:

- *loads*: how often its tile is brought in: the product of the loops in time above it. Under
  ``trailing`` retention the innermost of them that the tensor does not depend on drop out (a loop
  with a loop inside it that changes the tile is not trailing; one of a single iteration changes
  nothing); under ``explicit`` none does.
- *copies*: how many distinct tiles lie side by side: the loops in space that it depends on
  (a value that several lanes use counts once, and so does a sum over lanes).

An operand's home is filled ``loads x tile x copies`` words (writes there, reads above). An output
arrives above in as many words (writes); all but the first per distinct element also read what is
there, and what was there returns to the home (fills). A home that an Einsum below writes is not
filled for readers: they find there what was made. Fills are charged to the first Einsum below;
  those of a ``copied`` view to the view.

- A word is a coordinate of the tensor behind views; generations of an iterative rank are distinct.
  Accesses with other subscripts are *parts* of a tile (`X[p] * X[m]`): what is there is their
  union; a step brings the parts that it moves, less what the others have there, and a part whole.
  A window (`X[p+w]`) has the coordinates that it covers, a gather no more than the tensor has.
  Where it is not known what parts, or lanes with tiles apart, have in common, that is nothing: so
  no count is too low (see `einfuse.mapper.nest.coordinates`).
- A memory is one memory, however many lanes use it: a tile that lanes share is kept once, tiles
  that differ side by side. Registers are each lane's own, hence below all loops in space; they
  are counted for one active lane (an average, where ragged edges leave lanes unequal).
- What the unit's lanes cannot share along a dimension (``Problem.shares``) crosses once for each
  of them. A memory with instances is one for each index of loops over ``instances``: its copies
  are read and written by themselves, and room is that of one.
- ``drains``: whether a home that sends its words up is read for it (``read``) or not (``free``).
- A home's share that spills is read and written where it spills to (the home's own counts stay
  whole), and crosses to the home above no more.
- Room: a home takes the words of its tile that Einsums below it read or write, from the time it is
  filled; children of a branch take turns, except
  that a tile which ``trailing`` retention keeps over a loop above the branch stays while the other
  children run; children of a pipeline are all there at once. Under ``explicit`` retention a home
  right above a branch is there from the first child that touches its tensor to the last.

Edges: ``whole`` (a ragged tile costs a full one) or ``exact`` (true sizes for the ranks a tensor
has, true numbers of tiles for the others, which loops are trailing and room as for full tiles).
Everything works on scalars and on arrays alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from einfuse.mapper.machine.formula import Values

from .workload import Facts

REGISTERS = "registers"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Words read and written."""

    reads: Values
    writes: Values


@dataclass(frozen=True, slots=True)
class Work:
    """What an Einsum does: steps in time on the active lanes of a unit, operations per step.

    ``active`` are the lanes that ever have work. ``operations`` is how often each of them does
    one in the whole run, on average (what follows a sum over lanes is done once for all of them).
    """

    unit: str
    steps: Values
    active: Values
    lanes: Values
    operations: Mapping[str, Values]
    per_point: Mapping[str, int]  # operation -> how often a step issues it
    pipelined: bool
    register_words: Values = 0  # of one lane
    instances: Values = 1  # of the unit that ever have work


@dataclass(frozen=True, slots=True)
class Delivery:
    """Words that go between a memory and the registers of a unit, each to or from some lanes."""

    einsum: str
    tensor: str
    words: Values
    lanes: Values


@dataclass(frozen=True, slots=True)
class Counts:
    """What follows from a mapping and a shape.

    ``traffic`` is keyed by (Einsum, tensor, level) in words; at level "registers" it is that of
    one active lane. ``peak_words`` is the most that lives at a level, ``holders`` who holds it.
    ``deliveries`` are what crosses between the memories and the registers.
    ``valid`` is false at points of an array where a tile comes out below 1.
    """

    traffic: Mapping[tuple[str, str, str], Traffic]
    work: Mapping[str, Work]
    peak_words: Mapping[str, Values]
    holders: Mapping[str, tuple[tuple[str, Values], ...]]
    valid: Values = True
    deliveries: tuple[Delivery, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """What the analysis of a nest needs besides the nest.

    ``sizes`` has every rank, batch ranks included; ``names`` is what formulas read; ``lanes`` the
    extent of each dimension of each unit; ``memories`` the levels, outermost first; ``shares``
    what the lanes of a unit share along a dimension where that is not anything (see
    `architecture.Unit`); ``instanced`` the memories of which each instance of the
    units has its own.
    """

    facts: Facts
    sizes: Mapping[str, Values]
    names: Mapping[str, Values]
    lanes: Mapping[str, Mapping[str, Values]]
    memories: tuple[str, ...]
    retention: str = "trailing"
    edges: str = "whole"
    drains: str = "free"
    shares: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    instanced: frozenset[str] = frozenset()

    @property
    def exact(self) -> bool:
        """Whether ragged edges are counted at their true sizes."""
        return self.edges == "exact"
