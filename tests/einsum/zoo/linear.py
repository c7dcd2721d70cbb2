"""Linear attention, and recurrences."""

from __future__ import annotations

import math

import numpy as np
import torch

from .case import Arrays, Case, Shape, Tensors, attend, softmax
from .dense import DENSE

TOKENS = ({"E": 4, "F": 3, "N": 8}, {"E": 4, "F": 3, "N": 1})
CHUNKS = ({"E": 4, "F": 3, "N": 12, "I": 4}, {"E": 4, "F": 3, "N": 1, "I": 1})


def elu1(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 0, x + 1, torch.exp(x.clamp(max=0)))


def weighted(weights: torch.Tensor, v: torch.Tensor, floor: float = 0.0) -> torch.Tensor:
    """Return v [f,m] averaged with weights [p,m]."""
    return v @ (weights / weights.sum(-1, keepdim=True).clamp(min=floor)).T


def linear(x: Tensors, n: Shape) -> Tensors:
    return {"AV": weighted(elu1(x["Q"]).T @ elu1(x["K"]), x["V"])}


def linear_causal(x: Tensors, n: Shape) -> Tensors:
    return {"AV": weighted((elu1(x["Q"]).T @ elu1(x["K"])).tril(), x["V"])}


def linear_causal_by_states(x: Tensors, n: Shape) -> Tensors:
    q, k = elu1(x["Q"]), elu1(x["K"])
    states = torch.einsum("en,fn->efn", k, x["V"]).cumsum(-1)
    return {"AV": torch.einsum("en,efn->fn", q, states) / (q * k.cumsum(-1)).sum(0)}


def performer(x: Tensors, n: Shape) -> Tensors:
    def features(data: torch.Tensor, stabiliser: torch.Tensor) -> torch.Tensor:
        scores = x["W"].T @ data - (data**2).sum(0) / 2 - stabiliser
        return (torch.exp(scores) + x["EPS"]) / math.sqrt(n["R"])

    queries = features(x["Q"], (x["W"].T @ x["Q"]).amax(0))
    keys = features(x["K"], (x["W"].T @ x["K"]).max())
    return {"AV": weighted(queries.T @ keys, x["V"], float(x["FLOOR"]))}


def performer_constants(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    kind = x["Q"].dtype
    return x | {"EPS": np.array(1e-3, kind), "FLOOR": np.array(0.1, kind)}


def cosformer(x: Tensors, n: Shape) -> Tensors:
    apart = torch.arange(n["P"])[:, None] - torch.arange(n["M"])
    cosines = torch.cos(math.pi / 2 * apart.double() / max(n["P"], n["M"])).to(x["Q"].dtype)
    weights = (torch.relu(x["Q"]).T @ torch.relu(x["K"])) * cosines
    return {"AV": weighted(weights, x["V"], 1e-6)}


def cosformer_split(x: Tensors, n: Shape) -> Tensors:
    size = max(n["P"], n["M"])
    out, total = 0, 0
    for wave in (torch.cos, torch.sin):
        q, k = (
            torch.relu(x[a]) * wave(math.pi / 2 * torch.arange(1, n[r] + 1) / size).to(x[a].dtype)
            for a, r in ("QP", "KM")
        )
        out = out + (x["V"] @ k.T) @ q
        total = total + k.sum(1) @ q
    return {"AV": out / torch.as_tensor(total).clamp(min=1e-6)}


def flow(x: Tensors, n: Shape) -> Tensors:
    q, k = torch.sigmoid(x["Q"]), torch.sigmoid(x["K"])
    capacity = q.T @ k  # [p, m]
    incoming, outgoing = capacity.sum(1), capacity.sum(0)
    conserved_sink = (capacity / outgoing).sum(1)
    conserved_source = (capacity / incoming[:, None]).sum(0).clamp(-1, 1)
    competing = softmax(conserved_source) * n["M"]
    allocation = torch.sigmoid(conserved_sink * n["P"] / n["M"])
    weights = capacity / incoming[:, None] * competing
    return {"AV": (x["V"] @ weights.T) * allocation}


def flow_by_states(x: Tensors, n: Shape) -> Tensors:
    q, k = torch.sigmoid(x["Q"]), torch.sigmoid(x["K"])
    incoming, outgoing = 1 / (q.T @ k.sum(1)), 1 / (k.T @ q.sum(1))
    conserved_sink = q.T @ (k * outgoing).sum(1)
    conserved_source = (k.T @ (q * incoming).sum(1)).clamp(-1, 1)
    competing = torch.exp(conserved_source)
    gate = torch.sigmoid(conserved_sink * n["P"] / n["M"]) * incoming * n["M"] / competing.sum()
    return {"AV": (x["V"] @ (k * competing).T) @ q * gate}


def flow_causal(x: Tensors, n: Shape) -> Tensors:
    q, k, size = torch.sigmoid(x["Q"]), torch.sigmoid(x["K"]), n["N"]
    capacity = (q.T @ k).tril()  # sinks i see sources j <= i, and sources sinks
    backwards = (k.T @ q).tril()
    count = torch.arange(1, size + 1, dtype=q.dtype)
    incoming, outgoing = capacity.sum(1) / count, backwards.sum(1) / count
    conserved_sink = (capacity / outgoing).sum(1) / count
    conserved_source = ((backwards / incoming).sum(1) / count).clamp(-1, 1)
    rows = []
    for i in range(size):
        competing = torch.exp(conserved_source[: i + 1])
        shares = torch.stack(
            [competing[j] / competing[: j + 1].sum() * (j + 1) for j in range(i + 1)]
        )
        flow = capacity[i, : i + 1] / capacity[i].sum() * shares
        rows.append(x["V"][:, : i + 1] @ flow * torch.sigmoid(conserved_sink[i]))
    return {"AV": torch.stack(rows, 1)}


def flow_causal_by_states(x: Tensors, n: Shape) -> Tensors:
    q, k = torch.sigmoid(x["Q"]), torch.sigmoid(x["K"])
    count = torch.arange(1, n["N"] + 1).to(q.dtype)
    incoming, outgoing = 1 / (q * k.cumsum(1)).sum(0), 1 / (k * q.cumsum(1)).sum(0)
    conserved_sink = (q * (k * outgoing * count).cumsum(1)).sum(0) / count
    conserved_source = ((k * (q * incoming * count).cumsum(1)).sum(0) / count).clamp(-1, 1)
    competing = torch.exp(conserved_source)
    shares = competing / competing.cumsum(0) * count
    states = torch.einsum("en,fn->efn", k, x["V"] * shares).cumsum(-1)
    out = torch.einsum("en,efn->fn", q, states) * incoming
    return {"AV": out * torch.sigmoid(conserved_sink)}


def gathered_sums(x: Tensors, n: Shape) -> Tensors:
    return {"O": x["V"] @ (x["Q"].T @ x["K"]).T}


def agent(x: Tensors, n: Shape) -> Tensors:
    agents = x["Q"].reshape(n["E"], n["U"], n["T"]).mean(-1)
    values = attend(agents, x["K"], x["V"], bias=x["B1"])
    return {"AV": attend(x["Q"], agents, values, bias=x["B2"])}


def agent_image(x: Tensors, n: Shape) -> Tensors:
    queries = x["Q"].reshape(1, n["E"], n["Y"], n["X"])
    pooled = torch.nn.functional.adaptive_avg_pool2d(queries, (n["AY"], n["AX"]))
    agents = pooled.reshape(n["E"], -1)
    values = attend(agents, x["K"], x["V"], bias=x["B1"])
    out = attend(x["Q"], agents, values, bias=x["B2"])
    image = x["V"].reshape(1, n["F"], n["Y"], n["X"])
    near = torch.nn.functional.conv2d(image, x["WC"][:, None], padding=1, groups=n["F"])
    return {"AV": out + near.reshape(n["F"], -1)}


def gathered_states(x: Tensors, n: Shape) -> Tensors:
    return {"O": x["V"] @ (x["Q"].T @ x["K"]).tril().T}


def recurrent_query(x: Tensors, n: Shape) -> Tensors:
    prefixes = [attend(x["Q"][:, None], x["K"][:, :i], x["V"][:, :i]) for i in range(1, n["N"] + 1)]
    return {"O": torch.cat(prefixes, 1)}


def state_space(x: Tensors, n: Shape) -> Tensors:
    state, rows = x["H0"], []
    for t in range(n["N"]):
        entering = torch.outer(x["K"][:, t], x["V"][:, t]) * x["DT"][t]
        state = torch.exp(x["A"] * x["DT"][t]) * state + entering
        rows.append(state.T @ x["Q"][:, t] + x["D"] * x["V"][:, t])
    return {"O": torch.stack(rows, 1).reshape(n["F"], -1, n["I"]), "HN": state}


def state_space_in_parallel(x: Tensors, n: Shape) -> Tensors:
    sums = (x["A"] * x["DT"]).cumsum(0)
    weights = (x["Q"].T @ x["K"]) * torch.exp(sums[:, None] - sums).tril()
    out = (x["V"] * x["DT"]) @ weights.T + x["D"] * x["V"]
    out = out + (x["H0"].T @ x["Q"]) * torch.exp(sums)
    left = (x["K"] * torch.exp(sums[-1] - sums)) @ (x["V"] * x["DT"]).T
    state = torch.exp(sums[-1]) * x["H0"] + left
    return {"O": out.reshape(n["F"], -1, n["I"]), "HN": state}


def steps(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    return x | {"DT": np.abs(x["DT"]), "A": -np.abs(x["A"])}


def neural_memory(x: Tensors, n: Shape) -> Tensors:
    memory, surprise, rows = x["MI"], x["SI"], []
    for t in range(n["N"]):
        if t % n["I"] == 0:
            start = memory
        k, v = x["K"][:, t], x["V"][:, t]
        gradient = 2 * torch.outer(k, start.T @ k - v)
        surprise = torch.exp(x["LE"][t]) * surprise - x["TH"][t] * gradient
        memory = torch.exp(x["LA"][t]) * memory + surprise
        rows.append(memory.T @ x["Q"][:, t])
    out = torch.stack(rows, 1).reshape(n["F"], -1, n["I"])
    return {"Y": out, "MN": memory, "SN": surprise}


def neural_memory_in_chunks(x: Tensors, n: Shape) -> Tensors:
    memory, momentum, rows = x["MI"], x["SI"], []
    for start in range(0, n["N"], n["I"]):
        inside = slice(start, start + n["I"])
        q, k, v = (x[name][:, inside] for name in "QKV")
        kept, carried = x["LA"][inside].cumsum(0), x["LE"][inside].cumsum(0)
        forget = torch.exp(kept[:, None] - kept).tril()  # [i, u]
        steps = torch.exp(carried[:, None] - carried).tril() * x["TH"][inside]  # [u, j]
        both, old = forget @ steps, forget @ torch.exp(carried)
        error = memory.T @ k - v
        out = (memory.T @ q) * torch.exp(kept) + (momentum.T @ q) * old
        rows.append(out - 2 * error @ ((q.T @ k) * both).T)
        memory = memory * torch.exp(kept[-1]) + momentum * old[-1] - 2 * (k * both[-1]) @ error.T
        momentum = momentum * torch.exp(carried[-1]) - 2 * (k * steps[-1]) @ error.T
    return {"Y": torch.stack(rows, 1), "MN": memory, "SN": momentum}


def rates(x: Arrays, n: Shape, generator: np.random.Generator) -> Arrays:
    small = {"TH": 0.05 * np.abs(x["TH"])}
    return x | small | {name: -np.abs(x[name]) for name in ("LA", "LE")}


AGENTS = (
    {"E": 4, "F": 3, "P": 6, "M": 9, "U": 2, "M0": 3},
    {"E": 4, "F": 3, "P": 1, "M": 7, "U": 1, "M0": 1},
)

CASES = (
    Case("attention/linear", linear, DENSE),
    Case("attention/linear-causal", linear_causal, TOKENS, yardstick=linear_causal_by_states),
    Case(
        "attention/performer",
        performer,
        tuple(d | {"R": 5} for d in DENSE),
        performer_constants,
        large=3,
    ),
    Case("attention/cosformer", cosformer, DENSE, yardstick=cosformer_split),
    Case("attention/flow", flow, tuple(d | {"F": 32} for d in DENSE), yardstick=flow_by_states),
    Case(
        "attention/flow-causal",
        flow_causal,
        tuple(d | {"F": 32} for d in TOKENS),
        yardstick=flow_causal_by_states,
    ),
    Case(
        "attention/gathered-sums",
        gathered_sums,
        tuple(d | {"W": w} for d, w in zip(DENSE, (3, 7), strict=True)),
    ),
    Case("attention/agent", agent, AGENTS),
    Case(
        "attention/agent-image",
        agent_image,
        (
            {"E": 4, "F": 3, "Y": 4, "X": 6, "AY": 2, "AX": 3},
            {"E": 4, "F": 3, "Y": 1, "X": 1, "AY": 1, "AX": 1},
            {"E": 4, "F": 3, "Y": 3, "X": 5, "AY": 3, "AX": 1},
        ),
    ),
    Case(
        "attention/gathered-states",
        gathered_states,
        ({"E": 4, "F": 3, "M": 12, "W": 3}, {"E": 4, "F": 3, "M": 1, "W": 1}),
    ),
    Case("attention/recurrent-query", recurrent_query, TOKENS),
    Case("attention/state-space", state_space, CHUNKS, steps, yardstick=state_space_in_parallel),
    Case(
        "attention/neural-memory",
        neural_memory,
        CHUNKS,
        rates,
        large=1.5,
        yardstick=neural_memory_in_chunks,
    ),
)
