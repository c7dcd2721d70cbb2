"""How many operations each Einsum does, by operation class, exactly and as formulas.

Rules: every operator and function of the right-hand side counts once for each point of the
iteration space (a function of k > 2 arguments k-1 times); a reduction counts once for each point
it folds, the first one of a fiber included, as hardware that accumulates does; a product summed
by ``+`` is one ``mac`` a point instead of a multiply and an add. Views and initialisers compute
nothing; sub-expressions of numbers and sizes alone are constants. Loop Einsums run once for each
generation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import sympy

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum, Populate, Reduce
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Coordinate,
    Expression,
    Negate,
    walk,
)
from einfuse.einsum.language.functions import (
    BINARY_OPERATIONS,
    coordinate_operator,
    function,
    monoid,
)
from einfuse.einsum.language.shape import bind, bind_symbolic

from .points import count_points

NEGATION = "add"
"""The operation class of a minus before an operand."""

MULTIPLY_ACCUMULATE = "mac"
"""The operation class of a product that is summed at once."""


def count_operations(
    cascade: Cascade, sizes: Mapping[str, int] | None = None
) -> dict[str, dict[str, sympy.Expr]]:
    """Return Einsum name -> operation class -> count, in operations.

    Args:
        cascade: the cascade; Einsums that write one tensor (an initialiser and its loop) are
            counted together.
        sizes: sizes of ranks; formulas keep the symbols of the ranks that have none
            (`shape.symbol`).

    Raises:
        EinfuseError: sizes that contradict the cascade, or at which an index leaves its tensor.

    >>> from einfuse.einsum.library.cascades import load
    >>> count_operations(load("attention/3-pass"))["SN"]
    {'exp': M*P, 'add': M*P}
    """
    bound = bind_symbolic(cascade, sizes)
    if all(size.is_Integer for size in bound.values()):
        bind(cascade, sizes or {})  # an index that leaves its tensor has no count
    counts: dict[str, dict[str, sympy.Expr]] = {}
    for einsum in cascade.einsums:
        own = counts.setdefault(einsum.name, {})
        for operation, count in einsum_operations(cascade, einsum, bound).items():
            own[operation] = own.get(operation, sympy.Integer(0)) + count
    return counts


def total_operations(counts: Iterable[Mapping[str, sympy.Expr]]) -> dict[str, sympy.Expr]:
    """Return operation class -> count over several Einsums.

    >>> from einfuse.einsum.library.cascades import load
    >>> total_operations(count_operations(load("attention/3-pass")).values())["divide"]
    M*P
    """
    totals: dict[str, sympy.Expr] = {}
    for own in counts:
        for operation, count in own.items():
            totals[operation] = totals.get(operation, sympy.Integer(0)) + count
    return totals


def operations_per_point(expression: Expression) -> Counter[str]:
    """Return the operation classes of one evaluation of a value, with how often each occurs.

    >>> from einfuse.einsum.library.cascades import load
    >>> dict(operations_per_point(load("attention/3-pass").einsums[2].expression))
    {'exp': 1, 'add': 1}
    """
    found: Counter[str] = Counter()
    if is_constant(expression):
        return found
    match expression:
        case Call(function=name, arguments=arguments):
            called = function(name)
            found[called.operation] += len(arguments) - 1 if called.arity is None else 1
            parts: Iterable[Expression] = arguments
        case Binary(operator=operator, left=left, right=right):
            found[BINARY_OPERATIONS[operator]] += 1
            parts = (left, right)
        case Negate(operand=operand):
            found[NEGATION] += 1
            parts = (operand,)
        case _:
            parts = ()
    for part in parts:
        found += operations_per_point(part)
    return found


def is_constant(expression: Expression) -> bool:
    """Tell whether a value has neither tensors nor coordinates: ``1/sqrt(E)``."""
    return not any(isinstance(node, Access | Coordinate) for node in walk(expression))


def is_view(einsum: Einsum) -> bool:
    """Tell whether an Einsum only renames or splits coordinates: it computes and costs nothing.

    >>> from einfuse.einsum.library.cascades import load
    >>> [is_view(einsum) for einsum in load("attention/1-pass").einsums[:3]]
    [True, True, False]
    """
    return isinstance(einsum.expression, Access) and not einsum.reductions and not einsum.actions


def is_product_sum(einsum: Einsum) -> bool:
    """Tell whether an Einsum multiplies and adds at once: its last product is a ``mac``."""
    first = next(iter(einsum.reductions), None)
    return (
        first is not None
        and first.operator == "+"
        and first == next(iter(_actions(einsum)))
        and isinstance(einsum.expression, Binary)
        and einsum.expression.operator == "*"
    )


def _actions(einsum: Einsum) -> tuple[Reduce | Populate, ...]:
    """Return reductions and populates in their order, the implicit sum first."""
    implicit = einsum.reductions[: len(einsum.reductions) - _named(einsum)]
    return (*implicit, *einsum.actions)


def _named(einsum: Einsum) -> int:
    return sum(isinstance(action, Reduce) for action in einsum.actions)


def einsum_operations(
    cascade: Cascade, einsum: Einsum, sizes: Mapping[str, sympy.Expr]
) -> dict[str, sympy.Expr]:
    """Return operation class -> count of one Einsum.

    Args:
        cascade: the cascade of the Einsum.
        einsum: the Einsum.
        sizes: size of every rank, as from `shape.bind_symbolic`.
    """
    counts: dict[str, sympy.Expr] = {}

    def add(operation: str, count: sympy.Expr) -> None:
        if count != 0:
            counts[operation] = counts.get(operation, sympy.Integer(0)) + count

    points = count_points(cascade, einsum, sizes)
    for operation, times in operations_per_point(einsum.expression).items():
        add(operation, times * points)
    kept = set(einsum.variables)
    for place, action in enumerate(_actions(einsum)):
        if place:
            points = count_points(cascade, einsum, sizes, kept)
        if isinstance(action, Populate):
            add(coordinate_operator(action.operator).operation, points)
            kept -= {action.source}
            continue
        if place == 0 and is_product_sum(einsum):
            add("multiply", -points)
            add(MULTIPLY_ACCUMULATE, points)
        else:
            add(monoid(action.operator).operation, points)
        kept -= set(action.variables)
    return {operation: count for operation, count in counts.items() if count != 0}
