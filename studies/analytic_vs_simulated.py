"""What the analytic model leaves out, by the event simulation: waits, drain, memories' ports.

With nothing charged the simulation equals the analytic model (`pipelined` composition); then one
overhead after another is charged, and idle time is told apart by its cause. Two questions follow:
how fast the buffer has to be for the published utilisation, and how many epochs have to lie between
a tile's values and their use for the array's drain to be hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from einfuse.einsum.errors import EinfuseError
from einfuse.mapper.design import Design, load_design
from einfuse.mapper.pipeline import Phase
from einfuse.simulator.overheads import Overheads, find_overheads
from einfuse.simulator.program import CAUSES
from einfuse.simulator.simulation import Simulation, simulate

from .files import write_table, write_text
from .plot import PALETTE, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DESIGNS = ("unfused", "flat", "fusemax-cascade", "fusemax-architecture", "fusemax")
LENGTHS = (2**12, 2**16, 2**20)
STEPS = ("nothing", "dependencies", "drain", "bandwidth", "buffering")
"""What is charged, each step on top of those before it."""
LINES = (0.125, 0.25, 0.5, 1, 2, 4, 8)
"""Lines of the buffer (512 bytes) a cycle."""
STRETCHES = (1, 2, 3, 4)
"""How many epochs lie between the stages of a tile where the design has one."""

_COLOURS = {"busy": PALETTE[3], "dependency": PALETTE[5], "unit": PALETTE[0],
            "port": PALETTE[6], "bandwidth": PALETTE[4], "capacity": PALETTE[1]}  # fmt: skip


def overhead_table(lengths: Sequence[int] = LENGTHS) -> pd.DataFrame:
    """Return cycles and idle time, by design, length and what is charged.

    Columns: design, length, charged, cycles, analytic_cycles, ratio; for each unit its
    utilization, and the shares of time that it is busy and idle by cause.

    >>> table = overhead_table([4096]).set_index(["design", "charged"])
    >>> float(table.ratio["fusemax", "nothing"])
    1.0
    """
    rows = []
    for name in DESIGNS:
        for length in lengths:
            for number, step in enumerate(STEPS):
                found = _run(load_design(name), length, find_overheads(STEPS[1 : number + 1]))
                rows.append({"design": name, "length": length, "charged": step, **_row(found)})
    return pd.DataFrame(rows)


def bandwidth_table(length: int) -> pd.DataFrame:
    """Return FuseMax's utilisation with finite bandwidths of its buffer.

    Columns: design, length, lines_per_cycle, bandwidth_bytes_per_s; then as in `overhead_table`.
    """
    rows = []
    for name in ("fusemax", "fusemax-architecture"):
        design = load_design(name)
        values = design.architecture.values()
        line, clock = (float(values[path] or 0) for path in ("buffer.access_bytes", "clock_hz"))
        for lines in LINES:
            speed = lines * line * clock
            found = _run(
                design, length, Overheads(bandwidth=True), {"buffer.bandwidth_bytes_per_s": speed}
            )
            rows.append({"design": name, "length": length, "lines_per_cycle": lines,
                         "bandwidth_bytes_per_s": speed, **_row(found)})  # fmt: skip
    return pd.DataFrame(rows)


def distance_table(length: int) -> pd.DataFrame:
    """Return what the drain costs FuseMax with more epochs between the stages of a tile.

    Each in the design's phases, and in one phase, in which the array goes through its Einsums on
    several tiles without waiting for the end of a phase of the vector unit.
    Columns: design, length, phases, stretch; then as in `overhead_table`.
    """
    design = load_design("fusemax")
    rows = []
    for phases, one in (("as published", design), ("one phase", merged(design))):
        for times in STRETCHES:
            found = _run(stretched(one, times), length, Overheads(drain=True))
            rows.append({"design": design.name, "length": length, "phases": phases,
                         "stretch": times, **_row(found)})  # fmt: skip
    return pd.DataFrame(rows)


def merged(design: Design) -> Design:
    """Return the design with the phases of each stage in one, its stalls left out.

    >>> len(merged(load_design("fusemax")).stages[0].phases)
    1
    """
    stages = []
    for stage in design.stages:
        units: dict[str, tuple[str, ...]] = {}
        for phase in stage.phases:
            if isinstance(phase, Phase):
                for unit, einsums in phase.einsums:
                    units[unit] = (*units.get(unit, ()), *einsums)
        stages.append(replace(stage, phases=(Phase(tuple(units.items())),)))
    return replace(design, stages=tuple(stages))


def stretched(design: Design, times: int) -> Design:
    """Return the design with so many times the epochs between the stages of a tile.

    >>> dict(stretched(load_design("fusemax"), 2).stages[0].offsets)["RNV"]
    6
    """
    return replace(
        design,
        stages=tuple(
            replace(stage, offsets=tuple((name, times * offset) for name, offset in stage.offsets))
            for stage in design.stages
        ),
    )


def _run(
    design: Design, length: int, overheads: Overheads, set: Mapping[str, float] | None = None
) -> Simulation:
    shape = {"B": 1, "H": 1, "M": length, "P": length, "E": 64, "F": 64}
    return simulate(design, shape, overheads=overheads, set=set)


def _row(found: Simulation) -> dict[str, float]:
    """The columns that all tables share."""
    analytic = float(found.analytic.cycles)
    row = {"cycles": found.cycles, "analytic_cycles": analytic, "ratio": found.cycles / analytic}
    for unit, used in found.utilization.items():
        row[f"utilization_{unit}"] = used
        row[f"busy_{unit}"] = found.busy_cycles[unit] / found.cycles
        for cause in CAUSES:
            row[f"{cause}_{unit}"] = found.stalls[unit][cause] / found.cycles
    return row


def draw_overheads(table: pd.DataFrame) -> Figure:
    """Return the figure of the 2D array's time by cause, for the longest length of a table."""
    rows = table[table["length"] == table["length"].max()]
    figure, axes = new_figure(1, len(DESIGNS), 11, 3.6)
    for axis, name in zip(axes[0], DESIGNS, strict=True):
        own = rows[rows["design"] == name].reset_index(drop=True)
        bottom = own["ratio"] * 0
        for part, colour in _COLOURS.items():
            height = own[f"{part}_array_2d"] * own["ratio"]
            axis.bar(own.index, height, 0.7, bottom, color=colour, label=part)
            bottom = bottom + height
        for place, ratio in enumerate(own["ratio"]):
            axis.text(place, ratio + 0.03, f"{ratio:.2f}", ha="center", fontsize=7.5)
        steps = [f"+ {step}" if place else step for place, step in enumerate(own["charged"])]
        axis.set_xticks(own.index, steps, rotation=55, ha="right", fontsize=8)
        axis.set_title(name)
    axes[0][0].set_ylabel("cycles, relative to the analytic model")
    axes[0][0].set_ylim(0, 1.1 * rows["ratio"].max())
    handles, labels = axes[0][0].get_legend_handles_labels()
    used = [n for n, part in enumerate(labels) if (rows[f"{part}_array_2d"] > 0.002).any()]
    words = {"busy": "2D array busy"} | {c: f"waits for {c}" for c in CAUSES}
    words["unit"] = "waits for the other unit (in lockstep)"
    figure.legend(
        [handles[n] for n in used], [words[labels[n]] for n in used], loc="outside upper center",
        ncols=len(used),
    )  # fmt: skip
    return figure


def draw_utilization(table: pd.DataFrame, by: str, column: str, label: str) -> Figure:
    """Return the figure of the 2D array's utilisation against a column, a line for each ``by``."""
    figure, axes = new_figure(1, 1, 4.6, 3.2)
    axis = axes[0][0]
    for (name, rows), colour in zip(
        table.groupby(by, sort=False), (PALETTE[4], PALETTE[1]), strict=False
    ):
        places = range(len(rows))
        axis.plot(places, rows["utilization_array_2d"], marker="o", color=colour, label=str(name))
        axis.set_xticks(places, [f"{value:g}" for value in rows[column]])
    axis.set_xlabel(label)
    axis.set_ylabel("utilization of the 2D array")
    axis.set_ylim(0, 1.05)
    axis.legend(loc="best")
    return figure


def run(
    out: Path, *, models: Sequence[str] | None = None, lengths: Sequence[str] | None = None
) -> Path:
    """Write the tables, the figures and a report under ``out``; return the report's path.

    Raises:
        EinfuseError: models are asked for (there is one head), or a length is no size.
    """
    if models:
        raise EinfuseError("the study 'analytic-vs-simulated' runs one head: it has no --model")
    asked = sorted({_length(text) for text in lengths or ()}) or list(LENGTHS)
    overheads = overhead_table(asked)
    bandwidths, distances = bandwidth_table(asked[-1]), distance_table(asked[-1])
    write_table(out / "overheads.csv", overheads)
    write_table(out / "buffer-bandwidth.csv", bandwidths)
    write_table(out / "distance.csv", distances)
    save_figure(draw_overheads(overheads), out, "overheads")
    by_bandwidth = draw_utilization(
        bandwidths, "design", "lines_per_cycle", "lines of the buffer (512 bytes) a cycle"
    )
    save_figure(by_bandwidth, out, "buffer-bandwidth")
    by_distance = draw_utilization(
        distances, "phases", "stretch", "epochs between the stages of a tile, the drain charged"
    )
    save_figure(by_distance, out, "distance")
    path = out / "report.md"
    write_text(path, _report(overheads, bandwidths, distances))
    return path


def _report(overheads: pd.DataFrame, bandwidths: pd.DataFrame, distances: pd.DataFrame) -> str:
    length = int(overheads["length"].max())
    lines = [
        "# The analytic model against the simulation",
        "",
        f"One head of {length} queries and keys, E = F = 64. Cycles relative to the analytic "
        "model, as one overhead after another is charged; all lengths are in `overheads.csv`.",
        "",
        f"| design | {' | '.join(('nothing', *(f'+ {step}' for step in STEPS[1:])))} |",
        "|---" * (len(STEPS) + 1) + "|",
    ]
    rows = overheads[overheads["length"] == length]
    for name in DESIGNS:
        own = rows[rows["design"] == name].set_index("charged")["ratio"]
        lines.append(f"| {name} | {' | '.join(f'{own[step]:.4f}' for step in STEPS)} |")
    lines += [
        "",
        "![2D array's time by cause](overheads.png)",
        "",
        "## How fast the buffer has to be",
        "",
        "Utilisation of the 2D array, all accesses of the buffer through one port.",
        "",
        "| lines a cycle | fusemax | fusemax-architecture |",
        "|---|---|---|",
    ]
    used = bandwidths.pivot(
        index="lines_per_cycle", columns="design", values="utilization_array_2d"
    )
    for speed, row in used.iterrows():
        lines.append(f"| {speed:g} | {row['fusemax']:.3f} | {row['fusemax-architecture']:.3f} |")
    lines += [
        "",
        "![buffer's bandwidth](buffer-bandwidth.png)",
        "",
        "## What hides the drain",
        "",
        "What leaves the array comes out as many cycles later as it has rows: 256, while an epoch "
        "has work for 138. The maxima of a tile are used an epoch after its scores, the values in "
        "the epoch after theirs. With more epochs between, other tiles are worked on meanwhile; "
        "each asks for room for more tiles under way. In one phase the array goes on with its "
        "next Einsum on another tile, whether or not the vector unit is through with a phase: that "
        "hides part of the drain, and the distance the rest.",
        "",
        "| epochs between stages | cycles, phases as published | cycles, in one phase |",
        "|---|---|---|",
    ]
    ratios = distances.pivot(index="stretch", columns="phases", values="ratio")
    for times, row in ratios.iterrows():
        lines.append(f"| {times} | {row['as published']:.4f} | {row['one phase']:.4f} |")
    return "\n".join([*lines, "", "![distance](distance.png)", ""])


def _length(text: str) -> int:
    units = {"K": 2**10, "M": 2**20}
    digits, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    if not digits.isdecimal() or not int(digits) or int(digits) * unit % 256:
        raise EinfuseError(f"--length: expected a multiple of 256 such as 4K, found '{text}'")
    return int(digits) * unit
