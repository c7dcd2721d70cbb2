"""Functions as users write them: converted to what they compute, or refused by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from einfuse.einsum import EinfuseError, parse, render, run
from einfuse.einsum.exchange.torch.export import from_torch

GENERATOR = torch.Generator().manual_seed(1)
INF = math.inf


def _tensor(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


Q, K, V = _tensor(2, 3, 5, 4), _tensor(2, 3, 7, 4), _tensor(2, 3, 7, 6)
X, Y, SQUARE = _tensor(2, 5, 12), _tensor(4, 12), _tensor(8, 8)
WEIGHTS = [_tensor(12, 12) for _ in range(4)]


def _triu(x: Tensor, diagonal: int = 1) -> Tensor:
    return torch.ones(x.shape[-2:], dtype=torch.bool).triu(diagonal)


def _causal(x: Tensor) -> Tensor:
    return x.masked_fill(_triu(x), -INF)


def built_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.arange(7)[None, :] <= torch.arange(5)[:, None] + 2
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def where_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = torch.arange(5).view(-1, 1), torch.arange(7).view(1, -1)
    return torch.where(j > i + 2, torch.tensor(-INF).double(), q @ k.mT).softmax(-1) @ v


def least_fill(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    return scores.masked_fill(_triu(scores, 3), torch.finfo(scores.dtype).min).softmax(-1) @ v


def with_statistics(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    scores = q @ k.mT / 2
    lse = torch.logsumexp(scores, -1, keepdim=True)
    return torch.exp(scores - lse) @ v, lse.squeeze(-1)


def explicit_masked(x: Tensor) -> tuple[Tensor, Tensor]:
    scores = _causal(x)
    largest = scores.amax(-1)
    weights = torch.exp(scores - largest[:, None])
    total = weights.sum(-1)
    return (weights @ x) / total[:, None], largest + total.log()


def chunked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.cat([torch.softmax(part @ k.mT, -1) @ v for part in q.split(2, dim=2)], 2)


def multihead(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, wo: Tensor) -> Tensor:
    b, s, d = x.shape
    q = (x @ wq.T).view(b, s, 3, d // 3).transpose(1, 2)
    k = (x @ wk.T).view(b, s, 3, -1).transpose(1, 2)
    v = F.linear(x, wv).view(b, s, 3, -1).permute(0, 2, 1, 3)
    heads = (q @ k.transpose(-2, -1) / math.sqrt(d // 3)).softmax(dim=-1) @ v
    return F.linear(heads.transpose(1, 2).contiguous().view(b, s, d), wo)


def packed(x: Tensor) -> Tensor:
    q, k, v = x.view(2, 5, 3, 2, 2).permute(2, 0, 3, 1, 4)
    return F.softmax(q @ k.transpose(-1, -2), dim=-1) @ v


def with_sink(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.cat([q @ k.mT, torch.zeros(2, 3, 5, 1, dtype=q.dtype)], -1)
    return scores.softmax(-1)[..., :-1] @ v


def blocks(x: Tensor) -> Tensor:
    block = torch.arange(8) // 2
    return x.masked_fill(block[:, None] < block[None], -INF).softmax(-1) @ x


def blocks_by_repeat(x: Tensor) -> Tensor:
    mask = ~_triu(x[:4, :4]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    return x.masked_fill(~mask, -INF).softmax(-1) @ x


def cumulative(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    states = torch.einsum("bhnd,bhne->bhnde", k[:, :, :5], v[:, :, :5]).cumsum(2)
    return torch.einsum("bhnd,bhnde->bhne", q, states)


def alibi(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    slopes = torch.exp2(-torch.arange(1, 4, dtype=q.dtype))[:, None, None]
    scores = torch.einsum("...qd,...kd->...qk", q, k) + slopes * torch.arange(7)
    return torch.einsum("...qk,...kd->...qd", torch.softmax(scores, -1), v)


class Module(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        weights = torch.softmax(q @ k.mT, -1)
        return {"out": weights @ v, "weights": weights}


def keywords(q: Tensor, *, values: Tensor, keys: Tensor, causal: bool = False) -> Tensor:
    scores = q @ keys.mT
    return (scores.masked_fill(_triu(scores), -1e30) if causal else scores).softmax(-1) @ values


QKV = (Q, K, V)
sdpa = F.scaled_dot_product_attention
USERS: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    (lambda q, k, v: sdpa(q, k, v, is_causal=True), QKV, {}),
    (lambda q, k, v: sdpa(q, k, v, enable_gqa=True, scale=0.3), (_tensor(2, 6, 5, 4), K, V), {}),
    (lambda q, k, v, m: sdpa(q, k, v, attn_mask=m), (*QKV, _tensor(5, 7)), {}),
    (built_mask, QKV, {}),
    (where_mask, QKV, {}),
    (least_fill, QKV, {}),
    (lambda b, x, y: torch.baddbmm(b, x, y, beta=2, alpha=0.5).softmax(-1),
     (_tensor(3, 5, 7), _tensor(3, 5, 4), _tensor(3, 4, 7)), {}),
    (with_statistics, QKV, {}),
    (lambda x, w, b, p: F.layer_norm(x, (12,), w, b) @ p, (X, Y[0], Y[1], WEIGHTS[0]), {}),
    (lambda x, w, p: F.rms_norm(x, (12,), w, 1e-6) @ p, (X, Y[0], WEIGHTS[0]), {}),
    (cumulative, QKV, {}),
    (lambda q, k, v: torch.tril(q @ k[:, :, :5].mT) @ v[:, :, :5], QKV, {}),
    (chunked, QKV, {}),
    (multihead, (X, *WEIGHTS), {}),
    (packed, (X,), {}),
    (lambda q, k, v: F.softmax((q @ k.mT).float(), -1, dtype=torch.float32).to(q.dtype) @ v,
     tuple(t.float() for t in QKV), {}),
    (lambda q, k, v: F.dropout(torch.softmax(q @ k.mT, -1), p=0.0) @ v, QKV, {}),
    (lambda q, k, v: (torch.softmax(q @ k.mT, -1) @ v, {"scores": q @ k.mT}), QKV, {}),
    (Module(), QKV, {}),
    (keywords, (Q,), {"keys": K, "causal": True, "values": V}),
    (with_sink, QKV, {}),
    (alibi, QKV, {}),
    (blocks, (SQUARE,), {}),
    (explicit_masked, (SQUARE,), {}),
]  # fmt: skip
ELEMENTS: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    (function, (SQUARE,), {})
    for function in [
        blocks_by_repeat,
        lambda x: (_causal(x).repeat(2, 1).softmax(-1), _causal(x).roll(3, 0).softmax(-1)),
        lambda x: (_causal(x).view(2, 4, 8).softmax(-1), _causal(x).T.softmax(0), _causal(x).exp()),
        lambda x: (_causal(x).log_softmax(-1).exp() @ x, _causal(x).logsumexp(0), 2 * x),
        lambda x: ((_causal(x) / 3 + 1).softmax(-1), F.softplus(_causal(x)), _causal(x).sigmoid()),
        lambda x: (1 - _causal(x).softmax(-1), (_causal(x).softmax(-1) > 0.2).double()),
        lambda x: F.layer_norm(_causal(x).softmax(-1), (8,)).var(-1),
        lambda x: (_causal(x).softmax(-1).nan_to_num() @ x, _causal(x).softmax(-1).diagonal()),
        lambda x: x.masked_fill(_triu(x) & ~_triu(x, 3), -INF).softmax(-1),
        lambda x: x.masked_fill(_triu(x) | ~_triu(x, -3), -INF).softmax(-1),
        lambda x: x.masked_fill((torch.arange(64).view(8, 8) % 3) == 0, 0.0),
        lambda x: x * torch.arange(4).repeat_interleave(2) + torch.arange(2).repeat(4)[:, None],
        lambda x: (torch.eye(4).repeat(2, 2) * x, torch.eye(8).double().roll(1, 0) @ x),
        lambda x: (x.diagonal(), x.diagonal(-2), torch.eye(8) * x),
        lambda x: torch.cat([x, x[:, :1].expand(8, 3), torch.ones(8, 1)], 1).softmax(-1),
        lambda x: torch.cat([torch.zeros(8, 2), x], 1).exp().amax(0),
        lambda x: (x.var(), x.std(0, correction=0), x.norm(dim=1), x.norm(1, 0), x.norm(INF)),
        lambda x: (F.normalize(x.tril(), p=1, dim=-1), x.tril().cumsum(1), x.tril().std(0)),
        lambda x: (x.tril() + 3, 2 / (1 + x.tril()), F.leaky_relu(x.tril())),
        lambda x: (((x > 0) ^ (x > 1)) * x, (x > 0).sum(-1), torch.where((x > 1) | (x < 0), x, -x)),
        lambda x: (x + 1, x, x.T, torch.outer(x[0], x[1]), x.roll((1, -3), (0, 1)).clip(-1, 1)),
        lambda x: (x // 2 + x % 3, x.square(), x**-1, 2**x, x.abs() ** 0.5, x.addmm(x, x, beta=0)),
        lambda x: (torch.einsum("ii->i", x), torch.einsum("ij,jk,kl", x, x, x), x @ x[0], x[0] @ x),
        lambda x: (x.reshape(4, 16), x.T.reshape(2, 32), x[1:-1:2, -3:], x.unflatten(0, (2, 4))[1]),
    ]
]  # fmt: skip


@pytest.mark.parametrize(("function", "given", "named"), USERS)
def test_functions_as_users_write_them(
    function: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]
) -> None:
    _check(function, given, named)


@pytest.mark.slow
@pytest.mark.parametrize(("function", "given", "named"), ELEMENTS)
def test_elements_of_functions(
    function: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]
) -> None:
    _check(function, given, named)


def _check(function: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]) -> None:
    cascade = from_torch(function, *given, **named)
    assert parse(render(cascade)) == cascade
    leaves = [*given, *named.values()]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    inputs = {n: t.double().numpy() for n, t in zip(cascade.inputs, tensors, strict=True)}
    found = run(cascade, inputs)
    expected = torch.utils._pytree.tree_leaves(function(*given, **named))
    tolerance = 1e-12 if tensors[0].dtype is torch.float64 else 1e-5
    for name, value in zip(cascade.outputs, expected, strict=True):
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name], value.double().numpy(), tolerance, tolerance)


def loops(x: Tensor) -> Tensor:
    while x.abs().max() > 1:
        x = x / 2
    return x


REFUSED: list[tuple[Callable[..., Any], tuple[Any, ...], str]] = [
    (loops, (SQUARE,), r"loops, line \d+ \(while .*\): .* control flow that depends on data"),
    (lambda x: x * torch.full((8,), 2.7, dtype=torch.int64), (SQUARE,), "a number with fractions"),
    (lambda x: (x > 0) + (x < 1), (SQUARE,), "a sum of truth values"),
    (lambda x: x & 1, (torch.arange(6),), "__and__ of numbers"),
    (lambda x: ~x, (torch.arange(6),), "bitwise_not of numbers"),
    (lambda x: torch.logical_not(x) * x, (SQUARE,), "logical_not of numbers"),
    (lambda x: _causal(x), (SQUARE,), "an output of scores that are masked with -inf"),
    (lambda x: _causal(x).sum(-1), (SQUARE,), "sum of scores that are masked"),
    (lambda x: x.nan_to_num(), (SQUARE,), "nan_to_num of anything but masked weights"),
    (lambda x: F.softplus(x, beta=2), (SQUARE,), "softplus with options"),
    (lambda x: F.rms_norm(x, (8,)), (SQUARE,), "rms_norm without eps"),
    (lambda x: x[:, 8:].sum(), (SQUARE,), "a tensor without elements"),
    (lambda x: x.round(decimals=2), (SQUARE,), "round to 2 decimals: scale"),
    (lambda x: torch.fft.fft(x).real, (SQUARE,), "the operation fft_fft: write it with"),
    (lambda x: x.sum().item(), (SQUARE,), "the operation item"),
    (lambda x: torch.ones(3), (SQUARE,), "an output that reads no input"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "given", "message"), REFUSED)
def test_what_is_refused_says_what_and_where(
    function: Callable[..., Any], given: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(EinfuseError, match=message) as refused:
        from_torch(function, *given)
    if inspect.isfunction(function) and "operation" in message:
        assert ", line " in str(refused.value)
