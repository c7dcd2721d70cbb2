"""How folds follow their references, and why some do not."""

from __future__ import annotations

import pytest

from einfuse.einsum.derivation.dataflow import Dataflow
from einfuse.einsum.derivation.movement import Move, move_of, movement_hazards
from einfuse.einsum.derivation.normal_form import NotDerivableError, normalise
from einfuse.einsum.language.parser import parse

HEAD = "rank M, P, T\ninput X[M,P], W[M]\noutput Y\n"

pytestmark = pytest.mark.filterwarnings("ignore:input")


def last_move(lines: str) -> Move:
    flow = Dataflow(normalise(parse(HEAD + lines), "m"), "m")
    return move_of(flow, flow.folds[-1])


def test_the_factor_of_the_online_softmax() -> None:
    move = last_move("G[p] = X[m,p] :: max(m)\nY[p] = exp(X[m,p] - G[p]) * W[m] :: +(m)")
    assert str(move) == "Y moves to a new G by the factor exp(G - G')"


def test_the_factor_of_two_references_at_once() -> None:
    move = last_move(
        "G[p] = X[m,p] :: max(m)\nS[p] = exp(X[m,p] - G[p]) :: +(m)\n"
        "Y[p] = exp(X[m,p] - G[p]) / S[p] * W[m] :: +(m)"
    )
    assert str(move) == "Y moves to a new G, S by the factor S*exp(G - G')/S'"


def test_a_maximum_follows_by_adding() -> None:
    move = last_move("S[p] = X[m,p]\nY[p] = X[m,p] - S[p] :: max(m)")
    assert str(move) == "Y moves to a new S by adding S - S'"


def test_deviations_from_the_mean_of_the_same_elements_are_left_out() -> None:
    own = last_move("S[p] = X[m,p] / M\nY[p] = sq(X[m,p] - S[p]) :: +(m)")
    assert len(own.orbit.functions) == 2
    other = last_move("S[p] = W[m] / M * X[0,p]\nY[p] = sq(X[m,p] - S[p]) :: +(m)")
    assert len(other.orbit.functions) == 3


def test_the_number_of_points_is_a_count() -> None:
    move = last_move("S[p] = X[m,p] / M\nY[p] = sq(X[m,p] - S[p]) :: +(m)")
    assert move.counted == {1}


@pytest.mark.parametrize(
    ("lines", "centre"),
    [
        ("S[p] = X[m,p]\nY[p] = sq(X[m,p] - S[p] / M) :: +(m)", None),
        ("S[p] = X[m,p]\nY[p] = sq(W[0] * S[p] / M - X[m,p]) :: +(m)", None),
        ("S[p] = X[m,p]\nD[p] = S[p] / 64\nY[p] = sq(X[m,p] - D[p]) :: +(m)", "D"),
        ("S[p] = X[m,p]\nD[p] = 0.015625 * S[p]\nY[p] = sq(X[m,p] - D[p]) :: +(m)", "D"),
        ("S[p] = X[m,p] :: max(m)\nY[p] = sq(X[m,p] - S[p]) :: +(m)", None),
        (
            "S[p] = exp(X[m,p]) :: +(m)\nC[p] = exp(X[m,p]) / S[p] * W[m]\n"
            "Y[p] = exp(X[m,p]) / S[p] * sq(W[m] - C[p]) :: +(m)",
            None,
        ),
    ],
)
def test_centres_are_means_of_the_elements_so_far(lines: str, centre: str | None) -> None:
    flow = Dataflow(normalise(parse(HEAD + lines), "m"), "m")
    hazards = movement_hazards(flow, move_of(flow, flow.folds[-1]))
    assert [h.split(",")[0] for h in hazards] == (
        [] if centre is None else [f"Y is centred on {centre}"]
    )


@pytest.mark.parametrize(
    ("lines", "divisor"),
    [
        ("S[p] = X[m,p]\nY[p] = X[m,p] * S[p]", "S[p]"),
        ("S[p] = X[m,p]\nY[p] = X[m,p] / S[p] * W[m]", "S[p]"),
        ("S[p] = sq(X[m,p]) :: +(m)\nY[p] = X[m,p] * S[p]", "S[p]"),
        ("S[p] = sq(X[m,p]) :: +(m)\nR[p] = rsqrt(S[p] / M)\nY[p] = X[m,p] * R[p]", "S[p]"),
        ("S[p] = sq(X[m,p]) :: +(m)\nY[p] = X[m,p] * rsqrt(S[p] / M + 0.001)", None),
        ("S[p] = exp(X[m,p]) :: +(m)\nY[p] = X[m,p] / S[p] * W[m]", None),
        ("S[p] = abs(X[m,p]) :: max(m)\nY[p] = X[m,p] / S[p] * W[m]", None),
        ("S[p] = abs(X[m,p]) :: max(m)\nR[p] = 127 / S[p]\nY[p] = X[m,p] * R[p]", None),
        ("S[p] = abs(X[m,p]) :: max(m)\nY[p] = W[m] / S[p]", "S[p]"),
        ("S[p] = abs(X[m,p]) :: max(m)\nY[p] = W[m] * S[p]", "S[p]"),
    ],
)
def test_divisors_that_may_be_zero_are_named(lines: str, divisor: str | None) -> None:
    flow = Dataflow(normalise(parse(HEAD + lines), "m"), "m")
    hazards = movement_hazards(flow, move_of(flow, flow.folds[-1]))
    expected = () if divisor is None else (f"Y needs division by {divisor}, which",)
    assert [h.split(" may")[0] for h in hazards] == list(expected)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("S[p] = X[m,p]\nY[p] = tanh(X[m,p] - S[p]) :: +(m)", "Y has no correction"),
        ("S[p] = X[m,p]\nY[p] = X[m,p] / S[p] :: *(m)", "Y has no correction"),
        (
            "S[p] = X[m,p]\nY[p] = sq(X[m: m<=p,p] - S[p]) :: +(m)",
            "number of points",
        ),
        (
            "S[p] = X[m,p]\nA[m] = X[m,p] - S[p] :: max(p)\nY[] = A[m] * W[m]",
            "reads A, which reduces, selects or is filtered",
        ),
    ],
)
def test_what_does_not_follow_is_refused_with_a_reason(lines: str, words: str) -> None:
    with pytest.raises(NotDerivableError, match=words):
        last_move(lines)
