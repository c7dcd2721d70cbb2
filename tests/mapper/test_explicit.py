"""The least-cost mapping under explicit retention, against counting every mapping there is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, permutations, product
from typing import Any

import numpy as np
import pytest

from einfuse.einsum.parser import parse
from einfuse.mapper.architecture import Architecture, parse_architecture
from einfuse.mapper.counting import count
from einfuse.mapper.counts import Problem
from einfuse.mapper.design import parse_design
from einfuse.mapper.errors import MappingError
from einfuse.mapper.explicit_search import ExplicitSpace, Rule, find_least, to_lines
from einfuse.mapper.facts import Facts, facts
from einfuse.mapper.mapping import parse_nest
from einfuse.simulator.model import evaluate

PRODUCT = "rank M, K, N\ninput A[M,K], B[K,N]\noutput C\nC[m,n] = A[m,k] * B[k,n]\n"
CHAIN = (
    "rank M, K, N, J\ninput A[M,K], B[K,N], D[N,J]\noutput C\n"
    "T[m,n] = A[m,k] * B[k,n]\nC[m,j] = T[m,n] * D[n,j]\n"
)
ROLES = ("input", "weight", "output")
PRICES = ("dram.read_pj", "dram.write_pj", "buffer.read_pj", "buffer.write_pj")


def machine(words: float, prices: tuple[float, ...]) -> Architecture:
    memory = {"access_bytes": 2, "read_pj": 1, "write_pj": 1}
    content = {
        "schema": 1,
        "name": "tiny",
        "clock_hz": 1,
        "memories": {"dram": memory, "buffer": {**memory, "bytes": 2 * words}},
        "units": {
            "unit": {
                "lanes": 1,
                "registers": {"depth": 1, "read_pj": 0, "write_pj": 0},
                "operations": {"mac": {"energy_pj": 0}, "exp": {"energy_pj": 0}},
            }
        },
    }
    settings = dict(zip(PRICES, prices, strict=True))
    return parse_architecture(content, "tiny").with_settings(settings)


def chains(size: int, length: int) -> list[tuple[int, ...]]:
    """The tiles of a rank at each of some places, each dividing the one before."""
    tiles = [d for d in range(1, size + 1) if size % d == 0]
    return [
        c
        for c in product(tiles, repeat=length)
        if all(a % b == 0 for a, b in zip((size, *c), c, strict=False))
    ]


def price(counts: Any, prices: tuple[float, ...]) -> Any:
    cost: Any = 0.0
    by_level = {"dram": prices[:2], "buffer": prices[2:]}
    for (_, _, level), traffic in counts.traffic.items():
        if level in by_level:
            read, write = by_level[level]
            cost = cost + traffic.reads * read + traffic.writes * write
    return cost


def least_of_all(
    known: Facts, sizes: dict[str, int], words: float, prices: tuple[float, ...], must: bool
) -> float:
    """Count every order of homes with every tile at each; the least cost that fits."""
    ranks = ("M", "K", "N")
    every = list(product(*(chains(sizes[r], 3) for r in ranks)))
    names = {
        f"{rank.lower()}{place}": np.array([float(way[n][place]) for way in every])
        for n, rank in enumerate(ranks)
        for place in range(3)
    }
    problem = Problem(
        known, sizes, names, {"unit": {"lanes": 1}}, ("dram", "buffer"), "explicit", drains="read"
    )
    best = np.inf
    for kept in [("A", "B", "C")] if must else _kept():
        for order in permutations(kept):
            lines = []
            for place, tensor in enumerate(order):
                lines += [f"for {r} in {r.lower()}{place}" for r in ranks]
                lines.append(f"keep {tensor} at buffer")
            lines += [f"for {r}" for r in ranks] + ["compute C on unit"]
            counts = count(parse_nest(lines), problem)
            fits = np.asarray(counts.peak_words.get("buffer", 0.0)) <= words
            cost = np.where(fits, price(counts, prices), np.inf)
            best = min(best, float(np.min(cost)))
    return best


def _kept() -> Iterator[tuple[str, ...]]:
    for some in product((False, True), repeat=3):
        yield tuple(t for t, keep in zip("ABC", some, strict=True) if keep)


@pytest.mark.parametrize("seed", range(12))
def test_the_optimum_of_a_product_is_that_of_counting_all(seed: int) -> None:
    draw = random.Random(seed)
    sizes = {rank: draw.choice([1, 2, 3, 4, 6]) for rank in ("M", "K", "N")}
    words = draw.choice([3, 4, 6, 9, 14, 30, 1000])
    prices = tuple(draw.choice([1.0, 3.0, 10.0, 0.5]) for _ in PRICES)
    must = draw.random() < 0.5
    known = facts(parse(PRODUCT))
    rule = Rule(must=ROLES) if must else Rule(may=ROLES)
    space = ExplicitSpace(known, machine(words, prices), sizes, {"buffer": rule})
    wanted = least_of_all(known, sizes, words, prices, must)
    assert find_least(space).cost == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_found_costs_what_evaluate_says(seed: int) -> None:
    draw = random.Random(seed)
    sizes = {rank: draw.choice([2, 3, 4, 6, 12]) for rank in ("M", "K", "N", "J")}
    words = draw.choice([6, 12, 40, 200])
    prices = tuple(draw.choice([1.0, 3.0, 10.0]) for _ in PRICES)
    architecture = machine(words, prices)
    space = ExplicitSpace(facts(parse(CHAIN)), architecture, sizes, {"buffer": Rule(may=ROLES)})
    found = find_least(space)
    content = {
        "schema": 1,
        "name": "found",
        "cascade": "peer/matmuls",
        "architecture": "simple",
        "retention": "explicit",
        "drains": "read",
        "composition": "sequential",
        "mapping": ["for M", "for N0", "for N1", "compute T1 on MAC"],
    }
    design = replace(
        parse_design(content, "found"),
        cascade=parse(CHAIN),
        architecture=architecture,
        nest=parse_nest(to_lines(space, found)),
    )
    assert evaluate(design, sizes).energy_pj == pytest.approx(found.cost, rel=1e-12)


def test_fusing_is_found_where_it_saves_main_memory() -> None:
    """T[m,n] whole does not fit 40 words, a row of it does: it never crosses main memory."""
    sizes = {"M": 16, "K": 4, "N": 8, "J": 4}
    prices = (100.0, 100.0, 0.01, 0.01)
    space = ExplicitSpace(
        facts(parse(CHAIN)), machine(90, prices), sizes, {"buffer": Rule(may=ROLES)}
    )
    found = find_least(space)
    assert [block.tiled for block in found.blocks] == [("T",)]
    unfused = find_least(replace(space, fused_loops=0, _kept={}))
    assert len(unfused.blocks) == 2
    compulsory = 100 * (16 * 4 + 4 * 8 + 8 * 4 + 16 * 4)
    assert compulsory < found.cost < compulsory * 1.01 < unfused.cost


def test_more_room_and_more_freedom_never_cost_more() -> None:
    sizes = {"M": 8, "K": 12, "N": 6, "J": 10}
    known = facts(parse(CHAIN))
    before = np.inf
    for words in (8, 16, 40, 100, 400):
        space = ExplicitSpace(
            known, machine(words, (9.0, 7.0, 1.0, 2.0)), sizes, {"buffer": Rule(may=ROLES)}, 1
        )
        cost = find_least(space).cost
        assert cost <= before * (1 + 1e-12)
        assert find_least(replace(space, fused_loops=None, _kept={})).cost <= cost * (1 + 1e-12)
        before = cost


def test_no_room_is_said() -> None:
    space = ExplicitSpace(
        facts(parse(PRODUCT)),
        machine(2, (1.0, 1.0, 1.0, 1.0)),
        {"M": 4, "K": 4, "N": 4},
        {"buffer": Rule(must=ROLES)},
    )
    with pytest.raises(MappingError, match="no mapping has room"):
        find_least(space)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16))
def test_the_optimum_of_two_fused_products_is_that_of_counting_all(seed: int) -> None:
    """T in tiles beneath a loop over M or N, or whole, or in main memory; some stand above."""
    draw = random.Random(seed)
    sizes = {rank: draw.choice([2, 4] if rank == "M" else [1, 2]) for rank in ("M", "K", "N", "J")}
    words = draw.choice([6, 10, 14])
    prices = (draw.choice([5.0, 20.0]), draw.choice([5.0, 20.0]), 1.0, draw.choice([0.5, 2.0]))
    known = facts(parse(CHAIN))
    rule = {"buffer": Rule(must=ROLES)}
    found = find_least(ExplicitSpace(known, machine(words, prices), sizes, rule, 1))
    assert found.cost == pytest.approx(_least_of_two(known, sizes, words, prices), rel=1e-12)


def _least_of_two(
    known: Facts, sizes: dict[str, int], words: float, prices: tuple[float, ...]
) -> float:
    own = {"T": (("A", "B", "T"), ("M", "K", "N")), "C": (("T", "D", "C"), ("M", "N", "J"))}
    best = np.inf
    shared = [
        ("", 1),
        *((r, t) for r in ("M", "N") for t in range(1, sizes[r]) if sizes[r] % t == 0),
    ]
    apart = {"M": ("B", "D"), "N": ("A", "C"), "": ()}  # what a shared loop would bring again
    choices = [
        (rank, tile, place, standing)
        for rank, tile in shared
        for place in ("dram", "buffer")
        if place == "buffer" or not rank
        for number in range(len(apart[rank]) + 1)
        for standing in combinations(apart[rank], number)
    ]
    for rank, tile, place, standing in choices:
        extents = {**sizes, rank: tile}
        top = [f"keep {tensor} at buffer" for tensor in standing]
        top += [f"for {rank} in {tile}"] if rank else []
        top.append(f"keep T at {place}")
        near = {*standing, *(["T"] if place == "buffer" else [])}
        ways: dict[str, list[list[str]]] = {}
        names: dict[str, Any] = {}
        for einsum, (tensors, ranks) in own.items():
            kept = [tensor for tensor in tensors if tensor not in near]
            every = list(product(*(chains(extents[r], len(kept)) for r in ranks)))
            for n, r in enumerate(ranks):
                for p in range(len(kept)):
                    column = np.array([float(way[n][p]) for way in every])
                    names[f"{einsum}{r}{p}".lower()] = (
                        column[:, None] if einsum == "T" else column[None, :]
                    )
            ways[einsum] = []
            for order in permutations(kept):
                lines: list[str] = []
                for p, tensor in enumerate(order):
                    lines += [f"for {r} in {f'{einsum}{r}{p}'.lower()}" for r in ranks]
                    lines.append(f"keep {tensor} at buffer")
                lines += [f"for {r}" for r in ranks]
                ways[einsum].append([*lines, f"compute {einsum} on unit"])
        problem = Problem(
            known, sizes, names, {"unit": {"lanes": 1}}, ("dram", "buffer"), "explicit",
            drains="read",
        )  # fmt: skip
        for first, second in product(ways["T"], ways["C"]):
            counts = count(parse_nest([*top, {"branch": [first, second]}]), problem)
            fits = np.asarray(counts.peak_words.get("buffer", 0.0)) <= words
            best = min(best, float(np.min(np.where(fits, price(counts, prices), np.inf))))
    return best
