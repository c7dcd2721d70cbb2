"""The CPU's validation: its model by hand, its fit, its page, and the committed run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from einfuse.studies.validation.cpu import (
    CALIBRATION,
    PREDICTION,
    CpuRow,
    CpuValidation,
    fit_kernel,
    validate_cpu,
)
from einfuse.studies.validation.cpu_model import KEPT_BYTES, Rates, predict_s
from einfuse.studies.validation.cpu_report import cpu_report, cpu_section, read_committed
from einfuse.studies.validation.work import Call

NAMES = ("exp", "add", "max", "divide", "multiply")
RATES = Rates(1e9, 1e10, dict.fromkeys(NAMES, 2e9), 0.0)
IDEAL = {"matmul": 1.0, "vector": 1.0, "row_us": 0.0}
CALL = Call("fwd", 2, 3, 3, 10, 1024, 8, 8, word_bytes=4)
SCORES = 2 * 3 * 10 * 1024


def test_three_passes_cost_their_products_and_five_operations_a_score() -> None:
    """A score is 16 products; a maximum, a difference, an exponential, a sum and a division."""
    wanted = SCORES * (16 / 1e9 + 5 / 2e9)
    assert predict_s("torch-3-pass", CALL, RATES, IDEAL) == pytest.approx(wanted)


def test_one_pass_divides_results_and_corrects_once_a_tile_of_512_keys() -> None:
    """Per score 16 products and 4 operations; per query and tile 8 corrections of 8 values' two
    operations and 6 of the scalars (2 max of which the tile's own counts as a score's); at the
    end 8 divisions.
    """
    queries = 2 * 3 * 10
    per_tile = 2 * 8 + 1 + 2 + 1 + 1  # values twice; running max, correction, its product, its sum
    wanted = SCORES * (16 / 1e9 + 4 / 2e9) + queries * (2 * per_tile + 8) / 2e9
    assert predict_s("sdpa-flash", CALL, RATES, IDEAL) == pytest.approx(wanted, rel=1e-3)


def test_scores_that_the_allocator_does_not_keep_cost_new_pages() -> None:
    rates = replace(RATES, fresh_s_per_byte=1e-9)
    large = Call("fwd", 1, 1, 1, 1024, KEPT_BYTES // 4096, 8, 8, word_bytes=4)
    more = predict_s("torch-3-pass", large, rates, IDEAL) - predict_s(
        "torch-3-pass", large, RATES, IDEAL
    )
    assert more == pytest.approx(2 * KEPT_BYTES * 1e-9)
    small = replace(large, seqlen_q=1023)
    assert predict_s("torch-3-pass", small, rates, IDEAL) == predict_s(
        "torch-3-pass", small, RATES, IDEAL
    )


def test_a_fit_on_the_calibration_shapes_predicts_the_others() -> None:
    true = {"matmul": 0.7, "vector": 0.4, "row_us": 0.5}
    taken = np.array([predict_s("torch-3-pass", call, RATES, true) for call in CALIBRATION])
    found = fit_kernel("torch-3-pass", CALIBRATION, taken, RATES)
    for call in PREDICTION:
        wanted = predict_s("torch-3-pass", call, RATES, true)
        assert predict_s("torch-3-pass", call, RATES, found) == pytest.approx(wanted, rel=0.03)


def test_no_shape_is_both_fitted_and_judged() -> None:
    assert not set(CALIBRATION) & set(PREDICTION)


def test_the_committed_run_keeps_the_error_below_15_percent() -> None:
    rows = [row for row in read_committed() if row["fitted"] == "False"]
    errors = [float(row["predicted_ms"]) / float(row["measured_ms"]) - 1 for row in rows]
    assert len(rows) == 2 * len(PREDICTION)
    assert np.mean(np.abs(errors)) < 0.15
    assert f"{100 * np.mean(np.abs(errors)):.1f}" in cpu_section(read_committed())[-2]


def test_the_page_names_the_machine_and_every_row() -> None:
    rows = tuple(
        CpuRow(kernel, CALL, 2.0, 2.2, 1.0, fitted)
        for kernel in ("torch-3-pass", "sdpa-flash")
        for fitted in (True, False)
    )
    found = CpuValidation("a machine", RATES, {"torch-3-pass": IDEAL, "sdpa-flash": IDEAL}, rows)
    text = cpu_report(found)
    assert "a machine" in text
    assert text.count("B2 H3 10x1024 D8") == 4
    assert text.count("+10.0") == 4


def test_without_a_committed_run_there_is_no_section(tmp_path: Path) -> None:
    assert cpu_section(read_committed(tmp_path / "none.csv")) == []


@pytest.mark.slow
def test_this_machine_is_predicted() -> None:
    """The bar is 15 %; what is asked here is looser, for machines that others work on."""
    pytest.importorskip("torch", reason="a CPU is measured with torch")
    found = validate_cpu()
    judged = [abs(row.error) for row in found.rows if not row.fitted]
    assert len(judged) == 2 * len(PREDICTION)
    assert np.median(judged) < 0.15
    assert all(row.measured_ms > 0 for row in found.rows)
