"""How many mappings the search costs in full in a second, on one core."""

from __future__ import annotations

from itertools import islice
from time import process_time

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from einfuse.einsum.library.cascades import load
from einfuse.mapper.grouped.group_tree import GroupTree
from einfuse.mapper.machine.architecture import load_architecture
from einfuse.mapper.search.search import find_best
from einfuse.mapper.space.choices import Interrupted, Rules, Tally, solve
from einfuse.mapper.space.constraints import Constraints
from einfuse.mapper.space.front import Front
from einfuse.mapper.space.memo import Pieces
from einfuse.mapper.space.objective import Numbers
from einfuse.mapper.space.space import MapSpace
from einfuse.simulator.cost.objectives import find_objective


class Everything(Front):
    """A front that lets everything in, so that nothing is pruned, and keeps nothing."""

    def improves(self, bounds: Numbers) -> Numbers:
        return np.ones(bounds.shape[1], dtype=bool)

    def add_all(self, points: Numbers) -> list[int]:
        return []


@pytest.mark.slow
def test_mappings_of_attention_a_second_in_full(benchmark: BenchmarkFixture) -> None:
    architecture = load_architecture("fusemax")
    shape = {"B": 64, "H": 12, "E": 64, "F": 64, "M": 2**20, "P": 2**20}
    ragged = Constraints(tile_choices="ragged", tiles={"M0": (256,)})
    space = MapSpace(load("attention/1-pass"), architecture, shape, ragged)
    objective = find_objective("latency,energy,traffic,buffer", architecture)
    pieces = Pieces(space, objective)
    (sizes,) = space.splits()
    structure = next(iter(space.structures(space.einsums)))
    axes = [space.loop_tiles(rank, sizes[rank], structure.einsums) for rank in structure.loops]
    grid = np.meshgrid(*map(np.array, axes), indexing="ij")
    columns = zip(structure.loops, grid, strict=True)
    points = {rank: column.ravel()[:8192] for rank, column in columns}
    tree = GroupTree(pieces, structure, sizes, points)
    choices, base = tree.choices(), tree.base()
    rows = len(objective.columns)
    overlapped = np.broadcast_to(tree.overlapped, (tree.count,))

    def figures(sums: Numbers, alive: Numbers) -> Numbers:
        return objective.close(sums[:rows], sums[rows], overlapped[alive])

    def count() -> float:
        tally = Tally()
        rules = Rules(figures, (), lambda: tally.candidates > 50_000_000)
        front = Everything(len(objective.figures))
        started = process_time()
        with pytest.raises(Interrupted):
            solve(choices, base, rules, front, tally, lambda *_: None)
        return tally.candidates / (process_time() - started)

    rate = benchmark.pedantic(count, rounds=2)
    benchmark.extra_info["million_mappings_per_second"] = rate / 1e6


@pytest.mark.slow
@pytest.mark.parametrize("length", [2**10, 2**14, 2**20])
def test_the_fastest_mapping_of_attention_is_proven(
    benchmark: BenchmarkFixture, length: int
) -> None:
    architecture = load_architecture("fusemax")
    shape = {"B": 64, "H": 12, "E": 64, "F": 64, "M": length, "P": length}
    space = MapSpace(load("attention/1-pass"), architecture, shape)
    objective = find_objective("latency", architecture)
    assert benchmark.pedantic(find_best, (space, objective), rounds=1).optimal


def test_the_first_structures_of_a_space_come_at_once() -> None:
    shape = {"B": 64, "H": 12, "E": 64, "F": 64, "M": 2**20, "P": 2**20}
    space = MapSpace(load("attention/3-pass"), load_architecture("flat"), shape)
    assert len(list(islice(space.structures(space.einsums), 8))) == 8
