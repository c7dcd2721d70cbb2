"""The one place that writes files: whole or not there, links followed, devices never replaced."""

from __future__ import annotations

import io
import os
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from einfuse.einsum import EinfuseError

if TYPE_CHECKING:
    import pandas as pd

_MARK = "written-by.txt"


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a file that takes its place in one step, when it is complete.

    A symbolic link is followed. A device, a pipe, or the file that standard output goes to is
    written to as it is. The permissions of a file that is there stay; a new one has the umask's.

    Raises:
        EinfuseError: it cannot be written; what was there before is still there.
    """
    with _explained(path):
        found = _stat(path)
        if found is not None and not _is_replaced(found):
            content = io.BytesIO()
            write(content)
            _pour(path, found, content.getbuffer())
            return
        place = path.resolve()
        _require_place(path, place, found)
        handle, name = tempfile.mkstemp(prefix=".partial-", dir=place.parent)
        partial = Path(name)
        try:
            with os.fdopen(handle, "w+b") as file:
                write(file)
            partial.chmod(stat.S_IMODE(found.st_mode) if found else 0o666 & ~_umask())
            partial.replace(place)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole."""
    write_whole(path, lambda file: file.write(text.encode()))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, whole, numbers in full precision."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def require_writable(path: Path) -> None:
    """Refuse a file that cannot be written, before any time is spent on what goes there.

    Raises:
        EinfuseError: its folder is missing or read-only, its name too long, or it is a folder.
    """
    with _explained(path):
        found = _stat(path)
        if found is None or _is_replaced(found):
            place = path.resolve()
            _require_place(path, place, found)
            with tempfile.TemporaryFile(dir=place.parent):
                pass
        elif not os.access(path, os.W_OK):
            raise EinfuseError(f"{path}: cannot be written: no permission; choose another file")


def require_folder(path: Path, owner: str = "") -> None:
    """Make a folder to write to, before any time is spent on what goes there.

    ``owner`` is what will `sign_folder`: the files of two studies would mix in one folder.

    Raises:
        EinfuseError: it cannot be made, nothing can be written in it, or another's files are there.
    """
    with _explained(path):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
        mark = path / _MARK
        if owner and mark.is_file():
            found = mark.read_text(encoding="utf-8", errors="replace").strip()
            if found != owner:
                raise EinfuseError(
                    f"{path}: holds what '{found}' wrote ({_MARK} says so); choose another folder"
                )


def sign_folder(path: Path, owner: str) -> None:
    """Say in a folder what its files are from."""
    write_text(path / _MARK, owner + "\n")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put off Ctrl-C until the block is done: drawing may swallow it, or break on it.

    Outside the main thread, where no signal arrives, and where Ctrl-C is ignored (a shell starts
    jobs in the background so), it does nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    ignored = before in (signal.SIG_IGN, None)
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the system says of a path into a sentence."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise EinfuseError(f"{path}: cannot be written: {why}; choose another place") from None
    except RuntimeError as error:  # of `Path.resolve`, before Python 3.13
        if "loop" not in str(error):
            raise
        raise EinfuseError(f"{path}: cannot be written: links in a circle") from None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _is_replaced(found: os.stat_result) -> bool:
    return (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)) and not _streams_to(found)


def _streams_to(found: os.stat_result) -> list[int]:
    """Return the standard streams (1, 2) that go to a file."""

    def same(stream: int) -> bool:
        try:
            return os.path.samestat(found, os.fstat(stream))
        except OSError:
            return False

    return [stream for stream in (1, 2) if same(stream)]


def _pour(path: Path, found: os.stat_result, content: memoryview) -> None:
    """Write to what is not replaced: a device, a pipe, or where standard output goes."""
    streams = _streams_to(found)
    if streams and sys.stdout is not None:
        sys.stdout.flush()
    with os.fdopen(os.dup(streams[0]), "wb") if streams else path.open("wb") as file:
        file.write(content)


def _require_place(path: Path, place: Path, found: os.stat_result | None) -> None:
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise EinfuseError(f"{path}: cannot be written: it is a folder; name a file in it")
    if not place.parent.is_dir():
        folder = place.parent if path.is_symlink() else path.parent
        raise EinfuseError(f"{path}: cannot be written: there is no folder {folder}; make it first")
    if found is not None and not os.access(place, os.W_OK):
        raise EinfuseError(f"{path}: cannot be written: it is read-only; choose another file")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
