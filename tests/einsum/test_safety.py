"""Which exponentials may overflow."""

from __future__ import annotations

import pytest

from einfuse.einsum.derivation.safety import overflows
from einfuse.einsum.language.parser import parse
from einfuse.einsum.library.cascades import load

pytestmark = pytest.mark.filterwarnings("ignore:input")

HEAD = "rank M, P\ninput X[M,P], S[]\noutput Y\n"

SAFE = {
    "the maximum of the same": "G[p] = X[m,p] :: max(m)\nY[p] = exp(X[m,p] - G[p]) :: +(m)",
    "scaled alike": "G[p] = X[m,p] :: max(m)\nY[p] = exp(2 * X[m,p] - 2 * G[p]) :: +(m)",
    "the maximum of what is scaled": (
        "G[p] = 0.5 * X[m,p] :: max(m)\nY[p] = exp(0.5 * X[m,p] - G[p]) :: +(m)"
    ),
    "a maximum of two": (
        "G[p] = X[m,p] :: max(m)\nH[p] = max(G[p], S[])\n"
        "Y[p] = exp(X[m,p] - H[p]) + exp(S[] - H[p]) :: +(m)"
    ),
    "a minimum": "G[p] = X[m,p] :: min(m)\nY[p] = exp(G[p] - X[m,p]) :: +(m)",
    "a bounded function": "Y[p] = exp(30 * tanh(X[m,p])) :: +(m)",
    "a negative square": "Y[p] = exp(-sq(X[m,p] - S[])) :: +(m)",
    "a power": "Y[p] = exp(3 * log(abs(X[m,p]))) :: +(m)",
    "base two": "G[p] = X[m,p] :: max(m)\nY[p] = exp2(X[m,p] - G[p]) :: +(m)",
    "a clamp": "Y[p] = exp(clamp(X[m,p], -10, 10)) :: +(m)",
    "a clamp of what is scaled": "Y[p] = exp(2 * clamp(X[m,p] / 3, -1, 1) + 1) :: +(m)",
    "a function of what is bounded": "Y[p] = exp(relu(20 * sin(X[m,p]))) :: +(m)",
    "a choice of bounded values": "Y[p] = exp(where(gt(S[], 0), tanh(X[m,p]), 0)) :: +(m)",
    "a decay by position": "Y[p] = exp(0 - 9.2 * m / M) * X[m,p] :: +(m)",
    "through a map": (
        "Z[m,p] = X[m,p] + S[]\nG[p] = Z[m,p] :: max(m)\nY[p] = exp(X[m,p] + S[] - G[p]) :: +(m)"
    ),
}

UNSAFE = {
    "an input": "Y[p] = exp(X[m,p]) :: +(m)",
    "the maximum of other elements": (
        "G[p] = X[m,p] :: max(m)\nY[p] = exp(2 * X[m,p] - G[p]) :: +(m)"
    ),
    "the maximum over another rank": (
        "G[m] = X[m,p] :: max(p)\nH[] = G[m] :: min(m)\nY[p] = exp(X[m,p] - H[]) :: +(m)"
    ),
    "the maximum subtracted from": "G[p] = X[m,p] :: max(m)\nY[p] = exp(G[p] - X[m,p]) :: +(m)",
    "a mean": "G[p] = X[m,p] / M :: +(m)\nY[p] = exp(X[m,p] - G[p]) :: +(m)",
    "a bound that is too large": "Y[p] = exp(300 * tanh(X[m,p])) :: +(m)",
    "a clamp that is too wide": "Y[p] = exp(clamp(X[m,p], -1, 100)) :: +(m)",
    "a clamp from below": "Y[p] = exp(max(X[m,p], -1)) :: +(m)",
    "a choice of which one is unbounded": "Y[p] = exp(where(gt(S[], 0), X[m,p], 0)) :: +(m)",
    "a growth by position": "Y[p] = exp(m) * X[m,p] :: +(m)",
    "base two with a bound that is too large": "Y[p] = exp2(127 * sigmoid(X[m,p])) :: +(m)",
    "a maximum of a different row": (
        "rank N\nG[p] = X[m,p] :: max(m)\nY[p] = exp(X[m,p] - G[0]) :: +(m)"
    ),
}


@pytest.mark.parametrize("lines", SAFE.values(), ids=SAFE)
def test_a_bounded_argument_is_safe(lines: str) -> None:
    assert overflows(parse(HEAD + lines)) == ()


@pytest.mark.parametrize("lines", UNSAFE.values(), ids=UNSAFE)
def test_an_unbounded_argument_is_named(lines: str) -> None:
    found = overflows(parse(HEAD + lines))
    assert len(found) == 1
    assert found[0].endswith("in Y")


@pytest.mark.parametrize("name", ["1-pass", "2-pass", "3-pass", "3-pass-deferred"])
def test_the_attention_of_the_library_is_safe(name: str) -> None:
    assert overflows(load(f"attention/{name}")) == ()
