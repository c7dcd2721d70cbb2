"""What a user fixes of a mapping before the search: constraints as data.

::

    units: {QK: [array_2d]}       # the units that may run an Einsum
    keep: {K: [buffer]}           # the levels that may feed the units with a tensor
    exchange: [buffer]            # the levels at which fused Einsums may exchange tensors
    tiles: {P: [256, 512]}        # the tiles that loops over a rank may have
    tile_choices: divisors        # or powers, ragged, standard (divisors and powers of two)
    fuse: [[QK, GM]]              # Einsums that stand in one group
    split: [[SD, A]]              # Einsums that stand in different groups
    order: [P, M1]                # loops of groups and blocks over these, from outer to inner
    relations: ["P <= 4 * M0"]    # between tiles of loops, sizes and architecture parameters
    parallel: {QK: {M0: rows}}    # all ranks that an Einsum has in space; {QK: {}} for none
    innermost: {QK: E}            # the innermost loop of an Einsum in time
    forward: [QK]                 # tensors that may go from register to register; [] for none
    repeat: [F]                   # ranks whose loops may stand above Einsums without them; [] none
    double: [Q]                   # tensors that are kept twice, so that the next tile loads
    pipelined: [array_1d]         # which units overlap a point's operations, of those that may
    retention: explicit           # how the mapping counts: the options of a design file
    drains: read
    composition: sequential
    homes: {buffer: {must: [input], may: [K]}}  # what has to live at a level, and what may
    fused_loops: 1                # the most loops that Einsums of a group share

``retention``, ``drains`` and ``composition`` are those of a design (`einfuse.mapper.nest.reuse`,
`einfuse.simulator.cost.latency`), which the mapping that is found says too. Under ``sequential``
composition Einsums run one after the other, each against the memories; that search (see
`einfuse.mapper.sequential.search`) has any number of homes and tiles for a tensor, and knows
``homes`` and ``fused_loops``. A home is named by a tensor or by its role: of several operands of an
Einsum the last is the ``weight``, the others are each an ``input``.

A loop in a single step is none: the order is free at tiles of the whole rank, and a rank of which
the loops above leave one point need not be in space. A relation holds for every Einsum that has
all the ranks it names; a rank's name means what the loops of its group and block leave of it.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    NonNegativeInt,
    ValidationError,
    field_validator,
    model_validator,
)

from einfuse.mapper.errors import MappingError
from einfuse.mapper.machine.architecture import find_file
from einfuse.mapper.machine.extends import read_yaml
from einfuse.mapper.machine.spec import Spec, explain

TileChoices = Literal["standard", "divisors", "powers", "ragged"]
ROLES = ("input", "weight", "output")
"""What a tensor may be to an Einsum."""


class Homes(Spec):
    """Tensors, or roles of tensors, that have to live at a level, and those that may."""

    must: tuple[str, ...] = ()
    may: tuple[str, ...] = ()


class Constraints(Spec):
    """The constraints on a map space; without any of them everything is open."""

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise MappingError(explain(error, "constraints")) from None

    units: dict[str, tuple[str, ...]] = {}
    keep: dict[str, tuple[str, ...]] = {}
    exchange: tuple[str, ...] | None = None
    tiles: dict[str, tuple[int, ...]] = {}
    tile_choices: TileChoices = "standard"
    fuse: tuple[tuple[str, ...], ...] = ()
    split: tuple[tuple[str, str], ...] = ()
    order: tuple[str, ...] = ()
    relations: tuple[str, ...] = ()
    parallel: dict[str, dict[str, str]] = {}
    innermost: dict[str, str] = {}
    forward: tuple[str, ...] | None = None
    repeat: tuple[str, ...] | None = None
    double: tuple[str, ...] = ()
    pipelined: tuple[str, ...] | None = None
    retention: Literal["trailing", "explicit"] = "trailing"
    drains: Literal["free", "read"] = "free"
    composition: Literal["published", "sequential"] = "published"
    homes: dict[str, Homes] | None = None
    fused_loops: NonNegativeInt | None = None

    @field_validator("units", "keep", "tiles", mode="before")
    @classmethod
    def _one_or_more(cls, given: Any) -> Any:
        """Let ``{P: 256}`` stand for ``{P: [256]}``."""
        if not isinstance(given, dict):
            return given
        alone = {k: isinstance(v, str | int) and not isinstance(v, bool) for k, v in given.items()}
        return {k: [v] if alone[k] else v for k, v in given.items()}

    @field_validator("relations", mode="before")
    @classmethod
    def _relations(cls, given: Any) -> Any:
        """Let ``"P <= M0"`` stand for ``["P <= M0"]``."""
        return [given] if isinstance(given, str) else given

    @field_validator("tiles")
    @classmethod
    def _positive(cls, given: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        for rank, tiles in given.items():
            if not tiles or min(tiles) < 1:
                raise ValueError(f"rank {rank} needs tiles of at least 1, found {list(tiles)}")
        return given

    @model_validator(mode="after")
    def _go_together(self) -> Constraints:
        given = self.model_dump(exclude_defaults=True)
        if self.composition == "sequential":
            if self.retention != "explicit":
                raise ValueError(
                    "composition: sequential is searched with retention: explicit, found "
                    f"retention: {self.retention}"
                )
            known = "divisors, any number of them for a rank"
            unknown = {
                "tiles": f"its tiles are {known}",
                "tile_choices": f"its tiles are {known}",
                "double": "it keeps every tensor once",
                "forward": "every tensor has a home",
                "repeat": "nothing is computed anew",
                **dict.fromkeys(
                    ("order", "relations", "parallel", "innermost"), "its loops are free"
                ),
            }
            if given.get("tile_choices") == "divisors":
                del given["tile_choices"]
            for name in [name for name in unknown if given.get(name)]:
                raise ValueError(
                    f"the search under composition: sequential does not know '{name}': "
                    f"{unknown[name]}; leave it out"
                )
            return self
        for name in ("drains", "homes", "fused_loops"):
            if name in given:
                raise ValueError(
                    f"'{name}' is known to the search under retention: explicit with composition: "
                    "sequential alone; say these too, or leave it out"
                )
        return self

    @field_validator("units", "keep")
    @classmethod
    def _not_empty(cls, given: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, allowed in given.items():
            if not allowed:
                raise ValueError(f"{name} needs at least one, found []")
        return given

    @field_validator("order")
    @classmethod
    def _once(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        twice = [rank for rank in given if given.count(rank) > 1]
        if twice:
            raise ValueError(f"expected each rank once, found {twice[0]} twice")
        return given

    @field_validator("parallel")
    @classmethod
    def _one_each(cls, given: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        for name, ranks in given.items():
            for dimension in ranks.values():
                both = [rank for rank, one in ranks.items() if one == dimension]
                if len(both) > 1:
                    raise ValueError(f"{name}: expected one rank on {dimension}, found {both}")
        return given


Part = tuple[str, Any]  # a field, and the key or the place of an entry (None: the whole field)


def parts(given: Constraints) -> tuple[Part, ...]:
    """Return the entries that may each empty a space.

    >>> parts(Constraints(tiles={"P": (4,)}, fuse=(("A", "B"),), order=("P", "M")))
    (('tiles', 'P'), ('fuse', 0), ('order', None))
    """
    found: list[Part] = []
    for name in Constraints.model_fields:
        value = getattr(given, name)
        if name in _WHOLE:
            found += [(name, None)] if value != Constraints.model_fields[name].default else []
        elif isinstance(value, dict):
            found += [(name, key) for key in value]
        elif isinstance(value, tuple) and name not in _HARMLESS:
            found += [(name, place) for place in range(len(value))]
    return tuple(found)


_SHOWN = 80  # characters of an entry that an error shows
_WHOLE = ("exchange", "tile_choices", "order", "forward", "repeat")
_HARMLESS = ("pipelined", "retention")  # leave no less


def without(given: Constraints, dropped: Collection[Part]) -> Constraints:
    """Return the constraints without some entries.

    >>> without(Constraints(fuse=(("A", "B"), ("C", "D"))), [("fuse", 0)]).fuse
    (('C', 'D'),)
    """
    changed: dict[str, Any] = {}
    for name in {name for name, _ in dropped}:
        value = getattr(given, name)
        gone = {key for field, key in dropped if field == name}
        if None in gone:
            changed[name] = Constraints.model_fields[name].default
        elif isinstance(value, dict):
            changed[name] = {key: one for key, one in value.items() if key not in gone}
        else:
            changed[name] = tuple(one for place, one in enumerate(value) if place not in gone)
    return given.model_copy(update=changed)


def describe(given: Constraints, part: Part) -> str:
    """Return an entry as the file has it.

    >>> describe(Constraints(relations=("P <= M0",)), ("relations", 0))
    'relations[0] (P <= M0)'
    """
    name, key = part
    value = getattr(given, name)
    if key is None:
        return f"{name} ({_text(value)})"
    place = f"{name}.{key}" if isinstance(value, dict) else f"{name}[{key}]"
    return f"{place} ({_text(value[key])})"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_text(one)}" for key, one in value.items()) + "}"
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def parse_constraints(content: Any, where: str) -> Constraints:
    """Return the constraints of a YAML file's content; MappingError names the place of a fault.

    >>> parse_constraints({"tiles": {"P": 256}}, "here").tiles
    {'P': (256,)}
    """
    try:
        return Constraints.model_validate({} if content is None else content)
    except ValidationError as error:
        raise MappingError(explain(error, where)) from None


def load_constraints(name: str | Path) -> Constraints:
    """Return shipped constraints by their name, or those of a YAML file.

    >>> load_constraints("accelforge-nvdla").homes["registers"].must
    ('weight',)
    """
    path = find_file(name, "constraints", "constraints", MappingError)
    return parse_constraints(read_yaml(path), str(path))
