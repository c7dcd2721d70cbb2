"""Constants of kernels on GPUs: where they were fitted, on which rows, and whose are taken.

They belong to a kernel version, a GPU and a direction. Where these have none of their own, those of
the nearest relative stand in, in words: first of another direction on the same GPU, then of the
same version on the GPUs nearest to it, then of a related version; else the design's defaults.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from einfuse.einsum import EinfuseError

from .names import load_names
from .work import Direction

COLUMNS = ("kernel", "gpu", "direction", "constants", "rows", "mean_error", "fitted_on")
SHIPPED = Path(__file__).parents[1] / "data" / "gpu-constants.csv"
_OTHER_DIRECTIONS: dict[Direction, tuple[Direction, ...]] = {
    "fwd": ("fwd+bwd", "bwd"),
    "bwd": ("fwd+bwd", "fwd"),
    "fwd+bwd": ("bwd", "fwd"),
}


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose constants: a kernel version on a GPU in a direction."""

    kernel: str
    gpu: str
    direction: Direction

    def __str__(self) -> str:
        return f"{self.kernel} on {self.gpu}, {self.direction}"


@dataclass(frozen=True, slots=True)
class Constants:
    """At most three numbers, the keys of the rows they were fitted on, and the error on these."""

    owner: Owner
    values: Mapping[str, float]
    fitted_on: frozenset[str]
    mean_error: float


@dataclass(frozen=True, slots=True)
class Found:
    """Constants for a row: their values, and whose they are (None: the design's defaults)."""

    values: Mapping[str, float]
    owner: Owner | None
    own: bool

    def __str__(self) -> str:
        if self.own:
            return "own"
        return "defaults" if self.owner is None else f"from {self.owner}"


def find_constants(table: Mapping[Owner, Constants], owner: Owner) -> Found:
    """Return the constants to take for an owner.

    >>> find_constants({}, Owner("flash-attention-3", "h200", "fwd")).own
    False
    """
    for candidate in _candidates(owner):
        if candidate in table:
            return Found(table[candidate].values, candidate, candidate == owner)
    return Found({}, None, False)


def _candidates(owner: Owner) -> Iterator[Owner]:
    names = load_names()
    kernels = (owner.kernel, *names.relatives.get(owner.kernel, ()))
    gpus = (owner.gpu, *names.nearest.get(owner.gpu, ()))
    directions = (owner.direction, *_OTHER_DIRECTIONS[owner.direction])
    for kernel, gpu, direction in itertools.product(kernels, gpus, directions):
        yield Owner(kernel, gpu, direction)


def read_constants(path: Path = SHIPPED) -> dict[Owner, Constants]:
    """Return the constants of a CSV file written by `write_constants`.

    Raises:
        EinfuseError: no such file, other columns, or a cell that is not what it should be.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EinfuseError(f"{path}: cannot read constants: {error}") from None
    reader = csv.DictReader(io.StringIO(text))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise EinfuseError(
            f"{path}:1: expected the columns {', '.join(COLUMNS)} of fitted constants, found "
            f"{', '.join(reader.fieldnames or ()) or 'nothing'}"
        )
    found = [_constants(cells, f"{path}:{reader.line_num}") for cells in reader]
    return {one.owner: one for one in found}


def format_constants(constants: Iterable[Constants]) -> str:
    """Return constants as CSV, sorted by owner.

    >>> owner = Owner("flash-attention-3", "h100", "fwd")
    >>> one = Constants(owner, {"exposed": 0.25}, frozenset({"0123abcd"}), 0.031)
    >>> format_constants([one]).splitlines()[1]
    'flash-attention-3,h100,fwd,exposed=0.25,1,0.0310,0123abcd'
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in sorted(constants, key=lambda one: str(one.owner)):
        values = " ".join(f"{name}={value:.6g}" for name, value in one.values.items())
        keys = " ".join(sorted(one.fitted_on))
        owner = one.owner
        writer.writerow(
            (owner.kernel, owner.gpu, owner.direction, values, len(one.fitted_on),
             f"{one.mean_error:.4f}", keys)
        )  # fmt: skip
    return buffer.getvalue()


def _constants(cells: Mapping[str, str | None], where: str) -> Constants:
    def cell(name: str) -> str:
        text = cells.get(name)
        if text is None:
            raise EinfuseError(f"{where}: column {name}: expected a cell, found none")
        return text

    direction = cell("direction")
    if direction not in _OTHER_DIRECTIONS:
        raise EinfuseError(
            f"{where}: column direction: expected fwd, bwd or fwd+bwd, found '{direction}'"
        )
    values: dict[str, float] = {}
    for part in cell("constants").split():
        name, _, text = part.partition("=")
        try:
            values[name] = float(text)
        except ValueError:
            values[name] = math.nan
        if not math.isfinite(values[name]):
            raise EinfuseError(f"{where}: column constants: expected NAME=NUMBER, found '{part}'")
    try:
        error = float(cell("mean_error"))
    except ValueError:
        raise EinfuseError(f"{where}: column mean_error: expected a number") from None
    owner = Owner(cell("kernel"), cell("gpu"), direction)
    return Constants(owner, values, frozenset(cell("fitted_on").split()), error)
