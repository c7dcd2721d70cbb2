"""A cascade's text parses back to it; its LaTeX is the notation of papers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Coordinate,
    Index,
    Negate,
    Number,
)
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.printer import latex, render, render_expression
from einfuse.einsum.library import cascades as library
from einfuse.einsum.testing import cascades

A = Access("A", (Index(Coordinate("m")),))


@pytest.mark.parametrize("name", library.names())
def test_the_library_round_trips(name: str) -> None:
    cascade = library.load(name)
    assert parse(render(cascade)) == cascade
    assert render(parse(render(cascade))) == render(cascade)


@settings(max_examples=50, deadline=None)
@given(cascades())
def test_random_cascades_round_trip(cascade: Cascade) -> None:
    assert parse(render(cascade)) == cascade


def test_every_construct_round_trips() -> None:
    text = """\
rank M, N = M, P = 8, T, K, S
split S -> S1, S0
iter i over K
input A[M,P], B[N], C[]
output TV, Z
init:
(TV[t,p], TI[t,p]) = A[m,p] :: topk(m -> t)
D[p] = A[m: m<=p & m+2>p,p] - (B[n] - C[]) :: +(n); max(m) @ union
G[t,p] = B[TI[t,p]]
H[s1*S0+s0] = 1.5e-07 * (S1 - -2)
X[0,p] = -inf
loop:
X[i+1,p] = where(ge(X[i,p], 0), -(X[i,p] + D[p]), X[i,p] / (G[t,p] / H[s]))
stop X[i+1,p]<=0.5 & i>2
final:
Z[] = X[K,p] * B[(n+1)%M/2]
"""
    assert render(parse(text)) == text


def test_brackets_are_as_few_as_the_tree_needs() -> None:
    two = Number(2)
    assert render_expression(Binary("-", Binary("-", A, two), A)) == "A[m] - 2 - A[m]"
    assert render_expression(Binary("-", A, Binary("-", two, A))) == "A[m] - (2 - A[m])"
    assert render_expression(Binary("*", Binary("+", A, two), A)) == "(A[m] + 2) * A[m]"
    assert render_expression(Binary("/", A, Binary("*", two, A))) == "A[m] / (2 * A[m])"
    assert render_expression(Negate(Binary("*", A, two))) == "-(A[m] * 2)"
    assert render_expression(Negate(Negate(A))) == "-(-A[m])"
    assert render_expression(Binary("-", A, Number(-1.0))) == "A[m] - -1.0"


def test_latex_is_the_notation_of_the_fusemax_paper() -> None:
    lines = latex(library.load("attention/3-pass")).splitlines()
    assert lines[0] == r"\begin{align*}"
    assert lines[1:-1] == [
        r"QK_{m,p} &= Q_{e,p} \times K_{e,m} \\",
        r"GM_{p} &= QK_{m,p} :: \bigvee_{m} \max(\cup) \\",
        r"SN_{m,p} &= e^{QK_{m,p} - GM_{p}} \\",
        r"SD_{p} &= SN_{m,p} :: \bigvee_{m} +(\cup) \\",
        r"A_{m,p} &= SN_{m,p} / SD_{p} \\",
        r"AV_{f,p} &= A_{m,p} \times V_{f,m}",
    ]
    assert lines[-1] == r"\end{align*}"


def test_latex_writes_generations_filters_merges_and_populates() -> None:
    text = latex(library.load("attention/1-pass"))
    assert r"RM_{m_{1} + 1,p} &= \max(RM_{m_{1},p}, LM_{m_{1},p})" in text
    assert r"RM_{0,p} &= -\infty" in text
    assert r"\textbf{final:} & \\" in text
    cascade = parse(
        "rank M, P, T\ninput A[M,P]\n(V[t,p], I_x[t,p]) = A[m: m<=p,p] :: topk(m -> t)\n"
        "W[p] = sqrt(A[m,p]) * A[m,p] @ left\nX[t,p] = V[t,p] + I_x[t,p] + W[p]"
    )
    text = latex(cascade)
    assert r"(V_{t,p}, I\_x_{t,p}) &= A_{m: m \leq p,p} :: \operatorname{topk}_{m \to t}" in text
    assert r"\sqrt{A_{m,p}} \times A_{m,p} :: \bigwedge \times(\leftarrow)" in text


def test_latex_keeps_the_tree_of_quotients() -> None:
    quotient = Binary("/", A, Binary("/", A, Call("relu", (A,))))
    cascade = parse(f"rank M\ninput A[M]\nY[m] = {render_expression(quotient)}")
    assert r"A_{m} / (A_{m} / \operatorname{relu}(A_{m}))" in latex(cascade)


@pytest.mark.slow
@pytest.mark.parametrize("name", library.names())
def test_latex_compiles_line_by_line(name: str) -> None:
    """matplotlib reads a part of LaTeX's mathematics; every line of every cascade is in it."""
    from matplotlib.mathtext import MathTextParser

    lines = latex(library.load(name)).splitlines()
    assert lines[0] == r"\begin{align*}" and lines[-1] == r"\end{align*}"
    for line in lines[1:-1]:
        body = line.replace("&", "").removesuffix(r"\\").strip()
        if not body.startswith(r"\textbf"):
            MathTextParser("path").parse(f"${body}$")
