"""Facts of the cascades, and their parameters."""

from __future__ import annotations

import numpy as np
import pytest

from einfuse.einsum.analysis.passes import count_passes
from einfuse.einsum.execution.run import run
from einfuse.einsum.execution.sampling import draw_inputs
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.printer import render
from einfuse.einsum.language.shape import bind
from einfuse.einsum.library.cascades import load
from einfuse.einsum.library.zoo import defaults, entries, families, with_parameters


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_facts_name_ranks_and_inputs_that_the_cascade_has(entry) -> None:  # type: ignore[no-untyped-def]
    cascade = load(entry.name)
    for rank in filter(None, (entry.keys, entry.queries)):
        assert rank in cascade.rank_names
    for parameter in entry.parameters.values():
        if parameter.rank is not None:
            assert parameter.rank in cascade.rank_names
        else:
            assert cascade.tensor(str(parameter.input)).ranks == ()
            assert parameter.input in cascade.inputs
    assert (entry.confidence == "sure") == (not entry.assumption)


def test_families_have_members() -> None:
    assert {entry.family for entry in entries()} <= set(families())
    assert all(entry.family == "dense" for entry in entries("dense"))
    with pytest.raises(EinfuseError, match="no family 'dens'; did you mean 'dense'"):
        entries("dens")


def test_a_parameter_fixes_a_rank() -> None:
    fixed = with_parameters(load("attention/window"), {"window": 3, "sinks": 1})
    shape = bind(fixed, {"E": 2, "F": 2, "P": 5, "M": 5})
    assert (shape["W"], shape["S"]) == (3, 1)


def test_a_parameter_fixes_a_scalar_input() -> None:
    fixed = with_parameters(load("attention/sigmoid"), {"bias": -2.5})
    assert fixed.inputs == ("Q", "K", "V")
    assert defaults(load("attention/window")) == {"window": 512, "sinks": 4}


def test_a_parameter_may_stand_in_a_filter() -> None:
    fixed = with_parameters(load("attention/grid"), {"phase": 1, "stride": 4})
    assert "PH" not in fixed.inputs
    assert "p%T==1" in render(fixed)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("attention/window", {"windw": 3}, "has no parameter 'windw'; did you mean 'window'?"),
        ("attention/3-pass", {"window": 3}, "has no parameter 'window'; there is none"),
        ("attention/window", {"window": 2.5}, "a whole number of at least 1; found 2.5"),
        ("attention/window", {"window": 0}, "a whole number of at least 1; found 0"),
        ("attention/window", {"window": float("inf")}, "a whole number of at least 1"),
        ("attention/sigmoid", {"bias": float("nan")}, "needs a finite number, found nan"),
    ],
)
def test_parameters_that_cannot_be_are_named(
    name: str, settings: dict[str, float], words: str
) -> None:
    with pytest.raises(EinfuseError) as caught:
        with_parameters(load(name), settings)
    assert words in str(caught.value)


def test_a_tile_that_does_not_divide_is_an_error() -> None:
    fixed = with_parameters(load("attention/1-pass"), {"tile": 4})
    with pytest.raises(EinfuseError, match="M = 10 is no multiple of M0 = 4"):
        bind(fixed, {"E": 2, "F": 2, "P": 5, "M": 10})


def test_a_parameter_of_a_rank_that_takes_its_size_from_another_fixes_that_one() -> None:
    cascade = parse("rank M, N = M, K = N\ninput A[M], B[K]\noutput Y\nY[m] = A[m] * B[k]", "mine")
    assert bind(with_parameters(cascade, {"K": 4}), {})["M"] == 4
    assert bind(with_parameters(load("attention/randomised"), {"proposals": 3}), {
        "E": 1, "F": 1, "P": 6, "M": 9})["B"] == 3  # fmt: skip
    with pytest.raises(EinfuseError, match="M is the size of rank M, which is set to 4 already"):
        with_parameters(cascade, {"K": 4, "M": 5})


def test_ranks_and_scalars_of_a_cascade_of_ones_own_are_its_parameters() -> None:
    cascade = parse("rank M\ninput A[M], B[]\noutput Y\nY[m] = A[m] + B[]", "mine")
    fixed = with_parameters(cascade, {"M": 4, "B": 0.5})
    assert fixed.inputs == ("A",)
    assert bind(fixed, {})["M"] == 4


PASSES = {  # facts of the papers' analyses: passes over keys, passes over queries
    "attention/3-pass": (3, 1),
    "attention/3-pass-deferred": (2, 1),
    "attention/2-pass": (2, 1),
    "attention/1-pass": (1, 1),
    "attention/split-decode": (1, 1),
    "attention/stream-decode": (1, 1),
    "attention/sigmoid": (1, 1),
    "attention/linear-decay": (1, None),
    "attention/identity-similarity": (1, 1),
    "attention/elu-similarity": (1, 1),
    "attention/ring": (1, 1),
    "attention/ring-self": (3, 1),
    "attention/linear": (1, 1),
    "attention/linear-causal": (1, None),
    "attention/performer": (2, 1),
    "attention/flow": (2, 2),
    "attention/agent": (1, 2),
    "attention/agent-image": (2, 2),  # tokens are queries: V for the agents, then its convolution
    "attention/bilevel-image": (1, 1),
    "attention/memory-gate": (2, 1),
    "attention/elu-unnormalised": (1, 1),
    "attention/gathered-states": (1, 1),
    "attention/recurrent-query": (1, None),
    "attention/state-space": (1, None),
    "attention/ring-causal": (1, 1),
    "attention/cosformer-causal": (1, None),
    "attention/performer-causal": (2, None),  # the stabiliser is over all keys
    "attention/identity-unnormalised": (1, 1),
    "attention/mlp-unnormalised": (1, 1),
    "attention/neural-memory": (1, None),
    "mixer/monarch": (1, None),
    "mixer/long-convolution": (2, None),
    "attention/product-codes": (1, 1),
    "attention/bilevel": (1, 1),
    "attention/routing": (1, 1),
    "attention/recycled": (2, 1),
    "attention/landmark-retrieval": (0, 1),  # the pass over landmarks is none over the keys
    "attention/nystrom": (2, 2),
    "mixer/diagonal-states": (1, None),
    "attention/tree-search": (0, 1),  # rounds and gathers touch subsets
    "attention/calibrated": (3, 2),
    "attention/vertical-slash": (3, 1),  # two of the estimate, one of the attention
    "attention/estimated-mask": (5, 5),  # tokens are queries: V and what follows from it in turn
    "attention/backward": (1, 1),
    "attention/flow-causal": (1, None),
    "attention/gathered-sums": (1, 1),
    "attention/sigmoid-similarity": (1, 1),
    "attention/mlp-similarity": (1, 1),
    "attention/block-sparse": (0, 1),  # a gather of kept blocks
    "attention/pooled": (1, 1),
    "attention/landmark": (1, 1),
    "attention/heavy-hitters": (2, 1),
    "attention/quantised-estimate": (2, 2),  # one over the queries without their mean, see below
}


@pytest.mark.parametrize("name", PASSES)
def test_passes_are_those_of_the_analysis(name: str) -> None:
    entry = next(entry for entry in entries() if entry.name == name)
    counted = tuple(
        None if rank is None else count_passes(load(name), rank).passes
        for rank in (entry.keys, entry.queries)
    )
    assert counted == PASSES[name]


def test_an_estimate_by_columns_and_diagonals_takes_two_passes_online_and_three_as_published() -> (
    None
):
    """Maximum, sum, weights; with a maximum per tile the first two are one."""
    head, _ = load("attention/vertical-slash").text.split("(VV[t]")
    head = head.replace("iter i over M1\n", "").replace("init:\n", "")
    head = head.replace("output AV", "output VS, SL").replace(", V[F,M]", "")
    online = head.replace("BV[f,m1,m0] = V[f, m1*M0+m0]\n", "")
    assert count_passes(parse(online), "M").passes == 2
    start, end = online.index("LE[m1,l] ="), online.index("CS[m]")
    published = (
        "GE[l] = QE[m,l] :: max(m)\nSE[m,l] = exp(QE[m,l] - GE[l])\n"
        "DE[l] = SE[m,l] :: +(m)\nEST[m,l] = SE[m,l] / DE[l]\n"
    )
    assert count_passes(parse(online[:start] + published + online[end:]), "M").passes == 3


def test_smoothing_costs_an_estimate_a_pass() -> None:
    """Means of keys and of queries are complete before the first difference; without them the
    estimate shares a pass with the attention that it steers."""
    text = load("attention/quantised-estimate").text
    given = text.replace("QM[e] = SQ[e] / P\n", "").replace("SQ[e] = Q[e,p] :: +(p)\n", "")
    given = given.replace("KM[e] = SK[e] / M\n", "").replace("SK[e] = K[e,m] :: +(m)\n", "")
    given = given.replace("TAU[]\noutput", "TAU[], QM[E], KM[E]\noutput")
    assert [count_passes(parse(given), rank).passes for rank in "MP"] == [1, 1]


def test_gathered_states_stream_where_queries_are_tokens_too() -> None:
    """LASP-2 over one sequence: states of the devices before are a running sum (a prefix)."""
    text = load("attention/gathered-states").text
    text = text.replace("D = W, P0 = M0", "D = W, J = M0").replace("split P -> D, P0\n", "")
    text = text.replace("Q[E,P]", "Q[E,M]").replace("BQ[e,d,p0] = Q[e, d*P0+p0]",
        "BQ[e,w,m0] = Q[e, w*M0+m0]")  # fmt: skip
    head = text[: text.index("PS[")]
    one = (
        head
        + """PS[e,f,w] = S[e,f, d: d<w]
OX[f,w,m0] = BQ[e,w,m0] * PS[e,f,w]
QK[w,j,m0] = BQ[e,w,m0] * BK[e, w, j: j<=m0]
OI[f,w,m0] = QK[w,j,m0] * BV[f,w,j]
O[f,w*M0+m0] = OI[f,w,m0] + OX[f,w,m0]
"""
    )
    assert count_passes(parse(one), "M").passes == 1
    inputs = draw_inputs(parse(one), bind(parse(one), {"E": 3, "F": 2, "M": 12, "W": 3}), 1)
    found = run(parse(one), inputs, {"W": 3})["O"]
    expected = run(load("attention/gathered-states"), inputs, {"W": 3})["O"]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_calibration_with_two_accumulators_takes_two_passes() -> None:
    """Sinks and other keys summed apart, then joined in the row's own shares."""
    text = load("attention/calibrated").text
    head = text[: text.index("T[m] = ")]
    joined = (
        head
        + "VS[f,p] = A[m,p] * HS[m] * V[f,m]\nVO[f,p] = A[m,p] * (1 - HS[m]) * V[f,m]\n"
        + "VF[f,p] = AF[p] * V[f, FS[]: FS[]<M]\n"
        + "VB[f,p] = BETA[] * (VS[f,p] - VF[f,p])\n"
        + "AV[f,p] = VB[f,p] + (VO[f,p] + VF[f,p]) * (1 + REM[p] / NS[p])\n"
    )
    assert count_passes(parse(joined), "M").passes == 2
    shape = bind(load("attention/calibrated"), {"E": 4, "F": 3, "P": 8, "M0": 4})
    inputs = draw_inputs(parse(joined), shape, 1) | {"THR": np.array(0.2), "BETA": np.array(0.4)}
    expected = run(load("attention/calibrated"), inputs, shape)["AV"]
    np.testing.assert_allclose(run(parse(joined), inputs, shape)["AV"], expected, rtol=1e-12)
