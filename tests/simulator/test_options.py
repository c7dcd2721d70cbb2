"""Leakage, interconnect, multicast and ports: closed forms by hand, refusals, monotony."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from einfuse.einsum.language.errors import EinfuseError
from einfuse.mapper.design.design import Design, load_design, parse_design
from einfuse.simulator.cost.charges import OPTIONS
from einfuse.simulator.cost.model import DesignWarning, evaluate
from einfuse.simulator.result.evaluation import Evaluation

GEMM = "rank M, N, K\ninput A[M,K], B[K,N]\noutput C\nC[m,n] = A[m,k] * B[k,n]\n"
SHAPE = {"M": 16, "N": 12, "K": 5}
CLOCK = 1e9


def _hardware(**buffer: Any) -> dict[str, Any]:
    operation = {"energy_pj": 1.0, "area_um2": 0}
    return {
        "schema": 1,
        "name": "small",
        "clock_hz": CLOCK,
        "word_bytes": 2,
        "memories": {
            "dram": {"access_bytes": 2, "read_pj": 0, "write_pj": 0, "leakage_mw": 7},
            "buffer": {
                "access_bytes": 8, "read_pj": 0, "write_pj": 0, "leakage_mw": 3, **buffer,
            },
        },
        "units": {
            "array": {
                "rows": 4, "columns": 6, "leakage_mw": 0.5, "hop_pj": 2.0, "mesh_hop_pj": 0.75,
                "operations": {"mac": operation},
                "registers": {"depth": 1, "read_pj": 0, "write_pj": 0},
            },
        },
    }  # fmt: skip


def _gemm(tmp_path: Any, **buffer: Any) -> Design:
    """A GEMM with all three matrices in the buffer, M over rows and N over columns, K in time."""
    (tmp_path / "gemm.txt").write_text(GEMM)
    return parse_design(
        {
            "schema": 1,
            "name": "gemm",
            "cascade": "gemm.txt",
            "architecture": _hardware(**buffer),
            "mapping": [
                "keep A, B, C at buffer",
                "for M in array.rows",
                "for N in array.columns",
                "for K",
                "parallel M over rows",
                "parallel N over columns",
                "compute C on array",
            ],
        },
        "gemm.yaml",
        tmp_path,
    )


# By hand: 4 x 2 tiles of 4 rows x 6 columns, 5 steps of K each, one cycle a step.
TILES, CYCLES = 4 * 2, 4 * 2 * 5
A_WORDS, B_WORDS, C_WORDS = TILES * 5 * 4, TILES * 5 * 6, TILES * 24
MEAN = (4 + 1) / 2


def test_leakage_is_power_times_time_times_instances(tmp_path: Any) -> None:
    r = evaluate(_gemm(tmp_path), SHAPE, include=["leakage"])
    assert r.cycles == CYCLES
    seconds = CYCLES / CLOCK
    by = r.energy_by_component_pj
    assert by["dram.leakage"] == pytest.approx(7e-3 * seconds * 1e12, rel=1e-12)
    assert by["buffer.leakage"] == pytest.approx(3e-3 * seconds * 1e12, rel=1e-12)
    assert by["array.leakage"] == pytest.approx(4 * 6 * 0.5e-3 * seconds * 1e12, rel=1e-12)


def test_words_travel_the_mean_distance_and_then_to_all_who_share_them(tmp_path: Any) -> None:
    """A is shared along a row of 6 columns, B along 4 rows; a word of C has a lane of its own."""
    both = evaluate(_gemm(tmp_path), SHAPE, include=["interconnect", "multicast"])
    hop = 2.0
    interconnect = (A_WORDS + B_WORDS + C_WORDS) * MEAN * hop
    multicast = (A_WORDS * (6 - MEAN) + B_WORDS * (4 - MEAN)) * hop
    assert both.energy_by_component_pj["array.interconnect"] == pytest.approx(interconnect)
    assert both.energy_by_component_pj["array.multicast"] == pytest.approx(multicast)
    plain = evaluate(_gemm(tmp_path), SHAPE)
    assert both.energy_pj == pytest.approx(plain.energy_pj + interconnect + multicast)
    assert both.seconds == plain.seconds


def test_on_a_mesh_words_make_the_hops_that_a_walk_over_its_lanes_counts(tmp_path: Any) -> None:
    r = evaluate(_gemm(tmp_path), SHAPE, include=["mesh"])
    walked = [1 + row + column for row in range(4) for column in range(6)]
    energy = (A_WORDS + B_WORDS + C_WORDS) * sum(walked) / len(walked) * 0.75
    assert r.energy_by_component_pj["array.mesh"] == pytest.approx(energy, rel=1e-12)
    assert r.energy_pj == pytest.approx(evaluate(_gemm(tmp_path), SHAPE).energy_pj + energy)
    assert r.charges["array.mesh_hop_pj"] * r.parameters["array.mesh_hop_pj"] == pytest.approx(
        energy
    )


@pytest.mark.parametrize("node", ["45nm", "7nm"])
@pytest.mark.parametrize("name", ["fusemax", "flat"])
def test_a_hop_of_a_mesh_has_a_price_from_the_tables(name: str, node: str) -> None:
    design = load_design(name, architecture=f"{name}-{node}")
    shape = {"B": 1, "H": 2, "M": 1024, "P": 1024, "E": 64, "F": 64}
    r = evaluate(design, shape, include=["mesh"])
    (source,) = [one for one in r.to_sources() if one["path"] == "array_2d.mesh_hop_pj"]
    assert source["charged"] > 0 and "wire" in source["prices"][0] and source["unit"] == "pJ"


def test_ports_bound_a_stage_as_a_bandwidth_does(tmp_path: Any) -> None:
    words = A_WORDS + B_WORDS + C_WORDS + 16 * 5 + 5 * 12  # A and B come in; C leaves uncounted
    for ports, cycles in ((1, words * 2 / 8), (1000, CYCLES)):
        r = evaluate(_gemm(tmp_path, ports=ports), SHAPE, include=["ports"])
        assert r.cycles == pytest.approx(cycles, rel=1e-12)
        assert r.resource_seconds["buffer"] == pytest.approx(words * 2 / (8 * ports) / CLOCK)
    same = evaluate(_gemm(tmp_path, bandwidth_bytes_per_s=8 * CLOCK), SHAPE)
    assert same.cycles == pytest.approx(words * 2 / 8, rel=1e-12)


def test_a_port_may_be_slower_than_the_clock(tmp_path: Any) -> None:
    fast = evaluate(_gemm(tmp_path, ports=1), SHAPE, include=["ports"])
    slow = evaluate(_gemm(tmp_path, ports=1, port_hz=CLOCK / 4), SHAPE, include=["ports"])
    assert slow.cycles == pytest.approx(4 * fast.cycles, rel=1e-12)


def test_the_options_are_off_unless_asked_for(tmp_path: Any) -> None:
    plain = evaluate(_gemm(tmp_path, ports=1), SHAPE)
    assert plain.cycles == CYCLES and plain.include == ()
    assert not [c for c in plain.energy_by_component_pj if c.split(".")[-1] in OPTIONS]


@pytest.mark.parametrize(
    ("include", "paths"),
    [
        (["leakage"], "dram.leakage_mw, buffer.leakage_mw, staging.leakage_mw, array_2d.leakage"),
        (["interconnect"], "interconnect: set array_2d.hop_pj, array_1d.hop_pj"),
        (["multicast", "ports"], "array_2d.hop_pj, array_1d.hop_pj, staging.ports"),
        ("ports", "ports: set staging.ports"),
        (["nonsense"], "no option 'nonsense'"),
        ([""], "no option ''"),
        (["leak"], "did you mean 'leakage'"),
    ],
)
def test_an_option_without_figures_names_the_paths(include: Any, paths: str) -> None:
    shape = {"B": 1, "H": 1, "M": 512, "P": 512, "E": 64, "F": 64}
    with pytest.raises(EinfuseError, match=paths):
        evaluate(load_design("fusemax"), shape, include=include)


@pytest.mark.parametrize("accounting", ["published", "published-all-registers"])
def test_published_accountings_take_no_options(accounting: str) -> None:
    shape = {"B": 1, "H": 1, "M": 512, "P": 512, "E": 64, "F": 64}
    with pytest.raises(EinfuseError, match="options of the accounting physical"):
        evaluate(load_design("fusemax"), shape, accounting=accounting, include=["ports"])


def test_a_kernel_on_a_gpu_takes_no_options() -> None:
    design = load_design("flash-attention-2", architecture="a100")
    shape = {"B": 1, "H": 4, "M": 1024, "P": 1024, "E": 64, "F": 64}
    with pytest.raises(EinfuseError, match="a kernel on a GPU has no energies"):
        evaluate(design, shape, include=["leakage"])


FIGURES = {
    **{f"{name}.leakage_mw": 1.0 for name in ("dram", "buffer", "staging", "array_2d", "array_1d")},
    "array_2d.hop_pj": 0.3,
    "array_1d.hop_pj": 0.2,
    "array_2d.mesh_hop_pj": 0.4,
    "array_1d.mesh_hop_pj": 0.1,
    "staging.ports": 512,
}
NAMES = ("unfused", "flat", "fusemax-cascade", "fusemax-architecture", "fusemax")


def _run(design: str, shape: Any, figures: Any, include: Any) -> Evaluation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DesignWarning)
        return evaluate(load_design(design), shape, set=figures, include=include)


@pytest.mark.parametrize("name", NAMES)
@given(
    sizes=st.fixed_dictionaries({r: st.integers(1, 3000) for r in "MP"}),
    path=st.sampled_from(sorted(FIGURES)),
    factor=st.floats(1, 50),
)
@settings(max_examples=8, deadline=None)
def test_more_of_an_option_never_lowers_energy_or_time(
    name: str, sizes: dict[str, int], path: str, factor: float
) -> None:
    shape = {"B": 1, "H": 2, "E": 64, "F": 48, **sizes}
    every = tuple(OPTIONS)
    results = {
        chosen: _run(name, shape, FIGURES, chosen)
        for n in (0, 1, len(every))
        for chosen in itertools.combinations(every, n)
    }
    for chosen, r in results.items():
        assert r.energy_pj >= results[()].energy_pj
        assert r.seconds >= results[()].seconds
        assert r.energy_pj <= results[every].energy_pj * (1 + 1e-12)
        assert r.seconds <= results[every].seconds * (1 + 1e-12)
        assert r.include == chosen
    grown = FIGURES[path] * (factor if path != "staging.ports" else 1 / factor)
    more = _run(name, shape, {**FIGURES, path: grown}, every)
    assert more.energy_pj >= results[every].energy_pj * (1 - 1e-12)
    assert more.seconds >= results[every].seconds * (1 - 1e-12)


def test_arrays_give_what_their_points_give() -> None:
    shape = {"B": 1, "H": 2, "M": np.array([512, 2048, 4096]), "P": 1024, "E": 64, "F": 64}
    figures = {**FIGURES, "staging.ports": np.array([1, 64, 512])}
    r = _run("fusemax", shape, figures, tuple(OPTIONS))
    for n, size in enumerate(shape["M"]):
        one = _run(
            "fusemax", {**shape, "M": int(size)},
            {**figures, "staging.ports": float(figures["staging.ports"][n])}, tuple(OPTIONS),
        )  # fmt: skip
        assert r.energy_pj[n] == pytest.approx(one.energy_pj, rel=1e-12)
        assert r.seconds[n] == pytest.approx(one.seconds, rel=1e-12)
        for component, energy in one.energy_by_component_pj.items():
            assert r.energy_by_component_pj[component][n] == pytest.approx(energy, rel=1e-12)


def test_an_infeasible_point_stays_infinite_with_options() -> None:
    shape = {"B": 1, "H": 1, "M": 512, "P": 512, "E": np.array([64, 100_000]), "F": 64}
    r = _run("fusemax", shape, FIGURES, tuple(OPTIONS))
    assert list(r.feasible) == [True, False]
    assert np.isinf(r.energy_pj[1]) and np.isfinite(r.energy_pj[0])
