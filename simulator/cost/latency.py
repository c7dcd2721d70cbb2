"""Time: the stages of a design against the units and the memories, and what it is spent on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from einfuse.mapper import MappingError, Phase, Stage, Traffic, Values, Work, compose, time_stage

from .charges import Tariff
from .point import Point, add_up


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of the run, of each resource alone, and what the pipeline breaks."""

    seconds: Values
    cycles: Values
    resource_seconds: Mapping[str, Values]
    violations: tuple[str, ...]

    @property
    def bound(self) -> Any:
        """The resource that the time is spent on (an array of names at points of an array)."""
        names = list(self.resource_seconds)
        times = np.broadcast_arrays(*(np.asarray(t, float) for t in self.resource_seconds.values()))
        longest = np.argmax(np.stack(times), axis=0)
        return np.array(names, dtype=object)[longest] if longest.shape else names[int(longest)]


def find_latency(point: Point, tariff: Tariff) -> Latency:
    """Return the time of a design: its stages one after the other, each against the memories."""
    stages = stages_of(point)
    clock = point.number("clock_hz")
    cycles: Values = 0.0
    resources: dict[str, Values] = {}
    notes: list[str] = []
    iterations = iterations_of(point)
    for stage in stages:
        for name, formula in (("distance", stage.distance), ("tiles", stage.tiles)):
            if np.any(~(np.asarray(formula.evaluate(point.scope)) >= 1) & point.feasible):
                raise MappingError(
                    f"stage {stage.name}: {name}: expected a number of at least 1, found "
                    f"{np.min(formula.evaluate(point.scope)):g} ({formula.text})"
                )
        timing = time_stage(stage, point.facts, stage.distance.evaluate(point.scope), iterations)
        notes += timing.violations
        composed = compose(
            stage,
            point.cycles,
            point.scope,
            timing,
            point.design.composition,
            tariff.accounting.waits,
        )
        longest = composed.cycles
        for unit, busy in composed.busy.items():
            resources[unit] = resources.get(unit, 0.0) + busy / clock
        for level, taken in _memories(point, set(stage.einsums), tariff).items():
            resources[level] = resources.get(level, 0.0) + taken
            longest = np.maximum(longest, taken * clock)
        cycles = cycles + longest
    for copy in copies_of(point):
        longest = 0.0
        for level, taken in _memories(point, {copy}, tariff).items():
            resources[level] = resources.get(level, 0.0) + taken
            longest = np.maximum(longest, taken * clock)
        cycles = cycles + longest
    return Latency(cycles / clock, cycles, resources, tuple(dict.fromkeys(notes)))


def _memories(point: Point, einsums: set[str], tariff: Tariff) -> dict[str, Values]:
    """The time that each memory of limited bandwidth takes for some Einsums."""
    every = {m: memory_seconds(point, m, einsums, tariff) for m in point.architecture.memories}
    return {level: taken for level, taken in every.items() if taken is not None}


def iterations_of(point: Point) -> Values:
    """The iterations of the longest iterative rank."""
    iterations: Values = 1
    for iteration in point.design.cascade.iterations:
        iterations = np.maximum(iterations, point.sizes[iteration.rank])
    return iterations


def stages_of(point: Point) -> tuple[Stage, ...]:
    """The stages of a design, which run one after the other.

    Without any, every Einsum has the units to itself, in the order of the mapping; under
    ``sequential`` composition the memories too, whatever the design says.
    """
    if point.design.composition == "sequential":
        return tuple(Stage(n, (_alone(n, work),)) for n, work in point.counts.work.items())
    if point.design.stages:
        return point.design.stages
    return (Stage("all", tuple(_alone(n, work) for n, work in point.counts.work.items())),)


def _alone(einsum: str, work: Work) -> Phase:
    return Phase(((work.unit, (einsum,)),))


def copies_of(point: Point) -> tuple[str, ...]:
    """The views that are copied, each in a time of its own behind the stages."""
    every = dict.fromkeys(einsum for einsum, _, _ in point.counts.traffic)
    return tuple(einsum for einsum in every if einsum not in point.counts.work)


def memory_seconds(point: Point, level: str, einsums: set[str], tariff: Tariff) -> Values | None:
    """The time that a memory's channels take for some Einsums; None if they are unlimited."""
    moved = [
        _of_an_instance(point, level, einsum, traffic)
        for (einsum, _, at), traffic in point.counts.traffic.items()
        if at == level and einsum in einsums
    ]
    reads, writes = add_up(t.reads for t in moved), add_up(t.writes for t in moved)
    return transfer_seconds(point, level, reads, writes, tariff)


def _of_an_instance(point: Point, level: str, einsum: str, traffic: Traffic) -> Traffic:
    """What an Einsum moves at each of those instances of a level that it uses."""
    if level not in point.architecture.instanced:
        return traffic
    used = point.counts.work[einsum].instances
    return Traffic(traffic.reads / used, traffic.writes / used)


def transfer_seconds(
    point: Point, level: str, reads: Values, writes: Values, tariff: Tariff
) -> Values | None:
    """The time that words read and written take at one memory; None if it is unlimited."""
    word = point.number("word_bytes")
    times = [taken for _, taken in tariff.seconds(level, word * reads, word * writes)]
    return np.maximum.reduce(np.broadcast_arrays(*times))[()] if times else None
