"""Kernels against the cascades they name, executed in float64 from their text."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from einfuse.einsum.execution.run import run  # noqa: E402
from einfuse.einsum.library.cascades import load  # noqa: E402
from einfuse.kernels.attention.shared_prefix_operator import shared_prefix_attention  # noqa: E402
from einfuse.kernels.calls.dispatch import attention  # noqa: E402
from einfuse.kernels.calls.registry import find_kernel  # noqa: E402
from einfuse.kernels.decoding.split_kv import decode_attention  # noqa: E402
from einfuse.kernels.linear.operator import linear_attention  # noqa: E402

E, F, P, M = 16, 24, 64, 96
SCALE = E**-0.5


def execute(kernel, inputs, **shape):
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    return run(load(find_kernel(kernel).cascade), wide, shape, backend="torch")


def draw():
    """One head: q [P, E], k [M, E] and v [M, F]."""
    torch.manual_seed(0)
    return torch.randn(P, E), torch.randn(M, E), torch.randn(M, F)


def heads(*tensors):
    return [tensor[None, None] for tensor in tensors]


def assert_equal(result, truth):
    assert (result - truth).abs().max() < 1e-5 * max(1.0, float(truth.abs().max()))


def test_flash_sigmoid_computes_its_cascade():
    q, k, v = draw()
    out = attention(*heads(q, k, v), similarity="sigmoid", bias=-2.0, kernel="flash-sigmoid")
    inputs = {"Q": q.T * SCALE, "K": k.T, "V": v.T, "BIAS": torch.tensor(-2.0)}
    assert_equal(out[0, 0], execute("flash-sigmoid", inputs)["AV"].T)


@pytest.mark.parametrize(("window", "sinks"), [(20, 3), (1, 1), (50, 40)])
def test_window_computes_its_cascade(window, sinks):
    q, k, v = draw()
    out = attention(*heads(q, k, v), causal=True, window=window, sinks=sinks, kernel="window")
    inputs = {"Q": q.T * SCALE, "K": k.T, "V": v.T}
    assert_equal(out[0, 0], execute("window", inputs, W=window, S=sinks)["AV"].T)


def test_block_sparse_computes_its_cascade():
    q, k, v = draw()
    mask = torch.tensor([[True, False, True], [False, False, False]])
    lists, counts = torch.tensor([[0, 2], [0, 0]]), torch.tensor([2, 0])
    out = attention(
        *heads(q, k, v), block_mask=mask[None, None], block_size=32, kernel="block-sparse"
    )
    inputs = {"Q": q.T * SCALE, "K": k.T, "V": v.T, "IDX": lists, "COUNT": counts}
    truth = execute("block-sparse", inputs, P0=32, M0=32)["AV"]
    assert_equal(out[0, 0], truth.reshape(F, P).T)


def test_varlen_computes_its_cascade():
    torch.manual_seed(0)
    lengths = torch.tensor([40, 7, 64])
    starts = torch.tensor([0, 40, 47, 111], dtype=torch.int32)
    q, k, v = torch.randn(111, 1, E), torch.randn(111, 1, E), torch.randn(111, 1, F)
    out = attention(q, k, v, cu_seqlens=starts, kernel="varlen")
    inputs = {"LEN": lengths}
    for name, tensor in (("Q", q * SCALE), ("K", k), ("V", v)):
        padded = torch.zeros(tensor.shape[2], 3, 64)
        for s, length in enumerate(lengths.tolist()):
            padded[:, s, :length] = tensor[starts[s] : starts[s + 1], 0].T
        inputs[name] = padded
    truth = execute("varlen", inputs)["AV"]
    for s, length in enumerate(lengths.tolist()):
        assert_equal(out[starts[s] : starts[s + 1], 0], truth[:, s, :length].T)


@pytest.mark.parametrize("kernel", ["split-kv-decode", "stream-k-decode"])
def test_decoding_computes_its_cascade(kernel):
    _, k, v = draw()
    q = torch.randn(4, E)  # a group of 4 heads
    out, _ = decode_attention(q[None, :, None], *heads(k, v), splits=3, kernel=kernel)
    truth = execute(kernel, {"Q": q.T * SCALE, "K": k.T, "V": v.T}, W=3)["AV"]
    assert_equal(out[0, :, 0], truth.T)


def test_shared_prefix_computes_its_cascade():
    torch.manual_seed(0)
    q, k = torch.randn(3, 20, E), torch.randn(3, 20, E)
    v, prefix_k, prefix_v = torch.randn(3, 20, F), torch.randn(50, E), torch.randn(50, F)
    out, _ = shared_prefix_attention(*heads(q, k, v, prefix_k, prefix_v))
    inputs = {"Q": q.movedim(2, 0) * SCALE, "K": k.movedim(2, 0), "V": v.movedim(2, 0)}
    truth = execute("shared-prefix", {**inputs, "KP": prefix_k.T, "VP": prefix_v.T})["AV"]
    assert_equal(out[0, 0], truth.movedim(0, 2))


def test_linear_attention_computes_its_cascade():
    torch.manual_seed(0)
    q, k, v = torch.randn(64, E), torch.randn(64, E), torch.randn(64, F)
    decay, state = -torch.rand(64), torch.randn(E, F)
    out, final = linear_attention(*heads(q, k, v, decay), initial_state=state[None, None])
    inputs = {"Q": q.T, "K": k.T, "V": v.T, "LD": decay, "H0": state}
    truth = execute("linear-decay", inputs, I=16)
    assert_equal(out[0, 0], truth["O"].reshape(F, 64).T)
    assert_equal(final[0, 0], truth["HN"])
