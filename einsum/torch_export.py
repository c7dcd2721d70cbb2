"""A PyTorch function as a cascade: `from_torch`, by way of ``torch.export``.

Every value of the exported graph is a function from indices to an expression. Views (transposes,
slices, reshapes, repeats), masks and positions stay such functions and cost nothing; what computes
becomes an Einsum. A mask that compares positions becomes a filter, so that a masked score is
absent, and a row without a key gives 0 where PyTorch gives NaN.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import math
import operator
import re
import traceback
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .cascade import Cascade, Rank, Tensor
from .equation import Einsum, Reduce
from .errors import EinfuseError
from .expression import (
    Access,
    Binary,
    Call,
    Comparison,
    Condition,
    Coordinate,
    Expression,
    Index,
    Negate,
    Number,
    accesses,
    variables,
    walk,
)
from .substitution import rebuild
from .validate import validated

Indices = tuple[Expression, ...]
_WIDTH = 200  # characters of an error of torch's that are passed on


def from_torch(function: Callable[..., Any], *example_inputs: Any) -> Cascade:
    """Return the cascade that a PyTorch function computes on tensors of the examples' shapes.

    Its inputs are the function's tensors, in the order of its arguments, under their names in
    upper case; numbers and flags among the arguments are taken as they are. The sizes of all
    ranks are those of the examples.

    Args:
        function: takes tensors; returns one, or a tuple of them.
        example_inputs: an argument each; only shapes and dtypes of tensors matter.

    Raises:
        EinfuseError: control flow that depends on data, or an operation that a cascade cannot
            express: named, with its line in the function.

    >>> import torch
    >>> from einfuse.einsum.printer import render_einsum
    >>> cascade = from_torch(lambda a, b: torch.tanh(a @ b), torch.ones(2, 3), torch.ones(3, 4))
    >>> print(*map(render_einsum, cascade.einsums), sep="\\n")
    MATMUL[p,f] = A[p,e] * B[e,f]
    TANH[p,f] = tanh(MATMUL[p,f])
    """
    parameters = _parameter_names(function, example_inputs)
    name = getattr(function, "__name__", "function").strip("<>")
    return _Translation(_exported(function, example_inputs), parameters).cascade(name)


def _exported(function: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
    import torch

    traced = _named_forward(function)

    class _Wrapped(torch.nn.Module):
        def forward(self, *arguments: Any) -> Any:
            return traced(*arguments)

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    aside = io.StringIO()  # torch prints the graph before it raises
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(aside),
            contextlib.redirect_stderr(aside),
        ):
            warnings.simplefilter("ignore")
            return torch.export.export(_Wrapped(), inputs, strict=False)
    except Exception as error:
        text = str(error).strip().split("\n")[0][:_WIDTH] or type(error).__name__
        depends = "data-dependent" in str(error)
        why = "control flow that depends on data" if depends else f"what fails to export: {text}"
        place = _place(function, error)
        raise EinfuseError(f"{place}a cascade cannot express {why}") from None
    finally:
        logging.disable(before)


def _named_forward(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function under the name ``forward``: torch notes lines of such frames alone."""
    if not isinstance(function, types.FunctionType):
        return function
    code = function.__code__.replace(co_name="forward")
    named = types.FunctionType(
        code, function.__globals__, "forward", function.__defaults__, function.__closure__
    )
    named.__kwdefaults__ = function.__kwdefaults__
    return named


def _place(function: Callable[..., Any], error: Exception) -> str:
    """Return ``name, line 3 (if x > 0:): `` of the function's own line that raised, or less."""
    code = getattr(function, "__code__", None)
    name = getattr(function, "__name__", "function")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if code is not None and frame.filename == code.co_filename
    ]
    return f"{name}, line {frames[-1].lineno} ({frames[-1].line}): " if frames else f"{name}: "


def _parameter_names(function: Callable[..., Any], inputs: Sequence[Any]) -> list[str]:
    try:
        bound = inspect.signature(function).bind(*inputs)
    except (TypeError, ValueError) as error:
        raise EinfuseError(f"the example inputs do not fit the function: {error}") from None
    names: list[str] = []
    for name, value in bound.arguments.items():
        many = inspect.signature(function).parameters[name].kind.name == "VAR_POSITIONAL"
        names += [f"{name}{k}" for k in range(len(value))] if many else [name]
    return names


@dataclass(frozen=True, slots=True)
class _Value:
    """A tensor of the graph: its shape, and the expression at given indices.

    ``hints`` are variables that suit its axes. ``absent`` is the number for which an absent point
    stands, None where every point is there. A ``flag`` is an input of truth values.
    """

    shape: tuple[int, ...]
    at: Callable[[Indices], Expression]
    hints: tuple[str | None, ...]
    absent: float | None = None
    flag: bool = False


class _UnsupportedError(Exception):
    """What cannot be expressed; the place is added outside."""


class _Translation:
    """The walk over an exported graph, with the Einsums so far."""

    def __init__(self, program: Any, parameters: list[str]) -> None:
        self.program = program
        self.parameters = parameters
        self.sizes: dict[str, int] = {}
        self.tensors: dict[str, tuple[str, ...]] = {}
        self.inputs: list[str] = []
        self.einsums: list[Einsum] = []
        self.values: dict[str, Any] = {}

    def cascade(self, name: str) -> Cascade:
        outputs: tuple[str, ...] = ()
        for node in self.program.graph.nodes:
            try:
                if node.op == "output":
                    outputs = tuple(self._output(node, k) for k in range(len(node.args[0])))
                else:
                    self.values[node.name] = self._visit(node)
            except _UnsupportedError as error:
                raise EinfuseError(
                    f"{name}, {_line_of(node)}a cascade cannot express {error}"
                ) from None
        cascade = Cascade(
            name,
            ranks=tuple(Rank(rank, size) for rank, size in self.sizes.items()),
            input_tensors=tuple(Tensor(n, self.tensors[n]) for n in self.inputs),
            outputs=outputs,
            init=tuple(self.einsums),
        )
        return validated(_joined_ranks(cascade))

    def _output(self, node: Any, place: int) -> str:
        value = self._argument(node.args[0][place])
        if not isinstance(value, _Value):
            raise _UnsupportedError(f"an output that is no tensor: {value!r}")
        if value.absent not in (None, 0):
            raise _UnsupportedError(f"an output of scores that are masked with {value.absent}")
        indices = self._indices(value.shape, [value])
        expression = value.at(indices)
        match expression:
            case Access(tensor=tensor) if tensor not in self.inputs:
                if expression == _access(tensor, indices):
                    return tensor
        if not any(accesses(expression)):
            raise _UnsupportedError("an output that reads no input")
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
            raise _UnsupportedError(f"{node.op} {node.target}")
        if node.target is operator.getitem:
            return self._argument(node.args[0])[node.args[1]]
        schema = getattr(node.target, "_schema", None)
        name = schema.name.split("::")[-1] if schema else str(node.target)
        name = name if name.startswith("__") else name.removesuffix("_")  # add_ is add
        translate = _OPERATIONS.get(name)
        if translate is None:
            raise _UnsupportedError(f"the operation {name}")
        if name in _COPIES and _cuts_fractions(node, self._argument(node.args[0])):
            raise _UnsupportedError(
                f"a conversion to {node.meta['val'].dtype} of what has fractions"
            )
        arguments = [self._argument(a) for a in node.args]
        named = {k: self._argument(v) for k, v in node.kwargs.items()}
        return translate(_Site(self, name, _shape_of(node)), *arguments, **named)

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
                raise _UnsupportedError(
                    f"the constant tensor {held[node.name]}: make it an argument of the function"
                )
            return _number(constant.item(), tuple(constant.shape))
        place = len([n for n in self.values if n not in held])
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            return value
        if any(not isinstance(size, int) for size in value.shape):
            raise _UnsupportedError("a size that is not fixed")
        name = self._fresh(self.parameters[place].upper())
        shape = tuple(value.shape)
        ranks = tuple(self._rank(size, k - len(shape)) for k, size in enumerate(shape))
        self.tensors[name] = ranks
        self.inputs.append(name)
        hints = tuple(rank.lower() for rank in ranks)
        flag = value.dtype is torch.bool
        return _Value(shape, lambda i: _access(name, i), hints, flag=flag)

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

    def _indices(
        self, shape: Sequence[int], sources: Sequence[_Value], used: Sequence[str] = ()
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
            variable = next(suits, None) or self._another(size, place, taken)
            taken.add(variable)
            indices.append(Coordinate(variable))
        return tuple(indices)

    def _another(self, size: int, place: int, taken: set[str]) -> str:
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
        sources: Sequence[_Value],
        at: Callable[[Indices], Expression],
        *,
        absent: float | None = None,
        merge: str | None = None,
    ) -> _Value:
        """Return a value that an Einsum computes point by point, or itself if it reads nothing."""
        indices = self._indices(shape, sources)
        expression = at(indices)
        if not any(accesses(expression)):
            return _Value(shape, at, (None,) * len(shape), absent)
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
    ) -> _Value:
        """Append an Einsum, and return the value that it writes."""
        tensor = self._fresh(name.strip("_").upper())
        kept = tuple(axis for axis, index in enumerate(indices) if isinstance(index, Coordinate))
        hints = tuple(_variable(index) for index in indices)
        self.tensors[tensor] = tuple(h.upper() for h in hints if h)
        left = _access(tensor, tuple(indices[axis] for axis in kept))
        self.einsums.append(Einsum((left,), expression, actions, merge))
        return _Value(
            shape, lambda i: _access(tensor, tuple(i[axis] for axis in kept)), hints, absent
        )


@dataclass(frozen=True, slots=True)
class _Site:
    """Where an operation is translated: the Einsums so far, its name, the shape of its result."""

    translation: _Translation
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
    ) -> _Value:
        """Return an operation on the elements of values that broadcast together."""
        operands = [_as_value(v) for v in values]
        shape = _broadcast([o.shape for o in operands])
        expanded = [_expanded(o, shape) for o in operands]
        return self.translation.define(
            name or self.name,
            shape,
            expanded,
            lambda i: build(*(e.at(i) for e in expanded)),
            absent=absent,
            merge=merge,
        )

    def fold(
        self, value: _Value, axes: Sequence[int], keep: bool, monoid: str, name: str | None = None
    ) -> _Value:
        """Return the fold of a value over axes."""
        count = len(value.shape)
        gone = {axis % count for axis in axes} if axes else set(range(count))
        indices = self.translation._indices(value.shape, [value])
        folded = tuple(v for k in sorted(gone) if (v := _variable(indices[k])))
        shape = tuple(
            1 if k in gone else n for k, n in enumerate(value.shape) if keep or k not in gone
        )
        left = tuple(
            Number(0) if k in gone else i for k, i in enumerate(indices) if keep or k not in gone
        )
        expression = value.at(indices)
        actions = (Reduce(monoid, folded),) if folded else ()
        return self.translation.write(
            name or self.name, shape, left, expression, actions, None, value.absent
        )

    def contract(self, operands: Sequence[tuple[_Value, str]], output: str) -> _Value:
        """Return a product of values summed over the letters that the output lacks."""
        sizes: dict[str, int] = {}
        hints: dict[str, list[str]] = {}
        for value, letters in operands:
            if value.absent not in (None, 0):
                _dense(self, value)
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
            variable = next(suits, None) or self.translation._another(
                sizes[letter], place - len(output), taken
            )
            taken.add(variable)
            chosen[letter] = Coordinate(variable)
        factors = [
            _clipped(value, tuple(chosen[letter] for letter in letters))
            for value, letters in operands
        ]
        product = factors[0]
        for factor in factors[1:]:
            product = Binary("*", product, factor)
        indices = tuple(chosen[letter] for letter in output)
        shape = tuple(sizes[letter] for letter in output)
        absent = _absence([value for value, _ in operands])
        return self.translation.write(self.name, shape, indices, product, absent=absent)


# Values.


def _access(tensor: str, indices: Indices) -> Access:
    return Access(tensor, tuple(map(Index, indices)))


def _variable(index: Expression) -> str | None:
    return index.variable if isinstance(index, Coordinate) else None


def _number(value: float | bool, shape: tuple[int, ...] = ()) -> _Value:
    number = int(value) if isinstance(value, bool) or float(value).is_integer() else float(value)
    absent = value if isinstance(value, float) and math.isinf(value) else None
    return _Value(shape, lambda i: Number(number), (None,) * len(shape), absent)


def _as_value(value: Any) -> _Value:
    if isinstance(value, _Value):
        return value
    if isinstance(value, int | float):
        return _number(value)
    raise _UnsupportedError(f"the argument {value!r}")


def _clipped(value: _Value, indices: Indices) -> Expression:
    """Return a value at indices, 0 along its axes of size 1."""
    return value.at(
        tuple(Number(0) if n == 1 else i for n, i in zip(value.shape, indices, strict=True))
    )


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(max(sizes) for sizes in zip(*padded, strict=True))


def _expanded(value: _Value, shape: tuple[int, ...]) -> _Value:
    if value.shape == shape:
        return value
    lead = len(shape) - len(value.shape)
    hints = (None,) * lead + tuple(
        h if n == m else None
        for h, n, m in zip(value.hints, value.shape, shape[lead:], strict=True)
    )
    return replace(value, shape=shape, hints=hints, at=lambda i: _clipped(value, i[lead:]))


def _plus(index: Expression, offset: int) -> Expression:
    """Return an index moved; by 0 too, since a bare variable would claim the whole rank."""
    if isinstance(index, Number):
        return Number(index.value + offset)
    if offset == 0 and not isinstance(index, Coordinate):
        return index
    return Binary("+", index, Number(offset))


def _scaled(index: Expression, factor: int) -> Expression:
    if factor == 1:
        return index
    if isinstance(index, Number):
        return Number(index.value * factor)
    return Binary("*", index, Number(factor))


def _quotient(index: Expression, divisor: int) -> Expression:
    if isinstance(index, Number):
        return Number(int(index.value) // divisor)
    return index if divisor == 1 else Binary("/", index, Number(divisor))


def _remainder(index: Expression, divisor: int) -> Expression:
    if divisor == 1:
        return Number(0)
    if isinstance(index, Number):
        return Number(int(index.value) % divisor)
    return Binary("%", index, Number(divisor))


def _permuted(value: _Value, order: Sequence[int]) -> _Value:
    order = [axis % len(value.shape) for axis in order]
    back = [order.index(axis) for axis in range(len(order))]
    return replace(
        value,
        shape=tuple(value.shape[a] for a in order),
        hints=tuple(value.hints[a] for a in order),
        at=lambda i: value.at(tuple(i[k] for k in back)),
    )


def _reshaped(value: _Value, shape: Sequence[int]) -> _Value:
    """Return the elements in another shape: groups of axes with one product are split or merged."""
    total = math.prod(value.shape)
    known = math.prod(n for n in shape if n != -1)
    target = tuple(total // known if n == -1 else n for n in shape)
    groups: list[tuple[list[int], list[int]]] = []
    old, new = 0, 0
    while old < len(value.shape) or new < len(target):
        mine, theirs, a, b = list[int](), list[int](), 1, 1
        while True:
            if a <= b and old < len(value.shape):
                mine.append(old)
                a *= value.shape[old]
                old += 1
            elif new < len(target):
                theirs.append(new)
                b *= target[new]
                new += 1
            else:
                break
            if a == b and mine and theirs:
                break
        groups.append((mine, theirs))
    hints: list[str | None] = [None] * len(target)
    for mine, theirs in groups:
        long = [k for k in mine if value.shape[k] > 1]
        goal = [k for k in theirs if target[k] > 1]
        if len(long) == 1 and len(goal) == 1:
            hints[goal[0]] = value.hints[long[0]]

    def at(indices: Indices) -> Expression:
        found: list[Expression] = [Number(0)] * len(value.shape)
        for mine, theirs in groups:
            goal = [k for k in theirs if target[k] > 1]
            flat: Expression = Number(0)
            for k in goal:
                step = _scaled(flat, target[k])
                zero = isinstance(step, Number) and step.value == 0
                flat = indices[k] if zero else Binary("+", step, indices[k])
            inner = 1
            long = [k for k in mine if value.shape[k] > 1]
            for k in reversed(long):
                part = _quotient(flat, inner)
                found[k] = part if k == long[0] else _remainder(part, value.shape[k])
                inner *= value.shape[k]
        return value.at(tuple(found))

    return replace(value, shape=target, hints=tuple(hints), at=at)


def _sliced(value: _Value, axis: int, start: int, length: int, step: int) -> _Value:
    axis %= len(value.shape)
    shape = tuple(length if k == axis else n for k, n in enumerate(value.shape))
    whole = shape == value.shape and start == 0 and step == 1
    hints = tuple(None if k == axis and not whole else h for k, h in enumerate(value.hints))

    def at(indices: Indices) -> Expression:
        moved = indices[axis] if whole else _plus(_scaled(indices[axis], step), start)
        return value.at((*indices[:axis], moved, *indices[axis + 1 :]))

    return replace(value, shape=shape, hints=hints, at=at)


def _selected(value: _Value, axis: int, place: int) -> _Value:
    axis %= len(value.shape)
    place %= value.shape[axis]
    return replace(
        value,
        shape=value.shape[:axis] + value.shape[axis + 1 :],
        hints=value.hints[:axis] + value.hints[axis + 1 :],
        at=lambda i: value.at((*i[:axis], Number(place), *i[axis:])),
    )


# Operations. Each takes its site, then the arguments of the ATen operation.


def _same(site: _Site, value: _Value, *_: Any, **__: Any) -> _Value:
    return value


def _dense(site: _Site, value: Any) -> Any:
    """Return a value whose absent zeros are numbers, for what does not leave out zeros."""
    if not isinstance(value, _Value) or value.absent is None:
        return value
    if value.absent != 0:
        raise _UnsupportedError(f"{site.name} of scores that are masked with {value.absent}")
    return site.pointwise([value], lambda x: Binary("+", x, _zero(variables(x))), name="DENSE")


def _zero(names: Sequence[str]) -> Expression:
    """Return 0 at every coordinate of some variables: a bare 0 would stand at none of them."""
    if not names:
        return Number(0)
    total: Expression = Coordinate(names[0])
    for name in names[1:]:
        total = Binary("+", total, Coordinate(name))
    return Binary("*", Number(0), total)


_TO_ZERO = {"exp", "exp2", "sigmoid", "relu", "silu", "gelu", "softplus"}  # of -inf
_KEEPS_ZERO = {"abs", "relu", "sign", "sin", "sq", "sqrt", "tanh", "floor", "silu", "gelu"}


def _function(called: str) -> Callable[..., _Value]:
    def translate(site: _Site, value: Any, *rest: Any, **named: Any) -> _Value:
        if any(rest) or named.get("approximate", "none") != "none":
            raise _UnsupportedError(f"{site.name} with options {[*rest, *named.values()]}")
        absent = _as_value(value).absent
        if absent == 0 and called not in _KEEPS_ZERO:
            value = _dense(site, value)
            absent = None
        if absent is not None and math.isinf(absent):
            if absent > 0 or called not in _TO_ZERO:
                raise _UnsupportedError(f"{site.name} of scores that are masked with {absent}")
            absent = 0
        return site.pointwise([value], lambda x: Call(called, (x,)), absent=absent)

    return translate


def _absence(values: Sequence[Any]) -> float | None:
    found = {_as_value(v).absent for v in values} - {None}
    if len(found) > 1:
        raise _UnsupportedError("values that are masked in two ways")
    return next(iter(found), None)


def _arithmetic(sign: str) -> Callable[..., _Value]:
    def translate(site: _Site, a: Any, b: Any, alpha: Any = 1) -> _Value:
        if alpha != 1:
            b = _arithmetic("*")(site, b, alpha)
        left, right = _as_value(a), _as_value(b)
        if left.absent == right.absent == 0 and left.shape == right.shape:
            return site.pointwise([a, b], lambda x, y: Binary(sign, x, y), absent=0)
        a, b = (_dense(site, v) if _as_value(v).absent == 0 else v for v in (a, b))
        absent = _absence([a, b])
        if absent is not None and sign == "-" and _as_value(b).absent is not None:
            raise _UnsupportedError(f"the difference from scores that are masked with {absent}")
        merge = None if absent is None else "inter"
        return site.pointwise([a, b], lambda x, y: Binary(sign, x, y), absent=absent, merge=merge)

    def multiply(site: _Site, a: Any, b: Any) -> _Value:
        absent = _absence([a, b])
        if absent is not None and math.isinf(absent):
            scale = next((v for v in (a, b) if _constant(v) is not None), None)
            if scale is None or (_constant(scale) or 0) <= 0:
                raise _UnsupportedError(f"a product with scores that are masked with {absent}")
        return site.pointwise([a, b], lambda x, y: Binary("*", x, y), absent=absent)

    return multiply if sign == "*" else translate


def _constant(value: Any) -> float | None:
    """Return the number that a value is everywhere, if it is one."""
    operand = _as_value(value)
    found = operand.at((Number(0),) * len(operand.shape))
    return float(found.value) if isinstance(found, Number) and not operand.hints else None


def _divide(site: _Site, a: Any, b: Any, rounding_mode: str | None = None) -> _Value:
    scale = _constant(b)
    if _as_value(b).absent not in (None, 0):
        raise _UnsupportedError("a division by masked scores")
    if _as_value(a).absent not in (None, 0) and (scale is None or scale <= 0):
        raise _UnsupportedError("a division of masked scores by a tensor or by minus")
    quotient = site.pointwise([a, b], lambda x, y: Binary("/", x, y), absent=_absence([a, b]))
    if rounding_mode is None:
        return quotient
    if rounding_mode != "floor":
        raise _UnsupportedError(f"a division rounded by '{rounding_mode}'")
    return site.pointwise([quotient], lambda x: Call("floor", (x,)))


def _remainder_of(site: _Site, a: Any, b: Any) -> _Value:
    return site.pointwise(
        [a, b],
        lambda x, y: Binary("-", x, Binary("*", y, Call("floor", (Binary("/", x, y),)))),
    )


def _negate(site: _Site, value: Any) -> _Value:
    absent = _as_value(value).absent
    if absent is not None and absent != 0:
        raise _UnsupportedError(f"minus scores that are masked with {absent}")
    return site.pointwise([value], Negate, absent=absent)


def _power(site: _Site, base: Any, exponent: Any) -> _Value:
    if not isinstance(exponent, _Value):
        infinite = _as_value(base).absent not in (None, 0)
        base = _dense(site, base) if exponent <= 0 or infinite else base
        forms: dict[float, Callable[[Expression], Expression]] = {
            2: lambda x: Call("sq", (x,)),
            0.5: lambda x: Call("sqrt", (x,)),
            -0.5: lambda x: Call("rsqrt", (x,)),
            -1: lambda x: Binary("/", Number(1), x),
            1: lambda x: x,
            3: lambda x: Binary("*", Call("sq", (x,)), x),
            4: lambda x: Call("sq", (Call("sq", (x,)),)),
        }
        if float(exponent) not in forms:
            raise _UnsupportedError(f"the power {exponent} of a tensor")
        return site.pointwise([base], forms[float(exponent)], absent=_as_value(base).absent)
    if isinstance(base, _Value) or base <= 0:
        raise _UnsupportedError("a power whose base is not a positive number")
    logarithm = Number(math.log(base))
    return site.pointwise([exponent], lambda x: Call("exp", (Binary("*", logarithm, x),)))


def _extreme(called: str) -> Callable[..., Any]:
    def translate(site: _Site, a: Any, b: Any = None, keepdim: bool = False) -> Any:
        if b is None:
            return _amax(called)(site, a)
        if isinstance(b, int):  # max(x, dim): values, and coordinates that nobody may read
            return [_amax(called)(site, a, b, keepdim), None]
        a, b = _dense(site, a), _dense(site, b)
        return site.pointwise([a, b], lambda x, y: Call(called, (x, y)))

    return translate


def _amax(monoid: str) -> Callable[..., _Value]:
    def translate(site: _Site, value: _Value, dim: Any = (), keepdim: bool = False) -> _Value:
        if value.absent == 0 or (value.absent is not None and monoid == "min"):
            value = _dense(site, value)
        return site.fold(value, [dim] if isinstance(dim, int) else dim, keepdim, monoid)

    return translate


def _sum(site: _Site, value: _Value, dim: Any = None, keepdim: bool = False, **_: Any) -> _Value:
    value = value if value.absent in (None, 0) else _dense(site, value)
    return site.fold(value, [dim] if isinstance(dim, int) else dim or [], keepdim, "+")


def _mean(site: _Site, value: _Value, dim: Any = None, keepdim: bool = False, **_: Any) -> _Value:
    axes = [dim] if isinstance(dim, int) else dim or range(len(value.shape))
    count = math.prod(value.shape[axis] for axis in axes)
    total = _sum(replace(site, name="sum"), value, list(axes), keepdim)
    return site.pointwise([total], lambda x: Binary("/", x, Number(count)))


def _softmax(site: _Site, value: _Value, dim: int, *_: Any, **__: Any) -> _Value:
    shifted, total = _exponentials(site, value, dim)
    return site.pointwise(
        [shifted, total], lambda x, y: Binary("/", x, y), absent=shifted.absent, name="A"
    )


def _exponentials(site: _Site, value: _Value, dim: int) -> tuple[_Value, _Value]:
    if value.absent == 0:
        value = _dense(site, value)
    largest = site.fold(value, [dim], True, "max", "GM")
    absent = None if value.absent is None else 0.0
    shifted = site.pointwise(
        [value, largest],
        lambda x, y: Call("exp", (Binary("-", x, y),)),
        absent=absent,
        name="SN",
    )
    return shifted, site.fold(shifted, [dim], True, "+", "SD")


def _logsumexp(site: _Site, value: _Value, dim: Any, keepdim: bool = False) -> _Value:
    axis = dim if isinstance(dim, int) else dim[0]
    largest = site.fold(value, [axis], True, "max", "GM")
    shifted = site.pointwise(
        [value, largest], lambda x, y: Call("exp", (Binary("-", x, y),)), absent=0.0, name="SN"
    )
    total = site.fold(shifted, [axis], True, "+", "SD")
    found = site.pointwise([largest, total], lambda x, y: Binary("+", x, Call("log", (y,))))
    return found if keepdim else _selected(found, axis, 0)


def _log_softmax(site: _Site, value: _Value, dim: int, *_: Any, **__: Any) -> _Value:
    return _arithmetic("-")(site, value, _logsumexp(site, value, dim, True))


def _cumsum(site: _Site, value: _Value, dim: int, **_: Any) -> _Value:
    axis = dim % len(value.shape)
    value = value if value.absent in (None, 0) else _dense(site, value)
    indices = site.translation._indices(value.shape, [value])
    out = _variable(indices[axis])
    if out is None:
        return value
    taken = {v for i in indices if (v := _variable(i))}
    inner = site.translation._another(value.shape[axis], axis - len(value.shape), taken)
    earlier = (Comparison(Coordinate(inner), "<=", Coordinate(out)),)
    moved = (*indices[:axis], Coordinate(inner), *indices[axis + 1 :])
    expression = _behind(value.at(moved), earlier)
    if expression is None:
        raise _UnsupportedError("a cumulative sum of a constant")
    return site.translation.write(site.name, value.shape, indices, expression, absent=value.absent)


def _matmul(site: _Site, a: _Value, b: _Value) -> _Value:
    rows = "" if len(a.shape) == 1 else "y"
    columns = "" if len(b.shape) == 1 else "x"
    batch = "abcdefgh"[: max(len(a.shape), len(b.shape), 2) - 2]
    left = batch[len(batch) - max(len(a.shape) - 2, 0) :] + rows + "z"
    right = batch[len(batch) - max(len(b.shape) - 2, 0) :] + "z" + columns
    return site.contract([(a, left), (b, right)], batch + rows + columns)


def _einsum(site: _Site, equation: str, operands: Sequence[_Value], *_: Any, **__: Any) -> _Value:
    text = equation.replace(" ", "")
    left, arrow, output = text.partition("->")
    terms = left.split(",")
    wide = max(
        (len(v.shape) - len(t.replace("...", "")) for v, t in zip(operands, terms, strict=True)
         if "..." in t),
        default=0,
    )  # fmt: skip
    spare = "".join(c for c in "0123456789"[:wide])
    full = [
        t.replace(
            "...", spare[wide - (len(v.shape) - len(t.replace("...", ""))) :] if "..." in t else ""
        )
        for v, t in zip(operands, terms, strict=True)
    ]
    if not arrow:
        letters = "".join(full)
        output = "..." + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    output = output.replace("...", spare)
    pairs = []
    for value, term in zip(operands, full, strict=True):
        for letter in dict.fromkeys(term):
            while term.count(letter) > 1:  # a diagonal
                first, second = term.index(letter), term.rindex(letter)
                value = _diagonal(value, first, second)
                term = term[:second] + term[second + 1 :]
        pairs.append((value, term))
    return site.contract(pairs, output)


def _diagonal(value: _Value, first: int, second: int) -> _Value:
    return replace(
        value,
        shape=value.shape[:second] + value.shape[second + 1 :],
        hints=value.hints[:second] + value.hints[second + 1 :],
        at=lambda i: value.at((*i[:second], i[first], *i[second:])),
    )


def _linear(site: _Site, x: _Value, weight: _Value, bias: _Value | None = None) -> _Value:
    product = _matmul(site, x, _permuted(weight, [1, 0]))
    return product if bias is None else _arithmetic("+")(site, product, bias)


def _attention(
    site: _Site,
    q: _Value,
    k: _Value,
    v: _Value,
    attn_mask: _Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> _Value:
    if dropout_p:
        raise _UnsupportedError("dropout")
    if enable_gqa:
        group = q.shape[-3] // k.shape[-3]
        k, v = (_repeated(site, x, group, len(x.shape) - 3) for x in (k, v))
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    scores = _matmul(replace(site, name="QK"), q, _permuted_last(k))
    scores = _arithmetic("*")(replace(site, name="S"), scores, factor)
    if is_causal:
        ones = _number(True, (q.shape[-2], k.shape[-2]))
        scores = _where(site, _triangle("le")(site, ones), scores, -math.inf)
    if attn_mask is not None:
        if attn_mask.flag:
            scores = _where(site, attn_mask, scores, -math.inf)
        else:
            scores = _arithmetic("+")(replace(site, name="S"), scores, attn_mask)
    return _matmul(replace(site, name="AV"), _softmax(site, scores, -1), v)


def _permuted_last(value: _Value) -> _Value:
    order = list(range(len(value.shape)))
    return _permuted(value, [*order[:-2], order[-1], order[-2]])


# Views.


def _transpose(site: _Site, value: _Value, a: int = 0, b: int = 1) -> _Value:
    order = list(range(len(value.shape)))
    order[a], order[b] = order[b], order[a]
    return _permuted(value, order)


def _permute(site: _Site, value: _Value, order: Sequence[int]) -> _Value:
    return _permuted(value, order)


def _unsqueeze(site: _Site, value: _Value, axis: int) -> _Value:
    axis %= len(value.shape) + 1
    return replace(
        value,
        shape=(*value.shape[:axis], 1, *value.shape[axis:]),
        hints=(*value.hints[:axis], None, *value.hints[axis:]),
        at=lambda i: value.at((*i[:axis], *i[axis + 1 :])),
    )


def _reshape(site: _Site, value: _Value, *_: Any) -> _Value:
    return _reshaped(value, site.shape)


def _expand(site: _Site, value: _Value, *_: Any, **__: Any) -> _Value:
    return _expanded(value, site.shape)


def _slice(
    site: _Site, value: _Value, axis: int = 0, start: int | None = None, *rest: Any
) -> _Value:
    step = rest[1] if len(rest) > 1 else 1
    size = value.shape[axis]
    first = range(size)[slice(start, None)].start if start is not None else 0
    return _sliced(value, axis, min(first, size), site.shape[axis], step)


def _select(site: _Site, value: _Value, axis: int, place: int) -> _Value:
    return _selected(value, axis, place)


def _narrow(site: _Site, value: _Value, axis: int, start: int, length: int) -> _Value:
    return _sliced(value, axis, start % value.shape[axis], length, 1)


def _split(site: _Site, value: _Value, sizes: Any, axis: int = 0) -> list[_Value]:
    total = value.shape[axis]
    if isinstance(sizes, int):
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    return [_sliced(value, axis, a, n, 1) for a, n in zip(starts, sizes, strict=True)]


def _chunk(site: _Site, value: _Value, count: int, axis: int = 0) -> list[_Value]:
    return _split(site, value, -(-value.shape[axis] // count), axis)


def _unbind(site: _Site, value: _Value, axis: int = 0) -> list[_Value]:
    return [_selected(value, axis, k) for k in range(value.shape[axis])]


def _flipped(value: _Value, axes: Sequence[int]) -> _Value:
    gone = {axis % len(value.shape) for axis in axes}

    def at(indices: Indices) -> Expression:
        return value.at(
            tuple(
                Binary("-", Number(n - 1), i) if k in gone and n > 1 else i
                for k, (i, n) in enumerate(zip(indices, value.shape, strict=True))
            )
        )

    hints = tuple(None if k in gone else h for k, h in enumerate(value.hints))
    return replace(value, hints=hints, at=at)


def _repeated(site: _Site, value: _Value, times: int, axis: int) -> _Value:
    axis %= len(value.shape)
    shape = tuple(n * times if k == axis else n for k, n in enumerate(value.shape))
    one = value.shape[axis] == 1
    return replace(
        value,
        shape=shape,
        hints=tuple(None if k == axis and times > 1 else h for k, h in enumerate(value.hints)),
        at=lambda i: value.at(
            (*i[:axis], Number(0) if one else _quotient(i[axis], times), *i[axis + 1 :])
        ),
    )


def _repeat_interleave(
    site: _Site, value: _Value, times: Any, axis: int | None = None, **_: Any
) -> _Value:
    if not isinstance(times, int) or axis is None:
        raise _UnsupportedError("repeat_interleave with counts that are data, or without a dim")
    return _repeated(site, value, times, axis)


def _repeat(site: _Site, value: _Value, counts: Sequence[int]) -> _Value:
    lead = len(counts) - len(value.shape)
    sizes = value.shape
    return replace(
        value,
        shape=site.shape,
        hints=(None,) * lead
        + tuple(h if c == 1 else None for h, c in zip(value.hints, counts[lead:], strict=True)),
        at=lambda i: value.at(
            tuple(
                j if c == 1 else _remainder(j, n)
                for j, n, c in zip(i[lead:], sizes, counts[lead:], strict=True)
            )
        ),
    )


def _cat(site: _Site, values: Sequence[_Value], axis: int = 0) -> _Value:
    """Return values side by side: each is 0 beyond its own part, and the parts add up."""
    axis %= len(values[0].shape)
    starts = [sum(v.shape[axis] for v in values[:k]) for k in range(len(values) + 1)]

    def part(k: int, indices: Indices) -> Expression:
        moved = _plus(indices[axis], -starts[k])
        return values[k].at((*indices[:axis], moved, *indices[axis + 1 :]))

    hints = tuple(None if k == axis else h for k, h in enumerate(values[0].hints))
    indices = site.translation._indices(site.shape, [replace(values[0], hints=hints)])
    if not any(any(accesses(part(k, indices))) for k in range(len(values))):
        return _Value(
            site.shape, lambda i: _one_of(i[axis], starts, part, i), (None,) * len(indices)
        )
    if any(v.absent is not None for v in values):
        raise _UnsupportedError(f"{site.name} of masked values")
    total: Expression | None = None
    for k in range(len(values)):
        first, stop = Number(starts[k]), Number(starts[k + 1])
        inside = (Comparison(indices[axis], ">=", first), Comparison(indices[axis], "<", stop))
        found = _behind(part(k, indices), inside) if site.shape[axis] > 1 else part(k, indices)
        if found is None:
            inner = Binary(
                "*", Call("ge", (indices[axis], first)), Call("lt", (indices[axis], stop))
            )
            found = Binary("*", inner, part(k, indices))
        total = found if total is None else Binary("+", total, found)
    assert total is not None
    return site.translation.write(site.name, site.shape, indices, total)


def _one_of(
    here: Expression, starts: Sequence[int], part: Callable[[int, Indices], Expression], i: Indices
) -> Expression:
    """Return the part of constants side by side in which a coordinate lies."""
    found = part(len(starts) - 2, i)
    for k in range(len(starts) - 3, -1, -1):
        found = Call("where", (Call("lt", (here, Number(starts[k + 1]))), part(k, i), found))
    return found


def _stack(site: _Site, values: Sequence[_Value], axis: int = 0) -> _Value:
    return _cat(site, [_unsqueeze(site, value, axis) for value in values], axis)


# Positions and masks.


def _arange(site: _Site, *bounds: float, **_: Any) -> _Value:
    start, step = (bounds[0] if len(bounds) > 1 else 0), (bounds[2] if len(bounds) > 2 else 1)

    def at(indices: Indices) -> Expression:
        found: Expression = indices[0]
        if step != 1:
            found = Binary("*", found, Number(step))
        return Binary("+", found, Number(start)) if start else found

    return _Value(site.shape, at, (None,))


def _filled(value: float | None = None, place: int = 1) -> Callable[..., _Value]:
    def translate(site: _Site, *arguments: Any, **_: Any) -> _Value:
        found = arguments[place] if value is None else value
        return _number(found, site.shape)

    return translate


def _scalar_tensor(site: _Site, value: float, **_: Any) -> _Value:
    return _number(value)


_SIGNS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def _compare(called: str) -> Callable[..., _Value]:
    def translate(site: _Site, a: Any, b: Any) -> _Value:
        def build(x: Expression, y: Expression) -> Expression:
            if called in _SIGNS:
                return Call(called, (x, y))
            equal = Binary("*", Call("ge", (x, y)), Call("le", (x, y)))
            return equal if called == "eq" else Binary("-", Number(1), equal)

        return site.pointwise([_dense(site, a), _dense(site, b)], build)

    return translate


def _both(site: _Site, a: Any, b: Any) -> _Value:
    return site.pointwise([a, b], lambda x, y: Binary("*", x, y))


def _either(site: _Site, a: Any, b: Any) -> _Value:
    return site.pointwise([a, b], lambda x, y: Call("max", (x, y)))


_OPPOSITES = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}


def _not(site: _Site, a: Any) -> _Value:
    def build(x: Expression) -> Expression:
        if isinstance(x, Binary) and x.operator == "-" and x.left == Number(1):
            return x.right
        if isinstance(x, Call) and x.function in _OPPOSITES:
            return Call(_OPPOSITES[x.function], x.arguments)
        return Binary("-", Number(1), x)

    return site.pointwise([a], build)


def _triangle(called: str) -> Callable[..., _Value]:
    """Return tril (``le``: column <= row + diagonal) or triu (``ge``)."""

    def translate(site: _Site, value: _Value, diagonal: int = 0) -> _Value:
        shape = value.shape[-2:]
        keep = _Value(
            shape,
            lambda i: Call(called, (i[1], _plus(i[0], diagonal) if diagonal else i[0])),
            (None, None),
        )
        if _constant(_selected(_selected(value, 0, 0), 0, 0)) == 1 and len(value.shape) == 2:
            return keep
        return _where(site, keep, value, 0)

    return translate


def _where(site: _Site, condition: _Value, a: Any = None, b: Any = None) -> _Value:
    """Return a choice; a choice by position between a value and 0 or -inf is a filter."""
    for chosen, other, negated in ((a, b, False), (b, a, True)):
        fill = _constant(other)
        if fill is None or fill not in (0, -math.inf) or not isinstance(chosen, _Value):
            continue
        if chosen.absent not in (None, fill):
            continue
        keep = _not(site, condition) if negated else condition
        shape = _broadcast([keep.shape, chosen.shape])
        wide, mask = _expanded(chosen, shape), _expanded(keep, shape)
        indices = site.translation._indices(shape, [wide, mask])
        if _filtered(wide, mask, indices) is not None:
            return _Value(
                shape,
                lambda i, w=wide, m=mask: _filtered(w, m, i) or w.at(i),  # type: ignore[misc]
                tuple(h or _variable(i) for h, i in zip(wide.hints, indices, strict=True)),
                fill,
            )
    absent = _absence([v for v in (a, b) if _as_value(v).absent != 0])
    values = [_dense(site, v) if _as_value(v).absent == 0 else v for v in (a, b)]
    return site.pointwise(
        [condition, *values], lambda c, x, y: Call("where", (c, x, y)), absent=absent
    )


def _masked_fill(site: _Site, value: _Value, mask: _Value, fill: Any) -> _Value:
    return _where(site, mask, fill, value)


def _filtered(value: _Value, mask: _Value, indices: Indices) -> Expression | None:
    condition = _condition(mask.at(indices))
    return None if condition is None else _behind(value.at(indices), condition)


def _condition(node: Expression) -> Condition | None:
    """Return an expression of positions, 1 or 0, as a filter; None where it is no conjunction."""
    signs = dict(_SIGNS)
    match node:
        case Number(value=1):
            return ()
        case Call(function=called, arguments=(left, right)) if called in signs:
            if _is_index(left) and _is_index(right):
                return (Comparison(left, signs[called], right),)
            return None
        case Binary(operator="*", left=left, right=right):
            first, second = _condition(left), _condition(right)
            return None if first is None or second is None else first + second
        case _:
            return None


def _is_index(node: Expression) -> bool:
    return all(
        isinstance(part, Coordinate)
        or (isinstance(part, Number) and isinstance(part.value, int))
        or (isinstance(part, Binary) and part.operator in "+-*")
        or isinstance(part, Negate)
        for part in walk(node)
    )


def _behind(expression: Expression, condition: Condition) -> Expression | None:
    """Return an expression behind a filter on the first access that has an index."""
    if not condition:
        return expression
    if isinstance(expression, Access) and expression.indices:
        first, *rest = expression.indices
        kept = Index(first.expression, first.condition + condition)
        return replace(expression, indices=(kept, *rest))
    return None


def _clamp(site: _Site, value: Any, low: Any = None, high: Any = None) -> _Value:
    value = _dense(site, value)
    if low is not None and high is not None:
        return site.pointwise([value, low, high], lambda x, a, b: Call("clamp", (x, a, b)))
    bound, called = (low, "max") if low is not None else (high, "min")
    return site.pointwise([value, bound], lambda x, y: Call(called, (x, y)))


def _elu(site: _Site, value: Any, alpha: float = 1, *rest: float) -> _Value:
    if alpha != 1 or any(r != 1 for r in rest):
        raise _UnsupportedError(f"elu with alpha {alpha}")
    value = _dense(site, value)
    return site.pointwise([value], lambda x: Binary("-", Call("elu1", (x,)), Number(1)))


def _dropout(site: _Site, value: _Value, p: float, train: bool) -> _Value:
    if train and p:
        raise _UnsupportedError("dropout, which is random: export the function in evaluation mode")
    return value


_PLAIN_FUNCTIONS = ["exp", "exp2", "log", "log2", "sqrt", "rsqrt", "abs", "sigmoid", "tanh"]
_PLAIN_FUNCTIONS += ["relu", "silu", "gelu", "sin", "cos", "sign", "floor"]
_COPIES = ["clone", "contiguous", "detach", "to", "_to_copy", "alias", "lift_fresh_copy", "type_as"]
_OPERATIONS: dict[str, Callable[..., Any]] = {
    **{name: _function(name) for name in _PLAIN_FUNCTIONS},
    **{name: _same for name in _COPIES},
    **{name: _compare(name) for name in ("lt", "le", "gt", "ge", "eq", "ne")},
    "softplus": _function("softplus"),
    "square": _function("sq"),
    "add": _arithmetic("+"),
    "sub": _arithmetic("-"),
    "rsub": lambda site, a, b, alpha=1: _arithmetic("-")(site, b, a, alpha),
    "mul": _arithmetic("*"),
    "div": _divide,
    "floor_divide": lambda site, a, b: _divide(site, a, b, "floor"),
    "remainder": _remainder_of,
    "reciprocal": lambda site, x: _divide(site, 1, x),
    "neg": _negate,
    "pow": _power,
    "maximum": _extreme("max"),
    "minimum": _extreme("min"),
    "max": _extreme("max"),
    "min": _extreme("min"),
    "amax": _amax("max"),
    "amin": _amax("min"),
    "sum": _sum,
    "mean": _mean,
    "cumsum": _cumsum,
    "softmax": _softmax,
    "_softmax": _softmax,
    "log_softmax": _log_softmax,
    "logsumexp": _logsumexp,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": lambda site, x, high: _clamp(site, x, None, high),
    "elu": _elu,
    "matmul": _matmul,
    "bmm": _matmul,
    "mm": _matmul,
    "mv": _matmul,
    "dot": _matmul,
    "linear": _linear,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "dropout": _dropout,
    "_assert_tensor_metadata": lambda *_, **__: None,
    "flip": lambda site, x, axes: _flipped(x, axes),
    "transpose": _transpose,
    "t": _transpose,
    "mT": lambda site, x: _permuted_last(x),
    "numpy_T": lambda site, x: _permuted(x, range(len(x.shape))[::-1]),
    "permute": _permute,
    "unsqueeze": _unsqueeze,
    "squeeze": _reshape,
    "view": _reshape,
    "reshape": _reshape,
    "_unsafe_view": _reshape,
    "flatten": _reshape,
    "unflatten": _reshape,
    "movedim": lambda site, x, a, b: _moved(x, a, b),
    "expand": _expand,
    "expand_as": _expand,
    "broadcast_to": _expand,
    "slice": _slice,
    "select": _select,
    "narrow": _narrow,
    "split": _split,
    "split_with_sizes": _split,
    "chunk": _chunk,
    "unbind": _unbind,
    "repeat_interleave": _repeat_interleave,
    "repeat": _repeat,
    "cat": _cat,
    "stack": _stack,
    "arange": _arange,
    "ones": _filled(1),
    "ones_like": _filled(1),
    "new_ones": _filled(1),
    "zeros": _filled(0),
    "zeros_like": _filled(0),
    "new_zeros": _filled(0),
    "full": _filled(),
    "full_like": _filled(),
    "new_full": _filled(place=2),
    "scalar_tensor": _scalar_tensor,
    "logical_and": _both,
    "bitwise_and": _both,
    "__and__": _both,
    "__or__": _either,
    "logical_or": _either,
    "bitwise_or": _either,
    "logical_not": _not,
    "bitwise_not": _not,
    "tril": _triangle("le"),
    "triu": _triangle("ge"),
    "where": _where,
    "masked_fill": _masked_fill,
}


def _moved(value: _Value, source: Any, target: Any) -> _Value:
    sources = [source] if isinstance(source, int) else source
    targets = [target] if isinstance(target, int) else target
    count = len(value.shape)
    placed = {t % count: s % count for s, t in zip(sources, targets, strict=True)}
    rest = iter(k for k in range(count) if k not in placed.values())
    return _permuted(value, [placed[k] if k in placed else next(rest) for k in range(count)])


# The graph, and the names of ranks.


def _shape_of(node: Any) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if hasattr(value, "shape") else ()


def _cuts_fractions(node: Any, value: Any) -> bool:
    """Tell whether a conversion makes whole numbers or truth values of something else."""
    kinds = [n.meta["val"].dtype for n in (node, node.args[0])]
    if kinds[0].is_floating_point or not kinds[1].is_floating_point:
        return False
    found = value.at(tuple(Coordinate("i") for _ in value.shape))
    while isinstance(found, Call) and found.function == "where":
        found = found.arguments[1]
    return not (_is_index(found) or (isinstance(found, Call) and found.function in _SIGNS))


def _line_of(node: Any) -> str:
    """Return ``line 3 (x = torch.foo(y)): `` of the user's code, from the node's stack."""
    found = re.findall(
        r'File "([^"]*)", line (\d+), in .*\n\s*(.*)', node.meta.get("stack_trace") or ""
    )
    own = [(line, code) for file, line, code in found if file != _line_of.__code__.co_filename]
    return f"line {own[-1][0]} ({own[-1][1]}): " if own else ""


def _joined_ranks(cascade: Cascade) -> Cascade:
    """Return the cascade with one rank where an input's own is only another name of it."""
    names: dict[str, str] = {}

    def root(rank: str) -> str:
        while rank in names:
            rank = names[rank]
        return rank

    def together(a: str, b: str) -> bool:
        groups = [{v.upper() for v in e.variables} for e in cascade.einsums]
        groups += [set(t.ranks) for t in cascade.input_tensors]
        return any({a, b} <= {root(rank) for rank in group} for group in groups)

    ranks = {tensor.name: tensor.ranks for tensor in cascade.input_tensors}
    for einsum in cascade.einsums:
        for access in einsum.operands:
            for index, rank in zip(access.indices, ranks.get(access.tensor, ()), strict=False):
                if not isinstance(index.expression, Coordinate):
                    continue
                own, other = root(index.expression.variable.upper()), root(rank)
                if own != other and not together(own, other):
                    names[other] = own
    renamed = {rank.name.lower(): Coordinate(root(rank.name).lower()) for rank in cascade.ranks}

    def change(node: Expression) -> Expression | None:
        return renamed[node.variable] if isinstance(node, Coordinate) else None

    def changed(einsum: Einsum) -> Einsum:
        return replace(
            einsum,
            outputs=tuple(_rebuilt(output, change) for output in einsum.outputs),
            expression=rebuild(einsum.expression, change),
            actions=tuple(
                Reduce(a.operator, tuple(renamed[v].variable for v in a.variables))
                for a in einsum.actions
                if isinstance(a, Reduce)
            ),
        )

    einsums = tuple(map(changed, cascade.init))
    inputs = tuple(
        replace(t, ranks=tuple(root(rank) for rank in t.ranks)) for t in cascade.input_tensors
    )
    used = {v.upper() for e in einsums for v in e.variables} | {r for t in inputs for r in t.ranks}
    return replace(
        cascade,
        ranks=tuple(rank for rank in cascade.ranks if rank.name in used),
        input_tensors=inputs,
        init=einsums,
    )


def _rebuilt(access: Access, change: Callable[[Expression], Expression | None]) -> Access:
    found = rebuild(access, change)
    assert isinstance(found, Access)
    return found
