"""The text of a cascade becomes nodes with their places; bad syntax is told in plain words."""

from __future__ import annotations

import math
import time
import warnings

import pytest

from einfuse.einsum.analysis.operations import count_operations
from einfuse.einsum.language.cascade import Iteration, Rank, Split, Tensor
from einfuse.einsum.language.equation import Populate, Reduce
from einfuse.einsum.language.errors import CascadeError, CascadeWarning
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Comparison,
    Coordinate,
    Index,
    Negate,
    Number,
    RankSize,
    Span,
)
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.printer import render
from einfuse.einsum.language.shape import symbol

# The example of the language page, letter by letter: the text form as it was fixed.
ONE_PASS = """\
rank E, F, P, M1, M0
split M -> M1, M0
iter m1 over M1
input Q[E,P], K[E,M], V[F,M]
output AV
init:
BK[e,m1,m0] = K[e, m1*M0+m0]
BV[f,m1,m0] = V[f, m1*M0+m0]
RM[0,p] = -inf
RD[0,p] = 0
RNV[f,0,p] = 0
loop:
QK[m1,m0,p] = Q[e,p] * BK[e,m1,m0]
LM[m1,p] = QK[m1,m0,p] :: max(m0)
RM[m1+1,p] = max(RM[m1,p], LM[m1,p])
SLN[m1,m0,p] = exp(QK[m1,m0,p] - RM[m1+1,p])
SLD[m1,p] = SLN[m1,m0,p] :: +(m0)
SLNV[f,m1,p] = SLN[m1,m0,p] * BV[f,m1,m0]
PRM[m1,p] = exp(RM[m1,p] - RM[m1+1,p])
SPD[m1,p] = RD[m1,p] * PRM[m1,p]
RD[m1+1,p] = SLD[m1,p] + SPD[m1,p]
SPNV[f,m1,p] = RNV[f,m1,p] * PRM[m1,p]
RNV[f,m1+1,p] = SLNV[f,m1,p] + SPNV[f,m1,p]
final:
AV[f,p] = RNV[f,M1,p] / RD[M1,p]
"""
HEAD = "rank M, P, E, T\ninput A[M], Q[E,P], K[E,M]\n"


def value(text: str) -> object:
    """Return the right-hand side of one Einsum over A, Q and K."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CascadeWarning)
        return parse(f"{HEAD}{text}").einsums[-1].expression


def at(tensor: str, *variables: str) -> Access:
    return Access(tensor, tuple(Index(Coordinate(v)) for v in variables))


def complaint(text: str) -> str:
    with pytest.raises(CascadeError) as caught:
        parse(text)
    return str(caught.value)


def test_the_example_of_the_language_parses_into_its_parts() -> None:
    cascade = parse(ONE_PASS, "one")
    assert cascade.name == "one"
    assert cascade.ranks == tuple(Rank(name) for name in ("E", "F", "P", "M1", "M0"))
    assert cascade.splits == (Split("M", "M1", "M0"),)
    assert cascade.iterations == (Iteration("m1", "M1"),)
    assert cascade.input_tensors[1] == Tensor("K", ("E", "M"))
    assert cascade.outputs == ("AV",)
    assert (len(cascade.init), len(cascade.loop), len(cascade.final)) == (5, 11, 1)
    assert cascade.loop[1].actions == (Reduce("max", ("m0",)),)
    assert cascade.tensor("RNV").ranks == ("F", "M1", "P")
    assert cascade.init[2].expression == Number(-math.inf)
    assert cascade.final[0].expression.left.indices[1] == Index(RankSize("M1"))


def test_the_example_parses_in_milliseconds() -> None:
    parse(ONE_PASS)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        parse(ONE_PASS)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.02


def test_products_bind_tighter_than_sums_and_both_associate_to_the_left() -> None:
    a, b = at("A", "m"), Number(2)
    assert value("Y[m] = A[m] - 2 - A[m]*2") == Binary("-", Binary("-", a, b), Binary("*", a, b))
    assert value("Y[m] = A[m]/2/A[m]") == Binary("/", Binary("/", a, b), a)
    assert value("Y[m] = A[m] - (2 - A[m])") == Binary("-", a, Binary("-", b, a))


def test_a_minus_before_a_number_is_a_negative_number() -> None:
    assert value("Y[m] = -2.5e-1 * -A[m]") == Binary("*", Number(-0.25), Negate(at("A", "m")))
    assert value("Y[m] = A[m] - -inf") == Binary("-", at("A", "m"), Number(-math.inf))
    assert value("Y[m] = A[m] + .5 + 1. + 1e3") == Binary(
        "+", Binary("+", Binary("+", at("A", "m"), Number(0.5)), Number(1.0)), Number(1000.0)
    )


def test_bare_names_are_sizes_in_upper_case_and_coordinates_in_lower_case() -> None:
    assert value("Y[m] = A[m] * m / M") == Binary(
        "/", Binary("*", at("A", "m"), Coordinate("m")), RankSize("M")
    )


def test_one_name_may_be_a_tensor_a_rank_and_a_function() -> None:
    cascade = parse("rank K, M\ninput exp[K], K[K,M]\nY[m] = exp(exp[k] * K * K[k,m])")
    assert cascade.einsums[0].expression == Call(
        "exp", (Binary("*", Binary("*", at("exp", "k"), RankSize("K")), at("K", "k", "m")),)
    )


def test_keywords_may_begin_names() -> None:
    cascade = parse("rank M\ninput rank_[M], inputs[M]\nover1[m] = rank_[m] * inputs[m]")
    assert [e.name for e in cascade.einsums] == ["over1"]


def test_filters_belong_to_their_index_and_join_by_ampersand() -> None:
    expression = value("Y[p] = K[e, m: m<=p & m+E>p] * Q[e,p]")
    assert isinstance(expression, Binary)
    index = expression.left.indices[1]  # type: ignore[union-attr]
    assert index == Index(
        Coordinate("m"),
        (
            Comparison(Coordinate("m"), "<=", Coordinate("p")),
            Comparison(Binary("+", Coordinate("m"), RankSize("E")), ">", Coordinate("p")),
        ),
    )


def test_actions_apply_from_left_to_right_and_a_merge_comes_last() -> None:
    einsum = parse("rank A, B\ninput X[A,B], Z[A,B]\nY[] = X[a,b]*Z[a,b] :: +(a); max(b) @ inter")
    assert einsum.einsums[0].actions == (Reduce("+", ("a",)), Reduce("max", ("b",)))
    assert einsum.einsums[0].merge == "inter"


def test_a_populate_gives_values_and_coordinates_that_can_be_gathered_by() -> None:
    cascade = parse(
        "rank M, P, T, F\ninput S[M,P], V[F,M]\n"
        "(TV[t,p], TI[t,p]) = S[m,p] :: topk(m -> t)\n"
        "O[f,p] = TV[t,p] * V[f, TI[t,p]]"
    )
    first, second = cascade.einsums
    assert first.actions == (Populate("topk", "m", "t"),)
    assert first.variables == ("m", "p")
    assert [output.tensor for output in first.outputs] == ["TV", "TI"]
    assert [operand.tensor for operand in second.operands] == ["TV", "V", "TI"]
    assert second.variables == ("t", "p", "f")


def test_an_implicit_sum_comes_before_the_actions() -> None:
    cascade = parse("rank E, M, P\ninput Q[E,P], K[E,M]\nY[p] = Q[e,p]*K[e,m] :: max(m)")
    assert cascade.einsums[0].reductions == (Reduce("+", ("e",)), Reduce("max", ("m",)))


def test_scalars_have_empty_brackets() -> None:
    cascade = parse("rank M\ninput A[M], C[]\nS[] = A[m] * C[]")
    assert cascade.tensor("S").ranks == ()
    assert cascade.tensor("C").ranks == ()


def test_lines_before_a_label_are_init_and_the_label_may_follow() -> None:
    cascade = parse("rank M\ninput A[M]\nB[m] = A[m]\ninit:\nC[m] = B[m]\nfinal:\nD[m] = C[m]")
    assert [e.name for e in cascade.init] == ["B", "C"]
    assert [e.name for e in cascade.final] == ["D"]


def test_declarations_may_follow_their_use() -> None:
    assert parse("Y[m] = A[m]\noutput Y\ninput A[M]\nrank M").outputs == ("Y",)


def test_comments_blank_lines_tabs_and_windows_line_ends_are_no_matter() -> None:
    text = "# head\r\n\r\nrank M # sizes\r\n\tinput A[ M ]\r\n  Y[m]=A[m]#end"
    assert parse(text) == parse("rank M\ninput A[M]\nY[m] = A[m]")


def test_outputs_left_out_are_what_nothing_reads() -> None:
    cascade = parse("rank M\ninput A[M]\nB[m] = A[m]\nC[m] = B[m]\nD[] = B[m]")
    assert cascade.outputs == ("C", "D")


def test_a_stop_compares_scalars_that_may_be_fractions() -> None:
    cascade = parse(
        "rank K\niter i over K\ninput B[K]\ninit:\nX[0] = 1\nloop:\nX[i+1] = X[i] * B[i]\n"
        "stop X[i+1] < 1e-6 & X[i+1] > -1"
    )
    assert cascade.stop[0].right == Number(1e-6)
    assert cascade.stop[1].right == Number(-1)


def test_nodes_know_their_place_in_the_text() -> None:
    expression = value("Y[m] = exp(A[m] - (A[m]))")
    assert isinstance(expression, Call)
    assert expression.span == Span(3, 8, 3, 26)
    (difference,) = expression.arguments
    assert isinstance(difference, Binary)
    assert difference.left.span == Span(3, 12, 3, 16)
    assert difference.right.span == Span(3, 19, 3, 25)


@pytest.mark.parametrize(
    ("line", "expected", "found", "column"),
    [
        ("Y[m] = A[m", "expected ']' or an operator or ',' or ':'", "the end of the line", 11),
        ("Y[m] =", "expected a value", "the end of the line", 7),
        ("Y[m] = exp(A[m]", "expected ')' or an operator or ','", "the end of the line", 16),
        ("Y = A[m]", "expected '['", "'='", 3),
        ("Y[m] A[m]", "expected '='", "'A'", 6),
        ("Y[m] = A[m] + * 2", "expected a value", "'*'", 15),
        ("Y[m] = A[m] ::", "expected '*' or '+' or a name", "the end of the line", 15),
        ("Y[m] = A[m] @", "expected a name", "the end of the line", 14),
        ("rank M = -4", "expected a name or a whole number", "'-'", 10),
        ("rank M = 4.5", "expected a name or a whole number", "'4.5'", 10),
        ("split M -> M1", "expected ','", "the end of the line", 14),
        ("iter i of K", "expected 'over'", "'of'", 8),
        ("rank stop", "expected a name", "'stop' (a reserved word)", 6),
        ("Y[m] = loop[m]", "expected a value", "'loop' (a reserved word)", 8),
        ("init", "expected ':'", "the end of the line", 5),
        ("input A[M,]", "expected a name", "']'", 11),
        ("[m] = A[m]", "expected a declaration, a section label or an Einsum", "'['", 1),
        ("Y[m: m] = A[m]", "expected an operator or a comparison", "']'", 7),
    ],
)
def test_bad_syntax_is_told_as_expected_and_found(
    line: str, expected: str, found: str, column: int
) -> None:
    error = complaint(f"rank M\n{line}\n")
    first, shown, caret = error.splitlines()
    assert first.startswith(f"<cascade>:2:{column}: {expected}"), first
    assert first.endswith(f"found {found}"), first
    assert shown == f"    {line}"
    assert caret.index("^") == column + 3


def test_an_unknown_character_is_pointed_at() -> None:
    assert complaint("rank M\nY[m] = A[m] $ 2").splitlines() == [
        "<cascade>:2:13: unexpected character '$'",
        "    Y[m] = A[m] $ 2",
        "                ^",
    ]


def test_a_caret_stands_right_behind_tabs() -> None:
    assert complaint("\tY[m] = + 2").splitlines()[1:] == ["    \tY[m] = + 2", "    \t       ^"]


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment", "rank M\ninput A[M]\n"])
def test_a_text_without_an_einsum_is_refused(text: str) -> None:
    assert "no Einsum: expected at least one line" in complaint(text)


def test_deep_nesting_is_refused_before_it_can_hurt() -> None:
    deep = "rank M\ninput A[M]\nY[m] = " + "(" * 100_000 + "A[m]" + ")" * 100_000
    assert "brackets nest more than 50 deep" in complaint(deep)
    long = "rank M\ninput A[M]\nY[m] = " + " + ".join(["A[m]"] * 10_000)
    assert "more than 200 operators on a line" in complaint(long)
    assert all(len(line) < 300 for line in complaint(long).splitlines())


def test_the_deepest_allowed_text_still_works() -> None:
    for body in ("-(" * 49 + "A[m]" + ")" * 49, " + ".join(["A[m]"] * 201)):
        cascade = parse(f"rank M\ninput A[M]\nY[m] = {body}")
        assert parse(render(cascade)) == cascade
        assert hash(cascade) == hash(parse(render(cascade)))
        assert count_operations(cascade)["Y"]["add"].subs(symbol("M"), 1) in (49, 200)


def test_a_number_too_long_is_refused() -> None:
    assert "at most 18 digits" in complaint("rank M = 99999999999999999999")


def test_a_mixed_case_name_alone_is_refused() -> None:
    error = complaint("rank M\ninput A[M]\nY[m] = A[m] * Scale")
    assert "'Scale' alone is neither a rank's size" in error
    assert "<cascade>:3:15" in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loop:\nfinal:\nloop:\n", "'loop:' after 'final:'"),
        ("loop:\nloop:\n", "'loop:' after 'loop:'"),
        ("final:\ninit:\n", "'init:' after 'final:'"),
    ],
)
def test_sections_come_in_their_order(text: str, message: str) -> None:
    assert message in complaint(text)


def test_a_second_stop_is_refused() -> None:
    assert "a second stop: join conditions by '&'" in complaint("stop M<1\nstop M<2\n")


def test_an_input_never_read_is_a_warning_with_its_line() -> None:
    with pytest.warns(CascadeWarning, match="input B is never read") as caught:
        parse("rank M\ninput A[M], B[M]\nY[m] = A[m]", source="a.txt")
    assert (caught[0].filename, caught[0].lineno) == ("a.txt", 2)


def test_parsing_what_is_right_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parse(ONE_PASS)
