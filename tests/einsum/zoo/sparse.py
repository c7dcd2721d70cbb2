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


def sink_groups(x: Tensors, n: Shape) -> Tensors:
    size, group, heads = n["P"], n["T"], []
    for h, shifted in enumerate(x["SH"].tolist()):
        shift = group // 2 if shifted else 0
        tokens = torch.arange(size).roll(-shift)
        columns = torch.zeros_like(x["V"][h])
        for at in range(0, size, group):
            own = tokens[at : at + group].tolist()
            for k, token in enumerate(own):
                sinks = range(min(n["S"], token + 1))
                seen = [*sinks, *(t for t in own[: k + 1] if t >= n["S"])]
                keys, values = x["K"][h][:, seen], x["V"][h][:, seen]
                columns[:, token] = attend(x["Q"][h][:, token : token + 1], keys, values)[:, 0]
        heads.append(columns)
    return {"AV": torch.stack(heads)}


def odd_heads_shifted(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    return x | {"SH": np.arange(n["H"]) % 2}


def local(x: Tensors, n: Shape) -> Tensors:
    apart = torch.arange(n["P"])[:, None] - torch.arange(n["P"])
    return {"AV": attend(x["Q"], x["K"], x["V"], apart.abs() <= n["W"])}


def modality_boundary(x: Tensors, n: Shape) -> Tensors:
    keep = torch.zeros(n["P"], n["P"], dtype=torch.bool)
    kinds, windows = x["TY"].tolist(), x["WL"].tolist()
    for p in range(n["P"]):
        for m in range(p + 1):
            keep[p, m] = p - m < windows[kinds[p]][kinds[m]]
    return {"AV": attend(x["Q"], x["K"], x["V"], keep)}


def modalities(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    """Text sees all text and little else, images see near tokens, and nothing of the third kind."""
    windows = np.array([[n["P"], 2, 1], [3, 4, 1], [0, 0, 0]])[: n["S"], : n["S"]]
    return x | {"TY": generator.integers(0, n["S"], n["P"]), "WL": windows}


def streaming_cache(x: Tensors, n: Shape) -> Tensors:
    """Build the cache of every step, and turn what is in it by its slot."""
    queries, keys = (torch.complex(x[a + "A"].double(), x[a + "B"].double()) for a in "QK")
    rates, columns = x["TH"].double(), []
    for p in range(n["P"]):
        now = p + n["M"] - n["P"]
        if now < 0:
            columns.append(torch.zeros(n["F"], dtype=torch.float64))
            continue
        recent = range(max(n["S"], now - n["W"] + 1), now + 1)
        cache = [*range(min(n["S"], now + 1)), *recent]
        slots = torch.arange(len(cache)).double()
        turned = keys[:, cache] * torch.polar(torch.ones(1).double(), rates[:, None] * slots)
        query = queries[:, p] * torch.polar(torch.ones(1).double(), rates * (len(cache) - 1))
        weights = softmax((query.conj()[:, None] * turned).sum(0).real)
        columns.append(x["V"][:, cache].double() @ weights)
    return {"AV": torch.stack(columns, 1)}


def streaming_in_reals(x: Tensors, n: Shape) -> Tensors:
    def turned(name: str, angles: torch.Tensor) -> torch.Tensor:
        a, b, cos, sin = x[name + "A"], x[name + "B"], torch.cos(angles), torch.sin(angles)
        return torch.cat([a * cos - b * sin, a * sin + b * cos])

    p, m = positions(n["P"], n["M"])
    sinks = (m < n["S"]) & (m <= p)
    rates, place = x["TH"][:, None], p.T.to(x["TH"].dtype)
    keys = turned("K", rates * m.to(rates.dtype))
    far = turned("Q", rates * place.clamp(max=n["S"] + n["W"] - 1)).T @ keys
    near = turned("Q", rates * place).T @ keys
    keep = sinks | ((m <= p) & (m > p - n["W"]))
    return {"AV": x["V"] @ softmax(torch.where(sinks, far, near), keep).T}


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


def expert_heads_apart(x: Tensors, n: Shape) -> Tensors:
    experts = torch.stack([attend(*qkv) for qkv in zip(x["Q"], x["K"], x["V"], strict=True)])
    return {"Y": torch.einsum("xp,xfp,xfd->dp", x["G"], experts, x["WO"])}


def head_mixture(x: Tensors, n: Shape) -> Tensors:
    heads = per_head(x, [torch.ones(n["P"], n["M"]).bool()] * n["H"])
    shared = n["S"]
    order = torch.sort(x["G"][shared:], dim=0, descending=True, stable=True).indices
    gates = torch.zeros_like(x["G"])
    gates[:shared] = x["G"][:shared]
    chosen = order[: n["T"]] + shared
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


SELF = {"E": 4, "F": 3, "P": 12}
GATED = {"E": 4, "F": 3, "P": 6, "M": 9, "D": 5}
LATENT = {"H": 2, "E": 4, "F": 3, "L": 5, "R": 2, "P": 6, "M": 9}
FRAMES = {"E": 4, "F": 3, "P": 12, "S": 3}

CASES = (
    Case(
        "attention/shifted-groups",
        shifted_groups,
        (
            {"H": 4, "E": 4, "F": 3, "P": 12, "T": 4},
            {"H": 2, "E": 4, "F": 3, "P": 1, "T": 1},
        ),
    ),
    Case(
        "attention/sink-groups",
        sink_groups,
        (
            {"H": 4, "E": 4, "F": 3, "P": 12, "T": 4, "S": 2},
            {"H": 2, "E": 4, "F": 3, "P": 1, "T": 1, "S": 1},
            {"H": 2, "E": 4, "F": 3, "P": 15, "T": 5, "S": 3},
            {"H": 2, "E": 4, "F": 3, "P": 12, "T": 3, "S": 5},
        ),
        odd_heads_shifted,
    ),
    Case("attention/local", local, (SELF | {"W": 2}, SELF | {"P": 1, "W": 3})),
    Case(
        "attention/modality-boundary",
        modality_boundary,
        (SELF | {"P": 14, "S": 3}, SELF | {"P": 1, "S": 1}),
        modalities,
    ),
    Case(
        "attention/streaming-cache",
        streaming_cache,
        (
            {"J": 3, "F": 3, "P": 12, "M": 12, "W": 4, "S": 2},
            {"J": 3, "F": 3, "P": 1, "M": 9, "W": 3, "S": 1},
            {"J": 3, "F": 3, "P": 5, "M": 7, "W": 20, "S": 4},  # the cache is not full yet
            {"J": 3, "F": 3, "P": 8, "M": 5, "W": 2, "S": 1},  # rows before the first key
        ),
        None,
        ("QA", "KA"),
        yardstick=streaming_in_reals,
    ),
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
        (
            {"E": 4, "F": 3, "P": 6, "P0": 2, "M": 9, "S": 4},
            {"E": 4, "F": 3, "P": 1, "P0": 1, "M": 7, "S": 2},
        ),
        samples,
    ),
    Case(
        "attention/grid",
        grid,
        (
            {"E": 4, "F": 3, "P": 16, "S": 1, "W": 2, "L": 2, "T": 4},
            {"E": 4, "F": 3, "P": 1, "S": 1, "W": 1, "L": 1, "T": 3},
        ),
        first_phase,
    ),
    Case(
        "attention/expert-heads-apart",
        expert_heads_apart,
        (GATED | {"X": 3}, GATED | {"X": 2, "P": 1}),
    ),
    Case("attention/expert-heads", expert_heads, (GATED | {"X": 3}, GATED | {"X": 2, "P": 1})),
    Case(
        "attention/head-mixture",
        head_mixture,
        (HEADS | {"S": 1, "T": 2, "D": 5}, ONE | {"S": 2, "T": 1, "D": 2}),
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
        ({"D": 8, "N": 12, "N0": 3}, {"D": 8, "N": 1, "N0": 1}),
        None,
        ("X", "W1"),
        yardstick=monarch_by_stages,
    ),
    Case(
        "mixer/long-convolution",
        long_convolution,
        ({"D": 8, "N": 9}, {"D": 8, "N": 1}),
        None,
        ("V", "KF"),
    ),
)
