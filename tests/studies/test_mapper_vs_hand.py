"""The study of the search against mappings by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from einfuse.einsum.language.errors import EinfuseError
from einfuse.studies.mapper_vs_hand.study import HANDS, comparison_table, run


def test_what_is_found_is_never_slower_and_says_what_it_does_otherwise() -> None:
    table = comparison_table(["BERT"], ["1K"]).set_index("design")
    assert (table["speedup"] >= 1 - 1e-12).all()
    assert table["optimal"].all()
    # by hand, for 256 keys and 256 queries: 2E + 10 slots of the vector unit in the paper, and E
    # to divide after each four tiles of keys; 2E + 9 of the array once key tiles are higher than it
    assert table["speedup"]["fusemax"] == pytest.approx(154 / 137)
    assert "M0 " in table["differs"]["fusemax"]


@pytest.mark.slow
def test_a_run_writes_table_figure_and_report(tmp_path: Path) -> None:
    report = run(tmp_path, models=["T5"], lengths=["1K"], product_seconds=20)
    assert {path.name for path in tmp_path.iterdir()} == {
        "least-products.csv", "mapper-vs-hand.csv", "mapper-vs-hand.png", "mapper-vs-hand.svg",
        "report.md",
    }  # fmt: skip
    for title in HANDS.values():
        assert f"Against {title}" in report.read_text()


def test_a_model_that_is_not_there_is_refused_before_any_search(tmp_path: Path) -> None:
    with pytest.raises(EinfuseError, match="no model 'GPT'"):
        run(tmp_path, models=["GPT"])
