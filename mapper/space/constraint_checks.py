"""Constraints against the cascade and the architecture: unknown names, and contradictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from einfuse.einsum import closest
from einfuse.mapper.errors import ArchitectureError, MappingError
from einfuse.mapper.machine.architecture import Architecture
from einfuse.mapper.nest.workload import Facts

from .constraints import Constraints
from .relations import Relation, parse_relation


def check_constraints(
    given: Constraints, facts: Facts, architecture: Architecture, batch: tuple[str, ...]
) -> None:
    """Raise MappingError where the constraints name what is not there or contradict each other.

    Args:
        given: the constraints.
        facts: those of the cascade.
        architecture: where it is mapped.
        batch: the ranks that every tensor has besides its own.
    """
    every, units, memories = facts.einsums, architecture.units, architecture.memories
    ranks = (*facts.cascade.rank_names, *batch)
    known = {
        "units": (given.units, every),
        "fuse": ([n for fused in given.fuse for n in fused], every),
        "split": ([n for pair in given.split for n in pair], every),
        "parallel": (given.parallel, every),
        "innermost": (given.innermost, every),
        "keep": (given.keep, facts.ranks),
        "forward": (given.forward or (), facts.ranks),
        "double": (given.double, facts.ranks),
        "repeat": (given.repeat or (), facts.cascade.rank_names),
        "tiles": (given.tiles, ranks),
        "order": (given.order, ranks),
        "exchange": (given.exchange or (), memories),
        "pipelined": (given.pipelined or (), units),
    }
    checks = [(where, name, names) for where, (used, names) in known.items() for name in used]
    checks += [(f"keep.{t}", one, memories) for t, ls in given.keep.items() for one in ls]
    checks += [(f"units.{e}", unit, units) for e, us in given.units.items() for unit in us]
    for where, name, names in checks:
        if name not in names:
            raise MappingError(f"constraints: {where}: unknown '{name}'{closest(name, names)}")
    _check_loops(given, facts)
    for unit in given.pipelined or ():
        if not architecture.file.units[unit].pipelined:
            raise MappingError(
                f"constraints: pipelined: the operations of a point do not overlap on {unit} "
                f"of {architecture.name} (its 'pipelined' is false)"
            )
    for number, fused in enumerate(given.fuse):
        for x, y in given.split:
            if {x, y} <= set(fused):
                raise MappingError(
                    f"constraints: fuse[{number}] puts {x} and {y} into one group, split puts "
                    "them into two"
                )


def _check_loops(given: Constraints, facts: Facts) -> None:
    """Check the ranks of the loops that are fixed."""
    every = facts.einsums
    looped = frozenset[str]().union(*(einsum.ranks for einsum in every.values()))
    for rank in given.order:
        if rank not in looped:
            raise MappingError(
                f"constraints: order: no loop stands over '{rank}'{closest(rank, looped)}"
            )
    fixed = [(f"parallel.{e}", rank) for e, ranks in given.parallel.items() for rank in ranks]
    fixed += [(f"innermost.{e}", rank) for e, rank in given.innermost.items()]
    for where, rank in fixed:
        own = every[where.partition(".")[2]].ranks
        if rank not in own:
            raise MappingError(
                f"constraints: {where}: the Einsum has no rank '{rank}'{closest(rank, own)}"
            )


def parse_relations(
    given: Constraints, facts: Facts, values: Mapping[str, Any]
) -> tuple[Relation, ...]:
    """Return the relations of constraints; MappingError names one that is wrong.

    Args:
        given: the constraints.
        facts: those of the cascade.
        values: the architecture's figures.
    """
    einsums = [einsum.ranks for einsum in facts.einsums.values()]
    others = {*facts.cascade.rank_names} - frozenset[str]().union(*einsums)
    found: list[Relation] = []
    for number, text in enumerate(given.relations):
        try:
            found.append(parse_relation(text, einsums, others, values))
        except MappingError as error:
            raise MappingError(f"constraints: relations[{number}]: {error}") from None
    return tuple(found)


def find_units(
    given: Constraints,
    facts: Facts,
    architecture: Architecture,
    lanes: Mapping[str, Mapping[str, float]],
    name: str,
) -> tuple[str, ...]:
    """Return the units that may run an Einsum; what rules all of them out is named.

    Args:
        given: the constraints.
        facts: those of the cascade.
        architecture: where it is mapped.
        lanes: unit -> dimension -> lanes.
        name: of the Einsum.
    """
    units = architecture.file.units
    needed = [operation.name for operation in facts.einsums[name].operations]
    able = tuple(u for u in units if all(op in units[u].operations for op in needed))
    if not able:
        lacking = {u: [op for op in needed if op not in units[u].operations] for u in units}
        what = "; ".join(f"{u} lacks {', '.join(ops)}" for u, ops in lacking.items())
        raise ArchitectureError(f"{architecture.name}: no unit can run Einsum {name}: {what}")
    allowed = given.units.get(name)
    chosen = tuple(u for u in able if allowed is None or u in allowed)
    if not chosen:
        raise MappingError(
            f"constraints: units.{name}: expected one that can run it, of {', '.join(able)}; found "
            f"{', '.join(allowed or ())}"
        )
    spread = given.parallel.get(name, {})
    fitting = tuple(u for u in chosen if {*spread.values()} <= {*lanes[u]})
    if not fitting:
        have = "; ".join(f"{u} has {', '.join(lanes[u])}" for u in chosen)
        also = f", and units.{name} allows no other" if chosen != able else ""
        raise MappingError(
            f"constraints: parallel.{name}: expected dimensions of a unit that can run it "
            f"({have}){also}; found {', '.join(spread.values())}"
        )
    return fitting
