"""Sliding windows with sinks against the masked plain formula, in Triton's interpreter."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from einfuse.kernels.attention.window import plan_forward  # noqa: E402
from einfuse.kernels.calls.problem import Options, Problem  # noqa: E402
from einfuse.kernels.calls.reference import attend_exactly, attend_plainly  # noqa: E402
from einfuse.kernels.calls.registry import find_kernel  # noqa: E402
from einfuse.kernels.measured.gate import judge  # noqa: E402

KERNEL = find_kernel("window")
CAUSAL = Options(scale=24**-0.5, causal=True)


def run(problem):
    q = problem.q
    out = torch.full((*q.shape[:-1], problem.value_size), float("nan"), dtype=q.dtype)
    lse = torch.full(q.shape[:-1], float("nan"))
    for launch in plan_forward(KERNEL, problem, out, lse, "interpreter"):
        launch.run()
    return out, lse


def draw(dtype, queries=70, keys=100, **options):
    torch.manual_seed(0)
    q = torch.randn(1, 4, queries, 24).to(dtype)
    k, v = (torch.randn(1, 2, keys, 24).to(dtype) for _ in range(2))
    return Problem(q, k, v, Options(scale=24**-0.5, **options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("window", "sinks"), [(20, 0), (9, 3)])
def test_window_equals_the_masked_formula(dtype, causal, window, sinks):
    problem = draw(dtype, causal=causal, window=window, sinks=sinks)
    out, lse = run(problem)
    exact, plain = attend_exactly(problem), attend_plainly(problem, dtype)
    verdict = judge(out, exact[0], plain[0])
    assert verdict.passed, str(verdict)
    assert (lse - exact[1]).abs().max() < 1e-3


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("queries", "keys", "window", "sinks"),
    [
        (100, 100, 1, 0),
        (100, 100, 64, 4),
        (100, 100, 65, 40),
        (100, 100, 1000, 0),
        (3, 100, 33, 100),
        (100, 40, 10, 1),
        (33, 97, 31, 32),
    ],
)
def test_every_run_of_blocks_is_met_once(causal, queries, keys, window, sinks):
    problem = draw(torch.float32, queries, keys, causal=causal, window=window, sinks=sinks)
    out, lse = run(problem)
    exact = attend_exactly(problem)
    assert (out - exact[0]).abs().max() < 1e-5
    seen = torch.isfinite(exact[1])
    assert torch.equal(torch.isfinite(lse), seen)
    assert (out[~seen] == 0).all()
    assert (lse[seen] - exact[1][seen]).abs().max() < 1e-5


def test_full_heads_have_no_window():
    problem = draw(torch.float32, causal=True, window=9, sinks=3)
    full_heads = torch.tensor([True, False, False, True])
    mixed, _ = run(dataclasses.replace(problem, full_heads=full_heads))
    streaming, _ = run(problem)
    causal, _ = attend_exactly(dataclasses.replace(problem, options=CAUSAL))
    assert torch.equal(mixed[:, 1:3], streaming[:, 1:3])
    assert (mixed[:, ::3] - causal[:, ::3]).abs().max() < 1e-5


def test_keys_outside_window_and_sinks_are_never_read():
    problem = draw(torch.float32, 32, 200, causal=True, window=20, sinks=2)
    problem.k[:, :, 32:128] = float("nan")
    problem.v[:, :, 32:128] = float("nan")
    assert torch.isfinite(run(problem)[0]).all()
