"""Rebuilding expressions."""

from __future__ import annotations

import pytest

from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.expression import Binary, Coordinate, Expression, Number
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.printer import render_expression
from einfuse.einsum.language.substitution import (
    definition_at,
    inlined,
    plain_variables,
    put,
    rebuild,
)

pytestmark = pytest.mark.filterwarnings("ignore:input", "ignore:rank")

HEAD = "rank M, N, P\ninput X[M,P], W[M], T[P]\noutput Y\n"


def einsums(lines: str) -> tuple[Einsum, ...]:
    return parse(HEAD + lines).init


@pytest.mark.parametrize(
    ("definition", "reader", "expected"),
    [
        ("Z[m,p] = X[m,p] * W[m]", "Y[m] = Z[m,p]", "X[m,p] * W[m]"),
        ("Z[m,p] = X[m,p] * W[m]", "Y[m] = Z[M-1-m,p]", "X[M-1-m,p] * W[M-1-m]"),
        ("Z[m,p] = X[m,p] - W[m]", "Y[m] = Z[m: m<3,p]", "X[m: m<3,p] - W[m: m<3]"),
        ("Z[m,p] = X[m,p]", "Y[p] = Z[T[p],p]", "X[T[p],p]"),
        ("Z[m,p] = X[m,p] + m", "Y[p] = Z[2,p]", "X[2,p] + 2"),
    ],
)
def test_definitions_are_inlined_at_the_indices_of_the_access(
    definition: str, reader: str, expected: str
) -> None:
    first, second = einsums(f"{definition}\n{reader}")
    found = inlined(first, second.operands[0])
    assert found is not None
    assert render_expression(found) == expected


@pytest.mark.parametrize(
    ("definition", "reader"),
    [
        ("Z[p] = X[m,p]", "Y[p] = Z[p]"),  # a fold
        ("Z[p] = 3 * p", "Y[p] = Z[p: p<2]"),  # nothing to filter
    ],
)
def test_what_is_no_plain_function_of_its_indices_is_not_inlined(
    definition: str, reader: str
) -> None:
    first, second = einsums(f"{definition}\n{reader}")
    assert inlined(first, second.operands[0]) is None


def test_what_a_fold_folds_can_be_had_at_other_indices() -> None:
    first, second = einsums("Z[p] = X[m,p]\nY[p] = Z[P-1-p]")
    found = definition_at(first, second.operands[0])
    assert found is not None
    assert render_expression(found) == "X[m,P-1-p]"


def test_variables_are_replaced_all_at_once() -> None:
    swapped = put(
        Binary("-", Coordinate("m"), Coordinate("p")),
        {"m": Coordinate("p"), "p": Coordinate("m")},
    )
    assert render_expression(swapped) == "p - m"


def test_what_replaces_a_node_is_not_visited_again() -> None:
    def grow(node: Expression) -> Expression | None:
        return Binary("+", node, Number(1)) if node == Number(1) else None

    assert render_expression(rebuild(Number(1), grow)) == "1 + 1"


def test_only_distinct_bare_variables_are_plain() -> None:
    (einsum,) = einsums("Y[m,p] = X[m,p]")
    assert plain_variables(einsum.output) == ("m", "p")
    (einsum,) = einsums("Y[m] = X[m,p: p<2] * X[2,p]")
    assert [plain_variables(access) for access in einsum.operands] == [None, None]
