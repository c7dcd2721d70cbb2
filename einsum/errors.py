"""Errors that a user can mend; the command line prints them without a traceback."""

from __future__ import annotations

from .expression import Span


class EinfuseError(ValueError):
    """Something the user gave is wrong: the text says what was expected, found, and where."""


class CascadeError(EinfuseError):
    """A cascade that is wrong. Its text names source, line and column, and points with a caret."""

    def __init__(
        self, message: str, span: Span | None = None, text: str = "", source: str = "<cascade>"
    ) -> None:
        self.message = message
        self.span = span
        self.source = source
        super().__init__(_render(message, span, text, source))


def _render(message: str, span: Span | None, text: str, source: str) -> str:
    if span is None:
        return f"{source}: {message}"
    where = f"{source}:{span.line}:{span.column}: {message}"
    lines = text.splitlines()
    if not 1 <= span.line <= len(lines):
        return where
    line = lines[span.line - 1]
    end = span.end_column if span.end_line == span.line else len(line) + 1
    caret = " " * (span.column - 1) + "^" * max(1, end - span.column)
    return f"{where}\n    {line}\n    {caret}"
