"""Why a mapping is the best: what binds it, what more of each resource is worth, what comes next.

Everything is found by searching again: with a resource doubled, or with one of the choices that
the mapping made forbidden. What the search that made the mapping has proven is used: with more of a
resource the mapping itself stays possible, without a decision nothing is better than its bound, and
the best with its groups and tiles comes before the best of all. The searches share a time, each
what is left of it in equal parts, as long as it is enough for one. Costs are the score of the
objective. The decisions are read from the mapping as it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from time import monotonic
from typing import Any

import numpy as np

from einfuse.einsum import EinfuseError
from einfuse.mapper.design.design import Design
from einfuse.mapper.machine.architecture import Architecture
from einfuse.mapper.nest.nest import Branch, Compute, Keep, Nest, Temporal, computes_of, walk_nest
from einfuse.mapper.space.constraints import Constraints
from einfuse.mapper.space.objective import Objective, cost_of
from einfuse.mapper.space.space import MapSpace

from .search import SearchResult, find_best


@dataclass(frozen=True, slots=True)
class Ratio:
    """The cost of something else over that of the mapping: between two bounds, alike if proven.

    ``most`` is infinite where nothing was found.
    """

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
Report = Callable[[str], None]


def explain_mapping(
    space: MapSpace,
    design: Design,
    figures: Sequence[float],
    objective_of: ObjectiveOf,
    seconds: float,
    gap: float = 1.0,
    report: Report = lambda _: None,
) -> tuple[tuple[Worth, ...], tuple[Alternative, ...]]:
    """Return what twice of each resource is worth, and what the mapping's decisions are.

    Args:
        space: that of the mapping.
        design: the mapping, as a search writes it.
        figures: what it costs, in the objective's order.
        objective_of: architecture -> the objective at its prices.
        seconds: for all the searches; of those that do not end in time there are bounds.
        gap: how far, relatively, the mapping may be above the optimum of the space.
        report: told of each search.
    """
    objective = objective_of(space.architecture)
    score = cost_of(objective, figures)
    spaces = [
        (decision, None if constraints is None else _under(space, constraints))
        for decision, constraints in forbid(space, design)
    ]
    paths = list(resources_of(space.architecture))
    until = monotonic() + seconds
    left = len(paths) + 2 * sum(other is not None for _, other in spaces)

    def share(of: str) -> float:
        """The seconds for the next search."""
        nonlocal left
        report(f"{of}: {left} searches to go")
        left -= 1
        there = until - monotonic()
        return max(there / (left + 1), min(there, _LEAST_SECONDS))

    near: dict[str, SearchResult | None] = {}
    for decision, other in spaces:
        if other is not None:
            own = _like(other, design)
            seconds = share(f"without {decision}")
            near[decision] = None if own is None else _search(own, objective, seconds)
    worth: list[Worth] = []
    for path in paths:
        value: Any = space.architecture.parameters[path]
        more = space.architecture.with_settings({path: 2 * value})
        bigger, known = replace(space, architecture=more), ((design, figures),)
        again = _search(bigger, objective_of(more), share(f"twice {path}"), known)
        ratio = _ratio(again, score) or Ratio(0.0, 1.0)  # the mapping itself stays possible
        worth.append(Worth(path, ratio))
    found: list[Alternative] = []
    for decision, other in spaces:
        if other is None:
            found.append(Alternative(decision, None, "nothing else is possible"))
            continue
        first = near[decision]
        every = () if first is None else tuple((one.plan, one.figures) for one in first.solutions)
        again = _search(other, objective, share(f"without {decision}"), every)
        ratio = _ratio(again, score) or Ratio(0.0, inf)
        # nothing in a part of the space is below the bound on all of it
        ratio = Ratio(min(max(ratio.least, 1 - gap), ratio.most), ratio.most)
        note = "" if again is not None else "no mapping was found without it; give it more seconds"
        found.append(Alternative(decision, ratio, note))
    return tuple(worth), tuple(found)


def _tiles_of(design: Design) -> dict[str, tuple[int, ...]]:
    """The tiles that a mapping has of each rank, and one of it."""
    found: dict[str, set[int]] = {}
    for node in walk_nest(design.nest):
        if isinstance(node.step, Temporal):
            tile = node.step.tile
            size = 1 if tile is None else int(np.asarray(tile.evaluate({})))
            found.setdefault(node.step.rank, {1}).add(size)
    for rank, formula in design.let:
        found[rank] = {int(np.asarray(formula.evaluate({})))}
    return {rank: tuple(sorted(tiles, reverse=True)) for rank, tiles in found.items()}


def _like(space: MapSpace, design: Design) -> MapSpace | None:
    """The part of a space with a mapping's groups and tiles, as far as the space has these.

    None where it is searched whole only.
    """
    given = space.constraints
    if given.composition == "sequential":
        return None
    own = {r: some for r, some in _tiles_of(design).items() if r in space.cascade.rank_names}
    groups = (tuple(leaf.einsum for leaf in leaves) for leaves in _groups(design.nest))
    fuse = tuple(names for names in groups if not any({*pair} <= {*names} for pair in given.split))
    changed = {"tiles": {**own, **given.tiles}, "fuse": (*given.fuse, *fuse)}
    return _under(space, given.model_copy(update=changed))


_LEAST_SECONDS = 0.3  # in which a search finds something at all
_RESOURCES = (
    "bytes",
    "lanes",
    "rows",
    "columns",
    "bandwidth_bytes_per_s",
    "read_bandwidth_bytes_per_s",
    "write_bandwidth_bytes_per_s",
)


def resources_of(architecture: Architecture) -> Iterator[str]:
    """Yield the parameters that say how much room, how many lanes, how much bandwidth there is."""
    for path, value in architecture.parameters.items():
        known = isinstance(value, int | float) and not isinstance(value, bool)
        if path.rsplit(".", 1)[-1] in _RESOURCES and known:
            yield path


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


def _search(
    space: MapSpace, objective: Objective, seconds: float, known: Iterable[Any] = ()
) -> SearchResult | None:
    if not seconds > 0:
        return None
    try:
        return find_best(space, objective, seconds=seconds, known=known)
    except EinfuseError:
        return None


def _ratio(again: SearchResult | None, score: float) -> Ratio | None:
    if again is None:
        return None
    return Ratio(again.score * (1 - again.gap) / score, again.score / score)
