"""Errors that a user can mend; the command line prints them without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from .expression import Span

_WIDTH = 200  # characters of a line that an error shows
_TIE = 0.05  # names this much less alike than the closest one are left out


class EinfuseError(ValueError):
    """Something the user gave is wrong: the text says what was expected, found, and where."""


class CascadeError(EinfuseError):
    """A cascade that is wrong. Its text names source, line and column, and points with a caret."""

    def __init__(
        self, message: str, span: Span | None = None, text: str = "", source: str = "<cascade>"
    ) -> None:
        self.message = message
        self.span = span
        self.text = text
        self.source = source
        super().__init__(_render(message, span, text, source))

    @property
    def line(self) -> int | None:
        """The line it points at, counted from 1."""
        return self.span.line if self.span else None

    @property
    def column(self) -> int | None:
        """The column it points at, counted from 1."""
        return self.span.column if self.span else None

    def __reduce__(self) -> tuple[type[CascadeError], tuple[str, Span | None, str, str]]:
        """Pickle by its parts, so that it crosses processes whole."""
        return type(self), (self.message, self.span, self.text, self.source)


class Located(Protocol):
    """What knows its text: a cascade."""

    @property
    def text(self) -> str:
        """The text it was parsed from, or nothing."""

    @property
    def source(self) -> str:
        """Where that text came from."""

    @property
    def name(self) -> str:
        """What it is called."""


@contextmanager
def located(cascade: Located) -> Iterator[None]:
    """Give a `CascadeError` from inside the cascade's source and text, to point into."""
    try:
        yield
    except CascadeError as error:
        source = cascade.source or cascade.name
        raise CascadeError(error.message, error.span, cascade.text, source) from None


class CascadeWarning(UserWarning):
    """A cascade that is right and probably not what was meant."""


def _render(message: str, span: Span | None, text: str, source: str) -> str:
    if span is None:
        return f"{source}: {message}"
    where = f"{source}:{span.line}:{span.column}: {message}"
    lines = text.split("\n")
    if not text or not 1 <= span.line <= len(lines):
        return where
    line = lines[span.line - 1].rstrip("\r")
    end = span.end_column if span.end_line == span.line else len(line) + 1
    shown = slice(max(0, span.column - _WIDTH // 2), span.column + _WIDTH // 2)
    lead = "".join("\t" if c == "\t" else " " for c in line[shown.start : span.column - 1])
    caret = lead + "^" * max(1, min(end, shown.stop, len(line) + 1) - span.column)
    return f"{where}\n    {line[shown]}\n    {caret}"


def expect(value: object, kind: type | tuple[type, ...], name: str, what: str) -> None:
    """Refuse an argument of another kind than a function takes.

    >>> expect(3, str, "name", "a text")
    Traceback (most recent call last):
    einfuse.einsum.language.errors.EinfuseError: name: expected a text, found int
    """
    if not isinstance(value, kind):
        raise EinfuseError(f"{name}: expected {what}, found {type(value).__name__}")


def closest(name: object, known: Iterable[str]) -> str:
    """Return ``; did you mean 'exp'?`` or the list of what there is, to end an error with.

    >>> closest("expp", ["exp", "log"])
    "; did you mean 'exp'?"
    >>> closest("zzz", ["exp", "log"])
    '; there is exp, log'
    """
    known, name = sorted(known), str(name)
    by_case = {k.casefold(): k for k in known}

    def likeness(candidate: str) -> float:
        return difflib.SequenceMatcher(None, candidate, name.casefold()).ratio()

    near = difflib.get_close_matches(name.casefold(), by_case, n=3)
    near = [n for n in near if likeness(n) > likeness(near[0]) - _TIE]
    if near:
        return "; did you mean " + " or ".join(f"'{by_case[n]}'" for n in near) + "?"
    return "; there is " + ", ".join(known) if known else "; there is none"
