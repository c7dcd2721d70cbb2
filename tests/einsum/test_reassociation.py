"""Rules Z and A, and what is saved: against runs of the cascade before, and autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from einfuse.einsum import Cascade, EinfuseError, count_passes, load, parse, render, run
from einfuse.einsum.derivation.dataflow import Dataflow
from einfuse.einsum.derivation.polynomial import Polynomials
from einfuse.einsum.derivation.reassociation import reassociate
from einfuse.einsum.derivation.search import derive
from einfuse.einsum.derivation.vanishing import vanish
from einfuse.einsum.gradient.gradient import gradient
from einfuse.einsum.language.shape import bind, tensor_shape
from einfuse.einsum.testing import cascades, shapes

SIZES = {"E": 3, "F": 2, "P": 5, "M": 4}


def _inputs(cascade: Cascade, seed: int = 0) -> dict[str, np.ndarray]:
    sizes = bind(cascade, {r: n for r, n in SIZES.items() if r in cascade.rank_names})
    rng = np.random.default_rng(seed)
    shapes = {t.name: tensor_shape(cascade, t.name, sizes) for t in cascade.input_tensors}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def _assert_equal(first: Cascade, second: Cascade, seed: int = 0) -> None:
    inputs = _inputs(first, seed)
    expected = run(first, inputs)
    tiles = {split.inner: 2 for split in second.splits}
    found = run(second, {n: a for n, a in inputs.items() if n in second.inputs}, tiles)
    for name, value in expected.items():
        scale = max(1.0, float(np.abs(value).max(initial=0.0)))
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-12 * scale, err_msg=name)


SCORES = [
    "QK[m,p] = Q[e,p] * K[e,m]",
    "QK[m,p] = Q[e,p] * K[e, m: m<=p]",
    "QK[m,p] = Q[e,p] * K[e, m: m<p]",  # the first query has no key
    "S[m,p] = Q[e,p] * K[e,m]\nQK[m,p] = 3 * tanh(S[m,p] / 3) + m - p",
    "S[m,p] = sq(Q[e,p] - K[e,m])\nQK[m,p] = -S[m,p] / 2",
]
WEIGHTS = {
    "3-pass": "SD[p] = SN[m,p]\nA[m,p] = SN[m,p] / SD[p]\nAV[f,p] = A[m,p] * V[f,m]",
    "deferred": "SD[p] = SN[m,p]\nNV[f,p] = SN[m,p] * V[f,m]\nAV[f,p] = NV[f,p] / SD[p]",
    "sink": "S0[p] = SN[m,p]\nSD[p] = S0[p] + exp(1 - GM[p])\nA[m,p] = SN[m,p] / SD[p]\n"
    "AV[f,p] = A[m,p] * V[f,m]",
    "weighted": "SD[p] = SN[m,p]\nA[m,p] = SN[m,p] / SD[p]\nW[f,m] = sq(V[f,m])\n"
    "AV[f,p] = A[m,p] * V[f,m] * W[f,m]",
}


def _attention(scores: str, weights: str) -> Cascade:
    return parse(
        "rank E, F, P, M\ninput Q[E,P], K[E,M], V[F,M]\noutput AV\n"
        f"{scores}\nGM[p] = QK[m,p] :: max(m)\nSN[m,p] = exp(QK[m,p] - GM[p])\n{weights}"
    )


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_maximum_leaves_the_gradient_of_a_softmax(scores: str, weights: str) -> None:
    """Softmax does not change if all its scores move by one amount: no adjoint reaches it."""
    backward = gradient(_attention(scores, WEIGHTS[weights]), ["Q", "K", "V"])
    found = vanish(backward)
    if weights == "sink":  # exp(1 - GM) is moved as well, but by algebra of the exponential
        assert found is None or "dGM" in found[1]
        return
    assert found is not None
    simpler, names = found
    assert "dGM" in names
    assert not {"dGM", "GMW", "GMN"} & {e.name for e in simpler.einsums}
    _assert_equal(backward, simpler)


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("weights", ["3-pass", "deferred", "weighted"])
def test_the_denominators_adjoint_is_read_off_the_saved_output(scores: str, weights: str) -> None:
    """FlashAttention-2, algorithm 2, line 4: D = rowsum(dO * O); a pass over keys, and queries."""
    forward = _attention(scores, WEIGHTS[weights])
    backward = gradient(forward, ["Q", "K", "V"], saved=["AV", "GM", "SD"])
    assert "dSD[p] = -(dAV[f,p] * AV[f,p] / SD[p])" in render(backward).splitlines()
    assert [count_passes(backward, rank).passes for rank in "MP"] == [1, 1]
    everything = parse(render(forward).replace("output AV", "output AV, GM, SD"))
    inputs = _inputs(forward)
    seed = np.random.default_rng(5).standard_normal((SIZES["F"], SIZES["P"]))
    given = {**inputs, "dAV": seed, **run(everything, inputs)}
    found = run(backward, {name: given[name] for name in backward.inputs})
    tensors = {n: torch.tensor(a, requires_grad=True) for n, a in inputs.items()}
    (run(forward, tensors, backend="torch")["AV"] * torch.tensor(seed)).sum().backward()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(found[f"d{name}"], tensor.grad, rtol=1e-10, atol=1e-10)


def test_a_backward_pass_reads_delta_where_the_cascade_has_the_output() -> None:
    text = render(gradient(load("attention/3-pass"), ["Q", "K", "V"]))
    text = text.replace("output dQ", "output AV, dQ")
    text = text.replace("dA[m,p] =", "AV[f,p] = A[m,p] * V[f,m]\ndA[m,p] =")
    backward = parse(text)
    found = reassociate(Dataflow(backward, "m"))
    assert found is not None and ("dSD", "AV") in found.folds
    _assert_equal(backward, found.cascade)


PAIRS = [  # what a fold becomes, or None
    ("O[f] = V[f,m] * W[m]", "D[] = A[f] * V[f,m] * W[m]", "D[] = A[f] * O[f]"),
    ("O[f] = W[m] * V[f,m]", "D[] = 2 * (A[f] * W[m]) * V[f,m]", "D[] = 2 * A[f] * O[f]"),
    ("O[f] = V[f,m] * W[m] / B[f]", "D[] = A[f] * V[f,m] * W[m]", "D[] = A[f] * B[f] * O[f]"),
    ("O[f] = V[f,m] * W[m]", "D[] = -(V[f,m] * A[f] / B[f] * W[m])",
     "D[] = -(A[f] * O[f] / B[f])"),
    ("O[] = W[m] * W[m]", "D[] = sq(W[m]) :: +(m)", "D[] = O[]"),
    ("O[f] = V[f, m: m<2] * W[m]", "D[] = A[f] * V[f,m] * W[m: m<2]", "D[] = A[f] * O[f]"),
    ("O[f] = V[f, m: m<2] * W[m]", "D[] = A[f] * V[f,m] * W[m]", None),
    ("O[f] = V[f,m] * W[m]", "D[] = A[f] * V[f,m] * W[m: m<2]", None),
    ("O[f] = V[f,m] * W[m] * B[f]", "D[] = A[f] * V[f,m] * W[m]", None),  # would divide by B
    ("O[f] = V[f,m] * W[m]", "D[] = A[f] * V[f,m] * W[m] * W[m]", None),
    ("O[f] = V[f,m] * W[m]", "D[] = exp(A[f]) * V[f,m] * W[m] + 1", None),
    ("O[f] = V[f,m] * W[m] :: max(m)", "D[] = A[f] * V[f,m] * W[m]", None),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::einfuse.einsum.CascadeWarning")
@pytest.mark.parametrize(("known", "fold", "expected"), PAIRS)
def test_a_fold_reads_another_only_where_both_are_one_polynomial(
    known: str, fold: str, expected: str | None
) -> None:
    cascade = parse(f"rank F, M\ninput V[F,M], W[M], A[F], B[F]\noutput O, D\n{known}\n{fold}")
    found = reassociate(Dataflow(cascade, "m"))
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert render(found.cascade).splitlines()[-1] == expected
    _assert_equal(cascade, found.cascade)


RANDOM = {"V": "fm", "W": "m", "X": "gm", "A": "f", "B": "g", "C": "", "H": "fg"}


@pytest.mark.filterwarnings("ignore::einfuse.einsum.CascadeWarning")
@pytest.mark.parametrize("seed", range(25))
def test_random_products_read_each_other_and_stay_equal(seed: int) -> None:
    """``D`` has the factors of ``O`` and others that do not vary along m, in any order."""
    rng = np.random.default_rng(seed)
    inner = list(rng.choice(["V", "W", "X", "V", "W"], rng.integers(1, 4)))
    outer = list(rng.choice(["A", "B", "C", "H"], rng.integers(0, 3)))
    summed = {v for name in inner for v in RANDOM[name]}
    divisors = [name for name in ["A", "B", "C", "H"] if set(RANDOM[name]) <= summed]
    below = list(rng.choice(divisors, rng.integers(0, 2)))

    def written(factors: list[str], divisors: list[str]) -> str:
        reads = [f"{name}[{','.join(RANDOM[name])}]" for name in rng.permutation(factors)]
        return " / ".join([" * ".join(reads), *(f"{n}[{','.join(RANDOM[n])}]" for n in divisors)])

    kept = sorted({v for name in [*inner, *below] for v in RANDOM[name]} - {"m"})
    ranks = sorted({v for name in [*inner, *outer, *below] for v in RANDOM[name]} - {"m"})
    left = list(rng.permutation(ranks))[: rng.integers(0, len(ranks) + 1)]
    cascade = parse(
        "rank F, G, M\ninput V[F,M], W[M], X[G,M], A[F], B[G], C[], H[F,G]\noutput O, D\n"
        f"O[{','.join(kept)}] = {written(inner, below)} :: +(m)\n"
        f"D[{','.join(left)}] = {rng.integers(2, 9)} * ({written([*inner, *outer], below)})"
        f" :: +({','.join([*(r for r in ranks if r not in left), 'm'])})"
    )
    found = reassociate(Dataflow(cascade, "m"))
    assert found is not None and found.folds == (("D", "O"),)
    sizes = {"F": 3, "G": 2, "M": 4}
    inputs = {n: rng.standard_normal([sizes[v.upper()] for v in RANDOM[n]]) for n in RANDOM}
    expected = run(cascade, {n: inputs[n] for n in cascade.inputs}, sizes)
    result = run(found.cascade, {n: inputs[n] for n in found.cascade.inputs}, sizes)
    for name, value in expected.items():
        scale = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(result[name], value, rtol=0, atol=1e-12 * scale)


@pytest.mark.slow
@given(cascades().flatmap(lambda c: st.tuples(st.just(c), shapes(c))), st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_random_cascades_stay_equal(drawn: tuple[Cascade, dict[str, int]], seed: int) -> None:
    cascade, shape = drawn
    if cascade.loop:
        return
    found = vanish(cascade)
    changed = [] if found is None else [found[0]]
    for rank in cascade.rank_names:
        read_off = reassociate(Dataflow(cascade, rank.lower()))
        changed += [] if read_off is None else [read_off.cascade]
    rng = np.random.default_rng(seed)
    sizes = bind(cascade, shape)
    inputs = {
        t.name: rng.standard_normal(tensor_shape(cascade, t.name, sizes))
        for t in cascade.input_tensors
    }
    for other in changed:
        expected, result = run(cascade, inputs, shape), run(other, inputs, shape)
        for name, value in expected.items():
            np.testing.assert_allclose(result[name], value, rtol=1e-10, atol=1e-10)


ZEROS = [  # the right-hand side of Z, whether it is 0
    ("X[m] - MU[] :: +(m)", True),
    ("X[m] * D[m] - D[m] * X[m]", True),
    ("D[m] * MU[] :: +(m)", True),
    ("sq(D[m]) - sq(X[m]) + 2 * X[m] * MU[] - sq(MU[])", True),
    ("X[m] / S[] - X[m] * X[m] / S[] / X[m]", True),
    ("D[m] * X[m] :: +(m)", False),
    ("X[m] - MU[]", False),
    ("D[m] :: max(m)", False),
    ("abs(D[m]) :: +(m)", False),
    ("X[m: m<2] - MU[] :: +(m)", False),
    ("exp(X[m]) - exp(X[m]) * exp(MU[]) :: +(m)", False),
]


@pytest.mark.parametrize(("value", "zero"), ZEROS)
def test_zeros_are_found_and_no_others(value: str, zero: bool) -> None:
    left = "Z[]" if "::" in value else "Z[m]"
    cascade = parse(
        "rank M\ninput X[M]\noutput Z\nS[] = X[m]\nMU[] = S[] / M\nD[m] = X[m] - MU[]\n"
        f"{left} = {value}"
    )
    result = run(cascade, {"X": np.array([1.0, 2.0, 4.0, 8.5])})["Z"]
    assert (np.abs(result).max() < 1e-12) == zero
    polynomials = Polynomials(cascade)
    terms = polynomials.of("Z")
    assert (terms is not None and polynomials.is_zero(terms)) == zero


def test_an_absent_divisor_keeps_what_is_not_divided_by_it() -> None:
    """Where no key is attended, 1 - S / S is 1, not 0: rows of a mask may be empty."""
    text = (
        "rank M, P\ninput X[M,P], W[P]\noutput Y\nS[p] = X[m: m<p,p]\n"
        "Y[p] = W[p] - W[p] * S[p] / S[p]"
    )
    cascade = parse(text)
    assert vanish(cascade) is None
    assert run(cascade, {"X": np.ones((3, 2)), "W": np.ones(2)})["Y"].tolist() == [1, 0]
    assert vanish(parse(text.replace("m: m<p", "m"))) is not None


def test_a_constant_is_counted_only_where_the_other_operand_is() -> None:
    text = (
        "rank M\ninput X[M]\noutput Y\nS[] = X[m: m<2]\nT[] = X[m: m<2] + 1 :: +(m)\n"
        "Y[] = T[] - S[] - M"
    )
    cascade = parse(text)
    assert run(cascade, {"X": np.ones(3)})["Y"] == -1
    assert vanish(cascade) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "before", "after"),
    [("attention/3-pass", 5, 2), ("attention/3-pass-deferred", 4, 2), ("attention/causal", 4, 2)],
)
def test_gradients_need_two_passes_over_keys_or_one_with_what_is_saved(
    name: str, before: int, after: int
) -> None:
    """Two: the softmax's sums, then what is as long as the keys; with the sums saved, one."""
    backward = gradient(load(name), ["Q", "K", "V"])
    assert count_passes(backward, "M").passes == before
    found = derive(backward, "M")
    assert min(d.passes for d in found if d.stable) == after
    best = next(d for d in found if d.stable and d.passes == after)
    assert best.steps[0].rule == "Z"
    assert "dGM" in best.steps[0].explanation and "terms cancel" in best.steps[0].explanation
    _assert_equal(backward, best.cascade)


@pytest.mark.slow
def test_derive_reads_the_denominators_adjoint_off_the_output() -> None:
    text = (
        "rank M, P, F\ninput X[M,P], V[F,M], DO[F,P]\noutput O, D, G\nGM[p] = X[m,p] :: max(m)\n"
        "N[m,p] = exp(X[m,p] - GM[p])\nS[p] = N[m,p]\nA[m,p] = N[m,p] / S[p]\n"
        "O[f,p] = A[m,p] * V[f,m]\nDA[m,p] = DO[f,p] * V[f,m]\nD[p] = DA[m,p] * A[m,p]\n"
        "G[m,p] = A[m,p] * (DA[m,p] - D[p])"
    )
    found = derive(parse(text), "M")
    rules = {"".join(step.rule for step in d.steps): d for d in found}
    assert "A" in rules and "ATL" in {r.replace("D", "") for r in rules}
    explanation = rules["A"].steps[0].explanation
    assert explanation == "D sums over M first, which is O"
    assert "D[p] = DO[f,p] * O[f,p]" in rules["A"].text
    assert min(d.passes for d in found if d.stable) == 2


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (["Q"], "Q is an input of attention/3-pass: it need not be saved"),
        (["AX"], "attention/3-pass has no tensor AX; "),
        (["GM", "GM"], "expected names of tensors to save, each once"),
    ],
)
def test_what_cannot_be_saved_is_refused(saved: list[str], message: str) -> None:
    with pytest.raises(EinfuseError, match=message):
        gradient(load("attention/3-pass"), ["Q"], saved=saved)


def test_selections_cannot_be_saved_alone() -> None:
    cascade = parse(
        "rank M, T\ninput X[M]\noutput Y\n(V[t], I[t]) = X[m] :: topk(m -> t)\nY[] = V[t]"
    )
    with pytest.raises(EinfuseError, match="V is selected with its coordinates"):
        gradient(cascade, ["X"], saved=["V"])


def test_what_the_gradient_does_not_read_is_no_input_of_it() -> None:
    backward = gradient(load("attention/3-pass"), ["V"], saved=["AV", "GM", "SD", "A"])
    assert backward.inputs == ("dAV", "A")
