"""The dense kernels on a CUDA device: the numerics rule again, where rounding is the hardware's."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from einfuse.kernels.calls.architecture import find_architecture  # noqa: E402
from einfuse.kernels.calls.dispatch import attention_with_lse  # noqa: E402
from einfuse.kernels.calls.problem import Options, Problem  # noqa: E402
from einfuse.kernels.calls.reference import attend_exactly, attend_plainly  # noqa: E402
from einfuse.kernels.calls.registry import find_kernel  # noqa: E402
from einfuse.kernels.measured.gate import judge  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

KERNELS = (
    "one-pass", "one-pass-hopper", "two-pass", "three-pass", "row-resident",
    "row-resident-deferred",
)  # fmt: skip


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("queries", "keys", "size"), [(512, 512, 64), (512, 512, 128), (300, 401, 256), (77, 130, 80)]
)
def test_kernels_err_at_most_twice_as_much_as_the_plain_formula(
    kernel, dtype, causal, queries, keys, size
):
    torch.manual_seed(0)
    q = torch.randn(2, 4, queries, size, device="cuda").to(dtype)
    k, v = (torch.randn(2, 2, keys, size, device="cuda").to(dtype) for _ in range(2))
    problem = Problem(q, k, v, Options(scale=size**-0.5, causal=causal))
    traits = problem.traits(architecture=find_architecture(q.device))
    refusal = find_kernel(kernel).refusal(traits)
    if refusal is not None:
        pytest.skip(f"{kernel} {refusal}")
    out, lse = attention_with_lse(q, k, v, causal=causal, kernel=kernel)
    exact, plain = attend_exactly(problem), attend_plainly(problem, dtype)
    verdict = judge(out, exact[0], plain[0])
    assert verdict.passed, str(verdict)
    if kernel != "three-pass":
        assert (lse - exact[1]).abs().max() < 1e-3


@pytest.mark.parametrize("kernel", ["one-pass", "one-pass-hopper"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "keys", "size"), [(512, 512, 128), (300, 401, 64)])
def test_gradients_err_at_most_thrice_as_much_as_those_of_the_formula(
    kernel, dtype, causal, queries, keys, size
):
    torch.manual_seed(0)
    tensors = [
        torch.randn(2, heads, length, size, device="cuda").to(dtype).requires_grad_()
        for heads, length in ((4, queries), (2, keys), (2, keys))
    ]
    problem = Problem(*tensors, Options(scale=size**-0.5, causal=causal))
    refusal = find_kernel(kernel).refusal(problem.traits(training=True))
    if refusal is not None:
        pytest.skip(f"{kernel} {refusal}")
    grad = torch.randn(2, 4, queries, size, device="cuda").to(dtype)
    found = torch.autograd.grad(
        attention_with_lse(*tensors, causal=causal, kernel=kernel)[0], tensors, grad
    )
    truth = torch.autograd.grad(attend_exactly(problem)[0], tensors, grad.double())
    rival = torch.autograd.grad(attend_plainly(problem, dtype)[0], tensors, grad)
    for ours, wanted, other in zip(found, truth, rival, strict=True):
        verdict = judge(ours, wanted, other, factor=3.0, gradient=True)
        assert verdict.passed, str(verdict)
