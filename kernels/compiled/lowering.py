"""From a dataflow to machine operations, by a versioned table of what the compiler does.

Three rules stand here, the rest in data/lowering.yaml:

* A constant factor before a function (``exp(x) = exp2(log2(e) x)``) moves to where it is cheapest:
  through sums and maxima towards the operands, behind a reduction by max, into what one turn of
  the loop hands to the next.
* A product that only a sum over the same elements reads is one multiply-add.
* A sum with a product of tiles is the accumulator of the tensor cores: it costs nothing.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

import yaml

from einfuse.kernels.errors import KernelError

from .dataflow import Dataflow, Node


@dataclass(frozen=True, slots=True)
class FunctionLowering:
    """The operations that a function becomes; ``scaled`` if its argument carries a factor."""

    operations: tuple[str, ...]
    scaled: bool = False


@dataclass(frozen=True, slots=True)
class MatrixInstruction:
    """A tensor-core instruction: its name, and the rows and (at most) columns of its result."""

    name: str
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class LoweringTable:
    """What data/lowering.yaml says.

    ``exact`` are the instructions of the special-function unit, which decide with the matrix
    instructions which compiled loop a model is of. ``shared_bytes`` is the most a block may have.
    """

    version: int
    instructions: Mapping[str, str]
    monoids: Mapping[str, str]
    functions: Mapping[str, FunctionLowering]
    matrix: Mapping[str, MatrixInstruction]
    exact: tuple[str, ...]
    shared_bytes: Mapping[str, int]

    def matrix_instruction(self, architecture: str, rows: int) -> MatrixInstruction:
        """Return the newest instruction of an architecture that takes a tile of so many rows."""
        usable = [
            instruction
            for name, instruction in self.matrix.items()
            if _number(name) <= _number(architecture) and instruction.rows <= rows
        ]
        if not usable:
            raise KernelError(
                f"matrix product: expected an architecture from {min(self.matrix, key=_number)} "
                f"on and at least 16 rows, found {architecture} and {rows} rows"
            )
        return usable[-1]

    def with_functions(self, changes: Mapping[str, FunctionLowering]) -> LoweringTable:
        """Return the table with some functions lowered in another way."""
        return replace(self, functions={**self.functions, **changes})


@functools.cache
def lowering_table() -> LoweringTable:
    """Return the shipped table.

    >>> lowering_table().functions["exp"]
    FunctionLowering(operations=('exp2',), scaled=True)
    """
    text = resources.files("einfuse.kernels").joinpath("data", "lowering.yaml").read_text("utf-8")
    data = yaml.safe_load(text)
    return LoweringTable(
        version=data["version"],
        instructions=data["instructions"],
        monoids=data["monoids"],
        functions={name: function_lowering(entry) for name, entry in data["functions"].items()},
        matrix={
            name: MatrixInstruction(entry["instruction"], entry["rows"], entry["columns"])
            for name, entry in data["matrix"].items()
        },
        exact=tuple(data["exact"]),
        shared_bytes=data["shared_bytes"],
    )


def function_lowering(entry: Mapping[str, Any]) -> FunctionLowering:
    """Return how a function is lowered, from its entry in a data file."""
    return FunctionLowering(tuple(entry["operations"]), entry.get("scaled", False))


def lower(dataflow: Dataflow, table: LoweringTable) -> Dataflow:
    """Return the dataflow with machine operations in place of functions, sums fused."""
    lowering = _Lowering(table)
    for result in dataflow.results:
        lowering.lower(result)
    roots = tuple(lowering.scaled_nodes.get(id(r)) or lowering.lower(r) for r in dataflow.results)
    return _fused(Dataflow(roots, dataflow.size))


@dataclass(slots=True)
class _Lowering:
    table: LoweringTable
    plain_nodes: dict[int, Node] = field(default_factory=dict)
    scaled_nodes: dict[int, Node] = field(default_factory=dict)

    def lower(self, node: Node) -> Node:
        if id(node) not in self.plain_nodes:
            self.plain_nodes[id(node)] = self._lower(node)
        return self.plain_nodes[id(node)]

    def scaled(self, node: Node) -> Node:
        """Return a node times the constant factor of the function that reads it."""
        if id(node) not in self.scaled_nodes:
            self.scaled_nodes[id(node)] = self._scaled(node)
        return self.scaled_nodes[id(node)]

    def _lower(self, node: Node) -> Node:
        if node.operation == "divide":
            over, under = map(self.lower, node.operands)
            for operation in self._function("divide").operations:
                under = Node(operation, (under,), under.ranks)
            return Node("multiply", (over, under), node.ranks)
        if node.operation in _PLAIN or len(node.operands) > 1:
            return _with_operands(node, map(self.lower, node.operands))
        function = self._function(node.operation)
        (argument,) = node.operands
        value = self.scaled(argument) if function.scaled else self.lower(argument)
        for operation in function.operations:
            value = Node(operation, (value,), node.ranks)
        return value

    def _scaled(self, node: Node) -> Node:
        match node.operation:
            case "add" | "max" | "min":
                return _with_operands(node, map(self.scaled, node.operands))
            case "multiply" if any(o.operation == "constant" for o in node.operands):
                (other,) = (o for o in node.operands if o.operation != "constant")
                return self.scaled(other)
            case "divide" if node.operands[1].operation == "constant":
                return self.scaled(node.operands[0])
            case "constant":
                return node
            case "load" if len(node.ranks) < 2:
                return node  # what earlier turns or loops hand on is kept scaled
            case _:
                return Node("multiply", (self.lower(node), Node("constant")), node.ranks)

    def _function(self, name: str) -> FunctionLowering:
        try:
            return self.table.functions[name]
        except KeyError:
            raise KernelError(
                f"lowering table: expected one of {', '.join(self.table.functions)}, "
                f"found the function {name}; add it to kernels/data/lowering.yaml"
            ) from None


_PLAIN = frozenset({"load", "constant", "matrix", "fold", "add", "multiply", "max", "min"})


def _fused(dataflow: Dataflow) -> Dataflow:
    """Absorb sums into accumulators, and products into the sums that alone read them."""
    nodes = dataflow.nodes()
    readers = Counter(id(operand) for node in nodes for operand in node.operands)
    readers.update(id(result) for result in dataflow.results)
    done: dict[int, Node] = {}

    def is_absorbed(operand: Node, node: Node) -> bool:
        return (
            operand.operation == "multiply"
            and readers[id(operand)] == 1
            and operand.ranks == node.ranks
        )

    for node in nodes:
        operands = tuple(done[id(operand)] for operand in node.operands)
        if node.operation == "add":
            pairs = list(zip(node.operands, operands, strict=True))
            alike = all(operand.ranks == node.ranks for operand in node.operands)
            if alike and any(
                o.operation == "matrix" and readers[id(o)] == 1 for o in node.operands
            ):
                done[id(node)] = _with_operands(node, operands, "accumulate")
                continue
            product = next((new for old, new in pairs if is_absorbed(old, node)), None)
            if product is not None:
                others = tuple(new for new in operands if new is not product)
                done[id(node)] = Node("multiply_add", (*product.operands, *others), node.ranks)
                continue
        done[id(node)] = _with_operands(node, operands)
    return Dataflow(tuple(done[id(result)] for result in dataflow.results), dataflow.size)


def _with_operands(node: Node, operands: Iterable[Node], operation: str = "") -> Node:
    return Node(
        operation or node.operation,
        tuple(operands),
        node.ranks,
        node.folded,
        node.operator,
        node.tensor,
    )


def _number(architecture: str) -> int:
    return int(architecture.removeprefix("sm_"))
