"""Schedules: which Einsum works on which tile in which epoch, and what waits for what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from einfuse.mapper.design.design import load_design
from einfuse.mapper.errors import MappingError
from einfuse.mapper.nest.resolved import iterations, shared_loops
from einfuse.mapper.nest.schedule import DeadlockError, Schedule
from einfuse.simulator.events.simulation import prepare

SHAPE = {"B": 2, "H": 3, "M": 1024, "P": 2048, "E": 64, "F": 64}


def schedules(name: str, **more: int) -> tuple[Schedule, ...]:
    prepared = prepare(load_design(name), {**SHAPE, **more})
    return tuple(schedule for own in prepared.schedules for schedule in own)


def test_fusemax_goes_through_key_tiles_of_query_tiles_in_epochs() -> None:
    (own,) = schedules("fusemax")
    # 6 heads, 4 key tiles and 8 query tiles of 256; RD and RNV end three epochs later
    assert (own.tiles, own.interval, own.epochs) == (6 * 4 * 8, 1, 6 * 4 * 8 + 3)
    offsets = {slot.einsum: slot.offset for slot in own.slots}
    assert offsets["QK"] == 0
    assert offsets["RNV"] == 3
    # AV has no offset: it runs when a head's 32 tiles are through
    av = next(slot for slot in own.slots if slot.einsum == "AV")
    assert (av.period, av.when) == (32, 31)
    assert own.tasks == 11 * 192 + 6


def test_a_carried_tensor_waits_as_many_tiles_back_as_an_iteration_is_long() -> None:
    (own,) = schedules("fusemax")
    names = [slot.einsum for slot in own.slots]
    waits = {(names[w.producer], names[w.consumer]): w for w in own.waits}
    assert waits["RD", "SPD"].tiles == 8
    assert waits["RD", "SPD"].block == 32
    assert waits["QK", "LM"].tiles == 0
    assert ("RNV", "AV") in waits


def test_without_offsets_every_phase_is_a_schedule_in_its_own_pace() -> None:
    scores, softmax, values = schedules("unfused")
    assert not scores.lockstep
    assert scores.tiles == values.tiles == 6 * 8 * 4
    assert softmax.tiles == 6 * 2048
    assert [slot.einsum for slot in softmax.slots] == ["GM", "SN", "SD", "A"]


def test_with_one_query_tile_a_tile_starts_every_second_epoch() -> None:
    (own,) = schedules("fusemax", P=256)
    assert own.interval == 2


def test_a_broken_dependency_that_is_not_repaired_is_a_deadlock_that_names_the_tasks() -> None:
    words = r"SPD on tile 1 \(epoch 2.*waits for RD from RD on tile 0 \(epoch 3.*waits for SPD on"
    with pytest.raises(DeadlockError, match=words):
        prepare(load_design("fusemax"), {**SHAPE, "P": 256}, repair=False)


def test_tiles_that_are_no_whole_number_are_refused() -> None:
    design = load_design("fusemax")
    stage = replace(design.stages[0], tiles=replace(design.stages[0].tiles, function=lambda _: 2.5))
    with pytest.raises(MappingError, match=r"whole number of tiles, found 2\.5"):
        prepare(replace(design, stages=(stage,)), SHAPE)


def test_chains_share_the_loops_that_stand_above_both() -> None:
    chains = prepare(load_design("fusemax"), SHAPE).chains
    shared = shared_loops([chains["QK"], chains["RNV"]])
    assert [loop.rank for loop in shared] == ["B", "H", "P", "M1"]
    assert iterations(shared_loops([chains["QK"], chains["AV"]])) == 2 * 3
    assert chains["QK"].homes[0].tensor == "Q"
