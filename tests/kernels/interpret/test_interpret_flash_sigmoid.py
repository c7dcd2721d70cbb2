"""Sigmoid attention against the plain formula, in Triton's interpreter."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from einfuse.kernels.attention.flash_sigmoid import choose_method, sigmoid  # noqa: E402
from einfuse.kernels.calls.dispatch import attention  # noqa: E402
from einfuse.kernels.calls.problem import Options, Problem  # noqa: E402
from einfuse.kernels.calls.reference import attend_exactly, attend_plainly  # noqa: E402
from einfuse.kernels.measured.gate import judge  # noqa: E402

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SCALE = 24**-0.5


def draw(dtype, queries=70, keys=100, batch=1):
    torch.manual_seed(0)
    q = torch.randn(batch, 4, queries, 24).to(dtype)
    k, v = (torch.randn(batch, 2, keys, size).to(dtype) for size in (24, 40))
    return q, k, v


def attend(q, k, v, **options):
    return attention(q, k, v, similarity="sigmoid", kernel="flash-sigmoid", **options)


def formula(tensors, dtype, **options):
    problem = Problem(*tensors, Options(scale=SCALE, similarity="sigmoid", **options))
    return attend_plainly(problem, dtype)[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [0.0, -4.6])
def test_sigmoid_errs_at_most_twice_as_much_as_the_plain_formula(dtype, causal, bias):
    tensors = draw(dtype)
    out = attend(*tensors, causal=causal, bias=bias)
    exact, plain = (formula(tensors, t, causal=causal, bias=bias) for t in (torch.float64, dtype))
    verdict = judge(out, exact, plain)
    assert verdict.passed, str(verdict)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_err_at_most_twice_as_much_as_those_of_the_plain_formula(dtype, causal):
    tensors = draw(dtype)
    grad_out = torch.randn(1, 4, 70, 40).to(dtype)

    def differentiate(compute, leaves):
        leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        out = compute(leaves)
        return torch.autograd.grad((out * grad_out.to(out.dtype)).sum(), leaves)

    ours = differentiate(lambda t: attend(*t, causal=causal, bias=-2.0), tensors)
    exact, plain = (
        differentiate(lambda t, d=d: formula(t, d, causal=causal, bias=-2.0), leaves)
        for d, leaves in ((torch.float64, [t.double() for t in tensors]), (dtype, tensors))
    )
    for result, truth, rival in zip(ours, exact, plain, strict=True):
        verdict = judge(result, truth, rival, gradient=True)
        assert verdict.passed, str(verdict)


def test_gradients_are_right_to_the_last_digit_in_float64():
    torch.manual_seed(0)
    shapes = ((1, 2, 5, 3), (1, 1, 6, 3), (1, 1, 6, 2))
    leaves = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(lambda *t: attend(*t, causal=True), leaves, fast_mode=True)


def test_queries_before_the_first_key_give_zero():
    q, k, v = draw(torch.float32, queries=60, keys=40)
    out = attend(q, k, v, causal=True)
    assert (out[:, :, :20] == 0).all()
    exact = formula((q, k, v), torch.float64, causal=True)
    assert (out - exact).abs().max() < 1e-4


def test_a_sequence_does_not_depend_on_the_batch():
    q, k, v = draw(torch.float16, 33, 33, batch=2)
    assert torch.equal(attend(q, k, v)[1:], attend(q[1:], k[1:], v[1:]))


def test_the_log_sum_exp_of_a_sigmoid_is_minus_infinity():
    problem = Problem(*draw(torch.float32), Options(scale=1.0, similarity="sigmoid"))
    assert attend_exactly(problem)[1].isneginf().all()


@triton.jit
def sigmoid_kernel(
    x_ptr: tl.tensor, y_ptr: tl.tensor, factor: tl.tensor, block: tl.constexpr
) -> None:
    """y = sigmoid(x) by exp2."""
    i = tl.arange(0, block)
    tl.store(y_ptr + i, sigmoid(tl.load(x_ptr + i) * factor, "exp2"))


def test_the_sigmoid_by_one_exp2_is_right_to_two_millionths_however_small_it_is():
    x = torch.linspace(-80, 80, 4096)
    y = torch.empty_like(x)
    sigmoid_kernel[(1,)](x, y, 1.4426950408889634, 4096)
    exact = torch.sigmoid(x.double())
    near = x.abs() < 20  # further out the rounding of x * log2(e) dominates
    relative = (y - exact).abs() / exact
    assert relative[near].max() < 2.5e-6
    assert relative.max() < 1e-5


def test_tanh_is_taken_only_where_its_error_is_below_the_rounding_of_a_weight():
    assert choose_method(torch.bfloat16, 0.0, "sm_90") == "tanh"
    assert choose_method(torch.bfloat16, -9.7, "sm_90") == "exp2"
    assert choose_method(torch.float16, 0.0, "sm_90") == "tanh"
    assert choose_method(torch.float16, -0.1, "sm_90") == "exp2"
    assert choose_method(torch.bfloat16, 0.0, "interpreter") == "exp2"
    assert choose_method(torch.bfloat16, -1e9, "sm_90") == "exp2"
    assert choose_method(torch.float32, 0.0, "sm_90") == "division"
