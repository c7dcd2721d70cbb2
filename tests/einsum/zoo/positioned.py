"""Attention with positions in its scores."""

from __future__ import annotations

import math

import numpy as np
import torch

from .case import Arrays, Case, Shape, Tensors, attend, positions, softmax


def linear_bias(x: Tensors, n: Shape) -> Tensors:
    p, m = positions(n["P"], n["M"])
    heads = [
        attend(q, k, v, m <= p, bias=-slope * (p - m).to(slope.dtype))
        for q, k, v, slope in zip(x["Q"], x["K"], x["V"], x["SL"], strict=True)
    ]
    return {"AV": torch.stack(heads)}


def slopes(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    halves = 2.0 ** -np.arange(1, n["H"] + 1)
    return x | {"SL": halves.astype(x["SL"].dtype)}


def bucket(distance: int, exact: int, far: float) -> int:
    if distance < exact:
        return distance
    shared = math.floor(math.log(distance / exact) / math.log(far / exact) * exact)
    return min(exact + shared, 2 * exact - 1)


def bucketed_bias(x: Tensors, n: Shape) -> Tensors:
    p, m = positions(n["P"], n["M"])
    buckets = [
        [bucket(max(d, 0), n["X"], float(x["FAR"])) for d in row] for row in (p - m).tolist()
    ]
    heads = [
        attend(q, k, v, m <= p, bias=table[torch.tensor(buckets)])
        for q, k, v, table in zip(x["Q"], x["K"], x["V"], x["TB"], strict=True)
    ]
    return {"AV": torch.stack(heads)}


def far(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    return x | {"FAR": np.array(7.3, x["Q"].dtype)}


def rotary(x: Tensors, n: Shape) -> Tensors:
    p, m = positions(n["P"], n["M"])
    rates = x["TH"].double()[:, None]
    q, k = (
        torch.complex(x[a + "A"].double(), x[a + "B"].double())
        * torch.polar(torch.ones(1).double(), rates * place)
        for a, place in (("Q", p.T), ("K", m))
    )
    scores = (q.conj().T @ k).real
    return {"AV": x["V"].double() @ softmax(scores, m <= p).T}


def rotary_in_reals(x: Tensors, n: Shape) -> Tensors:
    def turned(name: str, place: torch.Tensor) -> torch.Tensor:
        angles = x["TH"][:, None] * place.to(x["TH"].dtype)
        a, b, cos, sin = x[name + "A"], x[name + "B"], torch.cos(angles), torch.sin(angles)
        return torch.cat([a * cos - b * sin, a * sin + b * cos])

    p, m = positions(n["P"], n["M"])
    return {"AV": attend(turned("Q", p.T), turned("K", m), x["V"], m <= p)}


HEADS = (
    {"H": 3, "E": 4, "F": 3, "P": 6, "M": 9},
    {"H": 2, "E": 4, "F": 3, "P": 1, "M": 7},
    {"H": 2, "E": 4, "F": 3, "P": 9, "M": 5},  # rows before the first key
)
PAIRS = ({"P": 6, "M": 9}, {"P": 1, "M": 7}, {"P": 9, "M": 5})

CASES = (
    Case("attention/linear-bias", linear_bias, HEADS, slopes),
    Case(
        "attention/bucketed-bias",
        bucketed_bias,
        tuple(d | {"B": b} for d, b in zip(HEADS, (4, 6, 4), strict=True)),
        far,
    ),
    Case(
        "attention/rotary",
        rotary,
        tuple({"J": 3, "F": 3} | d for d in PAIRS),
        None,
        ("QA", "KA"),
        yardstick=rotary_in_reals,
    ),
)
