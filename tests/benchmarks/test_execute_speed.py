"""How long a run takes, against the same written by hand in NumPy.

The bounds are ratios within one process: 1.5 for the 3-pass cascade, 2 for the 1-pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from einfuse.einsum.execution.run import run
from einfuse.einsum.language.batch import with_batch
from einfuse.einsum.library.cascades import load

HEADS, EMBEDDING = (1, 8), 64


def qkv(length: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shape = (*HEADS, EMBEDDING, length)
    return {n: generator.standard_normal(shape, dtype=np.float32) for n in "QKV"}


def three_pass(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    scores = k.swapaxes(-1, -2) @ q
    scores -= scores.max(-2, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(-2, keepdims=True)
    return v @ scores


def one_pass(q: np.ndarray, k: np.ndarray, v: np.ndarray, tile: int) -> np.ndarray:
    top = np.full((*HEADS, 1, q.shape[-1]), -np.inf, q.dtype)
    total, result = np.zeros_like(top), np.zeros_like(q)
    for start in range(0, k.shape[-1], tile):
        here = slice(start, start + tile)
        scores = k[..., here].swapaxes(-1, -2) @ q
        higher = np.maximum(top, scores.max(-2, keepdims=True))
        scores -= higher
        np.exp(scores, out=scores)
        correction = np.exp(top - higher)
        total *= correction
        total += scores.sum(-2, keepdims=True)
        result *= correction
        result += v[..., here] @ scores
        top = higher
    return result / total


def ratio_of(run_it: Callable[[], object], by_hand: Callable[[], object]) -> float:
    """Return the shortest of several runs over that of the other, taken in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(7):
        for function, found in zip((run_it, by_hand), times, strict=True):
            start = time.perf_counter()
            function()
            found.append(time.perf_counter() - start)
    return min(times[0]) / min(times[1])


@pytest.mark.slow
@pytest.mark.parametrize("length", [1024, 2048])
def test_three_passes_take_as_long_as_by_hand(benchmark: BenchmarkFixture, length: int) -> None:
    cascade = with_batch(load("attention/3-pass"), ["B", "H"])
    inputs = qkv(length)
    result = benchmark(lambda: run(cascade, inputs)["AV"])
    by_hand = {name.lower(): array for name, array in inputs.items()}
    np.testing.assert_allclose(result, three_pass(**by_hand), rtol=1e-3, atol=1e-5)
    ratio = ratio_of(lambda: run(cascade, inputs), lambda: three_pass(**by_hand))
    benchmark.extra_info.update(ratio=ratio)
    assert ratio < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("tile", [32, 128, 512])
def test_one_pass_takes_as_long_as_a_tiled_loop(benchmark: BenchmarkFixture, tile: int) -> None:
    cascade = with_batch(load("attention/1-pass"), ["B", "H"])
    inputs = qkv(2048)
    result = benchmark(lambda: run(cascade, inputs, {"M0": tile})["AV"])
    by_hand = {name.lower(): array for name, array in inputs.items()}
    np.testing.assert_allclose(result, one_pass(**by_hand, tile=tile), rtol=1e-3, atol=1e-5)
    ratio = ratio_of(
        lambda: run(cascade, inputs, {"M0": tile}), lambda: one_pass(**by_hand, tile=tile)
    )
    benchmark.extra_info.update(ratio=ratio)
    assert ratio < 2


@pytest.mark.slow
def test_a_causal_mask_costs_little(benchmark: BenchmarkFixture) -> None:
    """Against a hand-written mask, on the filtered cascade."""
    from einfuse.einsum.language.parser import parse
    from einfuse.einsum.language.printer import render

    text = render(with_batch(load("attention/3-pass"), ["B", "H"]))
    cascade = parse(text.replace("K[b,h,e,m]\n", "K[b,h,e, m: m<=p]\n"))
    inputs = qkv(1024)
    q, k, v = inputs.values()

    def by_hand() -> np.ndarray:
        scores = k.swapaxes(-1, -2) @ q
        keep = np.arange(1024)[:, None] <= np.arange(1024)
        scores = np.where(keep, scores, -np.inf)
        scores -= scores.max(-2, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(-2, keepdims=True)
        return v @ scores

    result = benchmark(lambda: run(cascade, inputs)["AV"])
    np.testing.assert_allclose(result, by_hand(), rtol=1e-3, atol=1e-5)
    ratio = ratio_of(lambda: run(cascade, inputs), by_hand)
    benchmark.extra_info.update(ratio=ratio)
    assert ratio < 2
