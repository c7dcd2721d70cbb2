"""A nest executed one iteration at a time, on tiny shapes: the truth of the reuse analysis.

Nothing here multiplies loop bounds. Every loop is walked; all lanes that run side by side are
carried along; every tile at every home is a set of words; and each fill, read, write, arrival,
read-modify-write and drain is an event that adds to a tally.

- A word is named by the values of the rank variables (and batch ranks) that index it. Where the
  accesses of a place have different ranks or other indices than variables, it is named by its
  coordinates in the tensor behind views: whatever the accesses visit together. What a step does not
  move stays then, and what comes is what is not there (padded tiles are left out of that).
- A memory is one memory: what lanes side by side keep there is the union of their tiles. Registers
  are each lane's own, and their tallies are averages over the lanes that ever work. A memory with
  instances is each instance's own.
- A word that lanes of their own bring in (or send up) crosses once for those that share it, and
  once for each index along a dimension that does not share such words.
- When the nest comes to a home with another tile than it holds, the old tile is drained (if an
  Einsum below writes it) and the new one fetched. ``explicit``: whenever it comes there.
- ``exact`` edges cut ragged tiles; what a home holds is then decided on whole tiles: it comes to
  another tile when a loop moves that is not trailing (no loop inside it, of more than one
  iteration, changes the tile).
- A home's room is taken from when a tile is fetched until the last visit that finds it there;
  under ``explicit`` retention, right above a branch, while the children run that touch it.
"""

from __future__ import annotations

import bisect
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from einfuse.einsum.analysis.operations import (
    is_constant,
    is_product_sum,
    is_view,
    operations_per_point,
)
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Coordinate,
    Negate,
    Number,
    RankSize,
    variables,
)
from einfuse.einsum.language.substitution import put
from einfuse.mapper.nest.nest import Branch, Compute, Keep, Nest, Parallel, Temporal, walk_nest
from einfuse.mapper.nest.reuse import Problem

REGISTERS = "registers"
Position = tuple[int, ...]
Piece = tuple[Position, int, int]  # of a rank: the steps to it, its extent, its first coordinate
Word = tuple[Any, ...]  # for each rank, a place in a piece; or coordinates
Ranges = dict[str, Piece]


@dataclass
class Lane:
    """One of the lanes that run side by side, with the coordinates it is at."""

    place: tuple[int, ...]
    at: Ranges
    unit: str = ""
    index: dict[str, tuple[int, ...]] = field(default_factory=dict)  # along each dimension


@dataclass
class Use:
    """What one compute does to one tensor: the access, and the ranks that name the words."""

    einsum: str
    ranks: tuple[str, ...]
    access: Access


@dataclass
class Place:
    """A tensor somewhere in the tree: at a memory, or in the registers of the lanes."""

    tensor: str
    level: str
    position: Position
    parent: Place | None
    keep: Keep | None = None
    ranks: tuple[str, ...] = ()
    indexed: frozenset[Access] = frozenset()  # how the computes below index it
    joint: bool = False  # whether words are named by their coordinates
    readers: list[Use] = field(default_factory=list)
    writers: list[Use] = field(default_factory=list)
    held: list[tuple[Lane, frozenset[Word]]] | None = None
    key: Any = None
    came_before: set[Any] = field(default_factory=set)  # words that have arrived here
    sent: set[Any] = field(default_factory=set)  # words that have been sent up from here
    stays: list[list[Any]] = field(default_factory=list)  # [from, to, words]
    whole: Fraction = Fraction(0)  # words of the place that it may share with others

    @property
    def share(self) -> Fraction:
        spill = self.keep.spill if self.keep else None
        return Fraction(0) if spill is None else Fraction(spill.share.evaluate({}))


@dataclass(frozen=True)
class Found:
    """What happened: exact numbers, keyed as in the analysis."""

    traffic: dict[tuple[str, str, str], tuple[Fraction, Fraction]]
    steps: dict[str, int]
    active: dict[str, int]
    operations: dict[str, dict[str, Fraction]]  # over all lanes
    peak_words: dict[str, Fraction]


def interpret(nest: Nest, problem: Problem, batch: tuple[str, ...] = ()) -> Found:
    """Execute a nest and return what was counted."""
    machine = _Machine(nest, problem, batch)
    machine.execute()
    return machine.found()


class _Machine:
    def __init__(self, nest: Nest, problem: Problem, batch: tuple[str, ...]) -> None:
        self.nest, self.problem, self.batch = nest, problem, batch
        self.cascade = cascade = problem.facts.cascade
        self.view_of = _views(cascade)
        self.einsums = {
            e.name: e for e in cascade.einsums if not is_view(e) and not is_constant(e.expression)
        }
        self.traffic: dict[tuple[str, str, str], list[Fraction]] = defaultdict(
            lambda: [Fraction(0), Fraction(0)]
        )
        self.steps: dict[str, int] = defaultdict(int)
        self.lanes: dict[str, set[tuple[int, ...]]] = defaultdict(set)
        self.operations: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.folded: dict[tuple[str, int], set[Any]] = defaultdict(set)
        self.accumulated: dict[str, set[Any]] = defaultdict(set)
        self.side: dict[Position, int] = {}
        self.windows: dict[Position, list[tuple[int, int, list[tuple[int, int]]]]] = defaultdict(
            list
        )
        self.peaks: dict[tuple[str, tuple[int, int], Position], Fraction] = {}
        self.clock = 0
        self.roots: dict[str, Place] = {}
        self.places: dict[tuple[Position, str], Place] = {}
        self.streams: dict[tuple[Position, str], Place] = {}
        self.order: list[Place] = []
        self._prepare()

    # Before the run: which place each access goes to, and which loops count for it.

    def ranks_of(self, access: Access) -> frozenset[str]:
        named = {self.cascade.rank_of(v) for i in access.indices for v in variables(i)}
        return frozenset(named) | set(self.batch)

    def root(self, tensor: str) -> str:
        return self.view_of.get(tensor, tensor)

    def tensor_ranks(self, tensor: str) -> frozenset[str]:
        found: frozenset[str] = frozenset()
        for einsum in self.einsums.values():
            for access in (*einsum.outputs, *einsum.operands):
                if self.root(access.tensor) == tensor:
                    found |= self.ranks_of(access)
        return found

    def indexed(self, tensor: str, below: Nest) -> frozenset[Access]:
        found: set[Access] = set()
        for node in walk_nest(below):
            if isinstance(node.step, Compute):
                einsum = self.einsums[node.step.einsum]
                for access in (*einsum.outputs, *einsum.operands):
                    if self.root(access.tensor) == tensor:
                        found.add(access)
        return frozenset(found)

    def names_coordinates(self, accesses: Any) -> bool:
        """Whether words have to be told apart by what they are, and not by ranks."""
        every = [self.behind(access) for access in accesses]
        if any(self.carried(tensor) for tensor, _ in every):
            return False
        plain = all(isinstance(index, Coordinate) for _, own in every for index in own)
        once = all(len(set(own)) == len(own) for _, own in every)
        radix = all(access.tensor in self.view_of for access in accesses)
        return len(set(every)) > 1 or not (once and (plain or radix))

    def behind(self, access: Access) -> tuple[str, tuple[Any, ...]]:
        """The tensor behind views, and the indices there."""
        tensor, indices = access.tensor, tuple(index.expression for index in access.indices)
        while tensor in self.view_of:
            (view,) = self.cascade.producers(tensor)
            values = {
                index.expression.variable: value  # type: ignore[union-attr]
                for index, value in zip(view.output.indices, indices, strict=True)
            }
            read = view.operands[0]
            tensor, indices = read.tensor, tuple(put(i.expression, values) for i in read.indices)
        return tensor, indices

    def coordinates(self, access: Access, at: Ranges) -> frozenset[Word]:
        """The coordinates that an access visits of a tile."""
        _, indices = self.behind(access)
        names = sorted({v for index in indices for v in variables(index)})
        spans = [range(at[r][2], at[r][2] + at[r][1]) for r in map(self.cascade.rank_of, names)]
        batch = [range(at[r][2], at[r][2] + at[r][1]) for r in self.batch]
        found: set[Word] = set()
        for point in itertools.product(*spans):
            values = dict(zip(names, point, strict=True))
            where = tuple(self.value(index, values) for index in indices)
            found |= {(*own, *where) for own in itertools.product(*batch)}
        return frozenset(found)

    def value(self, node: Any, values: Mapping[str, int]) -> int:
        match node:
            case Coordinate(variable=variable):
                return values[variable]
            case Number(value=value):
                return int(value)
            case RankSize(rank=rank):
                return int(self.problem.sizes[rank])
            case Negate(operand=operand):
                return -self.value(operand, values)
            case Binary(operator=sign, left=left, right=right):
                a, b = self.value(left, values), self.value(right, values)
                known = {"+": a + b, "-": a - b, "*": a * b}
                if sign in known:
                    return known[sign]
                return a // b if sign == "/" else a % b
        raise NotImplementedError("a gather has no coordinates before it runs")

    def carried(self, tensor: str) -> bool:
        iterative = {i.variable for i in self.cascade.iterations}
        return any(
            output.tensor == tensor
            and any(
                set(variables(index)) & iterative and not isinstance(index.expression, Coordinate)
                for index in output.indices
            )
            for einsum in self.cascade.einsums
            for output in einsum.outputs
        )

    def _prepare(self) -> None:
        cascade = self.cascade
        for name in (*cascade.inputs, *cascade.outputs):
            tensor = self.root(name)
            used = any(
                self.root(access.tensor) == tensor
                for einsum in self.einsums.values()
                for access in (*einsum.outputs, *einsum.operands)
            )
            if used and tensor not in self.roots:
                self.roots[tensor] = Place(tensor, self.problem.memories[0], (), None)
                self.roots[tensor].indexed = self.indexed(tensor, self.nest)
        self._prepare_nest(self.nest, (), dict(self.roots))
        for place in (*self.roots.values(), *self.order):
            uses = place.writers or place.readers
            ranks = frozenset().union(*(u.ranks for u in uses)) if uses else frozenset()
            place.ranks = tuple(sorted(ranks))
            place.joint = self.names_coordinates({use.access for use in uses})

    def _prepare_nest(self, nest: Nest, base: Position, homes: dict[str, Place]) -> None:
        for number, node in enumerate(nest):
            position = (*base, number)
            step = node.step
            if isinstance(step, Keep):
                for name in step.tensors:
                    tensor = self.root(name)
                    parent = homes.get(tensor)
                    if parent is not None and parent.level == step.level:
                        continue  # it lives there anyway
                    place = Place(tensor, step.level, position, parent, step)
                    place.indexed = self.indexed(tensor, nest[number + 1 :])
                    self.order.append(place)
                    if step.streamed:
                        self.streams[position, tensor] = place
                    else:
                        self.places[position, tensor] = place
                        homes[tensor] = place
            elif isinstance(step, Compute):
                self._prepare_compute(step, position, homes)
            elif isinstance(step, Branch):
                for child, inner in enumerate(step.children):
                    self._prepare_nest(inner, (*position, child), dict(homes))

    def _prepare_compute(self, step: Compute, position: Position, homes: dict[str, Place]) -> None:
        einsum = self.einsums[step.einsum]
        accesses = [(a, False) for a in dict.fromkeys(einsum.operands)]
        accesses += [(a, True) for a in einsum.outputs]
        for number, (access, written) in enumerate(accesses):
            tensor = self.root(access.tensor)
            home = homes.get(tensor)
            ranks = self.ranks_of(access) - (set(step.accumulating) if written else set())
            use = Use(step.einsum, tuple(sorted(ranks)), access)
            if home is None or home.level != REGISTERS:
                label = f"{'out' if written else 'in'}{number}"
                forwarded = {access.tensor, tensor} & set(step.forwarding) and not written
                home = Place(tensor, REGISTERS, position, None if forwarded else home)
                self.places[position, label] = home
                self.order.append(home)
            elif not written and {access.tensor, tensor} & set(step.forwarding):
                continue
            place: Place | None = home
            while place is not None:
                (place.writers if written else place.readers).append(use)
                if not written and place.keep is not None and place.keep.forwarded:
                    break
                place = place.parent

    # The run.

    def execute(self) -> None:
        everything: Ranges = {rank: ((), int(size), 0) for rank, size in self.problem.sizes.items()}
        lanes = [Lane((), everything)]
        self._trailing = _moving_loops(self.nest, self.problem)
        self._run(self.nest, (), lanes, (), {})
        for place in reversed(self.order):
            if place not in self.streams.values():
                self._close(place)

    def _run(
        self,
        nest: Nest,
        base: Position,
        lanes: list[Lane],
        path: tuple[int, ...],
        used: Mapping[str, int],
        number: int = 0,
    ) -> None:
        if number == len(nest):
            return
        position = (*base, number)
        step = nest[number].step
        if isinstance(step, Temporal):
            for index, moved in enumerate(self._tiles(lanes, step.rank, _tile(step))):
                self._run(nest, base, moved, (*path, index), used, number + 1)
        elif isinstance(step, Parallel):
            tile = _tile(step)
            unit = next(_units(nest[number:]))
            room = self.problem.lanes[unit][step.dimension] // used.get(step.dimension, 1)
            wanted = -(-lanes[0].at[step.rank][1] // tile)
            waves = wanted > max(int(room), 1)
            if position not in self.side:
                self.side[position] = min(wanted, max(int(room), 1))
                self.side[*position, -1] = waves
            side = self.side[position]
            now = {**used, step.dimension: used.get(step.dimension, 1) * side}
            in_turn: Iterator[Any] = enumerate(self._tiles(lanes, step.rank, side * tile))
            if not self.side[*position, -1]:
                in_turn = iter([(None, lanes)])
            for index, wave in in_turn:
                spread = [
                    Lane(
                        (*lane.place, place),
                        {**lane.at, step.rank: piece},
                        unit,
                        {
                            **lane.index,
                            step.dimension: (*lane.index.get(step.dimension, ()), place),
                        },
                    )
                    for lane in wave
                    for place, piece in enumerate(self._pieces(lane.at[step.rank], tile))
                ]
                onward = path if index is None else (*path, index)
                self._run(nest, base, spread, onward, now, number + 1)
        elif isinstance(step, Keep):
            visited = [
                place
                for name in step.tensors
                for place in (self.places.get((position, self.root(name))),)
                if place is not None
            ]
            for place in visited:
                self._visit(place, lanes, path)
            rooms = [
                place
                for name in step.tensors
                for place in (self.streams.get((position, self.root(name))),)
                if place is not None
            ]
            self.clock += bool(rooms)
            for place in rooms:
                place.stays.append([self.clock, self.clock, self._room(place, lanes)])
            self._run(nest, base, lanes, path, used, number + 1)
            for place in (*visited, *rooms):
                place.stays[-1][1] = self.clock
                self._shorten(place, nest, base, number)
        elif isinstance(step, Compute):
            self._compute(step, position, lanes, path)
            self._run(nest, base, lanes, path, used, number + 1)
        else:
            begin, spans = self.clock, []
            for child, inner in enumerate(step.children):
                self.clock += 1
                start = self.clock
                self._run(inner, (*position, child), lanes, path, used)
                spans.append((start, self.clock))
            self.windows[position].append((begin, self.clock, spans))
            self._run(nest, base, lanes, path, used, number + 1)

    def _shorten(self, place: Place, nest: Nest, base: Position, number: int) -> None:
        following = [n for n in range(number, len(nest)) if not isinstance(nest[n].step, Keep)]
        branches = [n for n, node in enumerate(nest) if isinstance(node.step, Branch)]
        if self.problem.retention != "explicit" or branches != following[:1]:
            return
        branch = nest[branches[0]].step
        assert isinstance(branch, Branch)
        spans = self.windows[*base, branches[0]][-1][2]
        touching = [
            span
            for span, child in zip(spans, branch.children, strict=True)
            if self.indexed(place.tensor, child)
        ]
        if touching and not branch.pipeline:
            place.stays[-1][:2] = [touching[0][0], touching[-1][1]]

    def _pieces(self, whole: Piece, tile: int) -> Iterator[Piece]:
        steps, extent, first = whole
        for number, offset in enumerate(range(0, extent, tile)):
            size = tile if self.problem.edges == "whole" else min(tile, extent - offset)
            yield (*steps, number), size, first + offset

    def _tiles(self, lanes: list[Lane], rank: str, tile: int) -> Iterator[list[Lane]]:
        """The lanes at each step of a loop in time; a lane that is done pauses."""
        pieces = [list(self._pieces(lane.at[rank], tile)) for lane in lanes]
        for index in range(max(map(len, pieces))):
            yield [
                Lane(lane.place, {**lane.at, rank: own[index]}, lane.unit, lane.index)
                for lane, own in zip(lanes, pieces, strict=True)
                if index < len(own)
            ]

    def _words(self, lane: Lane, ranks: tuple[str, ...]) -> frozenset[Word]:
        spans = [[(lane.at[r][0], o) for o in range(lane.at[r][1])] for r in ranks]
        return frozenset(itertools.product(*spans))

    def _room(self, place: Place, lanes: list[Lane]) -> Fraction:
        words = Fraction(self._held(place, lanes))
        keep = place.keep
        assert keep is not None
        words *= (2 if keep.double else 1) * (1 - place.share)
        words *= 1 if keep.copies is None else int(keep.copies.evaluate({}))
        if keep.overlaying is not None:
            under = max(
                (
                    p
                    for p in self.order
                    if p.tensor == self.root(keep.overlaying)
                    and p.level == keep.level
                    and p.keep is not None
                    and p.position[:-1] == place.position[: len(p.position) - 1]
                    and p.position < place.position
                ),
                key=lambda p: p.position,
            )
            place.whole = max(words, under.whole)
            return place.whole - under.whole
        place.whole = words
        return words

    def _held(self, place: Place, lanes: list[Lane]) -> int:
        """The words of what the computes below visit, in the fullest copy of a place."""
        accesses = place.indexed
        carried = self.carried(place.tensor)
        gone = {i.rank for i in self.cascade.iterations} if carried else set()
        joint = self.names_coordinates(accesses)
        ways = {self.ranks_of(access) - gone for access in accesses}
        copies: dict[Any, frozenset[Word]] = defaultdict(frozenset)
        for lane in lanes:
            copy = self._copy(place, lane)
            for access in accesses if joint else ():
                copies[copy] |= self.coordinates(access, lane.at)
            for ranks in () if joint else ways or {self.tensor_ranks(place.tensor) - gone}:
                copies[copy, ranks] |= self._words(lane, tuple(sorted(ranks)))
        return max(map(len, copies.values()))

    def _visit(self, place: Place, lanes: list[Lane], path: tuple[int, ...]) -> None:
        """Come to a place: keep what it holds, or drain that and fetch another tile."""
        self.clock += 1
        if place.joint:
            self._visit_joint(place, lanes, path)
            return
        tile = [(lane, self._words(lane, place.ranks)) for lane in lanes]
        if self.problem.edges == "whole":
            key: Any = frozenset().union(*(words for _, words in tile))
        else:
            moving = self._trailing(place.position, place.ranks)
            key = tuple(index for index, moves in zip(path, moving, strict=True) if moves)
        if self.problem.retention == "trailing" and place.held is not None and key == place.key:
            return
        self._close(place)
        place.key, place.held = key, tile
        if place.keep is not None:
            place.stays.append([self.clock, self.clock, self._room(place, lanes)])
        own = self._own(place, tile)
        parent = place.parent
        if place.writers:
            if parent is not None:
                einsum = place.writers[0].einsum
                self._add(einsum, place.tensor, place.level, writes=len(own & place.sent))
        elif place.readers and parent is not None:
            if place.keep is not None and place.keep.forwarded:
                return
            einsum = place.readers[0].einsum
            crossing = self._crossing(place, parent, tile, "operands")
            self._add(einsum, place.tensor, place.level, writes=len(own))
            self._access(parent, einsum, reads=(1 - place.share) * len(crossing))

    def _visit_joint(self, place: Place, lanes: list[Lane], path: tuple[int, ...]) -> None:
        """Come to a place whose words have coordinates: fetch what is not there of what moved."""
        uses = place.writers or place.readers
        accesses = dict.fromkeys(use.access for use in uses)
        keys, moved, stayed = [], [], []
        for number, access in enumerate(accesses):
            ranks = tuple(sorted(self.ranks_of(access)))
            moving = self._trailing(place.position, ranks)
            keys.append(tuple(index for index, moves in zip(path, moving, strict=True) if moves))
            held = place.key is not None and place.key[number] == keys[-1]
            same = self.problem.retention == "trailing" and held
            (stayed if same else moved).append(access)
        if place.keep is not None and moved:
            place.stays.append([self.clock, self.clock, self._room(place, lanes)])
        if not moved:
            return
        self._close(place)
        place.key = keys

        def tile(some: Any) -> list[tuple[Lane, frozenset[Word]]]:
            sets = [[self.coordinates(access, lane.at) for access in some] for lane in lanes]
            return [(lane, frozenset().union(*own)) for lane, own in zip(lanes, sets, strict=True)]

        there = dict(self._own_words(place, tile(stayed)))
        coming = [
            (lane, words - there.get(self._copy(place, lane), frozenset()))
            for lane, words in tile(moved)
        ]
        place.held = coming if not place.writers else tile(accesses)
        parent, einsum = place.parent, uses[0].einsum if uses else ""
        if parent is None:
            return
        if place.writers:
            own = self._own(place, place.held)
            self._add(einsum, place.tensor, place.level, writes=len(own & place.sent))
        elif place.keep is None or not place.keep.forwarded:
            crossing = self._crossing(place, parent, coming, "operands")
            self._add(einsum, place.tensor, place.level, writes=len(self._own(place, coming)))
            self._access(parent, einsum, reads=(1 - place.share) * len(crossing))

    def _own_words(
        self, place: Place, tile: list[tuple[Lane, frozenset[Word]]]
    ) -> dict[Any, frozenset[Word]]:
        found: dict[Any, frozenset[Word]] = defaultdict(frozenset)
        for lane, words in tile:
            found[self._copy(place, lane)] |= words
        return found

    def _copy(self, place: Place, lane: Lane) -> tuple[int, ...]:
        """Which of the copies of a place is a lane's."""
        if place.level == REGISTERS:
            return lane.place
        return lane.index.get("instances", ()) if place.level in self.problem.instanced else ()

    def _own(self, place: Place, tile: list[tuple[Lane, frozenset[Word]]]) -> set[Any]:
        return {(self._copy(place, lane), word) for lane, words in tile for word in words}

    def _crossing(
        self, place: Place, parent: Place, tile: list[tuple[Lane, frozenset[Word]]], kind: str
    ) -> set[Any]:
        """What comes from the place above, or goes there: once for all lanes that share it."""

        def apart(lane: Lane) -> tuple[Any, ...]:
            return tuple(
                (dimension, lane.index.get(dimension, ()))
                for dimension, shared in self.problem.shares.get(lane.unit, {}).items()
                if shared not in ("any", kind)
                and (
                    place.level == REGISTERS
                    or (place.level in self.problem.instanced and dimension == "instances")
                )
            )

        return {
            (self._copy(parent, lane), apart(lane), word) for lane, words in tile for word in words
        }

    def _close(self, place: Place) -> None:
        """Send a written tile up: one word for each element, however many lanes add to it."""
        if place.held is None:
            return
        held, place.held = place.held, None
        parent = place.parent
        if not place.writers or parent is None:
            return
        einsum, stay = place.writers[0].einsum, 1 - place.share
        own, words = self._own(place, held), self._crossing(place, parent, held, "outputs")
        again = len(words & parent.came_before)
        parent.came_before |= words
        self._access(parent, einsum, reads=stay * again, writes=stay * len(words))
        place.sent |= own
        if self.problem.drains == "read" and place.keep is not None:
            self._add(einsum, place.tensor, place.level, reads=stay * len(own))

    def _access(self, place: Place, einsum: str, reads: Any = 0, writes: Any = 0) -> None:
        self._add(einsum, place.tensor, place.level, reads, writes)
        if place.keep is not None and place.keep.spill is not None:
            share, level = place.share, place.keep.spill.level
            self._add(einsum, place.tensor, level, share * reads, share * writes)

    def _add(self, einsum: str, tensor: str, level: str, reads: Any = 0, writes: Any = 0) -> None:
        entry = self.traffic[einsum, tensor, level]
        entry[0] += reads
        entry[1] += writes

    def _compute(
        self, step: Compute, position: Position, lanes: list[Lane], path: tuple[int, ...]
    ) -> None:
        einsum = self.einsums[step.einsum]
        self.steps[step.einsum] += 1
        self.lanes[step.einsum] |= {lane.place for lane in lanes}
        for (at, label), place in self.places.items():
            if at == position and (label.startswith("in") or label.startswith("out")):
                self._visit(place, lanes, path)
        for access in dict.fromkeys(einsum.operands):
            self._add(step.einsum, self.root(access.tensor), REGISTERS, reads=len(lanes))
        for output in einsum.outputs:
            ranks = tuple(sorted(self.ranks_of(output) - set(step.accumulating)))
            tensor = self.root(output.tensor)
            for lane in lanes:
                element = (lane.place, tuple(lane.at[r][0] for r in ranks))
                again = element in self.accumulated[tensor]
                self.accumulated[tensor].add(element)
                self._add(step.einsum, tensor, REGISTERS, reads=int(again), writes=1)
        self._operate(einsum, lanes)

    def _operate(self, einsum: Einsum, lanes: list[Lane]) -> None:
        """Every operator once for each point; a further fold once for each point it folds."""
        cascade = self.cascade
        done = self.operations[einsum.name]
        own = {cascade.rank_of(v) for v in einsum.variables} | set(self.batch)
        others = tuple(sorted(set(self.problem.sizes) - own))
        for operation, times in operations_per_point(einsum.expression).items():
            done[operation] += times * len(lanes)
        gone: set[str] = set()
        for number, reduction in enumerate(einsum.reductions):
            name = {"+": "add", "max": "max", "min": "max", "*": "multiply"}[reduction.operator]
            if number == 0 and is_product_sum(einsum):
                done["multiply"] -= len(lanes)
                name = "mac"
            kept = tuple(sorted(own - gone))
            for lane in lanes:
                point = tuple(lane.at[r] for r in (*kept, *others))
                if point not in self.folded[einsum.name, number]:
                    self.folded[einsum.name, number].add(point)
                    done[name] += 1
            gone |= {cascade.rank_of(v) for v in reduction.variables}

    # After the run.

    def found(self) -> Found:
        def average(key: tuple[str, str, str], count: Fraction) -> Fraction:
            return count / len(self.lanes[key[0]]) if key[2] == REGISTERS else count

        return Found(
            {
                key: (average(key, reads), average(key, writes))
                for key, (reads, writes) in self.traffic.items()
            },
            dict(self.steps),
            {name: len(lanes) for name, lanes in self.lanes.items()},
            {
                name: {k: Fraction(v) for k, v in done.items() if v}
                for name, done in self.operations.items()
            },
            self._peaks(),
        )

    def _peaks(self) -> dict[str, Fraction]:
        kept = [p for p in self.order if p.keep is not None]
        levels = dict.fromkeys([p.level for p in kept])
        peaks = {level: self._peak(level, (0, self.clock), self.nest, ()) for level in levels}
        outer = self.problem.memories[0]
        everything: Ranges = {r: ((), int(n), 0) for r, n in self.problem.sizes.items()}
        rooted = sum(self._held(place, [Lane((), everything)]) for place in self.roots.values())
        peaks[outer] = peaks.get(outer, Fraction(0)) + rooted
        return peaks

    def _peak(self, level: str, window: tuple[int, int], nest: Nest, base: Position) -> Fraction:
        """The most that the places of a nest hold at a level within a window of time."""
        key = (level, window, base)
        if key not in self.peaks:
            inside = [p for p in self.order if p.keep and p.level == level]
            inside = [p for p in inside if p.position[: len(base)] == base]
            opened = {stay[0] for place in inside for stay in place.stays}
            moments = {window[0]} | {m for m in opened if window[0] <= m <= window[1]}
            self.peaks[key] = max(self._load(level, moment, nest, base) for moment in moments)
        return self.peaks[key]

    def _load(self, level: str, moment: int, nest: Nest, base: Position) -> Fraction:
        """What the places of a nest hold at a level at a moment."""
        total = Fraction(0)
        for place in self.order:
            if place.keep and place.level == level and place.position[:-1] == base:
                for start, end, words in _around(place.stays, moment):
                    total += words if start <= moment <= end else 0
        for number, node in enumerate(nest):
            step = node.step
            if not isinstance(step, Branch):
                continue
            position = (*base, number)
            running = [w for w in _around(self.windows[position], moment) if w[1] >= moment]
            for child, inner in enumerate(step.children):
                if step.pipeline and running:
                    total += self._peak(level, running[-1][2][child], inner, (*position, child))
                else:
                    total += self._load(level, moment, inner, (*position, child))
        return total


def _around(spans: list[Any], moment: int) -> list[Any]:
    """The span in which a moment can lie: of those in the order of time, the last begun by then."""
    last = bisect.bisect_right(spans, moment, key=lambda span: span[0])
    return spans[max(last - 1, 0) : last]


def _views(cascade: Cascade) -> dict[str, str]:
    found: dict[str, str] = {}
    for einsum in cascade.einsums:
        if is_view(einsum):
            source = einsum.operands[0].tensor
            found[einsum.name] = found.get(source, source)
    return found


def _tile(step: Temporal | Parallel) -> int:
    return 1 if step.tile is None else int(step.tile.evaluate({}))


def _units(nest: Nest) -> Iterator[str]:
    for node in nest:
        if isinstance(node.step, Compute):
            yield node.step.unit
        elif isinstance(node.step, Branch):
            for child in node.step.children:
                yield from _units(child)


def _moving_loops(nest: Nest, problem: Problem) -> Any:
    """Return (position, ranks) -> for each loop in time above: does its step fetch another tile?"""
    above: dict[Position, list[tuple[str, int]]] = {}

    def walk(
        nest: Nest,
        base: Position,
        loops: list[tuple[str, int]],
        extents: dict[str, int],
        used: dict[str, int],
    ) -> None:
        for number, node in enumerate(nest):
            position, step = (*base, number), node.step
            above[position] = loops
            if isinstance(step, Temporal):
                tile = min(_tile(step), extents[step.rank])
                loops = [*loops, (step.rank, -(-extents[step.rank] // tile))]
                extents = {**extents, step.rank: tile}
            elif isinstance(step, Parallel):
                tile = min(_tile(step), extents[step.rank])
                unit = next(_units(nest[number:]))
                room = int(problem.lanes[unit][step.dimension]) // used.get(step.dimension, 1)
                wanted = -(-extents[step.rank] // tile)
                side = min(wanted, max(room, 1))
                used = {**used, step.dimension: used.get(step.dimension, 1) * side}
                if side < wanted:
                    loops = [*loops, (step.rank, -(-extents[step.rank] // (side * tile)))]
                extents = {**extents, step.rank: tile}
            elif isinstance(step, Branch):
                for child, inner in enumerate(step.children):
                    walk(inner, (*position, child), loops, extents, used)

    walk(nest, (), [], {r: int(s) for r, s in problem.sizes.items()}, {})

    def moving(position: Position, ranks: tuple[str, ...]) -> list[bool]:
        loops = above[position]
        changing = [n for n, (rank, count) in enumerate(loops) if rank in ranks and count > 1]
        last = max(changing, default=-1)
        return [n <= last for n in range(len(loops))]

    return moving
