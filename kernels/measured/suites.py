"""The calls that are measured: ``core`` in a few minutes, ``full`` with more lengths and types.

On a GPU the shapes are those of the published tables (16k tokens, heads * head size = 2048), so
that rows compare; on a CPU the same families at sizes that a laptop does in seconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from einfuse.einsum import closest
from einfuse.kernels.errors import KernelError

from .device import DeviceKind

Suite = Literal["core", "full"]
Direction = Literal["fwd", "bwd"]


@dataclass(frozen=True, slots=True)
class Case:
    """One call: sizes, data type, direction, and what kind of attention.

    >>> Case("fwd", "float16", batch=16, heads_q=32, heads_kv=32, seqlen_q=1024, seqlen_k=1024,
    ...      head_dim=64).flops
    137438953472
    """

    direction: Direction
    dtype: str
    batch: int
    heads_q: int
    heads_kv: int
    seqlen_q: int
    seqlen_k: int
    head_dim: int
    causal: bool = False
    similarity: Literal["softmax", "sigmoid"] = "softmax"
    window: int | None = None
    sinks: int = 0

    @property
    def flops(self) -> int:
        """Operations by the convention of the published tables.

        Forward ``4 B H Sq Sk D``, half of it if causal; backward 2.5 times that; under a window
        the scores that it leaves.
        """
        scores = self.seqlen_q * self.seqlen_k
        if self.window is not None:
            width = min(self.window + self.sinks, self.seqlen_k)
            scores = self.seqlen_q * width - width * (width - 1) // 2
        elif self.causal:
            scores //= 2
        forward = 4 * self.batch * self.heads_q * scores * self.head_dim
        return forward * 5 // 2 if self.direction == "bwd" else forward

    @property
    def options(self) -> str:
        """What the columns of a measurement do not say: ``window=1024,sinks=4``."""
        parts = {
            "similarity": self.similarity if self.similarity != "softmax" else None,
            "window": self.window,
            "sinks": self.sinks or None,
        }
        return ",".join(f"{name}={value}" for name, value in parts.items() if value is not None)

    def __str__(self) -> str:
        heads = (
            f"{self.heads_q}"
            if self.heads_q == self.heads_kv
            else (f"{self.heads_q}/{self.heads_kv}")
        )
        flags = " causal" * self.causal + f" {self.options}" * bool(self.options)
        return (
            f"{self.direction} {self.dtype} B{self.batch} H{heads} "
            f"{self.seqlen_q}x{self.seqlen_k} D{self.head_dim}{flags}"
        )


@dataclass(frozen=True, slots=True)
class _Scale:
    """The sizes of a suite: tokens of a batch, width = heads * head size, lengths, and so on."""

    dtypes: tuple[str, ...]
    tokens: int
    width: int
    head_dims: tuple[int, ...]
    lengths: tuple[int, ...]
    backward_head_dims: tuple[int, ...]
    backward_lengths: tuple[int, ...]
    decode: tuple[tuple[int, int], ...]
    decode_heads: tuple[int, int]
    grouped_lengths: tuple[int, ...]
    windows: tuple[tuple[int, int], ...]
    sigmoid_lengths: tuple[int, ...]


_SCALES: dict[tuple[DeviceKind, Suite], _Scale] = {
    ("cuda", "core"): _Scale(
        dtypes=("float16",),
        tokens=16384,
        width=2048,
        head_dims=(64, 128, 256),
        lengths=(1024, 2048, 4096, 8192, 16384),
        backward_head_dims=(64, 128),
        backward_lengths=(1024, 4096, 16384),
        decode=((1, 8192), (1, 131072), (16, 8192), (16, 32768), (64, 4096)),
        decode_heads=(32, 8),
        grouped_lengths=(4096, 8192),
        windows=((4096, 1024), (16384, 1024), (16384, 256)),
        sigmoid_lengths=(4096, 16384),
    ),
    ("cuda", "full"): _Scale(
        dtypes=("float16", "bfloat16"),
        tokens=16384,
        width=2048,
        head_dims=(64, 96, 128, 192, 256),
        lengths=(512, 1024, 2048, 4096, 8192, 16384),
        backward_head_dims=(64, 128, 256),
        backward_lengths=(512, 1024, 2048, 4096, 8192, 16384),
        decode=(*itertools.product((1, 16, 64), (1024, 8192, 32768)), (1, 131072)),
        decode_heads=(32, 8),
        grouped_lengths=(1024, 4096, 8192, 16384),
        windows=tuple(itertools.product((2048, 4096, 16384), (256, 1024))),
        sigmoid_lengths=(1024, 4096, 16384),
    ),
    ("cpu", "core"): _Scale(
        dtypes=("float32",),
        tokens=2048,
        width=512,
        head_dims=(32, 64, 128),
        lengths=(128, 256, 512, 1024, 2048),
        backward_head_dims=(64, 128),
        backward_lengths=(128, 512, 1024),
        decode=((1, 1024), (1, 4096), (1, 16384), (4, 1024), (4, 4096)),
        decode_heads=(8, 2),
        grouped_lengths=(512, 1024),
        windows=((1024, 64), (2048, 64), (2048, 256)),
        sigmoid_lengths=(256, 1024),
    ),
    ("cpu", "full"): _Scale(
        dtypes=("float32", "bfloat16"),
        tokens=4096,
        width=512,
        head_dims=(32, 64, 96, 128),
        lengths=(64, 128, 256, 512, 1024, 2048, 4096),
        backward_head_dims=(64, 128),
        backward_lengths=(128, 256, 512, 1024, 2048),
        decode=tuple(itertools.product((1, 4, 16), (1024, 4096, 16384))),
        decode_heads=(8, 2),
        grouped_lengths=(256, 512, 1024, 2048),
        windows=tuple(itertools.product((1024, 4096), (64, 256))),
        sigmoid_lengths=(256, 1024, 4096),
    ),
}


def list_cases(device: DeviceKind, suite: str) -> tuple[Case, ...]:
    """Return the cases of ``core`` or ``full`` for a device; KernelError for another name.

    >>> len(list_cases("cuda", "core")), len(list_cases("cpu", "core"))
    (58, 58)
    """
    if suite not in get_args(Suite):
        raise KernelError(f"--suite: there is no '{suite}'{closest(suite, get_args(Suite))}")
    scale = next(s for key, s in _SCALES.items() if key == (device, suite))
    return tuple(case for dtype in scale.dtypes for case in _cases(scale, dtype))


def _cases(scale: _Scale, dtype: str) -> Iterator[Case]:
    def square(direction: Direction, length: int, head_dim: int, **more: object) -> Case:
        heads = max(1, scale.width // head_dim)
        sizes = {
            "batch": max(1, scale.tokens // length),
            "heads_q": heads,
            "heads_kv": heads,
            "seqlen_q": length,
            "seqlen_k": length,
            "head_dim": head_dim,
        }
        return Case(direction, dtype, **{**sizes, **more})  # type: ignore[arg-type]

    masks = (False, True)
    for head_dim, length, causal in itertools.product(scale.head_dims, scale.lengths, masks):
        yield square("fwd", length, head_dim, causal=causal)
    backward = itertools.product(scale.backward_head_dims, scale.backward_lengths, masks)
    for head_dim, length, causal in backward:
        yield square("bwd", length, head_dim, causal=causal)
    heads_q, heads_kv = scale.decode_heads
    for batch, keys in scale.decode:
        yield Case("fwd", dtype, batch, heads_q, heads_kv, 1, keys, 128)
    for length in scale.grouped_lengths:
        yield square("fwd", length, 128, heads_q=heads_q, heads_kv=heads_kv, causal=True)
    for length, window in scale.windows:
        yield square("fwd", length, 128, causal=True, window=window, sinks=4)
    for head_dim, length in itertools.product((64, 128), scale.sigmoid_lengths):
        yield square("fwd", length, head_dim, similarity="sigmoid")
        if length == scale.sigmoid_lengths[0]:
            yield square("bwd", length, head_dim, similarity="sigmoid")
