"""Random cascades are valid, varied, and bound by random shapes."""

from __future__ import annotations

import subprocess
import sys
import warnings

from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from einfuse.einsum.analysis.operations import is_view
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.errors import CascadeWarning
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.printer import render
from einfuse.einsum.language.rules import validated
from einfuse.einsum.language.shape import bind, filters
from einfuse.einsum.testing import cascades, shapes


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_cascades_are_valid_and_bound(data: st.DataObject) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", CascadeWarning)
        cascade = data.draw(cascades())
    assert validated(cascade) == cascade
    shape = data.draw(shapes(cascade, max_size=3))
    assert bind(cascade, shape) == shape
    assert set(shape) == set(cascade.rank_names)


def example(wanted: object) -> Cascade:
    return find(
        cascades(),
        wanted,  # type: ignore[arg-type]
        settings=settings(
            max_examples=2000,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def any_einsum(test: object) -> object:
    return lambda cascade: any(test(einsum) for einsum in cascade.einsums)  # type: ignore[operator]


def test_random_cascades_have_every_feature() -> None:
    def joins(einsum: Einsum) -> bool:
        return is_view(einsum) and len(einsum.output.indices) < len(einsum.operands[0].indices)

    example(lambda cascade: bool(cascade.loop and cascade.splits))
    example(any_einsum(filters))
    example(any_einsum(joins))
    example(any_einsum(lambda e: e.actions and e.actions[0].operator == "max"))
    example(any_einsum(lambda e: "where" in render(parse_back(e))))


def parse_back(einsum: Einsum) -> Cascade:
    """Return a cascade that holds one Einsum alone, for its text."""
    return Cascade("one", init=(einsum,))


def test_features_can_be_left_out() -> None:
    plain = cascades(loops=False, splits=False, filters=False, max_einsums=2)

    @settings(max_examples=20, deadline=None)
    @given(plain)
    def check(cascade: Cascade) -> None:
        assert not cascade.loop and not cascade.splits and len(cascade.einsums) <= 2
        assert not any(filters(einsum) for einsum in cascade.einsums)

    check()


def test_shapes_never_leave_a_tensor() -> None:
    cascade = parse("rank M, P, N = P\nsplit M -> M1, M0\ninput A[M]\nY[n] = A[n+1]")

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(shapes(cascade, max_size=3))
    def check(shape: dict[str, int]) -> None:
        assert shape["N"] < shape["M"] == shape["M1"] * shape["M0"]

    check()


def test_the_package_works_without_hypothesis() -> None:
    program = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import einfuse.einsum.testing as t\n"
        "try:\n    t.cascades()\nexcept ImportError:\n    print('lazy')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "lazy\n", done.stderr
