"""Absent values: masks, fully masked rows and blocks, merges (decision 0003)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from einfuse.einsum.execution.pointwise import run_pointwise
from einfuse.einsum.execution.run import run
from einfuse.einsum.language.parser import parse

RNG = np.random.default_rng(11)

THREE_PASS = """
rank E, F, M, P
input Q[E,P], K[E,M], V[F,M]
output AV
QK[m,p] = Q[e,p] * K[e, m: {mask}]
GM[p] = QK[m,p] :: max(m)
SN[m,p] = exp(QK[m,p] - GM[p])
SD[p] = SN[m,p] :: +(m)
A[m,p] = SN[m,p] / SD[p]
AV[f,p] = A[m,p] * V[f,m]
"""
DEFERRED = """
rank E, F, M, P
input Q[E,P], K[E,M], V[F,M]
output AV
QK[m,p] = Q[e,p] * K[e, m: {mask}]
GM[p] = QK[m,p] :: max(m)
SN[m,p] = exp(QK[m,p] - GM[p])
SD[p] = SN[m,p] :: +(m)
AV[f,p] = SN[m,p] * V[f,m] / SD[p]
"""
TWO_PASS = """
rank E, F, P, M1, M0
split M -> M1, M0
input Q[E,P], K[E,M], V[F,M]
output AV
QK[m1,m0,p] = Q[e,p] * K[e, {m}: {mask}]
LM[m1,p] = QK[m1,m0,p] :: max(m0)
SLN[m1,m0,p] = exp(QK[m1,m0,p] - LM[m1,p])
SLD[m1,p] = SLN[m1,m0,p] :: +(m0)
GM[p] = LM[m1,p] :: max(m1)
C[m1,p] = exp(LM[m1,p] - GM[p])
SD[p] = SLD[m1,p] * C[m1,p] :: +(m1)
A[m1,m0,p] = SLN[m1,m0,p] * C[m1,p] / SD[p]
AV[f,p] = A[m1,m0,p] * V[f, {m}]
"""
ONE_PASS = """
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
RNV[f,0,p] = 0
loop:
QK[m1,m0,p] = Q[e,p] * BK[e, m1, m0: {mask}]
LM[m1,p] = QK[m1,m0,p] :: max(m0)
RM[m1+1,p] = max(RM[m1,p], LM[m1,p])
SLN[m1,m0,p] = exp(QK[m1,m0,p] - RM[m1+1,p])
SLD[m1,p] = SLN[m1,m0,p] :: +(m0)
SLNV[f,m1,p] = SLN[m1,m0,p] * BV[f,m1,m0]
PRM[m1,p] = {correction}
SPD[m1,p] = RD[m1,p] * PRM[m1,p]
RD[m1+1,p] = SLD[m1,p] + SPD[m1,p]
SPNV[f,m1,p] = RNV[f,m1,p] * PRM[m1,p]
RNV[f,m1+1,p] = SLNV[f,m1,p] + SPNV[f,m1,p]
final:
AV[f,p] = RNV[f,M1,p] / RD[M1,p]
"""
PRINTED = "exp(RM[m1,p] - RM[m1+1,p])"
GUARDED = "where(gt(RM[m1,p], -inf), exp(RM[m1,p] - RM[m1+1,p]), 0)"
FORMS = {
    "three": THREE_PASS,
    "deferred": DEFERRED,
    "two": TWO_PASS,
    "one": ONE_PASS.replace("{correction}", PRINTED),
    "one-guarded": ONE_PASS.replace("{correction}", GUARDED),
}
MASKS = {
    "causal": ("{m}<=p", lambda m, p: m <= p),
    "window": ("{m}<=p & {m}+4>p", lambda m, p: (m <= p) & (m + 4 > p)),
    "no-key-for-early-rows": ("{m}+6<=p", lambda m, p: m + 6 <= p),
    "first-blocks-masked": ("{m}>p", lambda m, p: m > p),
    "nothing": ("{m}<0", lambda m, p: m < 0 * p),
    "everything": ("{m}>=0", lambda m, p: m >= 0 * p),
    "one-key": ("{m}==3", lambda m, p: m == 3 + 0 * p),
}


def masked_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Return [f, p] in float64, row by row over the keys it has; 0 where there is none."""
    q, k, v = (a.astype(float) for a in (q, k, v))
    result = np.zeros((v.shape[0], q.shape[1]))
    for p in range(q.shape[1]):
        keys = np.flatnonzero(keep[:, p])
        if keys.size:
            scores = k[:, keys].T @ q[:, p]
            weights = np.exp(scores - scores.max())
            result[:, p] = v[:, keys] @ (weights / weights.sum())
    return result


def masked(form: str, mask: str) -> str:
    split = "M1" in FORMS[form]
    m = "(m1*M0+m0)" if split else "m"
    return FORMS[form].replace("{mask}", MASKS[mask][0].replace("{m}", m)).replace("{m}", m)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_masked_attention_is_right_as_printed(form: str, mask: str, scale: float) -> None:
    q, k, v = (RNG.standard_normal((n, s)) for n, s in ((3, 14), (3, 12), (2, 12)))
    keep = MASKS[mask][1](np.arange(12)[:, None], np.arange(14))
    shape = {"M0": 3} if "M1" in FORMS[form] else {}
    result = run(parse(masked(form, mask)), {"Q": scale * q, "K": k, "V": v}, shape)["AV"]
    expected = masked_attention(scale * q, k, v, keep)
    np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("offset", [-1600.0, -1e4, 1e4])
def test_masked_attention_stays_finite_in_float32_at_large_scores(form: str, offset: float) -> None:
    q, k, v = (RNG.standard_normal((n, 12)).astype(np.float32) for n in (3, 3, 2))
    q[0], k[0] = 100, offset / 100
    keep = MASKS["no-key-for-early-rows"][1](np.arange(12)[:, None], np.arange(12))
    shape = {"M0": 3} if "M1" in FORMS[form] else {}
    inputs = {"Q": q, "K": k, "V": v}
    result = run(parse(masked(form, "no-key-for-early-rows")), inputs, shape)["AV"]
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, masked_attention(q, k, v, keep), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("form", FORMS)
def test_no_key_at_all_gives_zero_and_its_logsumexp_minus_infinity(form: str) -> None:
    text = masked(form, "nothing").replace("output AV", "output AV, LSE")
    top, total = ("RM[M1,p]", "RD[M1,p]") if "one" in form else ("GM[p]", "SD[p]")
    text += f"LSE[p] = log({total}) + {top}\n"
    inputs = {n: RNG.standard_normal((2, 6)) for n in "QKV"}
    result = run(parse(text), inputs, {"M0": 3} if "M1" in text else {})
    assert (result["AV"] == 0).all()
    assert np.isneginf(result["LSE"]).all()


def test_garbage_beyond_a_ragged_length_is_never_read() -> None:
    text = THREE_PASS.replace("input ", "input LEN[], ").replace("{mask}", "m<LEN[]")
    q, k, v = (RNG.standard_normal((n, 6)) for n in (3, 3, 2))
    clean = run(parse(text), {"Q": q, "K": k, "V": v, "LEN": np.array(4)})["AV"]
    k[:, 4:], v[:, 4:] = np.nan, np.inf
    dirty = run(parse(text), {"Q": q, "K": k, "V": v, "LEN": np.array(4)})["AV"]
    np.testing.assert_allclose(dirty, clean)
    np.testing.assert_allclose(clean, masked_attention(q, k, v, np.arange(6)[:, None] < [4] * 6))


def test_an_infinite_value_reaches_only_the_rows_that_see_it() -> None:
    q, k, v = (RNG.standard_normal((n, 5)) for n in (3, 3, 2))
    v[0, 2] = np.inf
    result = run(parse(masked("deferred", "causal")), {"Q": q, "K": k, "V": v})["AV"]
    assert np.isfinite(result[:, :2]).all()
    assert np.isposinf(result[0, 2:]).all()
    assert np.isfinite(result[1]).all()


def test_nan_inputs_stay_nan() -> None:
    q, k, v = (RNG.standard_normal((n, 5)) for n in (3, 3, 2))
    k[0, 1] = np.nan
    result = run(parse(masked("three", "causal")), {"Q": q, "K": k, "V": v})["AV"]
    assert np.isfinite(result[:, 0]).all()
    assert np.isnan(result[:, 1:]).all()


def merged(expression: str, a: list[float], b: list[float]) -> list[float]:
    """Return Y of A where coordinate 0 and 1, B where 1 and 2 are there; 3 has neither."""
    text = f"""
rank M
input X[M], Z[M]
output Y
A[m] = X[m: m<2]
B[m] = Z[m: m>0 & m<3]
Y[m] = {expression}
"""
    inputs = {"X": np.array(a), "Z": np.array(b)}
    result: list[float] = run(parse(text), inputs)["Y"].tolist()
    assert result == run_pointwise(parse(text), inputs, {"M": 4})["Y"].tolist()
    return result


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("A[m] + B[m]", [2, 8, 7, 0]),
        ("A[m] - B[m]", [2, -2, -7, 0]),
        ("A[m] * B[m]", [0, 15, 0, 0]),
        ("max(A[m], B[m])", [2, 5, 7, -np.inf]),
        ("min(A[m], B[m])", [2, 3, 7, np.inf]),
        ("A[m] / B[m]", [0, 3 / 5, 0, 0]),
        ("A[m] + B[m] @ inter", [0, 8, 0, 0]),
        ("A[m] + B[m] @ left", [2, 8, 0, 0]),
        ("A[m] + B[m] @ right", [0, 8, 7, 0]),
        ("A[m] * B[m] @ union", [2, 15, 7, 0]),
        ("exp(A[m]) - exp(A[m])", [0, 0, 0, 0]),
        ("where(gt(B[m], 5), B[m], A[m])", [0, 3, 7, 0]),
    ],
)
def test_a_merge_says_which_coordinates_are_touched(expression: str, expected: list[float]) -> None:
    assert merged(expression, [2, 3, 4, 5], [4, 5, 7, 9]) == expected


def test_an_operand_without_a_rank_cannot_supply_its_coordinates() -> None:
    text = "rank M, P\ninput A[M,P], B[P]\noutput S\nS[p] = exp(A[m,p: m<p] - B[p])"
    a, b = RNG.standard_normal((3, 4)), RNG.standard_normal(4)
    expected = [sum(np.exp(a[m, p] - b[p]) for m in range(3) if m < p) for p in range(4)]
    np.testing.assert_allclose(run(parse(text), {"A": a, "B": b})["S"], expected)


def test_folds_skip_what_is_absent() -> None:
    text = """
rank M, P
input A[M,P]
output HIGH, LOW, SUM, PRODUCT
B[m,p] = A[m,p: m<p]
HIGH[p] = B[m,p] :: max(m)
LOW[p] = B[m,p] :: min(m)
SUM[p] = B[m,p] :: +(m)
PRODUCT[p] = B[m,p] :: *(m)
"""
    result = run(parse(text), {"A": np.array([[-1.0, -2, -3], [5, -4, -7]])})
    assert result["HIGH"].tolist() == [-np.inf, -2, -3]
    assert result["LOW"].tolist() == [np.inf, -2, -7]
    assert result["SUM"].tolist() == [0, -2, -10]
    assert result["PRODUCT"].tolist() == [0, -2, 21]


def test_topk_chooses_what_is_absent_last_and_gathers_skip_it() -> None:
    text = """
rank M, P, T
input A[M,P], V[M]
output I, Y
(X[t,p], I[t,p]) = A[m,p: m<=p] :: topk(m -> t)
Y[p] = X[t,p] * V[I[t,p]]
"""
    a = np.array([[-1.0, -2, -3], [9, -5, -1], [9, 9, -2]])
    v = np.array([1.0, 10, 100])
    result = run(parse(text), {"A": a, "V": v}, {"T": 2})
    assert result["Y"].tolist() == [-1, -2 * 1 - 5 * 10, -1 * 10 - 2 * 100]


def test_a_rank_is_concatenated_by_filters() -> None:
    text = """
rank G, L, X, P
input A[G,P], B[L,P]
output C, D
C[x,p] = A[x+0: x<G,p] + B[x-G: x>=G,p]
D[p] = C[x,p] :: max(x)
"""
    a, b = RNG.standard_normal((2, 3)), RNG.standard_normal((3, 3))
    result = run(parse(text), {"A": a, "B": b}, {"X": 5})
    np.testing.assert_array_equal(result["C"], np.concatenate([a, b]))
    np.testing.assert_array_equal(result["D"], np.concatenate([a, b]).max(0))


def test_minus_infinity_as_a_branch_of_where_is_nothing() -> None:
    text = """
rank M, P
input A[M,P], V[M]
output Y
S[m,p] = where(le(m+1, p), A[m,p], -inf)
GM[p] = S[m,p] :: max(m)
SN[m,p] = exp(S[m,p] - GM[p])
SD[p] = SN[m,p] :: +(m)
Y[p] = SN[m,p] * V[m] / SD[p]
"""
    a, v = RNG.standard_normal((4, 5)), RNG.standard_normal(4)
    keep = np.arange(4)[:, None] < np.arange(5)
    weights = np.where(keep, np.exp(a), 0)
    expected = np.divide(v @ weights, weights.sum(0), where=keep.any(0), out=np.zeros(5))
    np.testing.assert_allclose(run(parse(text), {"A": a, "V": v})["Y"], expected)


def test_additive_masks_of_data_follow_ieee() -> None:
    text = THREE_PASS.replace("K[e, m: {mask}]", "K[e,m]").replace(
        "input ", "input BIAS[M,P], "
    ).replace("Q[e,p] * K[e,m]", "Q[e,p] * K[e,m] + BIAS[m,p]/E")  # fmt: skip
    q, k, v = (RNG.standard_normal((n, 4)) for n in (3, 3, 2))
    keep = np.arange(4)[:, None] < np.arange(4)
    bias = np.where(keep, 0, -np.inf)
    result = run(parse(text), {"Q": q, "K": k, "V": v, "BIAS": bias})["AV"]
    assert np.isnan(result[:, 0]).all()  # exp(-inf + inf): data are numbers
    expected = masked_attention(q, k, v, keep)
    np.testing.assert_allclose(result[:, 1:], expected[:, 1:], rtol=1e-12)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("operator", ["topk", "bottomk"])
def test_what_is_absent_is_chosen_after_all_that_is_there(operator: str, backend: str) -> None:
    """An infinity that is there is chosen before points that a filter culled, by hand."""
    pytest.importorskip("torch")
    worst = -math.inf if operator == "topk" else math.inf
    cascade = parse(
        f"rank M, T = 3\ninput A[M]\noutput Y, I\n(Y[t], I[t]) = A[m: m>=2] :: {operator}(m -> t)"
    )
    found = run(cascade, {"A": np.array([5.0, worst, worst, worst, 7.0])}, backend=backend)
    assert found["Y"].tolist() == [7.0, worst, worst]
    assert found["I"].tolist() == [4, 2, 3]
