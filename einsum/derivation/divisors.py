"""Where a fold divides by what may be 0 after some elements, though it is not after all.

The first tiles of a sum of magnitudes may all be 0, and signed sums may cancel on the way. Where
a maximum of magnitudes is 0, so are its elements: what is proportional to them is taken as 0 there
(`correction.Corrector.guarded`), and nothing is lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import sympy as sp

from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.expression import Access, Binary, Call, Expression, walk
from einfuse.einsum.language.function_row import magnitude
from einfuse.einsum.language.functions import function
from einfuse.einsum.language.printer import render_expression
from einfuse.einsum.language.substitution import inlined, replace_accesses

from .dataflow import Dataflow, Kind
from .symbols import Formula, SymbolTable
from .value_facts import is_magnitude, is_never_zero, is_positive


def zero_divisors(
    flow: Dataflow, fold: Einsum, corrections: Iterable[Expression]
) -> tuple[str, ...]:
    """Return what a fold that follows its references divides by and that may be 0 on the way.

    Args:
        flow: the cascade along a rank.
        fold: the fold.
        corrections: what its corrections divide by, in terms of its references.

    >>> from einfuse.einsum.language.parser import parse
    >>> text = (
    ...     "rank M\\ninput X[M], W[M]\\noutput Y\\nS[] = abs(X[m]) :: +(m)\\n"
    ...     "Y[] = X[m] / S[] * W[m]"
    ... )
    >>> flow = Dataflow(parse(text), "m")
    >>> zero_divisors(flow, flow.folds[1], ())
    ('S[]',)
    """
    whole = opened(flow, flow.cone(fold))
    found = [*divisors(whole)]
    for divisor in corrections:
        found += [opened(flow, divisor), *divisors(opened(flow, divisor))]
    table = SymbolTable(positive=lambda part: is_positive(part, flow))
    bases = (base for divisor in found for base in _bases(divisor, table))
    return tuple(
        dict.fromkeys(
            render_expression(base)
            for base in bases
            if flow.references(base)
            and not is_never_zero(base, flow)
            and not _vanishes_with(flow, base, whole)
        )
    )


def opened(flow: Dataflow, expression: Expression) -> Expression:
    """Return an expression with references that are made of others in terms of their folds."""

    def change(access: Access) -> Expression | None:
        producer = flow.producer.get(access.tensor)
        if producer is None or flow.kinds[access.tensor] is not Kind.FREE:
            return None
        definition = inlined(producer, access) if flow.is_reference(access.tensor) else None
        return None if definition is None else opened(flow, definition)

    return replace_accesses(expression, change)


def divisors(expression: Expression) -> Iterator[Expression]:
    """Yield what an expression divides by, or takes the logarithm of."""
    for node in walk(expression):
        match node:
            case Binary(operator="/", right=right):
                yield right
            case Call(function=name, arguments=(argument,)) if math.isinf(function(name).at(0.0)):
                yield argument


def _bases(divisor: Expression, table: SymbolTable) -> Iterator[Expression]:
    """Yield the factors of a divisor, without their powers."""
    formula = table.formula(divisor, lambda part: False)
    for factor in sp.Mul.make_args(formula):
        base, exponent = (factor.base, factor.exp) if factor.is_Pow else (factor, 1)
        if not base.is_number and not sp.sympify(exponent).is_negative:
            yield table.expression(base)


def _vanishes_with(flow: Dataflow, base: Expression, whole: Expression) -> bool:
    """Tell whether elements are 0 where a maximum of magnitudes is."""
    if not isinstance(base, Access) or not is_magnitude(flow, base.tensor):
        return False
    match flow.cone(flow.producer[base.tensor]):
        case Call(function=name, arguments=(core,)) if function(name).sign is magnitude:
            table = SymbolTable(positive=lambda part: is_positive(part, flow))
            formula: Formula = table.formula(whole, lambda part: part == core)
            at_zero = formula.subs(table.symbol(core), 0)
            return bool(at_zero == 0)
    return False
