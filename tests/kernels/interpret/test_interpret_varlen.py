"""Packed sequences against one call per sequence, in Triton's interpreter."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from einfuse.kernels.attention.varlen import plan_forward  # noqa: E402
from einfuse.kernels.calls.problem import Options, Problem  # noqa: E402
from einfuse.kernels.calls.reference import attend_exactly, attend_plainly  # noqa: E402
from einfuse.kernels.calls.registry import find_kernel  # noqa: E402
from einfuse.kernels.measured.gate import judge  # noqa: E402

KERNEL = find_kernel("varlen")


def starts(lengths):
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def draw(dtype, lengths_q, lengths_k, causal):
    torch.manual_seed(0)
    q = torch.randn(sum(lengths_q), 4, 24).to(dtype)
    k, v = (torch.randn(sum(lengths_k), 2, 24).to(dtype) for _ in range(2))
    return Problem(
        q,
        k,
        v,
        Options(scale=24**-0.5, causal=causal),
        starts_q=starts(lengths_q),
        starts_k=starts(lengths_k),
    )


def run(problem):
    out = torch.full_like(problem.q, float("nan"))
    lse = torch.full((problem.heads, out.shape[0]), float("nan"))
    for launch in plan_forward(KERNEL, problem, out, lse, "interpreter"):
        launch.run()
    return out, lse


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences_equal_the_formula_of_each(dtype, causal):
    problem = draw(dtype, [40, 1, 70], [40, 1, 70], causal)
    out, lse = run(problem)
    exact, plain = attend_exactly(problem), attend_plainly(problem, dtype)
    verdict = judge(out, exact[0], plain[0])
    assert verdict.passed, str(verdict)
    assert (lse - exact[1]).abs().max() < 1e-3


@pytest.mark.parametrize("causal", [False, True])
def test_queries_and_keys_may_have_lengths_of_their_own(causal):
    problem = draw(torch.float32, [5, 50, 33], [64, 20, 33], causal)
    out, lse = run(problem)
    exact = attend_exactly(problem)
    seen = torch.isfinite(exact[1])
    assert torch.equal(torch.isfinite(lse), seen)
    assert (out - exact[0]).abs().max() < 1e-5
    assert (lse[seen] - exact[1][seen]).abs().max() < 1e-5


def test_a_sequence_does_not_depend_on_its_neighbours():
    together = draw(torch.float32, [40, 50], [40, 50], causal=True)
    alone = Problem(
        together.q[40:],
        together.k[40:],
        together.v[40:],
        together.options,
        starts_q=starts([50]),
        starts_k=starts([50]),
    )
    assert torch.equal(run(together)[0][40:], run(alone)[0])
