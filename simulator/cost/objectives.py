"""What the mapper minimises: latency, energy, their product, traffic, buffer, or a front of them.

The columns are the terms of the evaluator's sums (`einfuse.simulator.cost.latency`, ``costs``): the
seconds of each unit and each memory, energy, bytes. ``mixed`` columns are weighted means of the
units' seconds: none exceeds the longest unit, and their minima over the choices left open bound
what no assignment to units can beat.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from einfuse.einsum import EinfuseError, closest, expect
from einfuse.mapper import (
    Architecture,
    Design,
    MappingError,
    MapSpace,
    Numbers,
    Traffic,
    Values,
    Work,
    cost_of,
)
from einfuse.simulator.components.components import find_components
from einfuse.simulator.result.accounting import Accounting, find_accounting
from einfuse.simulator.result.evaluation import Evaluation

from .point import find_cycles
from .shipped import shipped_mappings

FIGURES = {
    "latency": ("seconds",),
    "energy": ("energy_pj",),
    "edp": ("seconds", "energy_pj"),
    "traffic": ("dram_bytes",),
    "buffer": ("peak_bytes",),
}
_BANDWIDTHS = ("bandwidth_bytes_per_s", "read_bandwidth_bytes_per_s", "write_bandwidth_bytes_per_s")


@dataclass(frozen=True, slots=True)
class CostObjective:
    """An objective over an architecture's prices; see `find_objective`.

    ``figures`` are those that the front is kept over; ``product`` tells that their product is to
    be minimised, not the front found.
    """

    name: str
    figures: tuple[str, ...]
    product: bool
    accounting: Accounting
    values: Mapping[str, Values | None]
    memories: tuple[str, ...]
    weights: Mapping[str, Mapping[str, float]]  # mixed column -> unit -> weight
    channels: tuple[tuple[str, str], ...]  # memory and kind of bandwidth
    times: Mapping[str, str]  # unit -> the column of its seconds
    columns: tuple[str, ...]  # those of times, of weights, of channels, then the others

    @property
    def timed(self) -> str:
        """The figure that is a time."""
        return "seconds"

    @property
    def adds(self) -> tuple[bool, ...]:
        """Times, energies and bytes add; of two peaks the larger one counts."""
        return tuple(figure != "peak_bytes" for figure in self.figures)

    @property
    def mixes(self) -> Sequence[Mapping[str, float]]:
        """Weighted means of the units' seconds."""
        return tuple(self.weights.values())

    def compute(self, work: Work, registers: Traffic) -> Mapping[str, Values]:
        """The columns of an Einsum's steps on a unit."""
        found: dict[str, Values] = {}
        if "seconds" in self.figures:
            seconds = find_cycles(work, self.values) / self.values["clock_hz"]
            found[f"{work.unit}.seconds"] = seconds
            found |= {mix: seconds * weight[work.unit] for mix, weight in self.weights.items()}
        if "energy_pj" in self.figures:
            files = work.active if self.accounting.all_register_files else 1
            base = f"{work.unit}.registers"
            found["energy_pj"] = (
                self._priced(registers.reads * files, f"{base}.read_pj")
                + self._priced(registers.writes * files, f"{base}.write_pj")
                + sum(
                    self._priced(done * work.active, f"{work.unit}.operations.{name}.energy_pj")
                    for name, done in work.operations.items()
                )
            )
        return found

    def access(self, level: str, traffic: Traffic, instances: Values = 1) -> Mapping[str, Values]:
        """The columns of words read and written at a memory, in the time of one instance."""
        word = self.values["word_bytes"]
        reads, writes = traffic.reads * word, traffic.writes * word
        found: dict[str, Values] = {}
        moved = {_BANDWIDTHS[0]: reads + writes, _BANDWIDTHS[1]: reads, _BANDWIDTHS[2]: writes}
        for memory, kind in self.channels:
            if memory == level:
                found[f"{memory}.{kind}"] = moved[kind] / (
                    instances * self.values[f"{memory}.{kind}"]
                )
        if "energy_pj" in self.figures:
            line = self.values[f"{level}.access_bytes"]
            found["energy_pj"] = self._priced(reads / line, f"{level}.read_pj") + self._priced(
                writes / line, f"{level}.write_pj"
            )
        if "dram_bytes" in self.figures and level == self.memories[0]:
            found["dram_bytes"] = reads + writes
        return found

    def prices(self, level: str) -> bool:
        """Tell whether traffic at a memory changes any column."""
        return (
            "energy_pj" in self.figures
            or any(memory == level for memory, _ in self.channels)
            or ("dram_bytes" in self.figures and level == self.memories[0])
        )

    def close(self, columns: Numbers, peak_words: Numbers, overlapped: Values) -> Numbers:
        """The figures of a group: units side by side where they overlap, against the memories."""
        out = np.empty((len(self.figures), columns.shape[1]))
        units, timed = len(self.times), len(self.times) + len(self.weights) + len(self.channels)
        for row, figure in zip(out, self.figures, strict=True):
            if figure == "seconds":
                busy, others = columns[:units], columns[units:timed]
                longest, total = busy[0], busy[0]
                for one in busy[1:]:
                    longest, total = np.maximum(longest, one), total + one
                row[:] = np.where(overlapped, longest, total)
                for one in others:
                    np.maximum(row, one, out=row)
            elif figure == "peak_bytes":
                row[:] = peak_words * self.values["word_bytes"]
            else:
                row[:] = columns[self.columns.index(figure)]
        return out

    def score(self, figures: Numbers) -> Numbers | None:
        """The single figure, or the product of both; None for a front."""
        if self.product:
            return np.asarray(figures[0] * figures[1])
        return np.asarray(figures[0]) if len(self.figures) == 1 else None

    def known(self, space: MapSpace) -> Iterator[tuple[Design, tuple[float, ...]]]:
        """The shipped designs of a space's cascade on its machine, with their figures."""
        for design, found in shipped_mappings(space, self.accounting):
            try:
                yield design, figures_of(found, self)
            except EinfuseError:
                continue

    def _priced(self, count: Values, path: str) -> Values:
        price = self.values[path]
        if price is None:
            return np.where(np.asarray(count) == 0, 0.0, np.inf)
        return count * price


def figures_of(evaluation: Evaluation, objective: CostObjective) -> tuple[float, ...]:
    """Return the figures of an evaluated mapping; MappingError where one is unknown."""
    peak = evaluation.peak_bytes.get(objective.memories[1], 0.0)
    known = {
        "seconds": evaluation.seconds,
        "energy_pj": evaluation.energy_pj,
        "dram_bytes": evaluation.dram_bytes,
        "peak_bytes": peak,
    }
    lacking = [figure for figure in objective.figures if known[figure] is None]
    if lacking:
        raise MappingError(f"{evaluation.design}: {lacking[0]} is unknown")
    return tuple(float(known[figure]) for figure in objective.figures)


def score_of(evaluation: Evaluation, objective: CostObjective) -> float:
    """Return what an evaluated mapping costs: the score of an objective, or its first figure."""
    return cost_of(objective, figures_of(evaluation, objective))


def find_objective(
    names: str | Sequence[str], architecture: Architecture, *, accounting: str = "physical"
) -> CostObjective:
    """Return an objective by its name; of several names, the front over all their figures.

    Args:
        names: of latency, energy, edp, traffic, buffer; one, several, or joined by commas.
            ``buffer`` is the peak of the outermost memory on chip.
        architecture: whose prices hold.
        accounting: see `einfuse.simulator.result.accounting`.

    Raises:
        MappingError: there is no such objective, or what it needs is unknown.

    >>> from einfuse.mapper.machine.architecture import load_architecture
    >>> find_objective("latency,energy", load_architecture("fusemax")).figures
    ('seconds', 'energy_pj')
    """
    expect(names, (str, list, tuple), "names", "a name, or several")
    expect(architecture, Architecture, "architecture", "what einfuse.load_architecture returns")
    wanted = [str(n).strip() for n in (names.split(",") if isinstance(names, str) else names)]
    for name in wanted:
        if name not in FIGURES:
            raise MappingError(f"no objective '{name}'{closest(name, FIGURES)}")
    figures = tuple(dict.fromkeys(f for name in wanted for f in FIGURES[name]))
    values = architecture.values(architecture.scope(sources=find_components(architecture)))
    for level in architecture.memories:
        if "energy_pj" in figures and values[f"{level}.read_pj"] is None:
            raise MappingError(
                f"{architecture.name}: the energy of {level} is unknown, so no mapping has one; "
                f"set {level}.read_pj and {level}.write_pj, or choose another objective"
            )
    units = architecture.units
    lanes = {
        unit: prod(float(values[f"{unit}.{d}"] or 0) for d in architecture.dimensions(unit))
        for unit in units
    }
    total = sum(lanes.values())
    timed = "seconds" in figures
    weights = {
        "mixed.lanes": {unit: lanes[unit] / total for unit in units},
        "mixed.units": {unit: 1 / len(units) for unit in units},
    }
    channels = tuple(
        (level, kind)
        for level in architecture.memories
        for kind in _BANDWIDTHS
        if timed and values[f"{level}.{kind}"] is not None
    )
    columns = (
        *((f"{unit}.seconds" for unit in units) if timed else ()),
        *(weights if timed else ()),
        *(f"{level}.{kind}" for level, kind in channels),
        *(f for f in ("energy_pj", "dram_bytes") if f in figures),
    )
    return CostObjective(
        ",".join(wanted),
        figures,
        wanted == ["edp"],
        find_accounting(accounting),
        values,
        architecture.memories,
        weights if timed else {},
        channels,
        {unit: f"{unit}.seconds" for unit in units} if timed else {},
        columns,
    )
