"""Why a mapping is the best: what binds it, what more of each resource is worth, what comes next.

Everything is found by searching again: with a resource doubled, or with one of the choices that
the mapping made forbidden. Costs are the score of the objective. The decisions are read from the
mapping as it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from einfuse.einsum import EinfuseError
from einfuse.mapper.design.design import Design
from einfuse.mapper.nest.nest import Branch, Compute, Keep, Nest, computes_of
from einfuse.mapper.space.constraints import Constraints
from einfuse.mapper.space.objective import Objective
from einfuse.mapper.space.space import MapSpace

from .search import SearchResult, find_best


@dataclass(frozen=True, slots=True)
class Ratio:
    """The cost of something else over that of the mapping: between two bounds, alike if proven."""

    least: float
    most: float

    @property
    def proven(self) -> float | None:
        """The ratio, if the search for it ended."""
        return self.most if self.least == self.most else None


@dataclass(frozen=True, slots=True)
class Alternative:
    """A decision of a mapping, and the best that the space has without it.

    ``ratio`` is None if nothing was found without it; ``note`` says why.
    """

    decision: str
    ratio: Ratio | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Worth:
    """What the best mapping costs with twice of a resource, over what it costs now."""

    resource: str
    ratio: Ratio | None


ObjectiveOf = Callable[[Any], Objective]


def find_worth(
    space: MapSpace, score: float, objective_of: ObjectiveOf, seconds: float
) -> tuple[Worth, ...]:
    """Return what twice the room, lanes and bandwidth are worth, each alone.

    Args:
        space: that of the mapping.
        score: what it costs.
        objective_of: architecture -> the objective at its prices.
        seconds: for each search; of one that does not end in time there are bounds.
    """
    architecture = space.architecture
    found: list[Worth] = []
    for path, value in architecture.parameters.items():
        resource = path.rsplit(".", 1)[-1]
        if resource not in _RESOURCES or value is None or not isinstance(value, int | float):
            continue
        more = architecture.with_settings({path: 2 * value})
        again = _search(replace(space, architecture=more), objective_of(more), seconds)
        ratio = _ratio(again, score)
        if ratio is not None:  # the mapping itself stays possible
            ratio = Ratio(min(ratio.least, 1.0), min(ratio.most, 1.0))
        found.append(Worth(path, ratio))
    return tuple(found)


_RESOURCES = (
    "bytes",
    "lanes",
    "rows",
    "columns",
    "bandwidth_bytes_per_s",
    "read_bandwidth_bytes_per_s",
    "write_bandwidth_bytes_per_s",
)


def find_alternatives(
    space: MapSpace, design: Design, score: float, objective: Objective, seconds: float
) -> tuple[Alternative, ...]:
    """Return for each decision of a mapping what the best mapping without it costs.

    Args:
        space: that of the mapping.
        design: the mapping, as a search writes it.
        score: what it costs.
        objective: what was minimised.
        seconds: for each search; of one that does not end in time there are bounds.
    """
    found: list[Alternative] = []
    for decision, constraints in forbid(space, design):
        other = None if constraints is None else _under(space, constraints)
        if other is None:
            found.append(Alternative(decision, None, "nothing else is possible"))
            continue
        ratio = _ratio(_search(other, objective, seconds), score)
        note = "" if ratio is not None else "no mapping was found without it"
        found.append(Alternative(decision, ratio, note))
    return tuple(found)


def forbid(space: MapSpace, design: Design) -> Iterator[tuple[str, Constraints | None]]:
    """Yield each decision of a mapping with constraints that forbid it; None if they leave none."""
    given = space.constraints

    def under(**changed: Any) -> Constraints:
        return given.model_copy(update=changed)

    inner = {split.inner for split in space.cascade.splits}
    for rank, formula in design.let:
        if rank in inner:
            size = int(np.asarray(formula.evaluate({})))
            choices = next(iter(_inner_choices(space, rank)), ())
            tiles = tuple(tile for tile in choices if tile != size)
            yield f"{rank} = {size}", under(tiles={**given.tiles, rank: tiles}) if tiles else None
    for leaves in _groups(design.nest):
        names = tuple(leaf.einsum for leaf in leaves)
        if len(names) > 1:
            pairs = (*given.split, (names[0], names[-1]))
            yield f"{names[0]} ... {names[-1]} in one group", under(split=pairs)
        for leaf in leaves:
            others = tuple(u for u in space.units_of[leaf.einsum] if u != leaf.unit)
            if others:
                units = {**given.units, leaf.einsum: others}
                yield f"{leaf.einsum} on {leaf.unit}", under(units=units)
        for tensor in sorted({name for leaf in leaves for name in leaf.forwarding}):
            may = space.facts.aligned if given.forward is None else given.forward
            rest = tuple(other for other in sorted(may) if other != tensor)
            yield f"{tensor} from register to register", under(forward=rest)
        feeding = _feeding(space, design.nest, names)
        outside = space.roles(names).outside if given.composition != "sequential" else (*feeding,)
        for tensor in outside:
            allowed = given.keep.get(tensor, space.memories)
            left = tuple(level for level in allowed if level not in feeding[tensor])
            where = ", ".join(sorted(feeding[tensor]))
            kept = under(keep={**given.keep, tensor: left})
            yield f"{tensor} at {where}", kept if left else None


def _groups(nest: Nest) -> list[list[Compute]]:
    """The Einsums of each group: what a branch at the top has one after the other."""
    step = nest[-1].step
    apart = isinstance(step, Branch) and not step.pipeline
    alone = all(isinstance(node.step, Keep) for node in nest[:-1])
    children = step.children if isinstance(step, Branch) and apart and alone else (nest,)
    return [computes_of(child) for child in children]


def _feeding(space: MapSpace, nest: Nest, names: tuple[str, ...]) -> dict[str, set[str]]:
    """The levels that feed the units with each tensor of some Einsums."""
    found: dict[str, set[str]] = {}

    def visit(nest: Nest, homes: dict[str, str]) -> None:
        homes = dict(homes)
        for node in nest:
            if isinstance(node.step, Keep):
                homes |= dict.fromkeys(map(space.facts.root, node.step.tensors), node.step.level)
            elif isinstance(node.step, Branch):
                for child in node.step.children:
                    visit(child, homes)
            elif isinstance(node.step, Compute) and node.step.einsum in names:
                for tensor in space.touched(node.step.einsum):
                    found.setdefault(tensor, set()).add(homes.get(tensor, space.memories[0]))

    visit(nest, {})
    return found


def _inner_choices(space: MapSpace, rank: str) -> Iterator[tuple[int, ...]]:
    for split in space.cascade.splits:
        if split.inner == rank and split.whole in space.shape:
            yield space.tiles(rank, int(space.shape[split.whole]))


def _under(space: MapSpace, constraints: Constraints) -> MapSpace | None:
    """A space under other constraints; None if they contradict each other."""
    try:
        return replace(space, constraints=constraints)
    except EinfuseError:
        return None


def _search(space: MapSpace, objective: Objective, seconds: float) -> SearchResult | None:
    try:
        return find_best(space, objective, seconds=seconds)
    except EinfuseError:
        return None


def _ratio(again: SearchResult | None, score: float) -> Ratio | None:
    if again is None:
        return None
    return Ratio(again.score * (1 - again.gap) / score, again.score / score)
