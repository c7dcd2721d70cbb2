"""Queries of a decoding step against a cache of keys and values, contiguous or in pages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from einfuse.kernels.calls.arguments import check_key_heads, check_operands, check_scale
from einfuse.kernels.calls.problem import Options, Problem
from einfuse.kernels.calls.reference import attend_plainly
from einfuse.kernels.calls.registry import Traits
from einfuse.kernels.calls.tiles import Rows, rows
from einfuse.kernels.errors import KernelError


@dataclass(frozen=True, slots=True, eq=False)
class CacheProblem:
    """A decoding step: the last P positions of each sequence attend to its cache.

    With B sequences, H heads and G key heads (H a multiple of G), ``q [B, H, P, E]``. A
    contiguous cache is ``k [B, G, M, E]`` and ``v [B, G, M, F]``; a paged one is
    ``k [pages, slots, G, E]`` and ``v [pages, slots, G, F]`` with ``page_table`` (int32
    [B, pages of a sequence]), whose row lists the pages of a sequence in order. ``lengths``
    (int32 [B]) counts the keys of each sequence, new ones included; without it the cache is full.
    Under ``causal`` the last query sees every key, the one before it all but the last, and so on.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    causal: bool = True
    lengths: Tensor | None = None
    page_table: Tensor | None = None

    @property
    def batch(self) -> int:
        """B, the number of sequences."""
        return self.q.shape[0]

    @property
    def key_heads(self) -> int:
        """G, the number of key and value heads."""
        return self.k.shape[1 if self.page_table is None else 2]

    @property
    def group(self) -> int:
        """How many query heads share a key head."""
        return self.q.shape[1] // self.key_heads

    @property
    def rows(self) -> int:
        """The queries that share a key head: its group's heads times P."""
        return self.group * self.q.shape[2]

    @property
    def page_slots(self) -> int:
        """The keys of a page; 0 for a contiguous cache."""
        return 0 if self.page_table is None else self.k.shape[1]

    @property
    def capacity(self) -> int:
        """The most keys that a sequence can have."""
        if self.page_table is None:
            return self.k.shape[2]
        return self.page_table.shape[1] * self.page_slots

    @property
    def sizes(self) -> dict[str, int]:
        """What the rows of a kernel's configurations may be conditional on."""
        return {
            "head_size": max(self.q.shape[3], self.v.shape[3]),
            "itemsize": self.q.element_size(),
            "queries": self.q.shape[2],
            "keys": self.capacity,
        }

    def traits(self, architecture: str) -> Traits:
        """Return what a kernel must know to say whether it takes this call."""
        features = {"causal": self.causal, "gqa": self.group > 1}
        return Traits(
            architecture=architecture,
            dtype=str(self.q.dtype).removeprefix("torch."),
            heads=self.q.shape[1],
            key_heads=self.key_heads,
            queries=self.q.shape[2],
            keys=self.capacity,
            head_size=self.q.shape[3],
            value_size=self.v.shape[3],
            features=frozenset(name for name, asked in features.items() if asked),
        )

    def find_rows(self, cache: Tensor) -> Rows:
        """Return the keys or values as kernels take them; a page is a batch."""
        return rows(cache if self.page_table is None else cache.transpose(1, 2))


def check_cache_problem(problem: CacheProblem, read_values: bool = True) -> None:
    """Raise a KernelError unless the tensors of a decoding step belong together.

    With ``read_values`` lengths and page numbers are checked, which waits for their device.
    """
    _check_tensors(problem)
    lengths, pages = problem.lengths, problem.page_table
    if lengths is not None:
        _check_integers("lengths", lengths, (problem.batch,), problem.q.device)
    if pages is not None:
        _check_integers("page_table", pages, (problem.batch, None), problem.q.device)
    if read_values:
        _check_values(problem)


def attend_cache(problem: CacheProblem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return output [B, H, P, F] and log-sum-exp [B, H, P] by the plain formula in ``dtype``."""
    options = Options(scale=problem.scale, causal=problem.causal)
    outputs = []
    for sequence in range(problem.batch):
        q = problem.q[sequence : sequence + 1]
        length = problem.capacity
        if problem.lengths is not None:
            length = int(problem.lengths[sequence])
        k, v = (_gather(problem, tensor, sequence, length) for tensor in (problem.k, problem.v))
        outputs.append(attend_plainly(Problem(q, k, v, options), dtype))
    return torch.cat([out for out, _ in outputs]), torch.cat([lse for _, lse in outputs])


def _check_values(problem: CacheProblem) -> None:
    lengths, pages = problem.lengths, problem.page_table
    if lengths is not None:
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > problem.capacity:
            raise KernelError(
                f"lengths: expected 0 to {problem.capacity} keys, the capacity of the cache, "
                f"found {low if low < 0 else high}"
            )
    if pages is not None:
        used = pages
        if lengths is not None:
            first_slot = torch.arange(pages.shape[1], device=pages.device) * problem.page_slots
            used = pages[first_slot[None, :] < lengths[:, None]]
        outside = used[(used < 0) | (used >= problem.k.shape[0])]
        if outside.numel():
            raise KernelError(
                f"page_table: expected pages from 0 to {problem.k.shape[0] - 1}, "
                f"found {int(outside[0])}"
            )


def _gather(problem: CacheProblem, cache: Tensor, sequence: int, length: int) -> Tensor:
    """The keys or values of one sequence, [1, G, length, E]."""
    if problem.page_table is None:
        return cache[sequence : sequence + 1, :, :length]
    pages = problem.page_table[sequence, : -(-length // problem.page_slots)].long()
    return cache[pages].flatten(0, 1)[:length].transpose(0, 1)[None]


def _check_tensors(problem: CacheProblem) -> None:
    q, k, v = problem.q, problem.k, problem.v
    is_paged = problem.page_table is not None
    cache = "[pages, slots, G, E]" if is_paged else "[B, G, M, E]"
    check_operands(("q", q, "[B, H, P, E]"), ("k", k, cache), ("v", v, cache))
    if not is_paged and not q.shape[0] == k.shape[0]:
        raise KernelError(f"k: expected the batch of q, {q.shape[0]}, found {k.shape[0]}")
    if q.shape[3] != k.shape[3]:
        raise KernelError(f"k: expected the head size of q, {q.shape[3]}, found {k.shape[3]}")
    if k.shape[:3] != v.shape[:3]:
        raise KernelError(f"v: expected {list(k.shape[:3])} as k, found {list(v.shape[:3])}")
    check_key_heads(q.shape[1], problem.key_heads)
    check_scale(problem.scale)


def _check_integers(
    name: str, tensor: Tensor, shape: tuple[int | None, ...], device: torch.device
) -> None:
    fits = tensor.dim() == len(shape) and all(
        size > 0 and expected in (None, size)
        for size, expected in zip(tensor.shape, shape, strict=True)
    )
    if not fits or tensor.dtype != torch.int32 or tensor.device != device:
        ranks = ", ".join("any" if size is None else str(size) for size in shape)
        raise KernelError(
            f"{name}: expected int32 [{ranks}] on {device}, found {tensor.dtype} "
            f"{list(tensor.shape)} on {tensor.device}"
        )
