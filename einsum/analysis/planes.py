"""Planes: an Einsum with two axes of one rank sweeps one of them and holds the other fixed.

Self-attention reads one tensor as queries and as keys: ``QK[n,m] = Q[e,n] * K[e,m]`` with Q and K
over one rank. A sweep of that rank runs along one of the axes. Here the other one, and all that
lies along it alone, gets a rank of its own, as if its size were another one. Which axis is swept
is a choice: an `Orientation` each. What holds for a rank has to hold for every one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product
from typing import Any, cast

from einfuse.einsum.language.affine import linear
from einfuse.einsum.language.cascade import Cascade, Rank, Split
from einfuse.einsum.language.equation import Einsum, Populate, Reduce
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.expression import Access, Coordinate, Expression, variables
from einfuse.einsum.language.shape import bind_symbolic, filters
from einfuse.einsum.language.substitution import rebuild

from .access_kinds import ALL_MARK, FIXED_MARK
from .partition import Partition, partition

MOST = 64
"""How many orientations are looked at; a cascade with more is refused."""

_Node = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Plane:
    """Axes that meet in some Einsum or tensor.

    ``swept`` are those whose fold a sweep has to end, or the iterative ones; ``others`` may be
    swept as well.
    """

    axes: tuple[int, ...]
    swept: tuple[int, ...]
    others: tuple[int, ...]


def orientations(
    cascade: Cascade, rank: str, level: str | None, first: frozenset[str]
) -> tuple[Cascade, ...]:
    '''Return a cascade once for every axis that a sweep along a rank may run along in its planes.

    Args:
        cascade: what is computed, with equal coordinates under equal names.
        rank: the rank that is swept.
        level: the level of it; the outermost that the rank covers by default.
        first: variables of the text along which the first orientation runs, where there are any.

    Raises:
        EinfuseError: there are more than `MOST`.

    >>> from einfuse.einsum.language.parser import parse
    >>> from einfuse.einsum.analysis.coordinates import same_coordinates
    >>> cascade = parse("""
    ... rank M, N = M
    ... input A[M]
    ... output Y
    ... T[n,m] = A[n] * A[m]
    ... Y[n] = T[n,m]
    ... """)
    >>> found = orientations(same_coordinates(cascade, "M").cascade, "M", None, frozenset())
    >>> [one.tensor("T").ranks for one in found]
    [("M'", 'M'), ('M', "M'")]
    '''
    return _Planes(cascade, rank, level).orientations(first)


class _Planes:
    """What `orientations` computes once and several of its steps need."""

    def __init__(self, cascade: Cascade, rank: str, level: str | None) -> None:
        self.cascade = cascade
        family = partition(cascade, rank)
        at = family.levels.index(level) if level else family.covers[rank][0]
        self.family: Partition = family
        self.along = frozenset(r for r in family.covers if family.covers_level(r, at))
        self.sizes = bind_symbolic(cascade)
        self.ranks = {tensor.name: tensor.ranks for tensor in cascade.tensors}
        self.iterative = {iteration.variable for iteration in cascade.iterations}
        self.places = {
            t: [p for p, r in enumerate(ranks) if r in self.along]
            for t, ranks in self.ranks.items()
        }
        self.flat = {
            t
            for t, places in self.places.items()
            if self._overlap([self.ranks[t][p] for p in places])
        }
        self.axes_of = [self._axes(einsum) for einsum in cascade.einsums]

    def orientations(self, first: frozenset[str]) -> tuple[Cascade, ...]:
        if all(len(axes) < 2 for axes in self.axes_of):
            return (self.cascade,)
        planes = self._planes
        count = 1
        for plane in planes:
            count *= len(plane.swept)
        if count > MOST:
            raise EinfuseError(
                f"{self.cascade.name}: {count} ways to sweep {self.family.whole}, which is two "
                f"axes of {len(planes)} planes; expected at most {MOST}: give the ranks that are "
                "only looped over a size of their own"
            )
        choices = [sorted(p.swept, key=lambda c: not self._named(c, first)) for p in planes]
        found = list(product(*choices))
        usual = [next((c for c in p.axes if self._named(c, first)), p.swept[0]) for p in planes]
        if first:
            found.insert(0, tuple(usual))
        for k, plane in enumerate(planes):  # along the others some inputs may lie alone
            found += [(*usual[:k], c, *usual[k + 1 :]) for c in plane.others]
        return tuple(self._oriented(choice) for choice in dict.fromkeys(found))

    def _overlap(self, ranks: list[str]) -> bool:
        """Tell whether two of some ranks run over one level."""
        spans = [self.family.covers[r] for r in ranks]
        return any(a[0] < b[1] and b[0] < a[1] for a, b in combinations(spans, 2))

    def _axes(self, einsum: Einsum) -> list[list[str]]:
        """Return the variables of an Einsum along the rank, by the axis that they share."""
        own = [v for v in einsum.variables if self.cascade.rank_of(v) in self.along]
        axes = [[v] for v in own]

        def join(group: list[str]) -> None:
            met = [axis for axis in axes if not {*axis}.isdisjoint(group)]
            axes[:] = [axis for axis in axes if axis not in met]
            axes.append([v for axis in met for v in axis])

        for access in (*einsum.outputs, *einsum.operands):
            for index in access.indices:
                found = [v for v in dict.fromkeys(variables(index.expression)) if v in own]
                if not self._overlap([self.cascade.rank_of(v) for v in found]):
                    join(found)
        for held in self._held(einsum, own):
            join(held)
        settled: list[list[str]] = []
        for axis in sorted(axes, key=lambda axis: min(map(own.index, axis), default=0)):
            for other in settled:
                if not self._overlap([self.cascade.rank_of(v) for v in (*other, *axis)]):
                    other += axis
                    break
            else:
                if axis:
                    settled.append(axis)
        return settled

    def _held(self, einsum: Einsum, own: list[str]) -> Iterator[list[str]]:
        """Yield variables that filters hold to each other, one folded away, in no plane tensor."""
        if any(a.tensor in self.flat for a in einsum.operands):
            return
        kept = set(einsum.output_variables)
        for comparison in filters(einsum):
            left, right = (linear(side, self.sizes) for side in (comparison.left, comparison.right))
            if left is None or right is None or comparison.operator == "!=":
                continue
            found = [v for v in left.plus(right, -1).coefficients if v in own]
            if len(found) > 1 and not kept.issuperset(found):
                yield found

    @cached_property
    def _axis_numbers(self) -> dict[_Node, int]:
        """Return for every axis of a plane Einsum, and place of a plane tensor, its number."""
        parent: dict[_Node, _Node] = {}

        def find(node: _Node) -> _Node:
            while parent.setdefault(node, node) != node:
                node = parent[node]
            return node

        for i, einsum in enumerate(self.cascade.einsums):
            if len(self.axes_of[i]) < 2:
                continue
            for a, _ in enumerate(self.axes_of[i]):
                find((i, a))
            for access in (*einsum.outputs, *einsum.operands):
                for place, axis in self._touched(i, access):
                    if access.tensor not in self.flat or axis is None:
                        continue
                    one, other = find((i, axis)), find((access.tensor, place))
                    both = [n for n in parent if find(n) in (one, other)]
                    if one != other and not self._clash(both):
                        parent[one] = other
        roots = list(dict.fromkeys(find(n) for n in parent))
        return {node: roots.index(find(node)) for node in parent}

    def _clash(self, nodes: list[_Node]) -> bool:
        """Tell whether two axes of one Einsum, or two of one tensor, are among some."""
        einsums = [n[0] for n in nodes if isinstance(n[0], int)]
        if len(einsums) > len(set(einsums)):
            return True
        tensors = {n[0] for n in nodes if isinstance(n[0], str)}
        return any(
            self._overlap([self.ranks[t][p] for name, p in nodes if name == t]) for t in tensors
        )

    def _touched(self, i: int, access: Access) -> Iterator[tuple[int, int | None]]:
        """Yield the places of an access along the rank, each with the axis that indexes it."""
        for place in self.places[access.tensor]:
            found = set(variables(access.indices[place].expression))
            axes = [a for a, axis in enumerate(self.axes_of[i]) if not found.isdisjoint(axis)]
            yield place, axes[0] if len(axes) == 1 else None

    @cached_property
    def _planes(self) -> list[_Plane]:
        """Return the groups of axes that meet."""
        groups: list[set[int]] = []
        numbers = self._axis_numbers
        folded = self._folded
        iterated: set[int] = set()
        for i, axes in enumerate(self.axes_of):
            if len(axes) < 2:
                continue
            met = {numbers[i, a] for a, _ in enumerate(axes)}
            iterated |= {numbers[i, a] for a, axis in enumerate(axes) if self.iterative & {*axis}}
            apart = [g for g in groups if g.isdisjoint(met)]
            groups = [*apart, met.union(*(g for g in groups if not g.isdisjoint(met)))]
        found = []
        for group in groups:
            swept = group & iterated or group & folded or group
            others = group - swept if group.isdisjoint(iterated) else set()
            found.append(_Plane(*(tuple(sorted(axes)) for axes in (group, swept, others))))
        return found

    @cached_property
    def _folded(self) -> set[int]:
        """Return the axes that some Einsum of a plane folds away."""
        gone = [{v for r in e.reductions for v in r.variables} for e in self.cascade.einsums]
        return {
            self._axis_numbers[i, a]
            for i, axes in enumerate(self.axes_of)
            for a, axis in enumerate(axes)
            if len(axes) > 1 and gone[i] & {*axis}
        }

    def _named(self, number: int, names: frozenset[str]) -> bool:
        """Tell whether an axis has one of some variables."""
        return any(
            self._axis_numbers.get((i, a)) == number and not names.isdisjoint(axis)
            for i, axes in enumerate(self.axes_of)
            for a, axis in enumerate(axes)
        )

    def _oriented(self, choice: tuple[int, ...]) -> Cascade:
        swept, fixed = self._nodes(choice)
        moved = fixed - self._along(swept)

        def fixing(i: int, axis: int) -> bool:
            return ((i, axis) if len(self.axes_of[i]) > 1 else (i,)) in moved

        def mark(i: int, axis: int) -> str:
            return ALL_MARK if self._axis_numbers.get((i, axis)) in self._folded else FIXED_MARK

        names = [
            {
                v: v + mark(i, a)
                for a, axis in enumerate(axes)
                if fixing(i, a) and self.iterative.isdisjoint(axis)
                for v in axis
            }
            for i, axes in enumerate(self.axes_of)
        ]
        return _with_fixed(self.cascade, self.family, names, moved)

    def _nodes(self, choice: tuple[int, ...]) -> tuple[set[_Node], set[_Node]]:
        """Return the nodes that the choice sweeps, and all others that it could hold fixed."""
        order = [n for c, plane in zip(choice, self._planes, strict=True)
                 for n in (c, *plane.swept, *plane.axes)]  # fmt: skip
        numbers = self._axis_numbers
        swept: set[_Node] = set()
        fixed: set[_Node] = set()
        for i, axes in enumerate(self.axes_of):
            found = [(i, a) for a, _ in enumerate(axes)] if len(axes) > 1 else [(i,)] * len(axes)
            if len(axes) > 1:
                best = min(found, key=lambda n: order.index(numbers[n]))
                swept.add(best)
            fixed |= {*found} - swept
        for tensor, places in self.places.items():
            own = [(tensor, p) for p in places]
            known = [n for n in own if n in numbers and numbers[n] in order]
            if tensor in self.flat and known:
                best_number = min((numbers[n] for n in known), key=order.index)
                swept |= {n for n in own if numbers.get(n) == best_number}
            elif tensor in self.flat:
                swept |= {*own}
            fixed |= {*own} - swept
        return swept, fixed

    def _along(self, swept: set[_Node]) -> set[_Node]:
        """Return the nodes without a plane that lie along what is swept, directly or by others."""
        pinned: set[_Node] = {
            (i, a) for i, axes in enumerate(self.axes_of) for a, _ in enumerate(axes)
        }
        pinned |= {(t, p) for t in self.flat for p in self.places[t]}
        near: dict[_Node, set[_Node]] = {}
        for i, einsum in enumerate(self.cascade.einsums):
            for access in (*einsum.outputs, *einsum.operands):
                for place, axis in self._touched(i, access):
                    if axis is not None:
                        one = (i, axis) if len(self.axes_of[i]) > 1 else (i,)
                        near.setdefault(one, set()).add((access.tensor, place))
                        near.setdefault((access.tensor, place), set()).add(one)
        found, pending = set(swept), list(swept)
        while pending:
            for node in near.get(pending.pop(), ()):
                if node not in found and node not in pinned:
                    found.add(node)
                    pending.append(node)
        held = {n for n in near if n in pinned and n not in swept}
        reached, pending = set(held), list(held)
        while pending:  # what no fixed axis touches is swept as well
            for node in near.get(pending.pop(), ()):
                if node not in reached and node not in found:
                    reached.add(node)
                    pending.append(node)
        every = {*near, *((i,) for i, axes in enumerate(self.axes_of) if len(axes) == 1)}
        every |= {(t, p) for t, places in self.places.items() for p in places}
        return found | (every - reached - pinned)


def _with_fixed(
    cascade: Cascade, family: Partition, names: list[dict[str, str]], moved: set[_Node]
) -> Cascade:
    """Return the cascade with ranks of their own for what is held fixed."""
    einsums = iter(zip(cascade.einsums, names, strict=True))
    sections: dict[str, Any] = {
        section: tuple(_with_variables(*next(einsums)) for _ in getattr(cascade, section))
        for section in ("init", "loop", "final")
    }
    fixed = {new: cascade.rank_of(v) + new[-1] for found in names for v, new in found.items()}

    def ranks(tensor: str, own: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(r + FIXED_MARK if (tensor, p) in moved else r for p, r in enumerate(own))

    tensors: dict[str, Any] = {
        kind: tuple(replace(t, ranks=ranks(t.name, t.ranks)) for t in getattr(cascade, kind))
        for kind in ("tensors", "input_tensors")
    }
    more = tuple(Rank(r + mark, r) for mark in (FIXED_MARK, ALL_MARK) for r in family.covers)
    again = tuple(
        Split(s.whole + mark, s.outer + mark, s.inner + mark)
        for mark in (FIXED_MARK, ALL_MARK)
        for s in cascade.splits
        if s.whole in family.covers
    )
    return replace(
        cascade,
        ranks=(*cascade.ranks, *more),
        splits=(*cascade.splits, *again),
        aliases=(*fixed.items(), *cascade.aliases),
        **sections,
        **tensors,
    )


def _with_variables(einsum: Einsum, names: Mapping[str, str]) -> Einsum:
    """Return an Einsum with other names for some of its variables."""
    if not names:
        return einsum

    def leaf(node: Expression) -> Expression | None:
        if isinstance(node, Coordinate) and node.variable in names:
            return replace(node, variable=names[node.variable])
        return None

    def renamed(variable: str) -> str:
        return names.get(variable, variable)

    actions = tuple(
        replace(a, variables=tuple(map(renamed, a.variables)))
        if isinstance(a, Reduce)
        else replace(a, source=renamed(a.source), target=renamed(a.target))
        if isinstance(a, Populate)
        else a
        for a in einsum.actions
    )
    outputs = tuple(cast(Access, rebuild(output, leaf)) for output in einsum.outputs)
    return replace(
        einsum, outputs=outputs, expression=rebuild(einsum.expression, leaf), actions=actions
    )
