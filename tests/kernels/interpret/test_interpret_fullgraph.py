"""Each operator under ``torch.compile(fullgraph=True)``: forward, and backward where it has one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from einfuse.kernels.attention.shared_prefix_operator import shared_prefix_attention  # noqa: E402
from einfuse.kernels.decoding.split_kv import decode_attention  # noqa: E402
from einfuse.kernels.linear.operator import linear_attention  # noqa: E402


def draw(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def traced(compute: Callable[..., object]) -> Callable[..., object]:
    torch.compiler.reset()
    return torch.compile(compute, fullgraph=True, backend="aot_eager")


def differentiate(compute: Callable[..., tuple], tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Both results of an operator, and the gradients of a function of both."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    out, more = compute(*leaves)
    (out.sin().sum() + more.cos().sum()).backward()
    return [out, more, *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("kernel", ["split-kv-decode", "stream-k-decode"])
@pytest.mark.parametrize("is_paged", [False, True], ids=["contiguous", "paged"])
def test_decoding_is_traced_whole(kernel, is_paged):
    cache = (4, 16, 1, 16) if is_paged else (2, 1, 32, 16)
    q, k, v = draw((2, 2, 1, 16), cache, cache)
    lengths = torch.tensor([30, 5], dtype=torch.int32)
    table = torch.tensor([[2, 0], [1, 3]], dtype=torch.int32) if is_paged else None

    def compute(q, k, v, lengths):
        return decode_attention(
            q * 2, k, v, lengths=lengths, page_table=table, splits=2, kernel=kernel
        )

    for eager, whole in zip(
        compute(q, k, v, lengths), traced(compute)(q, k, v, lengths), strict=True
    ):
        torch.testing.assert_close(eager, whole)


@pytest.mark.parametrize("initial", [True, False])
def test_linear_attention_is_traced_whole(initial):
    q, k, v, state = draw((1, 1, 40, 16), (1, 1, 40, 16), (1, 2, 40, 16), (1, 2, 16, 16))
    decay = torch.linspace(-0.3, 0.0, 80).view(1, 2, 40)

    def compute(q, k, v, decay, state=None):
        return linear_attention(q * 2, k, v, decay, scale=0.25, initial_state=state)

    tensors = [q, k, v, decay, *([state] if initial else [])]
    for eager, whole in zip(
        differentiate(compute, tensors), differentiate(traced(compute), tensors), strict=True
    ):
        torch.testing.assert_close(eager, whole)


@pytest.mark.parametrize("ragged", [True, False])
def test_a_shared_prefix_is_traced_whole(ragged):
    own, prefix = (1, 1, 2, 9, 16), (1, 1, 20, 16)
    tensors = draw((1, 2, 2, 9, 16), own, own, prefix, prefix)
    lengths = torch.tensor([[9, 4]], dtype=torch.int32) if ragged else None

    def compute(q, *others):
        out, lse = shared_prefix_attention(q * 2, *others, lengths=lengths)
        return out, torch.where(torch.isfinite(lse), lse, 0.0)

    for eager, whole in zip(
        differentiate(compute, tensors), differentiate(traced(compute), tensors), strict=True
    ):
        torch.testing.assert_close(eager, whole)
