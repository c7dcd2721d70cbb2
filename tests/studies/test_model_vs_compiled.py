"""The study that holds the model's instructions against the machine code."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="a launch is described with torch")

from einfuse.einsum.language.errors import EinfuseError
from einfuse.kernels.compiled import check as compile_check
from einfuse.kernels.compiled.check import Check
from einfuse.studies import run_study
from einfuse.studies.model_vs_compiled import study as model_vs_compiled

CHECKS = (
    Check(
        kernel="one-pass",
        label="forward_kernel head_size=64 float16",
        function="one_pass.forward_kernel",
        arch="sm_90",
        registers=168,
        shared_bytes=81920,
        spill_bytes=0,
        threads=256,
        model={"EX2": 66, "FMUL": 34},
        compiled={"EX2": 66, "FMUL": 36, "SHFL": 8},
        notes=("a note",),
    ),
)


def test_the_table_has_a_row_per_instruction_of_either_side() -> None:
    table = model_vs_compiled.comparison_table(CHECKS)
    rows = table[["instruction", "model", "compiled"]].itertuples(index=False, name=None)
    assert list(rows) == [("EX2", 66, 66), ("FMUL", 34, 36), ("SHFL", 0, 8)]


def test_the_report_shows_differences_and_their_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="the study needs triton's compiler")
    monkeypatch.setattr(compile_check, "list_tasks", lambda: ())
    monkeypatch.setattr(compile_check, "check_all", lambda *_, **__: iter(CHECKS))
    text = run_study("model-vs-compiled", tmp_path).read_text()
    assert "0 of 1 configurations are equal" in text
    assert "| 66 | 34 \\| 36 | 0 \\| 8 |" in text
    assert "- `one_pass.forward_kernel`: a note" in text
    assert (tmp_path / "counts.csv").read_text().startswith("kernel,function,configuration,arch")


def test_models_and_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EinfuseError, match="shipped kernel configurations"):
        run_study("model-vs-compiled", tmp_path, lengths=["4K"])
