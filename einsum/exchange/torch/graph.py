"""The walk over an exported graph: each operation becomes Einsums, or a view of a value."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from einfuse.einsum.language.cascade import Cascade, Rank, Tensor
from einfuse.einsum.language.equation import Einsum, Reduce
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Coordinate,
    Expression,
    Number,
    accesses,
    variables,
)
from einfuse.einsum.language.rules import validated
from einfuse.einsum.language.substitution import zero_at

from .nodes import cuts_fractions, cuts_number, is_flag, line_of, shape_of
from .ranks import joined_ranks
from .values import (
    Indices,
    UnsupportedError,
    Value,
    absence_of,
    access_at,
    as_value,
    broadcast,
    clipped,
    expanded_to,
    number,
    variable_of,
)

Operations = Mapping[str, Callable[..., Any]]
"""Name of an ATen operation -> its translation, which takes a site and the arguments."""


class Translation:
    """The walk over an exported graph, with the Einsums so far."""

    def __init__(
        self, program: Any, parameters: list[str], operations: Operations, wrapper: str
    ) -> None:
        self.program = program
        self.operations = operations
        self.wrapper = wrapper
        self.parameters = parameters
        self.sizes: dict[str, int] = {}
        self.tensors: dict[str, tuple[str, ...]] = {}
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.einsums: list[Einsum] = []
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
            input_tensors=tuple(Tensor(n, self.tensors[n]) for n in self.inputs),
            outputs=tuple(self.outputs),
            init=tuple(self.einsums),
        )
        return validated(joined_ranks(cascade))

    def _output(self, node: Any, place: int) -> str:
        value = self._argument(node.args[0][place])
        if not isinstance(value, Value):
            raise UnsupportedError(f"an output that is no tensor: {value!r}")
        if value.absent not in (None, 0) and not value.whole_rows:
            raise UnsupportedError(f"an output of scores that are masked with {value.absent}")
        indices = self.indices(value.shape, [value])
        expression = value.at(indices)
        match expression:
            case Access(tensor=tensor) if tensor not in (*self.inputs, *self.outputs):
                if expression == access_at(tensor, indices):
                    return tensor
        if not any(accesses(expression)):
            raise UnsupportedError("an output that reads no input")
        left = tuple(
            Coordinate(self._rank(1, k - len(indices)).lower()) if size == 1 else index
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
            return replace(found, flag=is_flag(node)) if isinstance(found, Value) else found
        schema = getattr(node.target, "_schema", None)
        name = schema.name.split("::")[-1] if schema else str(node.target)
        name = name if name.startswith("__") else name.removesuffix("_")  # add_ is add
        translate = self.operations.get(name)
        if translate is None:
            raise UnsupportedError(f"the operation {name}")
        if 0 in shape_of(node):
            raise UnsupportedError("a tensor without elements")
        if "full" in name and cuts_number(node):
            raise UnsupportedError(f"a number with fractions as {node.meta['val'].dtype}")
        flag = is_flag(node)
        if flag and name == "add":
            raise UnsupportedError("a sum of truth values: write | for or")
        converts = name in COPIES or (name in _DTYPED and node.kwargs.get("dtype") is not None)
        if converts and cuts_fractions(node, self._argument(node.args[0])):
            raise UnsupportedError(
                f"a conversion to {node.meta['val'].dtype} of what has fractions"
            )
        arguments = [self._argument(a) for a in node.args]
        named = {k: self._argument(v) for k, v in node.kwargs.items()}
        found = translate(Site(self, name, shape_of(node)), *arguments, **named)
        return replace(found, flag=flag) if isinstance(found, Value) else found

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, list | tuple):
            return [self._argument(a) for a in argument]
        return self.values[argument.name] if hasattr(argument, "op") else argument

    def _placeholder(self, node: Any) -> Any:
        import torch

        signature = self.program.graph_signature
        held = {**signature.inputs_to_lifted_tensor_constants, **signature.inputs_to_buffers}
        held |= signature.inputs_to_parameters
        if node.name in held:
            constant = self.program.constants.get(held[node.name])
            if constant is None or constant.numel() != 1:
                raise UnsupportedError(
                    f"the constant tensor {held[node.name]}: make it an argument of the function"
                )
            return number(constant.item(), tuple(constant.shape))
        place = len([n for n in self.values if n not in held])
        value = node.meta["val"]
        if 0 in shape_of(node):
            raise UnsupportedError("a tensor without elements")
        if not isinstance(value, torch.Tensor):
            return value
        if any(not isinstance(size, int) for size in value.shape):
            raise UnsupportedError("a size that is not fixed")
        name = self._fresh(self.parameters[place].upper())
        shape = tuple(value.shape)
        ranks = tuple(self._rank(size, k - len(shape)) for k, size in enumerate(shape))
        self.tensors[name] = ranks
        self.inputs.append(name)
        hints = tuple(rank.lower() for rank in ranks)
        flag = value.dtype is torch.bool
        return Value(shape, lambda i: access_at(name, i), hints, flag=flag)

    # Names.

    def _fresh(self, base: str) -> str:
        name, number = base, 1
        while name in self.tensors or name in self.sizes:
            number += 1
            name = f"{base}{number}"
        return name

    def _rank(self, size: int, place: int) -> str:
        """Return a new rank, with a name that suits an axis at a place from the end."""
        pools = {-1: "EFD", -2: "PMN", -3: "HG", -4: "B"}
        for letter in pools.get(place, "") + "RSTUWXYZ":
            if letter not in self.sizes and letter not in self.tensors:
                self.sizes[letter] = size
                return letter
        rank = self._fresh("R2")
        self.sizes[rank] = size
        return rank

    def indices(
        self, shape: Sequence[int], sources: Sequence[Value], used: Sequence[str] = ()
    ) -> Indices:
        """Return a variable for each axis longer than 1, taken from the sources where it suits."""
        taken, indices = set(used), list[Expression]()
        for axis, size in enumerate(shape):
            if size == 1:
                indices.append(Number(0))
                continue
            place = axis - len(shape)
            hints = (s.hints[place] for s in sources if len(s.shape) >= -place)
            suits = (h for h in hints if h and h not in taken and self.sizes[h.upper()] == size)
            variable = next(suits, None) or self.another(size, place, taken)
            taken.add(variable)
            indices.append(Coordinate(variable))
        return tuple(indices)

    def another(self, size: int, place: int, taken: set[str]) -> str:
        """Return a variable of a size that is not taken, on a new rank if need be."""
        for rank, known in self.sizes.items():
            if known == size and rank.lower() not in taken and rank not in self._input_ranks():
                return rank.lower()
        return self._rank(size, place).lower()

    def _input_ranks(self) -> set[str]:
        return {rank for name in self.inputs for rank in self.tensors[name]}

    # Einsums.

    def define(
        self,
        name: str,
        shape: tuple[int, ...],
        sources: Sequence[Value],
        at: Callable[[Indices], Expression],
        *,
        absent: float | None = None,
        merge: str | None = None,
    ) -> Value:
        """Return a value that an Einsum computes point by point, or itself if it reads nothing."""
        indices = self.indices(shape, sources)
        expression = at(indices)
        if not any(accesses(expression)):
            return Value(shape, at, (None,) * len(shape), absent)
        if not isinstance(expression, Binary) or expression.operator not in "+-":
            merge = None
        return self.write(name, shape, indices, expression, (), merge, absent)

    def write(
        self,
        name: str,
        shape: tuple[int, ...],
        indices: Indices,
        expression: Expression,
        actions: tuple[Reduce, ...] = (),
        merge: str | None = None,
        absent: float | None = None,
    ) -> Value:
        """Append an Einsum, and return the value that it writes."""
        tensor = self._fresh(name.strip("_").upper())
        kept = tuple(axis for axis, index in enumerate(indices) if isinstance(index, Coordinate))
        hints = tuple(variable_of(index) for index in indices)
        self.tensors[tensor] = tuple(h.upper() for h in hints if h)
        left = access_at(tensor, tuple(indices[axis] for axis in kept))
        self.einsums.append(Einsum((left,), expression, actions, merge))
        return Value(
            shape, lambda i: access_at(tensor, tuple(i[axis] for axis in kept)), hints, absent
        )


@dataclass(frozen=True, slots=True)
class Site:
    """Where an operation is translated: the Einsums so far, its name, the shape of its result."""

    translation: Translation
    name: str
    shape: tuple[int, ...]

    def pointwise(
        self,
        values: Sequence[Any],
        build: Callable[..., Expression],
        *,
        absent: float | None = None,
        merge: str | None = None,
        name: str | None = None,
    ) -> Value:
        """Return an operation on the elements of values that broadcast together."""
        operands = [as_value(v) for v in values]
        shape = broadcast([o.shape for o in operands])
        expanded = [expanded_to(o, shape) for o in operands]
        return self.translation.define(
            name or self.name,
            shape,
            expanded,
            lambda i: build(*(e.at(i) for e in expanded)),
            absent=absent,
            merge=merge,
        )

    def fold(
        self, value: Value, axes: Sequence[int], keep: bool, monoid: str, name: str | None = None
    ) -> Value:
        """Return the fold of a value over axes."""
        count = len(value.shape)
        gone = {axis % count for axis in axes} if axes else set(range(count))
        indices = self.translation.indices(value.shape, [value])
        folded = tuple(v for k in sorted(gone) if (v := variable_of(indices[k])))
        shape = tuple(
            1 if k in gone else n for k, n in enumerate(value.shape) if keep or k not in gone
        )
        left = tuple(
            Number(0) if k in gone else i for k, i in enumerate(indices) if keep or k not in gone
        )
        expression = value.at(indices)
        actions = (Reduce(monoid, folded),) if folded else ()
        found = self.translation.write(
            name or self.name, shape, left, expression, actions, None, value.absent
        )
        return replace(found, whole_rows=monoid == "max" and value.absent is not None)

    def contract(self, operands: Sequence[tuple[Value, str]], output: str) -> Value:
        """Return a product of values summed over the letters that the output lacks."""
        sizes: dict[str, int] = {}
        hints: dict[str, list[str]] = {}
        for value, letters in operands:
            if value.absent not in (None, 0):
                dense(self, value)
            for letter, size, hint in zip(letters, value.shape, value.hints, strict=True):
                sizes[letter] = max(size, sizes.get(letter, 1))
                if hint:
                    hints.setdefault(letter, []).append(hint)
        chosen: dict[str, Expression] = {}
        taken: set[str] = set()
        order = [*output, *(letter for letter in sizes if letter not in output)]
        for place, letter in enumerate(order):
            if sizes[letter] == 1:
                chosen[letter] = Number(0)
                continue
            suits = (
                h
                for h in hints.get(letter, ())
                if h not in taken and self.translation.sizes[h.upper()] == sizes[letter]
            )
            variable = next(suits, None) or self.translation.another(
                sizes[letter], place - len(output), taken
            )
            taken.add(variable)
            chosen[letter] = Coordinate(variable)
        factors = [
            clipped(value, tuple(chosen[letter] for letter in letters))
            for value, letters in operands
        ]
        product = factors[0]
        for factor in factors[1:]:
            product = Binary("*", product, factor)
        indices = tuple(chosen[letter] for letter in output)
        shape = tuple(sizes[letter] for letter in output)
        absent = absence_of([value for value, _ in operands])
        return self.translation.write(self.name, shape, indices, product, absent=absent)


def dense(site: Site, value: Any) -> Any:
    """Return a value whose absent zeros are numbers, for what does not leave out zeros."""
    if not isinstance(value, Value) or value.absent is None:
        return value
    if value.absent != 0:
        raise UnsupportedError(f"{site.name} of scores that are masked with {value.absent}")
    return site.pointwise([value], lambda x: Binary("+", x, zero_at(variables(x))), name="DENSE")


COPIES = ["clone", "contiguous", "detach", "to", "_to_copy", "alias", "lift_fresh_copy", "type_as"]
_DTYPED = {"sum", "mean", "cumsum"}  # operations that may convert what they read
