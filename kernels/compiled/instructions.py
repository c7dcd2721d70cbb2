"""The instructions that one turn of a kernel's main loop needs, derived from its cascade."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from einfuse.kernels.errors import KernelError

from .dataflow import Dataflow, Node
from .distribution import Distribution
from .lowering import LoweringTable, lower


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the tiles of a dataflow lie: how they are spread and which rank runs along rows.

    ``row_ranks`` lists ranks in order of preference: of a tile's two ranks the one that stands
    first is along the rows. Tiles of a size that no distribution has are spread like the first.
    Values over one of ``flat_ranks`` alone lie one by one over the ``threads`` of a block.
    """

    distributions: tuple[Distribution, ...]
    row_ranks: tuple[str, ...]
    size: Mapping[str, int]
    flat_ranks: tuple[str, ...] = ()
    threads: int = 32

    def split(self, ranks: Iterable[str]) -> tuple[str | None, str | None]:
        """Return the rank along the rows and the one along the columns.

        >>> Placement((), ("P",), {"P": 128, "M": 64}).split({"M", "P"})
        ('P', 'M')
        """
        found = sorted(ranks)
        if len(found) > 2:
            raise KernelError(f"model: expected a tile of at most two ranks, found {found}")
        rows = next((rank for rank in self.row_ranks if rank in found), None)
        columns = [rank for rank in found if rank != rows]
        if len(columns) > 1:
            raise KernelError(f"model: expected one of {found} among the ranks along rows")
        return rows, columns[0] if columns else None

    def spread(self, ranks: Iterable[str]) -> Distribution:
        """Return how a tile of these ranks is spread over the threads."""
        rows, columns = (self.size.get(rank or "", 0) for rank in self.split(ranks))
        if not self.distributions:
            raise KernelError("model: the compiled kernel has no product and no reduction")
        alike = [d for d in self.distributions if rows in (0, d.rows)]
        for distribution in alike:
            if columns in (0, distribution.columns):
                return distribution
        parts = [d for d in alike if columns % d.columns == 0]  # of slices, side by side
        likest = (parts or alike or list(self.distributions))[0]
        return replace(likest, rows=rows or 1, columns=columns or 1)

    def elements(self, ranks: Iterable[str]) -> int:
        """Return how many elements of a tile a thread holds."""
        ranks = frozenset(ranks)
        if len(ranks) == 1 and ranks <= set(self.flat_ranks):
            return -(-self.size[next(iter(ranks))] // self.threads)
        rows, columns = self.split(ranks)
        spread = self.spread(ranks)
        return (spread.rows_per_thread if rows else 1) * (
            spread.columns_per_thread if columns else 1
        )


def count_instructions(
    dataflow: Dataflow,
    placement: Placement,
    table: LoweringTable,
    architecture: str,
    dtype_bytes: int = 2,
) -> dict[str, int]:
    """Return instruction -> count of a thread, for one turn of a loop over tiles of a dataflow."""
    count: Counter[str] = Counter()
    converted: set[int] = set()
    nodes = lower(dataflow, table).nodes()
    rows = max((d.rows for d in placement.distributions), default=0)
    is_in_registers = table.matrix_instruction(architecture, max(rows, 16)).rows < 64
    operands = _operand_elements(nodes, placement, is_in_registers)

    def elements(node: Node) -> int:
        return operands.get(id(node)) or placement.elements(node.ranks)

    for node in nodes:
        match node.operation:
            case "load" | "constant" | "accumulate":
                continue
            case "matrix":
                count += _matrix(node, placement, table, architecture, dtype_bytes)
                loaded = ("load", "constant")
                computed = [o for o in node.operands if o.operation not in loaded]
                if dtype_bytes > 2:
                    continue
                for operand in computed:
                    if id(operand) not in converted:  # two values of 32 bits into one register
                        converted.add(id(operand))
                        count[table.instructions["convert"]] += elements(operand) // 2
            case "fold":
                steps, shuffles = _fold(node, placement)
                count[table.instructions[table.monoids[node.operator]]] += steps
                count[table.instructions["shuffle"]] += shuffles
            case operation:
                count[table.instructions[operation]] += elements(node)
    return {name: number for name, number in sorted(count.items()) if number}


def _operand_elements(
    nodes: Iterable[Node], placement: Placement, is_in_registers: bool
) -> dict[int, int]:
    """Return, by node, the elements a thread has of what is computed from loads for a product.

    Warp-wide tensor-core products take both operands in registers, group-wide ones the left
    operand: such a tile is held by all warps along the other side of the result. Other operands
    go through shared memory, and what is computed for them is spread evenly.
    """
    found: dict[int, int] = {}
    for product in (node for node in nodes if node.operation == "matrix"):
        result = placement.spread(product.ranks)
        is_tensor_core = result.block == (2, 2) and result.lanes == (8, 4)
        rows, _ = placement.split(product.ranks)
        (depth,) = product.folded
        for node in filter(_is_from_loads, product.operands):
            is_left = rows in node.ranks
            if is_tensor_core and (is_left or is_in_registers):
                kept = result.rows_per_thread * 8 if is_left else result.columns_per_thread * 4
                held = kept * placement.size[depth] // 32
            else:
                held = math.prod(placement.size[r] for r in node.ranks) // placement.threads
            found.update((id(part), held) for part in _whole_tiles(node))
    return found


def _is_from_loads(node: Node) -> bool:
    """Whether a tile is computed, and without a product or a reduction."""
    return node.operation not in ("load", "constant") and all(
        below.operation not in ("matrix", "fold") for below in _walk(node)
    )


def _whole_tiles(node: Node) -> Iterable[Node]:
    return (below for below in _walk(node) if below.ranks == node.ranks)


def _walk(node: Node) -> Iterable[Node]:
    yield node
    for operand in node.operands:
        yield from _walk(operand)


def _matrix(
    node: Node,
    placement: Placement,
    table: LoweringTable,
    architecture: str,
    dtype_bytes: int,
) -> Counter[str]:
    spread = placement.spread(node.ranks)
    elements = spread.rows_per_thread * spread.columns_per_thread
    (folded,) = node.folded
    if dtype_bytes > 2:  # at full precision: no tensor cores
        multiply_add = table.instructions["multiply_add"]
        return Counter({multiply_add: elements * placement.size[folded]})
    instruction = table.matrix_instruction(architecture, spread.rows)
    depth = -(-placement.size[folded] * dtype_bytes // 32)
    columns = instruction.columns
    if instruction.rows == 64:
        columns = _shared_columns(spread)
    # The threads of an instruction (a warp, or four) hold its result between them.
    held = instruction.rows * columns // (128 if instruction.rows == 64 else 32)
    return Counter({instruction.name: elements // held * depth})


def _shared_columns(spread: Distribution) -> int:
    """Return the columns of a warp-group's instruction: Triton takes the most that divide."""
    warps = spread.warps[0] * spread.warps[1]
    beside = max(1, warps // max(1, spread.rows // 16))
    most = min(256, max(spread.columns // beside, 8))
    return next(n for n in range(most // 8 * 8, 0, -8) if spread.columns % n == 0)


def _fold(node: Node, placement: Placement) -> tuple[int, int]:
    (folded,) = node.folded
    rows, _ = placement.split(node.ranks | node.folded)
    spread = placement.spread(node.ranks | node.folded)
    along_rows = folded == rows
    return spread.steps_along_rows() if along_rows else spread.steps_along_columns()


def differences(model: Mapping[str, int], compiled: Mapping[str, int]) -> dict[str, int]:
    """Return instruction -> compiled less model, where they differ.

    >>> differences({"EX2": 66, "FMUL": 66}, {"EX2": 66, "FMUL": 68})
    {'FMUL': 2}
    """
    names: Sequence[str] = sorted({*model, *compiled})
    found = {name: compiled.get(name, 0) - model.get(name, 0) for name in names}
    return {name: difference for name, difference in found.items() if difference}
