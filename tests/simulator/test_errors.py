"""What an evaluation says of wrong shapes, settings and designs; never a traceback, never NaN."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import yaml

from einfuse.einsum.language.errors import EinfuseError
from einfuse.mapper.design.design import load_design, parse_design
from einfuse.mapper.machine.architecture import DATA
from einfuse.simulator.cost.model import DesignWarning, evaluate

SHAPE = {"B": 1, "H": 1, "M": 512, "P": 512, "E": 64, "F": 64}
FUSEMAX = yaml.safe_load((DATA / "designs" / "fusemax.yaml").read_text(encoding="utf-8"))
pytestmark = pytest.mark.filterwarnings("ignore::einfuse.simulator.cost.model.DesignWarning")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"M": -1}, "rank M needs a size of at least 1, found -1"),
        ({"M": 0}, "rank M needs a size of at least 1, found 0"),
        ({"B": 0}, "rank B needs a size of at least 1, found 0"),
        ({"M": 1.5}, "rank M needs a whole size, found 1.5"),
        ({"M": "many"}, "rank M needs a whole size, found 'many'"),
        ({"M": None}, "rank M needs a whole size, found None"),
        ({"M": True}, "rank M needs a whole size, found True"),
        ({"M": float("nan")}, "rank M needs a whole size, found nan"),
        ({"M": float("inf")}, "rank M needs a whole size, found inf"),
        ({"M": np.array([512, 0])}, "rank M needs a size of at least 1, found 0"),
        ({"M": []}, "rank M needs a size of at least 1, found nothing"),
        ({"Z": 4}, "no rank 'Z'"),
        ({"M1": 4}, "the sizes of a split must multiply: M = 512"),
        ({"M": np.array([512, 1024]), "P": np.array([1, 2, 3])}, "broadcast|shape"),
        ({"E": 100_000, "F": 100_000}, "no tile of queries fits the buffer"),
    ],
)
def test_a_wrong_shape_names_the_rank(change: dict[str, Any], words: str) -> None:
    with pytest.raises(EinfuseError, match=words):
        evaluate(load_design("fusemax"), {**SHAPE, **change})


@pytest.mark.parametrize("rank", ["B", "P", "E", "F"])
def test_a_rank_without_a_size_is_asked_for(rank: str) -> None:
    shape = {name: size for name, size in SHAPE.items() if name != rank}
    with pytest.raises(EinfuseError, match=f"rank {rank} has no size: give {rank}=..."):
        evaluate(load_design("fusemax"), shape)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("array_1d.lane", 5, "no parameter 'array_1d.lane'; did you mean 'array_1d.lanes'"),
        ("array_1d.lanes", 0, "array_1d.lanes: expected a number above 0, found 0"),
        ("array_1d.lanes", -3, "array_1d.lanes: expected a number above 0, found -3"),
        ("array_1d.lanes", "wide", "array_1d.lanes: expected a number, found 'wide'"),
        ("array_1d.lanes", float("nan"), "array_1d.lanes: expected a number above 0, found nan"),
        ("array_1d.lanes", None, "array_1d.lanes: expected a number, found None"),
        ("array_1d.lanes", 1.5, "array_1d.lanes: .*whole"),
        ("array_2d.rows", 2.5, "array_2d.rows: .*whole"),
        ("array_1d.lanes", [], "array_1d.lanes: .*found"),
        ("array_1d.lanes", np.array([256, 0]), "array_1d.lanes: expected a number above 0"),
        ("clock_hz", 0, "clock_hz: expected a number above 0, found 0"),
        ("dram.bandwidth_bytes_per_s", 0, "dram.bandwidth_bytes_per_s: expected a number above 0"),
        ("buffer.bytes", float("inf"), "buffer.bytes: expected a number above 0, found inf"),
        ("array_2d.operations.exp.slots", 0, "exp.slots: expected a number above 0, found 0"),
        ("dram.read_pj", -1, "dram.read_pj: expected a number of at least 0, found -1"),
        ("buffer.bytes", 100_000, "no tile of queries fits the buffer beside one tile of keys"),
    ],
)
def test_a_wrong_setting_names_the_path(path: str, value: Any, words: str) -> None:
    with pytest.raises(EinfuseError, match=words):
        evaluate(load_design("fusemax"), SHAPE, set={path: value})


def test_an_unknown_accounting_names_the_closest() -> None:
    with pytest.raises(EinfuseError, match="no accounting 'publshed'; did you mean 'published'"):
        evaluate(load_design("fusemax"), SHAPE, accounting="publshed")


def test_tiles_that_do_not_fit_say_whose_and_by_how_much() -> None:
    with pytest.raises(EinfuseError, match=r"take 65536 bytes of 1000, 64536 too many; .* of Q"):
        evaluate(load_design("unfused"), SHAPE, set={"buffer.bytes": 1000})


def _fusemax(change: Callable[[Any], None]) -> Any:
    content = copy.deepcopy(FUSEMAX)
    change(content)
    return parse_design(content, "my.yaml")


def _bind_to(unit: str) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        loop = content["mapping"][3]["branch"][1]
        loop[-1] = f"compute AV on {unit}"
        loop[2] = "parallel P over columns"
        content["stages"][0]["phases"][0]["array_1d"].remove("AV")
        content["stages"][0]["phases"][0]["array_2d"].append("AV")

    return change


def test_an_einsum_on_a_unit_without_its_operation_says_which() -> None:
    words = r"Einsum AV needs divide, which array_2d lacks \(it has mac.*\): bind it to another"
    with pytest.raises(EinfuseError, match=words):
        evaluate(_fusemax(_bind_to("array_2d")), SHAPE)


def test_a_stage_on_another_unit_than_the_mapping_says_so() -> None:
    def change(content: Any) -> None:
        content["stages"][0]["phases"][1] = {"array_2d": ["RM"]}

    words = "stage attention has RM on array_2d, the mapping on array_1d"
    with pytest.raises(EinfuseError, match=words):
        evaluate(_fusemax(change), SHAPE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("offsets", {**FUSEMAX["stages"][0]["offsets"], "QK": -3}),
        ("distance", 0),
        ("tiles", 0),
    ],
)
def test_offsets_distance_and_tiles_are_in_range(key: str, value: Any) -> None:
    def change(content: Any) -> None:
        content["stages"][0][key] = value

    with pytest.raises(EinfuseError, match=key):
        evaluate(_fusemax(change), SHAPE)


def test_what_is_not_charged_must_exist() -> None:
    def change(content: Any) -> None:
        content["not_charged_when_published"] = {"energy": ["array_1d.operations.exq"]}

    with pytest.raises(EinfuseError, match=r"array_1d\.operations\.exq"):
        evaluate(_fusemax(change), SHAPE, accounting="published")


def test_a_memory_holds_only_what_it_may() -> None:
    hardware = (DATA / "architectures" / "fusemax.yaml").read_text(encoding="utf-8")

    def change(content: Any) -> None:
        content["architecture"] = yaml.safe_load(hardware)
        content["architecture"]["memories"]["buffer"]["holds"] = ["Q"]

    with pytest.raises(EinfuseError, match="buffer"):
        evaluate(_fusemax(change), SHAPE)


def test_a_pipeline_that_breaks_a_dependency_warns_and_its_wait_is_paid() -> None:
    """With one query tile the running state is carried over a distance of one tile."""
    shape = {**SHAPE, "P": 256, "M": 8192}
    with pytest.warns(DesignWarning, match="reads R(D|NV|M) of the tile before"):
        published = evaluate(load_design("fusemax"), shape, accounting="published")
    with pytest.warns(DesignWarning):
        physical = evaluate(load_design("fusemax"), shape, accounting="physical")
    assert physical.seconds > published.seconds


def test_points_of_an_array_that_do_not_fit_cost_infinity() -> None:
    r = evaluate(
        load_design("fusemax"), {**SHAPE, "E": np.array([64, 100_000]), "F": np.array([64, 64])}
    )
    assert list(r.feasible) == [True, False]
    assert np.isinf(r.seconds[1]) and np.isfinite(r.seconds[0])


def test_a_tile_below_one_at_a_point_of_an_array_is_infeasible() -> None:
    def change(content: Any) -> None:
        content["require"] = []
        content["let"]["queries"] = "query_tiles * array_2d.columns * floor(F / 64)"

    design = _fusemax(change)
    with pytest.raises(EinfuseError, match="expected a tile of at least 1 of rank P, found 0"):
        evaluate(design, {**SHAPE, "F": 32})
    r = evaluate(design, {**SHAPE, "F": np.array([64, 32])})
    assert list(r.feasible) == [True, False]


@pytest.mark.parametrize(
    ("spill", "words"),
    [
        ("spilling 0-3 to dram", "spilled share of 0 to 1 of Q, found -3"),
        ("spilling 3 to dram", "spilled share of 0 to 1 of Q, found 3"),
        ("spilling 1/2 to buffer", "goes to a level further out, not to buffer"),
        ("spilling 1/2 to staging", "goes to a level further out, not to staging"),
    ],
)
def test_a_spill_is_a_share_and_goes_outwards(spill: str, words: str) -> None:
    def change(content: Any) -> None:
        content["mapping"][2] = f"keep Q, RM, RD, RNV at buffer {spill}"

    with pytest.raises(EinfuseError, match=words):
        evaluate(_fusemax(change), SHAPE)


@pytest.mark.parametrize("path", ["array_1d.lanes", "word_bytes", "array_1d.operations.exp.slots"])
def test_a_design_cannot_set_a_needed_parameter_to_nothing(path: str) -> None:
    def change(content: Any) -> None:
        content["set"] = {path: None}

    with pytest.raises(EinfuseError, match=f"{path}: expected a number, found None"):
        evaluate(_fusemax(change), SHAPE)


def test_registers_that_are_too_small_are_named() -> None:
    with pytest.raises(EinfuseError, match="registers of a lane of array_2d have 1 bytes, and QK"):
        evaluate(load_design("fusemax"), SHAPE, set={"array_2d.registers.bytes": 1})


@pytest.mark.parametrize(
    ("name", "formula", "words"),
    [
        ("spare", "nosuch * 2", "let.spare: unknown name 'nosuch'"),
        ("clock_hz", 5, "let.clock_hz: the name stands for something else"),
        ("B", 5, "let.B: the name stands for something else"),
    ],
)
def test_a_definition_reads_known_names_and_hides_none(name: str, formula: Any, words: str) -> None:
    def change(content: Any) -> None:
        content["let"][name] = formula

    with pytest.raises(EinfuseError, match=words):
        _fusemax(change)


def test_a_shape_does_not_overrule_a_definition() -> None:
    with pytest.raises(EinfuseError, match="the design defines M0"):
        evaluate(load_design("fusemax"), {**SHAPE, "M0": 7})


def test_a_point_that_never_grows_enough_does_not_end_the_others() -> None:
    shape = {**SHAPE, "P": np.array([1, 4096]), "M": 4096}
    rows = {"array_2d.rows": np.array([512, 256])}
    r = evaluate(load_design("fusemax-design-space"), shape, set=rows)
    assert list(r.feasible) == [False, True]
    assert np.isinf(r.seconds[0])


def test_a_wide_layer_keeps_as_few_tokens_as_fit() -> None:
    # facts/fusemax.md 6: the largest power of two mt with K*(mt + 256) words in the buffer
    shape = {"B": 2, "P": 4096, "H": 64, "E": 128, "D": 8192, "S": 28672}
    r = evaluate(load_design("layer-fusemax"), shape, accounting="published")
    tokens, words = 2 * 4096, 16 * 2**20 // 2
    traffic = 0
    for k, n in [(8192, 8192)] * 4 + [(8192, 28672), (28672, 8192)]:
        fits = [2**i for i in range(20) if k * (2**i + 256) <= words]
        reads = 1 if k * (n + 256) <= words else tokens // fits[-1]
        traffic += tokens * k + k * n * reads + tokens * n
    assert r.dram_bytes == 2 * traffic


def test_cycles_are_whole_where_the_work_is() -> None:
    r = evaluate(load_design("fusemax"), SHAPE, accounting="published")
    assert r.cycles == 2 * (2 * 138 + 64)
    assert sum(size for _, size in r.holders_bytes["buffer"]) == r.peak_bytes["buffer"]
