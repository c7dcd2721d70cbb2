"""Every published point: traffic, latency, utilization, energy and area within 1e-9."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from einfuse.mapper.design.design import load_design
from einfuse.simulator.cost.model import evaluate
from einfuse.simulator.result.evaluation import Evaluation
from einfuse.studies.fusemax.study import paper

DATA = Path(__file__).parent.parent / "data" / "fusemax"
DESIGNS = {
    "unfused": "unfused",
    "flat": "flat",
    "cascade": "fusemax-cascade",
    "architecture": "fusemax-architecture",
    "binding": "fusemax",
}
EXACT = 1e-9


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def sizes(row: dict[str, str]) -> dict[str, int]:
    model = paper()["models"][row["model"]]
    return {**model, "B": paper()["batch"], "L": paper()["lengths"][row["seq_len"]]}


def attention(row: dict[str, str]) -> dict[str, int]:
    s = sizes(row)
    return {"B": s["B"], "H": s["H"], "M": s["L"], "P": s["L"], "E": s["E"], "F": s["E"]}


def identity(row: dict[str, str]) -> str:
    return "-".join(row[key] for key in ("model", "seq_len", "pe_dim") if key in row)


def check_costs(result: Evaluation, everywhere: Evaluation, row: dict[str, str]) -> None:
    assert result.dram_bytes == pytest.approx(float(row["traffic_bytes"]), rel=EXACT)
    assert result.seconds == pytest.approx(float(row["latency_s"]), rel=EXACT)
    assert result.energy_pj == pytest.approx(float(row["energy_pj"]), rel=EXACT)
    all_files = float(row["energy_pj_all_register_files"])
    assert everywhere.energy_pj == pytest.approx(all_files, rel=EXACT)


@pytest.mark.parametrize(
    ("name", "row"),
    [(n, r) for n in DESIGNS for r in rows(f"attention-{n}")],
    ids=lambda value: value if isinstance(value, str) else identity(value),
)
def test_attention_costs_what_was_published(name: str, row: dict[str, str]) -> None:
    design = load_design(DESIGNS[name])
    result = evaluate(design, attention(row), accounting="published")
    everywhere = evaluate(design, attention(row), accounting="published-all-registers")
    check_costs(result, everywhere, row)
    assert result.utilization["array_2d"] == pytest.approx(float(row["util_2d"]), rel=EXACT)
    assert result.utilization["array_1d"] == pytest.approx(float(row["util_1d"]), rel=EXACT)
    for column in row:
        if column.startswith("util_2d_"):
            einsum = result.per_einsum[column.removeprefix("util_2d_")]
            assert einsum.utilization == pytest.approx(float(row[column]), rel=EXACT)


@pytest.mark.parametrize("hardware", ["flat", "fusemax"])
def test_the_layers_gemms_cost_what_was_published(hardware: str) -> None:
    for row in rows(f"layer-{hardware}"):
        s = sizes(row)
        shape = {"B": s["B"], "P": s["L"], "H": s["H"], "E": s["E"], "D": s["D"], "S": s["S"]}
        design = load_design(f"layer-{hardware}")
        check_costs(
            evaluate(design, shape, accounting="published"),
            evaluate(design, shape, accounting="published-all-registers"),
            row,
        )


@pytest.mark.parametrize("row", rows("design-space"), ids=identity)
def test_the_design_space_is_as_large_and_as_fast_as_published(row: dict[str, str]) -> None:
    result = evaluate(
        load_design("fusemax-design-space"),
        attention(row),
        accounting="published",
        set={"array_2d.rows": int(row["pe_dim"])},
    )
    assert result.dram_bytes == pytest.approx(float(row["traffic_bytes"]), rel=EXACT)
    assert result.seconds == pytest.approx(float(row["latency_s"]), rel=EXACT)
    for resource in ("dram", "array_2d", "array_1d"):
        published = float(row[f"{resource}_s"])
        assert result.resource_seconds[resource] == pytest.approx(published, rel=EXACT)
    assert result.area_um2 == pytest.approx(float(row["area_um2"]), rel=EXACT)
    array = float(row["array_2d_area_um2"])
    assert result.area_by_component_um2["array_2d"] == pytest.approx(array, rel=EXACT)
    assert result.parameters["buffer.bytes"] == float(row["buffer_bytes"])
    assert result.energy_pj is None
    assert "no energies were published" in result.unknown["energy_pj"]


def test_areas_of_the_arrays_are_the_published_ones() -> None:
    shape = {"B": 64, "H": 12, "M": 1024, "P": 1024, "E": 64, "F": 64}
    fusemax = evaluate(load_design("fusemax"), shape, accounting="published")
    flat = evaluate(load_design("flat"), shape, accounting="published")
    # facts: the published areas of the arrays at 256x256, to a tenth of a um^2
    assert fusemax.area_by_component_um2["array_2d"] == pytest.approx(1207951209.7, abs=0.05)
    assert fusemax.area_by_component_um2["array_1d"] == pytest.approx(10799217.9, abs=0.05)
    assert flat.area_by_component_um2["array_2d"] == pytest.approx(1203195975.2, abs=0.05)
    assert flat.area_by_component_um2["array_1d"] == pytest.approx(12905679.4, abs=0.05)
    assert fusemax.area_um2 is None
    assert fusemax.unknown["area_um2"] == "the area of the 16 MiB buffer was not published"


def test_flat_spills_the_share_of_its_published_table() -> None:
    for row in rows("flat-mapping-table"):
        shape = attention(row)
        result = evaluate(load_design("flat"), shape, accounting="published")
        spilled = float(row["proportion_spilled"])
        room = result.parameters["buffer.bytes"]
        assert room is not None
        if spilled > 0:  # what is left after spilling fills the buffer to the last byte
            assert result.peak_bytes["buffer"] == pytest.approx(room, rel=1e-9)
        else:
            assert result.peak_bytes["buffer"] <= room
