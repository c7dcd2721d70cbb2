"""How an access relates to a sweep: the kinds that decide what may be streamed.

An Einsum sweeps one level of a rank with one of its variables. Each access touches its tensor at
the coordinate of the sweep, up to it, from it on, at one end, or out of order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

from einfuse.einsum.language.affine import Linear, linear
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum, Populate
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Coordinate,
    Expression,
    Index,
    accesses,
    walk,
)

from .partition import Partition


class Kind(Enum):
    """How an access relates the coordinate it touches to the coordinate of the sweep."""

    ALIGNED = "at the coordinate of the sweep"
    PREFIX = "at every coordinate up to that of the sweep"
    SUFFIX = "at every coordinate from that of the sweep on"
    INIT = "at its first coordinate"
    FINAL = "at its last coordinate"
    BROADCAST = "at no coordinate: it has none"
    UNALIGNED = "at coordinates out of order"


@dataclass(frozen=True)
class Sweep:
    """The sweep of one Einsum along one level of a rank.

    ``sizes`` are the sizes of the ranks, symbols where they are open; ``ranks`` are those of
    every tensor.
    """

    cascade: Cascade
    einsum: Einsum
    family: Partition
    level: int
    sizes: Mapping[str, Any]
    ranks: Mapping[str, tuple[str, ...]]

    @cached_property
    def variable(self) -> str | None:
        """The variable that sweeps: one of the output before others, iterative ones first."""
        found = [v for v in self.einsum.variables if self.runs(v)]
        output = self.einsum.output_variables
        kept = [v for v in found if v in output] or found
        iterative = {iteration.variable for iteration in self.cascade.iterations}
        return next((v for v in kept if v in iterative), kept[0] if kept else None)

    def runs(self, variable: str) -> bool:
        """Tell whether a variable runs over the level."""
        return self.family.covers_level(self.cascade.rank_of(variable), self.level)

    def dimensions(self, access: Access) -> Iterator[tuple[str, Index]]:
        """Yield the indices of an access that run along the level, with the ranks they index."""
        for rank, index in zip(self.ranks[access.tensor], access.indices, strict=True):
            if self.family.covers_level(rank, self.level):
                yield rank, index

    def kind(self, access: Access) -> Kind:
        """Return how an access relates to the sweep: by its most orderly index."""
        kinds = (self._index_kind(rank, index) for rank, index in self.dimensions(access))
        return min(kinds, key=_ORDERLINESS.index, default=Kind.BROADCAST)

    def write_kind(self, output: Access) -> Kind:
        """Return how an output relates to the sweep; what a populate places is out of order."""
        placed = {a.target for a in self.einsum.actions if isinstance(a, Populate)}
        for _, index in self.dimensions(output):
            if isinstance(index.expression, Coordinate) and index.expression.variable in placed:
                return Kind.UNALIGNED
        return self.kind(output)

    def is_gathered(self, access: Access) -> bool:
        """Tell whether a tensor of coordinates says where the access touches the level."""
        return any(any(accesses(index.expression)) for _, index in self.dimensions(access))

    def is_mirrored(self, access: Access) -> bool:
        """Tell whether an access touches the level in reversed order."""
        steps = [self._steps(rank, index) for rank, index in self.dimensions(access)]
        return bool(steps) and all(step == {self.variable: -1} for step in steps)

    def _index_kind(self, rank: str, index: Index) -> Kind:
        form = linear(index.expression, self.sizes)
        if form is None:
            return Kind.ALIGNED if self._is_digit(index.expression) else Kind.UNALIGNED
        if not form.coefficients:
            return Kind.FINAL if form.constant - self.sizes[rank] in (0, -1) else Kind.INIT
        steps = self._steps(rank, index)
        here = steps.pop(self.variable, 0) if self.variable else 0
        if open_sizes(form.constant) & self._unbounded or len(steps) > 1:
            return Kind.UNALIGNED
        if not steps:
            return Kind.ALIGNED if here == 1 else Kind.UNALIGNED
        ((other, there),) = steps.items()
        relation = self._relations.get(other, Kind.UNALIGNED)
        if here == 0:
            return relation if there == 1 else Kind.UNALIGNED
        if here == 1 and relation is Kind.ALIGNED:
            return Kind.ALIGNED
        return {(1, 1): Kind.SUFFIX, (1, -1): Kind.PREFIX}.get((here, there), Kind.UNALIGNED)

    def _steps(self, rank: str, index: Index) -> dict[str, Any]:
        """Return by how many coordinates of the rank each variable over the level moves on."""
        form = linear(index.expression, self.sizes)
        if form is None:
            return {}
        units = {v: self._unit(rank, v) for v in form.coefficients if self.runs(v)}
        return {
            v: 1 if form.coefficients[v] == u else form.coefficients[v] / u
            for v, u in units.items()
        }

    def _unit(self, rank: str, variable: str) -> Any:
        """Return the coefficient with which a variable steps along a rank in order."""
        _, last = self.family.covers[self.cascade.rank_of(variable)]
        unit: Any = 1
        for level in range(last, self.family.covers[rank][1]):
            unit = unit * self.sizes[self.family.levels[level]]
        return unit

    def _is_digit(self, expression: Expression) -> bool:
        """Tell whether an index is a digit of the sweep's own variable: ``m/M0``, ``m%M0``."""
        while isinstance(expression, Binary) and expression.operator in "/%":
            divisor = linear(expression.right, self.sizes)
            if divisor is None or divisor.coefficients:
                return False
            expression = expression.left
        return isinstance(expression, Coordinate) and expression.variable == self.variable

    @cached_property
    def _unbounded(self) -> frozenset[Any]:
        """The open sizes of the level and those outside it: no bounded skew has them."""
        return frozenset(
            symbol
            for level in self.family.levels[: self.level + 1]
            for symbol in open_sizes(self.sizes[level])
        )

    @cached_property
    def _relations(self) -> dict[str, Kind]:
        """How filters hold other variables over the level to the one that sweeps."""
        above: set[str] = set()
        below: set[str] = set()
        for node in (*self.einsum.outputs, self.einsum.expression):
            for index in walk(node):
                for comparison in index.condition if isinstance(index, Index) else ():
                    left, right = (
                        linear(side, self.sizes) for side in (comparison.left, comparison.right)
                    )
                    if left is None or right is None or comparison.operator == "!=":
                        continue
                    other, sign = self._held(left.plus(right, -1))
                    sign *= _SIGN[comparison.operator]
                    if other and sign <= 0:
                        below.add(other)
                    if other and sign >= 0:
                        above.add(other)
        return (
            dict.fromkeys(below, Kind.PREFIX)
            | dict.fromkeys(above, Kind.SUFFIX)
            | dict.fromkeys(above & below, Kind.ALIGNED)
        )

    def _held(self, form: Linear) -> tuple[str, int]:
        """Return the variable w and the sign s of a form ``s*(w - sweep) + a bounded constant``."""
        others = [v for v in form.coefficients if v != self.variable]
        if len(others) != 1 or len(form.coefficients) != 2 or not self.runs(others[0]):
            return "", 0
        sign = form.coefficients[others[0]]
        bounded = not open_sizes(form.constant) & self._unbounded
        if bounded and sign in (1, -1) and form.coefficients[self.variable or ""] == -sign:
            return others[0], int(sign)
        return "", 0


def open_sizes(size: Any) -> frozenset[Any]:
    """Return the symbols in a size."""
    return frozenset(getattr(size, "free_symbols", ()))


_SIGN = {"<": -1, "<=": -1, ">": 1, ">=": 1, "==": 0}
_ORDERLINESS = (
    Kind.ALIGNED,
    Kind.PREFIX,
    Kind.SUFFIX,
    Kind.UNALIGNED,
    Kind.FINAL,
    Kind.INIT,
    Kind.BROADCAST,
)
