"""What a design is charged: energy and area by component, each a count times a price."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from einfuse.mapper import REGISTERS, Values
from einfuse.simulator.result.accounting import Accounting

from .charges import Access, Event, Operations, Registers, Tariff, Transport
from .point import Point, add_up


@dataclass(slots=True)
class Bill:
    """What is charged: each component's cost, and how often each price, by its path."""

    prices: Mapping[str, Values | None]
    components: dict[str, Values | None] = field(default_factory=dict)
    charges: dict[str, Values] = field(default_factory=dict)

    def add(self, component: str, count: Values, path: str) -> None:
        """Charge a component a price so many times; None where it is charged and unknown."""
        known, price = self.components.get(component, 0.0), self.prices[path]
        self.charges[path] = self.charges.get(path, 0.0) + count
        if known is None or price is None:
            self.components[component] = None if np.any(np.asarray(count) != 0) else known
        else:
            self.components[component] = known + count * price


def tariff_of(point: Point, accounting: Accounting) -> Tariff:
    """Return what a point is charged by.

    Raises:
        ArchitectureError: a figure of an included option is missing.
    """
    omitted = point.design.omissions.energy if accounting.omissions else ()
    tariff = Tariff(point.architecture, point.values, accounting, omitted)
    tariff.check(events_of(point))
    return tariff


def find_energy(point: Point, tariff: Tariff, seconds: Values) -> Bill:
    """Energy by component of a run, in pJ; None where a price is unknown."""
    bill = Bill(point.values)
    events = (*events_of(point), *tariff.elapsed(seconds))
    for event in sorted(events, key=lambda one: isinstance(one, Transport)):  # listed last
        for component, count, path in tariff.charges(event):
            bill.add(component, count, path)
    return bill


def events_of(point: Point) -> Iterator[Event]:
    """Yield what happens in a run that may be charged, but the time that passes."""
    counts = point.counts
    for (einsum, _, level), traffic in counts.traffic.items():
        if level == REGISTERS:
            yield Registers(counts.work[einsum], traffic)
        else:
            yield Access(level, traffic)
    for work in counts.work.values():
        for operation in work.operations:
            yield Operations(work, operation)
    for one in counts.deliveries:
        yield Transport(counts.work[one.einsum].unit, one.words, one.lanes)


def find_area(point: Point, tariff: Tariff) -> Bill:
    """Area by component, in um^2; None where a component's is unknown."""
    omitted = point.design.omissions.area if tariff.accounting.omissions else ()
    bill = Bill(point.values)
    bill.add("interconnect", 1, "interconnect_area_um2")
    for unit, file in point.architecture.file.units.items():
        lanes = tariff.parts(unit)
        for operation in file.operations:
            if f"{unit}.operations.{operation}" not in omitted:
                bill.add(unit, lanes, f"{unit}.operations.{operation}.area_um2")
        bill.add(unit, lanes, f"{unit}.registers.area_um2")
        bill.add(unit, 1, f"{unit}.interconnect_area_um2")
    for level in point.architecture.memories:
        instanced = level in point.architecture.instanced
        bill.add(level, point.number(f"{level}.instances") if instanced else 1, f"{level}.area_um2")
        size = bill.components[level]
        if size is not None and np.all(np.isnan(size)):
            bill.components[level] = None
    return bill


def total(parts: Mapping[str, Values | None]) -> Values | None:
    """Return the sum of the components; None if one is unknown."""
    known = [part for part in parts.values() if part is not None]
    return add_up(known) if len(known) == len(parts) else None


def find_unknown(
    point: Point, energy: Mapping[str, Values | None], area: Mapping[str, Values | None]
) -> dict[str, str]:
    """Why a total is unknown."""
    stated = dict(point.design.unknown)
    for level, memory in point.architecture.file.memories.items():
        stated.setdefault(f"{level}.area_um2", memory.area_unknown)
        stated.setdefault(f"{level}.read_pj", memory.energy_unknown)
    reasons: dict[str, str] = {}
    for total, price, parts in (
        ("energy_pj", "read_pj", energy),
        ("area_um2", "area_um2", area),
    ):
        missing = [n for n, v in parts.items() if v is None or np.any(np.isnan(v))]
        if missing:
            why = [
                stated.get(f"{name}.{price}")
                or f"the {total[:-3].strip('_')} of {name} is unknown"
                + ("" if parts[name] is None else " where the tables have none")
                for name in missing
            ]
            reasons[total] = "; ".join(why)
    return reasons
