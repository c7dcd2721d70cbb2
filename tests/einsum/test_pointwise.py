"""The fast path against the point-by-point interpreter, and the interpreter against hand values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from einfuse.einsum.execution.pointwise import run_pointwise
from einfuse.einsum.execution.run import run
from einfuse.einsum.execution.sampling import draw_inputs, shrunk
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.printer import render
from einfuse.einsum.library.cascades import load, names
from einfuse.einsum.testing import cascades, shapes


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_cascades_run_as_their_points_say(data: Any) -> None:
    agrees(data)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_many_random_cascades_run_as_their_points_say(data: Any) -> None:
    agrees(data)


def agrees(data: Any) -> None:
    cascade = data.draw(cascades())
    sizes = data.draw(shapes(cascade))
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    inputs = {
        tensor.name: generator.uniform(-1, 1, tuple(sizes[r] for r in tensor.ranks))
        for tensor in cascade.input_tensors
    }
    slow = run_pointwise(cascade, inputs, sizes, all_tensors=True)
    every = run(cascade, inputs, sizes, all_tensors=True)
    few = run(cascade, inputs, sizes)
    assert set(every) == set(slow)
    for found in (every, few):
        for name, array in found.items():
            np.testing.assert_allclose(
                array, slow[name], rtol=1e-9, atol=1e-11, err_msg=f"{name} of\n{render(cascade)}"
            )


@pytest.mark.parametrize("name", names())
def test_every_cascade_of_the_library_runs_as_its_points_say(name: str) -> None:
    cascade = load(name)
    opened, tiny = shrunk(cascade, dict.fromkeys(cascade.rank_names, 100), 4)
    inputs = draw_inputs(opened, tiny, seed=3)
    slow = run_pointwise(opened, inputs, tiny, all_tensors=True)
    fast = run(opened, inputs, tiny, all_tensors=True)
    for tensor in slow:
        np.testing.assert_allclose(fast[tensor], slow[tensor], rtol=1e-10, atol=1e-12)


def test_a_hand_worked_fold() -> None:
    cascade = parse("rank M, P\ninput A[M,P]\noutput Y\nY[p] = A[m,p: m<p] * m :: max(m)")
    result = run_pointwise(cascade, {"A": [[1, 2, 3], [4, 5, -6]]}, {"M": 2, "P": 3})["Y"]
    assert result.tolist() == [-np.inf, 0, 0]  # nothing; 2*0; max(3*0, -6*1)


def test_an_index_outside_is_refused() -> None:
    cascade = parse("rank M, T\ninput V[M], I[T]\noutput Y\nY[t] = V[I[t]]")
    with pytest.raises(EinfuseError, match="index 0 of V is 5, of 3"):
        run_pointwise(cascade, {"V": [1, 2, 3], "I": [5]}, {"M": 3, "T": 1})
