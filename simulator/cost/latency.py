"""Time: the stages of a design against the units and the memories, and what it is spent on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from einfuse.mapper import MappingError, Phase, Stage, Traffic, Values, Work, compose, resolve

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
        timing = resolve(stage, point.facts, stage.distance.evaluate(point.scope), iterations)
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
    for copy in {e for e, _, _ in point.counts.traffic if e not in point.counts.work}:
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


def memory_seconds(point: Point, level: str, einsums: set[str], tariff: Tariff) -> Values | None:
    """The time that a memory's channels take for some Einsums; None if they are unlimited."""
    traffic = [(e, t) for (e, _, at), t in point.counts.traffic.items() if at == level]
    moved = [t for e, t in traffic if e in einsums]
    if level in point.architecture.instanced:  # the time of each of those that are used
        work = point.counts.work
        moved = [
            Traffic(t.reads / work[e].instances, t.writes / work[e].instances)
            for e, t in traffic
            if e in einsums
        ]
    word = point.number("word_bytes")
    reads, writes = word * add_up(t.reads for t in moved), word * add_up(t.writes for t in moved)
    times = [taken for _, taken in tariff.seconds(level, reads, writes)]
    return np.maximum.reduce(np.broadcast_arrays(*times))[()] if times else None
