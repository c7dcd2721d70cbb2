"""Keys that the data select: estimated, selected, attended to; pooled or clustered."""

from __future__ import annotations

import numpy as np
import torch

from .case import Arrays, Case, Shape, Tensors, attend, layer_norm, softmax


def best(scores: torch.Tensor, count: int, largest: bool = True) -> torch.Tensor:
    """Return the coordinates of the best along the first axis, ties by coordinate."""
    return torch.sort(scores, dim=0, descending=largest, stable=True).indices[:count]


def heavy_hitters(x: Tensors, n: Shape) -> Tensors:
    weights = softmax(x["Q"].T @ x["K"])
    sums = x["ACC"] + weights.sum(0)
    return {
        "AV": x["V"] @ weights.T,
        "AN": sums,
        "TI": best(sums[: n["M"] - n["R"]], n["T"]),
    }


def recycled(x: Tensors, n: Shape) -> Tensors:
    kept = best(softmax(x["QF"].T @ x["K"]).sum(0), n["T"])
    keys = torch.cat([x["K"][:, kept], x["KN"]], 1)
    return {"AV": attend(x["Q"], keys, torch.cat([x["V"][:, kept], x["VN"]], 1))}


def vertical_slash(x: Tensors, n: Shape) -> Tensors:
    size = n["P"]
    causal = torch.ones(size, size).tril().bool()
    estimate = softmax(x["Q"].T @ x["K"], causal)[-n["L"] :]
    diagonals = torch.zeros(size, dtype=estimate.dtype)
    for row, weights in enumerate(estimate):
        place = max(0, size - n["L"]) + row
        for m in range(place + 1):
            diagonals[place - m] += weights[m]
    keep = torch.zeros(size, size, dtype=torch.bool)
    columns = estimate.sum(0)
    columns[: n["S"]] = float("inf")
    diagonals[: n["W"]] = float("inf")
    keep[:, best(columns, n["T"])] = True
    apart = torch.arange(size)[:, None] - torch.arange(size)
    for diagonal in best(diagonals, n["U"]).tolist():
        keep |= apart == diagonal
    return {"AV": attend(x["Q"], x["K"], x["V"], keep & causal)}


def product_codes(x: Tensors, n: Shape) -> Tensors:
    def codes(data: torch.Tensor) -> torch.Tensor:
        apart = (data[:, None] - x["CB"][..., None]).abs().sum(2)  # [s, c, n]
        return apart.argmin(1)

    shared = (codes(x["Q"])[:, :, None] == codes(x["K"])[:, None, :]).sum(0)  # [p, m]
    classes = (shared // 2).clamp(max=2)
    q, k = x["Q"].flatten(0, 1), x["K"].flatten(0, 1)
    columns = []
    for p in range(n["P"]):
        kept = best(classes[p], n["T"])
        weights = torch.exp((q[:, p] @ k[:, kept]).clamp(-10, 10))
        columns.append(x["V"][:, kept] @ (weights / weights.sum()))
    return {"AV": torch.stack(columns, 1)}


def landmark(x: Tensors, n: Shape) -> Tensors:
    block, columns = n["M0"], []
    for p in range(n["P"]):
        own = p // block
        local = slice(own * block, p + 1)
        landmarks = x["Q"][:, p] @ x["KL"][:, :own]
        shares = softmax(torch.cat([landmarks, x["Q"][:, p] @ x["K"][:, local]]))
        column = x["V"][:, local] @ shares[own:]
        for past in range(own):
            inside = slice(past * block, (past + 1) * block)
            within = softmax(x["Q"][:, p] @ x["K"][:, inside])
            column = column + shares[past] * (x["V"][:, inside] @ within)
        columns.append(column)
    return {"AV": torch.stack(columns, 1)}


def landmark_retrieval(x: Tensors, n: Shape) -> Tensors:
    block, columns = n["M0"], []
    for p in range(n["P"]):
        landmarks = x["Q"][:, p] @ x["KL"]
        fetched = best(landmarks, n["T"])
        shares = softmax(torch.cat([landmarks[fetched], x["Q"][:, p] @ x["KC"]]))
        column = x["VC"] @ shares[n["T"] :]
        for share, past in zip(shares, fetched.tolist(), strict=False):
            inside = slice(past * block, (past + 1) * block)
            within = softmax(x["Q"][:, p] @ x["K"][:, inside])
            column = column + share * (x["V"][:, inside] @ within)
        columns.append(column)
    return {"AV": torch.stack(columns, 1)}


def bilevel(x: Tensors, n: Shape) -> Tensors:
    queries = x["Q"].reshape(n["E"], n["P1"], -1).mean(-1)
    keys = x["K"].reshape(n["E"], n["M1"], -1).mean(-1)
    keep = torch.zeros(n["P"], n["M"], dtype=torch.bool)
    for region in range(n["P1"]):
        rows = slice(region * n["P0"], (region + 1) * n["P0"])
        for chosen in best(queries[:, region] @ keys, n["S"]).tolist():
            keep[rows, chosen * n["M0"] : (chosen + 1) * n["M0"]] = True
    return {"AV": attend(x["Q"], x["K"], x["V"], keep)}


def bilevel_image(x: Tensors, n: Shape) -> Tensors:
    rows, columns = n["Y"] // n["Y1"], n["X"] // n["X1"]
    q, k, v = (x[a].reshape(1, -1, n["Y"], n["X"]) for a in "QKV")
    q_means, k_means = (torch.nn.functional.avg_pool2d(a, (rows, columns))[0] for a in (q, k))
    q_means, k_means = q_means.flatten(1), k_means.flatten(1)
    y, x0 = torch.arange(n["Y"])[:, None], torch.arange(n["X"])
    region = (y // rows * n["X1"] + x0 // columns).flatten()
    chosen = torch.stack([best(k_means.T @ mean, n["S"]) for mean in q_means.T])
    keep = (region[None, :, None] == chosen[region][:, None]).any(-1)
    near = torch.nn.functional.conv2d(v, x["WC"][:, None], padding=2, groups=n["F"])
    return {"AV": attend(x["Q"], x["K"], x["V"], keep) + near.reshape(n["F"], -1)}


def pooled(x: Tensors, n: Shape) -> Tensors:
    group, keys, values = n["T"], [], []
    for start in range(0, n["M"], group):
        inside = slice(start, start + group)
        weights = softmax(x["Q"][:, start + group - 1] @ x["K"][:, inside])
        keys.append(x["K"][:, inside] @ weights)
        values.append(x["V"][:, inside] @ weights)
    columns = []
    for p in range(n["P"]):
        far = max(0, (p + 1 - n["W"]) // group)
        near = slice(group * far, p + 1)
        k = torch.stack([*keys[:far], *x["K"][:, near].T], 1)
        v = torch.stack([*values[:far], *x["V"][:, near].T], 1)
        columns.append(attend(x["Q"][:, p : p + 1], k, v))
    return {"AV": torch.cat(columns, 1)}


def routing(x: Tensors, n: Shape) -> Tensors:
    total = torch.zeros_like(x["V"][:, :1] * x["Q"][0])
    hits = torch.zeros(n["P"], dtype=total.dtype)
    for centroid in x["MU"].T:
        queries, keys = (best(centroid @ x[a], n["W"]) for a in "QK")
        keep = keys[None, :] <= queries[:, None]
        out = attend(x["Q"][:, queries], x["K"][:, keys], x["V"][:, keys], keep)
        total[:, queries] += out
        hits[queries] += keep.any(1)  # a query whose cluster's keys are all later is not in it
    return {"AV": total / hits.clamp(min=1)}


def tree_search(x: Tensors, n: Shape) -> Tensors:
    keys, ahead, columns = n["M"], n["M"] - n["P"], []
    for first in range(0, n["P"], n["P0"]):
        places = range(first + ahead, first + ahead + n["P0"])
        queries = x["Q"][:, first : first + n["P0"]]
        end = max(0, places.stop - n["W"])  # the keys before the window of the block's last query
        blocks = -(-end // n["B"])
        nodes = [(t * blocks // n["T"], (t + 1) * blocks // n["T"]) for t in range(n["T"])]
        for _ in range(n["R"]):
            halves = []
            for start, last in nodes:
                middle = (start + last) // 2
                halves += [(start, middle), (middle, last)]
            scores = torch.full((len(halves),), float("-inf"), dtype=queries.dtype)
            for k, (start, last) in enumerate(halves):
                for j, place in enumerate(places):
                    inside = slice(start * n["B"], min((start + 1) * n["B"], end, place + 1))
                    if start < last and inside.start < inside.stop:
                        score = (queries[:, j] @ x["K"][:, inside]).max()
                        scores[k] = torch.maximum(scores[k], score)
            nodes = [halves[k] for k in best(scores, n["T"]).tolist()]
        keep = torch.zeros(n["P0"], keys, dtype=torch.bool)
        for start, last in nodes:
            if start < last:
                keep[:, start * n["B"] : (start + 1) * n["B"]] = True
        p, m = torch.tensor(list(places))[:, None], torch.arange(keys)
        keep |= (m < n["S"]) | (p - m < n["W"])
        columns.append(attend(queries, x["K"], x["V"], keep & (m <= p)))
    return {"AV": torch.cat(columns, 1)}


def estimated_mask(x: Tensors, n: Shape) -> Tensors:
    def features(data: torch.Tensor, stabiliser: torch.Tensor) -> torch.Tensor:
        scores = x["W"].T @ data - (data**2).sum(0) / 2 - stabiliser
        return (torch.exp(scores) + x["EPS"]) / n["R"] ** 0.5

    weights = features(x["Q"], (x["W"].T @ x["Q"]).amax(0)).T
    weights = weights @ features(x["K"], (x["W"].T @ x["K"]).max())
    context = x["V"] @ (weights / weights.sum(-1, keepdim=True)).T
    hidden = (torch.cat([x["WC"], x["WV"]]).T @ torch.cat([context, x["V"]])).T  # [p, z]
    hidden = layer_norm(hidden, x["GZ"], x["BZ"])
    hidden = torch.nn.functional.gelu(hidden)
    rows = (hidden @ x["WD"])[:, None]  # [p, 1, a]
    estimate = softmax(torch.nn.functional.conv1d(rows, x["CN"][None, None], padding=1)[:, 0])
    column = torch.arange(n["M"]) // n["B"]
    columns = []
    for p, row in enumerate(estimate):
        kept = torch.isin(column, best(row, n["T"]))
        columns.append(attend(x["Q"][:, p : p + 1], x["K"], x["V"], kept[None]))
    average = (x["V"] * estimate.mean(0)[column]).sum(1, keepdim=True)
    gate = torch.sigmoid(hidden @ x["WG"])
    return {"AV": gate * torch.cat(columns, 1) + (1 - gate) * average}


def small_epsilon(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    return x | {"EPS": np.array(1e-3, x["Q"].dtype)}


def codes_drawn(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    """Take codes from the keys, as k-means does: then some are shared."""
    chosen = generator.integers(0, n["M"], n["C"])
    return x | {"CB": np.moveaxis(x["K"][:, :, chosen], 2, 1)}


CODES = {"S": 4, "I": 2, "F": 3, "P": 6, "M": 10, "C": 3, "T": 4}
SELF = {"E": 4, "F": 3, "P": 12}
BLOCKS = {"E": 4, "F": 3, "P": 3, "M": 12, "M0": 3, "T": 2, "N": 2}
TREE = {"E": 4, "F": 3, "P": 12, "P0": 3, "M": 24, "T": 3, "R": 2, "B": 3, "W": 3, "S": 1}
STEP = {"E": 4, "F": 3, "P": 2, "M": 12}

CASES = (
    Case(
        "attention/heavy-hitters",
        heavy_hitters,
        (STEP | {"T": 3, "R": 2, "M0": 4}, STEP | {"P": 1, "M": 7, "T": 6, "R": 1, "M0": 1}),
    ),
    Case(
        "attention/recycled",
        recycled,
        (STEP | {"T": 3, "N": 2, "M0": 4}, STEP | {"P": 1, "M": 7, "T": 7, "N": 1, "M0": 1}),
    ),
    Case(
        "attention/vertical-slash",
        vertical_slash,
        (
            SELF | {"L": 4, "T": 3, "U": 3, "S": 1, "W": 2, "M0": 3},
            SELF | {"P": 1, "L": 4, "T": 1, "U": 1, "S": 2, "W": 3, "M0": 1},
            SELF | {"P": 21, "L": 5, "T": 5, "U": 2, "S": 2, "W": 2, "M0": 7},
            SELF | {"P": 20, "L": 2, "T": 3, "U": 8, "S": 5, "W": 4, "M0": 5},  # equal sums
        ),
    ),
    Case("attention/product-codes", product_codes, (CODES, CODES | {"P": 1, "M": 7}), codes_drawn),
    Case("attention/landmark", landmark, (SELF | {"M0": 3}, SELF | {"P": 1, "M0": 1})),
    Case("attention/landmark-retrieval", landmark_retrieval, (BLOCKS, BLOCKS | {"P": 1})),
    Case(
        "attention/bilevel",
        bilevel,
        (
            {"E": 4, "F": 3, "P": 8, "M": 12, "P1": 4, "M1": 4, "S": 2},
            {"E": 4, "F": 3, "P": 1, "M": 7, "P1": 1, "M1": 7, "S": 3},
        ),
    ),
    Case(
        "attention/bilevel-image",
        bilevel_image,
        (
            {"E": 4, "F": 3, "Y": 4, "X": 6, "Y1": 2, "X1": 3, "S": 2},
            {"E": 4, "F": 3, "Y": 1, "X": 1, "Y1": 1, "X1": 1, "S": 1},
            {"E": 4, "F": 3, "Y": 9, "X": 5, "Y1": 3, "X1": 1, "S": 2},
        ),
    ),
    Case("attention/pooled", pooled, (SELF | {"T": 3, "W": 4}, SELF | {"P": 1, "T": 1, "W": 2})),
    Case(
        "attention/tree-search",
        tree_search,
        (
            TREE,
            TREE | {"P": 1, "P0": 1, "M": 23, "R": 3, "B": 1},  # runs and halves of two sizes
            TREE | {"P": 24, "S": 2, "W": 1, "R": 4},  # the first queries see a few keys
            TREE | {"P": 26, "P0": 2, "T": 2, "B": 5},  # and two see none; the last block is cut
            TREE | {"P": 20, "P0": 5, "M": 37, "B": 3, "R": 1, "W": 2},  # nodes of several blocks
        ),
    ),
    Case(
        "attention/estimated-mask",
        estimated_mask,
        (
            {"E": 4, "F": 3, "P": 12, "R": 5, "Z": 6, "C": 4, "T": 2},
            {"E": 4, "F": 3, "P": 1, "R": 5, "Z": 6, "C": 1, "T": 1},
        ),
        small_epsilon,
        large=2,
    ),
    Case("attention/routing", routing, (SELF | {"C": 3, "W": 5}, SELF | {"P": 1, "C": 2, "W": 1})),
)
