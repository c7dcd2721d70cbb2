"""What the accounting ``physical`` charges on request, each by a closed form.

- ``leakage``: energy = power x time of the run x instances: a memory once, a unit for each lane.
- ``interconnect``: a memory lies along one side of a unit, the columns of a 2D array or all lanes
  of a vector unit. A word that goes between it and the lanes makes the mean number of hops
  between neighbouring lanes, (rows + 1) / 2, or 1; what is handed on from register to register
  makes none.
- ``multicast``: a word that f lanes share, or sum up, passes along f of them at least. What it
  makes beyond the mean distance is charged here: max(f - (rows + 1) / 2, 0) further hops.
- ``ports``: an access takes a port of its memory for one cycle of the port, so that a memory
  delivers ports x access_bytes x port_hz bytes in a second (see `einfuse.simulator.cost.latency`).

An option asks for its figures: a missing one is an error that names its path, never a zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from einfuse.mapper import REGISTERS, ArchitectureError, Values
from einfuse.simulator.result.accounting import Accounting

from .point import Point

PJ_PER_MW_SECOND = 1e9


def check_options(point: Point, accounting: Accounting) -> None:
    """Refuse options that the architecture has no figures for, naming every path that is missing.

    Raises:
        ArchitectureError: the options, and the paths to set.
    """
    missing: dict[str, list[str]] = {}
    for option in accounting.include:
        for path in _needed(point, option):
            if point.values[path] is None:
                missing.setdefault(path, []).append(option)
    if missing:
        options = dict.fromkeys(option for names in missing.values() for option in names)
        paths = ", ".join(missing)
        raise ArchitectureError(
            f"no figures to include {', '.join(options)}: set {paths} (--set "
            f"{next(iter(missing))}=..., or in the file of the architecture "
            f"{point.architecture.name})"
        )


def _needed(point: Point, option: str) -> Iterator[str]:
    levels = point.architecture.memories
    units = list(dict.fromkeys(work.unit for work in point.counts.work.values()))
    if option == "leakage":
        for name in (*levels, *point.architecture.units):
            yield f"{name}.leakage_mw"
    elif option in ("interconnect", "multicast"):
        for unit in units:
            yield f"{unit}.hop_pj"
    elif option == "ports":
        used = {level for _, _, level in point.counts.traffic if level != REGISTERS}
        for level in levels[1:]:
            bounded = any(
                point.values[f"{level}.{kind}bandwidth_bytes_per_s"] is not None
                for kind in ("", "read_", "write_")
            )
            if level in used and not bounded:
                yield f"{level}.ports"


def charge_options(
    point: Point, accounting: Accounting, seconds: Values
) -> Iterator[tuple[str, Values, str]]:
    """Yield what the options charge: a component, how often, and the path of the price."""
    if "leakage" in accounting.include:
        for level in point.architecture.memories:
            yield f"{level}.leakage", seconds * PJ_PER_MW_SECOND, f"{level}.leakage_mw"
        for unit in point.architecture.units:
            lanes: Values = 1
            for dimension in point.architecture.dimensions(unit):
                lanes = lanes * point.number(f"{unit}.{dimension}")
            yield f"{unit}.leakage", lanes * seconds * PJ_PER_MW_SECOND, f"{unit}.leakage_mw"
    for delivery in point.counts.deliveries:
        unit = point.counts.work[delivery.einsum].unit
        mean = mean_hops(point, unit)
        hops = {"interconnect": mean, "multicast": np.maximum(delivery.lanes - mean, 0)}
        for option, made in hops.items():
            if option in accounting.include:
                yield f"{unit}.{option}", delivery.words * made, f"{unit}.hop_pj"


def mean_hops(point: Point, unit: str) -> Values:
    """The mean number of hops between the side of a unit and its lanes."""
    if "rows" in point.architecture.dimensions(unit):
        return (point.number(f"{unit}.rows") + 1) / 2
    return 1
