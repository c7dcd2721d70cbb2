"""Points of iteration spaces, against a walk over every point."""

from __future__ import annotations

import itertools
import warnings

import pytest
import sympy

from einfuse.einsum.analysis.points import count_points, iteration_space
from einfuse.einsum.language.errors import CascadeWarning, EinfuseError
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.shape import bind_symbolic, symbol
from einfuse.einsum.library.cascades import load

HEAD = "rank M, P, W = 3\nsplit M -> M1, M0\nsplit P -> P1, P0\ninput A[M], C[P]\n"
SHAPES = [(1, 1, 1, 1), (2, 2, 1, 3), (1, 2, 3, 2), (2, 3, 2, 4), (4, 2, 1, 3), (3, 3, 3, 3)]

CASES = [  # access of A, filter, whether the count is a closed form; eval: of these texts alone
    ("m", "m<=p", True),
    ("m", "m<p & m+W>p", True),
    ("m", "m+p<=W", True),
    ("m", "m+p>=W & m+p<7", True),
    ("m", "m==p", True),
    ("m", "m!=p", True),
    ("m", "m==p & m<5", True),
    ("m", "m>=2 & p<4", True),
    ("m", "2*m>=3 & m<=p+1", True),
    ("m", "m>=3 & m<=p & m>p-2", True),
    ("m", "m>p & m<p", True),
    ("m1*M0+m0", "m1*M0+m0<=p", True),
    ("m1*M0+m0", "m1*M0+m0<=p & m1*M0+m0+W>p", True),
    ("m", "m*2<=p", False),
    ("m", "m%2==0", False),
    ("m", "m/2<=p", False),
    ("m", "m%2!=p%3", False),
    ("m1*M0+m0", "m1*M0<=p", False),
    ("m1*M0+m0", "m1<=p & m0<p", False),
    ("m", "m>=3 & m<p & m+p>4", False),
    ("m", "m!=p & m!=2", True),
    ("m", "M>4", False),
]


@pytest.mark.parametrize(("access", "condition", "closed"), CASES)
def test_filtered_points_are_counted_exactly(access: str, condition: str, closed: bool) -> None:
    cascade = parse(f"{HEAD}Y[p] = A[{access}: {condition}] * C[p]")
    einsum = cascade.einsums[0]
    formula = count_points(cascade, einsum, bind_symbolic(cascade))
    kept_formula = count_points(cascade, einsum, bind_symbolic(cascade), ["p"])
    assert closed != formula.has(sympy.Sum) or condition == "M>4"
    for sizes in SHAPES if closed else SHAPES[:3]:
        given = dict(zip(("M1", "M0", "P1", "P0"), sizes, strict=True))
        bound = bind_symbolic(cascade, given)
        whole = {rank: int(size) for rank, size in bound.items()}
        ranges = [range(whole[cascade.rank_of(v)]) for v in einsum.variables]
        points = [dict(zip(einsum.variables, p, strict=True)) for p in itertools.product(*ranges)]
        python = condition.replace("&", " and ").replace("/", "//")
        inside = [point for point in points if eval(python, {}, point | whole)]
        assert count_points(cascade, einsum, bound) == len(inside)
        kept = len({point["p"] for point in inside})
        assert count_points(cascade, einsum, bound, ["p"]) == kept
        values = {symbol(rank): size for rank, size in given.items()}
        assert formula.subs(values).doit() == len(inside)
        assert kept_formula.subs(values).doit() == kept


def test_causal_points_are_a_triangle() -> None:
    cascade = parse("rank P, M = P\ninput K[M], Q[P]\nY[p,m] = Q[p] * K[m: m<=p]")
    p = symbol("P")
    assert count_points(cascade, cascade.einsums[0], bind_symbolic(cascade)) == p * (p + 1) / 2


def test_a_window_over_split_ranks_is_a_band() -> None:
    cascade = parse(
        "split M -> M1, M0\nsplit P -> P1, P0\nrank W\ninput K[M], Q[P]\n"
        "Y[p1,p0] = Q[p1*P0+p0] * K[m1*M0+m0: m1*M0+m0<=p1*P0+p0 & m1*M0+m0+W>p1*P0+p0]"
    )
    sizes = {"M": 4096, "M0": 64, "P": 4096, "P0": 128, "W": 256}
    found = count_points(cascade, cascade.einsums[0], bind_symbolic(cascade, sizes))
    assert found == 4096 * 256 - 256 * 255 // 2


def test_large_spaces_without_a_closed_form_are_counted_along_one_variable() -> None:
    cascade = parse("rank M, P\ninput A[M]\nY[p] = A[m: m*3<=p]")
    n = 1 << 20
    found = count_points(cascade, cascade.einsums[0], bind_symbolic(cascade, {"M": n, "P": n}))
    assert found == sum(p // 3 + 1 for p in range(n))


def test_a_space_too_large_to_walk_is_refused() -> None:
    cascade = parse("rank M, P\ninput A[M]\nY[p] = A[m: m%3<=p%2]")
    n = 1 << 30
    with pytest.raises(EinfuseError, match="too large to count"):
        count_points(cascade, cascade.einsums[0], bind_symbolic(cascade, {"M": n, "P": n}))


def test_a_filter_on_data_culls_nothing_beforehand() -> None:
    cascade = parse("rank M\ninput A[M], C[M]\nY[m] = A[m: C[m]>0]")
    assert count_points(cascade, cascade.einsums[0], bind_symbolic(cascade)) == symbol("M")


def test_the_iteration_space_lists_a_rank_for_each_variable() -> None:
    cascade = load("attention/1-pass")
    spaces = {e.name: iteration_space(cascade, e) for e in cascade.loop}
    assert spaces["QK"] == ("E", "P", "M1", "M0")
    assert spaces["SLNV"] == ("M1", "M0", "P", "F")
    assert spaces["RM"] == ("M1", "P")


def test_variables_of_the_left_alone_belong_to_the_space_and_targets_do_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CascadeWarning)
        cascade = parse(
            "rank M, P, T\ninput A[M], B[P]\nX[p] = 0\n(V[t], I[t]) = A[m] :: topk(m -> t)"
        )
    assert [iteration_space(cascade, e) for e in cascade.einsums] == [("P",), ("M",)]
