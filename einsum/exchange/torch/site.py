"""Where an operation of PyTorch is translated: element by element, as a fold, as a contraction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from einfuse.einsum.language.equation import Reduce
from einfuse.einsum.language.expression import Binary, Coordinate, Expression, Number, variables
from einfuse.einsum.language.substitution import zero_at

from .values import (
    Indices,
    UnsupportedError,
    Value,
    absence_of,
    as_value,
    broadcast,
    clipped,
    expanded_to,
    folded,
    variable_of,
)
from .writer import CascadeWriter

COPIES = ["clone", "contiguous", "detach", "to", "_to_copy", "alias", "lift_fresh_copy", "type_as"]


@dataclass(frozen=True, slots=True)
class Site:
    """Where an operation is translated: the Einsums so far, its name, the shape of its result."""

    writer: CascadeWriter
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

        def at(indices: Indices) -> Expression:
            return folded(build(*(e.at(indices) for e in expanded)))

        indices = self.writer.indices(shape, expanded)
        same = (e for e in expanded if e.absent == absent and at(indices) == e.at(indices))
        return next(same, None) or self.writer.define(
            name or self.name, shape, expanded, at, absent=absent, merge=merge
        )

    def fold(
        self, value: Value, axes: Sequence[int], keep: bool, monoid: str, name: str | None = None
    ) -> Value:
        """Return the fold of a value over axes."""
        count = len(value.shape)
        gone = {axis % count for axis in axes} if axes else set(range(count))
        indices = self.writer.indices(value.shape, [value])
        folded = tuple(v for k in sorted(gone) if (v := variable_of(indices[k])))
        shape = tuple(
            1 if k in gone else n for k, n in enumerate(value.shape) if keep or k not in gone
        )
        left = tuple(
            Number(0) if k in gone else i for k, i in enumerate(indices) if keep or k not in gone
        )
        expression = value.at(indices)
        actions = (Reduce(monoid, folded),) if folded else ()
        found = self.writer.write(
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
                if h not in taken and self.writer.sizes[h.upper()] == sizes[letter]
            )
            variable = next(suits, None) or self.writer.another(
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
        return self.writer.write(self.name, shape, indices, product, absent=absent)


def dense(site: Site, value: Any) -> Any:
    """Return a value whose absent zeros are numbers, for what does not leave out zeros."""
    if not isinstance(value, Value) or value.absent is None:
        return value
    if value.absent != 0:
        raise UnsupportedError(f"{site.name} of scores that are masked with {value.absent}")
    return site.pointwise([value], lambda x: Binary("+", x, zero_at(variables(x))), name="DENSE")
