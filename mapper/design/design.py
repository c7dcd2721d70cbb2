"""A design: a cascade, an architecture, and the rule that maps the one on the other.

The file is YAML, checked by pydantic; it may say only what differs from one that it ``extends``.
``let`` defines sizes as formulas in the shape, the
architecture's parameters, rows of ``tables``, and what stands above; a name that is a rank of the
cascade gives that rank its size. ``set`` changes architecture parameters likewise.
"""

from __future__ import annotations

import csv
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from einfuse.einsum import Cascade, EinfuseError, closest, parse
from einfuse.einsum import load as load_cascade
from einfuse.mapper.errors import MappingError
from einfuse.mapper.machine.architecture import (
    Architecture,
    find_file,
    load_architecture,
    parse_architecture,
)
from einfuse.mapper.machine.extends import read_yaml
from einfuse.mapper.machine.formula import Formula, Values, parse_formula
from einfuse.mapper.machine.spec import Spec, explain
from einfuse.mapper.nest.nest import Nest, parse_nest
from einfuse.mapper.nest.stages import Stage, StageFile, parse_stage

from .gpu_kernel import Constant, Schedule, check_kernel, schedule_of
from .gpu_kernel_file import KernelFile, read_kernel


class Column(Spec):
    """How a column of a table selects a row."""

    value: str | float
    how: Literal["exact", "nearest", "at_least"] = "exact"


class TableFile(Spec):
    """A table whose row is chosen by the shape or the architecture."""

    file: str
    match: dict[str, Column] = Field(min_length=1)


class Requirement(Spec):
    """A condition that a shape must meet, and what to say where it does not."""

    that: str
    otherwise: str


class Growth(Spec):
    """Multiply a parameter until a condition on the time of each resource holds."""

    parameter: str
    by: float = Field(2, gt=1)
    until: str
    times: int = Field(24, gt=0)


class Omissions(Spec):
    """What a published run did not charge; other accountings charge it."""

    energy: tuple[str, ...] = ()
    area: tuple[str, ...] = ()


class DesignFile(Spec):
    """The schema of a design file."""

    schema_version: Literal[1] = Field(alias="schema")
    name: str
    description: str = ""
    source: str = ""
    cascade: str = Field(
        description="a shipped one, the path of a file, or a text of several lines"
    )
    architecture: str | dict[str, Any]
    batch: tuple[str, ...] = ()
    tables: dict[str, TableFile] = {}
    let: dict[str, str | float | int] = {}
    require: tuple[Requirement, ...] = ()
    set: dict[str, str | float | int | None] = {}
    unknown: dict[str, str] = {}
    grow: Growth | None = None
    retention: Literal["trailing", "explicit"] = "trailing"
    edges: Literal["whole", "exact"] = "whole"
    drains: Literal["free", "read"] = "free"
    mapping: list[Any]
    composition: Literal["published", "pipelined", "sequential"] = "published"
    stages: tuple[StageFile, ...] = ()
    not_charged_when_published: Omissions = Omissions()
    found: dict[str, Any] = Field({}, description="what the search was asked that wrote this file")


_NOTHING = Omissions()


@dataclass(frozen=True, slots=True)
class Table:
    """A table of numbers, a column an array, and the keys that choose a row."""

    name: str
    columns: Mapping[str, NDArray[np.float64]]
    match: tuple[tuple[str, Formula, str], ...]

    def lookup(self, names: Mapping[str, Values]) -> dict[str, Values]:
        """Return ``table.column`` for the matching row (NaN where no row matches exactly)."""
        keys = [
            (self.columns[column], np.asarray(formula.evaluate(names), float), how)
            for column, formula, how in self.match
        ]
        shape = np.broadcast_shapes(*(wanted.shape for _, wanted, _ in keys))
        fits = np.ones((*shape, len(keys[0][0])), dtype=bool)
        for column, wanted, how in keys:
            wanted = np.broadcast_to(wanted, shape)[..., None]
            if how == "exact":
                fits &= column == wanted
                continue
            if how == "nearest":
                distance = np.where(fits, np.abs(column - wanted), np.inf)
            else:
                beyond = np.where(fits & (column >= wanted), column, np.inf)
                last = np.where(fits, column, -np.inf).max(axis=-1, keepdims=True)
                distance = np.where(
                    np.isinf(beyond), np.where(column == last, 1e300, np.inf), beyond
                )
            best = distance.min(axis=-1, keepdims=True)
            fits &= (distance == best) & np.isfinite(distance)
            if how == "nearest":  # of two at the same distance, the smaller
                least = np.where(fits, column, np.inf).min(axis=-1, keepdims=True)
                fits &= column == least
        row = np.argmax(fits, axis=-1)
        known = fits.any(axis=-1)
        return {
            f"{self.name}.{column}": np.where(known, values[row], np.nan)[()]
            for column, values in self.columns.items()
        }


@dataclass(frozen=True, slots=True)
class Design:
    """What is evaluated: everything in it is a choice, and nothing depends on a shape."""

    name: str
    cascade: Cascade
    architecture: Architecture
    nest: Nest
    stages: tuple[Stage, ...] = ()
    batch: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    let: tuple[tuple[str, Formula], ...] = ()
    require: tuple[tuple[Formula, str], ...] = ()
    settings: tuple[tuple[str, Formula | None], ...] = ()
    unknown: tuple[tuple[str, str], ...] = ()
    grow: Growth | None = None
    retention: str = "trailing"
    edges: str = "whole"
    drains: str = "free"
    composition: str = "published"
    omissions: Omissions = _NOTHING
    description: str = ""
    source: str = ""

    def with_settings(self, settings: Mapping[str, Values]) -> Design:
        """Return the design on its architecture with other values for some parameters.

        What the user sets wins over what the design sets.
        """
        kept = tuple((path, formula) for path, formula in self.settings if path not in settings)
        return replace(self, architecture=self.architecture.with_settings(settings), settings=kept)


@dataclass(frozen=True, slots=True)
class KernelDesign(Design):
    """A design whose mapping is a schedule of thread blocks on a GPU (see `mapper.kernel`)."""

    schedule: Schedule = field(kw_only=True)

    @property
    def calibration(self) -> Mapping[str, Constant]:
        """The constants that a fit may move, by the name after ``calibration.``."""
        return self.schedule.calibration


@functools.cache
def _shipped(name: str, architecture: str | None) -> Design:
    return _read(find_file(name, "designs", "design", MappingError), architecture)


def load_design(name: str | Path, architecture: str | Path | None = None) -> Design:
    """Return a shipped design by its name, or one from a YAML file.

    Args:
        name: the design.
        architecture: another architecture than the design's own, by name or file.

    Raises:
        MappingError: what the architecture lacks, by name.

    >>> load_design("fusemax").architecture.name
    'fusemax'
    >>> load_design("flash-attention-2", architecture="h100").architecture.name
    'h100'
    """
    other = None if architecture is None else str(architecture)
    if any(_is_file(given) for given in (str(name), other) if given is not None):
        return _read(find_file(name, "designs", "design", MappingError), other)
    return _shipped(str(name), other)


def _is_file(name: str) -> bool:
    """Tell whether a name means a file, which may change, and not something shipped."""
    return Path(name).suffix in (".yaml", ".yml") or os.path.exists(name)  # noqa: PTH110


def _read(path: Path, architecture: str | None) -> Design:
    content = read_yaml(path)
    where = str(path) if architecture is None else f"{path.stem} on {architecture}"
    if architecture is not None:
        content = _extended(content, where, path.parent)
        if isinstance(content, dict):
            # What a published run or a search found held for the design's own architecture.
            own = ("not_charged_when_published", "found")
            content = {key: value for key, value in content.items() if key not in own}
            content["architecture"] = architecture
    return parse_design(content, where, path.parent)


def parse_design(content: Any, where: str, folder: Path | None = None) -> Design:
    """Return the design of a YAML file's content; names and files are looked up in ``folder``."""
    content = _extended(content, where, folder)
    if isinstance(content, dict) and ("launches" in content or "runs" in content):
        return _parse_kernel(_run_together(content, where, folder), where, folder)
    try:
        file = DesignFile.model_validate(content)
    except ValidationError as error:
        raise MappingError(explain(error, where)) from None

    def beside(name: str) -> str:
        local = None if folder is None else folder / name
        return str(local) if local is not None and local.is_file() else name

    try:
        cascade = (
            parse(file.cascade, file.name)
            if _is_text(file.cascade)
            else load_cascade(beside(file.cascade))
        )
        architecture = (
            load_architecture(beside(file.architecture))
            if isinstance(file.architecture, str)
            else parse_architecture(file.architecture, "architecture")
        )
        design = Design(
            name=file.name,
            cascade=cascade,
            architecture=architecture,
            nest=parse_nest(file.mapping),
            stages=tuple(parse_stage(stage, f"stages[{n}]") for n, stage in enumerate(file.stages)),
            batch=file.batch,
            tables=tuple(_read_table(name, table, folder) for name, table in file.tables.items()),
            let=tuple((name, _defined(name, text)) for name, text in file.let.items()),
            require=tuple((parse_formula(r.that), r.otherwise) for r in file.require),
            settings=tuple(
                (path, None if text is None else parse_formula(text))
                for path, text in file.set.items()
            ),
            unknown=tuple(file.unknown.items()),
            grow=file.grow,
            retention=file.retention,
            edges=file.edges,
            drains=file.drains,
            composition=file.composition,
            omissions=file.not_charged_when_published,
            description=file.description,
            source=file.source,
        )
        for rank in file.batch:
            if rank in cascade.rank_names:
                raise MappingError(
                    f"batch: {rank} is a rank of {cascade.name} already; batch ranks are those "
                    "that the cascade leaves out"
                )
        paths = [("set", path, "") for path in dict(design.settings)]
        paths += [
            ("not_charged_when_published.energy", p, ".energy_pj")
            for p in file.not_charged_when_published.energy
        ]
        paths += [
            ("not_charged_when_published.area", p, ".area_um2")
            for p in file.not_charged_when_published.area
        ]
        for key, path, suffix in paths:
            if f"{path}{suffix}" not in architecture.parameters:
                known = [
                    p.removesuffix(suffix) for p in architecture.parameters if p.endswith(suffix)
                ]
                near = closest(path, known)
                raise MappingError(f"{key}: {architecture.name} has no parameter '{path}'{near}")
        _check_names(design)
    except EinfuseError as error:
        raise MappingError(f"{where}: {error}") from None
    return design


def _run_together(content: dict[str, Any], where: str, folder: Path | None) -> dict[str, Any]:
    """Return a kernel design's content with the launches of those that it ``runs``, in order.

    Their definitions are put together. A name that two of them define differently is an error,
    unless the content defines it itself.
    """
    if "runs" not in content:
        return content
    runs = content["runs"]
    if not isinstance(runs, list) or not all(isinstance(name, str) for name in runs) or not runs:
        raise MappingError(f"{where}: runs: expected a list of designs, found {runs!r}")
    together: dict[str, Any] = {}
    launches: list[Any] = []
    for name in runs:
        path = find_file(str(name), "designs", "design", MappingError)
        part = _run_together(_extended(read_yaml(path), str(path), path.parent), where, path.parent)
        launches += [
            {"cascade": part.get("cascade"), **launch} for launch in part.get("launches", [])
        ]
        for key, value in part.items():
            known = together.get(key)
            if isinstance(known, dict) and isinstance(value, dict):
                for entry in known.keys() & value.keys():
                    if known[entry] != value[entry] and key not in content:
                        raise MappingError(f"{where}: runs: {key}.{entry} means two things")
                together[key] = {**known, **value}
            elif key == "require" and known:
                together[key] = [*known, *(rule for rule in value if rule not in known)]
            else:
                together.setdefault(key, value)
    own = {key: value for key, value in content.items() if key != "runs"}
    return {**together, "launches": launches, **own}


def _parse_kernel(content: Any, where: str, folder: Path | None) -> KernelDesign:
    file: KernelFile = read_kernel(content, where)

    def beside(name: str) -> str:
        local = None if folder is None else folder / name
        return str(local) if local is not None and local.is_file() else name

    try:
        cascade = load_cascade(beside(file.cascade))
        others = {
            launch.cascade: load_cascade(beside(launch.cascade))
            for launch in file.launches
            if launch.cascade is not None
        }
        architecture = (
            load_architecture(beside(file.architecture))
            if isinstance(file.architecture, str)
            else parse_architecture(file.architecture, "architecture")
        )
        schedule = schedule_of(file, cascade, others)
        let = {name: _defined(name, text) for name, text in file.let.items()}
        check_kernel(file.name, schedule, let, architecture)
    except EinfuseError as error:
        raise MappingError(f"{where}: {error}") from None
    return KernelDesign(
        name=file.name,
        cascade=cascade,
        architecture=architecture,
        nest=(),
        let=tuple(let.items()),
        require=tuple((parse_formula(r["that"]), r["otherwise"]) for r in file.require),
        description=file.description,
        source=file.source,
        schedule=schedule,
    )


def _extended(content: Any, where: str, folder: Path | None) -> Any:
    """Return a file's content over that of the design which it extends, if any.

    A key replaces the other's, but for ``let`` and ``set``: their entries are added.
    """
    seen = [where]
    while isinstance(content, dict) and "extends" in content:
        name = content["extends"]
        beside = None if folder is None else folder / str(name)
        path = find_file(
            beside if beside is not None and beside.is_file() else str(name),
            "designs",
            "design",
            MappingError,
        )
        if str(path) in seen:
            raise MappingError(f"{where}: {' extends '.join([*seen, str(path)])}, in a circle")
        seen.append(str(path))
        base = read_yaml(path)
        if not isinstance(base, dict):
            raise MappingError(f"{where}: extends {path}, which is no design")
        base = _rooted(base, path.parent)
        own = {key: value for key, value in content.items() if key != "extends"}
        for key in ("let", "set"):
            if isinstance(base.get(key), dict) and isinstance(own.get(key), dict):
                own[key] = {**base[key], **own[key]}
        content = {**base, **own}
    return content


def _is_text(cascade: str) -> bool:
    """Whether a design has its cascade's text, not its name or path."""
    return "\n" in cascade


def _rooted(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a file's content with the files beside it named by their whole path."""
    rooted = dict(content)
    for key in ("cascade", "architecture"):
        name = rooted.get(key)
        if isinstance(name, str) and not _is_text(name) and (folder / name).is_file():
            rooted[key] = str(folder / name)
    if isinstance(rooted.get("tables"), dict):
        rooted["tables"] = {
            name: {**table, "file": str(folder / str(table.get("file", "")))}
            if isinstance(table, dict)
            else table
            for name, table in rooted["tables"].items()
        }
    return rooted


def _check_names(design: Design) -> None:
    """Every name in a definition must be known, and a definition must not hide another name."""
    let = dict(design.let)
    taken = {*design.batch, *design.architecture.parameters, *design.architecture.file.costs}
    known = {*taken, *let, *design.cascade.rank_names}
    for table in design.tables:
        known |= {f"{table.name}.{column}" for column in table.columns}
    for name, formula in let.items():
        if name in taken:
            raise MappingError(f"let.{name}: the name stands for something else already")
        for read in formula.names:
            priced = read.partition(".")[0] in design.architecture.file.costs
            if read not in known and not priced:
                raise MappingError(f"let.{name}: unknown name '{read}'{closest(read, known)}")


def _defined(name: str, text: str | float) -> Formula:
    try:
        return parse_formula(text)
    except MappingError as error:
        raise MappingError(f"let.{name}: {error}") from None


def _read_table(name: str, table: TableFile, folder: Path | None) -> Table:
    path = (folder or Path()) / table.file
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
        columns = {
            key: np.array([float(row[key]) for row in rows]) for key in (rows[0] if rows else {})
        }
    except OSError as error:
        raise MappingError(f"tables.{name}: {path}: {error.strerror}") from None
    except (TypeError, ValueError, csv.Error):  # which may be no table at all: show nothing of it
        raise MappingError(
            f"tables.{name}: {path}: expected a CSV table with a line of names, then numbers alone"
        ) from None
    for column in table.match:
        if column not in columns:
            near = closest(column, columns)
            raise MappingError(f"tables.{name}: {path} has no column '{column}'{near}")
    match = tuple((c, parse_formula(key.value), key.how) for c, key in table.match.items())
    return Table(name, columns, match)
