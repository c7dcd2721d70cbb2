"""Rows of measured attention in the columns of the published tables, read and checked.

A cell that says nothing (blank, ``nan``, ``unknown``) is None; a cell that should be a number and
is other text is an error, which names file, line and column. Columns beyond the fifteen are kept.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from einfuse.einsum import EinfuseError, closest

Cell = str | int | float | bool | None

COLUMNS = (
    "source",
    "source_location",
    "gpu",
    "algorithm",
    "direction",
    "dtype",
    "batch",
    "heads_q",
    "heads_kv",
    "seqlen_q",
    "seqlen_k",
    "head_dim",
    "causal",
    "metric",
    "value",
)
_COUNTS = ("batch", "heads_q", "heads_kv", "seqlen_q", "seqlen_k")
_NOTHING = {"", "nan", "na", "n/a", "none", "null", "-", "?", "unknown", "unspecified", "not given",
            "not stated", "varies", "mixed"}  # fmt: skip
_TRUE = {"true", "t", "yes", "y", "1", "1.0", "causal"}
_FALSE = {"false", "f", "no", "n", "0", "0.0", "full", "dense", "non-causal", "noncausal"}
_WINDOW = re.compile(
    r"(?:sliding[ _-]?window|window(?:[ _-]?size)?|\bswa|\bsw)[\s_:=(,]*(?:of\s+)?(\d+)(k?)\b",
    re.IGNORECASE,
)
_WINDOWED = re.compile(r"sliding[ _-]?window|\bswa\b|\blocal attention\b", re.IGNORECASE)
_UNIT = {"": 1, "k": 1024, "m": 1024**2}


@dataclass(frozen=True, slots=True)
class AttentionRow:
    """One measurement; None for what its table does not say.

    ``head_dims`` are those of queries and keys, and of values. ``window`` is the number of keys
    that a query sees (0: all of them; None: a window of unknown width). ``columns`` are the cells
    as they were read, every column of the table.
    """

    line: int
    source: str
    location: str
    gpu: str
    algorithm: str
    direction: str
    dtype: str
    batch: int | None
    heads_q: int | None
    heads_kv: int | None
    seqlen_q: int | None
    seqlen_k: int | None
    head_dims: tuple[int, int] | None
    causal: bool | None
    window: int | None
    metric: str
    value: float | None
    columns: Mapping[str, Cell]

    @property
    def key(self) -> str:
        """Eight hexadecimal digits that tell what was measured, by whom: not the value.

        The same call given in ms and in TFLOP/s has one key.
        """
        told = (
            *(self.source, self.location, self.gpu, self.algorithm, self.direction, self.dtype),
            *(self.batch, self.heads_q, self.heads_kv, self.seqlen_q, self.seqlen_k),
            *(self.head_dims, self.causal, self.window),
        )
        text = "|".join(str(cell).strip().casefold() for cell in told)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def read_rows(path: Path) -> tuple[AttentionRow, ...]:
    """Return the rows of a CSV table.

    Raises:
        EinfuseError: no such file, no CSV, a column that is missing, or a cell that is not what
            its column holds; the text names file, line and column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise EinfuseError(f"{path}: expected a CSV table in UTF-8, found other bytes") from None
    except OSError as error:
        raise EinfuseError(f"{path}: cannot read: {error.strerror}") from None
    return tuple(
        parse_row(cells, line, f"{path}:{line}") for line, cells in _lines(text, str(path))
    )


def parse_row(cells: Mapping[str, object], line: int, where: str) -> AttentionRow:
    """Return one row from its cells (text or values); errors begin with ``where``.

    >>> cells = dict.fromkeys(COLUMNS, "") | {"seqlen_k": "4K", "head_dim": "576/512"}
    >>> row = parse_row(cells, 2, "table.csv:2")
    >>> row.seqlen_k, row.head_dims, row.causal
    (4096, (576, 512), None)
    """
    text = {name: _text(cells.get(name)) for name in cells if name is not None}
    counts = {name: _count(text[name], name, where) for name in _COUNTS}
    head_dims = _head_dims(text["head_dim"], where)
    value = _number(text["value"], where)
    causal, window = _mask(text)
    columns: dict[str, Cell] = {name: text[name] or None for name in text}
    columns |= counts
    if head_dims is not None:
        columns["head_dim"] = head_dims[0] if head_dims[0] == head_dims[1] else text["head_dim"]
    columns |= {"value": value}
    if text["causal"].casefold() in _TRUE | _FALSE:
        columns["causal"] = causal
    return AttentionRow(
        line=line,
        source=text["source"],
        location=text["source_location"],
        gpu=text["gpu"],
        algorithm=text["algorithm"],
        direction=text["direction"],
        dtype=text["dtype"],
        **counts,
        head_dims=head_dims,
        causal=causal,
        window=window,
        metric=text["metric"],
        value=value,
        columns=columns,
    )


def _lines(text: str, path: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Yield line number and cells; the header must name every column once."""
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
        if not header:
            raise EinfuseError(f"{path}: expected a table with the columns {', '.join(COLUMNS)}, "
                               "found an empty file")  # fmt: skip
        reader.fieldnames = header
        for name in COLUMNS:
            if name not in header:
                near = closest(name, header)
                raise EinfuseError(f"{path}:1: column {name} is missing{near}")
            if header.count(name) > 1:
                raise EinfuseError(f"{path}:1: column {name} is there twice")
        for cells in reader:
            if None in cells or None in cells.values():
                raise EinfuseError(
                    f"{path}:{reader.line_num}: expected {len(header)} cells, as in the header, "
                    f"found {'more' if None in cells else 'fewer'}"
                )
            yield reader.line_num, cells
    except csv.Error as error:
        raise EinfuseError(f"{path}:{reader.line_num}: not CSV: {error}") from None


def _text(cell: object) -> str:
    """Return a cell's text; nothing for None and NaN."""
    text = "" if cell is None else str(cell).strip()
    return "" if text.casefold() == "nan" else text


def _count(text: str, name: str, where: str) -> int | None:
    """Return a whole number of at least 1, such as ``4096``, ``4096.0`` or ``4K``."""
    if text.casefold() in _NOTHING:
        return None
    match = re.fullmatch(r"(\d+)(?:\.0*)?([kKmM]?)", text.replace(",", ""))
    size = int(match[1]) * _UNIT[match[2].lower()] if match else 0
    if size < 1:
        raise EinfuseError(
            f"{where}: column {name}: expected a whole number of at least 1, found '{text}'"
        )
    return size


def _head_dims(text: str, where: str) -> tuple[int, int] | None:
    """Return the head sizes of ``128`` or ``192/128``."""
    if text.casefold() in _NOTHING:
        return None
    parts = re.split(r"[/,+x]", text.strip("()[] "))
    if len(parts) > 2 or not all(re.fullmatch(r"\s*\d+(\.0*)?\s*", part) for part in parts):
        raise EinfuseError(
            f"{where}: column head_dim: expected a size such as 128, or 192/128 where values have "
            f"another, found '{text}'"
        )
    sizes = [int(float(part)) for part in parts]
    if min(sizes) < 1:
        raise EinfuseError(f"{where}: column head_dim: expected at least 1, found '{text}'")
    return sizes[0], sizes[-1]


def _number(text: str, where: str) -> float | None:
    """Return a finite number; None for a blank cell."""
    if text.casefold() in _NOTHING:
        return None
    try:
        number = float(text.replace(",", ""))
    except ValueError:
        raise EinfuseError(f"{where}: column value: expected a number, found '{text}'") from None
    return number if math.isfinite(number) else None


def _mask(text: Mapping[str, str]) -> tuple[bool | None, int | None]:
    """Return whether a row is causal, and its window.

    Tables have no column of their own for windows: their width stands in the options, the name
    of the algorithm or the place in the source.
    """
    cell = text["causal"].casefold().replace("_", " ").strip()
    causal: bool | None = None
    if cell in _TRUE or re.match(r"causal\b|bottom right|top left|sliding window|swa\b", cell):
        causal = True
    elif cell in _FALSE:
        causal = False
    told = " ".join(
        text.get(name, "") for name in ("options", "causal", "algorithm", "source_location")
    )
    widths = text.get("window", "")
    match = _WINDOW.search(told)
    if re.fullmatch(r"\d+", widths):
        return causal, int(widths)
    if match:
        return causal, int(match[1]) * _UNIT[match[2].lower()]
    return causal, None if _WINDOWED.search(told) else 0
