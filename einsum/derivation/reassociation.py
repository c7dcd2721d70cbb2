"""Rule A: sums change their order, so that a fold reads another instead of its elements.

``sum over m of (sum over f of A[f] * V[f,m]) * P[m]`` is ``sum over f of A[f] * O[f]`` where the
cascade has ``O[f] = sum over m of V[f,m] * P[m]``. So FlashAttention-2's backward pass
(arXiv 2307.08691, algorithm 2) gets its ``D``: the adjoint of the softmax's denominator is read off
the output, with no pass over the keys. Both sides are one polynomial (`polynomial`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Comparison,
    Coordinate,
    Expression,
    Index,
    Negate,
    Number,
    variables,
    walk,
)
from einfuse.einsum.language.substitution import plain_variables, put, put_in_condition

from .dataflow import Dataflow, Kind
from .normal_form import straight
from .polynomial import Polynomials, components
from .polynomial_terms import Term


@dataclass(frozen=True, slots=True)
class Reassociated:
    """A cascade after the rule, with the folds that changed and what each reads instead."""

    cascade: Cascade
    folds: tuple[tuple[str, str], ...]


def reassociate(flow: Dataflow) -> Reassociated | None:
    """Return the cascade with folds over the rank read off other folds (rule A); None if none is.

    A fold reads an earlier one that waits for no more than it does itself, and what is left of its
    elements does not vary along the rank. All variables of the earlier one occur in what it sums.

    >>> from einfuse.einsum.language.parser import parse
    >>> from einfuse.einsum.language.printer import render_einsum
    >>> text = (
    ...     "rank M, F\\ninput V[F,M], P[M], A[F]\\noutput O, D\\nO[f] = V[f,m] * P[m]\\n"
    ...     "T[m] = A[f] * V[f,m]\\nD[] = T[m] * P[m]"
    ... )
    >>> found = reassociate(Dataflow(parse(text), "m"))
    >>> found.folds, list(map(render_einsum, found.cascade.init))
    ((('D', 'O'),), ['O[f] = V[f,m] * P[m]', 'D[] = A[f] * O[f]'])
    """
    polynomials = Polynomials(flow.cascade)
    einsums: list[Einsum] = []
    changed: dict[str, str] = {}
    for einsum in flow.einsums:
        found = None
        if flow.kinds[einsum.name] is Kind.FOLD:
            earlier = [e for e in einsums if _may_replace(flow, e, einsum)]
            found = next(_through(polynomials, einsum, earlier), None)
        if found is not None:
            changed[einsum.name] = found[0].name
        einsums.append(einsum if found is None else found[1])
    if not changed:
        return None
    return Reassociated(straight(flow.cascade, einsums), tuple(changed.items()))


def _may_replace(flow: Dataflow, known: Einsum, fold: Einsum) -> bool:
    """Tell whether a fold is complete no later than the elements of another."""
    if flow.kinds[known.name] is not Kind.FOLD:
        return False
    return flow.waits_for[known.name] <= flow.waits_for[fold.name]


def _through(
    polynomials: Polynomials, einsum: Einsum, earlier: Sequence[Einsum]
) -> Iterator[tuple[Einsum, Einsum]]:
    """Yield an earlier fold, and the Einsum that reads it in place of its elements."""
    whole = _single(polynomials, einsum)
    if whole is None:
        return
    for known in earlier:
        part = _single(polynomials, known)
        if part is None:
            continue
        inner = components(part)
        if len(inner) != 1 or not inner[0].numerators or inner[0].conditions != part.conditions:
            continue
        for component in components(whole):
            for values in _matches(inner[0], component):
                rewritten = _rewritten(einsum, whole, component, known, part, inner[0], values)
                if rewritten is not None:
                    yield known, rewritten


def _single(polynomials: Polynomials, einsum: Einsum) -> Term | None:
    terms = polynomials.of(einsum.name)
    return terms[0] if terms is not None and len(terms) == 1 else None


Values = Mapping[str, Expression]


def _matches(inner: Term, whole: Term) -> Iterator[Values]:
    """Yield what the variables of a sum are in another, all of whose factors are in it too.

    What else varies along the inner sum's bound variables is in the inner sum.
    """
    parts = [*((f, True) for f in inner.numerators), *((f, False) for f in inner.denominators)]
    pools = {True: whole.numerators, False: whole.denominators}

    def search(at: int, values: Values, used: tuple[tuple[bool, int], ...]) -> Iterator[Values]:
        if at == len(parts):
            if _is_closed(inner, whole, values, used):
                yield values
            return
        factor, above = parts[at]
        for place, candidate in enumerate(pools[above]):
            if (above, place) in used:
                continue
            more = _unified(factor, candidate, values)
            if more is not None:
                yield from search(at + 1, more, (*used, (above, place)))

    yield from search(0, {}, ())


def _unified(pattern: Expression, found: Expression, values: Values) -> Values | None:
    """Return variables' values that make a pattern of an expression; None where there are none."""
    if isinstance(pattern, Access) and isinstance(found, Access):
        if pattern.tensor != found.tensor:
            return None
        known = dict(values)
        for index, other in zip(pattern.indices, found.indices, strict=True):
            if isinstance(index.expression, Coordinate):
                name = index.expression.variable
                if known.setdefault(name, other.expression) != other.expression:
                    return None
        values = known
    return values if put(pattern, values) == found else None


def _is_closed(inner: Term, whole: Term, values: Values, used: Sequence[tuple[bool, int]]) -> bool:
    """Tell whether the bound variables of a matched sum occur in what is matched only."""
    images = [values.get(v) for v in inner.bound]
    names = {image.variable for image in images if isinstance(image, Coordinate)}
    if len(names) < len(inner.bound) or not names <= whole.bound:
        return False
    rest = [
        factor
        for above, factors in ((True, whole.numerators), (False, whole.denominators))
        for place, factor in enumerate(factors)
        if (above, place) not in used
    ]
    conditions = frozenset(put_in_condition(tuple(inner.conditions), values))
    others = [c for c in whole.conditions if c not in conditions]
    return (
        conditions <= whole.conditions
        and not any(names & set(variables(part)) for part in (*rest, *others))
        and all(not names & set(variables(e)) for v, e in values.items() if v not in inner.bound)
    )


def _rewritten(
    einsum: Einsum,
    whole: Term,
    component: Term,
    known: Einsum,
    part: Term,
    inner: Term,
    values: Values,
) -> Einsum | None:
    """Return the Einsum with a matched sum read from the tensor that holds it."""
    left = plain_variables(known.output) or ()
    if not all(v in values for v in left):
        return None
    reads = Access(known.name, tuple(Index(values[v]) for v in left))
    outer_top = [put(f, values) for f in part.numerators if f not in inner.numerators]
    outer_bottom = [put(f, values) for f in part.denominators if f not in inner.denominators]
    matched = inner.put(values)
    top = _less(whole.numerators, matched.numerators)
    bottom = _less(whole.denominators, matched.denominators)
    top = None if top is None else _less(top, outer_top)  # else a division that was not there
    if top is None or bottom is None:
        return None
    for factor in outer_bottom:
        shorter = _less(bottom, [factor])
        bottom, top = (bottom, [*top, factor]) if shorter is None else (shorter, top)
    conditions = whole.conditions - matched.conditions
    bound = whole.bound - matched.bound
    return _written(
        einsum, whole.coefficient / part.coefficient, [*top, reads], bottom, bound, conditions
    )


def _less(factors: Sequence[Expression], fewer: Sequence[Expression]) -> list[Expression] | None:
    """Return factors without some of them; None where one is not there."""
    left = list(factors)
    for factor in fewer:
        if factor not in left:
            return None
        left.remove(factor)
    return left


def _written(
    einsum: Einsum,
    coefficient: Fraction,
    top: list[Expression],
    bottom: list[Expression],
    bound: frozenset[str],
    conditions: frozenset[Comparison],
) -> Einsum | None:
    """Return an Einsum of one product; None where its variables have no names of their own."""
    names = {v: v.split("'")[0] for v in bound}
    taken = {
        c.variable
        for f in (*top, *bottom)
        for c in walk(f)
        if isinstance(c, Coordinate) and c.variable not in bound
    } | set(einsum.output_variables)
    if conditions or len(set(names.values())) < len(names) or taken & set(names.values()):
        return None
    size = abs(coefficient)
    number = Number(int(size) if size.denominator == 1 else float(size))
    top = top if size == 1 else [number, *top]
    expression: Expression = top[0]
    for factor in top[1:]:
        expression = Binary("*", expression, factor)
    for factor in bottom:
        expression = Binary("/", expression, factor)
    if coefficient < 0:
        expression = Negate(expression)
    values: dict[str, Expression] = {v: Coordinate(name) for v, name in names.items()}
    if not bound <= set(variables(expression)):
        return None
    return Einsum(einsum.outputs, put(expression, values))
