"""Other methods of CAB's benchmark, and a quantised estimate."""

from __future__ import annotations

import numpy as np
import torch

from .case import Arrays, Case, Shape, Tensors, attend, layer_norm, softmax
from .dense import DENSE
from .dynamic import best


def quantised_estimate(x: Tensors, n: Shape) -> Tensors:
    def steps(data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = data.abs().amax(0).clamp(min=1e-6) / 7
        return torch.floor(data / scale + 0.5), scale

    size = n["P"]
    mean_q = x["Q"].mean(1, keepdim=True)
    keys = x["K"] - x["K"].mean(1, keepdim=True)
    (q4, q_scale), (k4, k_scale) = steps(x["Q"] - mean_q), steps(keys)
    estimate = (q4.T @ k4) * q_scale[:, None] * k_scale + mean_q.T @ keys
    p, m = torch.arange(size)[:, None], torch.arange(size)
    causal = m <= p
    block = m // n["M0"]
    ends = -(-(p // n["P0"] + 1) * n["P0"] // n["M0"])  # key blocks up to the end of p's own
    near = ((block < n["S"]) | (block >= ends - n["W"])) & causal
    reference = (x["Q"].T @ keys).masked_fill(~near, float("-inf")).logsumexp(1, keepdim=True)
    over = (torch.exp(estimate - reference) > x["TAU"]) & causal
    over &= near.any(1, keepdim=True)  # a row without sinks and local keys keeps no tile
    tiles = over.reshape(n["P1"], n["P0"], n["M1"], n["M0"]).any(3).any(1)
    kept = tiles.repeat_interleave(n["P0"], 0).repeat_interleave(n["M0"], 1) | near
    return {"AV": attend(x["Q"], x["K"], x["V"], kept & causal)}


def one_threshold(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    return x | {"TAU": np.array(0.8, x["Q"].dtype)}


def sparse_queries(x: Tensors, n: Shape) -> Tensors:
    sampled = torch.gather(x["Q"].T @ x["K"], 1, x["IDX"])
    active = best(sampled.amax(1) - sampled.sum(1) / n["M"], n["U"])
    out = x["V"].mean(1, keepdim=True).repeat(1, n["P"])
    out[:, active] = attend(x["Q"][:, active], x["K"], x["V"])
    return {"AV": out}


def bounded_memory(x: Tensors, n: Shape) -> Tensors:
    keys, values = attend(x["W"], x["K"], x["K"]), attend(x["U"], x["V"], x["V"])
    return {"AV": attend(x["Q"], keys, values)}


def bounded_memory_deferred(x: Tensors, n: Shape) -> Tensors:
    def averaged(scores: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        return (values @ weights.T) / weights.sum(-1)

    keys, values = averaged(x["W"].T @ x["K"], x["K"]), averaged(x["U"].T @ x["V"], x["V"])
    return {"AV": averaged(x["Q"].T @ keys, values)}


def bounded_memory_causal(x: Tensors, n: Shape) -> Tensors:
    columns = []
    for i in range(n["N"]):
        k, v = x["K"][:, : i + 1], x["V"][:, : i + 1]
        columns.append(attend(x["Q"][:, i : i + 1], attend(x["W"], k, k), attend(x["U"], v, v)))
    return {"AV": torch.cat(columns, 1)}


def randomised(x: Tensors, n: Shape) -> Tensors:
    """Self-normalised importance sampling, proposal by proposal, from its densities' logarithms."""
    queries, keys = (x[a].reshape(n["E"], n["C"], -1).mean(-1) for a in "QK")
    mean = queries + keys  # [e, c]
    sample = mean + x["N"]
    total, logs = [], []
    for c in range(n["C"]):
        features = sample[:, c] @ x["K"] - (x["K"] ** 2).sum(0) / 2
        total.append(x["V"] @ softmax(features))
        own = sample[:, c] @ mean[:, c] - (mean[:, c] ** 2).sum() / 2
        seen = sample[:, c] @ x["Q"] - (x["Q"] ** 2).sum(0) / 2
        logs.append(mean[:, c] @ x["Q"] + seen + features.logsumexp(0) - own)
    return {"AV": torch.stack(total, 1) @ softmax(torch.stack(logs, 1)).T}


def small_noise(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    return x | {"N": 0.3 * x["N"]}


def long_short(x: Tensors, n: Shape) -> Tensors:
    shares = softmax(x["WP"].T @ x["X"])  # [r, m]
    keys = layer_norm(shares @ x["K"].T, x["GK"], x["BK"]).T
    values = layer_norm(shares @ x["V"].T, x["GV"], x["BV"]).T
    columns, wide = [], n["W"]
    for p in range(n["P"]):
        start = p // wide * wide
        near = slice(max(0, start - wide // 2), start + wide + wide // 2)
        k, v = (torch.cat([g, x[a][:, near]], 1) for g, a in ((keys, "K"), (values, "V")))
        columns.append(attend(x["Q"][:, p : p + 1], k, v))
    return {"AV": torch.cat(columns, 1)}


def nystrom(x: Tensors, n: Shape) -> Tensors:
    queries = x["Q"].reshape(n["E"], n["L"], -1).mean(-1)
    keys = x["K"].reshape(n["E"], n["L"], -1).mean(-1)
    kernel = softmax(queries.T @ keys)
    one = torch.eye(n["L"], dtype=kernel.dtype)
    inverse = kernel.T / (kernel.sum(0).max() * kernel.sum(1).max())
    for _ in range(n["J"]):
        there = kernel @ inverse
        inverse = inverse @ (13 * one - there @ (15 * one - there @ (7 * one - there))) / 4
    values = softmax(queries.T @ x["K"]) @ x["V"].T
    return {"AV": (softmax(x["Q"].T @ keys) @ (inverse @ values)).T}


def nystrom_expanded(x: Tensors, n: Shape) -> Tensors:
    queries = x["Q"].reshape(n["E"], n["L"], -1).mean(-1)
    keys = x["K"].reshape(n["E"], n["L"], -1).mean(-1)
    kernel = softmax(queries.T @ keys)
    one = torch.eye(n["L"], dtype=kernel.dtype)
    inverse = kernel.T / (kernel.sum(0).max() * kernel.sum(1).max())
    for _ in range(n["J"]):
        first = kernel @ inverse
        second = first @ first
        inverse = inverse @ (13 * one - 15 * first + 7 * second - first @ second) / 4
    values = softmax(queries.T @ x["K"]) @ x["V"].T
    return {"AV": (softmax(x["Q"].T @ keys) @ (inverse @ values)).T}


def diagonal_states(x: Tensors, n: Shape) -> Tensors:
    decay = torch.complex(x["RA"].double(), x["IA"].double())
    out = torch.complex(x["RC"].double(), x["IC"].double())
    powers = decay[..., None] ** torch.arange(n["N"])
    kernel = 2 * (out[..., None] * powers).sum(1).real
    apart = torch.arange(n["N"])[:, None] - torch.arange(n["N"])
    matrix = torch.where(apart >= 0, kernel[:, apart.clamp(min=0)], 0)
    mixed = torch.einsum("cni,ci->cn", matrix, x["U"].double())
    return {"Y": mixed + x["D"].double()[:, None] * x["U"].double()}


def diagonal_states_in_turn(x: Tensors, n: Shape) -> Tensors:
    real, imaginary = torch.zeros_like(x["RA"]), torch.zeros_like(x["RA"])
    columns = []
    for i in range(n["N"]):
        real, imaginary = (
            x["RA"] * real - x["IA"] * imaginary + x["U"][:, i : i + 1],
            x["RA"] * imaginary + x["IA"] * real,
        )
        out = (x["RC"] * real).sum(1) - (x["IC"] * imaginary).sum(1)
        columns.append(2 * out + x["D"] * x["U"][:, i])
    return {"Y": torch.stack(columns, 1)}


def stable(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    radius, angle = 1 / (1 + np.abs(x["RA"])), x["IA"]
    return x | {"RA": radius * np.cos(angle), "IA": radius * np.sin(angle)}


TILES = {"E": 4, "F": 3, "P": 12, "P0": 4, "M0": 3, "S": 1, "W": 2}


def long_short_causal(x: Tensors, n: Shape) -> Tensors:
    keys, values, chunk = [], [], n["T"]
    for start in range(0, n["P"], chunk):
        inside = slice(start, start + chunk)
        shares = softmax(x["WP"].T @ x["X"][:, inside])  # [r, t]
        keys.append(layer_norm(shares @ x["K"][:, inside].T, x["GK"], x["BK"]).T)
        values.append(layer_norm(shares @ x["V"][:, inside].T, x["GV"], x["BV"]).T)
    columns = []
    for p in range(n["P"]):
        past, near = p // chunk, slice(max(0, p + 1 - n["W"]), p + 1)
        k = torch.cat([*keys[:past], x["K"][:, near]], 1)
        v = torch.cat([*values[:past], x["V"][:, near]], 1)
        columns.append(attend(x["Q"][:, p : p + 1], k, v))
    return {"AV": torch.cat(columns, 1)}


SAMPLED = {"E": 4, "F": 3, "P": 6, "M": 9, "S": 3, "U": 2}

CASES = (
    Case(
        "attention/quantised-estimate",
        quantised_estimate,
        (
            TILES,
            TILES | {"P": 24, "M0": 6, "W": 1, "S": 2},
            TILES | {"P": 24, "P0": 6, "M0": 3, "W": 1},  # local keys do not reach all queries
            TILES | {"P": 35, "P0": 7, "M0": 5, "W": 2},  # blocks of queries end inside of keys'
            TILES | {"P": 1, "P0": 1, "M0": 1},
        ),
        one_threshold,
        large=4,
    ),
    Case(
        "attention/sparse-queries",
        sparse_queries,
        (SAMPLED, SAMPLED | {"P": 1, "M": 7, "U": 1}),
    ),
    Case(
        "attention/bounded-memory",
        bounded_memory,
        tuple(d | {"R": 3} for d in DENSE),
        yardstick=bounded_memory_deferred,
    ),
    Case(
        "attention/bounded-memory-causal",
        bounded_memory_causal,
        ({"E": 4, "F": 3, "N": 9, "R": 3}, {"E": 4, "F": 3, "N": 1, "R": 2}),
    ),
    Case(
        "attention/randomised",
        randomised,
        ({"E": 4, "F": 3, "P": 6, "M": 9, "C": 3}, {"E": 4, "F": 3, "P": 1, "M": 7, "C": 1}),
        small_noise,
        large=3,
    ),
    Case(
        "attention/long-short-causal",
        long_short_causal,
        (
            {"E": 4, "F": 3, "D": 5, "P": 12, "T": 3, "R": 2, "W": 4},
            {"E": 4, "F": 3, "D": 5, "P": 1, "T": 1, "R": 1, "W": 2},
        ),
    ),
    Case(
        "attention/long-short",
        long_short,
        (
            {"E": 4, "F": 3, "D": 5, "P": 12, "R": 2, "W": 4},
            {"E": 4, "F": 3, "D": 5, "P": 1, "R": 1, "W": 2},
            {"E": 4, "F": 3, "D": 5, "P": 11, "R": 3, "W": 3},  # a ragged last block
        ),
    ),
    Case(
        "attention/nystrom",
        nystrom,
        (
            {"E": 4, "F": 16, "P": 6, "M": 9, "L": 3, "J": 6},
            {"E": 4, "F": 16, "P": 1, "M": 7, "L": 1, "J": 6},
        ),
        large=3,
        yardstick=nystrom_expanded,
    ),
    Case(
        "mixer/diagonal-states",
        diagonal_states,
        ({"C": 5, "S": 4, "N": 9}, {"C": 5, "S": 4, "N": 1}),
        stable,
        ("U", "RC"),
        yardstick=diagonal_states_in_turn,
    ),
)
