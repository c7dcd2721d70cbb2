"""Bounds on a structure at its tile sizes, before its choices are laid out.

The room that what stays inside takes at least, what has to move between memories and registers, and
the least time of each Einsum on each unit: each the least over the tiles of the blocks' loops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial, reduce

import numpy as np

from einfuse.mapper.machine.formula import Values
from einfuse.mapper.nest.loops import Loop
from einfuse.mapper.nest.pieces import count_home
from einfuse.mapper.nest.reuse import Traffic, Work
from einfuse.mapper.space.objective import Numbers

from .forwarding import units_for
from .group_tree import GroupTree
from .path import Batch, Path

_NOTHING: tuple[tuple[int, ...], ...] = ((),)


def least_rooms(tree: GroupTree) -> Numbers:
    """Return the words that what stays inside takes at least at every level, a row each."""
    out = tree.base()
    for bunch in tree.forwardable:
        key = (
            "rooms",
            tree.structure.blocks,
            bunch,
            tree.structure.inner[bunch[0]],
            tree.structure.exchange,
            tuple(tree.overlays),
            tree.key(tree.top),
            tree.under_way(*tree.roles.inside, *tree.roles.through),
        )
        out = out + tree.pieces.keep(key, partial(_bunch_rooms, tree, bunch), tree.count)
    return out[len(tree.pieces.rows) :]


def _bunch_rooms(tree: GroupTree, bunch: tuple[int, ...]) -> Numbers:
    """What the tensors take at least that only a block makes and touches, or that are forwarded."""
    inside = {*tree.roles.inside, *tree.roles.through} - tree.open_rooms
    local = [t for t in tree.roles.touched_by if t in inside and tree.block_local(t) in bunch]
    if not local and not tree.forwardable[bunch]:
        return np.zeros((tree.pieces.height, tree.count))
    taken = []
    for batch in tree.batches(bunch[0]):
        fixed = (tree.exchanged(tensor, batch) for tensor in local)
        taken.append(sum(fixed, _least_settled(tree, bunch, batch)).min(axis=1))
    return reduce(np.minimum, taken)


def _least_settled(tree: GroupTree, bunch: tuple[int, ...], batch: Batch) -> Numbers:
    """What the tensors take at least that may be forwarded.

    That is nothing where one of those that share a room has no more words than there are lanes.
    """
    space, tiles = tree.space, batch.path.tiles[-1]
    out = tree.pieces.stack((batch.count, tree.count))
    for chain in dict.fromkeys(tree.sharing[tensor] for tensor in tree.forwardable[bunch]):
        fits: Values = False
        for tensor in (t for t in chain if t in tree.forwardable[bunch]):
            words: Values = 1.0
            for rank in space.facts.ranks[tensor]:
                words = words * tiles[rank]
            names = tree.roles.touched_by[tensor]
            lanes = [_lanes(tree, unit) for unit in units_for(space, names)]
            fits = fits | (np.asarray(words) <= max(lanes, default=0))
        kept = tree.settled(tuple((tensor, None) for tensor in chain), batch)
        out += np.where(fits, 0.0, kept)
    return out


def least_transfers(tree: GroupTree, spare_words: Mapping[str, Numbers]) -> Numbers:
    """Return the least columns of what moves between memories and registers, at every point.

    Of each tensor the best storage: from the outermost memory through the levels that have room for
    it, and from the last of them to the registers, which hold a word in each lane. Each tensor has
    its own best tiles of the blocks, so no mapping has less in any column.

    Args:
        tree: a structure at its tile sizes.
        spare_words: the words that a tensor may take at most at each level, at every point.
    """
    out = tree.pieces.stack((tree.count,))
    spare = tuple(words.tobytes() for words in spare_words.values())
    for tensor, names in tree.roles.touched_by.items():
        blocks = dict.fromkeys(_bunch_of(tree, name) for name in names)
        key = (
            "transfers",
            tensor,
            names,
            tensor in tree.roles.outside,
            tuple((tree.structure.blocks[b], tree.structure.inner[b]) for b in blocks),
            tree.faces.get(tensor),
            tree.structure.exchange,
            tensor in tree.roles.through,
            tree.may_forward(tensor),
            tree.key(tree.top),
            tree.under_way(tensor),
            spare,
        )
        make = partial(_tensor_transfers, tree, tensor, [*blocks], spare_words)
        out += tree.pieces.keep(key, make, tree.count)
    return out


def _tensor_transfers(
    tree: GroupTree, tensor: str, blocks: list[int], spare_words: Mapping[str, Numbers]
) -> Numbers:
    if len(blocks) == 1:
        found = [_in_batch(tree, tensor, batch, spare_words) for batch in tree.batches(blocks[0])]
        return reduce(np.minimum, found)
    feeds: dict[int, Numbers] = {}
    for face in find_faces(tree, tensor):
        feeds[face] = tree.pieces.stack((tree.count,))
        for block in blocks:
            names = [n for n in tree.roles.touched_by[tensor] if _bunch_of(tree, n) == block]
            fed = [find_feed(tree, tensor, names, face, batch) for batch in tree.batches(block)]
            feeds[face] += reduce(np.minimum, (columns.min(axis=1) for columns in fed))
    top = Batch(_NOTHING, tree.top)
    homes = [_homes(tree, tensor, face, top, spare_words)[:, 0] for face in feeds]
    return reduce(np.minimum, map(np.add, homes, feeds.values()))


def _bunch_of(tree: GroupTree, name: str) -> int:
    """The first block of those whose leaves stand under the same loops as an Einsum's."""
    block = tree.block_of[name]
    return next(bunch[0] for bunch in tree.forwardable if block in bunch)


def _in_batch(
    tree: GroupTree, tensor: str, batch: Batch, spare_words: Mapping[str, Numbers]
) -> Numbers:
    """The least columns of a tensor that blocks under the same loops touch, over some tiles."""
    names = tree.roles.touched_by[tensor]
    found = []
    for face in find_faces(tree, tensor):
        homes = _homes(tree, tensor, face, batch, spare_words)
        found.append(homes + find_feed(tree, tensor, names, face, batch))
    least = reduce(np.minimum, found)
    if tree.may_forward(tensor):  # it needs no storage where each lane has a word of it at most
        units = units_for(tree.space, names)
        lanes = max((_lanes(tree, unit) for unit in units), default=0.0)
        visited = tree.space.facts.visited(tensor, names)
        words = np.asarray(visited.words(batch.path.tiles[-1], tree.sizes))
        least = np.where(words <= lanes, 0.0, least)
    return np.asarray(least.min(axis=1))


def find_faces(tree: GroupTree, tensor: str) -> tuple[int, ...]:
    """The levels that may feed the units with a tensor of a structure."""
    if tensor not in tree.roles.outside:
        return (tree.structure.exchange,)
    face = tree.faces.get(tensor)
    return tree.space.face_levels(tensor) if face is None else (face,)


def _homes(
    tree: GroupTree, tensor: str, face: int, batch: Batch, spare_words: Mapping[str, Numbers]
) -> Numbers:
    """The least columns of storages down to a level that have room: [row, tile, point]."""
    shape = (batch.count, tree.count)
    if tensor in tree.roles.inside or face == 0:
        return tree.pieces.stack(shape)
    if tensor in tree.roles.through:
        return _without_rooms(tree, tree.exchanged(tensor, batch))
    out = np.full((tree.pieces.height, *shape), np.inf)
    for at, choice in enumerate(tree.homes(tensor, face, batch)):
        for way in choice.alternatives:
            fits = np.ones(tree.count, dtype=bool)
            for level, words in spare_words.items():
                fits &= way.columns[tree.pieces.rooms[level]] <= words * (1 + 1e-12)
            np.minimum(out[:, at], np.where(fits, way.columns, np.inf), out=out[:, at])
    return _without_rooms(tree, out)


def _without_rooms(tree: GroupTree, columns: Numbers) -> Numbers:
    """Columns without what is taken of levels: that is for `least_rooms` to say."""
    out = columns.copy()
    out[len(tree.pieces.rows) :] = 0.0
    return out


def find_feed(
    tree: GroupTree, tensor: str, names: Sequence[str], face: int, batch: Batch
) -> Numbers:
    """The least columns of a tensor's words between a level and the registers of some Einsums.

    Registers stand beneath all loops and hold a word of it in each lane. What has more words than
    there are lanes passes through them in turns, so that nothing of it stays from one iteration to
    the next.
    """
    space, path = tree.space, batch.path
    level = space.memories[face]
    out = tree.pieces.stack((batch.count, tree.count))
    if not tree.pieces.objective.prices(level):
        return out
    retention = space.constraints.retention
    for name in names:
        einsum = space.facts.einsums[name]
        for accesses, made in ((einsum.operands, False), (einsum.outputs, True)):
            for visited in {one.visited for one in accesses if one.tensor == tensor}:
                words = visited.words(path.tiles[-1], tree.sizes)
                held = _held_words(tree, name, visited.ranks, path)
                turns = np.where(words > held, 2.0, 1.0)
                part = Loop(min(visited.ranks), turns, False, 1) if visited.ranks else None
                moved = count_home(
                    path.loops, path.tiles[-1], visited, made, tree.sizes, retention, part
                )
                columns = tree.pieces.objective.access(level, moved.parent)
                out += tree.pieces.stack((batch.count, tree.count), columns)
    return out


def _held_words(tree: GroupTree, name: str, ranks: frozenset[str], path: Path) -> Values:
    """The different words of what depends on some ranks that the lanes hold at most."""
    space, tiles = tree.space, path.tiles[-1]
    einsum = space.facts.einsums[name]
    own = [rank for rank in space.legality.order if rank in einsum.ranks]
    most: Values = 1.0
    for unit in space.units_of[name]:
        lanes = [float(np.floor(n)) for n in space.lanes[unit].values()]
        for chosen in {
            tuple(rank if rank in ranks else None for rank in spread)
            for spread in space.spreads(name, unit, own)
        }:
            words: Values = 1.0
            for rank, n in zip(chosen, lanes, strict=True):
                words = words if rank is None else words * np.minimum(tiles[rank], n)
            most = np.maximum(most, words)
    return most


def _lanes(tree: GroupTree, unit: str) -> float:
    return float(np.prod([*tree.space.lanes[unit].values()]))


def least_times(tree: GroupTree) -> list[dict[str, Numbers]]:
    """Return the least time of each Einsum on each unit, whatever its leaf and block's tiles."""
    found: list[dict[str, Numbers]] = []
    for number, block in enumerate(tree.structure.blocks):
        key = ("block times", block, tree.structure.inner[number], tree.key(tree.top))
        make = partial(_block_times, tree, number)
        found += tree.pieces.keep(key, make, 2 * len(block) * tree.count)
    return found


def _block_times(tree: GroupTree, number: int) -> list[dict[str, Numbers]]:
    found: list[dict[str, Numbers]] = [{} for _ in tree.structure.blocks[number]]
    for batch in tree.batches(number):
        for task, name in zip(found, tree.structure.blocks[number], strict=True):
            for unit, times in _times(tree, name, batch.path).items():
                shape = (batch.count, tree.count)
                time = np.broadcast_to(times, shape).min(axis=0)
                task[unit] = np.minimum(task.get(unit, time), time)
    return found


def _times(tree: GroupTree, name: str, path: Path) -> dict[str, Numbers]:
    """The time of an Einsum on each unit with the ranks in space that make it shortest."""
    space, objective = tree.space, tree.pieces.objective
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
        best: Values = 1.0
        for chosen in space.spreads(name, unit, ranks):
            speedup: Values = 1.0
            for spread, n in zip(chosen, lanes, strict=True):
                if spread is not None:
                    speedup = speedup * (tiles[spread] / np.ceil(tiles[spread] / n))
            best = np.maximum(best, speedup)
        per_point: dict[str, int] = {}
        for operation in einsum.operations:
            if operation.ranks == einsum.ranks:
                known = per_point.get(operation.name, 0)
                per_point[operation.name] = known + operation.times
        work = Work(unit, serial / best, 1.0, 1.0, {}, per_point, unit in space.pipelined)
        columns = objective.compute(work, Traffic(0.0, 0.0))
        found[unit] = np.asarray(columns[objective.times[unit]], float)
    return found
