"""Functions, monoids and coordinate operators: NumPy and PyTorch mean the same."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from einfuse.einsum.analysis.operations import count_operations
from einfuse.einsum.language import functions
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.functions import (
    coordinate_operator,
    function,
    function_names,
    monoid,
    monoid_names,
    register_coordinate,
    register_function,
    register_monoid,
)
from einfuse.einsum.language.parser import parse

# The list of the language page.
LANGUAGE = [
    "exp", "exp2", "log", "log2", "sqrt", "rsqrt", "sq", "abs", "sigmoid", "tanh", "relu", "silu",
    "gelu", "elu1", "softplus", "sin", "cos", "sign", "clamp", "floor", "max", "min", "ge", "gt",
    "le", "lt", "where",
]  # fmt: skip

# Python's own mathematics, one value at a time.
REFERENCE = {
    "exp": math.exp,
    "exp2": lambda x: 2.0**x,
    "log": math.log,
    "log2": math.log2,
    "sqrt": math.sqrt,
    "rsqrt": lambda x: 1 / math.sqrt(x),
    "sq": lambda x: x * x,
    "abs": abs,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2)),
    "elu1": lambda x: x + 1 if x > 0 else math.exp(x),
    "softplus": lambda x: math.log1p(math.exp(x)),
    "sin": math.sin,
    "cos": math.cos,
    "sign": lambda x: math.copysign(1.0, x) if x else 0.0,
    "floor": math.floor,
    "clamp": lambda x, low, high: min(max(x, low), high),
    "max": max,
    "min": min,
    "ge": lambda x, y: float(x >= y),
    "gt": lambda x, y: float(x > y),
    "le": lambda x, y: float(x <= y),
    "lt": lambda x, y: float(x < y),
    "where": lambda c, x, y: x if c != 0 else y,
}
POSITIVE = {"log", "log2", "sqrt", "rsqrt"}


@pytest.fixture
def registries() -> Iterator[None]:
    """Leave the registries as they were."""
    names = ("_FUNCTIONS", "_MONOIDS", "_COORDINATES")
    kept = {name: dict(getattr(functions, name)) for name in names}
    yield
    for name, entries in kept.items():
        getattr(functions, name).clear()
        getattr(functions, name).update(entries)


def arguments(name: str) -> list[np.ndarray]:
    values = np.array([-3.5, -1.0, -0.25, 0.0, 0.5, 1.0, 2.75])
    if name in POSITIVE:
        values = np.abs(values) + 0.5
    if name == "clamp":
        return [values, np.full(7, -1.0), np.full(7, 0.75)]
    arity = function(name).arity or 2
    return [np.roll(values, shift) for shift in range(arity)]


def test_every_function_of_the_language_is_there() -> None:
    assert set(LANGUAGE) == set(function_names()) == set(REFERENCE)


@pytest.mark.parametrize("name", LANGUAGE)
def test_numpy_and_torch_agree_with_the_mathematics(name: str) -> None:
    values = arguments(name)
    expected = [
        REFERENCE[name](*point) for point in zip(*(v.tolist() for v in values), strict=True)
    ]
    found = function(name).numpy(*values)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
    torch = pytest.importorskip("torch")
    there = function(name).torch(*(torch.from_numpy(v) for v in values))
    np.testing.assert_allclose(there.numpy(), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "limit"),
    [("exp", 0.0), ("sigmoid", 0.0), ("silu", 0.0), ("gelu", 0.0), ("elu1", 0.0),
     ("softplus", 0.0), ("relu", 0.0), ("tanh", -1.0)],
)  # fmt: skip
def test_a_masked_value_meets_the_limit_and_never_nan(name: str, limit: float) -> None:
    with np.errstate(all="raise"):
        assert function(name).numpy(np.array([-np.inf]))[0] == limit
    torch = pytest.importorskip("torch")
    assert function(name).torch(torch.tensor([-math.inf]))[0].item() == limit


@pytest.mark.parametrize("name", [n for n in LANGUAGE if function(n).arity == 1])
def test_nan_is_passed_through_alike(name: str) -> None:
    with np.errstate(invalid="ignore"):
        assert np.isnan(function(name).numpy(np.array([np.nan]))[0])
    torch = pytest.importorskip("torch")
    assert math.isnan(function(name).torch(torch.tensor([math.nan]))[0].item())


@pytest.mark.parametrize("name", ["sigmoid", "silu", "softplus", "elu1", "gelu"])
def test_large_values_do_not_overflow(name: str) -> None:
    with np.errstate(over="raise", invalid="raise"):
        assert np.isfinite(function(name).numpy(np.array([-1e4, 1e4]))).all()


def test_single_precision_stays_single() -> None:
    x = np.array([0.5], np.float32)
    for name in ("exp", "sigmoid", "relu", "elu1", "silu", "softplus"):
        assert function(name).numpy(x).dtype == np.float32, name
    assert function("ge").numpy(x, x).dtype == np.float32


def test_torch_functions_take_plain_numbers_beside_tensors() -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor([-1.0, 2.0], dtype=torch.float16)
    found = function("where").torch(function("ge").torch(x, 0), x, -math.inf)
    assert found.dtype == torch.float16
    assert found.tolist() == [-math.inf, 2.0]
    assert function("max").torch(x, 0, 1.5).tolist() == [1.5, 2.0]


def test_arity_is_checked_by_count() -> None:
    assert function("exp").accepts(1) and not function("exp").accepts(2)
    assert function("max").accepts(2) and function("max").accepts(5)
    assert not function("max").accepts(1)


@pytest.mark.parametrize("name", ["+", "*", "max", "min", "any", "all"])
def test_folds_agree_and_the_fold_of_nothing_is_the_identity(name: str) -> None:
    fold = monoid(name)
    values = np.array([[[1.0, 0.0], [2.0, -3.0]], [[0.5, 4.0], [1.5, 0.0]]])
    step = {
        "+": lambda a, b: a + b,
        "*": lambda a, b: a * b,
        "max": max,
        "min": min,
        "any": lambda a, b: float(bool(a or b)),
        "all": lambda a, b: float(bool(a and b)),
    }[name]
    expected = []
    for k in range(2):
        total = fold.identity
        for i in range(2):
            for j in range(2):
                total = step(total, values[i, k, j])
        expected.append(total)
    np.testing.assert_allclose(fold.fold(values, (0, 2)), expected)
    assert fold.fold(np.empty((3, 0)), (1,)).tolist() == [fold.identity] * 3
    assert float(fold.combine(fold.identity, 1.0)) == 1.0
    torch = pytest.importorskip("torch")
    np.testing.assert_allclose(fold.torch(torch.from_numpy(values), (0, 2)).numpy(), expected)


def test_topk_takes_the_best_first_and_the_earlier_of_equals() -> None:
    values = np.array([[1.0, 5.0, 5.0, 2.0], [-1.0, -np.inf, -3.0, -2.0]])
    top, places = coordinate_operator("topk").numpy(values, 3, 1)
    assert top.tolist() == [[5.0, 5.0, 2.0], [-1.0, -2.0, -3.0]]
    assert places.tolist() == [[1, 2, 3], [0, 3, 2]]
    low, places = coordinate_operator("bottomk").numpy(values, 1, 1)
    assert (low.tolist(), places.tolist()) == ([[1.0], [-np.inf]], [[0], [1]])
    torch = pytest.importorskip("torch")
    there, where = coordinate_operator("topk").torch(torch.from_numpy(values), 3, 1)
    assert (there.tolist(), where.tolist()) == (top.tolist(), [[1, 2, 3], [0, 3, 2]])


def test_more_coordinates_than_there_are_is_refused() -> None:
    with pytest.raises(EinfuseError, match="cannot select 4 of 3"):
        coordinate_operator("topk").numpy(np.zeros(3), 4, 0)


@pytest.mark.usefixtures("registries")
def test_users_add_functions_with_a_class_of_their_own() -> None:
    register_function(
        "mish",
        lambda x: x * np.tanh(np.logaddexp(x, 0)),
        torch=lambda torch: torch.nn.functional.mish,
    )
    cascade = parse("rank M\ninput A[M]\nY[m] = mish(A[m])")
    assert list(count_operations(cascade)["Y"]) == ["mish"]
    assert function("mish").numpy(0.0) == 0.0


@pytest.mark.usefixtures("registries")
def test_users_add_monoids_that_fold_by_their_operator() -> None:
    register_monoid("logsum", np.logaddexp, -math.inf, operation="exp")
    parse("rank M\ninput A[M]\nY[] = A[m] :: logsum(m)")
    values = np.log(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    np.testing.assert_allclose(monoid("logsum").fold(values, (0, 1)), np.log(21))
    np.testing.assert_allclose(monoid("logsum").fold(values, (-1,)), np.log([6, 15]))
    with pytest.raises(EinfuseError, match="monoid logsum has no PyTorch meaning"):
        _ = monoid("logsum").torch


@pytest.mark.usefixtures("registries")
def test_users_add_coordinate_operators() -> None:
    register_coordinate("first", lambda v, k, axis: (v[:k], np.arange(k)))
    parse("rank M, T\ninput A[M]\nY[t] = A[m] :: first(m -> t)")


@pytest.mark.parametrize("register", [register_function, register_coordinate])
def test_a_name_that_no_text_could_spell_is_refused(register: object) -> None:
    with pytest.raises(EinfuseError, match="has letters, digits and '_', found 'a b'"):
        register("a b", lambda *x: x)  # type: ignore[operator]


def test_unknown_names_list_the_closest() -> None:
    with pytest.raises(EinfuseError, match=r"unknown function 'sigmoyd'; did you mean 'sigmoid'\?"):
        function("sigmoyd")
    with pytest.raises(EinfuseError, match=r"there is .*all, any, max, min"):
        monoid("zzz")
    assert "max" in monoid_names()
