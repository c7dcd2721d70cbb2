"""What a kernel design costs on a GPU: its launches one after the other, as an `Evaluation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from einfuse.einsum import closest
from einfuse.mapper import ArchitectureError, KernelDesign, MappingError, kernel_scope
from einfuse.simulator.result.evaluation import EinsumResult, Evaluation, LevelTraffic
from einfuse.simulator.result.sources import find_sources

from .launch import LaunchCost, find_launch
from .machine import Array, Machine
from .memory import find_footprints, fits_dram
from .tile import lanes_of

_WORD_BYTES = 2
_UNKNOWN = {
    "energy_pj": "energies of a GPU's parts are not modelled",
    "area_um2": "areas of a GPU's parts are not modelled",
}


def check_kernel_inputs(
    design: KernelDesign, shape: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Refuse sizes and settings that are no such thing, by name."""
    schedule = design.schedule
    for rank, size in shape.items():
        if rank not in schedule.ranks:
            near = closest(rank, schedule.ranks)
            raise MappingError(f"{design.name}: no rank '{rank}'{near}")
        array = np.asarray(size)
        whole = array.dtype.kind in "iu" or (
            array.dtype.kind == "f" and np.all(np.isfinite(array) & (array == np.floor(array)))
        )
        if not whole or array.size == 0 or np.any(array < 1) or np.any(array > 2**40):
            raise MappingError(
                f"{design.name}: rank {rank} needs a whole size of 1 to 2^40, found {size!r}"
            )
    own = {*schedule.settings(), *schedule.tile_names()}
    for name, value in settings.items():
        array = np.asarray(value)
        if array.dtype.kind not in "iufb" or array.size == 0 or not np.all(np.isfinite(array)):
            raise ArchitectureError(f"{name}: expected a number, found {value!r}")
        if name in own:
            if np.any(array < 0):
                raise MappingError(
                    f"{design.name}: {name}: expected a number of at least 0, found {array.min():g}"
                )
        elif name not in design.architecture.parameters:
            near = closest(name, {*own, *design.architecture.parameters})
            raise ArchitectureError(
                f"{design.name}: neither the design nor {design.architecture.name} has a "
                f"parameter '{name}'{near}"
            )


def evaluate_kernel(
    design: KernelDesign, shape: Mapping[str, Any], settings: Mapping[str, Any], *, scalar: bool
) -> Evaluation:
    """Return what a kernel costs at a shape (or at flat arrays of shapes)."""
    own = {*design.schedule.settings(), *design.schedule.tile_names()}
    architecture = design.architecture.with_settings(
        {path: value for path, value in settings.items() if path not in own}
    )
    chosen = {path: value for path, value in settings.items() if path in own}
    let = dict(design.let)
    scope = kernel_scope(design.schedule, let, architecture, shape, chosen)
    points = max(np.size(value) for value in (*shape.values(), *settings.values(), 0))
    feasible = np.ones(points, dtype=bool)
    for formula, otherwise in design.require:
        holds = np.broadcast_to(np.asarray(formula.evaluate(scope), bool), (points,))
        if scalar and not holds[0]:
            raise MappingError(f"{otherwise.rstrip()} (needs {formula.text})")
        feasible = feasible & holds
    values = architecture.values(scope)
    if np.any(np.asarray(values["word_bytes"]) != _WORD_BYTES):
        raise ArchitectureError(
            f"{architecture.name}: word_bytes: the rates of its tensor cores are those of 16-bit "
            f"words; expected {_WORD_BYTES}, found {values['word_bytes']:g}"
        )
    machine = Machine(architecture, values, scope, points, scalar)
    costs = [find_launch(launch, machine) for launch in design.schedule.launches]
    for cost in costs:
        feasible = feasible & cost.feasible
    footprints = find_footprints([cost.tensors for cost in costs])
    names = [launch.name for launch in design.schedule.launches]
    feasible = feasible & fits_dram(machine, names, footprints)
    return _evaluation(design, machine, costs, footprints, feasible, settings)


def _evaluation(
    design: KernelDesign,
    machine: Machine,
    costs: list[LaunchCost],
    footprints: list[dict[str, Array]],
    feasible: Any,
    settings: Mapping[str, Any],
) -> Evaluation:
    seconds = sum((cost.seconds for cost in costs), np.zeros(machine.points))
    clock = machine.number("processors.sustained_clock_hz")
    count = machine.number("processors.count")
    slots: dict[str, dict[str, Array]] = {}
    resources: dict[str, Array] = {}
    critical: dict[str, Array] = {}
    for cost in costs:
        for einsum, own in cost.slots.items():
            for unit, amount in own.items():
                known = slots.setdefault(einsum, {}).get(unit, 0.0)
                slots[einsum][unit] = known + amount
        for level, taken in cost.resources.items():
            resources[level] = resources.get(level, 0.0) + taken
        for name, taken in cost.critical.items():
            critical[name] = critical.get(name, 0.0) + taken
    lanes = {
        unit: lanes_of(unit, machine.architecture, machine.values) * count
        for unit in machine.architecture.units
    }
    busy = {
        unit: sum((own[unit] for own in slots.values() if unit in own), np.zeros(machine.points))
        / lanes[unit]
        for unit in machine.architecture.units
    }
    per_einsum = {}
    for einsum, own in slots.items():
        at_work = {unit: amount / lanes[unit] for unit, amount in own.items()}
        if at_work:
            unit = max(at_work, key=lambda name: float(np.max(at_work[name])))
            used = at_work[unit] / (seconds * clock)
            per_einsum[einsum] = EinsumResult(unit, at_work[unit], used)
    names = list(critical)
    longest = np.argmax(np.stack([machine.spread(t) for t in critical.values()]), axis=0)
    bound = np.array(names, dtype=object)[longest]
    reads = sum((cost.reads for cost in costs), np.zeros(machine.points))
    writes = sum((cost.writes for cost in costs), np.zeros(machine.points))
    l2_bytes = sum((cost.l2_bytes for cost in costs), np.zeros(machine.points))

    def form(value: Array) -> Any:
        return value[0] if machine.scalar else value

    def cost_of(value: Array) -> Any:
        return form(np.where(feasible, value, np.inf))

    held: dict[str, Mapping[str, Array]] = {"dram": _largest(footprints)}
    for level in dict.fromkeys(level for cost in costs for level in cost.held):
        held[level] = _largest([cost.held[level] for cost in costs if level in cost.held])
    return Evaluation(
        design=f"{design.name} on {machine.architecture.name}",
        accounting="physical",
        seconds=cost_of(seconds),
        cycles=cost_of(seconds * clock),
        dram_bytes=cost_of(reads + writes),
        energy_pj=None,
        area_um2=None,
        utilization={unit: form(cycles / (seconds * clock)) for unit, cycles in busy.items()},
        peak_bytes={
            level: form(sum(tensors.values(), np.zeros(machine.points)))
            for level, tensors in held.items()
        },
        bound=form(bound),
        per_einsum={
            einsum: EinsumResult(one.unit, form(one.cycles), form(one.utilization))
            for einsum, one in per_einsum.items()
        },
        traffic={
            "dram": LevelTraffic(form(reads), form(writes)),
            "l2": LevelTraffic(form(l2_bytes - writes), form(writes)),
        },
        energy_by_component_pj={},
        area_by_component_um2={},
        resource_seconds={name: form(machine.spread(taken)) for name, taken in resources.items()},
        holders_bytes={
            level: tuple((tensor, form(taken)) for tensor, taken in tensors.items())
            for level, tensors in held.items()
        },
        parameters=machine.values,
        feasible=form(feasible),
        unknown=_UNKNOWN,
        sources=find_sources(machine.architecture, machine.values, settings),
    )


def _largest(held: Sequence[Mapping[str, Array]]) -> Mapping[str, Array]:
    """The tensors, with their bytes, of the launch that holds most."""
    most = [float(np.max(sum(tensors.values(), np.zeros(1)))) for tensors in held]
    return held[int(np.argmax(most))]
