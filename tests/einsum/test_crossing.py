"""What crosses boundaries, against a cut of the whole network at each of them."""

from __future__ import annotations

import time

import numpy as np
import pytest

from einfuse.einsum import count_passes, parse
from einfuse.einsum.analysis.held_tensors import Use, crossings, origins
from einfuse.einsum.analysis.minimum_cut import minimum_cut


def _whole(
    uses: list[Use], made: dict[str, int], sources: frozenset[str], after: int
) -> tuple[list[tuple[str, str]], set[str], set[str]]:
    """The network at one boundary, nothing contracted."""
    first = {t: min(u.sweep for u in uses if u.tensor == t) for t in {use.tensor for use in uses}}
    arcs, early, late = [], set(), set()
    for use in uses:
        if made.get(use.tensor, first[use.tensor]) > after:
            continue
        if use.tensor in sources:
            early.add(use.tensor)
        if use.sweep > after:
            late.add(use.tensor)
        elif use.aligned:
            arcs += [(use.tensor, output) for output in use.outputs]
        else:
            early |= set(use.outputs)
    return arcs, early, late


@pytest.mark.parametrize("seed", range(120))
def test_contraction_keeps_every_cut(seed: int) -> None:
    """A random cascade: tensors made sweep by sweep from one to three earlier ones."""
    rng = np.random.default_rng(seed)
    count, last = int(rng.integers(3, 14)), int(rng.integers(2, 6))
    names = [f"T{k}" for k in range(count)]
    when = np.sort(rng.integers(1, last + 1, count)).tolist()
    inputs = int(rng.integers(1, 3))
    made = {n: w for n, w in zip(names[inputs:], when[inputs:], strict=True)}
    price = dict(zip(names, rng.permutation(count * 3)[:count].tolist(), strict=True))
    sources = frozenset(names[:inputs]) | {n for n in names if rng.random() < 0.1}
    uses = [
        Use(str(source), made[name], (name,), rng.random() < 0.9)
        for place, name in enumerate(names)
        if name in made
        for source in rng.permutation(names[:place])[: rng.integers(1, 4)]
        if made.get(str(source), 1) <= made[name]
    ]
    uses += [Use(n, int(rng.integers(made.get(n, 1), last + 1)), ()) for n in names]
    found = list(crossings(uses, made, sources, price.__getitem__, last))
    assert len(found) == last - 1
    for after, stored in enumerate(found, start=1):
        arcs, early, late = _whole(uses, made, sources, after)
        expected = minimum_cut(arcs, early, late, price)
        assert sum(price[t] for t in stored) == sum(price[t] for t in expected)
        prices = {t: p for t, p in price.items() if t not in stored}
        assert not _reaches(arcs, early - stored, late - stored, set(prices))


def _reaches(arcs: list[tuple[str, str]], early: set[str], late: set[str], left: set[str]) -> bool:
    found, pending = set(early), list(early)
    while pending:
        tensor = pending.pop()
        more = {b for a, b in arcs if a == tensor and b in left} - found
        found |= more
        pending += more
    return bool(found & late)


def test_origins_are_the_inputs_upstream() -> None:
    uses = [Use("A", 1, ("C",)), Use("B", 1, ("C", "D")), Use("C", 2, ("E",), aligned=False)]
    found = origins(uses, frozenset({"A", "B"}))
    assert found["C"] == {"A", "B"} and found["D"] == {"B"} and "E" not in found


def test_long_chains_are_counted_in_time_that_grows_with_them() -> None:
    """400 normalisations in a chain: the sums are barriers, one fiber crosses each."""

    def seconds(length: int) -> float:
        text = f"rank M\ninput X0[M]\noutput X{length}\n"
        for k in range(length):
            text += f"S{k}[] = X{k}[m] :: +(m)\nX{k + 1}[m] = X{k}[m] / S{k}[]\n"
        cascade = parse(text)
        start = time.process_time()
        report = count_passes(cascade, "M")
        spent = time.process_time() - start
        assert report.passes == length + 1 and report.footprint == {"M": "M + 3"}
        return spent

    short, long = seconds(100), seconds(400)
    assert long < 12 * short + 0.2  # 4 times as long; a quadratic count takes 16 times as long
