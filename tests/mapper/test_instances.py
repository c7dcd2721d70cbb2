"""Instances of units and memories, and what lanes share: numbers by hand, and refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from einfuse.einsum.language.parser import parse
from einfuse.einsum.library.cascades import load
from einfuse.mapper.design.design import parse_design
from einfuse.mapper.errors import ArchitectureError, MappingError
from einfuse.mapper.machine.architecture import load_architecture, parse_architecture
from einfuse.mapper.nest.counting import count
from einfuse.mapper.nest.nest import parse_nest
from einfuse.mapper.nest.reuse import Counts, Problem
from einfuse.mapper.nest.workload import facts
from einfuse.mapper.search.export import to_design
from einfuse.mapper.search.search import find_best
from einfuse.mapper.space.space import MapSpace
from einfuse.simulator.cost.model import evaluate
from einfuse.simulator.cost.objectives import find_objective
from einfuse.simulator.events.overheads import find_overheads
from einfuse.simulator.events.simulation import simulate

from ..simulator.test_functional import design_of  # noqa: TID252
from .test_counts import CASCADES, QUIET, Case, cases

SIZES = {"M": 4, "K": 3, "N": 6}
LINES = [
    "parallel M in 2 over instances",
    "keep B at local",
    "for N in 3",
    "parallel N over columns",
    "for M, K",
    "compute C on array",
]


def counted(lines: list[Any], **shares: str) -> Counts:
    cascade = parse("rank M, K, N\ninput A[M,K], B[K,N]\noutput C\nC[m,n] = A[m,k] * B[k,n]")
    lanes = {"array": {"instances": 2, "rows": 4, "columns": 4}}
    problem = Problem(
        facts(cascade),
        SIZES,
        {},
        lanes,
        ("dram", "local"),
        "explicit",
        shares={"array": shares},
        instanced=frozenset({"local"}),
    )
    return count(parse_nest(lines), problem)


def test_every_instance_fills_a_copy_of_its_own() -> None:
    """B[k,n] has 18 words: read once for both instances if they share, written in each."""
    counts = counted(LINES)
    assert counts.traffic["C", "B", "dram"].reads == 18
    assert counts.traffic["C", "B", "local"].writes == 2 * 18
    assert counts.peak_words["local"] == 18  # of one instance
    assert counts.work["C"].instances == 2


def test_what_instances_do_not_share_is_read_for_each() -> None:
    counts = counted(LINES, instances="none")
    assert counts.traffic["C", "B", "dram"].reads == 2 * 18
    assert counts.traffic["C", "A", "dram"].reads == 4 * 3 * 2  # once for each tile of N
    # The units read B from their instance's copy in every step: M, K and N, nothing shared.
    assert counts.traffic["C", "B", "local"].reads == 4 * 3 * 6


def test_columns_that_share_sums_alone_read_an_operand_each() -> None:
    """A[m,k] does not depend on N: three columns read it three times unless they share it."""
    assert counted(LINES, columns="outputs").traffic["C", "A", "dram"].reads == 3 * 4 * 3 * 2
    assert counted(LINES, columns="operands").traffic["C", "A", "dram"].reads == 4 * 3 * 2


def test_a_memory_of_each_instance_stands_beneath_the_loop_over_them() -> None:
    with pytest.raises(MappingError, match="each has local of its own: move the keep below it"):
        counted(["keep B at local", *LINES[:1], *LINES[2:]])


def test_time_at_a_memory_is_that_of_one_instance() -> None:
    content = {
        "schema": 1,
        "name": "by hand",
        "cascade": "peer/matmuls",
        "architecture": "tpu_v4i",
        "retention": "explicit",
        "composition": "sequential",
        "mapping": [
            "keep T1 at MainMemory",
            {
                "branch": [
                    [
                        "parallel M in 2 over instances",
                        "keep T0 at LocalBuffer",
                        "for M, N1, N0",
                        "compute T1 on MAC",
                    ],
                    ["for M, N1, N2", "compute T2 on MAC"],
                ]
            },
        ],
    }
    shape = {"M": 8, "N0": 4, "N1": 4, "N2": 4}
    rate = {"LocalBuffer.bandwidth_bytes_per_s": 1.0}
    result = evaluate(parse_design(content, "here"), shape, set=rate)
    # T0's 32 words are written, and read in 8 x 4 x 4 steps: a quarter of it in each of 4.
    assert result.resource_seconds["LocalBuffer"] == (32 + 128) * 2 / 4
    run = simulate(parse_design(content, "here"), shape, set=rate)
    assert run.seconds == pytest.approx(float(result.seconds), rel=1e-12)
    charged = find_overheads(["bandwidth"])
    slow = simulate(parse_design(content, "here"), shape, set=rate, overheads=charged)
    assert slow.seconds >= run.seconds
    # T0's words take the port of an instance as long as the closed form says, whatever else.
    assert slow.seconds == pytest.approx((32 + 128) * 2 / 4, rel=1e-3)


@given(cases(texts=CASCADES))
@settings(max_examples=25, deadline=None, suppress_health_check=QUIET)
def test_a_drawn_nest_with_instances_and_shares_simulates_as_it_evaluates(case: Case) -> None:
    """Without overheads the simulation takes the time of the evaluation, whatever the options."""
    design = replace(design_of(case), drains=case.problem.drains)
    machine = design.architecture.file.model_dump(by_alias=True, exclude_none=True)
    for unit, shares in case.problem.shares.items():
        known = {d: what for d, what in shares.items() if d in case.problem.lanes[unit]}
        machine["units"][unit]["shares"] = known
    sizes = {rank: int(size) for rank, size in case.problem.sizes.items()}
    design = replace(design, architecture=parse_architecture(machine, "drawn"))
    run = simulate(design, sizes)
    assert run.cycles == pytest.approx(float(run.analytic.cycles), rel=1e-12)


def test_shares_of_a_dimension_that_is_not_there_are_refused() -> None:
    content = load_architecture("nvdla").file.model_dump(by_alias=True, exclude_none=True)
    content["units"]["MAC"]["shares"] = {"lanes": "none"}
    with pytest.raises(ArchitectureError, match="shares: the unit has no lanes"):
        parse_architecture(content, "here")
    content["units"]["MAC"]["shares"] = {"rows": "some"}
    with pytest.raises(ArchitectureError, match=r"units.MAC.shares.rows"):
        parse_architecture(content, "here")


@pytest.mark.parametrize("objective", ["energy", "latency"])
@pytest.mark.parametrize("architecture", ["nvdla", "tpu_v4i"])
def test_the_general_search_counts_what_lanes_share(architecture: str, objective: str) -> None:
    machine = load_architecture(architecture)
    shape = {"M": 128, "N0": 64, "N1": 48, "N2": 64}
    space = MapSpace(load("peer/matmuls"), machine, shape)
    result = find_best(space, find_objective(objective, machine))
    found = evaluate(to_design(space, result.best.plan), shape)
    figure = found.energy_pj if objective == "energy" else found.seconds
    assert result.optimal and result.score == pytest.approx(figure, rel=1e-12)
