"""Run the command line in this process: quick, and with its real exit codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from einfuse.cli import main


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def einfuse(capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs ``einfuse`` with arguments."""

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        try:
            main(arguments)
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    return run
