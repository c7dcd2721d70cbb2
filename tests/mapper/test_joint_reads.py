"""What one Einsum reads along two ranks or through a window: words are coordinates, not names."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings

from einfuse.einsum.language.parser import parse
from einfuse.mapper.machine.architecture import parse_architecture
from einfuse.mapper.nest.nest import parse_nest
from einfuse.mapper.nest.resolve import count
from einfuse.mapper.nest.reuse import Counts, Problem
from einfuse.mapper.nest.workload import facts
from einfuse.mapper.search.export import to_design
from einfuse.mapper.search.search import find_best
from einfuse.mapper.space.space import MapSpace
from einfuse.simulator.cost.model import evaluate
from einfuse.simulator.cost.objectives import find_objective

from .brute_force import interpret
from .test_counts import MEMORIES, QUIET, Case, cases, compare

SELF = "rank N, P = N, M = N, E\ninput X[N,E]\noutput Y\nY[p,m] = X[p,e] * X[m,e]\n"
TEXTS = {
    "self": SELF,
    "three": ("rank N, P = N, M = N, K = N\ninput X[N]\noutput Y\nY[p] = X[p] * X[m] * X[k]\n"),
    "two Einsums": (
        "rank N, P = N, M = N\ninput X[N], W[N]\noutput Y\n"
        "A[p] = X[p] * W[p]\nB[m] = X[m] + W[m]\nY[p,m] = A[p] * B[m]\n"
    ),
    "window": ("rank N = 12, P, W\ninput X[N], F[W]\noutput Y\nY[p] = X[p+w: p+w<N] * F[w]\n"),
    "strided window": (
        "rank N = 16, P, W, E\ninput X[E,N], F[W]\noutput Y\nY[p] = X[e,2*p+w: 2*p+w<N] * F[w]\n"
    ),
    "neighbours": ("rank N = 12, P\ninput X[N]\noutput Y\nY[p] = X[p+1: p+1<N] * X[p+2: p+2<N]\n"),
    "diagonal": "rank N, P = N, M\ninput X[N,N], Z[M]\noutput Y\nY[p] = X[p,p] * Z[m]\n",
}
ROOMY = {"array_2d": {"rows": 2, "columns": 2}, "array_1d": {"lanes": 4}}


def counted(text: str, sizes: dict[str, int], lines: list[Any], **rules: Any) -> Counts:
    """Counts that the brute force has confirmed."""
    problem = Problem(facts(parse(text, "joint")), sizes, {}, ROOMY, MEMORIES, **rules)
    case = Case("joint", lines, problem, ())
    counts = count(case.nest, problem)
    compare(case, counts, interpret(case.nest, problem))
    return counts


SQUARE = {"N": 8, "P": 8, "M": 8, "E": 3}


def test_a_whole_tensor_read_along_two_ranks_is_fetched_once() -> None:
    """8 x 3 words of X, whatever loops follow; the product of its ranks has 8 x 8 x 3."""
    lines = ["keep X at buffer", "for P, M, E", "compute Y on array_1d"]
    counts = counted(SELF, SQUARE, lines)
    assert counts.peak_words["buffer"] == 8 * 3
    assert counts.traffic["Y", "X", "dram"].reads == 8 * 3


def test_the_part_that_a_step_does_not_move_stays() -> None:
    """Tiles of 2 along P and of 4 along M: 4 x (2 + 2 x 4) words less what both parts have: each of
    the 8 coordinates comes up once in both. 2 + 4 are there at once."""
    tiled = ["for P in 2", "for M in 4", "keep X at buffer"]
    counts = counted(SELF, SQUARE, [*tiled, "for P, M, E", "compute Y on array_1d"])
    assert counts.peak_words["buffer"] == (2 + 4) * 3
    assert counts.traffic["Y", "X", "dram"].reads == (8 + 4 * 8 - 8) * 3


def test_explicit_retention_fetches_the_whole_of_both_parts() -> None:
    """Each of 4 x 2 steps brings 2 + 4 words, less the 2 that both have in 4 of them."""
    tiled = ["for P in 2", "for M in 4", "keep X at buffer"]
    lines = [*tiled, "for P, M, E", "compute Y on array_1d"]
    counts = counted(SELF, SQUARE, lines, retention="explicit")
    assert counts.traffic["Y", "X", "dram"].reads == (8 * 2 + 4 * 8 - 8) * 3


def test_a_window_has_the_words_that_it_covers() -> None:
    """Tiles of 3 along P under a window of 3: 5 words, 2 times; all of it 6 + 3 - 1."""
    sizes = {"N": 12, "P": 6, "W": 3}
    below = ["keep X at buffer", "for P, W", "compute Y on array_1d"]
    tiled = counted(TEXTS["window"], sizes, ["for P in 3", *below])
    assert tiled.peak_words["buffer"] == 3 + 3 - 1
    assert tiled.traffic["Y", "X", "dram"].reads == 2 * 5
    assert counted(TEXTS["window"], sizes, below).traffic["Y", "X", "dram"].reads == 8


def test_lanes_along_a_diagonal_share_a_word_of_a_window() -> None:
    """2 x 2 lanes along P and W read X at p+w: 3 words for 4 lanes in each of 2 steps."""
    sizes = {"N": 12, "P": 4, "W": 2}
    lines = ["for P in 2", "parallel P over rows", "parallel W over columns"]
    counts = counted(TEXTS["window"], sizes, [*lines, "compute Y on array_2d"])
    assert counts.traffic["Y", "X", "dram"].reads == 2 * 3


def test_a_gather_takes_no_more_than_the_tensor_has() -> None:
    text = "rank M, P, T\ninput K[M], I[T,P]\noutput Y\nY[p] = K[I[t,p]] * I[t,p]\n"
    problem = Problem(facts(parse(text)), {"M": 6, "P": 8, "T": 4}, {}, ROOMY, MEMORIES)
    counts = count(parse_nest(["keep K at buffer", "for P, T", "compute Y on array_1d"]), problem)
    assert counts.peak_words["buffer"] == 6
    assert counts.traffic["Y", "K", "dram"].reads == 6


def _is_padded(case: Case, counts: Counts) -> bool:
    einsums = case.problem.facts.einsums
    return any(
        work.steps * work.active != prod(int(case.problem.sizes[r]) for r in einsums[name].ranks)
        for name, work in counts.work.items()
    )


def _approximate(case: Case) -> bool:
    """Whether lanes may have registers or strides of their own for what they read together."""
    text = str(case.lines)
    return "parallel" in text and ("registers" in text or case.name != "self")


def check_joint(case: Case) -> None:
    counts = count(case.nest, case.problem)
    assume(sum(work.steps * work.active for work in counts.work.values()) <= 400)
    assume(case.problem.exact or not _is_padded(case, counts))
    found = interpret(case.nest, case.problem, case.batch)
    if not _approximate(case):
        compare(case, counts, found)
    for key, (reads, writes) in found.traffic.items():  # no count is too low
        assert float(reads) <= counts.traffic[key].reads + 1e-9, key
        assert float(writes) <= counts.traffic[key].writes + 1e-9, key
    for level, words in found.peak_words.items():
        assert float(words) <= counts.peak_words[level] + 1e-9, level


@given(cases(texts=TEXTS))
@settings(max_examples=40, deadline=None, suppress_health_check=QUIET)
def test_joint_reads_count_as_the_brute_force_does(case: Case) -> None:
    check_joint(case)


@pytest.mark.slow
@given(cases(texts=TEXTS))
@settings(max_examples=2000, deadline=None, suppress_health_check=QUIET)
def test_thousands_of_joint_reads_count_as_the_brute_force_does(case: Case) -> None:
    check_joint(case)


def test_arrays_of_joint_reads_count_as_their_points_do() -> None:
    sizes = {rank: np.array([8, 12]) for rank in ("N", "P", "M")} | {"E": 3}
    lines = ["for P in 2", "for M in 4", "keep X at buffer", "for P, M, E", "compute Y on array_1d"]
    problem = Problem(facts(parse(SELF)), sizes, {}, ROOMY, MEMORIES)
    both = count(parse_nest(lines), problem).traffic["Y", "X", "dram"].reads
    for number, size in enumerate((8, 12)):
        one = replace(problem, sizes={"N": size, "P": size, "M": size, "E": 3})
        assert both[number] == count(parse_nest(lines), one).traffic["Y", "X", "dram"].reads


MACHINE = {
    "name": "small",
    "clock_hz": 1e9,
    "word_bytes": 1,
    "memories": {
        "dram": {"bandwidth_bytes_per_s": 1e9, "read_pj": 100, "write_pj": 100, "access_bytes": 1},
        "buffer": {"bytes": 20, "read_pj": 1, "write_pj": 1, "access_bytes": 1},
    },
    "units": {
        "array": {
            "lanes": 2,
            "registers": {"depth": 8, "read_pj": 0.1, "write_pj": 0.1},
            "operations": {"mac": {"energy_pj": 1}, "multiply": {"energy_pj": 1}},
        }
    },
}


@pytest.mark.parametrize("text", [SELF, TEXTS["window"]], ids=["self", "window"])
@pytest.mark.parametrize("objective", ["traffic", "energy"])
def test_a_search_says_what_the_evaluation_of_its_mapping_says(text: str, objective: str) -> None:
    architecture = parse_architecture({"schema": 1, **MACHINE}, "small")
    shape = {"N": 8, "P": 8, "M": 8, "E": 2} if text == SELF else {"P": 6, "W": 4}
    cascade = parse(text, "joint")
    shape = {rank: size for rank, size in shape.items() if rank in cascade.rank_names}
    space = MapSpace(cascade, architecture, shape)
    result = find_best(space, find_objective(objective, architecture))
    evaluation = evaluate(to_design(space, result.best.plan), shape)
    said = evaluation.dram_bytes if objective == "traffic" else evaluation.energy_pj
    assert result.best.figures[0] == pytest.approx(float(said), rel=1e-12)
