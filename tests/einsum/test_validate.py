"""Every rule of the language: what breaks it is told with line, column and a caret."""

from __future__ import annotations

import warnings as python_warnings
from dataclasses import replace

import pytest

from einfuse.einsum.language.cascade import Cascade, Rank, Tensor
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.errors import CascadeError, CascadeWarning
from einfuse.einsum.language.expression import Access, Coordinate, Index
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.rules import validated, warnings
from einfuse.einsum.library import cascades as library

HEAD = "rank M, P, E\ninput A[M], K[E,M], Q[E,P]\n"

BROKEN = {
    "an undefined tensor": ("Y[p] = ^B[p]^", "undefined tensor B"),
    "an undefined tensor inside a gather": ("Y[p] = A[^TI[p]^]", "undefined tensor TI"),
    "an undefined rank in an input": ("input ^B[Z]^\nY[m] = A[m]", "undefined rank Z"),
    "a rank in lower case": ("input ^B[e]^\nY[m] = A[m]", "ranks are upper case: expected E"),
    "an undefined rank as a size": ("Y[m] = A[m] / ^Z^", "undefined rank Z"),
    "an undefined rank of a variable": ("Y[p] = A[^z^]", "variable z runs over rank Z, which is"),
    "an undefined rank in a filter": ("Y[p] = A[m: m<^z^]", "variable z runs over rank Z"),
    "an undefined rank of an alias": ("rank ^N = Z^\nY[m] = A[m]", "undefined rank Z"),
    "an undefined rank to iterate": ("^iter i over Z^\nY[m] = A[m]", "undefined rank Z"),
    "too many indices": (
        "Y[p] = ^A[m,p]^",
        "A is given two rank lists: [M], but 2 indices here",
    ),
    "another rank": (
        "Y[m] = K[e,m] * K[^m^,e]",
        "K is given two rank lists: E in [E,M], but M here (if they have one size, declare "
        "'rank M = E')",
    ),
    "an input with two rank lists": (
        "input ^A[P]^\nY[m] = A[m]",
        "input A is declared twice, with two rank lists: [M] and [P]",
    ),
    "an input declared twice": ("input ^A[M]^\nY[m] = A[m]", "input A is declared twice"),
    "definitions with two rank lists": (
        "X[0,p] = 0\nloop:\n^X[m+1,e]^ = K[e,m]\niter m over M",
        "X is given two rank lists: [?,P] on line 3 and [M,E] here",
    ),
    "an unbound variable on the left": (
        "Y[^z^] = A[m]",
        "variable z on the left is bound by no operand and no rank: declare 'rank Z'",
    ),
    "an index on the left of two ranks": (
        "Y[^m+p^] = K[e,m] * Q[e,p]",
        "an index on the left runs over M, P, which no split joins",
    ),
    "a constant index on the left": (
        "Y[^0^,m] = A[m]",
        "an index of Y names no rank",
    ),
    "a tensor defined twice": ("Y[m] = A[m]\n^Y[m]^ = A[m]", "Y is defined twice, first on line 3"),
    "an input defined": ("^A[m]^ = K[e,m]", "A is an input and cannot be defined"),
    "a reduce of the left": (
        "Y[m] = A[m] :: ^+(m)^",
        "+(m) reduces a variable that is still on the left",
    ),
    "a reduce of a stranger": (
        "Y[m] = A[m] :: ^max(p)^",
        "max folds variable p, which the right-hand side lacks (its variables: m)",
    ),
    "a reduce twice": ("Y[e] = K[e,m] :: +(m); ^max(m)^", "variable m is folded twice"),
    "a cycle": ("Z[m] = ^Y[m]^\nY[m] = Z[m]", "a cycle: Z <- Y <- Z"),
    "a cycle of one": ("Y[m] = ^Y[m]^ + A[m]", "a cycle: Y <- Y"),
    "a cycle of three": ("X[m] = ^Z[m]^\nY[m] = X[m]\nZ[m] = Y[m]", "a cycle: X <- Y <- Z <- X"),
    "a read before the definition": (
        "Z[m] = ^Y[m]^\nY[m] = A[m]",
        "Y is read before it is defined: its definition stands below, on line 4; move it up",
    ),
    "an unknown function": ("Y[m] = ^expp(A[m])^", "unknown function 'expp'; did you mean 'exp'"),
    "too few arguments": ("Y[m] = ^where(A[m], 0)^", "where takes 3 arguments, found 2"),
    "one argument to max": ("Y[m] = ^max(A[m])^", "max takes two or more arguments, found 1"),
    "an unknown operator": (
        "Y[] = A[m] :: ^maxx(m)^",
        "unknown operator to reduce with 'maxx'; did you mean 'max'?",
    ),
    "a coordinate operator that reduces": (
        "Y[] = A[m] :: ^topk(m)^",
        "topk places coordinates: write topk(m -> TARGET)",
    ),
    "an unknown coordinate operator": (
        "Y[p] = A[m] :: ^topkk(m -> p)^",
        "unknown coordinate operator 'topkk'; did you mean 'topk'?",
    ),
    "an unknown merge": (
        "Y[m] = A[m] + A[m] ^@ uni^",
        "unknown merge 'uni'; did you mean 'union'?",
    ),
    "a merge of nothing": ("^Y[m] = A[m]^ @ union", "'@ union' says which coordinates"),
    "a populate that keeps its source": (
        "Y[m,p] = A[m] :: ^topk(m -> p)^",
        "topk replaces m by p, so m cannot be on the left",
    ),
    "a populate without its target": (
        "Y[] = A[m] :: ^topk(m -> p)^",
        "topk places along p, which is not on the left",
    ),
    "a populate along an operand": (
        "Y[p] = A[m] * Q[e,p] :: ^topk(m -> p)^",
        "topk places along p, which the right already has",
    ),
    "two outputs of a sum": ("^(Y[m], Z[m]) = A[m]^", "two outputs are the values and the"),
    "values and coordinates of one name": (
        "(Y[p], ^Y[p]^) = A[m] :: topk(m -> p)",
        "values and coordinates need two names",
    ),
    "values and coordinates apart": (
        "(Y[p,e], ^Z[e,p]^) = K[e,m] :: topk(m -> p)",
        "values and coordinates need the same indices",
    ),
    "an output never defined": ("output ^W^\nY[m] = A[m]", "output W is never defined"),
    "an output that is an input": (
        "output ^A^\nY[m] = A[m]",
        "output A is never defined: it is an input",
    ),
    "an output twice": ("output Y, ^Y^\nY[m] = A[m]", "output Y is declared twice"),
    "a rank declared twice": ("rank ^M^\nY[m] = A[m]", "rank M is declared twice"),
    "a rank of lower case": ("rank ^m2^\nY[m] = A[m]", "a rank is upper case, found 'm2'"),
    "a rank of size 0": ("rank ^Z = 0^\nY[m] = A[m]", "rank Z needs a size of at least 1, found 0"),
    "ranks that name each other": (
        "rank ^Y = Z^, Z = Y\nY[m] = A[m]",
        "ranks take their sizes from each other: Y = Z = Y",
    ),
    "a split of itself": ("^split M -> M, P^\nY[m] = A[m]", "a split needs three different ranks"),
    "a split in a circle": (
        "split M -> M1, M0\n^split M1 -> M, M2^\nY[m] = A[m]",
        "rank M1 is split into itself",
    ),
    "a split that does not multiply": (
        "rank Z = 10, Z1 = 3, Z0 = 3\n^split Z -> Z1, Z0^\nY[m] = A[m]",
        "the sizes of a split must multiply: Z = 10, but Z1*Z0 = 3*3 = 9",
    ),
    "a split that does not divide": (
        "rank Z = 10, Z1 = 3\n^split Z -> Z1, Z0^\nY[m] = A[m]",
        "the sizes of a split must multiply: Z = 10 is no multiple of Z1 = 3",
    ),
    "a remainder of values": ("Y[m] = ^A[m] % 2^", "'%' stands in indices and filters only"),
    "a function in an index": ("Y[p] = A[^max(p, 1)^]", "an index holds no function"),
    "a fraction in an index": ("Y[p] = A[m * ^1.5^]", "an index is a whole number, found 1.5"),
    "a division by zero in an index": ("Y[p] = A[^m/0^]", "an index divides by at least 1"),
    "a division by a variable": ("Y[p] = A[m/^p^]", "an index divides by a number or by a size"),
    "a function in a stop": (
        "iter i over M\nloop:\nY[i] = A[i]\nstop ^abs(Y[i])^ < 1",
        "a stop holds no function, found abs(...)",
    ),
    "an upper case iterative variable": (
        "^iter I over M^\nloop:\nY[m] = A[m]",
        "an iterative variable is lower case, found 'I'",
    ),
    "two iterations of one variable": (
        "iter i over M\n^iter i over P^\nloop:\nY[i] = A[i]",
        "variable i iterates twice",
    ),
    "a variable of two ranks": (
        "^iter p over M^\nloop:\nY[p] = A[p]",
        "variable p would run over both M and rank P",
    ),
    "a loop without iteration": (
        "loop:\n^Y[m] = A[m]^",
        "a loop needs an iterative rank: write 'iter VARIABLE over RANK'",
    ),
    "a stop without a loop": ("stop ^M<3^\nY[m] = A[m]", "a stop needs a loop"),
}


def split_carets(text: str) -> tuple[str, int, int, int]:
    """Return the text without its two markers, and line, column and width of what they mark."""
    start, end = text.index("^"), text.rindex("^")
    line = text.count("\n", 0, start)
    column = start - (text.rfind("\n", 0, start) + 1)
    return text.replace("^", ""), line + 1, column + 1, end - start - 1


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_told_and_pointed_at(name: str) -> None:
    marked, message = BROKEN[name]
    body, line, column, width = split_carets(marked)
    text = HEAD + body
    with pytest.raises(CascadeError) as caught, python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore", CascadeWarning)
        parse(text, source="a.txt")
    first, shown, caret = str(caught.value).splitlines()
    assert first.startswith(f"a.txt:{line + 2}:{column}: {message}"), first
    assert shown == "    " + text.splitlines()[line + 1]
    assert caret == " " * (column + 3) + "^" * width


SOUND = [
    "Y[p] = A[m]",
    "Y[m,m] = A[m]",
    "Y[p] = 0",
    "Y[p] = p * 2",
    "rank N = M\nY[n] = A[n]",
    "rank M9 = 4, N9 = 4\ninput B[M9]\nY[n9] = B[n9]",
    "split M -> M1, M0\nB[m1,m0] = A[m1*M0+m0]\nY[m1*M0+m0] = B[m1,m0]",
    "split M -> M1, MI\nsplit MI -> M2, M3\nY[m1*MI+m2*M3+m3] = A[m1*MI+m2*M3+m3]",
    "split MI -> M2, M3\nsplit M -> M1, MI\nY[m1*MI+m2*M3+m3] = A[m1*MI+m2*M3+m3]",
    "Y[m: m<3] = A[m]",
    "Y[M-1-m] = A[m]",
    "Y[p] = exp(K[e,m] - Q[e,p])",
    "Y[m] = A[m] / sqrt(E)",
    "Y[p] = A[m] * Q[e,p] @ right",
    "Y[m] = max(A[m], 0, -1) @ union",
    "iter i over M\nY[i] = A[i]",
]


@pytest.mark.parametrize("body", SOUND)
def test_what_is_right_is_let_pass(body: str) -> None:
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore", CascadeWarning)
        parse(HEAD + body)


def test_ranks_of_a_joined_split_are_the_whole() -> None:
    cascade = parse(
        "rank E\nsplit P -> P1, P0\ninput B[E,P1,P0]\nO[e,p1*P0+p0] = B[e,p1,p0]\nL[P-1-p] = O[e,p]"
    )
    assert cascade.tensor("O").ranks == ("E", "P")
    assert cascade.tensor("L").ranks == ("P",)


def test_a_recurrence_that_nothing_else_reads_is_an_output() -> None:
    text = "rank K\niter i over K\ninput A[K]\nX[0] = 0\nW[0] = 0\nloop:\n"
    assert parse(text + "X[i+1] = X[i] + A[i]\nW[i+1] = X[i+1] + A[i]").outputs == ("W",)
    assert parse(text + "X[i+1] = W[i] + A[i]\nW[i+1] = X[i+1]").outputs == ("W",)


def test_warnings_are_listed_and_parsing_emits_them() -> None:
    with pytest.warns(CascadeWarning, match="input B is never read"):
        cascade = parse("rank M\ninput A[M], B[M]\nY[m] = A[m]")
    assert warnings(cascade) == ("input B is never read",)
    assert warnings(library.load("attention/1-pass")) == ()


def test_an_input_read_by_a_gather_or_a_stop_is_read() -> None:
    cascade = parse(
        "rank K\niter i over K\ninput A[K], TI[K], TOL[]\nloop:\nY[i] = A[TI[i]]\nstop Y[i] < TOL[]"
    )
    assert warnings(cascade) == ()


def test_a_cascade_built_by_hand_is_checked_and_completed() -> None:
    def at(tensor: str) -> Access:
        return Access(tensor, (Index(Coordinate("m")),))

    built = Cascade(
        "mine", (Rank("M"),), input_tensors=(Tensor("A", ("M",)),),
        init=(Einsum((at("Y"),), at("A")),),
    )  # fmt: skip
    assert validated(built).tensor("Y") == Tensor("Y", ("M",))
    assert validated(built).outputs == ("Y",)
    broken = replace(built, init=(Einsum((at("Y"),), at("B")),))
    with pytest.raises(CascadeError, match=r"^mine: undefined tensor B"):
        validated(broken)
