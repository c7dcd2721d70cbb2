"""What a measured row says in milliseconds: the conventions of operations and bytes.

Forward ``4 B H Sq Sk D`` operations, with D the mean of the two head sizes, half of it if causal;
backward 2.5 times that, both together 3.5 times. Under a causal mask of queries that are fewer
than keys, aligned at the end, a query sees ``Sk - Sq/2`` keys on average; a window of W leaves
``S W - W^2/2`` pairs. Bytes are those of queries, keys, values and results once.
Source: ``benchmarks/benchmark_flash_attention.py`` and ``hopper/benchmark_attn.py`` of
Dao-AILab/flash-attention, cudnn-frontend's tables (whose ms and TFLOP/s agree with it), FlashMLA's
benchmark (bytes).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .rows import AttentionRow

Direction = Literal["fwd", "bwd", "fwd+bwd"]
_OF_FORWARD: dict[Direction, float] = {"fwd": 1.0, "bwd": 2.5, "fwd+bwd": 3.5}
_MS: dict[str, Callable[[float, float, float], float]] = {
    "ms": lambda value, flops, moved: value,
    "us": lambda value, flops, moved: value / 1e3,
    "s": lambda value, flops, moved: value * 1e3,
    "tflops": lambda value, flops, moved: flops / value / 1e9,
    "gb/s": lambda value, flops, moved: moved / value / 1e6,
    "tb/s": lambda value, flops, moved: moved / value / 1e9,
}


@dataclass(frozen=True, slots=True)
class Call:
    """One call of attention with everything known: what is evaluated.

    ``latent`` says that the values are a part of the keys, as in multi-head latent attention.
    """

    direction: Direction
    batch: int
    heads_q: int
    heads_kv: int
    seqlen_q: int
    seqlen_k: int
    head_dim_qk: int
    head_dim_v: int
    causal: bool = False
    window: int = 0
    latent: bool = False
    word_bytes: int = 2

    @property
    def pairs(self) -> float:
        """Pairs of a query and a key that are counted, of one head.

        >>> square = Call("fwd", 1, 1, 1, 8, 8, 64, 64)
        >>> square.pairs
        64
        """
        queries, keys = self.seqlen_q, self.seqlen_k
        if 0 < self.window < keys:
            return queries * self.window - min(queries, self.window) ** 2 / 2
        if self.causal:
            return queries * (max(0, keys - queries) + keys) / 2 if queries > 1 else keys
        return queries * keys

    @property
    def flops(self) -> float:
        """Operations by the convention of the published tables."""
        head_dim = (self.head_dim_qk + self.head_dim_v) / 2
        forward = 4 * self.batch * self.heads_q * self.pairs * head_dim
        return forward * _OF_FORWARD[self.direction]

    @property
    def moved_bytes(self) -> float:
        """Bytes of the operands and results of the forward call, each once; twice that and the
        gradients backward.
        """
        queries = self.batch * self.seqlen_q * self.heads_q
        keys = self.batch * self.seqlen_k * self.heads_kv
        values = 0 if self.latent else self.head_dim_v
        once = queries * (self.head_dim_qk + self.head_dim_v)
        once += keys * (self.head_dim_qk + values)
        times = {"fwd": 1, "bwd": 2, "fwd+bwd": 3}[self.direction]
        return once * times * self.word_bytes

    def roofline_s(self, peak_flops_per_s: float, bandwidth_bytes_per_s: float) -> float:
        """Seconds by the plain roofline: the published peaks, nothing else."""
        return max(self.flops / peak_flops_per_s, self.moved_bytes / bandwidth_bytes_per_s)


def find_direction(text: str) -> Direction | None:
    """Return the direction that a text names.

    >>> find_direction("forward"), find_direction("fwd + bwd"), find_direction("training?")
    ('fwd', 'fwd+bwd', None)
    """
    words = re.sub(r"[^a-z]+", " ", text.casefold().replace("forward", "fwd"))
    words = words.replace("backward", "bwd").strip()
    if words in ("fwd bwd", "fwdbwd", "both"):
        return "fwd+bwd"
    return "fwd" if words == "fwd" else "bwd" if words == "bwd" else None


def find_metric(text: str) -> str | None:
    """Return the metric that a text names: ms, us, s, tflops, gb/s or tb/s.

    >>> find_metric("TFLOP/s"), find_metric("GB/s"), find_metric("latency_ms")
    ('tflops', 'gb/s', 'ms')
    >>> find_metric("tokens/s")
    """
    told = text.casefold().replace("µ", "u")
    named = re.search(r"[\s_(]+(ms|us|s)\)?$", told)  # latency_ms, time (us)
    word = named[1] if named else told.replace(" ", "")
    if re.fullmatch(r"tflops?(/s|ps)?s?", word):
        return "tflops"
    aliases = {"msec": "ms", "milliseconds": "ms", "usec": "us", "microseconds": "us",
               "seconds": "s", "gbps": "gb/s", "gbs": "gb/s", "tbps": "tb/s"}  # fmt: skip
    word = aliases.get(word, word)
    return word if word in _MS else None


def find_call(row: AttentionRow, latent: bool = False, linear: bool = False) -> Call | str:
    """Return the call of a row, or why it cannot be told.

    ``linear`` attention does the same work with a causal mask and without: the call has none.
    """
    direction = find_direction(row.direction)
    if direction is None:
        return f"direction '{row.direction}': expected fwd, bwd or fwd+bwd"
    heads_kv = row.heads_q if row.heads_kv is None else row.heads_kv
    seqlen_k = row.seqlen_q if row.seqlen_k is None else row.seqlen_k
    missing = [
        name
        for name in ("batch", "heads_q", "seqlen_q", "head_dims")
        if getattr(row, name) is None
    ]  # fmt: skip
    if missing:
        return f"no {', '.join(missing).replace('head_dims', 'head_dim')} given"
    assert row.batch and row.heads_q and heads_kv and row.seqlen_q and seqlen_k and row.head_dims
    if row.heads_q % heads_kv:
        return f"{row.heads_q} query heads are no multiple of {heads_kv} key heads"
    if row.window is None:
        return "a sliding window whose width is not given"
    if row.causal is None and row.seqlen_q > 1 and not row.window and not linear:
        return "causal is not given: the work is ambiguous by a factor of two"
    return Call(
        direction=direction,
        batch=row.batch,
        heads_q=row.heads_q,
        heads_kv=heads_kv,
        seqlen_q=row.seqlen_q,
        seqlen_k=seqlen_k,
        head_dim_qk=row.head_dims[0],
        head_dim_v=row.head_dims[1],
        causal=not linear and (bool(row.causal) or bool(row.window)),
        window=row.window,
        latent=latent,
    )


def find_milliseconds(call: Call, metric: str, value: float) -> float:
    """Return the milliseconds of a call from its value in a metric (see `find_metric`).

    >>> llama = Call("fwd", 1, 32, 8, 8192, 8192, 128, 128, causal=True)
    >>> round(find_milliseconds(llama, "tflops", 643.7), 3)
    0.854
    """
    return _MS[metric](value, call.flops, call.moved_bytes)
