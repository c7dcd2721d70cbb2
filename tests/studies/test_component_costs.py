"""The study of component costs: the paper's figures first, then what is charged beyond them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from einfuse.einsum.language.errors import EinfuseError
from einfuse.studies.component_costs.study import (
    PARTS,
    STEPS,
    area_table,
    energy_table,
    port_table,
    run,
    share_table,
)
from einfuse.studies.fusemax.study import attention_table, ratio_table, select_workloads

POINT = select_workloads(["BERT"], ["4K"])


def test_without_options_the_45_nm_table_gives_the_papers_ratio() -> None:
    table = energy_table(POINT).set_index(["node", "charged"])
    for step, accounting in (
        ("as published", "published"),
        ("registers of all elements", "physical"),
    ):
        published = ratio_table(attention_table(POINT, accounting), "flat").set_index("design")
        here = table.loc[("45nm", step)]
        assert here["relative_energy"] == pytest.approx(
            published.loc["fusemax", "relative_energy"], rel=1e-9
        )
        assert here["speedup"] == pytest.approx(published.loc["fusemax", "speedup"], rel=1e-12)


def test_every_step_adds_to_both_designs() -> None:
    table = energy_table(POINT)
    for _, rows in table.groupby("node"):
        assert list(rows["charged"]) == list(STEPS)
        for column in ("flat_pj", "fusemax_pj"):
            assert rows[column].is_monotonic_increasing


def test_shares_add_up_to_the_energy_of_the_last_step() -> None:
    shares = share_table(POINT)
    assert set(shares["part"]) == set(PARTS)
    sums = shares.groupby(["node", "design"])["energy_pj"].sum()
    last = energy_table(POINT).query("charged == '+ ports'").set_index("node")
    for node in ("45nm", "7nm"):
        for design in ("flat", "fusemax"):
            assert sums[node, design] == pytest.approx(last.loc[node, f"{design}_pj"], rel=1e-12)


def test_all_contenders_are_within_flats_area_and_the_best_splits_are_no_worse() -> None:
    for _, rows in area_table(POINT).groupby("node"):
        own = rows.set_index("contender")
        flat, fused = own.loc["FLAT as published"], own.loc["FuseMax on FLAT's area"]
        assert (own["area_mm2"] <= flat["area_mm2"] * (1 + 1e-9)).all()
        assert flat["buffer_mib"] == 32 and flat["lanes"] == 256 and fused["speedup"] == 1
        assert own.loc["FLAT, its fastest split", "speedup"] <= flat["speedup"]
        assert own.loc["FLAT, its split of least energy", "relative_energy"] >= flat[
            "relative_energy"
        ] * (1 - 1e-12)


def test_fewer_and_slower_ports_take_longer() -> None:
    table = port_table(POINT)
    for design in ("flat", "fusemax"):
        assert table[f"{design}_slowdown"].is_monotonic_increasing
        assert table[f"{design}_slowdown"].iloc[0] >= 1
    # CACTI's cycle of the 16 MiB buffer
    assert table["fusemax_port_ns"].iloc[-1] == pytest.approx(29.3828)
    # by hand: an epoch of 138 cycles moves Q and K once for each of 64 steps and V once, two
    # lines and one a step, and the numerator of 64 lines in and out: 64 (2 + 1 + 2), the state
    # of max and denominator besides; with one port a line takes a cycle
    assert table["fusemax_slowdown"].iloc[2] == pytest.approx(64 * 5 / 138, rel=0.05)


@pytest.mark.slow
def test_the_study_writes_its_tables_figures_and_report(tmp_path: Path) -> None:
    path = run(tmp_path, models=["BERT"], lengths=["4K"])
    text = path.read_text()
    for name in ("energy", "shares", "ports"):
        assert f"]({name}.png)" in text and (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert len(pd.read_csv(tmp_path / "energy.csv")) == 2 * len(STEPS)


def test_an_unknown_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(EinfuseError, match="no model 'BART'"):
        run(tmp_path / "out", models=["BART"])
    assert not (tmp_path / "out").exists()
