"""Rows of published tables: read, refused, and turned into milliseconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from einfuse.einsum.language.errors import EinfuseError
from einfuse.studies.validation.rows import COLUMNS, read_rows
from einfuse.studies.validation.verdicts import PUBLISHED
from einfuse.studies.validation.work import Call, find_call, find_milliseconds

from .validation_models import BASE, row

HEADER = ",".join(COLUMNS)


def write(folder: Path, *lines: str, header: str = HEADER) -> Path:
    path = folder / "rows.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def line(**cells: object) -> str:
    return ",".join(str({**BASE, **cells}[name]) for name in COLUMNS)


def call(direction: str = "fwd", **sizes: object) -> Call:
    found = find_call(row(direction=direction, **sizes))
    assert isinstance(found, Call), found
    return found


# Printed beside each other in cudnn-frontend's table: Llama 3.1 70B's heads, 8k tokens, causal.
LLAMA = {"batch": 1, "heads_q": 64, "heads_kv": 8, "seqlen_q": 8192, "seqlen_k": 8192,
         "head_dim": 128, "causal": True}  # fmt: skip


def test_milliseconds_and_tflops_of_a_published_row_agree() -> None:
    assert find_milliseconds(call(**LLAMA), "tflops", 643.7) == pytest.approx(1.708, abs=2e-4)


@pytest.mark.parametrize(
    ("cells", "flops"),
    [
        ({}, 4 * 4 * 16 * 4096**2 * 128),
        ({"causal": True}, 2 * 4 * 16 * 4096**2 * 128),
        ({"direction": "bwd"}, 10 * 4 * 16 * 4096**2 * 128),
        ({"direction": "fwd+bwd", "causal": True}, 7 * 4 * 16 * 4096**2 * 128),
        ({"head_dim": "192/128"}, 4 * 4 * 16 * 4096**2 * 160),
        ({"heads_kv": 2}, 4 * 4 * 16 * 4096**2 * 128),
        # a window of 1024: S W - W^2/2 pairs, causal or not said
        ({"algorithm": "FA2 sliding window 1024", "causal": True},
         4 * 4 * 16 * 128 * (4096 * 1024 - 1024**2 // 2)),
        # two queries at the end of 4096 keys see 4095 and 4096 of them; counted as 4095
        ({"seqlen_q": 2, "causal": True}, 4 * 4 * 16 * 128 * 2 * 4095),
        ({"seqlen_q": 1, "causal": ""}, 4 * 4 * 16 * 128 * 4096),
    ],
)  # fmt: skip
def test_operations_follow_the_published_convention(cells: dict[str, object], flops: int) -> None:
    assert call(**cells).flops == flops


def test_bytes_of_latent_attention_agree_with_a_published_row() -> None:
    """FlashMLA's benchmark: 128 sequences of 4096, 64 heads, 0.223 ms and 2789 GB/s."""
    sizes = {"batch": 128, "heads_q": 64, "heads_kv": 1, "seqlen_q": 1, "head_dim": "576/512"}
    found = find_call(row(**sizes, causal=True), latent=True)
    assert isinstance(found, Call)
    assert find_milliseconds(found, "gb/s", 2789) == pytest.approx(0.223, abs=5e-4)


@pytest.mark.parametrize(
    ("metric", "value"),
    [("ms", 2.0), ("us", 2000.0), ("s", 0.002), ("tflops", 137.438953472)],
)
def test_metrics_of_one_time_agree(metric: str, value: float) -> None:
    """Causal, 2 * 4 * 16 * 4096^2 * 128 operations: 2 ms."""
    assert find_milliseconds(call(causal=True), metric, value) == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"causal": ""}, "ambiguous by a factor of two"),
        ({"causal": "unknown"}, "ambiguous by a factor of two"),
        ({"batch": ""}, "no batch given"),
        ({"head_dim": "nan", "seqlen_q": ""}, "no seqlen_q, head_dim given"),
        ({"heads_q": 6, "heads_kv": 4}, "no multiple of 4 key heads"),
        ({"direction": "sideways"}, "expected fwd, bwd or fwd.bwd"),
        ({"algorithm": "FA2 (sliding window)"}, "width is not given"),
    ],
)
def test_what_a_row_does_not_tell_is_said(cells: dict[str, object], reason: str) -> None:
    found = find_call(row(**cells))
    assert isinstance(found, str)
    assert reason.replace(".", "+") in found or reason in found


@pytest.mark.parametrize("text", ["192/128", "192, 128", "(192,128)", "192+128", "192.0/128"])
def test_head_sizes_of_two_kinds_are_read(text: str) -> None:
    assert row(head_dim=text).head_dims == (192, 128)


def test_blank_key_lengths_and_heads_are_those_of_the_queries() -> None:
    found = call(heads_kv="", seqlen_k=float("nan"))
    assert (found.heads_kv, found.seqlen_k) == (16, 4096)


def test_a_row_in_two_metrics_has_one_key() -> None:
    assert row(metric="ms", value=3).key == row().key
    assert row(seqlen_q=1024).key != row().key
    assert row(source="another lab").key != row().key


def test_the_shipped_table_is_read_whole() -> None:
    rows = read_rows(PUBLISHED)
    assert len(rows) == 147
    assert all(one.causal is not None and one.value for one in rows)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"batch": "many"}, "rows.csv:3: column batch: expected a whole number of at least 1, "
                            "found 'many'"),
        ({"seqlen_q": -4}, "rows.csv:3: column seqlen_q"),
        ({"heads_q": 0}, "rows.csv:3: column heads_q"),
        ({"batch": 1.5}, "rows.csv:3: column batch"),
        ({"value": "fast"}, "rows.csv:3: column value: expected a number, found 'fast'"),
        ({"head_dim": "1/2/3"}, "rows.csv:3: column head_dim"),
        ({"head_dim": "big"}, "rows.csv:3: column head_dim"),
    ],
)  # fmt: skip
def test_text_in_a_number_column_is_refused_by_row_and_column(
    tmp_path: Path, cells: dict[str, object], words: str
) -> None:
    with pytest.raises(EinfuseError) as error:
        read_rows(write(tmp_path, line(), line(**cells)))
    assert words in str(error.value)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(EinfuseError, match=r"rows.csv:1: column causal is missing"):
        read_rows(write(tmp_path, header=HEADER.replace(",causal", "")))


@pytest.mark.parametrize("lines", [(line() + ",more",), (line().rsplit(",", 1)[0],)])
def test_rows_of_another_width_are_refused(tmp_path: Path, lines: tuple[str, ...]) -> None:
    with pytest.raises(EinfuseError, match=r"rows.csv:2: expected 15 cells"):
        read_rows(write(tmp_path, *lines))


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EinfuseError, match="found an empty file"):
        read_rows(tmp_path / "empty.csv")
    with pytest.raises(EinfuseError, match="UTF-8"):
        read_rows(tmp_path / "binary.csv")
    with pytest.raises(EinfuseError, match=r"nowhere.csv: cannot read: No such file"):
        read_rows(tmp_path / "nowhere.csv")


def test_columns_of_the_table_are_kept_with_their_values(tmp_path: Path) -> None:
    (one,) = read_rows(write(tmp_path, line() + ",kept", header=HEADER + ",comment"))
    assert one.columns["comment"] == "kept"
    assert one.columns["batch"] == 4
    assert one.columns["causal"] is False
    assert one.columns["heads_kv"] is None
