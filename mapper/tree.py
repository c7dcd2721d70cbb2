"""The choices of one structure, costed at every tile size: what `einfuse.mapper.choices` solves.

Every piece is counted once: an Einsum's leaf under the loops of its group and block, a tensor's
chain of homes. Since columns add, what an Einsum costs does not depend on how the others run; of
its leaves those stay that none beats at every point, which drops no optimum.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from itertools import product
from typing import Any, TypeVar

import numpy as np

from .choices import Alternative, Choice
from .counts import Loop, Traffic, Work
from .formula import Values
from .objective import Numbers, Objective
from .pieces import LeafCounts, count_home, count_leaf, loop
from .space import MapSpace, Roles, Structure
from .structure import Group, Home, Inner, Leaf

_KEPT = 4096  # Einsums under loops whose leaves or times are kept
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Path:
    """The loops above a place: ranks, loops, and the tiles that are left beneath each."""

    ranks: tuple[str, ...]
    loops: tuple[Loop, ...]
    tiles: tuple[Mapping[str, Values], ...]  # at every depth

    def extend(self, rank: str, tile: Values) -> Path:
        """Return the path with one more loop."""
        left = self.tiles[-1]
        below = {**left, rank: tile}
        return Path(
            (*self.ranks, rank),
            (*self.loops, loop(rank, left[rank], tile)),
            (*self.tiles, below),
        )


class Pieces:
    """Counted leaves and their columns, kept for the structures that share them."""

    def __init__(self, space: MapSpace, objective: Objective) -> None:
        self.space, self.objective = space, objective
        self.inner_levels = space.memories[1:]
        self.rows = {name: n for n, name in enumerate(objective.columns)}
        self.rooms = {level: len(self.rows) + n for n, level in enumerate(self.inner_levels)}
        self.height = len(self.rows) + len(self.rooms)
        self._kept: dict[Hashable, Any] = {}

    def keep(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what was made under a key, making it once; the last ones are kept."""
        if key not in self._kept:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            self._kept[key] = make()
        found: T = self._kept[key]
        return found

    def stack(self, points: int, *parts: Mapping[str, Values]) -> Numbers:
        """Return the sum of columns by name as rows."""
        out = np.zeros((self.height, points))
        for part in parts:
            for name, value in part.items():
                out[self.rows[name]] += value
        return out


class GroupTree:
    """The choices of a structure at tile sizes of its group's loops.

    Args:
        pieces: of the space and the objective.
        structure: blocks and loops.
        sizes: the size of every rank.
        points: a tile for each of the group's loops, an array of them each.
    """

    def __init__(
        self,
        pieces: Pieces,
        structure: Structure,
        sizes: Mapping[str, int],
        points: Mapping[str, Numbers],
    ) -> None:
        self.pieces, self.space = pieces, pieces.space
        self.structure, self.sizes, self.points = structure, sizes, points
        self.roles: Roles = self.space.roles(structure.einsums)
        self.count = len(next(iter(points.values()))) if points else 1
        top = Path((), (), ({rank: float(size) for rank, size in sizes.items()},))
        for rank in structure.loops:
            top = top.extend(rank, points[rank].astype(float))
        self.top = top
        self.faces = dict(structure.faces)
        self.overlays = self.space.overlays(structure)
        self.block_of = {n: b for b, block in enumerate(structure.blocks) for n in block}

    @property
    def overlapped(self) -> Any:
        """Where the group has tiles enough to overlap its Einsums."""
        depth = self.space.overlap_depth(self.structure.einsums)
        if depth is None:
            return False
        tiles: Values = 1.0
        for one in self.top.loops:
            tiles = tiles * one.count
        return np.broadcast_to(tiles > depth, (self.count,))

    def choices(self) -> tuple[Choice, ...]:
        """The open choices at the top: blocks, and tensors that several of them touch."""
        found = [self._block(number) for number in range(len(self.structure.blocks))]
        homes = [self._homes(t, self.faces[t], self.top) for t in self._shared_across()]
        return (*found, *homes)

    def least_rooms(self) -> Numbers:
        """The words that what stays inside takes at least at every level, a row each."""
        out = self.base()
        for number, block in enumerate(self.structure.blocks):
            key = (
                "block rooms",
                self.structure.einsums,
                block,
                self.structure.inner[number],
                self.structure.exchange,
                tuple(self.overlays),
                self._key(self.top),
            )
            out = out + self.pieces.keep(key, partial(self._block_rooms, number))
        return out[len(self.pieces.rows) :]

    def _block_rooms(self, number: int) -> Numbers:
        """What the tensors that only a block touches and makes take at least."""
        local = [
            t for t in (*self.roles.inside, *self.roles.through) if self._block_local(t) == number
        ]
        if not local:
            return np.zeros((self.pieces.height, self.count))
        taken = (
            reduce(np.add, (self._exchanged(t, path) for t in local))
            for path in self._inner_paths(number)
        )
        return reduce(np.minimum, taken)

    def _inner_paths(self, number: int) -> Iterator[Path]:
        """The loops of a block with all their tiles."""
        ranks = self.structure.inner[number]
        block = self.structure.blocks[number]
        tiles = [self.space.loop_tiles(rank, self.sizes[rank], block) for rank in ranks]
        for chosen in product(*tiles):
            yield self._inner_path(ranks, chosen)

    def least_traffic(self, spare_words: Values) -> Numbers:
        """The columns of what has to cross the outermost memory, a tensor's best home each.

        Args:
            spare_words: the words that a home may take at most, at every point.
        """
        out = self.pieces.stack(self.count)
        for tensor in (*self.roles.outside, *self.roles.through):
            block = self._block_local(tensor)
            key = (
                "traffic",
                tensor,
                self.roles.touched_by[tensor],
                None if block is None else self.structure.blocks[block],
                None if block is None else self.structure.inner[block],
                self._key(self.top),
                np.asarray(spare_words).tobytes(),
            )
            out += self.pieces.keep(key, partial(self._tensor_traffic, tensor, block, spare_words))
        return out

    def _tensor_traffic(self, tensor: str, block: int | None, spare_words: Values) -> Numbers:
        paths = [self.top] if block is None else self._inner_paths(block)
        return reduce(np.minimum, (self._least_crossing(tensor, p, spare_words) for p in paths))

    def _least_crossing(self, tensor: str, path: Path, spare_words: Values) -> Numbers:
        """What a tensor's best home that has room, or the registers beneath, bring in or out.

        Registers stand beneath all loops, and hold a word each.
        """
        depths = self.space.depths(tensor, path.ranks)
        every = [self.space.facts.einsums[name] for name in self.roles.touched_by[tensor]]
        made = self._made(tensor)
        read = {o.ranks for e in every for o in e.operands if o.tensor == tensor}
        whole = self._home_ranks(tensor)

        def crossing(depth: int, ranks: frozenset[str], beneath: Loop | None = None) -> Numbers:
            retention = self.space.constraints.retention
            above, tiles = path.loops[:depth], path.tiles[depth]
            moved = count_home(above, tiles, ranks, made, retention, beneath)
            columns = self.pieces.objective.access(self.space.memories[0], moved.parent)
            return self.pieces.stack(self.count, columns)

        def registers(ranks: frozenset[str]) -> Numbers:
            # What has more words than there are lanes passes through the registers in turns.
            words: Values = 1.0
            for rank in sorted(ranks):
                words = words * path.tiles[-1][rank]
            turns = np.where(words > lanes, 2.0, 1.0)
            part = Loop(min(ranks), turns, False, 1) if ranks else None
            return crossing(len(path.loops), ranks, part)

        units = {unit for e in every for unit in self.space.units_of[e.name]}
        lanes = max(np.prod([*self.space.lanes[unit].values()]) for unit in units)
        found = [reduce(np.maximum, map(registers, {whole} if made else read))]
        for depth in depths:
            fits = self._room(tensor, path.tiles[depth]) <= spare_words
            found.append(np.where(fits, crossing(depth, whole), np.inf))
        return reduce(np.minimum, found)

    def least_times(self) -> list[dict[str, Numbers]]:
        """The least time of each Einsum on each unit, whatever its leaf and its block's tiles."""
        found: list[dict[str, Numbers]] = []
        for number, block in enumerate(self.structure.blocks):
            key = ("block times", block, self.structure.inner[number], self._key(self.top))
            found += self.pieces.keep(key, partial(self._block_times, number))
        return found

    def _block_times(self, number: int) -> list[dict[str, Numbers]]:
        paths = list(self._inner_paths(number))
        found: list[dict[str, Numbers]] = []
        for name in self.structure.blocks[number]:
            task: dict[str, Numbers] = {}
            for path in paths:
                for unit, time in self._times(name, path).items():
                    task[unit] = np.minimum(task.get(unit, time), time)
            found.append(task)
        return found

    def _times(self, name: str, path: Path) -> dict[str, Numbers]:
        """The time of an Einsum on each unit with the ranks in space that make it shortest."""
        space, objective = self.space, self.pieces.objective
        einsum = space.facts.einsums[name]
        tiles = path.tiles[-1]
        ranks = [r for r in space.legality.order if r in einsum.ranks and np.any(tiles[r] > 1)]
        serial: Values = 1.0
        for one in path.loops:
            serial = serial * one.count
        for rank in ranks:
            serial = serial * tiles[rank]
        found: dict[str, Numbers] = {}
        for unit in space.units_of[name]:
            lanes = [float(np.floor(n)) for n in space.lanes[unit].values()]
            speedups = [
                [np.ones(1)] + [np.asarray(tiles[r] / np.ceil(tiles[r] / n)) for r in ranks]
                for n in lanes
            ]
            best: Values = 1.0
            for chosen in product(*(range(len(ways)) for ways in speedups)):
                taken = [number for number in chosen if number]
                if len(set(taken)) == len(taken):
                    speedup: Values = 1.0
                    for ways, number in zip(speedups, chosen, strict=True):
                        speedup = speedup * ways[number]
                    best = np.maximum(best, speedup)
            per_point: dict[str, int] = {}
            for operation in einsum.operations:
                if operation.ranks == einsum.ranks:
                    known = per_point.get(operation.name, 0)
                    per_point[operation.name] = known + operation.times
            pipelined = unit in space.pipelined
            work = Work(unit, serial / best, 1.0, 1.0, {}, per_point, pipelined)
            columns = objective.compute(work, Traffic(0.0, 0.0))
            time = np.asarray(columns[objective.times[unit]], float)
            found[unit] = np.broadcast_to(time, (self.count,))
        return found

    def _key(self, path: Path) -> Hashable:
        """What the pieces under some loops depend on."""
        tiles = tuple(np.asarray(one.tile).tobytes() for one in path.loops)
        return (tuple(sorted(self.sizes.items())), path.ranks, tiles)

    def base(self) -> Numbers:
        """What every choice has: the room of what several blocks exchange, and its traffic."""
        out = self.pieces.stack(self.count)
        for tensor in (*self.roles.inside, *self.roles.through):
            if self._block_local(tensor) is None:
                out += self._exchanged(tensor, self.top)
        return out

    def group(self, point: int, labels: tuple[Hashable, ...]) -> Group:
        """Return the group of a point and the labels of the alternatives chosen."""
        loops = tuple((rank, int(self.points[rank][point])) for rank in self.structure.loops)
        inner = tuple(label for label in labels if isinstance(label, Inner))
        homes = [label for label in labels if isinstance(label, Home)]
        leaves = [label for label in labels if isinstance(label, Leaf)]
        for tensor in (*self.roles.inside, *self.roles.through):
            block = self._block_local(tensor)
            path = self.structure.loops
            if block is not None:
                path = (*path, *self.structure.inner[block])
            depth = self.space.exchange_depth(tensor, path, self.roles.touched_by[tensor])
            level = self.space.memories[self.structure.exchange]
            places = ((level, depth),)
            homes.append(self.space.home(tensor, places, self.overlays.get(tensor)))
        order = {name: n for n, name in enumerate(self.structure.einsums)}
        tensors = {name: n for n, name in enumerate(self.roles.touched_by)}
        return Group(
            self.structure.blocks,
            loops,
            tuple(sorted(inner, key=lambda one: one.block)),
            tuple(sorted((h for h in homes if h.places), key=lambda h: tensors[h.tensor])),
            tuple(sorted(leaves, key=lambda leaf: order[leaf.einsum])),
            bool(np.broadcast_to(self.overlapped, (self.count,))[point]),
        )

    # Blocks.

    def _block(self, number: int) -> Choice:
        """The tiles of a block's loops; each opens the block's leaves and local tensors."""
        ranks = self.structure.inner[number]
        block = self.structure.blocks[number]
        tiles = [self.space.loop_tiles(rank, self.sizes[rank], block) for rank in ranks]
        return Choice(tuple(self._tiled(number, ranks, chosen) for chosen in product(*tiles)))

    def _tiled(self, number: int, ranks: tuple[str, ...], tiles: tuple[int, ...]) -> Alternative:
        path = self._inner_path(ranks, tiles)
        opens = [self._leaf(name, path) for name in self.structure.blocks[number]]
        columns = self.pieces.stack(self.count)
        for tensor, names in self.roles.touched_by.items():
            if self._block_local(tensor) != number:
                continue
            if tensor in self.roles.outside:
                if len(names) > 1:
                    opens.append(self._homes(tensor, self.faces[tensor], path))
            else:
                columns += self._exchanged(tensor, path)
        label = Inner(number, tuple(zip(ranks, tiles, strict=True)))
        return Alternative(label, columns, tuple(opens))

    def _inner_path(self, ranks: tuple[str, ...], tiles: tuple[int, ...]) -> Path:
        path = self.top
        for rank, tile in zip(ranks, tiles, strict=True):
            path = path.extend(rank, float(tile))
        return path

    def _block_local(self, tensor: str) -> int | None:
        """The only block that touches a tensor; None if several do."""
        blocks = {self.block_of[name] for name in self.roles.touched_by[tensor]}
        return blocks.pop() if len(blocks) == 1 else None

    def _shared_across(self) -> list[str]:
        return [t for t in self.roles.outside if self._block_local(t) is None]

    # Homes.

    def _homes(self, tensor: str, face: int, path: Path) -> Choice:
        depths = self.space.depths(tensor, path.ranks)
        costed = (
            (self.space.home(tensor, places), self._chain(tensor, places, path))
            for places in self.space.chains(tensor, face, depths)
        )
        return Choice(tuple(Alternative(home, columns) for home, columns in undominated(costed)))

    def _chain(self, tensor: str, places: tuple[tuple[str, int], ...], path: Path) -> Numbers:
        """The columns of a tensor's homes, from the outermost memory inwards."""
        out = self.pieces.stack(self.count)
        parent = self.space.memories[0]
        objective = self.pieces.objective
        for level, depth in places:
            if objective.prices(parent) or objective.prices(level):
                moved = count_home(
                    path.loops[:depth],
                    path.tiles[depth],
                    self._home_ranks(tensor),
                    self._made(tensor),
                    self.space.constraints.retention,
                )
                out += self.pieces.stack(
                    self.count,
                    objective.access(level, moved.own),
                    objective.access(parent, moved.parent),
                )
            out[self.pieces.rooms[level]] += self._room(tensor, path.tiles[depth])
            parent = level
        return out

    def _exchanged(self, tensor: str, path: Path) -> Numbers:
        names = self.roles.touched_by[tensor]
        depth = self.space.exchange_depth(tensor, path.ranks, names)
        level = self.space.memories[self.structure.exchange]
        if tensor in self.roles.through:
            return self._chain(tensor, ((level, depth),), path)
        out = self.pieces.stack(self.count)
        if tensor not in self.overlays:
            out[self.pieces.rooms[level]] += self._room(tensor, path.tiles[depth])
        return out

    def _room(self, tensor: str, tiles: Mapping[str, Values]) -> Values:
        """The words that a tensor's tile takes; of a carried tensor, one generation."""
        facts = self.space.facts
        ranks = facts.ranks[tensor]
        if tensor in facts.carried:
            ranks = ranks - facts.iterative
        words: Values = 2.0 if tensor in self.space.constraints.double else 1.0
        for rank in sorted(ranks):
            words = words * tiles[rank]
        return words

    def _made(self, tensor: str) -> bool:
        every = self.space.facts.einsums
        return any(
            output.tensor == tensor
            for name in self.roles.touched_by[tensor]
            for output in every[name].outputs
        )

    def _home_ranks(self, tensor: str) -> frozenset[str]:
        """The ranks that its makers, else its readers, index."""
        every = [self.space.facts.einsums[name] for name in self.roles.touched_by[tensor]]
        made = [o.ranks for e in every for o in e.outputs if o.tensor == tensor]
        read = [o.ranks for e in every for o in e.operands if o.tensor == tensor]
        return frozenset[str]().union(*(made or read))

    # Leaves.

    def _leaf(self, name: str, path: Path) -> Choice:
        """How an Einsum runs, and which levels feed it with the tensors that it alone touches."""
        tensors = self.space.touched(name)
        local = [
            t for t in tensors if t in self.roles.outside and len(self.roles.touched_by[t]) == 1
        ]
        key = ("leaves", name, self._key(path))
        counted = self.pieces.keep(key, partial(self._counted, name, path))
        alternatives: list[Alternative] = []
        for faces in product(*(self.space.face_levels(t) for t in local)):
            levels = {t: self._level(t, dict(zip(local, faces, strict=True))) for t in tensors}
            opens = tuple(
                self._homes(t, face, path) for t, face in zip(local, faces, strict=True) if face
            )
            if not all(choice.alternatives for choice in opens):
                continue
            costed = ((leaf, self._leaf_columns(counts, levels)) for leaf, counts in counted)
            alternatives += [
                Alternative(leaf, columns, opens) for leaf, columns in undominated(costed)
            ]
        # What is in short supply is decided first: homes, and the leaves that open some.
        return Choice(tuple(alternatives), late=not any(way.opens for way in alternatives))

    def _level(self, tensor: str, local: Mapping[str, int]) -> str:
        face = local.get(tensor, self.faces.get(tensor, self.structure.exchange))
        return self.space.memories[face]

    def _leaf_columns(self, counts: LeafCounts, levels: Mapping[str, str]) -> Numbers:
        objective = self.pieces.objective
        parts = [objective.compute(counts.work, counts.registers)]
        parts += [
            objective.access(levels[tensor], traffic)
            for tensor, traffic in counts.homes.items()
            if objective.prices(levels[tensor])
        ]
        return self.pieces.stack(self.count, *parts)

    def _counted(self, name: str, path: Path) -> list[tuple[Leaf, LeafCounts]]:
        """Count the leaves of an Einsum; those beaten in everything at every point are dropped."""
        tiles = path.tiles[-1]
        einsum = self.space.facts.einsums[name]
        ranks = tuple(
            r for r in self.space.legality.order if r in einsum.ranks and np.any(tiles[r] > 1)
        )

        def vectors() -> Iterable[tuple[tuple[Leaf, LeafCounts], Numbers]]:
            for leaf in self.space.leaves(name, ranks):
                counts = count_leaf(
                    einsum,
                    leaf,
                    path.loops,
                    tiles,
                    self.space.lanes[leaf.unit],
                    self.space.constraints.retention,
                )
                columns = self.pieces.objective.compute(counts.work, counts.registers)
                rows: list[Values] = [0.0, *(columns.get(n, 0.0) for n in self.pieces.rows)]
                if any(map(self.pieces.objective.prices, self.space.memories)):
                    rows += [v for t in counts.homes.values() for v in (t.reads, t.writes)]
                yield (
                    (leaf, counts),
                    np.stack(
                        [np.broadcast_to(np.asarray(row, float), (self.count,)) for row in rows]
                    ),
                )

        return [kept for kept, _ in undominated(vectors())]


def undominated(costed: Iterable[tuple[Any, Numbers]]) -> list[tuple[Any, Numbers]]:
    """Return what no other equals or beats in every row at every point; of equals the first.

    >>> undominated([("a", np.array([[2.0]])), ("b", np.array([[1.0]]))])[0][0]
    'b'
    """
    kept: list[tuple[Any, Numbers]] = []
    for label, columns in costed:
        if any((other <= columns).all() for _, other in kept):
            continue
        kept = [(one, other) for one, other in kept if not (columns <= other).all()]
        kept.append((label, columns))
    return kept
