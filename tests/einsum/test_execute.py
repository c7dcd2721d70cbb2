"""Execution against NumPy written out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from einfuse.einsum.execution.run import run
from einfuse.einsum.language.batch import with_batch
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.parser import parse
from einfuse.einsum.library.cascades import load

ATTENTION = [f"attention/{form}" for form in ("1-pass", "2-pass", "3-pass", "3-pass-deferred")]
RNG = np.random.default_rng(7)


def softmax_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return [.., f, p] from q [.., e, p], k [.., e, m], v [.., f, m], in float64."""
    scores = np.einsum("...em,...ep->...mp", k.astype(float), q.astype(float))
    weights = np.exp(scores - scores.max(-2, keepdims=True))
    return np.einsum("...fm,...mp->...fp", v.astype(float), weights) / weights.sum(-2)[..., None, :]


def qkv(*shape: int, e: int = 4, f: int = 3, m: int = 12, p: int = 5) -> dict[str, np.ndarray]:
    return {
        "Q": RNG.standard_normal((*shape, e, p)),
        "K": RNG.standard_normal((*shape, e, m)),
        "V": RNG.standard_normal((*shape, f, m)),
    }


def tile(name: str, m0: int = 4) -> dict[str, int]:
    return {"M0": m0} if load(name).splits else {}


def output(text: str, **inputs: object) -> np.ndarray:
    cascade = parse(text)
    (name,) = cascade.outputs
    result: np.ndarray = run(cascade, inputs)[name]
    return result


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_softmax_attention(name: str) -> None:
    inputs = qkv()
    result = run(load(name), inputs, tile(name))
    np.testing.assert_allclose(
        result["AV"], softmax_attention(**_lower(inputs)), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("name", ATTENTION)
def test_batch_ranks_are_one_more_axis_of_everything(name: str) -> None:
    inputs = qkv(2, 3)
    cascade = with_batch(load(name), ["B", "H"])
    result = run(cascade, inputs, tile(name))["AV"]
    np.testing.assert_allclose(result, softmax_attention(**_lower(inputs)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ATTENTION)
def test_one_query_is_enough(name: str) -> None:
    inputs = qkv(p=1)
    result = run(load(name), inputs, tile(name))["AV"]
    np.testing.assert_allclose(result, softmax_attention(**_lower(inputs)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("offset", [-1600.0, -1e4, 1e4])
def test_large_and_all_negative_scores_stay_exact_in_float32(name: str, offset: float) -> None:
    inputs = {n: a.astype(np.float32) for n, a in qkv().items()}
    inputs["Q"][0], inputs["K"][0] = 100, offset / 100
    result = run(load(name), inputs, tile(name))["AV"]
    assert result.dtype == np.float32
    # scores near 1e4 carry an error of 1e4 * 2^-24 * a few, which the exponential makes relative
    np.testing.assert_allclose(result, softmax_attention(**_lower(inputs)), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float16, 2e-2), (np.float32, 1e-5)])
def test_the_dtype_of_the_inputs_is_kept(name: str, dtype: type, tolerance: float) -> None:
    inputs = {n: a.astype(dtype) for n, a in qkv().items()}
    results = run(load(name), inputs, tile(name), all_tensors=True)
    assert {array.dtype for array in results.values()} == {np.dtype(dtype)}
    reference = softmax_attention(**_lower(inputs))
    np.testing.assert_allclose(results["AV"], reference, rtol=tolerance, atol=tolerance)


def test_all_tensors_come_with_all_their_generations() -> None:
    inputs = qkv(m=12)
    results = run(load("attention/1-pass"), inputs, {"M0": 4}, all_tensors=True)
    scores = np.einsum("em,ep->mp", inputs["K"], inputs["Q"])
    assert results["RM"].shape == (4, 5)
    assert np.isneginf(results["RM"][0]).all()
    running = [scores[: 4 * (i + 1)].max(0) for i in range(3)]
    np.testing.assert_allclose(results["RM"][1:], running)
    np.testing.assert_allclose(results["QK"], scores.reshape(3, 4, 5))
    np.testing.assert_array_equal(results["BK"], inputs["K"].reshape(4, 3, 4))


def test_inputs_are_left_as_they_are() -> None:
    inputs = qkv()
    before = {name: array.copy() for name, array in inputs.items()}
    result = run(load("attention/3-pass"), inputs)["AV"]
    result += 1
    for name, array in inputs.items():
        np.testing.assert_array_equal(array, before[name])


def test_a_view_that_is_an_output_is_a_copy_of_the_input() -> None:
    a = np.arange(6.0)
    result = output("rank M, M1=2, M0\nsplit M -> M1, M0\ninput A[M]\noutput B\n"
                    "B[m1,m0] = A[m1*M0+m0]", A=a)  # fmt: skip
    result[:] = 0
    assert a.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_tensor_read_through_a_view_is_not_overwritten() -> None:
    text = """
rank M
input A[M]
output Y, Z
X[m] = A[m] * 2
B[m] = X[m]
Y[m] = X[m] + 1
Z[m] = B[m] * 3
"""
    result = run(parse(text), {"A": np.ones(3)})
    assert result["Y"].tolist() == [3, 3, 3]
    assert result["Z"].tolist() == [6, 6, 6]


# Indices.


def test_strided_reversed_shifted_and_constant_indices() -> None:
    text = """
rank M=8, N=4
input A[M]
output ODD, BACK, SHIFTED, FIRST
ODD[n] = A[2*n+1]
BACK[m] = A[M-1-m]
SHIFTED[n] = A[n+3]
FIRST[] = A[0]
"""
    a = RNG.standard_normal(8)
    result = run(parse(text), {"A": a})
    np.testing.assert_array_equal(result["ODD"], a[1::2])
    np.testing.assert_array_equal(result["BACK"], a[::-1])
    np.testing.assert_array_equal(result["SHIFTED"], a[3:7])
    assert result["FIRST"] == a[0]
    assert result["FIRST"].shape == ()


def test_relative_positions_are_an_affine_index() -> None:
    text = """
rank E, M, P, R
input Q[E,P], K[E,M], REL[E,R]
output S
S[m,p] = Q[e,p]*K[e,m] + Q[e,p]*REL[e,p-m+M-1]
"""
    q, k, rel = (RNG.standard_normal((3, n)) for n in (5, 4, 8))
    result = output(text, Q=q, K=k, REL=rel)
    expected = [[q[:, p] @ (k[:, m] + rel[:, p - m + 3]) for p in range(5)] for m in range(4)]
    np.testing.assert_allclose(result, expected, rtol=1e-12)


def test_a_convolution_is_numpys() -> None:
    text = "rank W, N\ninput A[W], X[N]\noutput Y\nY[n] = A[w] * X[n-w: n-w>=0]"
    a, x = RNG.standard_normal(3), RNG.standard_normal(7)
    np.testing.assert_allclose(output(text, A=a, X=x), np.convolve(a, x)[:7])


def test_heads_share_keys_by_whole_division() -> None:
    text = """
rank H, G, E, M, P
input Q[H,E,P], K[G,E,M]
output S
S[h,m,p] = Q[h,e,p] * K[h/(H/G),e,m]
"""
    q, k = RNG.standard_normal((4, 3, 2)), RNG.standard_normal((2, 3, 5))
    expected = np.einsum("hep,hem->hmp", q, np.repeat(k, 2, axis=0))
    np.testing.assert_allclose(output(text, Q=q, K=k), expected, rtol=1e-12)


def test_gathers_read_where_a_tensor_says() -> None:
    text = """
rank F, M, P, T
input V[F,M], TI[T,P]
output Y
Y[f,p] = V[f,TI[t,p]]
"""
    v, at = RNG.standard_normal((3, 6)), RNG.integers(0, 6, (2, 4))
    np.testing.assert_allclose(output(text, V=v, TI=at), v[:, at].sum(1))


def test_scatters_add_up_what_meets() -> None:
    text = "rank C, P\ninput I[C], X[C]\noutput Y\nY[I[c]] = X[c]"
    cascade_text = (
        text.replace("Y[I[c]]", "Y[p]")
        .replace("X[c]", "X[c] * S[c,p]")
        .replace("input I[C]", "input S[C,P]")
    )
    onto = np.array([0, 2, 2, 1])
    x = RNG.standard_normal(4)
    one_hot = np.eye(3)[onto]
    expected = np.bincount(onto, x, 3)
    np.testing.assert_allclose(output(cascade_text, X=x, S=one_hot), expected)


def test_a_split_is_put_back_together() -> None:
    text = """
rank N1, N0
split N -> N1, N0
input X[N]
output Y
Z[n0,n1] = X[n1*N0+n0]
Y[n1*N0+n0] = Z[n0,n1] * 2
"""
    x = RNG.standard_normal(6)
    result = run(parse(text), {"X": x}, {"N0": 2})["Y"]
    np.testing.assert_array_equal(result, 2 * x)


def test_a_diagonal_is_a_repeated_variable() -> None:
    a = RNG.standard_normal((3, 3))
    text = "rank M\ninput A[M,M]\noutput T\nT[] = A[m,m]"
    np.testing.assert_allclose(output(text, A=a), np.trace(a))


def test_topk_gives_values_and_coordinates() -> None:
    text = """
rank M, P, T
input A[M,P]
output V, I
(V[t,p], I[t,p]) = A[m,p] :: topk(m -> t)
"""
    a = RNG.standard_normal((6, 3))
    result = run(parse(text), {"A": a}, {"T": 2})
    order = np.argsort(-a, axis=0)[:2]
    np.testing.assert_array_equal(result["I"], order)
    assert result["I"].dtype == np.int64
    np.testing.assert_array_equal(result["V"], np.take_along_axis(a, order, 0))


def test_scores_are_summed_before_topk_chooses() -> None:
    text = """
rank E, M, T
input Q[E], K[E,M]
output I
(V[t], I[t]) = Q[e] * K[e,m] :: topk(m -> t)
"""
    q, k = RNG.standard_normal(3), RNG.standard_normal((3, 5))
    result = run(parse(text), {"Q": q, "K": k}, {"T": 5})["I"]
    np.testing.assert_array_equal(result, np.argsort(-(q @ k)))


# Values.


def test_sizes_and_coordinates_are_values() -> None:
    text = "rank M, P\ninput A[M,P]\noutput Y\nY[m,p] = A[m,p]*m/M - p"
    a = RNG.standard_normal((3, 2)).astype(np.float32)
    result = output(text, A=a)
    assert result.dtype == np.float32
    m, p = np.arange(3)[:, None], np.arange(2)
    np.testing.assert_allclose(result, a * m / 3 - p, rtol=1e-6)


def test_whole_numbers_stay_whole() -> None:
    text = "rank E, M\ninput A[E], B[E,M]\noutput Y\nY[m] = A[e] * B[e,m]"
    a, b = np.array([100, -100], np.int8), np.array([[100, 3], [-100, 4]], np.int8)
    result = output(text, A=a, B=b)
    assert result.dtype == np.int64
    assert result.tolist() == [20000, -100]


def test_actions_apply_from_left_to_right() -> None:
    a = RNG.standard_normal((3, 4))
    rank = "rank M, P\ninput A[M,P]\noutput Y\nY[] = A[m,p] :: "
    np.testing.assert_allclose(output(rank + "max(m); +(p)", A=a), a.max(0).sum())
    np.testing.assert_allclose(output(rank + "+(p); max(m)", A=a), a.sum(1).max())
    np.testing.assert_allclose(output(rank + "max(m)", A=a), a.sum(1).max())  # sums come first
    np.testing.assert_allclose(output(rank + "*(m,p)", A=a), a.prod())


def test_a_sum_counts_what_does_not_vary() -> None:
    a, b = RNG.standard_normal(3), RNG.standard_normal((3, 2))
    text = "rank M, P, N\ninput A[M], B[M,P]\noutput Y\nY[p] = A[m]*B[m,p] + n*A[m]"
    expected = 4 * (a @ b) + a.sum() * 6
    np.testing.assert_allclose(run(parse(text), {"A": a, "B": b}, {"N": 4})["Y"], expected)


def test_a_quotient_below_a_sum_is_divided_where_it_varies() -> None:
    a, b, d = RNG.standard_normal((3, 2)), RNG.standard_normal((3, 4)), RNG.random(3) + 1
    text = "rank M, P, F\ninput A[M,P], B[M,F], D[M]\noutput Y\nY[f,p] = A[m,p]*B[m,f]/D[m]"
    np.testing.assert_allclose(output(text, A=a, B=b, D=d), b.T @ (a / d[:, None]))


def test_three_factors_contract_in_pairs() -> None:
    a, b, c = (RNG.standard_normal(s) for s in ((2, 3), (3, 4), (4, 5)))
    text = "rank A, B, C, D\ninput X[A,B], Y[B,C], Z[C,D]\noutput O\nO[d,a] = X[a,b]*Y[b,c]*Z[c,d]"
    np.testing.assert_allclose(output(text, X=a, Y=b, Z=c), (a @ b @ c).T)


def test_a_sum_under_a_function_is_taken_point_by_point() -> None:
    a, b = RNG.standard_normal(4), RNG.standard_normal(3)
    text = "rank M, P\ninput A[M], B[P]\noutput Y\nY[p] = exp(A[m]-B[p])"
    np.testing.assert_allclose(output(text, A=a, B=b), np.exp(a[:, None] - b).sum(0))


def test_infinite_and_nan_data_pass_as_ieee_says() -> None:
    text = "rank M, P\ninput A[M,P], B[M]\noutput Y\nY[p] = A[m,p]*B[m]"
    a = np.array([[1.0, 1.0, 0.0], [np.inf, np.nan, 1.0]])
    result = output(text, A=a, B=np.array([np.inf, 1.0]))
    np.testing.assert_array_equal(result, [np.inf, np.nan, np.nan])


# Generations.


def test_a_recurrence_reads_the_generation_before() -> None:
    text = """
rank N
iter i over N
input X[N]
output S, L
init:
S[0] = 1
loop:
S[i+1] = S[i]*0.5 + X[i]
final:
L[] = S[N]
"""
    x = RNG.standard_normal(5)
    states = [1.0]
    for value in x:
        states.append(states[-1] * 0.5 + value)
    result = run(parse(text), {"X": x})
    np.testing.assert_allclose(result["S"], states)
    np.testing.assert_allclose(result["L"], states[-1])


@pytest.mark.parametrize("stop", ["i >= 3", "S[i,0] <= 0.125", "D[i] < 0.2"])
def test_a_loop_stops_early_and_the_last_generation_is_the_last_there_is(stop: str) -> None:
    text = f"""
rank N, P
iter i over N
input X[P]
output L
init:
S[0,p] = X[p]
loop:
S[i+1,p] = S[i,p]*0.5
D[i] = S[i,p] - S[i+1,p] :: max(p)
stop {stop}
final:
L[p] = S[N,p]
"""
    result = run(parse(text), {"X": np.ones(2)}, {"N": 9})["L"]
    assert result.tolist() == [0.125, 0.125]  # halved three times, by each of the conditions


def test_a_prefix_may_read_all_generations_so_far() -> None:
    text = """
rank N, K=N
iter i over N
input X[N]
output T
init:
S[0] = 0
loop:
S[i+1] = S[i] + X[i]
T[i] = S[k: k<=i]
"""
    x = RNG.standard_normal(4)
    sums = np.concatenate([[0], np.cumsum(x)])
    np.testing.assert_allclose(output(text, X=x), np.cumsum(sums)[:4])


def test_a_generation_may_look_back_as_far_as_it_likes() -> None:
    text = """
rank N, P
iter i over N
input X[P]
output L
loop:
S[i,p] = X[p] + S[i-1: i>=1, p] - 0.3*S[i-2: i>=2, p]
final:
L[p] = S[N-1,p]
"""
    x = RNG.standard_normal(2)
    states = [x, 2 * x]
    for _ in range(4):
        states.append(x + states[-1] - 0.3 * states[-2])
    np.testing.assert_allclose(run(parse(text), {"X": x}, {"N": 6})["L"], states[-1])


def test_generations_are_an_ordinary_rank_after_the_loop() -> None:
    text = """
rank N
iter i over N
input X[N]
output HIGHEST, PRODUCTS
init:
S[0] = 0
loop:
S[i+1] = S[i] + X[i]
final:
HIGHEST[] = S[i+1] :: max(i)
PRODUCTS[i] = S[i+1] * S[i]
"""
    x = RNG.standard_normal(5)
    sums = np.concatenate([[0], np.cumsum(x)])
    result = run(parse(text), {"X": x})
    np.testing.assert_allclose(result["HIGHEST"], sums[1:].max())
    np.testing.assert_allclose(result["PRODUCTS"], sums[1:] * sums[:-1], atol=1e-14)


def test_generations_not_read_again_are_dropped() -> None:
    """A loop over many generations of a large state fits into little memory."""
    text = """
rank N, P
iter i over N
input X[P]
output L
init:
S[0,p] = X[p]
loop:
S[i+1,p] = S[i,p] + X[p]
final:
L[p] = S[N,p]
"""
    limit = 4 * 8 * 10_000  # of 1000 generations of 10 000 values, four may live
    result = run(parse(text), {"X": np.ones(10_000)}, {"N": 1000}, memory_limit_bytes=limit)
    assert (result["L"] == 1001).all()


# Errors.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Q": None}, r"missing input Q\[E,P\]"),
        ({"X": np.ones(3)}, "has no input 'X'"),
        ({"Q": np.ones(4)}, r"input Q: expected 2 axes \[E,P\], found shape \(4,\)"),
        ({"Q": np.ones((5, 5))}, r"rank E has two sizes: 5 on axis 0 of Q.* and 4 on axis 0 of K"),
        ({"Q": np.ones((4, 5), complex)}, "expected real or whole numbers, found dtype complex"),
        ({"Q": np.array([["a"] * 5] * 4)}, "expected real or whole numbers"),
        ({"Q": [[1.0], [1.0, 2.0]]}, "input Q: expected an array of numbers"),
    ],
)
def test_wrong_inputs_are_named(change: dict[str, object], words: str) -> None:
    inputs: dict[str, object] = {**qkv(), **change}
    inputs = {name: array for name, array in inputs.items() if array is not None}
    with pytest.raises(EinfuseError, match=words):
        run(load("attention/3-pass"), inputs)


def test_a_given_size_that_an_input_contradicts_names_both_sides() -> None:
    with pytest.raises(EinfuseError, match="rank M has two sizes: 7 as given for M and 12 on axis"):
        run(load("attention/3-pass"), qkv(), {"M": 7})


def test_an_open_split_asks_for_a_factor() -> None:
    with pytest.raises(EinfuseError, match="M0"):
        run(load("attention/1-pass"), qkv())


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(EinfuseError, match="unknown backend 'cupy'; there is numpy, torch"):
        run(load("attention/3-pass"), qkv(), backend="cupy")


def test_a_gather_outside_its_tensor_is_refused() -> None:
    text = "rank M, T\ninput V[M], I[T]\noutput Y\nY[t] = V[I[t]]"
    with pytest.raises(EinfuseError, match=r"index I\[t\] of V reaches 3, outside 0..2"):
        output(text, V=np.ones(3), I=np.array([0, 3]))
    with pytest.raises(EinfuseError, match=r"reaches -1, outside 0..2"):
        output(text, V=np.ones(3), I=np.array([0, -1]))
    with pytest.raises(EinfuseError, match="expected whole numbers, found fractions"):
        output(text, V=np.ones(3), I=np.array([0.5, 1]))


def test_truth_values_are_zeros_and_ones() -> None:
    text = """
rank M, P
input A[M,P], KEEP[M,P]
output Y, Z, N
Y[p] = A[m,p] * KEEP[m,p]
Z[p] = A[m,p: KEEP[m,p]==1]
N[p] = KEEP[m,p]
"""
    a, keep = RNG.standard_normal((4, 3)), RNG.random((4, 3)) < 0.5
    result = run(parse(text), {"A": a, "KEEP": keep})
    np.testing.assert_allclose(result["Y"], (a * keep).sum(0))
    np.testing.assert_allclose(result["Z"], (a * keep).sum(0))
    assert result["N"].tolist() == keep.sum(0).tolist()


def test_what_a_filter_culls_may_lie_outside() -> None:
    text = "rank M, T\ninput V[M], I[T]\noutput Y\nY[t] = V[I[t]: I[t]>=0]"
    assert output(text, V=np.arange(1.0, 4.0), I=np.array([2, -1])).tolist() == [3, 0]


def test_a_run_too_large_for_memory_says_how_many_bytes() -> None:
    inputs = qkv(m=1000, p=1000)
    with pytest.raises(EinfuseError, match=r"would need about \d+ bytes .* there are 1000000"):
        run(load("attention/3-pass"), inputs, memory_limit_bytes=1_000_000)


def _lower(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.lower(): array for name, array in inputs.items()}


def test_an_implicit_sum_is_taken_before_the_actions() -> None:
    """The maximum of dot products, not the sum of maxima."""
    q, k = RNG.standard_normal((4, 3)), RNG.standard_normal((4, 5))
    text = "rank E, M, P\ninput Q[E,P], K[E,M]\noutput Y\nY[p] = Q[e,p] * K[e,m] :: max(m)"
    np.testing.assert_allclose(output(text, Q=q, K=k), (k.T @ q).max(0))
