"""Formulas: values, arrays, scopes, errors."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from einfuse.mapper.design.design import load_design
from einfuse.mapper.errors import MappingError
from einfuse.mapper.machine.formula import Scope, parse_formula, render_formula
from einfuse.simulator.cost.model import evaluate


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("10 - 4 - 3", 3),
        ("16 / 4 / 2", 2),
        ("-2 * 3", -6),
        ("ceil(7 / 2)", 4),
        ("floor(7 / 2)", 3),
        ("min(2, 3) + max(2, 3)", 5),
        ("where(1 < 2, 10, 20)", 10),
        ("largest_divisor(12, 5)", 4),
        ("largest_divisor(7, 6.5)", 1),
        ("smallest_divisor(12, 5)", 6),
        ("power_of_two(1000)", 512),
        ("power_of_two(0.5)", 0),
        ("round(2.34567, 2)", 2.35),
        ("1e3", 1000),
        ("a.b + c", 7),
    ],
)
def test_a_formula_has_its_value(text: str, value: float) -> None:
    assert parse_formula(text).evaluate({"a.b": 3, "c": 4}) == value


def test_conditions_join() -> None:
    formula = parse_formula("not a == 1 and (b < 2 or c >= 3)")
    assert formula.evaluate({"a": 0, "b": 1, "c": 0})
    assert not formula.evaluate({"a": 1, "b": 1, "c": 0})
    assert not formula.evaluate({"a": 0, "b": 2, "c": 2})


@given(
    st.lists(st.tuples(st.integers(1, 500), st.floats(0.1, 600)), min_size=1, max_size=20),
)
def test_divisors_of_arrays_are_those_of_their_elements(pairs: list[tuple[int, float]]) -> None:
    numbers, limits = map(np.array, zip(*pairs, strict=True))
    largest = parse_formula("largest_divisor(n, k)").evaluate({"n": numbers, "k": limits})
    smallest = parse_formula("smallest_divisor(n, k)").evaluate({"n": numbers, "k": limits})
    for number, limit, low, high in zip(numbers, limits, largest, smallest, strict=True):
        divisors = [d for d in range(1, number + 1) if number % d == 0]
        assert low == max((d for d in divisors if d <= limit), default=0)
        assert high == min((d for d in divisors if d >= limit), default=number)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 +", "found the end"),
        ("2 $ 3", "found '[$] 3' at column 3"),
        ("", "found the end"),
        ("ceiling(2)", "unknown function 'ceiling'; did you mean 'ceil'"),
        ("ceil(1, 2)", "ceil takes 1 arguments, found 2"),
        ("columns * 2", "unknown name 'columns'; did you mean 'array_2d.columns'"),
        ("1 / (c - c)", "division by zero"),
    ],
)
def test_a_wrong_formula_says_what_and_where(text: str, words: str) -> None:
    with pytest.raises(MappingError, match=words):
        parse_formula(text).evaluate({"array_2d.columns": 1, "c": 4})


@given(st.recursive(
    st.sampled_from(["P", "a.b", "3", "0.5"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]}) {t[1]} ({t[2]})"),
        inner.map(lambda t: f"-({t})"),
        st.tuples(inner, inner).map(lambda t: f"max({t[0]}, {t[1]})"),
    ),
    max_leaves=8,
))  # fmt: skip
def test_a_rendered_formula_means_the_same(text: str) -> None:
    names = {"P": 7.0, "a.b": 3.0}
    formula = parse_formula(text)
    again = parse_formula(render_formula(formula.tree))
    try:
        value = formula.evaluate(names)
    except MappingError:
        with pytest.raises(MappingError):
            again.evaluate(names)
        return
    assert math.isclose(again.evaluate(names), value, rel_tol=1e-12, abs_tol=1e-12)


def test_a_scope_works_out_what_is_asked_for_and_finds_circles() -> None:
    scope = Scope(
        {"P": 8, "unknown": None},
        {
            "half": parse_formula("P / 2"),
            "quarter": parse_formula("half / 2"),
            "a": parse_formula("b + 1"),
            "b": parse_formula("a + 1"),
            "price": parse_formula("unknown * 2"),
        },
        {"row": lambda names: {"row.x": names["half"] + 1}},
    )
    assert scope["quarter"] == 2
    assert scope["row.x"] == 5
    assert scope["price"] is None
    with pytest.raises(MappingError, match="a -> b -> a go round in a circle"):
        scope["a"]
    with pytest.raises(MappingError, match=r"unknown name 'row\.y'"):
        scope["row.y"]


def test_a_formula_goes_to_another_process() -> None:
    formula = parse_formula("ceil(P / 256) * buffer.bytes")
    again = pickle.loads(pickle.dumps(formula))
    names = {"P": 300, "buffer.bytes": 8}
    assert again == formula and again.evaluate(names) == formula.evaluate(names) == 16


@pytest.mark.parametrize("name", ["fusemax", "flat", "flash-attention-3"])
def test_a_design_goes_to_another_process(name: str) -> None:
    design = load_design(name)
    again = pickle.loads(pickle.dumps(design))
    shape = {"B": 2, "H": 4, "M": 1024, "P": 1024, "E": 64, "F": 64}
    assert evaluate(again, shape).to_row() == evaluate(design, shape).to_row()
