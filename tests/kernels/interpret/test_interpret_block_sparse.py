"""Block-sparse attention against the masked plain formula, in Triton's interpreter."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from einfuse.kernels.attention.block_sparse import list_blocks, plan_forward  # noqa: E402
from einfuse.kernels.calls.dispatch import attention  # noqa: E402
from einfuse.kernels.calls.problem import Options, Problem  # noqa: E402
from einfuse.kernels.calls.reference import attend_exactly, attend_plainly  # noqa: E402
from einfuse.kernels.calls.registry import find_kernel  # noqa: E402
from einfuse.kernels.errors import KernelError  # noqa: E402
from einfuse.kernels.measured.gate import judge  # noqa: E402

KERNEL = find_kernel("block-sparse")


def draw(dtype, mask, size, queries=100, keys=150, causal=False, batch=1):
    torch.manual_seed(0)
    q = torch.randn(batch, 4, queries, 24).to(dtype)
    k, v = (torch.randn(batch, 2, keys, 24).to(dtype) for _ in range(2))
    options = Options(scale=24**-0.5, causal=causal)
    return Problem(q, k, v, options, block_mask=mask, block_size=size)


def run(problem):
    out = torch.full_like(problem.q, float("nan"))
    lse = torch.full(out.shape[:-1], float("nan"))
    (launch,) = plan_forward(KERNEL, problem, out, lse, "interpreter")
    launch.run()
    return out, lse


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [32, 64])
def test_block_sparse_equals_the_masked_formula(dtype, causal, size):
    torch.manual_seed(1)
    mask = torch.rand(1, 4, -(-100 // size), -(-150 // size)) < 0.5
    mask[0, 1, 0] = False  # rows without a key
    problem = draw(dtype, mask, size, causal=causal)
    out, lse = run(problem)
    exact, plain = attend_exactly(problem), attend_plainly(problem, dtype)
    verdict = judge(out, exact[0], plain[0])
    assert verdict.passed, str(verdict)
    assert judge(lse, exact[1], exact[1].float()).error < 1e-3
    assert (out[:, 1, :size] == 0).all()
    assert (lse[:, 1, :size] == float("-inf")).all()


def test_a_mask_may_differ_between_sequences_and_be_shared_by_heads():
    mask = torch.rand(2, 1, 4, 5) < 0.5
    problem = draw(torch.float32, mask, 32, batch=2)
    assert (run(problem)[0] - attend_exactly(problem)[0]).abs().max() < 1e-5


def test_a_full_mask_gives_dense_attention():
    problem = draw(torch.float32, torch.ones(1, 1, 4, 5, dtype=torch.bool), 32)
    dense = Problem(problem.q, problem.k, problem.v, problem.options)
    assert (run(problem)[0] - attend_exactly(dense)[0]).abs().max() < 1e-5


def test_hidden_keys_are_never_read():
    mask = torch.zeros(1, 1, 4, 5, dtype=torch.bool)
    mask[..., 1] = True
    problem = draw(torch.float32, mask, 32)
    hidden = torch.cat([torch.arange(32), torch.arange(64, 150)])
    problem.k[:, :, hidden] = float("nan")
    problem.v[:, :, hidden] = float("nan")
    assert torch.isfinite(run(problem)[0]).all()


def test_causal_visits_no_block_after_the_last_query():
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    problem = draw(torch.float32, mask, 32, queries=128, keys=128, causal=True)
    lse = torch.empty(problem.q.shape[:-1])
    (launch,) = plan_forward(KERNEL, problem, torch.empty_like(problem.q), lse, "interpreter")
    assert launch.arguments["counts_ptr"][0, 0].tolist() == [1, 2, 3, 4]


def test_kept_blocks_are_listed_in_ascending_order():
    mask = torch.tensor([[True, False, True], [False, False, False]])
    kept = list_blocks(mask)
    assert kept.counts.tolist() == [2, 0]
    assert kept.indices[0, :2].tolist() == [0, 2]


@pytest.mark.parametrize("size", [8, 20])
def test_block_sizes_without_a_tile_fall_back_to_the_plain_formula(size):
    q, k = torch.randn(1, 1, 40, 16), torch.randn(1, 1, 50, 16)
    mask = torch.rand(1, 1, -(-40 // size), -(-50 // size)) < 0.5
    with pytest.raises(KernelError, match=r"takes block_size_alignment from 16 to 16, not [48]"):
        attention(q, k, k, block_mask=mask, block_size=size, kernel="block-sparse")
    with pytest.warns(RuntimeWarning, match="block-sparse takes block_size_alignment"):
        out = attention(q, k, k, block_mask=mask, block_size=size)
    kept = mask.repeat_interleave(size, 2).repeat_interleave(size, 3)[:, :, :40, :50]
    scores = (q @ k.transpose(-1, -2) / 4).masked_fill(~kept, float("-inf"))
    torch.testing.assert_close(out, scores.softmax(-1).nan_to_num() @ k)
