"""Measurements: one timed case with everything needed to judge it, as CSV or JSON lines.

The first fifteen columns are those of the published tables of attention on GPUs, so that both
join on them; the rest is provenance and spread. A file is rewritten whole and renamed into
place at every row: whenever the program is stopped, the file holds complete rows only.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from einfuse.einsum import EinfuseError
from einfuse.files import require_writable as require_place
from einfuse.files import write_text

Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Measurement:
    """The time of one algorithm on one case; None where something does not apply or is unknown.

    ``value`` is the median in the unit that ``metric`` names. ``options`` holds what the other
    columns cannot: ``window=1024,sinks=4``. ``error_ratio`` is the error against the float64
    reference over what the check allows: the case was timed because it is at most 1.
    """

    source: str
    source_location: str
    gpu: str
    algorithm: str
    direction: str
    dtype: str
    batch: int
    heads_q: int
    heads_kv: int
    seqlen_q: int
    seqlen_k: int
    head_dim: int
    causal: bool
    metric: str
    value: float
    predicted_ms: float | None = None
    config: str = ""
    regs: int | None = None
    smem: int | None = None
    torch: str = ""
    triton: str = ""
    driver: str = ""
    sm_clock: int | None = None
    git_sha: str = ""
    date: str = ""
    seed: int = 0
    options: str = ""
    min_ms: float | None = None
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    repeats: int | None = None
    threads: int | None = None
    tflops: float | None = None
    error_ratio: float | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "heads_q", "heads_kv", "seqlen_q", "seqlen_k", "head_dim"):
            if getattr(self, name) < 1:
                raise EinfuseError(f"measurement: {name} must be at least 1, found {self!r}")
        if not (math.isfinite(self.value) and self.value > 0):
            raise EinfuseError(f"measurement: value must be positive, found {self.value}")

    @property
    def key(self) -> tuple[Value, ...]:
        """What was measured where: two rows with one key measure the same thing."""
        names = (*COLUMNS[2:14], "config", "options")
        return tuple(getattr(self, name) for name in names)

    def to_row(self) -> dict[str, Value]:
        """Return column -> value in the order of `COLUMNS`."""
        return asdict(self)


COLUMNS = tuple(field.name for field in fields(Measurement))
_TYPES = {field.name: str(field.type) for field in fields(Measurement)}


def read_measurements(path: Path) -> tuple[Measurement, ...]:
    """Return the measurements in a CSV or JSON-lines file; none if the file does not exist."""
    kind = _format(path)
    if not path.exists():
        return ()
    text = path.read_text(encoding="utf-8")
    rows = _rows_of_csv(path, text) if kind == ".csv" else _rows_of_jsonl(path, text)
    return tuple(_measurement(path, line, row) for line, row in rows)


def write_measurements(path: Path, measurements: Iterable[Measurement]) -> None:
    """Write a CSV or JSON-lines file in one step: a reader sees the old file or the new one."""
    kind = _format(path)
    rows = [measurement.to_row() for measurement in measurements]
    text = _csv_of(rows) if kind == ".csv" else "".join(f"{json.dumps(row)}\n" for row in rows)
    write_text(path, text)


def require_writable(path: Path) -> None:
    """Refuse a file that cannot be written before any time is spent on measuring for it."""
    _format(path)
    if path.exists() and not path.is_file():
        raise EinfuseError(
            f"{path}: expected a file to write measurements to, and to resume "
            f"from, found {'a directory' if path.is_dir() else 'no regular file'}"
        )
    require_place(path)


def _format(path: Path) -> str:
    if path.suffix not in (".csv", ".jsonl"):
        raise EinfuseError(f"{path}: expected a file name ending in .csv or .jsonl")
    return path.suffix


def _csv_of(rows: Iterable[Mapping[str, Value]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _rows_of_csv(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Value]]]:
    reader = csv.DictReader(io.StringIO(text))
    if text:
        _require_columns(path, reader.fieldnames or ())
    for row in reader:
        if None in row or None in row.values():
            raise EinfuseError(f"{path}:{reader.line_num}: expected {len(COLUMNS)} cells")
        yield reader.line_num, dict(row)


def _rows_of_jsonl(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Value]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise EinfuseError(f"{path}:{number}: expected JSON: {error.msg}") from None
        _require_columns(path, row if isinstance(row, dict) else ())
        yield number, row


def _require_columns(path: Path, found: Iterable[str]) -> None:
    names = list(found)
    missing = [name for name in COLUMNS if name not in names]
    unknown = [name for name in names if name not in COLUMNS]
    if missing or unknown:
        differences = [f"without {', '.join(missing)}"] if missing else []
        differences += [f"with {', '.join(unknown)}"] if unknown else []
        raise EinfuseError(
            f"{path}: expected the columns of a measurement file, found a file "
            f"{' and '.join(differences)}; choose another --out"
        )


def _measurement(path: Path, line: int, row: Mapping[str, Value]) -> Measurement:
    cells: dict[str, Value] = {}
    for name in COLUMNS:
        try:
            cells[name] = _cell(row[name], _TYPES[name])
        except ValueError:
            raise EinfuseError(
                f"{path}:{line}: column {name}: expected {_TYPES[name]}, found {row[name]!r}"
            ) from None
    return Measurement(**cells)  # type: ignore[arg-type]  # every cell has just been converted


def _cell(value: Value, type_name: str) -> Value:
    if type_name.endswith("| None") and value in ("", None):
        return None
    match type_name.removesuffix(" | None"):
        case "str":
            return str(value)
        case "bool":
            if str(value) not in ("True", "False"):
                raise ValueError(value)
            return str(value) == "True"
        case "int":
            return int(str(value))
        case _:
            return float(str(value))
