"""Data-dependent indices: selection, scatter by a filter, dependent gathers, modular shifts."""

from __future__ import annotations

import numpy as np

from einfuse.einsum.execution.pointwise import run_pointwise
from einfuse.einsum.execution.run import run
from einfuse.einsum.language.parser import parse

RNG = np.random.default_rng(13)


def test_blocks_chosen_by_topk_are_attended_to() -> None:
    text = """
rank E, F, M1, M0, P, T
split M -> M1, M0
input Q[E,P], K[E,M], V[F,M], L[E,M1]
output AV
LB[m1,p] = Q[e,p] * L[e,m1]
(LV[t,p], TI[t,p]) = LB[m1,p] :: topk(m1 -> t)
QK[t,m0,p] = Q[e,p] * K[e, TI[t,p]*M0+m0]
GM[p] = QK[t,m0,p] :: max(t,m0)
SN[t,m0,p] = exp(QK[t,m0,p] - GM[p])
SD[p] = SN[t,m0,p] :: +(t,m0)
AV[f,p] = SN[t,m0,p] * V[f, TI[t,p]*M0+m0] / SD[p]
"""
    q, k, v, landmarks = (RNG.standard_normal((3, n)) for n in (5, 12, 12, 4))
    result = run(parse(text), {"Q": q, "K": k, "V": v, "L": landmarks}, {"M0": 3, "T": 2})["AV"]
    for p in range(5):
        blocks = np.argsort(-(landmarks.T @ q[:, p]))[:2]
        keys = (blocks[:, None] * 3 + np.arange(3)).ravel()
        weights = np.exp(k[:, keys].T @ q[:, p])
        np.testing.assert_allclose(result[:, p], v[:, keys] @ weights / weights.sum())


def test_a_filter_on_equality_scatters() -> None:
    text = """
rank F, C, W, P
input AV[F,C,W], IQ[C,W]
output Y
Y[f,p] = AV[f,c,w: IQ[c,w]==p]
"""
    values, onto = RNG.standard_normal((2, 3, 4)), RNG.integers(0, 6, (3, 4))
    expected = np.zeros((6, 2))
    np.add.at(expected, onto, np.moveaxis(values, 0, -1))
    result = run(parse(text), {"AV": values, "IQ": onto}, {"P": 6})["Y"]
    np.testing.assert_allclose(result, expected.T)


def test_each_round_of_a_search_gathers_by_the_last() -> None:
    text = """
rank E, M, K, S, T
iter s over S
input Q[E], KK[E,M], N0[K]
output NL
init:
N[0,k] = N0[k]
loop:
SC[s,k] = Q[e] * KK[e,N[s,k]]
(TV[s,t], TI[s,t]) = SC[s,k] :: topk(k -> t)
N[s+1,k] = N[s,TI[s,k/2]] + (k - 2*floor(k/2))*3
final:
NL[k] = N[S,k]
"""
    q, keys, nodes = RNG.standard_normal(3), RNG.standard_normal((3, 40)), np.arange(4) * 5
    inputs = {"Q": q, "KK": keys, "N0": nodes}
    result = run(parse(text), inputs, {"S": 3, "T": 2})["NL"]
    for _ in range(3):
        best = np.argsort(-(q @ keys[:, nodes]), kind="stable")[:2]
        nodes = nodes[best[np.arange(4) // 2]] + np.arange(4) % 2 * 3
    np.testing.assert_array_equal(result, nodes)


def test_heads_are_shifted_around_the_end() -> None:
    text = """
rank E, H, G, I, J=I
split N -> G, I
input Q[H,E,N], K[H,E,N]
output S
S[h,g,i,j] = Q[h,e,(g*I+i+(I/2)*(h/(H/2)))%N] * K[h,e,(g*I+j+(I/2)*(h/(H/2)))%N]
"""
    q, k = RNG.standard_normal((4, 3, 8)), RNG.standard_normal((4, 3, 8))
    result = run(parse(text), {"Q": q, "K": k}, {"I": 4})["S"]
    for head in range(4):
        shift = -2 if head >= 2 else 0
        a, b = (np.roll(x[head], shift, -1).reshape(3, 2, 4) for x in (q, k))
        np.testing.assert_allclose(result[head], np.einsum("egi,egj->gij", a, b))


def test_an_absent_coordinate_reads_nothing() -> None:
    text = """
rank M, P, T
input A[M,P], V[M]
output N, Y
(X[t,p], I[t,p]) = A[m,p: m<p] :: topk(m -> t)
G[t,p] = V[I[t,p]]
N[p] = G[t,p] - G[t,p] + 1
Y[p] = G[t,p] :: min(t)
"""
    a, v = RNG.standard_normal((3, 3)), np.array([5.0, 6, 7])
    inputs = {"A": a, "V": v}
    result = run(parse(text), inputs, {"T": 2})
    slow = run_pointwise(parse(text), inputs, {"M": 3, "P": 3, "T": 2})
    for name, array in result.items():
        np.testing.assert_array_equal(array, slow[name])
    assert result["Y"].tolist() == [np.inf, 5, 5]
