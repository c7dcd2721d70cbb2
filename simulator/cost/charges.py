"""Energy and area by component, from the architecture's tables, under an accounting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from einfuse.mapper import REGISTERS, Values
from einfuse.simulator.result.accounting import Accounting

from .options import charge_options
from .point import Point, add_up

Components = Mapping[str, Values | None]


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


def find_energy(point: Point, accounting: Accounting, seconds: Values) -> Bill:
    """Energy by component of a run, in pJ; None where a price is unknown."""
    omitted = point.design.omissions.energy if accounting.omissions else ()
    bill = Bill(point.values)
    for (einsum, _, level), traffic in point.counts.traffic.items():
        if level == REGISTERS:
            work = point.counts.work[einsum]
            files = work.active if accounting.all_register_files else 1
            base = f"{work.unit}.registers"
            bill.add(base, traffic.reads * files, f"{base}.read_pj")
            bill.add(base, traffic.writes * files, f"{base}.write_pj")
        else:
            scale = point.number("word_bytes") / point.number(f"{level}.access_bytes")
            bill.add(level, traffic.reads * scale, f"{level}.read_pj")
            bill.add(level, traffic.writes * scale, f"{level}.write_pj")
    for work in point.counts.work.values():
        for operation, done in work.operations.items():
            component = f"{work.unit}.operations.{operation}"
            if component not in omitted:
                bill.add(component, done * work.active, f"{component}.energy_pj")
    for component, count, path in charge_options(point, accounting, seconds):
        bill.add(component, count, path)
    return bill


def find_area(point: Point, accounting: Accounting) -> Components:
    """Area by component, in um^2; None where a component's is unknown."""
    omitted = point.design.omissions.area if accounting.omissions else ()
    area: dict[str, Values | None] = {"interconnect": point.number("interconnect_area_um2")}
    for unit, file in point.architecture.file.units.items():
        lanes: Values = 1
        for dimension in point.architecture.dimensions(unit):
            lanes = lanes * point.number(f"{unit}.{dimension}")
        parts = [
            point.values[f"{unit}.operations.{operation}.area_um2"]
            for operation in file.operations
            if f"{unit}.operations.{operation}" not in omitted
        ]
        parts.append(point.values[f"{unit}.registers.area_um2"])
        known = [part for part in parts if part is not None]
        each = None if len(known) < len(parts) else add_up(known)
        interconnect = point.number(f"{unit}.interconnect_area_um2")
        area[unit] = None if each is None else lanes * each + interconnect
    for level in point.architecture.memories:
        size = point.values[f"{level}.area_um2"]
        if level in point.architecture.instanced and size is not None:
            size = size * point.number(f"{level}.instances")
        area[level] = None if size is None or np.all(np.isnan(size)) else size
    return area


def area_charges(point: Point, accounting: Accounting) -> dict[str, Values]:
    """How often each area is counted, by its path: once for each lane, or for each memory."""
    omitted = point.design.omissions.area if accounting.omissions else ()
    charges: dict[str, Values] = {"interconnect_area_um2": 1}
    for unit, file in point.architecture.file.units.items():
        lanes: Values = 1
        for dimension in point.architecture.dimensions(unit):
            lanes = lanes * point.number(f"{unit}.{dimension}")
        for operation in file.operations:
            if f"{unit}.operations.{operation}" not in omitted:
                charges[f"{unit}.operations.{operation}.area_um2"] = lanes
        charges[f"{unit}.registers.area_um2"] = lanes
        charges[f"{unit}.interconnect_area_um2"] = 1
    return charges | {f"{level}.area_um2": 1 for level in point.architecture.memories}


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
