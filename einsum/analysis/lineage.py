"""Dependences along one rank: who reads whose fiber how, and what must be complete before it.

The facts that a pass count rests on (FuseMax, arXiv 2406.10491, section III, made precise). At
one level of one rank, all other coordinates fixed:

- an Einsum is *indexed* if a variable of its iteration space runs over the level;
- a tensor is *full* if it has the level and every finer one, a *summary* if only the level;
- an edge from producer to consumer is a *barrier* where the consumer, itself indexed, needs a
  value that is complete only after the producer's whole fiber;
- the *lineage* of a tensor is every full tensor computed from it element by element: to sweep
  one of them is to sweep the tensor. A view is such a tensor too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from einfuse.einsum.language.affine import Linear, linear
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum, Populate
from einfuse.einsum.language.expression import Access, Index, variables
from einfuse.einsum.language.shape import bind_symbolic

from .access_kinds import Kind, Sweep, open_sizes
from .coordinates import MARK, same_coordinates
from .dependence import Dependence, Direction, Edge, Read
from .directions import OPPOSITE, cycles, mirrored, turned
from .partition import Partition, check_rank, partition
from .planes import orientations
from .unrolled import tile_of, tiles


def trace(cascade: Cascade, rank: str, level: str | None = None) -> Dependence:
    """Return the dependences of a cascade along a rank, at one level of its partition.

    Args:
        cascade: what is computed.
        rank: any rank of the cascade.
        level: a level of the rank's partition; the outermost that the rank covers by default.

    Raises:
        EinfuseError: the cascade has no such rank.

    >>> from einfuse.einsum.language.parser import parse
    >>> text = "rank M\\ninput A[M]\\noutput Y\\nS[] = A[m] :: +(m)\\nY[m] = A[m] / S[]"
    >>> dependence = trace(parse(text), "M")
    >>> [edge.reason for edge in dependence.edges]
    ['S is folded over m: complete only after the whole of M']
    >>> dependence.can_share("S", "Y")
    False
    """
    return next(traces(cascade, rank, level))


def traces(cascade: Cascade, rank: str, level: str | None = None) -> Iterator[Dependence]:
    """Yield the dependences along a rank for every axis that a sweep may run along.

    There are several only where a tensor or an Einsum has two axes of that rank (see `planes`);
    the first are those along the axes that the text calls by the rank's name.

    Args:
        cascade: what is computed.
        rank: any rank of the cascade.
        level: as for `trace`.

    Raises:
        EinfuseError: the cascade has no such rank, or too many planes.
    """
    check_rank(cascade, rank)
    same = same_coordinates(cascade, rank)
    named = frozenset(v for e in cascade.einsums for v in e.variables if cascade.rank_of(v) == rank)
    named |= {f"{v}{MARK}{rank}" for v in named}
    for oriented in orientations(same.cascade, rank, level, named):
        family = partition(oriented, rank)
        at = family.levels.index(level) if level else family.covers[rank][0]
        yield _Tracer(oriented, family, at).run()


@dataclass(frozen=True)
class _Write:
    """Where an Einsum writes an output along the level."""

    einsum: int
    kind: Kind
    access: Access


class _Tracer:
    """What `trace` computes once and several of its steps need."""

    def __init__(self, cascade: Cascade, family: Partition, level: int) -> None:
        self.cascade = cascade
        self.family = family
        self.level = level
        self.sizes = bind_symbolic(cascade)
        self.loop = range(len(cascade.init), len(cascade.init) + len(cascade.loop))
        self.ranks = {tensor.name: tensor.ranks for tensor in cascade.tensors}
        self.sweeps = [
            Sweep(cascade, einsum, family, level, self.sizes, self.ranks)
            for einsum in cascade.einsums
        ]
        self.sweep = [sweep.variable for sweep in self.sweeps]
        self.tiles = tiles(self.sweeps)
        self.indexed = [
            variable is not None or tile is not None
            for variable, tile in zip(self.sweep, self.tiles.at, strict=True)
        ]
        self.held: set[tuple[int, int]] = set()
        self.makers: dict[str, list[int]] = {}
        for k, einsum in enumerate(cascade.einsums):
            for output in einsum.outputs:
                self.makers.setdefault(output.tensor, []).append(k)

    def run(self) -> Dependence:
        reads = [
            (
                Read(
                    i,
                    access.tensor,
                    Kind.ALIGNED if self._in_tile(i, access) else sweep.kind(access),
                    sweep.is_gathered(access),
                    sweep.is_mirrored(access),
                ),
                access,
            )
            for i, sweep in enumerate(self.sweeps)
            for access in sweep.einsum.operands
        ]
        writes: dict[str, list[_Write]] = {}
        for i, sweep in enumerate(self.sweeps):
            for output in sweep.einsum.outputs:
                write = _Write(i, sweep.write_kind(output), output)
                writes.setdefault(output.tensor, []).append(write)
        edges = [
            edge
            for read, access in reads
            for write in writes.get(read.tensor, ())
            for edge in self._edge(read, access, write)
        ]
        plain_reads = [read for read, _ in reads]
        by_einsum: list[list[Read]] = [[] for _ in self.sweeps]
        for read in plain_reads:
            by_einsum[read.einsum].append(read)
        ways = self._ways(by_einsum, edges)
        edges = [turned(edge, ways, self.sweep[edge.consumer] is not None) for edge in edges]
        against = mirrored(self.cascade.einsums, by_einsum, edges)
        directions = [OPPOSITE[w] if i in against else w for i, w in enumerate(ways)]
        return Dependence(
            self.cascade,
            self.family,
            self.level,
            tuple(self.indexed),
            tuple(dict.fromkeys(plain_reads)),
            tuple(dict.fromkeys(edges)),
            tuple(directions),
            frozenset(self.tiles.tensors),
            frozenset(t for t, found in writes.items() if any(w.kind is Kind.FIXED for w in found)),
            frozenset(self.held),
        )

    def _in_tile(self, i: int, access: Access) -> bool:
        """Tell whether an Einsum that stands at a tile reads a tile there."""
        if self.tiles.at[i] is None:
            return False
        return access.tensor in self.tiles.tensors or tile_of(self.sweeps[i], access) is not None

    @cached_property
    def _spans(self) -> list[tuple[float, float]]:
        """Return the first and last tile that each Einsum waits for: (inf, -1) for none.

        What has swept is there in front of no tile: (-1, inf).
        """
        spans = [(math.inf, -1.0)] * len(self.sweeps)
        for i, (variable, tile) in enumerate(zip(self.sweep, self.tiles.at, strict=True)):
            if variable is not None:
                spans[i] = (-1.0, math.inf)
            elif tile is not None:
                spans[i] = (tile, tile)
            else:
                spans[i] = self._span(i, spans)
        return spans

    def _span(self, i: int, spans: list[tuple[float, float]]) -> tuple[float, float]:
        names = {a.tensor for a in self.cascade.einsums[i].operands}
        made = [spans[k] for t in names for k in self.makers.get(t, ())]
        return min((s[0] for s in made), default=math.inf), max((s[1] for s in made), default=-1.0)

    def _way_of_tile(self, i: int) -> Direction:
        """Return the way in which an Einsum of one tile follows those of others."""
        tile = self.tiles.at[i]
        assert tile is not None
        names = {a.tensor for a in self.cascade.einsums[i].operands}
        made = [self._spans[k] for t in names for k in self.makers.get(t, ())]
        if any(tile < last < math.inf for _, last in made):
            return Direction.DOWN
        return Direction.UP if any(-1 < first < tile for first, _ in made) else Direction.ANY

    def _edge(self, read: Read, access: Access, write: _Write) -> Iterator[Edge]:
        if self._disjoint(write.access, access):
            return
        generations = self._generations(read.einsum, write.einsum, access, write.access)
        if generations is None:
            return
        reason = ""
        if self.indexed[read.einsum] and read.kind is Kind.FIXED:
            self.held.add((write.einsum, read.einsum))
            for maker, more in sorted(self._before_one(write.einsum, write.kind)):
                why = f"one coordinate of {read.tensor} needs {self._end_of(maker)}"
                yield Edge(maker, read.einsum, read.tensor, read.kind, why, generations + more)
            return
        if self.indexed[read.einsum] and not self._is_there(read, access, write):
            reason = self._reason(read, write)
        yield Edge(write.einsum, read.einsum, read.tensor, read.kind, reason, generations)

    def _before_one(
        self, i: int, kind: Kind, seen: frozenset[int] = frozenset()
    ) -> frozenset[tuple[int, int]]:
        """Return the Einsums that must have ended before one coordinate of another can be made.

        Each with the generations that lie between. What is computed element by element can be
        made at one coordinate by itself.
        """
        iterative = {iteration.variable for iteration in self.cascade.iterations}
        alone = kind is Kind.ALIGNED and self.sweep[i] not in iterative | {None}
        if self.indexed[i] and (not alone or self._folds(i)):
            return frozenset({(i, 0)})
        found: set[tuple[int, int]] = set()
        for access in self.cascade.einsums[i].operands:
            streamed = self.sweeps[i].kind(access) is Kind.ALIGNED
            for k in self.makers.get(access.tensor, ()):
                written = next(
                    o for o in self.cascade.einsums[k].outputs if o.tensor == access.tensor
                )
                passed = self._generations(i, k, access, written)
                if passed is None or k in seen | {i} or self._disjoint(written, access):
                    continue
                before = {(k, 0)}
                if streamed or not self.indexed[k]:
                    before = {*self._before_one(k, self.sweeps[k].write_kind(written), seen | {i})}
                found |= {(maker, more + passed) for maker, more in before}
        return frozenset(found)

    def _folds(self, i: int) -> bool:
        """Tell whether an Einsum folds along the level, all of it or up to a coordinate."""
        return any(self.sweeps[i].runs(v) for r in self._einsum(i).reductions for v in r.variables)

    def _einsum(self, i: int) -> Einsum:
        return self.cascade.einsums[i]

    def _end_of(self, i: int) -> str:
        return f"all of {self._einsum(i).name}, which {self._folded(i)}"

    def _is_there(self, read: Read, access: Access, write: _Write) -> bool:
        """Tell whether a tile written out has made what a sweep reads before it is read."""
        tile = self.tiles.at[read.einsum]
        if not self.tiles:
            return False
        if self.sweep[write.einsum] is None:
            first, last = self._spans[write.einsum]
            if tile is not None and self._way_of_tile(read.einsum) is Direction.DOWN:
                return math.inf > first >= tile or self._opposed(write.einsum, Direction.UP)
            return -1 < last <= (tile or 0) or (
                tile is not None and self._opposed(write.einsum, Direction.DOWN)
            )
        own = tile_of(self.sweeps[read.einsum], access)
        return tile is not None and own is not None and write.kind is Kind.ALIGNED and own <= tile

    def _opposed(self, i: int, way: Direction) -> bool:
        """Tell whether an Einsum stands at a tile in a sweep that way: never in another's."""
        return self.tiles.at[i] is not None and self._way_of_tile(i) is way

    def _disjoint(self, write: Access, read: Access) -> bool:
        """Tell whether two accesses never meet: ``R[0]`` and ``R[i+1]``."""
        for w, r in zip(write.indices, read.indices, strict=True):
            a, b = (linear(index.expression, self.sizes) for index in (w, r))
            if a is not None and b is not None and (_above(a, b) or _above(b, a)):
                return True
        return False

    def _generations(self, reader: int, writer: int, read: Access, write: Access) -> int | None:
        """Return how many generations of another rank pass; None where a tile of ours does."""
        if reader not in self.loop or writer not in self.loop:
            return 0
        for rank, r, w in zip(self.ranks[read.tensor], read.indices, write.indices, strict=True):
            step = self._distance(w, r)
            if self.family.covers_level(rank, self.level) or not self._iterates(w):
                continue
            if step:
                _, last = self.family.covers.get(rank, (0, self.level + 1))
                return None if last <= self.level else abs(step)
        return 0

    def _reason(self, read: Read, write: _Write) -> str:
        """Return why a sweep that reads has to wait for the whole of what is written."""
        level = self.family.levels[self.level]
        name = self.family.whole if self.level == 0 else level
        whole = f"complete only after the whole of {name}"
        if (tile := self.tiles.at[write.einsum]) is not None:
            return f"{read.tensor} is made of tile {tile}: complete only after it"
        if self.sweep[write.einsum] is None:
            origin = self._origin(write.einsum)
            return origin and f"{read.tensor} is computed outside the sweep from {origin}: {whole}"
        if read.kind is Kind.BROADCAST:
            return f"{read.tensor} {self._folded(write.einsum)}: {whole}"
        if read.kind in (Kind.FINAL, Kind.UNALIGNED):
            order = "in reversed order" if read.mirrored else read.kind.value
            where = "where coordinates say" if read.gathered else order
            return f"{read.tensor} is read {where}: {whole}"
        if write.kind is not Kind.ALIGNED:
            return f"{read.tensor} is written out of order: {whole}"
        return ""

    def _origin(self, i: int) -> str:
        """Return what an Einsum outside the sweep has to wait for, if for anything of it."""
        pending, seen = [i], {i}
        while pending:
            for access in self.cascade.einsums[pending.pop()].operands:
                for k in self.makers.get(access.tensor, ()):
                    if self.tiles.at[k] is not None:
                        return f"{access.tensor}, which is made of tile {self.tiles.at[k]}"
                    if self.sweep[k] is not None:
                        return f"{access.tensor}, which {self._folded(k)}"
                    if k not in seen:
                        seen.add(k)
                        pending.append(k)
        return ""

    def _folded(self, i: int) -> str:
        einsum = self.cascade.einsums[i]
        for action in einsum.actions:
            if isinstance(action, Populate) and self.sweeps[i].runs(action.source):
                return f"is placed by {action.operator}({action.source} -> {action.target})"
        gone = [v for r in einsum.reductions for v in r.variables if self.sweeps[i].runs(v)]
        spelled = ", ".join(v.partition(MARK)[0] for v in gone)
        return f"is folded over {spelled}" if gone else "is swept"

    def _ways(self, reads: list[list[Read]], edges: list[Edge]) -> list[Direction]:
        """Return the way each Einsum's own variable has to run: by recurrences and filters."""
        recurrent = self._recurrent(edges)
        ways = []
        for i in range(len(self.sweeps)):
            kinds = {read.kind for read in reads[i] if self.sweep[i] is not None}
            if self.tiles.at[i] is not None:
                ways.append(self._way_of_tile(i))
            elif i in recurrent:
                ways.append(Direction.UP if recurrent[i] >= 0 else Direction.DOWN)
            elif Kind.PREFIX in kinds:
                ways.append(Direction.UP)
            else:
                ways.append(Direction.DOWN if Kind.SUFFIX in kinds else Direction.ANY)
        return ways

    def _recurrent(self, edges: list[Edge]) -> dict[int, int]:
        """Return the Einsums on a cycle along the level, with the sign of its step."""
        signs: dict[int, int] = {}
        for component in cycles(edges):
            step = sum(self._step(e) for e in edges if {e.producer, e.consumer} <= component)
            signs |= dict.fromkeys((i for i in component if self.sweep[i] is not None), step)
        return signs

    def _step(self, edge: Edge) -> int:
        """Return by how many coordinates of the level an edge carries a value onwards."""
        writer = next(
            o for o in self.cascade.einsums[edge.producer].outputs if o.tensor == edge.tensor
        )
        total = 0
        for access in self.cascade.einsums[edge.consumer].operands:
            if access.tensor != edge.tensor:
                continue
            at_read = self.sweeps[edge.consumer].dimensions(access)
            at_write = self.sweeps[edge.producer].dimensions(writer)
            for (_, read), (_, write) in zip(at_read, at_write, strict=True):
                total += self._distance(write, read)
        return total

    def _distance(self, write: Index, read: Index) -> int:
        """Return how far a value travels from where it is written to where it is read."""
        a, b = (linear(index.expression, self.sizes) for index in (write, read))
        if a is None or b is None or a.coefficients != b.coefficients or not a.coefficients:
            return 0
        distance = a.constant - b.constant
        return 0 if open_sizes(distance) else int(distance)

    def _iterates(self, index: Index) -> bool:
        """Tell whether an index runs over generations."""
        iterative = {iteration.variable for iteration in self.cascade.iterations}
        return not iterative.isdisjoint(variables(index))


def _above(high: Linear, low: Linear) -> bool:
    """Tell whether an index is greater than a constant one, whatever its variables."""
    gap = high.constant - low.constant
    upwards = all(step == 1 for step in high.coefficients.values())
    positive = gap > 0 if isinstance(gap, int) else bool(gap.is_positive)
    return not low.coefficients and upwards and positive
