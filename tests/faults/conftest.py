"""The command line under faults: in this process where that is enough, else as a shell runs it.

A process of its own costs a second: only a case of each kind has one by default, all of them with
``make faults``.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from einfuse.cli import main

SOURCE = Path(__file__).parents[2] / "src"
QUICK = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


Shell = Callable[..., "subprocess.CompletedProcess[str]"]
Command = Callable[..., Done]


@pytest.fixture
def einfuse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Return a function that runs ``einfuse`` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(line: str | Sequence[str], encoding: str = "utf-8") -> Done:
        out, errors = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
        code = 0
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", out)
            patched.setattr(sys, "stderr", errors)
            try:
                main(line.split() if isinstance(line, str) else line)
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        texts = []
        for stream in (out, errors):
            stream.flush()
            assert isinstance(stream.buffer, io.BytesIO)
            texts.append(stream.buffer.getvalue().decode(encoding))
        return Done(code, *texts)

    return run


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
            errors="replace", timeout=300, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return done

    return run
