"""A schedule with times: what the event simulation runs, as arrays.

A slot becomes a task type on a unit with its cycles; each memory of finite bandwidth is a port.
With bandwidth on, a tile of input that a memory keeps is fetched by a task of its own on the port
of the memory above; all other accesses go on while their Einsum runs, and share the port.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import lcm
from typing import Any

import numpy as np

from einfuse.mapper import REGISTERS, Chain, Schedule, iterations, moving_loops
from einfuse.simulator.cost.bill import tariff_of
from einfuse.simulator.cost.charges import Tariff, find_accounting
from einfuse.simulator.cost.latency import transfer_seconds
from einfuse.simulator.cost.point import Point

from .overheads import Overheads

CAUSES = ("dependency", "unit", "port", "bandwidth", "capacity")
DEPENDENCY, UNIT, PORT, BANDWIDTH, CAPACITY = range(5)
AFTER_ALL = 1 << 30  # the phase of what follows all others of an epoch
EVERY_UNIT, FETCH, RELEASE = -1, -2, -3  # the units of a stall, a fetch, and a place given back


@dataclass(frozen=True, slots=True)
class Task:
    """A type of task: what it does in every epoch in which it stands.

    ``port`` is the one that a fetch takes; ``demands`` are the ports that an Einsum's accesses
    share while it runs, with the cycles that they take there.
    """

    name: str
    unit: int
    phase: int
    offset: int
    period: int
    when: int
    cycles: float
    port: int = -1
    demands: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Edge:
    """The consumer on tile n waits for the producer on tile n - tiles, and ``latency`` cycles."""

    producer: int
    consumer: int
    tiles: int
    cause: int
    latency: float = 0.0
    streams: bool = False
    block: int = 0
    period: int = 1  # it holds for tiles whose number is 0 modulo the period


@dataclass(frozen=True, slots=True)
class Program:
    """Task types in the order of an epoch, what they wait for, and their resources."""

    name: str
    tiles: int
    interval: int
    lockstep: bool
    interleaved: bool
    units: tuple[str, ...]
    ports: tuple[str, ...]
    tasks: tuple[Task, ...]
    edges: tuple[Edge, ...]

    @property
    def epochs(self) -> int:
        """From the first task to the last."""
        return (self.tiles - 1) * self.interval + 1 + max(task.offset for task in self.tasks)

    @property
    def periods(self) -> tuple[int, ...]:
        """After how many tiles the pattern of tasks and waits repeats, each within the next."""
        found = {1, self.tiles}
        for task in self.tasks:
            found.add(task.period)
        for edge in self.edges:
            found |= {edge.period}
            if edge.block:
                found |= {edge.tiles, edge.block}
        chain = [1]
        for period in sorted(found):
            chain.append(lcm(chain[-1], period))
        return tuple(dict.fromkeys(p for p in chain if p <= self.tiles))

    @property
    def depths(self) -> tuple[int, ...]:
        """Of each task type, how many tasks there are from the newest to the oldest looked at."""
        ahead = max(task.offset for task in self.tasks) // self.interval
        back = [0] * len(self.tasks)
        for edge in self.edges:
            tasks = edge.tiles // self.tasks[edge.producer].period
            back[edge.producer] = max(back[edge.producer], tasks)
        return tuple(
            tasks + -(-ahead // task.period) + 2
            for tasks, task in zip(back, self.tasks, strict=True)
        )

    def tables(self) -> tuple[Any, ...]:
        """The program for the loop over epochs: numbers, and tables of tasks, edges, demands."""
        edges = sorted(self.edges, key=lambda edge: edge.consumer)
        ends = np.searchsorted([edge.consumer for edge in edges], np.arange(len(self.tasks) + 1))
        sizes = np.cumsum([0, *(len(task.demands) for task in self.tasks)])
        tasks = [
            (
                task.unit, task.phase, task.offset, task.period, task.when, task.cycles, task.port,
                ends[number], ends[number + 1], sizes[number], sizes[number + 1],
            )
            for number, task in enumerate(self.tasks)
        ]  # fmt: skip
        waits = [
            (e.producer, e.tiles, e.cause, e.latency, e.streams, e.block, e.period) for e in edges
        ]
        demands = [demand for task in self.tasks for demand in task.demands]
        causes = [BANDWIDTH if port == 0 else PORT for port in range(len(self.ports))]
        return (
            self.interval,
            self.tiles,
            self.lockstep,
            len(self.units),
            np.array(tasks, dtype=_TASK),
            np.array(waits, dtype=_EDGE),
            np.array(demands, dtype=_DEMAND),
            np.array(causes, dtype=np.int64),
        )


_TASK = np.dtype(
    [
        *((name, np.int64) for name in ("unit", "phase", "offset", "period", "when")),
        ("cycles", np.float64),
        *((name, np.int64) for name in
          ("port", "first_edge", "last_edge", "first_demand", "last_demand")),
    ]
)  # fmt: skip
_EDGE = np.dtype(
    [
        *((name, np.int64) for name in ("producer", "tiles", "cause")),
        ("latency", np.float64),
        *((name, np.int64) for name in ("streams", "block", "period")),
    ]
)
_DEMAND = np.dtype([("port", np.int64), ("cycles", np.float64)])


def make_program(
    schedule: Schedule,
    point: Point,
    chains: Mapping[str, Chain],
    overheads: Overheads,
    tariff: Tariff | None = None,
) -> Program:
    """Return the program of a schedule on the point's architecture.

    Memories deliver what a tariff says; without one, what ``physical`` does.
    """
    units = tuple(point.architecture.units)
    times = _Times(schedule, point, chains, tariff)
    ports = times.ports if overheads.fetches else ()
    fetches = list(times.fetches()) if overheads.fetches else []
    tasks = [
        Task(
            f"fetch {fetch.tensor}", FETCH, -1, schedule.slots[fetch.consumer].offset,
            fetch.period, 0, fetch.cycles, fetch.port,
        )
        for fetch in fetches
    ]  # fmt: skip
    # A fetched tile's place is given back when the last task that reads it is done.
    releases = [
        Task(f"release {fetch.tensor}", RELEASE, AFTER_ALL,
             schedule.slots[fetch.consumer].offset, fetch.period, fetch.period - 1, 0.0)
        for fetch in fetches
    ]  # fmt: skip
    first = len(tasks)
    fetched = {(schedule.slots[f.consumer].einsum, f.tensor, f.level) for f in fetches}
    for slot in schedule.slots:
        tiles = schedule.tiles // slot.period
        cycles = float(point.cycles[slot.einsum]) / tiles
        if slot.unit is None:
            tasks.append(
                Task("stall", EVERY_UNIT, slot.phase, slot.offset, slot.period, slot.when,
                     slot.stall * cycles)
            )  # fmt: skip
            continue
        demands = tuple(times.demands(slot.einsum, tiles, fetched)) if overheads.fetches else ()
        tasks.append(
            Task(slot.einsum, units.index(slot.unit), slot.phase, slot.offset, slot.period,
                 slot.when, cycles, demands=demands)
        )  # fmt: skip
    edges: list[Edge] = []
    lockstep = schedule.lockstep and not overheads.decoupled
    if overheads.waits or overheads.fetches:
        edges += _dependencies(schedule, point, overheads, first, lockstep)
    release = len(tasks)
    for number, fetch in enumerate(fetches):
        copies = fetch.copies if overheads.buffering else max(2, fetch.copies)
        consumer = first + fetch.consumer
        edges.append(Edge(number, consumer, 0, BANDWIDTH, period=fetch.period))
        edges.append(Edge(consumer, release + number, 0, CAPACITY))
        old = 1 + (copies - 1) * fetch.period  # to the last tile that used the copy
        edges.append(Edge(release + number, number, old, CAPACITY))
    tasks += releases
    return Program(
        schedule.name, schedule.tiles, schedule.interval, lockstep, overheads.interleaved,
        units, ports,
        tuple(tasks), tuple(edges),
    )  # fmt: skip


def _dependencies(
    schedule: Schedule, point: Point, overheads: Overheads, first: int, lockstep: bool
) -> Iterator[Edge]:
    rows = {
        unit: float(point.number(f"{unit}.rows"))
        for unit in point.architecture.units
        if "rows" in point.architecture.dimensions(unit)
    }
    columns = {unit: float(point.number(f"{unit}.columns")) for unit in rows}
    for wait in schedule.waits:
        producer, consumer = schedule.slots[wait.producer], schedule.slots[wait.consumer]
        latency = 0.0
        if producer.unit != consumer.unit:
            if producer.unit in rows:
                latency += rows[producer.unit] * overheads.drain
                if not wait.streams:
                    latency += (columns[producer.unit] - 1) * overheads.skew
            if consumer.unit in rows:
                latency += rows[consumer.unit] * overheads.fill
        yield Edge(
            first + wait.producer,
            first + wait.consumer,
            wait.tiles,
            DEPENDENCY,
            latency,
            wait.streams,
            wait.block,
        )
        apart = producer.unit != consumer.unit and not wait.tiles
        if apart and not lockstep and producer.period == consumer.period:
            span = consumer.offset - producer.offset
            copies = span // schedule.interval + 1
            yield Edge(first + wait.consumer, first + wait.producer, copies, CAPACITY)


@dataclass(frozen=True, slots=True)
class _Fetch:
    tensor: str
    level: str  # the memory that it is read from
    consumer: int
    period: int
    cycles: float
    port: int
    copies: int


class _Times:
    """The time that a schedule's accesses take at the memories."""

    def __init__(
        self,
        schedule: Schedule,
        point: Point,
        chains: Mapping[str, Chain],
        tariff: Tariff | None,
    ) -> None:
        self.schedule, self.point, self.chains = schedule, point, chains
        self.tariff = tariff or tariff_of(point, find_accounting("physical"))
        memories = point.architecture.memories
        self.ports = tuple(level for level in memories if any(self.tariff.channels(level)))

    def cycles(self, level: str, einsum: str, reads: float, writes: float) -> float:
        """The cycles that what an Einsum reads and writes takes at a level, or at an instance."""
        if level in self.point.architecture.instanced:
            used = float(self.point.counts.work[einsum].instances)
            reads, writes = reads / used, writes / used
        seconds = transfer_seconds(self.point, level, reads, writes, self.tariff)
        assert seconds is not None
        return float(seconds) * float(self.point.number("clock_hz"))

    def fetches(self) -> Iterator[_Fetch]:
        """Tiles of input that a memory keeps, brought in whole from the one above."""
        traffic = self.point.counts.traffic
        made = {o.tensor for e in self.point.facts.einsums.values() for o in e.outputs}
        for number, slot in enumerate(self.schedule.slots):
            chain = self.chains.get(slot.einsum)
            if slot.unit is None or chain is None:
                continue
            above = dict.fromkeys(self.point.facts.ranks, self.point.architecture.memories[0])
            for home in chain.homes:
                level, parent = home.level, above[home.tensor]
                if home.streamed or level == REGISTERS:
                    continue
                above[home.tensor] = level
                moved = traffic.get((slot.einsum, home.tensor, parent))
                filled = traffic.get((slot.einsum, home.tensor, level))
                if home.tensor in made or moved is None or filled is None or parent == level:
                    continue
                if not float(moved.reads) or parent not in self.ports:
                    continue
                loops = home.loops
                moving = moving_loops(loops, home.moved.ranks, self.point.design.retention)
                loads = iterations(
                    [
                        loop
                        for loop, moves in zip(loops, moving, strict=True)
                        if not loop.parallel and moves is not False
                    ]
                )
                tiles = self.schedule.tiles // slot.period
                period = tiles // loads if tiles % loads == 0 else 1
                cycles = self.cycles(parent, slot.einsum, float(moved.reads), 0.0) / (
                    tiles // period
                )
                yield _Fetch(
                    home.tensor, parent, number, period * slot.period, cycles,
                    self.ports.index(parent), int(home.copies),
                )  # fmt: skip

    def demands(
        self, einsum: str, tiles: int, fetched: set[tuple[str, str, str]]
    ) -> Iterator[tuple[int, float]]:
        """The cycles of each port that an Einsum's own accesses take for a tile."""
        for port, level in enumerate(self.ports):
            reads = writes = 0.0
            for (name, tensor, at), moved in self.point.counts.traffic.items():
                if name == einsum and at == level:
                    reads += 0.0 if (name, tensor, at) in fetched else float(moved.reads)
                    writes += float(moved.writes)
            if reads or writes:
                yield port, self.cycles(level, einsum, reads, writes) / tiles
