"""Einfuse against AccelForge: what both count of the same mappings, and what both find."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from einfuse.einsum.language.errors import EinfuseError
from einfuse.mapper.sequential.nest import ExplicitPlan
from einfuse.simulator.cost.model import evaluate
from einfuse.studies.accelforge.cases import CASES, find_case
from einfuse.studies.accelforge.peer import is_installed
from einfuse.studies.accelforge.study import (
    compare_mappings,
    compare_searches,
    mapping_cases,
    read_records,
    run,
    search_here,
)

needs_accelforge = pytest.mark.skipif(
    not is_installed(),
    reason="AccelForge is not installed: it needs Python 3.12 and `pip install accelforge`; "
    "its recorded results are compared instead",
)

FIGURES = {  # of another version of AccelForge, as published with its mapper: J, s
    "attention-nvdla": (0.1554, 0.304),
    "attention-tpu_v4i": (0.05305, 1.556e-3),
    "gpt3-nvdla": (1.207, None),
    "gpt3-tpu_v4i": (0.159, None),
}


def test_both_count_the_same_in_every_mapping() -> None:
    replays = compare_mappings()
    assert len(replays) == 19
    for one in replays:
        assert not one.refused, one
        assert one.energy_ratio == pytest.approx(1, abs=1e-6), one.mapping  # float32 there
        assert one.seconds_ratio == pytest.approx(1, abs=1e-6), one.mapping
        assert one.worst_access <= 1e-9, one.mapping


def test_its_search_charges_a_copy_the_wrong_way_round() -> None:
    """134,217,728 bits from main memory to the buffer; the search charges them back."""
    bits = 1 * 2048 * 4096 * 16
    said = {r["what"]: r for r in read_records() if r["case"] == "gpt3-tpu_v4i"}
    assert said["search"]["actions"]["I/MainMemory/I_in/write"] == bits
    assert said["evaluation"]["actions"]["I/MainMemory/I_in/read"] == bits
    less = bits * ((7.03 + 2.36) - (1.88 + 7.03)) * 1e-12
    difference = said["evaluation"]["energy_j"] - said["search"]["energy_j"]
    assert difference == pytest.approx(less, rel=1e-3)  # float32


def test_a_wrong_count_would_be_noticed() -> None:
    """Without the drains' reads the words differ by far more than is allowed."""
    from einfuse.studies.accelforge.study import _bits_there, _worst, converted, count_bits

    case, text = next((c, t) for c, t in mapping_cases() if c.name == "drawn-1-nvdla")
    record = next(r for r in read_records() if r["case"] == case.name and r["what"] == "evaluation")
    there = _bits_there(case, record["actions"])
    design = converted(case, text)
    assert _worst(count_bits(case, design), there) == 0
    assert _worst(count_bits(case, replace(design, drains="free")), there) > 0.1
    assert _worst(count_bits(case, replace(design, retention="trailing")), there) > 0.1


@pytest.mark.parametrize("name", ["matmuls-simple", "matmuls-nvdla", "attention-nvdla"])
def test_the_optimum_is_no_worse(name: str) -> None:
    (one,) = compare_searches([find_case(name)])
    assert one.energy_ratio <= 1 + 1e-9
    assert one.energy_j <= one.accelforge_energy_j * (1 + 1e-6)  # float32
    if name in FIGURES:
        energy, seconds = FIGURES[name]
        assert one.energy_j == pytest.approx(energy, rel=1e-3)
        assert one.seconds == pytest.approx(seconds, rel=1e-3)


@pytest.mark.slow
def test_every_optimum_is_no_worse_and_costs_what_the_figures_say() -> None:
    """In the layer on tpu_v4i its search charges a copy by 0.04 % less than its evaluation does."""
    evaluated = {r["case"]: r["energy_j"] for r in read_records() if r["what"] == "evaluation"}
    for one in compare_searches():
        assert one.energy_ratio <= 1 + 1e-9, one
        assert one.energy_j <= evaluated[one.case] * (1 + 1e-6), one  # float32
        assert one.counted_energy_j == pytest.approx(one.accelforge_energy_j, rel=5e-4), one
        if one.case in FIGURES:
            energy, seconds = FIGURES[one.case]
            assert one.energy_j == pytest.approx(energy, rel=5e-3), one
            assert seconds is None or one.seconds == pytest.approx(seconds, rel=1e-3), one


@needs_accelforge
@pytest.mark.slow
def test_accelforge_says_now_what_was_recorded_and_takes_longer() -> None:
    for one in compare_mappings(live=True):
        assert one.energy_ratio == pytest.approx(1, abs=1e-6), one
    cases = [find_case(name) for name in ("attention-nvdla", "attention-tpu_v4i", "gpt3-nvdla")]
    least = {"attention-nvdla": 3, "attention-tpu_v4i": 10, "gpt3-nvdla": 10}
    for duel in compare_searches(cases, live=True):
        assert duel.energy_ratio <= 1 + 1e-9, duel
        assert duel.cpu_ratio >= least[duel.case], duel


@pytest.mark.slow
def test_any_number_of_shared_loops_is_better_than_what_accelforge_finds() -> None:
    """AccelForge 1.0.467 finds 0.061634 J with all loops open, and evaluates this to 0.0465854."""
    found, design = search_here(replace(find_case("attention-nvdla"), fused_loops=None))
    case = find_case("attention-nvdla")
    assert found.score * 1e-12 == pytest.approx(0.0465854332, rel=1e-6)
    energy = evaluate(design, case.shape, set=case.settings).energy_pj
    assert energy == pytest.approx(found.score, rel=1e-12)


@pytest.mark.slow
def test_the_layer_is_searched_in_seconds() -> None:
    found, _ = search_here(find_case("gpt3-nvdla"))
    assert isinstance(found.best.plan, ExplicitPlan)
    assert len(found.best.plan.blocks) == 9
    assert found.score * 1e-12 == pytest.approx(1.207, rel=1e-3)


def test_a_run_writes_tables_and_a_report(tmp_path: Path) -> None:
    report = run(tmp_path, models=["matmuls-simple"])
    assert {p.name for p in tmp_path.iterdir()} == {"mappings.csv", "searches.csv", "report.md"}
    assert "4.29261e+06" in report.read_text(encoding="utf-8")


def test_what_the_study_cannot_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(EinfuseError, match="no case 'bert'"):
        run(tmp_path, models=["bert"])
    with pytest.raises(EinfuseError, match="leave --length out"):
        run(tmp_path, lengths=["1K"])
    assert not list(tmp_path.iterdir())


def test_every_case_has_its_files() -> None:
    assert {case.name for case, _ in mapping_cases()} >= {case.name for case in CASES}
