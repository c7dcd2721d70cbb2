"""A Triton kernel that does one operation over and over in registers: a GPU's vector rates."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from einfuse.kernels.calls.launch import Launch

OPERATIONS = ("exp", "add", "multiply", "max", "divide")
BLOCK, WARPS, CHAIN = 2048, 8, 16
"""Elements of a program, its warps, and the operations on each element in a turn of the loop."""


def plan_throughput(operation: str, values: torch.Tensor, turns: int) -> Launch:
    """Return the launch that does ``turns * CHAIN`` operations on each of ``values`` (float32)."""
    return Launch(
        function=repeat_kernel,
        grid=(values.numel() // BLOCK,),
        arguments={
            "pointer": values,
            "turns": turns,
            "operand": 1.0 if operation == "divide" else -0.5,
            "operation": operation,
            "block": BLOCK,
            "chain": CHAIN,
        },
        options={"num_warps": WARPS},
    )


@triton.jit
def repeat_kernel(
    pointer: tl.tensor,
    turns: tl.tensor,
    operand: tl.tensor,
    operation: tl.constexpr,
    block: tl.constexpr,
    chain: tl.constexpr,
) -> None:
    """Apply an operation ``turns * chain`` times to each element of a block."""
    at = tl.program_id(0) * block + tl.arange(0, block)
    x = tl.load(pointer + at)
    for _ in range(0, turns):
        for _ in tl.static_range(chain):
            if operation == "exp":
                x = tl.math.exp2(x)
            elif operation == "add":
                x = x + operand
            elif operation == "multiply":
                x = x * operand
            elif operation == "max":
                x = tl.maximum(-x, operand)
            else:
                x = operand / x
    tl.store(pointer + at, x)
