"""Calls that no kernel takes: the plain formula, which needs neither Triton nor a GPU."""

from __future__ import annotations

import os
import warnings

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from einfuse.kernels.attention.shared_prefix_operator import (  # noqa: E402
    attend_with_prefix,
    shared_prefix_attention,
)
from einfuse.kernels.calls.registry import Traits, find_or_fall_back  # noqa: E402
from einfuse.kernels.decoding.cache import CacheProblem, attend_cache  # noqa: E402
from einfuse.kernels.decoding.split_kv import decode_attention  # noqa: E402
from einfuse.kernels.errors import KernelError  # noqa: E402
from einfuse.kernels.linear.operator import linear_attention  # noqa: E402
from einfuse.kernels.linear.recurrence import RecurrenceProblem, attend_linearly  # noqa: E402

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="is about calls that no kernel takes"
)


def traits(**changes: object) -> Traits:
    usual = {
        "architecture": "sm_90", "dtype": "float16", "heads": 8, "key_heads": 8, "queries": 1,
        "keys": 64, "head_size": 64, "value_size": 64,
    }  # fmt: skip
    return Traits(**{**usual, **changes})  # type: ignore[arg-type]


def test_decoding_on_a_cpu_is_the_plain_formula() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 1, 16), torch.randn(2, 2, 50, 16), torch.randn(2, 2, 50, 24)
    lengths = torch.tensor([50, 0], dtype=torch.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out, lse = decode_attention(q, k, v, lengths=lengths)
    exact = attend_cache(CacheProblem(q, k, v, 0.25, True, lengths), torch.float64)
    assert torch.allclose(out.double(), exact[0], atol=1e-5)
    assert (out[1] == 0).all()
    assert lse[1].isneginf().all()


def test_a_kernel_asked_for_by_name_is_refused_where_it_does_not_run() -> None:
    q = k = v = torch.randn(1, 1, 4, 16)
    with pytest.raises(KernelError, match=r"'stream-k-decode' runs on .* not on cpu"):
        decode_attention(q, k, v, kernel="stream-k-decode")


def test_linear_attention_on_a_cpu_is_the_plain_formula_with_its_gradients() -> None:
    torch.manual_seed(0)
    leaves = [
        torch.randn(shape, requires_grad=True)
        for shape in ((1, 1, 9, 4), (1, 1, 9, 4), (1, 2, 9, 5))
    ]
    decay = (-torch.rand(1, 2, 9)).requires_grad_()
    state = torch.randn(1, 2, 4, 5, requires_grad=True)
    out, final = linear_attention(*leaves, decay, initial_state=state, scale=0.5)
    truth, true_final = attend_linearly(
        RecurrenceProblem(*leaves, decay, 0.5, state), torch.float32
    )
    assert torch.allclose(out, truth, atol=1e-5)
    assert torch.allclose(final, true_final, atol=1e-5)
    weight, every = torch.randn_like(out), (*leaves, decay, state)
    ours = torch.autograd.grad((out * weight).sum() + final.sum(), every)
    theirs = torch.autograd.grad((truth * weight).sum() + true_final.sum(), every)
    for result, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(result, expected, atol=1e-4)


def test_a_shared_prefix_on_a_cpu_is_the_plain_formula_with_its_gradients() -> None:
    torch.manual_seed(0)
    leaves = [
        torch.randn(shape, requires_grad=True)
        for shape in (
            (1, 2, 3, 5, 4), (1, 1, 3, 5, 4), (1, 1, 3, 5, 6), (1, 1, 7, 4), (1, 1, 7, 6)
        )
    ]  # fmt: skip
    lengths = torch.tensor([[5, 0, 2]], dtype=torch.int32)
    out, _ = shared_prefix_attention(*leaves, lengths=lengths)
    truth, _ = attend_with_prefix(*leaves, lengths, 0.5, torch.float32)
    assert torch.allclose(out, truth, atol=1e-6)
    ours = torch.autograd.grad(out.sin().sum(), leaves)
    theirs = torch.autograd.grad(truth.sin().sum(), leaves)
    for result, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(result, expected, atol=1e-5)


def test_a_refusal_on_a_gpu_is_a_warning_given_once() -> None:
    call = traits(head_size=320)
    with pytest.warns(RuntimeWarning, match="takes head_size from 1 to 256, not 320: using the pl"):
        assert find_or_fall_back("split-kv-decode", call) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_or_fall_back("split-kv-decode", call) is None


def test_a_refusal_of_a_kernel_asked_for_is_an_error() -> None:
    with pytest.raises(KernelError, match="takes head_size"):
        find_or_fall_back("split-kv-decode", traits(head_size=320), asked=True)
