"""One row adds a function: it runs, is derived, differentiated and imported."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

from einfuse.einsum import (
    Derived,
    EinfuseError,
    count_operations,
    derive,
    from_torch,
    parse,
    run,
)
from einfuse.einsum.derivation.dataflow import Dataflow
from einfuse.einsum.derivation.value_facts import degree, sign_of
from einfuse.einsum.gradient.gradient import gradient
from einfuse.einsum.language import functions
from einfuse.einsum.language.derivative import over, times, unary
from einfuse.einsum.language.expression import Call, Number
from einfuse.einsum.language.function_row import Sign, of_all, positive
from einfuse.einsum.language.function_table import FUNCTIONS
from einfuse.einsum.language.functions import function, function_names, register_function
from einfuse.einsum.language.intervals import intervals

HEAD = "rank M, P\ninput X[M], W[M,P]\noutput Y\n"
VALUES = {"X": np.array([0.3, -1.0, 2.0, 0.5]), "W": np.arange(8.0).reshape(4, 2) - 3}

pytestmark = [pytest.mark.usefixtures("registries"), pytest.mark.filterwarnings("ignore:input")]


@pytest.fixture
def registries() -> Iterator[None]:
    """Leave the functions as they were."""
    kept = dict(functions._FUNCTIONS)
    yield
    functions._FUNCTIONS.clear()
    functions._FUNCTIONS.update(kept)


def add_erfc() -> None:
    """Add ``erfc``: in (0, 2), falling, with the derivative ``-2/sqrt(pi) * exp(-x*x)``."""
    register_function(
        "erfc",
        np.vectorize(math.erfc, otypes=[float]),
        torch=lambda torch: torch.special.erfc,
        sign=positive,
        interval=lambda argument: (0.0, 2.0),
        derivative=unary(
            lambda x, y: times(
                Number(-2 / math.sqrt(math.pi)),
                Call("exp", (times(Number(-1), Call("sq", (x,))),)),
            )
        ),
        aten=("erfc", "special_erfc"),
    )


def add_cbrt() -> None:
    """Add the cube root, which algebra may open as a power."""
    register_function(
        "cbrt",
        np.cbrt,
        torch=lambda torch: lambda x: torch.sign(x) * torch.abs(x) ** (1 / 3),
        sign=of_all,
        power=Fraction(1, 3),
        increasing=True,
        derivative=unary(lambda x, y: over(Number(1 / 3), Call("sq", (y,)))),
    )


def test_a_new_row_runs_and_is_costed() -> None:
    add_erfc()
    found = run(parse(HEAD + "Y[] = erfc(X[m]) :: +(m)"), VALUES)
    expected = sum(math.erfc(x) for x in VALUES["X"])
    assert math.isclose(float(found["Y"]), expected, rel_tol=1e-14)
    assert count_operations(parse(HEAD + "Y[m] = erfc(X[m])"))["Y"].keys() == {"erfc"}


def test_a_rewrite_may_use_the_sign_of_a_new_row() -> None:
    """A positive factor leaves a maximum: one pass, where an unknown sign needs two."""
    text = HEAD + "S[p] = erfc(W[m,p]) :: +(m)\nY[p] = W[m,p] / S[p] :: max(m)"
    register_function("erfc", np.vectorize(math.erfc, otypes=[float]))
    assert min(_passes(derive(parse(text)))) == 2
    add_erfc()
    one = min(derive(parse(text)), key=lambda found: found.passes)
    assert one.passes == 1
    sums = np.vectorize(math.erfc)(VALUES["W"]).sum(axis=0)
    expected = VALUES["W"].max(axis=0) / sums
    for cascade in (parse(text), one.cascade):
        np.testing.assert_allclose(run(cascade, VALUES)["Y"], expected, rtol=1e-12)


def test_a_new_row_says_how_values_grow() -> None:
    add_cbrt()
    flow = Dataflow(parse(HEAD + "S[] = sq(X[m]) :: +(m)\nY[] = cbrt(S[])"), "m")
    assert degree(flow, flow.producer["Y"].output) == Fraction(1, 3)
    assert sign_of(flow.producer["Y"].output, flow) is Sign.NOT_NEGATIVE


def test_a_new_row_bounds_what_follows() -> None:
    add_erfc()
    assert intervals(parse(HEAD + "Y[m] = 3 - erfc(X[m])"))["Y"] == (1.0, 3.0)


def test_a_new_row_is_differentiated() -> None:
    add_erfc()
    cascade = parse(HEAD + "Y[p] = erfc(X[m] * W[m,p]) :: +(m)")
    back = gradient(cascade, ["X", "W"])
    upstream = np.array([0.7, -1.3])
    found = run(back, {**VALUES, "dY": upstream})
    x, w = VALUES["X"][:, None], VALUES["W"]
    slope = -2 / math.sqrt(math.pi) * np.exp(-((x * w) ** 2))
    np.testing.assert_allclose(found["dX"], (slope * w * upstream).sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found["dW"], slope * x * upstream, rtol=1e-12)


def test_a_new_row_is_imported_from_pytorch() -> None:
    torch = pytest.importorskip("torch")

    def tail(x: object, w: object) -> object:
        return torch.special.erfc(x[:, None] * w).sum(0)  # type: ignore[index]

    x, w = (torch.tensor(VALUES[name]) for name in "XW")
    with pytest.raises(EinfuseError, match="erfc"):
        from_torch(tail, x, w)
    add_erfc()
    cascade = from_torch(tail, x, w)
    found = run(cascade, {"X": VALUES["X"], "W": VALUES["W"]})
    np.testing.assert_allclose(found[cascade.outputs[0]], tail(x, w).numpy(), rtol=1e-12)


@pytest.mark.parametrize("row", FUNCTIONS, ids=lambda row: row.name)
def test_what_a_row_says_holds_at_points(row: functions.Function) -> None:
    """Signs, powers, intervals and monotony against the NumPy meaning."""
    if row.arity != 1:
        pytest.skip("of one argument")
    points = np.array([-2.7, -1.0, -0.4, 0.0, 0.2, 1.0, 3.3])
    with np.errstate(all="ignore"):
        values = np.asarray(row.numpy(points), dtype=float)
        scaled = np.asarray(row.numpy(2.5 * points), dtype=float)
    fine = np.isfinite(values)
    for argument, allowed in ((Sign.UNKNOWN, points == points), (Sign.POSITIVE, points > 0)):
        sign = row.sign(argument)
        assert (values[allowed & fine] >= (0 if sign else -math.inf)).all()
        assert sign is not Sign.POSITIVE or (values[allowed & fine] > 0).all()
    if row.power:
        expected = 2.5 ** float(row.power) * values[fine]
        np.testing.assert_allclose(scaled[fine], expected, rtol=1e-12)
    if row.increasing:
        assert (np.diff(values[fine]) > 0).all()
    if row.interval is not None:
        for low in range(len(points)):
            for high in range(low, len(points)):
                least, most = row.interval((points[low], points[high]))
                inside = values[low : high + 1][fine[low : high + 1]]
                assert (inside >= least - 1e-12).all() and (inside <= most + 1e-12).all()
    if row.base is not None:
        np.testing.assert_allclose(values, row.base**points, rtol=1e-12)


def test_no_module_lists_functions_besides_the_table() -> None:
    assert function_names() == tuple(row.name for row in FUNCTIONS)
    assert all(function(row.name) is row for row in FUNCTIONS)


def _passes(derived: tuple[Derived, ...]) -> list[float]:
    return [float(one.passes) for one in derived]
