"""Rebuilding expressions: replace accesses, put expressions in place of variables, inline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from .equation import Einsum
from .expression import (
    Access,
    Binary,
    Call,
    Comparison,
    Condition,
    Coordinate,
    Expression,
    Index,
    Negate,
    Number,
    RankSize,
)

Leaf = Callable[[Expression], Expression | None]


def rebuild(node: Expression, leaf: Leaf) -> Expression:
    """Return the expression with every node for which ``leaf`` gives another replaced by it.

    Parents are asked first, and what replaces them is not visited again; indices are visited too.

    >>> from einfuse.einsum.language.expression import Access, Binary, Number
    >>> double = Binary("*", Number(2), Access("A"))
    >>> rebuild(double, lambda node: Number(3) if isinstance(node, Access) else None)
    Binary(operator='*', left=Number(value=2), right=Number(value=3))
    """
    replaced = leaf(node)
    if replaced is not None:
        return replaced
    match node:
        case Number() | RankSize() | Coordinate():
            return node
        case Negate(operand=operand):
            return replace(node, operand=rebuild(operand, leaf))
        case Binary(left=left, right=right):
            return replace(node, left=rebuild(left, leaf), right=rebuild(right, leaf))
        case Call(arguments=arguments):
            return replace(node, arguments=tuple(rebuild(a, leaf) for a in arguments))
        case Access(indices=indices):
            return replace(node, indices=tuple(_index(index, leaf) for index in indices))


def put(node: Expression, values: Mapping[str, Expression]) -> Expression:
    """Return the expression with expressions in place of rank variables, all at once."""
    return rebuild(
        node, lambda part: values.get(part.variable) if isinstance(part, Coordinate) else None
    )


def put_in_condition(condition: Condition, values: Mapping[str, Expression]) -> Condition:
    """Return a filter with expressions in place of rank variables."""
    return tuple(
        Comparison(put(c.left, values), c.operator, put(c.right, values)) for c in condition
    )


def replace_accesses(node: Expression, change: Callable[[Access], Expression | None]) -> Expression:
    """Return the expression with each access for which ``change`` gives another replaced."""
    return rebuild(node, lambda part: change(part) if isinstance(part, Access) else None)


def inlined(einsum: Einsum, access: Access) -> Expression | None:
    """Return the definition of an element-wise tensor at the indices of an access.

    Filters of the access go to what the definition reads at the same index. None where nothing
    is, or the definition is no plain function of its indices.

    >>> from einfuse.einsum.language.parser import parse
    >>> from einfuse.einsum.language.printer import render_expression
    >>> text = "rank M, P\\ninput X[M,P]\\noutput Y\\nZ[m,p] = exp(X[m,p])\\nY[p] = Z[m: m<=p,p]"
    >>> definition, reader = parse(text).init
    >>> render_expression(inlined(definition, reader.operands[0]))
    'exp(X[m: m<=p,p])'
    """
    return None if einsum.reductions else definition_at(einsum, access)


def definition_at(einsum: Einsum, access: Access) -> Expression | None:
    """Return what an Einsum folds, if it does, at the indices of an access."""
    variables = plain_variables(einsum.output)
    if variables is None:
        return None
    indices = (index.expression for index in access.indices)
    definition = put(einsum.expression, dict(zip(variables, indices, strict=True)))
    for index in access.indices:
        if index.condition:
            filtered = _filtered(definition, index)
            if filtered == definition:
                return None
            definition = filtered
    return definition


def _filtered(definition: Expression, filter: Index) -> Expression:
    """Return a definition whose accesses at an index have its filter as well."""

    def change(access: Access) -> Access:
        return Access(
            access.tensor,
            tuple(
                Index(index.expression, (*index.condition, *filter.condition))
                if index.expression == filter.expression
                else index
                for index in access.indices
            ),
        )

    return replace_accesses(definition, change)


def plain_variables(access: Access) -> tuple[str, ...] | None:
    """Return the variables of an access whose indices are distinct bare variables, else None.

    >>> from einfuse.einsum.language.expression import Access, Coordinate, Index
    >>> plain_variables(Access("Q", (Index(Coordinate("e")), Index(Coordinate("p")))))
    ('e', 'p')
    """
    names = [
        index.expression.variable
        for index in access.indices
        if isinstance(index.expression, Coordinate) and not index.condition
    ]
    plain = len(names) == len(access.indices) == len(set(names))
    return tuple(names) if plain else None


def plain_access(tensor: str, variables: tuple[str, ...]) -> Access:
    """Return ``Q[e,p]`` of bare variables."""
    return Access(tensor, tuple(Index(Coordinate(variable)) for variable in variables))


def zero_at(names: Sequence[str]) -> Expression:
    """Return 0 at every coordinate of some variables: a bare 0 would stand at none of them."""
    if not names:
        return Number(0)
    total: Expression = Coordinate(names[0])
    for name in names[1:]:
        total = Binary("+", total, Coordinate(name))
    return Binary("*", Number(0), total)


def with_expression(einsum: Einsum, expression: Expression) -> Einsum:
    """Return the Einsum with another right-hand side."""
    return replace(einsum, expression=expression, span=None)


def _index(index: Index, leaf: Leaf) -> Index:
    condition = tuple(
        Comparison(rebuild(c.left, leaf), c.operator, rebuild(c.right, leaf))
        for c in index.condition
    )
    return Index(rebuild(index.expression, leaf), condition)
