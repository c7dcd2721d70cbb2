"""The FuseMax study: headline numbers, files, filters."""

from __future__ import annotations

import signal
from pathlib import Path

import pandas as pd
import pytest

from einfuse.einsum.language.errors import EinfuseError
from einfuse.files import undisturbed, write_text
from einfuse.studies import run_study
from einfuse.studies.fusemax import study as fusemax


@pytest.fixture(scope="module")
def headline() -> pd.DataFrame:
    workloads = fusemax.select_workloads()
    attention = {a: fusemax.attention_table(workloads, a) for a in fusemax.ACCOUNTINGS}
    layer = {a: fusemax.layer_table(workloads, attention[a], a) for a in fusemax.ACCOUNTINGS}
    return fusemax.headline_table(attention, layer)


def mean(headline: pd.DataFrame, quantity: str, part: str, baseline: str, accounting: str) -> float:
    row = headline[
        (headline["quantity"] == quantity)
        & (headline["part"] == part)
        & (headline["baseline"] == baseline)
        & (headline["accounting"] == accounting)
    ]
    return float(row["here_arithmetic_mean"].iloc[0])


@pytest.mark.parametrize(
    ("part", "baseline", "published"),
    [
        ("attention", "flat", 6.7226),
        ("layer", "flat", 5.3017),
        ("attention", "unfused", 10.0520),
        ("layer", "unfused", 7.6021),
    ],
)
def test_mean_speedups_are_the_papers(
    headline: pd.DataFrame, part: str, baseline: str, published: float
) -> None:
    here = mean(headline, "speed-up", part, baseline, "published")
    assert here == pytest.approx(published, abs=5e-5)


@pytest.mark.parametrize(
    ("accounting", "baseline", "known"),
    [
        ("published", "flat", 0.7945),  # the paper's 78.75 % without its overflow
        ("published-all-registers", "flat", 0.8783),
        ("published", "unfused", 0.7708),
        ("published-all-registers", "unfused", 0.8468),
    ],
)
def test_mean_energies_are_the_papers_without_its_overflow(
    headline: pd.DataFrame, accounting: str, baseline: str, known: float
) -> None:
    here = mean(headline, "energy", "attention", baseline, accounting)
    assert here == pytest.approx(known, abs=5e-5)


def test_geometric_means_of_speedups_are_the_papers(headline: pd.DataFrame) -> None:
    speedups = headline[headline["quantity"] == "speed-up"]
    for row in speedups.to_dict("records"):
        assert row["here_geometric_mean"] == pytest.approx(
            row["paper_tables_geometric_mean"], abs=5e-5
        )


def test_a_part_of_the_study_writes_all_its_files(tmp_path: Path) -> None:
    report = run_study("fusemax", tmp_path, models=["BERT"], lengths=["4K"])
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    for number in range(6, 13):
        for suffix in ("png", "svg", "csv"):
            assert any(n.startswith(f"figure-{number}-") and n.endswith(suffix) for n in names)
    text = report.read_text()
    assert "A part of the paper's points" in text
    for line in text.splitlines():
        if line.startswith("!["):
            assert (tmp_path / line.split("](")[1].rstrip(")")).is_file()
    assert not [name for name in names if name.startswith(".partial-")]
    table = pd.read_csv(tmp_path / "tables" / "attention.csv")
    assert set(table["length"]) == {"4K"}
    assert set(table["model"]) == {"BERT"}


def test_unknown_models_and_lengths_name_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(EinfuseError, match="no model 'GPT'; there is BERT, T5, TrXL, XLM"):
        run_study("fusemax", tmp_path, models=["GPT"])
    with pytest.raises(EinfuseError, match="no length '2K'"):
        run_study("fusemax", tmp_path, lengths=["2K"])
    with pytest.raises(EinfuseError, match="no study 'fusemx'; did you mean 'fusemax'"):
        run_study("fusemx", tmp_path)


def test_an_interrupted_write_leaves_no_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.md", "old")

    class StopError(Exception):
        pass

    def stop(_: object) -> None:
        raise StopError

    from einfuse.files import write_whole

    with pytest.raises(StopError):
        write_whole(tmp_path / "a.md", stop)
    assert [p.name for p in tmp_path.iterdir()] == ["a.md"]
    assert (tmp_path / "a.md").read_text() == "old"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EinfuseError, match="cannot be written"):
        write_text(tmp_path / "file" / "a.md", "text")


def test_ctrl_c_waits_for_what_is_being_written() -> None:
    done: list[str] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), undisturbed():
            signal.raise_signal(signal.SIGINT)
            done.append("written")
        assert done == ["written"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_ignored_ctrl_c_stays_ignored_while_something_is_written() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with undisturbed():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_part_of_the_study_claims_no_deviation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_study("fusemax", tmp_path, models=["T5"], lengths=["1K"])
    printed = capsys.readouterr().out
    assert "A part of the paper's points" in printed
    assert "times as fast" not in printed
