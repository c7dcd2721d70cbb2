"""One notion of the same coordinates: a cascade with every rank and every read by its own name.

What can be proven about a cascade does not depend on how it is spelled. Before coordinates are
compared, a cascade is put in a form in which equal coordinates have equal names:

1. *views*: who reads a copy, a tile or a shift reads the tensor behind it (`views`);
2. *bound variables*: one that is folded away runs over the rank that it reads;
3. *ranks*: two ranks of equal size are one where a variable of one indexes the other, where one
   stands for a digit of the other's split, or where an Einsum scans one up to the other.

Where one tensor or Einsum has two axes of one rank (queries and keys of self-attention), `planes`
tells which of them is swept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from typing import Any, cast

from einfuse.einsum.language.affine import Linear, linear
from einfuse.einsum.language.cascade import Cascade, Rank, Split
from einfuse.einsum.language.equation import Einsum, Populate, Reduce
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Coordinate,
    Expression,
    RankSize,
    variables,
)
from einfuse.einsum.language.shape import bind_symbolic, filters, representatives
from einfuse.einsum.language.substitution import rebuild

from .partition import mixed_radix, splits
from .resolved_views import without_views

MARK = "~"
"""Between a bound variable of the text and the rank that it runs over: no name has it."""


@dataclass(frozen=True, slots=True)
class Coordinates:
    """A cascade in one spelling; ``names`` maps every rank of the text to its name there."""

    cascade: Cascade
    names: Mapping[str, str]


def same_coordinates(cascade: Cascade, rank: str | None = None) -> Coordinates:
    '''Return the cascade with equal coordinates under equal names.

    Its Einsums stand in the same places as those of the text.

    Args:
        cascade: what is computed.
        rank: the rank whose name stands for all that are the same as it.

    >>> from einfuse.einsum.language.parser import parse
    >>> from einfuse.einsum.language.printer import render_einsum
    >>> cascade = parse("""
    ... rank K, J = K
    ... input A[K]
    ... output Y
    ... B[k] = A[k]
    ... S[] = B[j] :: max(j)
    ... Y[j] = B[j] - S[]
    ... """)
    >>> found = same_coordinates(cascade, "K")
    >>> [found.cascade.tensor(name).ranks for name in ("A", "Y")], found.names["J"]
    ([('K',), ('K',)], 'K')
    '''
    found = _same_coordinates(cascade, rank)
    return replace(found, cascade=replace(found.cascade, name=cascade.name))


@lru_cache(maxsize=32)
def _same_coordinates(cascade: Cascade, rank: str | None) -> Coordinates:
    sizes = bind_symbolic(cascade)
    seen = _Reading(without_views(cascade, sizes), sizes).bound_by_reads()
    reading = _Reading(seen, sizes)
    classes = reading.classes()
    if rank is not None:  # other ranks are left as they are spelled
        own = next((c for c in classes if rank in c), frozenset({rank}))
        near = {reading.places[r][0] for r in own if r in reading.places}
        classes = [c for c in classes if near & {reading.places[r][0] for r in c}]
    names = {name: name for name in cascade.rank_names}
    for members in classes:
        chosen = rank if rank in members else next(r for r in names if r in members)
        names |= dict.fromkeys(members, chosen)
    return Coordinates(_renamed(seen, names) if classes else seen, names)


class _Reading:
    """What the indices of a cascade say about its ranks."""

    def __init__(self, cascade: Cascade, sizes: Mapping[str, Any]) -> None:
        self.cascade, self.sizes = cascade, sizes
        self.declared = {tensor.name: tensor.ranks for tensor in cascade.tensors}
        self.rank_of = cache(cascade.rank_of)
        self.splits = splits(cascade, sizes)
        self.parts: dict[str, list[tuple[str, str]]] = {}
        for split in self.splits:
            self.parts.setdefault(split.whole, []).append((split.outer, split.inner))

    def bound_by_reads(self) -> Cascade:
        """Give each variable that is folded away the rank that it reads, if that has its size."""
        iterative = {iteration.variable for iteration in self.cascade.iterations}
        aliases: dict[str, str] = {}

        def renamed(einsum: Einsum) -> Einsum:
            bound = {v for r in einsum.reductions for v in r.variables} - iterative
            read: dict[str, set[str]] = {}
            for variable, rank, _ in self._indexed(einsum):
                if variable in bound:
                    read.setdefault(variable, set()).add(rank)
            names = {
                v: f"{v}{MARK}{min(ranks)}"
                for v, ranks in read.items()
                if self.rank_of(v) not in ranks
            }
            aliases.update({name: min(read[v]) for v, name in names.items()})
            return _with_variables(einsum, names) if names else einsum

        sections: dict[str, Any] = {
            n: tuple(map(renamed, getattr(self.cascade, n))) for n in ("init", "loop", "final")
        }
        named = (*self.cascade.aliases, *aliases.items())
        return replace(self.cascade, **sections, aliases=named)

    def classes(self) -> list[frozenset[str]]:
        """Return the ranks that are the same, in groups of two and more."""
        groups: dict[str, frozenset[str]] = {}
        places = self.places
        inner = {part for split in self.splits for part in (split.outer, split.inner)}

        def differ(x: str, y: str) -> bool:
            """Tell whether two ranks are different digits of one whole."""
            return places[x][0] == places[y][0] and places[x] != places[y]

        for one, other, loose in self._joins():
            a, b = (groups.get(r, frozenset({r})) for r in (one, other))
            wholes = {places[r][0] for r in (a | b) & inner}
            if a == b or any(differ(x, y) for x in a for y in b):
                continue
            if loose and (len(wholes) > 1 or wholes & (a | b)):
                continue
            groups |= dict.fromkeys(a | b, a | b)
        return list(dict.fromkeys(groups.values()))

    def _indexed(self, einsum: Einsum) -> Iterator[tuple[str, str, bool]]:
        """Yield (variable, rank) where one steps along all of the other; True for one in a tile."""
        for access in (*einsum.outputs, *einsum.operands):
            for rank, index in zip(self.declared[access.tensor], access.indices, strict=True):
                whole, form = self._along(rank, index.expression)
                if form is not None and len(form.coefficients) == 1:
                    ((variable, step),) = form.coefficients.items()
                    if step in (1, -1) and self._equal(variable, whole):
                        yield variable, whole, False
                digits = mixed_radix(form, self.cascade, self.sizes)
                for parts in self.parts.get(whole, ()) if digits else ():
                    if all(map(self._equal, digits, parts)):
                        tile = self.rank_of(digits[0]) == parts[0]
                        yield digits[0], parts[0], tile
                        yield digits[1], parts[1], tile

    def _along(self, rank: str, index: Expression) -> tuple[str, Linear | None]:
        """Return the form of an index; that of x, and the whole, where it is a digit of x."""
        form = linear(index, self.sizes)
        if form is None:
            rank = self.places[rank][0]
            while isinstance(index, Binary) and index.operator in "/%":
                index = index.left
            form = linear(index, self.sizes)
        return rank, form

    def _equal(self, variable: str, rank: str) -> bool:
        return bool(self.sizes[self.rank_of(variable)] == self.sizes[rank])

    def _joins(self) -> Iterator[tuple[str, str, bool]]:
        """Yield pairs of ranks with the same coordinates; True where loops could part them."""
        wholes: dict[tuple[str, str], str] = {}
        used = {rank for ranks in self.declared.values() for rank in ranks}
        used |= {self.rank_of(v) for e in self.cascade.einsums for v in e.variables}
        for variable, rank in self.cascade.aliases:  # that were the only ones of their own rank
            own = self.rank_of(variable.partition(MARK)[0])
            if own not in used and own in self.cascade.rank_names:
                yield rank, own, False
        for split in self.splits:
            whole = wholes.setdefault((split.outer, split.inner), split.whole)
            if whole != split.whole:
                yield whole, split.whole, False
        for einsum in self.cascade.einsums:
            for variable, rank, digit in self._indexed(einsum):
                if rank != self.rank_of(variable):
                    yield rank, self.rank_of(variable), not digit
            for one, other in self._scanned(einsum):
                yield one, other, True

    def _scanned(self, einsum: Einsum) -> Iterator[tuple[str, str]]:
        """Yield (rank read, rank written) of running folds: ``P[k] = A[j: j<=k]``."""
        read = {v for a in einsum.operands for i in a.indices for v in variables(i.expression)}
        for comparison in filters(einsum):
            left, right = (linear(side, self.sizes) for side in (comparison.left, comparison.right))
            if left is None or right is None:
                continue
            form = left.plus(right, -1)
            if {*form.coefficients.values()} != {-1, 1} or len(form.coefficients) != 2:
                continue
            inside = [self.rank_of(v) for v in form.coefficients if v in read]
            outside = [self.rank_of(v) for v in form.coefficients if v not in read]
            if len(inside) == 1 and self.sizes[inside[0]] == self.sizes[outside[0]]:
                yield inside[0], outside[0]

    @cached_property
    def places(self) -> dict[str, tuple[str, Any]]:
        """Return for every rank the outermost whole that it is a digit of, and its step there."""
        above = {part: s for s in reversed(self.splits) for part in (s.outer, s.inner)}
        places: dict[str, tuple[str, Any]] = {}
        for rank in self.cascade.rank_names:
            step: Any = 1
            whole, seen = rank, {rank}
            while (split := above.get(whole)) and split.whole not in seen:
                step = step * self.sizes[split.inner] if whole == split.outer else step
                whole = split.whole
                seen.add(whole)
            places[rank] = (whole, step)
        return places


def _with_variables(einsum: Einsum, names: Mapping[str, str]) -> Einsum:
    def leaf(node: Expression) -> Expression | None:
        if isinstance(node, Coordinate) and node.variable in names:
            return replace(node, variable=names[node.variable])
        return None

    actions = tuple(
        replace(a, variables=tuple(names.get(v, v) for v in a.variables))
        if isinstance(a, Reduce)
        else a
        for a in einsum.actions
    )
    return replace(einsum, expression=rebuild(einsum.expression, leaf), actions=actions)


def _renamed(cascade: Cascade, names: Mapping[str, str]) -> Cascade:
    """Return the cascade with other names for its ranks, the variables left as they are."""

    def leaf(node: Expression) -> Expression | None:
        return (
            RankSize(names[node.rank])
            if isinstance(node, RankSize) and node.rank in names
            else None
        )

    def renamed(einsum: Einsum) -> Einsum:
        outputs = tuple(cast(Access, rebuild(output, leaf)) for output in einsum.outputs)
        return replace(einsum, outputs=outputs, expression=rebuild(einsum.expression, leaf))

    def name(rank: str) -> str:
        return names.get(rank, rank)

    used = {v for e in cascade.einsums for v in (*e.variables, *e.output_variables)}
    used |= {a.source for e in cascade.einsums for a in e.actions if isinstance(a, Populate)}
    aliases = dict(cascade.aliases) | {v: name(cascade.rank_of(v)) for v in sorted(used)}
    sections: dict[str, Any] = {
        n: tuple(map(renamed, getattr(cascade, n))) for n in ("init", "loop", "final")
    }
    tensors: dict[str, Any] = {
        n: tuple(replace(t, ranks=tuple(map(name, t.ranks))) for t in getattr(cascade, n))
        for n in ("tensors", "input_tensors")
    }
    return replace(
        cascade,
        ranks=_sized(cascade, name),
        splits=tuple(
            dict.fromkeys(
                Split(name(s.whole), name(s.outer), name(s.inner)) for s in cascade.splits
            )
        ),
        iterations=tuple(replace(i, rank=name(i.rank)) for i in cascade.iterations),
        aliases=tuple((v, r) for v, r in aliases.items() if v.upper() != r),
        **sections,
        **tensors,
    )


def _sized(cascade: Cascade, name: Callable[[str], str]) -> tuple[Rank, ...]:
    """Return the ranks under their new names, each once, with the size that it has."""
    roots = representatives(cascade)
    given = {rank.name: rank.size for rank in cascade.ranks}
    found: dict[str, int | str | None] = {}
    for rank in cascade.rank_names:
        size = given.get(roots[rank])
        if size is None and name(roots[rank]) != name(rank):
            size = name(roots[rank])
        found[name(rank)] = found.get(name(rank)) or size
    return tuple(Rank(rank, size) for rank, size in found.items())
