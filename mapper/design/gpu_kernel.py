"""A kernel design: a cascade on a GPU as launches of thread blocks, each with its schedule.

A *launch* spreads blocks over the processors. A block owns a tile of one rank (``grid``) and walks
over tiles of another (``loop``); on each it does the Einsums of its ``phases``, those of ``final``
once. Words that stand for the same as in a loop tree: the grid is a loop in space, in waves; the
loop is one in time; ``keep`` says what a block holds where; phases name Einsums by unit, a
``vector`` unit being whichever of the vector units has the operation. Everything that is a number
is a formula over the shape, the design's options, ``calibration``, ``let``, its tables of tiles and
the architecture's parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from einfuse.einsum import Cascade, closest
from einfuse.mapper.errors import MappingError
from einfuse.mapper.machine.architecture import Architecture
from einfuse.mapper.machine.formula import Formula, Scope, Values, parse_formula

from .gpu_kernel_file import KernelFile, LaunchFile, Text

TENSOR, VECTOR = "tensor", "vector"


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant that a fit may move: its default, its range, and what it stands for."""

    default: float
    low: float
    high: float
    meaning: str


@dataclass(frozen=True, slots=True)
class Grid:
    """Blocks: see `GridFile`."""

    size: Formula
    tile: Formula
    copies: Formula
    split: Formula
    workers: Formula | None
    order: str


@dataclass(frozen=True, slots=True)
class Loop:
    """A block's loop: see `LoopFile`."""

    size: Formula
    tile: Formula
    sees: str
    density: Formula


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel launch: see `LaunchFile`."""

    name: str
    when: Formula
    cascade: Cascade
    sizes: Mapping[str, Formula]
    copies: Formula
    grid: Grid | None
    loop: Loop | None
    tensor: tuple[str, ...]
    vector: tuple[str, ...]
    final: tuple[str, ...]
    accumulated: tuple[str, ...]
    extras: Mapping[str, Formula]
    masking: Mapping[str, Formula]
    warps: Formula
    helpers: Formula
    streams: Formula
    registers: Formula
    keep: Mapping[str, Mapping[str, Formula]]
    reads: Mapping[str, Formula]
    writes: Mapping[str, Formula]
    streamed: Mapping[str, tuple[Formula, Formula]]
    moves: Mapping[str, Formula]
    feeds: Formula
    rates: Mapping[str, Formula]
    exposed: Formula
    block_cycles: Formula

    def formulas(self) -> Iterator[tuple[str, Formula]]:
        """Every formula of the launch, with its place."""
        for name in ("when", "copies", "warps", "helpers", "streams", "registers", "feeds"):
            yield name, getattr(self, name)
        yield "exposed", self.exposed
        yield "block_cycles", self.block_cycles
        for key in ("sizes", "extras", "masking", "reads", "writes", "moves", "rates"):
            for name, formula in getattr(self, key).items():
                yield f"{key}.{name}", formula
        for level, held in self.keep.items():
            for tensor, formula in held.items():
                yield f"keep.{level}.{tensor}", formula
        for tensor, pair in self.streamed.items():
            for formula in pair:
                yield f"streamed.{tensor}", formula
        for key, part in (("grid", self.grid), ("loop", self.loop)):
            for name in ("size", "tile", "copies", "split", "workers", "density"):
                formula = getattr(part, name, None)
                if formula is not None:
                    yield f"{key}.{name}", formula


@dataclass(frozen=True, slots=True)
class TileTable:
    """Rows of tile sizes; the first whose condition holds gives the columns."""

    rows: tuple[tuple[Formula, Mapping[str, Formula]], ...]

    def lookup(self, prefix: str, names: Mapping[str, Values]) -> dict[str, Values]:
        """Return ``prefix.column`` of the row that fits (NaN where none does)."""
        tests = [np.asarray(when.evaluate(names), bool) for when, _ in self.rows]
        return {
            f"{prefix}.{column}": np.select(
                np.broadcast_arrays(*tests) if len(tests) > 1 else tests,
                [np.asarray(row[column].evaluate(names), float) for _, row in self.rows],
                np.nan,
            )[()]
            for column in self.rows[0][1]
        }


@dataclass(frozen=True, slots=True)
class Schedule:
    """What makes a design a kernel: launches, and the names that their formulas read."""

    ranks: tuple[str, ...]
    defaults: Mapping[str, Formula]
    options: Mapping[str, float]
    calibration: Mapping[str, Constant]
    tiles: Mapping[str, TileTable]
    launches: tuple[Launch, ...]

    def settings(self) -> dict[str, float]:
        """The names that ``set`` may give beside the architecture's, with their defaults."""
        constants = {f"calibration.{k}": c.default for k, c in self.calibration.items()}
        return {**self.options, **constants}

    def tile_names(self) -> tuple[str, ...]:
        """The columns of the tables of tiles, which ``set`` may give too."""
        return tuple(f"{p}.{c}" for p, table in self.tiles.items() for c in table.rows[0][1])


def schedule_of(file: KernelFile, cascade: Cascade, others: Mapping[str, Cascade]) -> Schedule:
    """Return the schedule of a file; ``others`` are the cascades that launches name."""
    tables: dict[str, TileTable] = {}
    for prefix, rows in file.tiles.items():
        columns = [tuple(k for k in row if k != "when") for row in rows]
        if not rows or any(set(own) != set(columns[0]) for own in columns):
            raise MappingError(f"tiles.{prefix}: expected rows of the same columns")
        tables[prefix] = TileTable(
            tuple(
                (
                    parse_formula(row.get("when", 1)),
                    {k: parse_formula(row[k]) for k in columns[0]},
                )
                for row in rows
            )
        )
    launches = tuple(
        _launch(launch, others.get(launch.cascade or "", cascade)) for launch in file.launches
    )
    constants = {
        name: Constant(c.default, c.low, c.high, c.meaning) for name, c in file.calibration.items()
    }
    defaults = {rank: parse_formula(text) for rank, text in file.defaults.items()}
    return Schedule(file.ranks, defaults, dict(file.options), constants, tables, launches)


def _formulas(texts: Mapping[Any, Text]) -> dict[str, Formula]:
    return {str(key): parse_formula(text) for key, text in texts.items()}


def _launch(file: LaunchFile, cascade: Cascade) -> Launch:
    by_unit: dict[str, list[str]] = {TENSOR: [], VECTOR: []}
    for phase in file.phases:
        for unit, einsums in phase.items():
            if unit not in by_unit:
                raise MappingError(
                    f"launch {file.name}: phases name {TENSOR} or {VECTOR}, found {unit!r}"
                )
            by_unit[unit] += einsums
    known = {einsum.name for einsum in cascade.einsums}
    for name in (*by_unit[TENSOR], *by_unit[VECTOR], *file.final, *file.accumulated):
        if name not in known:
            raise MappingError(
                f"launch {file.name}: no Einsum '{name}' in {cascade.name}{closest(name, known)}"
            )
    if (file.grid is None) != (file.loop is None):
        raise MappingError(f"launch {file.name}: a grid and a loop go together")
    grid, loop = file.grid, file.loop
    return Launch(
        name=file.name,
        when=parse_formula(file.when),
        cascade=cascade,
        sizes=_formulas(file.sizes),
        copies=parse_formula(file.copies),
        grid=None
        if grid is None
        else Grid(
            parse_formula(grid.size),
            parse_formula(grid.tile),
            parse_formula(grid.copies),
            parse_formula(grid.split),
            None if grid.workers is None else parse_formula(grid.workers),
            grid.order,
        ),
        loop=None
        if loop is None
        else Loop(
            parse_formula(loop.size),
            parse_formula(loop.tile),
            loop.sees,
            parse_formula(loop.density),
        ),
        tensor=tuple(by_unit[TENSOR]),
        vector=tuple(by_unit[VECTOR]),
        final=file.final,
        accumulated=file.accumulated,
        extras=_formulas(file.extras),
        masking=_formulas(file.masking),
        warps=parse_formula(file.warps),
        helpers=parse_formula(file.helpers),
        streams=parse_formula(
            f"({file.warps}) / processors.schedulers" if file.streams is None else file.streams
        ),
        registers=parse_formula(file.registers),
        keep={level: _formulas(held) for level, held in file.keep.items()},
        reads=_formulas(file.reads),
        writes=_formulas(file.writes),
        streamed={
            tensor: (parse_formula(s.tile), parse_formula(s.whole))
            for tensor, s in file.streamed.items()
        },
        moves=_formulas(file.moves),
        feeds=parse_formula(file.feeds),
        rates=_formulas(file.rates),
        exposed=parse_formula(file.exposed),
        block_cycles=parse_formula(file.block_cycles),
    )


def check_kernel(
    name: str, schedule: Schedule, let: Mapping[str, Formula], on: Architecture
) -> None:
    """Every unit, level and name that a kernel speaks of must be there; MappingError if not."""
    if on.file.processors is None:
        raise MappingError(
            f"{name} is a schedule of thread blocks, and the architecture {on.name} has no "
            "processors to run them: choose a GPU, such as h100 (`einfuse architectures`)"
        )
    for launch in schedule.launches:
        if launch.tensor and TENSOR not in on.units:
            raise MappingError(
                f"{name}: {', '.join(launch.tensor)} of launch {launch.name} need tensor cores, "
                f"and {on.name} has none: expected a unit '{TENSOR}', found {', '.join(on.units)}"
            )
        if launch.loop is not None and launch.loop.sees != "all":
            for option in ("causal", "window"):
                if option not in schedule.options:
                    raise MappingError(
                        f"{name}: launch {launch.name}: loop.sees: {launch.loop.sees} needs the "
                        f"options causal and window; found {', '.join(schedule.options) or 'none'}"
                    )
        for level in (*launch.keep, *launch.moves, "dram", "l2"):
            if level not in on.memories:
                near = closest(level, on.memories)
                raise MappingError(f"{name}: {on.name} has no memory '{level}'{near}")
    known = {*on.parameters, *schedule.ranks, *schedule.settings(), *let, *schedule.tile_names()}
    formulas = [(f"let.{key}", formula) for key, formula in let.items()]
    formulas += [
        (f"tiles.{prefix}", formula)
        for prefix, table in schedule.tiles.items()
        for when, row in table.rows
        for formula in (when, *row.values())
    ]
    for launch in schedule.launches:
        formulas += [(f"launch {launch.name}: {place}", f) for place, f in launch.formulas()]
    for place, formula in formulas:
        for read in formula.names:
            if read not in known:
                raise MappingError(f"{place}: unknown name '{read}'{closest(read, known)}")


def kernel_scope(
    schedule: Schedule,
    let: Mapping[str, Formula],
    architecture: Architecture,
    shape: Mapping[str, Values],
    settings: Mapping[str, Values],
) -> Scope:
    """Return every name that the schedule's formulas read, at a shape and with settings."""
    given = {**schedule.settings(), **settings}
    sources: dict[str, Any] = {}
    for prefix, table in schedule.tiles.items():
        sources[prefix] = _source(prefix, table, frozenset(settings))
    defaults = {rank: f for rank, f in schedule.defaults.items() if rank not in shape}
    return architecture.scope({**shape, **given}, {**defaults, **let}, sources, schedule.ranks)


def _source(prefix: str, table: TileTable, given: frozenset[str]) -> Any:
    """The columns of a table but for those that the user gave."""
    return lambda names: {
        name: value for name, value in table.lookup(prefix, names).items() if name not in given
    }
