"""Operations that masks leave: what is absent is neither computed nor counted further on.

`einsum.operations` counts an Einsum by its own filters. Behind a filtered score the exponential,
the sum and the product with V are absent too; here the share of points that are there is carried
from Einsum to Einsum. It is a bound from above: a product has at most the share of its scarcer
factor, a sum at most the shares of its terms together, and a fold is there where one point is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import permutations

from einfuse.einsum import (
    Access,
    Binary,
    Call,
    Cascade,
    Coordinate,
    Einsum,
    Expression,
    Negate,
    accesses,
    bind,
    bind_symbolic,
    count_points,
    einsum_operations,
    filters,
    iteration_space,
    variables,
)

_UNIONS = ("+", "-", "max", "min")


def kept_operations(cascade: Cascade, shape: Mapping[str, int]) -> float:
    """Return the operations of all classes at a shape, without what masks leave out.

    Filters on data cull nothing, but that an equality leaves one coordinate of a variable: the
    count is then the most there can be.

    >>> from einfuse.einsum.language.parser import parse
    >>> text = "rank P, M\\ninput A[M,P]\\nB[m,p] = exp(A[m: m<=p, p])\\nC[m,p] = exp(B[m,p])"
    >>> kept_operations(parse(text), {"P": 4, "M": 4})
    20.0
    """
    sizes = bind(cascade, shape)
    symbolic = bind_symbolic(cascade, sizes)
    shares: dict[str, float] = dict.fromkeys(cascade.inputs, 1.0)
    total = 0.0
    for einsum in cascade.einsums:
        space = math.prod(sizes[rank] for rank in iteration_space(cascade, einsum))
        own = float(count_points(cascade, einsum, symbolic)) / space if space else 0.0
        picked = _picked(cascade, einsum, sizes)
        share = min(own, _share(einsum.expression, shares))
        counts = einsum_operations(cascade, einsum, symbolic)
        total += float(sum(counts.values())) * (share / own if own else 0.0) / picked
        filled = share / picked * _folded(cascade, einsum, shares, sizes)
        for output in einsum.outputs:
            shares[output.tensor] = max(shares.get(output.tensor, 0.0), min(1.0, filled))
    return total


def _share(node: Expression, shares: Mapping[str, float]) -> float:
    """Return the share of the points of its own variables at which a value is there."""
    match node:
        case Access(tensor=tensor):
            return shares.get(tensor, 1.0)
        case Negate(operand=operand):
            return _share(operand, shares)
        case Binary(operator=operator, left=left, right=right):
            return _joined(operator, (left, right), shares)
        case Call(function=function, arguments=arguments):
            return _joined(function, arguments, shares)
        case _:
            return 1.0


def _joined(operator: str, parts: tuple[Expression, ...], shares: Mapping[str, float]) -> float:
    found = [(set(variables(part)), _share(part, shares)) for part in parts]
    if operator not in _UNIONS:
        return min(share for _, share in found)
    every = set().union(*(names for names, _ in found))
    supplying = [share for names, share in found if names == every]
    return min(1.0, sum(supplying)) if supplying else min(share for _, share in found)


def _picked(cascade: Cascade, einsum: Einsum, sizes: Mapping[str, int]) -> int:
    """Return how many times fewer points there are for variables that data fix: ``p: I[t]==p``."""
    found = set()
    for comparison in filters(einsum):
        for side, other in permutations((comparison.left, comparison.right)):
            if (
                comparison.operator == "=="
                and isinstance(side, Coordinate)
                and any(accesses(other))
            ):
                found |= {side.variable} - set(variables(other))
    return math.prod(sizes[cascade.rank_of(name)] for name in found)


def _folded(
    cascade: Cascade, einsum: Einsum, shares: Mapping[str, float], sizes: Mapping[str, int]
) -> float:
    """Return the points of the folded variables whose presence differs from point to point."""
    sparse: set[str] = set()
    for access in accesses(einsum.expression):
        for index in access.indices:
            sparse |= {name for c in index.condition for name in variables(c)}
        if shares.get(access.tensor, 1.0) < 1.0:
            sparse |= set(variables(access))
    folded = {name for r in einsum.reductions for name in r.variables} & sparse
    return math.prod(sizes[cascade.rank_of(name)] for name in folded)
