"""Every cascade of the zoo against its reference: exactly, and in half precision."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import product

import numpy as np
import pytest
import torch

from einfuse.einsum.execution.run import run
from einfuse.einsum.execution.sampling import draw_inputs
from einfuse.einsum.language.batch import with_batch
from einfuse.einsum.language.shape import bind
from einfuse.einsum.library.cascades import load, names
from einfuse.einsum.library.zoo import entries, with_parameters

from . import cab, causal, dense, dynamic, linear, modified, positioned, sparse
from .case import Arrays, Case, Tensors

CASES: tuple[Case, ...] = (
    *dense.CASES,
    *modified.CASES,
    *linear.CASES,
    *sparse.CASES,
    *dynamic.CASES,
    *cab.CASES,
    *causal.CASES,
    *positioned.CASES,
)
KINDS = ("normal", "negative", "large")
BY_SHAPE = [(case, k) for case in CASES for k in range(len(case.shapes))]
SEEDS = 3
MORE_SEEDS = 12  # of the slow shapes: a single query has few elements
EXACT = [  # all kinds of the first shape are quick, and the normal kind of all
    pytest.param(
        case,
        k,
        kind,
        marks=[pytest.mark.slow] if k and kind != "normal" else [],
        id=f"{case.name}-{k}-{kind}",
    )
    for (case, k), kind in product(BY_SHAPE, KINDS)
]
HALF = [  # the first shape in float16 is quick, the others are slow
    pytest.param(
        case,
        k,
        dtype,
        marks=[pytest.mark.slow] if k or dtype is torch.bfloat16 else [],
        id=f"{case.name}-{k}-{dtype}",
    )
    for (case, k), dtype in product(BY_SHAPE, (torch.float16, torch.bfloat16))
]
GROUPED = [  # those that have queries and keys of one head
    case
    for case in CASES
    if case.grouped
    and {"Q", "K", "V"} <= set(load(case.name).inputs)
    and "G" not in load(case.name).rank_names
]
ATOL = 1e-12

torch.set_num_threads(1)


def named(value: object) -> str | None:
    return value.name if isinstance(value, Case) else None


def drawn(
    case: Case, shape: Mapping[str, int], kind: str = "normal", seed: int = 7, factor: float = 1.0
) -> Arrays:
    """Return inputs: as drawn, with all scores negative, or with large scores.

    ``factor`` scales both inputs of the scores.
    """
    cascade = with_parameters(load(case.name), case.settings)
    sizes = bind(cascade, shape)
    inputs = draw_inputs(cascade, sizes, seed)
    left, right = case.scores
    if kind == "negative":
        inputs |= {left: np.abs(inputs[left]), right: -np.abs(inputs[right])}
    if kind == "large":
        factor = case.large
    if factor != 1.0:
        inputs |= {name: inputs[name] * factor for name in (left, right)}
    if case.amend is not None:
        inputs = case.amend(inputs, sizes, np.random.default_rng(11))
    return inputs


def truth(case: Case, shape: Mapping[str, int], inputs: Tensors) -> Tensors:
    sizes = bind(with_parameters(load(case.name), case.settings), shape)
    return case.reference(inputs, sizes)


def tensors(inputs: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(array) for name, array in inputs.items()}


@pytest.mark.parametrize(("case", "which", "kind"), EXACT)
def test_agrees_with_its_definition(case: Case, which: int, kind: str) -> None:
    shape = case.shapes[which]
    inputs = drawn(case, shape, kind)
    found = run(with_parameters(load(case.name), case.settings), inputs, shape)
    expected = truth(case, shape, tensors(inputs))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        scale = max(1.0, float(value.abs().max()))
        np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-10, atol=1e-10 * scale)


@pytest.mark.parametrize(("case", "which", "dtype"), HALF)
def test_half_precision_errs_no_more_than_twice_the_reference_in_it(
    case: Case, which: int, dtype: torch.dtype
) -> None:
    """The rule of flash-attention's tests, with the reference in float64, over several draws."""
    check_half(case, case.shapes[which], dtype, MORE_SEEDS if which else SEEDS)


def wide(case: Case) -> dict[str, int]:
    """Return the first shape with heads of 32 and a sequence eight times as long."""
    sequence = "P" if "P" in case.shapes[0] else ""  # N is another rank where there are queries
    longer = {*(sequence or "N"), "M", "Y"}
    heads = dict.fromkeys({"E", "F"} & set(case.shapes[0]), 32)
    return {r: n * 8 if r in longer else n for r, n in case.shapes[0].items()} | heads


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=named)
def test_wide_heads_and_longer_sequences_agree_in_every_precision(case: Case) -> None:
    shape = wide(case)
    inputs = drawn(case, shape)
    found = run(with_parameters(load(case.name), case.settings), inputs, shape)
    for name, value in truth(case, shape, tensors(inputs)).items():
        scale = max(1.0, float(value.abs().max()))
        np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-10, atol=1e-10 * scale)
    for dtype in (torch.float16, torch.bfloat16):
        check_half(case, shape, dtype, 2, 32**-0.25)


def check_half(
    case: Case, shape: dict[str, int], dtype: torch.dtype, seeds: int, factor: float = 1.0
) -> None:
    """Compare errors in half precision, the worst of several draws."""
    cascade = with_parameters(load(case.name), case.settings)
    worst = defaultdict(lambda: torch.zeros(3, dtype=torch.float64))
    for seed in range(seeds):
        low = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in tensors(drawn(case, shape, seed=seed, factor=factor)).items()
        }
        high = {n: v.double() if v.is_floating_point() else v for n, v in low.items()}
        found = run(cascade, low, shape, "torch")
        exact = truth(case, shape, high)
        yardstick = (case.yardstick or case.reference)(low, bind(cascade, shape))
        for name, value in exact.items():
            rounded = value.to(dtype)
            if not value.is_floating_point():
                continue  # coordinates: other ones may be the best in half precision
            errors = (found[name] - value, yardstick[name] - value, rounded + 0.3 - 0.3 - rounded)
            here = torch.stack([error.double().abs().max() for error in errors])
            worst[name] = torch.maximum(worst[name], here)
    for name, (error, allowed, noise) in worst.items():
        assert error <= 2 * allowed + 2 * noise, (name, error, allowed, noise)


@pytest.mark.parametrize("case", GROUPED, ids=named)
def test_groups_of_query_heads_share_keys(case: Case) -> None:
    cascade = with_parameters(load(case.name), case.settings)
    inputs = drawn(case, case.shapes[0])
    shared = set(cascade.inputs) - {"Q"}
    grouped = with_batch(cascade, ["G"], shared=shared)
    queries = np.stack([inputs["Q"], 2 * inputs["Q"][::-1]])
    found = run(grouped, inputs | {"Q": queries}, case.shapes[0])
    for g, q in enumerate(queries):
        expected = truth(case, case.shapes[0], tensors(inputs | {"Q": np.ascontiguousarray(q)}))
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][g], value.numpy(), rtol=1e-10, atol=ATOL)


@pytest.mark.parametrize(
    ("name", "rank"),
    [  # CAB's causal cross attention: all keys, and a query does not see later queries
        ("attention/3-pass", "P"),
        ("attention/1-pass", "P"),
        ("attention/bounded-memory", "P"),
        ("attention/performer", "P"),
        # and its causal self attention: a token does not see later tokens
        ("attention/causal", "PM"),
        ("attention/expert-heads-causal", "PM"),
        ("attention/head-mixture-causal", "PM"),
        ("attention/latent-causal", "PM"),
        ("attention/bounded-memory-causal", "N"),
        ("attention/linear-causal", "N"),
        ("attention/flow-causal", "N"),
        ("attention/recurrent-query", "N"),
        ("mixer/diagonal-states", "N"),
    ],
)
def test_outputs_do_not_depend_on_later_queries(name: str, rank: str) -> None:
    case = next(case for case in CASES if case.name == name)
    shape = case.shapes[0] | dict.fromkeys(rank, 6)
    inputs = drawn(case, shape)
    cascade = load(name)
    early = dict(inputs)
    for tensor in cascade.input_tensors:
        cut = tuple(slice(4) if r in rank else slice(None) for r in tensor.ranks)
        early[tensor.name] = inputs[tensor.name][cut]
    ((output, before),) = run(cascade, early, shape | dict.fromkeys(rank, 4)).items()
    after = run(cascade, inputs, shape)[output]
    np.testing.assert_allclose(before, after[..., :4], rtol=1e-12, atol=ATOL)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_every_case_has_a_shape_with_one_query(case: Case) -> None:
    queries = [next(s for rank in "PNMY" if (s := shape.get(rank))) for shape in case.shapes]
    assert 1 in queries and max(queries) > 1


def test_every_cascade_of_attention_has_facts_and_a_reference() -> None:
    shipped = {name for name in names() if name.startswith(("attention/", "mixer/"))}
    assert {entry.name for entry in entries()} == shipped
    assert {case.name for case in CASES} == shipped
