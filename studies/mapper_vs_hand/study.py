"""Where the search beats the mappings that people wrote, and how.

FuseMax's binding and FLAT's table stand against the fastest mapping that the search finds from the
cascade and the architecture alone, at the same shapes, and at one length against that of the least
product of energy and time. Times are as published by hand; energies are `physical` on both sides.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from einfuse.files import write_table, write_text
from einfuse.mapper import (
    Constraints,
    Design,
    MapSpace,
    Plan,
    SearchResult,
    computes_of,
    find_best,
    load_design,
    to_design,
)
from einfuse.simulator import Evaluation, evaluate, find_objective
from einfuse.studies.frame.plot import PALETTE, new_figure, save_figure
from einfuse.studies.fusemax.study import paper, select_workloads

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOG = logging.getLogger(__name__)
HANDS = {"fusemax": "the FuseMax binding", "flat": "FLAT's table"}
"""Designs that people wrote."""
SECONDS = 10.0
"""For each search of the fastest mapping."""
PRODUCT_SECONDS = 30.0
"""For each search of the least product of energy and time."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A hand mapping and the best one found at a shape."""

    hand: Evaluation
    found: Evaluation
    result: SearchResult
    differs: str

    @property
    def forwarded(self) -> frozenset[str]:
        """The tensors that go from register to register in what was found, if that is not known."""
        plan = self.result.best.plan
        if not isinstance(plan, Plan):
            return frozenset()
        return frozenset[str]().union(*(group.forwarded for group in plan.groups))


def compare(
    design: Design, shape: Mapping[str, int], objective: str = "latency", seconds: float = SECONDS
) -> Comparison:
    """Set a design against the best mapping of its cascade on its architecture.

    >>> shape = {"B": 1, "H": 1, "E": 64, "F": 64, "M": 1024, "P": 1024}
    >>> found = compare(load_design("flat"), shape)
    >>> found.found.seconds <= found.hand.seconds
    True
    """
    space = MapSpace(design.cascade, design.architecture, shape, Constraints(), design.batch)
    result = find_best(space, find_objective(objective, design.architecture), seconds=seconds)
    chosen = to_design(space, result.best.plan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the published pipelines break is the study's matter
        times = evaluate(design, shape, accounting="published")
        energies = evaluate(design, shape)
        found = evaluate(chosen, shape)
    hand = replace(energies, seconds=times.seconds)
    return Comparison(hand, found, result, _differences(design, times, result))


def comparison_table(
    models: Sequence[str] | None = None,
    lengths: Sequence[str] | None = None,
    objective: str = "latency",
    seconds: float = SECONDS,
) -> pd.DataFrame:
    """Return both designs against the search for an objective, by model and length.

    Columns: design, model, length, hand_seconds, found_seconds, speedup, hand_energy_pj,
    found_energy_pj, energy_ratio, product_ratio (found over hand), bound, differs, forwarded,
    search_seconds, optimal, gap.
    """
    rows = []
    for name in HANDS:
        design = load_design(name)
        for model, length in select_workloads(models, lengths).labels:
            sizes, tokens = paper()["models"][model], paper()["lengths"][length]
            shape = {"B": paper()["batch"], "H": sizes["H"], "M": tokens, "P": tokens,
                     "E": sizes["E"], "F": sizes["E"]}  # fmt: skip
            _LOG.info("%s: %s of %s at %s", name, objective, model, length)
            one = compare(design, shape, objective, seconds)
            assert one.hand.energy_pj is not None and one.found.energy_pj is not None
            rows.append(
                {
                    "design": name,
                    "model": model,
                    "length": length,
                    "hand_seconds": float(one.hand.seconds),
                    "found_seconds": float(one.found.seconds),
                    "speedup": float(one.hand.seconds / one.found.seconds),
                    "hand_energy_pj": float(one.hand.energy_pj),
                    "found_energy_pj": float(one.found.energy_pj),
                    "energy_ratio": float(one.found.energy_pj / one.hand.energy_pj),
                    "product_ratio": float(
                        one.found.energy_pj
                        * one.found.seconds
                        / (one.hand.energy_pj * one.hand.seconds)
                    ),
                    "bound": str(one.found.bound),
                    "differs": one.differs,
                    "forwarded": ", ".join(sorted(one.forwarded)),
                    "search_seconds": one.result.seconds,
                    "optimal": one.result.optimal,
                    "gap": one.result.gap,
                }
            )
    return pd.DataFrame(rows)


def _differences(design: Design, hand: Evaluation, result: SearchResult) -> str:
    """What the mapping found does otherwise: sizes, groups, units; nothing if it is the design."""
    plan = result.best.plan
    if not isinstance(plan, Plan):
        return "nothing"
    own = {compute.einsum: compute.unit for compute in computes_of(design.nest)}
    let = dict(design.let)
    parts: list[str] = []
    for rank, size in plan.splits:
        known = let[rank].evaluate(hand.parameters) if rank in let else None
        if known is None or int(np.asarray(known)) != size:
            parts.append(f"{rank} {size}" + ("" if known is None else f" for {int(known)}"))
    if len(plan.groups) > 1:
        cuts = " / ".join(" ".join(group.einsums) for group in plan.groups)
        parts.append(f"{len(plan.groups)} groups: {cuts}")
    moved: dict[str, list[str]] = {}
    for leaf in plan.groups[0].leaves if len(plan.groups) == 1 else ():
        if own.get(leaf.einsum) != leaf.unit:
            moved.setdefault(leaf.unit, []).append(leaf.einsum)
    parts += [f"{', '.join(names)} on {unit}" for unit, names in moved.items()]
    for rank, tile in plan.groups[0].loops:
        if rank == "P" and len(plan.groups) == 1:
            parts.append(f"{tile} queries at a time")
    return "; ".join(parts) or "nothing"


def draw(table: pd.DataFrame) -> Figure:
    """Draw speed and energy of what was found over those of the hand mappings, by length."""
    figure, axes = new_figure(2, len(HANDS), 7.2, 4.6)
    lengths = list(dict.fromkeys(table["length"]))
    models = list(dict.fromkeys(table["model"]))
    measures = (("speedup", "times as fast"), ("energy_ratio", "energy, found / hand"))
    for column, (name, title) in enumerate(HANDS.items()):
        own = table[table["design"] == name]
        for row, (measure, label) in enumerate(measures):
            axis = axes[row][column]
            for number, model in enumerate(models):
                line = own[own["model"] == model].set_index("length")[measure].reindex(lengths)
                beside = 0.12 * (number - (len(models) - 1) / 2)  # equal lines stay visible
                axis.plot(
                    np.arange(len(lengths)) + beside, line, marker="osD^"[number % 4],
                    markersize=6 - number,
                    color=PALETTE[(4, 1, 3, 5)[number % 4]], label=model, linewidth=1.2,
                )  # fmt: skip
            axis.axhline(1, color="black", linewidth=0.8, linestyle="--")
            axis.set_xticks(range(len(lengths)), lengths)
            if row == 0:
                axis.set_title(f"found against {title}")
            else:
                axis.set_xlabel("sequence length")
            if column == 0:
                axis.set_ylabel(label)
    axes[0][0].legend(ncols=2)
    return figure


def run(
    out: Path,
    *,
    models: Sequence[str] | None = None,
    lengths: Sequence[str] | None = None,
    product_seconds: float = PRODUCT_SECONDS,
) -> Path:
    """Write tables, the figure and a report under ``out``; return the report's path.

    The least products are sought at the middle one of the lengths.
    """
    chosen = select_workloads(models, lengths).lengths
    table = comparison_table(models, lengths)
    middle = [chosen[len(chosen) // 2]]
    products = comparison_table(models, middle, "edp", product_seconds)
    write_table(out / "mapper-vs-hand.csv", table)
    write_table(out / "least-products.csv", products)
    save_figure(draw(table), out, "mapper-vs-hand")
    path = out / "report.md"
    write_text(path, _report(table, products))
    return path


def _report(table: pd.DataFrame, products: pd.DataFrame) -> str:
    spent = table["search_seconds"]
    lines = [
        "# The search against mappings by hand",
        "",
        "The fastest mapping that the search finds from a cascade and an architecture alone, "
        "against the published one at the same shape. Hand times are the published ones; energies "
        "charge every active register file on both sides. The search minimises time: of mappings "
        "that are equally fast it takes one, not the one of the least energy.",
        "",
        f"{int(table['optimal'].sum())} of {len(table)} searches ended, with the proof that no "
        f"mapping of the space is faster; they took {spent.min():.1f} to {spent.max():.1f} s each.",
        "",
    ]
    for name, title in HANDS.items():
        own = table[table["design"] == name]
        lines += [
            f"## Against {title}",
            "",
            f"{own['speedup'].min():.4f} to {own['speedup'].max():.4f} times as fast.",
            "",
            "| model | length | hand, s | found, s | times as fast | energy, found / hand | bound "
            "| what differs | search, s | proof |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in own.to_dict("records"):
            lines.append(
                f"| {row['model']} | {row['length']} | {row['hand_seconds']:.6g} "
                f"| {row['found_seconds']:.6g} | {row['speedup']:.4f} | {row['energy_ratio']:.3f} "
                f"| {row['bound']} | {row['differs']} | {row['search_seconds']:.1f} "
                f"| {_proof(row)} |"
            )
        lines.append("")
    lines += [
        "## The least product of energy and time",
        "",
        "| against | model | length | time, found / hand | energy, found / hand | product "
        "| from register to register | search, s | proof |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in products.to_dict("records"):
        lines.append(
            f"| {HANDS[row['design']]} | {row['model']} | {row['length']} "
            f"| {1 / row['speedup']:.4f} | {row['energy_ratio']:.4f} | {row['product_ratio']:.4f} "
            f"| {row['forwarded'] or 'nothing'} | {row['search_seconds']:.1f} | {_proof(row)} |"
        )
    return "\n".join([*lines, "", "![speed and energy](mapper-vs-hand.png)", ""])


def _proof(row: Mapping[str, Any]) -> str:
    return "optimal" if row["optimal"] else f"at most {100 * row['gap']:.2g} % above"
