"""A tile on one processor: its operations by unit, and how long they take side by side.

The operations are those of the cascade at the tile's sizes. The tensor cores' time is the longer of
their operations and of the operands that they read from shared memory; the warps' own work is the
vector operations, and what they move themselves. With streams of work that drift against each other
(warp groups, resident blocks) a share ``exposed`` of the warps' work is not hidden behind the
tensor cores; a single stream does one after the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy

from einfuse.einsum import Cascade, count_operations, symbol
from einfuse.mapper import Architecture, MappingError, Values

_Counts = dict[str, dict[str, Callable[..., Any]]]


@functools.cache
def _compiled(cascade: Cascade) -> tuple[tuple[str, ...], _Counts]:
    """The ranks of a cascade, and its operation counts as functions of their sizes."""
    ranks = tuple(cascade.rank_names)
    symbols = [symbol(rank) for rank in ranks]
    return ranks, {
        einsum: {
            operation: sympy.lambdify(symbols, formula, "numpy")
            for operation, formula in own.items()
        }
        for einsum, own in count_operations(cascade).items()
    }


def tile_operations(cascade: Cascade, sizes: Mapping[str, Values]) -> dict[str, dict[str, Values]]:
    """Return Einsum -> operation -> count at the sizes of a tile.

    >>> from einfuse.einsum.library.cascades import load
    >>> tile = {"E": 64, "F": 64, "P": 128, "M1": 1, "M0": 32, "M": 32}
    >>> tile_operations(load("attention/1-pass"), tile)["SLN"]
    {'exp': 4096, 'add': 4096}
    """
    ranks, counts = _compiled(cascade)
    missing = [rank for rank in ranks if rank not in sizes]
    if missing:
        raise MappingError(f"the tile of {cascade.name} has no size of {', '.join(missing)}")
    given = [sizes[rank] for rank in ranks]
    return {
        einsum: {operation: function(*given) for operation, function in own.items()}
        for einsum, own in counts.items()
    }


@dataclass(frozen=True, slots=True)
class UnitWork:
    """Slots by unit and by Einsum: operations x issue slots, before lanes divide them."""

    by_unit: Mapping[str, Values]
    by_einsum: Mapping[str, tuple[tuple[str, Values], ...]]


def unit_work(
    operations: Mapping[str, Mapping[str, Values]],
    einsums: Iterable[str],
    units: tuple[str, ...],
    architecture: Architecture,
    values: Mapping[str, Values | None],
) -> UnitWork:
    """Return the slots that Einsums take on the first of some units that has each operation."""
    by_unit: dict[str, Values] = {}
    by_einsum: dict[str, tuple[tuple[str, Values], ...]] = {}
    for einsum in einsums:
        own: dict[str, Values] = {}
        for operation, count in operations[einsum].items():
            unit = next(
                (u for u in units if operation in architecture.file.units[u].operations), None
            )
            if unit is None:
                raise MappingError(
                    f"{einsum} needs {operation}, which {architecture.name} has not on "
                    f"{', '.join(units) or 'a vector unit: it has none'}"
                )
            slots = count * np.asarray(values[f"{unit}.operations.{operation}.slots"])
            own[unit] = own.get(unit, 0.0) + slots
            by_unit[unit] = by_unit.get(unit, 0.0) + slots
        by_einsum[einsum] = tuple(own.items())
    return UnitWork(by_unit, by_einsum)


def lanes_of(unit: str, architecture: Architecture, values: Mapping[str, Values | None]) -> Values:
    """Return the lanes of a unit of one processor."""
    lanes: Values = 1
    for dimension in architecture.dimensions(unit):
        lanes = lanes * np.asarray(values[f"{unit}.{dimension}"])
    return lanes


def compose_tile(tensor: Values, warps: Values, exposed: Values, streams: Values) -> Values:
    """Return the cycles of a tile: tensor cores, and the warps' work that they do not hide.

    >>> float(compose_tile(100.0, 60.0, 0.5, 2)), float(compose_tile(100.0, 60.0, 0.5, 1))
    (130.0, 160.0)
    >>> float(compose_tile(100.0, 300.0, 0.5, 2))  # the warps themselves are the bound
    300.0
    """
    share = np.where(np.asarray(streams) < 2, np.maximum(exposed, 1.0), exposed)
    return np.maximum(tensor + share * warps, warps)
