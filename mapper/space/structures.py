"""A mapping that a search has chosen, and the design that it is.

::

    Plan  = sizes of open splits, Group, Group, ...      # one after the other
    Group = loops, homes, Block, Block, ...              # Einsums fused under common loops
    Block = loops, homes, Leaf, Leaf, ...                # those that share a loop behind a barrier
    Leaf  = an Einsum on a unit: loops in time, loops in space

Groups hand tensors on through the outermost memory. A place is a level and a depth: the number of
loops (of the group, then of the block) above the home.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from einfuse.mapper.machine.formula import Values
from einfuse.mapper.nest.pieces import Leaf
from einfuse.mapper.nest.workload import Facts

Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Home:
    """Where a tensor lives: from the outermost place to the one that feeds the units."""

    tensor: str
    places: tuple[tuple[str, int], ...]  # level, depth
    double: bool = False
    overlaying: str | None = None  # the tensor whose room it takes over


@dataclass(frozen=True, slots=True)
class Inner:
    """The loops of a block of a group, with their tiles."""

    block: int
    loops: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Einsums under common loops; ``blocks`` are runs of them that share further loops.

    ``forwarded`` are the tensors that go from register to register, and have no home.
    """

    blocks: tuple[tuple[str, ...], ...]
    loops: tuple[tuple[str, int], ...]
    inner: tuple[Inner, ...]
    homes: tuple[Home, ...]
    leaves: tuple[Leaf, ...]
    overlapped: bool
    forwarded: frozenset[str] = frozenset()

    @property
    def einsums(self) -> tuple[str, ...]:
        """The Einsums, in order."""
        return tuple(name for block in self.blocks for name in block)


@dataclass(frozen=True, slots=True)
class Plan:
    """Groups one after the other, and the sizes of the open splits."""

    splits: tuple[tuple[str, int], ...]
    groups: tuple[Group, ...]


def offsets(einsums: tuple[str, ...], facts: Facts) -> dict[str, int]:
    """Return the tile offsets of fused Einsums: each a tile behind those that it reads.

    >>> from einfuse.einsum.library.cascades import load
    >>> from einfuse.mapper.nest.workload import facts
    >>> offsets(("QK", "GM", "SN"), facts(load("attention/3-pass")))
    {'QK': 0, 'GM': 1, 'SN': 2}
    """
    found = dict.fromkeys(einsums, 0)
    maker = {o.tensor: name for name in einsums for o in facts.einsums[name].outputs}
    for place, name in enumerate(einsums):
        for operand in facts.einsums[name].operands:
            producer = maker.get(operand.tensor)
            if producer is not None and producer in einsums[:place]:
                found[name] = max(found[name], found[producer] + 1)
    return found


def spans(
    einsums: tuple[str, ...], facts: Facts, overlays: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Return over how many tiles the Einsums that touch a tensor are apart, for each tensor.

    Args:
        einsums: those of an overlapped group.
        facts: those of its cascade.
        overlays: which tensors take over the room of one that they are made from, in the order of
            the Einsums; the room is taken from the first to the last that touch any of them.

    >>> from einfuse.einsum.library.cascades import load
    >>> from einfuse.mapper.nest.workload import facts
    >>> spans(("QK", "GM", "SN"), facts(load("attention/3-pass")))["QK"]
    2
    """
    at = offsets(einsums, facts)
    touching: dict[str, list[int]] = {}
    for name in einsums:
        for used in (*facts.einsums[name].operands, *facts.einsums[name].outputs):
            touching.setdefault(used.tensor, []).append(at[name])
    found = {tensor: max(these) - min(these) for tensor, these in touching.items()}
    for made, read in reversed([*(overlays or {}).items()]):
        found[read] += found[made]
        found[made] = found[read]
    return found


def copies(span: Values, above: Values, beneath: Values, inside: Values) -> Values:
    """Return how many tiles of a home are under way at once where Einsums overlap.

    Args:
        span: over how many tiles of the group those that touch it are apart.
        above: how many tiles of the home there are in the run; no more are there at once.
        beneath: how many tiles of the group one of them lasts.
        inside: how many tiles of the home make up a tile of the group.

    >>> copies(2, 9, 1, 1), copies(2, 9, 16, 1), copies(2, 1, 16, 1), copies(1, 9, 1, 4)
    (3, 2, 1, 8)
    """
    found = np.minimum(1 + np.ceil(span / np.asarray(beneath, float)), above) * inside
    found = np.where(np.asarray(span) > 0, found, 1.0)
    return found if np.ndim(found) else int(found)


def waits(einsums: tuple[str, ...], facts: Facts) -> bool:
    """Tell whether a value that an iterative rank carries would come too late for the overlap."""
    at = offsets(einsums, facts)
    return any(
        at[edge.producer] - at[edge.consumer] > edge.generations
        for edge in facts.edges
        if edge.generations and edge.producer in at and edge.consumer in at
    )


def to_mapping(plan: Plan, facts: Facts, sizes: Sizes, lanes: Any, outermost: str) -> list[Any]:
    """Return the lines of the loop tree, with every tile as a number.

    Args:
        plan: the mapping.
        facts: those of its cascade.
        sizes: the size of each rank.
        lanes: unit -> dimension -> lanes.
        outermost: the outermost memory.
    """
    handed = _handed_on(plan, facts)
    lines: list[Any] = [f"keep {', '.join(handed)} at {outermost}"] if handed else []
    nests = [_group_lines(group, facts, sizes, lanes) for group in plan.groups]
    return [*lines, *(nests[0] if len(nests) == 1 else [{"branch": nests}])]


def to_stages(plan: Plan, facts: Facts, sizes: Sizes) -> list[dict[str, Any]]:
    """Return the stages: a group each, its units side by side where it overlaps.

    Args:
        plan: the mapping.
        facts: those of its cascade.
        sizes: the size of each rank.
    """
    stages: list[dict[str, Any]] = []
    for number, group in enumerate(plan.groups):
        units = {leaf.einsum: leaf.unit for leaf in group.leaves}
        stage: dict[str, Any] = {"name": f"group {number + 1}"}
        if group.overlapped:
            phase: dict[str, list[str]] = {}
            for name in group.einsums:
                phase.setdefault(units[name], []).append(name)
            stage |= {"phases": [phase], **_pipeline(group, facts, sizes)}
        else:
            stage["phases"] = [{units[name]: [name]} for name in group.einsums]
        stages.append(stage)
    return stages


def _pipeline(group: Group, facts: Facts, sizes: Sizes) -> dict[str, Any]:
    """The offsets of an overlapped group, how many tiles it has, and how far a tensor is carried.

    A tile is an iteration of the group's loops. If a tensor is carried on in the group's first
    block, it is one of that block's loops too, and other blocks run when those are through.
    """
    at = offsets(group.einsums, facts)
    loops = group.loops
    inner = next((one.loops for one in group.inner if one.block == 0), ())
    carried = {rank for rank, _ in inner} & facts.iterative
    if any(facts.ranks[t] & carried for t in facts.carried if _touches(group.blocks[0], t, facts)):
        loops = (*loops, *inner)
        at = {name: at[name] for name in group.blocks[0]}
    tiles, distance, left = 1, 1, dict(sizes)
    for rank, tile in loops:
        count = -(-left[rank] // tile)
        left[rank] = tile
        tiles *= count
        distance = 1 if rank in facts.iterative else distance * count
    if not {rank for rank, _ in loops} & facts.iterative:
        distance = 1
    return {"offsets": at, "tiles": tiles, "distance": distance}


def _touches(einsums: tuple[str, ...], tensor: str, facts: Facts) -> bool:
    return any(
        used.tensor == tensor
        for name in einsums
        for used in (*facts.einsums[name].operands, *facts.einsums[name].outputs)
    )


def _handed_on(plan: Plan, facts: Facts) -> tuple[str, ...]:
    """The tensors that one group makes and another reads, outputs apart."""
    place = {name: n for n, group in enumerate(plan.groups) for name in group.einsums}
    known = {facts.root(name) for name in (*facts.cascade.inputs, *facts.cascade.outputs)}
    maker = {o.tensor: e.name for e in facts.einsums.values() for o in e.outputs}
    found = {
        operand.tensor: None
        for einsum in facts.einsums.values()
        for operand in einsum.operands
        if operand.tensor in maker
        and operand.tensor not in known
        and place[maker[operand.tensor]] != place[einsum.name]
    }
    return tuple(found)


def _group_lines(group: Group, facts: Facts, sizes: Sizes, lanes: Any) -> list[Any]:
    depth = len(group.loops)
    overlays = {home.tensor: home.overlaying for home in group.homes if home.overlaying}
    apart = spans(group.einsums, facts, overlays) if group.overlapped else {}
    lines, tiles = _loop_lines(group.loops, group.homes, 0, depth, dict(sizes), None, facts, apart)
    children: list[list[Any]] = []
    for number, block in enumerate(group.blocks):
        inner = next((i for i in group.inner if i.block == number), Inner(number, ()))
        own = {
            used.tensor
            for name in block
            for used in (*facts.einsums[name].operands, *facts.einsums[name].outputs)
        }
        above, below = _loop_lines(
            inner.loops, group.homes, depth, depth + len(inner.loops), tiles, own, facts, apart
        )
        leaves = [
            _leaf_lines(leaf, below, lanes, _forwarding(leaf.einsum, group, facts))
            for leaf in group.leaves
            if leaf.einsum in block
        ]
        children.append([*above, *(leaves[0] if len(leaves) == 1 else [{"pipeline": leaves}])])
    return [*lines, *(children[0] if len(children) == 1 else [{"pipeline": children}])]


def _loop_lines(
    loops: tuple[tuple[str, int], ...],
    homes: tuple[Home, ...],
    first: int,
    last: int,
    tiles: dict[str, int],
    own: set[str] | None,
    facts: Facts,
    apart: Mapping[str, int],
) -> tuple[list[Any], dict[str, int]]:
    """Loops and the homes between them; a block (``own``) has only those beneath its loops."""
    tiles = dict(tiles)
    counts: list[tuple[str, int]] = []
    left = dict(tiles)
    for rank, tile in loops:
        counts.append((rank, -(-left[rank] // tile)))
        left[rank] = tile

    def under_way(tensor: str, depth: int) -> int:
        if own is None:
            above, beneath = (
                prod(count for _, count in part) for part in (counts[:depth], counts[depth:])
            )
            return int(copies(apart.get(tensor, 0), above, beneath, 1))
        inside = prod(n for rank, n in counts[: depth - first] if rank in facts.ranks[tensor])
        span = apart.get(tensor, 0)
        return int(copies(span, span + 1, 1, inside))  # an overlapped group has that many tiles

    def keeps(depth: int) -> list[str]:
        return [
            f"keep {home.tensor} at {level}"
            + (" double" if home.double else "")
            + (f" copies {number}" if (number := under_way(home.tensor, depth)) > 1 else "")
            + (f" overlaying {home.overlaying}" if home.overlaying else "")
            for home in homes
            for level, at in home.places
            if at == depth and (own is None or home.tensor in own)
        ]

    lines: list[Any] = keeps(first) if own is None else []
    for depth, (rank, tile) in zip(range(first + 1, last + 1), loops, strict=True):
        if tile < tiles[rank]:
            lines.append(f"for {rank}" + (f" in {tile}" if tile > 1 else ""))
            tiles[rank] = tile
        lines += keeps(depth)
    return lines, tiles


def _forwarding(einsum: str, group: Group, facts: Facts) -> tuple[str, ...]:
    """What an Einsum takes from the registers that it was made in."""
    operands = dict.fromkeys(operand.tensor for operand in facts.einsums[einsum].operands)
    return tuple(tensor for tensor in operands if tensor in group.forwarded)


def _leaf_lines(
    leaf: Leaf, tiles: Mapping[str, int], lanes: Any, forwarding: tuple[str, ...]
) -> list[str]:
    lines: list[str] = []
    width = {
        rank: balanced(tiles[rank], int(lanes[leaf.unit][dimension]))
        for rank, dimension in leaf.spatial
    }
    for rank in leaf.order:
        tile = width.get(rank, 1)
        if tile < tiles[rank]:
            lines.append(f"for {rank}" + (f" in {tile}" if tile > 1 else ""))
    lines += [f"parallel {r} over {dim}" for r, dim in leaf.spatial if width[r] > 1]
    words = f"compute {leaf.einsum} on {leaf.unit}"
    words += f" forwarding {', '.join(forwarding)}" if forwarding else ""
    return [*lines, f"{words} pipelined" if leaf.pipelined else words]


def balanced(extent: int, lanes: int) -> int:
    """Return the lanes that each wave takes, when as few waves as can be share an extent evenly.

    >>> balanced(300, 256), balanced(100, 256)
    (150, 100)
    """
    return -(-extent // -(-extent // lanes))
