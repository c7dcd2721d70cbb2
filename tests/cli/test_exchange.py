"""``einfuse convert``, run as a user runs it; three files of other tools are read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import einfuse as ef

LAYER_SIZES = "B=2,P=3,H=2,E=2,S=5,D=3"


def _expressions(cascade: Any) -> list[Any]:
    return [einsum.expression for einsum in cascade.einsums]


@pytest.mark.parametrize("tool", ["teaal", "accelforge"])
@pytest.mark.parametrize("name", ["layer/gemms", "product", "split"])
def test_three_exported_files_are_read_back(
    einfuse: Callable[..., Any], tmp_path: Path, tool: str, name: str
) -> None:
    texts = {
        "product": "rank K, M, N\ninput A[K,M], B[K,N]\nZ[m,n] = A[k,m] * B[k,n]",
        "split": "rank E\nsplit M -> M1, M0\ninput A[E,M]\nB[e,m1,m0] = A[e,m1*M0+m0]\n"
        "Z[m1] = B[e,m1,m0] * B[e,m1,m0]",
    }
    shapes = {"product": "K=3,M=4,N=5", "split": "E=3,M1=2,M0=4", "layer/gemms": LAYER_SIZES}
    source = name
    if name in texts:
        source = str(tmp_path / f"{name}.txt")
        Path(source).write_text(texts[name])
    written = einfuse("convert", source, "--to", tool, "--shape", shapes[name])
    assert written.returncode == 0, written.stderr
    file = tmp_path / "written.yaml"
    file.write_text(written.stdout)
    back = einfuse("convert", str(file), "--from", tool)
    assert back.returncode == 0, back.stderr
    text = back.stdout
    (tmp_path / "back.txt").write_text(text)
    again = einfuse("convert", str(tmp_path / "back.txt"), "--to", tool)
    assert again.stdout == written.stdout
    if name == "layer/gemms":
        assert _expressions(ef.parse(text)) == _expressions(ef.load_cascade(name))


def test_accelforge_bits_stand_in_a_comment(einfuse: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text(
        "workload:\n  rank_sizes: {M: '{{N}}'}\n  bits_per_value: {All: 8}\n"
        '  einsums: ["Y[m] = A[m]"]\n'
    )
    done = einfuse("convert", str(file), "--from", "accelforge", "--set", "N=4")
    assert done.stdout.splitlines()[:2] == ["# bits per value: All 8", "rank M = 4"]


def test_latex_and_dot_are_written(einfuse: Callable[..., Any]) -> None:
    assert "\\begin{align*}" in einfuse("convert", "attention/1-pass", "--to", "latex").stdout
    assert einfuse("convert", "attention/1-pass", "--to", "dot").stdout.startswith("digraph")


def test_without_a_target_the_text_is_printed(einfuse: Callable[..., Any]) -> None:
    done = einfuse("convert", "attention/3-pass")
    assert ef.parse(done.stdout) == ef.load_cascade("attention/3-pass")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention/1-pass", "--to", "teaal"], "TeAAL cannot express a loop (iter m1 over M1)"),
        (
            ["attention/1-pass", "--to", "teal"],
            "--to: unknown format 'teal'; did you mean 'teaal'?",
        ),
        (["x.yaml", "--from", "timeloop"], "--from: unknown format 'timeloop'"),
        (["x.yaml"], "x.yaml: say what it is, with --from teaal or --from accelforge"),
        (["missing.yaml", "--from", "teaal"], "missing.yaml: No such file"),
        (["layer/gemms", "--to", "accelforge"], "rank"),
        (["layer/gemms", "--to", "teaal", "--shape", "X=3"], "X"),
    ],
)
def test_what_is_wrong_is_said(
    einfuse: Callable[..., Any], arguments: list[str], message: str
) -> None:
    done = einfuse("convert", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
