"""What of an Einsum's evaluation stays the same over all generations: `make_plan`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from einfuse.einsum.language.equation import Action, Einsum, Populate, Reduce
from einfuse.einsum.language.expression import Access, Comparison, Index, variables, walk

from .reading import Space


@dataclass(frozen=True, slots=True)
class Plan:
    """What of an Einsum's evaluation does not depend on the generation.

    ``variables`` are the axes of the iteration space: those on the left, in its order, then those
    reduced. ``names`` gives the free variables below every node of the expression, by identity.
    """

    einsum: Einsum
    variables: tuple[str, ...]
    extents: tuple[int, ...]
    actions: tuple[Action, ...]
    operands: tuple[Access, ...]
    read_once: frozenset[str]
    names: Mapping[int, frozenset[str]]
    sizes: Mapping[str, int]
    counts: Mapping[str, int]

    def space(self, fixed: Mapping[str, int]) -> Space:
        """Return the iteration space of a generation."""
        return Space(self.variables, self.extents, fixed, self.sizes)


def make_plan(
    einsum: Einsum, fixed: Collection[str], sizes: Mapping[str, int], rank_of: Callable[[str], str]
) -> Plan:
    """Return the plan of an Einsum whose iterative variables are fixed in turn.

    >>> from einfuse.einsum.language.parser import parse
    >>> cascade = parse("rank M, P\\ninput A[M,P], B[M]\\noutput Y\\nY[p] = A[m,p] * B[m]")
    >>> make_plan(cascade.init[0], (), {"M": 2, "P": 3}, cascade.rank_of).variables
    ('p', 'm')
    """
    sources = {a.target: a.source for a in einsum.actions if isinstance(a, Populate)}
    left = [sources.get(v, v) for v in einsum.output_variables]
    order = tuple(v for v in dict.fromkeys([*left, *einsum.variables]) if v not in fixed)
    operands = einsum.operands
    read = [access.tensor for access in operands]
    nodes = [node for node in walk(einsum.expression) if not isinstance(node, Index | Comparison)]
    return Plan(
        einsum,
        order,
        tuple(sizes[rank_of(v)] for v in order),
        ordered_actions(einsum),
        operands,
        frozenset(name for name in read if read.count(name) == 1),
        {id(node): frozenset(variables(node)).difference(fixed) for node in nodes},
        sizes,
        {target: sizes[rank_of(target)] for target in sources},
    )


def ordered_actions(einsum: Einsum) -> tuple[Action, ...]:
    """Return the actions in order, the implicit ``+`` before them.

    >>> from einfuse.einsum.language.parser import parse
    >>> text = "rank E, M, T\\ninput Q[E], K[E,M]\\noutput V\\nV[t] = Q[e]*K[e,m] :: topk(m -> t)"
    >>> [action.operator for action in ordered_actions(parse(text).init[0])]
    ['+', 'topk']
    """
    named = {a for a in einsum.actions if isinstance(a, Reduce)}
    implicit = [a for a in einsum.reductions if a not in named]
    return (*implicit, *einsum.actions)
