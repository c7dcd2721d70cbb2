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
filled for readers: they find there what was made. Fills are charged to the first Einsum below.

- A word is named by the ranks of an access: arithmetic in indices is not looked into, so
  ``X[p+w]`` is a word for each pair, and generations of an iterative rank are distinct.
- A memory is one memory, however many lanes use it: a tile that lanes share is kept once, tiles
  that differ side by side. Registers are each lane's own, hence below all loops in space; they
  are counted for one active lane (an average, where ragged edges leave lanes unequal).
- What the unit's lanes cannot share along a dimension (``Problem.shares``) crosses once for each
  of them. A memory with instances is one for each index of loops over ``instances``: its copies
  are read and written by themselves, and room is that of one.
- ``drains``: whether a home that sends its words up is read for it (``read``) or not (``free``).
- A home's share that spills is read and written where it spills to (the home's own counts stay
  whole), and crosses to the home above no more.
- Room: a home takes the words of its tile, along the ranks that an Einsum below it indexes (of
  several, the largest tile), from the time it is filled; children of a branch take turns, except
  that a tile which ``trailing`` retention keeps over a loop above the branch stays while the other
  children run; children of a pipeline are all there at once. Under ``explicit`` retention a home
  right above a branch is there from the first child that touches its tensor to the last.

Edges: ``whole`` (a ragged tile costs a full one) or ``exact`` (true sizes for the ranks a tensor
has, true numbers of tiles for the others, which loops are trailing and room as for full tiles).
Everything works on scalars and on arrays alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from einfuse.einsum.errors import closest

from .architecture import INSTANCES
from .errors import MappingError
from .facts import EinsumFacts, Facts, Operand
from .formula import Values
from .mapping import Branch, Compute, Keep, Nest, Node, Parallel, Temporal, render_nest

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
    `einfuse.mapper.architecture.Unit`); ``instanced`` the memories of which each instance of the
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


def select(nest: Nest, names: Mapping[str, Values]) -> Nest:
    """Return the nest with its conditions decided; they must not differ over an array."""

    def holds(node: Node) -> bool:
        return node.when is None or bool(np.all(node.when.evaluate(names)))

    chosen: list[Node] = []
    for node in nest:
        if holds(node):
            step = node.step
            if isinstance(step, Branch):
                children = tuple(select(child, names) for child in step.children)
                step = Branch(tuple(child for child in children if child), step.pipeline)
                if not step.children:
                    continue
            chosen.append(Node(step))
    return tuple(chosen)


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop above a node: over a rank, in time or in space, in tiles, of so many iterations."""

    rank: str
    count: Values
    parallel: bool
    tile: Values
    dimension: str = ""  # of a loop in space
    shares: str = "any"  # what its lanes share: any, operands, outputs, or none


@dataclass(frozen=True, slots=True)
class Sides:
    """Which loops in space make copies of what does not depend on them, on both sides.

    Attributes:
        kind: what crosses: operands or outputs.
        lanes: whether the home is in registers, which every lane has.
        instanced: whether it is at a memory that every instance of the unit has.
        above_instanced: whether the home above is.
    """

    kind: str = "operands"
    lanes: bool = False
    instanced: bool = False
    above_instanced: bool = False

    def above(self, loop: Loop) -> bool:
        """Whether the home above counts a word for each index of a loop in space."""
        over_instances = loop.dimension == INSTANCES
        apart = self.lanes or (self.instanced and over_instances)
        return (apart and loop.shares not in ("any", self.kind)) or (
            self.above_instanced and over_instances
        )

    def own(self, loop: Loop) -> bool:
        """Whether each index of a loop in space has a copy of the home."""
        return self.instanced and loop.dimension == INSTANCES


ONE_MEMORY = Sides()


@dataclass(slots=True, eq=False)
class _Home:
    """A tensor at a memory or in registers, with the Einsums below that read and write it."""

    tensor: str
    level: str
    parent: _Home | None
    loops: tuple[Loop, ...]
    tiles: Mapping[str, Values]
    keep: Keep | None = None
    place: Values = 0  # words of its place, which it may share with what it overlays
    room: Values = 0  # words of it beyond what it overlays
    indexed: frozenset[frozenset[str]] = frozenset()  # how the Einsums below index it
    readers: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    writers: list[tuple[str, frozenset[str]]] = field(default_factory=list)

    @property
    def forwarded(self) -> bool:
        return self.keep is not None and self.keep.forwarded

    @property
    def ranks(self) -> frozenset[str]:
        """The ranks of what lives here: those that its writer, else its readers, index."""
        return frozenset[str]().union(*(ranks for _, ranks in self.writers or self.readers))

    @property
    def outermost(self) -> _Home | None:
        """The home that what is read here comes from; None if another unit makes it."""
        if self.forwarded:
            return None
        return self if self.parent is None else self.parent.outermost


@dataclass(frozen=True, slots=True)
class Crossing:
    """Words between a home and the one above it, over the whole run.

    ``once`` are the distinct ones among ``words``, as the home above counts them; ``own_words`` and
    ``own_once`` are those of all copies of a memory that has some; ``lane_words`` and ``lane_once``
    are those of one active lane, for registers.
    """

    words: Values
    once: Values
    own_words: Values
    own_once: Values
    lane_words: Values
    lane_once: Values


_Peak = dict[str, tuple[Values, tuple[tuple[str, Values], ...]]]


def count(nest: Nest, problem: Problem) -> Counts:
    """Return the counts of a nest whose conditions are decided (see `select`).

    Raises:
        MappingError: the nest leaves a rank, an Einsum or a tensor out, names an unknown one, or
            reads a tensor before it is made or where it is not put.
    """
    analysis = _Analysis(problem)
    homes = analysis.implicit_homes()
    peak = analysis.visit(nest, (), dict(problem.sizes), homes, {}, "mapping")
    missing = [name for name in analysis.einsums if name not in analysis.work]
    if missing:
        raise MappingError(
            f"Einsum {missing[0]} of {problem.facts.cascade.name} has no place in the mapping: add "
            f"'compute {missing[0]} on UNIT'"
        )
    analysis.check_sources(homes)
    analysis.settle()
    outermost = {problem.memories[0]: analysis.rooms(homes.values())}
    peak = _together([outermost, peak])
    return Counts(
        {key: Traffic(*value) for key, value in analysis.traffic.items()},
        analysis.work,
        {level: words for level, (words, _) in peak.items()},
        {level: held for level, (_, held) in peak.items()},
        analysis.valid,
        tuple(analysis.deliveries),
    )


class _Analysis:
    """One walk over a tree."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.facts = problem.facts
        self.einsums = problem.facts.einsums
        self.exact = problem.edges == "exact"
        self.traffic: dict[tuple[str, str, str], list[Values]] = {}
        self.work: dict[str, Work] = {}
        self.homes: list[_Home] = []
        self.reads: list[tuple[str, _Home]] = []
        self.producers = {o.tensor: e.name for e in self.einsums.values() for o in e.outputs}
        self.deliveries: list[Delivery] = []
        self.valid: Values = True

    def implicit_homes(self) -> dict[str, _Home]:
        """Inputs and outputs live in the outermost memory."""
        cascade, outer = self.facts.cascade, self.problem.memories[0]
        homes: dict[str, _Home] = {}
        for name in (*cascade.inputs, *cascade.outputs):
            root = self.facts.root(name)
            if root in self.facts.ranks and root not in homes:
                homes[root] = _Home(root, outer, None, (), dict(self.problem.sizes))
                homes[root].place = homes[root].room = self._words(homes[root])
        return homes

    def visit(
        self,
        nest: Nest,
        loops: tuple[Loop, ...],
        tiles: dict[str, Values],
        homes: Mapping[str, _Home],
        used: Mapping[str, Values],
        where: str,
    ) -> _Peak:
        """Walk a nest; return the peak of each level below."""
        own: list[_Home] = []
        below: list[_Peak] = []
        homes, used = dict(homes), dict(used)
        for number, node in enumerate(nest):
            step = node.step
            if isinstance(step, Branch):
                passing = self._passing(nest, number, own)
                own = [home for home in own if home not in passing]
                below.append(self._branch(step, loops, tiles, homes, used, where, passing))
                continue
            try:
                loops, tiles = self._step(step, nest[number + 1 :], loops, tiles, homes, used, own)
            except MappingError as error:
                line = render_nest((Node(step),))[0]
                raise MappingError(f"{where}: '{line}': {error}") from None
        return _together([*({h.level: self.rooms([h])} for h in own), _in_turn(below)])

    def _passing(self, nest: Nest, number: int, own: Sequence[_Home]) -> list[_Home]:
        """The homes right above a branch that are there for some of its children only."""
        step = nest[number].step
        assert isinstance(step, Branch)
        branches = sum(isinstance(node.step, Branch) for node in nest)
        if self.problem.retention != "explicit" or step.pipeline or branches > 1:
            return []
        above = reversed(nest[:number])
        direct = list(itertools.takewhile(lambda s: isinstance(s, Keep), (n.step for n in above)))
        return [
            home
            for home in own
            if any(home.keep is kept for kept in direct)
            and any(self._indexed(home.tensor, child) for child in step.children)
        ]

    def _step(
        self,
        step: Temporal | Parallel | Keep | Compute,
        following: Nest,
        loops: tuple[Loop, ...],
        tiles: dict[str, Values],
        homes: dict[str, _Home],
        used: dict[str, Values],
        own: list[_Home],
    ) -> tuple[tuple[Loop, ...], dict[str, Values]]:
        """Take one step inwards; return the loops and the tiles below it."""
        match step:
            case Temporal(rank=rank):
                tile = self._tile(step, tiles)
                loops = (*loops, _loop(rank, tiles[rank], tile))
                tiles = {**tiles, rank: tile}
            case Parallel(rank=rank, dimension=dimension):
                tile = self._tile(step, tiles)
                self._check_own(homes, dimension)
                room, shares = self._room(step, following, used)
                wanted = _ceil_divide(tiles[rank], tile)
                side = np.minimum(wanted, room)
                used[dimension] = used.get(dimension, 1) * side
                if np.any(wanted > room):
                    loops = (*loops, _loop(rank, tiles[rank], side * tile))
                loops = (*loops, Loop(rank, side, True, tile, dimension, shares))
                tiles = {**tiles, rank: tile}
            case Keep():
                own.extend(self._keep(step, following, loops, tiles, homes))
            case Compute():
                self._compute(step, loops, tiles, homes)
        return loops, tiles

    def _branch(
        self,
        step: Branch,
        loops: tuple[Loop, ...],
        tiles: dict[str, Values],
        homes: Mapping[str, _Home],
        used: Mapping[str, Values],
        where: str,
        passing: Sequence[_Home],
    ) -> _Peak:
        """Walk the children; one after the other, or all at once."""
        peaks: list[_Peak] = []
        staying: list[_Peak] = []
        kind = "pipeline" if step.pipeline else "branch"
        for number, child in enumerate(step.children):
            first = len(self.homes)
            place = f"{where}.{kind}[{number}]"
            peaks.append(self.visit(child, loops, tiles, homes, used, place))
            staying.append(self._staying(self.homes[first:], len(loops)))
        if step.pipeline:
            return _together(peaks)
        for home in passing:
            held = {home.level: self.rooms([home])}
            touching = [n for n, c in enumerate(step.children) if self._indexed(home.tensor, c)]
            for number in range(touching[0], touching[-1] + 1):
                peaks[number] = _together([held, peaks[number]])
        return _in_turn(
            [
                _together([peak, *(stay for stay in staying if stay is not staying[number])])
                for number, peak in enumerate(peaks)
            ]
        )

    def _staying(self, homes: Sequence[_Home], depth: int) -> _Peak:
        """What homes hold on to while the loops down to a depth go on (see the module)."""
        held: list[_Peak] = []
        if self.problem.retention == "trailing" and depth:
            for home in homes:
                if home.keep is None:
                    continue
                moving = moving_loops(home.loops, home.ranks, self.problem.retention)
                stays: Values = False
                for loop, moves in zip(home.loops[:depth], moving, strict=False):
                    if not loop.parallel and moves is not True:
                        stays = stays | (np.logical_not(moves) & (loop.count > 1))
                if np.any(stays):
                    words = np.where(stays, home.room, 0)[()]
                    held.append({home.level: (words, ((home.tensor, words),))})
        return _together(held)

    def rooms(self, homes: Collection[_Home]) -> tuple[Values, tuple[tuple[str, Values], ...]]:
        """The words that homes take, and whose they are."""
        return sum(home.room for home in homes), tuple((home.tensor, home.room) for home in homes)

    def _tile(self, step: Temporal | Parallel, tiles: Mapping[str, Values]) -> Values:
        rank, formula = step.rank, step.tile
        if rank not in self.problem.sizes:
            raise MappingError(
                f"loop over an unknown rank '{rank}'{closest(rank, self.problem.sizes)}"
            )
        if formula is None:
            return 1
        tile = np.floor(formula.evaluate(self.problem.names))
        right = (tile >= 1) & np.isfinite(tile)
        if not np.all(right):
            if np.ndim(tile) == 0:
                raise MappingError(
                    f"expected a tile of at least 1 of rank {rank}, found "
                    f"{formula.evaluate(self.problem.names):g}"
                )
            self.valid = self.valid & right
            tile = np.where(right, tile, 1)
        return np.minimum(tile, tiles[rank]) if self.exact else tile

    def _room(self, step: Parallel, below: Nest, used: Mapping[str, Values]) -> tuple[Values, str]:
        """The lanes that are free along a dimension, and what they share."""
        units = {c.unit for c in _computes(below)}
        for unit in units:
            dimensions = self.problem.lanes.get(unit, {})
            if unit in self.problem.lanes and step.dimension not in dimensions:
                raise MappingError(
                    f"{unit} has no dimension '{step.dimension}'"
                    f"{closest(step.dimension, dimensions)}"
                )
        rooms = [self.problem.lanes[u][step.dimension] for u in units if u in self.problem.lanes]
        if len(rooms) != 1:
            known = ", ".join(sorted(units)) or "none"
            raise MappingError(
                f"a loop in space needs one unit below it, found {known}"
                f"{'' if units else '; add a compute'}"
            )
        room = np.floor(rooms[0] / used.get(step.dimension, 1))
        shares = self.problem.shares.get(units.pop(), {}).get(step.dimension, "any")
        return np.maximum(room, 1), shares

    def _check_own(self, homes: Mapping[str, _Home], dimension: str) -> None:
        for home in homes.values():
            if home.level == REGISTERS:
                raise MappingError(
                    f"{home.tensor} is kept at {REGISTERS} above a loop in space; "
                    "registers are each lane's own: move the keep below it"
                )
            if dimension == INSTANCES and home.level in self.problem.instanced:
                raise MappingError(
                    f"{home.tensor} is kept at {home.level} above a loop over instances; each has "
                    f"{home.level} of its own: move the keep below it"
                )

    def _keep(
        self,
        step: Keep,
        below: Nest,
        loops: tuple[Loop, ...],
        tiles: Mapping[str, Values],
        homes: dict[str, _Home],
    ) -> list[_Home]:
        levels = (*self.problem.memories, REGISTERS)
        for level in (step.level, *([step.spill.level] if step.spill else [])):
            if level not in levels:
                raise MappingError(f"no level '{level}'{closest(level, levels)}")
        if step.spill and levels.index(step.spill.level) >= levels.index(step.level):
            raise MappingError(
                f"what spills from {step.level} goes to a level further out, not to "
                f"{step.spill.level}"
            )
        kept: list[_Home] = []
        beneath: Values = 0
        if step.overlaying is not None:
            under = homes.get(self.facts.root(step.overlaying))
            if under is None or under.level != step.level:
                raise MappingError(
                    f"overlaying {step.overlaying}, which is not kept at {step.level} above"
                )
            beneath = under.place
        for name in step.tensors:
            tensor = self.facts.root(name)
            if tensor not in self.facts.ranks:
                raise MappingError(
                    f"keep of an unknown tensor '{name}'{closest(name, self.facts.ranks)}"
                )
            parent = homes.get(tensor)
            if parent is not None and levels.index(step.level) <= levels.index(parent.level):
                if parent.keep is None and parent.level == step.level:
                    continue  # the implicit home, said aloud
                raise MappingError(
                    f"{name} is kept at {step.level} inside its home at "
                    f"{parent.level}: expected a level further in"
                )
            home = _Home(tensor, step.level, parent, loops, dict(tiles), step)
            home.indexed = self._indexed(tensor, below)
            home.place = np.maximum(self._words(home), beneath)
            home.room = home.place - beneath
            kept.append(home)
            if not step.streamed:
                homes[tensor] = home
                self.homes.append(home)
        return kept

    def _indexed(self, tensor: str, below: Nest) -> frozenset[frozenset[str]]:
        """The ranks that the Einsums of a nest index a tensor along, each access's."""
        every = [self.einsums[c.einsum] for c in _computes(below) if c.einsum in self.einsums]
        used = [u for einsum in every for u in (*einsum.operands, *einsum.outputs)]
        return frozenset(u.ranks for u in used if u.tensor == tensor)

    def _words(self, home: _Home) -> Values:
        """The words that a home takes: of a generational tensor, one generation."""
        carried = home.tensor in self.facts.carried
        gone = self.facts.iterative if carried else frozenset[str]()
        every = {ranks - gone for ranks in home.indexed or {self.facts.ranks[home.tensor]}}
        tiles = [self._tile_words(home, ranks) for ranks in sorted(every, key=sorted)]
        words = tiles[0] if len(tiles) == 1 else np.maximum.reduce(np.broadcast_arrays(*tiles))[()]
        if home.keep is not None:
            words = words * self._copies(home.keep)
        return words * (1 - self._share(home))

    def _tile_words(self, home: _Home, ranks: frozenset[str]) -> Values:
        """The words of the tiles that lie side by side at a home, along some ranks."""
        words: Values = 1
        for rank in ranks:
            own = [loop for loop in home.loops if loop.rank == rank]
            if home.level in self.problem.instanced:
                own = [replace(o, parallel=False) if o.dimension == INSTANCES else o for o in own]
            if home.level == REGISTERS or not any(loop.parallel for loop in own):
                words = words * home.tiles[rank]
            elif self.exact:
                words = words * _pieces(
                    self.problem.sizes[rank], own, None, spread=True, words=True
                )
            else:
                words = words * home.tiles[rank] * _product(o.count for o in own if o.parallel)
        return words

    def _copies(self, keep: Keep) -> Values:
        """How many tiles of what a step keeps are there at once."""
        twice = 2 if keep.double else 1
        if keep.copies is None:
            return twice
        copies = np.floor(keep.copies.evaluate(self.problem.names))
        right = (copies >= 1) & np.isfinite(copies)
        if not np.all(right):
            if np.ndim(copies) == 0:
                raise MappingError(f"expected copies of at least 1, found {copies:g}")
            self.valid = self.valid & right
            copies = np.where(right, copies, 1)
        return twice * copies

    def _compute(
        self,
        step: Compute,
        loops: tuple[Loop, ...],
        tiles: Mapping[str, Values],
        homes: Mapping[str, _Home],
    ) -> None:
        einsum = self.einsums.get(step.einsum)
        if einsum is None:
            raise MappingError(
                f"compute of an unknown Einsum '{step.einsum}'{closest(step.einsum, self.einsums)}"
            )
        if step.einsum in self.work:
            raise MappingError(f"Einsum {step.einsum} is computed twice")
        if step.unit not in self.problem.lanes:
            raise MappingError(f"no unit '{step.unit}'{closest(step.unit, self.problem.lanes)}")
        for rank in sorted(einsum.ranks):
            if np.any(np.asarray(tiles[rank]) > 1):
                raise MappingError(
                    f"{step.einsum} is left with {np.max(tiles[rank]):g} of rank {rank} "
                    f"in one step: add 'for {rank}' or 'parallel {rank} over ...'"
                )
        self._check_options(step, einsum)
        work = self._work(step, einsum, loops)
        self.work[step.einsum] = replace(work, register_words=self._register_words(einsum, homes))
        points = self._points(step.einsum, einsum.ranks, loops)
        for operand in einsum.operands:
            self._read(step, operand, loops, homes, points)
        for output in einsum.outputs:
            self._write(step, output, loops, homes, points)

    def _register_words(self, einsum: EinsumFacts, homes: Mapping[str, _Home]) -> Values:
        """The words of one lane: what is kept in its registers, else one of each tensor."""
        words: Values = 0
        for tensor in dict.fromkeys(used.tensor for used in (*einsum.operands, *einsum.outputs)):
            home = homes.get(tensor)
            kept = home is not None and home.level == REGISTERS
            words = words + (self._words(home) if home is not None and kept else 1)
        return words

    def _check_options(self, step: Compute, einsum: EinsumFacts) -> None:
        operands = {name for o in einsum.operands for name in (o.name, o.tensor)}
        ranks = frozenset[str]().union(*(output.ranks for output in einsum.outputs))
        for word, names, known, what in (
            ("forwarding", step.forwarding, operands, "operand"),
            ("accumulating", step.accumulating, ranks, "rank of its output"),
        ):
            for name in names:
                if name not in known:
                    raise MappingError(f"{word} {name}, which is no {what}{closest(name, known)}")

    def _work(self, step: Compute, einsum: EinsumFacts, loops: tuple[Loop, ...]) -> Work:
        steps: Values = 1
        active: Values = 1
        lanes: Values = 1
        for extent in self.problem.lanes[step.unit].values():
            lanes = lanes * extent
        if self.exact:
            for rank, own in _by_rank(loops).items():
                steps = steps * _pieces(self.problem.sizes[rank], own, True, spread=False)
                active = active * _pieces(self.problem.sizes[rank], own, None, spread=True)
        else:
            steps = _product(loop.count for loop in loops if not loop.parallel)
            active = _product(loop.count for loop in loops if loop.parallel)
        instances: Values = 1
        for loop in loops:
            instances = instances * loop.count if loop.dimension == INSTANCES else instances
        work = Work(step.unit, steps, active, lanes, {}, {}, step.pipelined, instances=instances)
        self.work[step.einsum] = work
        operations: dict[str, Values] = {}
        per_point: dict[str, int] = {}
        for operation in einsum.operations:
            done = self._points(step.einsum, operation.ranks, loops, einsum.ranks)
            known = operations.get(operation.name, 0)
            operations[operation.name] = known + operation.times * done
            if operation.ranks == einsum.ranks:
                per_point[operation.name] = per_point.get(operation.name, 0) + operation.times
        return replace(work, operations=operations, per_point=per_point)

    def _points(
        self,
        einsum: str,
        ranks: frozenset[str],
        loops: tuple[Loop, ...],
        own: frozenset[str] | None = None,
    ) -> Values:
        """Points of some ranks of an Einsum, again in every loop over others, on one lane."""
        gone = (own or ranks) - ranks
        if not self.exact:
            points = _product(o.count for o in loops if not o.parallel and o.rank not in gone)
            shared = _product(o.count for o in loops if o.parallel and o.rank in gone)
            return points / shared if gone else points
        points = _product(self.problem.sizes[rank] for rank in ranks)
        for rank, chain in _by_rank(loops).items():
            if rank not in ranks | gone:
                points = points * _pieces(self.problem.sizes[rank], chain, True, spread=True)
        return points / self.work[einsum].active

    def _read(
        self,
        step: Compute,
        operand: Operand,
        loops: tuple[Loop, ...],
        homes: Mapping[str, _Home],
        points: Values,
    ) -> None:
        tensor = operand.tensor
        maker = self.producers.get(tensor, step.einsum)
        if maker not in self.work and tensor not in self.facts.carried:
            raise MappingError(
                f"{step.einsum} reads {tensor} before {maker} makes it: compute {maker} first"
            )
        self._add(step.einsum, tensor, REGISTERS, reads=points)
        if operand.name in step.forwarding or tensor in step.forwarding:
            return
        home = homes.get(tensor)
        if home is None:
            raise MappingError(
                f"tensor {operand.name} has no home where {step.einsum} reads it: add "
                f"'keep {operand.name} at LEVEL' above, or 'forwarding {operand.name}'"
            )
        self.reads.append((step.einsum, home))
        register: _Home | None = self._register(tensor, home, loops)
        while register is not None:
            register.readers.append((step.einsum, operand.ranks))
            register = None if register.forwarded else register.parent

    def _write(
        self,
        step: Compute,
        output: Operand,
        loops: tuple[Loop, ...],
        homes: Mapping[str, _Home],
        points: Values,
    ) -> None:
        tensor = output.tensor
        ranks = output.ranks - set(step.accumulating)
        first = self._crossing(step.einsum, loops, {}, ranks, ONE_MEMORY).lane_once
        self._add(step.einsum, tensor, REGISTERS, reads=points - first, writes=points)
        home = homes.get(tensor)
        register = None if home is None else self._register(tensor, home, loops)
        while register is not None:
            register.writers.append((step.einsum, ranks))
            register = register.parent

    def _register(self, tensor: str, home: _Home, loops: tuple[Loop, ...]) -> _Home:
        """The registers that an access goes to: kept ones, or a word for it alone."""
        if home.level == REGISTERS:
            return home
        self.homes.append(_Home(tensor, REGISTERS, home, loops, {}))
        return self.homes[-1]

    def check_sources(self, implicit: Mapping[str, _Home]) -> None:
        """What is read must come from where its maker puts it, or from the outermost memory."""
        for einsum, home in self.reads:
            source = home.outermost
            maker = self.producers.get(home.tensor)
            if source is None or maker is None or source.writers:
                continue
            if implicit.get(home.tensor) is not source:
                raise MappingError(
                    f"{einsum} reads {home.tensor} from {source.level}, where {maker} does not put "
                    f"it: add 'keep {home.tensor} at LEVEL' above both"
                )

    def settle(self) -> None:
        """Count what each home exchanges with the one above it."""
        for home in self.homes:
            parent = home.parent
            if parent is None:
                continue
            inside = home.level == REGISTERS
            stay = 1 - self._share(home)
            if home.writers:
                einsum = home.writers[0][0]
                sides = self._sides(home, parent, "outputs")
                cross = self._crossing(einsum, home.loops, home.tiles, home.ranks, sides)
                again = cross.words - cross.once
                sent = cross.lane_words if inside else cross.own_words
                returned = sent - (cross.lane_once if inside else cross.own_once)
                self._add(einsum, home.tensor, home.level, writes=returned)
                self._access(parent, einsum, reads=stay * again, writes=stay * cross.words)
                if inside:
                    self._deliver(einsum, home.tensor, cross, cross.words + again)
                if self.problem.drains == "read" and home.keep is not None:
                    self._add(einsum, home.tensor, home.level, reads=stay * sent)
            elif home.readers and not home.forwarded:
                einsum = home.readers[0][0]
                sides = self._sides(home, parent, "operands")
                cross = self._crossing(einsum, home.loops, home.tiles, home.ranks, sides)
                filled = cross.lane_words if inside else cross.own_words
                self._add(einsum, home.tensor, home.level, writes=filled)
                self._access(parent, einsum, reads=stay * cross.words)
                if inside:
                    self._deliver(einsum, home.tensor, cross, cross.words)

    def _deliver(self, einsum: str, tensor: str, cross: Crossing, words: Values) -> None:
        lanes = self.work[einsum].active * cross.lane_words / cross.words
        self.deliveries.append(Delivery(einsum, tensor, words, lanes))

    def _sides(self, home: _Home, parent: _Home, kind: str) -> Sides:
        instanced = self.problem.instanced
        if not instanced and not any(self.problem.shares.values()):
            return ONE_MEMORY
        inside = home.level == REGISTERS
        return Sides(kind, inside, home.level in instanced, parent.level in instanced)

    def _share(self, home: _Home) -> Values:
        spill = home.keep.spill if home.keep is not None else None
        if spill is None:
            return 0
        share = np.asarray(spill.share.evaluate(self.problem.names))
        right = (share >= 0) & (share <= 1)
        if not np.all(right):
            if share.ndim == 0:
                raise MappingError(
                    f"expected a spilled share of 0 to 1 of {home.tensor}, found {share:g}"
                )
            self.valid = self.valid & right
            share = np.where(right, share, 0)
        return share[()]

    def _access(self, home: _Home, einsum: str, reads: Values = 0, writes: Values = 0) -> None:
        self._add(einsum, home.tensor, home.level, reads, writes)
        if home.keep is not None and home.keep.spill is not None:
            share, level = self._share(home), home.keep.spill.level
            self._add(einsum, home.tensor, level, share * reads, share * writes)

    def _add(
        self, einsum: str, tensor: str, level: str, reads: Values = 0, writes: Values = 0
    ) -> None:
        entry = self.traffic.setdefault((einsum, tensor, level), [0.0, 0.0])
        entry[0] = entry[0] + reads
        entry[1] = entry[1] + writes

    def _crossing(
        self,
        einsum: str,
        loops: tuple[Loop, ...],
        tiles: Mapping[str, Values],
        ranks: frozenset[str],
        sides: Sides,
    ) -> Crossing:
        moving = moving_loops(loops, ranks, self.problem.retention)
        if self.exact:
            return self._exact_crossing(einsum, loops, moving, ranks, sides)
        return whole_crossing(loops, tiles, ranks, moving, sides)

    def _exact_crossing(
        self,
        einsum: str,
        loops: tuple[Loop, ...],
        moving: Sequence[Values],
        ranks: frozenset[str],
        sides: Sides,
    ) -> Crossing:
        once = _product(self.problem.sizes[rank] for rank in ranks)
        sharing: tuple[Callable[[Loop], bool], ...] = (sides.above, sides.own, lambda loop: True)
        every, first = [once] * 3, [once] * 3  # above, at the home's copies, at all lanes
        for rank, chain in _by_rank(loops).items():
            if rank not in ranks:
                size = self.problem.sizes[rank]
                moves = [m for loop, m in zip(loops, moving, strict=True) if loop.rank == rank]
                for place, spread in enumerate(sharing):
                    every[place] = every[place] * _pieces(size, chain, moves, spread=spread)
                    first[place] = first[place] * _pieces(size, chain, None, spread=spread)
        active = self.work[einsum].active
        return Crossing(
            every[0], first[0], every[1], first[1], every[2] / active, first[2] / active
        )


# Closed forms over the loops above a node.


def moving_loops(loops: Sequence[Loop], ranks: Collection[str], retention: str) -> list[Values]:
    """Return for each loop whether a step of it brings another tile in: not if it is trailing.

    Args:
        loops: those above a home, outer before inner.
        ranks: what lives in the home depends on them.
        retention: "trailing" or "explicit".
    """
    trailing: Values = retention == "trailing"
    moving: list[Values] = []
    for loop in reversed(loops):
        if loop.parallel or loop.rank in ranks:
            moving.append(True)
            if not loop.parallel and trailing is not False:
                trailing = trailing & (loop.count == 1)
                trailing = trailing if np.ndim(trailing) else bool(trailing)
        else:
            moving.append(np.logical_not(trailing) if np.ndim(trailing) else not trailing)
    return moving[::-1]


def whole_crossing(
    loops: Sequence[Loop],
    tiles: Mapping[str, Values],
    ranks: Collection[str],
    moving: Sequence[Values],
    sides: Sides = ONE_MEMORY,
) -> Crossing:
    """Return the words between a home and the one above it, ragged tiles counted as whole ones.

    Args:
        loops: those above the home, outer before inner.
        tiles: the extent of each rank in the home; 1 where it is left out.
        ranks: what lives in the home depends on them.
        moving: what `moving_loops` returns for it.
        sides: whether both homes are one, or one for each of some lanes.

    >>> loops = (Loop("M", 4, False, 8), Loop("E", 2, False, 1))
    >>> whole_crossing(loops, {"M": 8}, ("M",), moving_loops(loops, ("M",), "trailing")).words
    32
    """
    lane_once = _product(tiles.get(rank, 1) for rank in ranks)
    loads: Values = 1
    copies: Values = 1
    above: Values = 1
    own: Values = 1
    for loop, moves in zip(loops, moving, strict=True):
        if loop.parallel:
            if loop.rank in ranks:
                copies = copies * loop.count
            elif sides is not ONE_MEMORY:
                above = above * loop.count if sides.above(loop) else above
                own = own * loop.count if sides.own(loop) else own
        elif loop.rank in ranks:
            lane_once = lane_once * loop.count
        elif moves is not False:
            loads = loads * (loop.count if moves is True else np.where(moves, loop.count, 1))
    once = own_once = lane_once * copies
    if sides is not ONE_MEMORY:
        once, own_once = once * above, once * own
    return Crossing(once * loads, once, own_once * loads, own_once, lane_once * loads, lane_once)


def _pieces(
    size: Values,
    loops: Sequence[Loop],
    moves: Sequence[Values] | bool | None,
    *,
    spread: Callable[[Loop], bool] | bool,
    words: bool = False,
) -> Values:
    """How many pieces nested loops over one rank of a size make, the ragged ones cut to size.

    Args:
        size: the extent that the loops share out.
        loops: outer before inner, tiles no larger than what they share out.
        moves: whether each loop in time makes pieces of its own (one for all; None: none does).
        spread: whether a loop in space makes a piece for each lane, or one for all.
        words: count the coordinates in the pieces instead of the pieces.
    """
    if not loops:
        return size if words else np.where(np.asarray(size) > 0, 1, 0)[()]
    loop, rest = loops[0], loops[1:]
    own, others = (moves[0], moves[1:]) if isinstance(moves, Sequence) else (bool(moves), moves)
    one = _pieces(np.minimum(size, loop.tile), rest, others, spread=spread, words=words)
    if loop.parallel:
        own = spread(loop) if callable(spread) else spread
    if own is False:
        return one
    full = np.floor(np.asarray(size) / loop.tile)
    ragged = _pieces(size - full * loop.tile, rest, others, spread=spread, words=words)
    every = full * _pieces(loop.tile, rest, others, spread=spread, words=words) + ragged
    return every if own is True else np.where(own, every, one)


def _by_rank(loops: Sequence[Loop]) -> dict[str, list[Loop]]:
    chains: dict[str, list[Loop]] = {}
    for loop in loops:
        chains.setdefault(loop.rank, []).append(loop)
    return chains


def _product(factors: Any) -> Values:
    product: Values = 1
    for factor in factors:
        product = product * factor
    return product


def _loop(rank: str, before: Values, tile: Values) -> Loop:
    return Loop(rank, _ceil_divide(before, tile), False, tile)


def _ceil_divide(value: Values, by: Values) -> Values:
    return np.ceil(np.asarray(value) / by)[()]


def _computes(nest: Nest) -> Iterator[Compute]:
    for node in nest:
        if isinstance(node.step, Compute):
            yield node.step
        elif isinstance(node.step, Branch):
            for child in node.step.children:
                yield from _computes(child)


def _together(peaks: Sequence[_Peak]) -> _Peak:
    total: _Peak = {}
    for peak in peaks:
        for level, (words, held) in peak.items():
            so_far, holders = total.get(level, (0, ()))
            total[level] = (so_far + words, (*holders, *held))
    return total


def _in_turn(peaks: Sequence[_Peak]) -> _Peak:
    longest: _Peak = {}
    for peak in peaks:
        for level, (words, held) in peak.items():
            total, others = longest.get(level, (0, ()))
            larger = held if np.max(words) > np.max(total) else others
            longest[level] = (np.maximum(total, words), larger)
    return longest
