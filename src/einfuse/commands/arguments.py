"""Reading ``B=64,H=12`` and printing JSON: what the commands share."""

from __future__ import annotations

import json
import math
import re
import sys
import warnings
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated

import typer

from einfuse.einsum import EinfuseError

if TYPE_CHECKING:
    from einfuse.einsum import Cascade

_SIZE = re.compile(
    r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*=\s*"
    r"([0-9]{1,30}(?:\.[0-9]{1,30})?(?:[eE]\+?[0-9]{1,2})?)([KkMmGgTt]?)\s*",
    re.ASCII,
)
_MOST = 2**62  # counts of it still go into 64 bits
Parameters = Annotated[
    list[str] | None,
    typer.Option("--set", help="parameters of the algorithm, such as window=512,sinks=4"),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        help="Charge it too: leakage, interconnect, ... (another word lists them); a,b or again."
    ),
]

_SHOWN = 60
_UNIT = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def parse_shape(text: str) -> dict[str, int]:
    """Return the rank sizes of ``B=64,M=4K`` (K = 1024, M = 1024^2, G = 1024^3, T = 1024^4).

    >>> parse_shape("B=64,M=4K,P=1e12")
    {'B': 64, 'M': 4096, 'P': 1000000000000}
    """
    shape: dict[str, int] = {}
    for part in filter(str.strip, text.split(",")):
        match = _SIZE.fullmatch(part)
        if match is None:
            raise EinfuseError(
                "--shape: expected RANK=SIZE with a whole size such as 4096, 4K or 1e6, found "
                f"'{part if len(part) < _SHOWN else part[:_SHOWN] + ' ...'}'"
            )
        rank, digits, unit = match.groups()
        if rank in shape:
            raise EinfuseError(f"--shape: rank {rank} is given twice")
        size = Fraction(digits) * _UNIT[unit.upper()]
        if size.denominator != 1 or not 1 <= size <= _MOST:
            raise EinfuseError(
                f"--shape: rank {rank} needs a whole size of at least 1 and at most 2^62, "
                f"found {part}"
            )
        shape[rank] = int(size)
    return shape


def load_cascade(name_or_path: str, settings: Sequence[str] = ()) -> Cascade:
    """Return a cascade of the library or of a file; its warnings go to standard error.

    Args:
        name_or_path: a name of the library, a file, or ``-`` for standard input.
        settings: parameters of the algorithm, such as ``window=512,sinks=4``.
    """
    from einfuse.einsum import load, parse

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        piped = name_or_path == "-"
        cascade = parse(sys.stdin.read(), "input", "<stdin>") if piped else load(name_or_path)
    for warning in caught:
        where = f"{warning.filename}:{warning.lineno}"
        print(f"warning: {where}: {warning.message}", file=sys.stderr)
    if not settings:
        return cascade
    from einfuse.einsum import with_parameters

    return with_parameters(cascade, parse_numbers(settings))


def parse_settings(texts: Sequence[str], option: str = "--set") -> dict[str, str]:
    """Return ``{name: value}`` of ``--set a=1 --set b=2,c=3``, values as text.

    >>> parse_settings(["array_1d.lanes=512", "clock_hz=1e9,buffer.bytes=1024"])
    {'array_1d.lanes': '512', 'clock_hz': '1e9', 'buffer.bytes': '1024'}
    """
    settings: dict[str, str] = {}
    for part in (part for text in texts for part in text.split(",") if part.strip()):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise EinfuseError(f"{option}: expected NAME=VALUE, found '{part}'")
        if name in settings:
            raise EinfuseError(f"{option}: {name} is given twice")
        settings[name] = value
    return settings


def parse_numbers(texts: Sequence[str], option: str = "--set") -> dict[str, float]:
    """Return the settings of ``--set``, values as numbers.

    >>> parse_numbers(["array_1d.lanes=512"])
    {'array_1d.lanes': 512.0}
    """
    numbers: dict[str, float] = {}
    for path, text in parse_settings(texts, option).items():
        try:
            numbers[path] = float(text)
        except ValueError:
            raise EinfuseError(
                f"{option}: {path} needs a number such as 512 or 1e9, found '{text}'"
            ) from None
        if not math.isfinite(numbers[path]):
            raise EinfuseError(f"{option}: {path} needs a finite number, found '{text[:_SHOWN]}'")
    return numbers


def parse_names(texts: Sequence[str], option: str) -> list[str]:
    """Return the names of an option that takes several, ``a,b`` or again.

    >>> parse_names(["leakage,ports", "multicast"], "--include")
    ['leakage', 'ports', 'multicast']
    """
    names = [name.strip() for text in texts for name in text.split(",")]
    if "" in names:
        raise EinfuseError(f"{option}: expected names joined by commas, found '{','.join(texts)}'")
    return names


def print_json(value: object) -> None:
    """Print strict JSON (no NaN, no infinity) on standard output."""
    print(json.dumps(value, indent=2, allow_nan=False))
