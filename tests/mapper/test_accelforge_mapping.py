"""AccelForge's mapping files as designs, and what is refused of them."""

from __future__ import annotations

import pytest

from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.library.cascades import load
from einfuse.mapper.design.accelforge import read_mapping
from einfuse.mapper.design.design import parse_design
from einfuse.mapper.machine.architecture import load_architecture
from einfuse.mapper.nest.workload import facts
from einfuse.simulator.cost.model import evaluate

HEAD = "mapping:\n  nodes:\n"
MAIN = "  - !Storage {tensors: [T0, W0, W1, T1, T2], component: MainMemory}\n"
NESTS = (
    "  - !Sequential\n    nodes:\n"
    "    - !Nested\n      nodes:\n"
    "      - !Storage {tensors: [T0, W0, T1], component: GlobalBuffer}\n"
    "      - !Temporal {rank_variable: m, tile_shape: 1}\n"
    "      - !Temporal {rank_variable: n0, tile_shape: 1}\n"
    "      - !Temporal {rank_variable: n1, tile_shape: 1}\n"
    "      - !Compute {einsum: Matmul0, component: MAC}\n"
    "    - !Nested\n      nodes:\n"
    "      - !Storage {tensors: [T1, W1, T2], component: GlobalBuffer}\n"
    "      - !Temporal {rank_variable: m, tile_shape: 1}\n"
    "      - !Temporal {rank_variable: n1, tile_shape: 1}\n"
    "      - !Temporal {rank_variable: n2, tile_shape: 1}\n"
    "      - !Compute {einsum: T2, component: MAC}\n"
)
SHAPE = {"M": 64, "N0": 32, "N1": 32, "N2": 32}


def convert(text: str, architecture: str = "simple") -> dict[str, object]:
    names = {"Matmul0": "T1"}
    known = facts(load("peer/matmuls"))
    return read_mapping(text, known, load_architecture(architecture), names=names)


def reads(text: str, level: str) -> float:
    """Bits read at a level, at 8 bits a word."""
    result = evaluate(parse_design(convert(text), "here"), SHAPE)
    return 8 * float(result.traffic[level].read_bytes)


def test_two_products_read_the_buffer_as_often_as_derived_by_hand() -> None:
    """M K N = 65,536 steps read two operands each, and the sum but for its first time.

    The sum is (65,536 - 2,048) words, and its drain to main memory another 2,048.
    """
    steps = 64 * 32 * 32
    each = (2 * steps + (steps - 2048) + 2048) * 8
    assert reads(HEAD + MAIN + NESTS, "GlobalBuffer") == 2 * each == 2 * 3 * 524_288


def test_a_fused_sum_is_not_drained() -> None:
    """T1 stays in the buffer: 507,904 = (65,536 - 2,048) x 8 reads for it in the first product."""
    fused = HEAD + MAIN.replace(" T1,", "") + "  - !Temporal {rank_variable: m, tile_shape: 1}\n"
    fused += NESTS.replace("      - !Temporal {rank_variable: m, tile_shape: 1}\n", "")
    saved = reads(HEAD + MAIN + NESTS, "GlobalBuffer") - reads(fused, "GlobalBuffer")
    assert saved == 524_288 - 507_904


def test_storage_stands_beneath_loops_over_its_own_ranks() -> None:
    lines = str(convert(HEAD + MAIN + NESTS)["mapping"])
    assert "'for M in 1', 'keep T0 at GlobalBuffer'" not in lines  # N1 comes between them
    assert lines.index("for N0 in 1") < lines.index("keep T0 at GlobalBuffer")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mapping: 3", "expected a mapping with 'mapping: nodes:'"),
        ("mapping: {nodes: []}", "expected a list of nodes"),
        ("mapping: {nodes: [3]}", "expected a node such as !Temporal, found 3"),
        ("mapping: [", "not YAML"),
        ("mapping: {nodes: [!Toll {}]}", "a design cannot say !Toll"),
        ("mapping: {nodes: [!Python 3]}", "not YAML: !Python needs keys and values"),
        (HEAD + MAIN, "expected a compute or a split at the end"),
        (HEAD + MAIN + NESTS.replace("n0,", "n9,"), "unknown rank variable 'n9'"),
        (HEAD + MAIN + NESTS.replace("tile_shape: 1", "tile_shape: x"), "of a whole number"),
        (HEAD + MAIN + NESTS.replace("T0, W0", "T0, W9"), "storage of an unknown tensor 'W9'"),
        (HEAD + MAIN + NESTS.replace("einsum: T2", "einsum: Y"), "no Einsum 'Y'"),
        (HEAD + MAIN + NESTS.replace("component: MAC", "component: PE"), "no unit 'PE'"),
        (HEAD + MAIN.replace("MainMemory", "GlobalBuffer") + NESTS, "expected it at MainMemory"),
        (HEAD + MAIN.replace(" T1,", "") + NESTS.replace("[T1, W1", "[W1"), "do not begin"),
    ],
)
def test_what_a_design_cannot_say_is_named(text: str, words: str) -> None:
    with pytest.raises(EinfuseError, match=words):
        convert(text)


def test_operands_that_a_dimension_does_not_share_are_refused() -> None:
    """W0 in a register does not depend on M; the columns share the other operand only."""
    spatial = "!Spatial {rank_variable: m, tile_shape: 1, name: reuse_input, component: PE}\n"
    nests = NESTS.replace(
        "!Temporal {rank_variable: m, tile_shape: 1}\n      - !Temporal {rank_variable: n0",
        f"{spatial}      - !Storage {{tensors: [W0], component: Register}}\n"
        "      - !Temporal {rank_variable: n0",
    )
    with pytest.raises(EinfuseError, match="W0 is kept in registers and does not depend on M"):
        convert(HEAD + MAIN + nests, "nvdla")
