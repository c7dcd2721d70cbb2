"""The optimum is never worse with more of a resource, more units, or more freedom.

Energy per access is held fixed. Whatever is a mapping with less is one with more, so an optimum
that got worse would be none.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from einfuse.einsum.library.cascades import load
from einfuse.mapper.machine.architecture import Architecture, load_architecture
from einfuse.mapper.space.constraints import Constraints
from einfuse.mapper.space.space import MapSpace

from .test_search import FIGURES, MORE, SLOW_OK, best_of, cases, constraints, make_architecture

SLACK = 1 + 1e-12


def not_worse(more: MapSpace, less: MapSpace, objective: str) -> None:
    assert best_of(more, objective) <= best_of(less, objective) * SLACK


def scaled(architecture: Architecture, path: str, by: float) -> Architecture:
    value = architecture.parameters[path]
    assert isinstance(value, int | float)
    return architecture.with_settings({path: math.ceil(value * by)})


@st.composite
def restrictions(draw: st.DrawFn, space: MapSpace) -> Constraints:
    """Constraints of every kind, some of which leave no mapping."""
    given = draw(constraints(space)).model_dump(exclude_defaults=True)
    einsums, tensors = sorted(space.einsums), sorted(space.facts.ranks)
    pairs = [(a, b) for a in einsums for b in einsums if a < b]
    some: dict[str, st.SearchStrategy[Any]] = {
        "tiles": st.fixed_dictionaries(
            {draw(st.sampled_from(space.cascade.rank_names)): st.just((1,))}
        ),
        "keep": st.fixed_dictionaries(
            {draw(st.sampled_from(tensors)): st.sampled_from([(m,) for m in space.memories])}
        ),
        "units": st.just({name: ("vector",) for name in einsums}),
        "double": st.just((draw(st.sampled_from(tensors)),)),
        "forward": st.just(()),
        "repeat": st.just(()),
        "pipelined": st.just(()),
        **({"split": st.just((pairs[0],)), "fuse": st.just((pairs[-1],))} if pairs else {}),
    }
    chosen = draw(st.lists(st.sampled_from(sorted(some)), min_size=1, max_size=3, unique=True))
    if {"split", "fuse"} <= {*chosen}:
        chosen.remove("split")
    return Constraints(**{**given, **{name: draw(some[name]) for name in chosen}})


def check_freedom(space: MapSpace, objective: str, data: st.DataObject) -> None:
    tight = data.draw(restrictions(space))
    named = [n for n in tight.model_dump(exclude_defaults=True) if n != "tile_choices"]
    gone = data.draw(st.sampled_from(sorted(named)))
    default = Constraints.model_fields[gone].get_default(call_default_factory=True)
    loose = tight.model_copy(update={gone: default})
    not_worse(replace(space, constraints=loose), replace(space, constraints=tight), objective)


@settings(max_examples=8, derandomize=True, **SLOW_OK)
@given(cases(), st.data())
def test_without_a_constraint_the_optimum_is_no_worse(
    case: tuple[MapSpace, str], data: st.DataObject
) -> None:
    check_freedom(*case, data)


@pytest.mark.slow
@settings(max_examples=200, **SLOW_OK)
@given(cases(), st.data())
def test_without_a_constraint_the_optimum_is_no_worse_in_hundreds_of_cases(
    case: tuple[MapSpace, str], data: st.DataObject
) -> None:
    check_freedom(*case, data)


@pytest.mark.slow
@settings(max_examples=200, **SLOW_OK)
@given(cases(), st.sampled_from(MORE), st.sampled_from((1.5, 2.0, 3.0)))
def test_more_of_a_resource_is_no_worse_in_hundreds_of_cases(
    case: tuple[MapSpace, str], path: str, by: float
) -> None:
    space, objective = case
    more = replace(space, architecture=scaled(space.architecture, path, by))
    not_worse(more, space, objective)


@settings(max_examples=8, derandomize=True, **SLOW_OK)
@given(cases(without=("again", "two")), st.sampled_from((1, 3)))
def test_one_more_unit_is_no_worse(case: tuple[MapSpace, str], lanes: int) -> None:
    space, objective = case
    one, two = (
        replace(space, architecture=make_architecture(lanes, 16, 2.0, second=second))
        for second in (False, True)
    )
    not_worse(two, one, objective)


@pytest.mark.slow
@pytest.mark.parametrize("objective", sorted(FIGURES))
@pytest.mark.parametrize(
    "path",
    ["buffer.bytes", "staging.bytes", "dram.bandwidth_bytes_per_s", "array_1d.lanes",
     "array_2d.rows", "array_2d.columns"],
)  # fmt: skip
@pytest.mark.parametrize("cascade", ["attention/1-pass", "attention/3-pass"])
def test_attention_is_no_slower_on_more(cascade: str, path: str, objective: str) -> None:
    small = {"buffer.bytes": 128, "staging.bytes": 64, "array_1d.lanes": 4, "array_2d.rows": 4,
             "array_2d.columns": 4, "dram.bandwidth_bytes_per_s": 4e9}  # fmt: skip
    machine = load_architecture("fusemax").with_settings(small)
    shape = {"B": 1, "H": 2, "E": 2, "F": 2, "M": 4, "P": 2}
    less = MapSpace(load(cascade), machine, shape)
    not_worse(replace(less, architecture=scaled(machine, path, 2)), less, objective)
