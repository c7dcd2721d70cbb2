"""Loops written out compute what the loops do."""

from __future__ import annotations

import numpy as np
import pytest

from einfuse.einsum import Cascade, CascadeError, EinfuseError, bind, load, names, parse, run
from einfuse.einsum.derivation.unroll import unroll
from einfuse.einsum.language.expression import accesses
from einfuse.einsum.language.shape import representatives, tensor_shape

LOOPS = [name for name in names() if load(name).loop]


def _shape(cascade: Cascade) -> dict[str, int]:
    roots = representatives(cascade)
    fixed = {roots[rank.name] for rank in cascade.ranks if isinstance(rank.size, int)}
    fixed |= {roots[split.whole] for split in cascade.splits}
    free = [r for r in dict.fromkeys(roots.values()) if r not in fixed]
    sizes = {"E": 4, "F": 2, "P": 4, "M": 4}
    for extra in (2, 4, 7):
        try:
            return bind(cascade, {rank: sizes.get(rank, extra) for rank in free})
        except EinfuseError:
            continue
    pytest.skip(f"no small shape of {cascade.name} found")


@pytest.mark.parametrize("name", LOOPS)
def test_every_loop_of_the_library_is_unrolled_to_an_equal_cascade(name: str) -> None:
    cascade = load(name)
    shape = _shape(cascade)
    rng = np.random.default_rng(2)
    inner = {
        found.tensor
        for einsum in cascade.einsums
        for operand in einsum.operands
        for index in operand.indices
        for found in accesses(index)
    }
    inputs = {
        t.name: np.ones(tensor_shape(cascade, t.name, shape))
        if t.name in inner
        else rng.standard_normal(tensor_shape(cascade, t.name, shape))
        for t in cascade.input_tensors
    }
    straight = unroll(cascade, shape)
    assert not straight.loop and not straight.iterations
    expected, found = run(cascade, inputs, shape), run(straight, inputs, shape)
    for output in cascade.outputs:
        np.testing.assert_allclose(found[output], expected[output], rtol=1e-12, atol=1e-14)


def test_all_generations_of_an_output_are_put_side_by_side() -> None:
    text = "rank N = 3, P\niter n over N\ninput A[N,P], B[N]\noutput Y, Z\ninit:\nS[0,p] = 1\n"
    text += "loop:\nS[n+1,p] = S[n,p] * A[n,p]\nY[n,p] = S[n+1,p] + n\nZ[n] = B[n] * B[n]"
    inputs = {"A": np.arange(6.0).reshape(3, 2), "B": np.array([1.0, 2.0, 3.0])}
    expected, found = run(parse(text), inputs), run(unroll(parse(text)), inputs)
    for name in ("Y", "Z"):
        np.testing.assert_array_equal(found[name], expected[name])
    with pytest.raises(CascadeError, match="output S has one generation more than its rank"):
        unroll(parse(text.replace("output Y, Z", "output Y, Z, S")))


def test_a_cascade_without_a_loop_stays_as_it_is() -> None:
    cascade = load("attention/3-pass")
    assert unroll(cascade) is cascade


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rank N\niter n over N\ninput A[N]\ninit:\nS[0] = 0\nloop:\nS[n+1] = S[n] + A[n]",
         r"2:1: unrolling needs the size of rank N: give --shape N="),
        ("rank N = 4\niter n over N\ninput A[N]\ninit:\nS[0] = 0\nloop:\nS[n+1] = S[n] + A[n]\n"
         "stop S[n+1]>2\nfinal:\nY[] = S[N]", "a loop with a stop"),
        ("rank N = 4, K = N\niter n over N\ninput A[N]\nloop:\nS[n] = A[n]\nT[n] = S[k: k<=n]",
         "S is read at other than one generation"),
    ],
)  # fmt: skip
def test_what_cannot_be_unrolled_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(CascadeError, match=message):
        unroll(parse(text))
