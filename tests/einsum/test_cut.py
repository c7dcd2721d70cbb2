"""Minimum vertex cuts against every subset."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from einfuse.einsum.analysis.minimum_cut import minimum_cut

NAMES = "ABCDEFG"


@st.composite
def networks(draw: st.DrawFn) -> tuple[set[tuple[str, str]], set[str], set[str], dict[str, int]]:
    """Small graphs that run forwards in the alphabet, with prices."""
    pairs = list(itertools.combinations(NAMES, 2))
    arcs = set(draw(st.lists(st.sampled_from(pairs), max_size=10)))
    early = set(draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=2)))
    late = set(draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=2)))
    prices = {name: draw(st.integers(1, 9)) for name in NAMES}
    return arcs, early, late, prices


def separates(
    cut: frozenset[str], arcs: set[tuple[str, str]], early: set[str], late: set[str]
) -> bool:
    reached = set(early - cut)
    while more := {b for a, b in arcs if a in reached and b not in reached | cut}:
        reached |= more
    return not reached & late


@settings(max_examples=150, deadline=None, derandomize=True)
@given(networks())
def test_minimum_cuts_agree_with_exhaustion(
    network: tuple[set[tuple[str, str]], set[str], set[str], dict[str, int]],
) -> None:
    arcs, early, late, prices = network
    found = minimum_cut(arcs, early, late, prices)
    assert separates(found, arcs, early, late)
    subsets = itertools.chain.from_iterable(
        itertools.combinations(NAMES, n) for n in range(len(NAMES) + 1)
    )
    best = min(
        sum(prices[t] for t in subset)
        for subset in subsets
        if separates(frozenset(subset), arcs, early, late)
    )
    assert sum(prices[t] for t in found) == best


def test_of_equal_cuts_the_latest_is_taken() -> None:
    chain = [("A", "B"), ("B", "C")]
    assert minimum_cut(chain, ["A"], ["C"], dict.fromkeys("ABC", 1)) == {"C"}


def test_a_tensor_without_a_price_is_not_cut() -> None:
    assert minimum_cut([("A", "B")], ["A"], ["B"], {"A": 5}) == {"A"}
