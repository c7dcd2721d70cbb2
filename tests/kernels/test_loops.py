"""The loop models that are shipped."""

from __future__ import annotations

import pytest

from einfuse.kernels.compiled.loops import loop_models, unmodelled_functions


def test_every_loop_names_einsums_of_its_cascade() -> None:
    for loop in loop_models():
        if loop.cascade is not None:
            names = {einsum.name for einsum in loop.cascade.einsums}
            assert set(loop.einsums) <= names, loop.function


def test_no_function_is_both_modelled_and_not() -> None:
    assert not {loop.function for loop in loop_models()} & set(unmodelled_functions())


def test_every_difference_from_the_cascade_is_explained() -> None:
    notes = [extra.note for loop in loop_models() for extra in loop.extras]
    assert notes
    assert all(notes)
    assert all(unmodelled_functions().values())


@pytest.mark.parametrize(("specialize", "count"), [(True, 1), (False, 1), (None, 0)])
def test_constants_select_a_model(specialize: bool | None, count: int) -> None:
    function = "one_pass_hopper.forward_kernel"
    found = [m for m in loop_models() if m.serves(function, {"specialize": specialize})]
    assert len(found) == count


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_data_type_selects_a_model(dtype: str) -> None:
    """A state that float16 has to hold is scaled; the other types need no scale."""
    (found,) = (m for m in loop_models() if m.serves("chunks.gradient_kernel", {"dtype": dtype}))
    assert ("FMNMX" in found.ignored) == (dtype == "float16")
