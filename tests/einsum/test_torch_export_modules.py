"""Modules and functions with tensors of their own, imported whole and run against PyTorch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from einfuse.einsum import parse, render, run
from einfuse.einsum.exchange.torch.export import from_torch
from einfuse.einsum.gradient.gradient import gradient

INF = math.inf
GENERATOR = torch.Generator().manual_seed(3)
torch.manual_seed(3)


def _tensor(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


def _whole(*shape: int, below: int) -> Tensor:
    return torch.randint(0, below, shape, generator=GENERATOR)


def check(function: Callable[..., Any], *given: Any, empty_rows: bool = False) -> Any:
    """Import a function, and run it as it stands, at large magnitudes too."""
    cascade = from_torch(function, *given)
    assert parse(render(cascade)) == cascade
    for scale in (1, 30):
        leaves = torch.utils._pytree.tree_map(
            lambda x, by=scale: x * by if torch.is_tensor(x) and x.is_floating_point() else x, given
        )
        tensors = [t for t in torch.utils._pytree.tree_leaves(leaves) if torch.is_tensor(t)]
        found = run(cascade, dict(zip(cascade.inputs, (t.numpy() for t in tensors), strict=False)))
        with torch.no_grad():
            expected = torch.utils._pytree.tree_leaves(function(*leaves))
        expected = [value for value in expected if torch.is_tensor(value)]
        for name, value in zip(cascade.outputs, expected, strict=True):
            assert found[name].shape == value.shape
            wanted = value.double().nan_to_num(0) if empty_rows else value.double()
            np.testing.assert_allclose(found[name], wanted, rtol=1e-9, atol=1e-9)
    return cascade


# Modules.


class Causal(nn.Module):
    """Attention as in nanoGPT: one projection, a mask that is a buffer."""

    def __init__(self, width: int = 8, heads: int = 2, longest: int = 16) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        mask = torch.tril(torch.ones(longest, longest)).view(1, 1, longest, longest)
        self.register_buffer("bias", mask)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(c, dim=2)
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in (q, k, v))
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.bias[:, :, :t, :t] == 0, -INF)
        y = F.softmax(scores, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))


class Rotary(nn.Module):
    """Llama's attention: complex rotary embeddings, grouped keys, RMSNorm."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.wq, self.wo = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.wkv = nn.Linear(width, 2 * self.size, bias=False)
        angle = torch.outer(torch.arange(16.0), 1 / 10 ** (torch.arange(0, self.size, 2) / 4))
        turned = torch.polar(torch.ones_like(angle), angle).to(torch.complex128)
        self.register_buffer("turned", turned, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        b, t, _ = x.shape
        q = self.wq(x).view(b, t, self.heads, self.size)
        k, v = self.wkv(x).view(b, t, 2, 1, self.size).unbind(2)
        q, k = (self._turn(y, self.turned[:t]) for y in (q, k))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.wo(y.transpose(1, 2).reshape(b, t, -1))

    @staticmethod
    def _turn(x: Tensor, turned: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turned[None, :, None]).flatten(3).type_as(x)


class Gate(nn.Module):
    """A mixture of experts: the two best of four, each computed for all tokens."""

    def __init__(self, width: int = 8, experts: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, width, 6))
        self.down = nn.Parameter(torch.randn(experts, 6, width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = torch.topk(self.gate(x).softmax(-1), 2, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        sparse = torch.zeros(x.shape[0], 4, dtype=x.dtype).scatter(1, chosen, weights)
        each = torch.einsum(
            "tef,efd->ted", F.silu(torch.einsum("td,edf->tef", x, self.up)), self.down
        )
        gathered = each.gather(1, chosen[..., None].expand(-1, -1, each.shape[-1]))
        return torch.einsum("te,ted->td", sparse, each), (weights[..., None] * gathered).sum(1)


class Stem(nn.Module):
    """Convolutions before attention, as in Whisper and Conformer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, 8, 3, padding=1)
        self.second = nn.Conv1d(8, 8, 3, stride=2, padding=1, groups=2)
        self.depth = nn.Conv1d(8, 8, 5, padding="same", groups=8, bias=False)
        self.norm = nn.BatchNorm1d(8)
        self.places = nn.Parameter(torch.randn(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.second(F.gelu(self.first(x), approximate="tanh")))
        x = F.glu(torch.cat([self.norm(self.depth(x)), x], 1), 1)
        x = x.transpose(1, 2) + self.places[: x.shape[-1]]
        return F.max_pool1d(x.transpose(1, 2), 2), F.avg_pool1d(x.transpose(1, 2), 3, 1, 1)


class Tokens(nn.Module):
    """Embeddings of tokens and of positions, and the head with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 6), nn.Embedding(9, 6)
        self.register_buffer("ids", torch.arange(9)[None])
        self.norm = nn.LayerNorm(6)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(self.ids[:, : ids.shape[1]])
        return self.norm(x) @ self.tokens.weight.T


class Patches(nn.Module):
    """The stem of a vision transformer: patches, a class token, attention of the library."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 2, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.layer(torch.cat([self.token.expand(len(x), -1, -1), x], 1))[:, 0]


class Shifted(nn.Module):
    """Swin's window with its table of relative positions, which a buffer points into."""

    def __init__(self, side: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn((2 * side - 1) ** 2, heads))
        grid = torch.stack(torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij")).flatten(1)
        apart = (grid[:, :, None] - grid[:, None]).permute(1, 2, 0) + side - 1
        self.register_buffer("place", apart[..., 0] * (2 * side - 1) + apart[..., 1])
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        bias = self.table[self.place.view(-1)].view(n, n, -1).permute(2, 0, 1)
        return ((q @ k.mT + bias[None]).softmax(-1) @ v).transpose(1, 2).reshape(b, n, c)


class Sinks(nn.Module):
    """Attention with a learned sink beside masked scores."""

    def __init__(self) -> None:
        super().__init__()
        self.sinks = nn.Parameter(torch.randn(2))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        t = q.shape[-2]
        scores = q @ k.mT + torch.triu(torch.full((t, t), -INF), 1)
        sinks = self.sinks.reshape(1, -1, 1, 1).expand(q.shape[0], -1, t, -1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1] @ v


class Cached(nn.Module):
    """One step of decoding that writes its key and value into a cache."""

    def forward(self, q: Tensor, cache: tuple[Tensor, Tensor], new: dict[str, Tensor]) -> Any:
        keys, values = (x.clone() for x in cache)
        keys[:, :, 3:4] = new["k"]
        values[:, :, 3:4] = new["v"]
        mask = torch.arange(keys.shape[2]) > 3
        scores = (q @ keys.mT).masked_fill(mask, -INF)
        return scores.softmax(-1) @ values, keys


MODULES: list[tuple[Callable[[], nn.Module], tuple[Any, ...]]] = [
    (Causal, (_tensor(2, 5, 8),)),
    (Rotary, (_tensor(2, 5, 8),)),
    (Gate, (_tensor(5, 8),)),
    (Stem, (_tensor(2, 3, 12),)),
    (Tokens, (_whole(2, 5, below=11),)),
    (Patches, (_tensor(2, 3, 4, 6),)),
    (Shifted, (_tensor(2, 4, 8),)),
    (Sinks, (_tensor(1, 2, 5, 4), _tensor(1, 2, 5, 4), _tensor(1, 2, 5, 3))),
    (Cached, (_tensor(1, 2, 1, 4), (_tensor(1, 2, 6, 4), _tensor(1, 2, 6, 3)),
              {"k": _tensor(1, 2, 1, 4), "v": _tensor(1, 2, 1, 3)})),
    (lambda: nn.MultiheadAttention(8, 2, batch_first=True), (_tensor(2, 5, 8),) * 3),
    (lambda: nn.TransformerDecoderLayer(8, 2, 16, 0.0), (_tensor(5, 2, 8), _tensor(4, 2, 8))),
    (lambda: nn.Sequential(nn.Linear(8, 6), nn.GroupNorm(2, 6), nn.Mish()), (_tensor(5, 8),)),
]  # fmt: skip


SLOW = pytest.mark.slow


def _sample(cases: list[Any], count: int) -> list[Any]:
    """Return cases of which all but the first run among the slow tests."""
    return cases[:count] + [pytest.param(*case, marks=SLOW) for case in cases[count:]]


@pytest.mark.parametrize(("made", "given"), _sample(MODULES, 4))
def test_a_module_is_taken_with_its_weights(
    made: Callable[[], nn.Module], given: tuple[Any, ...]
) -> None:
    module = made().double().eval()
    cascade = check(module, *given)
    weights = {t.name: t.value for t in cascade.input_tensors if t.value is not None}
    for name, weight in module.named_parameters():
        found = next(v for k, v in weights.items() if k.endswith(name.replace(".", "_").upper()))
        np.testing.assert_array_equal(found, weight.detach())


# Functions.

Q, K, V = _tensor(2, 2, 6, 4), _tensor(2, 2, 6, 4), _tensor(2, 2, 6, 3)
SQUARE, ROWS, IDS = _tensor(8, 8), _tensor(5, 8), _whole(3, 4, below=8)
CAPTURED, MASK = _tensor(8, 8), _whole(8, 8, below=2).bool()
SLOPES = torch.tensor([0.5, 0.25], dtype=torch.float64)
LINEAR = nn.Linear(8, 3).double()


def running(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlashAttention as it is taught: a maximum that starts at -inf, tile by tile."""
    most = torch.full((*q.shape[:-1], 1), -INF, dtype=q.dtype)
    total, out = torch.zeros_like(most), torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    for start in range(0, k.shape[-2], 2):
        scores = q @ k[..., start : start + 2, :].mT
        later = torch.maximum(most, scores.amax(-1, keepdim=True))
        weights = torch.exp(scores - later)
        scale = torch.exp(most - later)
        total = total * scale + weights.sum(-1, keepdim=True)
        out = out * scale + weights @ v[..., start : start + 2, :]
        most = later
    return out / total


def running_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    most = torch.full(q.shape[:-1], float("-inf"), dtype=q.dtype)
    total, out = torch.zeros_like(most), torch.zeros_like(v)
    rows = torch.arange(q.shape[-2])[:, None]
    for start in range(0, k.shape[-2], 3):
        scores = q @ k[..., start : start + 3, :].mT * 0.5
        scores = torch.where(rows >= start + torch.arange(3), scores, -INF)
        later = torch.maximum(most, scores.max(-1).values)
        weights = (scores - later[..., None]).exp()
        scale = (most - later).exp()
        total = total * scale + weights.sum(-1)
        out = out * scale[..., None] + weights @ v[..., start : start + 3, :]
        most = later
    return out / total[..., None]


def local(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Local attention: windows of padded keys."""
    keys, values = (F.pad(x, (0, 0, 2, 0)).unfold(2, 3, 1) for x in (k, v))
    scores = torch.einsum("bhqd,bhqdw->bhqw", q, keys)
    places = torch.arange(6)[:, None] + torch.arange(3) - 2
    scores = scores.masked_fill(places < 0, -INF)
    return torch.einsum("bhqw,bhqdw->bhqd", scores.softmax(-1), values)


def blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Longformer's chunks: each block of queries sees its own block and the one before."""
    b, h, n, d = q.shape
    q = q.view(b, h, n // 2, 2, d)
    k, v = (x.view(b, h, n // 2, 2, -1) for x in (k, v))
    k, v = (torch.cat([F.pad(x, (0, 0, 0, 0, 1, 0))[:, :, :-1], x], 3) for x in (k, v))
    return ((q @ k.mT).softmax(-1) @ v).reshape(b, h, n, -1)


def skewed(q: Tensor, e: Tensor) -> Tensor:
    """Music Transformer's relative logits: padding, reshaping, slicing."""
    return F.pad(q @ e.T, (1, 0)).reshape(2, 2, 7, 6)[:, :, 1:].tril().softmax(-1)


def rotated(q: Tensor, k: Tensor, turned: Tensor) -> Tensor:
    q, k = (torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) for x in (q, k))
    q, k = (torch.view_as_real(x * turned).flatten(-2) for x in (q, k))
    return q @ k.mT


def half_rotated(x: Tensor, places: Tensor) -> Tensor:
    angle = places[:, None] * (1 / 100 ** (torch.arange(0, 4, 2).double() / 4))
    cos, sin = (f(torch.cat([angle, angle], -1)) for f in (torch.cos, torch.sin))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def alibi(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    apart = torch.arange(6)[None] - torch.arange(6)[:, None]
    scores = q @ k.mT - SLOPES.view(-1, 1, 1) * apart.abs()
    return scores.masked_fill(apart > 0, -INF).softmax(-1) @ v


def sparse_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    best = scores.topk(3, dim=-1)
    weights = best.values.softmax(-1)
    rows = best.indices[..., None].expand(-1, -1, -1, -1, 3)
    chosen = v[:, :, None].expand(-1, -1, 6, -1, -1).gather(3, rows)
    return (weights[..., None] * chosen).sum(3)


def masked_to_best(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    least = scores.topk(3, -1).values[..., -1:]
    return scores.masked_fill(scores < least, -INF).softmax(-1) @ v


def scattered_mask(x: Tensor) -> Tensor:
    keep = torch.full_like(x, -INF).scatter(-1, x.topk(2, -1).indices, 0.0)
    return (x + keep).softmax(-1)


def merged(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Ring attention: outputs of blocks, merged by their log-sum-exp."""
    out, lse = torch.zeros_like(v), torch.full(q.shape[:-1], -INF, dtype=q.dtype)
    for start in (0, 3):
        scores = q @ k[:, :, start : start + 3].mT
        later = torch.logaddexp(lse, scores.logsumexp(-1))
        part = torch.exp(scores - later[..., None]) @ v[:, :, start : start + 3]
        out, lse = torch.exp(lse - later)[..., None] * out + part, later
    return out, lse


def tiled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = torch.empty(2, 2, 6, 3, dtype=q.dtype)
    for start in range(0, 6, 2):
        out[:, :, start : start + 2] = (q[:, :, start : start + 2] @ k.mT).softmax(-1) @ v
    return out


def buckets(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """T5's bias: the logarithm of a distance, rounded down, points into a table."""
    apart = (torch.arange(6)[:, None] - torch.arange(6)).abs()
    far = 2 + (torch.log(apart.double() / 2) / math.log(4) * 2).long()
    bucket = torch.where(apart < 2, apart, far.clamp(max=3))
    return (q @ k.mT + table[bucket].permute(2, 0, 1)).softmax(-1) @ v


def experts_choose(x: Tensor, gate: Tensor, weights: Tensor) -> Tensor:
    chosen, rows = (x @ gate).softmax(-1).T.topk(2, -1)
    each = torch.einsum("ecd,edf->ecf", x[rows], weights) * chosen[..., None]
    return torch.zeros_like(x).index_add(0, rows.reshape(-1), each.reshape(-1, x.shape[-1]))


def quantised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scale = k.abs().amax((-2, -1), keepdim=True) / 127
    return (q @ ((k / scale).round().clamp(-128, 127) * scale).mT).softmax(-1) @ v


def assigned(x: Tensor) -> Tensor:
    y = torch.zeros(8, 8, dtype=x.dtype)
    view = y[1:3]
    y[:4] = x[4:]
    y[5, 2:] = 1
    view += 1
    y[:, 0] *= 2
    return y


def spectrum(x: Tensor) -> tuple[Tensor, Tensor]:
    """A diagonal state space with complex states, as S4D writes its kernel."""
    rates = torch.complex(-torch.arange(8, dtype=x.dtype) / 8, torch.arange(8, dtype=x.dtype))
    powers = torch.exp(rates[:, None] * torch.arange(6))
    state = torch.einsum("pn,nt->pt", x.to(torch.complex128), powers)
    return state.real, (state * state.conj()).abs()


FUNCTIONS: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
    (running, (Q, K, V)),
    (running_causal, (Q, K, V)),
    (local, (Q, K, V)),
    (blocks, (Q, K, V)),
    (skewed, (Q, _tensor(6, 4))),
    (rotated, (Q, K, torch.polar(torch.ones(6, 2), _tensor(6, 2).float()).to(torch.complex128))),
    (half_rotated, (Q, torch.arange(6))),
    (alibi, (Q, K, V)),
    (sparse_keys, (Q, K, V)),
    (masked_to_best, (Q, K, V)),
    (scattered_mask, (SQUARE,)),
    (assigned, (SQUARE,)),
    (merged, (Q, K, V)),
    (tiled, (Q, K, V)),
    (buckets, (Q, K, V, _tensor(4, 2))),
    (experts_choose, (ROWS, _tensor(8, 4), _tensor(4, 8, 8))),
    (quantised, (Q, K, V)),
    (lambda x: x @ CAPTURED + LINEAR(x).sum(), (SQUARE,)),
    (lambda x: x.masked_fill(MASK, -INF).softmax(-1) @ CAPTURED, (SQUARE,)),
    (functools.partial(F.linear, weight=LINEAR.weight), (SQUARE,)),
    (lambda x, ids: (F.embedding(ids, x), x[ids], x[:, ids[0]], x[ids[:, :1], ids]), (SQUARE, IDS)),
]  # fmt: skip
PARTS: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
    (function, (SQUARE,))
    for function in [
        lambda x: (F.pad(x, (1, 2, 0, 1)), F.pad(x, (2, 0), value=3.0), F.pad(x, (-1, 2))),
        lambda x: F.pad(x, (2, 1), value=-INF).softmax(-1),
        lambda x: F.pad(x.tril(), (1, 1)) @ torch.ones(10, 2, dtype=x.dtype),
        lambda x: F.pad(x.sum(0, keepdim=True), (0, 1, 1, 1)),
        lambda x: (F.pad(x[None], (2, 3), mode="reflect"), F.pad(x[None], (1, 2), mode="replicate"),
                   F.pad(x[None], (3, 0), mode="circular")),
        lambda x: (x.sort(-1).values, x.sort(0, descending=True)[0], x.argsort(-1), x.argmax(0)),
        lambda x: (x.topk(3, largest=False).values, x.min(1), x.max(0).indices, x.argmin(1, True)),
        lambda x: (x.unfold(0, 3, 2).sum(-1), x.unfold(1, 2, 2), F.one_hot(x.argmax(-1), 8) * x),
        lambda x: (F.max_pool2d(x[None, None], 2), F.avg_pool2d(x[None], 3, 2, 1),
                   F.max_pool1d(x, 3, 1, 1)),
        lambda x: (F.conv1d(x, x[:, :, None].expand(8, 8, 3), padding=1, dilation=1),
                   F.conv2d(x[None, None], x[None, None, :3, :2], stride=2, padding=(1, 0))),
        lambda x: (F.conv1d(x[None], x[:, None, :3], groups=8), F.conv1d(
            x[None], x[:, :4, None], groups=2)),
        lambda x: (x.index_select(0, torch.tensor([3, 1, 1])), x[torch.tensor([0, 5])], x[[1, 2]]),
        lambda x: (x.scatter_add(1, x.argsort(-1) % 3, x), x.index_add(0, torch.arange(2), x[:2])),
        lambda x: x.index_copy(0, torch.tensor([2, 5]), x[:2]),
        lambda x: (x.abs().log1p(), x.expm1(), x.pow(5), x.abs() ** 1.5, x.ceil()),
        lambda x: (F.hardswish(x), F.mish(x), F.relu6(x), F.softsign(x), F.hardtanh(x), F.selu(x)),
        lambda x: (torch.logaddexp(x, x.T), torch.lerp(x, x.T, 0.3), torch.addcmul(x, x, x.T)),
        lambda x: (F.cosine_similarity(x, x.T, -1), torch.cdist(x, x.T)),
        lambda x: (*torch.var_mean(x, 0), x.prod(1)),
        lambda x: ((x > 2).any(1), (x < 2).all(0), F.batch_norm(x, x[0], x[1].abs()), x.tile(2)),
        lambda x: (F.group_norm(x[None], 4, x[0], x[1]), F.instance_norm(x[None]), F.glu(x)),
        lambda x: (torch.cat([x.tril(), x], 1), torch.stack([x, x.tril()]), x.trace()),
        spectrum,
        lambda x: (x.as_strided((3, 2, 8), (16, 8, 1)), x.tensor_split(3, -1)[1], x.trunc()),
        lambda x: ((x * 2).round() / 2, (x + 0.5).floor().round(), x.long(), x.unfold(1, 3, 1)),
    ]
]  # fmt: skip


@pytest.mark.parametrize(("function", "given"), _sample(FUNCTIONS, 3))
def test_a_function_is_taken_with_what_it_captures(
    function: Callable[..., Any], given: tuple[Any, ...]
) -> None:
    check(function, *given)


@pytest.mark.slow
@pytest.mark.parametrize(("function", "given"), PARTS)
def test_operations_one_by_one(function: Callable[..., Any], given: tuple[Any, ...]) -> None:
    check(function, *given)


def test_a_mask_that_is_a_buffer_is_a_filter_and_the_gradient_keeps_the_weights() -> None:
    module, x = Causal().double(), _tensor(1, 6, 8).requires_grad_()
    cascade = from_torch(module, x)
    assert not any(name == "BIAS" for name in cascade.inputs) and "t<=n" in render(cascade)
    out = module(x)
    out.sum().backward()
    seed = {f"d{cascade.outputs[0]}": np.ones(out.shape), "X": x.detach().numpy()}
    found = run(gradient(cascade, ("X",)), seed)["dX"]
    np.testing.assert_allclose(found, x.grad, rtol=1e-9, atol=1e-12)


def test_a_given_weight_takes_the_place_of_the_module_s_own() -> None:
    module, x = nn.Linear(3, 2).double(), _tensor(4, 3)
    cascade = from_torch(module, x)
    assert cascade.inputs == ("INPUT", "WEIGHT", "BIAS")
    found = run(cascade, {"INPUT": x.numpy(), "WEIGHT": np.zeros((2, 3))})
    np.testing.assert_array_equal(found[cascade.outputs[0]], np.tile(module.bias.detach(), (4, 1)))
