"""Attention on a CPU, by the plain formula, against PyTorch's own and against masks by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import scaled_dot_product_attention  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from einfuse.kernels.calls.dispatch import attention, attention_with_lse  # noqa: E402
from einfuse.kernels.calls.operators import attention_operator  # noqa: E402
from einfuse.kernels.calls.pairs import count_pairs, visible  # noqa: E402
from einfuse.kernels.calls.problem import Options, Problem  # noqa: E402
from einfuse.kernels.calls.reference import (  # noqa: E402
    attend_exactly,
    attend_plainly,
    differentiate_plainly,
)
from einfuse.kernels.measured.gate import judge  # noqa: E402

OPTIONS: list[dict[str, Any]] = [
    {},
    {"causal": True},
    {"causal": True, "window": 3},
    {"window": 3},
    {"window": 2, "sinks": 3},
    {"causal": True, "window": 2, "sinks": 1},
    {"softcap": 1.5, "causal": True},
    {"similarity": "sigmoid", "bias": -1.0, "causal": True},
]


def draw(queries: int = 6, keys: int = 9, dtype: Any = torch.float32) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    q = torch.randn(2, 4, queries, 8, dtype=dtype)
    k, v = (torch.randn(2, 2, keys, 8, dtype=dtype) for _ in range(2))
    return q, k, v


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_that_of_torch(causal: bool) -> None:
    q, k, v = draw(keys=6)
    theirs = scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    torch.testing.assert_close(attention(q, k, v, causal=causal), theirs)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(6, 9), (9, 6), (1, 5)])
def test_masks_are_those_of_the_definition(
    options: dict[str, Any], queries: int, keys: int
) -> None:
    """Query p stands at p + M - P; each pair is judged by itself."""
    q, k, v = draw(queries, keys)
    problem = Problem(q, k, v, Options(scale=1.0, **options))
    window, sinks = options.get("window"), options.get("sinks", 0)
    expected = torch.zeros(queries, keys, dtype=torch.bool)
    for p, m in itertools.product(range(queries), range(keys)):
        distance = p + keys - queries - m
        inside = window is None or abs(distance) < window or m < sinks
        expected[p, m] = inside and not (options.get("causal") and distance < 0)
    assert torch.equal(visible(problem)[0, 0], expected)
    assert count_pairs(problem) == int(expected.sum()) * 2 * 4


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_of_the_plain_formula_pass_gradcheck(options: dict[str, Any]) -> None:
    tensors = [t.requires_grad_() for t in draw(3, 4, torch.float64)]

    def compute(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = attention_with_lse(*inputs, **options)
        return out, torch.where(torch.isfinite(lse), lse, 0.0)

    assert torch.autograd.gradcheck(compute, tensors, fast_mode=True)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_written_out_gradients_are_those_of_autograd(options: dict[str, Any]) -> None:
    tensors = [t.requires_grad_() for t in draw(9, 6, torch.float64)]
    problem = Problem(*tensors, Options(scale=0.5, **options))
    out, lse = attend_exactly(problem)
    grad_out, grad_lse = torch.randn_like(out), torch.randn_like(lse)
    seen = torch.isfinite(lse)
    total = (out * grad_out).sum()
    if lse.requires_grad:
        total = total + (lse[seen] * grad_lse[seen]).sum()
    truth = torch.autograd.grad(total, tensors)
    found = differentiate_plainly(problem, grad_out, grad_lse, torch.float64)
    for ours, theirs in zip(found, truth, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_packed_sequences_equal_each_alone() -> None:
    lengths_q, lengths_k = (3, 1, 5), (4, 2, 5)
    torch.manual_seed(0)
    q = torch.randn(sum(lengths_q), 4, 8, dtype=torch.float64, requires_grad=True)
    k, v = (
        torch.randn(sum(lengths_k), 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    starts = [
        torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        for lengths in (lengths_q, lengths_k)
    ]
    packed = attention(q, k, v, cu_seqlens=starts[0], cu_seqlens_k=starts[1], causal=True)
    parts = [
        attention(*(t.transpose(0, 1)[None] for t in one), causal=True)[0].transpose(0, 1)
        for one in zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True)
    ]
    torch.testing.assert_close(packed, torch.cat(parts))
    grad = torch.randn_like(packed)
    found = torch.autograd.grad(packed, (q, k, v), grad)
    truth = torch.autograd.grad(torch.cat(parts), (q, k, v), grad)
    for ours, theirs in zip(found, truth, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_block_mask_hides_whole_tiles() -> None:
    q, k, v = draw(6, 9)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    seen = mask.repeat_interleave(4, 0).repeat_interleave(4, 1)[:6, :9]
    theirs = scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    ours = attention(q, k, v, block_mask=mask[None, None], block_size=4)
    torch.testing.assert_close(ours, theirs)


def test_heads_marked_full_have_no_window() -> None:
    q, k, v = draw(6, 6)
    full = torch.tensor([True, False, False, True])
    found = attention(q, k, v, causal=True, window=2, full_heads=full)
    whole, inside = attention(q, k, v, causal=True), attention(q, k, v, causal=True, window=2)
    assert torch.equal(found[:, full], whole[:, full])
    assert torch.equal(found[:, ~full], inside[:, ~full])


def test_queries_without_keys_give_zero() -> None:
    q, k, v = draw(9, 6)
    out, lse = attention_with_lse(q, k, v, causal=True)
    assert (out[:, :, :3] == 0).all() and (lse[:, :, :3] == float("-inf")).all()


@pytest.mark.parametrize(
    "cascade",
    ["attention/3-pass", "attention/3-pass-deferred", "attention/2-pass", "attention/1-pass"],
)
def test_the_two_references_agree(
    attend_by_cascade: Callable[..., torch.Tensor], cascade: str
) -> None:
    problem = Problem(*draw(5, 12), Options(scale=0.3))
    tile = {} if "3-pass" in cascade else {"M0": 4}
    found = attend_by_cascade(problem, cascade, **tile)
    torch.testing.assert_close(found, attend_exactly(problem)[0])


def test_operations_are_counted_as_the_field_counts_them() -> None:
    """4 B H P M E forward and 2.5 times that backward (FlashAttention's benchmarks)."""
    q, k, v = (t.requires_grad_() for t in draw(6, 9))
    with FlopCounterMode(display=False) as counter:
        attention(q, k, v).sum().backward()
    pairs = 2 * 4 * 6 * 9
    assert counter.get_total_flops() == 4 * pairs * 8 + 10 * pairs * 8


def test_operations_under_a_mask_are_those_of_the_pairs_it_leaves() -> None:
    q, k, v = draw(4, 4)
    with FlopCounterMode(display=False) as counter:
        attention(q, k, v, causal=True)
    assert counter.get_total_flops() == 4 * (2 * 4 * 10) * 8


def test_operator_is_registered_as_torch_wants_it() -> None:
    q, k, v = (t.requires_grad_() for t in draw())
    arguments = (q, k, v, None, None, None, None, 0, 0.25, True, None, 0, "softmax", 0.0, 0.0)
    torch.library.opcheck(attention_operator, (*arguments, "", True))


def test_tensors_may_be_strided_in_any_way() -> None:
    q, k, v = draw(6, 6)
    turned = [t.transpose(2, 3).contiguous().transpose(2, 3) for t in (q, k, v)]
    torch.testing.assert_close(attention(*turned), attention(q, k, v))


def test_a_result_within_twice_the_plain_error_passes_and_others_do_not() -> None:
    torch.manual_seed(0)
    exact = torch.randn(100, dtype=torch.float64)
    plain = (exact + 1e-3).half()
    assert judge((exact + 1.5e-3).half(), exact, plain).passed
    assert not judge((exact + 6e-3).half(), exact, plain).passed
    assert not judge(torch.full((100,), float("nan")).half(), exact, plain).passed
    assert "FAILED" in str(judge(plain * 2, exact, plain))


def test_an_infinity_is_right_only_where_the_truth_has_it() -> None:
    exact = torch.tensor([float("-inf"), 1.0], dtype=torch.float64)
    good, bad = torch.tensor([float("-inf"), 1.0]), torch.tensor([1.0, float("-inf")])
    assert judge(good, exact, good).passed
    assert not judge(bad, exact, good).passed
    assert not judge(torch.tensor([0.0, 1.0]), exact, good).passed


def test_plain_attention_in_low_precision_accumulates_in_float32() -> None:
    q, k, v = draw(6, 64, torch.bfloat16)
    problem = Problem(q, k, v, Options(scale=8**-0.5))
    exact, plain = attend_exactly(problem), attend_plainly(problem, torch.bfloat16)
    assert judge(attention(q, k, v), exact[0], plain[0], factor=1.0).passed
