"""The README's commands, each in an environment with torch and in one without it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from .conftest import Shell

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = re.findall(r"^(einfuse .*)$", README, re.MULTILINE)
MEASURED = "docs/measurements.md"
BLOCKER = """
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "triton"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])


sys.meta_path.insert(0, Blocker())
"""


def _prepare(shell: Shell, folder: Path) -> str:
    """Make what the README's commands take; return the folder that hides torch."""
    table = (ROOT / MEASURED).read_text(encoding="utf-8").split("```csv\n")[1].split("```")[0]
    (folder / "mine.csv").write_text(table)
    hidden = folder / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(BLOCKER)
    small = "--shape M=64,P=64,E=8,F=8 --seconds 2 --out mapping.yaml"
    done = shell(
        f"einfuse map --cascade attention/3-pass --architecture flat --objective edp {small}"
    )
    assert done.returncode == 0, done.stderr
    return f"{hidden}:{ROOT / 'src'}"


def _command(line: str) -> str:
    return shlex.join(shlex.split(line, comments=True))


def _is_long(line: str) -> bool:
    return any(word in line for word in ("study", "map", "explain", "measure", "validate"))


def test_every_command_of_the_readme_is_run() -> None:
    assert len(LINES) > 25


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_readme_runs_without_torch(
    line: str, shell: Shell, tmp_path: Path
) -> None:
    path = _prepare(shell, tmp_path)
    done = shell(_command(line), PYTHONPATH=path)
    if "needs torch" in line:
        assert done.returncode == 2
        assert "torch" in done.stderr
        assert done.stderr.count("\n") == 1
    else:
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in LINES if not _is_long(line)])
def test_a_command_of_the_readme_runs_with_torch(line: str, shell: Shell, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    _prepare(shell, tmp_path)
    done = shell(_command(line))
    assert done.returncode == 0, done.stderr
