"""Decoding with the keys split over programs, and a merge (FlashDecoding); cache paged or not.

One program attends the queries that share a key head, ``rows`` of them (the group's heads by the
P newest positions), to a range of keys; partial results are merged by their log-sum-exp in a
fixed order, so that a result depends on the number of splits alone. Fix ``splits`` to make it
independent of the batch, too.
Source: Dao et al., "Flash-Decoding for long-context inference" (2023).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from einfuse.kernels.attention.online import finish_softmax, start_softmax
from einfuse.kernels.calls.architecture import find_architecture
from einfuse.kernels.calls.arguments import check_tensors, check_values
from einfuse.kernels.calls.autotuning import tuned
from einfuse.kernels.calls.launch import Launch
from einfuse.kernels.calls.problem import Problem
from einfuse.kernels.calls.register import empty_results, register_operator, with_contiguous_rows
from einfuse.kernels.calls.registry import Kernel, find_kernel, find_or_fall_back, kernels
from einfuse.kernels.calls.tiles import LOG2_E, Rows, accumulator, padded, rows
from einfuse.kernels.compiled.examples import Example, sizes_and_dtypes
from einfuse.kernels.errors import KernelError

from .cache import CacheProblem, attend_cache, check_cache_problem
from .rows import attend_range, load_rows, merge, store_rows

_NAME = "split-kv-decode"
_WAVES = 2
_MOST_SPLITS = 128
_NOMINAL_PROCESSORS = 132
"""The multiprocessors to plan for where no GPU tells: those of an H100 SXM."""


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    lengths: Tensor | None = None,
    page_table: Tensor | None = None,
    causal: bool = True,
    scale: float | None = None,
    splits: int | None = None,
    kernel: str | None = None,
    validate: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the output ``[B, H, P, F]`` of a decoding step and its log-sum-exp ``[B, H, P]``.

    ``q [B, H, P, E]`` holds the P newest positions of each sequence. The cache is contiguous
    (``k [B, G, M, E]``, ``v [B, G, M, F]``) or, with ``page_table`` (int32 [B, pages]), paged
    (``k [pages, slots, G, E]``, ``v [pages, slots, G, F]``). ``lengths`` (int32 [B]) counts the
    keys of each sequence, new ones included; a sequence without keys gives 0 and -inf. ``scale``
    is 1/sqrt(E) unless given. ``kernel`` is ``split-kv-decode`` unless ``stream-k-decode`` is
    asked for; ``splits`` fixes how many programs share a sequence's keys, or how many work in all
    of the second. Where no kernel runs the plain formula does. ``validate=False`` leaves out the
    checks that read lengths and pages, which wait for the device.

    Raises KernelError (a ValueError) on bad arguments.
    """
    check_tensors(q=q, k=k, v=v)
    check_values(
        {"lengths": lengths, "page_table": page_table, "causal": causal, "scale": scale,
         "splits": splits, "kernel": kernel, "validate": validate}
    )  # fmt: skip
    if splits is not None and splits < 1:
        raise KernelError(f"splits: expected at least 1, found {splits}")
    factor = max(q.shape[-1], 1) ** -0.5 if scale is None else scale
    out, lse = _decode(
        q, k, v, lengths, page_table, causal, factor, splits or 0, kernel or "", validate
    )
    return out, lse


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    page_table: Tensor | None,
    causal: bool,
    scale: float,
    splits: int,
    kernel: str,
    validate: bool,
) -> tuple[Tensor, Tensor]:
    q, k, v = (with_contiguous_rows(t) for t in (q, k, v))
    problem = CacheProblem(q, k, v, scale, causal, lengths, page_table)
    check_cache_problem(problem, read_values=validate)
    architecture = find_architecture(q.device)
    _check_kernel(kernel or _NAME)
    found = find_or_fall_back(kernel or _NAME, problem.traits(architecture), asked=bool(kernel))
    out, lse = empty_results(q, v)
    if found is None:
        plain_out, plain_lse = attend_cache(problem, lse.dtype)
        return out.copy_(plain_out), lse.copy_(plain_lse)

    def plan(kernel: Kernel) -> tuple[Launch, ...]:
        launches: tuple[Launch, ...] = kernel.function("plan_cache")(
            kernel, problem, out, lse, architecture, splits or None
        )
        return launches

    for launch in plan(tuned(found, "forward", architecture, problem.sizes, q.device, plan)):
        launch.run()
    return out, lse


def _check_kernel(name: str) -> None:
    """Raise a KernelError unless a kernel decodes: all that do implement one cascade."""
    cascade = find_kernel(_NAME).cascade
    if find_kernel(name).cascade != cascade:
        names = (kernel.name for kernel in kernels() if kernel.cascade == cascade)
        raise KernelError(f"kernel: expected one of {', '.join(names)}, found '{name}'")


def _empty_outputs(q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return empty_results(q, v)


def _count(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, page_table: Tensor | None, *_: object
) -> int:
    """Two operations per multiply-add, as if every cache were full."""
    capacity = k.shape[2] if page_table is None else page_table.shape[1] * k.shape[1]
    return 2 * math.prod(q.shape[:3]) * capacity * (q.shape[3] + v.shape[3])


_decode = register_operator("decode", _forward, empty_outputs=_empty_outputs, count=_count)


def plan_forward(
    kernel: Kernel, problem: Problem, out: Tensor, lse: Tensor, architecture: str
) -> tuple[Launch, ...]:
    """Return the launches for a call of attention with few queries."""
    options = problem.options
    cached = CacheProblem(problem.q, problem.k, problem.v, options.scale, options.causal)
    return plan_cache(kernel, cached, out, lse, architecture)


def plan_cache(
    kernel: Kernel,
    problem: CacheProblem,
    out: Tensor,
    lse: Tensor,
    architecture: str,
    splits: int | None = None,
) -> tuple[Launch, ...]:
    """Return the launches that fill ``out [B, H, P, F]`` and ``lse [B, H, P]`` (float32)."""
    head_size, value_size = problem.q.shape[-1], problem.v.shape[-1]
    row = kernel.configuration("split", architecture, **problem.sizes)
    tiles = row_tiles(dict(row.tiles), problem)
    row_blocks = triton.cdiv(problem.rows, tiles["block_rows"])
    programs = problem.batch * problem.key_heads * row_blocks
    key_blocks = triton.cdiv(problem.capacity, tiles["block_m"])
    if splits is None:
        splits = choose_splits(programs, key_blocks, count_processors(problem.q.device))
    splits = min(splits, key_blocks)
    is_single = splits == 1
    part_out = out[None] if is_single else out.new_empty((splits, *out.shape), dtype=lse.dtype)
    part_lse = lse[None] if is_single else lse.new_empty((splits, *lse.shape))
    split = Launch(
        function=split_kernel,
        grid=(programs, splits),
        arguments={
            **cache_arguments(problem),
            "out_at": rows(part_out[0])._replace(ptr=part_out),
            "lse_ptr": part_lse,
            "out_split": part_out.stride(0),
            "lse_split": part_lse.stride(0),
            **tiles,
        },
        options=row.options,
        tile={
            "P": tiles["block_rows"],
            "M": tiles["block_m"],
            "E": padded(head_size),
            "F": padded(value_size),
        },
    )
    if is_single:
        return (split,)
    merging = kernel.configuration("merge", architecture, **problem.sizes)
    merge = Launch(
        function=merge_kernel,
        grid=(triton.cdiv(lse.numel(), dict(merging.tiles)["block_rows"]),),
        arguments={
            "part_out_ptr": part_out,
            "part_lse_ptr": part_lse,
            "out_ptr": out,
            "lse_ptr": lse,
            "splits": splits,
            "rows": lse.numel(),
            "head_f": value_size,
            "block_f": padded(value_size),
            **dict(merging.tiles),
        },
        options=merging.options,
    )
    return (split, merge)


def examples(kernel: Kernel, architecture: str) -> Iterator[Example]:
    """Yield the launches of every shipped configuration: caches contiguous and paged."""
    for label, problem in example_problems(kernel, architecture):
        out, lse = empty_results(problem.q, problem.v)
        for launch in plan_cache(kernel, problem, out, lse, architecture, splits=4):
            yield Example(f"{launch.function.__name__} {label}", launch)


def example_problems(kernel: Kernel, architecture: str) -> Iterator[tuple[str, CacheProblem]]:
    """Yield decoding steps without data, for each shipped row and data type."""
    for (head_size, dtype), is_paged, key_heads in itertools.product(
        sizes_and_dtypes(kernel, architecture), (False, True), (1, 16)
    ):
        batch, heads, keys, slots = 4, 64, 4096, 64

        def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        q = empty(batch, heads, 1, head_size)
        lengths = empty(batch, dtype=torch.int32)
        if is_paged:
            pages = keys // slots
            cache = empty(batch * pages, slots, key_heads, head_size)
            table = empty(batch, pages, dtype=torch.int32)
            problem = CacheProblem(q, cache, cache, head_size**-0.5, True, lengths, table)
        else:
            cache = empty(batch, key_heads, keys, head_size)
            problem = CacheProblem(q, cache, cache, head_size**-0.5, True, lengths)
        kind = "paged" if is_paged else "contiguous"
        name = str(dtype).removeprefix("torch.")
        yield f"head_size={head_size} {name} {kind} group={problem.group}", problem


def choose_splits(programs: int, key_blocks: int, processors: int) -> int:
    """Return the fewest splits whose programs fill their last wave nearly as well as any.

    ``programs`` run per split; a split has at least one of ``key_blocks`` blocks of keys.

    >>> choose_splits(programs=8, key_blocks=1024, processors=132)
    29
    >>> choose_splits(programs=400, key_blocks=1024, processors=132)
    1
    """
    if programs * 5 >= processors * _WAVES * 4:
        return 1

    def efficiency(splits: int) -> float:
        waves = programs * splits / (processors * _WAVES)
        return waves / math.ceil(waves)

    choices = range(1, min(key_blocks, _MOST_SPLITS) + 1)
    best = max(map(efficiency, choices))
    return next(splits for splits in choices if efficiency(splits) >= 0.85 * best)


def count_processors(device: torch.device) -> int:
    """Return the multiprocessors of a CUDA device, or a nominal number without one."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return _NOMINAL_PROCESSORS


def row_tiles(tiles: Mapping[str, int], problem: CacheProblem) -> dict[str, int]:
    """Return tiles whose ``block_rows`` is no larger than the rows there are, padded."""
    return {**tiles, "block_rows": min(tiles["block_rows"], padded(problem.rows))}


def cache_arguments(problem: CacheProblem) -> dict[str, object]:
    """Return the arguments that say where queries and cache are."""
    return {
        "q_at": rows(problem.q),
        "k_at": problem.find_rows(problem.k),
        "v_at": problem.find_rows(problem.v),
        "lengths_ptr": problem.lengths,
        "page_table_ptr": problem.page_table,
        "queries": problem.q.shape[2],
        "capacity": problem.capacity,
        "key_heads": problem.key_heads,
        "group": problem.group,
        "pages": 0 if problem.page_table is None else problem.page_table.shape[1],
        "scale_log2": problem.scale * LOG2_E,
        "causal": problem.causal and problem.q.shape[2] > 1,
        "page_slots": problem.page_slots,
        "head_e": problem.q.shape[-1],
        "head_f": problem.v.shape[-1],
        "block_e": padded(problem.q.shape[-1]),
        "block_f": padded(problem.v.shape[-1]),
        "accumulator": accumulator(problem.q.dtype),
    }


@triton.jit
def split_kernel(
    q_at: Rows, k_at: Rows, v_at: Rows,
    out_at: Rows,  # [splits, batch, heads, queries, f]
    lse_ptr: tl.tensor,  # [splits, batch, heads, queries]
    lengths_ptr: tl.tensor,  # [batch] or None
    page_table_ptr: tl.tensor,  # [batch, pages] or None
    out_split: tl.tensor, lse_split: tl.tensor, queries: tl.tensor, capacity: tl.tensor,
    key_heads: tl.tensor, group: tl.tensor, pages: tl.tensor, scale_log2: tl.tensor,
    causal: tl.constexpr, page_slots: tl.constexpr, head_e: tl.constexpr, head_f: tl.constexpr,
    block_e: tl.constexpr, block_f: tl.constexpr, block_rows: tl.constexpr, block_m: tl.constexpr,
    accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """Attend the rows of one key head to one split of the keys of its sequence."""
    row_blocks = tl.cdiv(group * queries, block_rows)
    row = tl.program_id(0) % row_blocks * block_rows + tl.arange(0, block_rows)
    key_head = (tl.program_id(0) // row_blocks % key_heads).to(tl.int64)
    sequence = (tl.program_id(0) // row_blocks // key_heads).to(tl.int64)
    split = tl.program_id(1)
    keys = capacity
    if lengths_ptr is not None:
        keys = tl.load(lengths_ptr + sequence)
    share = tl.cdiv(tl.cdiv(keys, block_m), tl.num_programs(1)) * block_m
    begin = split * share
    stop = tl.minimum(keys, begin + share)

    head = key_head * group + row // queries
    present = row < group * queries
    q = load_rows(q_at, sequence, head, row % queries, present, head_e, block_e)  # [row, e]
    acc, total, peak = start_softmax(block_rows, block_f, accumulator)
    acc, total, peak = attend_range(
        acc, total, peak, q, row % queries, begin, stop, keys, k_at, v_at, page_table_ptr,
        sequence, key_head, queries, pages, scale_log2, causal, page_slots, head_e, head_f,
        block_e, block_f, block_m,
    )  # fmt: skip
    out, log_sum = finish_softmax(acc, total, peak)
    heads = key_heads * group
    lse_ptr += split.to(tl.int64) * lse_split
    tl.store(lse_ptr + (sequence * heads + head) * queries + row % queries, log_sum, mask=present)
    part = Rows(out_at.ptr + split.to(tl.int64) * out_split, out_at.batch, out_at.head, out_at.row)
    store_rows(part, sequence, out, head, row % queries, present, head_f, block_f)


@triton.jit
def merge_kernel(
    part_out_ptr: tl.tensor,  # [splits, rows, f]
    part_lse_ptr: tl.tensor,  # [splits, rows]
    out_ptr: tl.tensor,  # [rows, f]
    lse_ptr: tl.tensor,  # [rows]
    splits: tl.tensor, rows: tl.tensor,
    head_f: tl.constexpr, block_f: tl.constexpr, block_rows: tl.constexpr,
) -> None:  # fmt: skip
    """Merge the splits of ``block_rows`` queries, in order."""
    row = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    f = tl.arange(0, block_f)
    inside = (row < rows)[:, None] & (f < head_f)[None, :]
    acc, total, peak = start_softmax(block_rows, block_f, part_lse_ptr.dtype.element_ty)
    for _ in range(0, splits):
        lse = tl.load(part_lse_ptr + row, mask=row < rows, other=float("-inf"))
        out = tl.load(part_out_ptr + row[:, None] * head_f + f[None, :], mask=inside, other=0.0)
        acc, total, peak = merge(acc, total, peak, out, lse)
        part_lse_ptr += rows
        part_out_ptr += rows.to(tl.int64) * head_f
    out, log_sum = finish_softmax(acc, total, peak)
    tl.store(lse_ptr + row, log_sum, mask=row < rows)
    tl.store(
        out_ptr + row[:, None] * head_f + f[None, :], out.to(out_ptr.dtype.element_ty), mask=inside
    )
