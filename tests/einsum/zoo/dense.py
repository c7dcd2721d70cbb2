"""Dense attention, and its masks."""

from __future__ import annotations

import numpy as np
import torch

from .case import Arrays, Case, Shape, Tensors, attend, positions

DENSE = ({"E": 4, "F": 3, "P": 6, "M": 9}, {"E": 4, "F": 3, "P": 1, "M": 7})
TILED = ({"E": 4, "F": 3, "P": 6, "M": 9, "M0": 3}, {"E": 4, "F": 3, "P": 1, "M": 7, "M0": 1})


def dense(x: Tensors, n: Shape) -> Tensors:
    return {"AV": attend(x["Q"], x["K"], x["V"])}


def stream_decode(x: Tensors, n: Shape) -> Tensors:
    heads = zip(x["Q"], x["K"], x["V"], strict=True)
    return {"AV": torch.stack([attend(*qkv) for qkv in heads])}


def sigmoid(x: Tensors, n: Shape) -> Tensors:
    return {"AV": x["V"] @ torch.sigmoid(x["Q"].T @ x["K"] + x["BIAS"]).T}


def varlen(x: Tensors, n: Shape) -> Tensors:
    rows = []
    for s, length in enumerate(x["LEN"].tolist()):
        keep = (torch.arange(n["P"])[:, None] < length) & (torch.arange(n["M"]) < length)
        rows.append(attend(x["Q"][:, s], x["K"][:, s], x["V"][:, s], keep))
    return {"AV": torch.stack(rows, 1)}


def lengths(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    return x | {"LEN": np.array([5, 0, n["M"], 1])[: n["S"]]}


def window(x: Tensors, n: Shape) -> Tensors:
    p, m = positions(n["P"], n["M"])
    keep = (m <= p) & ((m < n["S"]) | (m > p - n["W"]))
    return {"AV": attend(x["Q"], x["K"], x["V"], keep)}


def block_sparse(x: Tensors, n: Shape) -> Tensors:
    keep = torch.zeros(n["P"], n["M"], dtype=torch.bool)
    for block, count in enumerate(x["COUNT"].tolist()):
        for key_block in x["IDX"][block, :count].tolist():
            rows = slice(block * n["P0"], (block + 1) * n["P0"])
            keep[rows, key_block * n["M0"] : (key_block + 1) * n["M0"]] = True
    return {"AV": attend(x["Q"], x["K"], x["V"], keep).reshape(n["F"], -1, n["P0"])}


def blocks(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    rows = [generator.permutation(n["M"] // n["M0"])[: n["S"]] for _ in range(n["P"] // n["P0"])]
    counts = [(0, n["S"], 1, 2)[k % 4] for k in range(len(rows))] if len(rows) > 1 else [n["S"]]
    return x | {"IDX": np.array(rows), "COUNT": np.array(counts)}


def shared_prefix(x: Tensors, n: Shape) -> Tensors:
    causal = torch.ones(n["P"], n["P"]).tril().bool()
    keep = torch.cat([torch.ones(n["P"], n["M"]).bool(), causal], 1)
    rows = []
    for g in range(n["G"]):
        k, v = (torch.cat([x[a + "P"], x[a][:, g]], 1) for a in "KV")
        rows.append(attend(x["Q"][:, g], k, v, keep))
    return {"AV": torch.stack(rows, 1)}


def decay(x: Tensors, n: Shape) -> Tensors:
    state, rows = x["H0"], []
    for t in range(n["N"]):
        state = torch.exp(x["LD"][t]) * state + torch.outer(x["K"][:, t], x["V"][:, t])
        rows.append(state.T @ x["Q"][:, t])
    return {"O": torch.stack(rows, 1).reshape(n["F"], -1, n["I"]), "HN": state}


def decay_in_parallel(x: Tensors, n: Shape) -> Tensors:
    sums = x["LD"].cumsum(0)
    weights = (x["Q"].T @ x["K"]) * torch.exp(sums[:, None] - sums).tril()
    state = torch.exp(sums[-1]) * x["H0"] + (x["K"] * torch.exp(sums[-1] - sums)) @ x["V"].T
    out = x["V"] @ weights.T + (x["H0"].T @ x["Q"]) * torch.exp(sums)
    return {"O": out.reshape(n["F"], -1, n["I"]), "HN": state}


def decays(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    return x | {"LD": -np.abs(x["LD"])}


def backward(x: Tensors, n: Shape) -> Tensors:
    leaves = [x[name].detach().requires_grad_() for name in "QKV"]
    gradients = torch.autograd.grad(attend(*leaves), leaves, x["DO"])
    return {f"D{name}": gradient for name, gradient in zip("QKV", gradients, strict=True)}


def backward_by_hand(x: Tensors, n: Shape) -> Tensors:
    weights = torch.exp(x["Q"].T @ x["K"] - x["L"][:, None])  # [p, m]
    change = weights * (x["DO"].T @ x["V"] - (x["DO"] * x["O"]).sum(0)[:, None])
    return {"DQ": x["K"] @ change.T, "DK": x["Q"] @ change, "DV": x["DO"] @ weights}


def forward(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    """Add the output and the log-sum-exp of every row, as the forward pass saves them."""
    scores = x["Q"].T.astype(np.float64) @ x["K"]
    top = scores.max(1, keepdims=True)
    total = np.exp(scores - top).sum(1, keepdims=True)
    out = x["V"] @ (np.exp(scores - top) / total).T
    return x | {"O": out, "L": (top + np.log(total))[:, 0]}


def elu_unnormalised(x: Tensors, n: Shape) -> Tensors:
    scores = x["Q"].T @ x["K"]
    weights = torch.where(scores > 0, scores + 1, torch.exp(scores))
    return {"AV": x["V"] @ weights.T}


def sigmoid_similarity(x: Tensors, n: Shape) -> Tensors:
    weights = torch.sigmoid(x["Q"].T @ x["K"])
    return {"AV": x["V"] @ (weights / (weights.sum(-1, keepdim=True) + 1e-8)).T}


CASES = (
    Case("attention/3-pass", dense, DENSE),
    Case("attention/3-pass-deferred", dense, DENSE),
    Case("attention/2-pass", dense, TILED),
    Case("attention/1-pass", dense, TILED),
    Case("attention/split-decode", dense, TILED),
    Case(
        "attention/stream-decode",
        stream_decode,
        (
            {"H": 3, "E": 4, "F": 3, "P": 2, "M": 20, "M0": 4, "W": 4},  # runs of 4 and 3 tiles
            {"H": 2, "E": 4, "F": 3, "P": 1, "M": 3, "M0": 1, "W": 8},  # workers without a tile
            {"H": 5, "E": 4, "F": 3, "P": 1, "M": 7, "M0": 7, "W": 2},  # whole heads, and a half
        ),
    ),
    Case("attention/sigmoid", sigmoid, DENSE),
    Case("attention/elu-unnormalised", elu_unnormalised, DENSE),
    Case("attention/sigmoid-similarity", sigmoid_similarity, DENSE),
    Case(
        "attention/backward",
        backward,
        DENSE,
        forward,
        large=3,
        yardstick=backward_by_hand,
        grouped=False,
    ),
    Case(
        "attention/varlen",
        varlen,
        ({"E": 4, "F": 3, "S": 4, "P": 7, "M": 7}, {"E": 4, "F": 3, "S": 2, "P": 1, "M": 5}),
        lengths,
    ),
    Case(
        "attention/window",
        window,
        (
            {"E": 4, "F": 3, "P": 9, "M": 9, "W": 3, "S": 2},
            {"E": 4, "F": 3, "P": 1, "M": 7, "W": 2, "S": 1},
            {"E": 4, "F": 3, "P": 8, "M": 5, "W": 3, "S": 1},  # rows before the first key
        ),
    ),
    Case(
        "attention/block-sparse",
        block_sparse,
        (
            {"E": 4, "F": 3, "P": 12, "M": 20, "P0": 3, "M0": 4, "S": 3},
            {"E": 4, "F": 3, "P": 1, "M": 20, "P0": 1, "M0": 4, "S": 2},
        ),
        blocks,
    ),
    Case(
        "attention/shared-prefix",
        shared_prefix,
        ({"E": 4, "F": 3, "G": 3, "P": 4, "M": 5}, {"E": 4, "F": 3, "G": 2, "P": 1, "M": 1}),
    ),
    Case(
        "attention/linear-decay",
        decay,
        ({"E": 4, "F": 3, "N": 12, "I": 4}, {"E": 4, "F": 3, "N": 1, "I": 1}),
        decays,
        yardstick=decay_in_parallel,
    ),
)
