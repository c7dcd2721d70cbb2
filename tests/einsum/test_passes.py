"""Pass counts: hand-derived vectors, the definition by exhaustion, directions, iterations."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace
from fractions import Fraction

import pytest

from einfuse.einsum.analysis.access_kinds import Kind
from einfuse.einsum.analysis.dependence import Direction
from einfuse.einsum.analysis.lineage import trace
from einfuse.einsum.analysis.passes import PassReport, choose_rank, count_passes
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.errors import CascadeError, EinfuseError
from einfuse.einsum.language.parser import parse
from einfuse.einsum.library.cascades import load, names


@dataclass(frozen=True)
class Vector:
    """A cascade with its counts: sweeps S, passes P, and passes of every root, by hand."""

    name: str
    rank: str
    sweeps: int
    passes: int
    roots: dict[str, int]
    text: str

    @property
    def cascade(self) -> Cascade:
        return parse(self.text, self.name)

    @property
    def report(self) -> PassReport:
        return _report(self.text, self.rank)


@functools.cache
def _report(text: str, rank: str) -> PassReport:
    return count_passes(parse(text), rank)


ATTENTION = """
rank E, F, P, M
input Q[E,P], K[E,M], V[F,M]
output AV
QK[m,p] = Q[e,p] * K[e,m]
"""
TILED = """
rank E, F, P, M1, M0
split M -> M1, M0
input Q[E,P], K[E,M], V[F,M]
output AV
BK[e,m1,m0] = K[e, m1*M0+m0]
BV[f,m1,m0] = V[f, m1*M0+m0]
QK[m1,m0,p] = Q[e,p] * BK[e,m1,m0]
LM[m1,p] = QK[m1,m0,p] :: max(m0)
"""
LOCAL = """
SLN[m1,m0,p] = exp(QK[m1,m0,p] - LM[m1,p])
SLD[m1,p] = SLN[m1,m0,p] :: +(m0)
GM[p] = LM[m1,p] :: max(m1)
PLM[m1,p] = exp(LM[m1,p] - GM[p])
SD[p] = SLD[m1,p] * PLM[m1,p]
"""
VECTORX = """
rank M
input X[M]
output Y
"""

# The numbered rows of the taxonomy: FuseMax (arXiv 2406.10491), Table I and Cascades 1 to 5, and
# the other cascades of its section III worked out by hand.
NUMBERED = [
    Vector(
        "1 dot product scales a sum",
        "K",
        2,
        2,
        {"A": 2, "B": 1},
        """
rank K
input A[K], B[K]
output Z
Y[] = A[k] * B[k]
Z[] = Y[] * A[k]
""",
    ),
    Vector(
        "2 the same, distributed",
        "K",
        1,
        1,
        {"A": 1, "B": 1},
        """
rank K
input A[K], B[K]
output Z
Y[] = A[k] * B[k]
X[] = A[k] :: +(k)
Z[] = Y[] * X[]
""",
    ),
    Vector(
        "3 the same, iterative",
        "K",
        1,
        1,
        {"A": 1, "B": 1},
        """
rank K
iter i over K
input A[K], B[K]
output Z
init:
RY[0] = 0
RZ[0] = 0
loop:
RY[i+1] = RY[i] + A[i] * B[i]
RZ[i+1] = RZ[i] * RY[i+1] / RY[i] + RY[i+1] * A[i]
final:
Z[] = RZ[K]
""",
    ),
    Vector(
        "4 naive softmax attention",
        "M",
        2,
        2,
        {"K": 2, "V": 1},
        ATTENTION
        + """
SN[m,p] = exp(QK[m,p])
SD[p] = SN[m,p] :: +(m)
A[m,p] = SN[m,p] / SD[p]
AV[f,p] = A[m,p] * V[f,m]
""",
    ),
    Vector(
        "5 naive, deferred",
        "M",
        1,
        1,
        {"K": 1, "V": 1},
        ATTENTION
        + """
SN[m,p] = exp(QK[m,p])
SD[p] = SN[m,p] :: +(m)
SNV[f,p] = SN[m,p] * V[f,m]
AV[f,p] = SNV[f,p] / SD[p]
""",
    ),
    Vector(
        "6 stable softmax attention",
        "M",
        3,
        3,
        {"K": 3, "V": 1},
        ATTENTION
        + """
GM[p] = QK[m,p] :: max(m)
SN[m,p] = exp(QK[m,p] - GM[p])
SD[p] = SN[m,p] :: +(m)
A[m,p] = SN[m,p] / SD[p]
AV[f,p] = A[m,p] * V[f,m]
""",
    ),
    Vector(
        "7 stable, deferred",
        "M",
        2,
        2,
        {"K": 2, "V": 1},
        ATTENTION
        + """
GM[p] = QK[m,p] :: max(m)
SN[m,p] = exp(QK[m,p] - GM[p])
SD[p] = SN[m,p] :: +(m)
SNV[f,p] = SN[m,p] * V[f,m]
AV[f,p] = SNV[f,p] / SD[p]
""",
    ),
    Vector(
        "8 local maximum",
        "M",
        3,
        2,
        {"K": 2, "V": 1},
        TILED
        + LOCAL
        + """
A[m1,m0,p] = SLN[m1,m0,p] * PLM[m1,p] / SD[p]
AV[f,p] = A[m1,m0,p] * BV[f,m1,m0]
""",
    ),
    Vector(
        "9 local maximum, deferred",
        "M",
        2,
        2,
        {"K": 2, "V": 1},
        TILED
        + LOCAL
        + """
SNV[f,p] = SLN[m1,m0,p] * PLM[m1,p] * BV[f,m1,m0]
AV[f,p] = SNV[f,p] / SD[p]
""",
    ),
    Vector(
        "10 split-K",
        "M",
        2,
        1,
        {"K": 1, "V": 1},
        TILED
        + LOCAL
        + """
SLNV[f,m1,p] = SLN[m1,m0,p] * BV[f,m1,m0]
SNV[f,p] = SLNV[f,m1,p] * PLM[m1,p]
AV[f,p] = SNV[f,p] / SD[p]
""",
    ),
    Vector(
        "12 FlashAttention-1",
        "M",
        1,
        1,
        {"K": 1, "V": 1},
        """
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
RO[f,0,p] = 0
loop:
QK[m1,m0,p] = Q[e,p] * BK[e,m1,m0]
LM[m1,p] = QK[m1,m0,p] :: max(m0)
RM[m1+1,p] = max(RM[m1,p], LM[m1,p])
SLN[m1,m0,p] = exp(QK[m1,m0,p] - RM[m1+1,p])
SLD[m1,p] = SLN[m1,m0,p] :: +(m0)
SLNV[f,m1,p] = SLN[m1,m0,p] * BV[f,m1,m0]
PRM[m1,p] = exp(RM[m1,p] - RM[m1+1,p])
RD[m1+1,p] = RD[m1,p] * PRM[m1,p] + SLD[m1,p]
RO[f,m1+1,p] = (RO[f,m1,p] * RD[m1,p] * PRM[m1,p] + SLNV[f,m1,p]) / RD[m1+1,p]
final:
AV[f,p] = RO[f,M1,p]
""",
    ),
    Vector(
        "16 sigmoid attention",
        "M",
        1,
        1,
        {"K": 1, "V": 1},
        ATTENTION
        + """
S[m,p] = sigmoid(QK[m,p])
AV[f,p] = S[m,p] * V[f,m]
""",
    ),
    Vector(
        "17 linear attention",
        "M",
        1,
        1,
        {"K": 1, "V": 1},
        """
rank E, F, P, M
input Q[E,P], K[E,M], V[F,M]
output AV
PK[e,m] = elu1(K[e,m])
KV[e,f] = PK[e,m] * V[f,m]
Z[e] = PK[e,m] :: +(m)
N[f,p] = elu1(Q[e,p]) * KV[e,f]
D[p] = elu1(Q[e,p]) * Z[e]
AV[f,p] = N[f,p] / D[p]
""",
    ),
    Vector(
        "20 RMSNorm into a matmul",
        "K",
        2,
        2,
        {"X": 2, "W": 1},
        """
rank K, N
input X[K], W[K,N]
output Y
S[] = sq(X[k]) :: +(k)
Z[k] = X[k] * rsqrt(S[])
Y[n] = Z[k] * W[k,n]
""",
    ),
    Vector(
        "20 RMSNorm into a matmul, deferred",
        "K",
        1,
        1,
        {"X": 1, "W": 1},
        """
rank K, N
input X[K], W[K,N]
output Y
S[] = sq(X[k]) :: +(k)
Z[n] = X[k] * W[k,n]
Y[n] = Z[n] * rsqrt(S[])
""",
    ),
    Vector(
        "23 variance about the mean",
        "M",
        2,
        2,
        {"X": 2},
        VECTORX
        + """
S[] = X[m] :: +(m)
Y[] = sq(X[m] - S[] / M) :: +(m)
""",
    ),
    Vector(
        "23 Welford",
        "M",
        1,
        1,
        {"X": 1},
        """
rank M
iter i over M
input X[M]
output Y
init:
MU[0] = 0
S[0] = 0
loop:
D[i] = X[i] - MU[i]
MU[i+1] = MU[i] + D[i] / (i + 1)
S[i+1] = S[i] + D[i] * (X[i] - MU[i+1])
final:
Y[] = S[M] / M
""",
    ),
    Vector(
        "24 log-sum-exp",
        "M",
        2,
        2,
        {"X": 2},
        VECTORX
        + """
G[] = X[m] :: max(m)
S[] = exp(X[m] - G[]) :: +(m)
Y[] = log(S[]) + G[]
""",
    ),
    Vector(
        "24 log-sum-exp, online",
        "M",
        1,
        1,
        {"X": 1},
        """
rank M
iter i over M
input X[M]
output Y
init:
G[0] = -inf
S[0] = 0
loop:
G[i+1] = max(G[i], X[i])
S[i+1] = S[i] * exp(G[i] - G[i+1]) + exp(X[i] - G[i+1])
final:
Y[] = log(S[M]) + G[M]
""",
    ),
    Vector(
        "28 L1 normalisation",
        "M",
        2,
        2,
        {"X": 2},
        VECTORX
        + """
S[] = abs(X[m]) :: +(m)
Y[m] = X[m] / S[]
""",
    ),
    Vector(
        "29 softmax output",
        "M",
        3,
        3,
        {"X": 3},
        VECTORX
        + """
G[] = X[m] :: max(m)
N[m] = exp(X[m] - G[])
S[] = N[m] :: +(m)
Y[m] = N[m] / S[]
""",
    ),
    Vector(
        "29 softmax output, online",
        "M",
        2,
        2,
        {"X": 2},
        """
rank M
iter i over M
input X[M]
output Y
init:
G[0] = -inf
S[0] = 0
loop:
G[i+1] = max(G[i], X[i])
S[i+1] = S[i] * exp(G[i] - G[i+1]) + exp(X[i] - G[i+1])
final:
Y[m] = exp(X[m] - G[M]) / S[M]
""",
    ),
    Vector(
        "33 attention backward dQ",
        "M",
        2,
        2,
        {"K": 2, "V": 2},
        """
rank E, F, P, M
input Q[E,P], K[E,M], V[F,M], DO[F,P], L[P]
output DQ
QK[m,p] = Q[e,p] * K[e,m]
S[m,p] = exp(QK[m,p] - L[p])
DP[m,p] = DO[f,p] * V[f,m]
D[p] = S[m,p] * DP[m,p]
DS[m,p] = S[m,p] * (DP[m,p] - D[p])
DQ[e,p] = DS[m,p] * K[e,m]
""",
    ),
    Vector(
        "33 attention backward dQ with D = dO.O",
        "M",
        1,
        1,
        {"K": 1, "V": 1},
        """
rank E, F, P, M
input Q[E,P], K[E,M], V[F,M], DO[F,P], O[F,P], L[P]
output DQ
D[p] = DO[f,p] * O[f,p]
QK[m,p] = Q[e,p] * K[e,m]
S[m,p] = exp(QK[m,p] - L[p])
DP[m,p] = DO[f,p] * V[f,m]
DS[m,p] = S[m,p] * (DP[m,p] - D[p])
DQ[e,p] = DS[m,p] * K[e,m]
""",
    ),
    Vector(
        "34 another tensor",
        "K",
        2,
        1,
        {"A": 1, "B": 1, "C": 1},
        """
rank K
input A[K], B[K], C[K]
output Z
Y[] = A[k] * B[k]
Z[k] = Y[] * C[k]
""",
    ),
]

FLOW = """
SQ[e] = PQ[e,q] :: +(q)
SK[e] = PK[e,m] :: +(m)
TO[m] = PK[e,m] * SQ[e]
SO[m] = 1 / TO[m]
TI[q] = PQ[e,q] * SK[e]
SI[q] = 1 / TI[q]
SKO[e] = PK[e,m] * SO[m]
SQI[e] = PQ[e,q] * SI[q]
CS[m] = PK[e,m] * SQI[e]
SC[m] = exp(clamp(CS[m], -1, 1))
SCD[] = SC[m] :: +(m)
KV[e,f] = PK[e,m] * SC[m] * V[f,m]
G[q] = PQ[e,q] * SKO[e]
N[f,q] = PQ[e,q] * KV[e,f]
AV[f,q] = sigmoid(G[q]) * SI[q] * N[f,q] / SCD[]
"""
FLOW_TWO_RANKS = (
    """
rank E, F, Q, M
input QX[E,Q], K[E,M], V[F,M]
output AV
PQ[e,q] = sigmoid(QX[e,q])
PK[e,m] = sigmoid(K[e,m])
"""
    + FLOW
)
FLOW_ONE_INPUT = """
rank D, E, F, M
input X[D,M], WQ[D,E], WK[D,E], WV[D,F]
output AV
Q[e,m] = X[d,m] * WQ[d,e]
K[e,m] = X[d,m] * WK[d,e]
V[f,m] = X[d,m] * WV[d,f]
PQ[e,m] = sigmoid(Q[e,m])
PK[e,m] = sigmoid(K[e,m])
""" + FLOW.replace("q]", "m]").replace("(q)", "(m)")
AGENT = """
rank E, F, A, P, M, G, J = A
split P -> A, G
input Q[E,P], K[E,M], V[F,M]
output AV
AT[e,a] = Q[e, a*G+g] :: +(g)
S1[a,m] = AT[e,a] * K[e,m]
N1[a,m] = exp(S1[a,m])
D1[a] = N1[a,m] :: +(m)
VA[f,a] = N1[a,m] * V[f,m]
VN[f,a] = VA[f,a] / D1[a]
AJ[e,j] = AT[e,j]
VJ[f,j] = VN[f,j]
S2[p,j] = Q[e,p] * AJ[e,j]
N2[p,j] = exp(S2[p,j])
D2[p] = N2[p,j] :: +(j)
AV[f,p] = N2[p,j] * VJ[f,j] / D2[p]
"""

# Algorithms of the attention literature, by the counts that the papers or a hand count give.
ZOO = [
    Vector("flow attention, keys", "M", 2, 2, {"K": 2, "V": 1}, FLOW_TWO_RANKS),
    Vector("flow attention, queries", "Q", 2, 2, {"QX": 2}, FLOW_TWO_RANKS),
    Vector("flow attention, one input", "M", 4, 4, {"X": 4}, FLOW_ONE_INPUT),
    Vector(
        "performer: the stabiliser is a maximum over all keys",
        "M",
        2,
        2,
        {"K": 2, "V": 1},
        """
rank E, R, F, P, M
input K[E,M], V[F,M], W[E,R], PQ[R,P]
output AV
T[r,m] = K[e,m] * W[e,r]
G[] = T[r,m] :: max(r,m)
PK[r,m] = exp(T[r,m] - G[])
KV[r,f] = PK[r,m] * V[f,m]
Z[r] = PK[r,m] :: +(m)
N[f,p] = PQ[r,p] * KV[r,f]
D[p] = PQ[r,p] * Z[r]
AV[f,p] = N[f,p] / D[p]
""",
    ),
    Vector(
        "column sums of the attention matrix need the final denominator",
        "M",
        2,
        2,
        {"K": 2},
        """
rank E, P, M
input Q[E,P], K[E,M]
output C
QK[m,p] = Q[e,p] * K[e,m]
N[m,p] = exp(QK[m,p])
D[p] = N[m,p] :: +(m)
A[m,p] = N[m,p] / D[p]
C[m] = A[m,p] :: +(p)
""",
    ),
    Vector(
        "low-bit estimate with a reference given shares the sweep",
        "M",
        1,
        1,
        {"K": 1, "K4": 1, "V": 1},
        """
rank E, F, P, M
input Q[E,P], Q4[E,P], K[E,M], K4[E,M], V[F,M], REF[P], TAU[]
output AV
EQ[m,p] = Q4[e,p] * K4[e,m]
KEEP[m,p] = gt(exp(EQ[m,p] - REF[p]), TAU[])
QK[m,p] = Q[e,p] * K[e,m]
N[m,p] = where(KEEP[m,p], exp(QK[m,p] - REF[p]), 0)
D[p] = N[m,p] :: +(m)
SNV[f,p] = N[m,p] * V[f,m]
AV[f,p] = SNV[f,p] / D[p]
""",
    ),
    Vector(
        "low-bit estimate with the mean of the keys removed",
        "M",
        2,
        2,
        {"K": 2},
        """
rank E, P, M
input Q[E,P], K[E,M]
output C
MU[e] = K[e,m] :: +(m)
K4[e,m] = floor(K[e,m] - MU[e] / M)
EQ[m,p] = floor(Q[e,p]) * K4[e,m]
C[p] = EQ[m,p] :: max(m)
""",
    ),
    Vector(
        "attention as a recurrence",
        "M",
        1,
        1,
        {"K": 1, "V": 1},
        """
rank E, F, M
iter i over M
input Q[E], K[E,M], V[F,M]
output O
init:
MX[0] = -inf
U[0] = 0
W[f,0] = 0
loop:
S[i] = Q[e] * K[e,i]
MX[i+1] = max(MX[i], S[i])
C[i] = exp(MX[i] - MX[i+1])
A[i] = exp(S[i] - MX[i+1])
U[i+1] = U[i] * C[i] + A[i]
W[f,i+1] = W[f,i] * C[i] + A[i] * V[f,i]
O[f,i] = W[f,i+1] / U[i+1]
""",
    ),
    Vector(
        "chunked linear attention with decay",
        "M",
        1,
        1,
        {"Q": 1, "K": 1, "V": 1},
        """
rank E, F, C, I, J = I
split M -> C, I
iter c over C
input Q[E,M], K[E,M], V[F,M], L[I]
output O
init:
KV[e,f,0] = 0
loop:
KJ[e,c,j] = K[e, c*I+j]
VJ[f,c,j] = V[f, c*I+j]
QK[c,i,j] = Q[e, c*I+i] * KJ[e,c,j]
OI[f,c,i] = QK[c,i,j: j<=i] * VJ[f,c,j]
OX[f,c,i] = Q[e, c*I+i] * KV[e,f,c]
S[e,f,c] = KJ[e,c,j] * VJ[f,c,j]
KV[e,f,c+1] = KV[e,f,c] + S[e,f,c]
O[f,c,i] = OI[f,c,i] + L[i] * OX[f,c,i]
""",
    ),
    Vector(
        "landmarks: a softmax in every block",
        "M",
        1,
        1,
        {"K": 1, "V": 1},
        TILED
        + """
N[m1,m0,p] = exp(QK[m1,m0,p] - LM[m1,p])
D[m1,p] = N[m1,m0,p] :: +(m0)
IB[m1,m0,p] = N[m1,m0,p] / D[m1,p]
AV[f,p] = IB[m1,m0,p] * BV[f,m1,m0]
""",
    ),
    Vector(
        "top-k blocks by a cheap proxy, then a gather",
        "M",
        1,
        1,
        {"KP": 1, "K": 0, "V": 0},
        """
rank E, F, P, M, T
input Q[E,P], KP[E,M], K[E,M], V[F,M]
output AV
S[m,p] = Q[e,p] * KP[e,m]
(TV[t,p], TI[t,p]) = S[m,p] :: topk(m -> t)
GK[e,t,p] = K[e, TI[t,p]]
QK[t,p] = Q[e,p] * GK[e,t,p]
N[t,p] = exp(QK[t,p])
D[p] = N[t,p] :: +(t)
AV[f,p] = N[t,p] * V[f, TI[t,p]] / D[p]
""",
    ),
    Vector(
        "flash attention backward, dK and dV by keys",
        "P",
        1,
        1,
        {"Q": 1, "DO": 1, "O": 1, "L": 1},
        """
rank E, F, P, M
input Q[E,P], K[E,M], V[F,M], DO[F,P], O[F,P], L[P]
output DK, DV
D[p] = DO[f,p] * O[f,p]
QK[m,p] = Q[e,p] * K[e,m]
S[m,p] = exp(QK[m,p] - L[p])
DV[f,m] = S[m,p] * DO[f,p]
DP[m,p] = DO[f,p] * V[f,m]
DS[m,p] = S[m,p] * (DP[m,p] - D[p])
DK[e,m] = DS[m,p] * Q[e,p]
""",
    ),
    Vector(
        "vertical and slash estimate, as written",
        "M",
        3,
        3,
        {"K": 3},
        """
rank E, P, M
input Q[E,P], K[E,M]
output VS
QK[m,p] = Q[e,p] * K[e,m]
GM[p] = QK[m,p] :: max(m)
SN[m,p] = exp(QK[m,p] - GM[p])
SD[p] = SN[m,p] :: +(m)
EST[m,p] = SN[m,p] / SD[p]
VS[m] = EST[m,p] :: +(p)
""",
    ),
    Vector(
        "pooled keys and attention over the pools share a sweep",
        "M",
        1,
        1,
        {"K": 1, "V": 1},
        """
rank E, F, P, G, I
split M -> G, I
input Q[E,P], QL[E,G], K[E,M], V[F,M]
output N, D
S[g,i] = QL[e,g] * K[e, g*I+i]
A[g,i] = exp(S[g,i])
Z[g] = A[g,i] :: +(i)
W[g,i] = A[g,i] / Z[g]
KC[e,g] = W[g,i] * K[e, g*I+i]
VC[f,g] = W[g,i] * V[f, g*I+i]
T[g,p] = Q[e,p] * KC[e,g]
B[g,p] = exp(T[g,p])
D[p] = B[g,p] :: +(g)
N[f,p] = B[g,p] * VC[f,g]
""",
    ),
    Vector(
        "routing: balanced clusters take their keys by top-w",
        "M",
        1,
        1,
        {"K": 1},
        """
rank E, C, M, W
input MU[E,C], K[E,M]
output GK
SK[c,m] = K[e,m] * MU[e,c]
(TV[c,w], TI[c,w]) = SK[c,m] :: topk(m -> w)
GK[e,c,w] = K[e, TI[c,w]]
""",
    ),
    Vector(
        "two nested linear scans of a neural memory",
        "M",
        1,
        1,
        {"K": 1, "V": 1, "Q": 1},
        """
rank E, F, M
iter t over M
input K[E,M], V[F,M], Q[E,M], TH[], ET[], AL[]
output Y
init:
S[e,f,0] = 0
W[e,f,0] = 0
loop:
PV[f,t] = W[e,f,t] * K[e,t]
R[f,t] = PV[f,t] - V[f,t]
G[e,f,t] = K[e,t] * R[f,t]
S[e,f,t+1] = ET[] * S[e,f,t] - TH[] * G[e,f,t]
W[e,f,t+1] = (1 - AL[]) * W[e,f,t] + S[e,f,t+1]
Y[f,t] = W[e,f,t+1] * Q[e,t]
""",
    ),
    Vector(
        "row calibration by column sums",
        "M",
        4,
        4,
        {"K": 4, "V": 1},
        """
rank E, F, P, M
input Q[E,P], K[E,M], V[F,M], TAU[]
output AV
QK[m,p] = Q[e,p] * K[e,m]
GM[p] = QK[m,p] :: max(m)
SN[m,p] = exp(QK[m,p] - GM[p])
SD[p] = SN[m,p] :: +(m)
A[m,p] = SN[m,p] / SD[p]
C[m] = A[m,p] :: +(p)
T[m,p] = where(gt(C[m], TAU[]), A[m,p] * 0.4, A[m,p])
TD[p] = T[m,p] :: +(m)
B[m,p] = T[m,p] / TD[p]
AV[f,p] = B[m,p] * V[f,m]
""",
    ),
    Vector("softmax attention over the queries", "P", 1, 1, {"Q": 1}, NUMBERED[5].text),
    Vector("agents pool the queries, then answer them", "P", 2, 2, {"Q": 2}, AGENT),
    Vector("agents over the keys", "M", 1, 1, {"K": 1, "V": 1}, AGENT),
]

# Further cascades with hand counts: statistics, norms, losses, scans, matrices.
FURTHER = [
    Vector(
        "independent sums share a pass",
        "M",
        1,
        1,
        {"X": 1},
        VECTORX + "A[] = X[m] :: +(m)\nB[] = sq(X[m]) :: +(m)\nY[] = B[] / M - sq(A[] / M)\n",
    ),
    Vector(
        "cross-entropy",
        "M",
        2,
        2,
        {"X": 2, "T": 1},
        """
rank M
input X[M], T[M]
output Y
G[] = X[m] :: max(m)
S[] = exp(X[m] - G[]) :: +(m)
C[] = X[m] * T[m]
Y[] = log(S[]) + G[] - C[]
""",
    ),
    Vector(
        "gradient of the cross-entropy",
        "M",
        3,
        3,
        {"X": 3, "T": 1},
        """
rank M
input X[M], T[M]
output Y
G[] = X[m] :: max(m)
N[m] = exp(X[m] - G[])
S[] = N[m] :: +(m)
Y[m] = N[m] / S[] - T[m]
""",
    ),
    Vector(
        "cosine similarity",
        "M",
        1,
        1,
        {"X": 1, "Z": 1},
        """
rank M
input X[M], Z[M]
output Y
A[] = X[m] * Z[m]
B[] = sq(X[m]) :: +(m)
C[] = sq(Z[m]) :: +(m)
Y[] = A[] * rsqrt(B[] * C[])
""",
    ),
    Vector(
        "cosine similarity of normalised vectors",
        "M",
        2,
        2,
        {"X": 2, "Z": 2},
        """
rank M
input X[M], Z[M]
output Y
B[] = sq(X[m]) :: +(m)
C[] = sq(Z[m]) :: +(m)
U[m] = X[m] * rsqrt(B[])
W[m] = Z[m] * rsqrt(C[])
Y[] = U[m] * W[m]
""",
    ),
    Vector(
        "LayerNorm about a two-pass variance",
        "M",
        3,
        3,
        {"X": 3},
        VECTORX
        + """
S[] = X[m] :: +(m)
C[m] = X[m] - S[] / M
V[] = sq(C[m]) :: +(m)
Y[m] = C[m] * rsqrt(V[] / M)
""",
    ),
    Vector(
        "LayerNorm by moments",
        "M",
        2,
        2,
        {"X": 2},
        VECTORX
        + """
S[] = X[m] :: +(m)
T[] = sq(X[m]) :: +(m)
V[] = T[] / M - sq(S[] / M)
Y[m] = (X[m] - S[] / M) * rsqrt(V[])
""",
    ),
    Vector(
        "scaled Euclidean norm",
        "M",
        2,
        2,
        {"X": 2},
        VECTORX
        + "G[] = abs(X[m]) :: max(m)\nS[] = sq(X[m] / G[]) :: +(m)\nY[] = G[] * sqrt(S[])\n",
    ),
    Vector(
        "quantisation by the largest value",
        "M",
        2,
        2,
        {"X": 2},
        VECTORX + "G[] = abs(X[m]) :: max(m)\nY[m] = floor(X[m] / G[] * 127)\n",
    ),
    Vector(
        "four barriers in a row",
        "M",
        5,
        5,
        {"X": 5},
        VECTORX
        + "".join(
            f"S{n}[] = X{n}[m] :: +(m)\nX{n + 1}[m] = X{n}[m] - S{n}[]\n" for n in range(1, 5)
        ).replace("X1[", "X[")
        + "Y[m] = X5[m]\n",
    ),
    Vector(
        "an epilogue of scalars costs nothing",
        "M",
        1,
        1,
        {"X": 1},
        VECTORX + "S[] = X[m] :: +(m)\nA[] = sqrt(S[])\nB[] = A[] * 2\nY[] = B[] + S[]\n",
    ),
    Vector(
        "a global value of another tensor adds a sweep, no pass",
        "M",
        2,
        1,
        {"X": 1, "Z": 1},
        """
rank M
input X[M], Z[M]
output Y
S[] = Z[m] :: +(m)
Y[m] = X[m] * S[]
""",
    ),
    Vector(
        "a running sum streams",
        "M",
        1,
        1,
        {"X": 1},
        """
rank M
iter i over M
input X[M]
output Y
Y[i] = X[m: m<=i]
""",
    ),
    Vector(
        "a running sum normalised by its last value",
        "M",
        2,
        2,
        {"X": 2},
        """
rank M
iter i over M
input X[M]
output Y
C[i] = X[m: m<=i]
Y[m] = C[m] / C[M-1]
""",
    ),
    Vector(
        "prefix and suffix sums sweep in opposite directions",
        "M",
        2,
        2,
        {"X": 2},
        """
rank M
iter i over M
input X[M]
output Y
A[i] = X[m: m<=i]
B[i] = X[m: m>=i]
Y[m] = A[m] * B[m]
""",
    ),
    Vector(
        "a suffix sum alone streams downwards",
        "M",
        1,
        1,
        {"X": 1},
        """
rank M
iter i over M
input X[M]
output Y
Y[i] = X[m: m>=i]
""",
    ),
    Vector(
        "a window moves either way",
        "M",
        1,
        1,
        {"X": 1},
        """
rank M, W
iter i over M
input X[M]
output Y
A[i] = X[m: m<=i & m+W>i]
B[i] = A[m: m>=i & m<i+W]
Y[m] = A[m] * B[m]
""",
    ),
    Vector(
        "a convolution with a short filter",
        "M",
        1,
        1,
        {"X": 1},
        """
rank M, W
input X[M], H[W]
output Y
Y[m] = X[m - w: m>=w] * H[w]
""",
    ),
    Vector(
        "reversed reading waits for the whole",
        "M",
        2,
        2,
        {"X": 2},
        VECTORX + "A[m] = exp(X[m])\nY[m] = A[M-1-m] * X[m]\n",
    ),
    Vector(
        "bidirectional recurrence",
        "M",
        2,
        2,
        {"X": 2},
        """
rank M
iter i over M
input X[M]
output Y
init:
H[0] = 0
G[0] = 0
loop:
H[i+1] = tanh(H[i] + X[i])
G[i+1] = tanh(G[i] + X[M-1-i])
final:
Y[m] = H[m+1] + G[M-m]
""",
    ),
    Vector(
        "two-level split, running over the outer level",
        "M",
        1,
        1,
        {"X": 1},
        """
rank M2, M1, M0
split M -> M2, R
split R -> M1, M0
iter m2 over M2
input X[M]
output Y
init:
B[m2,m1,m0] = X[(m2*M1+m1)*M0+m0]
G[0] = -inf
S[0] = 0
loop:
L[m2,m1] = B[m2,m1,m0] :: max(m0)
T[m2] = L[m2,m1] :: max(m1)
G[m2+1] = max(G[m2], T[m2])
D[m2] = exp(B[m2,m1,m0] - G[m2+1]) :: +(m1,m0)
S[m2+1] = S[m2] * exp(G[m2] - G[m2+1]) + D[m2]
final:
Y[] = log(S[M2]) + G[M2]
""",
    ),
    Vector(
        "a transpose of tiles is no barrier between streams of one root",
        "M",
        1,
        1,
        {"X": 1},
        """
rank M1, M0
split M -> M1, M0
input X[M]
output Y
A[m] = exp(X[m])
Y[m1] = A[m1*M0+m0] :: max(m0)
""",
    ),
    Vector(
        "digits of a variable are aligned",
        "M",
        1,
        1,
        {"X": 1},
        """
rank M1, M0
split M -> M1, M0
input X[M], Z[M1]
output Y
Y[m] = X[m] * Z[m / M0]
""",
    ),
    Vector(
        "a permutation by data",
        "M",
        2,
        2,
        {"X": 2, "IX": 1},
        """
rank M
input X[M], IX[M]
output Y
A[m] = exp(X[m])
Y[m] = A[IX[m]]
""",
    ),
    Vector(
        "a global initial value holds the recurrence back",
        "M",
        2,
        2,
        {"X": 2},
        """
rank M
iter i over M
input X[M]
output Y
init:
S[] = X[m] :: max(m)
R[0] = S[]
loop:
R[i+1] = R[i] * X[i]
final:
Y[] = R[M]
""",
    ),
    Vector(
        "two chains interleave in the sweeps of one",
        "M",
        3,
        2,
        {"X": 2, "Z": 2},
        """
rank M
input X[M], Z[M]
output Y
A[] = X[m] :: +(m)
B[] = Z[m] * A[]
C[] = Z[m] * B[]
D[] = X[m] * B[]
Y[] = D[] + C[]
""",
    ),
    Vector(
        "softmax with a sink",
        "M",
        3,
        3,
        {"K": 3, "V": 1},
        """
rank E, F, P, M
input Q[E,P], K[E,M], V[F,M], S[]
output AV
QK[m,p] = Q[e,p] * K[e,m]
LM[p] = QK[m,p] :: max(m)
GM[p] = max(LM[p], S[])
SN[m,p] = exp(QK[m,p] - GM[p])
LD[p] = SN[m,p] :: +(m)
SD[p] = LD[p] + exp(S[] - GM[p])
A[m,p] = SN[m,p] / SD[p]
AV[f,p] = A[m,p] * V[f,m]
""",
    ),
    Vector(
        "causal mask with queries on their own rank",
        "M",
        3,
        3,
        {"K": 3, "V": 1},
        """
rank E, F, P = M, M
input Q[E,P], K[E,M], V[F,M]
output AV
QK[m,p] = Q[e,p] * K[e, m: m<=p]
GM[p] = QK[m,p] :: max(m)
SN[m,p] = exp(QK[m,p] - GM[p])
SD[p] = SN[m,p] :: +(m)
A[m,p] = SN[m,p] / SD[p]
AV[f,p] = A[m,p] * V[f,m]
""",
    ),
    Vector(
        "attention from one input, keys and queries on one rank",
        "M",
        2,
        2,
        {"X": 2},
        """
rank D, E, M
iter i over M
input X[D,M], WQ[D,E], WK[D,E]
output Y
Q[e,m] = X[d,m] * WQ[d,e]
K[e,m] = X[d,m] * WK[d,e]
S[m,i] = Q[e,i] * K[e,m]
Y[i] = exp(S[m,i]) :: +(m)
""",
    ),
    Vector(
        "linear attention state, then output",
        "M",
        2,
        2,
        {"X": 2},
        """
rank D, E, F, M
input X[D,M], WQ[D,E], WK[D,E], WV[D,F]
output O
Q[e,m] = X[d,m] * WQ[d,e]
K[e,m] = X[d,m] * WK[d,e]
V[f,m] = X[d,m] * WV[d,f]
KV[e,f] = K[e,m] * V[f,m]
O[f,m] = Q[e,m] * KV[e,f]
""",
    ),
    Vector(
        "unmasked sequence-parallel state with separate inputs",
        "M",
        2,
        1,
        {"Q": 1, "K": 1, "V": 1},
        """
rank E, F, W, I
split M -> W, I
input Q[E,M], K[E,M], V[F,M]
output O
S[e,f,w] = K[e, w*I+i] * V[f, w*I+i]
T[e,f] = S[e,f,w] :: +(w)
O[f,w,i] = Q[e, w*I+i] * T[e,f]
""",
    ),
    Vector(
        "batch normalisation over the batch, not the features",
        "D",
        1,
        1,
        {"X": 1},
        """
rank N, D
input X[N,D]
output Y
S[d] = X[n,d] :: +(n)
C[n,d] = X[n,d] - S[d] / N
V[d] = sq(C[n,d]) :: +(n)
Y[n,d] = C[n,d] * rsqrt(V[d] / N)
""",
    ),
]
VECTORS = [*NUMBERED, *ZOO, *FURTHER]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.name)
def test_counts_equal_the_hand_count(vector: Vector) -> None:
    report = vector.report
    assert (report.sweeps, report.passes, report.roots) == (
        vector.sweeps,
        vector.passes,
        vector.roots,
    )
    assert report.exact
    assert not report.per_iteration


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.name)
def test_a_witness_has_one_barrier_fewer_than_passes(vector: Vector) -> None:
    report = vector.report
    assert len(report.barriers) == report.passes - 1
    for root, chain in report.chains.items():
        assert len(chain) == max(0, report.roots[root] - 1)
    for barrier in report.barriers:
        assert barrier.reason


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.name)
def test_placements_fit_the_counts(vector: Vector) -> None:
    report = vector.report
    assert max(p.sweep for p in report.placements) == report.sweeps
    for root, passes in report.roots.items():
        read_in = [n for p in report.placements for name, n in p.reads if name == root]
        assert max(read_in, default=0) == passes


def test_flash_attention_2_is_one_pass_over_keys_and_two_over_each_tile() -> None:
    report = count_passes(load("attention/1-pass"), "M")
    assert report.roots == {"K": 1, "V": 1}
    assert report.levels == {"M1": (1, 1), "M0": (2, 2)}
    assert report.barriers == ()


def test_a_level_of_a_partition_can_be_asked_for_alone() -> None:
    report = count_passes(load("attention/1-pass"), "M0")
    assert (report.passes, report.levels) == (2, {"M0": (2, 2)})
    (barrier,) = report.barriers
    assert (barrier.producer, barrier.consumer, barrier.tensor) == ("RM", "SLN", "RM")
    assert barrier.reason == (
        "RM is computed outside the sweep from LM, which is folded over m0: "
        "complete only after the whole of M0"
    )


def test_splits_of_splits_have_a_level_each() -> None:
    vector = next(v for v in FURTHER if v.name.startswith("two-level split"))
    report = count_passes(vector.cascade, "M")
    # In a tile of M2 the maximum T comes before D; in one of M1 likewise the maximum L.
    assert report.levels == {"M2": (1, 1), "M1": (2, 2), "M0": (2, 2)}
    assert count_passes(vector.cascade, "R").levels == {"M1": (2, 2), "M0": (2, 2)}


def test_a_split_that_an_index_implies_needs_no_declaration() -> None:
    text = """
rank M, A, B
input X[M]
output Y
V[a,b] = X[a*B+b]
S[a] = V[a,b] :: max(b)
G[] = S[a] :: max(a)
Y[a,b] = V[a,b] - G[]
"""
    assert count_passes(parse(text), "M").levels == {"A": (2, 2), "B": (2, 2)}


def test_the_chain_of_the_textbook_cascade_can_be_checked_by_hand() -> None:
    report = count_passes(load("attention/3-pass"), "M")
    assert [(b.producer, b.consumer, b.tensor, b.reason) for b in report.barriers] == [
        ("GM", "SN", "GM", "GM is folded over m: complete only after the whole of M"),
        ("SD", "A", "SD", "SD is folded over m: complete only after the whole of M"),
    ]
    assert report.level_reports[0].critical.path == ("QK", "GM", "SN", "SD", "A")


POWER = """
rank T, K
iter t over T
input X0[K]
output Y
init:
X[0,k] = X0[k]
loop:
N[t] = sq(X[t,k]) :: +(k)
X[t+1,k] = X[t,k] / N[t]
final:
Y[k] = X[T,k]
"""
SINKHORN = """
rank T, I, J
iter t over T
input K[I,J]
output P
init:
V[0,j] = 1
loop:
A[t,i] = K[i,j] * V[t,j]
U[t,i] = 1 / A[t,i]
B[t,j] = K[i,j] * U[t,i]
V[t+1,j] = 1 / B[t,j]
final:
P[i,j] = K[i,j] * V[T,j]
"""
CG_LIKE = """
rank T, K
iter t over T
input X0[K]
output Y
init:
X[0,k] = X0[k]
loop:
A[t] = sq(X[t,k]) :: +(k)
Z[t,k] = X[t,k] / A[t]
B[t] = abs(Z[t,k]) :: +(k)
X[t+1,k] = Z[t,k] - B[t]
final:
Y[k] = X[T,k]
"""


@pytest.mark.parametrize(
    ("text", "rank", "slope"),
    [(POWER, "K", 1), (CG_LIKE, "K", 2), (SINKHORN, "I", 1), (SINKHORN, "J", 1)],
)
def test_an_iteration_over_another_rank_gives_a_slope(text: str, rank: str, slope: int) -> None:
    report = count_passes(parse(text), rank)
    assert report.per_iteration
    assert (report.passes, report.sweeps) == (slope, slope)
    assert len(report.barriers) == slope


def test_a_barrier_every_other_generation_gives_a_slope_of_a_half() -> None:
    text = """
rank T, K
iter t over T
input X0[K], Z0[K]
output Y
init:
X[0,k] = X0[k]
Z[0,k] = Z0[k]
loop:
S[t] = X[t,k] :: +(k)
Z[t+1,k] = X[t,k] + 1
X[t+1,k] = Z[t,k] * 2
W[t,k] = Z[t,k] * S[t]
final:
Y[k] = X[T,k]
"""
    assert not count_passes(parse(text), "K").per_iteration
    halves = text.replace("X[t+1,k] = Z[t,k] * 2", "X[t+1,k] = Z[t,k] * 2").replace(
        "Z[t+1,k] = X[t,k] + 1", "Z[t+1,k] = X[t,k] + S[t]"
    )
    assert count_passes(parse(halves), "K").passes == Fraction(1, 2)


def test_iterating_over_another_rank_without_a_barrier_stays_one_pass() -> None:
    report = count_passes(load("attention/1-pass"), "P")
    assert (report.passes, report.sweeps, report.per_iteration) == (1, 1, False)


def test_waiting_within_a_sweep_for_its_own_end_is_refused() -> None:
    good = parse("rank M\ninput X[M]\noutput Y\nS[] = X[m] :: +(m)\nY[m] = X[m] - S[]")
    fold = parse("rank M\ninput Y[M]\noutput S\nS[] = Y[m] :: +(m)").einsums[0]
    circular = replace(good, init=(fold, good.init[1]))
    with pytest.raises(EinfuseError, match=r"Y -> S wait for each other"):
        count_passes(circular, "M")


def test_an_iteration_over_an_inner_level_gives_a_slope_over_the_outer() -> None:
    text = """
rank M1, M0
split M -> M1, M0
iter m0 over M0
input X[M]
output Y
init:
V[m1,m0] = X[m1*M0+m0]
R[m1,0] = 1
loop:
S[m0] = R[m1,m0] :: +(m1)
R[m1,m0+1] = R[m1,m0] / S[m0] + V[m1,m0]
final:
Y[m1] = R[m1,M0]
"""
    report = count_passes(parse(text), "M")
    assert (report.sweeps, report.per_iteration) == (1, True)


def test_an_unknown_rank_is_named_beside_the_known_ones() -> None:
    with pytest.raises(EinfuseError, match=r"one of E, F, P, M; found 'Z'"):
        count_passes(load("attention/3-pass"), "Z")


def test_alternating_directions_add_a_sweep_each() -> None:
    text = """
rank M
iter i over M
input X[M]
output Y
A[i] = X[m: m<=i]
B[i] = A[m: m>=i]
C[i] = B[m: m<=i]
Y[m] = C[m] * X[m]
"""
    report = count_passes(parse(text), "M")
    assert (report.passes, report.sweeps) == (3, 3)
    assert all("no sweep serves both" in b.reason for b in report.barriers)


def test_the_order_of_independent_directions_is_chosen_well() -> None:
    # Two chains, up-down and down-up: three sweeps (up, down, up) hold both, not four.
    text = """
rank M
iter i over M
input X[M], Z[M]
output Y
A[i] = X[m: m<=i]
B[i] = A[m: m>=i]
C[i] = Z[m: m>=i]
D[i] = C[m: m<=i]
Y[m] = B[m] * D[m]
"""
    report = count_passes(parse(text), "M")
    assert (report.sweeps, report.roots) == (3, {"X": 2, "Z": 2})


def test_the_search_over_directions_gives_up_honestly() -> None:
    lines = [
        f"T{n + 1}[i] = T{n}[m: m{'<=' if n % 2 else '>='}i] / (1 + S{n}[])\n"
        f"S{n + 1}[] = T{n + 1}[m] :: +(m)"
        for n in range(16)
    ]
    text = "rank M\niter i over M\ninput T0[M], S0[]\noutput T16\n" + "\n".join(lines)
    report = count_passes(parse(text), "M")
    assert report.passes == 16  # directions alternate along the only chain
    assert report.exact


def test_a_clamp_is_reported_but_the_count_is_that_of_the_text() -> None:
    text = (
        NUMBERED[5]
        .text.replace("GM[p] = QK[m,p]", "S[m,p] = clamp(QK[m,p], -10, 10)\nGM[p] = S[m,p]")
        .replace("exp(QK[m,p]", "exp(S[m,p]")
    )
    report = count_passes(parse(text), "M")
    assert (report.passes, report.bounded, report.passes_if_bounded) == (3, ("GM",), 2)
    plain = count_passes(load("attention/3-pass"), "M")
    assert (plain.bounded, plain.passes_if_bounded) == ((), 3)


def test_a_bounded_maximum_that_is_more_than_a_guard_stays() -> None:
    text = (
        "rank M\ninput X[M]\noutput Y\nB[m] = tanh(X[m])\nG[] = B[m] :: max(m)\nY[m] = B[m] / G[]"
    )
    report = count_passes(parse(text), "M")
    assert (report.passes, report.bounded, report.passes_if_bounded) == (2, (), 2)


def test_a_gather_of_selected_keys_touches_a_subset() -> None:
    vector = next(v for v in ZOO if v.name.startswith("top-k"))
    report = count_passes(vector.cascade, "M")
    assert [(g.einsum, g.tensor, g.subset) for g in report.gathers] == [
        ("GK", "K", True),
        ("AV", "V", True),
    ]
    assert report.roots["K"] == report.roots["V"] == 0


def test_einsums_share_a_loop_unless_a_barrier_lies_between() -> None:
    dependence = trace(load("attention/3-pass"), "M")
    assert dependence.can_share("QK", "GM")
    assert dependence.can_share("SN", "SD")
    assert not dependence.can_share("QK", "SN")
    assert not dependence.can_share("A", "QK")
    barrier = dependence.barrier_between("QK", "AV")
    assert barrier is not None
    assert barrier.tensor == "GM"
    one_pass = trace(load("attention/1-pass"), "M")
    names = ["QK", "LM", "RM", "SLN", "SLD", "SLNV", "PRM", "SPD", "RD", "SPNV", "RNV"]
    assert all(one_pass.can_share(x, y) for x, y in itertools.product(names, names))
    assert not trace(load("attention/1-pass"), "M0").can_share("QK", "SLN")


def test_an_unknown_einsum_is_named_beside_the_known_ones() -> None:
    with pytest.raises(EinfuseError, match=r"one of QK, GM, SN, SD, A, AV; found 'ZZ'"):
        trace(load("attention/3-pass"), "M").can_share("QK", "ZZ")


def test_opposite_directions_share_no_loop() -> None:
    vector = next(v for v in FURTHER if v.name.startswith("prefix and suffix"))
    dependence = trace(vector.cascade, "M")
    assert dependence.directions == (Direction.UP, Direction.DOWN, Direction.ANY)
    assert not dependence.can_share("A", "B")
    assert dependence.can_share("A", "Y")


@pytest.mark.parametrize(
    ("index", "kind"),
    [
        ("m", Kind.ALIGNED),
        ("m+1", Kind.ALIGNED),
        ("m-3", Kind.ALIGNED),
        ("m-w", Kind.ALIGNED),
        ("M-1-m", Kind.UNALIGNED),
        ("2*m", Kind.UNALIGNED),
        ("IX[m]", Kind.UNALIGNED),
        ("m+M", Kind.UNALIGNED),
        ("0", Kind.INIT),
        ("M-1", Kind.FINAL),
    ],
)
def test_accesses_have_the_kind_of_their_index(index: str, kind: Kind) -> None:
    declared = "rank M, W\ninput X[M], IX[M], H[W]\noutput Y\n"
    text = f"{declared}A[m] = exp(X[m])\nY[m] = A[{index}] * X[m] * H[w]"
    reads = trace(parse(text), "M").reads
    assert next(r.kind for r in reads if r.tensor == "A") is kind


@pytest.mark.parametrize(
    ("condition", "kind"),
    [
        ("m<=i", Kind.PREFIX),
        ("m<i", Kind.PREFIX),
        ("i>=m", Kind.PREFIX),
        ("m+1<=i", Kind.PREFIX),
        ("m-i<=0", Kind.PREFIX),
        ("m>i", Kind.SUFFIX),
        ("i<=m", Kind.SUFFIX),
        ("m==i", Kind.ALIGNED),
        ("m<=i & m+W>i", Kind.ALIGNED),
        ("m!=i", Kind.UNALIGNED),
        ("m<=i+M", Kind.UNALIGNED),
    ],
)
def test_filters_hold_a_second_variable_to_the_sweep(condition: str, kind: Kind) -> None:
    declared = "rank M, W\niter i over M\ninput X[M]\noutput Y\n"
    text = f"{declared}A[m] = exp(X[m])\nY[i] = A[m: {condition}]"
    reads = trace(parse(text), "M").reads
    assert next(r.kind for r in reads if r.tensor == "A") is kind


@pytest.mark.parametrize(
    ("name", "rank"),
    [("attention/1-pass", "M"), ("attention/2-pass", "M"), ("attention/3-pass", "M")],
)
def test_the_rank_that_is_asked_by_default_is_the_keys(name: str, rank: str) -> None:
    assert choose_rank(load(name)) == rank


def test_the_report_reads_as_a_proof() -> None:
    text = str(count_passes(load("attention/3-pass")))
    assert text.splitlines()[:6] == [
        "attention/3-pass over M: passes 3, sweeps 3",
        "  level M: passes 3, sweeps 3",
        "    live words: M + Max(2*E, 2*F) + 1",
        "    K: passes 3  QK -> GM -> SN -> SD -> A",
        "      GM | SN: GM is folded over m: complete only after the whole of M",
        "      SD | A: SD is folded over m: complete only after the whole of M",
    ]


def test_a_view_that_is_only_gathered_from_makes_no_pass() -> None:
    report = count_passes(load("attention/block-sparse"), "M")
    assert report.roots == {"K": 0, "V": 0}
    assert [(g.tensor, g.subset) for g in report.gathers] == [("BK", True), ("BV", True)]


def test_a_second_rank_inside_a_chunk_stands_for_the_inner_part() -> None:
    report = count_passes(load("attention/linear-decay"), "N")
    assert report.roots == {"Q": 1, "K": 1, "V": 1, "LD": 1}
    assert report.levels["C"] == (1, 1)


def test_the_first_coordinate_of_a_downward_sweep_comes_last() -> None:
    text = "rank M\niter i over M\ninput X[M]\noutput Y\nB[i] = X[m: m>=i]\nY[m] = X[m] - B[{at}]"
    last = count_passes(parse(text.replace("{at}", "M-1")), "M")
    first = count_passes(parse(text.replace("{at}", "0")), "M")
    assert (last.passes, first.passes) == (1, 2)
    assert first.barriers[0].reason == "B is swept downwards and read at its first coordinate"


def test_a_mirrored_recurrence_ends_at_its_last_generation() -> None:
    text = """
rank M
iter i over M
input X[M]
output Y
init:
G[0] = 0
loop:
G[i+1] = G[i] + X[M-1-i]
final:
Y[m] = X[m] / G[M]
"""
    report = count_passes(parse(text), "M")
    assert (report.passes, report.sweeps) == (2, 2)


@pytest.mark.parametrize("name", names())
def test_every_cascade_of_the_library_has_a_report_for_every_rank(name: str) -> None:
    cascade = load(name)
    for rank in cascade.rank_names:
        report = count_passes(cascade, rank)
        assert report.passes <= report.sweeps or report.per_iteration  # one a slope, one a count
        assert report.exact
        assert set(report.footprint) == set(report.levels)


def test_an_index_outside_of_the_sizes_in_the_text_is_refused() -> None:
    with pytest.raises(CascadeError, match="index 7 of X reaches 7, outside"):
        count_passes(parse("rank M = 4\ninput X[M]\noutput Y\nY[] = X[7]"), "M")
    open_size = parse("rank M\ninput X[M]\noutput Y\nY[] = X[7]")
    assert count_passes(open_size, "M").passes == 0
