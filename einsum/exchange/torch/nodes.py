"""What a node of an exported graph says: shapes, truth values, lines of the user's code."""

from __future__ import annotations

import re
from typing import Any

from einfuse.einsum.language.expression import Call, Coordinate

from .values import SIGNS, is_whole


def shape_of(node: Any) -> tuple[int, ...]:
    """Return the shape of what a node computes; () where it is no tensor."""
    value = node.meta.get("val")
    return tuple(value.shape) if hasattr(value, "shape") else ()


def is_flag(node: Any) -> bool:
    """Tell whether an operation's result is truth values."""
    dtype = getattr(node.meta.get("val"), "dtype", None)
    return str(dtype) == "torch.bool"


def is_complex(node: Any) -> bool:
    """Tell whether an operation's result is complex."""
    return bool(getattr(getattr(node.meta.get("val"), "dtype", None), "is_complex", False))


def cuts_number(node: Any) -> bool:
    """Tell whether whole numbers are filled with a number that has fractions."""
    whole = not node.meta["val"].dtype.is_floating_point
    return whole and any(isinstance(a, float) and not a.is_integer() for a in node.args)


def cuts_fractions(node: Any, value: Any) -> bool:
    """Tell whether a conversion makes whole numbers or truth values of something else."""
    kinds = [n.meta["val"].dtype for n in (node, node.args[0])]
    if kinds[0].is_floating_point or kinds[0].is_complex or not kinds[1].is_floating_point:
        return False
    found = value.at(tuple(Coordinate("i") for _ in value.shape))
    while isinstance(found, Call) and found.function == "where":
        found = found.arguments[1]
    return not (is_whole(found) or (isinstance(found, Call) and found.function in SIGNS))


def line_of(node: Any, wrapper: str) -> str:
    """Return ``line 3 (x = torch.foo(y)): `` of the user's code, from the node's stack."""
    found = re.findall(
        r'File "([^"]*)", line (\d+), in .*\n\s*(.*)', node.meta.get("stack_trace") or ""
    )
    own = [(line, code) for file, line, code in found if file != wrapper]
    return f"line {own[-1][0]} ({own[-1][1]}): " if own else ""


_HARMLESS = {"detach_", "lift_fresh_copy"}


def name_of(target: Any) -> str:
    """Return the name of an operation: ``add`` for ``aten.add_.Tensor``, which adds in place."""
    schema = getattr(target, "_schema", None)
    name = schema.name.split("::")[-1] if schema else str(target)
    return name if name.startswith("__") else name.removesuffix("_")


def operations_of(graph: Any) -> list[Any]:
    """Return the operations of ATen in a graph, in their order."""
    targets = [node.target for node in graph.nodes if node.op == "call_function"]
    return [target for target in targets if hasattr(target, "_schema")]


def mutates(graph: Any) -> bool:
    """Tell whether an operation writes into a tensor, which others may see through a view."""
    schemas = [target._schema for target in operations_of(graph)]
    return any(s.is_mutable and s.name.split("::")[-1] not in _HARMLESS for s in schemas)
