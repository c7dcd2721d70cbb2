"""The one place behind every print: streams that are closed, full, or know few characters.

Commands print as they like. Inside `standard_streams` a character that the terminal's encoding
lacks becomes a plain one, and a stream that cannot be written to or read from is an `EinfuseError`
with a sentence.
"""
# ruff: noqa: RUF001, RUF002 (the characters that look like plain ones are the subject)

from __future__ import annotations

import codecs
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from einfuse.einsum import EinfuseError

_PLAIN = str.maketrans(
    {
        **dict.fromkeys("─━╌┄═╴╶╸╺╼╾", "-"),
        **dict.fromkeys("│┃║┆╎", "|"),
        **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╯╰┏┓┗┛┡┩╇╈╞╡╪", "+"),
        **dict.fromkeys("–—−‐‑", "-"),
        **dict.fromkeys("‘’", "'"),
        **dict.fromkeys("“”", '"'),
        "…": "...",
        "→": "->",
        "←": "<-",
        "×": "x",
        "·": "*",
        "≤": "<=",
        "≥": ">=",
        "≠": "!=",
        "∞": "inf",
        "µ": "u",
        "μ": "u",
        "•": "*",
        "█": "#",
    }
)


def to_plain(text: str) -> str:
    """Return a text in ASCII: lines as ``-`` and ``|``, letters without accents, else ``?``.

    >>> to_plain("─ 3 × é ≤ 漢")
    '- 3 x e <= ?'
    """
    letters = unicodedata.normalize("NFKD", text.translate(_PLAIN))
    bare = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return bare.encode("ascii", "replace").decode("ascii")


class Output:
    """A text stream that says in a sentence why it cannot be written to.

    It stands for a stream (None: closed) in all else. A reader that went away is a
    `BrokenPipeError` as ever.
    """

    def __init__(self, stream: TextIO | None, name: str) -> None:
        self._stream = stream
        self._name = name

    def write(self, text: str) -> int:
        """Write a text; an EinfuseError says why it cannot be."""
        if self._stream is None:
            raise EinfuseError(f"{self._name} is closed: open it, or send it to /dev/null")
        try:
            return self._stream.write(text)
        except OSError as error:
            raise self._explained(error) from None
        except UnicodeEncodeError:
            return self._stream.write(_encodable(text, self._stream.encoding))

    def writelines(self, lines: Any) -> None:
        """Write texts, one after the other."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Send on what was written; an EinfuseError says why it cannot be."""
        try:
            if self._stream is not None:
                self._stream.flush()
        except OSError as error:
            raise self._explained(error) from None

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream is not None and self._stream.isatty()

    @property
    def encoding(self) -> str:
        """The encoding of its characters."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        if self._stream is None:
            raise EinfuseError(f"{self._name} is closed: open it, or send it to /dev/null")
        return getattr(self._stream, name)

    def _explained(self, error: OSError) -> Exception:
        if isinstance(error, BrokenPipeError):
            return error
        return EinfuseError(f"{self._name} cannot be written: {error.strerror or error}")


class Errors(Output):
    """Standard error: where it cannot be written to, nothing is said."""

    def write(self, text: str) -> int:
        """Write a text, if that is possible."""
        try:
            return super().write(text) if self._stream is not None else len(text)
        except (OSError, EinfuseError):
            return len(text)

    def flush(self) -> None:
        """Send on what was written, if that is possible."""
        try:
            super().flush()
        except (OSError, EinfuseError):
            return


class Closed:
    """A standard input that is not there."""

    def read(self, size: int = -1) -> str:
        """Refuse: there is nothing to read."""
        raise EinfuseError("standard input is closed: pipe a text to it, or name a file")

    def isatty(self) -> bool:
        """Whether it is a terminal: no."""
        return False


@contextmanager
def standard_streams() -> Iterator[None]:
    """Stand guard over standard output, error and input until the block is done."""
    _occupy()
    before = sys.stdin, sys.stdout, sys.stderr
    output, errors = Output(sys.stdout, "standard output"), Errors(sys.stderr, "standard error")
    sys.stdout, sys.stderr = cast(TextIO, output), cast(TextIO, errors)
    if sys.stdin is None:
        sys.stdin = cast(TextIO, Closed())
    try:
        yield
        output.flush()
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def forsake_output() -> None:
    """Let what is still held for a standard output that cannot be written go nowhere."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _encodable(text: str, encoding: str) -> str:
    """Return a text with plain characters where an encoding lacks one."""
    encode = codecs.getencoder(encoding)

    def known(character: str) -> bool:
        try:
            encode(character)
        except UnicodeEncodeError:
            return False
        return True

    return "".join(c if known(c) else to_plain(c) for c in text)


def _occupy() -> None:
    """Open the null device in place of standard streams that are closed.

    Else the next file that is opened would get their numbers, and what is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
