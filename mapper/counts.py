"""Reuse analysis: what a mapping reads, writes, computes and holds, by closed forms over the tree.

For a tensor at a node of the tree, with the loops above it:

- *loads*: how often its tile is brought in: the product of the loops in time above the node.
  Under ``trailing`` retention the innermost of them that the tensor does not depend on drop out;
  under ``explicit`` none does.
- *copies*: how many distinct tiles lie side by side: the loops in space that it depends on
  (a value that several lanes use counts once, and so does a sum over lanes).

An operand's home is filled ``loads x tile`` words (writes there) and its parent is read once for
each distinct copy. An output arrives at its home ``loads x tile x copies`` words (writes); all but
the first per distinct element also read what is there; what returns to the child is a fill of the
child. The registers of a lane are the innermost level: every operation reads each operand and
writes the output there, and they are counted for one lane.

Edges: ``whole`` (a ragged tile costs a full one) or ``exact`` (true sizes for the ranks a tensor
has, true numbers of tiles for the others). Everything works on scalars and on arrays alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import MappingError, closest
from .facts import EinsumFacts, Facts, Operand
from .formula import Values
from .mapping import Branch, Compute, Keep, Nest, Node, Parallel, Temporal

REGISTERS = "registers"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Words read and written."""

    reads: Values
    writes: Values


@dataclass(frozen=True, slots=True)
class Work:
    """What an Einsum does: steps in time on the active lanes of a unit, operations per step."""

    unit: str
    steps: Values
    active: Values
    lanes: Values
    operations: Mapping[str, Values]  # operation -> how often a lane does it in the whole run
    per_point: Mapping[str, int]  # operation -> how often a step issues it
    pipelined: bool


@dataclass(frozen=True, slots=True)
class Counts:
    """What follows from a mapping and a shape.

    ``traffic`` is keyed by (Einsum, tensor, level) in words; at level "registers" it is that of
    one active lane. ``peak_words`` is the most that lives at a level, ``holders`` who holds it.
    """

    traffic: Mapping[tuple[str, str, str], Traffic]
    work: Mapping[str, Work]
    peak_words: Mapping[str, Values]
    holders: Mapping[str, tuple[tuple[str, Values], ...]]


@dataclass(frozen=True, slots=True)
class Problem:
    """What the analysis of a nest needs besides the nest.

    ``sizes`` has every rank, batch ranks included; ``names`` is what formulas read; ``lanes`` the
    extent of each dimension of each unit; ``memories`` the levels, outermost first.
    """

    facts: Facts
    sizes: Mapping[str, Values]
    names: Mapping[str, Values]
    lanes: Mapping[str, Mapping[str, Values]]
    memories: tuple[str, ...]
    retention: str = "trailing"
    edges: str = "whole"


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
class _Loop:
    rank: str
    count: Values
    parallel: bool
    before: Values  # extent of the rank above the loop
    tile: Values


@dataclass(slots=True)
class _Home:
    """A tensor at a level, with what its children do to it."""

    tensor: str
    keep: Keep
    level: str
    parent: _Home | None
    loops: tuple[_Loop, ...]
    tiles: Mapping[str, Values]
    reads: Values = 0
    arrivals: Values = 0
    distinct: Values = 0
    readers: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    writers: list[tuple[str, frozenset[str]]] = field(default_factory=list)


def count(nest: Nest, problem: Problem) -> Counts:
    """Return the counts of a nest whose conditions are decided (see `select`).

    Raises:
        MappingError: the nest leaves a rank, an Einsum or a tensor out, or names an unknown one.
    """
    analysis = _Analysis(problem)
    homes = analysis.implicit_homes()
    peak = analysis.visit(nest, (), dict(problem.sizes), homes, "mapping")
    missing = [name for name in analysis.einsums if name not in analysis.work]
    if missing:
        raise MappingError(
            f"Einsum {missing[0]} of {problem.facts.cascade.name} has no place in the mapping: add "
            f"'compute {missing[0]} on UNIT'"
        )
    analysis.settle()
    root = [home for home in homes.values() if home.parent is None]
    outer = problem.memories[0]
    own = tuple((h.tensor, analysis.words(h)) for h in root)
    total, holders = peak.get(outer, (0, ()))
    peak[outer] = (total + sum(w for _, w in own), (*own, *holders))
    return Counts(
        {key: Traffic(*value) for key, value in analysis.traffic.items()},
        analysis.work,
        {level: words for level, (words, _) in peak.items()},
        {level: held for level, (_, held) in peak.items()},
    )


_Peak = dict[str, tuple[Values, tuple[tuple[str, Values], ...]]]


class _Analysis:
    """One walk over a tree."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.facts = problem.facts
        self.einsums = problem.facts.einsums
        self.traffic: dict[tuple[str, str, str], list[Values]] = {}
        self.work: dict[str, Work] = {}
        self.homes: list[_Home] = []

    def implicit_homes(self) -> dict[str, _Home]:
        """Inputs and outputs live in the outermost memory unless the mapping says otherwise."""
        cascade, outer = self.facts.cascade, self.problem.memories[0]
        homes: dict[str, _Home] = {}
        for name in (*cascade.inputs, *cascade.outputs):
            root = self.facts.root(name)
            if root in self.facts.ranks and root not in homes:
                keep = Keep((root,), outer)
                homes[root] = _Home(root, keep, outer, None, (), dict(self.problem.sizes))
                self.homes.append(homes[root])
        return homes

    def visit(
        self,
        nest: Nest,
        loops: tuple[_Loop, ...],
        tiles: dict[str, Values],
        homes: Mapping[str, _Home],
        where: str,
    ) -> _Peak:
        """Walk a nest; return the peak of each level below."""
        own: list[tuple[str, str, Values]] = []
        homes = dict(homes)
        used: dict[str, Values] = {}
        for number, node in enumerate(nest):
            step = node.step
            match step:
                case Temporal(rank=rank, tile=formula):
                    self._known_rank(rank, where)
                    tile = self._tile(step, 1 if formula is None else formula)
                    loops = (*loops, _loop(rank, tiles[rank], tile, parallel=False))
                    tiles = {**tiles, rank: tile}
                case Parallel(rank=rank, tile=formula):
                    self._known_rank(rank, where)
                    tile = self._tile(step, 1 if formula is None else formula)
                    room = self._room(step, nest[number + 1 :], used, where)
                    wanted = _ceil_divide(tiles[rank], tile)
                    side = np.minimum(wanted, room)
                    used[step.dimension] = used.get(step.dimension, 1) * side
                    if np.any(wanted > room):
                        wave = side * tile
                        loops = (*loops, _loop(rank, tiles[rank], wave, parallel=False))
                        tiles = {**tiles, rank: wave}
                    loops = (*loops, _Loop(rank, side, True, tiles[rank], tile))
                    tiles = {**tiles, rank: tile}
                case Keep():
                    own.extend(self._keep(step, loops, tiles, homes, where))
                case Compute():
                    self._compute(step, loops, tiles, homes, where)
                case Branch(children=children, pipeline=pipeline):
                    peaks = [
                        self.visit(child, loops, tiles, homes, f"{where}.branch[{n}]")
                        for n, child in enumerate(children)
                    ]
                    return _stack(own, _side_by_side(peaks) if pipeline else _in_turn(peaks))
        return _stack(own, {})

    def _known_rank(self, rank: str, where: str) -> None:
        if rank not in self.problem.sizes:
            raise MappingError(
                f"{where}: loop over an unknown rank '{rank}'{closest(rank, self.problem.sizes)}"
            )

    def _tile(self, step: Any, formula: Any) -> Values:
        tile = formula if isinstance(formula, int) else formula.evaluate(self.problem.names)
        return np.maximum(np.floor(tile), 1)

    def _room(self, step: Parallel, below: Nest, used: Mapping[str, Values], where: str) -> Values:
        units = {c.unit for c in _computes(below)}
        for unit in units:
            dimensions = self.problem.lanes.get(unit, {})
            if unit in self.problem.lanes and step.dimension not in dimensions:
                raise MappingError(
                    f"{where}: {unit} has no dimension '{step.dimension}'"
                    f"{closest(step.dimension, dimensions)}"
                )
        rooms = [self.problem.lanes[u][step.dimension] for u in units if u in self.problem.lanes]
        if len(rooms) != 1:
            known = ", ".join(sorted(units)) or "none"
            raise MappingError(
                f"{where}: a loop in space needs one unit below it, found {known}"
                f"{'' if units else '; add a compute'}"
            )
        room = np.floor(rooms[0] / used.get(step.dimension, 1))
        return np.maximum(room, 1)

    def _keep(
        self,
        step: Keep,
        loops: tuple[_Loop, ...],
        tiles: Mapping[str, Values],
        homes: dict[str, _Home],
        where: str,
    ) -> list[tuple[str, str, Values]]:
        levels = (*self.problem.memories, REGISTERS)
        for level in (step.level, *([step.spill.level] if step.spill else [])):
            if level not in levels:
                raise MappingError(f"{where}: no level '{level}'{closest(level, levels)}")
        held: list[tuple[str, str, Values]] = []
        below: Values = 0
        if step.overlaying is not None:
            under = homes.get(self.facts.root(step.overlaying))
            if under is None or under.level != step.level:
                raise MappingError(
                    f"{where}: overlaying {step.overlaying}, which is not kept at {step.level} "
                    "above"
                )
            below = self.words(under)
        for name in step.tensors:
            tensor = self.facts.root(name)
            if tensor not in self.facts.ranks:
                raise MappingError(
                    f"{where}: keep of an unknown tensor '{name}'{closest(name, self.facts.ranks)}"
                )
            parent = homes.get(tensor)
            if parent is not None and levels.index(step.level) <= levels.index(parent.level):
                if parent.parent is None and parent.level == step.level and not parent.loops:
                    parent = None  # the implicit home, said aloud
                else:
                    raise MappingError(
                        f"{where}: {name} is kept at {step.level} inside its home at "
                        f"{parent.level}: expected a level further in"
                    )
            home = _Home(tensor, step, step.level, parent, loops, dict(tiles))
            held.append((step.level, tensor, np.maximum(self.words(home) - below, 0)))
            if not step.streamed:
                homes[tensor] = home
                self.homes.append(home)
        return held

    def words(self, home: _Home) -> Values:
        """The words that a home takes: of a generational tensor, one generation."""
        ranks = self.facts.ranks[home.tensor]
        if home.tensor in self.facts.carried:
            ranks = ranks - self.facts.iterative
        words: Values = 1
        for rank in ranks:
            words = words * home.tiles[rank]
        if home.keep.double:
            words = words * 2
        if home.keep.spill is not None:
            share = home.keep.spill.share.evaluate(self.problem.names)
            words = words * (1 - np.asarray(share))
        return words

    def _compute(
        self,
        step: Compute,
        loops: tuple[_Loop, ...],
        tiles: Mapping[str, Values],
        homes: Mapping[str, _Home],
        where: str,
    ) -> None:
        einsum = self.einsums.get(step.einsum)
        if einsum is None:
            raise MappingError(
                f"{where}: compute of an unknown Einsum '{step.einsum}'"
                f"{closest(step.einsum, self.einsums)}"
            )
        if step.einsum in self.work:
            raise MappingError(f"{where}: Einsum {step.einsum} is computed twice")
        if step.unit not in self.problem.lanes:
            raise MappingError(
                f"{where}: no unit '{step.unit}'{closest(step.unit, self.problem.lanes)}"
            )
        for rank in sorted(einsum.ranks):
            if np.any(np.asarray(tiles[rank]) > 1):
                raise MappingError(
                    f"{where}: {step.einsum} is left with {np.max(tiles[rank]):g} of rank {rank} "
                    f"in one step: add 'for {rank}' or 'parallel {rank} over ...'"
                )
        self.work[step.einsum] = self._work(step, einsum, loops)
        steps = self.work[step.einsum].steps
        for operand in einsum.operands:
            self._read(step, operand, loops, homes, steps, where)
        for output in einsum.outputs:
            self._write(step, output, loops, homes, steps, where)

    def _work(self, step: Compute, einsum: EinsumFacts, loops: tuple[_Loop, ...]) -> Work:
        steps = self._product(loops, parallel=False)
        active = self._product(loops, parallel=True)
        lanes: Values = 1
        for extent in self.problem.lanes[step.unit].values():
            lanes = lanes * extent
        operations: dict[str, Values] = {}
        per_point: dict[str, int] = {}
        for operation in einsum.operations:
            gone = einsum.ranks - operation.ranks
            rest = [loop for loop in loops if loop.rank not in gone]
            done = steps if not gone else self._product(rest, parallel=False)
            known = operations.get(operation.name, 0)
            operations[operation.name] = known + operation.times * done
            if not gone:
                per_point[operation.name] = per_point.get(operation.name, 0) + operation.times
        if self.problem.edges == "exact":
            points = self._points(einsum.ranks, loops)
            scale = points / (steps * active)
            operations = {name: done * scale for name, done in operations.items()}
        return Work(step.unit, steps, active, lanes, operations, per_point, step.pipelined)

    def _read(
        self,
        step: Compute,
        operand: Operand,
        loops: tuple[_Loop, ...],
        homes: Mapping[str, _Home],
        steps: Values,
        where: str,
    ) -> None:
        tensor = operand.tensor
        self._add(step.einsum, tensor, REGISTERS, reads=steps)
        if operand.name in step.forwarding or tensor in step.forwarding:
            return
        home = homes.get(tensor)
        if home is None:
            raise MappingError(
                f"{where}: tensor {operand.name} has no home where {step.einsum} reads it: add "
                f"'keep {operand.name} at LEVEL' above, or 'forwarding {operand.name}'"
            )
        ranks = operand.ranks
        if home.level == REGISTERS:
            register, home = home, home.parent
            loads, tile = self._loads(register.loops, ranks), self._tile_words(register, ranks)
            if home is None:
                return
            loops = register.loops
        else:
            loads, tile = self._loads(loops, ranks), 1
        self._add(step.einsum, tensor, REGISTERS, writes=loads * tile)
        words = self._distinct(loops, ranks, loads, tile)
        self._add(step.einsum, tensor, home.level, reads=words)
        self._spill(home, step.einsum, reads=words)
        home.reads = home.reads + words
        home.readers.append((step.einsum, ranks))

    def _write(
        self,
        step: Compute,
        output: Operand,
        loops: tuple[_Loop, ...],
        homes: Mapping[str, _Home],
        steps: Values,
        where: str,
    ) -> None:
        tensor = output.tensor
        ranks = output.ranks - set(step.accumulating)
        once = self._product([o for o in loops if o.rank in ranks], parallel=False)
        self._add(step.einsum, tensor, REGISTERS, reads=steps - once, writes=steps)
        home = homes.get(tensor)
        if home is None:
            return
        if home.level == REGISTERS:
            register, home = home, home.parent
            loops, tile = register.loops, self._tile_words(register, ranks)
            if home is None:
                return
        else:
            tile = 1
        loads = self._loads(loops, ranks)
        self._add(step.einsum, tensor, REGISTERS, writes=loads * tile - once)
        words = self._distinct(loops, ranks, loads, tile)
        once = self._distinct(
            loops, ranks, self._product([o for o in loops if o.rank in ranks], parallel=False), tile
        )
        self._arrive(home, step.einsum, words, once)
        home.distinct = home.distinct + once
        home.writers.append((step.einsum, ranks))

    def _arrive(self, home: _Home, einsum: str, words: Values, once: Values) -> None:
        self._add(
            einsum,
            home.tensor,
            home.level,
            reads=words - once,
            writes=words,
        )
        self._spill(home, einsum, reads=words - once, writes=words)
        home.arrivals = home.arrivals + words

    def settle(self) -> None:
        """Move what homes exchange with the homes above them, inner ones first."""
        for home in reversed(self.homes):
            parent = home.parent
            if parent is None or home.level == REGISTERS:
                continue
            stay = 1 - self._share(home)
            if home.writers:
                einsum, ranks = home.writers[0]
                loads = self._loads(home.loops, ranks)
                words = self._distinct(home.loops, ranks, loads, self._tile_words(home, ranks))
                once = home.distinct
                self._add(einsum, home.tensor, home.level, writes=words - once)
                self._add(
                    einsum,
                    home.tensor,
                    parent.level,
                    reads=stay * (words - once),
                    writes=stay * words,
                )
                parent.distinct = parent.distinct + once
                parent.writers.append((einsum, ranks))
            elif home.readers and not home.keep.forwarded:
                einsum = home.readers[0][0]
                ranks = frozenset().union(*(r for _, r in home.readers))
                loads = self._loads(home.loops, ranks)
                words = self._distinct(home.loops, ranks, loads, self._tile_words(home, ranks))
                self._add(einsum, home.tensor, home.level, writes=words)
                self._add(einsum, home.tensor, parent.level, reads=stay * words)
                parent.reads = parent.reads + words
                parent.readers.append((einsum, ranks))

    def _share(self, home: _Home) -> Values:
        spill = home.keep.spill
        return 0 if spill is None else np.asarray(spill.share.evaluate(self.problem.names))[()]

    def _spill(self, home: _Home, einsum: str, reads: Values = 0, writes: Values = 0) -> None:
        if home.keep.spill is not None:
            share = self._share(home)
            level = home.keep.spill.level
            self._add(einsum, home.tensor, level, reads=share * reads, writes=share * writes)

    def _add(
        self, einsum: str, tensor: str, level: str, reads: Values = 0, writes: Values = 0
    ) -> None:
        entry = self.traffic.setdefault((einsum, tensor, level), [0.0, 0.0])
        entry[0] = entry[0] + reads
        entry[1] = entry[1] + writes

    # Closed forms over the loops above a node.

    def _loads(self, loops: Collection[_Loop], ranks: frozenset[str]) -> Values:
        """How often a tile is brought in: the loops in time that reload it."""
        loads: Values = 1
        trailing: Values = self.problem.retention == "trailing"
        for loop in reversed([loop for loop in loops if not loop.parallel]):
            if loop.rank in ranks:
                loads = loads * loop.count
                trailing = trailing & (loop.count == 1)
            elif trailing is not True:
                loads = loads * np.where(trailing, 1, loop.count)
        return loads

    def _product(self, loops: Collection[_Loop], *, parallel: bool) -> Values:
        product: Values = 1
        for loop in loops:
            if loop.parallel == parallel:
                product = product * loop.count
        return product

    def _distinct(
        self, loops: Collection[_Loop], ranks: frozenset[str], loads: Values, tile: Values
    ) -> Values:
        """Words that cross to the parent: loads x distinct copies x tile."""
        copies = [loop for loop in loops if loop.parallel and loop.rank in ranks]
        return loads * self._product(copies, parallel=True) * tile

    def _tile_words(self, home: _Home, ranks: frozenset[str]) -> Values:
        words: Values = 1
        for rank in ranks:
            words = words * home.tiles[rank]
        return words

    def _points(self, own: frozenset[str], loops: Collection[_Loop]) -> Values:
        points: Values = 1
        for rank in own:
            points = points * self.problem.sizes[rank]
        for loop in loops:
            if loop.rank not in own:
                points = points * loop.count
        return points


def _loop(rank: str, before: Values, tile: Values, *, parallel: bool) -> _Loop:
    return _Loop(rank, _ceil_divide(before, tile), parallel, before, tile)


def _ceil_divide(value: Values, by: Values) -> Values:
    return np.ceil(np.asarray(value) / by)[()]


def _computes(nest: Nest) -> Iterator[Compute]:
    for node in nest:
        if isinstance(node.step, Compute):
            yield node.step
        elif isinstance(node.step, Branch):
            for child in node.step.children:
                yield from _computes(child)


def _stack(own: list[tuple[str, str, Values]], below: _Peak) -> _Peak:
    peak = dict(below)
    for level, tensor, words in own:
        total, held = peak.get(level, (0, ()))
        peak[level] = (total + words, ((tensor, words), *held))
    return peak


def _side_by_side(peaks: list[_Peak]) -> _Peak:
    together: _Peak = {}
    for peak in peaks:
        for level, (words, held) in peak.items():
            total, others = together.get(level, (0, ()))
            together[level] = (total + words, (*others, *held))
    return together


def _in_turn(peaks: list[_Peak]) -> _Peak:
    longest: _Peak = {}
    for peak in peaks:
        for level, (words, held) in peak.items():
            total, others = longest.get(level, (0, ()))
            larger = held if np.max(words) > np.max(total) else others
            longest[level] = (np.maximum(total, words), larger)
    return longest
