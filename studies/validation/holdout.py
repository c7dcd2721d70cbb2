"""Leave one out: constants refitted without a head size, a mask, a length, a source or a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from .baselines import Known, interpolated_ms, roofline_ms
from .cases import Case
from .constants import Constants, Owner
from .model import DesignModel
from .prediction import Models, fit, predict

FACTORS: Mapping[str, Callable[[Case], str]] = {
    "head size": lambda case: _sizes(case),
    "mask": lambda case: "causal" if case.call.causal else "full",
    "length": lambda case: str(case.call.seqlen_k),
    "source": lambda case: f"{case.row.source}: {case.row.location.split(' (')[0]}",
    "GPU": lambda case: case.owner.gpu,
}


def leave_one_out(cases: Sequence[Case], models: Models = DesignModel) -> pd.DataFrame:
    """Return a row per case and factor: predicted by constants that never saw its slice.

    Without rows of its own left, a kernel takes the constants of its nearest relative.
    Columns: factor, left_out, kernel, gpu, direction, seqlen, measured_ms, model, roofline,
    interpolation (relative errors, signed; NaN where there is no prediction).
    """
    whole = fit(cases, models)
    rows = []
    for factor, label in FACTORS.items():
        for value in dict.fromkeys(map(label, cases)):
            out = [case for case in cases if label(case) == value]
            kept = [case for case in cases if label(case) != value]
            constants, known = _refitted(whole, out, kept, models), Known(kept)
            for prediction in predict(out, constants, models):
                case = prediction.case
                errors = {
                    "model": prediction.ms,
                    "roofline": roofline_ms(case),
                    "interpolation": interpolated_ms(case, known),
                }
                rows.append({
                    "factor": factor,
                    "left_out": value,
                    "kernel": case.owner.kernel,
                    "gpu": case.owner.gpu,
                    "direction": case.owner.direction,
                    "seqlen": case.call.seqlen_k,
                    "measured_ms": case.measured_ms,
                    **{n: np.nan if ms is None else ms / case.measured_ms - 1
                       for n, ms in errors.items()},
                })  # fmt: skip
    return pd.DataFrame(rows)


def _refitted(
    whole: Mapping[Owner, Constants], out: Sequence[Case], kept: Sequence[Case], models: Models
) -> dict[Owner, Constants]:
    """Return the constants without the cases left out; owners that lose none keep theirs."""
    touched = {case.owner for case in out}
    constants = {owner: one for owner, one in whole.items() if owner not in touched}
    return constants | fit([case for case in kept if case.owner in touched], models, whole)


def _sizes(case: Case) -> str:
    qk, v = case.call.head_dim_qk, case.call.head_dim_v
    return str(qk) if qk == v else f"{qk}/{v}"
