"""The map space: what passes allow to fuse, what constraints leave, and how much there is."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from einfuse.einsum.library import load
from einfuse.einsum.parser import parse
from einfuse.mapper.architecture import load_architecture
from einfuse.mapper.constraints import Constraints, parse_constraints
from einfuse.mapper.errors import ArchitectureError, MappingError
from einfuse.mapper.sizing import count_space
from einfuse.mapper.space import MapSpace
from einfuse.mapper.structure import offsets
from einfuse.mapper.tiling import tile_choices

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
    ],
)
def test_constraints_that_cannot_be_met_are_named(given: dict[str, Any], words: str) -> None:
    constraints = parse_constraints(given, "here")
    with pytest.raises(MappingError, match=words):
        MapSpace(load("attention/1-pass"), load_architecture("fusemax"), SHAPE, constraints)


@pytest.mark.parametrize(
    "given", [{"tile": {}}, {"tiles": {"P": [0]}}, {"retention": "none"}, ["P"]]
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
