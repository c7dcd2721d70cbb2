"""What `derive` finds, by the executor, by known cascades, and by what the literature says."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings

from einfuse.einsum.analysis.passes import count_passes
from einfuse.einsum.derivation.deferral import shared
from einfuse.einsum.derivation.search import Derived, derive
from einfuse.einsum.execution.run import run
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.expression import Access, Call, Expression, Index, children
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.printer import render
from einfuse.einsum.library.cascades import load
from einfuse.einsum.testing import cascades

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

ATTENTION = """
rank E, F, P, M
input Q[E,P], K[E,M], V[F,M]{inputs}
output AV
QK[m,p] = Q[e,p] * K[e,m{filter}]
{scores}
GM[p] = S[m,p] :: max(m)
SN[m,p] = {exp}(S[m,p] - GM[p])
SD[p] = SN[m,p] :: +(m)
A[m,p] = SN[m,p] / SD[p]
AV[f,p] = A[m,p] * V[f,m]
"""


def attention(
    scores: str = "S[m,p] = QK[m,p]", inputs: str = "", filter: str = "", exp: str = "exp"
) -> str:
    return ATTENTION.format(scores=scores, inputs=inputs, filter=filter, exp=exp)


ATTENTIONS = {
    "scaled": attention("S[m,p] = QK[m,p] / sqrt(E)"),
    "bias": attention("S[m,p] = QK[m,p] + B[m,p]", ", B[M,P]"),
    "bias of distance": attention("S[m,p] = QK[m,p] - 0.5 * abs(m - p)"),
    "soft cap": attention("S[m,p] = 30 * tanh(QK[m,p] / 30)"),
    "mask": attention("S[m,p] = where(B[m,p], QK[m,p], -inf)", ", B[M,P]"),
    "causal": attention(filter=": m<=p"),
    "window": attention(filter=": m<=p & m+3>p"),
    "base two": attention("S[m,p] = 1.44269504 * QK[m,p]", exp="exp2"),
    "extra steps": attention("T[m,p] = QK[m,p] * 0.5\nU[m,p] = T[m,p] + 1\nS[m,p] = relu(U[m,p])"),
    "batch and heads": """
rank B, H, E, F, P, M
input Q[B,H,E,P], K[B,H,E,M], V[B,H,F,M]
output AV
QK[b,h,m,p] = Q[b,h,e,p] * K[b,h,e,m]
GM[b,h,p] = QK[b,h,m,p] :: max(m)
SN[b,h,m,p] = exp(QK[b,h,m,p] - GM[b,h,p])
SD[b,h,p] = SN[b,h,m,p] :: +(m)
A[b,h,m,p] = SN[b,h,m,p] / SD[b,h,p]
AV[b,h,f,p] = A[b,h,m,p] * V[b,h,f,m]
""",
    "grouped queries": """
rank H = 4, G = 2, E, F, P, M
input Q[H,E,P], K[G,E,M], V[G,F,M]
output AV
QK[h,m,p] = Q[h,e,p] * K[h/2,e,m]
GM[h,p] = QK[h,m,p] :: max(m)
SN[h,m,p] = exp(QK[h,m,p] - GM[h,p])
SD[h,p] = SN[h,m,p] :: +(m)
A[h,m,p] = SN[h,m,p] / SD[h,p]
AV[h,f,p] = A[h,m,p] * V[h/2,f,m]
""",
    "sink": """
rank E, F, P, M
input Q[E,P], K[E,M], V[F,M], B[]
output AV
QK[m,p] = Q[e,p] * K[e,m]
G0[p] = QK[m,p] :: max(m)
GM[p] = max(G0[p], B[])
SN[m,p] = exp(QK[m,p] - GM[p])
S0[p] = SN[m,p] :: +(m)
SD[p] = S0[p] + exp(B[] - GM[p])
A[m,p] = SN[m,p] / SD[p]
AV[f,p] = A[m,p] * V[f,m]
""",
    "two values": """
rank E, F, G, P, M
input Q[E,P], K[E,M], V[F,M], U[G,M]
output AV, AU
QK[m,p] = Q[e,p] * K[e,m]
GM[p] = QK[m,p] :: max(m)
SN[m,p] = exp(QK[m,p] - GM[p])
SD[p] = SN[m,p] :: +(m)
A[m,p] = SN[m,p] / SD[p]
AV[f,p] = A[m,p] * V[f,m]
AU[g,p] = A[m,p] * U[g,m]
""",
    "in two lines": """
rank E, F, P, M
input Q[E,P], K[E,M], V[F,M]
output AV
QK[m,p] = Q[e,p] * K[e,m]
GM[p] = QK[m,p] :: max(m)
SD[p] = exp(QK[m,p] - GM[p]) :: +(m)
AV[f,p] = exp(QK[m,p] - GM[p]) * V[f,m] / SD[p] :: +(m)
""",
    "filtered after the fact": """
rank E, F, P, M
input Q[E,P], K[E,M], V[F,M]
output AV
QK[m,p] = Q[e,p] * K[e,m]
GM[p] = QK[m: m<=p,p] :: max(m)
SN[m,p] = exp(QK[m,p] - GM[p])
SD[p] = SN[m: m<=p,p] :: +(m)
A[m,p] = SN[m,p] / SD[p]
AV[f,p] = A[m: m<=p,p] * V[f,m]
""",
    "reciprocal": """
rank E, F, P, M
input Q[E,P], K[E,M], V[F,M]
output AV
QK[m,p] = Q[e,p] * K[e,m]
GM[p] = QK[m,p] :: max(m)
SN[m,p] = exp(0.125 * (QK[m,p] - GM[p]))
SD[p] = SN[m,p] :: +(m)
R[p] = 1 / SD[p]
A[m,p] = SN[m,p] * R[p]
AV[f,p] = A[m,p] * V[f,m]
""",
    "other names and orders": """
rank D, C, T, S
input Vals[C,S], Keys[D,S], Queries[D,T]
output Out
Logit[t,s] = Keys[d,s] * Queries[d,t]
Top[t] = Logit[t,s] :: max(s)
Wt[t,s] = exp(Logit[t,s] - Top[t])
Norm[t] = Wt[t,s] :: +(s)
Prob[t,s] = Wt[t,s] / Norm[t]
Out[t,c] = Vals[c,s] * Prob[t,s]
""",
    "mixture of experts": """
rank M, F, P
input R[M,P], Y[M,F,P]
output O
G[p] = R[m,p] :: max(m)
E[m,p] = exp(R[m,p] - G[p])
S[p] = E[m,p] :: +(m)
O[f,p] = E[m,p] / S[p] * Y[m,f,p] :: +(m)
""",
}
"""Attention as people write it; each in one stable pass."""

ONE_PASS = {
    "log-sum-exp": """
rank M
input X[M]
output L
G[] = X[m] :: max(m)
E[m] = exp(X[m] - G[])
S[] = E[m] :: +(m)
L[] = G[] + log(S[])
""",
    "cross-entropy": """
rank M, P
input X[M,P], T[P]
output C
G[p] = X[m,p] :: max(m)
S[p] = exp(X[m,p] - G[p]) :: +(m)
C[p] = log(S[p]) + G[p] - X[T[p],p]
""",
    "cross-entropy of soft labels": """
rank M, P
input X[M,P], Y[M,P]
output C
G[p] = X[m,p] :: max(m)
S[p] = exp(X[m,p] - G[p]) :: +(m)
L[m,p] = X[m,p] - G[p] - log(S[p])
C[p] = -(Y[m,p] * L[m,p]) :: +(m)
""",
    "variance": """
rank M
input X[M]
output Y
MU[] = X[m] / M :: +(m)
D[m] = X[m] - MU[]
S[] = sq(D[m]) :: +(m)
Y[] = S[] / M
""",
    "covariance": """
rank M
input X[M], Z[M]
output Y
A[] = X[m] / M :: +(m)
B[] = Z[m] / M :: +(m)
Y[] = (X[m] - A[]) * (Z[m] - B[]) / M :: +(m)
""",
    "RMSNorm into a matmul": """
rank M, N, B
input X[B,M], W[M,N], G[M]
output Y
S[b] = X[b,m] * X[b,m]
R[b] = rsqrt(S[b] / M + 0.00001)
H[b,m] = X[b,m] * R[b] * G[m]
Y[b,n] = H[b,m] * W[m,n]
""",
    "LayerNorm into a matmul": """
rank M, N, B
input X[B,M], W[M,N], G[M], C[M]
output Y
S[b] = X[b,m]
MU[b] = S[b] / M
V[b] = sq(X[b,m] - MU[b]) :: +(m)
R[b] = rsqrt(V[b] / M + 0.00001)
H[b,m] = (X[b,m] - MU[b]) * R[b] * G[m] + C[m]
Y[b,n] = H[b,m] * W[m,n]
""",
    "cosine similarity": """
rank M
input A[M], B[M]
output Y
SA[] = A[m] * A[m]
SB[] = B[m] * B[m]
NA[] = sqrt(SA[])
NB[] = sqrt(SB[])
X[m] = A[m] / NA[]
Z[m] = B[m] / NB[]
Y[] = X[m] * Z[m]
""",
    "scaled norm": """
rank M
input X[M]
output N
A[] = abs(X[m]) :: max(m)
T[] = sq(X[m] / A[]) :: +(m)
N[] = A[] * sqrt(T[])
""",
    "scaled norm of order three": """
rank M
input X[M]
output N
A[] = abs(X[m]) :: max(m)
T[] = exp(3 * log(abs(X[m]) / A[])) :: +(m)
N[] = A[] * exp(log(T[]) / 3)
""",
    "matmul scaled by the largest magnitude": """
rank M, N, P
input X[M,P], W[M,N]
output Y
A[p] = abs(X[m,p]) :: max(m)
Z[n,p] = X[m,p] / A[p] * W[m,n] :: +(m)
Y[n,p] = Z[n,p] * A[p]
""",
    "dQ": """
rank E, F, P, M
input Q[E,P], K[E,M], V[F,M], DO[F,P]
output DQ
S[m,p] = Q[e,p] * K[e,m]
G[p] = S[m,p] :: max(m)
N[m,p] = exp(S[m,p] - G[p])
Z[p] = N[m,p] :: +(m)
PR[m,p] = N[m,p] / Z[p]
DP[m,p] = DO[f,p] * V[f,m]
D[p] = PR[m,p] * DP[m,p]
DS[m,p] = PR[m,p] * (DP[m,p] - D[p])
DQ[e,p] = DS[m,p] * K[e,m]
""",
    "weighted variance": """
rank M
input S[M], X[M]
output Y
G[] = S[m] :: max(m)
N[m] = exp(S[m] - G[])
D[] = N[m] :: +(m)
A[m] = N[m] / D[]
MU[] = A[m] * X[m]
Y[] = A[m] * sq(X[m] - MU[]) :: +(m)
""",
    "smallest first": """
rank M
input X[M], V[M]
output Y
G[] = X[m] :: min(m)
E[m] = exp(G[] - X[m])
S[] = E[m] :: +(m)
Y[] = E[m] / S[] * V[m] :: +(m)
""",
    "largest deviation": """
rank M
input X[M]
output Y
S[] = X[m]
MU[] = S[] / M
Y[] = X[m] - MU[] :: max(m)
""",
    "attention by way of the log-sum-exp": """
rank E, F, P, M
input Q[E,P], K[E,M], V[F,M]
output AV
QK[m,p] = Q[e,p] * K[e,m]
GM[p] = QK[m,p] :: max(m)
SN[m,p] = exp(QK[m,p] - GM[p])
SD[p] = SN[m,p] :: +(m)
LSE[p] = GM[p] + log(SD[p])
A[m,p] = exp(QK[m,p] - LSE[p])
AV[f,p] = A[m,p] * V[f,m]
""",
    "a sum inside of a fold": """
rank M, K, N
input X[M,K], W[M,N], U[K]
output Y
S[k] = abs(X[m,k]) :: +(m)
Z[m,k] = X[m,k] / S[k]
T[m] = Z[m,k] * U[k]
Y[n] = T[m] * W[m,n]
""",
    "twice the same vector": """
rank M
input A[M], B[M]
output Z
Y[] = A[m] * B[m]
Z[] = Y[] * A[m]
""",
}
"""What else has one stable pass."""

TWO_PASSES = {
    "softmax output": (
        "rank M, P\ninput X[M,P]\noutput A\nG[p] = X[m,p] :: max(m)\n"
        "E[m,p] = exp(X[m,p] - G[p])\nS[p] = E[m,p] :: +(m)\nA[m,p] = E[m,p] / S[p]\n",
        "A is as long as M",
    ),
    "attention and its weights": (
        attention().replace("output AV", "output AV, A"),
        "A is as long as M",
    ),
    "LayerNorm output": (
        "rank M, P\ninput X[M,P]\noutput Y\nMU[p] = X[m,p] / M :: +(m)\n"
        "V[p] = sq(X[m,p] - MU[p]) / M :: +(m)\n"
        "Y[m,p] = (X[m,p] - MU[p]) * rsqrt(V[p] + 0.001)\n",
        "Y is as long as M",
    ),
    "normalised output": (
        "rank M\ninput X[M]\noutput Y\nS[] = abs(X[m]) :: +(m)\nY[m] = X[m] / S[]\n",
        "Y is as long as M",
    ),
    "quantised by the largest magnitude": (
        "rank M\ninput X[M]\noutput Y\nA[] = abs(X[m]) :: max(m)\nY[m] = floor(127*X[m]/A[])\n",
        "Y is as long as M",
    ),
    "matmul of what is quantised so": (
        "rank M, N\ninput X[M], W[M,N]\noutput Y\nA[] = abs(X[m]) :: max(m)\n"
        "I[m] = floor(127 * X[m] / A[])\nY[n] = I[m] * W[m,n]\n",
        "Y has no correction",
    ),
    "sigmoid of a difference": (
        "rank M\ninput X[M]\noutput Y\nS[] = X[m]\nMU[] = S[] / M\n"
        "Y[] = sigmoid(X[m] - MU[]) :: +(m)\n",
        "Y has no correction",
    ),
    "tanh of a difference": (
        "rank M\ninput X[M]\noutput Y\nS[] = X[m]\nMU[] = S[] / M\n"
        "Y[] = tanh(X[m] - MU[]) :: +(m)\n",
        "Y has no correction",
    ),
    "bell about the mean": (
        "rank M\ninput X[M]\noutput Y\nS[] = X[m]\nMU[] = S[] / M\n"
        "Y[] = exp(-sq(X[m] - MU[])) :: +(m)\n",
        "Y has no correction",
    ),
    "threshold of the largest": (
        "rank M, T\ninput X[M], V[M]\noutput Y\n(XV[t], XI[t]) = X[m] :: topk(m -> t)\n"
        "TH[] = XV[t] :: min(t)\nW[m] = where(ge(X[m], TH[]), X[m], 0)\nY[] = W[m] * V[m]\n",
        "XV selects coordinates",
    ),
    "rows, then columns": (
        "rank M, P\ninput X[M,P]\noutput B\nR[m] = X[m,p] :: +(p)\nA[m,p] = X[m,p] / R[m]\n"
        "C[p] = A[m,p] :: +(m)\nB[m,p] = A[m,p] / C[p]\n",
        "B is as long as M",
    ),
}
"""What needs two passes, and a word of the reason."""

FLASH_ATTENTION_1 = """
rank E, F, P, M1, M0
split M -> M1, M0
iter m1 over M1
input Q[E,P], K[E,M], V[F,M]
output AV
init:
BK[e,m1,m0] = K[e, m1*M0+m0]
BV[f,m1,m0] = V[f, m1*M0+m0]
RM[0,p] = -inf
RD[0,p] = 0
O[f,0,p] = 0
loop:
QK[m1,m0,p] = Q[e,p] * BK[e,m1,m0]
LM[m1,p] = QK[m1,m0,p] :: max(m0)
RM[m1+1,p] = max(RM[m1,p], LM[m1,p])
SLN[m1,m0,p] = exp(QK[m1,m0,p] - RM[m1+1,p])
SLD[m1,p] = SLN[m1,m0,p] :: +(m0)
PRM[m1,p] = exp(RM[m1,p] - RM[m1+1,p])
SPD[m1,p] = RD[m1,p] * PRM[m1,p]
RD[m1+1,p] = SLD[m1,p] + SPD[m1,p]
A[m1,m0,p] = SLN[m1,m0,p] / RD[m1+1,p]
LO[f,m1,p] = A[m1,m0,p] * BV[f,m1,m0]
W[m1,p] = RD[m1,p] * PRM[m1,p] / RD[m1+1,p]
PO[f,m1,p] = O[f,m1,p] * W[m1,p]
O[f,m1+1,p] = LO[f,m1,p] + PO[f,m1,p]
final:
AV[f,p] = O[f,M1,p]
"""
"""arXiv 2205.14135, Algorithm 1: the accumulator stays normalised."""

SPLIT_K = """
rank E, F, P, M1, M0
split M -> M1, M0
input Q[E,P], K[E,M], V[F,M]
output AV
BK[e,m1,m0] = K[e, m1*M0+m0]
BV[f,m1,m0] = V[f, m1*M0+m0]
QK[m1,m0,p] = Q[e,p] * BK[e,m1,m0]
LM[m1,p] = QK[m1,m0,p] :: max(m0)
GM[p] = LM[m1,p] :: max(m1)
SLN[m1,m0,p] = exp(QK[m1,m0,p] - LM[m1,p])
SLD[m1,p] = SLN[m1,m0,p] :: +(m0)
PLM[m1,p] = exp(LM[m1,p] - GM[p])
SD[p] = SLD[m1,p] * PLM[m1,p]
SLNV[f,m1,p] = SLN[m1,m0,p] * BV[f,m1,m0]
SNV[f,p] = SLNV[f,m1,p] * PLM[m1,p]
AV[f,p] = SNV[f,p] / SD[p]
"""
"""FlashDecoding: partial results of each split, merged."""

NAIVE = """
rank E, F, P, M
input Q[E,P], K[E,M], V[F,M]
output AV
QK[m,p] = Q[e,p] * K[e,m]
SN[m,p] = exp(QK[m,p])
SD[p] = SN[m,p] :: +(m)
SNV[f,p] = SN[m,p] * V[f,m]
AV[f,p] = SNV[f,p] / SD[p]
"""


# Isomorphism: a bijection of tensor names that maps one cascade's Einsums to another's


def isomorphic(first: Cascade, second: Cascade) -> bool:
    """Tell whether two cascades are one, up to the names of what is neither input nor output."""
    sections = [(first.init, second.init), (first.loop, second.loop), (first.final, second.final)]
    if any(len(a) != len(b) for a, b in sections) or first.outputs != second.outputs:
        return False
    fixed = {name: name for name in (*first.inputs, *first.outputs)}
    pairs = [(einsum, b) for a, b in sections for einsum in a]
    return _extended(pairs, fixed, frozenset())


def _extended(
    pairs: list[tuple[Einsum, tuple[Einsum, ...]]], names: dict[str, str], used: frozenset[int]
) -> bool:
    if not pairs:
        return True
    einsum, candidates = pairs[0]
    for candidate in candidates:
        if id(candidate) in used:
            continue
        extended = _unified(einsum, candidate, dict(names))
        if extended is not None and _extended(pairs[1:], extended, used | {id(candidate)}):
            return True
    return False


def _unified(first: Einsum, second: Einsum, names: dict[str, str]) -> dict[str, str] | None:
    reduced = [
        {(r.operator, frozenset(r.variables)) for r in e.reductions} for e in (first, second)
    ]
    if reduced[0] != reduced[1]:
        return None
    if not _same(first.output, second.output, names):
        return None
    return names if _same(first.expression, second.expression, names) else None


def _reduced(einsum: Einsum) -> set[tuple[str, frozenset[str]]]:
    return {(r.operator, frozenset(r.variables)) for r in einsum.reductions}


def _same(a: Expression | Index, b: Expression | Index, names: dict[str, str]) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Access) and isinstance(b, Access):
        if a.tensor not in names:
            if b.tensor in names.values():
                return False
            names[a.tensor] = b.tensor
        return names[a.tensor] == b.tensor and a.indices == b.indices
    below = list(zip(children(a), children(b), strict=False))
    if not below or len(list(children(a))) != len(list(children(b))):
        return a == b
    own = ("operator", "function")
    if any(getattr(a, name, None) != getattr(b, name, None) for name in own):
        return False
    return all(_same(x, y, names) for x, y in below)  # type: ignore[arg-type]


# Running on inputs


def inputs_for(
    cascade: Cascade, sizes: Mapping[str, int], seed: int, scale: float = 1.0, kind: type = float
) -> Arrays:
    """Random inputs; T holds coordinates, B and other masks hold 0 and 1 where they decide."""
    random = np.random.default_rng(seed)
    found: Arrays = {}
    for tensor in cascade.input_tensors:
        extent = tuple(sizes[rank] for rank in tensor.ranks)
        if tensor.name == "T":
            found["T"] = random.integers(0, sizes["M"], extent)
        else:
            found[tensor.name] = (random.normal(size=extent) * scale).astype(kind)
    return found


def sizes_of(cascade: Cascade) -> dict[str, int]:
    found = {rank: size for rank, size in zip("ABCDEFGHPQRSTN", range(3, 30), strict=False)}
    own = {r.name: r.size for r in cascade.ranks if isinstance(r.size, int)}
    sizes = {r: own.get(r, found.get(r, 5)) for r in cascade.rank_names} | {"M": 12, "T": 5}
    if "S" in cascade.rank_names:
        sizes["S"] = 12
    return sizes


def run_derived(derived: Cascade, inputs: Arrays, sizes: Mapping[str, int]) -> Arrays:
    own = {s.inner: 4 for s in derived.splits}
    known = {rank: size for rank, size in sizes.items() if rank in derived.rank_names}
    found: Arrays = run(derived, inputs, known | own)
    return found


@pytest.fixture(scope="module")
def textbook() -> tuple[Derived, ...]:
    return derive(load("attention/3-pass"), "M")


@functools.cache
def found_for(text: str) -> tuple[Derived, ...]:
    return derive(parse(text), rank_for(text))


def rank_for(text: str) -> str:
    return "S" if "rank D, C, T, S" in text else "M"


def every_text() -> Iterator[Any]:
    for cases in (ATTENTIONS, ONE_PASS):
        for name, text in cases.items():
            yield pytest.param(text, id=name)
    for name, (text, _) in TWO_PASSES.items():
        yield pytest.param(text, id=name)


# From textbook attention


@pytest.mark.parametrize(
    ("known", "passes", "sweeps"),
    [
        ("attention/3-pass-deferred", 2, 2),
        ("attention/2-pass", 2, 3),
        ("attention/1-pass", 1, 1),
        (FLASH_ATTENTION_1, 1, 1),
        (SPLIT_K, 1, 2),
        (NAIVE, 1, 1),
    ],
    ids=["deferred", "local maximum", "Cascade 5", "FlashAttention-1", "split-K", "naive"],
)
def test_textbook_attention_gives_a_known_cascade_einsum_for_einsum(
    textbook: tuple[Derived, ...], known: str, passes: int, sweeps: int
) -> None:
    expected = parse(known) if "\n" in known else load(known)
    same = [d for d in textbook if isomorphic(d.cascade, expected)]
    assert len(same) == 1
    assert (same[0].passes, same[0].sweeps) == (passes, sweeps)


def test_the_origin_comes_first(textbook: tuple[Derived, ...]) -> None:
    assert textbook[0].cascade == load("attention/3-pass")
    assert textbook[0].steps == ()
    assert (textbook[0].passes, textbook[0].sweeps) == (3, 3)


def test_only_the_form_without_a_maximum_is_unstable(textbook: tuple[Derived, ...]) -> None:
    unstable = [d for d in textbook if not d.stable]
    assert len(unstable) == 1
    assert isomorphic(unstable[0].cascade, parse(NAIVE))
    assert unstable[0].exact
    assert any("exp(QK[m,p])" in hazard for hazard in unstable[0].hazards)


def test_steps_are_cascades_that_compute_the_same(textbook: tuple[Derived, ...]) -> None:
    origin = load("attention/3-pass")
    sizes = {"E": 3, "F": 2, "P": 5, "M": 12}
    inputs = inputs_for(origin, sizes, 3)
    expected = run(origin, inputs, sizes)["AV"]
    for derived in textbook:
        for step in derived.steps:
            assert step.rule in set("TDLVHF")
            assert step.explanation
            found = run_derived(parse(step.text), inputs, sizes)["AV"]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
        if derived.steps:
            assert derived.steps[-1].text == derived.text


def test_nothing_in_the_set_is_worse_in_everything(textbook: tuple[Derived, ...]) -> None:
    def better(a: Derived, b: Derived) -> bool:
        names = {*a.operations, *b.operations}
        counts = [(a.operations.get(n, 0) - b.operations.get(n, 0)) for n in names]
        return (
            a.passes <= b.passes
            and a.sweeps <= b.sweeps
            and a.stable >= b.stable
            and all(count == 0 for count in counts)
            and a.footprint == b.footprint
        )

    assert not any(better(a, b) for a in textbook for b in textbook[1:] if a is not b)


# Everything else


@pytest.mark.slow
@pytest.mark.parametrize("text", [pytest.param(t, id=n) for n, t in ATTENTIONS.items()])
def test_attention_as_people_write_it_needs_one_pass(text: str) -> None:
    found = found_for(text)
    kinds = {(d.passes, d.sweeps) for d in found if d.stable}
    assert {(1, 1), (1, 2), (2, 2), (2, 3), (3, 3)} <= kinds


@pytest.mark.slow
@pytest.mark.parametrize("text", [pytest.param(t, id=n) for n, t in ONE_PASS.items()])
def test_one_stable_pass_is_found(text: str) -> None:
    found = found_for(text)
    assert any(d.passes == 1 and d.stable for d in found)
    assert not any(d.obstacles for d in found)


@pytest.mark.parametrize(
    ("text", "reason"), [pytest.param(*case, id=n) for n, case in TWO_PASSES.items()]
)
def test_two_passes_are_kept_with_a_reason(text: str, reason: str) -> None:
    found = found_for(text)
    assert min(d.passes for d in found) == 2
    assert any(reason in o for d in found if d.passes == 2 for o in d.obstacles)


@pytest.mark.slow
@pytest.mark.parametrize("text", list(every_text()))
def test_every_derived_cascade_equals_its_origin(text: str) -> None:
    origin = parse(text)
    sizes = sizes_of(origin)
    for derived in found_for(text):
        for seed in (11, 12):
            inputs = inputs_for(origin, sizes, seed)
            expected = run_derived(origin, inputs, sizes)
            found = run_derived(derived.cascade, inputs, sizes)
            for name, values in expected.items():
                scale = max(1.0, float(np.abs(values).max()))
                np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-10 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("text", [pytest.param(t, id=n) for n, t in ATTENTIONS.items()])
def test_stable_cascades_are_finite_on_scores_of_ten_thousand(text: str) -> None:
    origin = parse(text)
    sizes = sizes_of(origin)
    for derived in found_for(text):
        inputs = inputs_for(origin, sizes, 5, scale=100.0, kind=np.float32)
        expected = run_derived(origin, inputs, sizes)
        found = run_derived(derived.cascade, inputs, sizes)
        for name, values in expected.items():
            assert np.isfinite(values).all()
            if derived.stable:
                assert np.isfinite(found[name]).all()
                np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("scores", [1e4, -1e4])
def test_textbook_attention_is_finite_where_all_scores_are_large(
    textbook: tuple[Derived, ...], scores: float
) -> None:
    origin = load("attention/3-pass")
    sizes = {"E": 1, "F": 2, "P": 3, "M": 12}
    inputs = inputs_for(origin, sizes, 1, kind=np.float32)
    inputs["Q"] = np.ones((1, 3), np.float32)
    inputs["K"] = np.full((1, 12), scores, np.float32)
    for derived in textbook:
        finite = np.isfinite(run_derived(derived.cascade, inputs, sizes)["AV"]).all()
        assert finite or not derived.stable


# Masks, infinite data, zeros


def test_masked_rows_and_tiles_agree_with_the_origin() -> None:
    origin = parse(ATTENTIONS["mask"])
    sizes = {"E": 3, "F": 2, "P": 6, "M": 12}
    inputs = inputs_for(origin, sizes, 2)
    mask = np.random.default_rng(0).random((12, 6)) > 0.4
    mask[:4, :3] = False  # the first tile of some rows
    mask[:, 5] = False  # a whole row
    inputs["B"] = mask.astype(float)
    expected = run(origin, inputs)["AV"]
    assert (expected[:, 5] == 0).all()
    for derived in derive(origin, "M"):
        found = run_derived(derived.cascade, inputs, sizes)["AV"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_window_that_misses_the_first_tiles_agrees_with_the_origin() -> None:
    origin = parse(ATTENTIONS["window"])
    sizes = {"E": 3, "F": 2, "P": 14, "M": 12}
    inputs = inputs_for(origin, sizes, 2)
    expected = run(origin, inputs)["AV"]
    for derived in derive(origin, "M"):
        found = run_derived(derived.cascade, inputs, sizes)["AV"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_an_infinite_bias_on_the_first_tile_agrees_with_the_origin() -> None:
    origin = parse(ATTENTIONS["bias"])
    sizes = {"E": 3, "F": 2, "P": 6, "M": 12}
    inputs = inputs_for(origin, sizes, 2)
    inputs["B"][:5, :4] = -np.inf
    expected = run(origin, inputs)["AV"]
    for derived in derive(origin, "M"):
        found = run_derived(derived.cascade, inputs, sizes)["AV"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_tile_of_zeros_does_not_divide_by_its_largest_magnitude() -> None:
    values = np.random.default_rng(4).normal(size=12)
    values[:6] = 0
    for derived in derive(parse(ONE_PASS["scaled norm"]), "M"):
        found = run_derived(derived.cascade, {"X": values}, {"M": 12})["N"]
        assert found == pytest.approx(np.linalg.norm(values))


# Numerics of vector states


def test_the_running_variance_keeps_its_digits_far_from_zero() -> None:
    values = np.random.default_rng(4).normal(size=4096) + 1e8
    found = derive(parse(ONE_PASS["variance"]), "M")
    errors = {}
    for derived in found:
        result = run(derived.cascade, {"X": values}, {s.inner: 64 for s in derived.cascade.splits})
        errors[derived.passes, derived.stable] = abs(float(result["Y"]) / values.var() - 1)
    assert errors[1, True] < 1e-6
    assert errors[1, False] > 1e-3


def test_welford_carries_a_count_a_mean_and_a_sum_of_squares() -> None:
    found = derive(parse(ONE_PASS["variance"]), "M")
    running = next(d for d in found if d.cascade.loop and d.stable)
    generational = {e.name for e in running.cascade.init if not e.operands}
    assert len(generational) == 3  # sum, mean, sum of squared deviations; the count is an index
    assert running.steps[-1].rule == "V"


# Sizes, names, limits


def test_derived_texts_carry_sizes_and_run_as_they_are() -> None:
    text = ATTENTIONS["scaled"].replace("rank E, F, P, M", "rank E = 3, F = 2, P = 5, M = 12")
    origin = parse(text)
    inputs = inputs_for(origin, {"E": 3, "F": 2, "P": 5, "M": 12}, 0)
    expected = run(origin, inputs)["AV"]
    for derived in derive(origin, "M"):
        again = parse(derived.text)
        assert again == derived.cascade
        np.testing.assert_allclose(run(again, inputs)["AV"], expected, rtol=0, atol=1e-12)
        assert all(
            isinstance(count, int) or count.is_Integer for count in derived.operations.values()
        )


@pytest.mark.parametrize("size", [1, 7, 16, 4096])
def test_tiles_divide_any_size(size: int) -> None:
    text = ONE_PASS["log-sum-exp"].replace("rank M", f"rank M = {size}")
    for derived in derive(parse(text), "M"):
        values = np.random.default_rng(1).normal(size=size)
        found = run(parse(derived.text), {"X": values})["L"]
        assert found == pytest.approx(np.log(np.exp(values).sum()))


def test_sizes_of_tiles_can_be_given() -> None:
    found = derive(load("attention/3-pass"), "M", sizes={"M": 64, "M0": 8})
    inner = {r.size for d in found for r in d.cascade.ranks if r.name == "M0"}
    assert inner == {8}


def test_names_and_orders_do_not_matter(textbook: tuple[Derived, ...]) -> None:
    text = load("attention/3-pass")
    renamed = re.sub(r"\bGM\b", "M1", render(text))
    renamed = re.sub(r"\bSN\b", "RGM", re.sub(r"\bSD\b", "C", renamed))
    found = derive(parse(renamed), "M")
    assert _profile(found) == _profile(textbook)


def _profile(found: tuple[Derived, ...]) -> list[tuple[Any, ...]]:
    return sorted((d.passes, d.sweeps, d.stable, len(d.cascade.einsums)) for d in found)


def test_a_cascade_in_tiles_is_derived_at_the_outer_level() -> None:
    found = derive(load("attention/2-pass"), "M")
    assert (found[0].passes, found[0].sweeps) == (2, 3)
    assert any((d.passes, d.sweeps) == (1, 1) and d.stable for d in found)


def test_an_iterative_cascade_is_returned_as_it_is() -> None:
    found = derive(load("attention/1-pass"), "M")
    assert [d.cascade for d in found] == [load("attention/1-pass")]


def test_no_time_gives_the_origin_at_once() -> None:
    found = derive(parse(ONE_PASS["dQ"]), "M", seconds=0)
    assert found[0].steps == ()


@pytest.mark.parametrize("seconds", [0.2, 0.6])
def test_a_time_limit_holds_in_the_first_step_too(seconds: float) -> None:
    lines, last = ["rank M", "input X[M]", "output Y"], "X[m]"
    for n in range(30):
        lines += [f"G{n}[] = {last} :: max(m)", f"Z{n}[m] = exp({last} - G{n}[])"]
        last = f"Z{n}[m]"
    cascade = parse("\n".join([*lines, f"Y[] = {last}"]))
    derive(cascade, "M", seconds=0)  # what is imported at the first call
    start = time.process_time()
    found = derive(cascade, "M", seconds=seconds)
    assert time.process_time() - start < seconds + 0.7  # the report of the origin is always made
    assert found[0].cascade == cascade


def test_what_is_found_in_time_is_verified_and_kept() -> None:
    found = derive(load("attention/3-pass-deferred"), "M", seconds=60)
    assert {(d.passes, d.sweeps) for d in found} >= {(1, 1), (1, 2), (2, 2)}


@pytest.mark.parametrize(
    ("index", "order"), [("IX[m]", "where coordinates say"), ("M-1-m", "in reversed order")]
)
def test_reads_out_of_order_are_obstacles(index: str, order: str) -> None:
    text = f"rank M\ninput X[M], IX[M]\noutput Y\nG[m] = sq(X[m])\nY[] = G[{index}] * X[m] + IX[m]"
    found = derive(parse(text), "M")
    assert all(d.passes == 2 and order in d.obstacles[0] for d in found)


def test_the_barrier_of_every_generation_is_an_obstacle() -> None:
    sinkhorn = (
        "rank T = 3, I, J\niter t over T\ninput C[I,J]\noutput Y\ninit:\nX[0,i,j] = exp(C[i,j])\n"
        "loop:\nR[t,i] = X[t,i,j] :: +(j)\nZ[t,i,j] = X[t,i,j] / R[t,i]\n"
        "L[t,j] = Z[t,i,j] :: +(i)\nX[t+1,i,j] = Z[t,i,j] / L[t,j]\nfinal:\nY[i,j] = X[T,i,j]"
    )
    (found,) = derive(parse(sinkhorn), "J")
    assert any("Z reads R in every generation" in reason for reason in found.obstacles)


def test_results_are_immutable(textbook: tuple[Derived, ...]) -> None:
    with pytest.raises(AttributeError):
        textbook[0].exact = False  # type: ignore[misc]


def test_an_unknown_rank_is_refused() -> None:
    with pytest.raises(EinfuseError, match="'Z'"):
        derive(load("attention/3-pass"), "Z")


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(EinfuseError, match="found Z"):
        derive(load("attention/3-pass"), "M", sizes={"Z": 4})


def test_a_rank_without_barriers_has_nothing_to_derive() -> None:
    found = derive(load("attention/3-pass"), "P")
    assert len(found) == 1
    assert found[0].passes == count_passes(load("attention/3-pass"), "P").passes


@pytest.mark.slow
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
@given(cascades(max_einsums=7))
def test_random_cascades_are_derived_without_a_fault(cascade: Cascade) -> None:
    for rank in cascade.rank_names[:2]:
        found = derive(cascade, rank)
        assert found[0].cascade == cascade


@pytest.mark.filterwarnings("ignore:input")
def test_long_chains_are_derived_without_a_quadratic_walk() -> None:
    """A thousand Einsums: what is quadratic in them takes minutes."""
    lines = [f"T{i}[m] = {f'T{i - 1}' if i else 'A'}[m] * 2" for i in range(1000)]
    text = "rank M\ninput A[M]\noutput T999\n" + "\n".join(lines)
    assert [found.passes for found in derive(parse(text))] == [1]


def test_calls_that_several_einsums_make_are_shared_in_the_order_of_the_text() -> None:
    text = "rank M\ninput A[M], B[M]\noutput Y, Z\n"
    text += "Y[m] = A[m] * cos(B[m]) - sin(B[m])\nZ[m] = A[m] * sin(B[m]) + cos(B[m])"
    einsums = shared(list(parse(text).einsums), set())
    names = {e.expression.function: e.name for e in einsums if isinstance(e.expression, Call)}
    assert names == {"cos": "YE", "sin": "YE2"}
