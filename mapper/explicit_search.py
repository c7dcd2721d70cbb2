"""The mapping of least cost under ``explicit`` retention, with Einsums fused or not: `find_least`.

The Einsums run in the cascade's order, in *blocks*: one alone, or several under loops that they
share. What one Einsum makes for another lies in the outermost memory, or whole at the first level
inside it from the block that makes it to the last that reads it, or, within a block, there in tiles
beneath the shared loops. What comes from outside may lie there whole too, from the first block that
reads it to the last; or, as what goes outside, beneath some of the loops that a block shares. Each
Einsum then has what room is left, and runs in the best way (`einfuse.mapper.explicit`): given where
its tensors are, no Einsum changes what another costs. The best sequence is a shortest path over
bounds that are tightened as they come up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heappop, heappush
from itertools import combinations, count, permutations, product
from math import prod
from time import process_time
from typing import Any

import numpy as np

from .architecture import INSTANCES, Architecture
from .counts import REGISTERS
from .errors import MappingError
from .explicit import Lanes, Level, Options, Row, Task
from .facts import Facts
from .legality import Legality
from .tiling import tile_choices

ROLES = ("input", "weight", "output")


@dataclass(frozen=True, slots=True)
class Rule:
    """Which roles of an Einsum's tensors have to live at a level, and which may.

    Of two operands the last is the ``weight``, the other an ``input``.
    """

    must: tuple[str, ...] = ()
    may: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """Einsums under loops that they share.

    Attributes:
        loops: rank and tile of each shared loop, outer to inner.
        tiled: what lies in tiles at the first level, beneath the loops.
        standing: what lies there beneath some of the loops, and how many, though it is not handed
            on: beneath the others it would come again.
        rows: how each Einsum runs.
    """

    einsums: tuple[str, ...]
    loops: tuple[tuple[str, int], ...]
    tiled: tuple[str, ...]
    standing: tuple[tuple[str, int], ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A mapping and its cost: blocks in order, and what lies whole at the first level over them."""

    cost: float
    blocks: tuple[Block, ...]
    resident: tuple[str, ...]
    options: int
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class _Edge:
    """A block that may come next, without its rows."""

    first: int
    last: int
    loops: tuple[tuple[str, int], ...]
    near: frozenset[str]  # tensors at the first level as the Einsums see them
    tiled: frozenset[str]
    standing: tuple[tuple[str, int], ...]
    after: frozenset[str]  # residents when it is done
    fill: float  # cost of what comes to the first level, and goes from there, for all of them


@dataclass
class ExplicitSpace:
    """The space of `find_least`; see the module.

    Args:
        facts: of the cascade.
        architecture: memories and units; registers hold a word and are free.
        sizes: of every rank.
        rules: by level, "registers" among them; levels without one hold nothing.
        fused_loops: the most loops that a block shares; None: any number.

    Raises:
        MappingError: no unit has an Einsum's operations, an energy is unknown, or registers are
            not free.
    """

    facts: Facts
    architecture: Architecture
    sizes: Mapping[str, int]
    rules: Mapping[str, Rule]
    fused_loops: int | None = None
    _kept: dict[Any, Options] = field(default_factory=dict)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The Einsums in order."""
        return tuple(self.facts.einsums)

    @cached_property
    def tensors(self) -> dict[str, frozenset[str]]:
        """What each Einsum reads or writes."""
        return {
            name: frozenset(used.tensor for used in (*einsum.operands, *einsum.outputs))
            for name, einsum in self.facts.einsums.items()
        }

    @cached_property
    def values(self) -> Mapping[str, Any]:
        """The architecture's parameters."""
        return self.architecture.values()

    @cached_property
    def units(self) -> dict[str, str]:
        """The first unit that has an Einsum's operations, for each."""
        found: dict[str, str] = {}
        units = self.architecture.file.units
        for name, einsum in self.facts.einsums.items():
            able = [
                u for u in units if all(o.name in units[u].operations for o in einsum.operations)
            ]
            if not able:
                raise MappingError(f"{self.architecture.name}: no unit can run Einsum {name}")
            found[name] = able[0]
        return found

    def role(self, einsum: str, tensor: str) -> str:
        """What a tensor is to an Einsum."""
        own = self.facts.einsums[einsum]
        if any(o.tensor == tensor for o in own.outputs):
            return "output"
        last = own.operands[-1].tensor
        return "weight" if len(own.operands) > 1 and tensor == last else "input"

    def price(self, level: str) -> tuple[float, float]:
        """What a word read and written costs, in pJ."""
        if level == REGISTERS:
            return 0.0, 0.0
        read, write = self.values[f"{level}.read_pj"], self.values[f"{level}.write_pj"]
        if read is None or write is None:
            raise MappingError(f"{self.architecture.name}: the energy of {level} is unknown")
        scale = self.values["word_bytes"] / self.values[f"{level}.access_bytes"]
        return read * scale, write * scale

    @cached_property
    def operations_cost(self) -> float:
        """The energy of all operations, which no mapping changes."""
        total = 0.0
        for name, einsum in self.facts.einsums.items():
            for operation in einsum.operations:
                each = self.values[f"{self.units[name]}.operations.{operation.name}.energy_pj"]
                if each is None:
                    raise MappingError(f"the energy of {operation.name} is unknown")
                total += each * operation.times * prod(self.sizes[r] for r in operation.ranks)
        return total

    def levels(self, einsum: str) -> tuple[Level, ...]:
        """The levels inside the outermost memory, as an Einsum sees them."""
        own = self.facts.einsums[einsum]
        tensors = [u.tensor for u in (*own.operands, *own.outputs)]
        found: list[Level] = []
        for name in (*self.architecture.memories[1:], REGISTERS):
            rule = self.rules.get(name, Rule())
            words = 1.0
            if name != REGISTERS:
                size = self.values[f"{name}.bytes"]
                words = np.inf if size is None else size / self.values["word_bytes"]

            def having(roles: tuple[str, ...]) -> frozenset[str]:
                return frozenset(t for t in tensors if self.role(einsum, t) in roles)

            found.append(
                Level(
                    name,
                    words,
                    *self.price(name),
                    name in self.architecture.instanced,
                    having(rule.must),
                    having(rule.may),
                )
            )
        return tuple(found)

    def lanes(self, einsum: str) -> tuple[Lanes, ...]:
        """The dimensions of an Einsum's unit."""
        own, unit = self.facts.einsums[einsum], self.units[einsum]
        operands = {o.tensor: o.ranks for o in own.operands}
        outputs = {o.tensor: o.ranks for o in own.outputs}
        inputs = [r for t, r in operands.items() if self.role(einsum, t) == "input"]
        kinds = {
            "any": (frozenset({*operands, *outputs}), own.ranks),
            "none": (frozenset[str](), own.ranks),
            "operands": (frozenset(operands), own.ranks.difference(*inputs)),
            "outputs": (frozenset(outputs), own.ranks.difference(*outputs.values())),
        }
        shares = self.architecture.shares(unit)
        return tuple(
            Lanes(d, int(self.values[f"{unit}.{d}"]), *kinds[shares.get(d, "any")])
            for d in self.architecture.dimensions(unit)
        )

    def options(
        self, einsum: str, loops: tuple[tuple[str, int], ...], near: frozenset[str]
    ) -> Options:
        """The ways to run an Einsum under shared loops, with some of its tensors near."""
        key = (einsum, loops, near & self.tensors[einsum])
        if key not in self._kept:
            own, tensors, tiles = self.facts.einsums[einsum], self.tensors[einsum], dict(loops)
            task = Task(
                own,
                {rank: tiles.get(rank, self.sizes[rank]) for rank in own.ranks},
                {rank: self.sizes[rank] // tile for rank, tile in loops if rank in own.ranks},
                self.levels(einsum),
                self.lanes(einsum),
                {tensor: 0 if tensor in near else -1 for tensor in tensors},
                self.price(self.architecture.memories[0]),
            )
            self._kept[key] = Options(task)
        return self._kept[key]


def find_least(space: ExplicitSpace) -> Found:
    """Return the mapping of least energy of a space; no other in it is better.

    Raises:
        MappingError: no mapping has room.
    """
    started = process_time()
    return _Search(space).run(started)


class _Search:
    def __init__(self, space: ExplicitSpace) -> None:
        self.space = space
        self.facts, self.names = space.facts, space.names
        self.legality = Legality(self.facts)
        cascade = self.facts.cascade
        place = {name: n for n, name in enumerate(self.names)}
        self.maker = {
            o.tensor: place[e.name] for e in self.facts.einsums.values() for o in e.outputs
        }
        self.readers: dict[str, list[int]] = {}
        for einsum in self.facts.einsums.values():
            for operand in einsum.operands:
                known = self.readers.setdefault(operand.tensor, [])
                if place[einsum.name] not in known:
                    known.append(place[einsum.name])
        outputs = {self.facts.root(name) for name in cascade.outputs}
        self.handed = {t for t in self.maker if t in self.readers and t not in outputs}
        self.first_level = space.architecture.memories[1]
        size = space.values[f"{self.first_level}.bytes"]
        self.room = np.inf if size is None else size / space.values["word_bytes"]
        every = space.architecture.memories[0], self.first_level
        self.fill_price = space.price(every[0])[0] + space.price(every[1])[1]
        self.near = {t for t in self.handed if self.may_lie_near(t)}
        self.often = {t for t, r in self.readers.items() if t not in self.maker and len(r) > 1} & {
            t for t in self.readers if self.may_lie_near(t)
        }

    def may_lie_near(self, tensor: str) -> bool:
        """Whether every Einsum that touches a tensor may have it at the first level."""
        touching = [
            *self.readers.get(tensor, []),
            *([self.maker[tensor]] if tensor in self.maker else []),
        ]
        rule = self.space.rules.get(self.first_level, Rule())
        roles = {self.space.role(self.names[n], tensor) for n in touching}
        return roles <= {*rule.must, *rule.may}

    def words(self, tensor: str, tiles: Mapping[str, int] | None = None) -> float:
        """The words of a tensor, as its makers or first readers index it."""
        n = self.maker.get(tensor, self.readers.get(tensor, [0])[0])
        einsum = self.facts.einsums[self.names[n]]
        used = (*einsum.outputs, *einsum.operands)
        ranks = next(u.ranks for u in used if u.tensor == tensor)
        known = {} if tiles is None else tiles
        return float(prod(known.get(rank, self.space.sizes[rank]) for rank in ranks))

    def run(self, started: float) -> Found:
        ahead = self.ahead()
        number = count()
        heap: list[tuple[float, int, int, Any]] = []
        heappush(heap, (ahead[0], next(number), 0, (0.0, 0, frozenset[str](), ())))
        done: set[tuple[int, frozenset[str]]] = set()
        while heap:
            _, _, stage, entry = heappop(heap)
            if stage == 0:
                cost, place, residents, path = entry
                if place == len(self.names):
                    return self.finish(cost, path, started)
                if (place, residents) in done:
                    continue
                done.add((place, residents))
                for edge in self.edges(place, residents):
                    least = cost + edge.fill + self.least(edge, ())
                    following = (cost, path, edge)
                    heappush(heap, (least + ahead[edge.last], next(number), 1, following))
            elif stage == 1:
                cost, path, edge = entry
                least = cost + edge.fill + self.least(edge, edge.loops)
                heappush(heap, (least + ahead[edge.last], next(number), 2, entry))
            else:
                cost, path, edge = entry
                exact = self.exact(edge)
                if exact is not None:
                    own, block = exact
                    at = (cost + edge.fill + own, edge.last, edge.after, (*path, (edge, block)))
                    heappush(heap, (at[0] + ahead[edge.last], next(number), 0, at))
        raise MappingError(
            f"{self.facts.cascade.name} on {self.space.architecture.name}: no mapping has room"
        )

    def finish(self, cost: float, path: Any, started: float) -> Found:
        resident = {t for edge, _ in path for t in edge.after}
        for edge, _ in path:
            resident |= edge.near - edge.tiled - {t for t, _ in edge.standing}
        order = [t for t in self.facts.ranks if t in resident]
        return Found(
            cost + self.space.operations_cost,
            tuple(block for _, block in path),
            tuple(order),
            len(self.space._kept),
            process_time() - started,
        )

    def ahead(self) -> list[float]:
        """From every Einsum on, what no mapping goes below."""
        least = [0.0]
        for name in reversed(self.names):
            own = self.facts.einsums[name]
            used = {u.tensor for u in (*own.operands, *own.outputs)}
            open_ = sorted(used & (self.near | self.outside(name)))
            ways = (
                self.space.options(name, (), frozenset(some)).least
                for n in range(len(open_) + 1)
                for some in combinations(open_, n)
            )
            least.append(least[-1] + min(ways))
        return least[::-1]

    def outside(self, name: str) -> set[str]:
        """Operands from outside that may lie near."""
        own = self.facts.einsums[name]
        return {
            o.tensor
            for o in own.operands
            if o.tensor not in self.maker and self.may_lie_near(o.tensor)
        }

    def least(self, edge: _Edge, loops: tuple[tuple[str, int], ...]) -> float:
        every = self.names[edge.first : edge.last]
        return sum(self.space.options(name, loops, edge.near).least for name in every)

    def exact(self, edge: _Edge) -> tuple[float, Block] | None:
        """The cost of a block, and its rows; None where it has no room."""
        tiles = dict(edge.loops)
        elsewhere = edge.tiled | {t for t, _ in edge.standing}
        standing = sum(map(self.words, edge.near - elsewhere))
        standing += sum(self.words(t, dict(edge.loops[:depth])) for t, depth in edge.standing)
        total = 0.0
        rows: list[Row] = []
        for n in range(edge.first, edge.last):
            held = sum(
                self.words(t, tiles)
                for t in edge.tiled
                if self.maker[t] <= n <= max(self.readers[t])
            )
            options = self.space.options(self.names[n], edge.loops, edge.near)
            cost, row = options.within(self.room - standing - held)
            if row is None:
                return None
            total += cost
            rows.append(row)
        own = self.names[edge.first : edge.last]
        return total, Block(own, edge.loops, tuple(sorted(edge.tiled)), edge.standing, tuple(rows))

    def edges(self, first: int, residents: frozenset[str]) -> Iterator[_Edge]:
        """Yield the blocks that may come next."""
        for last in range(first + 1, len(self.names) + 1):
            inside = range(first, last)
            made = [t for t in self.near if self.maker[t] in inside]
            here = [t for t in made if max(self.readers[t]) < last]
            onward = [t for t in made if max(self.readers[t]) >= last]
            starting = [
                t
                for t in self.often
                if min(self.readers[t]) in inside and max(self.readers[t]) >= last
            ]
            for loops in self.loops(first, last):
                within = [t for t in here if self.depends(t, loops)] if loops else []
                for tiled in _subsets(within):
                    if not self.joined(first, last, tiled):
                        continue
                    for standing, kept, begun in product(
                        self.standing(first, last, loops, residents),
                        _subsets(onward),
                        _subsets(starting),
                    ):
                        there = {t for t, _ in standing}
                        if there & {*begun}:
                            continue
                        near = frozenset({*residents, *tiled, *there, *kept, *begun})
                        held = {*residents, *kept, *begun}
                        after = frozenset(t for t in held if max(self.readers[t]) >= last)
                        fill = sum(map(self.words, begun)) * self.fill_price
                        fill += sum(self.moving(t, loops[:depth]) for t, depth in standing)
                        yield _Edge(
                            first,
                            last,
                            loops,
                            near,
                            frozenset(tiled),
                            standing,
                            after,
                            fill,
                        )

    def joined(self, first: int, last: int, tiled: tuple[str, ...]) -> bool:
        """Whether tiles pass over every place between two Einsums: else two blocks do as well."""
        return all(
            any(self.maker[t] < n <= max(self.readers[t]) for t in tiled)
            for n in range(first + 1, last)
        )

    def depends(self, tensor: str, loops: tuple[tuple[str, int], ...]) -> bool:
        """Whether everyone indexes a tensor along all shared loops."""
        users = [self.maker[tensor], *self.readers[tensor]]
        every = [self.facts.einsums[self.names[n]] for n in users]
        used = [u.ranks for e in every for u in (*e.operands, *e.outputs) if u.tensor == tensor]
        return all(rank in ranks for rank, _ in loops for ranks in used)

    def standing(
        self, first: int, last: int, loops: tuple[tuple[str, int], ...], residents: frozenset[str]
    ) -> Iterator[tuple[tuple[str, int], ...]]:
        """Yield what may stand right above a shared loop that it does not depend on, and where."""
        places: dict[str, list[int]] = {}
        for n in range(first, last):
            einsum = self.facts.einsums[self.names[n]]
            for used in (*einsum.operands, *einsum.outputs):
                tensor, made = used.tensor, used in einsum.outputs
                outside = tensor not in self.readers if made else self.maker.get(tensor, -1) < first
                if outside and tensor not in residents and self.may_lie_near(tensor):
                    places[tensor] = [
                        depth for depth, (rank, _) in enumerate(loops) if rank not in used.ranks
                    ]
        names = list(places)
        for chosen in product(*([None, *places[t]] for t in names)):
            yield tuple((t, d) for t, d in zip(names, chosen, strict=True) if d is not None)

    def moving(self, tensor: str, above: tuple[tuple[str, int], ...]) -> float:
        """The cost of a tensor's way between the outermost memory and a home beneath some loops."""
        whole = self.words(tensor)
        moved = self.words(tensor, dict(above))
        for rank, tile in above:
            moved *= self.space.sizes[rank] // tile
        if tensor not in self.maker:
            return moved * self.fill_price
        outer, near = (
            self.space.price(self.space.architecture.memories[0]),
            self.space.price(self.first_level),
        )
        return moved * (outer[1] + near[0]) + (moved - whole) * self.fill_price

    def loops(self, first: int, last: int) -> Iterator[tuple[tuple[str, int], ...]]:
        """Yield the shared loops of a block: none of one Einsum, some of several.

        Those that all tensors have come first, the others in any order.
        """
        own = self.names[first:last]
        if len(own) == 1:
            yield ()
            return
        if self.legality.torn(own):
            return
        sizes = self.space.sizes
        ranks = [r for r in self.legality.shared(own) if sizes[r] > 1]
        most = len(ranks) if self.space.fused_loops is None else self.space.fused_loops
        used = [
            u.ranks
            for name in own
            for e in (self.facts.einsums[name],)
            for u in (*e.operands, *e.outputs)
        ]
        for number in range(1, min(most, len(ranks)) + 1):
            for chosen in combinations(ranks, number):
                common = [r for r in chosen if all(r in known for known in used)]
                tiles = {
                    r: [t for t in tile_choices(sizes[r], "divisors") if t < sizes[r]]
                    for r in chosen
                }
                for others in permutations([r for r in chosen if r not in common]):
                    order = (*common, *others)
                    for some in product(*(tiles[r] for r in order)):
                        yield tuple(zip(order, some, strict=True))


def _subsets(entries: list[str]) -> list[tuple[str, ...]]:
    return [some for n in range(len(entries) + 1) for some in combinations(entries, n)]


# A mapping as lines.


def to_lines(space: ExplicitSpace, found: Found) -> list[Any]:
    """Return the loop tree of a mapping that `find_least` found."""
    outer, near = space.architecture.memories[:2]
    inside = {*found.resident, *(t for block in found.blocks for t in block.tiled)}
    ends = {
        space.facts.root(n) for n in (*space.facts.cascade.inputs, *space.facts.cascade.outputs)
    }
    made = [o.tensor for e in space.facts.einsums.values() for o in e.outputs]
    handed = [t for t in made if t not in inside and t not in ends]
    lines: list[Any] = [f"keep {', '.join(handed)} at {outer}"] if handed else []
    lines += [f"keep {tensor} at {near}" for tensor in found.resident]
    nests = [_block_lines(space, block, near) for block in found.blocks]
    return [*lines, *(nests[0] if len(nests) == 1 else [{"branch": nests}])]


def _block_lines(space: ExplicitSpace, block: Block, near: str) -> list[Any]:
    lines: list[Any] = []
    for depth, (rank, tile) in enumerate(block.loops):
        lines += [f"keep {tensor} at {near}" for tensor, at in block.standing if at == depth]
        lines.append(f"for {rank} in {tile}")
    lines += [f"keep {tensor} at {near}" for tensor in block.tiled]
    rows = [
        _row_lines(row, name, space.units[name])
        for row, name in zip(block.rows, block.einsums, strict=True)
    ]
    return [*lines, *(rows[0] if len(rows) == 1 else [{"branch": rows}])]


def _row_lines(row: Row, einsum: str, unit: str) -> list[str]:
    """Loops in time down to each home, those in space above the first that is each lane's own."""
    task, groups = row.task, row.task.groups
    lines: list[str] = []
    current = {
        rank: extent
        for group in groups
        for rank, extent in zip(group.ranks, group.extents, strict=True)
    }
    waiting = list(zip(task.lanes, row.spread, strict=True))
    lanes = [prod(way[g] for way in row.spread) for g in range(len(groups))]

    def go(tiles: tuple[int, ...], word: str, over: str = "") -> None:
        for group, tile, among in zip(groups, tiles, lanes, strict=True):
            for rank, size in reversed(group.split(tile * among).items()):
                if size < current[rank]:
                    lines.append(f"{word} {rank} in {size}{over}")
                    current[rank] = size

    def spread(tiles: tuple[int, ...], instances: bool) -> None:
        for dimension, way in list(waiting):
            if instances and dimension.name != INSTANCES:
                continue
            go(tiles, "for")
            waiting.remove((dimension, way))
            for g, among in enumerate(way):
                lanes[g] //= among
            go(tiles, "parallel", f" over {dimension.name}")

    for home in row.homes:
        level = task.levels[home.level]
        if level.name == REGISTERS or level.apart:
            spread(home.tiles, level.apart)
        go(home.tiles, "for")
        lines.append(f"keep {home.tensor} at {level.name}")
    ones = (1,) * len(groups)
    spread(ones, False)
    go(ones, "for")
    return [*lines, f"compute {einsum} on {unit}"]
