"""Bounds on a structure at its tile sizes, before its choices are laid out.

The room that what stays inside takes at least, what has to cross the outermost memory, and the
least time of each Einsum on each unit: each the least over the tiles of the blocks' loops.
"""

from __future__ import annotations

from functools import partial, reduce

import numpy as np

from einfuse.mapper.machine.formula import Values
from einfuse.mapper.nest.coordinates import Coordinates
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
            lanes = [np.prod([*space.lanes[unit].values()]) for unit in units_for(space, names)]
            fits = fits | (np.asarray(words) <= max(lanes, default=0))
        kept = tree.settled(tuple((tensor, None) for tensor in chain), batch)
        out += np.where(fits, 0.0, kept)
    return out


def least_traffic(tree: GroupTree, spare_words: Values) -> Numbers:
    """Return the columns of what has to cross the outermost memory, a tensor's best home each.

    Args:
        tree: a structure at its tile sizes.
        spare_words: the words that a home may take at most, at every point.
    """
    out = tree.pieces.stack((tree.count,))
    for tensor in (*tree.roles.outside, *tree.roles.through):
        block = tree.block_local(tensor)
        key = (
            "traffic",
            tensor,
            tree.roles.touched_by[tensor],
            None if block is None else tree.structure.blocks[block],
            None if block is None else tree.structure.inner[block],
            tree.key(tree.top),
            tree.under_way(tensor),
            np.asarray(spare_words).tobytes(),
        )
        make = partial(_tensor_traffic, tree, tensor, block, spare_words)
        out += tree.pieces.keep(key, make, tree.count)
    return out


def _tensor_traffic(
    tree: GroupTree, tensor: str, block: int | None, spare_words: Values
) -> Numbers:
    batches = [Batch(_NOTHING, tree.top)] if block is None else tree.batches(block)
    return reduce(
        np.minimum, (_least_crossing(tree, tensor, b, spare_words).min(axis=1) for b in batches)
    )


def _least_crossing(tree: GroupTree, tensor: str, batch: Batch, spare_words: Values) -> Numbers:
    """What a tensor's best home that has room, or the registers beneath, bring in or out.

    Registers stand beneath all loops, and hold a word each.
    """
    space, path = tree.space, batch.path
    depths = space.depths(tensor, path.ranks)
    every = [space.facts.einsums[name] for name in tree.roles.touched_by[tensor]]
    made = tree.made(tensor)
    read = {o.visited for e in every for o in e.operands if o.tensor == tensor}
    whole = tree.moved(tensor)

    def crossing(depth: int, visited: Coordinates, beneath: Loop | None = None) -> Numbers:
        retention = space.constraints.retention
        above, tiles = path.loops[:depth], path.tiles[depth]
        moved = count_home(above, tiles, visited, made, tree.sizes, retention, beneath)
        columns = tree.pieces.objective.access(space.memories[0], moved.parent)
        return tree.pieces.stack((batch.count, tree.count), columns)

    def registers(visited: Coordinates) -> Numbers:
        # What has more words than there are lanes passes through the registers in turns.
        words = visited.words(path.tiles[-1], tree.sizes)
        turns = np.where(words > lanes, 2.0, 1.0)
        part = Loop(min(visited.ranks), turns, False, 1) if visited.ranks else None
        return crossing(len(path.loops), visited, part)

    units = {unit for e in every for unit in space.units_of[e.name]}
    lanes = max(np.prod([*space.lanes[unit].values()]) for unit in units)
    found = [reduce(np.maximum, map(registers, {whole} if made else read))]
    for depth in depths:
        fits = tree.room(tensor, path, depth) <= spare_words
        found.append(np.where(fits, crossing(depth, whole), np.inf))
    return reduce(np.minimum, found)


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
