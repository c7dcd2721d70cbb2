"""The search under sequential composition, against counting every mapping there is."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from itertools import combinations, permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from einfuse.einsum.language.parser import parse
from einfuse.einsum.library.cascades import load
from einfuse.mapper.design.design import load_design
from einfuse.mapper.errors import MappingError
from einfuse.mapper.machine.architecture import Architecture, load_architecture, parse_architecture
from einfuse.mapper.nest.counting import count
from einfuse.mapper.nest.nest import parse_nest
from einfuse.mapper.nest.reuse import Counts, Problem
from einfuse.mapper.nest.workload import Facts, facts
from einfuse.mapper.search.export import to_design, to_yaml
from einfuse.mapper.search.search import SearchResult, find_best
from einfuse.mapper.sequential.nest import ExplicitPlan
from einfuse.mapper.space.constraints import ROLES, Constraints, Homes, parse_constraints
from einfuse.mapper.space.space import MapSpace
from einfuse.simulator.cost.model import evaluate
from einfuse.simulator.cost.objectives import find_objective

PRODUCT = "rank M, K, N\ninput A[M,K], B[K,N]\noutput C\nC[m,n] = A[m,k] * B[k,n]\n"
CHAIN = (
    "rank M, K, N, J\ninput A[M,K], B[K,N], D[N,J]\noutput C\n"
    "T[m,n] = A[m,k] * B[k,n]\nC[m,j] = T[m,n] * D[n,j]\n"
)
OBJECTIVES = ("energy", "latency", "edp", "traffic", "buffer")
PRICES = ("dram.read_pj", "dram.write_pj", "buffer.read_pj", "buffer.write_pj")
BANDWIDTHS = (
    "dram.bandwidth_bytes_per_s",
    "buffer.read_bandwidth_bytes_per_s",
    "buffer.write_bandwidth_bytes_per_s",
)
MAY = {"buffer": Homes(may=ROLES)}
MUST = {"buffer": Homes(must=ROLES)}


def machine(
    words: float,
    prices: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
    bandwidths: tuple[float, ...] = (2.0, 8.0, 4.0),
    lanes: int = 1,
) -> Architecture:
    memory = {"access_bytes": 2, "read_pj": 1, "write_pj": 1}
    content = {
        "schema": 1,
        "name": "tiny",
        "clock_hz": 1,
        "memories": {"dram": memory, "buffer": {**memory, "bytes": 2 * words}},
        "units": {
            "unit": {
                "lanes": lanes,
                "registers": {"depth": 1, "read_pj": 0, "write_pj": 0},
                "operations": {"mac": {"energy_pj": 0}, "exp": {"energy_pj": 0}},
            }
        },
    }
    settings = dict(zip((*PRICES, *BANDWIDTHS), (*prices, *bandwidths), strict=True))
    return parse_architecture(content, "tiny").with_settings(settings)


def counting(
    homes: dict[str, Homes] | None, fused_loops: int | None = None, drains: str = "read"
) -> Constraints:
    given = {"retention": "explicit", "drains": drains, "composition": "sequential"}
    return Constraints.model_validate({**given, "homes": homes, "fused_loops": fused_loops})


def search(
    text: str, architecture: Architecture, sizes: dict[str, int], given: Constraints, name: str
) -> SearchResult:
    space = MapSpace(parse(text), architecture, sizes, given)
    return find_best(space, find_objective(name, architecture))


def chains(size: int, length: int) -> list[tuple[int, ...]]:
    """The tiles of a rank at each of some places, each dividing the one before."""
    tiles = [d for d in range(1, size + 1) if size % d == 0]
    return [
        c
        for c in product(tiles, repeat=length)
        if all(a % b == 0 for a, b in zip((size, *c), c, strict=False))
    ]


def score(name: str, counts: Counts, architecture: Architecture) -> Any:
    """What a mapping costs, worked out by hand from what it moves."""
    values = architecture.parameters
    energy: Any = 0.0
    moved: dict[tuple[str, str], list[Any]] = {}
    for (einsum, _, level), traffic in counts.traffic.items():
        if level != "registers":
            energy = energy + traffic.reads * values[f"{level}.read_pj"]
            energy = energy + traffic.writes * values[f"{level}.write_pj"]
            known = moved.setdefault((einsum, level), [0.0, 0.0])
            moved[einsum, level] = [known[0] + traffic.reads, known[1] + traffic.writes]
    dram, read, write = (values[path] for path in BANDWIDTHS)
    seconds: Any = 0.0
    for einsum, work in counts.work.items():
        outer = moved.get((einsum, "dram"), [0.0, 0.0])
        inner = moved.get((einsum, "buffer"), [0.0, 0.0])
        own = np.maximum(work.steps, 2 * (outer[0] + outer[1]) / dram)
        own = np.maximum(own, 2 * inner[0] / read)
        seconds = seconds + np.maximum(own, 2 * inner[1] / write)
    outermost = [m for (_, level), m in moved.items() if level == "dram"]
    return {
        "energy": energy,
        "latency": seconds,
        "edp": energy * seconds,
        "traffic": 2 * sum(reads + writes for reads, writes in outermost),
        "buffer": 2 * np.asarray(counts.peak_words.get("buffer", 0.0)),
    }[name]


def least_of_all(
    name: str, known: Facts, sizes: dict[str, int], architecture: Architecture, must: bool
) -> float:
    """Count every order of homes with every tile at each; the least cost that fits.

    Two lanes, if there are, lie along any rank whose tiles they share.
    """
    ranks = ("M", "K", "N")
    values = architecture.parameters
    lanes, words = int(values["unit.lanes"]), values["buffer.bytes"] / 2
    best = np.inf
    spread = [r for r in ranks if sizes[r] % lanes == 0] if lanes > 1 else []
    for along in spread or [None]:
        every = [
            way
            for way in product(*(chains(sizes[r], 3) for r in ranks))
            if along is None or all(tile % lanes == 0 for tile in way[ranks.index(along)])
        ]
        names = {
            f"{rank.lower()}{place}": np.array([float(way[n][place]) for way in every])
            for n, rank in enumerate(ranks)
            for place in range(3)
        }
        inner = [f"for {r}" for r in ranks if r != along]
        inner += (
            [] if along is None else [f"for {along} in {lanes}", f"parallel {along} over lanes"]
        )
        problem = Problem(
            known, sizes, names, {"unit": {"lanes": lanes}}, ("dram", "buffer"), "explicit",
            drains="read",
        )  # fmt: skip
        for kept in [("A", "B", "C")] if must else _kept():
            for order in permutations(kept):
                lines = []
                for place, tensor in enumerate(order):
                    lines += [f"for {r} in {r.lower()}{place}" for r in ranks]
                    lines.append(f"keep {tensor} at buffer")
                counts = count(parse_nest([*lines, *inner, "compute C on unit"]), problem)
                fits = np.asarray(counts.peak_words.get("buffer", 0.0)) <= words
                cost = np.where(fits, score(name, counts, architecture), np.inf)
                best = min(best, float(np.min(cost)))
    return best


def _kept() -> Iterator[tuple[str, ...]]:
    for some in product((False, True), repeat=3):
        yield tuple(t for t, keep in zip("ABC", some, strict=True) if keep)


def check_a_product(seed: int, name: str) -> None:
    draw = random.Random(f"{seed} {name}")
    sizes = {rank: draw.choice([1, 2, 3, 4, 6]) for rank in ("M", "K", "N")}
    words = draw.choice([6, 9, 14, 30, 1000])
    prices = tuple(draw.choice([1.0, 3.0, 10.0, 0.5]) for _ in PRICES)
    bandwidths = tuple(draw.choice([0.5, 1.0, 4.0, 16.0]) for _ in BANDWIDTHS)
    architecture = machine(words, prices, bandwidths, draw.choice([1, 1, 2]))
    must = draw.random() < 0.5
    found = search(PRODUCT, architecture, sizes, counting(MUST if must else MAY), name)
    wanted = least_of_all(name, facts(parse(PRODUCT)), sizes, architecture, must)
    assert found.optimal
    assert found.score == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("seed", range(3))
def test_the_optimum_of_a_product_is_that_of_counting_all(seed: int, name: str) -> None:
    check_a_product(seed, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("seed", range(3, 40))
def test_the_optimum_of_many_products_is_that_of_counting_all(seed: int, name: str) -> None:
    check_a_product(seed, name)


def equals_evaluate(found: SearchResult) -> None:
    """Every figure of every mapping found is what its design evaluates to."""
    for one in found.solutions:
        own = evaluate(to_design(found.space, one.plan), dict(found.space.shape))
        known = {
            "seconds": own.seconds,
            "energy_pj": own.energy_pj,
            "dram_bytes": own.dram_bytes,
            "peak_bytes": own.peak_bytes.get(found.space.memories[1], 0),
        }
        for figure, value in zip(found.objective.figures, one.figures, strict=True):
            assert value == pytest.approx(known[figure], rel=1e-12), figure


@pytest.mark.parametrize("seed", range(2))
def test_what_is_found_costs_what_evaluate_says(seed: int) -> None:
    draw = random.Random(seed)
    sizes = {rank: draw.choice([2, 3, 4, 6, 12]) for rank in ("M", "K", "N", "J")}
    architecture = machine(
        draw.choice([12, 40, 200]),
        tuple(draw.choice([1.0, 3.0, 10.0]) for _ in PRICES),
        tuple(draw.choice([1.0, 4.0]) for _ in BANDWIDTHS),
        draw.choice([1, 2, 4]),
    )
    given = counting(MAY, drains=draw.choice(["free", "read"]))
    for name in ("energy", "latency,energy,traffic,buffer"):
        equals_evaluate(search(CHAIN, architecture, sizes, given, name))


def test_fusing_is_found_where_it_saves_main_memory() -> None:
    """T[m,n] whole does not fit 40 words, a row of it does: it never crosses main memory."""
    sizes = {"M": 16, "K": 4, "N": 8, "J": 4}
    architecture = machine(90, (100.0, 100.0, 0.01, 0.01))
    found = search(CHAIN, architecture, sizes, counting(MAY), "energy")
    assert isinstance(found.best.plan, ExplicitPlan)
    assert [block.tiled for block in found.best.plan.blocks] == [("T",)]
    unfused = search(CHAIN, architecture, sizes, counting(MAY, 0), "energy")
    assert isinstance(unfused.best.plan, ExplicitPlan)
    assert len(unfused.best.plan.blocks) == 2
    compulsory = 100 * (16 * 4 + 4 * 8 + 8 * 4 + 16 * 4)
    assert compulsory < found.score < compulsory * 1.01 < unfused.score


@pytest.mark.parametrize("name", ["energy", "latency"])
def test_more_room_and_more_freedom_never_cost_more(name: str) -> None:
    sizes = {"M": 8, "K": 12, "N": 6, "J": 10}
    before = np.inf
    for words in (8, 60):
        architecture = machine(words, (9.0, 7.0, 1.0, 2.0), (1.0, 4.0, 4.0))
        cost = search(CHAIN, architecture, sizes, counting(MAY, 1), name).score
        assert cost <= before * (1 + 1e-12)
        free = search(CHAIN, architecture, sizes, counting(MAY), name).score
        assert free <= cost * (1 + 1e-12)
        before = cost


def test_no_room_is_said() -> None:
    sizes = {"M": 4, "K": 4, "N": 4}
    with pytest.raises(MappingError, match=r"no mapping has room: .* 2 bytes more than buffer"):
        search(PRODUCT, machine(2), sizes, counting(MUST), "energy")


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("seed", range(16))
def test_the_optimum_of_two_fused_products_is_that_of_counting_all(seed: int, name: str) -> None:
    """T in tiles beneath a loop over M or N, or whole, or in main memory; some stand above."""
    draw = random.Random(seed)
    sizes = {rank: draw.choice([2, 4] if rank == "M" else [1, 2]) for rank in ("M", "K", "N", "J")}
    words = draw.choice([6, 10, 14])
    prices = (draw.choice([5.0, 20.0]), draw.choice([5.0, 20.0]), 1.0, draw.choice([0.5, 2.0]))
    architecture = machine(words, prices, (draw.choice([0.5, 4.0]), 4.0, draw.choice([1.0, 8.0])))
    found = search(CHAIN, architecture, sizes, counting(MUST, 1), name)
    wanted = _least_of_two(name, facts(parse(CHAIN)), sizes, architecture)
    assert found.score == pytest.approx(wanted, rel=1e-12)


def _least_of_two(
    name: str, known: Facts, sizes: dict[str, int], architecture: Architecture
) -> float:
    words = architecture.parameters["buffer.bytes"] / 2
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
            cost = np.where(fits, score(name, counts, architecture), np.inf)
            best = min(best, float(np.min(cost)))
    return best


# As a user has it: files in, files out.


def test_a_mapping_goes_back_into_evaluate_with_the_same_numbers(tmp_path: Path) -> None:
    machine = load_architecture("nvdla")
    given = parse_constraints(
        {
            "retention": "explicit",
            "drains": "read",
            "composition": "sequential",
            "homes": {
                "GlobalBuffer": {"must": ["input", "weight", "output"]},
                "registers": {"must": ["weight"]},
            },
            "fused_loops": 1,
        },
        "here",
    )
    shape = {"B": 1, "H": 2, "M": 64, "P": 64, "E": 16, "F": 16}
    space = MapSpace(load("peer/attention"), machine, shape, given)
    found = find_best(space, find_objective("edp", machine))
    path = tmp_path / "found.yaml"
    path.write_text(to_yaml(space, found.best.plan, "found", {"objective": "edp"}))
    again = evaluate(load_design(path), shape)
    assert again.energy_pj is not None
    assert again.seconds * again.energy_pj == pytest.approx(found.score, rel=1e-12)
    assert found.optimal and found.gap == 0 and found.candidates > 0 and found.structures > 0


def test_registers_that_cost_something_are_counted() -> None:
    settings = {"unit.registers.read_pj": 0.3, "unit.registers.write_pj": 0.7}
    for lanes in (1, 2):
        architecture = machine(40, lanes=lanes).with_settings(settings)
        sizes = {"M": 2, "K": 2, "N": 4}
        equals_evaluate(search(PRODUCT, architecture, sizes, counting(None), "energy,latency"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"composition": "sequential"}, "retention: explicit, found retention: trailing"),
        ({"drains": "read"}, "'drains' is known to the search under retention: explicit"),
        ({"homes": {"buffer": {"may": ["input"]}}}, "'homes' is known to the search"),
        ({"fused_loops": 1}, "'fused_loops' is known to the search"),
    ],
)
def test_counting_that_no_search_knows_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(MappingError, match=said):
        parse_constraints(given, "here")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tiles": {"P": 4}}, "does not know 'tiles': its tiles are divisors"),
        ({"tile_choices": "ragged"}, "does not know 'tile_choices'"),
        ({"double": ["A"]}, "does not know 'double': it keeps every tensor once"),
    ],
)
def test_what_this_search_does_not_know_is_refused(given: dict[str, Any], said: str) -> None:
    counted = {"retention": "explicit", "composition": "sequential"}
    with pytest.raises(MappingError, match=said):
        parse_constraints({**counted, **given}, "here")


def test_names_that_are_not_there_are_refused() -> None:
    sizes = {"M": 4, "K": 4, "N": 4}
    for homes, said in (
        ({"bufer": Homes(may=("A",))}, "unknown level 'bufer'; did you mean 'buffer'"),
        ({"buffer": Homes(must=("inputs",))}, "found 'inputs'; did you mean 'input'"),
    ):
        with pytest.raises(MappingError, match=said):
            search(PRODUCT, machine(40), sizes, counting(homes), "energy")


def test_iterative_ranks_are_refused() -> None:
    fusemax = load_architecture("fusemax")
    shape = {"M": 64, "P": 64, "E": 16, "F": 16}
    space = MapSpace(load("attention/1-pass"), fusemax, shape, counting(None))
    with pytest.raises(MappingError, match="knows no iterative ranks"):
        find_best(space, find_objective("energy", fusemax))


def test_a_search_that_is_stopped_says_how_far_it_may_be_off() -> None:
    nvdla = load_architecture("nvdla")
    shape = {"B": 1, "H": 4, "M": 256, "P": 256, "E": 16, "F": 16}
    space = MapSpace(load("peer/attention"), nvdla, shape, counting(None))
    said: list[str] = []

    def stop(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            raise KeyboardInterrupt

    found = find_best(space, find_objective("energy", nvdla), report=stop)
    assert said[0].startswith("best so far")
    assert not found.optimal and 0 < found.gap <= 1
    equals_evaluate(found)


def test_constraints_on_groups_units_and_levels_hold() -> None:
    sizes = {"M": 16, "K": 4, "N": 8, "J": 4}
    architecture = machine(90, (100.0, 100.0, 0.01, 0.01))

    def blocks(**more: Any) -> list[tuple[str, ...]]:
        given = counting(MAY).model_copy(update=more)
        found = search(CHAIN, architecture, sizes, given, "energy")
        equals_evaluate(found)
        assert isinstance(found.best.plan, ExplicitPlan)
        return [block.einsums for block in found.best.plan.blocks]

    assert blocks() == [("T", "C")]
    assert blocks(split=(("T", "C"),)) == [("T",), ("C",)]
    assert blocks(fuse=(("T", "C"),), exchange=()) == [("T", "C")]
    given = counting(MAY).model_copy(update={"keep": {"A": ("dram",)}})
    plan = search(CHAIN, architecture, sizes, given, "energy").best.plan
    assert isinstance(plan, ExplicitPlan)
    rows = [row for block in plan.blocks for row in block.rows if "A" in row.feeding]
    assert [row.feeding["A"] for row in rows] == [-1]


def test_a_result_goes_to_another_process_and_back() -> None:
    found = search(CHAIN, machine(40), {"M": 4, "K": 2, "N": 2, "J": 2}, counting(MAY), "energy")
    again = pickle.loads(pickle.dumps(found))
    first, second = (to_design(one.space, one.best.plan).nest for one in (found, again))
    assert first == second and again.score == found.score
