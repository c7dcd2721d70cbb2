"""Partitions of a rank: which levels a rank is split into, and which of them a name covers."""

from __future__ import annotations

from dataclasses import dataclass

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Coordinate,
    Expression,
    RankSize,
    walk,
)
from einfuse.einsum.language.shape import representatives


@dataclass(frozen=True, slots=True)
class Partition:
    """The levels of a rank, outermost first, and every rank of its family with what it covers.

    ``levels`` are those of the outermost whole: ``("M1", "M0")`` for M, for M1 and for M0.
    ``covers`` maps a rank of the family to the half-open range of levels that it spans; a rank
    of equal size that indexes along an inner part (j in ``c*I+j``) counts as that part.
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

    >>> from einfuse.einsum.language.parser import parse
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
    covers |= {
        alias: covers[part]
        for alias, part in _aliases(cascade, parts).items()
        if part in covers and alias not in covers
    }
    return Partition(whole, tuple(levels), covers)


def finest_levels(cascade: Cascade) -> dict[str, tuple[str, ...]]:
    """Return the finest levels that every rank spans, outermost first.

    >>> from einfuse.einsum.library.cascades import load
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
    declared = [(split.whole, split.outer, split.inner) for split in cascade.splits]
    for whole, outer, inner in (*declared, *_mixed_radices(cascade)):
        above = [whole]
        while above[-1] in parents:
            above.append(parents[above[-1]])
        if whole not in parts and not {outer, inner} & {*above, *parents}:
            parts[whole] = (outer, inner)
            parents |= {outer: whole, inner: whole}
    return parts


def _aliases(cascade: Cascade, parts: dict[str, tuple[str, str]]) -> dict[str, str]:
    """Map a rank to the inner part that it stands for: J to I where ``c*I+j`` indexes C, I."""
    return {
        inner: parts[whole][1]
        for whole, outer, inner in _mixed_radices(cascade)
        if whole in parts and parts[whole][0] == outer and parts[whole][1] != inner
    }


def _mixed_radices(cascade: Cascade) -> list[tuple[str, str, str]]:
    """Return (rank, rank of a, rank of b) for every index ``a*B + b`` of a rank of the cascade.

    B is the size of b's rank, by its own name or by that of a rank of the same size.
    """
    ranks = {tensor.name: tensor.ranks for tensor in cascade.tensors}
    same_size = representatives(cascade)
    found: dict[tuple[str, str, str], None] = {}
    for einsum in cascade.einsums:
        for access in (a for node in (*einsum.outputs, einsum.expression) for a in walk(node)):
            if not isinstance(access, Access):
                continue
            for rank, index in zip(ranks[access.tensor], access.indices, strict=True):
                outer, size, inner = _mixed_radix(index.expression)
                own = [cascade.rank_of(variable) for variable in (outer, inner) if variable]
                if len({rank, *own}) == 3 and same_size.get(size) == same_size.get(own[1]):
                    found[rank, own[0], own[1]] = None
    return list(found)


def _mixed_radix(expression: Expression) -> tuple[str, str, str]:
    """Return the variable a, the rank B and the variable b of ``a*B + b``; blanks if it is none."""
    if isinstance(expression, Binary) and expression.operator == "+":
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
                ):
                    return outer.variable, size.rank, inner.variable
    return "", "", ""
