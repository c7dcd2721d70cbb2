"""``einfuse show``, run as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SHAPE = "E=64,F=64,P=4K,M=4K,M0=256"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "einfuse", "show", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def test_show_prints_text_spaces_and_formulas_in_a_hundred_columns() -> None:
    done = run("attention/1-pass")
    assert (done.returncode, done.stderr) == (0, "")
    assert "SLN[m1,m0,p] = exp(QK[m1,m0,p] - RM[m1+1,p])" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["QK", "E", "P", "M1", "M0", "mac", "E*M0*M1*P"] in rows
    assert ["all", "divide", "F*P"] in rows
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "\x1b" not in done.stdout


def test_show_at_a_shape_prints_numbers_beside_the_formulas() -> None:
    done = run("attention/1-pass", "--shape", SHAPE)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["QK", "E", "P", "M1", "M0", "mac", "E*M0*M1*P", "1,073,741,824"] in rows
    assert done.stdout.splitlines()[-1] == "shape: E=64, F=64, P=4096, M1=16, M0=256, M=4096"
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_show_json_has_the_same_in_names() -> None:
    shown = json.loads(run("attention/1-pass", "--json", "--shape", SHAPE).stdout)
    assert shown["shape"]["M1"] == 16
    assert shown["inputs"]["K"] == ["E", "M"]
    assert shown["outputs"] == ["AV"]
    assert shown["tensors"]["RM"] == {"ranks": ["M1", "P"], "extents": ["17", "4096"]}
    score = next(einsum for einsum in shown["einsums"] if einsum["name"] == "QK")
    assert score["space"] == ["E", "P", "M1", "M0"]
    assert score["section"] == "loop"
    assert score["operations"] == {"mac": {"formula": "E*M0*M1*P", "count": 2**30}}
    assert shown["totals"]["divide"] == {"formula": "F*P", "count": 64 * 4096}
    bare = json.loads(run("attention/3-pass", "--json").stdout)
    assert bare["shape"] is None
    assert bare["totals"]["divide"] == {"formula": "M*P", "count": None}


def test_show_latex_prints_the_einsums_alone() -> None:
    done = run("attention/3-pass", "--latex")
    assert done.stdout.startswith("\\begin{align*}\n")
    assert done.stdout.endswith("\\end{align*}\n")


def test_an_input_never_read_is_warned_of_on_standard_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("rank M\ninput A[M], B[M]\nY[] = A[m]\n")
    done = run(str(path), "--json")
    assert done.returncode == 0
    assert done.stderr == f"warning: {path}:2: input B is never read\n"
    json.loads(done.stdout)


def test_errors_exit_with_2_and_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("rank M\ninput A[M]\nY[] = A[m] :: maxx(m)\n")
    done = run(str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"error: {path}:3:15: unknown operator to reduce with 'maxx'; did you mean 'max'?",
        "    Y[] = A[m] :: maxx(m)",
        "                  ^^^^^^^",
    ]
    for arguments in (["attention/4-pass"], ["attention/1-pass", "--shape", "E=64"]):
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr
