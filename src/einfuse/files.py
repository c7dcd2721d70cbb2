"""Files that are whole or not there: written beside their place, then moved."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from einfuse.einsum import EinfuseError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, then move it to its place.

    Raises:
        EinfuseError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=path.suffix, prefix=".partial-", dir=path.parent)
    except OSError as error:
        raise EinfuseError(f"{path.parent}: cannot write here: {error.strerror}") from None
    os.close(handle)
    partial = Path(name)
    try:
        write(partial)
        partial.chmod(0o644)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def require_folder(path: Path) -> None:
    """Make a folder to write to, before any time is spent on what goes there.

    Raises:
        EinfuseError: it cannot be made, or nothing can be written in it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise EinfuseError(f"{path}: cannot write here: {error.strerror}") from None


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put off Ctrl-C until the block is done: drawing may swallow it, or break on it.

    Outside the main thread, where no signal arrives, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, whole, numbers in full precision."""
    write_whole(path, lambda partial: table.to_csv(partial, index=False, lineterminator="\n"))
