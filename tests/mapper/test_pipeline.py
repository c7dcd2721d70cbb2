"""Stages: phases, offsets, what breaks and what it costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from einfuse.einsum.library.cascades import load
from einfuse.mapper.design.design import load_design
from einfuse.mapper.errors import MappingError
from einfuse.mapper.nest.stages import Stage, StageFile, compose, parse_stage, time_stage
from einfuse.mapper.nest.workload import facts

ONE_PASS = facts(load("attention/1-pass"))


def stage(phases: list[dict[str, Any]], **more: Any) -> Stage:
    return parse_stage(StageFile(phases=tuple(phases), **more), "stages[0]")


def test_a_phase_lasts_as_long_as_its_longest_unit() -> None:
    two = stage([{"a": ["X", "Y"], "b": ["Z"]}, {"b": ["W"]}])
    cycles = {"X": 1, "Y": 2, "Z": 5, "W": 10}
    timing = time_stage(two, ONE_PASS, 1, 1)
    composed = compose(two, cycles, {}, timing, "published", pay_waits=True)
    assert composed.cycles == max(1 + 2, 5) + 10
    assert composed.busy == {"a": 3, "b": 15}


def test_a_stall_lasts_a_multiple_of_its_einsum() -> None:
    one = stage([{"a": ["X"]}, {"stall": {"einsum": "X", "times": "rows"}}])
    timing = time_stage(one, ONE_PASS, 1, 1)
    composed = compose(one, {"X": 3}, {"rows": 4}, timing, "published", pay_waits=True)
    assert composed.cycles == 3 + 4 * 3


@pytest.mark.parametrize("tiles", [1, 2, 3, 10])
def test_pipelined_adds_the_epochs_that_fill_and_drain(tiles: int) -> None:
    # X on tile n beside Y on tile n - 1: by hand, epoch by epoch
    two = stage([{"a": ["X"], "b": ["Y"]}], offsets={"X": 0, "Y": 1}, tiles=tiles)
    timing = time_stage(two, ONE_PASS, 1, 1)
    cycles = {"X": 3.0 * tiles, "Y": 5.0 * tiles}
    composed = compose(two, cycles, {}, timing, "pipelined", pay_waits=True)
    epochs = [(n < tiles, 0 <= n - 1 < tiles) for n in range(tiles + 1)]
    assert composed.cycles == sum(max(3 * x, 5 * y) for x, y in epochs)


def test_pipelined_over_arrays_is_that_of_each_point() -> None:
    lengths = np.array([1, 2, 3, 7])
    two = stage([{"a": ["X"], "b": ["Y"]}], offsets={"X": 0, "Y": 2}, tiles="n")
    timing = time_stage(two, ONE_PASS, 1, 1)
    cycles = {"X": 3.0 * lengths, "Y": 5.0 * lengths}
    together = compose(two, cycles, {"n": lengths}, timing, "pipelined", pay_waits=True).cycles
    for place, tiles in enumerate(lengths):
        own = {name: value[place] for name, value in cycles.items()}
        alone = compose(two, own, {"n": tiles}, timing, "pipelined", pay_waits=True).cycles
        assert together[place] == alone


def test_fusemaxs_offsets_hold_for_two_query_tiles_and_break_for_one() -> None:
    own = load_design("fusemax").stages[0]
    assert time_stage(own, ONE_PASS, 2, 16).violations == ()
    broken = time_stage(own, ONE_PASS, 1, 16)
    assert len(broken.violations) == 1
    assert "SPD reads RD of the tile before" in broken.violations[0]
    assert broken.interval == 2
    # a single key tile carries nothing from one tile to the next
    assert time_stage(own, ONE_PASS, 1, 1).violations == ()


def test_a_broken_edge_within_a_tile_lengthens_the_offset() -> None:
    wrong = stage([{"a": ["QK"]}, {"b": ["LM"]}], offsets={"QK": 1, "LM": 0})
    timing = time_stage(wrong, ONE_PASS, 1, 4)
    assert timing.violations == ("LM reads QK before QK has made it",)
    assert timing.offsets["LM"] == 1


def test_a_wait_costs_the_epochs_in_which_half_of_the_machine_is_idle() -> None:
    # RD (offset 2, first phase) feeds SPD (offset 0, second phase) of the next tile: with one
    # query tile a tile starts every second epoch, and even and odd offsets never meet
    own = stage(
        [{"a": ["RD"], "b": ["QK"]}, {"a": ["SPD"], "b": ["SLN"]}],
        offsets={"RD": 2, "SPD": 0, "QK": 0, "SLN": 1},
        distance=1,
    )
    cycles = {"RD": 4, "QK": 7, "SPD": 3, "SLN": 5}
    timing = time_stage(own, ONE_PASS, 1, 16)
    assert timing.interval == 2
    free = compose(own, cycles, {}, timing, "published", pay_waits=False).cycles
    paid = compose(own, cycles, {}, timing, "published", pay_waits=True).cycles
    assert free == max(4, 7) + max(3, 5)
    assert paid == (max(4, 7) + 3) + 5


@pytest.mark.parametrize(
    ("phases", "more", "words"),
    [
        ([{"a": "X"}], {}, "expected a list of Einsums"),
        ([{"a": ["X"]}, {"b": ["X"]}], {}, "Einsum X stands in two phases"),
        ([{"a": ["X"]}], {"offsets": {"Y": 1}}, "Y stands in no phase"),
        ([{"stall": 3}], {}, "expected stall"),
    ],
)
def test_a_wrong_stage_is_refused(phases: Any, more: Any, words: str) -> None:
    with pytest.raises(MappingError, match=words):
        stage(phases, **more)
