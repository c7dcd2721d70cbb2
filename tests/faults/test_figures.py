"""Figures are drawn whatever the surroundings say of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Command, Shell

DRAWN = (
    "einfuse passes attention/3-pass --plot a.png",
    "einfuse simulate --design unfused --shape B=1,H=1,M=32,P=32,E=4,F=4 --plot a.png",
    "einfuse study footprint --length 1K --out out && cp out/buffer.png a.png",
)


@pytest.mark.parametrize(
    "command",
    [pytest.param(DRAWN[1]), *(pytest.param(c, marks=pytest.mark.slow) for c in DRAWN[::2])],
)
def test_a_backend_that_does_not_exist_changes_nothing(
    command: str, shell: Shell, tmp_path: Path
) -> None:
    plain = shell(command)
    assert plain.returncode == 0, plain.stderr
    first = (tmp_path / "a.png").read_bytes()
    (tmp_path / "rc").write_text("lines.linewidth: 9\nfont.size: 30\n")
    done = shell(command, MPLBACKEND="no such", MATPLOTLIBRC=str(tmp_path / "rc"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").read_bytes() == first


def test_a_name_of_no_kind_of_figure_is_refused_and_leaves_nothing(
    einfuse: Command, tmp_path: Path
) -> None:
    for name in ("xplot", "x.jpeg2", "x.txt"):
        for command in DRAWN[:2]:
            done = einfuse(command.replace("a.png", name).removeprefix("einfuse "))
            assert done.returncode == 2
            assert "expected a figure's name, ending in .png, .svg or .pdf" in done.stderr
    assert not list(tmp_path.iterdir())
