"""The plug-in hwcomponents: through a stand-in with its interface; absent, it says so in words."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from einfuse.einsum.language.errors import EinfuseError
from einfuse.mapper.design.design import parse_design
from einfuse.simulator.components import cost_model
from einfuse.simulator.components.cost_model import find_cost_model
from einfuse.simulator.components.hwcomponents import load_plugin
from einfuse.simulator.cost.model import evaluate


class Action:
    def __init__(self, energy: float) -> None:
        self.energy = energy  # J


class Memory:
    """SRAM as hwcomponents-cacti 1.0 has it: sizes in bits, the node in metres, SI units out."""

    calls = 0

    def __init__(
        self, tech_node: float, width: int, size: int, n_rw_ports: int, n_banks: int
    ) -> None:
        assert tech_node == pytest.approx(45e-9) and (n_rw_ports, n_banks) == (1, 1)
        if size % width:
            raise ValueError("size is no multiple of width")
        type(self).calls += 1
        self.size, self.width = size, width
        self.area = size * 1e-12  # 1 um2 a bit
        self.leak_power = size * 1e-9

    def read(self) -> Action:
        return Action(self.width * 1e-12)

    def write(self) -> Action:
        return Action(2 * self.width * 1e-12)


class Stack:
    width = 2048

    def read(self) -> Action:
        return Action(2048 * 4e-12)

    write = read


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("hwcomponents_cacti")
    module.SRAM, module.HBM2 = Memory, Stack  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hwcomponents_cacti", module)
    monkeypatch.setattr(cost_model, "_LOADED", {})
    return find_cost_model("hwcomponents-45nm")


def test_units_are_converted(plugin: Any) -> None:
    sizes = {"bytes": 1024, "width_bits": 64}
    assert plugin.price("sram", "", "read_pj", sizes).value == pytest.approx(64)
    assert plugin.price("sram", "", "write_pj", sizes).value == pytest.approx(128)
    assert plugin.price("sram", "", "area_um2", sizes).value == pytest.approx(8192)
    assert plugin.price("sram", "", "leakage_mw", sizes).value == pytest.approx(8192e-6)
    assert plugin.price("dram", "hbm2", "read_pj", {"width_bits": 64}).value == pytest.approx(256)
    assert (
        "hwcomponents-cacti of unknown version, 45 nm"
        in plugin.price("sram", "", "read_pj", sizes).source
    )


def test_arrays_ask_once_for_each_size(plugin: Any) -> None:
    Memory.calls = 0
    sizes = np.array([[1 << 20, 1 << 21], [1 << 20, 1 << 22]])
    price = plugin.price("sram", "", "area_um2", {"bytes": sizes, "width_bits": 128})
    assert price.value == pytest.approx(sizes * 8)
    assert Memory.calls == 3


@pytest.mark.usefixtures("plugin")
def test_an_architecture_names_it_as_its_technology() -> None:
    hardware = {
        "extends": "fusemax",
        "technology": "hwcomponents-45nm",
        "costs": {"s": {"component": "sram", "bytes": "buffer.bytes", "width_bits": 4096}},
        "memories": {"buffer": {"read_pj": "s.read_pj", "area_um2": "s.area_um2"}},
    }
    design = parse_design({"extends": "fusemax", "architecture": hardware}, "mine")
    shape = {"B": 1, "H": 1, "M": 512, "P": 512, "E": 64, "F": 64}
    sizes = np.array([1, 2]) * 2**24
    r = evaluate(design, shape, set={"buffer.bytes": sizes})
    assert r.parameters["buffer.read_pj"] == pytest.approx([4096, 4096])
    assert r.area_by_component_um2["buffer"] == pytest.approx(8 * sizes)
    source = next(row for row in r.to_sources() if row["path"] == "buffer.read_pj")
    assert "bytes 1.67772e+07, width_bits 4096, ports 1, banks 1, called" in source["prices"][0]


@pytest.mark.parametrize(
    ("where", "sizes", "words"),
    [
        (("mac", "", "energy_pj"), {}, "no component 'mac'"),
        (("dram", "hbm9", "read_pj"), {"width_bits": 1}, "no dram of type 'hbm9'"),
        (("sram", "", "energy_pj"), {"bytes": 1, "width_bits": 1}, "has no 'energy_pj'"),
        (("sram", "", "read_pj"), {"bytes": 1024}, "needs a size 'width_bits'"),
        (("sram", "", "read_pj"), {"bytes": 8, "width_bits": 8, "ways": 1}, "has no size 'ways'"),
        (("sram", "", "read_pj"), {"bytes": 8, "width_bits": 7}, "sram failed: size is no multi"),
    ],
)
def test_what_it_cannot_do_is_said(
    plugin: Any, where: tuple[str, ...], sizes: dict[str, int], words: str
) -> None:
    with pytest.raises(EinfuseError, match=words):
        plugin.price(*where, sizes)


def test_absent_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hwcomponents_cacti", None)
    with pytest.raises(EinfuseError, match="not installed here: pip install hwcomponents-cacti"):
        load_plugin("hwcomponents-45nm")


@pytest.mark.parametrize("name", ["hwcomponents-7nm", "hwcomponents", "hwcomponents-fast"])
def test_nodes_that_it_would_extrapolate_to_are_refused(name: str) -> None:
    with pytest.raises(EinfuseError, match="node of 22 to 90 nm"):
        load_plugin(name)
