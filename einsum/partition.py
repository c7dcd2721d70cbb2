"""Partitions of a rank: which levels a rank is split into, and which of them a name covers."""

from __future__ import annotations

from dataclasses import dataclass

from .cascade import Cascade, Split
from .errors import EinfuseError
from .expression import Access, Binary, Coordinate, Expression, Index, RankSize, walk


@dataclass(frozen=True, slots=True)
class Partition:
    """The levels of a rank, outermost first, and every rank of its family with what it covers.

    ``levels`` are those of the outermost whole: ``("M1", "M0")`` for M, for M1 and for M0.
    ``covers`` maps a rank of the family to the half-open range of levels that it spans.
    """

    whole: str
    levels: tuple[str, ...]
    covers: dict[str, tuple[int, int]]

    def covers_level(self, rank: str, level: int) -> bool:
        """Tell whether a rank runs over that level (M and M0 run over the level M0)."""
        first, last = self.covers.get(rank, (0, 0))
        return first <= level < last


def partition(cascade: Cascade, rank: str) -> Partition:
    """Return the partition that a rank belongs to; an unsplit rank is its own one level.

    Splits are those declared, and those that an index ``a*B + b`` implies.

    Raises:
        EinfuseError: the cascade has no such rank.

    >>> from einfuse.einsum.parser import parse
    >>> text = "rank M1, M0\\nsplit M -> M1, M0\\ninput A[M]\\noutput Y\\nY[] = A[m1*M0+m0]"
    >>> partition(parse(text), "M0")
    Partition(whole='M', levels=('M1', 'M0'), covers={'M': (0, 2), 'M1': (0, 1), 'M0': (1, 2)})
    """
    known = cascade.rank_names
    if rank not in known:
        raise EinfuseError(
            f"{cascade.name}: expected a rank of the cascade, one of {', '.join(known)}; "
            f"found {rank!r}"
        )
    parts = _parts(cascade)
    parents = {part: whole for whole, pair in parts.items() for part in pair}
    whole = rank
    while whole in parents:
        whole = parents[whole]
    levels: list[str] = []
    covers: dict[str, tuple[int, int]] = {}
    _descend(whole, parts, levels, covers)
    return Partition(whole, tuple(levels), covers)


def finest_levels(cascade: Cascade) -> dict[str, tuple[str, ...]]:
    """Return the finest levels that every rank spans, outermost first.

    >>> from einfuse.einsum.library import load
    >>> finest_levels(load("attention/1-pass"))["M"]
    ('M1', 'M0')
    """
    parts = _parts(cascade)
    found: dict[str, tuple[str, ...]] = {}
    for rank in cascade.rank_names:
        levels: list[str] = []
        _descend(rank, parts, levels, {})
        found[rank] = tuple(levels)
    return found


def _descend(
    rank: str,
    parts: dict[str, tuple[str, str]],
    levels: list[str],
    covers: dict[str, tuple[int, int]],
) -> None:
    first = len(levels)
    covers[rank] = (first, first)
    if rank in parts:
        for part in parts[rank]:
            _descend(part, parts, levels, covers)
    else:
        levels.append(rank)
    covers[rank] = (first, len(levels))


def _parts(cascade: Cascade) -> dict[str, tuple[str, str]]:
    """Return whole -> (outer, inner); the first split of a whole, and of a part, stands."""
    parts: dict[str, tuple[str, str]] = {}
    parents: dict[str, str] = {}
    for split in (*cascade.splits, *_implied(cascade)):
        above = [split.whole]
        while above[-1] in parents:
            above.append(parents[above[-1]])
        pair = (split.outer, split.inner)
        if split.whole not in parts and not set(pair) & {*above, *parents}:
            parts[split.whole] = pair
            parents |= dict.fromkeys(pair, split.whole)
    return parts


def _implied(cascade: Cascade) -> list[Split]:
    """Return the splits that indices ``a*B + b`` imply along the ranks they index."""
    ranks = {tensor.name: tensor.ranks for tensor in cascade.tensors}
    found = []
    for einsum in cascade.einsums:
        for access in (a for node in (*einsum.outputs, einsum.expression) for a in walk(node)):
            if isinstance(access, Access):
                for rank, index in zip(ranks[access.tensor], access.indices, strict=True):
                    pair = _mixed_radix(cascade, index)
                    if pair and rank not in pair:
                        found.append(Split(rank, *pair))
    return found


def _mixed_radix(cascade: Cascade, index: Index) -> tuple[str, str] | None:
    """Return the ranks of ``a`` and ``b`` in an index ``a*B + b``, B the size of b's rank."""
    expression: Expression = index.expression
    if not (isinstance(expression, Binary) and expression.operator == "+"):
        return None
    for scaled, inner in (
        (expression.left, expression.right),
        (expression.right, expression.left),
    ):
        if not (isinstance(scaled, Binary) and scaled.operator == "*"):
            continue
        for outer, size in ((scaled.left, scaled.right), (scaled.right, scaled.left)):
            if (
                isinstance(outer, Coordinate)
                and isinstance(inner, Coordinate)
                and isinstance(size, RankSize)
                and size.rank == cascade.rank_of(inner.variable)
            ):
                return cascade.rank_of(outer.variable), size.rank
    return None
