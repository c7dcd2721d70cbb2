"""Rule D, on cases done by hand."""

from __future__ import annotations

import pytest

from einfuse.einsum.derivation.dataflow import Dataflow
from einfuse.einsum.derivation.deferral import cancel, defer, deferral_hazards
from einfuse.einsum.derivation.verification import Verification
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.printer import render_einsum

pytestmark = pytest.mark.filterwarnings("ignore:input")

HEAD = "rank M, N\ninput X[M], W[M,N]\noutput Y\n"

CASES = {
    "a factor": (
        "S[] = sq(X[m]) :: +(m)\nY[n] = X[m] / S[] * W[m,n]",
        ["Y0[n] = X[m] * W[m,n]", "Y[n] = Y0[n] / S[]"],
    ),
    "a factor of a magnitude": (
        "S[] = sq(X[m]) :: +(m)\nY[] = abs(X[m] / S[]) :: +(m)",
        ["Y0[] = abs(X[m]) :: +(m)", "Y[] = Y0[] / S[]"],
    ),
    "a square": (
        "S[] = X[m]\nY[] = sq(X[m] - S[]) :: +(m)",
        None,
    ),
    "a shift of a maximum": (
        "S[] = X[m]\nY[] = X[m] - S[] :: max(m)",
        ["Y0[] = X[m] :: max(m)", "Y[] = Y0[] - S[]"],
    ),
    "a positive factor of a maximum": (
        "S[] = sq(X[m]) :: +(m)\nY[] = X[m] / S[] :: max(m)",
        ["Y0[] = X[m] :: max(m)", "Y[] = Y0[] / S[]"],
    ),
    "a positive factor under relu": (
        "S[] = exp(X[m]) :: +(m)\nY[n] = relu(X[m] * S[]) * W[m,n] :: +(m)",
        ["Y0[n] = relu(X[m]) * W[m,n] :: +(m)", "Y[n] = Y0[n] * S[]"],
    ),
}


def flow(lines: str) -> Dataflow:
    return Dataflow(parse(HEAD + lines), "m")


def deferred(lines: str) -> Cascade | None:
    return defer(flow(lines), "S")


@pytest.mark.parametrize(("lines", "expected"), CASES.values(), ids=CASES)
def test_a_reference_leaves_the_fold(lines: str, expected: list[str] | None) -> None:
    found = deferred(lines)
    assert found is not None
    if expected is not None:
        assert [render_einsum(einsum) for einsum in found.init[1:]] == expected
    assert not Dataflow(found, "m").barriers()
    assert Verification(parse(HEAD + lines), "M").agrees(found)


@pytest.mark.parametrize(
    "lines",
    [
        "S[] = X[m]\nY[] = tanh(X[m] - S[]) :: +(m)",
        "S[] = X[m]\nY[] = X[m] * S[] :: max(m)",  # S may be negative
        "S[] = X[m]\nY[] = X[m] / S[] :: *(m)",
        "S[] = X[m]\nY[] = W[m,n] :: +(m,n)",
    ],
)
def test_what_does_not_distribute_stays(lines: str) -> None:
    assert deferred(lines) is None


def test_a_filter_keeps_a_count_from_being_made() -> None:
    lines = "S[] = X[m]\nY[n] = X[m: m<=n] - S[] :: +(m)"
    assert deferred(lines) is None


def test_calls_of_several_folds_are_made_once() -> None:
    lines = (
        "S[] = X[m] :: max(m)\nZ[] = exp(X[m] - S[]) :: +(m)\n"
        "Y[n] = exp(X[m] - S[]) * W[m,n] / Z[] :: +(m)"
    )
    found = deferred(lines)
    assert found is not None
    exponentials = [e for e in found.init if "exp(X[m])" in render_einsum(e)]
    assert len(exponentials) == 1
    simpler = cancel(Dataflow(found, "m"))
    assert simpler is not None
    assert "S" not in {einsum.name for einsum in simpler.init}


@pytest.mark.parametrize(
    ("lines", "hazard"),
    [
        ("S[] = X[m]\nY[] = sq(X[m] - S[]) :: +(m)", "difference of sums"),
        ("S[] = X[m]\nY[] = sq(X[m] - S[] / M) :: +(m)", "difference of sums"),
        ("S[] = X[m]\nY[n] = sq(X[m] - W[0,n] * S[] / M) :: +(m)", "difference of sums"),
        ("S[] = X[m]\nD[m] = S[] / M - X[m]\nY[] = D[m] * D[m] / M :: +(m)", "difference of"),
        ("S[] = abs(X[m]) :: +(m)\nY[n] = (X[m] / (S[] + 1) + 1) * W[m,n]", None),
        ("S[] = abs(X[m]) :: max(m)\nY[] = sq(X[m] / S[]) :: +(m)", "no longer scaled by S"),
        ("S[] = sq(X[m]) :: +(m)\nY[n] = X[m] / S[] * W[m,n]", None),
        ("S[] = sq(X[m]) :: +(m)\nY[n] = (X[m] / S[] + 1) * W[m,n]", None),
        ("S[] = X[m] :: max(m)\nY[] = X[m] - S[] :: max(m)", None),
    ],
)
def test_hazards_of_deferral(lines: str, hazard: str | None) -> None:
    found = deferred(lines)
    assert found is not None
    hazards = deferral_hazards(flow(lines), "S", found)
    assert bool(hazards) == (hazard is not None)
    assert hazard is None or hazard in hazards[0]
