"""The figure of live bytes against sequence length."""

from __future__ import annotations

from pathlib import Path

import pytest

from einfuse.einsum.language.errors import EinfuseError
from einfuse.studies.footprint.study import buffer_table, run, traffic_table


def test_more_passes_grow_with_the_sequence_and_one_does_not() -> None:
    table = buffer_table([2**14, 2**20])
    live = table.pivot(index="length", columns="cascade", values="live_bytes")
    growth = live.loc[2**20] / live.loc[2**14]
    assert growth["attention/1-pass"] == 1
    # M times 256 queries dominates: 64 times the length, less what does not grow.
    assert growth["attention/3-pass"] == pytest.approx(64, rel=0.02)
    assert growth["attention/2-pass"] == pytest.approx(64, rel=0.02)


def test_the_one_pass_class_holds_what_fusemax_reserves() -> None:
    # FuseMax, section V: 256 queries hold Q, RM, RD, RNV and a tile of 256 keys and values.
    table = buffer_table([2**20]).set_index("cascade")
    assert table.live_bytes["attention/1-pass"] == 256 * (64 + 1 + 1 + 64) * 2 + 256 * 128 * 2


def test_the_traffic_bounds_stand_in_the_order_of_passes() -> None:
    table = traffic_table(4096, [0, 1024], 256).pivot(
        index="buffer_bytes", columns="cascade", values="bound_bytes"
    )
    assert (table["attention/3-pass"] > table["attention/2-pass"]).all()
    assert (table["attention/2-pass"] > table["attention/1-pass"]).all()


def test_a_run_writes_table_figure_and_report(tmp_path: Path) -> None:
    report = run(tmp_path, lengths=["1K", "1M"])
    assert {p.name for p in tmp_path.iterdir()} == {
        "buffer.csv",
        "buffer.png",
        "buffer.svg",
        "report.md",
    }
    assert "| attention/1-pass | `E*M0 + E + F*M0 + F + 2` | any of these |" in report.read_text()


def test_what_the_study_cannot_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(EinfuseError, match="has no --model"):
        run(tmp_path, models=["bert"])
    with pytest.raises(EinfuseError, match="a multiple of 256 such as 4K, found '100'"):
        run(tmp_path, lengths=["100"])
