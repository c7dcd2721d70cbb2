"""A model simple enough to be worked out by hand, and rows made from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from einfuse.studies.validation.fit import Range
from einfuse.studies.validation.rows import COLUMNS, AttentionRow, parse_row
from einfuse.studies.validation.work import Call, Direction

LAUNCH_S = 5e-6
BASE: dict[str, object] = {
    "source": "a lab",
    "source_location": "table 1",
    "gpu": "H100-SXM5-80GB",
    "algorithm": "FA2",
    "direction": "fwd",
    "dtype": "fp16",
    "batch": 4,
    "heads_q": 16,
    "heads_kv": "",
    "seqlen_q": 4096,
    "seqlen_k": 4096,
    "head_dim": 128,
    "causal": False,
    "metric": "tflops",
    "value": 400,
}


def row(**cells: object) -> AttentionRow:
    """A row of a table, with other cells where given."""
    assert set(BASE) == set(COLUMNS)
    return parse_row({**BASE, **cells}, 2, "table.csv:2")


class LineModel:
    """Time = launch + operations / (efficiency * 1e15) + rows of queries * row_ns."""

    def __init__(self, design: str, gpu: str, direction: Direction) -> None:
        self.design = design

    def seconds(
        self, calls: Sequence[Call], constants: Mapping[str, float | NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        efficiency = np.asarray(constants.get("efficiency", 0.5))
        row_ns = np.asarray(constants.get("row_ns", 1.0))
        flops = np.array([float(call.flops) for call in calls])
        rows = np.array([call.batch * call.heads_q * call.seqlen_q for call in calls])
        taken = LAUNCH_S + flops / (efficiency * 1e15) + rows * row_ns * 1e-9
        refused = np.array([call.head_dim_qk > 256 for call in calls])
        return np.where(refused, np.nan, taken)

    def launch_seconds(
        self, calls: Sequence[Call], constants: Mapping[str, float | NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        return np.full(len(calls), LAUNCH_S)

    def ranges(self) -> Mapping[str, Range]:
        return {"efficiency": Range(0.5, 0.05, 1.0), "row_ns": Range(1.0, 0.0, 20.0)}

    def refusal(self, call: Call, constants: Mapping[str, float | NDArray[np.float64]]) -> str:
        return "the head size is above 256"
