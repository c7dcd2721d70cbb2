"""The report of the FuseMax study, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

_FIGURES = (
    ("figure-6-utilization", "Figure 6. Utilization of the 2D and of the 1D array."),
    ("figure-7-time-by-einsum", "Figure 7. What FuseMax's 2D array spends its time on."),
    ("figure-8-attention-speedup", "Figure 8. Attention: speed-up over the unfused design."),
    ("figure-9-attention-energy", "Figure 9. Attention: energy relative to the unfused design."),
    ("figure-10-layer-speedup", "Figure 10. One encoder layer: speed-up."),
    ("figure-11-layer-energy", "Figure 11. One encoder layer: energy."),
    ("figure-12-design-space", "Figure 12. Area and latency over array sizes."),
    ("accountings", "FuseMax's energy under each accounting, beside the paper's tables."),
)

_LIMITS = """\
## What the accountings charge

- `published` copies what the paper's run charged: the register files of *one* processing element,
  no energy for exp on +Cascade, no area for adders, no leakage. The run's 64-bit overflow in
  counting first reads is not copied; it is the difference between 78.75 % and 79.45 % of FLAT.
- `published-all-registers` charges the register files of every active processing element.
- `physical` also charges exp on +Cascade and the adders' area, and pays the wait where a pipeline
  breaks a dependency (not on these points).

## What the model leaves out

Leakage; wire and network energy, and contention; bank conflicts and port limits (the buffer's
bandwidth is unbounded); DRAM latency, refresh and row hits; skew, fill and drain of the arrays (but
for the stall of +Architecture); masking; LayerNorm, residuals, activations and embedding; the
latency of exp and divide (one a cycle); loss of precision; control. DRAM and both arrays overlap
perfectly over a whole kernel. Sizes that do not divide cost whole tiles; none is among these
points. The tables of energy and area are those of the paper: 45 nm, a four-port buffer whose line
costs as much as DRAM, register files of flip-flops. The areas of the 16 MiB and 32 MiB buffers were
not published, so that the area of those designs is unknown.
"""


def report(
    headline: pd.DataFrame,
    space: pd.DataFrame,
    models: Sequence[str],
    lengths: Sequence[str],
    seconds: float,
    paper: Mapping[str, Any],
) -> str:
    """Return the report's text; figures and tables are linked relative to it."""
    whole = len(models) == len(paper["models"]) and len(lengths) == len(paper["lengths"])
    scope = f"{', '.join(models)}; {', '.join(lengths)}"
    lines = [
        "# FuseMax, evaluated",
        "",
        f"Attention and one encoder layer on five designs ({scope}), evaluated in {seconds:.2f} s "
        f"from cascades, architectures and mappings by one model. The authors' artifact needs "
        f"about {paper['artifact_hours']} hours. Paper: {paper['source']}.",
        "",
    ]
    if not whole:
        lines += ["**A part of the paper's points:** its means below are over all 24 of them.", ""]
    lines += [
        "## Headline numbers",
        "",
        "Arithmetic means over models and lengths, of FuseMax (+Binding) against the baseline.",
        "",
        "| quantity | baseline | accounting | paper | its tables | here | deviation | geometric: "
        "tables | here |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in headline.to_dict("records"):
        if row["quantity"] == "speed-up" and row["accounting"] == "published-all-registers":
            continue
        shown = [
            _show(row["quantity"], row[key], short=key == "paper_as_printed")
            for key in (
                "paper_as_printed",
                "paper_tables_arithmetic_mean",
                "here_arithmetic_mean",
                "paper_tables_geometric_mean",
                "here_geometric_mean",
            )
        ]
        lines.append(
            f"| {row['part']} {row['quantity']} | {row['baseline']} | {row['accounting']} | "
            f"{shown[0]} | {shown[1]} | {shown[2]} | {row['deviation_percent']:+.2f} % | "
            f"{shown[3]} | {shown[4]} |"
        )
    lines += ["", "All numbers: [tables/headline.csv](tables/headline.csv).", "", "## Figures", ""]
    for name, caption in _FIGURES:
        lines += [f"![{caption}](figures/{name}.png)", "", f"*{caption}*", ""]
    sizes = ", ".join(str(size) for size in dict.fromkeys(space["array_rows"]))
    lines += [
        f"Figure 12 sizes buffer and register files to the array (sides of {sizes}) by the paper's "
        "rule, and doubles the buffer until DRAM is no longer the longest.",
        "",
        _LIMITS,
    ]
    return "\n".join(lines)


def _show(quantity: str, value: float, *, short: bool) -> str:
    if quantity == "energy":
        return f"{100 * value:.0f} %" if short else f"{100 * value:.2f} %"
    return f"{value:g}x" if short else f"{value:.4f}x"
