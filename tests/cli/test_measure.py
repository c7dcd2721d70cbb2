"""``einfuse compile-check``, ``measure`` and ``calibrate``: what a user may get wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="kernels are measured with torch")

Command = Callable[..., Any]
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def test_an_unknown_architecture_is_answered_with_the_closest(einfuse: Command) -> None:
    pytest.importorskip("triton", reason="nothing can be compiled without triton")
    done = einfuse("compile-check", "--arch", "sm_91")
    assert done.returncode == 2
    assert "there is no 'sm_91'; did you mean 'sm_90'" in done.stderr


def test_an_unknown_kernel_is_answered_with_those_there_are(einfuse: Command) -> None:
    pytest.importorskip("triton", reason="nothing can be compiled without triton")
    done = einfuse("compile-check", "--kernel", "two-pas")
    assert done.returncode == 2
    assert "two-pass" in done.stderr


@pytest.mark.slow
def test_compile_check_prints_an_object_per_configuration(
    einfuse: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="nothing can be compiled without triton")
    monkeypatch.setenv("EINFUSE_CACHE_DIR", str(tmp_path))
    done = einfuse("compile-check", "--kernel", "window", "--arch", "sm_90", "--json")
    for entry in json.loads(done.stdout):
        assert entry["kernel"] == "window"
        assert entry["arch"] == "sm_90"
        assert {"registers", "shared_bytes", "spill_bytes"} <= entry.keys()
        assert entry["model"] == entry["compiled"]
        assert entry["model"]["EX2"] > 0


@no_gpu
@pytest.mark.parametrize("command", ["measure", "calibrate"])
def test_a_gpu_that_is_not_there_is_said(einfuse: Command, tmp_path: Path, command: str) -> None:
    out = tmp_path / ("rows.csv" if command == "measure" else "gpu.yaml")
    done = einfuse(command, "--device", "cuda", "--out", str(out))
    assert done.returncode == 2
    assert "sees no GPU on this machine" in done.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--out", "{}/rows.txt"), "ending in .csv or .jsonl"),
        (("--out", "{}/no/rows.csv"), "there is no folder"),
        (("--out", "{}/rows.csv", "--suite", "cora"), "did you mean 'core'"),
        (("--out", "{}/other.csv"), "expected the columns of a measurement file"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(
    einfuse: Command, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    given = [argument.format(tmp_path) for argument in arguments]
    done = einfuse("measure", "--device", "cpu", *given)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"


def test_a_calibration_needs_a_yaml_file(einfuse: Command, tmp_path: Path) -> None:
    done = einfuse("calibrate", "--device", "cpu", "--out", str(tmp_path / "cpu.json"))
    assert done.returncode == 2
    assert "ending in .yaml" in done.stderr


def test_a_short_measurement_says_how_to_go_on(einfuse: Command, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    done = einfuse("measure", "--device", "cpu", "--out", str(out), "--seconds", "1")
    assert done.returncode == 0
    assert "rows measured" in done.stdout
    assert "run again to go on" in done.stdout
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows
    assert {row["algorithm"] for row in rows} <= {"torch-3-pass", "sdpa-flash"}
