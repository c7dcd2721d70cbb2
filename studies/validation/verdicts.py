"""Simulated against measured: every row of a table predicted, judged, and summed up.

Rows are told apart by what their prediction stands on: *modelled* rows are of a kernel version,
GPU and direction with constants of their own, *transferred* ones take another's, *stand-in* ones
another kernel's schedule; and by whether their constants were fitted on them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from .baselines import Known, interpolated_ms, roofline_ms
from .cases import Case, Skipped, find_cases
from .constants import Constants, Owner
from .model import DesignModel
from .prediction import Models, Prediction, predict
from .rows import AttentionRow, Cell

PUBLISHED = Path(__file__).parents[1] / "data" / "published-gpu-attention.csv"
LAUNCH_DOMINATED_MS = 0.3
"""Calls this short are likely bound by the host that launches them."""
LONG = 1024
"""Keys from which on a row counts as long."""

Group = Literal["modelled", "transferred", "stand-in"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A predicted row; errors are relative and signed, predicted over measured less one.

    ``interpolated_ms`` is what known rows at other lengths say; ``net_error`` leaves the cost of
    a launch out of both times.
    """

    case: Case
    predicted_ms: float
    roofline_ms: float
    interpolated_ms: float | None
    net_error: float | None
    group: Group
    constants: str
    fitted: bool

    @property
    def measured_ms(self) -> float:
        """Milliseconds as measured."""
        return self.case.measured_ms

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_ms / self.measured_ms - 1

    @property
    def launch_dominated(self) -> bool:
        """Whether the call is so short that the host may bound it."""
        return self.measured_ms < LAUNCH_DOMINATED_MS

    def to_row(self) -> dict[str, Cell]:
        """Return the row's own columns, and what was found."""
        case = self.case
        interpolated = self.interpolated_ms
        return {
            **case.row.columns,
            "kernel_version": case.owner.kernel,
            "architecture": case.owner.gpu,
            "design": case.design,
            "predicted_ms": self.predicted_ms,
            "measured_ms": self.measured_ms,
            "roofline_ms": self.roofline_ms,
            "interpolated_ms": interpolated,
            "error": self.error,
            "roofline_error": self.roofline_ms / self.measured_ms - 1,
            "interpolated_error": (
                None if interpolated is None else interpolated / self.measured_ms - 1
            ),
            "net_error": self.net_error,
            "launch_dominated": self.launch_dominated,
            "group": self.group,
            "constants": self.constants,
            "fitted": self.fitted,
            "notes": "; ".join(self._notes()),
        }

    def _notes(self) -> list[str]:
        stand_in = f"predicted by {self.case.stand_in}" if self.case.stand_in else ""
        return [note for note in (*self.case.notes, stand_in) if note]


def judge(
    rows: Iterable[AttentionRow],
    constants: Mapping[Owner, Constants],
    known: Sequence[AttentionRow] = (),
    models: Models = DesignModel,
) -> tuple[Verdict | Skipped, ...]:
    """Return the verdict on each row, in their order, or why it has none.

    Args:
        rows: what is predicted.
        constants: of kernels on GPUs.
        known: rows that the interpolation may use.
        models: what predicts.
    """
    found = find_cases(rows)
    cases = [one for one in found if isinstance(one, Case)]
    others = Known(one for one in find_cases(known) if isinstance(one, Case))
    predictions = iter(predict(cases, constants, models))
    verdicts: list[Verdict | Skipped] = []
    for one in found:
        verdicts.append(_verdict(next(predictions), others) if isinstance(one, Case) else one)
    return tuple(verdicts)


def _verdict(prediction: Prediction, known: Known) -> Verdict | Skipped:
    case = prediction.case
    if not math.isfinite(prediction.ms):
        return Skipped(case.row, f"not predicted: {prediction.refusal}")
    net = case.measured_ms - prediction.launch_ms
    return Verdict(
        case=case,
        predicted_ms=prediction.ms,
        roofline_ms=roofline_ms(case),
        interpolated_ms=interpolated_ms(case, known),
        net_error=(prediction.ms - prediction.launch_ms) / net - 1 if net > 0 else None,
        group=_group(prediction),
        constants=str(prediction.constants),
        fitted=prediction.fitted,
    )


def _group(prediction: Prediction) -> Group:
    if prediction.case.stand_in:
        return "stand-in"
    return "modelled" if prediction.constants.own else "transferred"


def to_json(found: Iterable[Verdict | Skipped]) -> list[dict[str, Cell]]:
    """Return an object per row: its columns and what was found, or why it was skipped."""
    return [
        one.to_row() if isinstance(one, Verdict) else {**one.row.columns, "skipped": one.reason}
        for one in found
    ]


def error_summary(errors: Iterable[float | None]) -> dict[str, float]:
    """Return count, mean, median, 90th percentile and maximum of relative errors' sizes.

    >>> error_summary([0.1, -0.3, None])["mean"]
    0.2
    """
    sizes = np.abs([one for one in errors if one is not None and math.isfinite(one)])
    if not sizes.size:
        nothing = math.nan
        return {"rows": 0, "mean": nothing, "median": nothing, "p90": nothing, "max": nothing}
    return {
        "rows": int(sizes.size),
        "mean": float(sizes.mean()),
        "median": float(np.median(sizes)),
        "p90": float(np.quantile(sizes, 0.9)),
        "max": float(sizes.max()),
    }
