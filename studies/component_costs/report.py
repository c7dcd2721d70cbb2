"""The report of the study of component costs."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd


def report(
    energy: pd.DataFrame,
    shares: pd.DataFrame,
    areas: pd.DataFrame,
    ports: pd.DataFrame,
    steps: Sequence[str],
    models: Sequence[str],
    lengths: Sequence[str],
) -> str:
    """Return the report, from the tables of `einfuse.studies.component_costs.study`."""
    nodes = list(dict.fromkeys(energy["node"]))
    lines = [
        "# What components cost, and what that does to FuseMax against FLAT",
        "",
        f"Attention of {', '.join(models)} at {', '.join(lengths)}; means are over these points. "
        "45 nm: the published prices, and for what was not published the 45 nm table; 7 nm: every "
        "price from the 7 nm table, sizes and clock as published. `einfuse evaluate --design "
        "fusemax --architecture fusemax-7nm --sources ...` says where each figure comes from.",
        "",
        "## Energy of FuseMax relative to FLAT",
        "",
        f"| charged | {' | '.join(nodes)} |",
        "|---" * (len(nodes) + 1) + "|",
    ]
    means = energy.groupby(["node", "charged"], sort=False)["relative_energy"].mean()
    for step in steps:
        lines.append(
            f"| {step} | {' | '.join(f'{100 * means[node, step]:.2f} %' for node in nodes)} |"
        )
    lines += [
        "",
        "![energy of FuseMax over FLAT](energy.png)",
        "",
        "Leakage follows time, so that it weighs on the slower design. Wires weigh on whoever "
        "moves more words between buffer and lanes for the energy it spends. At 7 nm arithmetic "
        "has become cheaper and DRAM has not, so that FLAT's traffic counts for more.",
        "",
        "![where the energy goes](shares.png)",
        "",
        "| node | design | operations | registers | buffer | DRAM | leakage | wires |",
        "|---|---|---|---|---|---|---|---|",
    ]
    parts = shares.groupby(["node", "design", "part"], sort=False)["energy_pj"].sum()
    columns = ("operations", "registers", "buffer", "DRAM", "leakage", "wires")
    for node, design in dict.fromkeys(zip(shares["node"], shares["design"], strict=True)):
        own = parts[node, design]
        cells = (f"{100 * own.get(part, 0.0) / own.sum():.1f} %" for part in columns)
        lines.append(f"| {node} | {design} | {' | '.join(cells)} |")
    lines += [
        "",
        "## The same area",
        "",
        "All on the area of FLAT as published, with everything charged. FuseMax's buffer grows to "
        "it; FLAT's is split anew between its vector unit and its buffer, under the mappings of "
        "its table (a smaller buffer spills). Speed-up and energy are those of FuseMax on this "
        "area against the contender.",
        "",
        "| node | contender | buffer | lanes | area | speed-up of FuseMax | its energy |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in areas.to_dict("records"):
        lines.append(
            f"| {row['node']} | {row['contender']} | {row['buffer_mib']:.0f} MiB | {row['lanes']} "
            f"| {row['area_mm2']:.1f} mm2 | {row['speedup']:.3f}x "
            f"| {100 * row['relative_energy']:.1f} % |"
        )
    lines += [
        "",
        "## The ports of the buffer",
        "",
        "The paper asks for four ports of 512 bytes. CACTI, run for the buffers with one port, "
        "gives the published prices and areas to all digits, and with four it does not: what was "
        "charged is a buffer of one port, whose cycle is many clocks long.",
        "",
        "| ports | their cycle | FLAT takes | FuseMax takes | FLAT's 2D array | FuseMax's 2D array "
        "| speed-up |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ports.to_dict("records"):
        lines.append(
            f"| {row['ports']} | {row['cycle']}: {row['flat_port_ns']:.2f} and "
            f"{row['fusemax_port_ns']:.2f} ns | {row['flat_slowdown']:.2f}x "
            f"| {row['fusemax_slowdown']:.2f}x | {100 * row['flat_utilization']:.1f} % "
            f"| {100 * row['fusemax_utilization']:.1f} % | {row['speedup']:.2f}x |"
        )
    lines += [
        "",
        "![use of the 2D array by ports](ports.png)",
        "",
        "Left out: standby power of DRAM, distance inside the buffer, routers, contention. The "
        "leakage of 7 nm is a bound from above, the least power of a whole chip; its SRAM has no "
        "leakage figure of its own. Figures marked `recalled` were not read again.",
        "",
    ]
    return "\n".join(lines)
