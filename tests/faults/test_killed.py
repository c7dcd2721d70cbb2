"""A command that is killed, or whose disk fills up, leaves the old file or the new one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import QUICK, SOURCE, Shell

WRITERS = {
    "passes attention/3-pass --plot": "a.png",
    "simulate --design unfused --shape B=1,H=1,M=32,P=32,E=4,F=4 --trace": "a.json",
    "simulate --design unfused --shape B=1,H=1,M=32,P=32,E=4,F=4 --plot": "a.svg",
    "run attention/3-pass --shape E=64,F=64,P=64,M=64 --output": "a.npz",
    "map --cascade peer/matmuls --architecture nvdla --shape B=1,M=4,N0=4,N1=4,N2=4 "
    "--seconds 1 --out": "a.yaml",
    "study footprint --length 1K --out": "out",
    "validate --no-leave-one-out --data mine.csv --out": "out",
}
KILLER = """
import os, signal, sys, runpy
from pathlib import Path
before = Path.replace
def replace(self, target):
    if int(os.environ["KILL_AT"]) == replace.count:
        os.kill(os.getpid(), signal.SIGKILL)
    replace.count += 1
    return before(self, target)
replace.count = 0
Path.replace = replace
runpy.run_module("einfuse", run_name="__main__")
"""


def _prepare(folder: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "measurements.md"
    table = page.read_text(encoding="utf-8").split("```csv\n")[1].split("```")[0]
    (folder / "mine.csv").write_text(table)


def _some_slow(first: int) -> list[object]:
    return [
        command if number < first else pytest.param(command, marks=pytest.mark.slow)
        for number, command in enumerate(WRITERS)
    ]


@pytest.mark.parametrize("command", _some_slow(1))
@pytest.mark.parametrize("at", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_before_a_file_takes_its_place_leaves_the_old_one(
    command: str, at: int, tmp_path: Path
) -> None:
    """A kill at any other moment leaves no more: only the last step shows under the name."""
    _prepare(tmp_path)
    place = tmp_path / WRITERS[command]
    if place.suffix:
        place.write_text("old")
    known = {**os.environ, **QUICK, "PYTHONPATH": str(SOURCE), "KILL_AT": str(at)}
    done = subprocess.run(
        [sys.executable, "-c", KILLER, *command.split(), place.name],
        cwd=tmp_path, env=known, capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode in ((-signal.SIGKILL,) if at == 0 else (0, -signal.SIGKILL)), done.stderr
    if place.suffix and at == 0:
        assert place.read_text() == "old"
    for path in [place, *place.glob("*")] if place.is_dir() else [place]:
        assert path.name.startswith(".partial-") or path.is_dir() or path.stat().st_size


@pytest.mark.parametrize("command", _some_slow(0))
def test_a_disk_that_fills_up_is_a_sentence_and_leaves_the_old_file(
    command: str, shell: Shell, tmp_path: Path
) -> None:
    _prepare(tmp_path)
    place = tmp_path / WRITERS[command]
    if place.suffix:
        place.write_text("old")
    done = shell(f"ulimit -f 0; einfuse {command} {place.name}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "cannot be written: File too large" in done.stderr
    if place.suffix:
        assert place.read_text() == "old"
    assert not list(tmp_path.rglob(".partial-*"))
