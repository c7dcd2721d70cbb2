"""Partitions of a rank: which levels a rank is split into, and which of them a name covers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from einfuse.einsum.language.affine import Linear, linear
from einfuse.einsum.language.cascade import Cascade, Split
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.expression import Access, walk
from einfuse.einsum.language.shape import bind_symbolic

from .pieces import pieces


@dataclass(frozen=True, slots=True)
class Partition:
    """The levels of a rank, outermost first, and every rank of its family with what it covers.

    ``levels`` are those of the outermost whole: ``("M1", "M0")`` for M, for M1 and for M0.
    ``covers`` maps a rank of the family to the half-open range of levels that it spans. Of
    several splits of one rank the one asked for names the levels, else the first that is used;
    the tiles of the others are tiles too, of another size: theirs are the same levels.
    ``inside`` maps a rank to those by whose sizes it steps along the whole; ``starts`` a piece of
    a rank to the coordinate at which it lies.
    """

    whole: str
    levels: tuple[str, ...]
    covers: dict[str, tuple[int, int]]
    inside: dict[str, tuple[str, ...]] = field(default_factory=dict, compare=False, repr=False)
    starts: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def covers_level(self, rank: str, level: int) -> bool:
        """Tell whether a rank runs over that level (M and M0 run over the level M0)."""
        first, last = self.covers.get(rank, (0, 0))
        return first <= level < last


def partition(cascade: Cascade, rank: str) -> Partition:
    """Return the partition that a rank belongs to; an unsplit rank is its own one level.

    Splits are those declared, and those that an index ``a*B + b`` implies.

    Raises:
        EinfuseError: the cascade has no such rank.

    >>> from einfuse.einsum.language.parser import parse
    >>> text = "rank M1, M0\\nsplit M -> M1, M0\\ninput A[M]\\noutput Y\\nY[] = A[m1*M0+m0]"
    >>> partition(parse(text), "M0")
    Partition(whole='M', levels=('M1', 'M0'), covers={'M': (0, 2), 'M1': (0, 1), 'M0': (1, 2)})
    """
    check_rank(cascade, rank)
    sizes = bind_symbolic(cascade)
    laid = pieces(cascade, sizes)
    rank = laid[rank].along if rank in laid else rank
    parts = _parts(cascade, sizes)
    whole = rank
    asked = {rank}
    parents = {part: s.whole for found in parts.values() for s in found for part in _own(s)}
    while whole in parents:
        whole = parents[whole]
        asked.add(whole)
    first = {w: _first(cascade, found, asked) for w, found in parts.items()}
    levels: list[str] = []
    covers: dict[str, tuple[int, int]] = {}
    inside: dict[str, tuple[str, ...]] = {}
    _descend(whole, first, levels, covers)
    _place(whole, parts, first, sizes, levels, covers, inside)
    found = {name: piece for name, piece in laid.items() if piece.along in covers}
    covers |= {name: covers[piece.along] for name, piece in found.items()}
    inside |= {name: inside[piece.along] for name, piece in found.items()}
    starts = {name: piece.start for name, piece in found.items()}
    return Partition(whole, tuple(levels), covers, inside, starts)


def check_rank(cascade: Cascade, rank: str) -> None:
    """Raise an `EinfuseError` if a cascade has no such rank."""
    if rank not in (known := cascade.rank_names):
        raise EinfuseError(
            f"{cascade.name}: expected a rank of the cascade, one of {', '.join(known)}; "
            f"found {rank!r}"
        )


def finest_levels(cascade: Cascade) -> dict[str, tuple[str, ...]]:
    """Return the finest levels that every rank spans, outermost first.

    >>> from einfuse.einsum.library.cascades import load
    >>> finest_levels(load("attention/1-pass"))["M"]
    ('M1', 'M0')
    """
    parts = _parts(cascade, bind_symbolic(cascade))
    first = {whole: _first(cascade, found, set()) for whole, found in parts.items()}
    found: dict[str, tuple[str, ...]] = {}
    for rank in cascade.rank_names:
        levels: list[str] = []
        _descend(rank, first, levels, {})
        found[rank] = tuple(levels)
    return found


def splits(cascade: Cascade, sizes: Mapping[str, Any]) -> tuple[Split, ...]:
    """Return the splits declared, and those that an index ``a*B + b`` of a rank implies.

    An index that only names the parts of a split of these sizes otherwise implies none.
    """
    ranks = {tensor.name: tensor.ranks for tensor in cascade.tensors}
    found = list(dict.fromkeys(Split(s.whole, s.outer, s.inner) for s in cascade.splits))
    seen = {(s.whole, sizes[s.outer], sizes[s.inner]) for s in found}
    for einsum in cascade.einsums:
        for access in (a for node in (*einsum.outputs, einsum.expression) for a in walk(node)):
            if not isinstance(access, Access):
                continue
            for rank, index in zip(ranks[access.tensor], access.indices, strict=True):
                form = linear(index.expression, sizes)
                own = [cascade.rank_of(v) for v in mixed_radix(form, cascade, sizes)]
                key = (rank, *(sizes[r] for r in own))
                if len({rank, *own}) == 3 and key not in seen:
                    seen.add(key)
                    found.append(Split(rank, own[0], own[1]))
    return tuple(found)


def mixed_radix(form: Linear | None, cascade: Cascade, sizes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the variables a and b of an index ``a*B + b``, B the extent of b; none else."""
    if form is None or len(form.coefficients) != 2 or form.constant != 0:
        return ()
    one, other = form.coefficients
    for outer, inner in ((one, other), (other, one)):
        step = sizes.get(cascade.rank_of(inner))
        if form.coefficients[inner] == 1 and form.coefficients[outer] == step:
            return outer, inner
    return ()


def _descend(
    rank: str,
    parts: Mapping[str, Split],
    levels: list[str],
    covers: dict[str, tuple[int, int]],
) -> None:
    first = len(levels)
    covers[rank] = (first, first)
    if rank in parts:
        for part in _own(parts[rank]):
            _descend(part, parts, levels, covers)
    else:
        levels.append(rank)
    covers[rank] = (first, len(levels))


def _place(
    rank: str,
    parts: Mapping[str, tuple[Split, ...]],
    first: Mapping[str, Split],
    sizes: Mapping[str, Any],
    levels: list[str],
    covers: dict[str, tuple[int, int]],
    inside: dict[str, tuple[str, ...]],
) -> None:
    """Put the parts of every split below a rank in their levels, those of further splits too."""
    pending: list[tuple[str, tuple[str, ...]]] = [(rank, ())]
    while pending:
        rank, below = pending.pop()
        inside[rank] = below
        start, end = covers[rank]
        for split in parts.get(rank, ()):
            outer, inner = _own(split)
            if split is not first[rank] or outer not in covers:
                cut = _cut(start, end, sizes[inner], [sizes[level] for level in levels])
                covers.setdefault(outer, (start, cut))
                covers.setdefault(inner, (cut, end))
            pending += [
                (p, b) for p, b in ((outer, (inner, *below)), (inner, below)) if p not in inside
            ]


def _cut(start: int, end: int, inner: Any, sizes: list[Any]) -> int:
    """Return the level with which the inner part of a further split begins: the second at most."""
    product: Any = 1
    for level in range(end - 1, start, -1):
        product = product * sizes[level]
        if product == inner:
            return level
    return min(start + 1, end)


def _own(split: Split) -> tuple[str, str]:
    return split.outer, split.inner


def _first(cascade: Cascade, found: tuple[Split, ...], asked: set[str]) -> Split:
    """Return the split that names the levels: asked for, else used, else the first."""
    if len(found) == 1:
        return found[0]
    used = {rank for tensor in cascade.tensors for rank in tensor.ranks}
    used |= {cascade.rank_of(v) for einsum in cascade.einsums for v in einsum.variables}
    return max(found, key=lambda s: (bool(asked & {*_own(s)}), bool(used & {*_own(s)})))


def _parts(cascade: Cascade, sizes: Mapping[str, Any]) -> dict[str, tuple[Split, ...]]:
    """Return whole -> its splits; what would split a part by its own whole is left out."""
    parts: dict[str, tuple[Split, ...]] = {}
    parents: dict[str, str] = {}
    for split in splits(cascade, sizes):
        above = [split.whole]
        while above[-1] in parents:
            above.append(parents[above[-1]])
        if not {*_own(split)} & {*above, *parents}:
            parts[split.whole] = (*parts.get(split.whole, ()), split)
            parents |= dict.fromkeys(_own(split), split.whole)
    return parts
