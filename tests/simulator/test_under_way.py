"""Room of what is under way between Einsums that overlap: counted, and at least what lives."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.shape import bind
from einfuse.einsum.library.cascades import load
from einfuse.mapper.search.export import to_design
from einfuse.mapper.space.constraints import Constraints
from einfuse.mapper.space.space import MapSpace, Structure
from einfuse.mapper.space.structures import Group, Home, Inner, Plan, copies, spans
from einfuse.simulator.events.simulation import simulate
from einfuse.simulator.functional.functional import simulate_functional

from .test_functional import machine_for

CHAIN = (
    "rank M, N, K\ninput A[M,K], B[K,N]\noutput Y\nC[m,n] = A[m,k] * B[k,n]\n"
    "S[m,n] = exp(C[m,n])\nT[m,n] = S[m,n] + C[m,n]\nY[m,n] = T[m,n] * A[m,k]\n"
)
CASCADES = {
    "chain": parse(CHAIN, "chain"),
    **{name: load(f"attention/{name}") for name in ("1-pass", "2-pass", "3-pass", "sigmoid")},
}


def draw_group(draw: st.DrawFn, space: MapSpace, sizes: dict[str, int], names: Any) -> Group:
    """Draw a group as a search may choose it, overlapped where it has the tiles for it."""
    structure: Structure = draw(st.sampled_from(list(space.structures(names))))
    pick: Any = lambda items: draw(st.sampled_from(list(items)))  # noqa: E731
    left = dict(sizes)
    loops, number = [], 1
    for rank in structure.loops:
        tile = pick(space.loop_tiles(rank, sizes[rank], names))
        loops.append((rank, tile))
        number *= -(-sizes[rank] // tile)
        left[rank] = tile
    roles = space.roles(names)
    block_of = {n: b for b, block in enumerate(structure.blocks) for n in block}
    inner, leaves, below = [], [], {}
    for block, (own, ranks) in enumerate(zip(structure.blocks, structure.inner, strict=True)):
        under = dict(left)
        chosen = []
        for rank in ranks:
            tile = min(pick(space.loop_tiles(rank, sizes[rank], own)), under[rank])
            chosen.append((rank, tile))
            under[rank] = tile
        inner.append(Inner(block, tuple(chosen)))
        for name in own:
            below[name] = under
            open_ranks = tuple(
                r for r in space.legality.order
                if r in space.facts.einsums[name].ranks and under[r] > 1
            )  # fmt: skip
            leaves.append(pick(space.leaves(name, open_ranks)))
    overlays = space.overlays(structure)
    homes = []
    for tensor, touching in roles.touched_by.items():
        blocks = {block_of[name] for name in touching}
        path = structure.loops
        if len(blocks) == 1:
            path = (*path, *structure.inner[min(blocks)])
        if tensor in roles.outside:
            faces = dict(structure.faces)
            face = faces.get(tensor) or pick(space.face_levels(tensor))
            chain = pick(space.chains(tensor, face, space.depths(tensor, path))) if face else ()
            if chain:
                homes.append(Home(tensor, chain))
            continue
        depth = space.exchange_depth(tensor, path, touching)
        level = space.memories[structure.exchange]
        homes.append(Home(tensor, ((level, depth),), overlaying=overlays.get(tensor)))
    deepest = space.overlap_depth(names)
    overlapped = deepest is not None and number > deepest
    return Group(
        structure.blocks, tuple(loops), tuple(inner), tuple(homes), tuple(leaves), overlapped
    )


@st.composite
def plans(draw: st.DrawFn) -> tuple[MapSpace, Plan]:
    cascade = CASCADES[draw(st.sampled_from(sorted(CASCADES)))]
    wholes = {split.whole for split in cascade.splits}
    free = [rank for rank in cascade.rank_names if rank not in wholes]
    sizes = dict(bind(cascade, {rank: draw(st.sampled_from((2, 4))) for rank in free}))
    if cascade.name != "chain":
        sizes["B"] = draw(st.integers(1, 3))
    machine = machine_for(cascade).with_settings({"buffer.bytes": 1e9, "staging.bytes": 1e9})
    space = MapSpace(cascade, machine, sizes, Constraints(tile_choices="divisors"))
    (every,) = space.splits()
    cuts = [n for n in range(1, len(space.einsums)) if draw(st.integers(0, 3)) == 0]
    groups = []
    for first, last in zip([0, *cuts], [*cuts, len(space.einsums)], strict=True):
        names = space.einsums[first:last]
        assume(any(True for _ in space.structures(names)))  # what is carried stays in one
        groups.append(draw_group(draw, space, dict(every), names))
    return space, Plan(space.open_sizes(every), tuple(groups))


def check(case: tuple[MapSpace, Plan]) -> None:
    space, plan = case
    design = to_design(space, plan)
    found = simulate_functional(design, dict(space.shape))
    assert found.max_error < 1e-12
    counted = simulate(design, dict(space.shape)).peak_bytes
    for level, live in found.live_bytes.items():
        assert live <= counted.get(level, 0.0) * (1 + 1e-12), (level, design.nest)


@given(plans())
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_more_lives_than_is_counted(case: tuple[MapSpace, Plan]) -> None:
    check(case)


@pytest.mark.slow
@given(plans())
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_more_lives_than_is_counted_on_hundreds(case: tuple[MapSpace, Plan]) -> None:
    check(case)


PAIR = "rank P\ninput X[P]\noutput Y\nU[p] = exp(X[p])\nV[p] = exp(U[p])\nY[p] = V[p] + U[p]\n"


def pair(tile: int, depth: int, overlapped: bool) -> tuple[MapSpace, Plan]:
    """U, V and Y a tile apart each, over eight points; U and V at the buffer."""
    cascade = parse(PAIR, "pair")
    space = MapSpace(cascade, machine_for(cascade), {"P": 8})
    names = space.einsums
    structure = next(s for s in space.structures(names) if s.loops == ("P",))
    homes = tuple(Home(t, (("buffer", depth),)) for t in "UV")
    leaves = tuple(next(space.leaves(n, ("P",) if tile > 1 else ())) for n in names)
    group = Group(structure.blocks, (("P", tile),), (), homes, leaves, overlapped)
    return space, Plan((), (group,))


@pytest.mark.parametrize(
    ("tile", "depth", "words"),
    [
        (2, 1, 2 * 3 + 2 * 2),  # U from the first to the third, V from the second to the third
        (1, 1, 3 + 2),
        (2, 0, 8 + 8),  # a home above all loops has one tile
    ],
)
def test_copies_by_hand(tile: int, depth: int, words: int) -> None:
    space, plan = pair(tile, depth, overlapped=True)
    assert spans(space.einsums, space.facts) == {"X": 0, "U": 2, "V": 1, "Y": 0}
    design = to_design(space, plan)
    counted = simulate(design, {"P": 8})
    assert counted.peak_bytes["buffer"] == 2 * words
    live = simulate_functional(design, {"P": 8}).live_bytes["buffer"]
    assert live <= 2 * words
    assert live == 2 * tile * (3 + 2)  # in the third epoch; a word is dead after its last user
    alone = to_design(*pair(tile, depth, overlapped=False))
    assert simulate(alone, {"P": 8}).peak_bytes["buffer"] == 2 * 2 * (tile if depth else 8)


def test_copies_above_the_tiles_and_inside_them() -> None:
    assert copies(3, 9, 16, 1) == 2  # the last tiles of a head beside the first ones of the next
    assert copies(3, 9, 2, 1) == 3  # two tiles a head: three heads at once
    assert copies(1, 9, 1, 4) == 8  # four pieces to a tile, for two tiles
