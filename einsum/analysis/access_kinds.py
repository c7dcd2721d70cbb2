"""How an access relates to a sweep: the kinds that decide what may be streamed.

An Einsum sweeps one level of a rank with one of its variables. Each access touches its tensor at
the coordinate of the sweep, up to it, from it on, at one end, or out of order.
"""

from __future__ import annotations

import math
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
from einfuse.einsum.language.substitution import replace_accesses

from .partition import Partition


class Kind(Enum):
    """How an access relates the coordinate it touches to the coordinate of the sweep."""

    ALIGNED = "at the coordinate of the sweep"
    PREFIX = "at every coordinate up to that of the sweep"
    SUFFIX = "at every coordinate from that of the sweep on"
    INIT = "at its first coordinate"
    FINAL = "at its last coordinate"
    BROADCAST = "at no coordinate: it has none"
    FIXED = "at one coordinate, whatever that of the sweep"
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
        placed = next((v for v in kept if v in iterative), kept[0] if kept else None)
        return placed or next(iter(self._digits.coefficients), None)

    @cached_property
    def _digits(self) -> Linear:
        """The first index that may touch most of the level by variables that do not run over it.

        Two variables and more: a view of several digits, a window, a diagonal. The Einsum can
        run in the order of that index. None has no coefficients.
        """
        for access in self.einsum.operands:
            for rank, index in self.dimensions(access):
                form = linear(index.expression, self.sizes)
                if form is None or len(form.coefficients) < 2:
                    continue
                ranks = [self.cascade.rank_of(v) for v in form.coefficients]
                if any(r in self.family.covers or r[-1] in FIXED_MARKS for r in ranks):
                    continue
                points = math.prod(self.sizes[r] for r in ranks)
                known = not open_sizes(points) and not open_sizes(self.sizes[rank])
                if self._is_number(form) and (not known or 2 * points > self.sizes[rank]):
                    return form
        return Linear({}, 0)

    def _is_number(self, form: Linear) -> bool:
        """Tell whether an index has several digits; a window from a coordinate on has none.

        The digits of a split of another rank are one coordinate of that rank.
        """
        steps = {self.cascade.rank_of(v): step for v, step in form.coefficients.items()}
        for split in reversed(self.cascade.splits):
            outer, inner = steps.get(split.outer), steps.get(split.inner)
            if outer is not None and inner is not None and outer == inner * self.sizes[split.inner]:
                del steps[split.outer], steps[split.inner]
                steps[split.whole] = inner
        positive = all(not (isinstance(step, int) and step < 0) for step in steps.values())
        return positive and len(set(steps.values())) > 1

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
        rank, form = self._form(rank, index)
        if form is None:
            return Kind.UNALIGNED
        if not form.coefficients and self.family.starts.get(rank, 0) != 0:
            return Kind.UNALIGNED
        if not form.coefficients:
            return Kind.FINAL if form.constant - self.sizes[rank] in (0, -1) else Kind.INIT
        steps = self._units(rank, form)
        here = steps.pop(self.variable, 0) if self.variable else 0
        if self.variable in self._digits.coefficients and not self.runs(self.variable or ""):
            return Kind.ALIGNED if form == self._digits else Kind.UNALIGNED
        held = any(self.cascade.rank_of(v).endswith(FIXED_MARK) for v in form.coefficients)
        if held and not here and not steps:
            return Kind.FIXED
        if len(steps) > 1 or self._is_far(rank, form):
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

    def _form(self, rank: str, index: Index) -> tuple[str, Linear | None]:
        """Return the form of an index, and the rank along which it runs.

        A digit of a coordinate of the whole runs along the whole (``m/M0`` and ``m%M0`` along M).
        Gathers that only say which tile count as constants.
        """
        form = linear(index.expression, self.sizes)
        if form is not None:
            return rank, form
        if (whole := self._of_digit(rank, index.expression)) is not None:
            return self.family.whole, whole
        return rank, self._within_tile(rank, index.expression)

    def _of_digit(self, rank: str, expression: Expression) -> Linear | None:
        """Return the form of x where an index is the digit of x that the rank is, else None."""
        step, span = self._step(rank), self._step(rank) * self.sizes[rank]
        top = self.family.covers[rank][0] == 0
        cut: Any = 1
        while isinstance(expression, Binary) and expression.operator in "/%":
            divisor = linear(expression.right, self.sizes)
            if divisor is None or divisor.coefficients:
                return None
            if expression.operator == "/":
                cut = cut * divisor.constant
            elif cut * divisor.constant == span:
                top = True
            else:
                return None
            expression = expression.left
        return linear(expression, self.sizes) if top and cut == step else None

    def _within_tile(self, rank: str, expression: Expression) -> Linear | None:
        gathers = tuple(dict.fromkeys(accesses(expression)))
        if not gathers or self.level <= self.family.covers[rank][0]:
            return None
        names = {gather: Coordinate(f"[{n}]") for n, gather in enumerate(gathers)}
        form = linear(replace_accesses(expression, names.get), self.sizes)
        tile: Any = 1
        for level in range(self.level, self.family.covers[rank][1]):
            tile = tile * self.sizes[self.family.levels[level]]
        chosen = {place.variable for place in names.values()}
        if form is None or any(form.coefficients.get(v, 0) % tile != 0 for v in chosen):
            return None
        kept = {v: c for v, c in form.coefficients.items() if v not in chosen}
        return Linear(kept, form.constant)

    def _steps(self, rank: str, index: Index) -> dict[str, Any]:
        """Return by how many coordinates of the rank each variable over the level moves on."""
        rank, form = self._form(rank, index)
        return {} if form is None else self._units(rank, form)

    def _is_far(self, rank: str, form: Linear) -> bool:
        """Tell whether an index is ahead of the sweep by more than a bounded skew."""
        ahead = form.constant
        starts = self.family.starts
        if starts and self.variable is not None:
            own = self.cascade.rank_of(self.variable)
            ahead = ahead + starts.get(rank, 0) - starts.get(own, 0)
            if own in starts and not open_sizes(ahead) and abs(ahead) >= self.sizes[own]:
                return True
        return bool(open_sizes(ahead) & self._unbounded)

    def _units(self, rank: str, form: Linear) -> dict[str, Any]:
        units = {v: self._unit(rank, v) for v in form.coefficients if self.runs(v)}
        return {
            v: 1 if form.coefficients[v] == u else form.coefficients[v] / u
            for v, u in units.items()
        }

    def _unit(self, rank: str, variable: str) -> Any:
        """Return the coefficient with which a variable steps along a rank in order."""
        return self._step(self.cascade.rank_of(variable)) / self._step(rank)

    def _step(self, rank: str) -> Any:
        """Return the coordinates of the whole by which a rank of the family steps along it."""
        step: Any = 1
        for part in self.family.inside[rank]:
            step = step * self.sizes[part]
        return step

    @cached_property
    def _unbounded(self) -> frozenset[Any]:
        """The open sizes of the level and those outside it: no bounded skew has them."""
        return frozenset(
            symbol
            for level in self.family.levels[: self.level + 1]
            for symbol in open_sizes(self.sizes[level])
        ) | frozenset(s for piece in self.family.starts for s in open_sizes(self.sizes[piece]))

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


FIXED_MARK = "'"
"""Ends the name of a rank that stands for a second axis of another: it is held fixed."""

ALL_MARK = '"'
"""Ends the name of one that is folded away beside the axis that is swept: all of it is read."""

FIXED_MARKS = (FIXED_MARK, ALL_MARK)

_SIGN = {"<": -1, "<=": -1, ">": 1, ">=": 1, "==": 0}
_ORDERLINESS = (
    Kind.ALIGNED,
    Kind.PREFIX,
    Kind.SUFFIX,
    Kind.UNALIGNED,
    Kind.FIXED,
    Kind.FINAL,
    Kind.INIT,
    Kind.BROADCAST,
)
