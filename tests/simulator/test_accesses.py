"""Accesses tallied step by step, against the closed forms of the reuse analysis."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings

from einfuse.mapper.design.design import load_design
from einfuse.mapper.errors import MappingError
from einfuse.mapper.nest.nest import select
from einfuse.simulator.events.simulation import Prepared, prepare
from einfuse.simulator.functional.accesses import is_walkable, tally
from einfuse.simulator.functional.rooms import find_peaks

from ..mapper.test_counts import MOST_POINTS, Case, cases  # noqa: TID252  (drawn nests)
from .test_functional import LAYER, SHAPE, TINY, design_of


def check(prepared: Prepared, case: Case | None = None) -> None:
    point = prepared.point
    nest = select(point.design.nest, point.scope)
    peaks = find_peaks(point, prepared.chains, nest)
    for level, words in point.counts.peak_words.items():
        turns = case is not None and takes_turns(case.lines)
        folded = case is not None and "accumulating" in str(case.lines)
        if case is None or not turns or (case.problem.edges == "whole" and not folded):
            assert peaks.get(level, 0) == pytest.approx(float(words), rel=1e-12), level
        else:  # the analysis counts full tiles, and what is folded in place as if it stayed
            assert peaks.get(level, 0) <= float(words) + 1e-12, level
    found = tally(point, prepared.chains, nest)
    counted = point.counts.traffic
    for key in {*found, *counted}:
        own = (found[key].reads, found[key].writes) if key in found else (0, 0)
        wanted = (counted[key].reads, counted[key].writes) if key in counted else (0, 0)
        assert own == pytest.approx(tuple(map(float, wanted)), rel=1e-12, abs=1e-12), key


def takes_turns(lines: list[Any]) -> bool:
    blocks = [line for line in lines if isinstance(line, dict)]
    return any("branch" in b or any(map(takes_turns, b["pipeline"])) for b in blocks)


@pytest.mark.parametrize(
    "name",
    ["fusemax", "fusemax-architecture", "fusemax-cascade", "flat", "unfused", "layer-flat",
     "layer-fusemax"],
)  # fmt: skip
def test_a_shipped_design_moves_what_is_counted(name: str) -> None:
    shape = LAYER if name.startswith("layer") else SHAPE
    check(prepare(load_design(name), shape, set=TINY))


@given(cases())
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_drawn_nest_moves_what_is_counted(case: Case) -> None:
    sizes = {rank: int(size) for rank, size in case.problem.sizes.items()}
    prepared = prepare(design_of(case), sizes)
    assume(is_walkable(prepared.point))
    works = prepared.point.counts.work.values()
    assume(sum(float(work.steps * work.active) for work in works) <= MOST_POINTS)
    check(prepared, case)


def test_shapes_with_too_many_steps_are_refused() -> None:
    shape = {"B": 1, "H": 1, "M": 2**17, "P": 2**17, "E": 64, "F": 64}
    prepared = prepare(load_design("fusemax"), shape)
    with pytest.raises(MappingError, match="choose a smaller shape"):
        tally(prepared.point, prepared.chains, prepared.point.design.nest)
