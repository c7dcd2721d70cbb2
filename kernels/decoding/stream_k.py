"""Stream-K decoding (LeanAttention): every worker takes an equal run of key blocks.

The key blocks of all sequences and heads form one line, cut into equal parts whatever the lengths
of the sequences. A worker may hold the end of one output and the start of the next; the last
worker to finish a piece of an output merges all its pieces, in order. No worker waits for
another, so there is nothing to deadlock on, and the result does not depend on who is last.
Source: Sanovar et al., LeanAttention (2024).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from einfuse.kernels.attention.online import finish_softmax, start_softmax
from einfuse.kernels.calls.launch import Launch
from einfuse.kernels.calls.problem import Problem
from einfuse.kernels.calls.registry import Kernel
from einfuse.kernels.calls.tiles import Rows, padded, rows
from einfuse.kernels.compiled.examples import Example

from .cache import CacheProblem
from .rows import attend_range, load_rows, merge, store_rows
from .split_kv import cache_arguments, count_processors, example_problems, row_tiles


def plan_forward(
    kernel: Kernel, problem: Problem, out: Tensor, lse: Tensor, architecture: str
) -> tuple[Launch, ...]:
    """Return the launch for a call of attention with few queries."""
    options = problem.options
    cached = CacheProblem(problem.q, problem.k, problem.v, options.scale, options.causal)
    return plan_cache(kernel, cached, out, lse, architecture)


def plan_cache(
    kernel: Kernel,
    problem: CacheProblem,
    out: Tensor,
    lse: Tensor,
    architecture: str,
    workers: int | None = None,
) -> tuple[Launch, ...]:
    """Return the launch that fills ``out [B, H, P, F]`` and ``lse [B, H, P]`` (float32)."""
    head_size, value_size = problem.q.shape[-1], problem.v.shape[-1]
    row = kernel.configuration("stream", architecture, **problem.sizes)
    tiles = row_tiles(dict(row.tiles), problem)
    row_blocks = triton.cdiv(problem.rows, tiles["block_rows"])
    outputs = problem.batch * problem.key_heads * row_blocks
    starts = line_up(problem, tiles["block_m"], outputs)
    workers = count_processors(problem.q.device) if workers is None else workers
    pieces = (workers + outputs, tiles["block_rows"])
    launch = Launch(
        function=stream_kernel,
        grid=(workers,),
        arguments={
            **cache_arguments(problem),
            "out_at": rows(out),
            "lse_ptr": lse,
            "starts_ptr": starts,
            "piece_out_ptr": lse.new_empty((*pieces, padded(value_size))),
            "piece_lse_ptr": lse.new_empty(pieces),
            "arrivals_ptr": starts.new_zeros(outputs),
            "outputs": outputs,
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
    return (launch,)


def examples(kernel: Kernel, architecture: str) -> Iterator[Example]:
    """Yield the launches of every shipped configuration: caches contiguous and paged."""
    for label, problem in example_problems(kernel, architecture):
        out = problem.q.new_empty(problem.q.shape)
        lse = problem.q.new_empty(problem.q.shape[:-1], dtype=torch.float32)
        for launch in plan_cache(kernel, problem, out, lse, architecture):
            yield Example(f"{launch.function.__name__} {label}", launch)


def line_up(problem: CacheProblem, block_m: int, outputs: int) -> Tensor:
    """Return where each output's key blocks start on the line, and the end (int32 [outputs + 1]).

    A sequence without keys keeps one empty block, for somebody to write its output.
    """
    lengths = problem.lengths
    if lengths is None:
        full = int(triton.cdiv(problem.capacity, block_m))
        return torch.arange(outputs + 1, dtype=torch.int32, device=problem.q.device) * full
    blocks = ((lengths + block_m - 1) // block_m).clamp(min=1)
    line = blocks.repeat_interleave(outputs // problem.batch).cumsum(0, dtype=torch.int32)
    return torch.cat([line.new_zeros(1), line])


@triton.jit
def stream_kernel(
    q_at: Rows, k_at: Rows, v_at: Rows, out_at: Rows, lse_ptr: tl.tensor,
    lengths_ptr: tl.tensor,  # [batch] or None
    page_table_ptr: tl.tensor,  # [batch, pages] or None
    starts_ptr: tl.tensor,  # [outputs + 1]
    piece_out_ptr: tl.tensor,  # [workers + outputs, row, f]
    piece_lse_ptr: tl.tensor,  # [workers + outputs, row]
    arrivals_ptr: tl.tensor,  # [outputs], zero
    queries: tl.tensor, capacity: tl.tensor, key_heads: tl.tensor, group: tl.tensor,
    pages: tl.tensor, outputs: tl.tensor, scale_log2: tl.tensor,
    causal: tl.constexpr, page_slots: tl.constexpr, head_e: tl.constexpr, head_f: tl.constexpr,
    block_e: tl.constexpr, block_f: tl.constexpr, block_rows: tl.constexpr, block_m: tl.constexpr,
    accumulator: tl.constexpr,
) -> None:  # fmt: skip
    """Work off one worker's run of the line, output by output."""
    worker = tl.program_id(0)
    line = tl.load(starts_ptr + outputs)
    share = line // tl.num_programs(0)
    extra = line % tl.num_programs(0)  # the first workers take one block more
    position = worker * share + tl.minimum(worker, extra)
    end = position + share + (worker < extra).to(tl.int32)

    # The last output that starts at or before `position`.
    output = 0
    beyond = outputs
    while beyond - output > 1:
        middle = (output + beyond) // 2
        if tl.load(starts_ptr + middle) <= position:
            output = middle
        else:
            beyond = middle

    row_blocks = tl.cdiv(group * queries, block_rows)
    heads = key_heads * group
    rows = tl.arange(0, block_rows)
    f = tl.arange(0, block_f)
    while position < end:
        first = tl.load(starts_ptr + output)
        last = tl.load(starts_ptr + output + 1)
        stop = tl.minimum(end, last)
        row = output % row_blocks * block_rows + rows
        key_head = (output // row_blocks % key_heads).to(tl.int64)
        sequence = (output // row_blocks // key_heads).to(tl.int64)
        keys = capacity
        if lengths_ptr is not None:
            keys = tl.load(lengths_ptr + sequence)
        head = key_head * group + row // queries
        query = row % queries
        present = row < group * queries
        q = load_rows(q_at, sequence, head, query, present, head_e, block_e)  # [row, e]
        acc, total, peak = start_softmax(block_rows, block_f, accumulator)
        acc, total, peak = attend_range(
            acc, total, peak, q, query,
            (position - first) * block_m, tl.minimum(keys, (stop - first) * block_m), keys,
            k_at, v_at, page_table_ptr, sequence, key_head, queries, pages, scale_log2,
            causal, page_slots, head_e, head_f, block_e, block_f, block_m,
        )  # fmt: skip
        out, log_sum = finish_softmax(acc, total, peak)
        is_complete = (position == first) & (stop == last)
        if not is_complete:
            # Pieces are in the order of the line: `worker + output` grows from piece to piece.
            piece = tl.cast(worker + output, tl.int64) * block_rows + rows
            tl.store(piece_lse_ptr + piece, log_sum)
            tl.store(piece_out_ptr + piece[:, None] * block_f + f[None, :], out)
            tl.debug_barrier()  # all stores of the block come before its arrival
            first_worker = _worker_of(first, share, extra)
            last_worker = _worker_of(last - 1, share, extra)
            arrived = tl.atomic_add(arrivals_ptr + output, 1, sem="acq_rel")
            is_complete = arrived == last_worker - first_worker
            if is_complete:
                tl.debug_barrier()
                acc, total, peak = start_softmax(block_rows, block_f, accumulator)
                for other in range(first_worker, last_worker + 1):
                    piece = tl.cast(other + output, tl.int64) * block_rows + rows
                    piece_lse = tl.load(piece_lse_ptr + piece, cache_modifier=".cg")
                    piece_out = tl.load(
                        piece_out_ptr + piece[:, None] * block_f + f[None, :],
                        cache_modifier=".cg",
                    )
                    acc, total, peak = merge(acc, total, peak, piece_out, piece_lse)
                out, log_sum = finish_softmax(acc, total, peak)
        if is_complete:
            tl.store(lse_ptr + (sequence * heads + head) * queries + query, log_sum, mask=present)
            store_rows(out_at, sequence, out, head, query, present, head_f, block_f)
        position = stop
        output += 1


@triton.jit
def _worker_of(block: tl.tensor, share: tl.tensor, extra: tl.tensor) -> tl.tensor:
    """Return which worker has a block of the line."""
    long_part = extra * (share + 1)
    in_short_part = extra + (block - long_part) // tl.maximum(share, 1)
    return tl.where(block < long_part, block // (share + 1), in_short_part)
