"""Work that takes long is not silent, and never speaks to standard output."""

from __future__ import annotations

import io
import sys
import time

import pytest

from einfuse.progress import shown, track

from .conftest import Command


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _wait_for(stream: io.StringIO, words: str) -> None:
    while words not in stream.getvalue():
        time.sleep(0.01)


@pytest.mark.parametrize("kind", [io.StringIO, _Terminal])
def test_long_work_says_what_it_does_and_clears_the_line_of_a_terminal(
    kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = kind()
    monkeypatch.setattr(sys, "stderr", errors)
    with shown("weighing", silent_seconds=0.01) as say:
        _wait_for(errors, "weighing (")
        say("measuring")
        if errors.isatty():
            _wait_for(errors, "measuring (")
    said = errors.getvalue()
    assert said.endswith("\r\x1b[K" if errors.isatty() else "s)\n")


def test_items_are_counted_as_they_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = _Terminal()
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setattr("einfuse.progress.shown", lambda what: shown(what, silent_seconds=0.01))
    for item in track(iter("abc"), "spelling", 3):
        if item == "c":
            _wait_for(errors, "spelling: 2 of 3 (")


def test_short_work_and_a_closed_error_stream_are_silent(
    monkeypatch: pytest.MonkeyPatch, einfuse: Command
) -> None:
    assert einfuse("run attention/3-pass --shape E=2,F=2,P=2,M=4").stderr == ""
    monkeypatch.setattr(sys, "stderr", None)
    assert list(track([1, 2], "counting")) == [1, 2]


def test_work_that_fails_shows_its_own_error_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError), shown("dividing"):
        print(1 / 0)
