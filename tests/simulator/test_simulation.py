"""Simulated against analytic, and the effects of each overhead against figures by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from einfuse.mapper.design.design import Design, load_design
from einfuse.mapper.errors import MappingError
from einfuse.mapper.nest.stages import StageFile, parse_stage
from einfuse.simulator.cost.model import evaluate
from einfuse.simulator.events.overheads import NAMES, NONE, Overheads, find_overheads
from einfuse.simulator.events.simulation import Simulation, simulate

DESIGNS = ("fusemax", "fusemax-architecture", "fusemax-cascade", "flat", "unfused")
SHAPE = {"B": 1, "H": 1, "M": 4096, "P": 4096, "E": 64, "F": 64}
UNITS = {
    name: "array_2d" if name in ("QK", "LM", "SLN", "SLD", "SLNV") else "array_1d"
    for name in ("QK", "LM", "RM", "PRM", "SLN", "SLD", "SPD", "RD", "SLNV", "SPNV", "RNV")
}


@pytest.mark.parametrize("length", [256, 1024, 4096])
@pytest.mark.parametrize("name", DESIGNS)
def test_without_overheads_the_time_is_the_analytic_one(name: str, length: int) -> None:
    run = simulate(load_design(name), {**SHAPE, "M": length, "P": length})
    assert run.cycles == run.analytic.cycles
    assert run.utilization == run.analytic.utilization
    assert run.peak_bytes == run.analytic.peak_bytes
    assert run.dram_bytes == run.analytic.dram_bytes


@pytest.mark.parametrize("length", [256, 1024, 4096])
@pytest.mark.parametrize("name", DESIGNS)
def test_the_difference_to_what_evaluate_says_is_named(name: str, length: int) -> None:
    shape = {**SHAPE, "M": length, "P": length}
    said = evaluate(load_design(name), shape)
    run = simulate(load_design(name), shape)
    assert run.evaluated.cycles == said.cycles
    assert run.energy_pj == said.energy_pj
    assert f"{said.cycles:.6g} of evaluate" in str(run)
    apart = run.cycles - said.cycles
    assert (f"{apart:+.6g} to fill and empty the pipeline" in str(run)) == (apart > 0)
    late = simulate(load_design(name), shape, overheads=Overheads(drain=True))
    assert f"{late.cycles - run.cycles:+.6g} of overheads" in str(late)


def test_filling_and_emptying_by_hand() -> None:
    # 16 tiles of 65 | 1 | 8 | 64, and four of 64 at the end. The first phase works in 19 epochs:
    # in the first 16 on the scores, in the last 16 (RD stands at offset 3) on the sums, both 65.
    run = simulate(load_design("fusemax"), {**SHAPE, "M": 1024, "P": 1024})
    assert run.evaluated.cycles == 16 * 138 + 4 * 64  # and AV at the end
    assert run.cycles - run.evaluated.cycles == 3 * 65


def test_more_epochs_than_can_be_told_apart_are_refused() -> None:
    with pytest.raises(MappingError, match="choose a smaller shape"):
        simulate(load_design("fusemax"), {**SHAPE, "M": 10**12, "P": 10**12})
    large = simulate(load_design("fusemax"), {**SHAPE, "M": 10**9, "P": 10**9})
    assert large.cycles == pytest.approx(large.analytic.cycles, rel=1e-12)


def test_leakage_is_charged_over_the_simulated_time() -> None:
    design, shape = load_design("fusemax", "fusemax-45nm"), {**SHAPE, "M": 1024, "P": 1024}
    bare, leaking = (
        simulate(design, shape, overheads=Overheads(drain=True), include=include)
        for include in ((), ("leakage",))
    )
    said = evaluate(design, shape, include=("leakage",))
    lost = sum(pj for name, pj in said.energy_by_component_pj.items() if name.endswith(".leakage"))
    assert leaking.cycles == bare.cycles > said.cycles
    charged = lost * leaking.seconds / said.seconds
    assert leaking.energy_pj - bare.energy_pj == pytest.approx(charged, rel=1e-9)


def test_ports_bound_the_time_of_a_memory_as_they_do_in_evaluate() -> None:
    design, shape = load_design("fusemax", "fusemax-45nm"), {**SHAPE, "M": 1024, "P": 1024}
    machine = {"buffer.ports": 1.0, "buffer.port_hz": 1e8}
    run = simulate(design, shape, include=["ports"], set=machine)
    said = evaluate(design, shape, include=["ports"], set=machine)
    assert run.cycles == said.cycles > evaluate(design, shape, set=machine).cycles
    tiled = simulate(
        design, shape, include=["ports"], set=machine, overheads=Overheads(bandwidth=True)
    )
    assert tiled.cycles >= 0.999 * run.cycles
    assert tiled.stalls["array_2d"]["port"] > 0


@st.composite
def pipelines(draw: Any) -> tuple[Design, dict[str, int], dict[str, float]]:
    """Draw phases and offsets for the 1-pass cascade, a shape and a machine."""
    phases: list[dict[str, list[str]]] = []
    for name, unit in draw(st.permutations(sorted(UNITS.items()))):
        place = draw(st.integers(0, len(phases)))
        if place == len(phases) and len(phases) < 4:
            phases.append({})
        phases[min(place, len(phases) - 1)].setdefault(unit, []).append(name)
    phases[draw(st.integers(0, len(phases) - 1))].setdefault("array_1d", []).append("AV")
    design = load_design("fusemax")
    text = StageFile(
        name="drawn",
        phases=tuple(phases),
        offsets={name: draw(st.integers(0, 4)) for name in UNITS},
        distance="query_tiles",
        tiles="B * H * ceil(P / queries) * M1 * query_tiles",
    )
    size = 2 ** draw(st.integers(3, 5))
    machine = {
        "array_2d.rows": float(size),
        "array_2d.columns": float(size),
        "array_1d.lanes": 2.0 ** draw(st.integers(2, 6)),
        "array_2d.operations.exp.slots": draw(st.integers(1, 9)),
        "buffer.bytes": 2.0 ** draw(st.integers(12, 18)),
    }
    shape = {
        "B": draw(st.integers(1, 3)),
        "H": draw(st.integers(1, 2)),
        "M": size * draw(st.integers(1, 9)),
        "P": size * 2 ** draw(st.integers(0, 4)),
        "E": draw(st.integers(1, 16)),
        "F": draw(st.integers(1, 16)),
    }
    return replace(design, stages=(parse_stage(text, "drawn"),)), shape, machine


@given(pipelines())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_drawn_pipeline_takes_the_analytic_time_exactly(
    case: tuple[Design, dict[str, int], dict[str, float]],
) -> None:
    design, shape, machine = case
    try:
        run = simulate(design, shape, set=machine)
    except MappingError as error:  # tiles that do not fit, or split evenly
        assert "fit" in str(error)
        return
    assert run.cycles == run.analytic.cycles
    adds_up(run)
    shared = simulate(design, shape, set=machine, overheads=Overheads(interleaved=True))
    assert shared.cycles == run.cycles  # whoever is first, the work is the same
    adds_up(shared)


def adds_up(run: Simulation) -> None:
    for unit, causes in run.stalls.items():
        assert sum(causes.values()) + run.busy_cycles[unit] == pytest.approx(run.cycles, rel=1e-9)
        assert min(causes.values()) >= -1e-6


@given(
    st.sampled_from(DESIGNS),
    st.builds(Overheads, **dict.fromkeys(NAMES, st.booleans())),
    st.fixed_dictionaries(
        {
            "B": st.integers(1, 4),
            "M": st.integers(1, 12).map(lambda n: 256 * n),
            "P": st.integers(1, 12).map(lambda n: 256 * n),
        }
    ),
    st.sampled_from([None, 2e11, 2e12]),
)
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_skipping_periods_changes_nothing_and_stalls_add_up(
    name: str, overheads: Overheads, shape: dict[str, int], bandwidth: float | None
) -> None:
    machine = {} if bandwidth is None else {"buffer.bandwidth_bytes_per_s": bandwidth}
    given_shape = {**SHAPE, **shape}
    fast = simulate(load_design(name), given_shape, overheads=overheads, set=machine)
    full = simulate(load_design(name), given_shape, overheads=overheads, set=machine, skip=False)
    assert fast.cycles == pytest.approx(full.cycles, rel=1e-11)
    for unit, causes in full.stalls.items():
        for cause, cycles in causes.items():
            assert fast.stalls[unit][cause] == pytest.approx(
                cycles, rel=1e-9, abs=1e-6 * full.cycles
            )
    adds_up(full)
    adds_up(fast)


def steady_epoch(name: str, overheads: Overheads) -> float:
    """Cycles of one more key tile of 16 query tiles, for one of them."""
    more, less = (
        simulate(load_design(name), {**SHAPE, "M": keys}, overheads=overheads)
        for keys in (8192, 4096)
    )
    return (more.cycles - less.cycles) / (16 * 16)


def test_fusemax_by_hand() -> None:
    # E + LM beside RD + RNV; RM; exp and sum beside PRM + SPD; the values: 65 + 1 + 8 + 64
    assert steady_epoch("fusemax", NONE) == 138
    # RNV is next to SLNV: it waits 256 cycles for what drains, then 64, 1, 8, 64
    assert steady_epoch("fusemax", Overheads(drain=True)) == 256 + 64 + 1 + 8 + 64


def test_architecture_by_hand() -> None:
    # its stall stands for the drain of LM: 65 + 256 + 1 + 8 + 128
    assert steady_epoch("fusemax-architecture", NONE) == pytest.approx(458)
    # RNV streams behind SLNV, 256 cycles later; RD's wait is over by then, and ends beside QK
    assert steady_epoch("fusemax-architecture", Overheads(drain=True)) == pytest.approx(458 + 192)


def test_a_buffer_too_slow_for_the_scores_makes_the_array_wait_for_its_port() -> None:
    # QK reads 512 words a cycle at 940 MHz; the buffer gives an eighth of that
    need = 512 * 2 * 940e6
    design, shape = load_design("fusemax"), {**SHAPE, "M": 8192}
    full = simulate(design, shape, overheads=Overheads(bandwidth=True))
    slow = simulate(
        design,
        shape,
        overheads=Overheads(bandwidth=True),
        set={"buffer.bandwidth_bytes_per_s": need / 8},
    )
    assert slow.cycles > full.cycles
    assert slow.stalls["array_2d"]["port"] > 0


def test_a_single_copy_of_a_tile_costs_more_than_two() -> None:
    design = load_design("fusemax")
    shape = {**SHAPE, "B": 3, "M": 16384, "P": 16384}
    two = simulate(design, shape, overheads=Overheads(bandwidth=True))
    one = simulate(design, shape, overheads=Overheads(bandwidth=True, buffering=True))
    assert one.cycles > two.cycles


def test_unknown_overheads_are_named() -> None:
    with pytest.raises(MappingError, match="no overhead 'drian'"):
        find_overheads(["drian"])
    assert find_overheads(["all"]).names == ("dependencies", "drain", "bandwidth", "buffering")


def test_json_has_the_names_of_the_evaluation_beside_those_simulated() -> None:
    found = simulate(load_design("fusemax"), SHAPE).to_json()
    for name in ("cycles", "seconds", "utilization", "peak_bytes", "dram_bytes"):
        assert found[name] == found["analytic"][name]
    assert set(found["stalls"]["array_2d"]) == {
        "dependency", "unit", "port", "bandwidth", "capacity",
    }  # fmt: skip
