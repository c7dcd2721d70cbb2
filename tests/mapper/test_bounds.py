"""Bounds against what they bound: every way to run an Einsum, counted."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from einfuse.einsum.library.cascades import load
from einfuse.mapper.grouped.bounds import bound_group, bound_work
from einfuse.mapper.grouped.group_tree import GroupTree
from einfuse.mapper.grouped.tile_bounds import least_transfers
from einfuse.mapper.machine.architecture import load_architecture
from einfuse.mapper.nest.loops import loop_in_time
from einfuse.mapper.nest.pieces import count_leaf
from einfuse.mapper.space.memo import Pieces
from einfuse.mapper.space.objective import Numbers
from einfuse.mapper.space.space import MapSpace
from einfuse.mapper.space.tile_sizes import group_tiles
from einfuse.simulator.cost.objectives import find_objective

SHAPES = [
    {"B": 1, "H": 1, "E": 64, "F": 64, "M": 512, "P": 1024},
    {"B": 2, "H": 1, "E": 300, "F": 7, "M": 96, "P": 5},
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["QK", "GM", "SN", "SD", "A", "AV"])
def test_no_way_to_run_an_einsum_takes_less_than_its_bound(
    name: str, shape: dict[str, int]
) -> None:
    """Also where lanes add up their parts: each one's first word is its own."""
    free = dict.fromkeys(
        (f"{m}.{side}_pj" for m in ("dram", "buffer", "staging") for side in ("read", "write")), 0.0
    )
    architecture = load_architecture("flat").with_settings(free)  # registers and operations alone
    space = MapSpace(load("attention/3-pass"), architecture, shape)
    objective = find_objective("energy", architecture)
    (bound,) = bound_group(Pieces(space, objective), (name,), shape)
    einsum = space.facts.einsums[name]
    ranks = tuple(r for r in space.legality.order if r in einsum.ranks and shape[r] > 1)
    found: list[float] = []
    for outer in (None, *ranks):
        tiles: dict[str, Numbers | float] = {rank: float(size) for rank, size in shape.items()}
        above = []
        if outer is not None:
            above = [loop_in_time(outer, tiles[outer], 4)]
            tiles[outer] = 4.0
        for leaf in space.leaves(name, ranks):
            lanes = space.lanes[leaf.unit]
            counts = count_leaf(
                einsum, leaf, above, tiles, lanes, shape, space.constraints.retention
            )
            found.append(float(objective.compute(counts.work, counts.registers)["energy_pj"]))
    assert len(found) > 4
    assert bound <= min(found) * (1 + 1e-12)
    assert bound > 0.5 * min(found)  # and says something


@pytest.mark.parametrize("objective", ["energy", "traffic"])
@pytest.mark.parametrize("name", ["attention/1-pass", "attention/3-pass"])
def test_no_choices_of_a_structure_move_less_than_its_bound(name: str, objective: str) -> None:
    """Every storage, tile of a block, leaf and forwarding counted, where there is room for all."""
    ample = {"buffer.bytes": 2.0**40, "staging.bytes": 2.0**40}
    architecture = load_architecture("fusemax").with_settings(ample)
    shape = {"B": 1, "H": 2, "E": 8, "F": 4, "M": 16, "P": 16}
    space = MapSpace(load(name), architecture, shape)
    pieces = Pieces(space, find_objective(objective, architecture))
    sizes = next(iter(space.splits()))
    rows = len(pieces.rows)
    seen = 0
    for start, end in ((1, 2), (0, 2), (0, 3), (2, 7)):
        einsums = space.einsums[start:end]
        for structure in islice(space.structures(einsums), 0, 90, 31):
            for points in group_tiles(space, structure, sizes):
                tree = GroupTree(pieces, structure, sizes, points)
                spare = {level: np.full(tree.count, 2.0**39) for level in pieces.inner_levels}
                bound = least_transfers(tree, spare) + bound_work(pieces, einsums, sizes)
                least = tree.base() + sum(choice.bound for choice in tree.choices())
                assert (bound[:rows] <= least[:rows] * (1 + 1e-9)).all()
                assert (bound[:rows].max(axis=0) > 0).all()
                seen += 1
    assert seen >= 3
