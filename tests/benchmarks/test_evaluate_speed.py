"""How fast the evaluator is: run with ``make benchmark``."""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from einfuse.mapper.design.design import load_design
from einfuse.simulator.cost.model import evaluate
from einfuse.studies.fusemax.study import ACCOUNTINGS, attention_table, paper, select_workloads

pytestmark = pytest.mark.slow


def test_the_published_points_one_by_one(benchmark: BenchmarkFixture) -> None:
    attention = [load_design(name) for name in paper()["designs"]]
    gemms = [load_design(name) for name in ("layer-flat", "layer-fusemax")]

    def points() -> int:
        done = 0
        for model in paper()["models"].values():
            for length in paper()["lengths"].values():
                size = {"B": 64, "H": model["H"], "P": length, "E": model["E"]}
                for design in attention:
                    evaluate(design, {**size, "M": length, "F": model["E"]}, accounting="published")
                    done += 1
                for design in gemms:
                    shape = {**size, "D": model["D"], "S": model["S"]}
                    evaluate(design, shape, accounting="published")
                    done += 1
        return done

    assert benchmark(points) == 168


def test_the_published_points_as_arrays(benchmark: BenchmarkFixture) -> None:
    workloads = select_workloads()
    table = benchmark(attention_table, workloads, ACCOUNTINGS[0])
    assert len(table) == 120


def test_a_grid_of_100_000_points(benchmark: BenchmarkFixture) -> None:
    random = np.random.default_rng(0)
    points = 100_000
    shape = {
        "B": random.integers(1, 65, points),
        "H": random.integers(1, 17, points),
        "M": 1024 * random.integers(1, 64, points),
        "P": 1024 * random.integers(1, 64, points),
        "E": 64,
        "F": 64,
    }
    settings = {
        "array_1d.lanes": 2 ** random.integers(6, 11, points),
        "buffer.bytes": 2 ** random.integers(22, 27, points),
    }
    result = benchmark(evaluate, load_design("fusemax"), shape, set=settings)
    assert result.seconds.shape == (points,)


def test_5_000_shapes_of_a_kernel_under_a_causal_mask(benchmark: BenchmarkFixture) -> None:
    random = np.random.default_rng(0)
    length = random.integers(512, 16384, 5000)
    shape = {"B": 2, "H": 16, "P": length, "M": length, "E": 128, "F": 128}
    design = load_design("flash-attention-3", "h100")
    result = benchmark(evaluate, design, shape, set={"causal": 1})
    assert result.seconds.shape == (5000,)
