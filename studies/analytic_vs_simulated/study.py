"""What the analytic model leaves out, by the event simulation: waits, drain, memories' ports.

With nothing charged the simulation equals the analytic model (`pipelined` composition); then one
overhead after another is charged, and idle time is told apart by its cause. Two questions follow:
how fast the buffer has to be for the published utilisation, and how much of the array's drain is
hidden, by sharing the array cycle by cycle and by epochs between a tile's values and their use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from einfuse.einsum import EinfuseError
from einfuse.files import write_table, write_text
from einfuse.mapper import Design, Phase, load_design
from einfuse.simulator import CAUSES, Overheads, Simulation, find_overheads, prepare, simulate
from einfuse.studies.frame.plot import PALETTE, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DESIGNS = ("unfused", "flat", "fusemax-cascade", "fusemax-architecture", "fusemax")
LENGTHS = (2**12, 2**16, 2**20)
STEPS = ("nothing", "dependencies", "drain", "bandwidth", "buffering")
"""What is charged, each step on top of those before it."""
LINES = (0.25, 0.5, 1, 1.5, 2, 2.5, 3, 4)
"""Lines of the buffer (512 bytes) a cycle."""
STRETCHES = (1, 2, 3, 4)
"""How many epochs lie between the stages of a tile where the design has one."""
BINDINGS = {
    "as published": (False, Overheads()),
    "as published, interleaved": (False, Overheads(interleaved=True)),
    "one phase, in turn": (True, Overheads()),
    "one phase, interleaved": (True, Overheads(interleaved=True)),
    "one phase, interleaved, decoupled": (True, Overheads(interleaved=True, decoupled=True)),
}
"""How Einsums share the array: the design's phases or one, and what `Overheads` call it."""

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

    Beside the design as published: its phases in one, interleaved; its drain charged as well; and
    +Architecture. All accesses of the buffer go through one port.
    Columns: case, length, lines_per_cycle, bandwidth_bytes_per_s; then as in `overhead_table`.
    """
    fusemax = load_design("fusemax")
    cases = {
        "fusemax": (fusemax, Overheads(bandwidth=True)),
        "fusemax, one phase, interleaved": (
            merged(fusemax), Overheads(bandwidth=True, interleaved=True),
        ),
        "fusemax, the drain charged": (fusemax, Overheads(bandwidth=True, drain=True)),
        "fusemax-architecture": (load_design("fusemax-architecture"), Overheads(bandwidth=True)),
    }  # fmt: skip
    rows = []
    for case, (design, overheads) in cases.items():
        values = design.architecture.values()
        line, clock = (float(values[path] or 0) for path in ("buffer.access_bytes", "clock_hz"))
        for lines in LINES:
            speed = lines * line * clock
            found = _run(design, length, overheads, {"buffer.bandwidth_bytes_per_s": speed})
            rows.append({"case": case, "length": length, "lines_per_cycle": lines,
                         "bandwidth_bytes_per_s": speed, **_row(found)})  # fmt: skip
    return pd.DataFrame(rows)


def demand_table(length: int) -> pd.DataFrame:
    """Return what the phases of FuseMax ask of its buffer: lines read and written in an epoch.

    Columns: phase, einsums, cycles (of its longest unit), lines_read, lines_written,
    lines_per_cycle; the last row is the whole epoch.

    >>> float(demand_table(2**16)["lines_per_cycle"].max().round(1))  # QK beside RNV
    3.0
    """
    prepared = prepare(load_design("fusemax"), _shape(length))
    point, schedule = prepared.point, prepared.schedules[0][0]
    words = float(point.number("buffer.access_bytes")) / float(point.number("word_bytes"))
    per_tile = schedule.tiles * words
    rows: list[dict[str, str | float]] = []
    for phase in point.design.stages[0].phases:
        if isinstance(phase, Phase):
            names = [name for _, einsums in phase.einsums for name in einsums]
            moved = [t for (e, _, at), t in point.counts.traffic.items()
                     if e in names and at == "buffer"]  # fmt: skip
            longest = max(sum(float(point.cycles[e]) for e in own) for _, own in phase.einsums)
            rows.append({
                "phase": str(len(rows) + 1),
                "einsums": " ".join(names),
                "cycles": longest / schedule.tiles,
                "lines_read": sum(float(t.reads) for t in moved) / per_tile,
                "lines_written": sum(float(t.writes) for t in moved) / per_tile,
            })  # fmt: skip
    table = pd.DataFrame(rows)
    total = table[["cycles", "lines_read", "lines_written"]].sum()
    table.loc[len(table)] = {"phase": "all", "einsums": "", **total}
    table["lines_per_cycle"] = (table["lines_read"] + table["lines_written"]) / table["cycles"]
    return table


def binding_table(length: int) -> pd.DataFrame:
    """Return what the drain costs FuseMax by how the array is shared, and by distance.

    ``drain_paid_cycles`` is what an epoch takes beyond one without drain, of the cycles that values
    take to leave the array (as many as it has rows); ``drain_hidden`` is the share that is not
    paid. +Architecture stands beside it, its published stall instead of the drain and with it.
    Columns: design, length, binding, stretch, epoch_cycles, drain_paid_cycles, drain_hidden; then
    as in `overhead_table`.
    """
    cases: list[tuple[Design, str, int, Overheads]] = []
    for name, (one, overheads) in BINDINGS.items():
        design = merged(load_design("fusemax")) if one else load_design("fusemax")
        charged = replace(overheads, drain=True)
        cases += [(stretched(design, times), name, times, charged) for times in STRETCHES]
    stalls = load_design("fusemax-architecture")
    cases += [
        (stalls, "its published stall", 1, Overheads()),
        (stalls, "every drain", 1, Overheads(drain=True)),
    ]
    free = _run(load_design("fusemax"), length, Overheads())
    rows = []
    for design, name, times, overheads in cases:
        found = _run(design, length, overheads)
        tiles = prepare(design, _shape(length)).schedules[0][0].tiles
        paid = (found.cycles - free.cycles) / tiles
        drain = float(design.architecture.values()["array_2d.rows"] or 0)
        rows.append({"design": design.name, "length": length, "binding": name, "stretch": times,
                     "epoch_cycles": found.cycles / tiles, "drain_paid_cycles": paid,
                     "drain_hidden": 1 - paid / drain, **_row(found)})  # fmt: skip
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
    return simulate(design, _shape(length), overheads=overheads, set=set)


def _shape(length: int) -> dict[str, int]:
    return {"B": 1, "H": 1, "M": length, "P": length, "E": 64, "F": 64}


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
    figure, axes = new_figure(1, 1, 5.6, 4.2)
    axis = axes[0][0]
    colours = (PALETTE[4], PALETTE[2], PALETTE[1], PALETTE[6], PALETTE[3])
    widths = (4.5, 1.5, 1.5, 1.5, 1.5)  # the second may lie on the first
    for (name, rows), colour, marker, width in zip(
        table.groupby(by, sort=False), colours, "osD^v", widths, strict=False
    ):
        axis.plot(
            rows[column], rows["utilization_array_2d"], marker=marker, markersize=width + 2.5,
            color=colour, linewidth=width, label=str(name),
        )  # fmt: skip
    places = sorted(set(table[column]))
    axis.set_xticks(places, [f"{value:g}" for value in places])
    axis.set_xlabel(label)
    axis.set_ylabel("utilization of the 2D array")
    axis.set_ylim(0, 1.05)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8)
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
    longest = asked[-1]
    bandwidths, bindings, demands = (
        bandwidth_table(longest), binding_table(longest), demand_table(longest),
    )  # fmt: skip
    write_table(out / "overheads.csv", overheads)
    write_table(out / "buffer-bandwidth.csv", bandwidths)
    write_table(out / "buffer-demand.csv", demands)
    write_table(out / "binding.csv", bindings)
    save_figure(draw_overheads(overheads), out, "overheads")
    by_bandwidth = draw_utilization(
        bandwidths, "case", "lines_per_cycle", "lines of the buffer (512 bytes) a cycle"
    )
    save_figure(by_bandwidth, out, "buffer-bandwidth")
    by_distance = draw_utilization(
        bindings[bindings["design"] == "fusemax"], "binding", "stretch",
        "epochs between the stages of a tile, the drain charged",
    )  # fmt: skip
    save_figure(by_distance, out, "binding")
    path = out / "report.md"
    write_text(path, _report(overheads, bandwidths, demands, bindings))
    return path


def _report(
    overheads: pd.DataFrame,
    bandwidths: pd.DataFrame,
    demands: pd.DataFrame,
    bindings: pd.DataFrame,
) -> str:
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
        "What the phases of an epoch ask of the buffer, in lines of 256 words: two operands of 256 "
        "words a cycle for the scores, beside them the numerator. In lockstep the buffer has to "
        "serve the busiest phase; with the phases in one, the mean is enough.",
        "",
        "| phase | Einsums | cycles | lines read | written | a cycle |",
        "|---|---|---|---|---|---|",
    ]
    for row in demands.to_dict("records"):
        lines.append(
            f"| {row['phase']} | {row['einsums']} | {row['cycles']:.1f} | {row['lines_read']:.1f} "
            f"| {row['lines_written']:.1f} | {row['lines_per_cycle']:.2f} |"
        )
    used = bandwidths.pivot(index="lines_per_cycle", columns="case", values="utilization_array_2d")
    cases = list(dict.fromkeys(bandwidths["case"]))
    lines += [
        "",
        "Utilisation of the 2D array, all accesses of the buffer through one port:",
        "",
        f"| lines a cycle | {' | '.join(cases)} |",
        "|---" * (len(cases) + 1) + "|",
    ]
    for speed, row in used.iterrows():
        lines.append(f"| {speed:g} | {' | '.join(f'{row[case]:.3f}' for case in cases)} |")
    lines += [
        "",
        "![buffer's bandwidth](buffer-bandwidth.png)",
        "",
        "## What hides the drain",
        "",
        "What leaves the array comes out as many cycles later as it has rows: 256, while an epoch "
        "has work for 138. The maxima of a tile are used an epoch after its scores, the values in "
        "the epoch after theirs. Two things cover the wait: other work of the array meanwhile "
        "(interleaving: the Einsums of a phase alternate on it cycle by cycle; those of a "
        "published phase wait for each other's operands, so that nothing is left to alternate; "
        "with the phases in one they are on other tiles), and more epochs between the stages of a "
        "tile, each of which asks for room for more tiles under way. "
        "*Hidden* is the share of the 256 cycles that an epoch does not pay.",
        "",
        "| design | how the array is shared | epochs between stages | cycles an epoch | drain paid "
        "| hidden | 2D array used |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in bindings.to_dict("records"):
        hidden = row["drain_hidden"]
        lines.append(
            f"| {row['design']} | {row['binding']} | {row['stretch']} | {row['epoch_cycles']:.1f} "
            f"| {row['drain_paid_cycles']:.1f} "
            f"| {f'{100 * hidden:.1f} %' if hidden >= 0 else 'none'} "
            f"| {row['utilization_array_2d']:.3f} |"
        )
    return "\n".join([*lines, "", "![binding](binding.png)", ""])


def _length(text: str) -> int:
    units = {"K": 2**10, "M": 2**20}
    digits, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    if not digits.isdecimal() or not int(digits) or int(digits) * unit % 256:
        raise EinfuseError(f"--length: expected a multiple of 256 such as 4K, found '{text}'")
    return int(digits) * unit
