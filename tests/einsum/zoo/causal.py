"""Causal forms: a query sees the keys up to its own place, and no others."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from .case import Case, Shape, Tensors, attend
from .linear import performer_constants, weighted

Row = Callable[[int, slice], torch.Tensor]


def rows(n: Shape, size: int, row: Row) -> torch.Tensor:
    """Return what ``row`` makes of every query and the keys that it sees; 0 where it sees none."""
    columns = []
    for p in range(n["P"]):
        seen = p + n["M"] - n["P"] + 1
        columns.append(row(p, slice(seen)) if seen > 0 else torch.zeros(size))
    kept = next(c for c in columns if c.any())
    return torch.stack([c.to(kept.dtype) for c in columns], 1)


def one(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return attend(q[:, None], k, v)[:, 0]


def shared_weights(x: Tensors, n: Shape) -> Tensors:
    layers = [
        rows(n, n["F"], lambda p, s, v=v: one(x["Q"][:, p], x["K"][:, s], v[:, s])) for v in x["V"]
    ]
    return {"AV": torch.stack(layers)}


def head_mixture(x: Tensors, n: Shape) -> Tensors:
    def row(p: int, seen: slice) -> torch.Tensor:
        gates = x["G"][:, p]
        others = torch.sort(gates[n["S"] :], descending=True, stable=True).indices[: n["T"]]
        out = 0
        for h in [*range(n["S"]), *(others + n["S"]).tolist()]:
            head = one(x["Q"][h][:, p], x["K"][h][:, seen], x["V"][h][:, seen])
            out = out + gates[h] * (x["WO"][h].T @ head)
        return torch.as_tensor(out)

    return {"Y": rows(n, n["D"], row)}


def expert_heads(x: Tensors, n: Shape) -> Tensors:
    def row(p: int, seen: slice) -> torch.Tensor:
        heads = [one(q[:, p], x["K"][:, seen], x["V"][:, seen]) for q in x["Q"]]
        return torch.einsum("x,xf,xfd->d", x["G"][:, p], torch.stack(heads), x["WO"])

    return {"Y": rows(n, n["D"], row)}


def expert_heads_apart(x: Tensors, n: Shape) -> Tensors:
    def row(p: int, seen: slice) -> torch.Tensor:
        experts = zip(x["Q"], x["K"], x["V"], strict=True)
        heads = [one(q[:, p], k[:, seen], v[:, seen]) for q, k, v in experts]
        return torch.einsum("x,xf,xfd->d", x["G"][:, p], torch.stack(heads), x["WO"])

    return {"Y": rows(n, n["D"], row)}


def latent(x: Tensors, n: Shape) -> Tensors:
    def row(h: int) -> Row:
        query, keys = torch.cat([x["Q"][h], x["QR"][h]]), torch.cat([x["UK"][h] @ x["C"], x["KR"]])
        values = x["UV"][h] @ x["C"]
        return lambda p, seen: one(query[:, p], keys[:, seen], values[:, seen])

    return {"AV": torch.stack([rows(n, n["F"], row(h)) for h in range(n["H"])])}


def absorbed(x: Tensors, n: Shape) -> Tensors:
    def row(h: int) -> Row:
        query = torch.cat([x["UK"][h].T @ x["Q"][h], x["QR"][h]])
        cache = torch.cat([x["C"], x["KR"]])
        return lambda p, s: x["UV"][h] @ one(query[:, p], cache[:, s], x["C"][:, s])

    return {"AV": torch.stack([rows(n, n["F"], row(h)) for h in range(n["H"])])}


def ring(x: Tensors, n: Shape) -> Tensors:
    return {"AV": rows(n, n["F"], lambda p, s: one(x["Q"][:, p], x["K"][:, s], x["V"][:, s]))}


def cosformer(x: Tensors, n: Shape) -> Tensors:
    apart = torch.arange(n["N"])[:, None] - torch.arange(n["N"])
    cosines = torch.cos(math.pi / 2 * apart.double() / n["N"]).to(x["Q"].dtype)
    weights = (torch.relu(x["Q"]).T @ torch.relu(x["K"])) * cosines
    return {"AV": weighted(weights.tril(), x["V"], 1e-6)}


def cosformer_by_states(x: Tensors, n: Shape) -> Tensors:
    q, k = torch.relu(x["Q"]), torch.relu(x["K"])
    angles = math.pi / 2 * torch.arange(1, n["N"] + 1) / n["N"]
    waves = torch.stack([torch.cos(angles), torch.sin(angles)]).to(q.dtype)
    q, k = ((waves[:, None] * a).flatten(0, 1) for a in (q, k))
    states = torch.einsum("en,fn->efn", k, x["V"]).cumsum(-1)
    total = (q * k.cumsum(-1)).sum(0)
    return {"AV": torch.einsum("en,efn->fn", q, states) / total.clamp(min=1e-6)}


def performer(x: Tensors, n: Shape) -> Tensors:
    def features(data: torch.Tensor, stabiliser: torch.Tensor) -> torch.Tensor:
        scores = x["W"].T @ data - (data**2).sum(0) / 2 - stabiliser
        return (torch.exp(scores) + x["EPS"]) / math.sqrt(n["R"])

    queries = features(x["Q"], (x["W"].T @ x["Q"]).amax(0))
    keys = features(x["K"], (x["W"].T @ x["K"]).max())
    return {"AV": weighted((queries.T @ keys).tril(), x["V"], float(x["FLOOR"]))}


DENSE = (
    {"E": 4, "F": 3, "P": 6, "M": 9},
    {"E": 4, "F": 3, "P": 1, "M": 7},
    {"E": 4, "F": 3, "P": 9, "M": 5},  # rows before the first key
)
TOKENS = ({"E": 4, "F": 3, "N": 8}, {"E": 4, "F": 3, "N": 1}, {"E": 4, "F": 3, "N": 11})
RINGS = ({"P": 6, "M": 9, "W": 3}, {"P": 1, "M": 7, "W": 1}, {"P": 12, "M": 8, "W": 4})
EXPERTS = tuple(d | {"D": 5, "X": 3} for d in DENSE)
LATENT = tuple(d | {"H": 2, "L": 5, "R": 2} for d in DENSE)

CASES = (
    Case("attention/shared-weights-causal", shared_weights, tuple(d | {"L": 3} for d in DENSE)),
    Case(
        "attention/head-mixture-causal",
        head_mixture,
        tuple(d | {"H": 4, "S": 1, "T": 2, "D": 5} for d in DENSE),
    ),
    Case("attention/expert-heads-causal", expert_heads, EXPERTS),
    Case("attention/expert-heads-apart-causal", expert_heads_apart, EXPERTS),
    Case("attention/latent-causal", latent, LATENT, None, ("Q", "C"), yardstick=absorbed),
    Case("attention/latent-expanded-causal", latent, LATENT, None, ("Q", "C")),
    Case("attention/ring-causal", ring, tuple({"E": 4, "F": 3} | r for r in RINGS)),
    Case("attention/cosformer-causal", cosformer, TOKENS, yardstick=cosformer_by_states),
    Case(
        "attention/performer-causal",
        performer,
        tuple(d | {"R": 5} for d in TOKENS),
        performer_constants,
        large=3,
    ),
)
