"""The event simulation: every task of a program with its start and its end.

Resources are taken in the order of the schedule, so that the events of an epoch follow from those
before it: a task starts when its unit is free, the phases before it are over (in lockstep), and
what it waits for is there; the last of these is what the unit's idle time is charged to. A *port*
is shared by the tasks of a phase (in lockstep) or taken in turn. A unit is taken by one task after
the other (`stepping`), or shared by those of a phase (`sharing`). `simulate_program` steps through
the epochs; where the state of the machine returns after a period (all times shifted alike), the
periods that follow would be the same, and are added up at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .program import BANDWIDTH, CAUSES, EVERY_UNIT, PORT, RELEASE, UNIT, Program

_CHUNK = 64  # epochs between two looks at the state
_CLOSE = 1e-12  # relative: two states are the same but for rounding


@dataclass(frozen=True, slots=True)
class Events:
    """What came out: times in cycles.

    ``stalls`` is unit x cause; with the busy time it adds up to ``cycles`` for every unit.
    ``starts`` and ``ends`` are those of the recorded epochs x tasks, NaN where there was none;
    ``simulated`` are the tasks that were stepped through, of ``tasks``.
    """

    cycles: float
    busy: NDArray[np.float64]
    stalls: NDArray[np.float64]
    tasks: int
    simulated: int
    starts: NDArray[np.float64] = field(repr=False)
    ends: NDArray[np.float64] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Recording:
    """Which epochs' times to keep: every so many of the first ``epochs`` (None: of all).

    ``limit`` is the most tasks whose times may be kept.
    """

    every: int = 1
    epochs: int | None = None
    limit: int = 500_000

    def rows(self, epochs: int) -> int:
        """How many of a run's epochs are kept."""
        return -(-min(epochs, self.epochs or epochs) // self.every)


def simulate_program(
    program: Program, *, skip: bool = True, recording: Recording | None = None
) -> Events:
    """Run a program.

    Args:
        program: the tasks.
        skip: add up periods that repeat instead of stepping through them.
        recording: the epochs whose times to keep; of those that were skipped there are none.
    """
    machine = _Machine(program, recording)
    whole = program.tiles * program.interval
    machine.advance(0, whole, [p * program.interval for p in program.periods], skip)
    machine.step(whole, program.epochs)
    return machine.events()


class _Machine:
    def __init__(self, program: Program, recording: Recording | None) -> None:
        from .sharing import step_shared  # they load Numba
        from .stepping import step_in_order

        self.program = program
        self.tables = program.tables()
        units, ports, tasks = len(program.units), len(program.ports), len(program.tasks)
        self.ring = 1 << (max(program.depths) - 1).bit_length()
        self.starts = np.zeros((tasks, self.ring))
        self.ends = np.zeros((tasks, self.ring))
        self.free = np.zeros(units + ports)  # when each unit, then each port, is free
        self.clock = np.zeros(1)  # when the last phase was over
        self.stalls = np.zeros((units, len(CAUSES)))
        self.count = np.zeros(1, dtype=np.int64)
        self.skipped = 0
        self.every = recording.every if recording else 0
        rows = recording.rows(program.epochs) if recording else 0
        self.record = np.full((2, rows, tasks), np.nan)
        self.stepper: Callable[..., None] = step_shared if program.interleaved else step_in_order
        kept = [n for n, task in enumerate(program.tasks) if task.unit != EVERY_UNIT]
        self.kept = np.array(kept, dtype=np.int64)
        self.offsets = np.array([program.tasks[n].offset for n in kept], dtype=np.int64)
        self.whens = np.array([program.tasks[n].when for n in kept], dtype=np.int64)
        self.periods = np.array([program.tasks[n].period for n in kept], dtype=np.int64)
        depths = np.array([program.depths[n] for n in kept], dtype=np.int64)
        self.forgotten = (np.arange(self.ring) < self.ring - depths[:, None]).ravel()
        resources = _groups(program)
        own = resources[[_resource(program, n) for n in kept]]
        self.groups = np.concatenate([resources, *[np.repeat(own, self.ring)] * 2])

    def step(self, first: int, last: int) -> None:
        """Go through epochs one by one."""
        if last > first:
            self.stepper(
                first, last, self.every, *self.tables, self.starts, self.ends, self.free,
                self.clock, self.stalls, self.count, self.record,
            )  # fmt: skip

    def advance(self, first: int, last: int, periods: list[int], skip: bool) -> None:
        """Go through epochs in chunks that repeat; the periods divide each other, the largest last.

        A chunk is told from the next by what stands in it alone once the first chunks, in which
        tiles of the period before still linger, are over.
        """
        if not skip or not periods:
            self.step(first, last)
            return
        period, inner = periods[-1], periods[:-1]
        lingering = max(task.offset for task in self.program.tasks)
        lingering += self.ring * self.program.interval
        chunk = period
        if not inner:
            chunk = period * -(-_CHUNK // period)
        long_enough = last - first >= lingering + 4 * chunk
        if not inner and not long_enough:
            self.step(first, last)
            return
        where, seen = first, None
        while where + chunk <= last:
            if inner:
                self.advance(where, where + chunk, inner, skip)
            else:
                self.step(where, where + chunk)
            where += chunk
            if not long_enough:
                continue
            now = (self.state(where), int(self.count[0]) + self.skipped, self.stalls.copy())
            repeats = (last - where) // chunk - 1  # in the last one, a longer period ends
            if seen is not None and repeats > 0 and where - 2 * chunk >= first + lingering:
                shifts = self.shifts(seen[0], now[0], chunk)
                if shifts is not None:
                    self.shift(shifts * repeats, where, repeats * chunk)
                    self.stalls += (now[2] - seen[2]) * repeats
                    self.skipped += (now[1] - seen[1]) * repeats
                    where += repeats * chunk
                    break
            seen = now
        if inner:
            self.advance(where, last, inner, skip)
        else:
            self.step(where, last)

    def places(self, epoch: int) -> NDArray[np.int64]:
        """Where the rings of the kept tasks hold their last ones, by age."""
        tiles = -(-(epoch - self.offsets) // self.program.interval)  # that each is through
        newest = (tiles + self.periods - 1 - self.whens) // self.periods
        result: NDArray[np.int64] = (newest[:, None] + np.arange(self.ring)) % self.ring
        return result

    def state(self, epoch: int) -> NDArray[np.float64]:
        """All times from which the rest of the run follows, those of tiles by their age."""
        places = self.places(epoch)
        tiles = [
            np.take_along_axis(times[self.kept], places, axis=1).ravel()
            for times in (self.ends, self.starts)
        ]
        return np.concatenate([self.free, self.clock, *tiles])

    def shifts(
        self, before: NDArray[np.float64], after: NDArray[np.float64], epochs: int
    ) -> NDArray[np.float64] | None:
        """By how much each group of resources moved in some epochs, if it moved as one.

        A resource that nothing used keeps its time, and so does a task that does not stand in
        every stretch of so many epochs: it did not matter, and will not in the next one. What
        nobody will look at any more does not count.
        """
        moved = after - before
        rare = np.repeat(self.periods * self.program.interval > epochs, self.ring)
        unused = np.ones(len(self.free), dtype=bool)
        idle = (moved == 0) & np.concatenate([unused, [not self.program.lockstep], rare, rare])
        idle[len(unused) + 1 :] |= np.tile(self.forgotten, 2)
        shifts = np.zeros(self.groups.max() + 1)
        for group in range(len(shifts)):
            here = (self.groups == group) & ~idle
            if here.any():
                if np.ptp(moved[here]) > _CLOSE * max(1.0, float(np.abs(after[here]).max())):
                    return None
                shifts[group] = moved[here].max()
        result: NDArray[np.float64] = np.where(idle, 0.0, shifts[self.groups])
        return result

    def shift(self, shifts: NDArray[np.float64], epoch: int, epochs: int) -> None:
        """Move all times as if so many epochs had passed after this one."""
        state = self.state(epoch) + shifts
        resources = len(self.free)
        self.free[:] = state[:resources]
        self.clock[:] = state[resources]
        tiles = state[resources + 1 :].reshape(2, len(self.kept), self.ring)
        places = self.places(epoch + epochs)
        for times, own in zip((self.ends, self.starts), tiles, strict=True):
            times[self.kept[:, None], places] = own

    def events(self) -> Events:
        """Sum up: the time is that of the last unit or port; the others idle at the end."""
        program, units = self.program, len(self.program.units)
        last = float(max(self.free.max(initial=0.0), self.clock[0]))
        busy = np.zeros(units)
        total = 0
        for task in program.tasks:
            times = program.tiles // task.period
            if task.unit >= 0:
                busy[task.unit] += task.cycles * times
            total += times if task.unit not in (EVERY_UNIT, RELEASE) else 0
        cause = UNIT  # what the others still wait for when they are through
        if self.free[:units].max(initial=0.0) < last:
            cause = BANDWIDTH if self.free[units] == last else PORT
        for unit in range(units):
            self.stalls[unit, cause] += last - self.free[unit]
        return Events(
            last, busy, self.stalls, total, int(self.count[0]), self.record[0], self.record[1]
        )


def _groups(program: Program) -> NDArray[np.int64]:
    """The group of each resource (units, then ports): those that wait for each other."""
    units = len(program.units)
    group = np.arange(units + len(program.ports) + 1)  # the last one is the clock

    def join(one: int, other: int) -> None:
        group[group == group[one]] = group[other]

    for edge in program.edges:
        join(_resource(program, edge.producer), _resource(program, edge.consumer))
    for task in program.tasks:
        for port, _ in task.demands:
            join(task.unit, units + port)
    if program.lockstep:
        group[:] = 0
    return group


def _resource(program: Program, task: int) -> int:
    """The resource of a task, as `_groups` numbers them."""
    one = program.tasks[task]
    if one.unit == EVERY_UNIT:
        return len(program.units) + len(program.ports)
    if one.unit == RELEASE:  # it stands with the task that it follows
        source = next(edge.producer for edge in program.edges if edge.consumer == task)
        return _resource(program, source)
    return one.unit if one.unit >= 0 else len(program.units) + one.port
