"""The tasks of a mapping in the order in which they run: an Einsum on a region of its ranks.

A stage with offsets runs in the order of its schedule, epoch by epoch; one without goes through the
loop tree. The tile of a schedule is an iteration of the loops whose iterations are as many as its
tiles; a stage that names no tiles has those of the loops that its Einsums share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from einfuse.mapper import (
    Chain,
    Loop,
    MappingError,
    Schedule,
    Stage,
    find_schedules,
    iterations,
    parse_formula,
    shared_loops,
)
from einfuse.simulator.cost.latency import iterations_of, stages_of
from einfuse.simulator.events.simulation import Prepared

Region = Mapping[str, tuple[int, int]]
"""Of each rank, the first coordinate and the one after the last."""


@dataclass(frozen=True, slots=True)
class TileTask:
    """An Einsum on the region of a tile; ``number`` counts its own tasks."""

    einsum: str
    number: int
    region: Region

    def __str__(self) -> str:
        return f"{self.einsum} on tile {self.number}"


def order_tasks(prepared: Prepared, *, repair: bool = True) -> Iterator[TileTask]:
    """Yield the tasks of a run, in their order.

    Raises:
        DeadlockError: a dependency that the offsets break and that is not repaired.
        MappingError: no loops of a stage make as many tiles as it says.

    >>> from einfuse.mapper.design.design import load_design
    >>> from einfuse.simulator.events.simulation import prepare
    >>> shape = {"B": 1, "H": 1, "M": 512, "P": 256, "E": 64, "F": 64}
    >>> [str(task) for task in order_tasks(prepare(load_design("fusemax"), shape))][:4]
    ['QK on tile 0', 'LM on tile 0', 'RM on tile 0', 'SLN on tile 0']
    """
    whole = {rank: (0, int(size)) for rank, size in prepared.point.sizes.items()}
    numbers: dict[str, int] = {}
    for stage, schedules in zip(stages_of(prepared.point), prepared.schedules, strict=True):
        if stage.offsets:
            schedule = _tiled(stage, schedules[0], prepared, repair)
            regions = _scheduled(schedule, prepared.chains, whole)
        else:
            names = [name for name in prepared.chains if name in stage.einsums]
            regions = walk_loops(names, prepared.chains, whole)
        for einsum, region in regions:
            if all(start < end for start, end in region.values()):
                number = numbers[einsum] = numbers.get(einsum, -1) + 1
                yield TileTask(einsum, number, region)


def walk_loops(
    einsums: Sequence[str], chains: Mapping[str, Chain], region: Region, depth: int = 0
) -> Iterator[tuple[str, Region]]:
    """Yield Einsums with regions in the order of the loop tree, below its first loops."""
    for loop, group in groupby(einsums, lambda name: _at(chains[name], depth)):
        names = list(group)
        if len(names) == 1:
            yield from _alone(names[0], _own_steps(chains[names[0]], depth), region)
        elif loop is None:
            for name in names:
                yield name, region
        else:
            for inner in split_region(loop.loop, region):
                yield from walk_loops(names, chains, inner, depth + 1)


@dataclass(frozen=True, slots=True)
class _Same:
    """A loop that is the same as another only if it is that one."""

    loop: Loop

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.loop is self.loop

    def __hash__(self) -> int:
        return id(self.loop)


def _at(chain: Chain, depth: int) -> _Same | None:
    steps = chain.steps_in_time
    return _Same(steps[depth]) if depth < len(steps) else None


def _own_steps(chain: Chain, depth: int) -> list[Loop]:
    """The loops of one Einsum that make tiles: those of single coordinates are inside a tile."""
    steps = list(chain.steps_in_time[depth:])
    while steps and steps[-1].tile == 1:
        steps.pop()
    return steps


def _alone(einsum: str, steps: Sequence[Loop], region: Region) -> Iterator[tuple[str, Region]]:
    if not steps:
        yield einsum, region
        return
    for inner in split_region(steps[0], region):
        yield from _alone(einsum, steps[1:], inner)


def split_region(loop: Loop, region: Region) -> Iterator[Region]:
    """Yield the parts that a loop in time visits; ragged ones are cut."""
    first, end = region[loop.rank]
    for start in range(first, end, int(loop.tile)):
        yield {**region, loop.rank: (start, min(start + int(loop.tile), end))}


def _tiled(stage: Stage, schedule: Schedule, prepared: Prepared, repair: bool) -> Schedule:
    """The schedule; of a stage that names no tiles, over the loops that its Einsums share.

    What follows a loop over generations waits for a block of its tiles.
    """
    if schedule.tiles > 1:
        return schedule
    point, chains = prepared.point, prepared.chains
    last = {einsum.name for einsum in point.facts.cascade.final}
    piped = {name: offset for name, offset in stage.offsets if name not in last}
    if len(piped) < 2:
        piped = dict(stage.offsets)
    shared = shared_loops(chains[name] for name in piped)
    if iterations(shared) == 1:
        return schedule
    distance = 1
    for loop in reversed(shared):
        if loop.rank in point.facts.iterative:
            break
        distance *= int(loop.count)
    tiled = replace(
        stage,
        offsets=tuple(piped.items()),
        tiles=parse_formula(iterations(shared)),
        distance=parse_formula(distance),
    )
    iterative = int(iterations_of(point))
    return find_schedules(tiled, point.facts, chains, point.scope, iterative, repair=repair)[0]


def _scheduled(
    schedule: Schedule, chains: Mapping[str, Chain], whole: Region
) -> Iterator[tuple[str, Region]]:
    tiles = _tile_loops(schedule, chains)
    for epoch in range(schedule.epochs):
        for slot in schedule.slots:
            tile, rest = divmod(epoch - slot.offset, schedule.interval)
            if slot.unit is None or rest or not 0 <= tile < schedule.tiles:
                continue
            if tile % slot.period != slot.when:
                continue
            first = tile - slot.when
            ends = [_visit(tiles, n, whole) for n in (first, first + slot.period - 1)]
            yield (
                slot.einsum,
                {rank: (ends[0][rank][0], max(e[rank][1] for e in ends)) for rank in whole},
            )


def _tile_loops(schedule: Schedule, chains: Mapping[str, Chain]) -> tuple[Loop, ...]:
    for slot in schedule.slots:
        if slot.unit is not None and slot.period == 1:
            steps = chains[slot.einsum].steps_in_time
            for depth in range(len(steps) + 1):
                if iterations(steps[:depth]) == schedule.tiles:
                    return steps[:depth]
    raise MappingError(
        f"stage {schedule.name} has {schedule.tiles} tiles, and no Einsum has loops of as many "
        "iterations: expected 'tiles' to be the product of the outer loops of one of them"
    )


def _visit(loops: Sequence[Loop], number: int, whole: Region) -> Region:
    """The region of a tile by its number; an empty one begins where its rank ends."""
    digits: list[int] = []
    for loop in reversed(loops):
        number, digit = divmod(number, int(loop.count))
        digits.append(digit)
    region = dict(whole)
    for loop, digit in zip(loops, reversed(digits), strict=True):
        first, end = region[loop.rank]
        start = min(first + digit * int(loop.tile), end)
        region[loop.rank] = (start, min(start + int(loop.tile), end))
    return region
