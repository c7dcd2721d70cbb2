"""The figures of the shipped architectures, each with its source."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from .architecture import DATA, Architecture, load_architecture

_UNVERIFIED = "unverified"


def architecture_figures() -> list[dict[str, Any]]:
    """Return name, description, source, parameters and the source of each group, one a dictionary.

    ``parameters`` are values by path (None: unknown), ``sources`` the reference by path of a
    figure or of the group that it stands in; ``unverified`` are the paths that no source was
    checked for.

    >>> [one["name"] for one in architecture_figures() if one["processors"]][:2]
    ['a100', 'h100']
    """
    names = sorted(path.stem for path in (DATA / "architectures").rglob("*.yaml"))
    return [_figures(load_architecture(name)) for name in names]


def _figures(architecture: Architecture) -> dict[str, Any]:
    file, values = architecture.file, architecture.values()
    sources = {f"{name}": memory.source for name, memory in file.memories.items()}
    for unit, spec in file.units.items():
        sources[unit] = spec.source
        sources[f"{unit}.registers"] = spec.registers.source
        for operation, cost in spec.operations.items():
            sources[f"{unit}.operations.{operation}"] = cost.source
    if file.processors is not None:
        for name, source in file.processors.sources.items():
            sources[f"processors.{name}"] = source
    known = {path: source for path, source in sources.items() if source}
    return {
        "name": architecture.name,
        "description": file.description.strip(),
        "source": file.source.strip(),
        "processors": file.processors is not None,
        "units": {unit: _unit(architecture, unit, values) for unit in architecture.units},
        "memories": list(architecture.memories),
        "parameters": {path: _number(value) for path, value in values.items()},
        "sources": known,
        "unverified": [path for path, source in known.items() if _UNVERIFIED in source],
    }


def _unit(
    architecture: Architecture, unit: str, values: Mapping[str, Any]
) -> dict[str, int | float | None]:
    return {
        dimension: _number(values[f"{unit}.{dimension}"])
        for dimension in architecture.dimensions(unit)
    }


def _number(value: Any) -> int | float | None:
    if value is None:
        return None
    number = float(value)
    return int(number) if number.is_integer() else number


def render_figures(figures: list[dict[str, Any]]) -> str:
    """Return a table of the architectures, and their sources below it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    columns = ("name", "processors", "units", "clock", "memories", "DRAM")
    table = Table(*columns, box=box.SIMPLE_HEAD)
    for one in figures:
        parameters = one["parameters"]
        units = ", ".join(
            f"{unit} {' x '.join(str(n) for n in sizes.values())}"
            for unit, sizes in one["units"].items()
        )
        memories = ", ".join(
            f"{path.removesuffix('.bytes')} {_bytes(size)}"
            for path, size in parameters.items()
            if path.endswith(".bytes") and path.removesuffix(".bytes") in one["memories"] and size
        )
        bandwidth = parameters.get("dram.bandwidth_bytes_per_s")
        table.add_row(
            one["name"],
            str(parameters.get("processors.count", "")),
            units,
            f"{parameters['clock_hz'] / 1e9:.3g} GHz",
            memories,
            "" if bandwidth is None else f"{bandwidth / 1e12:.3g} TB/s",
        )
    console = Console(file=io.StringIO(), width=98, force_terminal=False)
    console.print(table)
    for one in figures:
        console.print(f"{one['name']}: {one['source']}", markup=False, highlight=False)
        if one["unverified"]:
            paths = ", ".join(one["unverified"])
            console.print(f"  from memory, unverified: {paths}", markup=False, highlight=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def _bytes(size: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1024)):
        if size >= scale:
            return f"{size / scale:.4g} {unit}"
    return f"{size:g} B"
