"""One printer: streams that are closed, full, or have few characters; signals that are ignored."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from einfuse.cli import main

from .conftest import SOURCE, Command, Shell

COMMANDS = (
    "passes attention/1-pass",
    "show attention/1-pass",
    "evaluate --design fusemax --shape B=1,H=1,M=1K,P=1K,E=64,F=64",
    "zoo --family dense",
    "kernels --json",
    "costs --component sram",
    "--help",
    "run attention/3-pass --shape E=2,F=2,P=2,M=4",
)


class _Full(io.RawIOBase):
    """A disk with no room."""

    def writable(self) -> bool:
        return True

    def write(self, content: object) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_or_closed_output_is_a_sentence(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = io.TextIOWrapper(io.BufferedWriter(_Full()))
    said = {
        full: "error: standard output cannot be written: No space left on device\n",
        None: "error: standard output is closed: open it, or send it to /dev/null\n",
    }
    for stream, expected in said.items():
        with monkeypatch.context() as patched, pytest.raises(SystemExit) as stop:
            patched.setattr(sys, "stdout", stream)
            main(command.split())
        assert stop.value.code == 2
        assert capsys.readouterr().err == expected
    with suppress(OSError):
        full.detach().close()


def test_a_full_or_closed_output_of_a_process_is_a_sentence(shell: Shell) -> None:
    done = shell(f"einfuse {COMMANDS[0]} >&-")
    expected = "error: standard output is closed: open it, or send it to /dev/null\n"
    assert (done.returncode, done.stderr) == (2, expected)
    if Path("/dev/full").exists():
        done = shell("einfuse kernels > /dev/full")
        expected = "error: standard output cannot be written: No space left on device\n"
        assert (done.returncode, done.stderr) == (2, expected)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_minds_closed_inputs_and_errors(command: str, shell: Shell) -> None:
    whole = shell(f"einfuse {command}")
    for closed in ("<&-", "2>&-", "<&- 2>&-", "2>/dev/full"):
        done = shell(f"einfuse {command} {closed}")
        assert (done.returncode, done.stdout) == (0, whole.stdout)
    assert shell(f"einfuse {command} >&-").returncode == 2
    assert shell(f"einfuse {command} >/dev/full").returncode == 2
    assert shell(f"einfuse {command} | head -1").stderr == ""


def test_an_error_that_cannot_be_told_is_told_nowhere(shell: Shell) -> None:
    done = shell("einfuse passes nothing 2>&-")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("command", ["passes -", "derive -", "gradient - --with-respect-to Q"])
def test_a_closed_input_that_is_read_is_a_sentence(
    command: str, einfuse: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    done = einfuse(command)
    assert (done.returncode, done.stdout) == (2, "")
    expected = "error: standard input is closed: pipe a text to it, or name a file\n"
    assert done.stderr == expected


def test_a_reader_that_leaves_is_not_an_error(shell: Shell) -> None:
    done = shell("einfuse kernels --json | head -1")
    assert (done.stdout, done.stderr) == ("[\n", "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("command", COMMANDS)
def test_other_encodings_get_plain_characters(
    command: str, encoding: str, einfuse: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    done = einfuse(command, encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout) <= set(einfuse(command).stdout) | set("-|+'\"x*u?")
    assert encoding != "ascii" or "?" not in done.stdout
    if "--json" in command:
        assert json.loads(done.stdout)


def test_text_that_is_no_unicode_is_printed_too(shell: Shell) -> None:
    done = shell("einfuse show \"$(printf 'a\\377b')\"", PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_an_ignored_interrupt_stays_ignored(tmp_path: Path) -> None:
    """As a shell starts ``make study &``."""
    line = [sys.executable, "-m", "einfuse", "study", "footprint", "--out", str(tmp_path / "out")]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a child inherits what is ignored
    try:
        child = subprocess.Popen(
            line, env={**os.environ, "PYTHONPATH": str(SOURCE)}, stdout=subprocess.DEVNULL
        )
    finally:
        signal.signal(signal.SIGINT, before)
    while child.poll() is None:
        child.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert child.returncode == 0
    assert (tmp_path / "out" / "report.md").is_file()
