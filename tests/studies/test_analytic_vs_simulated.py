"""What the simulation charges beyond the analytic model, against figures by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from einfuse.einsum.language.errors import EinfuseError
from einfuse.mapper.design.design import load_design
from einfuse.simulator.functional.functional import simulate_functional
from einfuse.studies.analytic_vs_simulated.study import (
    BINDINGS,
    DESIGNS,
    bandwidth_table,
    binding_table,
    demand_table,
    merged,
    overhead_table,
    run,
    stretched,
)

LENGTH = 2**16


def test_nothing_charged_is_the_analytic_model_and_every_step_costs_no_less() -> None:
    table = overhead_table([4096, LENGTH])
    assert len(table) == len(DESIGNS) * 2 * 5
    for _, rows in table.groupby(["design", "length"]):
        ratios = rows["ratio"].tolist()
        assert ratios[0] == 1
        assert all(later >= before - 1e-9 for before, later in pairwise(ratios))
        parts = [c for c in rows if c.endswith("_array_2d") and not c.startswith("utilization")]
        assert rows[parts].sum(axis=1).tolist() == pytest.approx([1.0] * 5)


def test_the_drain_takes_an_epoch_of_fusemax_from_138_to_393_cycles() -> None:
    table = overhead_table([2**20]).set_index(["design", "charged"])
    assert table.ratio["fusemax", "drain"] == pytest.approx(393 / 138, rel=1e-3)
    assert table.ratio["fusemax-architecture", "drain"] == pytest.approx(
        (458 + 192) / 458, rel=1e-3
    )


def test_fusemax_needs_some_lines_of_its_buffer_a_cycle() -> None:
    # an epoch moves 256 x 64 words of each of Q, K and V, and the numerator twice: at one line of
    # 256 words a cycle more than twice its 138 cycles
    table = bandwidth_table(LENGTH).set_index(["case", "lines_per_cycle"])
    used = table.utilization_array_2d["fusemax"]
    assert used.is_monotonic_increasing
    assert used[1] < 0.5 < 0.9 < used[4]
    assert used[0.5] == pytest.approx(2 * used[0.25], rel=0.02)  # bound by the port
    # its busiest phase asks for 2.98 lines a cycle; the mean over an epoch is 2.36
    assert used[2.5] < 0.95 * used[3]
    together = table.utilization_array_2d["fusemax, one phase, interleaved"]
    assert together[2] < 0.95 * together[2.5]
    assert together[2.5] == pytest.approx(used[3], rel=1e-3)


def test_the_buffer_reads_two_operands_of_the_scores_a_cycle() -> None:
    # QK and LM take 65 cycles: 64 reads of a line of Q and one of K; RNV and RD write 64 + 1, and
    # AV reads F + 1 lines at the end of every head, M / 256 tiles
    table = demand_table(LENGTH).set_index("phase")
    tiles = LENGTH / 256
    assert table.cycles.tolist() == pytest.approx([65, 1, 8, 64, 138], rel=1e-2)
    assert table.lines_read["1"] == pytest.approx(128 + 65 / tiles)
    # Q is brought in once a head and K once for all resident queries, 128 tiles
    assert table.lines_written["1"] == pytest.approx(64 + 1 + 64 / tiles + 64 / 128)
    assert table.lines_read["4"] == 128  # V, and the numerator


def test_what_is_hidden_of_the_drain_by_sharing_and_distance() -> None:
    # values and their use lie 393 cycles apart: shared by two epochs, and by three of 138
    rows = binding_table(LENGTH).set_index(["binding", "stretch"])
    cycles = rows.epoch_cycles
    for binding in ("as published", "as published, interleaved"):
        assert cycles[binding][1] == pytest.approx(393, rel=1e-2)
        assert rows.drain_hidden[binding][1] == pytest.approx(1 / 256, abs=0.01)
        assert cycles[binding][2] == pytest.approx(393 / 2, rel=1e-2)
    for times in (1, 2):  # each step hides more
        paid = [rows.drain_paid_cycles[b][times] for b in BINDINGS]
        assert paid[0] == paid[1] > paid[2] > paid[3] > paid[4] >= 0
    for binding in BINDINGS:
        assert cycles[binding][3] == pytest.approx(138, abs=0.5)
    # +Architecture: 138 and a tile's numerator behind its values and a stall; then another drain
    assert cycles["its published stall"][1] == pytest.approx(138 + 64 + 256, rel=1e-2)
    assert cycles["every drain"][1] == pytest.approx(138 + 64 + 256 + 192, rel=1e-2)


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("phases", ["published", "merged"])
def test_a_stretched_pipeline_still_makes_what_its_cascade_says(times: int, phases: str) -> None:
    tiny = {"array_2d.rows": 4, "array_2d.columns": 4, "array_1d.lanes": 4}
    shape = {"B": 1, "H": 2, "M": 16, "P": 16, "E": 4, "F": 4}
    design = stretched(load_design("fusemax"), times)
    design = merged(design) if phases == "merged" else design
    found = simulate_functional(design, shape, set=tiny)
    assert found.max_error < 1e-12


def test_a_run_writes_tables_figures_and_report(tmp_path: Path) -> None:
    report = run(tmp_path, lengths=["4K"])
    stems = {path.stem for path in tmp_path.iterdir()}
    assert stems == {"overheads", "buffer-bandwidth", "buffer-demand", "binding", "report"}
    assert "| fusemax | 1.0000 | 1.0000 | 2.79" in report.read_text()


def test_what_the_study_cannot_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(EinfuseError, match="has no --model"):
        run(tmp_path, models=["BERT"])
    with pytest.raises(EinfuseError, match="multiple of 256"):
        run(tmp_path, lengths=["100"])
