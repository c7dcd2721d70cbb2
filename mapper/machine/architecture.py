"""An architecture: memory levels, compute units, and every parameter of them by its path.

The file is YAML, checked by pydantic. A number in it may be a formula over other parameters
(``"round(2.174 + 0.004 * ceil(log2(array_2d.registers.depth)), 6)"``), so that what follows from
a size follows it when the size is changed. Paths are what ``--set`` takes: ``array_1d.lanes``,
``array_2d.operations.exp.slots``, ``buffer.bytes``, ``clock_hz``.

Components under ``costs`` are priced by the cost model that ``technology`` names; formulas read
the prices as ``NAME.read_pj``, ``NAME.area_um2`` and so on. The mapper knows no prices: here they
are unknown, until `einfuse.simulator.components.components` supplies them.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, ValidationError, model_validator

from einfuse.einsum import EinfuseError, closest, expect
from einfuse.mapper.errors import ArchitectureError, MappingError

from .extends import extended, read_yaml
from .formula import Formula, Scope, Values, parse_formula
from .spec import Spec, explain

Number = float | int | str  # a string is a formula
DATA = Path(__file__).parents[1] / "data"


class Operation(Spec):
    """What one operation costs on one lane (processing element) of a unit."""

    slots: Number = Field(1, description="issue slots (cycles of the lane) per operation")
    energy_pj: Number | None = Field(description="energy per operation; null if unknown")
    area_um2: Number | None = Field(0, description="area of its circuit in every lane")
    source: str = ""


class Registers(Spec):
    """The register file of one lane."""

    depth: Number = Field(description="entries, for energy and area")
    bytes: Number | None = Field(None, description="capacity; null: unlimited")
    read_pj: Number | None = Field(description="energy per word read; null if unknown")
    write_pj: Number | None = Field(description="energy per word written; null if unknown")
    area_um2: Number | None = Field(0, description="area of one lane's file; null if unknown")
    source: str = ""


class Memory(Spec):
    """A memory level."""

    bytes: Number | None = Field(None, description="capacity; null: unlimited")
    access_bytes: Number = Field(description="width of one access (a line)")
    read_pj: Number | None = Field(description="energy per access; null if unknown")
    write_pj: Number | None = Field(description="energy per access; null if unknown")
    bandwidth_bytes_per_s: Number | None = Field(None, description="reads and writes together")
    read_bandwidth_bytes_per_s: Number | None = None
    write_bandwidth_bytes_per_s: Number | None = None
    ports: Number | None = Field(None, description="accesses that can begin in one port cycle")
    port_hz: Number | None = Field(None, description="cycles of a port in a second; the clock's")
    leakage_mw: Number | None = Field(None, description="of the whole memory; null if unknown")
    area_um2: Number | None = Field(0, description="null if unknown")
    area_unknown: str = Field("", description="why the area is unknown")
    energy_unknown: str = Field("", description="why the energy is unknown")
    holds: tuple[str, ...] | None = Field(None, description="tensors that may live here; all")
    instances: Number | None = Field(None, description="copies, one for each instance of the units")
    source: str = ""


Shared = Literal["any", "operands", "outputs", "none"]


class Unit(Spec):
    """A compute unit: a 2D array (rows x columns) or a vector unit (lanes).

    Instances are a further dimension: copies of the unit, each under its own copy of the memories
    that have instances too. ``shares`` says for a dimension what its lanes can share: words that
    several of them read (operands), sums that several of them add to (outputs); any, or none.
    """

    instances: Number | None = None
    rows: Number | None = None
    columns: Number | None = None
    lanes: Number | None = None
    shares: dict[Literal["instances", "rows", "columns", "lanes"], Shared] = {}
    operations: dict[str, Operation]
    registers: Registers
    interconnect_area_um2: Number = 0
    leakage_mw: Number | None = Field(None, description="of one lane; null if unknown")
    hop_pj: Number | None = Field(None, description="energy of a word from a lane to the next")
    mesh_hop_pj: Number | None = Field(None, description="that of a word from router to router")
    pipelined: bool = Field(
        False,
        description="a mapping may overlap the operations of a point (`compute ... pipelined`)",
    )
    source: str = ""

    @model_validator(mode="after")
    def _is_array_or_vector(self) -> Unit:
        array = self.rows is not None and self.columns is not None and self.lanes is None
        vector = self.lanes is not None and self.rows is None and self.columns is None
        if not array and not vector:
            raise ValueError("a unit has either rows and columns, or lanes")
        for dimension in self.shares:
            if getattr(self, dimension) is None:
                raise ValueError(f"shares: the unit has no {dimension}")
        return self


class Processors(Spec):
    """What a GPU is made of: equal processors that take thread blocks.

    The units and the memories ``shared`` and ``register_file`` of the file are those of one
    processor; the other memories are shared by all.
    """

    count: Number = Field(description="multiprocessors or compute units")
    sustained_clock_hz: Number = Field(description="under load; never the boost clock")
    power_limit_w: Number = Field(description="what the sustained clock may depend on")
    launch_seconds: Number = Field(description="from the host to the first block of a kernel")
    dram_share: Number = Field(description="part of the DRAM bandwidth that a copy reaches")
    warp_slots: Number = Field(description="warps that are resident on a processor")
    block_slots: Number = Field(description="blocks that are resident on a processor")
    threads_per_warp: Number
    schedulers: Number = Field(description="quarters of a processor that issue on their own")
    registers_per_thread: Number = Field(description="most that a thread may have")
    block_shared_bytes: Number = Field(description="most shared memory that a block may have")
    block_reserved_bytes: Number = Field(description="shared memory that every block loses")
    shared_bytes_per_cycle: Number
    l2_bytes_per_cycle: Number = Field(description="between one processor and L2")
    warp_matrix_share: Number = Field(
        description="part of the tensor rate that matrix instructions of one warp reach"
    )
    sources: dict[str, str] = {}


class Component(Spec):
    """A component that a cost model prices; further keys are its sizes, numbers or formulas."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Number] = Field(init=False)

    component: str = Field(description="such as sram, mac, dram, wire")
    type: str = Field("", description="such as bf16, hbm2")
    technology: str = Field("", description="the cost model; the file's if left out")

    @property
    def sizes(self) -> tuple[str, ...]:
        """The names of its sizes."""
        return tuple(self.__pydantic_extra__)


class ArchitectureFile(Spec):
    """The schema of an architecture file."""

    schema_version: Literal[1] = Field(alias="schema")
    name: str
    description: str = ""
    source: str = ""
    clock_hz: Number
    word_bytes: Number = 2
    interconnect_area_um2: Number = Field(0, description="between the units and the memories")
    memories: dict[str, Memory] = Field(min_length=1, description="outermost first")
    units: dict[str, Unit] = Field(min_length=1)
    processors: Processors | None = Field(None, description="a GPU's")
    technology: str = Field("", description="the cost model of the components under costs")
    costs: dict[str, Component] = Field({}, description="components that a cost model prices")

    @model_validator(mode="after")
    def _names_are_distinct(self) -> ArchitectureFile:
        reserved = {"clock_hz", "word_bytes", "interconnect_area_um2", "registers", "processors"}
        names = [*self.memories, *self.units, *self.costs]
        for name in names:
            if name in reserved or names.count(name) > 1:
                raise ValueError(f"'{name}' names two things")
            if not name.isidentifier():
                raise ValueError(f"'{name}' is no name: expected letters, digits and '_'")
        return self


INSTANCES = "instances"
_DIMENSIONS = (INSTANCES, "rows", "columns", "lanes")
_NEEDED = (".instances", ".rows", ".columns", ".lanes", ".depth", ".slots", ".access_bytes")
_WHOLE = (
    ".instances",
    ".rows",
    ".columns",
    ".lanes",
    "processors.count",
    "_slots",
    "threads_per_warp",
)
_MAY_BE_ZERO = ("processors.launch_seconds", "processors.block_reserved_bytes")
_POSITIVE = (
    ".bytes",
    ".access_bytes",
    "_bytes_per_s",
    ".instances",
    ".rows",
    ".columns",
    ".lanes",
    ".depth",
    ".slots",
    ".ports",
    ".port_hz",
)
_PRICES = ("_pj", "_mw", "area_um2")


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture and its parameters by path (numbers, arrays, formulas, None if unknown)."""

    file: ArchitectureFile
    parameters: Mapping[str, Values | Formula | None]

    def __reduce__(self) -> tuple[Any, ...]:
        """Go to another process: a read-only view cannot, what it shows can."""
        return _architecture, (self.file, dict(self.parameters))

    @property
    def name(self) -> str:
        """The architecture's name."""
        return self.file.name

    @property
    def memories(self) -> tuple[str, ...]:
        """The memory levels, outermost first."""
        return tuple(self.file.memories)

    @property
    def units(self) -> tuple[str, ...]:
        """The compute units."""
        return tuple(self.file.units)

    def dimensions(self, unit: str) -> tuple[str, ...]:
        """The dimensions that loops in space may use on a unit."""
        return tuple(d for d in _DIMENSIONS if getattr(self.file.units[unit], d) is not None)

    def shares(self, unit: str) -> Mapping[str, str]:
        """What the lanes along a dimension of a unit share, where the file says it."""
        return {str(d): kind for d, kind in self.file.units[unit].shares.items()}

    @property
    def instanced(self) -> frozenset[str]:
        """The memories of which every instance of the units has its own."""
        return frozenset(m for m, one in self.file.memories.items() if one.instances is not None)

    def with_settings(self, settings: Mapping[str, Values | Formula | None]) -> Architecture:
        """Return the architecture with other values for some of its parameters.

        >>> load_architecture("fusemax").with_settings({"array_1d.lanes": 512}).parameters[
        ...     "array_1d.lanes"]
        512
        >>> load_architecture("fusemax").with_settings({"array_1d.lane": 512})
        Traceback (most recent call last):
        ...
        einfuse.mapper.errors.ArchitectureError: fusemax: no parameter 'array_1d.lane'; did you \
mean 'array_1d.lanes'?
        """
        units = {f"{unit}.pipelined": unit for unit in self.file.units}
        if switched := {path: settings[path] for path in settings if path in units}:
            rest = {path: value for path, value in settings.items() if path not in switched}
            return self._switched({units[p]: v for p, v in switched.items()}).with_settings(rest)
        for path in settings:
            if path not in self.parameters:
                near = closest(path, self.parameters)
                raise ArchitectureError(f"{self.name}: no parameter '{path}'{near}")
        for path, value in settings.items():
            if not isinstance(value, Formula):
                self._checked(path, value)
        merged = {**self.parameters, **settings}
        return replace(self, parameters=MappingProxyType(merged))

    def _switched(self, pipelined: Mapping[str, Any]) -> Architecture:
        """The architecture whose units overlap the operations of a point, or do not."""
        units = dict(self.file.units)
        for unit, value in pipelined.items():
            if value not in (0, 1):
                raise ArchitectureError(
                    f"{self.name}: {unit}.pipelined: expected 1 (it overlaps the operations of a "
                    f"point) or 0, found {value}"
                )
            units[unit] = units[unit].model_copy(update={"pipelined": bool(value)})
        return replace(self, file=self.file.model_copy(update={"units": units}))

    def values(self, scope: Mapping[str, Values] | None = None) -> dict[str, Values | None]:
        """Return every parameter's value, formulas worked out; unknown ones are None.

        ``scope`` holds the parameters among further names that formulas read (see `scope`).
        ArchitectureError names the path of a value that is no number, not positive where it must
        be, or part of a circle.
        """
        names = self.scope() if scope is None else scope
        found: dict[str, Values | None] = {}
        for path, given in self.parameters.items():
            try:
                fixed = not isinstance(given, Formula)
                found[path] = names[path] if fixed else self._checked(path, names[path], True)
            except MappingError as error:
                raise ArchitectureError(f"{self.name}: {path}: {error}") from None
        return found

    def scope(
        self,
        known: Mapping[str, Values] | None = None,
        definitions: Mapping[str, Formula] | None = None,
        sources: Mapping[str, Any] | None = None,
        ranks: Collection[str] = (),
    ) -> Scope:
        """Return the scope of the parameters and further names.

        Prices of components are unknown unless ``sources`` has them, by the component's name.
        """
        given = {k: v for k, v in self.parameters.items() if not isinstance(v, Formula)}
        formulas = {k: v for k, v in self.parameters.items() if isinstance(v, Formula)}
        definitions = {**formulas, **(definitions or {})}
        unpriced = {*self.file.costs} - {*(sources or {})}
        unknown = {
            name: None
            for formula in (definitions.values() if unpriced else ())
            for name in formula.names
            if name.partition(".")[0] in unpriced and name not in self.parameters
        }
        return Scope({**given, **unknown, **(known or {})}, definitions, sources, ranks)

    def _checked(self, path: str, given: Values | None, worked_out: bool = False) -> Values | None:
        if given is None:
            must = path.endswith(_NEEDED) or path.startswith("processors.")
            if must or path in ("clock_hz", "word_bytes"):
                raise ArchitectureError(f"{self.name}: {path}: expected a number, found None")
            return None
        array = np.asarray(given)
        if array.dtype.kind not in "iufb":
            raise ArchitectureError(f"{self.name}: {path}: expected a number, found {given!r}")
        if path.endswith("area_um2") or (worked_out and array.ndim and path.endswith(_PRICES)):
            array = np.nan_to_num(array)  # NaN: unknown at some points
        positive = path.endswith(_POSITIVE) or path in ("clock_hz", "word_bytes")
        if path.startswith("processors."):
            positive = path not in _MAY_BE_ZERO
        wrong = ~((array > 0 if positive else array >= 0) & np.isfinite(array))
        if np.any(wrong):
            needed = "above 0" if positive else "of at least 0"
            raise ArchitectureError(
                f"{self.name}: {path}: expected a number {needed}, found {array[wrong].flat[0]:g}"
            )
        if path.endswith(_WHOLE) and np.any(array != np.floor(array)):
            broken = array[array != np.floor(array)].flat[0]
            raise ArchitectureError(
                f"{self.name}: {path}: expected a whole number, found {broken:g}"
            )
        return given


def _flatten(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    no_numbers = (
        *("source", "sources", "description", "area_unknown", "energy_unknown", "holds", "name"),
        "pipelined",
        "shares",
    )
    for key, item in value.items():
        if key in no_numbers:
            continue
        path = f"{prefix}{key}"
        if isinstance(item, dict):
            yield from _flatten(f"{path}.", item)
        else:
            yield path, item


def _architecture(
    file: ArchitectureFile, parameters: dict[str, Values | Formula | None]
) -> Architecture:
    return Architecture(file, MappingProxyType(parameters))


def parse_architecture(content: Any, where: str) -> Architecture:
    """Return the architecture of a YAML file's content; ArchitectureError names the path."""
    content = extended(content, where, _find_file)
    try:
        file = ArchitectureFile.model_validate(content)
    except ValidationError as error:
        raise ArchitectureError(explain(error, where)) from None
    dump = file.model_dump()
    flat = {key: dump[key] for key in ("clock_hz", "word_bytes", "interconnect_area_um2")}
    flat |= dict(_flatten("processors.", dump["processors"] or {}))
    for group in ("memories", "units"):
        for name, spec in dump[group].items():
            present = {k: v for k, v in spec.items() if k not in _DIMENSIONS}
            present |= {k: spec[k] for k in _DIMENSIONS if spec.get(k) is not None}
            flat |= dict(_flatten(f"{name}.", present))
    for name, component in file.costs.items():
        flat |= {f"{name}.{size}": dump["costs"][name][size] for size in component.sizes}
    parameters: dict[str, Any] = {}
    for path, value in flat.items():
        try:
            parameters[path] = _number_or_formula(value)
        except MappingError as error:
            raise ArchitectureError(f"{where}: {path}: {error}") from None
    numbers = {k: v for k, v in parameters.items() if not isinstance(v, Formula)}
    return Architecture(file, MappingProxyType(parameters)).with_settings(numbers)


def _number_or_formula(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return parse_formula(value)


def find_file(name: str | Path, folder: str, kind: str, error: type[EinfuseError]) -> Path:
    """Return the file of a shipped name or a path; the error lists the closest names."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or os.path.exists(path):  # noqa: PTH110 (as below)
        if not os.path.isfile(path):  # noqa: PTH113 (false for a name that is too long)
            raise error(f"{path}: no such {kind} file")
        return path
    shipped = {p.stem: p for p in sorted((DATA / folder).rglob("*.yaml"))}
    if str(name) not in shipped:
        raise error(f"no {kind} '{name}'{closest(str(name), shipped)}")
    return shipped[str(name)]


def load_architecture(name: str | Path) -> Architecture:
    """Return a shipped architecture by its name, or one from a YAML file.

    >>> load_architecture("fusemax").units
    ('array_2d', 'array_1d')
    """
    expect(name, (str, Path), "architecture", "a name or a path")
    path = _find_file(name)
    return parse_architecture(read_yaml(path), str(path))


def _find_file(name: str | Path) -> Path:
    return find_file(name, "architectures", "architecture", ArchitectureError)
