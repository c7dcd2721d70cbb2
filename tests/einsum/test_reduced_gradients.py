"""Rules Z and A on the gradient of every cascade of the library."""

from __future__ import annotations

import numpy as np
import pytest

from einfuse.einsum import EinfuseError, bind, load, names, run
from einfuse.einsum.derivation.dataflow import Dataflow
from einfuse.einsum.derivation.reassociation import reassociate
from einfuse.einsum.derivation.vanishing import vanish
from einfuse.einsum.gradient.gradient import gradient
from einfuse.einsum.language.expression import accesses
from einfuse.einsum.language.shape import representatives, tensor_shape

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", names())
def test_the_reduced_gradient_is_the_gradient(name: str) -> None:
    cascade = load(name)
    roots = representatives(cascade)
    wholes = {roots[split.whole] for split in cascade.splits}
    fixed = {roots[rank.name] for rank in cascade.ranks if isinstance(rank.size, int)}
    free = [r for r in dict.fromkeys(roots.values()) if r not in wholes | fixed]
    sizes = {"E": 4, "F": 2, "P": 4, "M": 4}
    shape: dict[str, int] = {}
    for extra in (2, 4, 7):
        try:
            shape = bind(cascade, {rank: sizes.get(rank, extra) for rank in free})
            break
        except EinfuseError:
            continue
    loops = {iteration.rank: shape[iteration.rank] for iteration in cascade.iterations}
    indexing = {
        inner.tensor
        for einsum in cascade.einsums
        for operand in einsum.operands
        for index in operand.indices
        for inner in accesses(index)
    }
    rng = np.random.default_rng(1)
    inputs = {
        t.name: np.ones(tensor_shape(cascade, t.name, shape))
        if t.name in indexing
        else rng.standard_normal(tensor_shape(cascade, t.name, shape))
        for t in cascade.input_tensors
    }
    wanted = []
    for tensor in (t for t in inputs if t not in indexing):
        try:
            gradient(cascade, [tensor], loops)
            wanted.append(tensor)
        except EinfuseError:
            continue
    backward = gradient(cascade, wanted, loops)
    inputs |= {
        f"d{output}": rng.standard_normal(tensor_shape(cascade, output, shape))
        for output in cascade.outputs
    }
    reduced = []
    found = vanish(backward)
    base = backward
    if found is not None:
        base = found[0]
        reduced.append(base)
    for rank in base.rank_names:
        read_off = reassociate(Dataflow(base, rank.lower()))
        reduced += [] if read_off is None else [read_off.cascade]
    given = {n: a for n, a in inputs.items() if n in backward.inputs}
    expected = run(backward, given, {r: n for r, n in shape.items() if r in backward.rank_names})
    for other in reduced:
        own = {n: a for n, a in inputs.items() if n in other.inputs}
        result = run(other, own, {r: n for r, n in shape.items() if r in other.rank_names})
        for output, value in expected.items():
            scale = max(1.0, float(np.abs(value).max(initial=0.0)))
            np.testing.assert_allclose(result[output], value, rtol=0, atol=1e-12 * scale)
