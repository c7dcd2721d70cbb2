"""The dense kernels against the float64 reference and against each other, interpreted."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from einfuse.einsum.library.cascades import load  # noqa: E402
from einfuse.kernels.calls.dispatch import attention, attention_with_lse  # noqa: E402
from einfuse.kernels.calls.operators import empty_outputs  # noqa: E402
from einfuse.kernels.calls.problem import Options, Problem  # noqa: E402
from einfuse.kernels.calls.reference import attend_exactly, attend_plainly  # noqa: E402
from einfuse.kernels.calls.registry import find_kernel  # noqa: E402
from einfuse.kernels.measured.gate import judge  # noqa: E402

KERNELS = (
    "one-pass", "one-pass-hopper", "two-pass", "three-pass", "row-resident",
    "row-resident-deferred",
)  # fmt: skip
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def draw(dtype=torch.float32, queries=40, keys=70, heads=2, key_heads=1, sizes=(24, 24), **options):
    torch.manual_seed(0)
    q = torch.randn(1, heads, queries, sizes[0]).to(dtype)
    k = torch.randn(1, key_heads, keys, sizes[0]).to(dtype)
    v = torch.randn(1, key_heads, keys, sizes[1]).to(dtype)
    return Problem(q, k, v, Options(scale=sizes[0] ** -0.5, **options))


def run(kernel, problem):
    tensors = problem.q, problem.k, problem.v
    return attention_with_lse(*tensors, causal=problem.options.causal, kernel=kernel)


def assert_right(kernel, problem):
    out, lse = run(kernel, problem)
    exact, plain = attend_exactly(problem), attend_plainly(problem, problem.q.dtype)
    verdict = judge(out, exact[0], plain[0])
    assert verdict.passed, str(verdict)
    # The unfused kernel rounds its scores to the tensors' type, as the plain formula does.
    rival = plain[1] if kernel == "three-pass" else exact[1] + 5e-4
    verdict = judge(lse, exact[1], rival, relative=False)
    assert verdict.passed, str(verdict)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_kernels_err_at_most_twice_as_much_as_the_plain_formula(kernel, dtype, causal):
    assert_right(kernel, draw(dtype, causal=causal))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 1), (1, 33), (31, 32), (32, 64), (33, 64), (65, 31)]
)
def test_any_length_is_right_under_a_causal_mask(kernel, queries, keys):
    assert_right(kernel, draw(torch.float16, queries, keys, heads=1, key_heads=1, causal=True))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sizes", [(64, 64), (80, 48), (16, 256), (8, 8)])
def test_head_sizes_need_not_be_equal_nor_powers_of_two(kernel, sizes):
    assert_right(kernel, draw(torch.float16, 20, 40, heads=2, key_heads=1, sizes=sizes))


@pytest.mark.parametrize("kernel", KERNELS)
def test_queries_that_see_no_key_give_zero_and_minus_infinity(kernel):
    problem = draw(torch.float16, queries=50, keys=20, causal=True)
    out, lse = run(kernel, problem)
    assert (out[:, :, :30] == 0).all() and (lse[:, :, :30] == float("-inf")).all()
    assert torch.isfinite(out).all() and torch.isfinite(lse[:, :, 30:]).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_hot_values_return_the_weights(kernel):
    """With V the identity the output is A itself: each row sums to 1, hidden keys get 0."""
    problem = draw(torch.float16, 40, 40, heads=1, key_heads=1, sizes=(16, 40), causal=True)
    problem = dataclasses.replace(problem, v=torch.eye(40).half().expand(1, 1, 40, 40))
    out, _ = run(kernel, problem)
    assert (out.float().sum(-1) - 1).abs().max() < 2e-3
    assert (out[0, 0].triu(1) == 0).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_order_of_keys_does_not_matter(kernel):
    problem = draw(torch.float16, heads=1, key_heads=1)
    order = torch.randperm(problem.keys)
    shuffled = dataclasses.replace(
        problem, k=problem.k[:, :, order].contiguous(), v=problem.v[:, :, order].contiguous()
    )
    assert (run(kernel, problem)[0] - run(kernel, shuffled)[0]).abs().max() < 4e-3


@pytest.mark.parametrize("kernel", KERNELS)
def test_shared_key_heads_equal_repeated_ones(kernel):
    problem = draw(torch.float16)
    repeated = dataclasses.replace(
        problem, k=problem.k.repeat_interleave(2, 1), v=problem.v.repeat_interleave(2, 1)
    )
    assert torch.equal(run(kernel, problem)[0], run(kernel, repeated)[0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_sequence_does_not_depend_on_its_batch(kernel):
    one, other = draw(torch.float16), draw(torch.float16)
    both = dataclasses.replace(
        one,
        q=torch.cat([other.q * 2, one.q]),
        k=torch.cat([other.k * 2, one.k]),
        v=torch.cat([other.v * 2, one.v]),
    )
    assert torch.equal(run(kernel, both)[0][1:], run(kernel, one)[0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_strided_and_expanded_tensors_are_read_where_they_lie(kernel):
    """[B, P, H, E] in memory, values shared by all heads, keys with gaps between their rows."""
    problem = draw(torch.float16, 40, 40, key_heads=2)
    q = problem.q.transpose(1, 2).contiguous().transpose(1, 2)
    k = torch.cat([problem.k, problem.k], -1)[..., :24]
    v = problem.v[:, :1].expand(-1, 2, -1, -1)
    strided = dataclasses.replace(problem, q=q, k=k, v=v)
    plain = dataclasses.replace(problem, v=v.contiguous())
    assert torch.equal(run(kernel, strided)[0], run(kernel, plain)[0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_large_scores_do_not_overflow(kernel):
    problem = draw(torch.float16, 40, 40)
    assert_right(kernel, dataclasses.replace(problem, q=problem.q * 40))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("keys", [64, 96])
def test_kernels_compute_their_cascades(attend_by_cascade, kernel, keys):
    problem = draw(torch.float32, 40, keys)
    cascade = find_kernel(kernel).cascade
    tile = {"M0": 32} if "M0" in load(cascade).rank_names else {}
    truth = attend_by_cascade(problem, cascade, **tile)
    plain = attend_plainly(problem, problem.q.dtype)[0]
    verdict = judge(run(kernel, problem)[0], truth, plain)
    assert verdict.passed, str(verdict)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("softcap", [0.5, 30.0])
def test_a_soft_cap_bounds_the_scores(dtype, softcap):
    problem = draw(dtype, softcap=softcap, causal=True)
    q = problem.q * 20  # scores well beyond the cap
    problem = dataclasses.replace(problem, q=q)
    out, lse = attention_with_lse(
        q, problem.k, problem.v, causal=True, softcap=softcap, kernel="one-pass"
    )
    exact, plain = attend_exactly(problem), attend_plainly(problem, dtype)
    verdict = judge(out, exact[0], plain[0], factor=3.0)  # as FlashAttention's tests allow
    assert verdict.passed, str(verdict)
    assert (lse - exact[1]).abs().max() < 1e-3


@pytest.mark.parametrize("tiles", [(16, 64), (64, 16), (32, 128)])
@pytest.mark.parametrize("causal", [False, True])
def test_tiles_of_any_shape_give_the_same_result(tiles, causal):
    kernel = find_kernel("one-pass")
    block_p, block_m = tiles
    rows = tuple(
        dataclasses.replace(row, tiles=(("block_p", block_p), ("block_m", block_m)))
        for row in kernel.configurations
        if row.launch == "forward"
    )
    problem = draw(torch.float16, causal=causal)
    out, lse = empty_outputs(problem)
    retiled = dataclasses.replace(kernel, configurations=rows)
    for launch in kernel.function("plan_forward")(retiled, problem, out, lse, "interpreter"):
        launch.run()
    verdict = judge(out, attend_exactly(problem)[0], attend_plainly(problem, torch.float16)[0])
    assert verdict.passed, str(verdict)


def test_the_preferred_kernel_is_fused():
    problem = draw(torch.float16)
    named = run("one-pass-hopper", problem)[0]
    assert torch.equal(attention(problem.q, problem.k, problem.v), named)


def test_falling_back_to_the_plain_formula_is_said_once():
    problem = draw(torch.float16, 10, 10)
    with pytest.warns(RuntimeWarning, match=r"using 'plain'(.|\n)*one-pass does not know window"):
        attention(problem.q, problem.k, problem.v, window=3, softcap=31.0)
