"""Chunked linear attention against the quadratic formula and the recurrence, interpreted."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from einfuse.kernels.errors import KernelError  # noqa: E402
from einfuse.kernels.linear.operator import linear_attention  # noqa: E402
from einfuse.kernels.linear.recurrence import RecurrenceProblem, attend_linearly  # noqa: E402
from einfuse.kernels.measured.gate import judge  # noqa: E402

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def draw(dtype, tokens=70, heads=2, groups=1, key_size=24, value_size=40, initial=True, batch=1):
    torch.manual_seed(0)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    q, k = (torch.randn(batch, groups, tokens, key_size).to(dtype) for _ in range(2))
    v = torch.randn(batch, heads, tokens, value_size).to(dtype)
    log_decay = -0.2 * torch.rand(batch, heads, tokens, dtype=exact)
    state = torch.randn(batch, heads, key_size, value_size, dtype=exact) if initial else None
    return RecurrenceProblem(q, k, v, log_decay, key_size**-0.5, state)


def run(problem):
    return linear_attention(
        problem.q, problem.k, problem.v, problem.log_decay,
        scale=problem.scale, initial_state=problem.initial_state,
    )  # fmt: skip


def distance(result, truth):
    return float((result - truth).abs().max() / truth.abs().max())


def tensors(problem):
    fields = (problem.q, problem.k, problem.v, problem.log_decay, problem.initial_state)
    return [t for t in fields if t is not None]


def with_tensors(problem, values):
    names = ("q", "k", "v", "log_decay", "initial_state")
    return dataclasses.replace(problem, **dict(zip(names, values, strict=False)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("initial", [True, False])
def test_linear_attention_errs_at_most_twice_as_much_as_the_quadratic_formula(dtype, initial):
    problem = draw(dtype, initial=initial)
    exact, plain = (attend_linearly(problem, t) for t in (torch.float64, dtype))
    out, state = run(problem)
    verdict = judge(out, exact[0], plain[0])
    assert verdict.passed, str(verdict)
    relative = (state - exact[1]).norm() / exact[1].norm()
    assert relative < (1e-6 if dtype == torch.float32 else 5e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_err_at_most_twice_as_much_as_those_of_the_quadratic_formula(dtype):
    problem = draw(dtype, tokens=50)
    grad_out = torch.randn(1, 2, 50, 40).to(dtype)
    grad_state = torch.randn(1, 2, 24, 40)

    def differentiate(compute, leaves):
        leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        out, state = compute(with_tensors(problem, leaves))
        value = (out * grad_out.to(out.dtype)).sum() + (state * grad_state.to(state.dtype)).sum()
        return torch.autograd.grad(value, leaves)

    ours = differentiate(run, tensors(problem))
    wide = [t.double() for t in tensors(problem)]
    exact = differentiate(lambda p: attend_linearly(p, torch.float64), wide)
    plain = differentiate(lambda p: attend_linearly(p, dtype), tensors(problem))
    for result, truth, rival in zip(ours[:3], exact, plain, strict=False):
        verdict = judge(result, truth, rival, gradient=True)
        assert verdict.passed, str(verdict)
    for result, truth in zip(ours[3:], exact[3:], strict=True):
        assert (result - truth).norm() / truth.norm() < (1e-5 if dtype == torch.float32 else 1e-2)


def test_gradients_are_right_to_the_last_digit_in_float64():
    problem = draw(torch.float64, tokens=33, heads=2, groups=1, key_size=3, value_size=2)
    leaves = [t.detach().clone().requires_grad_() for t in tensors(problem)]
    assert torch.autograd.gradcheck(
        lambda *values: run(with_tensors(problem, values)), leaves, fast_mode=True
    )


def test_the_state_follows_the_recurrence_token_by_token():
    problem = draw(torch.float32, tokens=45, heads=2, groups=2, batch=2)
    out, final = run(problem)
    state = problem.initial_state.double()
    for n in range(problem.tokens):
        k, v, q = (t[:, :, n].double() for t in (problem.k, problem.v, problem.q))
        decay = problem.log_decay[:, :, n].double().exp()
        state = state * decay[..., None, None] + k[..., :, None] * v[..., None, :]
        read = problem.scale * torch.einsum("bhe,bhef->bhf", q, state)
        assert distance(out[:, :, n], read) < 1e-5
    assert distance(final, state) < 1e-5


def test_a_state_handed_on_continues_the_sequence():
    problem = draw(torch.float32, tokens=90)
    whole, final = run(problem)
    cut = 37  # in the middle of a chunk
    parts, state = [], problem.initial_state
    for part in (slice(None, cut), slice(cut, None)):
        piece = [t[:, :, part] for t in (problem.q, problem.k, problem.v, problem.log_decay)]
        out, state = run(with_tensors(problem, [*piece, state]))
        parts.append(out)
    assert distance(torch.cat(parts, 2), whole) < 1e-5
    assert distance(state, final) < 1e-5


def test_lightning_attention_has_one_decay_per_head():
    problem = draw(torch.float32, initial=False)
    per_head = torch.tensor([-0.5, 0.0])
    leaf = per_head.clone().requires_grad_()
    out, _ = linear_attention(problem.q, problem.k, problem.v, leaf)
    decay = per_head[None, :, None].expand(1, 2, 70)
    again = RecurrenceProblem(problem.q, problem.k, problem.v, decay)
    assert distance(out, attend_linearly(again, torch.float64)[0]) < 1e-5
    out.sum().backward()
    assert leaf.grad.shape == per_head.shape


def test_without_decay_a_token_reads_the_sum_of_all_before_it():
    ones = torch.ones(1, 1, 40, 16)
    out, _ = linear_attention(ones, ones, ones, torch.zeros(1), scale=1 / 16)
    assert torch.equal(out[0, 0, :, 0], torch.arange(1.0, 41.0))


def test_a_state_may_outgrow_float16():
    ones = torch.ones(1, 1, 64, 16, dtype=torch.float16)
    state = torch.full((1, 1, 16, 16), 1e6)
    leaf = ones.clone().requires_grad_()
    out, final = linear_attention(
        leaf, ones, ones, torch.zeros(1), scale=2.0**-12, initial_state=state
    )
    expected = (1e6 + torch.arange(1.0, 65.0)) * 2.0**-8
    assert distance(out[0, 0, :, 0], expected) < 1e-3
    assert distance(final, torch.full_like(final, 1e6 + 64)) < 1e-6
    out.sum().backward()
    assert distance(leaf.grad[0, 0, :, 0], expected) < 1e-3


def test_tensors_are_taken_by_their_strides():
    problem = draw(torch.float32)
    rows_first = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors(problem)[:4]]
    again = with_tensors(problem, [*rows_first, problem.initial_state])
    assert torch.equal(run(problem)[0], run(again)[0])


def test_linear_attention_is_a_well_formed_operator():
    problem = draw(torch.float32, tokens=12, key_size=8, value_size=8)
    leaves = [t.detach().clone().requires_grad_() for t in tensors(problem)]
    torch.library.opcheck(torch.ops.einfuse.linear_attention, (*leaves, 0.5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": torch.zeros(1, 2, 71, 24)}, r"k: expected \[1, 2, 70, 24\] as q"),
        ({"v": torch.zeros(1, 3, 70, 40)}, "q: expected a number of groups that divides the 3"),
        ({"v": torch.zeros(1, 4, 70, 40).half()}, "v: expected float16, bfloat16 or float32, as q"),
        ({"log_decay": torch.zeros(1, 4, 69)}, r"log_decay: expected torch.float32 \[1, 4, 70\]"),
        ({"initial_state": torch.zeros(1, 4, 24, 41)}, r"initial_state: .*\[1, 4, 24, 40\]"),
        ({"scale": float("nan")}, "scale: expected a finite number, found nan"),
    ],
    ids=lambda change: "-".join(change) if isinstance(change, dict) else "",
)
def test_bad_calls_name_the_argument(change, words):
    with pytest.raises(KernelError, match=words):
        run(dataclasses.replace(draw(torch.float32, heads=4, groups=2), **change))
