"""The model's instruction counts against figures found independently in machine code."""

from __future__ import annotations

import pytest

from einfuse.einsum.analysis.operations import count_operations, total_operations
from einfuse.einsum.library.cascades import load
from einfuse.kernels.compiled.dataflow import trace
from einfuse.kernels.compiled.distribution import Distribution
from einfuse.kernels.compiled.instructions import Placement, count_instructions, differences
from einfuse.kernels.compiled.lowering import FunctionLowering, lower, lowering_table
from einfuse.kernels.errors import KernelError

TABLE = lowering_table()


def count(
    block_m: int, head: int, architecture: str = "sm_90", warps: tuple[int, int] = (8, 1)
) -> dict[str, int]:
    tile = {"P": 128, "M": block_m, "E": head, "F": head}
    flow = trace(load("attention/1-pass"), tile)
    spread = tuple(
        Distribution(128, columns, block=(2, 2), lanes=(8, 4), warps=warps)
        for columns in (block_m, head)
    )
    return count_instructions(flow, Placement(spread, ("P",), flow.size), TABLE, architecture)


# Main loops of a FlashAttention-2 kernel written and compiled apart from this package
# (Triton 3.6, sm_90, 8 warps, 128 queries), counted by hand from the disassembly.
@pytest.mark.parametrize(
    ("head", "block_m", "found"),
    [
        (128, 128, "EX2 66 HGMMA 16 FFMA 66 FMUL 66 FADD 68 FMNMX 68 F2FP 32 SHFL 8"),
        (128, 64, "EX2 34 HGMMA 12 FFMA 34 FMUL 66 FADD 36 FMNMX 36 F2FP 16 SHFL 8"),
        (64, 128, "EX2 66 HGMMA 12 FFMA 66 FMUL 34 FADD 68 FMNMX 68 F2FP 32 SHFL 8"),
    ],
)
def test_one_pass_counts_equal_the_disassembly(head: int, block_m: int, found: str) -> None:
    names, numbers = found.split()[::2], map(int, found.split()[1::2])
    assert count(block_m, head) == dict(zip(names, numbers, strict=True))


def test_one_pass_on_ampere_takes_warp_wide_products() -> None:
    # 4 warps, 128 x 64 tile, head 64: 128/16/4 * 64/8 * 64/16 for each of two products.
    assert count(64, 64, "sm_80", (4, 1))["HMMA"] == 2 * 2 * 8 * 4


def test_exponentials_are_those_of_the_cascade_and_no_more() -> None:
    """One thread with everything counts what the cascade's operations are, exactly."""
    sizes = {"E": 16, "F": 16, "P": 16, "M0": 32, "M1": 1}
    counted = count_operations(load("attention/1-pass"), sizes)
    turn = total_operations(counted[e.name] for e in load("attention/1-pass").loop)
    flow = trace(load("attention/1-pass"), {"P": 16, "M": 32, "E": 16, "F": 16})
    alone = (Distribution(16, 32, block=(1, 1), lanes=(1, 1), warps=(1, 1)),)
    placement = Placement(alone, ("P",), flow.size)
    found = count_instructions(flow, placement, TABLE, "sm_90", dtype_bytes=4)
    assert found["EX2"] == turn["exp"] == 16 * 32 + 16
    # A fold counts its first element as an operation; in registers it is none.
    assert found["FMNMX"] == turn["max"] - 16
    products = found["FFMA"] - 16 * 32 - 16  # less exp2(s*c - m) and RD * PRM + SLD
    assert products == turn["mac"]


def test_a_sum_with_a_product_of_tiles_is_the_accumulator() -> None:
    flow = lower(trace(load("attention/1-pass"), {"P": 16, "M": 16, "E": 16, "F": 16}), TABLE)
    assert any(node.operation == "accumulate" for node in flow.nodes())


def test_a_maximum_is_scaled_behind_its_reduction() -> None:
    flow = lower(trace(load("attention/1-pass"), {"P": 16, "M": 32, "E": 16, "F": 16}), TABLE)
    scalings = [n for n in flow.nodes() if n.operation == "multiply" and len(n.ranks) == 1]
    assert [n.operands[0].operation for n in scalings] == ["fold"]


def test_an_unknown_function_names_the_table_to_extend() -> None:
    bare = TABLE.with_functions({})
    flow = trace(load("attention/sigmoid"), {"P": 16, "M": 16, "E": 16, "F": 16})
    with pytest.raises(KernelError, match=r"sigmoid; add it to kernels/data/lowering\.yaml"):
        lower(flow, bare)


def test_a_kernel_may_lower_a_function_in_its_own_way() -> None:
    how = FunctionLowering(("tanh", "multiply_add"), scaled=True)
    flow = trace(load("attention/sigmoid"), {"P": 128, "M": 64, "E": 64, "F": 64})
    spread = (Distribution(128, 64, block=(2, 2), lanes=(8, 4), warps=(8, 1)),)
    table = TABLE.with_functions({"sigmoid": how})
    found = count_instructions(flow, Placement(spread, ("P",), flow.size), table, "sm_90")
    assert found["TANH"] == 128 * 64 // 256
    assert "EX2" not in found


@pytest.mark.parametrize(
    ("architecture", "rows", "name"),
    [("sm_80", 128, "HMMA"), ("sm_89", 64, "HMMA"), ("sm_90", 64, "HGMMA"), ("sm_90", 16, "HMMA")],
)
def test_small_tiles_and_old_architectures_take_warp_wide_products(
    architecture: str, rows: int, name: str
) -> None:
    assert TABLE.matrix_instruction(architecture, rows).name == name


def test_an_architecture_without_tensor_cores_is_refused() -> None:
    with pytest.raises(KernelError, match="from sm_80 on"):
        TABLE.matrix_instruction("sm_60", 128)


def test_differences_name_what_either_side_has_more_of() -> None:
    assert differences({"A": 1, "B": 2}, {"B": 2, "C": 3}) == {"A": -1, "C": 3}
