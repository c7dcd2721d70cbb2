"""Measurements survive files, and files survive interruptions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from einfuse.einsum.language.errors import EinfuseError
from einfuse.kernels.measured.measurement import (
    COLUMNS,
    Measurement,
    read_measurements,
    require_writable,
    write_measurements,
)

# The header of the published tables of attention on GPUs.
PUBLISHED = (
    "source,source_location,gpu,algorithm,direction,dtype,batch,heads_q,heads_kv,seqlen_q,"
    "seqlen_k,head_dim,causal,metric,value"
)
ROW = Measurement(
    source="einfuse",
    source_location="a test",
    gpu="a GPU, with a comma",
    algorithm="one-pass",
    direction="fwd",
    dtype="float16",
    batch=2,
    heads_q=8,
    heads_kv=2,
    seqlen_q=1024,
    seqlen_k=1024,
    head_dim=64,
    causal=True,
    metric="ms",
    value=0.125,
    config='block_p=128; "quoted"',
    regs=168,
    min_ms=0.12,
    repeats=7,
)


def test_the_first_columns_are_those_of_the_published_tables() -> None:
    assert COLUMNS[:15] == tuple(PUBLISHED.split(","))


def test_provenance_columns_follow() -> None:
    wanted = "predicted_ms,config,regs,smem,torch,triton,driver,sm_clock,git_sha,date"
    assert ",".join(COLUMNS[15:25]) == wanted


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_rows_are_read_as_they_were_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    rows = (ROW, replace(ROW, causal=False, regs=None, error_ratio=0.5))
    write_measurements(path, rows)
    assert read_measurements(path) == rows


@given(
    text=st.text(st.characters(exclude_categories=("C",)), max_size=20),
    value=st.floats(min_value=1e-9, max_value=1e9),
    regs=st.none() | st.integers(0, 255),
)
def test_any_text_and_number_comes_back(
    tmp_path_factory: pytest.TempPathFactory, text: str, value: float, regs: int | None
) -> None:
    row = replace(ROW, options=text, value=value, regs=regs)
    for suffix in (".csv", ".jsonl"):
        path = tmp_path_factory.mktemp("rows") / f"rows{suffix}"
        write_measurements(path, [row])
        assert read_measurements(path) == (row,)


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    assert read_measurements(tmp_path / "none.csv") == ()


def test_no_temporary_file_is_left(tmp_path: Path) -> None:
    write_measurements(tmp_path / "rows.csv", (ROW,))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_rows_of_one_thing_have_one_key() -> None:
    assert ROW.key == replace(ROW, value=3.0, date="later", git_sha="other").key
    assert ROW.key != replace(ROW, gpu="another").key
    assert ROW.key != replace(ROW, options="window=64").key


def test_a_file_with_other_columns_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(EinfuseError, match=r"rows\.csv: expected the columns.*with a, b"):
        read_measurements(path)


def test_a_json_line_without_a_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = ROW.to_row()
    del row["gpu"]
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(EinfuseError, match="without gpu"):
        read_measurements(path)


@pytest.mark.parametrize(("text", "where"), [("{", ":1: expected JSON"), ("3\n", "without source")])
def test_what_is_no_json_row_is_refused(tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(EinfuseError, match=where):
        read_measurements(path)


def test_a_cell_of_another_type_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    write_measurements(path, [ROW])
    path.write_text(path.read_text().replace(",2,8,2,", ",two,8,2,"))
    with pytest.raises(EinfuseError, match=r"rows\.csv:2: column batch: expected int, found 'two'"):
        read_measurements(path)


def test_a_row_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    write_measurements(path, [ROW])
    path.write_text(path.read_text()[:-40] + "\n")
    with pytest.raises(EinfuseError, match=r"rows\.csv:2: expected \d+ cells"):
        read_measurements(path)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_must_be_positive(value: float) -> None:
    with pytest.raises(EinfuseError, match="value must be positive"):
        replace(ROW, value=value)


def test_sizes_must_be_positive() -> None:
    with pytest.raises(EinfuseError, match="batch must be at least 1"):
        replace(ROW, batch=0)


@pytest.mark.parametrize(
    ("name", "words"),
    [("rows.txt", "ending in .csv or .jsonl"), ("no/rows.csv", "there is no folder")],
)
def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(EinfuseError, match=words):
        require_writable(tmp_path / name)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "rows.csv"
    folder.mkdir()
    with pytest.raises(EinfuseError, match="found a directory"):
        require_writable(folder)
