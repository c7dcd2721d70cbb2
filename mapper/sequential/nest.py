"""A mapping that the search under ``sequential`` composition has chosen, and its loop tree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from einfuse.mapper.machine.architecture import INSTANCES
from einfuse.mapper.nest.reuse import REGISTERS
from einfuse.mapper.space.space import MapSpace

from .blocks import Block
from .rows import Row


@dataclass(frozen=True, slots=True)
class ExplicitPlan:
    """Blocks in order, and what lies whole at the first level over some of them.

    ``splits`` are the sizes of the open splits.
    """

    splits: tuple[tuple[str, int], ...]
    blocks: tuple[Block, ...]
    resident: tuple[str, ...]


def to_lines(space: MapSpace, plan: ExplicitPlan) -> list[Any]:
    """Return the loop tree of a plan, as a design file has it."""
    outer, near = space.memories[:2]
    inside = {*plan.resident, *(t for block in plan.blocks for t in block.tiled)}
    cascade, known = space.cascade, space.facts
    ends = {known.root(n) for n in (*cascade.inputs, *cascade.outputs)}
    made = [o.tensor for e in known.einsums.values() for o in e.outputs]
    handed = [t for t in made if t not in inside and t not in ends]
    lines: list[Any] = [f"keep {', '.join(handed)} at {outer}"] if handed else []
    lines += [f"keep {tensor} at {near}" for tensor in plan.resident]
    nests = [_block_lines(block, near) for block in plan.blocks]
    return [*lines, *(nests[0] if len(nests) == 1 else [{"branch": nests}])]


def _block_lines(block: Block, near: str) -> list[Any]:
    lines: list[Any] = []
    for depth, (rank, tile) in enumerate(block.loops):
        lines += [f"keep {tensor} at {near}" for tensor, at in block.standing if at == depth]
        lines.append(f"for {rank} in {tile}")
    lines += [f"keep {tensor} at {near}" for tensor in block.tiled]
    rows = [_row_lines(row, name) for row, name in zip(block.rows, block.einsums, strict=True)]
    return [*lines, *(rows[0] if len(rows) == 1 else [{"branch": rows}])]


def _row_lines(row: Row, einsum: str) -> list[str]:
    """Loops in time down to each home, those in space above the first that is each lane's own."""
    task, groups = row.task, row.task.groups
    lines: list[str] = []
    current = {
        rank: extent
        for group in groups
        for rank, extent in zip(group.ranks, group.extents, strict=True)
    }
    waiting = [(d, tuple(map(int, way))) for d, way in zip(task.lanes, row.spread, strict=True)]
    lanes = [int(n) for n in row.spread.prod(axis=0)]

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
    pipelined = " pipelined" if task.pipelined else ""
    return [*lines, f"compute {einsum} on {task.unit}{pipelined}"]
