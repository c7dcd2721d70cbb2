"""Expressions as algebra: separation of variables, and how a term follows its references.

A barrier pair is ``y = fold over r of h(x, g)`` where the references ``g`` are values that a fold
over the same rank has made. Two questions decide what can be done about it:

- *separation*: is ``h(x, g)`` a sum of products ``a(x) * b(g)``? Then the references leave
  the fold (deferral).
- *orbit*: is ``h(x, g')`` a combination of finitely many ``h_k(x, g)`` with coefficients that
  do not depend on ``x``? Then a fold at old references can be moved to new ones (running
  corrections; one function: a factor; several: a vector state, as in Welford's variance).

sympy answers both on small formulas: every maximal part of an expression that reads no reference
is one symbol. All symbols are real; powers and logarithms expand as if bases were positive, so
that a rewrite must still be checked on numbers before anyone sees it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from itertools import product

import sympy as sp
from sympy.core.function import AppliedUndef

from einfuse.einsum.language.functions import function, function_names

from .deadline import check_time
from .symbols import Formula, Symbol


@dataclass(frozen=True, slots=True)
class Term:
    """``element * reference``: what varies along the rank, and what does not."""

    element: Formula
    reference: Formula


def separate(formula: Formula, elements: frozenset[Symbol]) -> tuple[Term, ...] | None:
    """Return the formula as a sum of terms whose factors do not mix; None if it is none.

    Terms with one reference factor are joined, so that one term means that the formula is a
    product. Signs and numbers go with the references.

    >>> x, g = sp.symbols("x g", real=True)
    >>> separate(sp.exp(x - g), frozenset({x}))
    (Term(element=exp(x), reference=exp(-g)),)
    >>> len(separate((x - g) ** 2, frozenset({x})))
    3
    >>> separate(sp.exp(-((x - g) ** 2)), frozenset({x})) is None
    True
    """
    if _is_undefined(formula):
        return None
    grouped: dict[Formula, Formula] = {}
    for term in sp.Add.make_args(expanded(formula)):
        check_time()
        element, reference, mixed = _factors(term, elements)
        if mixed != 1:
            return None
        grouped[reference] = grouped.get(reference, 0) + element
    by_element: dict[Formula, Formula] = {}
    for reference, element in grouped.items():
        by_element[element] = by_element.get(element, 0) + reference
    return tuple(Term(e, r) for e, r in by_element.items() if e != 0 and r != 0)


def additive(formula: Formula, elements: frozenset[Symbol]) -> tuple[Formula, Formula] | None:
    """Return ``(a, b)`` with formula = a(elements) + b(references); None if they mix.

    >>> x, g = sp.symbols("x g", real=True)
    >>> additive(2 * x - g, frozenset({x}))
    (2*x, -g)
    """
    if _is_undefined(formula):
        return None
    a, b = sp.Integer(0), sp.Integer(0)
    for term in sp.Add.make_args(expanded(formula)):
        element, reference, mixed = _factors(term, elements)
        if mixed != 1 or (element != 1 and reference.free_symbols):
            return None
        if element == 1:
            b += reference
        else:
            a += term
    return a, b


@dataclass(frozen=True, slots=True)
class Function:
    """One function of an orbit: its value, and its coefficients over the orbit.

    ``formula`` is ``h_k(x, g)``; ``h_k(x, g') = sum over j of coefficients[j] * h_j(x, g)``,
    where the coefficients hold old and new references and no element.
    """

    formula: Formula
    coefficients: tuple[tuple[int, Formula], ...]


@dataclass(frozen=True, slots=True)
class Orbit:
    """A finite set of functions, closed under a move of the references; the first is ``h``.

    ``factor`` is what all coefficients share: ``b(g') / b(g)``; ``shift`` is added instead where
    the fold is a maximum or minimum: ``b(g') - b(g)``.
    """

    functions: tuple[Function, ...]
    factor: Formula
    shift: Formula = sp.S.Zero


def orbit(
    formula: Formula, elements: frozenset[Symbol], moved: dict[Symbol, Symbol]
) -> Orbit | None:
    """Return the orbit of a formula when its references move; None if there is no finite one.

    ``moved`` maps each reference to the symbol of its new value. The formula is factored into
    ``a(x) * b(g) * p(x, g)``; ``b`` gives the factor, and ``p``, if it is a polynomial in the
    references, its Taylor polynomials about the old ones.

    >>> x, g, new = sp.symbols("x g new", real=True)
    >>> orbit(sp.exp(x - g), frozenset({x}), {g: new}).factor
    exp(g - new)
    >>> [f.formula for f in orbit((x - g) ** 2, frozenset({x}), {g: new}).functions]
    [(-g + x)**2, -g + x, 1]
    >>> orbit(sp.floor(x / g), frozenset({x}), {g: new}) is None
    True
    """
    if _is_undefined(formula):
        return None
    a, b, p = _product(formula, elements)
    references = [symbol for symbol in moved if symbol in p.free_symbols]
    factor = ratio(b, moved)
    if not p.is_polynomial(*references):
        return _separable_orbit(a * b * p, elements, moved)
    orders = _orders(p, references)
    parts = {k: _monic(_derivative(p, references, k), references) for k in orders}
    parts[orders[0]] = (sp.Integer(1), p)  # the first function is the formula itself
    kept = [k for k in orders if parts[k][1] != 0]
    functions = []
    for k in kept:
        check_time()
        coefficients = []
        for position, j in enumerate(kept):
            above = tuple(high - low for high, low in zip(j, k, strict=True))
            if min(above, default=0) < 0:
                continue
            choose = math.prod(math.comb(high, low) for high, low in zip(j, k, strict=True))
            shift = reduce(
                lambda value, step: value * (moved[step[0]] - step[0]) ** step[1],
                zip(references, above, strict=True),
                sp.Integer(choose),
            )
            coefficients.append((position, shift * parts[j][0] / parts[k][0]))
        functions.append(Function(sp.powsimp(a * b * parts[k][1]), tuple(coefficients)))
    return _merged(Orbit(tuple(functions), factor))


def _merged(whole: Orbit) -> Orbit:
    """Return an orbit with each function once."""
    formulas = [function.formula for function in whole.functions]
    first = [formulas.index(formula) for formula in formulas]
    kept = [n for n in range(len(formulas)) if first[n] == n]
    place = {n: kept.index(first[n]) for n in range(len(formulas))}
    functions = []
    for n in kept:
        sums: dict[int, Formula] = {}
        for j, coefficient in whole.functions[n].coefficients:
            sums[place[j]] = sums.get(place[j], 0) + coefficient
        functions.append(Function(formulas[n], tuple(sums.items())))
    return Orbit(tuple(functions), whole.factor)


def _separable_orbit(
    formula: Formula, elements: frozenset[Symbol], moved: dict[Symbol, Symbol]
) -> Orbit | None:
    """The orbit of a sum of products: each product follows its references by a factor."""
    terms = separate(formula, elements)
    if terms is None:
        return None
    whole, parts = [], []
    for place, term in enumerate(terms, start=1):
        if term.element == 1:
            new = term.reference.subs(moved, simultaneous=True)
            whole.append((place, new))
            parts.append(Function(sp.Integer(1), ((place, sp.Integer(1)),)))
        else:
            follows = (place, ratio(term.reference, moved))
            whole.append(follows)
            parts.append(Function(sp.powsimp(term.element * term.reference), (follows,)))
    return Orbit((Function(formula, tuple(whole)), *parts), sp.Integer(1))


def without(whole: Orbit, zero: frozenset[int]) -> Orbit:
    """Return an orbit without the functions whose folds are known to be 0.

    >>> x, g, new = sp.symbols("x g new", real=True)
    >>> squares = orbit((x - g) ** 2, frozenset({x}), {g: new})
    >>> [f.formula for f in without(squares, frozenset({1})).functions]
    [(-g + x)**2, 1]
    """
    kept = [n for n in range(len(whole.functions)) if n not in zero]
    place = {old: new for new, old in enumerate(kept)}
    return Orbit(
        tuple(
            Function(
                whole.functions[n].formula,
                tuple((place[j], c) for j, c in whole.functions[n].coefficients if j in place),
            )
            for n in kept
        ),
        whole.factor,
        whole.shift,
    )


def extreme_orbit(
    formula: Formula, elements: frozenset[Symbol], moved: dict[Symbol, Symbol]
) -> Orbit | None:
    """Return the orbit of what a maximum or minimum folds; None if the references do not leave it.

    A term that is added shifts the maximum, a positive factor scales it.

    >>> x, g, new = sp.symbols("x g new", real=True)
    >>> extreme_orbit(x - g, frozenset({x}), {g: new}).shift
    g - new
    """
    own = (Function(formula, ((0, sp.Integer(1)),)),)
    parts = additive(formula, elements)
    if parts is not None:
        return Orbit(own, sp.Integer(1), parts[1].subs(moved, simultaneous=True) - parts[1])
    terms = separate(formula, elements)
    if terms is None or len(terms) != 1 or not terms[0].reference.is_positive:
        return None
    return Orbit(own, ratio(terms[0].reference, moved))


def ratio(formula: Formula, moved: dict[Symbol, Symbol]) -> Formula:
    """Return ``b(g') / b(g)``, powers and exponentials joined.

    >>> g, d, new, after = sp.symbols("g d new after", positive=True)
    >>> ratio(sp.exp(-g) / d, {g: new, d: after})
    d*exp(g - new)/after
    """
    quotient = formula.subs(moved, simultaneous=True) / formula
    return sp.powsimp(sp.cancel(expanded_powers(quotient)) if quotient != 1 else quotient)


def denominators(formula: Formula) -> tuple[Formula, ...]:
    """Return what a formula divides by; the exponents of exponentials do not count.

    >>> x, g = sp.symbols("x g", real=True)
    >>> denominators(x * sp.exp(-g) / (2 * g**2))
    (g,)
    """
    powers = formula.atoms(sp.Pow)
    found = (p.base for p in powers if p.exp.is_negative and not p.base.is_number)
    return tuple(sorted(found, key=str))


def expanded(formula: Formula) -> Formula:
    """Return the formula multiplied out, exponentials and powers of products split."""
    return sp.expand(expanded_powers(_homogeneous(formula)), force=True)


def expanded_powers(formula: Formula) -> Formula:
    """Return the formula with exponentials of sums and powers of products split, no more."""
    return sp.expand_power_base(sp.expand_power_exp(formula), force=True)


def simplified(formula: Formula) -> Formula:
    """Return an equal formula that depends on as few symbols as can be seen at once.

    >>> n, d, g = sp.symbols("n d g", positive=True)
    >>> simplified(n * sp.exp(-g) / (d * sp.exp(-g)))
    n/d
    >>> simplified(sp.log(d * sp.exp(-g)) + g)
    log(d)
    """
    opened = sp.expand_log(formula, force=True)
    return sp.powsimp(sp.expand(opened)) if opened.has(sp.log) else sp.powsimp(sp.cancel(opened))


def _is_undefined(formula: Formula) -> bool:
    """Tell whether a formula divides by 0 or so, by algebra alone."""
    return bool(formula.has(sp.zoo, sp.nan, sp.oo, -sp.oo))


def _homogeneous(formula: Formula) -> Formula:
    """Pull positive factors out of functions that are homogeneous of degree one."""

    def pull(call: Formula) -> Formula:
        constant, rest = sp.expand(call.args[0]).as_independent(
            *(s for s in call.free_symbols if not s.is_positive), as_Add=False
        )
        return constant * call.func(rest) if constant.is_positive else call

    def is_homogeneous(node: Formula) -> bool:
        name = str(node.func)
        if not isinstance(node, AppliedUndef) or name not in function_names():
            return False
        return function(name).power == 1 and len(node.args) == 1

    return formula.replace(is_homogeneous, pull)


def _factors(term: Formula, elements: frozenset[Symbol]) -> tuple[Formula, Formula, Formula]:
    element, reference, mixed = sp.Integer(1), sp.Integer(1), sp.Integer(1)
    for factor in sp.Mul.make_args(term):
        symbols = factor.free_symbols
        if not symbols & elements:
            reference *= factor
        elif symbols <= elements:
            element *= factor
        else:
            mixed *= factor
    return element, reference, mixed


def _product(formula: Formula, elements: frozenset[Symbol]) -> tuple[Formula, Formula, Formula]:
    """Factor a formula into elements, references and the part that mixes them."""
    formula = _homogeneous(formula)
    a, b, p = _factors(expanded_powers(formula), elements)
    if p == 1:
        return a, b, p
    terms = separate(p, elements)
    if terms is not None and len(terms) == 1:
        return a * terms[0].element, b * terms[0].reference, sp.Integer(1)
    more_a, more_b, p = _factors(sp.factor_terms(sp.expand_power_exp(p)), elements)
    if any(node.is_Function or node.is_Pow for node in p.atoms(sp.Function, sp.Pow)):
        more = _factors(sp.factor(expanded(p)), elements)
        more_a, more_b, p = more_a * more[0], more_b * more[1], more[2]
    return a * more_a, b * more_b, p


def _orders(p: Formula, references: list[Symbol]) -> list[tuple[int, ...]]:
    if not references:
        return [()]
    degrees = [sp.Poly(p, symbol).degree() for symbol in references]
    orders = product(*(range(degree + 1) for degree in degrees))
    return sorted(orders, key=lambda k: (sum(k), tuple(-i for i in k)))


def _derivative(p: Formula, references: list[Symbol], order: tuple[int, ...]) -> Formula:
    for symbol, times in zip(references, order, strict=True):
        p = sp.diff(p, symbol, times) / math.factorial(times)
    return p


def _monic(formula: Formula, references: list[Symbol]) -> tuple[Formula, Formula]:
    """Return ``(number, rest)`` with a rest that is positive in its elements."""
    if formula == 0:
        return sp.Integer(1), formula
    number, rest = sp.factor_terms(formula).as_coeff_Mul()
    leading = rest.subs(dict.fromkeys(references, 0))
    negative = (leading if leading != 0 else rest).could_extract_minus_sign()
    return (-number, -rest) if negative else (number, rest)
