"""A map space under ``explicit`` retention and ``sequential`` composition, as its search sees it.

What may live where is the constraint ``homes``: levels of a tensor by its name, or by what it is to
an Einsum (its *role*); without it everything may live everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from math import prod
from typing import Any

import numpy as np

from einfuse.einsum import closest
from einfuse.mapper.errors import MappingError
from einfuse.mapper.machine.formula import Values
from einfuse.mapper.nest.reuse import REGISTERS, Traffic, Work
from einfuse.mapper.space.choices import Interrupted, Tally
from einfuse.mapper.space.constraints import ROLES, Homes
from einfuse.mapper.space.objective import Objective
from einfuse.mapper.space.space import MapSpace

from .einsum import Floats, Lanes, Level, Loops, Prices, Task
from .ways import Ways

_ANY = Homes(may=ROLES)


class ExplicitSpace:
    """The mappings of a space at one choice of the open splits, priced by an objective.

    Raises:
        MappingError: the space has what its search does not know, or a price is unknown.
    """

    def __init__(
        self,
        space: MapSpace,
        objective: Objective,
        sizes: Mapping[str, int],
        tally: Tally,
        expired: Callable[[], bool],
    ) -> None:
        self.space, self.objective, self.sizes = space, objective, sizes
        self.tally, self.expired = tally, expired
        self.facts, self.architecture, self.values = space.facts, space.architecture, space.values
        self._ways: dict[Any, Ways] = {}
        self._floors: dict[Any, Ways] = {}
        self._prices: dict[tuple[int, int], tuple[Floats, Floats]] = {}
        self._able: dict[str, tuple[str, ...]] = {}
        self._seen: dict[tuple[str, str], tuple[tuple[Level, ...], tuple[Lanes, ...]]] = {}
        self._priced: dict[tuple[str, str, float, float], tuple[Floats, Floats, Floats]] = {}
        check_space(space)

    @property
    def structures(self) -> int:
        """The choices of lanes and levels of an Einsum that were worked on."""
        return sum(ways.worked_on for ways in self._ways.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The Einsums in order."""
        return self.space.einsums

    @property
    def first_level(self) -> str:
        """The outermost memory on chip."""
        return self.space.memories[1]

    @cached_property
    def room(self) -> float:
        """Its words."""
        size = self.values[f"{self.first_level}.bytes"]
        return np.inf if size is None else float(size / self.values["word_bytes"])

    @cached_property
    def tensors(self) -> dict[str, frozenset[str]]:
        """What each Einsum reads or writes."""
        return {name: frozenset(self.space.touched(name)) for name in self.names}

    def holds(self, level: str, einsum: str, tensor: str) -> bool:
        """Whether a tensor may live at a level for an Einsum."""
        rule = self.rule(level)
        named = {tensor, self.role(einsum, tensor)}
        return bool(named & {*rule.must, *rule.may}) and self._fits(level, tensor)

    def rule(self, level: str) -> Homes:
        """Which tensors and roles have to live at a level, and which may."""
        homes = self.space.constraints.homes
        return _ANY if homes is None else homes.get(level, Homes())

    def role(self, einsum: str, tensor: str) -> str:
        """What a tensor is to an Einsum: of several operands the last is the ``weight``."""
        own = self.facts.einsums[einsum]
        if any(o.tensor == tensor for o in own.outputs):
            return "output"
        last = own.operands[-1].tensor
        return "weight" if len(own.operands) > 1 and tensor == last else "input"

    def prices(self, level: int, instances: int = 1) -> tuple[Floats, Floats]:
        """The columns of a word read and of a word written at a level (-1: the outermost)."""
        name = self.space.memories[level + 1]
        among = instances if name in self.architecture.instanced else 1
        key = (level, among)
        if key not in self._prices:
            kinds = (Traffic(1.0, 0.0), Traffic(0.0, 1.0))
            read, write = (self.vector(self.objective.access(name, t, among)) for t in kinds)
            self._prices[key] = read, write
        return self._prices[key]

    def vector(self, columns: Mapping[str, Values]) -> Floats:
        """Columns in the objective's order."""
        return np.array([float(columns.get(name, 0.0)) for name in self.objective.columns])

    def ways(self, einsum: str, loops: Loops, near: frozenset[str]) -> Ways:
        """The ways to run an Einsum under shared loops, with some of its tensors near."""
        key = (einsum, loops, near & self.tensors[einsum])
        if key not in self._ways:
            self._ways[key] = self._find(einsum, loops, key[2])
        return self._ways[key]

    def floor(self, einsum: str, near: frozenset[str], extra: Floats) -> Floats:
        """Figures that an Einsum does not go below under any shared loops."""
        key = (einsum, near & self.tensors[einsum])
        if key not in self._floors:
            self._floors[key] = self._find(einsum, (), key[1], every=True)
        return self._floors[key].bounds(extra)

    def _find(self, einsum: str, loops: Loops, near: frozenset[str], every: bool = False) -> Ways:
        if self.expired():
            raise Interrupted
        drained = self.space.constraints.drains == "read"
        tasks = [
            (
                self._task(einsum, unit, loops, near),
                Prices(
                    self.prices,
                    partial(self._work, einsum, unit),
                    partial(self._delivered, unit),
                    drained,
                ),
            )
            for unit in self._units(einsum)
        ]
        tally = Tally() if every else self.tally
        return Ways(tasks, self.objective, tally, self.expired, every)

    def _fits(self, level: str, tensor: str) -> bool:
        memories = self.architecture.file.memories
        held = None if level == REGISTERS else memories[level].holds
        return held is None or tensor in held

    def _units(self, einsum: str) -> tuple[str, ...]:
        """The units that may run an Einsum and whose prices are known."""
        if einsum not in self._able:
            units = self.space.units_of[einsum]
            able = (
                u for u in units if all(np.isfinite(v).all() for v in self._work(einsum, u, 1, 1))
            )
            self._able[einsum] = tuple(able)
            if not self._able[einsum]:
                raise MappingError(
                    f"{self.architecture.name}: the energy of {einsum} on {', '.join(units)} is "
                    "unknown, so no mapping has one; choose another objective"
                )
        return self._able[einsum]

    def _task(self, einsum: str, unit: str, loops: Loops, near: frozenset[str]) -> Task:
        own, tiles = self.facts.einsums[einsum], dict(loops)
        tensors = self.tensors[einsum]
        if (einsum, unit) not in self._seen:
            self._seen[einsum, unit] = self._levels(einsum, unit), self._lanes(einsum, unit)
        levels, lanes = self._seen[einsum, unit]
        return Task(
            own,
            unit,
            unit in self.space.pipelined,
            {rank: tiles.get(rank, self.sizes[rank]) for rank in own.ranks},
            {rank: self.sizes[rank] // tile for rank, tile in loops if rank in own.ranks},
            levels,
            lanes,
            {tensor: 0 if tensor in near else -1 for tensor in tensors},
            {tensor: self._feeding(tensor) for tensor in tensors},
        )

    def _feeding(self, tensor: str) -> frozenset[int]:
        memories = self.space.memories
        allowed = self.space.constraints.keep.get(tensor, memories)
        return frozenset(memories.index(level) - 1 for level in allowed)

    def _levels(self, einsum: str, unit: str) -> tuple[Level, ...]:
        """The levels inside the outermost memory, as an Einsum sees them."""
        tensors = self.tensors[einsum]
        found: list[Level] = []
        for name in (*self.space.memories[1:], REGISTERS):
            held = frozenset(t for t in tensors if self.holds(name, einsum, t))
            must = {
                t for t in tensors if {t, self.role(einsum, t)} & {*self.rule(name).must}
            } & held
            apart = name in self.architecture.instanced
            found.append(Level(name, self._words(name, einsum, unit), apart, frozenset(must), held))
        return tuple(found)

    def _words(self, level: str, einsum: str, unit: str) -> float:
        """The room of a level; of registers that beyond a word of each tensor, 0 if unlimited."""
        path = f"{unit}.{REGISTERS}.bytes" if level == REGISTERS else f"{level}.bytes"
        size = self.values[path]
        words = np.inf if size is None else float(size / self.values["word_bytes"])
        if level != REGISTERS:
            return words
        return 0.0 if size is None else words - len(self.tensors[einsum])

    def _lanes(self, einsum: str, unit: str) -> tuple[Lanes, ...]:
        """The dimensions of a unit."""
        own = self.facts.einsums[einsum]
        operands = {o.tensor: o.ranks for o in own.operands}
        outputs = {o.tensor: o.ranks for o in own.outputs}
        inputs = [r for t, r in operands.items() if self.role(einsum, t) == "input"]
        kinds = {
            "any": (frozenset({*operands, *outputs}), own.ranks),
            "none": (frozenset[str](), own.ranks),
            "operands": (frozenset(operands), own.ranks.difference(*inputs)),
            "outputs": (frozenset(outputs), own.ranks.difference(*outputs.values())),
        }
        shares = self.architecture.shares(unit)
        return tuple(
            Lanes(d, int(self.values[f"{unit}.{d}"]), *kinds[shares.get(d, "any")])
            for d in self.architecture.dimensions(unit)
        )

    def _work(
        self, einsum: str, unit: str, active: float, instances: float
    ) -> tuple[Floats, Floats, Floats]:
        """The columns of an Einsum's operations, and of a word of a lane's registers."""
        key = (einsum, unit, active, instances)
        if key not in self._priced:
            self._priced[key] = self._price(einsum, unit, active, instances)
        return self._priced[key]

    def _delivered(self, unit: str, lanes: Floats) -> Floats:
        """The columns of a word that goes between a memory and so many lanes, [lanes, column]."""
        return np.array([self.vector(self.objective.deliver(unit, 1.0, n)) for n in lanes])

    def _price(
        self, einsum: str, unit: str, active: float, instances: float
    ) -> tuple[Floats, Floats, Floats]:
        own = self.facts.einsums[einsum]
        done: dict[str, Values] = {}
        issued: dict[str, int] = {}
        for operation in own.operations:
            points = prod(self.sizes[rank] for rank in operation.ranks)
            done[operation.name] = done.get(operation.name, 0.0) + operation.times * points / active
            if operation.ranks == own.ranks:
                issued[operation.name] = issued.get(operation.name, 0) + operation.times
        work = Work(
            unit,
            prod(self.sizes[rank] for rank in own.ranks) / active,
            active,
            prod(self.values[f"{unit}.{d}"] for d in self.architecture.dimensions(unit)),
            done,
            issued,
            unit in self.space.pipelined,
            instances=instances,
        )
        traffic = (Traffic(0.0, 0.0), Traffic(1.0, 0.0), Traffic(0.0, 1.0))
        base, read, write = (self.vector(self.objective.compute(work, t)) for t in traffic)
        if not np.isfinite(base).all():
            return base, read, write
        return base, read - base, write - base


def check_space(space: MapSpace) -> None:
    """Refuse what the search under ``sequential`` composition does not know.

    Raises:
        MappingError: which part of the cascade, the architecture or the constraints it is.
    """
    where = f"{space.cascade.name} on {space.architecture.name}: under 'composition: sequential'"
    if len(space.memories) < 2:
        raise MappingError(
            f"{where} a mapping needs a memory on chip, and {space.architecture.name} has "
            f"{space.memories[0]} alone"
        )
    if space.facts.carried:
        raise MappingError(
            f"{where} the search knows no iterative ranks, and {space.cascade.name} carries "
            f"{', '.join(sorted(space.facts.carried))} on; search it without 'composition'"
        )
    sizes = next(iter(space.splits()))
    for name, einsum in space.facts.einsums.items():
        used = [u.tensor for u in (*einsum.operands, *einsum.outputs)]
        twice = [tensor for tensor in used if used.count(tensor) > 1]
        if twice:
            raise MappingError(
                f"{where} the search takes each tensor of an Einsum once, and {name} has "
                f"{twice[0]} twice; search it without 'composition'"
            )
        for access in (*einsum.operands, *einsum.outputs):
            points = prod(sizes[rank] for rank in access.ranks)
            if access.visited.words(sizes, sizes) < points:
                raise MappingError(
                    f"{where} the search takes each word that {name} reads of {access.name} for "
                    "one of its own, and some are the same (a window, a gather); search it "
                    "without 'composition'"
                )
    levels = (*space.memories[1:], REGISTERS)
    known = (*ROLES, *space.facts.ranks)
    for level, homes in (space.constraints.homes or {}).items():
        if level not in levels:
            raise MappingError(
                f"constraints: homes: unknown level '{level}'{closest(level, levels)}"
            )
        for name in (*homes.must, *homes.may):
            if name not in known:
                raise MappingError(
                    f"constraints: homes.{level}: expected a tensor, or one of {', '.join(ROLES)}; "
                    f"found '{name}'{closest(name, known)}"
                )
