"""More hardware is never slower where a design's rule allows that; prices scale the energy."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from einfuse.mapper.design.design import Design, load_design
from einfuse.simulator.cost.model import DesignWarning, evaluate
from einfuse.simulator.result.evaluation import Evaluation

ATTENTION = ["unfused", "flat", "fusemax-cascade", "fusemax-architecture", "fusemax"]
SOME = settings(max_examples=30, deadline=None)
shapes = st.fixed_dictionaries(
    {
        "B": st.integers(1, 3),
        "H": st.integers(1, 3),
        "M": st.integers(1, 20_000),
        "P": st.integers(1, 20_000),
        "E": st.integers(8, 128),
        "F": st.integers(8, 128),
    }
)


def _run(design: Design, shape: Any, accounting: str = "published", **kw: Any) -> Evaluation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DesignWarning)
        return evaluate(design, shape, accounting=accounting, set=kw.get("set"))


@pytest.mark.parametrize("name", ATTENTION)
@given(shape=shapes, factor=st.floats(1, 30))
@SOME
def test_more_bandwidth_is_never_slower(name: str, shape: Any, factor: float) -> None:
    design = load_design(name)
    base = 10 * 2**30
    slow = _run(design, shape, set={"dram.bandwidth_bytes_per_s": base})
    fast = _run(design, shape, set={"dram.bandwidth_bytes_per_s": base * factor})
    assert fast.seconds <= slow.seconds * (1 + 1e-12)
    assert fast.dram_bytes == slow.dram_bytes
    assert fast.energy_pj == slow.energy_pj


@pytest.mark.parametrize("name", ATTENTION)
@given(shape=shapes, lanes=st.integers(1, 600), more=st.integers(0, 600))
@SOME
def test_more_lanes_never_take_more_cycles(name: str, shape: Any, lanes: int, more: int) -> None:
    """Cycles of every Einsum; traffic may grow with lanes that only a whole edge tile fills."""
    design = load_design(name)
    few = _run(design, shape, set={"array_1d.lanes": lanes})
    many = _run(design, shape, set={"array_1d.lanes": lanes + more})
    for einsum, own in many.per_einsum.items():
        assert own.cycles <= few.per_einsum[einsum].cycles


@pytest.mark.parametrize("name", ["fusemax", "fusemax-architecture", "fusemax-cascade"])
@given(shape=shapes, grown=st.integers(0, 5))
@SOME
def test_a_larger_buffer_is_never_slower(name: str, shape: Any, grown: int) -> None:
    """A larger divisor of the query tiles fits, so K and V come no more often."""
    design = load_design(name)
    small = _run(design, shape, set={"buffer.bytes": 2**22})
    large = _run(design, shape, set={"buffer.bytes": 2 ** (22 + grown)})
    assert large.seconds <= small.seconds * (1 + 1e-12)
    assert large.dram_bytes <= small.dram_bytes


@pytest.mark.parametrize("accounting", ["published", "published-all-registers", "physical"])
@pytest.mark.parametrize("name", ATTENTION)
def test_half_the_prices_are_half_the_energy(name: str, accounting: str) -> None:
    design = load_design(name)
    shape = {"B": 1, "H": 2, "M": 3000, "P": 1111, "E": 64, "F": 48}
    whole = _run(design, shape, accounting)
    prices = {k: v for k, v in whole.parameters.items() if k.endswith("_pj") and v is not None}
    half = _run(design, shape, accounting, set={k: v / 2 for k, v in prices.items()})
    assert half.energy_pj == pytest.approx(whole.energy_pj / 2, rel=1e-12)
    assert half.seconds == whole.seconds
    for component, energy in whole.energy_by_component_pj.items():
        assert half.energy_by_component_pj[component] == pytest.approx(energy / 2, rel=1e-12)


@pytest.mark.parametrize("name", ATTENTION)
def test_twice_the_batch_costs_twice(name: str) -> None:
    design = load_design(name)
    shape = {"B": 1, "H": 2, "M": 3000, "P": 1111, "E": 64, "F": 48}
    one, two = _run(design, shape), _run(design, {**shape, "B": 2})
    assert two.seconds == pytest.approx(2 * one.seconds, rel=1e-12)
    assert two.energy_pj == pytest.approx(2 * one.energy_pj, rel=1e-12)
    assert two.dram_bytes == pytest.approx(2 * one.dram_bytes, rel=1e-12)
