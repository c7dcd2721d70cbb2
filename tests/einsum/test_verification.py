"""Verification tells equal cascades from wrong ones."""

from __future__ import annotations

import pytest

from einfuse.einsum.derivation.verification import Verification
from einfuse.einsum.language.parser import parse
from einfuse.einsum.library.cascades import load

HEAD = "rank M, P\ninput X[M,P]\noutput Y\n"


@pytest.mark.parametrize("name", ["1-pass", "2-pass", "3-pass-deferred"])
def test_attention_agrees_with_itself_in_fewer_passes(name: str) -> None:
    assert Verification(load("attention/3-pass"), "M").agrees(load(f"attention/{name}"))


@pytest.mark.parametrize(
    "wrong",
    [
        "Y[p] = X[m,p] * 1.00001",
        "Y[p] = X[m,p] :: max(m)",
        "Y[p] = abs(X[m,p]) :: +(m)",
        "Y[p] = X[m,p] / 0",
    ],
)
def test_a_wrong_cascade_is_refused(wrong: str) -> None:
    assert not Verification(parse(HEAD + "Y[p] = X[m,p]"), "M").agrees(parse(HEAD + wrong))


def test_nothing_agrees_with_an_origin_that_is_never_finite() -> None:
    origin = parse(HEAD + "Y[p] = log(0 - abs(X[m,p])) :: +(m)")
    assert not Verification(origin, "M").agrees(origin)


def test_an_overflow_that_the_origin_does_not_have_is_noticed() -> None:
    origin = load("attention/3-pass-deferred")
    naive = parse(
        "rank E, F, P, M\ninput Q[E,P], K[E,M], V[F,M]\noutput AV\nQK[m,p] = Q[e,p] * K[e,m]\n"
        "SN[m,p] = exp(QK[m,p])\nSD[p] = SN[m,p] :: +(m)\nSNV[f,p] = SN[m,p] * V[f,m]\n"
        "AV[f,p] = SNV[f,p] / SD[p]"
    )
    verification = Verification(origin, "M")
    assert verification.agrees(naive)
    assert not verification.stays_finite(naive)
    assert verification.stays_finite(load("attention/1-pass"))


def test_coordinates_and_masks_get_fitting_inputs() -> None:
    text = (
        "rank M, P\ninput X[M,P], T[P], B[M,P]\noutput Y\n"
        "Y[p] = where(B[m,p], X[m,p], 0) - X[T[p],p] :: +(m)"
    )
    trial = Verification(parse(text), "M").trials[0]
    assert trial.inputs["T"].dtype.kind == "i"
    assert set(trial.inputs["B"].ravel()) <= {0.0, 1.0}
    assert trial.is_finite


def test_sizes_of_the_text_are_left_aside() -> None:
    text = "rank M = 1048576\ninput X[M]\noutput Y\nY[] = X[m]"
    trial = Verification(parse(text), "M").trials[0]
    assert trial.shape["M"] <= 6


CENTRED = "rank M\ninput X[M]\noutput Y\nS[] = X[m]\nD[m] = X[m] - S[] / M\nY[] = sq(D[m]) :: +(m)"


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ("S[] = X[m]\nQ[] = sq(X[m]) :: +(m)\nY[] = Q[] - sq(S[]) / M", False),
        ("D[m] = X[m] - X[0]\nS[] = D[m]\nQ[] = sq(D[m]) :: +(m)\nY[] = Q[] - sq(S[]) / M", True),
    ],
    ids=["about zero", "about the first"],
)
def test_digits_that_cancel_far_from_zero_are_noticed(lines: str, kept: bool) -> None:
    other = parse(f"rank M\ninput X[M]\noutput Y\n{lines}")
    verification = Verification(parse(CENTRED), "M")
    assert verification.agrees(other)
    assert verification.keeps_digits(other) == kept


def test_squares_that_leave_the_range_are_noticed() -> None:
    scaled = "G[] = abs(X[m]) :: max(m)\nS[] = sq(X[m] / G[]) :: +(m)\nY[] = G[] * sqrt(S[])"
    head = "rank M\ninput X[M]\noutput Y\n"
    plain = parse(head + "S[] = sq(X[m]) :: +(m)\nY[] = sqrt(S[])")
    assert not Verification(parse(head + scaled), "M").keeps_digits(plain)
    assert Verification(plain, "M").keeps_digits(parse(head + scaled))
