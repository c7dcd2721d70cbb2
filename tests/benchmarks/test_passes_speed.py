"""How fast the pass analysis is, and that it grows with the cascade, not faster."""

from __future__ import annotations

import time

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from einfuse.einsum.analysis.footprint import footprint
from einfuse.einsum.analysis.lineage import trace
from einfuse.einsum.analysis.passes import count_passes
from einfuse.einsum.analysis.placement import fewest_passes
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.parser import parse
from einfuse.einsum.library.cascades import load

pytestmark = pytest.mark.slow


def least_cpu_seconds(work: object, *arguments: object, repeats: int = 10) -> float:
    """Return the least processor time of a call: other processes do not count."""
    assert callable(work)
    work(*arguments)
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work(*arguments)
        times.append(time.process_time() - started)
    return min(times)


def test_the_report_of_the_one_pass_cascade(benchmark: BenchmarkFixture) -> None:
    cascade = load("attention/1-pass")
    assert benchmark(count_passes, cascade, "M").passes == 1


def test_the_footprint_of_the_one_pass_cascade(benchmark: BenchmarkFixture) -> None:
    cascade = load("attention/1-pass")
    benchmark(footprint, cascade, "M")


def chain(length: int) -> Cascade:
    """A chain of maps, a fold in every tenth."""
    lines = ["rank M", "input T0[M]", f"output T{length}"]
    for n in range(length):
        if n % 10 == 9:
            lines.append(f"S{n}[] = T{n}[m] :: +(m)")
        lines.append(f"T{n + 1}[m] = T{n}[m] * 2" + (f" - S{n}[]" if n % 10 == 9 else ""))
    return parse("\n".join(lines))


def analyse(cascade: Cascade) -> int:
    dependence = trace(cascade, "M")
    count = fewest_passes(dependence, dependence.readers("T0"), "T0").count
    assert isinstance(count, int)
    return count


def test_the_analysis_is_linear_in_the_cascade() -> None:
    short, long = chain(100), chain(800)
    assert (analyse(short), analyse(long)) == (11, 81)
    ratio = least_cpu_seconds(analyse, long, repeats=3) / least_cpu_seconds(analyse, short)
    assert ratio < 8 * 2


def test_the_report_of_a_long_chain(benchmark: BenchmarkFixture) -> None:
    assert benchmark.pedantic(count_passes, (chain(400), "M"), rounds=2).passes == 41
