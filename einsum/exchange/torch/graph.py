"""The walk over an exported graph: each operation becomes Einsums, or a view of a value."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from einfuse.einsum.language.cascade import Cascade, Rank, Tensor
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.expression import Access, Coordinate, accesses
from einfuse.einsum.language.rules import validated

from .complex import as_complex, complex_input, has_complex, translated
from .constants import Holdings, array_of, by_position
from .nodes import (
    cuts_fractions,
    cuts_number,
    is_complex,
    is_flag,
    line_of,
    name_of,
    shape_of,
)
from .pointwise import truncated
from .ranks import joined_ranks
from .site import COPIES, Site
from .values import UnsupportedError, Value, access_at
from .writer import CascadeWriter

Operations = Mapping[str, Callable[..., Any]]
"""Name of an ATen operation -> its translation, which takes a site and the arguments."""


class Translation(CascadeWriter):
    """The walk over an exported graph, which writes as it goes."""

    def __init__(
        self,
        program: Any,
        parameters: list[str],
        operations: Operations,
        wrapper: str,
        holdings: Holdings,
    ) -> None:
        super().__init__()
        self.program = program
        self.holdings = holdings
        self.operations = operations
        self.wrapper = wrapper
        self.parameters = parameters
        self.outputs: list[str] = []
        self.values: dict[str, Any] = {}

    def cascade(self, name: str) -> Cascade:
        """Return the cascade that the graph computes."""
        for node in self.program.graph.nodes:
            try:
                if node.op == "output":
                    for place in range(len(node.args[0])):
                        self.outputs.append(self._output(node, place))
                else:
                    self.values[node.name] = self._visit(node)
            except UnsupportedError as error:
                raise EinfuseError(
                    f"{name}, {line_of(node, self.wrapper)}a cascade cannot express {error}"
                ) from None
        cascade = Cascade(
            name,
            ranks=tuple(Rank(rank, size) for rank, size in self.sizes.items()),
            input_tensors=tuple(
                Tensor(n, self.tensors[n], value=self.held.get(n))
                for n in (*self.inputs, *self.held)
            ),
            outputs=tuple(self.outputs),
            init=tuple(self.einsums),
        )
        return validated(joined_ranks(cascade))

    def _output(self, node: Any, place: int) -> str:
        value = self._argument(node.args[0][place])
        if has_complex(value):
            raise UnsupportedError("an output that is complex: return torch.view_as_real of it")
        if not isinstance(value, Value):
            raise UnsupportedError(f"an output that is no tensor: {value!r}")
        if value.absent not in (None, 0) and not value.whole_rows:
            raise UnsupportedError(f"an output of scores that are masked with {value.absent}")
        indices = self.indices(value.shape, [value])
        expression = value.at(indices)
        match expression:
            case Access(tensor=tensor) if tensor not in (*self.inputs, *self.held, *self.outputs):
                if expression == access_at(tensor, indices):
                    return tensor
        if not any(accesses(expression)):
            raise UnsupportedError("an output that reads no input")
        left = tuple(
            Coordinate(self.rank(1, k - len(indices)).lower()) if size == 1 else index
            for k, (index, size) in enumerate(zip(indices, value.shape, strict=True))
        )
        self.write("OUT", value.shape, left, expression)
        return self.einsums[-1].name

    def _visit(self, node: Any) -> Any:
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op != "call_function":
            raise UnsupportedError(f"{node.op} {node.target}")
        if node.target is operator.getitem:
            found = self._argument(node.args[0])[node.args[1]]
            found = found() if callable(found) else found
            return replace(found, flag=is_flag(node)) if isinstance(found, Value) else found
        name = name_of(node.target)
        arguments = [self._argument(a) for a in node.args]
        named = {k: self._argument(v) for k, v in node.kwargs.items()}
        translate = self.operations.get(name)
        if translate is None and not any(map(has_complex, arguments)):
            raise UnsupportedError(
                f"the operation {name}: write it with arithmetic, folds and gathers, or make what "
                "it gives an argument"
            )
        if any(not isinstance(size, int) for size in shape_of(node)):
            raise UnsupportedError("a size that depends on data: choose with torch.where instead")
        if 0 in shape_of(node):
            raise UnsupportedError("a tensor without elements")
        if "full" in name and cuts_number(node):
            raise UnsupportedError(f"a number with fractions as {node.meta['val'].dtype}")
        flag = is_flag(node)
        if flag and name == "add":
            raise UnsupportedError("a sum of truth values: write | for or")
        converts = name in COPIES or (name in _DTYPED and node.kwargs.get("dtype") is not None)
        if converts and cuts_fractions(node, arguments[0]):
            if flag:
                raise UnsupportedError("a conversion to truth values: write x != 0")
            arguments[0] = truncated(Site(self, "trunc", arguments[0].shape), arguments[0])
        site = Site(self, name, shape_of(node))
        if any(map(has_complex, arguments)):
            return translated(self.operations, name, site, *arguments, **named)
        assert translate is not None
        found = translate(site, *arguments, **named)
        if isinstance(found, Value) and is_complex(node):
            return as_complex(found)
        return replace(found, flag=flag) if isinstance(found, Value) else found

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, list | tuple):
            return [self._argument(a) for a in argument]
        return self.values[argument.name] if hasattr(argument, "op") else argument

    def _placeholder(self, node: Any) -> Any:
        import torch

        signature = self.program.graph_signature
        lifted = signature.inputs_to_lifted_tensor_constants
        if node.name in lifted:
            return self._constant(node, lifted[node.name]) if node.users else None
        place = len([n for n in self.values if n not in lifted])
        value = node.meta["val"]
        if 0 in shape_of(node):
            raise UnsupportedError("a tensor without elements")
        if not isinstance(value, torch.Tensor):
            return value
        if any(not isinstance(size, int) for size in value.shape):
            raise UnsupportedError("a size that is not fixed")
        name = self.fresh(self.parameters[place].upper())
        self.inputs.append(name)
        return self._given(name, value)

    def _given(self, name: str, tensor: Any) -> Any:
        """Return a tensor from outside; of a complex one both parts stand on a last rank."""
        shape = tuple(tensor.shape) + ((2,) if tensor.is_complex() else ())
        ranks = tuple(self.rank(size, k - len(shape)) for k, size in enumerate(shape))
        self.tensors[name] = ranks
        hints = tuple(rank.lower() for rank in ranks)
        flag = str(tensor.dtype) == "torch.bool"
        found = Value(shape, lambda i: access_at(name, i), hints, flag=flag)
        return complex_input(found) if tensor.is_complex() else found

    def _constant(self, node: Any, key: str) -> Any:
        tensor = self.program.constants[key].detach()
        if 0 in tensor.shape:
            raise UnsupportedError("a tensor without elements")
        name, weight = self.holdings.name_of(tensor, key)
        plain = None if weight or tensor.is_complex() else by_position(tensor)
        if plain is not None:
            return replace(plain, flag=is_flag(node))
        name = self.fresh(name)
        self.held[name] = array_of(tensor)
        return self._given(name, tensor)


_DTYPED = {"sum", "mean", "cumsum"}  # operations that may convert what they read
