"""Memories priced by the package hwcomponents-cacti, where it is installed (Python >= 3.12).

It knows SRAM from 22 to 90 nm (CACTI 7; beyond that it extrapolates, which is refused here) and
DRAM by the bit. It has no floating-point units, no exp, no divide.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np

from einfuse.einsum import closest
from einfuse.mapper import ArchitectureError, Values

from .price import Price

_NODES = (22, 90)
_DRAM = {"hbm2": "HBM2", "hbm3": "HBM3", "ddr3": "DDR3", "lpddr4": "LPDDR4"}
_QUANTITIES = {
    "sram": ("read_pj", "write_pj", "area_um2", "leakage_mw"),
    "dram": ("read_pj", "write_pj"),
}
_SIZES: dict[str, dict[str, int | None]] = {
    "sram": {"bytes": None, "width_bits": None, "ports": 1, "banks": 1},
    "dram": {"width_bits": None},
}


@dataclass(frozen=True, slots=True)
class HwComponents:
    """The cost model of a node by hwcomponents-cacti; ``module`` is the package."""

    name: str
    node_nm: int
    module: Any
    version: str

    def quantities(self, component: str, type: str) -> tuple[str, ...]:
        """The figures that a component has; ArchitectureError if there is no such one."""
        if component not in _QUANTITIES:
            raise ArchitectureError(
                f"{self.name}: no component '{component}'{closest(component, _QUANTITIES)}"
            )
        if component == "dram" and type not in _DRAM:
            raise ArchitectureError(f"{self.name}: no dram of type '{type}'{closest(type, _DRAM)}")
        return _QUANTITIES[component]

    def price(self, component: str, type: str, quantity: str, sizes: Mapping[str, Values]) -> Price:
        """The figure of a component of some sizes; see `cost_model.CostModel`."""
        known = self.quantities(component, type)
        if quantity not in known:
            raise ArchitectureError(
                f"{self.name}: {component} has no '{quantity}'{closest(quantity, known)}"
            )
        given: dict[str, Values] = {}
        for size, default in _SIZES[component].items():
            if size not in sizes and default is None:
                raise ArchitectureError(f"{self.name}: {component} needs a size '{size}'")
            given[size] = sizes.get(size, default)
        for size in sizes:
            if size not in given:
                raise ArchitectureError(
                    f"{self.name}: {component} has no size '{size}'{closest(size, given)}"
                )
        points = np.broadcast_arrays(*given.values())
        rows = np.stack([np.ravel(point) for point in points], axis=1).astype(float)
        distinct, where = np.unique(rows, axis=0, return_inverse=True)
        figures = np.array([self._ask(component, type, quantity, tuple(row)) for row in distinct])
        value = figures[where.reshape(-1)].reshape(points[0].shape)[()]
        called = ", ".join(f"{size} {rows[0, n]:g}" for n, size in enumerate(given))
        how = f"{self.name}: {component} of {called}, called"
        return Price(value, how, f"hwcomponents-cacti {self.version}, {self.node_nm} nm")

    def _ask(self, component: str, type: str, quantity: str, row: tuple[float, ...]) -> float:
        try:
            model = _make(self.module, component, type, self.node_nm, row)
            match quantity:
                case "area_um2":
                    return float(model.area) * 1e12
                case "leakage_mw":
                    return float(model.leak_power) * 1e3
                case _:
                    action = model.read if quantity == "read_pj" else model.write
                    per_access = float(action().energy) * 1e12
                    return per_access * (row[-1] / model.width if component == "dram" else 1)
        except ArchitectureError:
            raise
        except Exception as error:  # whatever the package or CACTI fails with
            raise ArchitectureError(f"{self.name}: {component} failed: {error}") from None


@cache
def _make(module: Any, component: str, type: str, node_nm: int, row: tuple[float, ...]) -> Any:
    if component == "dram":
        return getattr(module, _DRAM[type])()
    size, width, ports, banks = row
    return module.SRAM(
        tech_node=node_nm * 1e-9,
        width=int(width),
        size=int(size) * 8,
        n_rw_ports=int(ports),
        n_banks=int(banks),
    )


def load_plugin(name: str) -> HwComponents:
    """Return the cost model of a name such as hwcomponents-45nm.

    Raises:
        ArchitectureError: the package is not installed, or the node is outside what it knows.
    """
    node = name.removeprefix("hwcomponents-").removesuffix("nm")
    if not node.isdigit() or not _NODES[0] <= int(node) <= _NODES[1]:
        raise ArchitectureError(
            f"'{name}': expected hwcomponents-NNnm with a node of {_NODES[0]} to {_NODES[1]} nm"
        )
    try:
        module = importlib.import_module("hwcomponents_cacti")
    except (ImportError, SyntaxError):  # of an older Python
        raise ArchitectureError(
            f"'{name}' needs the package hwcomponents-cacti, which is not installed here: pip "
            "install hwcomponents-cacti (Python 3.12 or newer), or choose 45nm or 7nm"
        ) from None
    try:
        version = metadata.version("hwcomponents-cacti")
    except metadata.PackageNotFoundError:
        version = "of unknown version"
    return HwComponents(name, int(node), module, version)
