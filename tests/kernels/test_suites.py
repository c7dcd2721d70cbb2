"""What is measured: its sizes, and its count of operations."""

from __future__ import annotations

from dataclasses import replace

import pytest

from einfuse.kernels.errors import KernelError
from einfuse.kernels.measured.suites import Case, list_cases

CASE = Case("fwd", "float16", 2, 16, 16, 8192, 8192, 128)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("suite", ["core", "full"])
def test_no_case_is_in_a_suite_twice(device: str, suite: str) -> None:
    cases = list_cases(device, suite)  # type: ignore[arg-type]
    assert len(set(cases)) == len(cases)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_core_has_about_sixty_cases_of_every_kind(device: str) -> None:
    cases = list_cases(device, "core")  # type: ignore[arg-type]
    assert 55 <= len(cases) <= 65
    assert {case.direction for case in cases} == {"fwd", "bwd"}
    assert any(case.window for case in cases)
    assert any(case.similarity == "sigmoid" for case in cases)
    assert any(case.seqlen_q == 1 for case in cases)
    assert any(case.heads_q != case.heads_kv for case in cases)


def test_on_a_gpu_the_shapes_are_those_of_the_published_tables() -> None:
    square = [c for c in list_cases("cuda", "core") if c.heads_q == c.heads_kv]
    assert all(c.batch * c.seqlen_q == 16384 for c in square)
    assert all(c.heads_q * c.head_dim == 2048 for c in square)


def test_operations_follow_the_published_convention() -> None:
    forward = 4 * 2 * 16 * 8192**2 * 128
    assert CASE.flops == forward
    assert replace(CASE, causal=True).flops == forward // 2
    assert replace(CASE, direction="bwd").flops == forward * 5 // 2
    window = replace(CASE, causal=True, window=1024)
    assert window.flops == 4 * 2 * 16 * 128 * sum(min(p + 1, 1024) for p in range(8192))


def test_options_say_what_the_columns_cannot() -> None:
    assert CASE.options == ""
    assert replace(CASE, window=1024, sinks=4).options == "window=1024,sinks=4"
    assert replace(CASE, similarity="sigmoid").options == "similarity=sigmoid"


def test_an_unknown_suite_is_answered_with_the_closest() -> None:
    with pytest.raises(KernelError, match="did you mean 'core'"):
        list_cases("cpu", "cora")
