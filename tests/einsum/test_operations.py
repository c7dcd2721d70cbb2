"""Operation counts, against the tables of the papers and sums done by hand."""

from __future__ import annotations

import warnings

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from einfuse.einsum.analysis.operations import count_operations, total_operations
from einfuse.einsum.language.errors import CascadeWarning, EinfuseError
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.shape import symbol
from einfuse.einsum.library.cascades import load
from einfuse.einsum.testing import cascades, shapes

E, F, M, P, M1, M0 = (symbol(name) for name in ("E", "F", "M", "P", "M1", "M0"))


HEAD = "rank M, P, E\ninput A[M], K[E,M], Q[E,P]\n"


def counts(body: str) -> dict[str, object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CascadeWarning)
        found = count_operations(parse(HEAD + body))
    return dict(list(found.values())[-1])


def test_the_one_pass_cascade_counts_as_the_paper_charges_it() -> None:
    # FuseMax's index spaces and operations, Einsum by Einsum; exp and its subtraction apart.
    assert count_operations(load("attention/1-pass")) == {
        "BK": {},
        "BV": {},
        "QK": {"mac": E * M1 * M0 * P},
        "LM": {"max": M1 * M0 * P},
        "RM": {"max": M1 * P},
        "SLN": {"exp": M1 * M0 * P, "add": M1 * M0 * P},
        "SLD": {"add": M1 * M0 * P},
        "SLNV": {"mac": F * M1 * M0 * P},
        "PRM": {"exp": M1 * P, "add": M1 * P},
        "SPD": {"multiply": M1 * P},
        "RD": {"add": M1 * P},
        "SPNV": {"multiply": F * M1 * P},
        "RNV": {"add": F * M1 * P},
        "AV": {"divide": F * P},
    }


def test_deferring_the_division_saves_a_factor_of_the_keys() -> None:
    # FuseMax IV-D: F*P divisions instead of M*P.
    assert count_operations(load("attention/3-pass"))["A"] == {"divide": M * P}
    assert count_operations(load("attention/3-pass-deferred"))["AV"] == {"divide": F * P}


def test_the_layers_gemms_do_one_mac_for_each_point() -> None:
    b, p, d, h, e, s = (symbol(name) for name in "BPDHES")
    found = count_operations(load("layer/gemms"))
    assert [found[name]["mac"] for name in ("Q", "K", "V", "O", "FF1", "Z")] == [
        b * p * d * h * e, b * p * d * h * e, b * p * d * h * e, b * p * d * h * e,
        b * p * d * s, b * p * s * d,
    ]  # fmt: skip


def test_a_shape_gives_numbers_and_part_of_one_a_formula_in_the_rest() -> None:
    cascade = load("attention/3-pass")
    sizes = {"E": 64, "F": 64, "M": 4096, "P": 4096}
    assert count_operations(cascade, sizes)["QK"] == {"mac": 2**30}
    assert count_operations(cascade, {"E": 64})["QK"] == {"mac": 64 * M * P}
    assert total_operations(count_operations(cascade, sizes).values())["mac"] == 2**31


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("Y[m] = A[m]", {}),
        ("Y[m] = A[M-1-m]", {}),
        ("Y[p] = 0", {}),
        ("Y[p] = -inf", {}),
        ("Y[] = A[m]", {"add": M}),
        ("Y[] = A[m] :: max(m)", {"max": M}),
        ("Y[] = A[m] :: min(m)", {"max": M}),
        ("Y[] = A[m] :: *(m)", {"multiply": M}),
        ("Y[m] = A[m] + A[m] + A[m] - A[m]", {"add": 3 * M}),
        ("Y[m] = max(A[m], A[m], A[m])", {"max": 2 * M}),
        ("Y[m] = -A[m]", {"add": M}),
        ("Y[m] = A[m] * A[m]", {"multiply": M}),
        ("Y[] = A[m] * A[m]", {"mac": M}),
        ("Y[] = A[m] * A[m] * A[m]", {"multiply": M, "mac": M}),
        ("Y[] = A[m] * A[m] :: max(m)", {"multiply": M, "max": M}),
        ("Y[] = A[m] / 2", {"divide": M, "add": M}),
        ("Y[p] = K[e,m] * Q[e,p]", {"mac": E * M * P}),
        ("Y[p] = K[e,m] * Q[e,p] :: max(m)", {"mac": E * M * P, "max": M * P}),
        ("Y[p] = K[e,m] * Q[e,p] :: +(e); max(m)", {"mac": E * M * P, "max": M * P}),
        ("Y[p] = K[e,m] * Q[e,p] :: max(e)", {"mac": E * M * P, "max": E * P}),
        ("Y[p] = exp(A[m] - Q[e,p])", {"exp": E * M * P, "add": 2 * E * M * P}),
        ("Y[m] = A[m] / sqrt(E)", {"divide": M}),
        ("Y[m] = A[m] * (2 / E - 1)", {"multiply": M}),
        ("Y[m] = sin(m * 0.5)", {"sin": M, "multiply": M}),
        ("Y[m] = where(ge(A[m], 0), A[m], 0)", {"select": M, "compare": M}),
        ("Y[p] = A[m] :: topk(m -> p)", {"topk": M}),
        ("Y[p] = K[e,m] * K[e,m] :: topk(m -> p)", {"mac": E * M, "topk": M}),
        ("Y[p] = A[m: m<P & m<M] * Q[e,p]", {"mac": E * P * sympy.Min(M, P)}),
    ],
)  # fmt: skip
def test_what_an_einsum_costs(body: str, expected: dict[str, object]) -> None:
    assert counts(body) == expected


def test_causal_attention_does_half_the_work() -> None:
    cascade = parse(
        "rank E, P, M = P\ninput Q[E,P], K[E,M]\nQK[m,p] = Q[e,p] * K[e, m: m<=p]\n"
        "GM[p] = QK[m: m<=p,p] :: max(m)"
    )
    found = count_operations(cascade)
    assert found["QK"] == {"mac": E * P * (P + 1) / 2}
    assert found["GM"] == {"max": P * (P + 1) / 2}
    assert count_operations(cascade, {"E": 2, "P": 4})["QK"] == {"mac": 2 * 10}


def test_loops_count_once_for_each_generation_and_initialisers_once() -> None:
    found = count_operations(
        parse(
            "rank K, P\niter i over K\ninput A[K,P], S[P]\ninit:\nX[0,p] = S[p] * 2\n"
            "loop:\nX[i+1,p] = X[i,p] * A[i,p]\nfinal:\nY[p] = X[K,p]"
        )
    )
    k = symbol("K")
    assert found == {"X": {"multiply": P + k * P}, "Y": {}}


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(EinfuseError, match="no rank 'Z'"):
        count_operations(load("attention/3-pass"), {"Z": 3})
    with pytest.raises(EinfuseError, match=r"index m\+1 of A reaches 4, outside 0\.\.3"):
        count_operations(parse("rank M\ninput A[M]\nY[m] = A[m+1]"), {"M": 4})


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_formulas_agree_with_counts_at_a_shape(data: st.DataObject) -> None:
    cascade = data.draw(cascades())
    shape = data.draw(shapes(cascade))
    values = {symbol(rank): size for rank, size in shape.items()}
    formulas, numbers = count_operations(cascade), count_operations(cascade, shape)
    for name, own in formulas.items():
        for operation in own.keys() | numbers[name].keys():
            formula = sympy.sympify(own.get(operation, 0))
            assert formula.subs(values).doit() == numbers[name].get(operation, 0)
