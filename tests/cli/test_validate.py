"""``einfuse validate``: files, JSON, and what a user may get wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from einfuse.kernels.measured.measurement import Measurement, write_measurements
from einfuse.studies.validation.rows import COLUMNS
from einfuse.studies.validation.verdicts import PUBLISHED

Command = Callable[..., Any]


def some_rows(folder: Path, *cells: dict[str, str]) -> Path:
    """A table with rows like the first shipped one, but for some cells."""
    header, first, *_ = PUBLISHED.read_text(encoding="utf-8").splitlines()
    assert header == ",".join(COLUMNS)
    location = first.split('"')[1]
    plain = dict(zip(COLUMNS, first.replace(f'"{location}"', "a chart").split(","), strict=True))
    path = folder / "rows.csv"
    lines = [",".join({**plain, **own}[name] for name in COLUMNS) for own in cells]
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "gpu"), "--device: there is no 'gpu'"),
        (("--data", "nowhere.csv"), "nowhere.csv: cannot read: No such file"),
        (("--constants", "nowhere.csv"), "nowhere.csv: cannot read constants"),
        (("--fit", "a.csv", "--constants", "b.csv"), "leave --constants out"),
        (("--device", "cpu", "--fit", "a.csv"), "--fit: the constants of a CPU"),
        (("--device", "cuda", "--data", "a.csv"), "--device cuda measures its rows"),
    ],
)
def test_what_does_not_go_together_is_refused(
    einfuse: Command, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = einfuse("validate", "--out", str(tmp_path / "out"), *arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_cell_that_is_no_number_is_named(einfuse: Command, tmp_path: Path) -> None:
    path = some_rows(tmp_path, {}, {"seqlen_k": "long"})
    done = einfuse("validate", "--data", str(path), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "rows.csv:3: column seqlen_k: expected a whole number" in done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_a_gpu_that_is_not_there_is_said(einfuse: Command, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="a GPU is measured with torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = einfuse("validate", "--device", "cuda", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "sees no GPU on this machine" in done.stderr


def test_a_folder_that_cannot_be_made_is_said(einfuse: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = einfuse("validate", "--out", str(tmp_path / "file" / "out"))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_every_row_is_printed_with_its_prediction_or_why_not(
    einfuse: Command, tmp_path: Path
) -> None:
    fa2 = {"algorithm": "FlashAttention-2"}
    cells = (fa2, {"gpu": "GB200"}, {"causal": ""}, {**fa2, "source": "a lab", "value": "150"})
    path, out = some_rows(tmp_path, *cells), tmp_path / "out"
    done = einfuse(
        "validate", "--data", str(path), "--out", str(out), "--no-leave-one-out", "--json"
    )
    assert done.returncode == 0, done.stderr
    fitted, gpu, mask, fresh = json.loads(done.stdout)
    assert set(COLUMNS) <= fitted.keys()
    assert fitted["error"] == pytest.approx(fitted["predicted_ms"] / fitted["measured_ms"] - 1)
    # 3.5 * 4 * 16 * 32 * 1024^2 * 64 operations at 40 TFLOP/s
    assert fitted["measured_ms"] == pytest.approx(3.5 * 4 * 16 * 32 * 1024**2 * 64 / 40e9)
    assert abs(fresh["error"]) < 0.35
    assert not fresh["fitted"]
    assert "Blackwell" in gpu["skipped"]
    assert "factor of two" in mask["skipped"]
    assert {one.name for one in out.iterdir()} == {
        "written-by.txt", "results.csv", "scatter.png", "scatter.svg", "report.md"
    }  # fmt: skip
    assert "Where it fails, and why" in (out / "report.md").read_text()


def test_a_gpu_is_measured_then_judged(
    einfuse: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measuring itself is replaced: it writes two rows of a GPU that this machine has not."""
    pytest.importorskip("torch", reason="a GPU is measured with torch")
    from einfuse.kernels.measured import device, measuring

    def measure(cases: object, device: object, path: Path, *_: object) -> Iterator[None]:
        own = Measurement(
            "einfuse", "here", "NVIDIA H100 80GB HBM3", "sdpa-flash", "fwd", "float16", 4, 16, 16,
            4096, 4096, 128, False, "ms", 1.5,
        )  # fmt: skip
        write_measurements(path, [own, replace(own, algorithm="two-pass")])
        yield None

    monkeypatch.setattr(device, "find_device", lambda kind: object())
    monkeypatch.setattr(measuring, "measure_suite", measure)
    out = tmp_path / "out"
    arguments = ("--device", "cuda", "--out", str(out), "--no-leave-one-out", "--json")
    done = einfuse("validate", *arguments)
    assert done.returncode == 0, done.stderr
    flash, two_pass = json.loads(done.stdout)
    assert flash["kernel_version"] == "flash-attention-2"
    assert flash["measured_ms"] == 1.5
    assert two_pass["skipped"] == "kernel 'two-pass' is not modelled"
    assert (out / "measurements.csv").exists()
