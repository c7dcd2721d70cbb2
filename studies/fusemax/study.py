"""The evaluation of the FuseMax paper (MICRO 2024): Figures 6 to 12 and the headline numbers.

Five designs, four models, six lengths: attention alone, and one encoder layer (attention and the
six GEMMs). Tables as CSV, figures as PNG and SVG, and a report that ties them together.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from rich.console import Console

from einfuse.einsum import EinfuseError, closest
from einfuse.files import require_folder, undisturbed, write_table, write_text
from einfuse.mapper import load_design
from einfuse.simulator import Evaluation, evaluate

from . import figures
from .report import report

ACCOUNTINGS = ("published", "published-all-registers", "physical")
ARRAY_2D_EINSUMS = ("QK", "LM", "SLN", "SLD", "SLNV", "AV")


@cache
def paper() -> dict[str, Any]:
    """Return the workloads and the claims of the paper."""
    path = Path(__file__).parents[1] / "data" / "fusemax.yaml"
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


@dataclass(frozen=True, slots=True)
class Workloads:
    """Models x lengths, in the paper's order, as flat arrays."""

    models: tuple[str, ...]
    lengths: tuple[str, ...]

    @property
    def labels(self) -> list[tuple[str, str]]:
        """(model, length) of each point."""
        return [(model, length) for model in self.models for length in self.lengths]

    def column(self, key: str) -> Any:
        """A size of every point: D, E, H or S of the model."""
        return np.array([paper()["models"][model][key] for model, _ in self.labels])

    @property
    def length(self) -> Any:
        """The sequence length of every point."""
        return np.array([paper()["lengths"][length] for _, length in self.labels])

    @property
    def attention(self) -> dict[str, Any]:
        """The shape of attention."""
        size = self.column("E")
        return {"B": paper()["batch"], "H": self.column("H"), "M": self.length, "P": self.length,
                "E": size, "F": size}  # fmt: skip

    @property
    def layer(self) -> dict[str, Any]:
        """The shape of the layer's GEMMs."""
        return {"B": paper()["batch"], "H": self.column("H"), "P": self.length,
                "E": self.column("E"), "D": self.column("D"), "S": self.column("S")}  # fmt: skip


def select_workloads(
    models: Sequence[str] | None = None, lengths: Sequence[str] | None = None
) -> Workloads:
    """Return the workloads of some models and lengths (None: all), in the paper's order.

    >>> select_workloads(["BERT"], ["4K"]).labels
    [('BERT', '4K')]
    """
    return Workloads(
        _chosen("model", models, paper()["models"]), _chosen("length", lengths, paper()["lengths"])
    )


def _chosen(kind: str, wanted: Sequence[str] | None, known: Mapping[str, Any]) -> tuple[str, ...]:
    upper = {name.upper(): name for name in known}
    for name in wanted or ():
        if name.upper() not in upper:
            raise EinfuseError(f"--{kind}: no {kind} '{name}'{closest(name, known)}")
    names = {upper[name.upper()] for name in wanted or ()}
    return tuple(name for name in known if not wanted or name in names)


def attention_table(workloads: Workloads, accounting: str) -> pd.DataFrame:
    """Attention on the five designs: one row a design, model and length."""
    return pd.concat(
        [
            _rows(name, workloads, evaluate(load_design(name), workloads.attention,
                                            accounting=accounting))
            for name in paper()["designs"]
        ],
        ignore_index=True,
    )  # fmt: skip


def _rows(design: str, workloads: Workloads, result: Evaluation) -> pd.DataFrame:
    table = pd.DataFrame(workloads.labels, columns=["model", "length"])
    table.insert(0, "design", design)
    table["accounting"] = result.accounting
    table["traffic_bytes"] = result.dram_bytes
    table["latency_s"] = result.seconds
    table["energy_pj"] = result.energy_pj
    table["utilization_array_2d"] = result.utilization["array_2d"]
    table["utilization_array_1d"] = result.utilization["array_1d"]
    for name, one in result.per_einsum.items():
        if one.unit == "array_2d":
            table[f"utilization_array_2d_{name}"] = one.utilization
    table["bound"] = result.bound
    for component, energy in result.energy_by_component_pj.items():
        table[f"energy_{component.replace('.operations', '').replace('.', '_')}_pj"] = energy
    return table


def layer_table(workloads: Workloads, attention: pd.DataFrame, accounting: str) -> pd.DataFrame:
    """One encoder layer: attention and the six GEMMs on the design's hardware."""
    gemms: dict[str, Evaluation] = {}
    parts = []
    for name, design in paper()["designs"].items():
        hardware = design["layer"]
        if hardware not in gemms:
            gemms[hardware] = evaluate(
                load_design(hardware), workloads.layer, accounting=accounting
            )
        own = attention[attention["design"] == name].reset_index(drop=True)
        part = own[["design", "model", "length", "accounting"]].copy()
        for column, value in (
            ("traffic_bytes", gemms[hardware].dram_bytes),
            ("latency_s", gemms[hardware].seconds),
            ("energy_pj", gemms[hardware].energy_pj),
        ):
            part[f"gemms_{column}"] = value
            part[column] = own[column] + value
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def ratio_table(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Speed-up over and energy relative to a baseline design, row by row."""
    keys = ["model", "length"]
    base = table[table["design"] == baseline][[*keys, "latency_s", "energy_pj"]]
    joined = table.merge(base, on=keys, suffixes=("", "_baseline"), sort=False)
    result = joined[["design", *keys, "accounting"]].copy()
    result["baseline"] = baseline
    result["speedup"] = joined["latency_s_baseline"] / joined["latency_s"]
    result["relative_energy"] = joined["energy_pj"] / joined["energy_pj_baseline"]
    return result


def headline_table(
    attention: Mapping[str, pd.DataFrame], layer: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """The paper's headline numbers beside ours, under every accounting."""
    rows = []
    for claim in paper()["headlines"]:
        column = "speedup" if claim["quantity"] == "speed-up" else "relative_energy"
        for accounting in ACCOUNTINGS:
            table = (attention if claim["part"] == "attention" else layer)[accounting]
            ratios = ratio_table(table, claim["baseline"])
            values = ratios[ratios["design"] == "fusemax"][column].to_numpy()
            arithmetic = float(values.mean())
            rows.append(
                {
                    "quantity": claim["quantity"],
                    "part": claim["part"],
                    "baseline": claim["baseline"],
                    "accounting": accounting,
                    "paper_as_printed": claim["paper"],
                    "paper_tables_arithmetic_mean": claim["arithmetic"],
                    "here_arithmetic_mean": arithmetic,
                    "deviation_percent": 100 * (arithmetic / claim["arithmetic"] - 1),
                    "paper_tables_geometric_mean": claim["geometric"],
                    "here_geometric_mean": float(np.exp(np.log(values).mean())),
                    "here_minimum": float(values.min()),
                    "here_maximum": float(values.max()),
                }
            )
    return pd.DataFrame(rows)


def design_space_table(models: Sequence[str]) -> pd.DataFrame:
    """Area and latency of FuseMax over array sizes, at the paper's length."""
    length = paper()["lengths"][paper()["design_space_length"]]
    sizes = np.array(paper()["array_sizes"])
    parts = []
    for model in models:
        size = paper()["models"][model]["E"]
        shape = {"B": paper()["batch"], "H": paper()["models"][model]["H"], "M": length,
                 "P": length, "E": size, "F": size}  # fmt: skip
        result = evaluate(
            load_design("fusemax-design-space"),
            shape,
            accounting="published",
            set={"array_2d.rows": sizes},
        )
        assert result.area_um2 is not None
        parts.append(
            pd.DataFrame(
                {
                    "model": model,
                    "length": paper()["design_space_length"],
                    "array_rows": sizes,
                    "traffic_bytes": result.dram_bytes,
                    "dram_s": result.resource_seconds["dram"],
                    "array_2d_s": result.resource_seconds["array_2d"],
                    "array_1d_s": result.resource_seconds["array_1d"],
                    "latency_s": result.seconds,
                    "array_2d_area_um2": result.area_by_component_um2["array_2d"],
                    "area_um2": result.area_um2,
                    "buffer_bytes": result.parameters["buffer.bytes"],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def run(
    out: Path, *, models: Sequence[str] | None = None, lengths: Sequence[str] | None = None
) -> Path:
    """Write every table, figure and the report under ``out``; return the report's path."""
    from rich.progress import Progress

    workloads = select_workloads(models, lengths)
    console = Console(width=None if sys.stdout.isatty() else 110)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("fusemax", total=13)

        def step(name: str, work: Callable[[], Any]) -> Any:
            progress.update(task, description=name)
            with undisturbed():
                result = work()
            progress.advance(task)
            return result

        started = time.perf_counter()
        attention = {
            accounting: step(
                f"attention, {accounting}", partial(attention_table, workloads, accounting)
            )
            for accounting in ACCOUNTINGS
        }
        layer = {
            accounting: layer_table(workloads, attention[accounting], accounting)
            for accounting in ACCOUNTINGS
        }
        space = step("design space", lambda: design_space_table(workloads.models))
        seconds = time.perf_counter() - started
        headline = headline_table(attention, layer)
        tables = {
            "headline": headline,
            "attention": pd.concat(attention.values(), ignore_index=True),
            "layer": pd.concat(layer.values(), ignore_index=True),
            "figure-6-utilization": _keep(attention["published"], "utilization_array"),
            "figure-7-time-by-einsum": _keep(
                attention["published"][lambda t: t["design"] == "fusemax"], "utilization_array_2d"
            ).dropna(axis=1, how="all"),
            "figure-8-attention-speedup": _ratios(attention, "speedup"),
            "figure-9-attention-energy": _ratios(attention, "relative_energy"),
            "figure-10-layer-speedup": _ratios(layer, "speedup"),
            "figure-11-layer-energy": _ratios(layer, "relative_energy"),
            "figure-12-design-space": space,
        }
        for name in ("tables", "figures"):
            require_folder(out / name)
        for name, table in tables.items():
            write_table(out / "tables" / f"{name}.csv", table)
        folder, labels = out / "figures", {n: d["label"] for n, d in paper()["designs"].items()}
        data = attention["published"]
        step("figure 6", lambda: figures.utilization(data, labels, folder))
        step("figure 7", lambda: figures.time_by_einsum(data, ARRAY_2D_EINSUMS, folder))
        for number, part, table in ((8, "attention", attention), (10, "layer", layer)):
            ratios = ratio_table(table["published"], "unfused")
            step(f"figure {number}", partial(figures.speedup, ratios, labels, number, part, folder))
            step(
                f"figure {number + 1}",
                partial(figures.energy, ratios, labels, number + 1, part, folder),
            )
        step("figure 12", lambda: figures.design_space(space, folder))
        step("accountings", lambda: figures.accountings(headline, folder))
        text = report(headline, space, workloads.models, workloads.lengths, seconds, paper())
        path = out / "report.md"
        step("report", lambda: write_text(path, text))
    whole = len(workloads.labels) == len(paper()["models"]) * len(paper()["lengths"])
    _print_headline(console, headline, whole=whole)
    total, hours = time.perf_counter() - started, paper()["artifact_hours"]
    ratio = (
        f": {hours * 3600 / total:,.0f} times as fast as the authors' artifact (about {hours} h)"
        if whole
        else ""
    )
    console.print(
        f"{len(workloads.labels) * 7 * len(ACCOUNTINGS) + len(space)} evaluations in "
        f"{seconds:.2f} s, with tables, figures and report {total:.1f} s{ratio}. All of it is in "
        f"{out}",
        highlight=False,
    )
    return path


def _keep(table: pd.DataFrame, prefix: str) -> pd.DataFrame:
    columns = [column for column in table.columns if column.startswith(prefix)]
    return table[["design", "model", "length", *columns]]


def _ratios(tables: Mapping[str, pd.DataFrame], column: str) -> pd.DataFrame:
    parts = [
        ratio_table(table, baseline)[
            ["design", "model", "length", "accounting", "baseline", column]
        ]
        for table in tables.values()
        for baseline in ("unfused", "flat")
    ]
    return pd.concat(parts, ignore_index=True)


def _print_headline(console: Console, headline: pd.DataFrame, *, whole: bool) -> None:
    """One line a claim: the paper, here, and here under the other accountings."""
    if not whole:
        console.print("A part of the paper's points: its means are over all 24 of them.")
    from rich import box
    from rich.table import Table

    table = Table(
        title="FuseMax against its baselines, means over models and lengths", box=box.SIMPLE_HEAD
    )
    table.add_column("", no_wrap=True)
    for name in ("paper", "here", "deviation", "geometric", "all registers", "physical"):
        table.add_column(name, justify="right", no_wrap=True)
    for _, claim in headline.groupby(["part", "quantity", "baseline"], sort=False):
        by = {row["accounting"]: row for row in claim.to_dict("records")}
        own = by["published"]
        form = "{:.4f}x" if own["quantity"] == "speed-up" else "{:.2%}"
        word = "over" if own["quantity"] == "speed-up" else "of"
        table.add_row(
            f"{own['part']} {own['quantity']} {word} {own['baseline']}",
            form.format(own["paper_tables_arithmetic_mean"]),
            form.format(own["here_arithmetic_mean"]),
            f"{own['deviation_percent']:+.2f} %" if whole else "",
            form.format(own["here_geometric_mean"]),
            form.format(by["published-all-registers"]["here_arithmetic_mean"]),
            form.format(by["physical"]["here_arithmetic_mean"]),
        )
    console.print(table)
