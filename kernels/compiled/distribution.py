"""How the compiler spreads a matrix over the threads of a block, read from its layouts."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_LAYOUT = re.compile(r"^#(\w+) = #ttg\.(nvidia_mma|blocked)<\{(.*)\}>", re.MULTILINE)
_MATRIX = re.compile(r"tensor<(\d+)x(\d+)x(?:f32|f64), #(\w+)>")
_PAIR = re.compile(r"(\w+) = \[(\d+), (\d+)\]")
# Lines that end with the type of a product's result or of a reduction's operand.
_PRODUCT = re.compile(r"(?:tt\.dot|ttng\.warp_group_dot) .* -> (tensor<[^>]*>)")
_REDUCTION = re.compile(r"\}\) : \((tensor<\d+x\d+x[^>]*>)")


@dataclass(frozen=True, slots=True)
class Distribution:
    """A [rows, columns] matrix over the threads: pairs are (along rows, along columns).

    A thread holds ``block`` neighbouring elements, ``lanes`` threads of a warp and ``warps`` warps
    lie beside each other, and the pattern repeats until the matrix is covered. A matrix smaller
    than the pattern is held several times over.

    >>> scores = Distribution(128, 64, block=(2, 2), lanes=(8, 4), warps=(8, 1))
    >>> scores.rows_per_thread, scores.columns_per_thread, scores.steps_along_columns()
    (2, 16, (34, 4))
    """

    rows: int
    columns: int
    block: tuple[int, int]
    lanes: tuple[int, int]
    warps: tuple[int, int]

    @property
    def rows_per_thread(self) -> int:
        """The rows that a thread holds elements of."""
        return _per_thread(self.rows, self.block[0], self.lanes[0], self.warps[0])

    @property
    def columns_per_thread(self) -> int:
        """The columns that a thread holds elements of."""
        return _per_thread(self.columns, self.block[1], self.lanes[1], self.warps[1])

    def steps_along_columns(self) -> tuple[int, int]:
        """Return (operations, shuffles) of a thread that folds every row into one value."""
        return _steps(self.rows_per_thread, self.columns_per_thread, self.rows, 1, self)

    def steps_along_rows(self) -> tuple[int, int]:
        """Return (operations, shuffles) of a thread that folds every column into one value."""
        return _steps(self.columns_per_thread, self.rows_per_thread, self.columns, 0, self)


def read_distributions(ttgir: str) -> tuple[Distribution, ...]:
    """Return the distinct matrices that are products or are reduced, in the order of the text.

    ``ttgir`` is Triton's IR with layouts. The accumulator of a tensor-core product gives each
    thread 2 by 2 elements of an 8 by 4 pattern of threads, on every architecture so far.
    """
    layouts = {name: (kind, dict(_pairs(body))) for name, kind, body in _LAYOUT.findall(ttgir)}
    found: list[Distribution] = []
    for line in ttgir.splitlines():
        match = _PRODUCT.search(line) or _REDUCTION.search(line)
        typed = _MATRIX.search(match[1]) if match else None
        if typed is None or typed[3] not in layouts:
            continue
        kind, pairs = layouts[typed[3]]
        mma = kind == "nvidia_mma"
        found.append(
            Distribution(
                rows=int(typed[1]),
                columns=int(typed[2]),
                block=(2, 2) if mma else pairs["sizePerThread"],
                lanes=(8, 4) if mma else pairs["threadsPerWarp"],
                warps=pairs["warpsPerCTA"],
            )
        )
    return tuple(Counter(found))


def _pairs(body: str) -> list[tuple[str, tuple[int, int]]]:
    return [(name, (int(first), int(second))) for name, first, second in _PAIR.findall(body)]


def _per_thread(extent: int, block: int, lanes: int, warps: int) -> int:
    pattern = block * lanes * warps
    return min(block, extent) * -(-extent // pattern)


def _steps(kept: int, folded: int, kept_in_all: int, axis: int, d: Distribution) -> tuple[int, int]:
    """Fold in the thread, then by shuffles over the lanes, then over warps by shared memory."""
    extent = (d.rows, d.columns)[axis]
    lanes = min(d.lanes[axis], max(1, extent // min(d.block[axis], extent)))
    warps = min(d.warps[axis], max(1, extent // (lanes * d.block[axis])))
    in_lanes = lanes.bit_length() - 1
    in_warps = warps.bit_length() - 1
    threads = 32 * d.warps[0] * d.warps[1]
    partials = max(1, kept_in_all * warps // threads) * in_warps
    return kept * (folded - 1 + in_lanes) + partials, kept * in_lanes + partials
