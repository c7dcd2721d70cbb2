"""A design at a shape: names and sizes worked out, counted, and checked for what does not fit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from einfuse.einsum import bind, closest
from einfuse.mapper import (
    REGISTERS,
    Architecture,
    ArchitectureError,
    Compute,
    Counts,
    Design,
    Facts,
    Formula,
    Keep,
    KernelDesign,
    MappingError,
    Nest,
    Problem,
    ResolvedNest,
    Scope,
    Values,
    Work,
    count_resolved,
    facts,
    parse_formula,
    resolve,
    select,
    walk_nest,
)
from einfuse.simulator.components.components import find_components

_ROUNDING = 1e-12  # a share that fills a level to the last byte may round above it


@dataclass(frozen=True, slots=True)
class Point:
    """A design at a shape (or at arrays of shapes): what every cost is worked out from.

    ``values`` has the architecture's parameters, ``scope`` every name that formulas read; ``nest``
    is the mapping at the shape;
    ``cycles`` is the time of each Einsum alone; ``peak_bytes`` the most alive at each level.
    """

    design: Design
    facts: Facts
    architecture: Architecture
    values: Mapping[str, Values | None]
    scope: Scope
    sizes: Mapping[str, Values]
    nest: ResolvedNest
    counts: Counts
    cycles: Mapping[str, Values]
    peak_bytes: Mapping[str, Values]
    feasible: Values

    def number(self, path: str) -> Values:
        """A parameter that must be known."""
        value = self.values[path]
        if value is None:
            raise ArchitectureError(f"{self.architecture.name}: {path} has no value")
        return value


def scope_of(
    design: Design,
    shape: Mapping[str, Any],
    settings: Mapping[str, Any],
    architecture: Architecture | None = None,
) -> Scope:
    """Return every name that the design's formulas read, at a shape and with settings.

    ``architecture`` is the configured one, where it is at hand.
    """
    if isinstance(design, KernelDesign):
        raise MappingError(
            f"{design.name} is a schedule of thread blocks, without a loop tree to simulate: "
            "evaluate it"
        )
    fixed = {r.name: r.size for r in design.cascade.ranks if isinstance(r.size, int)}
    architecture = architecture or configured(design, settings)
    tables = {table.name: table.lookup for table in design.tables}
    return architecture.scope(
        {**fixed, **shape},
        {**_derived_ranks(design, {*shape, *fixed}), **dict(design.let)},
        {**tables, **find_components(architecture)},
        (*design.batch, *design.cascade.rank_names),
    )


def configured(design: Design, settings: Mapping[str, Any]) -> Architecture:
    """Return the design's architecture with what the design and the user set; the user wins."""
    own = {path: formula for path, formula in design.settings if path not in settings}
    if not settings and not own:
        return design.architecture
    return design.architecture.with_settings({**settings, **own})


def find_point(
    design: Design, shape: Mapping[str, Any], settings: Mapping[str, Any], *, scalar: bool
) -> Point:
    """Return the design at a shape whose points all have one structure.

    Raises:
        MappingError: what does not fit; at points of an array it is marked in ``feasible``.
    """
    architecture = configured(design, settings)
    scope = scope_of(design, shape, settings, architecture)
    known = facts(design.cascade, design.batch)
    values = architecture.values(scope)
    feasible = _requirements(design, scope, scalar)
    sizes = _sizes(design, scope, shape)
    nest = select(design.nest, scope)
    _check_bindings(design, known, nest)
    lanes = {
        unit: {d: values[f"{unit}.{d}"] for d in architecture.dimensions(unit)}
        for unit in architecture.units
    }
    resolved = resolve(
        nest,
        Problem(
            known,
            sizes,
            scope,
            lanes,
            architecture.memories,
            design.retention,
            design.edges,
            design.drains,
            {unit: architecture.shares(unit) for unit in architecture.units},
            architecture.instanced,
        ),
    )
    counts = count_resolved(resolved)
    for name, work in counts.work.items():
        if work.pipelined and not architecture.file.units[work.unit].pipelined:
            raise MappingError(
                f"compute {name} on {work.unit} pipelined: the operations of a point do not "
                f"overlap there; expected 'pipelined: true' at {work.unit} of {architecture.name}"
            )
    cycles = {name: find_cycles(work, values) for name, work in counts.work.items()}
    word = values["word_bytes"]
    peak = {level: words * word for level, words in counts.peak_words.items()}
    feasible = feasible & counts.valid & _capacity(values, counts, peak, scalar)
    return Point(
        design, known, architecture, values, scope, sizes, resolved, counts, cycles, peak, feasible
    )


def add_up(values: Iterable[Values]) -> Values:
    """Return the sum of numbers and arrays, 0.0 of none."""
    total: Values = 0.0
    for value in values:
        total = total + value
    return total


def _derived_ranks(design: Design, given: Collection[str]) -> dict[str, Formula]:
    """Sizes that follow from others: of aliases, of wholes, and of the open factor of a split."""
    known = {*given, *dict(design.let)}
    found = {
        rank.name: parse_formula(rank.size)
        for rank in design.cascade.ranks
        if isinstance(rank.size, str)
    }
    for split in design.cascade.splits:
        if split.whole not in known:
            found[split.whole] = parse_formula(f"{split.outer} * {split.inner}")
        elif split.outer not in known:
            found[split.outer] = parse_formula(f"ceil({split.whole} / {split.inner})")
        elif split.inner not in known:
            found[split.inner] = parse_formula(f"ceil({split.whole} / {split.outer})")
    return {name: formula for name, formula in found.items() if name not in known}


def _requirements(design: Design, scope: Scope, scalar: bool) -> Values:
    feasible: Values = np.bool_(True)
    for formula, otherwise in design.require:
        holds = np.asarray(formula.evaluate(scope), bool)
        if scalar and not holds:
            raise MappingError(f"{otherwise.rstrip()} (needs {formula.text})")
        feasible = feasible & holds
    return feasible


def _sizes(design: Design, scope: Scope, shape: Mapping[str, Any]) -> dict[str, Values]:
    """Every rank's size; what ``let`` defines and what the shape gives, the rest by `bind`."""
    let = dict(design.let)
    ranks = design.cascade.rank_names
    given = {r: _whole(r, scope[r]) for r in ranks if r in let or r in shape}
    sizes: dict[str, Values] = dict(bind(design.cascade, given, ragged=True))
    for rank in design.batch:
        if rank not in scope:
            raise MappingError(f"rank {rank} has no size: give {rank}=... in the shape (--shape)")
        sizes[rank] = scope[rank]
    return {rank: np.asarray(size, float)[()] for rank, size in sizes.items()}


def _whole(rank: str, value: Values) -> Values:
    array = np.asarray(value)
    if not np.all(np.isfinite(array) & (array == np.floor(array))):
        broken = array[~(np.isfinite(array) & (array == np.floor(array)))].flat[0]
        raise MappingError(f"rank {rank} needs a whole size, and its definition gives {broken:g}")
    return array.astype(np.int64) if array.shape else int(array)


def _check_bindings(design: Design, known: Facts, nest: Nest) -> None:
    """Every Einsum's operations must be among its unit's, and every Einsum in a stage."""
    units, memories = design.architecture.file.units, design.architecture.file.memories
    steps = [node.step for node in walk_nest(nest)]
    for step in steps:
        if isinstance(step, Keep) and step.copied and design.composition != "sequential":
            raise MappingError(
                f"keep {', '.join(step.tensors)} at {step.level} copied: a copy has a time of its "
                "own under 'composition: sequential' alone; say that, or leave 'copied' out"
            )
        if isinstance(step, Keep) and step.level in memories:
            holds = memories[step.level].holds
            for tensor in step.tensors:
                if holds is not None and tensor not in holds:
                    raise MappingError(
                        f"{step.level} may hold {', '.join(holds) or 'nothing'}, and the mapping "
                        f"keeps {tensor} there"
                    )
    bound = {step.einsum: step.unit for step in steps if isinstance(step, Compute)}
    for einsum, unit in bound.items():
        if unit not in units:
            raise MappingError(
                f"compute {einsum} on {unit}: no unit '{unit}'{closest(unit, units)}"
            )
        if einsum in known.einsums:
            has = units[unit].operations
            for operation in known.einsums[einsum].operations:
                if operation.name not in has:
                    raise MappingError(
                        f"Einsum {einsum} needs {operation.name}, which {unit} lacks (it has "
                        f"{', '.join(has)}): bind it to another unit, or add the operation"
                    )
    staged: dict[str, str | None] = {}
    for stage in design.stages:
        for einsum in stage.einsums:
            if einsum not in bound:
                near = closest(einsum, bound)
                raise MappingError(f"stage {stage.name}: no Einsum '{einsum}' in the mapping{near}")
            staged[einsum] = stage.unit_of(einsum)
            if staged[einsum] != bound[einsum]:
                raise MappingError(
                    f"stage {stage.name} has {einsum} on {staged[einsum]}, the mapping on "
                    f"{bound[einsum]}"
                )
    for einsum in bound:
        if design.stages and einsum not in staged:
            raise MappingError(f"Einsum {einsum} stands in no phase of any stage")


def find_cycles(work: Work, values: Mapping[str, Values | None]) -> Values:
    """Return steps x slots: the operations of a point one after another, or pipelined."""
    slots = [
        times * np.asarray(values[f"{work.unit}.operations.{operation}.slots"])
        for operation, times in work.per_point.items()
    ]
    if not slots:
        return work.steps * 1.0
    issue = np.maximum.reduce(np.broadcast_arrays(*slots)) if work.pipelined else sum(slots)
    return (work.steps * issue)[()]


def _capacity(
    values: Mapping[str, Values | None], counts: Counts, peak: Mapping[str, Values], scalar: bool
) -> Values:
    feasible: Values = np.bool_(True)
    for einsum, work in counts.work.items():
        room = values[f"{work.unit}.registers.bytes"]
        if room is not None:
            used = work.register_words * values["word_bytes"]
            fits = np.asarray(used) <= np.asarray(room)
            if scalar and not fits:
                raise MappingError(
                    f"the registers of a lane of {work.unit} have {room:.0f} bytes, and {einsum} "
                    f"needs {used:.0f}, {used - room:.0f} too many"
                )
            feasible = feasible & fits
    for level, used in peak.items():
        if level == REGISTERS:
            continue
        room = values[f"{level}.bytes"]
        if room is None:
            continue
        fits = np.asarray(used) <= np.asarray(room) * (1 + _ROUNDING)
        if scalar and not fits:
            tensor, words = max(counts.holders[level], key=lambda held: np.max(held[1]))
            taken = words * values["word_bytes"]
            raise MappingError(
                f"the tiles do not fit {level}: they take {used:.0f} bytes of {room:.0f}, "
                f"{used - room:.0f} too many; the largest is that of {tensor} with {taken:.0f}"
            )
        feasible = feasible & fits
    return feasible
