"""Run the command line as a shell does: a process with its own streams, signals and limits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
QUICK = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

Shell = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Return a function that runs a line of shell with ``einfuse`` in it, in an empty folder."""
    tool = tmp_path.parent / f"{tmp_path.name}-bin"
    tool.mkdir()
    (tool / "einfuse").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m einfuse "$@"\n')
    (tool / "einfuse").chmod(0o755)

    def run(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
        path = f"{tool}{os.pathsep}{os.environ['PATH']}"
        known = {**os.environ, **QUICK, "PATH": path, "PYTHONPATH": str(SOURCE), **variables}
        done = subprocess.run(
            ["/bin/sh", "-c", line], cwd=tmp_path, env=known, text=True, capture_output=True,
            errors="replace", timeout=120, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return done

    return run
