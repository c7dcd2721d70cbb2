"""The model of one core: its cascade's operations, one after the other, at measured rates.

A core does its products and its other operations in turn, so their times add up. What the
formula in three passes holds in memory and is too large to be kept by the allocator comes fresh
from the operating system at every call, page by page.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from einfuse.einsum import count_operations, load

from .fit import Range
from .work import Call

if TYPE_CHECKING:
    from einfuse.kernels import Ceilings

KEPT_BYTES = 32 << 20
"""Blocks from this size on glibc gives back when they are freed (DEFAULT_MMAP_THRESHOLD_MAX)."""
_FUSED_KEYS = 512  # of a tile, in ATen's CPU kernel (kvSplitSize)


@dataclass(frozen=True, slots=True)
class Rates:
    """What one core reaches at its best; ``fresh_s_per_byte`` is the cost of a new page's byte."""

    macs_per_s: float
    bytes_per_s: float
    vector_per_s: Mapping[str, float]
    fresh_s_per_byte: float

    @classmethod
    def of(cls, ceilings: Ceilings, fresh_s_per_byte: float) -> Rates:
        """Return the rates of measured ceilings."""
        return cls(
            ceilings.matmul_macs_per_s,
            ceilings.copy_bytes_per_s,
            dict(ceilings.vector_per_s),
            fresh_s_per_byte,
        )


KERNELS: Mapping[str, str] = {"torch-3-pass": "attention/3-pass", "sdpa-flash": "attention/1-pass"}
"""Kernel -> its cascade."""


def ranges() -> dict[str, Range]:
    """Return the constants: shares of the measured rates, and microseconds of a query's row."""
    return {
        "matmul": Range(0.8, 0.05, 1.2),
        "vector": Range(1.0, 0.02, 5.0),
        "row_us": Range(0.2, 0.0, 2.0),
    }


def predict_s(kernel: str, call: Call, rates: Rates, constants: Mapping[str, float]) -> float:
    """Return the seconds of a call on one core.

    >>> rates = Rates(1e9, 1e9, dict.fromkeys(("exp", "add", "max", "divide", "multiply"), 1e9), 0)
    >>> ideal = {"matmul": 1.0, "vector": 1.0, "row_us": 0.0}
    >>> call = Call("fwd", 1, 1, 1, 10, 100, 8, 8)
    >>> round(1e9 * predict_s("torch-3-pass", call, rates, ideal))  # 16 products, 5 others a score
    21000
    """
    operations = _operations(kernel, call)
    heads = call.batch * call.heads_q
    products_s = operations.get("mac", 0) / rates.macs_per_s / constants["matmul"]
    vector_s = sum(
        count / rates.vector_per_s[name] for name, count in operations.items() if name != "mac"
    )
    seconds = heads * (products_s + vector_s / constants["vector"])
    seconds += heads * call.seqlen_q * constants["row_us"] / 1e6
    return seconds + _fresh_bytes(kernel, call) * rates.fresh_s_per_byte


def _fresh_bytes(kernel: str, call: Call) -> int:
    """Bytes of scores and weights that are allocated anew in a call."""
    scores = call.batch * call.heads_q * call.seqlen_q * call.seqlen_k * call.word_bytes
    return 2 * scores if kernel == "torch-3-pass" and scores >= KEPT_BYTES else 0


def _operations(kernel: str, call: Call) -> Mapping[str, int]:
    """Operations of one head, by name."""
    return _counted(kernel, call.head_dim_qk, call.head_dim_v, call.seqlen_q, call.seqlen_k)


@functools.cache
def _counted(
    kernel: str, head_dim_qk: int, head_dim_v: int, queries: int, keys: int
) -> Mapping[str, int]:
    shape = {"E": head_dim_qk, "F": head_dim_v, "P": queries}
    if kernel == "sdpa-flash":
        tiles = -(-keys // _FUSED_KEYS)
        shape |= {"M1": tiles, "M0": -(-keys // tiles)}
    else:
        shape |= {"M": keys}
    total: dict[str, int] = {}
    for operations in count_operations(load(KERNELS[kernel]), shape).values():
        for name, count in operations.items():
            total[name] = total.get(name, 0) + int(count)
    return total
