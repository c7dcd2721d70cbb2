"""Stages, phases and tile offsets: which Einsums overlap, what that breaks, what time it takes.

A design's run is a list of *stages*, one after the other, each against the memories' time. A
stage is a list of *phases*: in a phase the Einsums of one unit add up, units run side by side.
With *offsets* the phases belong to an epoch, in which Einsum X works on tile n - offset(X).
An edge X -> Y at distance d (0 within a tile; an iterative rank carries it over ``distance``
tiles) is kept if X is done when Y needs it: offset(X) < offset(Y) + d, or equal with X's phase
no later than Y's. Where it is not kept, Y waits: a longer offset within a tile, or a tile only
every so many epochs (the initiation interval) for a carried edge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field, NonNegativeInt

from einfuse.mapper.errors import MappingError
from einfuse.mapper.machine.formula import Formula, Values, parse_formula
from einfuse.mapper.machine.spec import Spec

from .workload import Facts

_ONE = parse_formula(1)


class StageFile(Spec):
    """The schema of a stage."""

    name: str = ""
    phases: tuple[dict[str, Any], ...] = Field(min_length=1)
    offsets: dict[str, NonNegativeInt] = {}
    distance: str | int = 1
    tiles: str | int = 1


@dataclass(frozen=True, slots=True)
class Phase:
    """Einsums by unit; the units run side by side."""

    einsums: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Stall:
    """Nothing runs for ``times`` the cycles of an Einsum."""

    einsum: str
    times: Formula


@dataclass(frozen=True, slots=True)
class Stage:
    """Phases in their order; offsets in tiles, and the number of tiles an iteration is long."""

    name: str
    phases: tuple[Phase | Stall, ...]
    offsets: tuple[tuple[str, int], ...] = ()
    distance: Formula = _ONE
    tiles: Formula = _ONE

    @property
    def einsums(self) -> tuple[str, ...]:
        """The Einsums of the stage, in the order of the phases."""
        return tuple(
            einsum
            for phase in self.phases
            if isinstance(phase, Phase)
            for _, einsums in phase.einsums
            for einsum in einsums
        )

    def unit_of(self, einsum: str) -> str | None:
        """The unit on which the stage has an Einsum; None if it has it nowhere."""
        for phase in self.phases:
            if isinstance(phase, Phase):
                for unit, einsums in phase.einsums:
                    if einsum in einsums:
                        return unit
        return None


@dataclass(frozen=True, slots=True)
class Composition:
    """The cycles of a stage's compute, and of each unit in it."""

    cycles: Values
    busy: Mapping[str, Values]


def parse_stage(file: StageFile, where: str) -> Stage:
    """Return the stage of its file; MappingError names the place of what is wrong."""
    phases: list[Phase | Stall] = []
    for number, phase in enumerate(file.phases):
        place = f"{where}.phases[{number}]"
        if "stall" in phase:
            stall = phase["stall"]
            if len(phase) != 1 or not isinstance(stall, dict) or set(stall) != {"einsum", "times"}:
                raise MappingError(f"{place}: expected stall: {{einsum: NAME, times: FORMULA}}")
            phases.append(Stall(str(stall["einsum"]), parse_formula(stall["times"])))
            continue
        einsums: list[tuple[str, tuple[str, ...]]] = []
        for unit, names in phase.items():
            if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
                raise MappingError(f"{place}.{unit}: expected a list of Einsums, found {names!r}")
            einsums.append((unit, tuple(names)))
        phases.append(Phase(tuple(einsums)))
    stage = Stage(
        file.name or where,
        tuple(phases),
        tuple(file.offsets.items()),
        parse_formula(file.distance),
        parse_formula(file.tiles),
    )
    placed = stage.einsums
    for name in placed:
        if placed.count(name) > 1:
            raise MappingError(f"{where}: Einsum {name} stands in two phases")
    for name in [*file.offsets, *(p.einsum for p in phases if isinstance(p, Stall))]:
        if name not in placed:
            raise MappingError(f"{where}: {name} stands in no phase of the stage")
    return stage


def render_stage(stage: Stage) -> dict[str, Any]:
    """Return the content of a stage's file, which `parse_stage` reads back as the same stage."""
    phases = [
        {"stall": {"einsum": phase.einsum, "times": phase.times.text}}
        if isinstance(phase, Stall)
        else {unit: list(einsums) for unit, einsums in phase.einsums}
        for phase in stage.phases
    ]
    content: dict[str, Any] = {"name": stage.name, "phases": phases}
    if stage.offsets:
        content["offsets"] = dict(stage.offsets)
    return {**content, "distance": stage.distance.text, "tiles": stage.tiles.text}


@dataclass(frozen=True, slots=True)
class Timing:
    """What the edges make of a stage's offsets."""

    offsets: Mapping[str, int]  # lengthened where an edge within a tile asks for it
    interval: Values  # epochs from one tile to the next
    violations: tuple[str, ...]


def time_stage(stage: Stage, facts: Facts, distance: Values, iterations: Values) -> Timing:
    """Return the offsets and the interval under which every edge of the cascade is kept.

    Args:
        stage: the stage.
        facts: those of its cascade.
        distance: tiles from one iteration to the next, within which a carried value returns.
        iterations: how many iterations there are; a single one carries nothing.
    """
    offsets = dict(stage.offsets)
    phase_of = {
        einsum: number
        for number, phase in enumerate(stage.phases)
        if isinstance(phase, Phase)
        for _, einsums in phase.einsums
        for einsum in einsums
    }
    inside = [e for e in facts.edges if e.producer in offsets and e.consumer in offsets]
    violations: list[str] = []
    for _ in offsets:
        changed = False
        for edge in (e for e in inside if e.generations == 0):
            late = phase_of[edge.producer] > phase_of[edge.consumer]
            needed = offsets[edge.producer] + late
            if needed > offsets[edge.consumer]:
                violations.append(
                    f"{edge.consumer} reads {edge.tensor} before {edge.producer} has made it"
                )
                offsets[edge.consumer] = needed
                changed = True
        if not changed:
            break
    interval: Values = np.int64(1)
    for edge in (e for e in inside if e.generations > 0):
        late = phase_of[edge.producer] > phase_of[edge.consumer]
        gap = offsets[edge.producer] + late - offsets[edge.consumer]
        needed_interval = np.where(
            np.asarray(iterations) > edge.generations,
            np.ceil(gap / (edge.generations * np.asarray(distance))),
            1,
        )[()]
        if np.any(needed_interval > 1):
            violations.append(
                f"{edge.consumer} reads {edge.tensor} of the tile before, which {edge.producer} "
                f"makes {gap} epochs after {edge.consumer} begins, while the next tile of the "
                f"same kind starts after {np.min(distance):g}"
            )
        interval = np.maximum(interval, needed_interval)
    return Timing(offsets, interval, tuple(dict.fromkeys(violations)))


def compose(
    stage: Stage,
    cycles: Mapping[str, Values],
    names: Mapping[str, Values],
    timing: Timing,
    composition: str,
    pay_waits: bool,
) -> Composition:
    """Return the compute time of a stage from the cycles of its Einsums over the whole run.

    ``published`` sums over the whole run and takes the longest unit of each phase. ``pipelined``
    does so epoch by epoch, with the epochs that fill and drain the offsets. A violated edge costs
    its wait if ``pay_waits``.
    """
    busy: dict[str, Values] = {}
    for phase in stage.phases:
        if isinstance(phase, Phase):
            for unit, einsums in phase.einsums:
                busy[unit] = busy.get(unit, 0) + sum(cycles[einsum] for einsum in einsums)
    interval = timing.interval if pay_waits else np.int64(1)
    if composition == "pipelined":
        total = _pipelined(stage, cycles, names, timing.offsets)
    else:
        total = _phases(stage, cycles, names, set(stage.einsums))
    for epochs in np.unique(np.asarray(interval)):
        if epochs > 1:
            waited = (
                _pipelined(stage, cycles, names, timing.offsets, int(epochs))
                if composition == "pipelined"
                else sum(
                    _phases(
                        stage,
                        cycles,
                        names,
                        {e for e in stage.einsums if timing.offsets.get(e, 0) % epochs == rest},
                    )
                    for rest in range(int(epochs))
                )
            )
            total = np.where(interval == epochs, waited, total)[()]
    return Composition(total, busy)


def _phases(
    stage: Stage, cycles: Mapping[str, Values], names: Mapping[str, Values], active: set[str]
) -> Values:
    total: Values = 0.0
    for phase in stage.phases:
        if isinstance(phase, Stall):
            if phase.einsum in active:
                total = total + phase.times.evaluate(names) * cycles[phase.einsum]
            continue
        longest: Values = 0.0
        for _, einsums in phase.einsums:
            longest = np.maximum(longest, sum(cycles[e] for e in einsums if e in active))
        total = total + longest
    return total


def _pipelined(
    stage: Stage,
    cycles: Mapping[str, Values],
    names: Mapping[str, Values],
    offsets: Mapping[str, int],
    interval: int = 1,
) -> Values:
    """The epochs one by one; with an interval, those of a remainder are a pipeline of their own."""
    tiles = np.asarray(stage.tiles.evaluate(names), float)
    total: Values = _phases(stage, cycles, names, set(stage.einsums) - set(offsets))
    for rest in range(interval):
        own = {e: offset // interval for e, offset in offsets.items() if offset % interval == rest}
        total = total + _own_pipeline(stage, cycles, names, own, tiles)
    return total


def _own_pipeline(
    stage: Stage,
    cycles: Mapping[str, Values],
    names: Mapping[str, Values],
    offsets: Mapping[str, int],
    tiles: Values,
) -> Values:
    deepest = max(offsets.values(), default=0)
    each = {einsum: cycles[einsum] / tiles for einsum in offsets}

    def epoch(number: Values) -> Values:
        working = {
            einsum: np.where((number >= offset) & (number - offset < tiles), each[einsum], 0.0)
            for einsum, offset in offsets.items()
        }
        return _phases(stage, working, names, set(offsets))

    total = np.maximum(tiles - deepest, 0) * _phases(stage, each, names, set(offsets))
    for step in range(deepest):
        total = total + epoch(np.asarray(step))
        total = total + np.where(tiles + step >= deepest, epoch(tiles + step), 0.0)
    return total
