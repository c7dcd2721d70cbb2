"""Static masks, gated heads, latent keys, and mixers."""

from __future__ import annotations

import numpy as np
import torch

from .case import Arrays, Case, Shape, Tensors, attend, positions, softmax

HEADS = {"H": 4, "E": 4, "F": 3, "P": 6, "M": 9}
ONE = HEADS | {"P": 1, "M": 7}


def per_head(x: Tensors, keep: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(
        [attend(*qkv, k) for *qkv, k in zip(x["Q"], x["K"], x["V"], keep, strict=True)]
    )


def shifted_groups(x: Tensors, n: Shape) -> Tensors:
    size, group = n["P"], n["T"]
    causal = torch.ones(group, group).tril().bool()
    heads = []
    for h in range(n["H"]):
        shift = group // 2 if h >= n["H"] // 2 else 0
        q, k, v = (x[a][h].roll(-shift, 1) for a in "QKV")
        parts = [
            attend(q[:, at : at + group], k[:, at : at + group], v[:, at : at + group], causal)
            for at in range(0, size, group)
        ]
        heads.append(torch.cat(parts, 1).roll(shift, 1))
    return {"AV": torch.stack(heads)}


def streaming_heads(x: Tensors, n: Shape) -> Tensors:
    p, m = positions(n["P"], n["M"])
    streaming = (m <= p) & ((m < n["S"]) | (m > p - n["W"]))
    masks = [(m <= p) if full else streaming for full in x["RH"].tolist()]
    return {"AV": per_head(x, masks)}


def half_the_heads(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    return x | {"RH": np.arange(n["H"]) % 2}


def frame_tiles(x: Tensors, n: Shape) -> Tensors:
    frame = torch.arange(n["P"]) // n["S"]
    wanted = x["REF"][frame] > 0
    keep = (frame[:, None] == frame) | wanted | wanted[:, None]
    return {"AV": attend(x["Q"], x["K"], x["V"], keep)}


def one_reference(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    return x | {"REF": (np.arange(n["R"]) == n["R"] // 2).astype(np.int64)}


def subsampled(x: Tensors, n: Shape) -> Tensors:
    blocks = []
    for block, kept in enumerate(x["IDX"]):
        q = x["Q"][:, block * n["P0"] : (block + 1) * n["P0"]]
        blocks.append(attend(q, x["K"][:, kept], x["V"][:, kept]))
    return {"AV": torch.cat(blocks, 1)}


def samples(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    return x | {"IDX": np.stack([generator.permutation(n["M"])[: n["S"]] for _ in range(n["P1"])])}


def grid(x: Tensors, n: Shape) -> Tensors:
    p, m = positions(n["P"], n["M"])
    phase = int(x["PH"])
    kept = (m < n["S"]) | (p - m < n["W"]) | (p >= n["P"] - n["L"])
    kept = kept | (p % n["T"] == phase) | (m % n["T"] == phase)
    return {"AV": attend(x["Q"], x["K"], x["V"], kept & (m <= p))}


def first_phase(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    return x | {"PH": np.array(1)}


def expert_heads(x: Tensors, n: Shape) -> Tensors:
    experts = torch.stack([attend(q, x["K"], x["V"]) for q in x["Q"]])
    return {"Y": torch.einsum("xp,xfp,xfd->dp", x["G"], experts, x["WO"])}


def head_mixture(x: Tensors, n: Shape) -> Tensors:
    heads = per_head(x, [torch.ones(n["P"], n["M"]).bool()] * n["H"])
    order = torch.sort(x["G"], dim=0, descending=True, stable=True).indices
    gates = torch.zeros_like(x["G"])
    chosen = order[: n["T"]]
    gates.scatter_(0, chosen, x["G"].gather(0, chosen))
    return {"Y": torch.einsum("hp,hfp,hfd->dp", gates, heads, x["WO"])}


def latent(x: Tensors, n: Shape) -> Tensors:
    heads = []
    for h in range(n["H"]):
        keys = torch.cat([x["UK"][h] @ x["C"], x["KR"]])
        queries = torch.cat([x["Q"][h], x["QR"][h]])
        heads.append(attend(queries, keys, x["UV"][h] @ x["C"]))
    return {"AV": torch.stack(heads)}


def absorbed(x: Tensors, n: Shape) -> Tensors:
    heads = []
    for h in range(n["H"]):
        scores = (x["UK"][h].T @ x["Q"][h]).T @ x["C"] + x["QR"][h].T @ x["KR"]
        heads.append(x["UV"][h] @ (x["C"] @ softmax(scores).T))
    return {"AV": torch.stack(heads)}


def monarch(x: Tensors, n: Shape) -> Tensors:
    matrix = torch.zeros(n["K"], n["N"], dtype=x["X"].dtype)
    for k in range(n["K"]):
        for place in range(n["N"]):
            (k0, k1), (n1, n0) = divmod(k, n["K1"]), divmod(place, n["N0"])
            matrix[k, place] = x["W0"][k0, n0] * x["T"][k1, n0] * x["W1"][k1, n1]
    return {"Y": x["X"] @ matrix.T}


def monarch_by_stages(x: Tensors, n: Shape) -> Tensors:
    blocks = x["X"].reshape(-1, n["N1"], n["N0"])
    first = torch.einsum("kn,dnm->dkm", x["W1"], blocks) * x["T"]
    return {"Y": torch.einsum("km,djm->dkj", x["W0"], first).reshape(n["D"], -1)}


def long_convolution(x: Tensors, n: Shape) -> Tensors:
    apart = torch.arange(n["N"])[:, None] - torch.arange(n["N"])
    forward = torch.where(apart >= 0, x["KF"][:, apart.clamp(min=0)], 0)
    backward = torch.where(apart <= 0, x["KB"][:, (-apart).clamp(min=0)], 0)
    gated = x["V"] * x["X1"]
    mixed = torch.einsum("dni,di->dn", forward + backward, gated)
    return {"Y": (mixed + x["B"][:, None] * gated) * x["X2"]}


GATED = {"E": 4, "F": 3, "P": 6, "M": 9, "D": 5}
LATENT = {"H": 2, "E": 4, "F": 3, "L": 5, "R": 2, "P": 6, "M": 9}
FRAMES = {"E": 4, "F": 3, "P": 12, "S": 3}

CASES = (
    Case("attention/shifted-groups", shifted_groups, ({"H": 4, "E": 4, "F": 3, "P": 12, "T": 4},)),
    Case(
        "attention/streaming-heads",
        streaming_heads,
        (
            HEADS | {"P": 9, "W": 3, "S": 2},
            ONE | {"W": 2, "S": 1},
            HEADS | {"P": 9, "M": 5, "W": 2, "S": 1},  # rows before the first key
        ),
        half_the_heads,
    ),
    Case("attention/frame-tiles", frame_tiles, (FRAMES, FRAMES | {"P": 1, "S": 1}), one_reference),
    Case(
        "attention/subsampled",
        subsampled,
        ({"E": 4, "F": 3, "P": 6, "P0": 2, "M": 9, "S": 4},),
        samples,
    ),
    Case(
        "attention/grid",
        grid,
        ({"E": 4, "F": 3, "P": 16, "S": 1, "W": 2, "L": 2, "T": 4},),
        first_phase,
    ),
    Case("attention/expert-heads", expert_heads, (GATED | {"X": 3}, GATED | {"X": 2, "P": 1})),
    Case(
        "attention/head-mixture", head_mixture, (HEADS | {"T": 2, "D": 5}, ONE | {"T": 3, "D": 2})
    ),
    Case(
        "attention/latent",
        latent,
        (LATENT, LATENT | {"P": 1}),
        None,
        ("Q", "C"),
        yardstick=absorbed,
    ),
    Case("attention/latent-expanded", latent, (LATENT, LATENT | {"P": 1}), None, ("Q", "C")),
    Case(
        "mixer/monarch",
        monarch,
        ({"D": 8, "N": 12, "N0": 3},),
        None,
        ("X", "W1"),
        yardstick=monarch_by_stages,
    ),
    Case("mixer/long-convolution", long_convolution, ({"D": 8, "N": 9},), None, ("V", "KF")),
)
