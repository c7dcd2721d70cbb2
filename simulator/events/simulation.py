"""A design simulated in time at a shape: `simulate`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from einfuse.einsum import EinfuseError
from einfuse.mapper import ArchitectureError, Chain, Design, MappingError, Schedule, find_schedules
from einfuse.simulator.cost.bill import find_energy, tariff_of, total
from einfuse.simulator.cost.charges import Tariff, find_accounting
from einfuse.simulator.cost.latency import copies_of, iterations_of, memory_seconds, stages_of
from einfuse.simulator.cost.model import evaluate
from einfuse.simulator.cost.point import Point, add_up, find_point
from einfuse.simulator.result.evaluation import Evaluation

from .machine import Events, Recording, simulate_program
from .overheads import NONE, Overheads
from .program import BANDWIDTH, CAUSES, Program, make_program

MOST_EPOCHS = 1 << 52


@dataclass(frozen=True, slots=True)
class Run:
    """A program that was run: its events, and when it started in the whole run, in cycles."""

    program: Program
    events: Events
    start: float


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a simulation found.

    Attributes:
        cycles, seconds: time of the whole run.
        utilization: unit -> used part of its lanes x cycles.
        stalls: unit -> cause -> cycles in which the unit had nothing to do because of it; with
            its busy cycles they add up to ``cycles``.
        peak_bytes: level -> most bytes alive.
        dram_bytes: bytes read and written at the outermost memory.
        tasks: tile tasks of the run; ``simulated`` of them were stepped through one by one.
        energy_pj: of the run, with leakage over the simulated time where that is charged; None
            where a figure is unknown.
        evaluated: what `einfuse.simulator.cost.model.evaluate` says of the design.
        analytic: the same under ``pipelined`` composition, if the design's is the ``published``
            one, which leaves out the epochs that fill and empty a pipeline.
        runs: the programs with their events, in their order.
        einsums: in the order of the cascade.
        memories: (level, start, cycles) of each stage's accesses, unless they take time tile by
            tile.
    """

    design: str
    overheads: Overheads
    cycles: float
    seconds: float
    utilization: Mapping[str, float]
    stalls: Mapping[str, Mapping[str, float]]
    busy_cycles: Mapping[str, float]
    peak_bytes: Mapping[str, float]
    dram_bytes: float
    energy_pj: float | None
    tasks: int
    simulated: int
    evaluated: Evaluation
    analytic: Evaluation
    clock_hz: float
    runs: tuple[Run, ...]
    einsums: tuple[str, ...]
    memories: tuple[tuple[str, float, float], ...]
    recording: Recording | None

    def __str__(self) -> str:
        """A small table with units."""
        evaluated, analytic = float(self.evaluated.cycles), float(self.analytic.cycles)
        said = f"{evaluated:.6g} of evaluate"
        if evaluated != analytic:
            said += f" {analytic - evaluated:+.6g} to fill and empty the pipeline"
        charged = ", ".join(self.overheads.names)
        lines = [
            f"{self.design}, overheads: {charged or 'none'}",
            f"  cycles    {self.cycles:.6g} = {said}"
            + (f" {self.cycles - analytic:+.6g} of overheads" if charged else ""),
            f"            {100 * (self.cycles / evaluated - 1):+.2f} % of evaluate",
            f"  time      {self.seconds:.6g} s",
            f"  energy    {'unknown' if self.energy_pj is None else f'{self.energy_pj:.6g} pJ'}",
            f"  tasks     {self.tasks}, {self.simulated} of them stepped through",
        ]
        for unit, causes in self.stalls.items():
            shares = ", ".join(
                f"{cause} {100 * cycles / self.cycles:.2f} %"
                for cause, cycles in causes.items()
                if cycles > 0
            )
            lines.append(
                f"  {unit}: busy {100 * self.busy_cycles[unit] / self.cycles:.2f} % of the time; "
                f"waits for {shares or 'nothing'}"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, ready for ``json.dumps``."""
        evaluated, analytic = self.evaluated.to_json(), self.analytic.to_json()
        names = ("cycles", "seconds", "utilization", "peak_bytes", "dram_bytes")
        return {
            "design": self.design,
            "overheads": list(self.overheads.names),
            "cycles": _plain(self.cycles),
            "seconds": self.seconds,
            "utilization": dict(self.utilization),
            "stalls": {
                unit: {cause: _plain(cycles) for cause, cycles in own.items()}
                for unit, own in self.stalls.items()
            },
            "busy_cycles": {unit: _plain(cycles) for unit, cycles in self.busy_cycles.items()},
            "peak_bytes": {level: _plain(held) for level, held in self.peak_bytes.items()},
            "dram_bytes": _plain(self.dram_bytes),
            "energy_pj": self.energy_pj,
            "tasks": self.tasks,
            "simulated_tasks": self.simulated,
            "evaluated": {name: evaluated[name] for name in names},
            "analytic": {name: analytic[name] for name in names},
        }


def _plain(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(value)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A design at a shape, ready to be simulated: its point, chains, and schedules by stage."""

    point: Point
    chains: Mapping[str, Chain]
    schedules: tuple[tuple[Schedule, ...], ...]


def prepare(
    design: Design,
    shape: Mapping[str, int],
    *,
    set: Mapping[str, Any] | None = None,
    repair: bool = True,
) -> Prepared:
    """Return what `simulate` runs: everything but the times.

    Raises:
        MappingError, ArchitectureError: what is wrong, and where.
    """
    try:
        point = find_point(design, shape, set or {}, scalar=True)
        chains = point.nest.chains
        iterations = int(iterations_of(point))
        schedules = tuple(
            find_schedules(stage, point.facts, chains, point.scope, iterations, repair=repair)
            for stage in stages_of(point)
        )
    except EinfuseError as error:
        raise _named(design, error) from None
    return Prepared(point, chains, schedules)


def _named(design: Design, error: EinfuseError) -> EinfuseError:
    if isinstance(error, ArchitectureError | MappingError):
        return type(error)(f"{design.name}: {error}")
    return MappingError(f"{design.name}: {error}")


def _check_size(design: Design, prepared: Prepared, recording: Recording) -> None:
    tasks = sum(
        recording.rows(schedule.epochs) * len(schedule.slots)
        for own in prepared.schedules
        for schedule in own
    )
    if tasks > recording.limit:
        enough = -(-tasks // recording.limit) * recording.every
        raise MappingError(
            f"{design.name}: the trace would hold {tasks} tasks, more than {recording.limit}: "
            f"keep one epoch in {enough} (--sample {enough}), allow more (--trace-limit {tasks}), "
            "or choose a smaller shape"
        )


def _check_tiles(design: Design, prepared: Prepared) -> None:
    """Refuse more epochs than times in floating point can tell apart."""
    for schedule in (one for own in prepared.schedules for one in own):
        if schedule.epochs * schedule.interval > MOST_EPOCHS:
            raise MappingError(
                f"{design.name}: stage {schedule.name} has {schedule.epochs:.3g} epochs of tiles, "
                f"more than the {MOST_EPOCHS:.3g} that can be told apart: choose a smaller shape, "
                "or evaluate the design"
            )


def _memory_cycles(point: Point, einsums: set[str], tariff: Tariff) -> dict[str, float]:
    """The cycles that each memory of limited bandwidth takes for some Einsums."""
    clock = point.number("clock_hz")
    every = {m: memory_seconds(point, m, einsums, tariff) for m in point.architecture.memories}
    return {m: float(taken * clock) for m, taken in every.items() if taken is not None}


def simulate(
    design: Design,
    shape: Mapping[str, int],
    *,
    overheads: Overheads = NONE,
    include: Iterable[str] = (),
    set: Mapping[str, Any] | None = None,
    repair: bool = True,
    skip: bool = True,
    recording: Recording | None = None,
) -> Simulation:
    """Run a design at a shape, tile by tile, in time.

    Args:
        design: a cascade, an architecture and a mapping rule.
        shape: rank -> size; batch ranks included.
        overheads: what is charged beyond the analytic model.
        include: what `evaluate` charges too with it: leakage and the like in energy, ``ports`` in
            the time of memories.
        set: architecture parameter by its path -> value.
        repair: where an offset breaks a dependency, wait as the analytic model does; else such a
            schedule is a deadlock.
        skip: add up periods that repeat instead of stepping through them.
        recording: the epochs whose times to keep, for a trace or a plot; of those that were
            skipped there are none.

    Raises:
        DeadlockError: the tasks that wait for each other.
        MappingError, ArchitectureError: what is wrong, and where.

    >>> from einfuse.mapper.design.design import load_design
    >>> shape = {"B": 1, "H": 1, "M": 4096, "P": 4096, "E": 64, "F": 64}
    >>> run = simulate(load_design("fusemax"), shape)
    >>> run.cycles == run.analytic.cycles
    True
    """
    prepared = prepare(design, shape, set=set, repair=repair)
    point = prepared.point
    accounting = find_accounting("physical", include)
    _check_tiles(design, prepared)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the caller hears what the simulation has to say
        evaluated = analytic = evaluate(design, shape, include=include, set=set)
        if design.composition == "published":
            pipelined = replace(design, composition="pipelined")
            analytic = evaluate(pipelined, shape, include=include, set=set)
    if recording is not None:
        _check_size(design, prepared, recording)
    tariff = tariff_of(point, accounting)
    clock = float(point.number("clock_hz"))
    units = tuple(point.architecture.units)
    stalls = {unit: dict.fromkeys(CAUSES, 0.0) for unit in units}
    busy = dict.fromkeys(units, 0.0)
    runs: list[Run] = []
    memories: list[tuple[str, float, float]] = []
    cycles = 0.0
    for stage, schedules in zip(stages_of(point), prepared.schedules, strict=True):
        start = cycles
        compute = 0.0
        for schedule in schedules:
            program = make_program(schedule, point, prepared.chains, overheads, tariff)
            events = simulate_program(program, skip=skip, recording=recording)
            runs.append(Run(program, events, start + compute))
            compute += events.cycles
            for number, unit in enumerate(units):
                busy[unit] += float(events.busy[number])
                for cause, lost in zip(CAUSES, events.stalls[number], strict=True):
                    stalls[unit][cause] += float(lost)
        taken = _memory_cycles(point, {*stage.einsums}, tariff)
        longest = max(compute, *taken.values(), 0.0)
        if not overheads.fetches:
            memories += [(level, start, own) for level, own in taken.items()]
        for unit in units:
            stalls[unit][CAUSES[BANDWIDTH]] += longest - compute
        cycles = cycles + longest
    for copy in copies_of(point):
        taken = _memory_cycles(point, {copy}, tariff)
        memories += [(level, cycles, own) for level, own in taken.items()]
        longest = max(0.0, *taken.values())
        for unit in units:
            stalls[unit][CAUSES[BANDWIDTH]] += longest
        cycles = cycles + longest
    energy = total(find_energy(point, tariff, cycles / clock).components)
    traffic = point.counts.traffic.items()
    outer = point.architecture.memories[0]
    moved = add_up(t.reads + t.writes for (_, _, level), t in traffic if level == outer)
    return Simulation(
        design=design.name,
        overheads=overheads,
        cycles=cycles,
        seconds=cycles / clock,
        utilization={
            unit: float(
                add_up(
                    point.cycles[name] * work.active / work.lanes / cycles
                    for name, work in point.counts.work.items()
                    if work.unit == unit
                )
            )
            for unit in units
        },
        stalls=stalls,
        busy_cycles=busy,
        peak_bytes={level: float(np.asarray(held)) for level, held in point.peak_bytes.items()},
        dram_bytes=float(point.number("word_bytes") * moved),
        energy_pj=None if energy is None else float(energy),
        tasks=sum(run.events.tasks for run in runs),
        simulated=sum(run.events.simulated for run in runs),
        evaluated=evaluated,
        analytic=analytic,
        clock_hz=clock,
        runs=tuple(runs),
        einsums=tuple(point.facts.einsums),
        memories=tuple(memories),
        recording=recording,
    )
