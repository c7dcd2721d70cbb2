"""One printer: streams that are closed, full, or have few characters; signals that are ignored."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import SOURCE, Shell

COMMANDS = (
    "einfuse passes attention/1-pass",
    "einfuse show attention/1-pass",
    "einfuse evaluate --design fusemax --shape B=1,H=1,M=1K,P=1K,E=64,F=64",
    "einfuse zoo --family dense",
    "einfuse zoo --family dense --json",
    "einfuse kernels",
    "einfuse costs --component sram",
    "einfuse --help",
    "einfuse run attention/3-pass --shape E=2,F=2,P=2,M=4",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_or_closed_output_is_a_sentence(command: str, shell: Shell) -> None:
    if Path("/dev/full").exists():
        done = shell(f"{command} > /dev/full")
        expected = "error: standard output cannot be written: No space left on device\n"
        assert (done.returncode, done.stderr) == (2, expected)
    done = shell(f"{command} >&-")
    expected = "error: standard output is closed: open it, or send it to /dev/null\n"
    assert (done.returncode, done.stderr) == (2, expected)


def test_a_closed_input_or_error_changes_nothing_that_needs_neither(shell: Shell) -> None:
    whole = shell(COMMANDS[0])
    for closed in ("<&-", "2>&-", "<&- 2>&-", "2>/dev/full"):
        done = shell(f"{COMMANDS[0]} {closed}")
        assert (done.returncode, done.stdout) == (0, whole.stdout)
    assert shell("einfuse passes nothing 2>&- >&-").returncode == 2
    assert shell("einfuse passes nothing 2>&-").stdout == ""


@pytest.mark.parametrize("command", ["passes -", "derive -", "gradient - --with-respect-to Q"])
def test_a_closed_input_that_is_read_is_a_sentence(command: str, shell: Shell) -> None:
    done = shell(f"einfuse {command} <&-")
    assert (done.returncode, done.stdout) == (2, "")
    expected = "error: standard input is closed: pipe a text to it, or name a file\n"
    assert done.stderr == expected


def test_a_reader_that_leaves_is_not_an_error(shell: Shell) -> None:
    done = shell("einfuse zoo --json | head -1")
    assert (done.stdout, done.stderr) == ("[\n", "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("command", COMMANDS)
def test_other_encodings_get_plain_characters(command: str, encoding: str, shell: Shell) -> None:
    done = shell(command, PYTHONIOENCODING=encoding, COLUMNS="120")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert "?" not in done.stdout.replace("who says?", "")
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
