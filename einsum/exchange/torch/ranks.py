"""Ranks of an imported cascade: one name where an input's own is only another name of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Action, Einsum, Populate, Reduce
from einfuse.einsum.language.expression import (
    Access,
    Coordinate,
    Expression,
)
from einfuse.einsum.language.substitution import rebuild


def joined_ranks(cascade: Cascade) -> Cascade:
    """Return the cascade with one rank where an input's own is only another name of it."""
    names: dict[str, str] = {}

    def root(rank: str) -> str:
        while rank in names:
            rank = names[rank]
        return rank

    def together(a: str, b: str) -> bool:
        groups = [{v.upper() for v in (*e.variables, *e.output_variables)} for e in cascade.einsums]
        groups += [set(t.ranks) for t in cascade.input_tensors]
        return any({a, b} <= {root(rank) for rank in group} for group in groups)

    ranks = {tensor.name: tensor.ranks for tensor in cascade.input_tensors}
    for einsum in cascade.einsums:
        for access in einsum.operands:
            for index, rank in zip(access.indices, ranks.get(access.tensor, ()), strict=False):
                if not isinstance(index.expression, Coordinate):
                    continue
                own, other = root(index.expression.variable.upper()), root(rank)
                if own != other and not together(own, other):
                    names[other] = own
    renamed = {rank.name.lower(): Coordinate(root(rank.name).lower()) for rank in cascade.ranks}

    def change(node: Expression) -> Expression | None:
        return renamed[node.variable] if isinstance(node, Coordinate) else None

    def acted(action: Action) -> Action:
        if isinstance(action, Reduce):
            return Reduce(action.operator, tuple(renamed[v].variable for v in action.variables))
        source, target = renamed[action.source].variable, renamed[action.target].variable
        return Populate(action.operator, source, target)

    def changed(einsum: Einsum) -> Einsum:
        return replace(
            einsum,
            outputs=tuple(_rebuilt(output, change) for output in einsum.outputs),
            expression=rebuild(einsum.expression, change),
            actions=tuple(map(acted, einsum.actions)),
        )

    einsums = tuple(map(changed, cascade.init))
    inputs = tuple(
        replace(t, ranks=tuple(root(rank) for rank in t.ranks)) for t in cascade.input_tensors
    )
    used = {v.upper() for e in einsums for v in (*e.variables, *e.output_variables)} | {
        r for t in inputs for r in t.ranks
    }
    return replace(
        cascade,
        ranks=tuple(rank for rank in cascade.ranks if rank.name in used),
        input_tensors=inputs,
        init=einsums,
    )


def _rebuilt(access: Access, change: Callable[[Expression], Expression | None]) -> Access:
    found = rebuild(access, change)
    assert isinstance(found, Access)
    return found
