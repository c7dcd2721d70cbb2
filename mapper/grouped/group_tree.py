"""The choices of one structure, costed at every tile size: what `space.choices` solves.

Every piece is counted once: an Einsum's leaf under the loops of its group and block, a tensor's
chain of homes. Since columns add, what an Einsum costs does not depend on how the others run, but
for what they forward (`grouped.forwarding`): for each way to do that, of its leaves those
stay that none beats at every point, which drops no optimum.

The tiles of a block's loops are an axis of their own, before that of the points: what depends on
both is counted as one array, of which each alternative takes a row.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from math import prod

import numpy as np

from einfuse.mapper.machine.formula import Values
from einfuse.mapper.nest.coordinates import Coordinates, find_coordinates
from einfuse.mapper.nest.pieces import Leaf, count_home, count_leaf
from einfuse.mapper.nest.reuse import Traffic
from einfuse.mapper.space.choices import Alternative, Choice, Interrupted
from einfuse.mapper.space.front import undominated
from einfuse.mapper.space.memo import Pieces
from einfuse.mapper.space.objective import Numbers
from einfuse.mapper.space.space import Roles, Structure
from einfuse.mapper.space.structures import Group, Home, Inner, copies, spans
from einfuse.mapper.space.tile_sizes import block_tiles

from .forwarding import (
    Ready,
    Seat,
    State,
    Strands,
    find_bunches,
    find_chains,
    find_strands,
    forwardable,
)
from .path import Batch, Path

_BATCH = 8192  # tiles of a block times points that are counted at a time


@dataclass(frozen=True, eq=False)
class Counted:
    """The leaves of an Einsum in a batch: [leaf, row, tile, point], words by tensor likewise."""

    leaves: tuple[Leaf, ...]
    columns: Numbers
    words: Mapping[str, Traffic]


@dataclass(frozen=True, eq=False, slots=True)
class Held:
    """That a tensor is forwarded, at the points where it can be."""

    tensor: str
    where: Numbers


class GroupTree:
    """The choices of a structure at tile sizes of its group's loops.

    Args:
        pieces: of the space and the objective.
        structure: blocks and loops.
        sizes: the size of every rank.
        points: a tile for each of the group's loops, an array of them each.
        overlapped: whether its Einsums overlap at each point; None: where they may.
    """

    def __init__(
        self,
        pieces: Pieces,
        structure: Structure,
        sizes: Mapping[str, int],
        points: Mapping[str, Numbers],
        overlapped: Numbers | None = None,
    ) -> None:
        self.pieces, self.space = pieces, pieces.space
        self.structure, self.sizes, self.points = structure, sizes, points
        self.roles: Roles = self.space.roles(structure.einsums)
        known = [*points.values()] if overlapped is None else [overlapped]  # there may be no loops
        self.count = len(known[0]) if known else 1
        top = Path((), (), ({rank: float(size) for rank, size in sizes.items()},))
        for rank in structure.loops:
            top = top.extend(rank, points[rank].astype(float))
        self.top = top
        self.faces = dict(structure.faces)
        self.overlays = self.space.overlays(structure)
        self.block_of = {n: b for b, block in enumerate(structure.blocks) for n in block}
        self.overlapped: Numbers = self.may_overlap() if overlapped is None else overlapped
        self.spans: Mapping[str, int] = {}  # of rooms, with all that take turns in one
        self.apart: Mapping[str, int] = {}  # of each tensor by itself
        if self.overlapped.any():
            self.spans = spans(structure.einsums, self.space.facts, self.overlays)
            self.apart = spans(structure.einsums, self.space.facts)
        chains = find_chains(self.overlays)
        self.forwardable = {
            bunch: forwardable(self.space, structure, bunch, sizes)
            for bunch in find_bunches(structure)
        }
        self.sharing = {
            tensor: chains.get(tensor, (tensor,))
            for own in self.forwardable.values()
            for tensor in own
        }
        # Tensors whose room depends on what is forwarded.
        self.open_rooms = frozenset(other for chain in self.sharing.values() for other in chain)

    def may_overlap(self) -> Numbers:
        """Where the group has tiles enough to overlap its Einsums."""
        depth = self.space.overlap_depth(self.structure.einsums)
        if depth is None:
            return np.zeros(self.count, dtype=bool)
        tiles: Values = 1.0
        for one in self.top.loops:
            tiles = tiles * one.count
        return np.asarray(np.broadcast_to(tiles > depth, (self.count,)))

    def choices(self) -> tuple[Choice, ...]:
        """The open choices at the top: blocks, and tensors that several of them touch."""
        found = [self._bunch(bunch) for bunch in self.forwardable]
        across = [t for t in self.roles.outside if self.block_local(t) is None]
        top = Batch(((),), self.top)
        homes = [self.homes(t, self.faces[t], top)[0] for t in across]
        return (*found, *homes)

    def base(self) -> Numbers:
        """What every choice has: the room of what several blocks exchange, and its traffic."""
        out = self.pieces.stack((self.count,))
        for tensor in (*self.roles.inside, *self.roles.through):
            if self.block_local(tensor) is None and tensor not in self.open_rooms:
                out += self.exchanged(tensor, Batch(((),), self.top))[:, 0]
        return out

    def group(self, point: int, labels: tuple[Hashable, ...]) -> Group:
        """Return the group of a point and the labels of the alternatives chosen."""
        loops = tuple((rank, int(self.points[rank][point])) for rank in self.structure.loops)
        inner = tuple(label for label in labels if isinstance(label, Inner))
        homes = [label for label in labels if isinstance(label, Home)]
        leaves = [label for label in labels if isinstance(label, Leaf)]
        forwarded = frozenset(
            label.tensor for label in labels if isinstance(label, Held) and label.where[point]
        )
        for tensor in (*self.roles.inside, *self.roles.through):
            if tensor in forwarded:
                continue
            block = self.block_local(tensor)
            path = self.structure.loops
            if block is not None:
                path = (*path, *self.structure.inner[block])
            depth = self.space.exchange_depth(tensor, path, self.roles.touched_by[tensor])
            level = self.space.memories[self.structure.exchange]
            places = ((level, depth),)
            overlaying = self.overlays.get(tensor)
            overlaying = None if overlaying in forwarded else overlaying
            homes.append(self.space.home(tensor, places, overlaying))
        order = {name: n for n, name in enumerate(self.structure.einsums)}
        tensors = {name: n for n, name in enumerate(self.roles.touched_by)}
        return Group(
            self.structure.blocks,
            loops,
            tuple(sorted(inner, key=lambda one: one.block)),
            tuple(sorted((h for h in homes if h.places), key=lambda h: tensors[h.tensor])),
            tuple(sorted(leaves, key=lambda leaf: order[leaf.einsum])),
            bool(self.overlapped[point]),
            forwarded,
        )

    # Blocks.

    def batches(self, number: int) -> Iterator[Batch]:
        """The tiles of a block's loops, as many at a time as are worth an array."""
        ranks = self.structure.inner[number]
        every = block_tiles(self.space, self.structure, number, self.sizes, self.points)
        size = max(1, _BATCH // self.count)
        for start in range(0, len(every), size):
            tiles = tuple(every[start : start + size])
            path = self.top
            for rank, column in zip(ranks, zip(*tiles, strict=True), strict=False):
                path = path.extend(rank, np.array(column, float)[:, None])
            yield Batch(tiles, path)

    def block_local(self, tensor: str) -> int | None:
        """The only block that touches a tensor; None if several do."""
        blocks = {self.block_of[name] for name in self.roles.touched_by[tensor]}
        return blocks.pop() if len(blocks) == 1 else None

    def key(self, path: Path) -> Hashable:
        """What the pieces under some loops depend on."""
        return (tuple(sorted(self.sizes.items())), path.key)

    def _bunch(self, bunch: tuple[int, ...]) -> Choice:
        """The tiles of the loops of blocks under the same; each opens leaves and local tensors."""
        number = bunch[0]
        ranks = self.structure.inner[number]
        local = [t for t in self.roles.touched_by if self.block_local(t) in bunch]
        inside = [t for t in local if t not in self.roles.outside and t not in self.open_rooms]
        homed = [t for t in local if t in self.roles.outside and len(self.roles.touched_by[t]) > 1]
        ways: list[Alternative] = []
        for batch in self.batches(number):
            strands = self.strands(bunch, batch)
            opened = [self._strands(strands, batch)] if strands.seats else []
            opened += [
                self._leaves(Ready(name, None, frozenset()), batch)
                for one in bunch
                for name in self.structure.blocks[one]
                if name not in strands.einsums
            ]
            opened += [self.homes(tensor, self.faces[tensor], batch) for tensor in homed]
            columns = self.pieces.stack((batch.count, self.count))
            for tensor in inside:
                columns += self.exchanged(tensor, batch)
            for at, tiles in enumerate(batch.tiles):
                label = Inner(number, tuple(zip(ranks, tiles, strict=True)))
                opens = tuple(choices[at] for choices in opened)
                if all(choice.alternatives for choice in opens):
                    ways.append(Alternative(label, columns[:, at], opens))
        return Choice(tuple(ways))

    # What is forwarded.

    def strands(self, bunch: tuple[int, ...], batch: Batch) -> Strands:
        """What blocks may forward under some tiles of their loops."""
        tiles = batch.path.tiles[-1]
        ranks = {rank for rank, tile in tiles.items() if np.any(np.asarray(tile) > 1)}
        strands = find_strands(
            self.space, self.structure, self.forwardable, bunch, self.sharing, ranks
        )
        possible = {
            tensor: tuple(seat for seat in seats if self.holds(tensor, seat, batch).any())
            for tensor, seats in strands.seats.items()
        }
        return replace(strands, seats=possible)

    def holds(self, tensor: str, seat: Seat, batch: Batch) -> Numbers:
        """Where a tensor's tile has a word for each lane of a seat at most: [tile, point]."""
        at, lanes = dict(seat.spatial), self.space.lanes[seat.unit]
        found: Values = True
        for rank in self.space.facts.ranks[tensor]:
            most = np.floor(lanes[at[rank]]) if rank in at else 1
            found = found & (np.asarray(batch.path.tiles[-1][rank]) <= most)
        return np.broadcast_to(found, (batch.count, self.count))

    def _strands(self, strands: Strands, batch: Batch) -> tuple[Choice, ...]:
        """The first decision on what is forwarded, which opens the others, for each tile."""
        leaves = cache(partial(self._leaves, batch=batch))
        settled = cache(partial(self.settled, batch=batch))

        @cache
        def decide(state: State) -> tuple[Choice, ...]:
            if self.pieces.expired():
                raise Interrupted
            ways: list[list[Alternative]] = [[] for _ in batch.tiles]
            for decision in strands.decide(state):
                if decision.seat is not None:
                    where = self.holds(decision.tensor, decision.seat, batch)
                columns = settled(decision.settled)
                opened = [leaves(ready) for ready in decision.ready]
                opened += [decide(decision.then)] if decision.then else []
                for at in range(batch.count):
                    if decision.seat is None:
                        label: Hashable = ("home", decision.tensor)
                    elif where[at].any():
                        label = Held(decision.tensor, where[at])
                    else:
                        continue
                    opens = tuple(choices[at] for choices in opened)
                    if all(choice.alternatives for choice in opens):
                        ways[at].append(Alternative(label, columns[:, at], opens))
            return tuple(Choice(tuple(found)) for found in ways)

        return decide(State())

    def settled(self, settled: tuple[tuple[str, Seat | None], ...], batch: Batch) -> Numbers:
        """The room of tensors that take turns in one, of those that have a home: one run of them
        after the other, wherever one in between is forwarded."""
        out = self.pieces.stack((batch.count, self.count))
        row = self.pieces.rooms[self.space.memories[self.structure.exchange]]
        every = [
            (tensor, np.ones(1, bool) if seat is None else ~self.holds(tensor, seat, batch))
            for tensor, seat in settled
        ]
        span: Values = 0
        for number, (tensor, home) in reversed([*enumerate(every)]):
            span = self.apart.get(tensor, 0) + span * home
            first = home & ~every[number - 1][1] if number else home
            depth = self.space.exchange_depth(
                tensor, batch.path.ranks, self.roles.touched_by[tensor]
            )
            out[row] += first * self.room(tensor, batch.path, depth, span)
            span = span * home
        return out

    # Homes.

    def may_forward(self, tensor: str) -> bool:
        """Whether a tensor may go from register to register, where a lane has room for it."""
        return any(tensor in own for own in self.forwardable.values())

    def homes(self, tensor: str, face: int, batch: Batch) -> tuple[Choice, ...]:
        """Where a tensor may live above the level that feeds the units, for each tile."""
        key = (
            "homes", tensor, face, self.roles.touched_by[tensor], self.key(batch.path),
            self.under_way(tensor),
        )  # fmt: skip

        def make() -> tuple[Choice, ...]:
            depths = self.space.depths(tensor, batch.path.ranks)
            places = list(self.space.chains(tensor, face, depths))
            labels = [self.space.home(tensor, one) for one in places]
            columns = np.array([self._chain(tensor, one, batch) for one in places])
            return _per_tile(labels, columns, batch.count)

        return self.pieces.keep(key, make, 4 * self.pieces.height * batch.count * self.count)

    def _chain(self, tensor: str, places: tuple[tuple[str, int], ...], batch: Batch) -> Numbers:
        """The columns of a tensor's homes, from the outermost memory inwards."""
        shape, path = (batch.count, self.count), batch.path
        out = self.pieces.stack(shape)
        parent = self.space.memories[0]
        objective = self.pieces.objective
        for level, depth in places:
            if objective.prices(parent) or objective.prices(level):
                moved = count_home(
                    path.loops[:depth],
                    path.tiles[depth],
                    self.moved(tensor),
                    self.made(tensor),
                    self.sizes,
                    self.space.constraints.retention,
                )
                out += self.pieces.stack(
                    shape,
                    objective.access(level, moved.own),
                    objective.access(parent, moved.parent),
                )
            out[self.pieces.rooms[level]] += self.room(tensor, path, depth)
            parent = level
        return out

    def exchanged(self, tensor: str, batch: Batch) -> Numbers:
        """The columns of a tensor that stays in the group: [row, tile, point]."""
        names = self.roles.touched_by[tensor]
        depth = self.space.exchange_depth(tensor, batch.path.ranks, names)
        level = self.space.memories[self.structure.exchange]
        if tensor in self.roles.through:
            return self._chain(tensor, ((level, depth),), batch)
        out = self.pieces.stack((batch.count, self.count))
        if tensor not in self.overlays:
            out[self.pieces.rooms[level]] += self.room(tensor, batch.path, depth)
        return out

    def under_way(self, *tensors: str) -> Hashable:
        """What the copies of tensors under way depend on, besides the tiles."""
        apart = tuple(self.spans.get(tensor, 0) for tensor in tensors)
        return (apart, self.overlapped.tobytes()) if any(apart) else None

    def room(self, tensor: str, path: Path, depth: int, span: Values | None = None) -> Values:
        """The words that a tensor's tiles take; of a carried tensor, one generation.

        Args:
            tensor: whose.
            path: the loops above the leaves.
            depth: how many of them are above the tiles.
            span: how many tiles are under way beyond one, if not those of `spans`.
        """
        span = self.spans.get(tensor, 0) if span is None else span
        facts = self.space.facts
        visited = facts.visited(tensor, self.roles.touched_by[tensor])
        words = visited.words(path.tiles[depth], self.sizes) * 1.0
        words = words * (2.0 if tensor in self.space.constraints.double else 1.0)
        if np.any(np.asarray(span) > 0):
            outer, counts = len(self.structure.loops), [one.count for one in path.loops]
            inside = [
                one.count for one in path.loops[outer:depth] if one.rank in facts.ranks[tensor]
            ]
            found = copies(
                span, prod(counts[: min(depth, outer)]), prod(counts[depth:outer]),
                prod(inside),
            )  # fmt: skip
            words = words * np.where(self.overlapped, found, 1.0)
        return words

    def made(self, tensor: str) -> bool:
        """Whether an Einsum of the group makes a tensor."""
        every = self.space.facts.einsums
        return any(
            output.tensor == tensor
            for name in self.roles.touched_by[tensor]
            for output in every[name].outputs
        )

    def moved(self, tensor: str) -> Coordinates:
        """What goes to and from its homes: what its makers, else its readers, visit."""
        every = [self.space.facts.einsums[name] for name in self.roles.touched_by[tensor]]
        made = [o.part for e in every for o in e.outputs if o.tensor == tensor]
        read = [o.part for e in every for o in e.operands if o.tensor == tensor]
        return find_coordinates(frozenset(made or read))

    # Leaves.

    def _leaves(self, ready: Ready, batch: Batch) -> tuple[Choice, ...]:
        """How an Einsum runs, and which levels feed it with what it alone touches, by tile."""
        name = ready.einsum
        tensors = self.space.touched(name)
        local = tuple(
            t for t in tensors if t in self.roles.outside and len(self.roles.touched_by[t]) == 1
        )
        fixed = {
            t: self.space.memories[self.faces.get(t, self.structure.exchange)]
            for t in tensors
            if t not in local
        }
        under = self.key(batch.path)
        size = self.pieces.height * batch.count * self.count

        def make() -> tuple[Choice, ...]:
            make_counted = partial(self._counted, ready, batch)
            counted = self.pieces.keep(("counted", ready, under), make_counted, 8 * size)
            ways: list[list[Alternative]] = [[] for _ in batch.tiles]
            for faces in product(*(self.space.face_levels(t) for t in local)):
                opened = [
                    self.homes(t, face, batch) for t, face in zip(local, faces, strict=True) if face
                ]
                levels = {t: self.space.memories[f] for t, f in zip(local, faces, strict=True)}
                columns = self._leaf_columns(counted, {**fixed, **levels})
                for at, choice in enumerate(_per_tile(counted.leaves, columns, batch.count)):
                    opens = tuple(homes[at] for homes in opened)
                    if all(homes.alternatives for homes in opens):
                        ways[at] += [
                            Alternative(way.label, way.columns, opens)
                            for way in choice.alternatives
                        ]
            # What is in short supply is decided first: homes, and the leaves that open some.
            return tuple(
                Choice(tuple(found), late=not any(way.opens for way in found)) for found in ways
            )

        key = ("leaves", ready, local, tuple(fixed.items()), under)
        return self.pieces.keep(key, make, 8 * size)

    def _leaf_columns(self, counted: Counted, levels: Mapping[str, str]) -> Numbers:
        """The columns of leaves whose tensors are at some levels: [leaf, row, tile, point]."""
        objective = self.pieces.objective
        columns = counted.columns.copy()
        for tensor, traffic in counted.words.items():
            if objective.prices(levels[tensor]):
                for column, value in objective.access(levels[tensor], traffic).items():
                    columns[:, self.pieces.rows[column]] += value
        return columns

    def _counted(self, ready: Ready, batch: Batch) -> Counted:
        """Count the leaves of an Einsum; those beaten in everything everywhere are dropped."""
        name, seat = ready.einsum, ready.seat
        path, shape = batch.path, (batch.count, self.count)
        tiles, retention = path.tiles[-1], self.space.constraints.retention
        einsum = self.space.facts.einsums[name]
        ranks = tuple(
            r for r in self.space.legality.order if r in einsum.ranks and np.any(tiles[r] > 1)
        )
        priced = any(map(self.pieces.objective.prices, self.space.memories))
        leaves = [x for x in self.space.leaves(name, ranks) if seat is None or seat.takes(x)]
        held = {t: self.holds(t, seat, batch) for t in ready.held if seat is not None}
        touched = self.space.touched(name) if priced else ()
        rows = self.pieces.height
        out = np.zeros((len(leaves), rows + 2 * len(touched), *shape))
        for own, leaf in zip(out, leaves, strict=True):
            lanes = self.space.lanes[leaf.unit]
            shares = self.space.architecture.shares(leaf.unit)
            counts = count_leaf(
                einsum, leaf, path.loops, tiles, lanes, self.sizes, retention, shares, held
            )
            objective = self.pieces.objective
            own[:rows] = self.pieces.stack(
                shape,
                objective.compute(counts.work, counts.registers),
                *(objective.deliver(leaf.unit, *moved) for moved in counts.delivered),
            )
            for number, tensor in enumerate(touched):
                own[rows + 2 * number] = counts.homes[tensor].reads
                own[rows + 2 * number + 1] = counts.homes[tensor].writes
        kept = undominated(out)
        words = {
            tensor: Traffic(out[kept, rows + 2 * n], out[kept, rows + 2 * n + 1])
            for n, tensor in enumerate(touched)
        }
        return Counted(tuple(leaves[n] for n in kept), out[kept, :rows], words)


def _per_tile(labels: Iterable[Hashable], columns: Numbers, tiles: int) -> tuple[Choice, ...]:
    """Return for each tile the choice between alternatives of [alternative, row, tile, point]."""
    names = list(labels)
    return tuple(
        Choice(
            tuple(Alternative(names[n], columns[n, :, at]) for n in undominated(columns[:, :, at]))
        )
        for at in range(tiles)
    )
