"""One attention call: its tensors and its options."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from .architecture import find_architecture
from .registry import Traits

Similarity = Literal["softmax", "sigmoid"]
SIMILARITIES: tuple[str, ...] = get_args(Similarity)


@dataclass(frozen=True, slots=True)
class Options:
    """The choices of one attention call, as plain values.

    Queries are aligned to the end of the keys, as in a decoding step: query ``p`` of ``P`` stands
    at position ``p + M - P`` among ``M`` keys. ``causal`` hides later keys; ``window`` (of ``w``
    keys) hides keys ``w`` or more positions away; the first ``sinks`` keys escape the window.
    ``bias`` is added to a score before the sigmoid; ``softcap`` (0 = none) bounds scores to
    ``softcap * tanh(score / softcap)``.

    >>> sorted(Options(causal=True, window=128, scale=0.125).features)
    ['causal', 'window']
    """

    scale: float
    causal: bool = False
    window: int | None = None
    sinks: int = 0
    similarity: Similarity = "softmax"
    bias: float = 0.0
    softcap: float = 0.0

    @property
    def features(self) -> frozenset[str]:
        """The options that a kernel must know of to take this call."""
        asked = {
            "causal": self.causal,
            "window": self.window is not None,
            "sinks": self.sinks > 0,
            "sigmoid": self.similarity == "sigmoid",
            "bias": self.bias != 0.0,
            "softcap": self.softcap != 0.0,
        }
        return frozenset(name for name, wanted in asked.items() if wanted)


@dataclass(frozen=True, eq=False)  # without slots, for what is read from the device once
class Problem:
    """What a kernel is given; every tensor already checked, the last dimension contiguous.

    Shapes by the cascade's ranks, with B batches, H heads and G key heads (H a multiple of G):
    ``q [B, H, P, E]``, ``k [B, G, M, E]``, ``v [B, G, M, F]``. A batch of sequences packed end to
    end has ``q [P, H, E]``, ``k [M, G, E]``, ``v [M, G, F]`` and the first row of each sequence
    (and the end) in ``starts_q`` and ``starts_k``. ``block_mask [B or 1, H or 1, P tiles, M
    tiles]`` says which tiles of ``block_size`` by ``block_size`` scores exist; ``full_heads [H]``
    (bool) which heads the window leaves alone.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    options: Options
    starts_q: Tensor | None = None
    starts_k: Tensor | None = None
    block_mask: Tensor | None = None
    block_size: int = 0
    full_heads: Tensor | None = None

    @property
    def is_packed(self) -> bool:
        """Whether the sequences are packed end to end."""
        return self.starts_q is not None

    @functools.cached_property
    def rows_q(self) -> tuple[int, ...]:
        """The values of ``starts_q``, read once; as of equal lengths if it has no data."""
        return _bounds(self.starts_q, self.q.shape[0])

    @functools.cached_property
    def rows_k(self) -> tuple[int, ...]:
        """The values of ``starts_k``, as :attr:`rows_q`."""
        return _bounds(self.starts_k, self.k.shape[0])

    @property
    def batch(self) -> int:
        """B, the number of sequences."""
        return self.q.shape[0] if self.starts_q is None else self.starts_q.numel() - 1

    @property
    def heads(self) -> int:
        """H, the number of query heads."""
        return self.q.shape[1]

    @property
    def key_heads(self) -> int:
        """G, the number of key and value heads."""
        return self.k.shape[1]

    @property
    def queries(self) -> int:
        """P, the queries of a sequence (of the longest one, if packed)."""
        return self.q.shape[2] if self.starts_q is None else _longest(self.rows_q)

    @property
    def keys(self) -> int:
        """M, the keys of a sequence (of the longest one, if packed)."""
        return self.k.shape[2] if self.starts_k is None else _longest(self.rows_k)

    @property
    def head_size(self) -> int:
        """E, the length of a query or key."""
        return self.q.shape[-1]

    @property
    def value_size(self) -> int:
        """F, the length of a value."""
        return self.v.shape[-1]

    @property
    def sizes(self) -> dict[str, int]:
        """What the rows of a kernel's configurations may be conditional on."""
        return {
            "head_size": max(self.head_size, self.value_size),
            "causal": int(self.options.causal),
            "itemsize": self.q.element_size(),
            "queries": self.queries,
            "keys": self.keys,
        }

    def sequences(self) -> Iterator[Problem]:
        """Yield the sequences of a packed batch, each a batch of one."""
        bounds = zip(itertools.pairwise(self.rows_q), itertools.pairwise(self.rows_k), strict=True)
        for rows, columns in bounds:
            q, k, v = (
                tensor[slice(*part)].transpose(0, 1)[None]
                for tensor, part in ((self.q, rows), (self.k, columns), (self.v, columns))
            )
            yield replace(self, q=q, k=k, v=v, starts_q=None, starts_k=None)

    def traits(self, training: bool = False, architecture: str | None = None) -> Traits:
        """Return what a kernel must know to say whether it takes this call.

        ``training`` asks for a kernel with a backward pass; ``architecture`` is that of the
        tensors' device unless given.
        """
        features = set(self.options.features)
        if self.is_packed:
            features.add("varlen")
        if self.block_mask is not None:
            features.add("block_mask")
        if self.full_heads is not None:
            features.add("full_heads")
        if self.heads != self.key_heads:
            features.add("gqa")
        if training:
            features.add("backward")
        return Traits(
            architecture=architecture or find_architecture(self.q.device),
            dtype=str(self.q.dtype).removeprefix("torch."),
            heads=self.heads,
            key_heads=self.key_heads,
            queries=self.queries,
            keys=self.keys,
            head_size=self.head_size,
            value_size=self.value_size,
            alignment=math.gcd(
                _alignment(self.q, self.k, self.v), self.value_size * self.q.element_size()
            ),
            block_size_alignment=math.gcd(self.block_size, 16),
            features=frozenset(features),
        )


def has_data(tensor: Tensor) -> bool:
    """Whether a tensor's values can be read: not on ``meta``, nor while tracing.

    >>> has_data(torch.ones(1)), has_data(torch.ones(1, device="meta"))
    (True, False)
    """
    return not tensor.is_meta and type(tensor) in (Tensor, torch.nn.Parameter)


def _alignment(*tensors: Tensor) -> int:
    offsets = [16]
    for tensor in tensors:
        offsets += [stride * tensor.element_size() for stride in tensor.stride()[:-1]]
        offsets.append(0 if tensor.is_meta else tensor.data_ptr())
    return math.gcd(*offsets)


def _longest(rows: tuple[int, ...]) -> int:
    return max(stop - start for start, stop in itertools.pairwise(rows))


def _bounds(starts: Tensor | None, rows: int) -> tuple[int, ...]:
    assert starts is not None, "the sequences are not packed"
    if has_data(starts):
        return tuple(int(start) for start in starts.tolist())
    count = starts.numel() - 1
    return tuple(rows * i // count for i in range(count + 1))
