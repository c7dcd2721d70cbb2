"""The map space: what passes allow to fuse, what constraints leave, and how much there is."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.mapper.space_size import count_space

from einfuse.einsum.language.errors import CascadeError
from einfuse.einsum.language.parser import parse
from einfuse.einsum.library.cascades import load
from einfuse.einsum.library.zoo import with_parameters
from einfuse.mapper.design.design import load_design
from einfuse.mapper.errors import ArchitectureError, MappingError
from einfuse.mapper.machine.architecture import load_architecture
from einfuse.mapper.nest.workload import facts
from einfuse.mapper.search.export import to_yaml
from einfuse.mapper.search.search import find_best
from einfuse.mapper.space.constraints import Constraints, parse_constraints
from einfuse.mapper.space.space import MapSpace
from einfuse.mapper.space.structures import offsets
from einfuse.mapper.space.tiling import tile_choices
from einfuse.simulator.cost.objectives import find_objective

SHAPE = {"B": 2, "H": 2, "E": 16, "F": 16, "M": 64, "P": 64}


def space_of(
    cascade: str, architecture: str = "fusemax", shape: dict[str, int] = SHAPE, **constraints: Any
) -> MapSpace:
    return MapSpace(
        load(cascade), load_architecture(architecture), shape, Constraints(**constraints)
    )


def blocks(space: MapSpace) -> set[tuple[tuple[str, ...], ...]]:
    return {s.blocks for s in space.structures(space.einsums)}


def test_three_passes_share_a_loop_over_keys_only_between_barriers() -> None:
    # GM, SD are whole only after all keys: QK|GM, SN|SD and A|AV may share the loop, no others
    found = blocks(space_of("attention/3-pass", "flat"))
    pairs = [("QK", "GM"), ("SN", "SD"), ("A", "AV")]
    expected = {
        tuple(b for pair, fused in zip(pairs, chosen, strict=True)
              for b in ([pair] if fused else [(pair[0],), (pair[1],)]))
        for chosen in itertools.product((True, False), repeat=3)
    }  # fmt: skip
    assert found == expected


def test_one_pass_shares_the_loop_over_key_tiles_up_to_the_division() -> None:
    space = space_of("attention/1-pass")
    first = next(space.structures(space.einsums))
    assert first.blocks == (space.einsums[:-1], ("AV",))
    assert first.loops == ("B", "H", "P")
    assert first.inner[0] == ("M1",)


def test_a_recurrence_is_not_torn_apart() -> None:
    space = space_of("attention/1-pass")
    assert list(space.structures(("SPD",))) == []
    assert list(space.structures(("SPNV", "RNV"))) != []
    for structure in space.structures(space.einsums):
        together = [b for b in structure.blocks if "RM" in b]
        assert {"RM", "SLN", "PRM"} <= set(together[0])


def test_what_crosses_a_barrier_lives_above_the_loop_behind_it() -> None:
    space = space_of("attention/3-pass", "flat")
    path = ("B", "H", "P", "M")
    assert space.exchange_depth("QK", path[:3], ("QK", "GM", "SN")) == 3  # all of M
    assert space.exchange_depth("QK", path, ("QK", "GM")) == 4
    assert space.exchange_depth("GM", path, ("GM",)) == 3


def test_an_einsum_comes_a_tile_behind_what_it_reads() -> None:
    space = space_of("attention/1-pass")
    found = offsets(space.einsums, space.facts)
    assert [found[n] for n in ("QK", "LM", "RM", "SLN", "SLNV", "RNV", "AV")] == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
    ]


@pytest.mark.parametrize("size", [1, 2, 12, 97, 100])
def test_ragged_tiles_are_the_least_for_each_number_of_iterations(size: int) -> None:
    assert set(tile_choices(size, "ragged")) == {-(-size // k) for k in range(1, size + 1)}
    assert set(tile_choices(size, "divisors")) == {d for d in range(1, size + 1) if size % d == 0}


def test_the_size_is_that_of_the_enumeration() -> None:
    # by hand, one Einsum over P = 2 on the vector unit alone, dram and buffer and staging:
    # two tiles; P on the lanes or not; A and Y each bypass (1), live at the buffer above or below
    # the loop (2), at staging alone (2), or at both, the inner no further out (3)
    text = "rank P\ninput A[P]\noutput Y\nY[p] = A[p] + A[p]"
    space = MapSpace(parse(text), load_architecture("flat"), {"P": 2})
    assert count_space(space) == 2 * 2 * 8 * 8
    fixed = MapSpace(
        parse(text), load_architecture("flat"), {"P": 2}, Constraints(keep={"A": ("dram",)})
    )
    assert count_space(fixed) == 2 * 2 * 1 * 8


def test_what_may_be_forwarded_counts() -> None:
    # by hand: T and Y in one group, its loop over P = 2 with a tile of 2 (leaves with P on the
    # lanes or not, both so if T is forwarded) or of 1 (the same, since a loop may stay whole), the
    # latter overlapped or not; A and Y in 8 places each, T at the buffer or staging. Apart: each
    # with its two tiles, two leaves, T in 8 places as well.
    text = "rank P\ninput A[P]\noutput Y\nT[p] = A[p] + A[p]\nY[p] = T[p] + T[p]"
    flat = load_architecture("flat")
    apart = (2 * 2 * 8 * 8) ** 2
    kept = MapSpace(parse(text), flat, {"P": 2}, Constraints(forward=()))
    assert count_space(kept) == 3 * (2 * 2) * (2 * 8 * 8) + apart
    assert count_space(MapSpace(parse(text), flat, {"P": 2})) == 3 * 5 * (2 * 8 * 8) + apart


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # by hand: at both tiles the lanes take P or none, homes as above
        ({"parallel": {"Y": {}}}, 2 * 1 * 64),
        ({"parallel": {"Y": {"P": "lanes"}}}, 2 * 1 * 64),
        ({"relations": ["P >= 2"]}, 1 * 2 * 64),
        ({"relations": ["P % 2 == 1"], "parallel": {"Y": {}}, "innermost": {"Y": "P"}}, 64),
    ],
)
def test_the_size_under_fixed_loops_and_relations_is_that_of_the_enumeration(
    given: dict[str, Any], expected: int
) -> None:
    text = "rank P\ninput A[P]\noutput Y\nY[p] = A[p] + A[p]"
    constraints = parse_constraints(given, "here")
    assert count_space(MapSpace(parse(text), load_architecture("flat"), {"P": 2}, constraints)) == (
        expected
    )


def test_the_order_of_loops_leaves_that_order_alone() -> None:
    # X and Z share P; K and N, which one tensor lacks, may stand in any order
    text = "rank P, K, N\ninput A[P,K], B[K,N]\noutput Z\nZ[p,n] = A[p,k] * B[k,n]"
    cascade, shape = parse(text), {"P": 4, "K": 4, "N": 4}

    def orders(*order: str) -> set[tuple[str, ...]]:
        given = Constraints(order=order)
        space = MapSpace(cascade, load_architecture("fusemax"), shape, given)
        return {structure.loops for structure in space.structures(("Z",))}

    every = set(itertools.permutations(("P", "K", "N")))
    assert orders() == every
    assert orders("N", "P") == {loops for loops in every if loops.index("N") < loops.index("P")}
    assert orders("N", "P", "K") == {("N", "P", "K")}


def test_of_loops_that_cost_alike_the_order_asked_for_stands() -> None:
    cascade = parse("rank P, K, N\ninput A[P,K], B[P,K,N]\noutput Z\nZ[p,k,n] = A[p,k] * B[p,k,n]")
    shape = {"P": 4, "K": 4, "N": 4}

    def orders(*order: str) -> set[tuple[str, ...]]:
        given = Constraints(order=order)
        space = MapSpace(cascade, load_architecture("fusemax"), shape, given)
        return {structure.loops for structure in space.structures(("Z",))}

    assert orders() == {("P", "K", "N")}
    assert orders("K", "P") == {("K", "P", "N")}
    assert orders("N", "K") == {("P", "N", "K")}


def test_a_space_of_attention_is_counted_at_once() -> None:
    assert count_space(space_of("attention/3-pass", "flat")) > 10**12


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"units": {"QX": ["array_2d"]}}, "unknown 'QX'"),
        ({"units": {"QK": ["array_3d"]}}, "unknown 'array_3d'"),
        ({"units": {"AV": ["array_2d"]}}, "units.AV: expected one that can run it"),
        ({"keep": {"Q": ["bufer"]}}, "did you mean 'buffer'"),
        ({"tiles": {"Z": [1]}}, "unknown 'Z'"),
        ({"fuse": [["QK", "LM"]], "split": [["QK", "LM"]]}, "one group, split puts"),
        ({"order": ["P", "Q"]}, "order: unknown 'Q'"),
        ({"order": ["P", "M"]}, "order: no loop stands over 'M'; did you mean"),
        ({"parallel": {"QX": {}}}, "parallel: unknown 'QX'"),
        ({"parallel": {"QK": {"F": "rows"}}}, "parallel.QK: the Einsum has no rank 'F'"),
        ({"parallel": {"QK": {"P": "lane"}}}, "parallel.QK: expected dimensions .*array_2d has"),
        (
            {"parallel": {"LM": {"P": "rows"}}, "units": {"LM": "array_1d"}},
            "parallel.LM: .*, and units.LM allows no other",
        ),
        ({"innermost": {"QK": "F"}}, "innermost.QK: the Einsum has no rank 'F'"),
        ({"relations": ["P <= 4 * MX"]}, "relations.0.: .*unknown 'MX'; did you mean"),
        ({"relations": ["P <= bufer.bytes"]}, "did you mean 'buffer.bytes'"),
        ({"relations": ["P <= dram.bytes"]}, "expected a number as dram.bytes"),
        ({"relations": ["P * 4"]}, "expected a comparison"),
        ({"relations": ["1 < P < 4"]}, "found '< 4' at column 7"),
        ({"relations": ["P < mn(M0, 2)"]}, "unknown function 'mn'"),
        ({"relations": ["P < 4 / 0"]}, "division by zero"),
        ({"relations": ["M < 4"]}, "expected a rank that loops stand over"),
        ({"relations": ["E < 4 * F"]}, "no Einsum has all of E, F"),
    ],
)
def test_constraints_that_cannot_be_met_are_named(given: dict[str, Any], words: str) -> None:
    constraints = parse_constraints(given, "here")
    with pytest.raises(MappingError, match=words):
        MapSpace(load("attention/1-pass"), load_architecture("fusemax"), SHAPE, constraints)


@pytest.mark.parametrize(
    "given",
    [
        {"tile": {}},
        {"tiles": {"P": [0]}},
        {"tiles": {"P": True}},
        {"retention": "none"},
        ["P"],
        [],
        {"units": {"QK": []}},
        {"order": "P"},
        {"order": ["P", "P"]},
        {"parallel": {"QK": None}},
        {"parallel": {"QK": {"P": "rows", "M0": "rows"}}},
        {"innermost": {"QK": ["E"]}},
        {"relations": [1]},
    ],
)
def test_a_file_of_constraints_is_checked(given: Any) -> None:
    with pytest.raises(MappingError, match="here"):
        parse_constraints(given, "here")


def test_an_architecture_without_the_operations_is_refused() -> None:
    text = "rank P\ninput A[P]\noutput Y\nY[p] = sqrt(A[p])"
    with pytest.raises(ArchitectureError, match="no unit can run Einsum Y: array_2d lacks"):
        MapSpace(parse(text), load_architecture("fusemax"), {"P": 2})


def test_a_rank_without_a_size_is_named() -> None:
    with pytest.raises(MappingError, match="rank M has no size"):
        list(space_of("attention/1-pass", shape={"E": 2, "F": 2, "P": 2}).splits())


def test_a_state_that_starts_from_an_input_is_carried_and_is_not_that_input() -> None:
    known = facts(load("attention/linear-decay"))
    assert known.carried == {"H"}
    assert known.root("HN") == "H" and known.root("H") == "H"


def test_splits_that_share_a_size_are_decided_together() -> None:
    # by hand: D = W, so that 12 queries in tiles of 3 are for 4 devices, with 2 of 8 keys each;
    # in tiles of 4 they are for 3 devices, which do not share 8 keys evenly
    shape = {"E": 2, "F": 2, "P": 12, "M": 8}
    space = MapSpace(load("attention/ring"), load_architecture("fusemax"), shape)
    found = {(s["P0"], s["W"], s["M0"]) for s in space.splits()}
    assert found == {(12, 1, 8), (8, 2, 4), (6, 2, 4), (3, 4, 2)}
    shape["M"] = 7
    given = replace(space, shape=shape, constraints=Constraints(tiles={"P0": (3,)}))
    with pytest.raises(CascadeError, match="M = 7 is no multiple of W = 4"):
        list(given.splits())


def test_the_size_of_a_rank_that_equals_another_is_known() -> None:
    shape = {"D": 2, "N": 16}  # K = N
    space = MapSpace(load("mixer/monarch"), load_architecture("fusemax"), shape)
    assert {s["N0"] * s["N1"] for s in space.splits()} == {16}
    assert all(s["K0"] == s["N0"] and s["K1"] == s["N1"] for s in space.splits())


def test_a_changed_cascade_is_written_out(tmp_path: Path) -> None:
    cascade = with_parameters(load("attention/window"), {"window": 4, "sinks": 2})
    space = MapSpace(cascade, load_architecture("fusemax"), {"E": 4, "F": 4, "P": 8, "M": 8})
    asked = find_objective("energy", space.architecture)
    path = tmp_path / "found.yaml"
    path.write_text(to_yaml(space, find_best(space, asked).best.plan))
    assert load_design(path).cascade == cascade
