"""Separation and orbits, against the definitions they claim and against numbers."""

from __future__ import annotations

import random

import pytest
import sympy as sp

from einfuse.einsum.derivation.algebra import Orbit, additive, orbit, ratio, separate, simplified
from einfuse.einsum.derivation.symbols import Formula, SymbolTable
from einfuse.einsum.language.expression import Access, Binary, Call, Number
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.printer import render_expression

X, Y, V = sp.symbols("x y v", real=True)
G, H = sp.symbols("g h", positive=True)
NEW_G, NEW_H = sp.symbols("g2 h2", positive=True)
ELEMENTS = frozenset({X, Y, V})
MOVED = {G: NEW_G, H: NEW_H}

FACTORS = [
    (sp.exp(X - G), sp.exp(G - NEW_G)),
    (sp.exp(X - G) * V, sp.exp(G - NEW_G)),
    (sp.Pow(2, X - G), sp.Pow(2, G - NEW_G)),
    (X / G, G / NEW_G),
    ((X / G) ** 3, (G / NEW_G) ** 3),
    (X * G, NEW_G / G),
    (sp.exp(X - G) / H * V, sp.exp(G - NEW_G) * H / NEW_H),
    (sp.Abs(X / G) * V, G / NEW_G),
]
"""Standard terms with their factors, from the table of the literature on running corrections."""

NO_ORBIT = [
    sp.exp(-((X - G) ** 2)),
    1 / (1 + sp.exp(G - X)),
    sp.tanh(X - G),
    sp.floor(X / G),
    sp.Function("sigmoid")(X - G),
]

VECTORS = [
    ((X - G) ** 2, 3),
    ((X - G) * (Y - H), 4),
    ((X - G) ** 3 * V, 4),
    (sp.exp(X - H) * (Y - G), 2),
    (sp.log(X / G), 3),
    (X * V - G * V, 2),
]
"""Terms that need a state, with the number of its functions."""


@pytest.mark.parametrize(("term", "factor"), FACTORS, ids=str)
def test_a_product_of_element_and_reference_moves_by_a_factor(
    term: Formula, factor: Formula
) -> None:
    found = orbit(term, ELEMENTS, MOVED)
    assert found is not None
    assert len(found.functions) == 1
    assert sp.simplify(found.factor - factor) == 0


@pytest.mark.parametrize("term", NO_ORBIT, ids=str)
def test_a_term_that_mixes_them_for_good_has_no_orbit(term: Formula) -> None:
    assert orbit(term, ELEMENTS, MOVED) is None
    assert separate(term, ELEMENTS) is None


@pytest.mark.parametrize(("term", "count"), VECTORS, ids=str)
def test_a_polynomial_moves_with_a_state_of_its_derivatives(term: Formula, count: int) -> None:
    found = orbit(term, ELEMENTS, MOVED)
    assert found is not None
    assert len(found.functions) == count
    assert all(not c.free_symbols & ELEMENTS for f in found.functions for _, c in f.coefficients)


@pytest.mark.parametrize("term", [t for t, _ in FACTORS] + [t for t, _ in VECTORS], ids=str)
def test_coefficients_move_every_function_of_an_orbit(term: Formula) -> None:
    found = orbit(term, ELEMENTS, MOVED)
    assert found is not None
    draw = random.Random(7)
    for _ in range(3):
        point = {s: draw.uniform(0.5, 2.0) for s in (X, Y, V, G, H, NEW_G, NEW_H)}
        for function in found.functions:
            moved = function.formula.subs(MOVED, simultaneous=True).subs(point)
            assert _combined(found, function.coefficients, point) == pytest.approx(float(moved))


def _combined(
    found: Orbit, coefficients: tuple[tuple[int, Formula], ...], point: dict[Formula, float]
) -> float:
    total = sum(found.functions[place].formula * weight for place, weight in coefficients)
    return float((found.factor * total).subs(point))


def test_factors_of_two_moves_multiply_to_that_of_both() -> None:
    middle, last = sp.symbols("middle last", positive=True)
    first, second = ratio(sp.exp(-G), {G: middle}), ratio(sp.exp(-middle), {middle: last})
    assert sp.simplify(first * second - ratio(sp.exp(-G), {G: last})) == 0


@pytest.mark.parametrize(
    ("term", "parts"),
    [
        (X * V / G, 1),
        ((X * Y + X * V) / G, 1),
        ((X - G) ** 2, 3),
        (X * V * (Y - G), 2),
        (sp.exp(X - G) + 1, 2),
    ],
    ids=str,
)
def test_separation_is_an_identity_with_the_fewest_terms(term: Formula, parts: int) -> None:
    terms = separate(term, ELEMENTS)
    assert terms is not None
    assert len(terms) == parts
    assert sp.simplify(sum(t.element * t.reference for t in terms) - term) == 0
    assert all(not t.reference.free_symbols & ELEMENTS for t in terms)
    assert all(t.element.free_symbols <= ELEMENTS for t in terms)


def test_sums_split_into_elements_and_references() -> None:
    assert additive(X * Y - G + 1, ELEMENTS) == (X * Y, 1 - G)
    assert additive(X * G, ELEMENTS) is None


def test_what_numerator_and_denominator_share_cancels() -> None:
    assert simplified(X * sp.exp(-G) / (Y * sp.exp(-G))) == X / Y


EXPRESSIONS = [
    "exp(A[m] - G[]) * B[m]",
    "A[m] / G[] / 3",
    "2 * A[m] - sq(B[m])",
    "sqrt(A[m]) * rsqrt(G[])",
    "exp2(A[m] - 1)",
    "-(A[m] * B[m])",
    "abs(A[m]) + 0.5",
    "log(A[m]) - G[]",
    "A[m] * A[m] * A[m]",
    "tanh(A[m] / 30) * 30",
]


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_formulas_written_as_expressions_keep_their_value(text: str) -> None:
    source = f"rank M\ninput A[M], B[M], G[]\noutput Y\nY[m] = {text} + 0 * B[m] * G[]"
    expression = parse(source, "text").init[0].expression
    assert isinstance(expression, Binary)
    table = SymbolTable()
    formula = table.formula(expression.left, lambda part: False)
    again = table.expression(formula)
    assert sp.simplify(table.formula(again, lambda part: False) - formula) == 0
    assert parse(source.replace(text, render_expression(again)), "again").init


def test_parts_without_references_stay_whole() -> None:
    table = SymbolTable()
    product = Binary("*", Access("A"), Access("B"))
    call = Call("exp", (Binary("-", product, Access("G")),))
    formula = table.formula(call, lambda part: part == product)
    assert len(formula.free_symbols) == 2
    assert table.expression(formula) == call


def test_infinite_numbers_are_symbols() -> None:
    table = SymbolTable()
    assert table.formula(Number(float("inf")), lambda part: False).is_Symbol
