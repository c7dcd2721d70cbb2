"""What `derive` returns computes what its origin does: random cascades, masks, huge numbers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from einfuse.einsum.derivation.dataflow import Dataflow
from einfuse.einsum.derivation.movement import move_of
from einfuse.einsum.derivation.needs import Needs
from einfuse.einsum.derivation.normal_form import NotDerivableError
from einfuse.einsum.derivation.safety import overflows
from einfuse.einsum.derivation.search import derive
from einfuse.einsum.derivation.value_facts import is_positive
from einfuse.einsum.derivation.verification import Verification
from einfuse.einsum.execution.pointwise import run_pointwise
from einfuse.einsum.execution.run import run
from einfuse.einsum.language.parser import parse
from einfuse.einsum.library.cascades import load, names

from .derivable import derivable, differences, faults

MASKED_POLYNOMIAL = """
rank E = 3, F = 2, K, P
input Q[E,P], X[E,K], V[F,K]
output O
S[k,p] = sq(Q[e,p] * X[e,k: k+2<=p])
D[p] = S[k,p] :: +(k)
O[f,p] = S[k,p] / D[p] * V[f,k]
"""

WRONG_ONCE = {
    "a sum of equal terms as a factor": """
rank K
input X[K]
output Y
G[] = X[k] + X[k] :: max(k)
Y[] = X[k] * G[] :: max(k)
""",
    "a shift at some points only": """
rank K
input A[K]
output Y
G[] = A[k] :: max(k)
T[k] = A[k: k<4] - G[]
Y[] = A[k] + T[k] :: max(k)
""",
    "a shift of a maximum that has seen nothing": """
rank K
input X[K]
output S, Y
S[] = X[k] :: +(k)
G[] = X[k] :: max(k)
Y[] = X[k] + G[] + S[] :: max(k)
""",
    "masked polynomial": MASKED_POLYNOMIAL,
    "softmax of a softmax": """
rank K
input X[K]
output Y
G[] = X[k] :: max(k)
E[k] = exp(X[k] - G[])
S[] = E[k] :: +(k)
W[k] = E[k] / S[]
H[] = W[k] :: max(k)
T[k] = exp(W[k] - H[])
D[] = T[k] :: +(k)
Y[k] = T[k] / D[]
""",
    "a shift, merged left, of a maximum that has seen nothing": """
rank K
input A[K], B[K]
output F1, F5, G2
F0[] = exp(A[k: k!=3] * B[k] - B[k] / B[k]) :: +(k)
F1[] = where(ge(A[k: k%2==0], 0), A[k], -inf) - exp(F0[]) :: max(k)
G2[] = F1[] * F1[]
T3[k] = A[k]
T4[k] = A[k] / A[k: k%2==0] - (F0[] + F1[])
F5[] = abs(exp(T4[k] - G2[])) :: max(k)
""",
    "a magnitude of nothing": """
rank K, P
input A[K,P]
output G, Y
G[p] = abs(A[k: k+9<p,p]) :: max(k)
Y[p] = A[k: k+9<p,p] / G[p] :: +(k)
""",
}


@pytest.mark.parametrize("text", [pytest.param(t, id=n) for n, t in WRONG_ONCE.items()])
def test_what_was_derived_wrongly_once_is_right(text: str) -> None:
    origin = parse(text)
    for derived in derive(origin, "K")[1:]:
        assert not differences(origin, derived.cascade, stable=derived.stable), derived.text


def test_a_cascade_with_several_outputs_is_cut_behind_a_fold() -> None:
    """The spans of outputs are those of the whole text, of which a cut has a part."""
    assert not faults(derivable(5006))


def test_a_merge_says_what_a_value_needs() -> None:
    head = "rank K\ninput A[K]\noutput Y\nG[] = A[k: k<4] :: max(k)\nD[] = A[k] :: +(k)\n"
    flow = Dataflow(parse(f"{head}Y[] = G[] + D[] @ left"), "k")
    other = Dataflow(parse(f"{head}Y[] = D[] + G[] @ left"), "k")
    assert Needs(flow).of(flow.producer["Y"].output)
    assert not Needs(other).of(other.producer["Y"].output)


def test_masked_polynomial_attention_keeps_its_single_pass() -> None:
    found = derive(parse(MASKED_POLYNOMIAL), "K")
    assert any(d.passes == 1 and d.stable for d in found)


def test_a_sum_of_equal_terms_has_no_sign() -> None:
    text = "rank K\ninput X[K]\noutput Y\nA[k] = X[k] + X[k]\nB[k] = X[k] * X[k]\nY[] = A[k] * B[k]"
    flow = Dataflow(parse(text), "k")
    assert not is_positive(flow.producer["A"].output, flow)
    assert is_positive(flow.producer["B"].output, flow)


def test_a_fold_with_a_filter_on_some_operands_follows_no_reference() -> None:
    flow = Dataflow(parse(WRONG_ONCE["a shift at some points only"]), "k")
    assert not Needs(flow).is_uniform(flow.producer["Y"].expression)
    with pytest.raises(NotDerivableError, match="a filter culls some operands"):
        move_of(flow, flow.producer["Y"])


@pytest.mark.parametrize("function", ["rsqrt", "log"])
def test_a_function_of_what_is_always_there_gives_no_empty_value(function: str) -> None:
    cascade = parse(
        "rank K, P\ninput A[K,P], B[K,P]\noutput Y\nS[p] = sq(B[k,p]) :: +(k)\n"
        f"O[p] = A[k: k<p,p] :: +(k)\nY[p] = O[p] * {function}(S[p])"
    )
    values = {name: np.ones((3, 4)) for name in "AB"}
    assert run(cascade, values)["Y"][0] == 0
    assert run_pointwise(cascade, values, {"K": 3, "P": 4})["Y"][0] == 0


def test_a_reciprocal_root_of_nothing_is_nothing() -> None:
    cascade = parse(
        "rank K, P\ninput A[K,P]\noutput Y\nS[p] = sq(A[k: k<p,p]) :: +(k)\n"
        "O[p] = A[k: k<p,p] :: +(k)\nY[p] = O[p] * rsqrt(S[p])"
    )
    values = {"A": np.ones((3, 4))}
    assert run(cascade, values)["Y"][0] == 0
    assert run_pointwise(cascade, values, {"K": 3, "P": 4})["Y"][0] == 0


def test_verification_chooses_sizes_above_the_numbers_of_filters() -> None:
    text = WRONG_ONCE["a shift at some points only"]
    sizes = {trial.shape["K"] for trial in Verification(parse(text), "K").trials}
    assert min(sizes) > 4
    assert any(all(size % d for d in range(2, size)) for size in sizes)


def test_verification_refuses_a_shift_that_a_filter_culls() -> None:
    text = WRONG_ONCE["a shift at some points only"]
    wrong = text.replace(
        "Y[] = A[k] + T[k] :: max(k)", "Z[] = A[k] + A[k: k<4] :: max(k)\nY[] = Z[] - G[]"
    )
    assert not Verification(parse(text), "K").agrees(parse(wrong))


def test_an_exponential_of_what_is_no_number_may_overflow() -> None:
    text = "rank K\ninput A[K]\noutput Y\nY[] = exp(A[k] * rsqrt(-2)) :: +(k)"
    assert overflows(parse(text))


@pytest.mark.parametrize("seed", range(24))
def test_derived_cascades_of_random_ones_compute_the_same(seed: int) -> None:
    assert not faults(derivable(seed))


@pytest.mark.slow
def test_derived_cascades_of_three_thousand_random_ones_compute_the_same() -> None:
    assert {seed: found for seed in range(3000) if (found := faults(derivable(seed)))} == {}


SAMPLE = ("attention/agent-image", "attention/grid", "attention/frame-tiles", "attention/landmark")


@pytest.mark.parametrize(
    "name",
    [n if n in SAMPLE else pytest.param(n, marks=pytest.mark.slow) for n in names()],
)
def test_every_shipped_cascade_is_derived(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cascade = load(name)
    found = derive(cascade, "M" if "M" in cascade.rank_names else cascade.rank_names[0])
    assert found[0].cascade == cascade
