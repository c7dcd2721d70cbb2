"""Tasks that carry numbers: equal to direct execution, and illegal mappings named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from einfuse.einsum.execution.sampling import shrunk
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.shape import bind
from einfuse.einsum.library.cascades import load, names
from einfuse.mapper.design import design as designs
from einfuse.mapper.design.design import Design, load_design, parse_design
from einfuse.mapper.errors import MappingError
from einfuse.mapper.machine.architecture import Architecture, load_architecture, parse_architecture
from einfuse.mapper.nest.nest import parse_nest
from einfuse.mapper.nest.schedule import DeadlockError
from einfuse.mapper.nest.workload import facts
from einfuse.mapper.search.export import to_design
from einfuse.mapper.search.search import find_best
from einfuse.mapper.space.constraints import Constraints
from einfuse.mapper.space.space import MapSpace
from einfuse.simulator.cost.objectives import find_objective
from einfuse.simulator.events.simulation import prepare
from einfuse.simulator.functional.functional import Functional, run_tasks, simulate_functional
from einfuse.simulator.functional.partial_tensors import Tensors
from einfuse.simulator.functional.tasks import order_tasks

from ..mapper.test_counts import Case, cases  # noqa: TID252  (drawn nests of its tests)

TINY = {"array_2d.rows": 4, "array_2d.columns": 4, "array_1d.lanes": 4}
SHAPE = {"B": 2, "H": 1, "M": 16, "P": 12, "E": 3, "F": 5}
LAYER = {"B": 2, "P": 4, "H": 2, "E": 2, "D": 4, "S": 8, "T": 8, "N": 4}
DATA = Path(designs.__file__).parents[1] / "data" / "designs"


@pytest.mark.parametrize("name", sorted(path.stem for path in DATA.glob("*.yaml")))
def test_a_shipped_design_makes_what_its_cascade_says(name: str) -> None:
    shape, machine = (LAYER if name.startswith("layer") else SHAPE), dict(TINY)
    if name == "fusemax-design-space":  # its arrays are square, of a size in its table
        shape = {"B": 1, "H": 1, "M": 32, "P": 32, "E": 64, "F": 64}
        machine = {"array_2d.rows": 16}
    found = simulate_functional(load_design(name), shape, set=machine)
    assert found.max_error < 1e-12


@pytest.mark.parametrize("lanes", [2, 4, 8, 16])
@pytest.mark.parametrize("buffer", [220.0, 400.0, 4096.0])
def test_fusemax_is_right_however_its_queries_are_tiled(lanes: int, buffer: float) -> None:
    machine = {**TINY, "array_1d.lanes": lanes, "buffer.bytes": buffer}
    shape = {**SHAPE, "P": 16}
    try:
        found = simulate_functional(load_design("fusemax"), shape, set=machine)
    except MappingError as error:  # the tiles under way do not fit beside a buffer full of queries
        assert "would live" in str(error)
        assert buffer < 4096
        return
    assert found.max_error < 1e-12


def machine_for(cascade: Any) -> Architecture:
    """A small machine whose units can do all that a cascade asks for."""
    content = yaml.safe_load((DATA.parent / "architectures" / "fusemax.yaml").read_text())
    for unit in content["units"].values():
        for einsum in facts(cascade).einsums.values():
            for operation in einsum.operations:
                unit["operations"].setdefault(operation.name, {"energy_pj": 1})
    lanes = {"array_2d.rows": 2, "array_2d.columns": 2, "array_1d.lanes": 2}
    return parse_architecture(content, "machine").with_settings({**lanes, "buffer.bytes": 8192})


def dense() -> Iterator[str]:
    """Cascades without filters that a mapping can be written for."""
    for name in names():
        cascade = load(name)
        try:
            known = facts(cascade)
        except MappingError:
            continue
        if not any(e.filters for e in known.einsums.values()) and not cascade.stop:
            yield name


SEARCHED = ("1-pass", "2-pass", "3-pass", "3-pass-deferred", "sigmoid", "split-decode")


@pytest.mark.parametrize("name", SEARCHED)
def test_a_mapping_found_by_search_makes_what_its_cascade_says(name: str) -> None:
    cascade = load(f"attention/{name}")
    wholes = {split.whole for split in cascade.splits}
    free = [rank for rank in cascade.rank_names if rank not in wholes]
    sizes = dict(bind(cascade, {rank: 4 for rank in free}))
    shape = {**sizes, "B": 2}
    machine = machine_for(cascade)
    space = MapSpace(cascade, machine, shape)
    best = find_best(space, find_objective("latency", machine), seconds=20).best
    assert simulate_functional(to_design(space, best.plan), shape).max_error < 1e-12


def test_what_goes_from_register_to_register_is_what_the_cascade_says() -> None:
    cascade = load("attention/1-pass")
    machine = machine_for(cascade)
    shape = {**dict(bind(cascade, {"M": 4, "M0": 2, "P": 4, "E": 2, "F": 2})), "B": 2}
    space = MapSpace(cascade, machine, shape)
    best = find_best(space, find_objective("energy", machine), seconds=20).best
    assert any(group.forwarded for group in best.plan.groups)
    assert simulate_functional(to_design(space, best.plan), shape).max_error < 1e-12


def test_what_is_computed_anew_is_what_the_cascade_says() -> None:
    # A and B stay (16 words each), T comes in columns for as many of C: all tensors cross once
    cascade = parse(
        "rank M, K, N, P\ninput A[M,K], B[K,N], C[N,P]\noutput Y\n"
        "T[m,n] = A[m,k] * B[k,n]\nY[m,p] = T[m,n] * C[n,p]"
    )
    shape = {"M": 8, "K": 2, "N": 8, "P": 8}
    machine = load_architecture("fusemax").with_settings(
        {"buffer.bytes": 128, "staging.bytes": 1, **TINY}
    )
    found = {}
    for repeat in (None, ()):
        space = MapSpace(cascade, machine, shape, Constraints(repeat=repeat))
        result = find_best(space, find_objective("traffic", machine))
        assert result.optimal
        design = to_design(space, result.best.plan)
        assert simulate_functional(design, shape).max_error < 1e-12
        found[repeat] = result.score
    assert found[None] == 2 * (16 + 16 + 64 + 64) < found[()]


def unfused(name: str) -> tuple[Design, dict[str, int]]:
    """Every Einsum of a cascade by itself, in tiles of two, its ranks in turn."""
    cascade, sizes = shrunk(load(name), dict.fromkeys(load(name).rank_names, 4), 4)
    known = facts(cascade)
    ends = {known.root(t) for t in (*cascade.inputs, *cascade.outputs)}
    made = [o.tensor for e in known.einsums.values() for o in e.outputs if o.tensor not in ends]
    lines: list[Any] = [f"keep {tensor} at dram" for tensor in dict.fromkeys(made)]
    loop = [e.name for e in cascade.loop]
    iterative = [iteration.rank for iteration in cascade.iterations]

    def leaf(einsum: str, gone: list[str]) -> list[str]:
        ranks = [rank for rank in sorted(known.einsums[einsum].ranks) if rank not in gone]
        steps = [f"for {rank} in 2" for rank in ranks] + [f"for {rank}" for rank in ranks]
        return [*steps, f"compute {einsum} on array_1d"]

    children: list[list[Any]] = []
    for einsum in known.einsums:
        if einsum not in loop:
            children.append(leaf(einsum, []))
        elif einsum == next(e for e in known.einsums if e in loop):
            inner = [leaf(e, iterative) for e in known.einsums if e in loop]
            children.append([*(f"for {rank}" for rank in iterative), {"branch": inner}])
    lines.append({"branch": children})
    design = Design("unfused", cascade, machine_for(cascade), parse_nest(lines))
    return design, sizes


@pytest.mark.parametrize("name", list(dense()))
def test_every_dense_cascade_of_the_library_runs_tile_by_tile(name: str) -> None:
    design, sizes = unfused(name)
    found = simulate_functional(design, sizes)
    assert found.max_error < 1e-12
    assert found.tasks >= len(facts(design.cascade).einsums)


STARTED = tuple(
    f"attention/{name}" for name in ("linear-decay", "nystrom", "quantised-estimate", "tree-search")
)
"""Cascades whose carried tensors start as a copy, or go on as one."""


@pytest.mark.parametrize("name", STARTED)
def test_a_carried_tensor_may_start_as_a_copy(name: str) -> None:
    assert simulate_functional(*unfused(name)).max_error < 1e-12


def test_a_copy_comes_when_its_source_is_made_and_not_before() -> None:
    cascade = parse(
        "rank M, P, I\niter i over I\ninput A[M,P]\noutput Y\ninit:\nT[p] = A[m,p]\n"
        "X[p,0] = T[p]\nloop:\nZ[p,i] = X[p,i] * 2\nX[p,i+1] = X[p,i]\nfinal:\n"
        "Y[p] = X[p,I] + Z[p,I-1]", "copied"
    )  # fmt: skip
    inputs, sizes = {"A": np.arange(6.0).reshape(2, 3)}, {"M": 2, "P": 3, "I": 4}
    tensors = Tensors(cascade, inputs, sizes)
    whole = {rank: (0, size) for rank, size in sizes.items()}
    first, rest = {**whole, "P": (0, 2)}, {**whole, "P": (2, 3)}
    assert tensors.run("Z", first) == "X"
    assert tensors.run("T", first) is None
    assert tensors.run("Z", first) is None
    assert tensors.run("Y", whole) == "X"
    assert tensors.run("T", rest) is None
    assert tensors.run("Y", whole) == "Z"
    assert tensors.run("Z", rest) is None
    assert tensors.run("Y", whole) is None
    assert tensors.array("Y").tolist() == [9, 15, 21]


def test_einsums_without_ranks_run() -> None:
    cascade = parse("rank M\ninput A[M]\noutput Y\nX[] = A[m] :: max(m)\nY[] = X[] * X[]", "one")
    branch = {"branch": [["for M", "compute X on array_1d"], ["compute Y on array_1d"]]}
    nest = parse_nest(["keep X at dram", branch])
    design = Design("one", cascade, machine_for(cascade), nest)
    assert simulate_functional(design, {"M": 3}).max_error < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(names()) - set(dense()) - set(STARTED)))
def test_every_other_cascade_runs_tile_by_tile(name: str) -> None:
    assert simulate_functional(*unfused(name)).max_error < 1e-12


def test_a_row_chosen_outside_the_tensor_is_absent_and_not_one() -> None:
    text = "rank M, P\ninput A[M,P], F[]\noutput Y\nX[p] = A[F[]: F[]<M, p]\nY[p] = A[0,p] + X[p]\n"
    cascade = parse(text, "chosen")
    design = Design(
        "chosen", cascade, machine_for(cascade), parse_nest(["for P", "compute Y on array_1d"])
    )
    inputs = {"A": np.arange(8.0).reshape(4, 2), "F": np.array(4.0)}
    tensors = Tensors(cascade, inputs, {"M": 4, "P": 2})
    assert tensors.run("Y", {"M": (0, 4), "P": (0, 2)}) is None
    assert tensors.array("Y").tolist() == [0, 1]  # the first row, and nothing
    assert simulate_functional(design, {"M": 4, "P": 2}).max_error < 1e-12


def design_of(case: Case) -> Design:
    """A drawn nest as a design."""
    operations = {o.name for e in case.problem.facts.einsums.values() for o in e.operations}
    registers = {"depth": 1, "read_pj": 0.1, "write_pj": 0.1}
    units = {
        unit: {**lanes, "operations": {o: {"energy_pj": 1} for o in operations},
               "registers": registers}
        for unit, lanes in case.problem.lanes.items()
    }  # fmt: skip
    memory = {"access_bytes": 2, "read_pj": 1.0, "write_pj": 1.0}
    machine = {
        "schema": 1,
        "name": "drawn",
        "clock_hz": 1e9,
        "memories": {level: dict(memory) for level in case.problem.memories},
        "units": units,
    }
    return Design(
        "drawn",
        case.problem.facts.cascade,
        parse_architecture(machine, "drawn"),
        case.nest,
        batch=case.batch,
        retention=case.problem.retention,
        edges=case.problem.edges,
    )


def run_case(case: Case) -> Functional | None:
    """What a drawn nest makes; None where it is refused in words."""
    sizes = {rank: int(size) for rank, size in case.problem.sizes.items()}
    try:
        return simulate_functional(design_of(case), sizes)
    except EinfuseError as error:
        assert "before it is made" in str(error) or "reads" in str(error), error
        return None


@given(cases())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_drawn_nest_is_right_or_the_task_and_tensor_are_named(case: Case) -> None:
    found = run_case(case)
    assert found is None or found.max_error < 1e-9


SOFTMAX = (
    "rank M, P\ninput X[M,P]\noutput A\nG[p] = X[m,p] :: max(m)\nS[m,p] = exp(X[m,p] - G[p])\n"
    "D[p] = S[m,p] :: +(m)\nA[m,p] = S[m,p] / D[p]\n"
)


def softmax(*lines: Any, offsets: dict[str, int] | None = None, **extra: Any) -> Design:
    design = load_design("fusemax")
    stage = {
        "name": "softmax",
        "phases": [{"array_1d": ["G", "S", "D", "A"]}],
        "offsets": offsets or {},
        **extra,
    }
    cascade = parse(SOFTMAX, "softmax")
    machine = machine_for(cascade)
    content = {
        "schema": 1, "name": "softmax", "cascade": "attention/3-pass", "architecture": "fusemax",
        "mapping": ["compute QK on array_2d"],
    }  # fmt: skip
    empty = parse_design(content, "softmax")
    stages = (designs.parse_stage(designs.StageFile.model_validate(stage), "stage"),)
    return replace(
        empty, cascade=cascade, architecture=machine, nest=parse_nest(list(lines)),
        stages=stages if offsets else (), retention=design.retention,
    )  # fmt: skip


def leaves(*inner: str) -> dict[str, Any]:
    return {"branch": [[*inner, f"compute {name} on array_1d"] for name in "GSDA"]}


def test_a_loop_over_keys_around_both_passes_names_who_reads_what_too_early() -> None:
    design = softmax("for M in 2", "keep G, S, D at buffer", leaves("for P", "for M"))
    with pytest.raises(MappingError, match="S on tile 0 reads G before it is made"):
        simulate_functional(design, {"M": 4, "P": 3})
    legal = softmax("for P", "keep G, S, D at buffer", leaves("for M"))
    assert simulate_functional(legal, {"M": 4, "P": 3}).max_error < 1e-12


def test_live_bytes_by_hand() -> None:
    # a row of 4: S(4), then D beside S; G dies as S is made: in S's task 4 + 1 words live
    design = softmax("for P", "keep G, S, D at buffer", leaves("for M"))
    found = simulate_functional(design, {"M": 4, "P": 3})
    assert found.live_bytes["buffer"] == 2 * (4 + 1)
    assert found.live_bytes["dram"] == 2 * (12 + 12)  # X and A
    # all rows at once: three times as much
    whole = softmax("keep G, S, D at buffer", leaves("for M", "for P"))
    assert simulate_functional(whole, {"M": 4, "P": 3}).live_bytes["buffer"] == 2 * 3 * (4 + 1)


def test_tiles_under_way_that_do_not_fit_name_task_tensor_and_level() -> None:
    lines = ("for P", "keep G, S, D at buffer", leaves("for M"))
    offsets = {"G": 0, "S": 0, "D": 2, "A": 3}
    apart = softmax(*lines, offsets=offsets, tiles="P")
    found = simulate_functional(apart, {"M": 4, "P": 6})
    assert found.max_error < 1e-12
    assert found.live_bytes["buffer"] > 2 * (4 + 1 + 1)  # rows wait for their sums
    with pytest.raises(
        MappingError, match=r"S on tile 2 brings S to buffer, where \d+ bytes of 20"
    ):
        simulate_functional(apart, {"M": 4, "P": 6}, set={"buffer.bytes": 20})


def test_an_offset_that_breaks_a_dependency_is_repaired_or_a_deadlock() -> None:
    lines = ("for P", "keep G, S, D at buffer", leaves("for M"))
    early = softmax(*lines, offsets={"G": 2, "S": 0, "D": 2, "A": 3}, tiles="P")
    assert simulate_functional(early, {"M": 4, "P": 6}).max_error < 1e-12
    with pytest.raises(DeadlockError, match="S on tile 0"):
        simulate_functional(early, {"M": 4, "P": 6}, repair=False)


@pytest.mark.parametrize("seed", range(6))
def test_a_task_moved_before_what_it_reads_is_named(seed: int) -> None:
    prepared = prepare(load_design("fusemax"), {**SHAPE, "B": 1}, set=TINY)
    tasks = list(order_tasks(prepared))
    generator = np.random.default_rng(seed)
    while (place := int(generator.integers(len(tasks)))) and tasks[place].einsum in ("QK", "LM"):
        pass
    moved = [tasks[place], *tasks[:place], *tasks[place + 1 :]]
    with pytest.raises(MappingError, match=f"{tasks[place]} reads [A-Z]+ before it is made"):
        run_tasks(prepared, moved)


def test_a_task_left_out_is_noticed() -> None:
    prepared = prepare(load_design("flat"), SHAPE, set=TINY)
    tasks = list(order_tasks(prepared))
    with pytest.raises(MappingError, match="no task makes all of the output AV"):
        run_tasks(prepared, tasks[:-1])


def test_shapes_too_large_or_uneven_are_refused() -> None:
    with pytest.raises(MappingError, match="every point is worked on"):
        simulate_functional(load_design("fusemax"), {**SHAPE, "M": 2**17, "P": 2**17})
    with pytest.raises(MappingError, match="more than 300000 tasks"):
        simulate_functional(load_design("fusemax"), {**SHAPE, "M": 2048, "P": 2048}, set=TINY)
    with pytest.raises(MappingError, match=r"about .* GB of .* GB of memory"):
        simulate_functional(
            load_design("flat"),
            {"B": 10**5, "H": 1, "M": 256, "P": 256, "E": 1, "F": 1},
            set={"buffer.bytes": 1e9},
        )
    with pytest.raises(MappingError, match="M of 18 does not split into M1 x M0 of 5 x 4"):
        simulate_functional(load_design("fusemax"), {**SHAPE, "M": 18}, set=TINY)
