"""Products of matrices in PyTorch, and attention as one operation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .masks import choose, triangle
from .pointwise import arithmetic
from .site import Site
from .sums import softmax
from .values import UnsupportedError, Value, number, permuted, with_last_swapped
from .views import repeated


def _matmul(site: Site, a: Value, b: Value) -> Value:
    rows = "" if len(a.shape) == 1 else "y"
    columns = "" if len(b.shape) == 1 else "x"
    batch = "abcdefgh"[: max(len(a.shape), len(b.shape), 2) - 2]
    left = batch[len(batch) - max(len(a.shape) - 2, 0) :] + rows + "z"
    right = batch[len(batch) - max(len(b.shape) - 2, 0) :] + "z" + columns
    return site.contract([(a, left), (b, right)], batch + rows + columns)


def _einsum(site: Site, equation: str, operands: Sequence[Value], *_: Any, **__: Any) -> Value:
    text = equation.replace(" ", "")
    left, arrow, output = text.partition("->")
    terms = left.split(",")
    wide = max(
        (len(v.shape) - len(t.replace("...", "")) for v, t in zip(operands, terms, strict=True)
         if "..." in t),
        default=0,
    )  # fmt: skip
    spare = "".join(c for c in "0123456789"[:wide])
    full = [
        t.replace(
            "...", spare[wide - (len(v.shape) - len(t.replace("...", ""))) :] if "..." in t else ""
        )
        for v, t in zip(operands, terms, strict=True)
    ]
    if not arrow:
        letters = "".join(full)
        output = "..." + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    output = output.replace("...", spare)
    pairs = []
    for value, term in zip(operands, full, strict=True):
        for letter in dict.fromkeys(term):
            while term.count(letter) > 1:  # a diagonal
                first, second = term.index(letter), term.rindex(letter)
                value = _diagonal(value, first, second)
                term = term[:second] + term[second + 1 :]
        pairs.append((value, term))
    return site.contract(pairs, output)


def _diagonal(value: Value, first: int, second: int) -> Value:
    return replace(
        value,
        shape=value.shape[:second] + value.shape[second + 1 :],
        hints=value.hints[:second] + value.hints[second + 1 :],
        at=lambda i: value.at((*i[:second], i[first], *i[second:])),
    )


def _added_product(
    site: Site, bias: Value, a: Value, b: Value, *, beta: float = 1, alpha: float = 1
) -> Value:
    """Return ``beta * bias + alpha * (a @ b)``."""
    product = arithmetic("*")(site, _matmul(site, a, b), alpha) if alpha != 1 else None
    product = product or _matmul(site, a, b)
    if beta == 0:
        return product
    scaled = bias if beta == 1 else arithmetic("*")(site, bias, beta)
    return arithmetic("+")(site, product, scaled)


def _outer(site: Site, a: Value, b: Value) -> Value:
    return site.contract([(a, "y"), (b, "x")], "yx")


def _linear(site: Site, x: Value, weight: Value, bias: Value | None = None) -> Value:
    product = _matmul(site, x, permuted(weight, [1, 0]))
    return product if bias is None else arithmetic("+")(site, product, bias)


def _attention(
    site: Site,
    q: Value,
    k: Value,
    v: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    if dropout_p:
        raise UnsupportedError("dropout")
    if enable_gqa:
        group = q.shape[-3] // k.shape[-3]
        k, v = (repeated(site, x, group, len(x.shape) - 3) for x in (k, v))
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    scores = _matmul(replace(site, name="QK"), q, with_last_swapped(k))
    scores = arithmetic("*")(replace(site, name="S"), scores, factor)
    if is_causal:
        ones = number(True, (q.shape[-2], k.shape[-2]))
        scores = choose(site, triangle("le")(site, ones), scores, -math.inf)
    if attn_mask is not None:
        if attn_mask.flag:
            scores = choose(site, attn_mask, scores, -math.inf)
        else:
            scores = arithmetic("+")(replace(site, name="S"), scores, attn_mask)
    return _matmul(replace(site, name="AV"), softmax(site, scores, -1), v)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "matmul": _matmul,
    "bmm": _matmul,
    "mm": _matmul,
    "mv": _matmul,
    "dot": _matmul,
    "linear": _linear,
    "addmm": _added_product,
    "baddbmm": _added_product,
    "outer": _outer,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
}
