"""The cascades that come along, by name: ``load("attention/1-pass")``."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.errors import EinfuseError, closest
from einfuse.einsum.language.parser import parse

_FOLDER = Path(__file__).with_name("data")


def names() -> tuple[str, ...]:
    """Return the names of all cascades of the library, sorted.

    >>> "attention/1-pass" in names()
    True
    """
    return tuple(sorted(f"{p.parent.name}/{p.stem}" for p in _FOLDER.glob("*/*.txt")))


def load(name_or_path: str | Path) -> Cascade:
    """Return a cascade of the library, or the one in a file.

    Args:
        name_or_path: a name of the library, else the path of a text file in UTF-8.

    Raises:
        EinfuseError: neither a name nor a file (lists the closest names); CascadeError where
            the text is wrong.

    >>> load("attention/1-pass").outputs
    ('AV',)
    """
    name = str(name_or_path)
    if name in names():
        return _from_library(name)
    path = Path(name)
    if os.path.isfile(path):  # noqa: PTH113 (false for a name that is too long)
        return parse(_read(path), path.stem, str(path))
    raise EinfuseError(f"no cascade and no file is called '{name}'{closest(name, names())}")


@functools.cache
def _from_library(name: str) -> Cascade:
    path = _FOLDER / f"{name}.txt"
    return parse(path.read_text(encoding="utf-8"), name, name)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise EinfuseError(
            f"{path}: expected text in UTF-8, found byte 0x{error.object[error.start]:02x} "
            f"at offset {error.start}"
        ) from None
    except OSError as error:
        raise EinfuseError(f"{path}: cannot be read: {error.strerror}") from None
