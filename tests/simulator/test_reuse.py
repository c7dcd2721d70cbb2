"""Reuse against counts by hand."""

from __future__ import annotations

import pytest

from einfuse.mapper.design.design import load_design
from einfuse.simulator.cost.reuse import find_reuse


@pytest.mark.parametrize(("keys", "queries"), [(512, 1024), (2048, 256), (4096, 4096)])
def test_fusemax_uses_a_key_tile_for_all_queries_on_chip(keys: int, queries: int) -> None:
    """256 rows and columns: a key tile meets each tile of queries, a query each tile of keys."""
    shape = {"B": 2, "H": 3, "E": 64, "F": 64, "M": keys, "P": queries}
    reuse = find_reuse(load_design("fusemax"), shape)["buffer"]
    assert reuse["K"] == reuse["V"] == queries / 256
    assert reuse["Q"] == keys / 256


def test_inputs_in_the_outermost_memory_have_no_reuse() -> None:
    shape = {"B": 1, "H": 1, "E": 64, "F": 64, "M": 512, "P": 512}
    assert "K" not in find_reuse(load_design("fusemax"), shape).get("dram", {})
