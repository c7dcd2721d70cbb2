"""Loops that write a chunk of a flat rank per generation: run, unrolled, refused."""

from __future__ import annotations

import numpy as np
import pytest

from einfuse.einsum import EinfuseError, parse, render, run
from einfuse.einsum.analysis.passes import count_passes
from einfuse.einsum.derivation.search import derive
from einfuse.einsum.derivation.unroll import unroll
from einfuse.einsum.execution.pointwise import run_pointwise
from einfuse.einsum.gradient.gradient import gradient

LINEAR = """
rank E, F, M, M1, M0, N0 = M0
split M -> M1, M0
iter m1 over M1
input Q[E,M], K[E,M], V[F,M]
output O
init:
S[e,f,0] = 0
loop:
A[m1,m0,n0] = Q[e,m1*M0+m0] * K[e,m1*M0+n0: n0<=m0]
IN[f,m1,m0] = A[m1,m0,n0] * V[f,m1*M0+n0]
OUT[f,m1,m0] = Q[e,m1*M0+m0] * S[e,f,m1]
O[f,m1*M0+m0] = IN[f,m1,m0] + OUT[f,m1,m0]
U[e,f,m1] = K[e,m1*M0+m0] * V[f,m1*M0+m0]
S[e,f,m1+1] = S[e,f,m1] + U[e,f,m1]
"""
RANDOM = np.random.default_rng(5)
INPUTS = {"Q": RANDOM.normal(size=(3, 12)), "K": RANDOM.normal(size=(3, 12))}
INPUTS["V"] = RANDOM.normal(size=(2, 12))
SIZES = {"M0": 4}


def _causal_linear_attention() -> np.ndarray:
    return INPUTS["V"] @ np.tril(INPUTS["Q"].T @ INPUTS["K"]).T


@pytest.mark.parametrize("index", ["m1*M0+m0", "m0 + M0*m1"])
def test_chunked_linear_attention_writes_its_rows_into_a_flat_rank(index: str) -> None:
    cascade = parse(LINEAR.replace("O[f,m1*M0+m0]", f"O[f,{index}]"))
    assert parse(render(cascade)) == cascade
    found = run(cascade, INPUTS, SIZES)["O"]
    np.testing.assert_allclose(found, _causal_linear_attention(), rtol=1e-12)
    assert count_passes(cascade, "M").passes == 1


def test_chunks_may_be_interleaved_and_read_where_they_are_written() -> None:
    text = """
rank M1 = 3, M0 = 4
split M -> M1, M0
iter m1 over M1
input X[M]
output Y, Z
loop:
Y[m0*M1+m1] = X[m0*M1+m1] * 2
Z[m1*4+m0] = Y[m0*M1+m1] + m1
"""
    cascade, x = parse(text), np.arange(12.0)
    found = run(cascade, {"X": x})
    np.testing.assert_array_equal(found["Y"], 2 * x)
    np.testing.assert_array_equal(
        found["Z"], [2 * (m0 * 3 + m1) + m1 for m1 in range(3) for m0 in range(4)]
    )
    for name, value in run_pointwise(cascade, {"X": x}, {}).items():
        np.testing.assert_array_equal(found[name], value)


def test_unrolled_it_computes_the_same_and_so_its_gradient_is_found() -> None:
    cascade = parse(LINEAR)
    sizes = {"M": 12, **SIZES}
    found = run(unroll(cascade, sizes), INPUTS, sizes)["O"]
    np.testing.assert_allclose(found, _causal_linear_attention(), rtol=1e-12)
    seed = RANDOM.normal(size=(2, 12))
    backward = gradient(cascade, ("V",), shape=sizes)
    found = run(backward, {k: v for k, v in {**INPUTS, "dO": seed}.items()
                           if k in backward.inputs}, sizes)["dV"]  # fmt: skip
    weights = np.tril(INPUTS["Q"].T @ INPUTS["K"])
    np.testing.assert_allclose(found, seed @ weights, rtol=1e-12)


@pytest.mark.parametrize("index", ["m1*2+m0", "m1*M0+2*m0", "m1+m0", "m1*E+m0", "m1*m1"])
def test_what_may_write_one_place_twice_is_refused(index: str) -> None:
    with pytest.raises(EinfuseError, match="a chunk of a flat rank such as m1"):
        parse(LINEAR.replace("O[f,m1*M0+m0]", f"O[f,{index}]"))


def test_another_chunk_cannot_be_read_in_the_loop() -> None:
    with pytest.raises(EinfuseError, match="O is read at a generation not yet written"):
        parse(LINEAR + "T[f,m1] = O[f,0*M0+m0]\n")


def test_an_iter_line_without_a_loop_says_nothing_to_derive() -> None:
    text = """
rank E, F, P, M
iter i over M
input Q[E,P], K[E,M], V[F,M]
output AV
QK[i,p] = Q[e,p] * K[e,i]
GM[p] = QK[i,p] :: max(i)
SN[i,p] = exp(QK[i,p] - GM[p])
SD[p] = SN[i,p]
AV[f,p] = SN[i,p] / SD[p] * V[f,i]
"""
    assert [(d.passes, d.stable) for d in derive(parse(text), "M")][-1:] != [(3, True)]
    assert any(d.passes == 1 and d.stable for d in derive(parse(text), "M"))
