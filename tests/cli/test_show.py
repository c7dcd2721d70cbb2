"""``einfuse show``, run as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from einfuse.cli import main

SHAPE = "E=64,F=64,P=4K,M=4K,M0=256"


class Run(NamedTuple):
    code: int
    output: str
    errors: str


class Show:
    """Run ``einfuse show`` in this process, as if from a shell whose output is piped."""

    def __init__(self, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self.patch, self.capture = patch, capture

    def __call__(self, *arguments: str) -> Run:
        self.patch.setattr(sys, "argv", ["einfuse", "show", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        code = left.value.code
        assert code is None or isinstance(code, int)
        return Run(code or 0, *self.capture.readouterr())


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    return Show(monkeypatch, capsys)


def test_show_prints_text_spaces_and_formulas_in_a_hundred_columns() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "einfuse", "show", "attention/1-pass"],
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "SLN[m1,m0,p] = exp(QK[m1,m0,p] - RM[m1+1,p])" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["QK", "E", "P", "M1", "M0", "mac", "E*M0*M1*P"] in rows
    assert ["all", "divide", "F*P"] in rows
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "\x1b" not in done.stdout


def test_show_at_a_shape_prints_numbers_beside_the_formulas(show: Show) -> None:
    done = show("attention/1-pass", "--shape", SHAPE)
    rows = [line.split() for line in done.output.splitlines()]
    assert ["QK", "E", "P", "M1", "M0", "mac", "E*M0*M1*P", "1,073,741,824"] in rows
    assert done.output.splitlines()[-1] == "shape: E=64, F=64, P=4096, M1=16, M0=256, M=4096"
    assert max(map(len, done.output.splitlines())) <= 100


def test_show_json_has_the_same_in_names(show: Show) -> None:
    shown = json.loads(show("attention/1-pass", "--json", "--shape", SHAPE).output)
    assert shown["shape"]["M1"] == 16
    assert shown["inputs"]["K"] == ["E", "M"]
    assert shown["outputs"] == ["AV"]
    assert shown["tensors"]["RM"] == {"ranks": ["M1", "P"], "extents": ["17", "4096"]}
    score = next(einsum for einsum in shown["einsums"] if einsum["name"] == "QK")
    assert score["space"] == ["E", "P", "M1", "M0"]
    assert score["section"] == "loop"
    assert score["operations"] == {"mac": {"formula": "E*M0*M1*P", "count": 2**30}}
    assert shown["totals"]["divide"] == {"formula": "F*P", "count": 64 * 4096}
    bare = json.loads(show("attention/3-pass", "--json").output)
    assert bare["shape"] is None
    assert bare["totals"]["divide"] == {"formula": "M*P", "count": None}


def test_a_part_that_no_point_reaches_counts_zero(show: Show, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("rank M\ninput A[M]\nY[] = A[m: m>=4]\n")
    shown = json.loads(show(str(path), "--json", "--shape", "M=4").output)
    assert shown["einsums"][0]["points"]["count"] == 0
    assert shown["einsums"][0]["operations"]["add"]["count"] == 0


def test_show_latex_prints_the_einsums_alone(show: Show) -> None:
    done = show("attention/3-pass", "--latex")
    assert done.output.startswith("\\begin{align*}\n")
    assert done.output.endswith("\\end{align*}\n")


def test_an_input_never_read_is_warned_of_on_standard_error(show: Show, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("rank M\ninput A[M], B[M]\nY[] = A[m]\n")
    done = show(str(path), "--json")
    assert done.code == 0
    assert done.errors == f"warning: {path}:2: input B is never read\n"
    json.loads(done.output)


def test_errors_exit_with_2_and_without_a_traceback(show: Show, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("rank M\ninput A[M]\nY[] = A[m] :: maxx(m)\n")
    done = show(str(path))
    assert (done.code, done.output) == (2, "")
    assert done.errors.splitlines() == [
        f"error: {path}:3:15: unknown operator to reduce with 'maxx'; did you mean 'max'?",
        "    Y[] = A[m] :: maxx(m)",
        "                  ^^^^^^^",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention/4-pass"], "no cascade and no file is called 'attention/4-pass'; did you mean"),
        (["attention/1-pass", "--shape", "E=64"], "ranks F, P, M1, M0 without a size"),
        (["attention/1-pass", "--shape", "E=64,Z=4"], "has no rank 'Z'"),
        (["attention/1-pass", "--shape", "E"], "expected RANK=SIZE"),
    ],
)
def test_bad_arguments_are_told(show: Show, arguments: list[str], message: str) -> None:
    done = show(*arguments)
    assert done.code == 2
    assert done.errors.startswith("error: ")
    assert message in done.errors
