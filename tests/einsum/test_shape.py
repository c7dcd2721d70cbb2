"""Sizes of ranks: what follows from what, and what is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import sympy

from einfuse.einsum.language.errors import CascadeError, CascadeWarning, EinfuseError
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.shape import bind, bind_known, bind_symbolic, symbol, tensor_shape
from einfuse.einsum.library.cascades import load

GIVEN = {"E": 64, "F": 32, "P": 128}


def test_one_factor_of_a_split_gives_the_other() -> None:
    one_pass = load("attention/1-pass")
    assert bind(one_pass, GIVEN | {"M": 256, "M0": 32})["M1"] == 8
    assert bind(one_pass, GIVEN | {"M": 256, "M1": 8})["M0"] == 32
    assert bind(one_pass, GIVEN | {"M1": 8, "M0": 32})["M"] == 256
    assert bind(one_pass, GIVEN | {"M": 256, "M1": 8, "M0": 32}) == {
        "E": 64, "F": 32, "P": 128, "M1": 8, "M0": 32, "M": 256,
    }  # fmt: skip


def test_ranks_of_one_size_share_it_both_ways() -> None:
    cascade = parse("rank M, N = M, K = N\ninput A[M]\nY[n] = A[n]")
    assert bind(cascade, {"M": 4}) == {"M": 4, "N": 4, "K": 4}
    assert bind(cascade, {"K": 4}) == {"M": 4, "N": 4, "K": 4}


def test_sizes_in_the_text_need_not_be_given_but_may() -> None:
    cascade = parse("rank M = 6, N = M\nsplit N -> N1, N0\ninput A[M]\nY[m] = A[m]")
    assert bind(cascade, {"N0": 2}) == {"M": 6, "N": 6, "N1": 3, "N0": 2}
    assert bind(cascade, {"M": 6, "N0": 2})["N1"] == 3
    assert bind_known(cascade) == {"M": 6, "N": 6}


def test_splits_of_splits_follow_in_any_order() -> None:
    cascade = parse("split MI -> M1, M0\nsplit M -> M2, MI\ninput A[M]\nY[] = A[m]")
    assert bind(cascade, {"M": 24, "M1": 2, "M0": 3})["M2"] == 4
    assert bind(cascade, {"M2": 4, "M1": 2, "M0": 3})["M"] == 24


def test_a_ragged_split_rounds_the_outer_factor_up() -> None:
    one_pass = load("attention/1-pass")
    shape = bind(one_pass, GIVEN | {"M": 1000, "M0": 256}, ragged=True)
    assert (shape["M"], shape["M1"], shape["M0"]) == (1000, 4, 256)
    with pytest.raises(EinfuseError, match="must multiply"):
        bind(one_pass, GIVEN | {"M": 1000, "M0": 256, "M1": 5}, ragged=True)


def test_sizes_may_be_arrays() -> None:
    shape = bind(load("attention/1-pass"), GIVEN | {"M": np.array([256, 512]), "M0": 32})
    assert shape["M1"].tolist() == [8, 16]
    with pytest.raises(EinfuseError, match=r"M = 100\.\.256 is no multiple of M0 = 32"):
        bind(load("attention/1-pass"), GIVEN | {"M": np.array([256, 100]), "M0": 32})


def test_numpy_integers_become_plain_ones() -> None:
    shape = bind(load("attention/3-pass"), {"E": np.int64(2), "F": 2, "P": 2, "M": 2})
    assert type(shape["E"]) is int


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, "ranks E, F, P, M1, M0 without a size: give E=...,F=...,P=...,M1=...,M0=..."),
        (GIVEN | {"M1": 4}, "rank M0 without a size: give M0=..."),
        (GIVEN | {"M": 64}, "M = 64 is split into M1 and M0: give the size of one of them"),
        (GIVEN | {"M": 64, "X": 3}, "attention/1-pass has no rank 'X'"),
        (GIVEN | {"m": 64}, "has no rank 'm'; did you mean 'M'"),
        (GIVEN | {"M": 0}, "rank M needs a size of at least 1, found 0"),
        (GIVEN | {"M": -4}, "rank M needs a size of at least 1, found -4"),
        (GIVEN | {"M": 4.0}, "rank M needs a whole size, found 4.0"),
        (GIVEN | {"M": True}, "rank M needs a whole size, found True"),
        (GIVEN | {"M": "4"}, "rank M needs a whole size, found '4'"),
        (GIVEN | {"M": np.array([4.0])}, "rank M needs a whole size"),
        (GIVEN | {"M": 64, "M0": 7}, "M = 64 is no multiple of M0 = 7"),
        (GIVEN | {"M": 64, "M0": 8, "M1": 4}, "M = 64, but M1*M0 = 4*8 = 32"),
    ],
)
def test_bad_sizes_are_refused(sizes: dict[str, object], message: str) -> None:
    with pytest.raises(EinfuseError) as caught:
        bind(load("attention/1-pass"), sizes)
    assert message in str(caught.value)


def test_a_size_that_contradicts_the_text_is_refused() -> None:
    cascade = parse("rank M = 8, N = M\ninput A[M]\nY[n] = A[n]")
    with pytest.raises(EinfuseError, match="rank M has two sizes: 8 in the text and 4 as given"):
        bind(cascade, {"M": 4})
    with pytest.raises(EinfuseError, match=r"\(N = M\): 8 in the text and 4 as given for N"):
        bind(cascade, {"N": 4})


def test_a_wrong_split_is_pointed_at_in_the_text() -> None:
    cascade = parse("rank M\nsplit M -> M1, M0\ninput A[M]\nY[m] = A[m]", source="a.txt")
    with pytest.raises(CascadeError) as caught:
        bind(cascade, {"M": 8, "M0": 3})
    assert str(caught.value).splitlines() == [
        "a.txt:2:1: the sizes of a split must multiply: M = 8 is no multiple of M0 = 3",
        "    split M -> M1, M0",
        "    ^^^^^^^^^^^^^^^^^",
    ]


HEAD = "rank M, P, W\ninput A[M]\n"


@pytest.mark.parametrize(
    ("body", "reached"),
    [
        ("Y[p] = A[p+1]", "index p+1 of A reaches 8, outside 0..7"),
        ("Y[p] = A[p-W]", "index p-W of A reaches -3, outside 0..7"),
        ("Y[p] = A[8]", "index 8 of A reaches 8"),
        ("Y[p] = A[p+w: w<2]", "index p+w of A reaches 8"),
        ("Y[p] = A[2*p: p<5]", "index 2*p of A reaches 8"),
        ("Y[p] = A[p-1: p%2==0]", "index p-1 of A reaches -1"),
        ("Y[p] = A[p/2+W]\nZ[w] = A[P-w]", "index P-w of A reaches 8"),
        ("Y[p] = A[m/(W-3)]", "an index divides by 0: a divisor must be at least 1"),
        ("Y[p] = A[m: m%(W-3)==0]", "an index divides by 0: a divisor must be at least 1"),
        ("Y[p+1] = A[m]", "index p+1 of Y reaches 8, outside 0..7"),
    ],
)
def test_an_index_out_of_range_is_pointed_at(body: str, reached: str) -> None:
    with pytest.raises(CascadeError) as caught:
        bind(parse(HEAD + body), {"M": 8, "P": 8, "W": 3})
    first, _, caret = str(caught.value).splitlines()
    assert reached in first
    assert "^" in caret


@pytest.mark.parametrize(
    "body",
    [
        "Y[p] = A[p]\nrank N = M",
        "Y[p] = A[p-w: p>=w]",
        "Y[p] = A[p-w: p-w>=0]",
        "Y[p] = A[p+w: p+w<M]",
        "Y[p] = A[M-1-p]",
        "Y[p] = A[p-p%2]",
        "Y[p] = A[p-1: p%2==1]",
        "Y[p] = A[p/2]",
        "Y[p] = A[p*3: p*3<M]",
    ],
)
def test_an_index_that_stays_inside_passes(body: str) -> None:
    text = HEAD.replace("P,", "P = M,") + body
    bind(parse(text), {"M": 8, "W": 3})


def test_only_the_run_can_tell_where_a_gather_reaches() -> None:
    text = "rank M, T\ninput A[M], I[T], C[T]\nY[t] = A[I[t]] * A[t-1: C[t]>0]"
    with warnings.catch_warnings():
        warnings.simplefilter("error", CascadeWarning)
        bind(parse(text), {"M": 2, "T": 9})


def test_a_populate_of_more_than_there_is_is_refused() -> None:
    cascade = parse("rank M, T\ninput A[M]\n(V[t], I[t]) = A[m] :: topk(m -> t)")
    bind(cascade, {"M": 4, "T": 4})
    with pytest.raises(CascadeError, match=r"topk\(m -> t\) asks for T = 5 of M = 4"):
        bind(cascade, {"M": 4, "T": 5})


def test_symbolic_sizes_keep_what_is_open() -> None:
    sizes = bind_symbolic(load("attention/1-pass"), {"E": 64})
    assert sizes["E"] == 64
    assert sizes["M"] == symbol("M1") * symbol("M0")
    assert bind_symbolic(load("attention/1-pass"), {"M": 64})["M1"] == 64 / symbol("M0")
    assert bind_symbolic(load("attention/1-pass"), {"M": 64, "M0": 4})["M1"] == sympy.Integer(16)
    cascade = parse("rank M, N = M\ninput A[M]\nY[n] = A[n]")
    assert bind_symbolic(cascade) == {"M": symbol("M"), "N": symbol("M")}


def test_a_generational_tensor_has_one_generation_more() -> None:
    cascade = load("attention/1-pass")
    sizes = bind_symbolic(cascade)
    assert tensor_shape(cascade, "RNV", sizes) == (symbol("F"), symbol("M1") + 1, symbol("P"))
    assert tensor_shape(cascade, "SLN", sizes) == (symbol("M1"), symbol("M0"), symbol("P"))
