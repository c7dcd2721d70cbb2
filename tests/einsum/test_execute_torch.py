"""The torch backend: the same results, dtypes, devices, and derivatives."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from einfuse.einsum.execution.run import run
from einfuse.einsum.execution.sampling import draw_inputs, shrunk
from einfuse.einsum.language.batch import with_batch
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.parser import parse
from einfuse.einsum.library.cascades import load, names

from .test_execute_absent import FORMS, masked

torch = pytest.importorskip("torch")

FORMS_OF_ATTENTION = ("1-pass", "2-pass", "3-pass", "3-pass-deferred")


def qkv(dtype: object, *, m: int = 12, p: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = {"Q": (2, 3, 4, p), "K": (2, 3, 4, m), "V": (2, 3, 5, m)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in shapes.items()
    }


def attention(inputs: dict[str, torch.Tensor], causal: bool = False) -> torch.Tensor:
    """Return torch's own attention, [b, h, f, p], scores unscaled."""
    rows = {name: tensor.mT for name, tensor in inputs.items()}
    return torch.nn.functional.scaled_dot_product_attention(
        rows["Q"], rows["K"], rows["V"], scale=1.0, is_causal=causal
    ).mT


@pytest.mark.parametrize("name", names())
def test_torch_equals_numpy_on_every_cascade_of_the_library(name: str) -> None:
    cascade = load(name)
    opened, tiny = shrunk(cascade, dict.fromkeys(cascade.rank_names, 100), 5)
    inputs = draw_inputs(opened, tiny, seed=1)
    tensors = {n: torch.as_tensor(a) for n, a in inputs.items()}
    expected = run(opened, inputs, tiny, all_tensors=True)
    for tensor, found in run(opened, tensors, tiny, "torch", all_tensors=True).items():
        np.testing.assert_allclose(found.numpy(), expected[tensor], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("form", FORMS_OF_ATTENTION)
def test_derivatives_are_those_of_torchs_attention(form: str) -> None:
    cascade = with_batch(load(f"attention/{form}"), ["B", "H"])
    inputs = {n: t.requires_grad_() for n, t in qkv(torch.float64).items()}
    found = run(cascade, inputs, {"M0": 4} if cascade.splits else {}, "torch")["AV"]
    expected = attention(inputs)
    torch.testing.assert_close(found, expected)
    weight = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).reshape(found.shape)
    leaves = list(inputs.values())
    for a, b in zip(
        torch.autograd.grad((found * weight).sum(), leaves),
        torch.autograd.grad((expected * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mask", ["causal", "no-key-for-early-rows", "first-blocks-masked"])
def test_derivatives_under_a_mask_are_finite_differences(form: str, mask: str) -> None:
    cascade = parse(masked(form, mask))
    shape = {"M0": 2} if cascade.splits else {}
    generator = torch.Generator().manual_seed(2)
    leaves = [
        torch.randn(n, 8, generator=generator, dtype=torch.float64).requires_grad_()
        for n in (2, 2, 2)
    ]

    def outputs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        result = run(cascade, {"Q": q, "K": k, "V": v}, shape, "torch")["AV"]
        assert isinstance(result, torch.Tensor)
        return result

    assert torch.autograd.gradcheck(outputs, leaves, fast_mode=True)


@pytest.mark.parametrize("form", FORMS)
def test_derivatives_stay_finite_where_masked_scores_are_extreme(form: str) -> None:
    cascade = parse(masked(form, "no-key-for-early-rows"))
    leaves = {n: torch.randn(2, 12).requires_grad_() for n in "KV"}
    leaves["Q"] = (torch.randn(2, 12) * 5000).requires_grad_()
    result = run(cascade, leaves, {"M0": 3} if cascade.splits else {}, "torch")["AV"]
    for gradient in torch.autograd.grad(result.sum(), list(leaves.values())):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("form", FORMS_OF_ATTENTION)
def test_the_dtype_of_the_tensors_is_kept(form: str, dtype: str) -> None:
    cascade = with_batch(load(f"attention/{form}"), ["B", "H"])
    inputs = qkv(getattr(torch, dtype))
    shape = {"M0": 4} if cascade.splits else {}
    results = run(cascade, inputs, shape, "torch", all_tensors=True)
    assert {t.dtype for t in results.values()} == {getattr(torch, dtype)}
    exact = attention({n: t.double() for n, t in inputs.items()})
    tolerance = {"float16": 1e-2, "bfloat16": 8e-2, "float32": 1e-5, "float64": 1e-12}[dtype]
    torch.testing.assert_close(results["AV"].double(), exact, atol=tolerance, rtol=tolerance)


def test_inputs_are_not_written_to() -> None:
    inputs = qkv(torch.float32)
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    run(with_batch(load("attention/3-pass"), ["B", "H"]), inputs, backend="torch")["AV"].add_(1)
    for name, tensor in inputs.items():
        assert torch.equal(tensor, before[name])


def test_complex_tensors_are_refused() -> None:
    cascade = parse("rank M\ninput A[M]\noutput Y\nY[] = A[m]")
    with pytest.raises(EinfuseError, match="expected real or whole numbers"):
        run(cascade, {"A": torch.ones(2, dtype=torch.complex64)}, backend="torch")


def test_tensors_on_two_devices_are_refused() -> None:
    cascade = parse("rank M\ninput A[M], B[M]\noutput Y\nY[] = A[m] * B[m]")
    inputs = {"A": torch.ones(2), "B": torch.ones(2, device="meta")}
    with pytest.raises(EinfuseError, match="on one device, found A on cpu, B on meta"):
        run(cascade, inputs, backend="torch")


def test_numpy_runs_do_not_import_torch() -> None:
    code = (
        "import sys, numpy as np; from einfuse.einsum.execution.run import run; "
        "from einfuse.einsum.library.cascades import load; a = np.ones((2, 2)); "
        "run(load('attention/3-pass'), {'Q': a, 'K': a, 'V': a}); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS_OF_ATTENTION)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_gpu_gives_what_the_processor_gives(form: str, dtype: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    cascade = with_batch(load(f"attention/{form}"), ["B", "H"])
    inputs = qkv(getattr(torch, dtype), m=64, p=32)
    shape = {"M0": 16} if cascade.splits else {}
    there = {n: t.cuda().requires_grad_() for n, t in inputs.items()}
    found = run(cascade, there, shape, "torch")["AV"]
    assert found.is_cuda
    assert found.dtype == getattr(torch, dtype)
    exact = attention({n: t.double() for n, t in inputs.items()})
    tolerance = {"float16": 1e-2, "bfloat16": 8e-2, "float32": 1e-4}[dtype]
    torch.testing.assert_close(found.double().cpu(), exact, atol=tolerance, rtol=tolerance)
    for gradient in torch.autograd.grad(found.float().sum(), list(there.values())):
        assert torch.isfinite(gradient).all()


def test_what_autograd_holds_on_to_is_not_written_into() -> None:
    """H needs no gradient itself, but that of A needs it, after its last use in the cascade."""
    text = """
    rank M, P
    input A[M,P], B[M]
    output Y
    H[m] = B[m] * 2
    S[p] = A[m,p] * H[m]
    T[m] = H[m] * gt(B[m], 0)
    Y[m,p] = T[m] * S[p]
    """
    a = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    b = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    run(parse(text), {"A": a, "B": b}, {}, "torch")["Y"].sum().backward()
    assert a.grad is not None
    np.testing.assert_allclose(a.grad.numpy(), 6 * 2 * b.numpy()[:, None] * np.ones((3, 2)))
