"""A cost model as a table: cited figures of components, and the rules between them.

Columns: ``component``, ``type`` and ``quantity`` (its name ends in its unit) say what a row is;
``at`` gives the sizes it holds for (``bytes=8192 width_bits=64``), ``per`` those that it is
multiplied by (``width_bits``). ``source`` is a citation, or its key in a file ``sources.csv``
beside the table. ``node`` is in nanometres; ``status`` is

- ``quoted``: the figure stands so in the source, or where others quote it,
- ``recalled``: of the table that the source names, not read again when it was entered,
- ``run``: put out by the program that the source names,
- ``derived``: worked out as the source says.

Between rows a figure follows a power law: its logarithm is linear in the logarithm of each size,
from one neighbour to the next. Outside the rows there is none: a single point is refused, and
points of an array are NaN. ``ports`` is never between rows.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from einfuse.einsum import closest
from einfuse.mapper import ArchitectureError, Values

from .price import Price

STATUSES = ("quoted", "recalled", "run", "derived")
_COLUMNS = (
    "component", "type", "quantity", "at", "per", "node", "value", "status", "source", "version",
)  # fmt: skip
_EXACT = ("ports",)


@dataclass(frozen=True, slots=True)
class Row:
    """A figure of a component; see the module."""

    component: str
    type: str
    quantity: str
    at: tuple[tuple[str, float], ...]
    per: tuple[str, ...]
    node: str
    value: float
    status: str
    source: str
    version: str

    @property
    def cited(self) -> str:
        """The source and how the figure was taken from it."""
        return f"{self.source} ({self.status}, {self.node} nm, version {self.version})"


@dataclass(frozen=True, slots=True)
class TableModel:
    """A cost model that looks figures up in rows."""

    name: str
    rows: tuple[Row, ...]

    def quantities(self, component: str, type: str) -> tuple[str, ...]:
        """The figures that a component has; ArchitectureError if there is no such one.

        >>> from einfuse.simulator.components.cost_model import find_cost_model
        >>> find_cost_model("45nm").quantities("wire", "")
        ('energy_pj',)
        """
        return tuple(dict.fromkeys(row.quantity for row in self._rows_of(component, type)))

    def price(self, component: str, type: str, quantity: str, sizes: Mapping[str, Values]) -> Price:
        """The figure of a component of some sizes; see `cost_model.CostModel`.

        >>> from einfuse.simulator.components.cost_model import find_cost_model
        >>> find_cost_model("7nm").price("dram", "hbm2", "read_pj", {"width_bits": 64}).value
        249.6
        """
        rows = self._rows_of(component, type)
        label = f"{self.name}: {component}{f' {type}' if type else ''}"
        own = [row for row in rows if row.quantity == quantity]
        if not own:
            near = closest(quantity, self.quantities(component, type))
            raise ArchitectureError(f"{label} has no '{quantity}'{near}")
        known = dict.fromkeys(s for row in rows for s in (*dict(row.at), *row.per))
        for size in sizes:
            if size not in known:
                raise ArchitectureError(f"{label} has no size '{size}'{closest(size, known)}")
            given = np.asarray(sizes[size], float)
            unknown = not given.ndim and np.isnan(given)  # at a point of an array it may be
            if unknown or np.any((given < 0) | np.isinf(given)):
                raise ArchitectureError(
                    f"{label}: {size}: expected a number of at least 0, found {given.min():g}"
                )
        needed = dict.fromkeys(s for row in own for s in (*dict(row.at), *row.per))
        for size in needed:
            if size not in sizes:
                raise ArchitectureError(f"{label} needs a size '{size}' for its {quantity}")
        value, how = _look_up(own, sizes, f"{label}: {quantity}")
        for size in own[0].per:
            value, how = value * sizes[size], f"{how} x {size}"
        return Price(value, f"{label}: {how}", "; ".join(dict.fromkeys(r.cited for r in own)))

    def types(self, component: str) -> tuple[str, ...]:
        """The types that a component has; ArchitectureError if there is no such component."""
        known = dict.fromkeys(row.component for row in self.rows)
        if component not in known:
            raise ArchitectureError(
                f"{self.name}: no component '{component}'{closest(component, known)}"
            )
        return tuple(dict.fromkeys(row.type for row in self.rows if row.component == component))

    def describe(self) -> list[dict[str, str]]:
        """Return a row for each figure: component, type, quantity, value, at, per, source."""
        groups: dict[tuple[str, str, str], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.component, row.type, row.quantity), []).append(row)
        described = []
        for (component, type_, quantity), rows in groups.items():
            low, high = min(row.value for row in rows), max(row.value for row in rows)
            described.append(
                {
                    "component": component,
                    "type": type_,
                    "quantity": quantity,
                    "value": f"{low:g}" if len(rows) == 1 else f"{low:g} to {high:g}",
                    "at": _range(rows, [name for name, _ in rows[0].at]),
                    "per": " ".join(rows[0].per),
                    "source": "; ".join(dict.fromkeys(row.cited for row in rows)),
                }
            )
        return described

    def _rows_of(self, component: str, type: str) -> list[Row]:
        known = self.types(component)
        if type not in known:
            raise ArchitectureError(
                f"{self.name}: no {component} of type '{type}'{closest(type, known)}"
            )
        return [row for row in self.rows if (row.component, row.type) == (component, type)]


def _look_up(rows: Sequence[Row], sizes: Mapping[str, Values], label: str) -> tuple[Values, str]:
    """Return the figure at some sizes, and the rows around the first point."""
    for size in _EXACT:
        if size in dict(rows[0].at):
            rows = _only(rows, size, sizes[size], label)
    names = [name for name, _ in rows[0].at if name not in _EXACT]
    if not names:
        return rows[0].value, f"{rows[0].value:g}"
    axes = [np.unique([dict(row.at)[name] for row in rows]) for name in names]
    grid = np.full([len(axis) for axis in axes], np.nan)
    for row in rows:
        place = [np.searchsorted(a, dict(row.at)[n]) for a, n in zip(axes, names, strict=True)]
        grid[tuple(place)] = row.value
    points = np.broadcast_arrays(*(np.asarray(sizes[name], float) for name in names))
    value = _between(axes, grid, points)
    if not value.shape and np.isnan(value):
        wanted = ", ".join(f"{n} {float(p):g}" for n, p in zip(names, points, strict=True))
        raise ArchitectureError(f"{label} at {wanted} is outside the table: {_range(rows, names)}")
    first = ", ".join(f"{n} {float(p.flat[0]):g}" for n, p in zip(names, points, strict=True))
    exact = any(
        all(dict(row.at)[n] == float(p.flat[0]) for n, p in zip(names, points, strict=True))
        for row in rows
    )
    kind = "row" if exact else "power law between the rows around"
    return value[()], f"{float(value.flat[0]):g}, {kind} {first}"


def _only(rows: Sequence[Row], size: str, wanted: Values, label: str) -> list[Row]:
    values = np.unique(np.asarray(wanted, float))
    known = sorted({dict(row.at)[size] for row in rows})
    if len(values) != 1 or values[0] not in known:
        raise ArchitectureError(
            f"{label}: {size}: expected one of {', '.join(f'{v:g}' for v in known)}, the same at "
            f"all points, found {', '.join(f'{v:g}' for v in values[:3])}"
        )
    return [row for row in rows if dict(row.at)[size] == values[0]]


def _between(
    axes: Sequence[NDArray[np.float64]],
    grid: NDArray[np.float64],
    points: Sequence[NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Return the power law between the corners of the cell around each point; NaN outside."""
    inside = np.ones(points[0].shape, bool)
    lower: list[NDArray[np.intp]] = []
    weights: list[NDArray[np.float64]] = []
    for axis, point in zip(axes, points, strict=True):
        inside &= (point >= axis[0]) & (point <= axis[-1])
        low = np.clip(np.searchsorted(axis, point, side="right") - 1, 0, max(len(axis) - 2, 0))
        high = np.minimum(low + 1, len(axis) - 1)
        span = np.log(np.where(high > low, axis[high] / axis[low], np.e))
        with np.errstate(divide="ignore", invalid="ignore"):
            weights.append(np.where(inside, np.log(point / axis[low]) / span, 0.0))
        lower.append(low)
    value = np.ones(points[0].shape)
    for corner in itertools.product((0, 1), repeat=len(axes)):
        weight = np.ones(points[0].shape)
        place = []
        for side, low, share, axis in zip(corner, lower, weights, axes, strict=True):
            weight = weight * (share if side else 1 - share)
            place.append(np.minimum(low + side, len(axis) - 1))
        value = value * np.where(weight > 0, grid[tuple(place)] ** weight, 1.0)
    return np.where(inside, value, np.nan)


def _range(rows: Sequence[Row], names: Sequence[str]) -> str:
    spans = []
    for name in names:
        values = [dict(row.at)[name] for row in rows]
        spans.append(f"{name} {min(values):g} to {max(values):g}")
    return ", ".join(spans)


def load_table(path: Path) -> TableModel:
    """Read a table of costs; ArchitectureError names file and line of what is wrong with it.

    The table ``45nm.csv`` is named 45nm; other files by their path.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ArchitectureError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ArchitectureError(f"{path}: not a text file in UTF-8") from None
    numbered = [
        (number, line)
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.startswith("#")
    ]
    reader = csv.DictReader(line for _, line in numbered)
    cited = _read_citations(path.with_name("sources.csv"))
    missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise ArchitectureError(f"{path}: no column '{missing[0]}'; needs {', '.join(_COLUMNS)}")
    rows: dict[tuple[object, ...], Row] = {}
    for (number, _), found in zip(numbered[1:], reader, strict=False):
        try:
            row = _parse_row(found, cited)
        except (TypeError, ValueError) as error:
            raise ArchitectureError(f"{path}:{number}: {error}") from None
        key = (row.component, row.type, row.quantity, tuple(sorted(row.at)))
        kin = next((r for k, r in rows.items() if k[:3] == key[:3]), row)
        if key in rows:
            raise ArchitectureError(f"{path}:{number}: {' '.join(map(str, key[:3]))} stands twice")
        if ([n for n, _ in kin.at], kin.per) != ([n for n, _ in row.at], row.per):
            raise ArchitectureError(
                f"{path}:{number}: expected the sizes at {[n for n, _ in kin.at]} per "
                f"{list(kin.per)} as in other rows of {row.component} {row.quantity}"
            )
        rows[key] = row
    if not rows:
        raise ArchitectureError(f"{path}: no rows")
    shipped = path.parent == Path(__file__).parents[1] / "data"
    return TableModel(path.stem if shipped else str(path), tuple(rows.values()))


def _read_citations(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    reader = csv.DictReader(line for line in lines if not line.startswith("#"))
    return {row["key"]: row["source"] for row in reader}


def _parse_row(found: Mapping[str, str | None], cited: Mapping[str, str]) -> Row:
    cells = {column: (found[column] or "").strip() for column in _COLUMNS}
    for column in ("component", "quantity", "node", "value", "source", "version"):
        if not cells[column]:
            raise ValueError(f"{column} is empty")
    at = tuple(_parse_size(part) for part in cells["at"].split())
    value = float(cells["value"])
    if not 0 < value < float("inf"):
        raise ValueError(f"value: expected a number above 0, found {cells['value']}")
    if cells["status"] not in STATUSES:
        raise ValueError(f"status: expected one of {', '.join(STATUSES)}, found {cells['status']}")
    return Row(
        cells["component"], cells["type"], cells["quantity"], at, tuple(cells["per"].split()),
        cells["node"], value, cells["status"], cited.get(cells["source"], cells["source"]),
        cells["version"],
    )  # fmt: skip


def _parse_size(part: str) -> tuple[str, float]:
    name, equals, text = part.partition("=")
    size = float(text) if equals else 0.0
    if not (name.isidentifier() and 0 < size < float("inf")):
        raise ValueError(f"at: expected NAME=SIZE, found '{part}'")
    return name, size
