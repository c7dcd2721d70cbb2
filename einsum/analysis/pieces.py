"""Pieces of a rank: a concatenation, a half, a roll read one rank along a stretch of another.

``C[n] = A[n: n<M] + B[n-M: n>=M]`` sweeps A while n is small and B behind it: both lie along the
rank of n, A from 0 on and B from M on. ``A[h]`` and ``A[h+H]`` run over two halves of a rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from einfuse.einsum.language.affine import at_most_zero, linear
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.expression import Access


@dataclass(frozen=True, slots=True)
class Piece:
    """A rank lies along another from a coordinate on."""

    along: str
    start: Any


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Coordinates ``first`` to ``end`` of a tensor's rank, read by one that is ``shift`` less."""

    tensor: str
    place: int
    rank: str
    by: str
    first: Any
    end: Any
    shift: Any
    bounded: bool


def pieces(cascade: Cascade, sizes: Mapping[str, Any]) -> dict[str, Piece]:
    '''Return the ranks that are pieces of others, each with where it lies.

    Args:
        cascade: what is computed, with equal coordinates under equal names.
        sizes: size of every rank, whole or symbolic.

    >>> from einfuse.einsum.language.parser import parse
    >>> from einfuse.einsum.language.shape import bind_symbolic
    >>> cascade = parse("""
    ... rank M, L, N
    ... input A[M], B[L]
    ... C[n] = A[n: n<M] + B[n-M: n>=M]
    ... """)
    >>> pieces(cascade, bind_symbolic(cascade))
    {'M': Piece(along='N', start=0), 'L': Piece(along='N', start=M)}
    '''
    split = {r for s in cascade.splits for r in (s.outer, s.inner)}
    reads: dict[tuple[str, int, str], list[_Stretch]] = {}
    for found in _stretches(cascade, sizes):
        if not {found.rank, found.by} & split:
            reads.setdefault((found.tensor, found.place, found.by), []).append(found)
    together = _together(cascade)
    known: dict[str, Piece] = {}

    def lay(rank: str, along: str, start: Any) -> None:
        if rank in known or frozenset({rank, along}) in together:
            return
        above = known.get(along, Piece(along, 0))
        if above.along != rank:
            known[rank] = Piece(above.along, above.start + start)

    for stretches in reads.values():
        one = stretches[0]
        size, by = sizes[one.rank], sizes[one.by]
        for found in stretches:
            if found.first == 0 and _reaches(found, size):
                lay(found.rank, found.by, -found.shift)
        if len({s.first for s in stretches}) > 1 and _tiled(stretches, size):
            lay(one.by, one.rank, 0)
        elif _is_most(one, size, by):
            lay(one.by, one.rank, one.shift)
    return {rank: _settled(piece, known) for rank, piece in known.items()}


def _settled(piece: Piece, known: Mapping[str, Piece]) -> Piece:
    for _ in known:
        above = known.get(piece.along)
        if above is None:
            break
        piece = Piece(above.along, piece.start + above.start)
    return piece


def _stretches(cascade: Cascade, sizes: Mapping[str, Any]) -> Iterator[_Stretch]:
    declared = {tensor.name: tensor.ranks for tensor in cascade.tensors}
    for einsum in cascade.einsums:
        for access in (*einsum.outputs, *einsum.operands):
            for place, rank in enumerate(declared[access.tensor]):
                form = linear(access.indices[place].expression, sizes)
                if form is None or [*form.coefficients.values()] != [1]:
                    continue
                (variable,) = form.coefficients
                by = cascade.rank_of(variable)
                if by == rank or sizes[by] == sizes[rank]:
                    continue
                low, high = _range(access, einsum, variable, sizes)
                first = form.constant if low is None else low + form.constant
                end = (sizes[by] if high is None else high) + form.constant
                bounded = low is not None or high is not None
                yield _Stretch(access.tensor, place, rank, by, first, end, form.constant, bounded)


def _range(
    access: Access, einsum: Einsum, variable: str, sizes: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Return the first value of a variable that filters leave, and the end; None where open."""
    low: Any = None
    high: Any = None
    for index in access.indices:
        for comparison in index.condition:
            for form in at_most_zero(comparison, sizes) or ():
                if dict(form.coefficients) == {variable: 1}:
                    high = 1 - form.constant
                elif dict(form.coefficients) == {variable: -1} and _is_positive(form.constant):
                    low = form.constant
    return low, high


def _reaches(stretch: _Stretch, size: Any) -> bool:
    """Tell whether a stretch from 0 covers its rank; a filter is taken to end where it does."""
    gap = size - stretch.end
    return bool(gap == 0) or (stretch.bounded and not _is_number(gap))


def _tiled(stretches: list[_Stretch], size: Any) -> bool:
    """Tell whether stretches follow each other from 0 to the end of their rank."""
    end: Any = 0
    left = list(stretches)
    while following := [s for s in left if s.first == end]:
        end = following[0].end
        left = [s for s in left if s not in following]
    return end != 0 and (bool(end == size) or not _is_number(size - end))


def _is_most(stretch: _Stretch, size: Any, by: Any) -> bool:
    """Tell whether all of the rank that reads lies on more than half of the one that is read."""
    if not (_is_number(size) and _is_number(by)):
        return False
    return bool(size > by > size / 2 and stretch.end - stretch.first == by)


def _together(cascade: Cascade) -> frozenset[frozenset[str]]:
    """Return the pairs of ranks of one tensor or Einsum: no stretch of one is the other."""
    spaces = {tensor.ranks for tensor in cascade.tensors}
    spaces |= {tuple(map(cascade.rank_of, einsum.variables)) for einsum in cascade.einsums}
    return frozenset(frozenset(pair) for ranks in spaces for pair in combinations(set(ranks), 2))


def _is_positive(value: Any) -> bool:
    return bool(value > 0) if _is_number(value) else bool(value.is_positive)


def _is_number(value: Any) -> bool:
    return not getattr(value, "free_symbols", None)
