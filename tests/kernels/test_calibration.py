"""Measured ceilings become an architecture file that the mapper reads."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="ceilings are measured with torch")

from einfuse.einsum import EinfuseError
from einfuse.kernels.measured.calibration import (
    Ceilings,
    describe_architecture,
    find_ceilings,
    require_writable_yaml,
    write_architecture,
)
from einfuse.kernels.measured.device import Device, find_device
from einfuse.mapper.machine.architecture import load_architecture

DEVICE = Device(kind="cpu", name="a CPU", units=2, memory_bytes=2**30, sm_clock_mhz=2000)
CEILINGS = Ceilings("float32", 3.3e10, 2e10, (("exp", 1.5e9), ("multiply", 9e9)), 2e-6)


def test_rates_of_the_file_are_the_measured_ones(tmp_path: Path) -> None:
    path = tmp_path / "machine.yaml"
    write_architecture(path, DEVICE, CEILINGS)
    values = load_architecture(str(path)).values()

    def rate(unit: str, operation: str, lanes: float) -> float:
        return lanes * values["clock_hz"] / values[f"{unit}.operations.{operation}.slots"]

    array = values["array_2d.rows"] * values["array_2d.columns"]
    assert rate("array_2d", "mac", array) == pytest.approx(3.3e10, rel=1e-5)
    assert rate("array_1d", "exp", values["array_1d.lanes"]) == pytest.approx(1.5e9, rel=1e-5)
    assert rate("array_1d", "multiply", values["array_1d.lanes"]) == pytest.approx(9e9, rel=1e-5)
    assert values["dram.bandwidth_bytes_per_s"] == 2e10


def test_an_operation_takes_at_least_one_slot() -> None:
    units = describe_architecture(DEVICE, CEILINGS)["units"]
    slots = [o["slots"] for unit in units.values() for o in unit["operations"].values()]
    assert min(slots) >= 1


def test_energies_are_unknown_rather_than_zero() -> None:
    units = describe_architecture(DEVICE, CEILINGS)["units"]
    energies = {o["energy_pj"] for unit in units.values() for o in unit["operations"].values()}
    assert energies == {None}


@pytest.mark.slow
def test_this_machine_has_ceilings() -> None:
    found = find_ceilings(find_device("cpu"), seconds=0.2)
    rates = dict(found.vector_per_s)
    assert found.matmul_macs_per_s > rates["exp"] > 1e6
    assert found.copy_bytes_per_s > 1e7
    assert 0 < found.launch_s < 1e-2


@pytest.mark.parametrize(
    ("name", "words"), [("a.txt", r"ending in \.yaml"), ("no/a.yaml", "there is no folder")]
)
def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(EinfuseError, match=words):
        require_writable_yaml(tmp_path / name)
