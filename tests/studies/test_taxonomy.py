"""The taxonomy of the zoo."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.parser import parse
from einfuse.einsum.library.cascades import load
from einfuse.einsum.library.zoo import entries
from einfuse.studies import run_study
from einfuse.studies.taxonomy.growth import Order, order_between
from einfuse.studies.taxonomy.masked_operations import kept_operations


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_study("taxonomy", tmp_path_factory.mktemp("taxonomy")).parent


@pytest.fixture(scope="module")
def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "taxonomy.csv").set_index("cascade")


def test_the_dense_corner_is_fusemax_table_1(table: pd.DataFrame) -> None:
    """Classes, and that only the 1-pass class holds no fiber of the sequence (section III)."""
    for name, passes, words in (("3-pass", 3, 1.0), ("2-pass", 2, 1.0), ("1-pass", 1, 0.0)):
        row = table.loc[f"attention/{name}"]
        assert (row.passes_over_keys, row.words_prefill) == (passes, words)
        assert (row.passes_over_queries, row.operations_prefill) == (1, 2.0)


def test_every_cascade_has_a_row(table: pd.DataFrame) -> None:
    assert list(table.index) == [entry.name for entry in entries()]


@pytest.mark.parametrize(
    ("name", "prefill", "decode"),
    [  # orders of the work that the papers state
        ("attention/causal", "n^2", "n"),
        ("attention/window", "n", "1"),
        ("attention/linear-causal", "n", "1"),
        ("attention/linear-decay", "n", "1"),
        ("attention/latent", "n^2", "n"),
        ("attention/shifted-groups", "n^2", ""),  # a quarter of dense
        ("attention/product-codes", "n^2", ""),  # an eighth of dense
        ("attention/landmark-retrieval", "n^2", "n"),  # a fiftieth
        ("attention/routing", "n^1.5", ""),
        ("mixer/monarch", "n^1.5", ""),
        ("attention/sparse-queries", "n log n", ""),
        ("attention/tree-search", "n log n", "log n"),
        ("attention/flow", "n", ""),
        ("attention/agent", "n", ""),
    ],
)
def test_work_grows_as_the_papers_say(
    table: pd.DataFrame, name: str, prefill: str, decode: str
) -> None:
    row = table.loc[name]
    assert row.operations_prefill_order == prefill
    assert (row.operations_decode_order if decode else "") == decode


def test_an_equality_with_data_leaves_one_coordinate() -> None:
    """A scatter: every one of the 3 points of T goes to one place of P."""
    text = """
    rank P, T
    input A[T], I[T]
    output B
    ON[p] = ge(p, 0)
    B[p] = A[t] * ON[p: I[t]==p] :: +(t)
    """
    assert kept_operations(parse(text), {"P": 7, "T": 3}) == 7 + 3


def test_kept_operations_are_those_of_the_whole_where_nothing_is_masked() -> None:
    """Dense attention by hand: E+F products, a maximum, exp and its difference, a sum; F/query."""
    n = {"E": 4, "F": 3, "P": 5, "M": 7}
    by_hand = 5 * 7 * (4 + 3 + 1 + 2 + 1) + 3 * 5
    assert kept_operations(load("attention/3-pass-deferred"), n) == by_hand


def test_what_is_behind_a_masked_score_is_not_counted() -> None:
    """Causal, 4 x 4: ten scores, each with E+F products, maximum, difference, exp and sum."""
    n = {"E": 2, "F": 3, "P": 4, "M": 4}
    assert kept_operations(load("attention/causal"), n) == 10 * (2 + 3 + 1 + 2 + 1) + 3 * 4


def test_disjoint_masks_add_up() -> None:
    text = """
    rank M, P
    input A[M,P]
    output D
    B[m,p] = exp(A[m: m<p, p])
    C[m,p] = exp(A[m: m>p, p])
    D[m,p] = B[m,p] + C[m,p]
    """
    assert kept_operations(parse(text), {"M": 4, "P": 4}) == 6 + 6 + 12


@pytest.mark.parametrize(
    ("lengths", "counts", "order"),
    [
        ((100, 200), (100, 283), Order(1.5)),
        ((100, 200), (0, 5), Order(0.0)),
        ((2**24, 2**48), (24 * 2**24 + 5, 48 * 2**48), Order(1.0, True)),
        ((2**24, 2**48), (24, 48), Order(0.0, True)),
        ((2**24, 2**48), (2**48 + 9 * 2**24, 2**96), Order(2.0)),
        ((2**24, 2**48), (2**36 + 9 * 2**24, 2**72 + 9 * 2**48), Order(1.5)),
        ((2**24, 2**48), (7, 7), Order(0.0)),
    ],
)
def test_orders_of_growth(lengths: tuple[int, int], counts: tuple[int, int], order: Order) -> None:
    assert order_between(lengths, counts) == order


def test_the_study_writes_table_figure_and_report(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "written-by.txt", "report.md", "taxonomy.csv", "taxonomy.png", "taxonomy.svg",
    }  # fmt: skip
    report = (folder / "report.md").read_text()
    assert "| 1 | attention/1-pass | `E*M0 + E + F*M0 + F + 2` | 1 |" in report
    assert "### recurrent" in report


def test_it_has_no_models_and_no_lengths(tmp_path: Path) -> None:
    with pytest.raises(EinfuseError, match="neither --model nor --length"):
        run_study("taxonomy", tmp_path, lengths=["4K"])
