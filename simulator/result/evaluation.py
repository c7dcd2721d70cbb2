"""The result of an evaluation: a frozen value with units in its names."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from einfuse.mapper import Values

from .sources import Source


@dataclass(frozen=True, slots=True)
class EinsumResult:
    """One Einsum: its unit, the cycles it keeps it busy, and its share of the run.

    ``utilization`` is the part of all lanes x cycles of the run that the Einsum uses.
    """

    unit: str
    cycles: Values
    utilization: Values


@dataclass(frozen=True, slots=True)
class LevelTraffic:
    """Bytes read and written at a memory level."""

    read_bytes: Values
    write_bytes: Values


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a design costs at a shape; every number is an array if the inputs were.

    Attributes:
        seconds, cycles: time of the whole run. At infeasible points of an array they, dram_bytes
            and energy_pj are infinite.
        dram_bytes: bytes read and written at the outermost memory.
        energy_pj: None (NaN at points of an array) where a component's energy is unknown, with
            the reason in ``unknown``; likewise ``area_um2``.
        utilization: unit -> used part of its lanes x cycles.
        peak_bytes: level -> most bytes alive; ``holders_bytes`` says whose (of one structure).
        bound: what the time is spent on: a unit, or a memory level.
        resource_seconds: unit or level -> time it would take alone.
        feasible: whether the point meets the design's requirements and fits every level.
        warnings: what the result does not show.
        include: options that the accounting charges.
        charges: path of a price -> how often it is charged: ``energy_pj`` and ``area_um2`` are
            the sums of charges x ``parameters`` (leakage: lanes x seconds x 1e9 pJ/(mW s)).
        sources: where each of the ``parameters`` comes from; see `to_sources`.
    """

    design: str
    accounting: str
    seconds: Values
    cycles: Values
    dram_bytes: Values
    energy_pj: Values | None
    area_um2: Values | None
    utilization: Mapping[str, Values]
    peak_bytes: Mapping[str, Values]
    bound: Any
    per_einsum: Mapping[str, EinsumResult]
    traffic: Mapping[str, LevelTraffic]
    energy_by_component_pj: Mapping[str, Values | None]
    area_by_component_um2: Mapping[str, Values | None]
    resource_seconds: Mapping[str, Values]
    holders_bytes: Mapping[str, tuple[tuple[str, Values], ...]]
    parameters: Mapping[str, Values | None] = field(repr=False)
    feasible: Values = True
    unknown: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    charges: Mapping[str, Values] = field(default_factory=dict, repr=False)
    sources: tuple[Source, ...] = field(default=(), repr=False)

    def to_row(self) -> dict[str, Any]:
        """Return a flat, ordered row: one column a number, units in the names."""
        row: dict[str, Any] = {
            "design": self.design,
            "accounting": self.accounting,
            "seconds": self.seconds,
            "cycles": self.cycles,
            "dram_bytes": self.dram_bytes,
            "energy_pj": self.energy_pj,
            "area_um2": self.area_um2,
            "bound": self.bound,
        }
        row |= {f"utilization_{unit}": value for unit, value in self.utilization.items()}
        row |= {f"peak_bytes_{level}": value for level, value in self.peak_bytes.items()}
        row |= {f"cycles_{name}": one.cycles for name, one in self.per_einsum.items()}
        row |= {f"utilization_{name}": one.utilization for name, one in self.per_einsum.items()}
        return row

    def to_json(self) -> dict[str, Any]:
        """Return the same names as nested plain values, ready for ``json.dumps``."""
        return {
            "design": self.design,
            "accounting": self.accounting,
            "include": list(self.include),
            "seconds": _plain(self.seconds),
            "cycles": _plain(self.cycles),
            "dram_bytes": _plain(self.dram_bytes),
            "energy_pj": _plain(self.energy_pj),
            "area_um2": _plain(self.area_um2),
            "utilization": _plain(self.utilization),
            "peak_bytes": _plain(self.peak_bytes),
            "holders_bytes": {
                level: {tensor: _plain(held) for tensor, held in holders}
                for level, holders in self.holders_bytes.items()
            },
            "bound": _plain(self.bound),
            "per_einsum": {
                name: {
                    "unit": one.unit,
                    "cycles": _plain(one.cycles),
                    "utilization": _plain(one.utilization),
                }
                for name, one in self.per_einsum.items()
            },
            "traffic": {
                level: {"read_bytes": _plain(t.read_bytes), "write_bytes": _plain(t.write_bytes)}
                for level, t in self.traffic.items()
            },
            "energy_by_component_pj": _plain(self.energy_by_component_pj),
            "area_by_component_um2": _plain(self.area_by_component_um2),
            "resource_seconds": _plain(self.resource_seconds),
            "feasible": _plain(self.feasible),
            "unknown": dict(self.unknown),
            "warnings": list(self.warnings),
        }

    def to_sources(self) -> list[dict[str, Any]]:
        """Return a row for each figure that the result stands on, as plain values.

        Columns: path, value, unit, charged (how often, None if it is no price), kind, formula,
        inputs (names that the formula reads, with their values), prices (what a cost model looked
        up), source.
        """
        return [
            {
                "path": one.path,
                "value": _plain(self.parameters[one.path]),
                "unit": one.unit,
                "charged": _plain(self.charges.get(one.path)),
                "kind": one.kind,
                "formula": one.formula,
                "inputs": {
                    n: _plain(self.parameters[n]) for n in one.reads if n in self.parameters
                },
                "prices": list(one.prices),
                "source": one.source,
            }
            for one in self.sources
        ]

    def render_sources(self) -> str:
        """Return the sources as text: each figure, how it is worked out, and who published it."""
        lines = ["where the figures come from (those of the first point, if arrays)"]
        for source, group in groupby(self.sources, lambda one: one.source):
            for one in group:
                made = f" = {one.formula}" if one.formula else ""
                value = f"{_first(self.parameters[one.path]):.9g} {one.unit}".rstrip()
                count = self.charges.get(one.path)
                often = "" if count is None else f", charged {_first(count):.6g} times"
                lines.append(f"{one.path}: {value}{made}  [{one.kind}{often}]")
                lines += [
                    f"    {name} = {_first(self.parameters[name]):.9g}"
                    for name in one.reads
                    if self.parameters.get(name) is not None
                ]
                lines += [f"    {price}" for price in one.prices]
            lines += [f"  from {source}", ""] if source else [""]
        return "\n".join(lines).rstrip()

    def __str__(self) -> str:
        """A small table with units (of the first point, if arrays)."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, title=self._title)
        table.add_column("quantity")
        table.add_column("value", justify="right")
        table.add_column("unit")
        for name, value, unit in self._lines():
            table.add_row(name, value, unit)
        einsums = Table(box=box.SIMPLE_HEAD)
        for column in ("Einsum", "unit", "cycles", "utilization"):
            einsums.add_column(column, justify="left" if column in ("Einsum", "unit") else "right")
        for name, one in self.per_einsum.items():
            used = f"{100 * _first(one.utilization):.2f} %"
            einsums.add_row(name, one.unit, f"{_first(one.cycles):.6g}", used)
        console = Console(file=io.StringIO(), width=88, force_terminal=False)
        console.print(table)
        console.print(einsums)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().rstrip()

    @property
    def _title(self) -> str:
        charged = "".join(f" + {option}" for option in self.include)
        points = np.size(self.seconds)
        shown = f": the first of {points:,} points, the fields hold all" if points > 1 else ""
        return f"{self.design}, accounting {self.accounting}{charged}{shown}"

    def _lines(self) -> list[tuple[str, str, str]]:
        unknown = {name: f"unknown: {why}" for name, why in self.unknown.items()}
        area = self.area_um2
        lines = [
            ("time", f"{_first(self.seconds):.6g}", "s"),
            ("cycles", f"{_first(self.cycles):.6g}", "cycles"),
            ("bound by", str(_first(self.bound)), ""),
            ("DRAM traffic", f"{_first(self.dram_bytes):.6g}", "bytes"),
            ("energy", _shown(self.energy_pj) or unknown["energy_pj"], "pJ"),
            ("area", _shown(area) or unknown["area_um2"], "um^2"),
        ]
        for unit, used in self.utilization.items():
            lines.append((f"utilization of {unit}", f"{100 * _first(used):.2f}", "%"))
        for level, peak in self.peak_bytes.items():
            held = dict.fromkeys(tensor for tensor, _ in self.holders_bytes.get(level, ()))
            whose = f" ({', '.join(held)})" if held else ""
            lines.append((f"peak in {level}{whose}", f"{_first(peak):.6g}", "bytes"))
        return lines


def _shown(value: Values | None) -> str:
    return "" if value is None else f"{_first(value):.6g}"


def _first(value: Any) -> Any:
    return value.flat[0] if hasattr(value, "flat") else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return None
        if value.is_integer() and abs(value) < 2**53:
            return int(value)
    return value
