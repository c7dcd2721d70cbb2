"""Where a search starts: shipped designs, a first mapping soon; and where it ends: in its time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from einfuse.einsum.language.parser import parse
from einfuse.einsum.library.cascades import load
from einfuse.mapper.design.design import Design, load_design
from einfuse.mapper.errors import ArchitectureError, MappingError
from einfuse.mapper.machine.architecture import load_architecture
from einfuse.mapper.search.explanation import explain_mapping
from einfuse.mapper.search.export import to_design, to_yaml
from einfuse.mapper.search.search import find_best
from einfuse.mapper.search.trade_offs import nearest_trade_offs
from einfuse.mapper.space.constraints import Constraints
from einfuse.mapper.space.objective import cost_of
from einfuse.mapper.space.space import MapSpace
from einfuse.simulator.cost.model import evaluate
from einfuse.simulator.cost.objectives import figures_of, find_objective
from einfuse.simulator.result.evaluation import Evaluation

from .test_beyond_attention import shape_of

BATCHED = {"B": 64, "H": 16, "M": 65536, "P": 65536, "E": 128, "F": 128}
ALONE = {"M": 1024, "P": 768, "E": 64, "F": 32}


def after(lines: int) -> Callable[[str], None]:
    """A report that interrupts a search after so many lines."""
    count = iter(range(lines))

    def report(line: str) -> None:
        if next(count, None) is None:
            raise KeyboardInterrupt

    return report


def quiet(design: Design, shape: dict[str, int]) -> Evaluation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return evaluate(design, shape)


DESIGNS = ["flat", "unfused", "fusemax", "fusemax-cascade"]
FEW = [("flat", "traffic"), ("unfused", "edp"), ("fusemax", "edp"), ("fusemax-cascade", "energy")]


def check_start(name: str, objective: str, tmp_path: Path) -> None:
    shape = BATCHED
    design = load_design(name)
    space = MapSpace(design.cascade, design.architecture, shape)
    asked = find_objective(objective, design.architecture)
    result = find_best(space, asked, report=after(0))
    hand = figures_of(quiet(design, shape), asked)
    assert result.score <= cost_of(asked, hand) * (1 + 1e-12)
    path = tmp_path / "found.yaml"
    path.write_text(to_yaml(space, result.best.plan))
    written = figures_of(quiet(load_design(path), shape), asked)
    assert written == pytest.approx(result.best.figures, rel=1e-12)


@pytest.mark.parametrize(("name", "objective"), FEW)
def test_a_search_that_has_hardly_begun_does_not_lose_to_a_shipped_design(
    name: str, objective: str, tmp_path: Path
) -> None:
    check_start(name, objective, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["latency", "energy", "edp", "traffic"])
@pytest.mark.parametrize("name", DESIGNS)
def test_a_search_that_has_hardly_begun_loses_to_no_shipped_design(
    name: str, objective: str, tmp_path: Path
) -> None:
    check_start(name, objective, tmp_path)


@pytest.mark.parametrize("name", ["flat", "unfused"])
def test_a_design_seeds_a_shape_without_its_batch_ranks(name: str) -> None:
    design = load_design(name)
    space = MapSpace(design.cascade, design.architecture, ALONE)
    asked = find_objective("energy", design.architecture)
    known = {found.name: figures for found, figures in asked.known(space)}
    assert known[name] == pytest.approx(
        figures_of(quiet(design, {"B": 1, "H": 1, **ALONE}), asked), rel=1e-12
    )


def test_designs_seed_no_space_under_constraints_nor_on_a_machine_that_lacks_their_units() -> None:
    design = load_design("flat")
    asked = find_objective("latency", design.architecture)
    under = MapSpace(design.cascade, design.architecture, BATCHED, Constraints(forward=()))
    assert not list(asked.known(under))
    other = load_architecture("tpu_v4i")
    space = MapSpace(load("attention/3-pass"), other, BATCHED)
    assert all(d.architecture == other for d, _ in find_objective("latency", other).known(space))


def test_a_front_holds_no_mapping_that_a_shipped_design_beats() -> None:
    design = load_design("fusemax")
    space = MapSpace(design.cascade, design.architecture, BATCHED)
    asked = find_objective("latency,energy", design.architecture)
    result = find_best(space, asked, report=after(0))
    hand = figures_of(quiet(design, BATCHED), asked)
    assert any(
        all(a <= b for a, b in zip(one.figures, hand, strict=True)) for one in result.solutions
    )


@pytest.mark.parametrize(
    ("name", "objective"), [("attention/landmark", "latency"), ("attention/latent", "edp")]
)
def test_the_first_line_of_progress_comes_with_a_mapping(name: str, objective: str) -> None:
    cascade = load(name)
    shape = shape_of(cascade, long=65536)
    architecture = load_architecture("fusemax")
    result = find_best(
        MapSpace(cascade, architecture, shape), find_objective(objective, architecture),
        report=after(0),
    )  # fmt: skip
    assert result.score > 0


@pytest.mark.parametrize("name", ["attention/landmark", "attention/backward"])
def test_a_search_whose_time_is_up_at_once_ends_with_a_mapping(name: str) -> None:
    cascade, architecture = load(name), load_architecture("fusemax")
    space = MapSpace(cascade, architecture, shape_of(cascade, long=65536))
    result = find_best(space, find_objective("latency", architecture), seconds=1e-6)
    assert result.score > 0 and not result.optimal and result.gap > 0


class Never(ThreadPoolExecutor):
    """An executor whose processes do not start in time."""

    def submit(self, *args: object, **kwargs: object) -> Future[object]:  # type: ignore[override]
        return Future()


def test_a_search_does_not_wait_for_processes_that_are_still_starting() -> None:
    design = load_design("fusemax")
    space = MapSpace(design.cascade, design.architecture, BATCHED)
    done = Event()
    with Never(1) as executor:
        asked = find_objective("edp", design.architecture)
        result = find_best(space, asked, seconds=0.5, executor=executor)
        done.set()
    assert done.is_set() and not result.optimal


def test_a_pure_copy_is_refused_in_words() -> None:
    copy = parse("rank M\ninput A[M]\noutput B\nB[m] = A[m]")
    architecture = load_architecture("fusemax")
    space = MapSpace(copy, architecture, {"M": 8})
    with pytest.raises(MappingError, match="nothing to map: each of its Einsums only copies"):
        find_best(space, find_objective("edp", architecture))


def test_a_setting_reaches_whether_a_unit_pipelines() -> None:
    flat = load_architecture("flat")
    slow = flat.with_settings({"array_1d.pipelined": 0, "array_1d.lanes": 128})
    assert not slow.file.units["array_1d"].pipelined
    assert slow.parameters["array_1d.lanes"] == 128
    assert slow.with_settings({"array_1d.pipelined": 1}).file.units["array_1d"].pipelined
    with pytest.raises(ArchitectureError, match=r"array_1d\.pipelined: expected 1"):
        flat.with_settings({"array_1d.pipelined": 2})
    with pytest.raises(MappingError, match="SN on array_1d pipelined"):
        evaluate(load_design("flat"), BATCHED, set={"array_1d.pipelined": 0})


def test_a_file_says_that_a_unit_no_longer_pipelines(tmp_path: Path) -> None:
    machine = load_architecture("flat").with_settings({"array_1d.pipelined": 0})
    text = "rank P, K\ninput A[P,K]\noutput Z\nZ[p,k] = exp(A[p,k] - A[p,k])"
    space = MapSpace(parse(text), machine, {"P": 8, "K": 8})
    result = find_best(space, find_objective("latency", machine))
    path = tmp_path / "found.yaml"
    path.write_text(to_yaml(space, result.best.plan))
    assert not load_design(path).architecture.file.units["array_1d"].pipelined


def test_trade_offs_are_the_most_that_is_saved_at_little_more() -> None:
    front = [("a", (10.0, 9.0)), ("b", (10.1, 6.0)), ("c", (10.4, 5.99)), ("d", (20.0, 1.0))]
    found = nearest_trade_offs(front, (10.0, 9.0), 0, 1)
    assert [one.plan for one in found] == ["b"]  # c saves too little more, d is too slow
    assert found[0].more == pytest.approx(0.01) and found[0].less == pytest.approx(1 / 3)
    back = nearest_trade_offs(front, (20.0, 1.0), 1, 0)
    assert not back  # five times the energy is not near


def test_without_time_an_explanation_gives_what_the_search_has_proven() -> None:
    text = "rank M, N, K\ninput A[M,K], B[K,N]\noutput Z\nZ[m,n] = A[m,k] * B[k,n]"
    space = MapSpace(parse(text), load_architecture("fusemax"), {"M": 64, "N": 64, "K": 16})
    objective = find_objective("latency", space.architecture)
    result = find_best(space, objective)
    design = to_design(space, result.best.plan)
    worth, others = explain_mapping(
        space, design, result.best.figures, lambda m: find_objective("latency", m), 1e-9, gap=0.0
    )
    assert all(one.ratio is not None and 0 <= one.ratio.least <= one.ratio.most for one in worth)
    assert others and all(one.ratio is None or one.ratio.least >= 1 for one in others)
    again = explain_mapping(
        space, design, result.best.figures, lambda m: find_objective("latency", m), 60
    )[1]
    proven = {one.decision: one.ratio for one in again}
    for one in others:
        full = proven[one.decision]
        assert (one.ratio is None) == (full is None)
        if one.ratio is not None and full is not None:
            assert one.ratio.least <= full.most * (1 + 1e-9)
