"""Which ranks a tensor has: read off its definitions."""

from __future__ import annotations

from .cascade import Cascade, Tensor
from .errors import CascadeError
from .expression import Access, Coordinate, Expression, Index, children


def infer_tensors(cascade: Cascade) -> tuple[Tensor, ...]:
    """Return every tensor with its ranks: inputs first, then by definition.

    Raises:
        CascadeError: two definitions disagree, or an index names no rank.
    """
    found: dict[str, Tensor] = {tensor.name: tensor for tensor in cascade.input_tensors}
    partial: dict[str, list[str | None]] = {}
    first: dict[str, Access] = {}
    for einsum in cascade.einsums:
        for output in einsum.outputs:
            if output.tensor in found:
                continue
            ranks = [rank_of_index(cascade, index.expression) for index in output.indices]
            if output.tensor not in partial:
                partial[output.tensor], first[output.tensor] = ranks, output
                continue
            known = partial[output.tensor]
            if len(known) != len(ranks) or any(
                a != b for a, b in zip(known, ranks, strict=True) if a and b
            ):
                raise CascadeError(
                    f"{output.tensor} is given two rank lists: {_listed(known)} on line "
                    f"{_line(first[output.tensor])} and {_listed(ranks)} here",
                    output.span,
                )
            partial[output.tensor] = [a or b for a, b in zip(known, ranks, strict=True)]
    for name, ranks in partial.items():
        for index, rank in zip(first[name].indices, ranks, strict=True):
            if rank is None:
                raise CascadeError(
                    f"an index of {name} names no rank: nothing writes {name} at a variable there",
                    index.expression.span,
                )
        found[name] = Tensor(name, tuple(r for r in ranks if r), first[name].span)
    return tuple(found.values())


def rank_of_index(cascade: Cascade, expression: Expression) -> str | None:
    """Return the rank along which a left-hand index writes; None for a constant.

    A variable writes along its own rank (``m``, ``m1+1``, ``M-1-m``); the two variables of a
    split along the whole (``m1*M0+m0``).

    Raises:
        CascadeError: several variables that no split joins.
    """
    ranks = {cascade.rank_of(variable) for variable in _own_variables(expression)}
    for _ in cascade.splits:  # a split of a split joins in two steps, in whatever order
        for split in cascade.splits:
            if {split.outer, split.inner} <= ranks:
                ranks = ranks - {split.outer, split.inner} | {split.whole}
    if len(ranks) > 1:
        listed = ", ".join(sorted(ranks))
        raise CascadeError(
            f"an index on the left runs over {listed}, which no split joins into one rank",
            expression.span,
        )
    return next(iter(ranks), None)


def _own_variables(node: Expression | Index) -> list[str]:
    """Return the variables of an index, not those inside the gathers in it."""
    if isinstance(node, Coordinate):
        return [node.variable]
    if isinstance(node, Access):
        return []
    return [v for child in children(node) for v in _own_variables(child)]  # type: ignore[arg-type]


def _listed(ranks: list[str | None]) -> str:
    return "[" + ",".join(rank or "?" for rank in ranks) + "]"


def _line(access: Access) -> str:
    return str(access.span.line) if access.span else "?"
