"""The one evaluator: a design and a shape in, an `Evaluation` out, on scalars or on arrays.

From the counts of the mapping (`einfuse.mapper.counts`) follow the cycles of each Einsum, the
bytes at each memory, and from the design's stages the time; energy and area follow from the
architecture's tables under a named accounting. Nothing here knows a particular design.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from einfuse.einsum.shape import bind
from einfuse.mapper.architecture import Architecture
from einfuse.mapper.counts import (
    REGISTERS,
    Counts,
    Problem,
    Work,
    count,
    select,
)
from einfuse.mapper.design import Design
from einfuse.mapper.errors import ArchitectureError, MappingError, closest
from einfuse.mapper.facts import Facts, facts
from einfuse.mapper.formula import Formula, Scope, Values, parse_formula
from einfuse.mapper.mapping import Compute, Nest, walk_nest
from einfuse.mapper.pipeline import Phase, Stage, compose, resolve

from .accounting import Accounting, find_accounting
from .evaluation import EinsumResult, Evaluation, LevelTraffic
from .merge import broadcast_inputs, finish, merge

_ROUNDING = 1e-12  # a share that fills a level to the last byte may round above it


class DesignWarning(UserWarning):
    """A result that stands on something its design breaks."""


def evaluate(
    design: Design,
    shape: Mapping[str, Any],
    *,
    accounting: str = "physical",
    set: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Return what a design costs at a shape.

    Args:
        design: a cascade, an architecture and a mapping rule (see `load_design`).
        shape: rank -> size, whole numbers or arrays of them; batch ranks included.
        accounting: "published", "published-all-registers" or "physical".
        set: architecture parameter by its path -> value, numbers or arrays, such as
            ``{"array_1d.lanes": 512}``. Arrays of shape and settings broadcast together.

    Returns:
        The evaluation; its numbers are arrays if an input was one. Points of an array that the
        design cannot take are marked in ``feasible`` and cost infinity.

    Raises:
        MappingError, ArchitectureError, EinfuseError: what is wrong, and where; a single point
            that does not fit is an error.

    >>> from einfuse.mapper.design import load_design
    >>> shape = {"B": 64, "H": 12, "M": 4096, "P": 4096, "E": 64, "F": 64}
    >>> round(evaluate(load_design("fusemax"), shape).seconds, 6)
    0.029467
    """
    chosen = find_accounting(accounting)
    settings = dict(set or {})
    design.architecture.with_settings(settings)  # names are right
    _check_numbers(shape, settings, design)
    points, shape, settings = broadcast_inputs(shape, settings)
    result = _evaluate_points(design, shape, settings, chosen, scalar=points is None)
    for text in result.warnings:
        warnings.warn(f"{design.name}: {text}", DesignWarning, stacklevel=2)
    return finish(result, points)


def _check_numbers(shape: Mapping[str, Any], settings: Mapping[str, Any], design: Design) -> None:
    ranks = (*design.batch, *design.cascade.rank_names)
    for rank, size in shape.items():
        array = np.asarray(size)
        if rank not in ranks:
            raise MappingError(f"{design.name}: no rank '{rank}'{closest(rank, ranks)}")
        if array.dtype.kind not in "iu" and not (
            array.dtype.kind == "f" and np.all(array == np.floor(array))
        ):
            raise MappingError(f"{design.name}: rank {rank} needs a whole size, found {size!r}")
        if array.size == 0 or np.any(array < 1):
            worst = array.min() if array.size else "nothing"
            raise MappingError(
                f"{design.name}: rank {rank} needs a size of at least 1, found {worst}"
            )
    for path, value in settings.items():
        if np.asarray(value).dtype.kind not in "iuf":
            raise ArchitectureError(f"{path}: expected a number, found {value!r}")


def _evaluate_points(
    design: Design,
    shape: Mapping[str, Any],
    settings: Mapping[str, Any],
    accounting: Accounting,
    *,
    scalar: bool,
) -> Evaluation:
    """Evaluate flat arrays (or scalars), a structure at a time, growing what must grow."""
    scope = _scope(design, shape, settings)
    if not scalar:
        conditions = _conditions(design.nest)
        if conditions:
            with _Located(design):
                decided = [np.asarray(f.evaluate(scope), bool) for f in conditions]
            variants = np.stack(np.broadcast_arrays(*decided, *map(np.asarray, shape.values())))
            kinds, kind = np.unique(variants[: len(decided)], axis=1, return_inverse=True)
            if kinds.shape[1] > 1:
                groups = [np.flatnonzero(kind.reshape(-1) == k) for k in range(kinds.shape[1])]
                return merge(
                    [
                        (
                            group,
                            _evaluate_points(
                                design,
                                {k: np.asarray(v)[group] for k, v in shape.items()},
                                {k: np.asarray(v)[group] for k, v in settings.items()},
                                accounting,
                                scalar=False,
                            ),
                        )
                        for group in groups
                    ]
                )
    if design.grow is None:
        return _evaluate_uniform(design, scope, shape, accounting, scalar=scalar)
    return _grow(design, shape, settings, accounting, scalar=scalar)


def _grow(
    design: Design,
    shape: Mapping[str, Any],
    settings: Mapping[str, Any],
    accounting: Accounting,
    *,
    scalar: bool,
) -> Evaluation:
    growth = design.grow
    assert growth is not None
    until = parse_formula(growth.until)
    if growth.parameter in settings:
        scope = _scope(design, shape, settings)
        return _evaluate_uniform(design, scope, shape, accounting, scalar=scalar)
    size = np.asarray(_scope(design, shape, settings)[growth.parameter], float)
    if not scalar:
        size = np.broadcast_to(size, np.asarray(next(iter(shape.values()))).shape)
    for _ in range(growth.times):
        grown = {**settings, growth.parameter: size[()]}
        scope = _scope(design, shape, grown)
        result = _evaluate_uniform(design, scope, shape, accounting, scalar=scalar)
        times = {f"{name}.seconds": value for name, value in result.resource_seconds.items()}
        enough = np.asarray(until.evaluate(times))
        if np.all(enough):
            return result
        size = np.where(enough, size, size * growth.by)
    raise MappingError(
        f"{design.name}: {growth.parameter} grew {growth.times} times by {growth.by:g} and "
        f"'{growth.until}' does not hold yet"
    )


class _Located:
    """Put the design's name before an error from inside it."""

    def __init__(self, design: Design) -> None:
        self.name = design.name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, MappingError) and not str(error).startswith(self.name):
            raise MappingError(f"{self.name}: {error}") from None


def _conditions(nest: Nest) -> list[Formula]:
    found = {n.when.text: n.when for n in walk_nest(nest) if n.when is not None}
    return list(found.values())


def _scope(design: Design, shape: Mapping[str, Any], settings: Mapping[str, Any]) -> Scope:
    """All names that the design's formulas read."""
    kept = {path: f for path, f in design.settings if path not in settings}
    architecture = design.architecture.with_settings({**settings, **kept})
    fixed = {r.name: r.size for r in design.cascade.ranks if isinstance(r.size, int)}
    sources = {table.name: table.lookup for table in design.tables}
    definitions = {**_derived_ranks(design, {*shape, *fixed}), **dict(design.let)}
    return _ShapeScope(design, architecture.scope({**fixed, **shape}, definitions, sources))


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


class _ShapeScope(Scope):
    """A scope that says of a rank without a size that it needs one."""

    def __init__(self, design: Design, scope: Scope) -> None:
        self._found, self._definitions = scope._found, scope._definitions
        self._sources, self._busy = scope._sources, scope._busy
        self._ranks = (*design.batch, *design.cascade.rank_names)

    def __contains__(self, name: object) -> bool:
        if not super().__contains__(name) and name in self._ranks:
            raise MappingError(f"rank {name} has no size: give {name}=... in the shape")
        return super().__contains__(name)


@dataclass(frozen=True, slots=True)
class _Point:
    """Everything that the costs are worked out from."""

    design: Design
    facts: Facts
    architecture: Architecture
    values: Mapping[str, Values | None]
    scope: Scope
    sizes: Mapping[str, Values]
    counts: Counts
    cycles: Mapping[str, Values]

    def number(self, path: str) -> Values:
        """A parameter that must be known."""
        value = self.values[path]
        if value is None:
            raise ArchitectureError(f"{self.architecture.name}: {path} has no value")
        return value


def _evaluate_uniform(
    design: Design,
    scope: Scope,
    shape: Mapping[str, Any],
    accounting: Accounting,
    *,
    scalar: bool,
) -> Evaluation:
    architecture = design.architecture
    with _Located(design):
        known = facts(design.cascade, design.batch)
        values = architecture.values(scope)
        feasible = _requirements(design, scope, scalar)
        sizes = _sizes(design, scope, shape)
        nest = select(design.nest, scope)
        lanes = {
            unit: {d: values[f"{unit}.{d}"] for d in architecture.dimensions(unit)}
            for unit in architecture.units
        }
        _check_operations(design, known, nest)
        problem = Problem(
            known,
            sizes,
            scope,
            lanes,
            architecture.memories,
            design.retention,
            design.edges,
        )
        counts = count(nest, problem)
        cycles = {name: _cycles(work, values) for name, work in counts.work.items()}
        point = _Point(design, known, architecture, values, scope, sizes, counts, cycles)
        traffic = _traffic(point)
        peak = {
            level: words * point.number("word_bytes") for level, words in counts.peak_words.items()
        }
        feasible = feasible & _capacity(point, peak, scalar)
        stages = design.stages or (_one_after_another(point),)
        seconds, resources, notes = _time(point, stages, accounting)
        total_cycles = seconds * point.number("clock_hz")
        energy = _energy(point, accounting)
        area = _area(point, accounting)
    unknown = _unknown(point, energy, area)
    utilization = {
        unit: sum(
            cycles[name] * work.active / work.lanes
            for name, work in counts.work.items()
            if work.unit == unit
        )
        / total_cycles
        for unit in architecture.units
    }
    per_einsum = {
        name: EinsumResult(
            work.unit, cycles[name], cycles[name] * work.active / work.lanes / total_cycles
        )
        for name, work in counts.work.items()
    }
    outer = architecture.memories[0]
    return Evaluation(
        design=design.name,
        accounting=accounting.name,
        seconds=np.where(feasible, seconds, np.inf)[()],
        cycles=np.where(feasible, total_cycles, np.inf)[()],
        dram_bytes=traffic[outer].read_bytes + traffic[outer].write_bytes,
        energy_pj=_sum(energy),
        area_um2=_sum(area),
        utilization=utilization,
        peak_bytes=peak,
        bound=_bound(resources),
        per_einsum=per_einsum,
        traffic=traffic,
        energy_by_component_pj=energy,
        area_by_component_um2=area,
        resource_seconds=resources,
        holders=counts.holders,
        parameters=values,
        feasible=feasible,
        unknown=unknown,
        warnings=notes,
    )


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
    given = {r: _whole(scope[r]) for r in ranks if r in let or r in shape}
    sizes: dict[str, Values] = dict(bind(design.cascade, given, ragged=True))
    for rank in design.batch:
        if rank not in scope:
            raise MappingError(f"rank {rank} has no size: give {rank}=... in the shape")
        sizes[rank] = scope[rank]
    return {rank: np.asarray(size, float)[()] for rank, size in sizes.items()}


def _whole(value: Values) -> Values:
    array = np.asarray(value)
    return array.astype(np.int64) if array.shape else int(array)


def _check_operations(design: Design, known: Facts, nest: Nest) -> None:
    """Every Einsum's operations must be among its unit's, and every Einsum in a stage."""
    units = design.architecture.file.units
    steps = [node.step for node in walk_nest(nest)]
    bound = {step.einsum: step.unit for step in steps if isinstance(step, Compute)}
    for einsum, unit in bound.items():
        if einsum in known.einsums and unit in units:
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


def _cycles(work: Work, values: Mapping[str, Values | None]) -> Values:
    """Steps x slots: the operations of a point one after another, or pipelined."""
    slots = [
        times * np.asarray(values[f"{work.unit}.operations.{operation}.slots"])
        for operation, times in work.per_point.items()
    ]
    if not slots:
        return work.steps * 1.0
    issue = np.maximum.reduce(np.broadcast_arrays(*slots)) if work.pipelined else sum(slots)
    return (work.steps * issue)[()]


def _traffic(point: _Point) -> dict[str, LevelTraffic]:
    word = point.number("word_bytes")
    return {
        level: LevelTraffic(
            word * _total(t.reads for (_, _, at), t in point.counts.traffic.items() if at == level),
            word
            * _total(t.writes for (_, _, at), t in point.counts.traffic.items() if at == level),
        )
        for level in point.architecture.memories
    }


def _total(values: Iterable[Values]) -> Values:
    total: Values = 0.0
    for value in values:
        total = total + value
    return total


def _capacity(point: _Point, peak: Mapping[str, Values], scalar: bool) -> Values:
    feasible: Values = np.bool_(True)
    for level, used in peak.items():
        if level == REGISTERS:
            continue
        room = point.values[f"{level}.bytes"]
        if room is None:
            continue
        fits = np.asarray(used) <= np.asarray(room) * (1 + _ROUNDING)
        if scalar and not fits:
            tensor, words = max(point.counts.holders[level], key=lambda held: np.max(held[1]))
            taken = words * point.number("word_bytes")
            raise MappingError(
                f"the tiles do not fit {level}: they take {used:.0f} bytes of {room:.0f}, "
                f"{used - room:.0f} too many; the largest is that of {tensor} with {taken:.0f}"
            )
        feasible = feasible & fits
    return feasible


def _one_after_another(point: _Point) -> Stage:
    """Without stages every Einsum has the machine to itself, in the order of the mapping."""
    phases = tuple(Phase(((work.unit, (name,)),)) for name, work in point.counts.work.items())
    return Stage("all", phases)


def _time(
    point: _Point, stages: tuple[Stage, ...], accounting: Accounting
) -> tuple[Values, dict[str, Values], tuple[str, ...]]:
    """Seconds of the run, of each resource alone, and what the pipeline breaks."""
    clock = point.number("clock_hz")
    seconds: Values = 0.0
    resources: dict[str, Values] = {}
    notes: list[str] = []
    iterations: Values = 1
    for iteration in point.design.cascade.iterations:
        iterations = np.maximum(iterations, point.sizes[iteration.rank])
    for stage in stages:
        timing = resolve(stage, point.facts, stage.distance.evaluate(point.scope), iterations)
        notes += timing.violations
        composed = compose(
            stage,
            point.cycles,
            point.scope,
            timing,
            point.design.composition,
            accounting.waits,
        )
        longest = composed.cycles / clock
        for unit, busy in composed.busy.items():
            resources[unit] = resources.get(unit, 0.0) + busy / clock
        for level in point.architecture.memories:
            taken = _memory_seconds(point, level, set(stage.einsums))
            if taken is not None:
                resources[level] = resources.get(level, 0.0) + taken
                longest = np.maximum(longest, taken)
        seconds = seconds + longest
    return seconds, resources, tuple(dict.fromkeys(notes))


def _memory_seconds(point: _Point, level: str, einsums: set[str]) -> Values | None:
    moved = [t for (e, _, at), t in point.counts.traffic.items() if at == level and e in einsums]
    word = point.number("word_bytes")
    reads, writes = word * _total(t.reads for t in moved), word * _total(t.writes for t in moved)
    times = [
        amount / point.values[f"{level}.{name}"]
        for name, amount in (
            ("bandwidth_bytes_per_s", reads + writes),
            ("read_bandwidth_bytes_per_s", reads),
            ("write_bandwidth_bytes_per_s", writes),
        )
        if point.values[f"{level}.{name}"] is not None
    ]
    return np.maximum.reduce(np.broadcast_arrays(*times))[()] if times else None


def _bound(resources: Mapping[str, Values]) -> Any:
    names = list(resources)
    times = np.broadcast_arrays(*(np.asarray(resources[name], float) for name in names))
    longest = np.argmax(np.stack(times), axis=0)
    return np.array(names, dtype=object)[longest] if longest.shape else names[int(longest)]


def _energy(point: _Point, accounting: Accounting) -> dict[str, Values | None]:
    """Energy by component, in pJ; None where a price is unknown."""
    omitted = point.design.omissions.energy if accounting.omissions else ()
    energy: dict[str, Values | None] = {}

    def add(component: str, count: Values, price: Values | None) -> None:
        known = energy.get(component, 0.0)
        if known is None or price is None:
            energy[component] = None if np.any(np.asarray(count) != 0) else known
        else:
            energy[component] = known + count * price

    for (einsum, _, level), traffic in point.counts.traffic.items():
        if level == REGISTERS:
            work = point.counts.work[einsum]
            files = work.active if accounting.all_register_files else 1
            base = f"{work.unit}.registers"
            add(base, traffic.reads * files, point.values[f"{base}.read_pj"])
            add(base, traffic.writes * files, point.values[f"{base}.write_pj"])
        else:
            scale = point.number("word_bytes") / point.number(f"{level}.access_bytes")
            add(level, traffic.reads * scale, point.values[f"{level}.read_pj"])
            add(level, traffic.writes * scale, point.values[f"{level}.write_pj"])
    for work in point.counts.work.values():
        for operation, done in work.operations.items():
            component = f"{work.unit}.operations.{operation}"
            if component not in omitted:
                add(component, done * work.active, point.values[f"{component}.energy_pj"])
    return energy


def _area(point: _Point, accounting: Accounting) -> dict[str, Values | None]:
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
        each = None if len(known) < len(parts) else _total(known)
        interconnect = point.number(f"{unit}.interconnect_area_um2")
        area[unit] = None if each is None else lanes * each + interconnect
    for level in point.architecture.memories:
        size = point.values[f"{level}.area_um2"]
        area[level] = None if size is None or np.all(np.isnan(size)) else size
    return area


def _sum(parts: Mapping[str, Values | None]) -> Values | None:
    known = [part for part in parts.values() if part is not None]
    return _total(known) if len(known) == len(parts) else None


def _unknown(
    point: _Point, energy: Mapping[str, Values | None], area: Mapping[str, Values | None]
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
                stated.get(f"{name}.{price}") or f"the {total[:-3].strip('_')} of {name} is unknown"
                for name in missing
            ]
            reasons[total] = "; ".join(why)
    return reasons
