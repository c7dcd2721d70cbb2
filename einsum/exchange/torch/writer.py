"""What a translation has written so far: ranks, tensors, Einsums, and names for new ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from einfuse.einsum.language.equation import Einsum, Reduce
from einfuse.einsum.language.expression import Binary, Coordinate, Expression, Number, accesses

from .values import Indices, Value, access_at, variable_of


class CascadeWriter:
    """The parts of a cascade, in the order in which operations ask for them."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.tensors: dict[str, tuple[str, ...]] = {}
        self.inputs: list[str] = []
        self.held: dict[str, Any] = {}
        self.einsums: list[Einsum] = []

    def fresh(self, base: str) -> str:
        """Return a name that neither a tensor nor a rank has."""
        name, number = base, 1
        while name in self.tensors or name in self.sizes:
            number += 1
            name = f"{base}{number}"
        return name

    def rank(self, size: int, place: int) -> str:
        """Return a new rank, with a name that suits an axis at a place from the end."""
        pools = {-1: "EFD", -2: "PMN", -3: "HG", -4: "B"}
        for letter in pools.get(place, "") + "RSTUWXYZ":
            if letter not in self.sizes and letter not in self.tensors:
                self.sizes[letter] = size
                return letter
        rank = self.fresh("R2")
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
        return self.rank(size, place).lower()

    def unread(self, size: int, taken: set[str]) -> str:
        """Return a variable of a size on a rank that no input has, and that is not taken."""
        return self.another(size, -1, taken)

    def _input_ranks(self) -> set[str]:
        return {rank for name in (*self.inputs, *self.held) for rank in self.tensors[name]}

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
            if isinstance(expression, Number) and not math.isinf(expression.value):
                absent = None
            return Value(shape, at, (None,) * len(shape), absent)
        if not isinstance(expression, Binary) or expression.operator not in "+-":
            merge = None
        return self.write(name, shape, indices, expression, (), merge, absent)

    def tensor(self, name: str, indices: Indices) -> str:
        """Return a new tensor's name; its ranks are those of the variables among indices."""
        tensor = self.fresh(name.strip("_").upper())
        self.tensors[tensor] = tuple(v.upper() for i in indices if (v := variable_of(i)))
        return tensor

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
        tensor = self.tensor(name, indices)
        kept = tuple(axis for axis, index in enumerate(indices) if isinstance(index, Coordinate))
        hints = tuple(variable_of(index) for index in indices)
        left = access_at(tensor, tuple(indices[axis] for axis in kept))
        self.einsums.append(Einsum((left,), expression, actions, merge))
        return Value(
            shape, lambda i: access_at(tensor, tuple(i[axis] for axis in kept)), hints, absent
        )
