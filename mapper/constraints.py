"""What a user fixes of a mapping before the search: constraints as data.

::

    units: {QK: [array_2d]}       # the units that may run an Einsum
    keep: {K: [buffer]}           # the levels that may feed the units with a tensor
    exchange: [buffer]            # the levels at which fused Einsums may exchange tensors
    tiles: {P: [256, 512]}        # the tiles that loops over a rank may have
    tile_choices: divisors        # or powers, ragged, standard (divisors and powers of two)
    fuse: [[QK, GM]]              # Einsums that stand in one group
    split: [[SD, A]]              # Einsums that stand in different groups
    forward: [QK]                 # tensors that may go from register to register; [] for none
    double: [Q]                   # tensors that are kept twice, so that the next tile loads
    pipelined: [array_1d]         # which units overlap a point's operations, of those that may
    retention: explicit           # see `einfuse.mapper.counts`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from .architecture import explain
from .errors import MappingError
from .extension import read_yaml

TileChoices = Literal["standard", "divisors", "powers", "ragged"]


class Constraints(BaseModel):
    """The constraints on a map space; without any of them everything is open."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    units: dict[str, tuple[str, ...]] = {}
    keep: dict[str, tuple[str, ...]] = {}
    exchange: tuple[str, ...] | None = None
    tiles: dict[str, tuple[int, ...]] = {}
    tile_choices: TileChoices = "standard"
    fuse: tuple[tuple[str, ...], ...] = ()
    split: tuple[tuple[str, str], ...] = ()
    forward: tuple[str, ...] | None = None
    double: tuple[str, ...] = ()
    pipelined: tuple[str, ...] | None = None
    retention: Literal["trailing", "explicit"] = "trailing"

    @field_validator("units", "keep", "tiles", mode="before")
    @classmethod
    def _one_or_more(cls, given: Any) -> Any:
        """Let ``{P: 256}`` stand for ``{P: [256]}``."""
        if not isinstance(given, dict):
            return given
        return {k: [v] if isinstance(v, str | int) else v for k, v in given.items()}

    @field_validator("tiles")
    @classmethod
    def _positive(cls, given: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        for rank, tiles in given.items():
            if not tiles or min(tiles) < 1:
                raise ValueError(f"rank {rank} needs tiles of at least 1, found {list(tiles)}")
        return given


def parse_constraints(content: Any, where: str) -> Constraints:
    """Return the constraints of a YAML file's content; MappingError names the place of a fault.

    >>> parse_constraints({"tiles": {"P": 256}}, "here").tiles
    {'P': (256,)}
    """
    try:
        return Constraints.model_validate(content or {})
    except ValidationError as error:
        raise MappingError(explain(error, where)) from None


def load_constraints(path: Path) -> Constraints:
    """Return the constraints of a YAML file."""
    return parse_constraints(read_yaml(path), str(path))
