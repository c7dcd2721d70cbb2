"""How fast `derive` is: run with ``make benchmark``."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from einfuse.einsum.derivation.search import derive
from einfuse.einsum.library.cascades import load

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["attention/3-pass", "attention/3-pass-deferred"])
def test_attention_is_derived(benchmark: BenchmarkFixture, name: str) -> None:
    found = benchmark.pedantic(derive, (load(name), "M"), rounds=3, warmup_rounds=1)
    assert min(derived.passes for derived in found) == 1
