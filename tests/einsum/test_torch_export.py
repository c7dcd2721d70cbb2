"""PyTorch functions as cascades that compute the same, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import einfuse as ef
from einfuse.einsum import Cascade, EinfuseError, parse, render, run
from einfuse.einsum.exchange.torch.export import from_torch
from einfuse.einsum.gradient.gradient import gradient
from einfuse.einsum.language.printer import render_einsum


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return (weights / weights.sum(-1, keepdim=True)) @ v


def einsums(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhqk,bhkd->bhqd", torch.softmax(scores, -1), v)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    return torch.softmax((q @ k.mT).masked_fill(~mask, float("-inf")), -1) @ v


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
    return torch.softmax(q @ k.transpose(-1, -2), -1) @ v


def grouped_by_expand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, h, m, e = k.shape
    k = k[:, :, None].expand(b, h, 2, m, e).reshape(b, 2 * h, m, e)
    v = v.unsqueeze(2).expand(-1, -1, 2, -1, -1).flatten(1, 2)
    return torch.softmax(q @ k.transpose(-1, -2), -1) @ v


def alibi(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-1, -2)
    slopes = 2.0 ** (-8.0 * torch.arange(1, q.shape[1] + 1) / q.shape[1])
    distance = torch.arange(k.shape[-2]) - torch.arange(q.shape[-2])[:, None]
    scores = scores + slopes[:, None, None] * distance
    return torch.where(distance <= 0, scores, float("-inf")).softmax(-1) @ v


def soft_capped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-1, -2) * 0.3
    return (20 * torch.tanh(scores / 20)).softmax(-1) @ v


def sigmoid(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.sigmoid(q @ k.transpose(-1, -2) - math.log(k.shape[-2])) @ v


def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = torch.nn.functional.elu(q) + 1, torch.nn.functional.elu(k) + 1
    state, total = torch.einsum("bhmd,bhmf->bhdf", k, v), k.sum(2)
    numerator = torch.einsum("bhpd,bhdf->bhpf", q, state)
    return numerator / torch.einsum("bhpd,bhd->bhp", q, total).unsqueeze(-1)


def windowed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = torch.arange(q.shape[-2]).unsqueeze(1), torch.arange(k.shape[-2]).unsqueeze(0)
    seen = (j <= i) & (i - j < 2)
    scores = (q @ k.transpose(-1, -2)).masked_fill(seen.logical_not(), -torch.inf)
    return torch.softmax(scores, dim=-1) @ v


def _angles(x: Tensor) -> Tensor:
    place = torch.arange(x.shape[-2], dtype=x.dtype)
    powers = torch.arange(0, x.shape[-1], 2, dtype=x.dtype) / x.shape[-1]
    return place[:, None] * 10000.0 ** (-powers)


def _interleaved(x: Tensor) -> Tensor:
    cos, sin = _angles(x).cos(), _angles(x).sin()
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def _halved(x: Tensor) -> Tensor:
    angles = torch.cat([_angles(x), _angles(x)], -1)
    a, b = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-b, a], -1) * angles.sin()


def rotary(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(_interleaved(q) @ _interleaved(k).transpose(-1, -2), -1) @ v


def rotary_by_halves(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(_halved(q) @ _halved(k).transpose(-1, -2), -1) @ v


def added_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.full((q.shape[-2], k.shape[-2]), float("-inf")).triu(1)
    return torch.softmax(q @ k.mT + mask, -1) @ v


def causal_linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.tril(q @ k.transpose(-1, -2)) @ v


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def given_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def layer(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor) -> Tensor:
    b, n, d = x.shape
    q, k, v = ((x @ w).view(b, n, 2, d // 2).transpose(1, 2) for w in (wq, wk, wv))
    heads = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
    return heads.transpose(1, 2).reshape(b, n, d)


def normalised(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5)
    return scaled.cumsum(-2), torch.logsumexp(y, -1).clamp(0, 1)


def _tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _qkv(heads: int = 2, m: int = 5, p: int = 4) -> list[Tensor]:
    return _tensors((2, heads, p, 6), (2, 2, m, 6), (2, 2, m, 3))


CASES: list[tuple[Callable[..., Any], list[Tensor]]] = [
    (explicit, _qkv()),
    (einsums, _qkv()),
    (causal, _qkv()),
    (grouped, _qkv(heads=4)),
    (grouped_by_expand, _qkv(heads=4)),
    (alibi, _qkv()),
    (soft_capped, _qkv()),
    (sigmoid, _qkv()),
    (linear, _qkv()),
    (windowed, _qkv(p=5)),
    (rotary, _qkv(p=5)),
    (rotary_by_halves, _qkv(p=1)),
    (added_mask, _qkv()),
    (causal_linear, _qkv()),
    (fused, _qkv()),
    (given_mask, [*_qkv(), torch.tensor([[1, 0, 1, 0, 1]] * 4) == 1]),
    (layer, _tensors((2, 5, 6), (6, 6), (6, 6), (6, 6))),
    (normalised, _tensors((3, 4, 5), (2, 3))),
    (lambda x: (x.tril() + 1).exp().amax(-1) + torch.cos(x.triu()).sum(-1), _tensors((4, 4))),
    (lambda x: torch.softmax(torch.softmax(x.tril(), -1).triu(1), -1), _tensors((4, 4))),
    (
        lambda x: torch.maximum(x.tril(), x.triu()).max(0).values - x.tril().cumsum(0),
        _tensors((4, 4)),
    ),
    (lambda x: torch.where(x.tril() > 0, x.tril(), x - 1) / (1 + x.tril().abs()), _tensors((4, 4))),
    (
        lambda x: x.tril(-1).sum(-1) + 1 - (x.tril(-1) @ x).sum() + x.tril().sum(0)[:, None],
        _tensors((4, 4)),
    ),
    (
        lambda x: torch.softmax(x.masked_fill(torch.triu(torch.ones(4, 4), 1).bool(), -1e9), -1),
        _tensors((4, 4)),
    ),
    (lambda x: torch.cat([x[1:], x[:1]], 0) - x.flip(0), _tensors((4, 3))),
    (lambda x, y: (x.amax(0, keepdim=True), (x * y).sum()), _tensors((3, 4), (1, 4))),
    (lambda x: x[1:, :2].t() + x[0, 0], _tensors((3, 4))),
    (lambda x: (x.repeat(2, 3), x.view(2, 6), x), _tensors((3, 4))),
]


@pytest.mark.parametrize(("function", "tensors"), CASES, ids=lambda v: getattr(v, "__name__", ""))
def test_the_cascade_computes_what_the_function_does(
    function: Callable[..., Any], tensors: list[Tensor]
) -> None:
    cascade = from_torch(function, *tensors)
    assert parse(render(cascade)) == cascade
    found = run(cascade, _named(cascade, tensors))
    expected = function(*tensors)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for name, value in zip(cascade.outputs, expected, strict=True):
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-12, atol=1e-13)


def _named(cascade: Cascade, tensors: list[Tensor]) -> dict[str, Any]:
    return {n: t.double().numpy() for n, t in zip(cascade.inputs, tensors, strict=True)}


def test_inputs_are_in_the_order_of_the_arguments() -> None:
    def swapped(values: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
        return queries @ keys.mT @ values

    q, k, v = _qkv()
    assert ef.from_torch(swapped, v, k, q).inputs == ("VALUES", "KEYS", "QUERIES")


def test_textbook_attention_is_the_library_cascade_in_shape_and_passes() -> None:
    cascade = from_torch(
        lambda q, k, v: torch.softmax(q @ k.T, -1) @ v, *_tensors((4, 3), (5, 3), (5, 2))
    )
    assert [render_einsum(e) for e in cascade.einsums] == [
        "MATMUL[p,m] = Q[p,e] * K[m,e]",
        "GM[p] = MATMUL[p,m] :: max(m)",
        "SN[p,m] = exp(MATMUL[p,m] - GM[p])",
        "SD[p] = SN[p,m] :: +(m)",
        "A[p,m] = SN[p,m] / SD[p]",
        "MATMUL2[p,d] = A[p,m] * V[m,d]",
    ]
    assert ef.passes(cascade, "M").passes == 3


def test_a_mask_by_position_is_a_filter_and_an_empty_row_is_zero() -> None:
    def strict(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.ones(q.shape[0], k.shape[0], dtype=torch.bool).triu()
        return torch.softmax((q @ k.T).masked_fill(mask, -torch.inf), -1) @ v

    q, k, v = _tensors((4, 3), (4, 3), (4, 2))
    cascade = from_torch(strict, q, k, v)
    assert "MATMUL[p: m<p,m]" in render(cascade)
    found = run(cascade, _named(cascade, [q, k, v]))[cascade.outputs[0]]
    expected = strict(q, k, v).numpy()
    assert np.isnan(expected[0]).all() and (found[0] == 0).all()
    np.testing.assert_allclose(found[1:], expected[1:], rtol=1e-12)


def test_the_gradient_of_an_imported_function_is_autograds() -> None:
    tensors = [t.requires_grad_() for t in _tensors((4, 3), (5, 3), (5, 2))]
    function = lambda q, k, v: torch.softmax(torch.tanh(q @ k.T), -1) @ v  # noqa: E731
    function(*tensors).sum().backward()
    cascade = from_torch(function, *tensors)
    derived = gradient(cascade, cascade.inputs)
    inputs = {n: t.detach().numpy() for n, t in zip(cascade.inputs, tensors, strict=True)}
    seed = f"d{cascade.outputs[0]}"
    given = {n: a for n, a in {**inputs, seed: np.ones((4, 2))}.items() if n in derived.inputs}
    found = run(derived, given)
    for name, tensor in zip(derived.outputs, tensors, strict=True):
        np.testing.assert_allclose(found[name], tensor.grad.numpy(), rtol=1e-8, atol=1e-10)


def test_numbers_and_flags_are_taken_as_they_are() -> None:
    def scaled(x: Tensor, factor: float, positive: bool) -> Tensor:
        return torch.relu(x * factor) if positive else x

    (x,) = _tensors((3,))
    cascade = from_torch(scaled, x, 2.5, True)
    assert cascade.inputs == ("X",)
    np.testing.assert_allclose(
        run(cascade, {"X": x.numpy()})[cascade.outputs[0]], np.maximum(2.5 * x.numpy(), 0)
    )


def branches(x: Tensor) -> Tensor:
    if x.sum() > 0:
        return x
    return -x


def inverts(x: Tensor) -> Tensor:
    y = x + 1
    return torch.linalg.inv(y)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (branches, r"branches, line \d+ \(if x.sum\(\) > 0:\): .*control flow that depends"),
        (inverts, r"inverts, line \d+ \(return torch.linalg.inv\(y\)\): .*operation linalg_inv"),
        (lambda x: x.log_softmax(-1).masked_fill(x > 0, -math.inf).tanh(), "tanh of scores"),
        (lambda x: torch.nn.functional.dropout(x), "dropout, which is random"),
        (lambda x: x.nonzero(), "cannot express"),
        (lambda x: x + torch.full((3, 3), -math.inf).triu(1), "an output of scores that are"),
        (lambda x: (x + torch.full((3, 3), -math.inf).triu(1)) @ x, "matmul of scores that are"),
        (lambda x: x * x.bool(), "a conversion to truth values: write x != 0"),
        (lambda x: torch.view_as_complex(x[:, :2]), "an output that is complex: .*view_as_real"),
        (lambda x: x[x > 0], "by truth values: .*where|a size that depends on data"),
    ],
)  # fmt: skip
def test_what_a_cascade_cannot_express_is_refused_by_name(
    function: Callable[..., Any], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EinfuseError, match=message):
        from_torch(function, *_tensors((3, 3)))
    assert capfd.readouterr() == ("", "")


def test_examples_that_do_not_fit_are_refused() -> None:
    with pytest.raises(EinfuseError, match="do not fit the function: missing"):
        from_torch(explicit, *_tensors((3, 3)))
