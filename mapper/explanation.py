"""Why a mapping is the best: what binds it, what more of each resource is worth, what comes next.

Everything is found by searching again: with a resource doubled, or with one of the choices that
the mapping made forbidden. Costs are the score of the objective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from einfuse.einsum.errors import EinfuseError

from .constraints import Constraints
from .explicit_plan import ExplicitPlan
from .objective import Objective
from .search import SearchResult, find_best
from .space import MapSpace
from .structure import Plan


@dataclass(frozen=True, slots=True)
class Alternative:
    """A decision of a mapping, and the best that the space has without it.

    ``ratio`` is the cost without it over the cost of the mapping; None if nothing is left without
    it, or if the search for it was stopped.
    """

    decision: str
    ratio: float | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Worth:
    """What the best mapping costs with twice of a resource, over what it costs now."""

    resource: str
    ratio: float | None


ObjectiveOf = Callable[[Any], Objective]


def find_worth(
    result: SearchResult, objective_of: ObjectiveOf, seconds: float
) -> tuple[Worth, ...]:
    """Return what twice the room, lanes and bandwidth are worth, each alone.

    Args:
        result: a search with a single best mapping.
        objective_of: architecture -> the objective at its prices.
        seconds: for each search; one that does not end in time has no ratio.
    """
    space = result.space
    architecture = space.architecture
    found: list[Worth] = []
    for path, value in architecture.parameters.items():
        resource = path.rsplit(".", 1)[-1]
        if resource not in _RESOURCES or value is None or not isinstance(value, int | float):
            continue
        more = architecture.with_settings({path: 2 * value})
        again = _search(replace(space, architecture=more), objective_of(more), seconds)
        found.append(Worth(path, _ratio(again, result)))
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


def find_alternatives(result: SearchResult, seconds: float) -> tuple[Alternative, ...]:
    """Return for each decision of a mapping what the best mapping without it costs."""
    space = result.space
    found: list[Alternative] = []
    plan = result.best.plan
    decisions = forbid(space, plan) if isinstance(plan, Plan) else forbid_blocks(space, plan)
    for decision, constraints in decisions:
        other = None if constraints is None else _under(space, constraints)
        if other is None:
            found.append(Alternative(decision, None, "nothing else is possible"))
            continue
        again = _search(other, result.objective, seconds)
        ratio = _ratio(again, result)
        note = "" if ratio is not None else "no mapping was found without it"
        found.append(Alternative(decision, ratio, note))
    return tuple(found)


def forbid(space: MapSpace, plan: Plan) -> Iterator[tuple[str, Constraints | None]]:
    """Yield each decision of a plan with the constraints that forbid it; None if they leave none.

    >>> from einfuse.einsum.parser import parse
    >>> from einfuse.mapper.architecture import load_architecture
    >>> space = MapSpace(parse("rank P\\ninput A[P]\\noutput Y\\nY[p] = A[p] + A[p]"),
    ...                  load_architecture("flat"), {"P": 2})
    >>> [decision for decision, _ in forbid(space, Plan((), ()))]
    []
    """
    given = space.constraints
    for rank, size in plan.splits:
        choices = next(iter(_inner_choices(space, rank)), ())
        tiles = tuple(tile for tile in choices if tile != size)
        changed = given.model_copy(update={"tiles": {**given.tiles, rank: tiles}})
        yield f"{rank} = {size}", changed if tiles else None
    for group in plan.groups:
        names = group.einsums
        if len(names) > 1:
            pairs = (*given.split, (names[0], names[-1]))
            yield (
                f"{names[0]} ... {names[-1]} in one group",
                given.model_copy(update={"split": pairs}),
            )
        for leaf in group.leaves:
            others = tuple(u for u in space.units_of[leaf.einsum] if u != leaf.unit)
            if len(space.units_of[leaf.einsum]) > 1:
                units = {**given.units, leaf.einsum: others}
                yield (
                    f"{leaf.einsum} on {leaf.unit}",
                    given.model_copy(update={"units": units}),
                )
        for tensor in sorted(group.forwarded):
            may = space.facts.aligned if given.forward is None else given.forward
            others = tuple(other for other in sorted(may) if other != tensor)
            yield (
                f"{tensor} from register to register",
                given.model_copy(update={"forward": others}),
            )
        touched = space.roles(names)
        for home in group.homes:
            level = home.places[-1][0]
            if home.tensor in touched.outside:
                allowed = given.keep.get(home.tensor, space.memories)
                others = tuple(one for one in allowed if one != level)
                keep = {**given.keep, home.tensor: others}
                yield (
                    f"{home.tensor} at {level}",
                    given.model_copy(update={"keep": keep}) if others else None,
                )


def forbid_blocks(space: MapSpace, plan: ExplicitPlan) -> Iterator[tuple[str, Constraints | None]]:
    """Yield each decision of a plan of blocks with the constraints that forbid it, likewise."""
    given = space.constraints
    for block in plan.blocks:
        names = block.einsums
        if len(names) > 1:
            pairs = (*given.split, (names[0], names[-1]))
            fused = given.model_copy(update={"split": pairs})
            yield f"{names[0]} ... {names[-1]} under one loop", fused
        for name, row in zip(names, block.rows, strict=True):
            others = tuple(u for u in space.units_of[name] if u != row.task.unit)
            if others:
                units = {**given.units, name: others}
                yield f"{name} on {row.task.unit}", given.model_copy(update={"units": units})
    feeding: dict[str, set[str]] = {}
    for row in (row for block in plan.blocks for row in block.rows):
        for tensor, level in row.feeding.items():
            feeding.setdefault(tensor, set()).add(space.memories[level + 1])
    for tensor, levels in feeding.items():
        allowed = given.keep.get(tensor, space.memories)
        rest = tuple(level for level in allowed if level not in levels)
        kept = given.model_copy(update={"keep": {**given.keep, tensor: rest}})
        yield f"{tensor} at {', '.join(sorted(levels))}", kept if rest else None


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
        found = find_best(space, objective, seconds=seconds)
    except EinfuseError:
        return None
    return found if found.optimal else None


def _ratio(again: SearchResult | None, result: SearchResult) -> float | None:
    return None if again is None else again.score / result.score
