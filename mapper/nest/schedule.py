"""The schedule that follows from a stage: which Einsum works on which tile in which epoch.

A *slot* is an Einsum's place in every epoch: in epoch e it works on tile (e - offset) / interval,
if that is one. Slots stand in the order in which an epoch goes through them: by phase, in a phase
producers first. A *wait* is an edge of the cascade between slots: the consumer on tile n waits for
the producer on tile n - tiles. Einsums that stand outside the pipeline (without an offset) run
when a block of tiles, the loops that they share with the pipeline, is through.

A stage with offsets is one schedule, whose phases are taken in lockstep. A stage without overlaps
whole phases: each is a schedule of its own, in which units go through the tiles at their own pace.

A schedule is derived, never stored as a choice; it holds no times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import gcd

from einfuse.mapper.errors import MappingError
from einfuse.mapper.machine.formula import Values

from .resolved import Chain, iterations, shared_loops
from .stages import Phase, Stage, Stall, time_stage
from .workload import Edge, Facts


class DeadlockError(MappingError):
    """Tasks wait for each other in a circle."""


@dataclass(frozen=True, slots=True)
class Slot:
    """An Einsum's place in an epoch; a stall keeps every unit waiting (``unit`` is None).

    It works on the tiles whose number is ``when`` modulo ``period``.
    """

    einsum: str
    unit: str | None
    phase: int
    offset: int
    period: int = 1
    when: int = 0
    stall: float = 0.0  # times the cycles of the Einsum

    def epoch(self, tile: int, interval: int) -> int:
        """The epoch in which it works on a tile."""
        return tile * interval + self.offset


@dataclass(frozen=True, slots=True)
class Wait:
    """Slot ``consumer`` on tile n reads what ``producer`` made on tile n - ``tiles``.

    A pair in one phase of one epoch streams: its elements go over one by one. In a ``block`` of
    tiles the first ``tiles`` of them read what was there before.
    """

    producer: int
    consumer: int
    tensor: str
    tiles: int
    streams: bool
    block: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """The slots of a stage in their order, what they wait for, and the tiles they go through."""

    name: str
    tiles: int
    interval: int
    lockstep: bool
    slots: tuple[Slot, ...]
    waits: tuple[Wait, ...]

    @property
    def epochs(self) -> int:
        """From the first task to the last."""
        return (self.tiles - 1) * self.interval + 1 + max(slot.offset for slot in self.slots)

    @property
    def tasks(self) -> int:
        """How many tasks there are (stalls are none)."""
        return sum(self.tiles // slot.period for slot in self.slots if slot.unit is not None)


def find_schedules(
    stage: Stage,
    facts: Facts,
    chains: Mapping[str, Chain],
    names: Mapping[str, Values],
    iterative: int,
    *,
    repair: bool = True,
) -> tuple[Schedule, ...]:
    """Return the schedules of a stage, which run one after the other.

    Args:
        stage: its phases and offsets.
        facts: those of the cascade.
        chains: the loops above each Einsum.
        names: what the stage's formulas read.
        iterative: iterations of the iterative rank.
        repair: lengthen offsets and intervals that break an edge, as `pipeline.resolve` does.

    Raises:
        DeadlockError: a broken edge that is not repaired, with the tasks that wait in a circle.
        MappingError: the number of tiles is no whole number.
    """
    if not stage.offsets:
        phases = [phase for phase in stage.phases if isinstance(phase, Phase)]
        if len(phases) < len(stage.phases):
            raise MappingError(f"stage {stage.name}: a stall needs a pipeline with offsets")
        return tuple(
            _in_own_pace(Stage(stage.name, (phase,)), facts, chains, iterative) for phase in phases
        )
    distance = int(stage.distance.evaluate(names))
    timing = time_stage(stage, facts, distance, iterative)
    offsets = dict(timing.offsets if repair else stage.offsets)
    interval = int(timing.interval) if repair else 1
    tiles = _tiles(stage, names)
    rest = [einsum for einsum in stage.einsums if einsum not in offsets]
    blocks = _blocks([chains[e] for e in offsets], [chains[e] for e in rest], tiles)
    slots = _slots(stage, names, offsets, tiles // blocks)
    slots = _ordered(slots, facts, interval, distance)
    waits = tuple(_waits(slots, facts, interval, distance, iterative))
    _check(slots, waits, interval)
    return (Schedule(stage.name, tiles, interval, True, tuple(slots), waits),)


def _in_own_pace(
    stage: Stage, facts: Facts, chains: Mapping[str, Chain], iterative: int
) -> Schedule:
    """The schedule of a phase: tiles are the iterations of the loops that its Einsums share."""
    last = {einsum.name for einsum in facts.cascade.final}
    piped = [einsum for einsum in stage.einsums if einsum not in last] or list(stage.einsums)
    if len(piped) > 1:
        shared = list(shared_loops(chains[einsum] for einsum in piped))
    else:
        shared = list(chains[piped[0]].steps_in_time)
        while shared and shared[-1].tile == 1:  # the steps of a tile, not tiles
            shared.pop()
    tiles = iterations(shared)
    rest = [einsum for einsum in stage.einsums if einsum not in piped]
    block = tiles // _blocks([chains[e] for e in piped], [chains[e] for e in rest], tiles)
    slots = [
        replace(slot, period=block, when=block - 1) if slot.einsum in rest else slot
        for slot in _slots(stage, {}, dict.fromkeys(stage.einsums, 0), 1)
    ]
    iterated = {iteration.rank for iteration in facts.cascade.iterations}
    distance = 1
    for loop in reversed(shared):
        if loop.rank in iterated:
            break
        distance *= int(loop.count)
    else:
        distance, iterative = 1, 1
    slots = _ordered(slots, facts, 1, distance)
    waits = tuple(_waits(slots, facts, 1, distance, iterative))
    return Schedule(stage.name, tiles, 1, False, tuple(slots), waits)


def _tiles(stage: Stage, names: Mapping[str, Values]) -> int:
    tiles = float(stage.tiles.evaluate(names))
    if tiles < 1 or not tiles.is_integer():
        raise MappingError(
            f"stage {stage.name}: expected a whole number of tiles, found {tiles:g} "
            f"({stage.tiles.text})"
        )
    return int(tiles)


def _blocks(piped: list[Chain], rest: list[Chain], tiles: int) -> int:
    if not rest:
        return 1
    return gcd(tiles, iterations(shared_loops([*piped, *rest])))


def _slots(
    stage: Stage,
    names: Mapping[str, Values],
    offsets: Mapping[str, int],
    block: int,
) -> list[Slot]:
    """The slots by phase; what has no offset comes after all phases, once in a block of tiles."""
    slots: list[Slot] = []
    deepest = max(offsets.values(), default=0)
    after = len(stage.phases)

    def place(einsum: str, unit: str | None, number: int, stall: float = 0.0) -> Slot:
        if einsum in offsets:
            return Slot(einsum, unit, number, offsets[einsum], stall=stall)
        return Slot(einsum, unit, after + number, deepest, block, block - 1, stall)

    for number, phase in enumerate(stage.phases):
        if isinstance(phase, Stall):
            times = float(phase.times.evaluate(names))
            slots.append(place(phase.einsum, None, number, times))
        if isinstance(phase, Phase):
            for unit, einsums in phase.einsums:
                slots += [place(einsum, unit, number) for einsum in einsums]
    return sorted(slots, key=lambda slot: slot.phase)


def _lag(edge: Edge, offsets: Mapping[str, int], interval: int, distance: int) -> int:
    """Epochs from the producer's task to the consumer's that waits for it."""
    later = edge.generations * distance * interval
    return offsets[edge.consumer] + later - offsets[edge.producer]


def _ordered(slots: list[Slot], facts: Facts, interval: int, distance: int) -> list[Slot]:
    """In a phase, those that make a tensor in an epoch stand before those that read it there."""
    offsets = {slot.einsum: slot.offset for slot in slots}
    phase_of = {slot.einsum: slot.phase for slot in slots if slot.unit is not None}
    before: dict[str, set[str]] = {name: set() for name in phase_of}
    for edge in facts.edges:
        if edge.producer in phase_of and edge.consumer in phase_of:
            same = phase_of[edge.producer] == phase_of[edge.consumer]
            if same and _lag(edge, offsets, interval, distance) == 0:
                before[edge.consumer].add(edge.producer)
    found: list[Slot] = []
    left = list(slots)
    while left:
        waiting = {slot.einsum for slot in left if slot.unit is not None}
        ready = next((s for s in left if s.unit is None or not before[s.einsum] & waiting), left[0])
        if ready.phase > left[0].phase:
            ready = left[0]
        found.append(ready)
        left.remove(ready)
    return found


def _waits(
    slots: list[Slot], facts: Facts, interval: int, distance: int, iterative: int
) -> Iterator[Wait]:
    place = {slot.einsum: n for n, slot in enumerate(slots) if slot.unit is not None}
    offsets = {slot.einsum: slot.offset for slot in slots}
    for edge in facts.edges:
        if edge.producer in place and edge.consumer in place:
            if edge.generations and iterative <= edge.generations:
                continue
            producer, consumer = place[edge.producer], place[edge.consumer]
            same = slots[producer].phase == slots[consumer].phase
            streams = same and _lag(edge, offsets, interval, distance) == 0
            yield Wait(
                producer,
                consumer,
                edge.tensor,
                edge.generations * distance,
                streams and slots[producer].unit != slots[consumer].unit,
                distance * iterative if edge.generations else 0,
            )
    known = {(edge.producer, edge.consumer) for edge in facts.edges}
    makers = {o.tensor: e.name for e in facts.einsums.values() for o in e.outputs}
    for name, consumer in place.items():
        for operand in facts.einsums[name].operands if name in facts.einsums else ():
            maker = makers.get(operand.tensor, name)
            if maker != name and maker in place and (maker, name) not in known:
                yield Wait(place[maker], consumer, operand.tensor, 0, False, 0)


def _check(slots: list[Slot], waits: tuple[Wait, ...], interval: int) -> None:
    """What a task waits for must come before it; the phases of an epoch come in their order."""
    for wait in waits:
        producer, consumer = slots[wait.producer], slots[wait.consumer]
        tile = max(wait.tiles, producer.when, consumer.when)
        own = consumer.epoch(tile, interval)
        other = producer.epoch(tile - wait.tiles, interval)
        if (other, producer.phase) > (own, consumer.phase):
            raise DeadlockError(
                f"deadlock: {consumer.einsum} on tile {tile} (epoch {own}, phase "
                f"{consumer.phase}) waits for {wait.tensor} from {producer.einsum} on tile "
                f"{tile - wait.tiles} (epoch {other}, phase {producer.phase}), which waits for "
                f"{consumer.einsum} on tile {tile}, as phases come in their order: lengthen the "
                f"offset of {consumer.einsum}, or put more tiles between iterations"
            )
