"""The one-pass kernel against the float64 reference, in Triton's interpreter."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from einfuse.kernels.check import judge  # noqa: E402
from einfuse.kernels.dispatch import attention_with_lse  # noqa: E402
from einfuse.kernels.options import Options  # noqa: E402
from einfuse.kernels.problem import Problem  # noqa: E402
from einfuse.kernels.reference import attend_exactly, attend_plainly  # noqa: E402

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_one_pass_errs_at_most_twice_as_much_as_the_plain_formula(dtype, causal):
    torch.manual_seed(0)
    q = torch.randn(1, 4, 70, 32).to(dtype)
    k, v = (torch.randn(1, 2, 100, 32).to(dtype) for _ in range(2))
    problem = Problem(q, k, v, Options(scale=32**-0.5, causal=causal))
    out, lse = attention_with_lse(q, k, v, causal=causal, kernel="one-pass")
    exact, plain = attend_exactly(problem), attend_plainly(problem, dtype)
    verdict = judge(out, exact[0], plain[0])
    assert verdict.passed, str(verdict)
    assert (lse - exact[1]).abs().max() < 1e-3
