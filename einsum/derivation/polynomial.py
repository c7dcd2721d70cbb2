"""What Einsums compute, as sums of products over bound variables, down to what is no such sum.

Products, quotients, sums and sum folds are opened; inputs, function calls and other folds are
*factors*. A term ``c * product of factors / product of factors``, summed over its *bound*
variables, has one *key* whatever the names and the order: equal keys are equal values.

Exact wherever no divisor is 0: nothing is divided by itself, and an absent factor makes a term
absent (docs/decisions/0003), which a sum takes as 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from itertools import count, permutations, product

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Comparison,
    Coordinate,
    Expression,
    Index,
    Negate,
    Number,
    RankSize,
    accesses,
    variables,
    walk,
)
from einfuse.einsum.language.shape import representatives
from einfuse.einsum.language.substitution import (
    definition_at,
    plain_variables,
)

from .deadline import check_time
from .polynomial_terms import Polynomial, Term, is_polynomial, product_of, short, unfiltered

_ORDERS = 120
"""Orders of the bound variables that are tried for a key."""


class Polynomials:
    """The tensors of a straight-line cascade as polynomials.

    >>> from einfuse.einsum.language.parser import parse
    >>> text = (
    ...     "rank M\\ninput X[M]\\noutput Y, Z\\nS[] = X[m]\\nA[m] = X[m] / S[]\\n"
    ...     "Y[] = A[m]\\nD[m] = X[m] - S[] * A[m]\\nZ[] = D[m]"
    ... )
    >>> found = Polynomials(parse(text))
    >>> [term.denominators for term in found.of("A")]
    [(Access(tensor='S', indices=()),)]
    >>> found.is_zero(found.of("Z")), found.is_zero(found.of("Y"))
    (True, False)
    """

    def __init__(self, cascade: Cascade) -> None:
        self.cascade = cascade
        self.producer = {e.name: e for e in cascade.einsums if is_polynomial(e)}
        self.absent = absent_tensors(cascade)
        self._numbers = count(1)
        self._known: dict[str, Polynomial | None] = {}

    @functools.cached_property
    def _roots(self) -> dict[str, str]:
        return representatives(self.cascade)

    def of(self, tensor: str) -> Polynomial | None:
        """Return what a tensor is, at the variables of its Einsum; None where it is a factor."""
        if tensor not in self._known:
            check_time()
            einsum = self.producer.get(tensor)
            self._known[tensor] = None if einsum is None else self._opened(einsum)
        return self._known[tensor]

    def _opened(self, einsum: Einsum) -> Polynomial | None:
        reduced = [v for reduction in einsum.reductions for v in reduction.variables]
        fresh: dict[str, Expression] = {v: self._fresh(v) for v in reduced}
        bound = frozenset(reduced)
        terms = self.expanded(einsum.expression)
        if terms is None or (
            len(terms) == 1
            and isinstance(einsum.expression, Call)
            and terms[0].numerators == (einsum.expression,)
        ):
            return None  # a call, known by the name of the tensor that holds it
        summed = (self._counted(replace(t, bound=t.bound | bound)) for t in terms)
        return tuple(term.put(fresh) for term in summed)

    def _counted(self, term: Term) -> Term:
        """Return a term with sizes of ranks in place of sums over variables it does not have."""
        used = {v for part in (*term.factors, *term.conditions) for v in variables(part)}
        sizes = tuple(self._size(v.upper()) for v in sorted(term.bound - used))
        return replace(term, numerators=term.numerators + sizes, bound=term.bound & used)

    def _size(self, rank: str) -> RankSize:
        return RankSize(self._roots.get(rank, rank))

    def _fresh(self, variable: str) -> Coordinate:
        return Coordinate(f"{_base(variable)}'{next(self._numbers)}")

    def expanded(self, node: Expression) -> Polynomial | None:
        """Return an expression as a polynomial; None where that would be too long."""
        match node:
            case Number(value=value):
                known = isinstance(value, int) or math.isfinite(value)
                return (Term(Fraction(value)),) if known and value else () if known else None
            case Negate(operand=operand):
                return self._scaled(self.expanded(operand), Fraction(-1))
            case Binary(operator="+" | "-" as sign, left=left, right=right):
                if not self._joins(sign, left, right):
                    return None
                first = self.expanded(left)
                second = self._scaled(self.expanded(right), Fraction(1 if sign == "+" else -1))
                return None if first is None or second is None else short((*first, *second))
            case Binary(operator="*", left=left, right=right):
                return product_of(self.expanded(left), self.expanded(right))
            case Binary(operator="/", left=left, right=right):
                return product_of(self.expanded(left), self._inverse(right))
            case Call(function="sq", arguments=(argument,)):
                return product_of(self.expanded(argument), self.expanded(argument))
            case Access():
                return self._read(node)
            case RankSize(rank=rank):
                return (Term(Fraction(1), (self._size(rank),)),)
            case _:
                return (Term(Fraction(1), (node,)),)

    def may_be_absent(self, node: Expression) -> bool:
        """Tell whether an expression may have no value at some points of its ranks."""
        return _culls(node) or any(access.tensor in self.absent for access in accesses(node))

    def _joins(self, sign: str, left: Expression, right: Expression) -> bool:
        """Tell whether a sum takes either operand as 0 where it is absent.

        One that has a rank of its own is needed there; on the left of a difference what is absent
        may stand for an infinity.
        """
        own, other = set(variables(left)), set(variables(right))
        if self.may_be_absent(left) and (sign == "-" or own - other):
            return False
        return not (self.may_be_absent(right) and other - own)

    @staticmethod
    def _scaled(terms: Polynomial | None, by: Fraction) -> Polynomial | None:
        if terms is None:
            return None
        return tuple(replace(t, coefficient=t.coefficient * by) for t in terms)

    def _read(self, access: Access) -> Polynomial:
        bare, conditions = unfiltered(access)
        terms = self.of(access.tensor)
        if terms is None:
            return (Term(Fraction(1), (bare,), conditions=conditions),)
        names = plain_variables(self.producer[access.tensor].output) or ()
        values = dict(zip(names, (i.expression for i in bare.indices), strict=True))
        found = []
        for term in terms:
            own = {v: self._fresh(v) for v in term.bound}
            moved = term.put({**values, **own})
            found.append(replace(moved, conditions=moved.conditions | conditions))
        return tuple(found)

    def _inverse(self, node: Expression) -> Polynomial | None:
        """Return one over an expression: of a product its inverse, of a sum a factor."""
        while isinstance(node, Access) and (alias := self._alias(node)) is not None:
            node = alias
        terms = self.expanded(node)
        if terms is not None and len(terms) == 1 and not terms[0].bound:
            term = terms[0]
            inverse = replace(
                term,
                coefficient=1 / term.coefficient,
                numerators=term.denominators,
                denominators=term.numerators,
            )
            return (inverse,)
        if isinstance(node, Access):
            bare, conditions = unfiltered(node)
            return (Term(Fraction(1), (), (bare,), conditions=conditions),)
        return (Term(Fraction(1), (), (node,)),)

    def _alias(self, access: Access) -> Expression | None:
        einsum = self.producer.get(access.tensor)
        if einsum is None or einsum.reductions or not isinstance(einsum.expression, Access):
            return None
        return definition_at(einsum, access)

    # Keys and zeros.

    def collected(self, terms: Iterable[Term]) -> Polynomial:
        """Return the polynomial with one term for each key, those that cancel left out."""
        sums: dict[object, Term] = {}
        for term in terms:
            key = self.key(term)
            known = sums.get(key)
            total = term.coefficient + (known.coefficient if known else 0)
            sums[key] = replace(known or term, coefficient=total)
        return tuple(term for term in sums.values() if term.coefficient)

    def key(self, term: Term) -> object:
        """Return what two terms share that differ in coefficient and in names at most."""
        parts = [self._component_key(part) for part in components(term)]
        outer = [f for f in term.factors if not _bound_in(f, term.bound)]
        conditions = [c for c in term.conditions if not _bound_in(c, term.bound)]
        top = [repr(f) for f in term.numerators if f in outer]
        bottom = [repr(f) for f in term.denominators if f in outer]
        return (
            tuple(sorted(parts)),
            tuple(sorted(top)),
            tuple(sorted(bottom)),
            tuple(sorted(map(repr, conditions))),
        )

    def _component_key(self, part: Term) -> tuple[str, ...]:
        groups: dict[str, list[str]] = {}
        for variable in sorted(part.bound):
            rank = _base(variable).upper()
            groups.setdefault(self._roots.get(rank, rank), []).append(variable)
        orders = [list(permutations(names)) for names in groups.values()]
        if math.prod(map(len, orders)) > _ORDERS:
            orders = [order[:1] for order in orders]
        return min(self._named(part, groups, choice) for choice in product(*orders))

    @staticmethod
    def _named(
        part: Term, groups: Mapping[str, list[str]], choice: tuple[tuple[str, ...], ...]
    ) -> tuple[str, ...]:
        names: dict[str, Expression] = {
            variable: Coordinate(f"{rank}#{number}")
            for rank, order in zip(groups, choice, strict=True)
            for number, variable in enumerate(order)
        }
        renamed = part.put(names)
        return (
            *sorted(renamed.bound),
            *sorted(map(repr, renamed.numerators)),
            "/",
            *sorted(map(repr, renamed.denominators)),
            *sorted(map(repr, renamed.conditions)),
        )

    def is_zero(self, terms: Polynomial, depth: int = 8) -> bool:
        """Tell whether a polynomial is 0 wherever its divisors are not.

        Divisors are cleared one by one. Where filters may leave a divisor absent, what is divided
        by it and what is not have to be 0 each.
        """
        check_time()
        terms = self.collected(terms)
        if not terms or not depth:
            return not terms
        divisor = next(
            (d for t in terms for d in t.denominators if not _bound_in(d, t.bound)), None
        )
        if divisor is None:
            return False
        whole = [t for t in terms if divisor not in t.denominators]
        if whole and self.may_be_absent(divisor) and not self.is_zero(tuple(whole), depth - 1):
            return False
        value = self.expanded(divisor)
        most = max(t.denominators.count(divisor) for t in terms)
        cleared: list[Term] = []
        for term in terms:
            part: Polynomial | None = (_without(term, divisor),)
            for _ in range(most - term.denominators.count(divisor)):
                again = None if value is None else tuple(self._renewed(t) for t in value)
                part = product_of(part, again)
            if part is None:
                return False
            cleared += part
        return self.is_zero(tuple(cleared), depth - 1)

    def _renewed(self, term: Term) -> Term:
        return term.put({v: self._fresh(v) for v in term.bound})


def components(term: Term) -> tuple[Term, ...]:
    """Return the factors that bound variables hold together, each as a term of its own."""
    groups: list[set[str]] = [{v} for v in sorted(term.bound)]
    for part in (*term.factors, *term.conditions):
        own = _bound_in(part, term.bound)
        touched = [g for g in groups if g & own]
        if len(touched) > 1:
            groups = [g for g in groups if g not in touched] + [set().union(*touched)]
    return tuple(
        Term(
            Fraction(1),
            tuple(f for f in term.numerators if _bound_in(f, group)),
            tuple(f for f in term.denominators if _bound_in(f, group)),
            frozenset(group),
            frozenset(c for c in term.conditions if _bound_in(c, group)),
        )
        for group in groups
    )


def _bound_in(part: Expression | Comparison, bound: Iterable[str]) -> set[str]:
    return set(variables(part)) & set(bound)


def _without(term: Term, divisor: Expression) -> Term:
    return replace(term, denominators=tuple(d for d in term.denominators if d != divisor))


def absent_tensors(cascade: Cascade) -> frozenset[str]:
    """Return the tensors that may be absent at some of their points."""
    found: set[str] = set()
    for einsum in cascade.einsums:
        reads = any(operand.tensor in found for operand in einsum.operands)
        if reads or _culls(einsum.expression) or plain_variables(einsum.output) is None:
            found |= {output.tensor for output in einsum.outputs}
    return frozenset(found)


def _culls(node: Expression) -> bool:
    """Tell whether filters or infinite literals leave points of an expression absent."""
    return any(
        (isinstance(part, Index) and bool(part.condition))
        or (isinstance(part, Number) and math.isinf(part.value))
        for part in walk(node)
    )


def _base(variable: str) -> str:
    return variable.split("'")[0]
