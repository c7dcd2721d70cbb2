"""Architectures whose figures a cost model supplies, and where each figure comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.parser import parse
from einfuse.mapper.design.design import Design, load_design, parse_design
from einfuse.mapper.machine.architecture import DATA, load_architecture, parse_architecture
from einfuse.mapper.search.export import _architecture
from einfuse.mapper.space.space import MapSpace
from einfuse.simulator.components.cost_model import (
    CostModel,
    Price,
    find_cost_model,
    register_cost_model,
)
from einfuse.simulator.cost.model import evaluate
from einfuse.simulator.cost.objectives import find_objective
from einfuse.simulator.result.evaluation import Evaluation

SHAPE = {"B": 1, "H": 2, "M": 1024, "P": 1024, "E": 64, "F": 64}
COSTED = ("fusemax-45nm", "fusemax-7nm", "flat-45nm", "flat-7nm")
OPTIONS = ("leakage", "interconnect", "multicast", "ports")


def _on(design: str, architecture: Any) -> Design:
    return parse_design({"extends": design, "architecture": architecture}, design)


def _source(result: Evaluation, path: str) -> dict[str, Any]:
    return next(row for row in result.to_sources() if row["path"] == path)


@pytest.mark.parametrize("name", COSTED)
def test_every_total_of_a_costed_architecture_is_known_with_every_option(name: str) -> None:
    r = evaluate(_on(name.split("-")[0], name), SHAPE, include=OPTIONS)
    assert r.energy_pj > 0 and r.area_um2 > 0 and not r.unknown


def test_at_45_nm_the_published_prices_come_out_of_the_table() -> None:
    for name in ("fusemax", "flat"):
        stated = evaluate(load_design(name), SHAPE)
        costed = evaluate(_on(name, f"{name}-45nm"), SHAPE)
        for path, value in stated.parameters.items():
            if value is not None and path != "staging.area_um2":  # published as nothing
                assert costed.parameters[path] == pytest.approx(value, rel=1e-8), path
        assert costed.seconds == stated.seconds


def test_a_buffer_of_another_size_has_another_price() -> None:
    design = _on("fusemax", "fusemax-45nm")
    sizes = np.array([8, 16, 24, 32]) * 2**20
    r = evaluate(design, SHAPE, set={"buffer.bytes": sizes})
    assert (np.diff(r.parameters["buffer.read_pj"]) > 0).all()
    address = 0.0002760372 + 0.0040197174 * 16  # 2**16 lines
    assert r.parameters["buffer.read_pj"][3] == pytest.approx(23854.6 + address, rel=1e-12)
    assert (np.diff(r.area_um2) > 0).all()
    # the published files state their prices: they stay
    assert (
        evaluate(load_design("fusemax"), SHAPE, set={"buffer.bytes": 2**25}).parameters[
            "buffer.read_pj"
        ]
        == 12512.760572
    )


def test_a_size_outside_the_table_is_refused_and_unknown_at_a_point_of_an_array() -> None:
    design = _on("fusemax", "fusemax-45nm")
    with pytest.raises(EinfuseError, match=r"costs\.buffer_sram: .* outside the table"):
        evaluate(design, SHAPE, set={"buffer.bytes": 2**27})
    r = evaluate(design, SHAPE, set={"buffer.bytes": np.array([2**24, 2**27])}, include=OPTIONS)
    assert np.isfinite(r.energy_pj[0]) and np.isnan(r.energy_pj[1])
    assert np.isfinite(r.area_um2[0]) and np.isnan(r.area_um2[1])
    assert "energy of buffer is unknown where the tables have none" in r.unknown["energy_pj"]
    assert "area of buffer is unknown where the tables have none" in r.unknown["area_um2"]
    assert json.dumps(r.to_json(), allow_nan=False)


def test_sizes_of_components_are_parameters() -> None:
    design = _on("fusemax", "fusemax-7nm")
    far = evaluate(design, SHAPE, set={"wire_2d.length_mm": 1.0})
    # 16 bits over 1 mm, 310 pJ x 150/240 for 256 bits over 10 mm
    assert far.parameters["array_2d.hop_pj"] == pytest.approx(310 * 150 / 240 / 160, rel=1e-5)
    with pytest.raises(EinfuseError, match=r"wire_2d\.length_m.*did you mean 'wire_2d.length_mm'"):
        evaluate(design, SHAPE, set={"wire_2d.length_m": 1.0})


@pytest.mark.parametrize(
    ("costs", "words"),
    [
        ({"s": {"component": "sram"}}, "costs.s needs a cost model: add 'technology: 7nm'"),
        ({"s": {"component": "sram", "technology": "8nm"}}, "technology: no technology '8nm'"),
        ({"s": {"component": "srm", "technology": "7nm"}}, "costs.s: 7nm: no component 'srm'"),
        ({"s": {"component": "mac", "technology": "7nm"}}, "no mac of type ''"),
        (
            {"s": {"component": "mac", "type": "bf16", "technology": "7nm"}},
            "unknown name 's.read_pj'",
        ),
        (
            {
                "s": {
                    "component": "sram",
                    "technology": "7nm",
                    "bytes": "s.read_pj",
                    "width_bits": 1,
                }
            },
            "in a circle",
        ),
        ({"s": {"component": "sram", "technology": "7nm", "bytes": "no"}}, "unknown name 'no'"),
        ({"s": {"component": "sram", "technology": "7nm", "bytes": -1}}, "s.bytes: .*above 0"),
        ({"s": {"component": "sram", "technology": "7nm", "bytes": "1 +"}}, "found the end"),
        ({"s": {"component": "sram", "technology": "7nm", "bytes": [1]}}, "costs.s.bytes"),
        ({"s": {}}, "costs.s.component"),
        ({"buffer": {"component": "sram"}}, "'buffer' names two things"),
        ({"1st": {"component": "sram"}}, "'1st' is no name"),
    ],
)
def test_a_wrong_component_is_named(costs: Any, words: str) -> None:
    hardware = yaml.safe_load((DATA / "architectures" / "fusemax.yaml").read_text(encoding="utf-8"))
    hardware["costs"] = costs
    hardware["memories"]["buffer"]["read_pj"] = "s.read_pj"
    with pytest.raises(EinfuseError, match=words):
        evaluate(_on("fusemax", hardware), SHAPE)


def test_a_table_of_ones_own_stands_beside_the_architecture(tmp_path: Path) -> None:
    (tmp_path / "node.csv").write_text(
        "component,type,quantity,at,per,node,value,status,source,version\n"
        "sram,,read_pj,,,9,5,quoted,my measurements,2\n"
    )
    (tmp_path / "hardware.yaml").write_text(
        "extends: fusemax\nname: mine\ntechnology: node.csv\n"
        "costs: {s: {component: sram}}\nmemories: {buffer: {read_pj: 512 * s.read_pj}}\n"
    )
    (tmp_path / "design.yaml").write_text("extends: fusemax\narchitecture: hardware.yaml\n")
    r = evaluate(load_design(tmp_path / "design.yaml"), SHAPE)
    assert r.parameters["buffer.read_pj"] == 512 * 5
    row = _source(r, "buffer.read_pj")
    assert row["formula"] == "512 * s.read_pj"
    assert "my measurements (quoted, 9 nm, version 2)" in row["source"]


def test_the_architecture_of_the_readme_knows_its_energy_and_area() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    found = re.search(r"```yaml\n(extends: fusemax.*?)```", readme, re.DOTALL)
    assert found is not None
    r = evaluate(_on("fusemax", yaml.safe_load(found.group(1))), SHAPE)
    line = {"bytes": 2**24, "width_bits": 4096, "ports": 1}
    price = find_cost_model("45nm").price("sram", "hp", "read_pj", line)
    assert r.parameters["buffer.read_pj"] == price.value and r.area_um2 > 0


class Flat:
    """A cost model that knows one price."""

    name = "flat-rate"

    def quantities(self, component: str, type: str) -> tuple[str, ...]:
        return ("read_pj",)

    def price(self, component: str, type: str, quantity: str, sizes: Mapping[str, Any]) -> Price:
        return Price(sizes["bytes"] / 1024, "one rate for all", "me")


def test_a_cost_model_of_ones_own_is_registered() -> None:
    model: CostModel = Flat()
    register_cost_model(model)
    assert find_cost_model("flat-rate") is model
    hardware = {
        "extends": "fusemax",
        "technology": "flat-rate",
        "costs": {"s": {"component": "x", "bytes": "buffer.bytes"}},
        "memories": {"buffer": {"read_pj": "s.read_pj"}},
    }
    r = evaluate(_on("fusemax", hardware), SHAPE)
    assert r.parameters["buffer.read_pj"] == 2**24 / 1024
    assert _source(r, "buffer.read_pj")["prices"] == ["s.read_pj = one rate for all"]


def test_a_found_mapping_on_components_goes_back_into_a_file() -> None:
    hardware = load_architecture("fusemax-7nm").with_settings({"wire_2d.length_mm": 0.5})
    cascade = parse("rank M, N\ninput A[M,N]\noutput C\nC[m] = A[m,n] + A[m,n]\n")
    content = _architecture(MapSpace(cascade, hardware, {"M": 4, "N": 4}))
    again = parse_architecture(yaml.safe_load(yaml.safe_dump(content)), "again.yaml")
    assert dict(again.parameters) == dict(hardware.parameters)
    assert find_objective("energy", again).values == find_objective("energy", hardware).values


def test_the_mapper_knows_no_prices_and_the_objective_does() -> None:
    hardware = load_architecture("fusemax-7nm")
    assert hardware.values()["buffer.read_pj"] is None
    assert hardware.values()["array_1d.lanes"] == 256
    priced = find_objective("energy", hardware)
    assert priced.values["dram.read_pj"] == 3.9 * 64


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("buffer.read_pj", "stated", "CACTI, 32768 lines"),
        ("array_1d.operations.mac.energy_pj", "stated", "add 8.3395 .*; FuseMax .MICRO 2024"),
        ("array_1d.registers.read_pj", "formula", "as in the 2D array"),
        ("clock_hz", "stated", "FuseMax .MICRO 2024"),
    ],
)
def test_stated_figures_have_the_sources_of_their_file(path: str, kind: str, words: str) -> None:
    row = _source(evaluate(load_design("fusemax"), SHAPE), path)
    assert row["kind"] == kind
    assert re.search(words, row["source"])


def test_what_the_caller_or_the_design_sets_says_so() -> None:
    r = evaluate(load_design("fusemax-cascade"), SHAPE, set={"dram.read_pj": 1.0})
    assert _source(r, "dram.read_pj")["kind"] == "set by the caller"
    assert _source(r, "dram.read_pj")["value"] == 1
    assert _source(r, "buffer.bytes")["kind"] == "set by the design"


def test_a_looked_up_figure_names_rows_scaling_and_publisher() -> None:
    r = evaluate(_on("fusemax", "fusemax-7nm"), SHAPE)
    row = _source(r, "buffer.read_pj")
    # 256 KiB macros: between 32 KiB and 1 MiB, halfway by orders of magnitude: 8.5**0.4 14**0.6
    assert row["value"] == pytest.approx(64 * 8.5**0.4 * 14**0.6, rel=1e-12)
    assert row["inputs"] == {"buffer.access_bytes": 512}
    assert "power law between the rows around bytes 262144" in row["prices"][0]
    assert "TPUv4i (ISCA 2021), table 2" in row["source"] and "recalled" in row["source"]
    dram = _source(r, "dram.read_pj")
    assert dram["prices"] == ["hbm.read_pj = 7nm: dram hbm2: 3.9 x width_bits"]


def test_every_known_figure_of_a_result_has_a_source() -> None:
    for name in ("fusemax", "flat"):
        for hardware in (name, f"{name}-45nm", f"{name}-7nm"):
            r = evaluate(_on(name, hardware), SHAPE)
            paths = [row["path"] for row in r.to_sources()]
            assert paths == [path for path, value in r.parameters.items() if value is not None]
            assert all(
                row["source"] or row["kind"] == "set by the caller" for row in r.to_sources()
            )
            text = r.render_sources()
            assert all(path in text for path in paths)
            assert json.dumps(r.to_sources(), allow_nan=False)


def test_a_gpu_has_sources_too() -> None:
    design = load_design("flash-attention-2", architecture="a100")
    shape = {"B": 1, "H": 4, "M": 1024, "P": 1024, "E": 64, "F": 64}
    r = evaluate(design, shape, set={"dram.bandwidth_bytes_per_s": 1e12})
    assert _source(r, "dram.bandwidth_bytes_per_s")["kind"] == "set by the caller"
    assert _source(r, "processors.count")["source"] != "the file does not say"


@pytest.mark.parametrize("accounting", ["published", "physical"])
@pytest.mark.parametrize("name", ["fusemax", "flat", "unfused", "fusemax-design-space"])
def test_energy_and_area_are_the_sums_of_charges_times_prices(name: str, accounting: str) -> None:
    base = load_design(name).architecture.name
    shape = {**SHAPE, "M": np.array([1024, 4096]), "P": np.array([1024, 4096])}
    for hardware, include in ((base, ()), (f"{base}-7nm", OPTIONS)):
        chosen = include if accounting == "physical" else ()
        r = evaluate(
            load_design(name, architecture=hardware), shape, accounting=accounting, include=chosen
        )
        for total, ends in ((r.energy_pj, ("_pj", "_mw")), (r.area_um2, ("um2",))):
            if total is None:
                continue
            parts = [
                count * r.parameters[path]
                for path, count in r.charges.items()
                if path.endswith(ends) and r.parameters[path] is not None
            ]
            assert sum(parts) == pytest.approx(total, rel=1e-12)


def test_arrays_keep_their_sources() -> None:
    design = _on("flat", "flat-45nm")
    r = evaluate(design, {**SHAPE, "M": np.array([1024, 65536]), "P": np.array([1024, 65536])})
    assert len(_source(r, "buffer.read_pj")["value"]) == 2
    assert "CACTI" in _source(r, "buffer.read_pj")["source"]


def test_an_architecture_extends_another_key_by_key(tmp_path: Path) -> None:
    base = load_architecture("fusemax")
    hardware = parse_architecture(
        {"extends": "fusemax", "name": "wide", "units": {"array_1d": {"lanes": 512}}}, "wide.yaml"
    )
    changed = {k for k, v in hardware.parameters.items() if base.parameters[k] != v}
    assert hardware.name == "wide" and changed == {"array_1d.lanes"}
    for text, words in (
        ("extends: nosuch\n", "no architecture 'nosuch'"),
        ("extends: a.yaml\n", "in a circle"),
        ("extends: list.yaml\n", "which is no architecture"),
    ):
        (tmp_path / "a.yaml").write_text(text)
        (tmp_path / "list.yaml").write_text("- 1\n")
        with pytest.raises(EinfuseError, match=words):
            load_architecture(tmp_path / "a.yaml")
