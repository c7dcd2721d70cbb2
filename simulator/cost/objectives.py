"""What the mapper minimises: latency, energy, their product, traffic, buffer, or a front of them.

The columns are the terms of the evaluator's sums (`einfuse.simulator.cost.latency`, ``charges``):
the seconds of each unit and of each memory's channels, energy, bytes. Energy that is charged by
time, like leakage, is no column: it is a power times the seconds of a group, which add as energy
does. ``mixed`` columns are weighted means of the units' seconds: none exceeds the longest unit, and
their minima over the choices left open bound what no assignment to units can beat.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

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
from einfuse.simulator.result.accounting import Accounting
from einfuse.simulator.result.evaluation import Evaluation

from .charges import (
    Access,
    Event,
    Operations,
    Registers,
    Tariff,
    Transport,
    find_accounting,
)
from .point import find_cycles
from .shipped import shipped_mappings

FIGURES = {
    "latency": ("seconds",),
    "energy": ("energy_pj",),
    "edp": ("seconds", "energy_pj"),
    "traffic": ("dram_bytes",),
    "buffer": ("peak_bytes",),
}


@dataclass(frozen=True, slots=True)
class CostObjective:
    """An objective over an architecture's prices; see `find_objective`.

    ``figures`` are those that the front is kept over; ``product`` tells that their product is to
    be minimised, not the front found.
    """

    name: str
    figures: tuple[str, ...]
    product: bool
    tariff: Tariff
    weights: Mapping[str, Mapping[str, float]]  # mixed column -> unit -> weight
    channels: tuple[tuple[str, str], ...]  # memory and channel
    times: Mapping[str, str]  # unit -> the column of its seconds
    columns: tuple[str, ...]  # those of times, of weights, of channels, then the others
    power: float  # pJ for each second

    @property
    def accounting(self) -> Accounting:
        """What is charged."""
        return self.tariff.accounting

    @property
    def values(self) -> Mapping[str, Values | None]:
        """The architecture's parameters."""
        return self.tariff.values

    @property
    def memories(self) -> tuple[str, ...]:
        """The memories, outermost first."""
        return self.tariff.architecture.memories

    @property
    def rates(self) -> Mapping[str, float]:
        """Figures that grow with time, by so much for each second, on top of their column."""
        return {"energy_pj": self.power} if self.power and "energy_pj" in self.figures else {}

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
        if self.times:
            seconds = find_cycles(work, self.values) / self.values["clock_hz"]
            found[f"{work.unit}.seconds"] = seconds
            found |= {mix: seconds * weight[work.unit] for mix, weight in self.weights.items()}
        operations = (Operations(work, name) for name in work.operations)
        return found | self._charged(Registers(work, registers), *operations)

    def access(self, level: str, traffic: Traffic, instances: Values = 1) -> Mapping[str, Values]:
        """The columns of words read and written at a memory, in the time of one instance."""
        word = self.values["word_bytes"]
        reads, writes = traffic.reads * word, traffic.writes * word
        found: dict[str, Values] = {}
        if self.times:
            for channel, taken in self.tariff.seconds(level, reads, writes):
                found[f"{level}.{channel.name}"] = taken / instances
        if "dram_bytes" in self.figures and level == self.memories[0]:
            found["dram_bytes"] = reads + writes
        return found | self._charged(Access(level, traffic))

    def deliver(self, unit: str, words: Values, lanes: Values) -> Mapping[str, Values]:
        """The columns of words that go between a memory and lanes of a unit."""
        return self._charged(Transport(unit, words, lanes))

    def _charged(self, *events: Event) -> dict[str, Values]:
        return {"energy_pj": self.tariff.energy(events)} if "energy_pj" in self.figures else {}

    def prices(self, level: str) -> bool:
        """Tell whether traffic at a memory changes any column."""
        return (
            "energy_pj" in self.figures
            or any(memory == level for memory, _ in self.channels)
            or ("dram_bytes" in self.figures and level == self.memories[0])
        )

    def close(
        self,
        columns: Numbers,
        peak_words: Numbers,
        overlapped: Values,
        least_seconds: Values = 0.0,
    ) -> Numbers:
        """The figures of a group: units side by side where they overlap, against the memories."""
        out = np.empty((len(self.figures), columns.shape[1]))
        seconds = self._seconds(columns, overlapped, least_seconds) if self.times else 0.0
        for row, figure in zip(out, self.figures, strict=True):
            if figure == "seconds":
                row[:] = seconds
            elif figure == "peak_bytes":
                row[:] = peak_words * self.values["word_bytes"]
            else:
                row[:] = columns[self.columns.index(figure)]
                if figure in self.rates:
                    row += self.rates[figure] * seconds
        return out

    def _seconds(self, columns: Numbers, overlapped: Values, least: Values) -> Values:
        units, timed = len(self.times), len(self.times) + len(self.weights) + len(self.channels)
        busy, others = columns[:units], columns[units:timed]
        longest, total = busy[0], busy[0]
        for one in busy[1:]:
            longest, total = np.maximum(longest, one), total + one
        seconds = np.maximum(np.where(overlapped, longest, total), least)
        for one in others:
            np.maximum(seconds, one, out=seconds)
        return seconds

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
    names: str | Sequence[str],
    architecture: Architecture,
    *,
    accounting: str = "physical",
    include: Iterable[str] = (),
) -> CostObjective:
    """Return an objective by its name; of several names, the front over all their figures.

    Args:
        names: of latency, energy, edp, traffic, buffer; one, several, or joined by commas.
            ``buffer`` is the peak of the outermost memory on chip.
        architecture: whose prices hold.
        accounting: see `einfuse.simulator.result.accounting`.
        include: what "physical" charges too (see `einfuse.simulator.cost.charges`).

    Raises:
        MappingError, ArchitectureError: there is no such objective, or what it needs is unknown.

    >>> from einfuse.mapper.machine.architecture import load_architecture
    >>> find_objective("latency,energy", load_architecture("fusemax")).figures
    ('seconds', 'energy_pj')
    """
    expect(names, (str, list, tuple), "names", "a name, or several")
    expect(architecture, Architecture, "architecture", "what einfuse.load_architecture returns")
    expect(include, (str, list, tuple, frozenset), "include", "names, a list")
    wanted = [str(n).strip() for n in (names.split(",") if isinstance(names, str) else names)]
    for name in wanted:
        if name not in FIGURES:
            raise MappingError(f"no objective '{name}'{closest(name, FIGURES)}")
    figures = tuple(dict.fromkeys(f for name in wanted for f in FIGURES[name]))
    values = architecture.values(architecture.scope(sources=find_components(architecture)))
    tariff = Tariff(architecture, values, find_accounting(accounting, include))
    _check_prices(tariff, figures)
    power = float(tariff.energy(tariff.elapsed(1.0))) if "energy_pj" in figures else 0.0
    timed = "seconds" in figures or power > 0
    weights = _mixes(tariff) if timed else {}
    channels = tuple(
        (level, channel.name)
        for level in architecture.memories
        for channel, _ in tariff.channels(level)
        if timed
    )
    times = {unit: f"{unit}.seconds" for unit in architecture.units} if timed else {}
    columns = (
        *times.values(),
        *weights,
        *(f"{level}.{kind}" for level, kind in channels),
        *(f for f in ("energy_pj", "dram_bytes") if f in figures),
    )
    product = wanted == ["edp"]
    return CostObjective(
        ",".join(wanted), figures, product, tariff, weights, channels, times, columns, power
    )


def _check_prices(tariff: Tariff, figures: tuple[str, ...]) -> None:
    """Refuse energies of memories that are unknown, and options without figures."""
    architecture = tariff.architecture
    for level in architecture.memories:
        if "energy_pj" in figures and tariff.values[f"{level}.read_pj"] is None:
            raise MappingError(
                f"{architecture.name}: the energy of {level} is unknown, so no mapping has one; "
                f"set {level}.read_pj and {level}.write_pj, or choose another objective"
            )
    nothing = Traffic(0.0, 0.0)
    accesses = (Access(level, nothing) for level in architecture.memories)
    tariff.check([*(Transport(unit, 0.0, 0.0) for unit in architecture.units), *accesses])


def _mixes(tariff: Tariff) -> dict[str, dict[str, float]]:
    """Weights of the units, each adding up to 1: by their lanes, and alike."""
    units = tariff.architecture.units
    lanes = {unit: float(tariff.parts(unit)) for unit in units}
    total = sum(lanes.values())
    return {
        "mixed.lanes": {unit: lanes[unit] / total for unit in units},
        "mixed.units": {unit: 1 / len(units) for unit in units},
    }
