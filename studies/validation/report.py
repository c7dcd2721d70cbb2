"""The page of a validation: errors by what predictions stand on, by kernel, by shape, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd

from .cases import Skipped
from .constants import Constants, Owner
from .holdout import FACTORS
from .verdicts import LAUNCH_DOMINATED_MS, LONG, Verdict, error_summary

_WORST = 10
_SYSTEMATIC = 0.05
_SLICED = ("head size", "mask", "length")
Rows = Sequence[Verdict]


def report(
    found: Sequence[Verdict | Skipped],
    held_out: pd.DataFrame | None,
    constants: Mapping[Owner, Constants],
    origin: str,
    more: Sequence[str] = (),
) -> str:
    """Return the page in Markdown.

    Args:
        found: what became of each row.
        held_out: the table of `leave_one_out`, if it was made.
        constants: what the predictions stand on.
        origin: where the rows are from.
        more: sections to end with.
    """
    verdicts = [one for one in found if isinstance(one, Verdict)]
    skipped = [one for one in found if isinstance(one, Skipped)]
    lines = [
        "# Simulated against measured",
        "",
        f"{len(verdicts)} rows of {origin} predicted, {len(skipped)} skipped. Errors are those of "
        "the time, relative to the measured one, without their sign unless it is shown. *Modelled* "
        "rows are of a kernel version, GPU and direction with constants of its own; *transferred* "
        "ones take another's; *stand-ins* are predicted by another kernel's schedule. The roofline "
        "is that of the published peaks; the interpolation knows the rows that the constants were "
        "fitted on, at other lengths than the row's.",
        "",
        *_overview(verdicts),
        "![Predicted against measured times, and errors by length](scatter.png)",
        "",
        *_held_out(held_out),
        *_by_owner(verdicts, constants),
        *_by_shape(verdicts),
        *_misses(verdicts),
        *_failures(verdicts),
        *_disagreement(verdicts),
        *_skipped(skipped),
        *more,
    ]
    return "\n".join(lines) + "\n"


def _overview(verdicts: Rows) -> list[str]:
    def long(one: Verdict) -> bool:
        return one.case.call.seqlen_k >= LONG

    sets: Mapping[str, Callable[[Verdict], bool]] = {
        f"modelled, never fitted, {LONG} keys or more": lambda one: (
            one.group == "modelled" and not one.fitted and long(one)
        ),
        "modelled, never fitted, all lengths": lambda one: (
            one.group == "modelled" and not one.fitted
        ),
        "modelled, fitted": lambda one: one.group == "modelled" and one.fitted,
        "transferred": lambda one: one.group == "transferred",
        "stand-ins": lambda one: one.group == "stand-in",
        f"of all, under {LAUNCH_DOMINATED_MS} ms": lambda one: one.launch_dominated,
    }
    return _table(
        "rows",
        {name: [one for one in verdicts if belongs(one)] for name, belongs in sets.items()},
        net=True,
    )


def _table(title: str, groups: Mapping[str, Rows], net: bool = False) -> list[str]:
    """Return a table of errors: a line per group that has rows."""
    more = " net of launches |" if net else ""
    lines = [
        f"| {title} | number | mean % | median % | p90 % | max % | bias % |{more} roofline % "
        "| interpolation % (rows) |",
        "|---|" + "---:|" * (8 + net),
    ]
    for name, rows in groups.items():
        if not rows:
            lines.append(f"| {name} | 0 |" + " - |" * (7 + net))
            continue
        model = error_summary(one.error for one in rows)
        roofline = error_summary(one.roofline_ms / one.measured_ms - 1 for one in rows)
        known = error_summary(
            one.interpolated_ms / one.measured_ms - 1
            for one in rows
            if one.interpolated_ms is not None
        )
        bias = sum(one.error for one in rows) / len(rows)
        cells = [*(_percent(model[key]) for key in ("mean", "median", "p90", "max"))]
        cells.append(f"{100 * bias:+.1f}")
        if net:
            cells.append(_percent(error_summary(one.net_error for one in rows)["mean"]))
        cells.append(_percent(roofline["mean"]))
        cells.append(f"{_percent(known['mean'])} ({int(known['rows'])})")
        lines.append(f"| {name} | {len(rows)} | {' | '.join(cells)} |")
    return [*lines, ""]


def _held_out(table: pd.DataFrame | None) -> list[str]:
    if table is None or table.empty:
        return []
    lines = [
        "## Leave one out",
        "",
        "The constants refitted on the known rows without a slice of them, which is then "
        "predicted. A kernel of which nothing is left takes the constants of its nearest relative. "
        "The interpolation knows the same rows as the fit. The equations of the designs and the "
        "defaults of their constants were chosen with the shipped rows at hand: wholly unseen are "
        "only the rows of other tables (`--data`).",
        "",
        "![Errors on rows left out, of model, interpolation and roofline](leave-one-out.png)",
        "",
        "| left out | rows | mean % | p90 % | max % | roofline % | interpolation % (rows) |",
        "|---|" + "---:|" * 6,
    ]
    for factor, rows in table.groupby("factor", sort=False):
        parts = {f"**one {factor}**": rows}
        if rows["left_out"].nunique() > 1:
            parts |= {
                f"{factor} {name}": part for name, part in rows.groupby("left_out", sort=False)
            }
        for name, part in parts.items():
            model, known = error_summary(part["model"]), error_summary(part["interpolation"])
            roofline = error_summary(part["roofline"])
            lines.append(
                f"| {name} | {len(part)} | {_percent(model['mean'])} | {_percent(model['p90'])} | "
                f"{_percent(model['max'])} | {_percent(roofline['mean'])} | "
                f"{_percent(known['mean'])} ({int(known['rows'])}) |"
            )
    return [*lines, ""]


def _by_owner(verdicts: Rows, constants: Mapping[Owner, Constants]) -> list[str]:
    groups: dict[str, list[Verdict]] = {}
    for one in verdicts:
        fitted = "fitted" if one.fitted else "never fitted"
        groups.setdefault(f"{one.case.owner}, {fitted}", []).append(one)
    lines = ["## By kernel version, GPU and direction", "", *_table("kernel", groups)]
    lines += ["| constants of | fitted on | error there % | values |", "|---|---:|---:|---|"]
    for owner, own in constants.items():
        values = ", ".join(f"{name} = {value:.3g}" for name, value in own.values.items())
        lines.append(
            f"| {owner} | {len(own.fitted_on)} rows | {_percent(own.mean_error)} | {values} |"
        )
    return [*lines, ""]


def _by_shape(verdicts: Rows) -> list[str]:
    groups: dict[str, list[Verdict]] = {}
    modelled = [one for one in verdicts if one.group == "modelled"]
    for one in sorted(modelled, key=lambda one: (one.case.call.head_dim_qk, one.case.call.causal)):
        call = one.case.call
        head = f"{call.head_dim_qk}"
        head += f"/{call.head_dim_v}" if call.head_dim_v != call.head_dim_qk else ""
        mask = f"window {call.window}" if call.window else "causal" if call.causal else "full"
        groups.setdefault(f"head size {head}, {mask}", []).append(one)
    lengths: dict[str, list[Verdict]] = {}
    for one in sorted(modelled, key=lambda one: one.case.call.seqlen_k):
        lengths.setdefault(f"{one.case.call.seqlen_k} keys", []).append(one)
    if not modelled:
        return []
    return ["## By shape, of the modelled rows", "", *_table("shape", {**groups, **lengths})]


def _misses(verdicts: Rows) -> list[str]:
    """Slices of a kernel's rows that are off to one side: what the model does not know of."""
    slices: dict[tuple[Owner, str], list[float]] = {}
    for one in verdicts:
        if one.group == "modelled":
            for factor, label in FACTORS.items():
                if factor in _SLICED:
                    key = (one.case.owner, f"{factor} {label(one.case)}")
                    slices.setdefault(key, []).append(one.error)
    off = [
        (sum(errors) / len(errors), len(errors), *key)
        for key, errors in slices.items()
        if len(errors) > 1 and abs(sum(errors)) > _SYSTEMATIC * len(errors)
    ]
    if not off:
        return []
    lines = [
        "## What the model misses",
        "",
        f"Slices of two rows or more whose mean error, with its sign, is beyond "
        f"{100 * _SYSTEMATIC:.0f} %: the model does not know what sets them apart.",
        "",
        "| kernel | slice | rows | bias % |",
        "|---|---|---:|---:|",
    ]
    for bias, rows, owner, name in sorted(off, key=lambda one: -abs(one[0]))[:_WORST]:
        lines.append(f"| {owner} | {name} | {rows} | {100 * bias:+.1f} |")
    return [*lines, ""]


def _failures(verdicts: Rows) -> list[str]:
    worst = sorted(verdicts, key=lambda one: -abs(one.error))[:_WORST]
    if not worst:
        return []
    lines = [
        "## Where it fails, and why",
        "",
        "| row | kernel | shape | measured ms | predicted ms | error % | what it stands on |",
        "|---:|---|---|---:|---:|---:|---|",
    ]
    for one in worst:
        lines.append(
            f"| {one.case.row.line} | {one.case.owner} | {_shape(one)} | {one.measured_ms:.4g} | "
            f"{one.predicted_ms:.4g} | {100 * one.error:+.1f} | {'; '.join(_reasons(one))} |"
        )
    return [*lines, ""]


def _reasons(one: Verdict) -> Iterable[str]:
    """What is known of a row that may explain its error."""
    yield f"constants {one.constants}" + (", fitted on this row" if one.fitted else "")
    if one.case.stand_in:
        yield f"predicted by {one.case.stand_in}"
    if one.launch_dominated:
        net = "" if one.net_error is None else f", {100 * one.net_error:+.0f} % net of launches"
        yield f"under {LAUNCH_DOMINATED_MS} ms{net}"
    yield from one.case.notes
    ratio = one.measured_ms / one.roofline_ms
    if ratio < 1:
        yield f"measured {1 / ratio:.2g} times as fast as the roofline: the row's convention?"
    elif ratio > 10:
        yield f"{ratio:.0f} times its roofline"


def _shape(one: Verdict) -> str:
    call = one.case.call
    heads = f"{call.heads_q}" + (f"/{call.heads_kv}" if call.heads_kv != call.heads_q else "")
    lengths = f"{call.seqlen_q}x{call.seqlen_k}"
    head_dim = f"{call.head_dim_qk}"
    head_dim += f"/{call.head_dim_v}" if call.head_dim_v != call.head_dim_qk else ""
    mask = " causal" * (call.causal and not call.window)
    mask += f" window {call.window}" * bool(call.window)
    return f"B{call.batch} H{heads} {lengths} D{head_dim}{mask}"


def _disagreement(verdicts: Rows) -> list[str]:
    """How far apart sources are on one call of one kernel: no model does better across them."""
    calls: dict[object, dict[str, float]] = {}
    for one in verdicts:
        source = f"{one.case.row.source} {one.case.row.location}"
        calls.setdefault((one.case.owner, one.case.call), {})[source] = one.measured_ms
    spreads = [
        max(times.values()) / min(times.values()) - 1 for times in calls.values() if len(times) > 1
    ]
    if not spreads:
        return []
    return [
        "## How far sources agree",
        "",
        f"{len(spreads)} calls are measured by several sources: the slowest takes "
        f"{_percent(sum(spreads) / len(spreads))} % longer than the fastest on average, "
        f"{_percent(max(spreads))} % at most. No model can do better across sources.",
        "",
    ]


def _skipped(skipped: Sequence[Skipped]) -> list[str]:
    if not skipped:
        return []
    counts: dict[str, int] = {}
    for one in skipped:
        counts[one.reason] = counts.get(one.reason, 0) + 1
    lines = ["## Skipped", "", "| rows | why |", "|---:|---|"]
    lines += [f"| {n} | {why} |" for why, n in sorted(counts.items(), key=lambda pair: -pair[1])]
    return [*lines, ""]


def _percent(share: float) -> str:
    return "-" if not math.isfinite(share) else f"{100 * share:.1f}"
