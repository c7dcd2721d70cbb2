"""The one evaluator: a design and a shape in, an `Evaluation` out, on scalars or on arrays.

From the counts of the mapping (`einfuse.mapper.nest.reuse`) follow the cycles of each Einsum, the
bytes at each memory, and from the design's stages the time; energy and area follow from the
architecture's tables under a named accounting. Nothing here knows a particular design.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from einfuse.einsum import EinfuseError, closest, expect
from einfuse.mapper import (
    ArchitectureError,
    Design,
    KernelDesign,
    MappingError,
    Values,
    load_design,
    parse_formula,
    walk_nest,
)
from einfuse.simulator.gpu.kernel import check_kernel_inputs, evaluate_kernel
from einfuse.simulator.result.accounting import Accounting
from einfuse.simulator.result.arrays import broadcast_inputs, finish, merge
from einfuse.simulator.result.evaluation import EinsumResult, Evaluation, LevelTraffic
from einfuse.simulator.result.sources import find_sources

from .bill import find_area, find_energy, find_unknown, tariff_of, total
from .charges import find_accounting
from .latency import find_latency
from .point import Point, add_up, find_point, scope_of


class DesignWarning(UserWarning):
    """A result that stands on something its design breaks."""


def evaluate(
    design: Design | str | Path,
    shape: Mapping[str, Any],
    *,
    accounting: str = "physical",
    include: Iterable[str] = (),
    set: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Return what a design costs at a shape.

    Args:
        design: a cascade, an architecture and a mapping rule (see `load_design`), or its name.
        shape: rank -> size, whole numbers or arrays of them; batch ranks included.
        accounting: "published", "published-all-registers" or "physical".
        include: what "physical" charges too: "leakage", "interconnect", "multicast", "ports" (see
            `einfuse.simulator.cost.charges`).
        set: architecture parameter by its path -> value, numbers or arrays, such as
            ``{"array_1d.lanes": 512}``. Arrays of shape and settings broadcast together.

    Returns:
        The evaluation; its numbers are arrays if an input was one. Points of an array that the
        design cannot take are marked in ``feasible`` and cost infinity.

    Raises:
        MappingError, ArchitectureError, EinfuseError: what is wrong, and where; a single point
            that does not fit is an error.

    >>> from einfuse.mapper.design.design import load_design
    >>> shape = {"B": 64, "H": 12, "M": 4096, "P": 4096, "E": 64, "F": 64}
    >>> round(evaluate(load_design("fusemax"), shape).seconds, 6)
    0.0297
    """
    if isinstance(design, str | Path):
        design = load_design(design)
    expect(design, (Design, KernelDesign), "design", "a design, or the name of one")
    expect(shape, Mapping, "shape", "rank -> size, a mapping")
    expect({} if set is None else set, Mapping, "set", "path -> value, a mapping")
    expect(accounting, str, "accounting", "a name")
    expect(include, (str, list, tuple, frozenset), "include", "names, a list")
    chosen = find_accounting(accounting, include)
    settings = dict(set or {})
    if isinstance(design, KernelDesign):
        check_kernel_inputs(design, shape, settings)
        if chosen.include:
            raise MappingError(
                f"{design.name}: include {', '.join(chosen.include)}: a kernel on a GPU has no "
                "energies to add to; leave it out"
            )
    else:
        if settings:
            design.architecture.with_settings(settings)  # names are right
        _check_numbers(shape, settings, design)
    points, shape, settings = broadcast_inputs(shape, settings)
    try:
        with np.errstate(divide="ignore", invalid="ignore"):  # at infeasible points
            if isinstance(design, KernelDesign):
                result = evaluate_kernel(design, shape, settings, scalar=points is None)
            else:
                result = _evaluate_points(design, shape, settings, chosen, scalar=points is None)
    except EinfuseError as error:
        kind = ArchitectureError if isinstance(error, ArchitectureError) else MappingError
        said = str(error).removeprefix(f"{design.name}: ")
        raise kind(f"{design.name}: {said}") from None
    for text in result.warnings:
        warnings.warn(f"{design.name}: {text}", DesignWarning, stacklevel=2)
    return finish(result, points)


def _check_numbers(shape: Mapping[str, Any], settings: Mapping[str, Any], design: Design) -> None:
    ranks = (*design.batch, *design.cascade.rank_names)
    for rank, size in shape.items():
        if rank in dict(design.let):
            raise MappingError(
                f"{design.name}: the design defines {rank} (= {dict(design.let)[rank].text}); "
                "leave it out of the shape"
            )
        if rank not in ranks:
            raise MappingError(f"{design.name}: no rank '{rank}'{closest(rank, ranks)}")
        if type(size) is int and 1 <= size < 2**63:
            continue
        array = np.asarray(size)
        if array.dtype.kind not in "iu" and not (
            array.dtype.kind == "f" and np.all(np.isfinite(array) & (array == np.floor(array)))
        ):
            raise MappingError(f"{design.name}: rank {rank} needs a whole size, found {size!r}")
        if array.size == 0 or np.any(array < 1):
            worst = array.min() if array.size else "nothing"
            raise MappingError(
                f"{design.name}: rank {rank} needs a size of at least 1, found {worst}"
            )
    for path, value in settings.items():
        array = np.asarray(value)
        if array.dtype.kind not in "iuf" or array.size == 0:
            raise ArchitectureError(f"{path}: expected a number, found {value!r}")


def _evaluate_points(
    design: Design,
    shape: Mapping[str, Any],
    settings: Mapping[str, Any],
    accounting: Accounting,
    *,
    scalar: bool,
) -> Evaluation:
    """Evaluate flat arrays (or scalars), the points of one structure at a time."""
    conditions = {n.when.text: n.when for n in walk_nest(design.nest) if n.when is not None}
    if conditions and not scalar:
        scope = scope_of(design, shape, settings)
        decided = [np.asarray(f.evaluate(scope), bool) for f in conditions.values()]
        spread = np.broadcast_arrays(*decided, *shape.values())[: len(decided)]
        kinds, kind = np.unique(np.stack(spread), axis=1, return_inverse=True)
        if kinds.shape[1] > 1:
            groups = [np.flatnonzero(kind.reshape(-1) == k) for k in range(kinds.shape[1])]
            return merge(
                [
                    (
                        group,
                        _evaluate_structure(
                            design,
                            {k: v[group] for k, v in shape.items()},
                            {k: v[group] for k, v in settings.items()},
                            accounting,
                            scalar=False,
                        ),
                    )
                    for group in groups
                ]
            )
    return _evaluate_structure(design, shape, settings, accounting, scalar=scalar)


def _evaluate_structure(
    design: Design,
    shape: Mapping[str, Any],
    settings: Mapping[str, Any],
    accounting: Accounting,
    *,
    scalar: bool,
) -> Evaluation:
    """Evaluate points of one structure; let the parameter grow that the design grows, if any."""
    growth = design.grow
    if growth is None or growth.parameter in settings:
        return _costs(find_point(design, shape, settings, scalar=scalar), accounting, settings)
    until = parse_formula(growth.until)
    size = np.asarray(scope_of(design, shape, settings)[growth.parameter], float)
    for _ in range(growth.times):
        grown = {**settings, growth.parameter: size[()]}
        result = _costs(find_point(design, shape, grown, scalar=scalar), accounting, settings)
        times = {f"{name}.seconds": value for name, value in result.resource_seconds.items()}
        enough = np.asarray(until.evaluate(times))
        if np.all(enough):
            return result
        size = np.where(enough, size, size * growth.by)
    if not scalar:
        return _without(result, np.broadcast_to(enough, np.shape(result.seconds)))
    raise MappingError(
        f"{growth.parameter} grew {growth.times} times by {growth.by:g} and '{growth.until}' does "
        "not hold yet"
    )


def _without(result: Evaluation, feasible: Values) -> Evaluation:
    """Return the result with further points marked as infeasible."""

    def cost(value: Values) -> Values:
        return np.where(feasible, value, np.inf)

    return replace(
        result,
        seconds=cost(result.seconds),
        cycles=cost(result.cycles),
        dram_bytes=cost(result.dram_bytes),
        energy_pj=None if result.energy_pj is None else cost(result.energy_pj),
        feasible=result.feasible & feasible,
    )


def _costs(point: Point, accounting: Accounting, settings: Mapping[str, Any]) -> Evaluation:
    """Return what a point costs."""
    tariff = tariff_of(point, accounting)
    latency = find_latency(point, tariff)
    cycles = latency.cycles
    bill, areas = find_energy(point, tariff, latency.seconds), find_area(point, tariff)
    energy, area = bill.components, areas.components
    word, traffic = point.number("word_bytes"), point.counts.traffic.items()
    levels = {
        level: LevelTraffic(
            word * add_up(t.reads for (_, _, at), t in traffic if at == level),
            word * add_up(t.writes for (_, _, at), t in traffic if at == level),
        )
        for level in point.architecture.memories
    }
    outer = levels[point.architecture.memories[0]]
    energy_pj = total(energy)

    def cost(value: Values) -> Values:
        return np.where(point.feasible, value, np.inf)[()]

    per_einsum = {
        name: EinsumResult(
            work.unit,
            point.cycles[name],
            point.cycles[name] * work.active / work.lanes / cycles,
        )
        for name, work in point.counts.work.items()
    }
    return Evaluation(
        design=point.design.name,
        accounting=accounting.name,
        seconds=cost(latency.seconds),
        cycles=cost(cycles),
        dram_bytes=cost(outer.read_bytes + outer.write_bytes),
        energy_pj=None if energy_pj is None else cost(energy_pj),
        area_um2=total(area),
        utilization={
            unit: add_up(one.utilization for one in per_einsum.values() if one.unit == unit)
            for unit in point.architecture.units
        },
        peak_bytes=point.peak_bytes,
        bound=latency.bound,
        per_einsum=per_einsum,
        traffic=levels,
        energy_by_component_pj=energy,
        area_by_component_um2=area,
        resource_seconds=latency.resource_seconds,
        holders_bytes={
            level: tuple((tensor, words * word) for tensor, words in held)
            for level, held in point.counts.holders.items()
        },
        parameters=point.values,
        feasible=point.feasible,
        unknown=find_unknown(point, energy, area),
        warnings=(*latency.violations, *_not_modelled(point)),
        include=accounting.include,
        charges=bill.charges | areas.charges,
        sources=find_sources(point.architecture, point.values, settings, point.design, point.scope),
    )


def _not_modelled(point: Point) -> tuple[str, ...]:
    """What the counts leave out: points that a filter culls are counted all the same."""
    return tuple(
        f"{einsum.name} skips points ({' & '.join(einsum.filters)}), which are counted all the same"
        for einsum in point.facts.einsums.values()
        if einsum.filters
    )
