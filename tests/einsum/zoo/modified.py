"""Attention with modified scores, operands or weights, and on several devices."""

from __future__ import annotations

import numpy as np
import torch

from .case import Arrays, Case, Shape, Tensors, attend, positions, softmax
from .dense import DENSE, dense

SELF = ({"E": 4, "F": 3, "P": 8}, {"E": 4, "F": 3, "P": 1})
SELF_TILES = ({"E": 4, "F": 3, "P": 8, "M0": 4}, {"E": 4, "F": 3, "P": 1, "M0": 1})


def causal(x: Tensors, n: Shape) -> Tensors:
    p, m = positions(n["P"], n["M"])
    return {"AV": attend(x["Q"], x["K"], x["V"], m <= p)}


def identity_similarity(x: Tensors, n: Shape) -> Tensors:
    scores = x["Q"].T @ x["K"]
    return {"AV": x["V"] @ (scores / scores.sum(-1, keepdim=True).abs().clamp(min=1)).T}


def elu_similarity(x: Tensors, n: Shape) -> Tensors:
    scores = x["Q"].T @ x["K"]
    weights = torch.where(scores > 0, scores + 1, torch.exp(scores))
    return {"AV": x["V"] @ (weights / (weights.sum(-1, keepdim=True) + 1e-8)).T}


def key_bias(x: Tensors, n: Shape) -> Tensors:
    keys = torch.cat([x["K"], x["KS"][:, None]], 1)
    values = torch.cat([x["V"], torch.zeros_like(x["V"][:, :1])], 1)
    return {"AV": attend(x["Q"], keys, values)}


def ring(x: Tensors, n: Shape) -> Tensors:
    return {"AV": dense(x, n)["AV"].reshape(n["F"], n["P"])}


def offloaded(x: Tensors, n: Shape) -> Tensors:
    keys = torch.cat([x["K"], x["KN"][:, None]], 1)
    return {"AV": attend(x["Q"], keys, torch.cat([x["V"], x["VN"][:, None]], 1))}


def positional(x: Tensors, n: Shape) -> Tensors:
    weights = softmax(x["PQ"].T @ x["PK"])
    return {"AV": torch.einsum("pm,bfm->bfp", weights, x["V"])}


def shared_weights(x: Tensors, n: Shape) -> Tensors:
    return {"AV": torch.stack([attend(x["Q"], x["K"], values) for values in x["V"]])}


def calibrated(x: Tensors, n: Shape) -> Tensors:
    size = n["P"]
    weights = softmax(x["Q"].T @ x["K"], torch.ones(size, size).tril().bool())
    means = weights.sum(0) / (size - torch.arange(size))
    sinks = [m for m in range(size) if means[m] > x["THR"]][1:]  # the first one is exempt
    rest = [m for m in range(size) if m not in sinks]
    moved = (1 - x["BETA"]) * weights[:, sinks].sum(-1)
    changed = weights.clone()
    changed[:, sinks] = x["BETA"] * weights[:, sinks]
    total = weights[:, rest].sum(-1)
    changed[:, rest] = weights[:, rest] * (1 + moved / total)[:, None]
    return {"AV": x["V"] @ changed.T}


def thresholds(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    return x | {"THR": np.array(0.25), "BETA": np.array(0.4)}


def convolved(x: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """Return the causal depthwise convolution of [e,n] with taps [e,t]."""
    padded = torch.nn.functional.pad(x, (taps.shape[1] - 1, 0))
    return torch.nn.functional.conv1d(padded[None], taps.flip(1)[:, None], groups=len(x))[0]


def relative(x: Tensors, n: Shape) -> Tensors:
    q, k, v = (convolved(x[a + "I"], x["W" + a]) for a in "QKV")
    apart = torch.arange(n["P"])[:, None] - torch.arange(n["M"])
    behind, ahead = x["RP"][:, apart.clamp(min=0)], x["RN"][:, (-apart).clamp(min=0)]
    encodings = torch.where(apart >= 0, behind, ahead)
    bias = torch.einsum("ep,epm->pm", q + x["W"][:, None], encodings)
    return {"AV": attend(q + x["U"][:, None], k, v, bias=bias)}


def complex_scores(x: Tensors, n: Shape) -> Tensors:
    wide = {name: value.double() for name, value in x.items()}
    phase = wide["DEL"][:, None, None] * (wide["TQ"][:, None, :] - wide["TK"][:, :, None])
    phase = phase + wide["OFF"][:, None, None] + wide["TD"]
    amplitude = wide["RQ"][:, None, :] * wide["RK"][:, :, None]
    scores = torch.polar(torch.ones_like(phase), phase).mul(amplitude).sum(0).real
    return {"AV": wide["V"] @ softmax(scores.T).T}


def complex_in_reals(x: Tensors, n: Shape) -> Tensors:
    phase = x["DEL"][:, None, None] * (x["TQ"][:, None, :] - x["TK"][:, :, None])
    phase = phase + x["OFF"][:, None, None] + x["TD"]
    scores = (x["RQ"][:, None, :] * x["RK"][:, :, None] * torch.cos(phase)).sum(0)
    weights = torch.exp(scores - scores.amax(0))
    return {"AV": x["V"] @ weights / weights.sum(0)}


def geometric(x: Tensors, n: Shape) -> Tensors:
    def offset(query: str, key: str, size: str) -> torch.Tensor:
        apart = (x[query][:, None] - x[key]).abs()
        return torch.log(apart / (x[size][:, None] + 1e-5) + 1)

    def ratio(query: str, key: str) -> torch.Tensor:
        return torch.log((x[query][:, None] + 1e-5) / (x[key] + 1e-5))

    relations = torch.stack(
        [offset("X", "XM", "W"), offset("Y", "YM", "H"), ratio("W", "WM"), ratio("H", "HM")]
    )
    rates = [100 / 10000 ** (k / n["N"]) for k in range(n["N"])]
    angles = relations[..., None] * torch.tensor(rates, dtype=relations.dtype)
    bias = torch.einsum("rpmn,rn->pm", torch.sin(angles), x["WS"])
    bias = bias + torch.einsum("rpmn,rn->pm", torch.cos(angles), x["WC"]) + x["BW"]
    return {"AV": attend(x["Q"], x["K"], x["V"], bias=torch.relu(bias))}


def boxes(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    names = ("X", "Y", "W", "H", "XM", "YM", "WM", "HM")
    return x | {name: 0.1 + np.abs(x[name]) for name in names}


def expert_routed(x: Tensors, n: Shape) -> Tensors:
    heads = zip(x["Q"], x["K"], x["V"], strict=True)
    weights = torch.stack([softmax(q.T @ k) for q, k, _ in heads])  # [h, p, m]
    logits = (x["G"] @ weights.mT).mean(0)
    best = torch.sort(logits, dim=0, descending=True, stable=True)
    return {
        "AV": x["V"] @ weights.mT,
        "TV": best.values[: n["T"]],
        "TI": best.indices[: n["T"]],
    }


def mixed(x: Tensors, n: Shape) -> Tensors:
    t, keys = n["T"], n["TM"]
    template = attend(x["Q"][:, :t], x["K"][:, :keys], x["V"][:, :keys])
    return {"AV": torch.cat([template, attend(x["Q"][:, t:], x["K"], x["V"])], 1)}


def partial(x: Tensors, n: Shape) -> Tensors:
    size, s = n["P"], n["S"]
    out = attend(x["Q"], x["K"], x["V"], torch.ones(size, size).tril().bool())
    second = attend(x["Q2"][:, s:], x["K2"][:, :s], x["V2"][:, :s])
    return {"O": out + torch.nn.functional.pad(second, (s, 0))}


def memory_context(x: Tensors, n: Shape) -> Tensors:
    before, size = n["N"] + n["L"], n["P"]
    keep = torch.cat([torch.ones(size, before), torch.ones(size, size).tril()], 1).bool()
    keys, values = (torch.cat([x[a + "P"], x[a + "H"], x[a]], 1) for a in "KV")
    return {"AV": attend(x["Q"], keys, values, keep)}


def memory_gate(x: Tensors, n: Shape) -> Tensors:
    size = n["P"]
    near = torch.ones(size, size).tril().triu(1 - n["W"])
    keep = torch.cat([torch.ones(size, n["N"]), near], 1).bool()
    keys, values = (torch.cat([x[a + "P"], x[a]], 1) for a in "KV")
    out = attend(x["Q"], keys, values, keep)

    def scaled(data: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return data * torch.rsqrt((data**2).mean(0) + 1e-6) * gain[:, None]

    return {"O": scaled(out, x["GA"]) * torch.sigmoid(scaled(x["MR"], x["GR"]))}


def memory_layer(x: Tensors, n: Shape) -> Tensors:
    q, k, v = (x["W" + a].T @ x["MR"] for a in "QKV")
    columns = []
    for p in range(n["M"]):
        first = min(n["N"], p + 1)
        seen = [*range(first), *range(max(first, p - n["W"] + 1), p + 1)]
        columns.append(attend(q[:, p : p + 1], k[:, seen], v[:, seen]))
    return {"AV": torch.cat(columns, 1)}


def mlp_similarity(x: Tensors, n: Shape) -> Tensors:
    q, k = (x["W2"].T @ torch.relu(x["W1"].T @ x[name]) for name in "QK")
    return identity_similarity(dict(x) | {"Q": q, "K": k}, n)


def identity_unnormalised(x: Tensors, n: Shape) -> Tensors:
    return {"AV": x["V"] @ (x["Q"].T @ x["K"]).T}


def mlp_unnormalised(x: Tensors, n: Shape) -> Tensors:
    q, k = (x["W2"].T @ torch.relu(x["W1"].T @ x[name]) for name in "QK")
    return identity_unnormalised(dict(x) | {"Q": q, "K": k}, n)


def distributed_heads(x: Tensors, n: Shape) -> Tensors:
    heads = [attend(*qkv) for qkv in zip(x["Q"], x["K"], x["V"], strict=True)]
    return {"Y": torch.cat([wo for wo in x["WO"]]).T @ torch.cat(heads)}


MANY = tuple(d | {"B": 2} for d in DENSE)
RELATIVE = (
    {"E": 4, "F": 3, "P": 6, "M": 8, "T": 3},
    {"E": 4, "F": 3, "P": 1, "M": 5, "T": 3},
    {"E": 4, "F": 3, "P": 7, "M": 3, "T": 2},
)
BOXES = ({"E": 4, "F": 3, "P": 4, "M": 5, "N": 3}, {"E": 4, "F": 3, "P": 1, "M": 6, "N": 2})

CASES = (
    Case("attention/causal", causal, (*DENSE, {"E": 4, "F": 3, "P": 9, "M": 5})),
    Case("attention/identity-similarity", identity_similarity, DENSE),
    Case(
        "attention/memory-context",
        memory_context,
        tuple(d | {"N": 2, "L": 3} for d in SELF),
    ),
    Case("attention/mlp-similarity", mlp_similarity, tuple(d | {"J": 5, "L": 4} for d in DENSE)),
    Case(
        "attention/memory-gate",
        memory_gate,
        tuple(d | {"N": 2, "W": 3} for d in SELF),
    ),
    Case(
        "attention/memory-layer",
        memory_layer,
        (
            {"D": 6, "E": 4, "F": 3, "M": 9, "N": 2, "W": 3},
            {"D": 6, "E": 4, "F": 3, "M": 1, "N": 4, "W": 2},
            {"D": 6, "E": 4, "F": 3, "M": 7, "N": 1, "W": 9},
        ),
        None,
        ("WQ", "WK"),
        large=4,
    ),
    Case("attention/identity-unnormalised", identity_unnormalised, DENSE),
    Case(
        "attention/mlp-unnormalised", mlp_unnormalised, tuple(d | {"J": 5, "L": 4} for d in DENSE)
    ),
    Case(
        "attention/distributed-heads",
        distributed_heads,
        tuple(d | {"H": 6, "W": 3, "D": 5} for d in DENSE),
    ),
    Case("attention/elu-similarity", elu_similarity, DENSE),
    Case("attention/key-bias", key_bias, DENSE),
    Case(
        "attention/ring",
        ring,
        ({"E": 4, "F": 3, "P": 6, "M": 9, "W": 3}, {"E": 4, "F": 3, "P": 1, "M": 7, "W": 1}),
    ),
    Case(
        "attention/ring-self",
        ring,
        (
            {"E": 4, "F": 3, "P": 6, "D": 3, "M": 8, "W": 2},
            {"E": 4, "F": 3, "P": 1, "D": 1, "M": 8, "W": 4},
        ),
    ),
    Case("attention/offloaded-decode", offloaded, DENSE),
    Case(
        "attention/positional", positional, tuple(d | {"B": 2} for d in DENSE), None, ("PQ", "PK")
    ),
    Case("attention/shared-weights", shared_weights, tuple(d | {"L": 3} for d in DENSE)),
    Case("attention/calibrated", calibrated, SELF_TILES, thresholds),
    Case("attention/relative-convolution", relative, RELATIVE, None, ("QI", "KI"), large=5),
    Case(
        "attention/complex",
        complex_scores,
        tuple({"J": 4, "F": 16, "P": d["P"], "M": d["M"]} for d in DENSE),
        None,
        ("RQ", "RK"),
        yardstick=complex_in_reals,
    ),
    Case("attention/geometric-bias", geometric, BOXES, boxes),
    Case(
        "attention/expert-routed", expert_routed, tuple(d | {"H": 2, "X": 5, "T": 2} for d in DENSE)
    ),
    Case(
        "attention/mixed",
        mixed,
        (
            *(d | {"P": 6, "T": 2, "TM": 3} for d in DENSE),
            {"E": 4, "F": 3, "P": 1, "M": 7, "T": 1, "TM": 3},
        ),
    ),
    Case(
        "attention/partial",
        partial,
        ({"E": 4, "F": 3, "P": 8, "S": 3}, {"E": 4, "F": 3, "P": 1, "S": 1}),
    ),
)
