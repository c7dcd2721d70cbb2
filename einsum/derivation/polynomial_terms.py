"""The terms of a polynomial, and their products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from einfuse.einsum.language.equation import Einsum, Reduce
from einfuse.einsum.language.expression import (
    Access,
    Comparison,
    Coordinate,
    Expression,
    Index,
)
from einfuse.einsum.language.substitution import (
    plain_variables,
    put,
    put_in_condition,
)

LARGEST = 32
"""Terms, and factors of one, beyond which a tensor is a factor itself."""


@dataclass(frozen=True, slots=True)
class Term:
    """``coefficient * numerators / denominators``, summed over bound variables, behind filters."""

    coefficient: Fraction
    numerators: tuple[Expression, ...] = ()
    denominators: tuple[Expression, ...] = ()
    bound: frozenset[str] = frozenset()
    conditions: frozenset[Comparison] = frozenset()

    @property
    def factors(self) -> tuple[Expression, ...]:
        """All that it multiplies and divides by."""
        return self.numerators + self.denominators

    def times(self, other: Term) -> Term:
        """Return the product of two terms whose bound variables differ."""
        return Term(
            self.coefficient * other.coefficient,
            self.numerators + other.numerators,
            self.denominators + other.denominators,
            self.bound | other.bound,
            self.conditions | other.conditions,
        )

    def put(self, values: Mapping[str, Expression]) -> Term:
        """Return the term with expressions in place of its variables, bound ones too."""
        renamed = {
            expression.variable
            for name in self.bound
            if isinstance(expression := values.get(name, Coordinate(name)), Coordinate)
        }
        return Term(
            self.coefficient,
            tuple(put(factor, values) for factor in self.numerators),
            tuple(put(factor, values) for factor in self.denominators),
            frozenset(renamed),
            frozenset(put_in_condition(tuple(self.conditions), values)),
        )


Polynomial = tuple[Term, ...]


def product_of(left: Polynomial | None, right: Polynomial | None) -> Polynomial | None:
    """Return the product of two polynomials; None where it is too long, or one is none."""
    if left is None or right is None:
        return None
    return short(tuple(a.times(b) for a in left for b in right))


def short(terms: Polynomial) -> Polynomial | None:
    """Return a polynomial, or None where it is too long."""
    if len(terms) > LARGEST or any(len(t.factors) > LARGEST for t in terms):
        return None
    return terms


def unfiltered(access: Access) -> tuple[Access, frozenset[Comparison]]:
    """Return an access without its filters, and the filters."""
    bare = Access(access.tensor, tuple(Index(i.expression) for i in access.indices))
    return bare, frozenset(c for index in access.indices for c in index.condition)


def is_polynomial(einsum: Einsum) -> bool:
    """Tell whether an Einsum is a sum, or none, of what stands on its right."""
    sums = all(isinstance(a, Reduce) and a.operator == "+" for a in einsum.actions)
    plain = len(einsum.outputs) == 1 and plain_variables(einsum.output) is not None
    return sums and plain and einsum.merge is None
