"""Searches at the edges of a space: no loop at all, ranks of one point, a tensor read twice."""

from __future__ import annotations

from typing import Any

from einfuse.einsum.language.parser import parse
from einfuse.mapper.machine.architecture import Architecture, parse_architecture
from einfuse.mapper.search.export import to_design
from einfuse.mapper.search.search import SearchResult, find_best
from einfuse.mapper.space.constraints import Constraints
from einfuse.mapper.space.space import MapSpace
from einfuse.simulator.cost.model import evaluate
from einfuse.simulator.cost.objectives import find_objective
from einfuse.simulator.result.evaluation import Evaluation


def machine(buffer_bytes: int, units: tuple[str, ...] = ("one",)) -> Architecture:
    """Units of a lane each, words of two bytes, a point a second; the memory is not awaited."""
    unit: dict[str, Any] = {
        "lanes": 1,
        "operations": {op: {"energy_pj": 1.0} for op in ("add", "mac", "multiply")},
        "registers": {"depth": 1, "read_pj": 0.0, "write_pj": 0.0},
    }
    memory = {"access_bytes": 2, "read_pj": 1.0, "write_pj": 1.0}
    content = {
        "schema": 1,
        "name": "small",
        "clock_hz": 1.0,
        "memories": {"dram": memory, "buffer": {**memory, "bytes": buffer_bytes}},
        "units": dict.fromkeys(units, unit),
    }
    return parse_architecture(content, "small")


def search(
    text: str, architecture: Architecture, shape: dict[str, int], objective: str, **given: Any
) -> tuple[SearchResult, Evaluation]:
    space = MapSpace(parse(text, "small"), architecture, shape, Constraints(**given))
    result = find_best(space, find_objective(objective, architecture))
    assert result.optimal
    return result, evaluate(to_design(space, result.best.plan), shape)


def test_einsums_without_a_common_rank_overlap_in_one_group() -> None:
    """Neither waits for the other, and no loop is above them: the longer one counts."""
    text = (
        "rank P, K\ninput A[P], B[K]\noutput Y\n"
        "T[p] = A[p] + A[p]\nU[k] = B[k] * B[k]\nY[p,k] = T[p] * U[k]\n"
    )
    units = {"T": ("one",), "U": ("two",), "Y": ("one",)}
    given = {"units": units, "fuse": (("T", "U"),), "split": (("U", "Y"),)}
    result, own = search(text, machine(64, ("one", "two")), {"P": 3, "K": 5}, "latency", **given)
    assert result.score == own.seconds == max(3, 5) + 3 * 5


def test_a_loop_that_would_repeat_over_a_single_point_is_none() -> None:
    """A window of one word: B is made of A, and Y of B, word by word."""
    text = "rank P, W, T\ninput A[T], F[W]\noutput Y\nB[t] = A[t] + A[t]\nY[p] = B[p+w] * F[w]\n"
    result, own = search(text, machine(64), {"P": 4, "W": 1, "T": 4}, "traffic")
    assert result.score == own.dram_bytes == 2 * (4 + 1 + 4)  # A, F and Y, each once


GRAM = "rank P, M = P, E\ninput X[P,E]\noutput Y\nY[p,m] = X[p,e] * X[m,e]\n"


def test_a_tensor_that_is_read_along_two_ranks_takes_its_own_words() -> None:
    """All of X is 8 words, just what the buffer holds, and not a word for each pair of its rows."""
    given = {"keep": {"X": ("buffer",)}, "tiles": {"P": (4,), "M": (4,), "E": (2,)}}
    result, own = search(GRAM, machine(16), {"P": 4, "M": 4, "E": 2}, "buffer", **given)
    assert result.score == own.peak_bytes["buffer"] == 16
