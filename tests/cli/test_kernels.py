"""``einfuse kernels``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from einfuse.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = 0
    try:
        main(["kernels", *arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_table_has_a_line_for_every_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys)
    assert code == 0
    line = next(line for line in out.splitlines() if line.strip().startswith("one-pass "))
    assert "attention/1-pass" in line and "fp16 bf16 fp32" in line and "sm_80 sm_90" in line


def test_json_tells_all_that_the_registry_knows(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "--json")
    kernels = {kernel["name"]: kernel for kernel in json.loads(out)}
    assert kernels["flash-sigmoid"]["requires"] == ["sigmoid"]
    assert kernels["one-pass"]["limits"]["head_size"] == [1, 256]
    rows = kernels["one-pass"]["configurations"]
    assert {row["launch"] for row in rows} >= {"forward", "backward_q", "backward_kv"}
    assert all(row["source"] and row["warps"] in (1, 2, 4, 8, 16) for row in rows)


def test_one_kernel_is_shown_with_its_configurations(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "one-pass-hopper")
    assert "cascade:       attention/1-pass" in out and "block_p=128" in out


def test_an_unknown_kernel_is_a_user_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "four-pass")
    assert code == 2 and not out
    assert "there is no 'four-pass'; there are" in err


def tune(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = 0
    try:
        main(["tune", *arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.slow
def test_tuning_ranks_tiles_without_a_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("EINFUSE_CACHE_DIR", str(tmp_path))
    arguments = ("one-pass", "forward", "--tiles", "block_p=64:128,block_m=64", "--warps", "4")
    code, out, _ = tune(capsys, *arguments, "--stages", "2", "--head-size", "64", "--json")
    assert code == 0
    rows = json.loads(out)
    assert [row["tiles"]["block_p"] for row in rows if row["fit"]]
    assert all(row["registers"] > 0 and row["shared_bytes"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--tiles", "block_p=a"),
            "--tiles block_p: expected whole numbers as in 32:64, found 'a'",
        ),
        (("--tiles", "block_q=64"), "tiles: forward of kernel one-pass has block_p, block_m"),
        (("--tiles", "block_p=64", "--arch", "sm_1"), "architecture: expected one of sm_80"),
    ],
)
def test_tuning_answers_wrong_arguments(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    pytest.importorskip("triton")
    code, _, err = tune(capsys, "one-pass", "forward", *arguments)
    assert code == 2 and words in err
