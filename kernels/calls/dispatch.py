"""Attention for whoever does not care which kernel computes it."""

from __future__ import annotations

from typing import TypedDict, Unpack

import torch
from torch import Tensor

from einfuse.kernels.errors import KernelError

from .arguments import check_tensors, check_values
from .operators import attention_operator
from .problem import Similarity


class Choices(TypedDict, total=False):
    """The keywords of :func:`attention`."""

    causal: bool
    window: int | None
    sinks: int | None
    similarity: Similarity
    scale: float | None
    bias: float
    softcap: float
    cu_seqlens: Tensor | None
    cu_seqlens_k: Tensor | None
    block_mask: Tensor | None
    block_size: int
    full_heads: Tensor | None
    kernel: str | None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: int | None = None,
    sinks: int | None = None,
    similarity: Similarity = "softmax",
    scale: float | None = None,
    bias: float = 0.0,
    softcap: float = 0.0,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    block_mask: Tensor | None = None,
    block_size: int = 128,
    full_heads: Tensor | None = None,
    kernel: str | None = None,
) -> Tensor:
    """Return attention of ``q [B, H, P, E]`` over ``k [B, G, M, E]`` and ``v [B, G, M, F]``.

    H is a multiple of G. Queries stand at the end of the keys: the last query sees every key
    under ``causal``. ``window`` keys around each query (before it, under ``causal``) are seen,
    and the first ``sinks`` keys always; heads marked in ``full_heads [H]`` (bool) have no window.
    ``scale`` is 1/sqrt(E) unless given. ``bias`` belongs to
    the sigmoid. With ``cu_seqlens`` (int32, first row of each sequence and the end; those of the
    keys in ``cu_seqlens_k`` if they differ) the tensors are packed sequences ``[P, H, E]``.
    ``block_mask [B or 1, H or 1, P/block_size, M/block_size]`` keeps whole tiles. A query that
    sees no key gives 0.

    ``kernel`` names one of :func:`kernels`; without it the preferred one that takes the call is
    used, and the plain formula where none does. On a GPU its tiles are tuned by measurement, on
    first use, if the environment has ``EINFUSE_AUTOTUNE=1``. Raises KernelError (a ValueError).

    >>> q = torch.randn(1, 4, 10, 16); k = v = torch.randn(1, 2, 10, 16)
    >>> attention(q, k, v, causal=True).shape
    torch.Size([1, 4, 10, 16])
    """
    return attention_with_lse(
        q, k, v, causal=causal, window=window, sinks=sinks, similarity=similarity, scale=scale,
        bias=bias, softcap=softcap, cu_seqlens=cu_seqlens, cu_seqlens_k=cu_seqlens_k,
        block_mask=block_mask, block_size=block_size, full_heads=full_heads, kernel=kernel,
    )[0]  # fmt: skip


def attention_with_lse(
    q: Tensor, k: Tensor, v: Tensor, **choices: Unpack[Choices]
) -> tuple[Tensor, Tensor]:
    """Return what :func:`attention` does, and the logs of its sums of exponentials.

    These are ``[B, H, P]`` (``[H, P]`` if packed), float32, -inf where a query sees no key and
    for the sigmoid, which has no sum. Both results can be differentiated.

    >>> q = torch.zeros(1, 1, 1, 16); k = v = torch.zeros(1, 1, 8, 16)
    >>> attention_with_lse(q, k, v)[1].exp().round().tolist()
    [[[8.0]]]
    """
    check_tensors(q=q, k=k, v=v)
    check_values(choices)
    starts_q = choices.get("cu_seqlens")
    starts_k = choices.get("cu_seqlens_k")
    if starts_q is None and starts_k is not None:
        raise KernelError("cu_seqlens_k: expected with cu_seqlens, found it alone")
    block_mask = choices.get("block_mask")
    scale = choices.get("scale")
    result: tuple[Tensor, Tensor] = attention_operator(
        q,
        k,
        v,
        starts_q,
        starts_q if starts_k is None else starts_k,
        block_mask,
        choices.get("full_heads"),
        choices.get("block_size", 128) if block_mask is not None else 0,
        max(q.shape[-1], 1) ** -0.5 if scale is None else scale,
        choices.get("causal", False),
        choices.get("window"),
        choices.get("sinks") or 0,
        choices.get("similarity", "softmax"),
        choices.get("bias", 0.0),
        choices.get("softcap", 0.0),
        choices.get("kernel") or "",
        torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)),
    )
    return result
