"""What FuseMax saves once leakage, wires and ports are charged, at 45 and at 7 nm, area for area.

The energy of FuseMax relative to FLAT, as one cost after another is charged; where each design's
energy goes; both designs on the same area, FLAT's split anew between its buffer and its vector
unit; and the time when the buffer has fewer or slower ports than the paper asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from einfuse.files import undisturbed, write_table, write_text
from einfuse.mapper import load_design
from einfuse.simulator import Evaluation, evaluate, find_cost_model
from einfuse.studies.frame.plot import PALETTE, new_figure, save_figure
from einfuse.studies.fusemax.study import Workloads, select_workloads

from .report import report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NODES = ("45nm", "7nm")
DESIGNS = ("flat", "fusemax")
EVERYTHING = ("leakage", "interconnect", "multicast", "ports")
STEPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "as published": ("published", ()),
    "registers of all elements": ("physical", ()),
    "+ leakage": ("physical", EVERYTHING[:1]),
    "+ interconnect": ("physical", EVERYTHING[:2]),
    "+ multicast": ("physical", EVERYTHING[:3]),
    "+ ports": ("physical", EVERYTHING),
}
"""What is charged, each step on top of those before it: an accounting and its options."""
MIB = 2**20
LANES = 256 * np.arange(1, 17)
PORTS = (4, 2, 1)


def energy_table(workloads: Workloads) -> pd.DataFrame:
    """Return FuseMax's energy relative to FLAT's, one row a node, step, model and length.

    Columns: node, charged, model, length, flat_pj, fusemax_pj, relative_energy, speedup.

    >>> table = energy_table(select_workloads(["BERT"], ["4K"])).set_index(["node", "charged"])
    >>> float(table.relative_energy["7nm", "+ leakage"]) < float(
    ...     table.relative_energy["7nm", "registers of all elements"])
    True
    """
    parts = []
    for node in NODES:
        for step, (accounting, include) in STEPS.items():
            flat, fused = (
                evaluate(_design(name, node), workloads.attention, accounting=accounting,
                         include=include)
                for name in DESIGNS
            )  # fmt: skip
            table = pd.DataFrame(workloads.labels, columns=["model", "length"])
            table.insert(0, "charged", step)
            table.insert(0, "node", node)
            table["flat_pj"], table["fusemax_pj"] = flat.energy_pj, fused.energy_pj
            table["relative_energy"] = table["fusemax_pj"] / table["flat_pj"]
            table["speedup"] = flat.seconds / fused.seconds
            parts.append(table)
    return pd.concat(parts, ignore_index=True)


def share_table(workloads: Workloads) -> pd.DataFrame:
    """Return where the energy goes with everything charged.

    Columns: node, design, part (of `PARTS`), model, length, energy_pj.
    """
    rows = []
    for node in NODES:
        for name in DESIGNS:
            found = evaluate(_design(name, node), workloads.attention, include=EVERYTHING)
            for component, energy in found.energy_by_component_pj.items():
                assert energy is not None, component
                part = _part(component)
                rows += [
                    {"node": node, "design": name, "part": part, "model": model, "length": length,
                     "energy_pj": float(one)}
                    for (model, length), one in zip(workloads.labels, energy, strict=True)
                ]  # fmt: skip
    keys = ["node", "design", "part", "model", "length"]
    return pd.DataFrame(rows).groupby(keys, sort=False, as_index=False).sum()


def area_table(workloads: Workloads) -> pd.DataFrame:
    """Return designs on FLAT's area: FuseMax with a larger buffer, FLAT with other splits.

    Columns: node, contender, buffer_mib, lanes, area_mm2; means over the points, of FuseMax on
    this area against the contender: speedup, relative_energy. FLAT's lanes are swept in 256s, the
    buffer takes what is left, in MiB; of the splits, the fastest and the least energy are kept.
    """
    parts = []
    for node in NODES:
        published = _run("flat", node, workloads)
        budget = _first(published.area_um2)
        buffer = _largest_buffer("fusemax", node, budget, 256)
        fused = _run("fusemax", node, workloads, {"buffer.bytes": buffer * MIB})
        rows = [
            _contender(node, "FLAT as published", published, fused),
            _contender(node, "FuseMax on FLAT's area", fused, fused),
        ]
        splits = []
        for lanes in LANES:
            left = _largest_buffer("flat", node, budget, int(lanes))
            if left:
                found = _run(
                    "flat", node, workloads,
                    {"buffer.bytes": left * MIB, "array_1d.lanes": float(lanes)},
                )  # fmt: skip
                splits.append(_contender(node, "", found, fused))
        fastest = min(splits, key=lambda row: row["speedup"])
        frugal = max(splits, key=lambda row: row["relative_energy"])
        rows += [
            fastest | {"contender": "FLAT, its fastest split"},
            frugal | {"contender": "FLAT, its split of least energy"},
        ]
        parts.append(pd.DataFrame(rows))
    return pd.concat(parts, ignore_index=True)


def port_table(workloads: Workloads) -> pd.DataFrame:
    """Return times by the ports of the buffer at 45 nm, and with the cycle that CACTI gives it.

    Columns: ports, cycle, flat_port_ns, fusemax_port_ns; means: speedup, utilization of the 2D
    array, and how much longer each takes than with ports that never bind.
    """
    rows = []
    free = {name: evaluate(_design(name, "45nm"), workloads.attention) for name in DESIGNS}
    for ports, slow in (*((ports, False) for ports in PORTS), (1, True)):
        row: dict[str, Any] = {"ports": ports, "cycle": "CACTI's" if slow else "the clock's"}
        found: dict[str, Evaluation] = {}
        for name in DESIGNS:
            settings = {"buffer.ports": float(ports)}
            hertz = _first(free[name].parameters["clock_hz"])
            if slow:
                hertz = 1e9 / _cycle_ns(free[name])
                settings["buffer.port_hz"] = hertz
            found[name] = evaluate(
                _design(name, "45nm"), workloads.attention, include=["ports"], set=settings
            )
            row[f"{name}_port_ns"] = 1e9 / hertz
            row[f"{name}_slowdown"] = float(np.mean(found[name].seconds / free[name].seconds))
            row[f"{name}_utilization"] = float(np.mean(found[name].utilization["array_2d"]))
        row["speedup"] = float(np.mean(found["flat"].seconds / found["fusemax"].seconds))
        rows.append(row)
    return pd.DataFrame(rows)


def _design(name: str, node: str) -> Any:
    return load_design(name, architecture=f"{name}-{node}")


def _run(
    name: str, node: str, workloads: Workloads, settings: Mapping[str, float] | None = None
) -> Evaluation:
    return evaluate(_design(name, node), workloads.attention, include=EVERYTHING, set=settings)


def _first(value: Any) -> float:
    """A parameter that is the same at every point."""
    return float(np.ravel(value)[0])


def _cycle_ns(found: Evaluation) -> float:
    sizes = {
        "bytes": _first(found.parameters["buffer.bytes"]),
        "width_bits": 8 * _first(found.parameters["buffer.access_bytes"]),
        "ports": 1,
    }
    return float(find_cost_model("45nm").price("sram", "lstp", "cycle_ns", sizes).value)


def _largest_buffer(name: str, node: str, budget_um2: float, lanes: int) -> int:
    """The largest buffer in whole MiB whose design is within an area; 0 if none is."""
    sizes = np.arange(8, 49)
    shape = {"B": 1, "H": 1, "M": 1024, "P": 1024, "E": 64, "F": 64}
    found = evaluate(
        _design(name, node), shape,
        set={"buffer.bytes": sizes * MIB, "array_1d.lanes": float(lanes)},
    )  # fmt: skip
    fits = sizes[np.asarray(found.area_um2) <= budget_um2 * (1 + 1e-9)]
    return int(fits[-1]) if len(fits) else 0


def _contender(node: str, label: str, found: Evaluation, fused: Evaluation) -> dict[str, Any]:
    assert fused.energy_pj is not None and found.energy_pj is not None
    return {
        "node": node,
        "contender": label,
        "buffer_mib": _first(found.parameters["buffer.bytes"]) / MIB,
        "lanes": int(_first(found.parameters["array_1d.lanes"])),
        "area_mm2": _first(found.area_um2) / 1e6,
        "speedup": float(np.mean(found.seconds / fused.seconds)),
        "relative_energy": float(np.mean(fused.energy_pj / found.energy_pj)),
    }


PARTS = ("operations", "registers", "buffer", "DRAM", "leakage", "wires")


def _part(component: str) -> str:
    end = component.rsplit(".", 1)[-1]
    if end == "leakage":
        return "leakage"
    if end in ("interconnect", "multicast"):
        return "wires"
    if ".operations." in component:
        return "operations"
    return {"dram": "DRAM", "buffer": "buffer"}.get(component, "registers")


def draw_energy(table: pd.DataFrame) -> Figure:
    """Return a figure of the mean relative energy, step by step, at each node."""
    figure, axes = new_figure(1, 1, 7.2, 3.2)
    axis = axes[0][0]
    for place, node in enumerate(NODES):
        means = table[table["node"] == node].groupby("charged", sort=False)["relative_energy"]
        heights = [float(means.mean()[step]) for step in STEPS]
        left = np.arange(len(STEPS)) + (place - 0.5) * 0.42
        bars = axis.bar(left, heights, 0.4, color=PALETTE[(4, 1)[place]], label=f"{node[:-2]} nm")
        axis.bar_label(bars, [f"{100 * h:.1f}" for h in heights], fontsize=7, padding=2)
    labels = ["as published", "registers of\nall elements", *list(STEPS)[2:]]
    axis.set_xticks(range(len(STEPS)), labels)
    axis.set_yticks(np.arange(0, 1.01, 0.2), [f"{p}" for p in range(0, 101, 20)])
    axis.set_ylim(0, 1.05)
    axis.set_ylabel("energy of FuseMax / FLAT (%)")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def draw_shares(table: pd.DataFrame) -> Figure:
    """Return a figure of the designs' energy by part, each over FLAT's at its node."""
    figure, axes = new_figure(1, 1, 7.2, 3.0)
    axis = axes[0][0]
    sums = table.groupby(["node", "design", "part"], sort=False)["energy_pj"].sum()
    labels = []
    for place, (node, name) in enumerate((n, d) for n in NODES for d in DESIGNS):
        whole = sums[node, "flat"].sum()
        bottom = 0.0
        for part, colour in zip(PARTS, (4, 2, 3, 1, 5, 6), strict=True):
            height = float(sums.get((node, name, part), 0.0)) / whole
            axis.barh(
                -place, height, 0.7, bottom, color=PALETTE[colour], label="" if place else part
            )
            bottom += height
        labels.append(f"{'FLAT' if name == 'flat' else 'FuseMax'}, {node[:-2]} nm")
    axis.set_yticks([-place for place in range(len(labels))], labels)
    axis.grid(axis="x")
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("energy, all points together, over FLAT's at the node")
    figure.legend(loc="outside upper center", ncols=len(PARTS))
    return figure


def draw_ports(table: pd.DataFrame) -> Figure:
    """Return a figure of the 2D array's utilisation by the ports of the buffer."""
    figure, axes = new_figure(1, 1, 5.2, 3.0)
    axis = axes[0][0]
    for place, name in enumerate(DESIGNS):
        heights = table[f"{name}_utilization"].to_numpy()
        left = np.arange(len(table)) + (place - 0.5) * 0.42
        label = "FLAT" if name == "flat" else "FuseMax"
        bars = axis.bar(left, heights, 0.4, color=PALETTE[(0, 4)[place]], label=label)
        axis.bar_label(bars, [f"{100 * h:.1f}" for h in heights], fontsize=7, padding=2)
    labels = [
        f"{row['ports']} port{'s' if row['ports'] > 1 else ''}, "
        + ("CACTI's\ncycle" if row["cycle"] == "CACTI's" else "each\nclock")
        for row in table.to_dict("records")
    ]
    axis.set_xticks(range(len(table)), labels)
    axis.set_yticks(np.arange(0, 1.01, 0.2), [f"{p}" for p in range(0, 101, 20)])
    axis.set_ylim(0, 1.1)
    axis.set_ylabel("2D array used (%), 45 nm")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def run(
    out: Path, *, models: Sequence[str] | None = None, lengths: Sequence[str] | None = None
) -> Path:
    """Write the tables, the figures and a report under ``out``; return the report's path.

    Raises:
        EinfuseError: no such model or length, or a folder that cannot be written.
    """
    workloads = select_workloads(models, lengths)
    energy, shares = energy_table(workloads), share_table(workloads)
    areas, ports = area_table(workloads), port_table(workloads)
    for name, table in (("energy", energy), ("shares", shares), ("area", areas), ("ports", ports)):
        write_table(out / f"{name}.csv", table)
    for name, figure in (
        ("energy", draw_energy(energy)),
        ("shares", draw_shares(shares)),
        ("ports", draw_ports(ports)),
    ):
        with undisturbed():
            save_figure(figure, out, name)
    text = report(energy, shares, areas, ports, list(STEPS), workloads.models, workloads.lengths)
    path = out / "report.md"
    write_text(path, text)
    return path
