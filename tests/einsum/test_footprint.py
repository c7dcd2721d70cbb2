"""Live words: closed forms by hand."""

from __future__ import annotations

import pytest
import sympy

from einfuse.einsum.analysis.footprint import footprint, outer_ranks
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.shape import symbol
from einfuse.einsum.library.cascades import load

E, F, M, M0, M1, P = (symbol(name) for name in ("E", "F", "M", "M0", "M1", "P"))

SPLIT_K = """
rank E, F, P, M1, M0
split M -> M1, M0
input Q[E,P], K[E,M], V[F,M]
output AV
BK[e,m1,m0] = K[e, m1*M0+m0]
BV[f,m1,m0] = V[f, m1*M0+m0]
QK[m1,m0,p] = Q[e,p] * BK[e,m1,m0]
LM[m1,p] = QK[m1,m0,p] :: max(m0)
SLN[m1,m0,p] = exp(QK[m1,m0,p] - LM[m1,p])
SLD[m1,p] = SLN[m1,m0,p] :: +(m0)
SLNV[f,m1,p] = SLN[m1,m0,p] * BV[f,m1,m0]
GM[p] = LM[m1,p] :: max(m1)
PLM[m1,p] = exp(LM[m1,p] - GM[p])
SD[p] = SLD[m1,p] * PLM[m1,p]
SNV[f,p] = SLNV[f,m1,p] * PLM[m1,p]
AV[f,p] = SNV[f,p] / SD[p]
"""


def test_a_stable_softmax_holds_one_row_of_scores() -> None:
    # Pass 1 streams K beside Q and GM; pass 3 streams V beside AV and SD; a row of M in all.
    found = footprint(load("attention/3-pass"), "M")
    assert found.words() == M + 1 + sympy.Max(2 * E, 2 * F)
    assert found.outer == ("P",)


def test_what_crosses_is_the_score_row_as_late_as_possible() -> None:
    first, second = footprint(load("attention/3-pass"), "M").boundaries
    assert [name for name, _ in first.stored] == ["QK"]
    assert [name for name, _ in second.stored] == ["SN"]
    assert first.words.total() == second.words.total() == M
    assert first.reread == second.reread == ("K",)
    assert first.reread_words.total() == E * M
    # A spilled row moves 2 M words a query, K moves E M for all of a tile: even at E/2 queries.
    assert "fewer than E/2 points, else recompute from K" in first.reason


def test_one_pass_holds_tiles_and_a_state_whatever_the_length() -> None:
    found = footprint(load("attention/1-pass"), "M")
    # K and V tiles, Q, RNV, RM and RD.
    assert sympy.expand(found.words() - (M0 * (E + F) + E + F + 2)) == 0
    assert not found.words().free_symbols & {M, M1, symbol("M1")}
    assert found.boundaries == ()


def test_a_tile_of_queries_shares_the_keys() -> None:
    found = footprint(load("attention/1-pass"), "M")
    assert sympy.expand(found.words(P) - (M0 * (E + F) + P * (E + F + 2))) == 0


def test_inside_a_tile_the_scores_cross_once() -> None:
    found = footprint(load("attention/1-pass"), "M", "M0")
    (boundary,) = found.boundaries
    assert boundary.stored[0][0] == "QK"
    assert boundary.words.total() == M0


def test_local_maxima_add_summaries_to_the_row() -> None:
    first, second = footprint(load("attention/2-pass"), "M").boundaries
    assert [name for name, _ in first.stored] == ["LM", "SLD", "SLN"]
    assert first.words.total() == M1 * M0 + 2 * M1
    assert [name for name, _ in second.stored] == ["PLM", "SLN"]


def test_split_k_holds_partial_outputs_of_every_tile() -> None:
    (boundary,) = footprint(parse(SPLIT_K), "M").boundaries
    assert [name for name, _ in boundary.stored] == ["LM", "SLD", "SLNV"]
    assert sympy.expand(boundary.words.total() - M1 * (F + 2)) == 0


def test_a_short_input_is_held_rather_than_what_it_expands_to() -> None:
    text = """
rank M, J
input X[M], W[M,J]
output Y
T[m,j] = X[m] * W[m,j]
U[m,j] = exp(T[m,j])
G[] = X[m] :: max(m)
Y[m] = X[m] - G[]
Z[j] = U[m,j] :: +(m)
"""
    (boundary,) = footprint(parse(text), "M").boundaries
    assert [name for name, _ in boundary.stored] == ["X"]
    assert boundary.words.total() == M
    assert "hold X" in boundary.reason


def test_an_input_of_the_last_pass_alone_crosses_nothing() -> None:
    boundaries = footprint(load("attention/3-pass"), "M").boundaries
    assert all("V" not in dict(b.stored) for b in boundaries)


def test_a_map_stands_beside_its_consumer() -> None:
    text = """
rank M, F
input X[M], V[F,M]
output Y
W[f,m] = V[f,m] * 2
G[] = X[m] :: max(m)
Y[f] = W[f,m] * (X[m] - G[])
"""
    (boundary,) = footprint(parse(text), "M").boundaries
    assert [name for name, _ in boundary.stored] == ["X"]


def test_a_prefix_over_pairs_holds_the_fiber_and_a_running_sum_does_not() -> None:
    pairs = "rank E, M\niter i over M\ninput Q[E,M], K[E,M]\noutput Y\n"
    causal = footprint(
        parse(pairs + "S[m,i] = Q[e,i] * K[e, m: m<=i]\nY[i] = S[m,i] :: max(m)"), "M"
    )
    assert M in causal.words().free_symbols
    running = footprint(
        parse("rank M\niter i over M\ninput X[M]\noutput Y\nY[i] = X[m: m<=i]"), "M"
    )
    assert M not in running.words().free_symbols


def test_outer_ranks_are_those_of_every_einsum_that_none_folds() -> None:
    text = load("attention/3-pass")
    assert outer_ranks(text) == ("P",)
    batched = """
rank B, H, M
input X[B,H,M]
output Y
S[b,h] = X[b,h,m] :: +(m)
Y[b,h,m] = X[b,h,m] / S[b,h]
"""
    assert outer_ranks(parse(batched)) == ("B", "H")
    assert str(footprint(parse(batched), "M")) == "M + 2"


def test_bytes_at_a_shape() -> None:
    cascade = load("attention/3-pass")
    shape = {"E": 64, "F": 64, "P": 256, "M": 1024}
    assert footprint(cascade, "M").bytes(cascade, shape, 2, 1) == (1024 + 129) * 2


def test_sizes_that_the_text_fixes_stay_symbols_in_the_formula() -> None:
    text = "rank M = 4096\ninput X[M]\noutput Y\nS[] = X[m] :: +(m)\nY[m] = X[m] / S[]"
    assert str(footprint(parse(text), "M")) == "M + 2"


@pytest.mark.parametrize("name", ["attention/1-pass", "attention/2-pass", "attention/3-pass"])
def test_the_string_is_the_formula(name: str) -> None:
    found = footprint(load(name), "M")
    symbols = {s.name: s for s in found.words().free_symbols}
    assert sympy.simplify(sympy.sympify(str(found), locals=symbols) - found.words()) == 0
