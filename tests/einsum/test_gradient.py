"""Gradients against PyTorch's autograd through the same cascade."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from einfuse.einsum import (
    Cascade,
    EinfuseError,
    bind,
    count_passes,
    load,
    names,
    parse,
    register_function,
    render,
    run,
)
from einfuse.einsum.execution.run import bound_sizes
from einfuse.einsum.gradient.gradient import gradient
from einfuse.einsum.language.expression import Expression, accesses
from einfuse.einsum.language.functions import register_derivative
from einfuse.einsum.language.shape import representatives, tensor_shape


def _check(
    cascade: Cascade,
    inputs: dict[str, np.ndarray],
    wanted: list[str],
    shape: dict[str, int] | None = None,
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    sizes = bound_sizes(cascade, {n: a.shape for n, a in inputs.items()}, shape or {})
    loops = {iteration.rank: sizes[iteration.rank] for iteration in cascade.iterations}
    derived = gradient(cascade, wanted, loops)
    seeds = {
        f"d{name}": rng.standard_normal(tensor_shape(cascade, name, sizes))
        for name in cascade.outputs
    }
    given = {n: a for n, a in {**inputs, **seeds}.items() if n in derived.inputs}
    found = run(derived, given, {r: n for r, n in sizes.items() if r in derived.rank_names})
    tensors = {n: torch.tensor(a, dtype=torch.float64) for n, a in inputs.items()}
    for name in wanted:
        tensors[name].requires_grad_()
    outputs = run(cascade, tensors, shape, backend="torch")
    total = sum((outputs[n] * torch.tensor(seeds[f"d{n}"])).sum() for n in cascade.outputs)
    total.backward()
    for name, output in zip(wanted, derived.outputs, strict=True):
        expected = tensors[name].grad
        expected = np.zeros_like(inputs[name]) if expected is None else expected.numpy()
        np.testing.assert_allclose(found[output], expected, rtol=1e-8, atol=1e-8, err_msg=name)
    return found


def _random(cascade: Cascade, shape: dict[str, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    sizes = bind(cascade, shape)
    return {
        t.name: rng.standard_normal(tensor_shape(cascade, t.name, sizes))
        for t in cascade.input_tensors
    }


FUNCTIONS = ["exp", "exp2", "log", "log2", "sqrt", "rsqrt", "sq", "abs", "sigmoid", "tanh", "relu"]
FUNCTIONS += ["silu", "gelu", "elu1", "softplus", "sin", "cos", "sign", "floor"]

FORMS = [
    "A[m,p] * B[m]",
    "A[m,p] * B[m] * B[m]",
    "A[m,p] + B[m]",
    "A[m,p] - B[m] * B[m]",
    "-A[m,p] / (2 + sq(B[m]))",
    "exp(A[m,p] - B[m])",
    "max(A[m,p], B[m])",
    "exp(max(A[m,p], B[m], 0.1))",
    "min(A[m,p], B[m]) * B[m]",
    "where(gt(A[m,p], B[m]), A[m,p] * B[m], exp(B[m]))",
    "clamp(A[m,p], -0.5, 0.5) * B[m]",
    "A[m: m<=p,p] * B[m]",
    "A[m,p] + B[m: m<p]",
    "A[m: m<=p,p] + B[m: m>p]",
    "B[m] + p * A[m,p]",
    "A[m,p] * M / (P + m) + B[m]",
]
FOLDS = ["Y[p] = {f}", "Y[m,p] = {f}", "Y[p] = {f} :: max(m)", "Y[] = {f} :: min(m); +(p)",
         "Y[m] = {f} :: +(p)", "Y[] = {f} :: +(p); max(m)"]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fold", FOLDS)
def test_expressions_and_folds_agree_with_autograd(form: str, fold: str) -> None:
    cascade = parse(f"rank M, P\ninput A[M,P], B[M]\n{fold.format(f=form)}")
    _check(cascade, _random(cascade, {"M": 4, "P": 3}), ["A", "B"])


@pytest.mark.parametrize(
    "function",
    FUNCTIONS,
)
def test_every_function_agrees_with_autograd(function: str) -> None:
    cascade = parse(f"rank M\ninput A[M]\nY[m] = {function}(A[m])")
    points = np.array([0.3, 0.7, 1.9, 4.0])
    if function not in ("log", "log2", "sqrt", "rsqrt"):
        points = np.array([-4.2, -0.6, 0.0, 0.7, 2.5])
    if function in ("abs", "relu", "gelu", "silu"):
        points[2] = 0.0
    _check(cascade, {"A": points}, ["A"])


INDEXED = [
    ("rank M, P\ninput A[M,P]\nY[p,m] = A[M-1-m,p]", {"M": 4, "P": 3}),
    ("rank N, Q, S\ninput A[N], F[S]\nY[q] = A[q+s] * F[s]", {"N": 6, "Q": 4, "S": 3}),
    ("rank N, Q, S\ninput A[N], F[S]\nY[q] = A[2*q+s] * F[s]", {"N": 9, "Q": 4, "S": 3}),
    ("rank M, P = M\ninput A[M,P]\nY[m] = A[m,m]", {"M": 4}),
    ("rank M, P = M\ninput A[M]\nY[m,p] = A[m] * A[p]", {"M": 4}),
    ("rank M\ninput A[M]\nY[m] = A[m] * A[0]", {"M": 4}),
    ("rank M\ninput A[M]\nY[m] = A[m] * A[m-1: m>=1]", {"M": 4}),
    ("split M -> M1, M0\ninput A[M]\nB[m1,m0] = A[m1*M0+m0]\nY[m1] = B[m1,m0] :: max(m0)",
     {"M1": 3, "M0": 2}),
    ("split M -> M1, M0\ninput A[M1,M0]\nB[m1*M0+m0] = A[m1,m0]\nY[m] = exp(B[m]) * B[m]",
     {"M1": 3, "M0": 2}),
    ("split M -> M1, M0\ninput A[M]\nY[m1*M0+m0] = exp(A[m1*M0+m0])", {"M1": 3, "M0": 2}),
    ("rank M, H, G = 2\ninput A[H,M], B[M]\nY[m] = A[m/G,m] * B[m]", {"M": 4, "H": 2}),
    ("rank M, P, T\ninput A[M,P]\n(V[t,p], I[t,p]) = A[m,p] * A[m,p] :: topk(m -> t)\n"
     "output Y\nY[p] = V[t,p] * A[I[t,p],p]", {"M": 5, "P": 3, "T": 2}),
    ("rank M, P, T\ninput A[M,P]\nY[t,p] = A[m,p] :: bottomk(m -> t)", {"M": 5, "P": 3, "T": 2}),
    ("rank M, P\ninput A[M], B[P]\nY[] = A[m: m<=p]", {"M": 4, "P": 3}),
    ("rank M, P\ninput A[M,P], B[M]\nY[p] = A[m: m<=p,p] + B[m] :: max(m) @ inter",
     {"M": 4, "P": 3}),
    ("rank M, P\ninput A[M,P], B[M]\nY[m] = A[m: m<=p,p] + B[m] @ inter", {"M": 4, "P": 3}),
    ("rank M, P\ninput A[]\nY[m,p] = A[] * 2", {"M": 4, "P": 3}),
    ("rank M, P\ninput A[M]\nY[p,m] = A[m]", {"M": 4, "P": 3}),
    ("rank M, P\ninput A[M], B[P]\nG[] = B[p] :: max(p)\nY[m] = A[m: m<2] * G[]",
     {"M": 4, "P": 3}),
    ("rank M\ninput A[M], B[M]\nY[m] = A[m: m<2] * min(B[m], 0.5)", {"M": 4}),
    ("rank M\ninput A[M]\nY[m] = A[m-1: m>=1] * elu1(A[m: m>=1])", {"M": 4}),
    ("rank M\ninput A[M], B[M]\noutput Y, Z\nY[m] = A[m] * B[m]\nZ[m] = exp(Y[m])", {"M": 4}),
    ("rank M\ninput A[M]\noutput Y\nZ[m] = A[m] * A[m]\nY[m] = Z[m] + Z[M-1-m] + Z[m]", {"M": 4}),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::einfuse.einsum.CascadeWarning")
@pytest.mark.parametrize(("text", "shape"), INDEXED)
def test_views_gathers_and_filters_agree_with_autograd(text: str, shape: dict[str, int]) -> None:
    cascade = parse(text)
    _check(cascade, _random(cascade, shape), ["A"], shape)


def test_a_gather_by_an_input_agrees_with_autograd() -> None:
    cascade = parse("rank M, P, T\ninput A[M,P], I[T]\nY[t,p] = A[I[t],p] * A[0,p]")
    inputs = {"A": np.arange(12.0).reshape(4, 3), "I": np.array([3, 1, 3, 0, 1])}
    _check(cascade, inputs, ["A"])


def test_ties_share_a_maximum_evenly_as_amax_does() -> None:
    cascade = parse("rank M, P\ninput A[M,P]\nY[p] = A[m,p] :: max(m)")
    a = np.array([[1.0, 2.0], [1.0, 5.0], [0.0, 5.0], [1.0, 5.0]])
    found = _check(cascade, {"A": a}, ["A"])["dA"]
    np.testing.assert_allclose(found[:, 0] / found[0, 0], [1, 1, 0, 1])


def test_the_gradient_of_nothing_attended_is_zero() -> None:
    cascade = parse(
        "rank E, F, P, M\ninput Q[E,P], K[E,M], V[F,M]\noutput AV\n"
        "QK[m,p] = Q[e,p] * K[e, m: m<p]\nGM[p] = QK[m,p] :: max(m)\n"
        "SN[m,p] = exp(QK[m,p] - GM[p])\nSD[p] = SN[m,p]\nNV[f,p] = SN[m,p] * V[f,m]\n"
        "AV[f,p] = NV[f,p] / SD[p]"
    )
    inputs = _random(cascade, {"E": 3, "F": 2, "P": 4, "M": 4})
    found = _check(cascade, inputs, ["Q", "K", "V"])
    assert not found["dQ"][:, 0].any() and found["dQ"][:, 2].any()


def test_the_backward_of_attention_is_flash_attentions() -> None:
    """dAV . AV over f, divided by the denominator, is FlashAttention-2's D (algorithm 2)."""
    lines = render(gradient(load("attention/3-pass-deferred"), ["Q", "K", "V"])).splitlines()
    assert "dSD[p] = -(dAV[f,p] * AV[f,p] / SD[p])" in lines
    assert "dV[f,m] = dSNV[f,p] * SN[m,p]" in lines


def test_the_passes_of_a_gradient_are_counted() -> None:
    backward = gradient(load("attention/3-pass-deferred"), ["Q", "K", "V"])
    assert count_passes(backward, "M").passes >= count_passes(load("attention/3-pass"), "M").passes


@pytest.mark.parametrize("name", names())
def test_every_cascade_of_the_library_agrees_with_autograd(name: str) -> None:
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
    assert shape, f"no small shape of {name} found"
    indexing = {
        inner.tensor
        for einsum in cascade.einsums
        for operand in einsum.operands
        for index in operand.indices
        for inner in accesses(index)
    }
    inputs = _random(cascade, shape)
    inputs |= {n: np.ones_like(a) for n, a in inputs.items() if n in indexing}
    wanted = [n for n in inputs if n not in indexing and _reaches(cascade, n, shape)]
    assert wanted
    _check(cascade, inputs, wanted, shape)


@pytest.mark.slow
def test_inputs_without_a_gradient_are_coordinates_and_what_selects(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Lists, over the library, what has no gradient, and why."""
    excluded: dict[str, str] = {}
    total = 0
    for name in names():
        cascade = load(name)
        total += len(cascade.inputs)
        indexing = {
            inner.tensor
            for einsum in cascade.einsums
            for operand in einsum.operands
            for index in operand.indices
            for inner in accesses(index)
        }
        loops = {iteration.rank: 2 for iteration in cascade.iterations}
        for tensor in cascade.inputs:
            if tensor in indexing:
                excluded[f"{name} {tensor}"] = "it is a coordinate, or bounds one"
                continue
            try:
                gradient(cascade, [tensor], loops)
            except EinfuseError as error:
                excluded[f"{name} {tensor}"] = str(error).split(": ")[-1]
    with capsys.disabled():
        print(f"\n{total - len(excluded)} of {total} inputs of the library have a gradient; not:")
        print(*(f"  {what}: {why}" for what, why in excluded.items()), sep="\n")
    allowed = {"it is a coordinate, or bounds one"}
    allowed |= {"outputs depend on it through indices, filters and selections only"}
    assert set(excluded.values()) == allowed
    assert "attention/varlen LEN" in excluded and "attention/routing MU" in excluded
    assert len(excluded) < total / 20


def _reaches(cascade: Cascade, name: str, shape: dict[str, int]) -> bool:
    """Tell whether there is a gradient: selections by rank have none."""
    loops = {iteration.rank: shape[iteration.rank] for iteration in cascade.iterations}
    try:
        gradient(cascade, [name], loops)
    except EinfuseError as error:
        assert f"no gradient by {name}: outputs depend on it through indices" in str(error)
        return False
    return True


def test_a_loop_of_open_size_asks_for_it() -> None:
    with pytest.raises(EinfuseError, match=r"1-pass:6:1: unrolling needs the size of rank M1"):
        gradient(load("attention/1-pass"), ["Q"])


@pytest.mark.parametrize(
    ("text", "wanted", "message"),
    [
        ("rank M\ninput A[M]\nY[] = A[m] :: *(m)", ["A"], r"3:15: .*the reduction \*\(m\)"),
        ("rank M\ninput A[M]\nY[m] = A[m]", ["B"], "has no input B; there is A"),
        ("rank M\ninput A[M]\nY[m] = A[m]", [], "expected the names of inputs"),
        ("rank M\ninput A[M]\nY[m] = A[m]", ["A", "A"], "expected the names of inputs"),
        ("rank M\ninput A[M], I[M]\nY[m] = A[I[m]]", ["I"],
         "by I: outputs depend on it through indices"),
        ("rank M\ninput A[M], B[M]\noutput Y\nZ[m] = B[m]\nY[m] = A[m]", ["B"],
         "by B: no output depends on it"),
        ("rank M\ninput A[M]\nY[m] = gradless(A[m])", ["A"], r"3:8: .*no derivative of gradless"),
    ],
)  # fmt: skip
def test_what_is_not_differentiable_is_refused_by_name(
    text: str, wanted: list[str], message: str
) -> None:
    register_function("gradless", np.cbrt)
    with pytest.raises(EinfuseError, match=message):
        gradient(parse(text), wanted)


def test_a_registered_function_may_have_a_derivative() -> None:
    register_function("cubed", lambda x: x**3, torch=lambda t: lambda x: x**3)
    register_derivative("cubed", lambda arguments, value: (parse_value("3 * sq(X[m])"),))
    cascade = parse("rank M\ninput X[M]\nY[m] = cubed(X[m])")
    _check(cascade, {"X": np.array([1.0, -2.0, 0.5])}, ["X"])


def parse_value(text: str) -> Expression:
    return parse(f"rank M\ninput X[M]\nY[m] = {text}").einsums[0].expression
