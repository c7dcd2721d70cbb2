"""The text of a mapping: parsed, rendered, refused."""

from __future__ import annotations

from typing import Any

import pytest

from einfuse.mapper.design.design import load_design
from einfuse.mapper.errors import MappingError
from einfuse.mapper.nest.nest import (
    Branch,
    Compute,
    Keep,
    Parallel,
    Temporal,
    parse_nest,
    render_nest,
    walk_nest,
)

SHIPPED = (
    "unfused",
    "flat",
    "fusemax-cascade",
    "fusemax-architecture",
    "fusemax",
    "fusemax-design-space",
    "layer-flat",
    "layer-fusemax",
)


def test_each_line_is_a_step() -> None:
    nest = parse_nest(
        [
            "for B, H",
            "for P in 2*columns when big",
            "parallel M over rows",
            "keep K, V at buffer double spilling s to dram",
            "keep A at buffer overlaying K streamed forwarded",
            "compute QK on array_2d forwarding A, B accumulating M1 pipelined",
        ]
    )
    steps = [node.step for node in nest]
    assert steps[:2] == [Temporal("B"), Temporal("H")]
    assert isinstance(steps[2], Temporal)
    assert steps[2].tile is not None
    assert steps[2].tile.text == "2 * columns"
    assert nest[2].when is not None
    assert nest[2].when.text == "big"
    assert steps[3] == Parallel("M", None, "rows")
    kept = steps[4]
    assert isinstance(kept, Keep)
    assert (kept.tensors, kept.level, kept.double) == (("K", "V"), "buffer", True)
    assert kept.spill is not None
    assert (kept.spill.share.text, kept.spill.level) == ("s", "dram")
    assert steps[5] == Keep(("A",), "buffer", streamed=True, forwarded=True, overlaying="K")
    assert steps[6] == Compute("QK", "array_2d", ("A", "B"), ("M1",), pipelined=True)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_rendered_nest_is_read_back_the_same(name: str) -> None:
    nest = load_design(name).nest
    lines = render_nest(nest)
    assert render_nest(parse_nest(lines)) == lines
    assert len(list(walk_nest(parse_nest(lines)))) == len(list(walk_nest(nest)))


def test_branches_and_pipelines_nest() -> None:
    lines: list[Any] = ["for B", {"pipeline": [["compute X on u"], ["for M", "compute Y on u"]]}]
    branch = parse_nest(lines)[1].step
    assert isinstance(branch, Branch)
    assert branch.pipeline
    assert len(branch.children) == 2


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("for B", "expected a list of lines"),
        ([], "expected a list of lines"),
        (["loop B"], r"mapping\[0\]: expected 'for', 'parallel', 'keep' or 'compute'"),
        (["for B in"], "found the end in 'for B in'"),
        (["keep Q"], "found the end"),
        (["compute X on u", "for B"], "nothing may follow a compute"),
        ([3], r"mapping\[0\]: expected a line or a branch, found 3"),
        ([{"fork": [["compute X on u"]]}], "found the keys fork"),
        ([{"branch": []}], "expected a list of nests"),
        ([{"branch": [["compute X in u"]]}], r"mapping\[0\].branch\[0\]\[0\]"),
        ([{"branch": [["compute X on u"]], "when": "a +"}], "formula 'a [+]'"),
    ],
)
def test_a_wrong_line_names_its_place(lines: Any, words: str) -> None:
    with pytest.raises(MappingError, match=words):
        parse_nest(lines)
