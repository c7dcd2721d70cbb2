"""Responses that share a prompt against prompts repeated, in Triton's interpreter."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from einfuse.kernels.attention.shared_prefix_operator import (  # noqa: E402
    attend_with_prefix,
    shared_prefix_attention,
)
from einfuse.kernels.errors import KernelError  # noqa: E402
from einfuse.kernels.measured.gate import judge  # noqa: E402

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SCALE = 24**-0.5


def draw(dtype, batch=2, heads=2, key_heads=1, responses=3, tokens=20, prefix=50):
    torch.manual_seed(0)
    own, of_prefix = (batch, key_heads, responses, tokens), (batch, key_heads, prefix)
    return [
        torch.randn(*shape).to(dtype)
        for shape in (
            (batch, heads, responses, tokens, 24),
            (*own, 24),
            (*own, 40),
            (*of_prefix, 24),
            (*of_prefix, 40),
        )
    ]


def draw_lengths():
    return torch.tensor([[20, 7, 1], [0, 19, 20]], dtype=torch.int32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [None, draw_lengths()], ids=["full", "ragged"])
def test_sharing_a_prefix_equals_repeating_it(dtype, lengths):
    tensors = draw(dtype)
    out, lse = shared_prefix_attention(*tensors, lengths=lengths)
    exact, plain = (attend_with_prefix(*tensors, lengths, SCALE, t) for t in (torch.float64, dtype))
    verdict = judge(out, exact[0], plain[0])
    assert verdict.passed, str(verdict)
    assert judge(lse, exact[1], exact[1].float()).error < 1e-3


@pytest.mark.parametrize(
    "sizes",
    [
        {"responses": 40, "tokens": 1, "prefix": 33},
        {"responses": 1, "tokens": 70, "prefix": 1},
        {"responses": 2, "tokens": 64, "prefix": 64},
        {"responses": 5, "tokens": 13, "heads": 6, "key_heads": 3},
    ],
    ids=str,
)
def test_tiles_may_hold_many_responses_or_a_part_of_one(sizes):
    tensors = draw(torch.float32, **{"batch": 1, **sizes})
    out, lse = shared_prefix_attention(*tensors)
    exact = attend_with_prefix(*tensors, None, SCALE, torch.float64)
    assert (out - exact[0]).abs().max() < 1e-5
    assert (lse - exact[1]).abs().max() < 1e-5


def test_tokens_that_do_not_exist_are_never_used():
    q, k, v, prefix_k, prefix_v = draw(torch.float32)
    lengths = draw_lengths()
    missing = torch.arange(20) >= lengths[..., None]
    for tensor in (q, k, v):
        tensor.masked_fill_(missing[:, None, :, :, None], float("nan"))
        tensor.requires_grad_()
    out, lse = shared_prefix_attention(q, k, v, prefix_k, prefix_v, lengths=lengths)
    assert torch.isfinite(out).all()
    assert (lse.isneginf() == missing[:, None].expand_as(lse)).all()
    out.sum().backward()
    for tensor in (q, k, v):
        assert torch.isfinite(tensor.grad).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_err_at_most_twice_as_much_as_those_of_the_plain_formula(dtype):
    tensors, lengths = draw(dtype), draw_lengths()
    grad_out = torch.randn(2, 2, 3, 20, 40).to(dtype)

    def differentiate(compute, leaves):
        leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        out, _ = compute(leaves)
        return torch.autograd.grad((out * grad_out.to(out.dtype)).sum(), leaves)

    ours = differentiate(lambda t: shared_prefix_attention(*t, lengths=lengths), tensors)
    exact, plain = (
        differentiate(lambda t, d=d: attend_with_prefix(*t, lengths, SCALE, d), leaves)
        for d, leaves in ((torch.float64, [t.double() for t in tensors]), (dtype, tensors))
    )
    for result, truth, rival in zip(ours, exact, plain, strict=True):
        verdict = judge(result, truth, rival, gradient=True)
        assert verdict.passed, str(verdict)


def test_gradients_are_right_to_the_last_digit_in_float64():
    torch.manual_seed(0)
    shapes = ((1, 2, 2, 3, 2), (1, 1, 2, 3, 2), (1, 1, 2, 3, 3), (1, 1, 4, 2), (1, 1, 4, 3))
    leaves = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(shared_prefix_attention, leaves, fast_mode=True)


def test_tensors_are_taken_by_their_strides():
    tensors = draw(torch.float32)
    heads_last = [t.movedim(1, -2).contiguous().movedim(-2, 1) for t in tensors]
    ours, theirs = (shared_prefix_attention(*t)[0] for t in (tensors, heads_last))
    assert torch.equal(ours, theirs)


def test_shared_prefix_is_a_well_formed_operator():
    leaves = [
        t.requires_grad_() for t in draw(torch.float32, batch=1, responses=2, tokens=5, prefix=8)
    ]
    torch.library.opcheck(torch.ops.einfuse.shared_prefix, (*leaves, None, 0.2))


@pytest.mark.parametrize(
    ("index", "shape", "words"),
    [
        (0, (2, 2, 3, 20), r"q: expected \[B, H, R, P, E\] .*found \[2, 2, 3, 20\]"),
        (1, (2, 1, 3, 19, 24), r"k: expected \[2, 1, 3, 20, 24\], found \[2, 1, 3, 19, 24\]"),
        (3, (2, 2, 50, 24), r"prefix_k: expected \[2, 1, 50, 24\]"),
        (4, (2, 1, 0, 40), "prefix_v: expected .* without an empty dimension"),
    ],
)
def test_bad_tensors_are_named(index, shape, words):
    tensors = draw(torch.float32)
    tensors[index] = torch.zeros(shape)
    with pytest.raises(KernelError, match=words):
        shared_prefix_attention(*tensors)


@pytest.mark.parametrize("length", [-1, 21])
def test_lengths_beyond_a_response_are_refused(length):
    lengths = draw_lengths()
    lengths[1, 1] = length
    with pytest.raises(KernelError, match=f"lengths: expected 0 to 20 tokens, found {length}"):
        shared_prefix_attention(*draw(torch.float32), lengths=lengths)
