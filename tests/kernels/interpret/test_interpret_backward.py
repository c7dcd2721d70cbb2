"""Gradients of the one-pass kernel, interpreted: numerics, gradcheck, tracing."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from einfuse.kernels.calls.dispatch import attention, attention_with_lse  # noqa: E402
from einfuse.kernels.calls.operators import attention_operator  # noqa: E402
from einfuse.kernels.calls.problem import Options, Problem  # noqa: E402
from einfuse.kernels.calls.reference import attend_exactly, attend_plainly  # noqa: E402
from einfuse.kernels.measured.gate import judge  # noqa: E402

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def draw(dtype, queries, keys, size=24, heads=2, key_heads=1):
    torch.manual_seed(0)
    q = torch.randn(1, heads, queries, size).to(dtype)
    k, v = (torch.randn(1, key_heads, keys, size).to(dtype) for _ in range(2))
    return q, k, v


def gradients(compute, tensors, dtype, grad_out, grad_lse):
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
    out, lse = compute(*leaves)
    lse = torch.where(torch.isfinite(lse), lse, 0.0)
    ((out * grad_out.to(dtype)).sum() + (lse * grad_lse).sum()).backward()
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("queries", "keys", "softcap"), [(40, 70, 0.0), (70, 40, 0.0), (40, 70, 0.7)]
)
def test_gradients_err_at_most_twice_as_much_as_those_of_the_formula(
    dtype, causal, queries, keys, softcap
):
    tensors = draw(dtype, queries, keys)
    options = Options(scale=24**-0.5, causal=causal, softcap=softcap)
    grad_out, grad_lse = torch.randn(tensors[0].shape).to(dtype), torch.randn(1, 2, queries)

    def fused(q, k, v):
        return attention_with_lse(q, k, v, causal=causal, softcap=softcap, kernel="one-pass")

    def exact(q, k, v):
        return attend_exactly(Problem(q, k, v, options))

    def plain(q, k, v):
        return attend_plainly(Problem(q, k, v, options), dtype)

    found = gradients(fused, tensors, dtype, grad_out, grad_lse)
    truth = gradients(exact, tensors, torch.float64, grad_out, grad_lse)
    rival = gradients(plain, tensors, dtype, grad_out, grad_lse)
    for name, result, wanted, other in zip("qkv", found, truth, rival, strict=True):
        # FlashAttention's tests allow thrice as much under a soft cap.
        verdict = judge(result, wanted, other, factor=3.0 if softcap else 2.0, gradient=True)
        assert verdict.passed, f"{name}: {verdict}"


@pytest.mark.parametrize(("size", "queries", "keys"), [(16, 32, 32), (80, 33, 31), (8, 1, 65)])
def test_gradients_of_ragged_shapes_equal_those_of_the_formula(size, queries, keys):
    tensors = draw(torch.float32, queries, keys, size)
    ours = [tensor.clone().requires_grad_() for tensor in tensors]
    theirs = [tensor.clone().requires_grad_() for tensor in tensors]
    grad = torch.randn(tensors[0].shape)
    attention(*ours, causal=True, kernel="one-pass").backward(grad)
    attention(*theirs, causal=True, kernel="plain").backward(grad)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("causal", "softcap"), [(False, 0.0), (True, 0.0), (True, 0.5)])
def test_gradcheck_in_float64(causal, softcap):
    tensors = [t.requires_grad_() for t in draw(torch.float64, 5, 7, 4, heads=2, key_heads=1)]

    def compute(q, k, v):
        out, lse = attention_with_lse(q, k, v, causal=causal, softcap=softcap, kernel="one-pass")
        return out, torch.where(torch.isfinite(lse), lse, 0.0)

    assert torch.autograd.gradcheck(compute, tensors, fast_mode=True)


def test_gradients_come_back_through_expanded_and_strided_tensors():
    base = torch.randn(1, 40, 2, 24, requires_grad=True)  # [B, P, H, E]
    shared = torch.randn(1, 1, 40, 24, requires_grad=True)
    k = shared.expand(1, 2, 40, 24)
    attention(base.transpose(1, 2), k, k, kernel="one-pass").sum().backward()  # an expanded grad
    other_base, other_shared = (t.detach().clone().requires_grad_() for t in (base, shared))
    k = other_shared.expand(1, 2, 40, 24)
    attention(other_base.transpose(1, 2), k, k, kernel="plain").sum().backward()
    torch.testing.assert_close(base.grad, other_base.grad, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(shared.grad, other_shared.grad, atol=2e-5, rtol=1e-4)


def test_a_kernel_without_backward_is_refused_where_gradients_are_wanted():
    q, k, v = draw(torch.float16, 8, 8)
    with pytest.raises(ValueError, match="kernel 'two-pass' does not know backward"):
        attention(q.requires_grad_(), k, v, kernel="two-pass")


@pytest.mark.parametrize("kernel", ["one-pass", "plain"])
def test_opcheck(kernel):
    q, k, v = (t.requires_grad_() for t in draw(torch.float32, 20, 30, 16))
    arguments = (q, k, v, None, None, None, None, 0, 0.25, True, None, 0, "softmax", 0.0, 0.0)
    torch.library.opcheck(attention_operator, (*arguments, kernel, True))


@pytest.mark.slow
def test_torch_compile_traces_forward_and_backward_whole():
    q, k, v = draw(torch.float32, 20, 30, 16)

    def compute(q, k, v):
        return attention(q * 2, k, v, causal=True, kernel="one-pass").sin()

    results = []
    for function in (compute, torch.compile(compute, fullgraph=True, backend="aot_eager")):
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        out = function(*leaves)
        out.sum().backward()
        results.append((out, *(leaf.grad for leaf in leaves)))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(eager, traced)
