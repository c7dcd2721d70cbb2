"""Views resolved: whoever reads a view reads the tensor behind it.

A view only names coordinates anew (`is_view`): a copy, a tile of a split, a shift, a reversal, or
any chain of them. What an Einsum reads does not depend on which of the names it uses, so that the
analyses of coordinates look at the tensors behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from einfuse.einsum.language.affine import Linear, linear
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Coordinate,
    Expression,
    Index,
    Negate,
    Number,
    RankSize,
    walk,
)
from einfuse.einsum.language.substitution import put, put_in_condition, replace_accesses

from .operations import is_view


def without_views(cascade: Cascade, sizes: Mapping[str, Any]) -> Cascade:
    '''Return the cascade with every read of a view as one of the tensor behind it.

    The Einsums keep their places, the views among them. A view whose coordinates cannot be told
    from its indices, and one that gathers, stays a tensor of its own.

    Args:
        cascade: what is computed.
        sizes: size of every rank, whole or symbolic.

    >>> from einfuse.einsum.language.parser import parse
    >>> from einfuse.einsum.language.printer import render_einsum
    >>> from einfuse.einsum.language.shape import bind_symbolic
    >>> cascade = parse("""
    ... rank M
    ... input A[M]
    ... output Y
    ... B[m] = A[m]
    ... C[m] = B[M-1-m]
    ... Y[m] = exp(C[m: m>0])
    ... """)
    >>> render_einsum(without_views(cascade, bind_symbolic(cascade)).einsums[-1])
    'Y[m] = exp(A[M-1-m: m>0])'
    '''
    writers = Counter(o.tensor for e in cascade.einsums for o in e.outputs)
    views: dict[str, _View] = {}

    def behind(access: Access) -> Expression | None:
        view = views.get(access.tensor)
        indices = tuple(map(resolved, access.indices))
        return view.read_at(indices) if view else replace(access, indices=indices)

    def resolved(index: Index) -> Index:
        expression = replace_accesses(index.expression, behind)
        condition = tuple(
            replace(
                c,
                left=replace_accesses(c.left, behind),
                right=replace_accesses(c.right, behind),
            )
            for c in index.condition
        )
        return Index(tidied(expression, cascade, sizes), condition)

    def rewritten(einsum: Einsum) -> Einsum:
        outputs = tuple(
            replace(o, indices=tuple(resolved(i) for i in o.indices)) for o in einsum.outputs
        )
        expression = replace_accesses(einsum.expression, behind)
        changed = replace(einsum, outputs=outputs, expression=expression)
        if writers[einsum.name] == 1 and (view := _view(changed, cascade, sizes)):
            views[einsum.name] = view
        return changed

    sections: dict[str, Any] = {
        n: tuple(map(rewritten, getattr(cascade, n))) for n in ("init", "loop", "final")
    }
    return replace(cascade, **sections)


@dataclass(frozen=True, slots=True)
class _View:
    """What a view reads, and where its variables stand in its own indices.

    A variable is ``sign * (index - start) / unit % extent`` of the index at its place; no extent
    is one that needs no remainder.
    """

    source: Access
    places: Mapping[str, tuple[int, int, Any, Any, Any]]
    cascade: Cascade
    sizes: Mapping[str, Any]

    def read_at(self, indices: tuple[Index, ...]) -> Access:
        values = {v: self._value(indices, *place) for v, place in self.places.items()}
        found = [
            Index(
                tidied(put(index.expression, values), self.cascade, self.sizes),
                put_in_condition(index.condition, values),
            )
            for index in self.source.indices
        ]
        filters = tuple(c for index in indices for c in index.condition)
        if found:
            found[0] = replace(found[0], condition=(*found[0].condition, *filters))
        return replace(self.source, indices=tuple(found))

    def _value(
        self, indices: tuple[Index, ...], place: int, sign: int, start: Any, unit: Any, extent: Any
    ) -> Expression:
        value = indices[place].expression
        if start != 0:
            value = Binary("-", value, _number(start))
        if sign < 0:
            value = Binary("*", Number(-1), value)
        if unit != 1:
            value = Binary("/", value, _number(unit))
        return value if extent is None else Binary("%", value, _number(extent))


def _view(einsum: Einsum, cascade: Cascade, sizes: Mapping[str, Any]) -> _View | None:
    """Return an Einsum as a view whose variables follow from its indices, if it is one."""
    if not is_view(einsum) or len(einsum.operands) != 1 or einsum.operands[0].tensor == einsum.name:
        return None
    places: dict[str, tuple[int, int, Any, Any, Any]] = {}
    for place, index in enumerate(einsum.output.indices):
        form = linear(index.expression, sizes)
        if form is None or index.condition or not places.keys().isdisjoint(form.coefficients):
            return None
        extents = {v: sizes[cascade.rank_of(v)] for v in form.coefficients}
        if len(form.coefficients) == 1:
            ((variable, sign),) = form.coefficients.items()
            if sign not in (1, -1):
                return None
            places[variable] = (place, int(sign), form.constant, 1, None)
            continue
        unit: Any = 1
        for variable in _digits(form, extents):
            top = len(places.keys() & extents.keys()) == len(extents) - 1
            extent = None if top else extents[variable]
            places[variable] = (place, 1, form.constant, unit, extent)
            unit = unit * extents[variable]
        if not extents.keys() <= places.keys():
            return None
    source = einsum.expression
    assert isinstance(source, Access)
    return _View(source, places, cascade, sizes)


def _digits(form: Linear, extents: Mapping[str, Any]) -> list[str]:
    """Return the variables of a number by its digits, finest first, as far as it is one."""
    unit: Any = 1
    found: list[str] = []
    for _ in form.coefficients:
        rest = [v for v, c in form.coefficients.items() if v not in found and _same(c, unit)]
        if len(rest) != 1:
            break
        found += rest
        unit = unit * extents[rest[0]]
    return found


def tidied(expression: Expression, cascade: Cascade, sizes: Mapping[str, Any]) -> Expression:
    """Return an index with its quotients and remainders carried out, as far as they are exact.

    >>> from einfuse.einsum.language.parser import parse
    >>> from einfuse.einsum.language.printer import render_expression
    >>> from einfuse.einsum.language.shape import bind_symbolic
    >>> cascade = parse("split M -> M1, M0\\ninput A[M]\\nB[m1] = A[(m1*M0+m0)/M0]")
    >>> index = cascade.einsums[0].operands[0].indices[0].expression
    >>> render_expression(tidied(index, cascade, bind_symbolic(cascade)))
    'm1'
    """
    if not any(isinstance(n, Binary) and n.operator in "/%" for n in walk(expression)):
        return expression
    return _expression(_form(expression, cascade, sizes))


@dataclass(frozen=True, slots=True)
class _Part:
    """A quotient or a remainder of a form by a number, where it is not carried out."""

    operator: str
    whole: tuple[tuple[Any, Any], ...]
    divisor: Any


_Form = dict[Any, Any]
"""Coefficients of coordinates, of parts and of what has no form; None is the constant."""


def _form(expression: Expression, cascade: Cascade, sizes: Mapping[str, Any]) -> _Form:
    match expression:
        case Number(value=value):
            return {None: value}
        case RankSize(rank=rank):
            return {None: sizes[rank]}
        case Negate(operand=operand):
            return _plus({}, _form(operand, cascade, sizes), -1)
        case Binary(operator=sign, left=left, right=right):
            a, b = _form(left, cascade, sizes), _form(right, cascade, sizes)
            if sign in "+-":
                return _recombined(_plus(a, b, 1 if sign == "+" else -1))
            if sign == "*" and (a.keys() <= {None} or b.keys() <= {None}):
                factor, rest = (a, b) if a.keys() <= {None} else (b, a)
                return _plus({}, rest, factor.get(None, 0))
            if sign in "/%" and b.keys() == {None}:
                return _divided(a, b[None], cascade, sizes)[sign == "%"]
    return {expression: 1}


def _plus(a: _Form, b: _Form, factor: Any) -> _Form:
    total = dict(a)
    for atom, coefficient in b.items():
        total[atom] = total.get(atom, 0) + factor * coefficient
    return {atom: c for atom, c in total.items() if c != 0}


def _divided(
    whole: _Form, divisor: Any, cascade: Cascade, sizes: Mapping[str, Any]
) -> tuple[_Form, _Form]:
    """Return quotient and remainder: as forms where the remainder is certain to be one."""
    import sympy

    by = sympy.sympify(divisor)
    quotient: _Form = {}
    rest: _Form = {}
    most: Any = 0
    certain = True
    for atom, coefficient in whole.items():
        ratio = sympy.cancel(coefficient / by)
        if ratio.is_Integer or (not ratio.is_number and ratio.is_polynomial()):
            quotient[atom] = ratio
            continue
        rest[atom] = coefficient
        extent = 2
        if isinstance(atom, Coordinate):
            extent = sizes[cascade.rank_of(atom.variable)]
        elif atom is not None:
            certain = False
        most = most + coefficient * (extent - 1)
        certain = certain and bool(sympy.sympify(coefficient).is_nonnegative)
    if rest.keys() == {None}:
        below = sympy.sympify(rest[None])
        if below.is_negative and (below + by).is_nonnegative:  # just below a multiple
            return _plus(quotient, {None: -1}, 1), {None: below + by}
    if certain and sympy.expand(by - 1 - most).is_nonnegative:
        return quotient, rest
    key = tuple(whole.items())
    return {_Part("/", key, by): 1}, {_Part("%", key, by): 1}


def _recombined(form: _Form) -> _Form:
    """Return ``c*(x/c) + x%c`` as x."""
    for part, factor in form.items():
        if isinstance(part, _Part) and part.operator == "%":
            quotient = replace(part, operator="/")
            if form.get(quotient, 0) == factor * part.divisor:
                rest = {atom: c for atom, c in form.items() if atom not in (part, quotient)}
                return _plus(rest, dict(part.whole), factor)
    return form


def _expression(form: _Form) -> Expression:
    """Return a form as an expression."""
    terms: list[Expression] = []
    for atom, coefficient in form.items():
        match atom:
            case None:
                terms.append(_number(coefficient))
                continue
            case _Part(operator=operator, whole=whole, divisor=divisor):
                term: Expression = Binary(operator, _expression(dict(whole)), _number(divisor))
            case _:
                term = atom
        terms.append(term if coefficient == 1 else Binary("*", _number(coefficient), term))
    return _sum(terms)


def _number(value: Any) -> Expression:
    """Return a size, whole or symbolic, as an expression."""
    import sympy

    value = sympy.expand(value)
    terms: list[Expression] = []
    for term in sympy.Add.make_args(value):
        factors: list[Expression] = []
        for factor in sympy.Mul.make_args(term):
            base, power = factor.as_base_exp()
            one = Number(int(factor)) if factor.is_Integer else RankSize(str(base))
            factors += [one] * (1 if factor.is_Integer else int(power))
        terms.append(reduce(lambda a, b: Binary("*", a, b), factors))
    return _sum(terms)


def _sum(terms: list[Expression]) -> Expression:
    return reduce(lambda a, b: Binary("+", a, b), terms) if terms else Number(0)


def _same(a: Any, b: Any) -> bool:
    import sympy

    return bool(sympy.expand(a - b) == 0)
