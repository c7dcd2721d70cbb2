"""What one turn of a loop computes is traced from a cascade's Einsums."""

from __future__ import annotations

from collections import Counter

import pytest

from einfuse.einsum.language.parser import parse
from einfuse.einsum.library.cascades import load
from einfuse.kernels.compiled.dataflow import trace
from einfuse.kernels.errors import KernelError

TILE = {"P": 128, "M": 64, "E": 32, "F": 32}


def operations(**arguments: object) -> Counter[str]:
    name = str(arguments.pop("name"))
    found = trace(load(name), TILE, **arguments)  # type: ignore[arg-type]
    return Counter(node.operation for node in found.nodes())


def test_a_loop_section_is_one_turn() -> None:
    counted = operations(name="attention/1-pass")
    assert (counted["matrix"], counted["exp"], counted["fold"], counted["max"]) == (2, 2, 2, 1)


def test_a_reduction_of_the_looped_rank_goes_on_from_turn_to_turn() -> None:
    assert operations(name="attention/3-pass", names=["GM"]) == {"load": 2, "fold": 1, "max": 1}


def test_late_folds_keep_a_partial_result_for_each_element() -> None:
    counted = operations(name="attention/3-pass", names=["GM"], late_folds=True)
    assert counted == {"load": 2, "max": 1}


def test_a_reduction_of_another_rank_ends_with_the_turn() -> None:
    counted = operations(name="attention/3-pass", names=["GM"], over="E")
    assert counted == {"load": 1, "fold": 1}


def test_a_product_of_tiles_accumulates_by_itself() -> None:
    assert operations(name="attention/3-pass", names=["AV"]) == {"load": 2, "matrix": 1}


def test_what_the_turn_does_not_compute_is_loaded() -> None:
    found = trace(load("attention/3-pass"), TILE, names=["SN"])
    loads = {n.tensor: set(n.ranks) for n in found.nodes() if n.operation == "load"}
    assert loads == {"QK": {"M", "P"}, "GM": {"P"}}


def test_ranks_of_size_one_take_no_part() -> None:
    found = trace(load("attention/3-pass"), {**TILE, "P": 1}, names=["SN"])
    assert {rank for node in found.nodes() for rank in node.ranks} == {"M"}


def test_factors_over_fewer_ranks_meet_before_they_meet_a_tile() -> None:
    cascade = parse(
        "rank M, P\ninput X[M,P], A[P], B[P]\noutput Y\nY[m,p] = X[m,p] * A[p] / B[p]", "c"
    )
    found = trace(cascade, TILE).nodes()
    assert [(n.operation, set(n.ranks)) for n in found if n.operands] == [
        ("divide", {"P"}),
        ("multiply", {"M", "P"}),
    ]


def test_an_einsum_that_is_not_there_is_named() -> None:
    with pytest.raises(KernelError, match="no Einsum is called XX"):
        trace(load("attention/3-pass"), TILE, names=["XX"])
