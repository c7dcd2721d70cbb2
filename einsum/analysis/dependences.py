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

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property

from einfuse.einsum.language.affine import Linear, linear
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum, Populate
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.expression import Access, Index, variables
from einfuse.einsum.language.shape import bind_symbolic

from .access_kinds import Kind, Sweep, open_sizes
from .operations import is_view
from .partition import Partition, partition


class Direction(Enum):
    """Which way an Einsum has to sweep."""

    ANY = "either way"
    UP = "upwards"
    DOWN = "downwards"


@dataclass(frozen=True, slots=True)
class Read:
    """An Einsum (by its position in the text) reads a tensor.

    ``gathered`` tells that a tensor of coordinates says where; ``mirrored`` that the order is
    reversed.
    """

    einsum: int
    tensor: str
    kind: Kind
    gathered: bool = False
    mirrored: bool = False


@dataclass(frozen=True, slots=True)
class Edge:
    """``consumer`` reads what ``producer`` writes, ``generations`` later.

    ``reason`` says in words why it is a barrier; it is empty where it is none.
    """

    producer: int
    consumer: int
    tensor: str
    kind: Kind
    reason: str = ""
    generations: int = 0

    @property
    def barrier(self) -> bool:
        """Whether the consumer waits for the producer's whole fiber."""
        return bool(self.reason)


@dataclass(frozen=True)
class Dependence:
    """The dependences of a cascade along one level of a rank; see `trace`."""

    cascade: Cascade
    partition: Partition
    level: int
    indexed: tuple[bool, ...]
    reads: tuple[Read, ...]
    edges: tuple[Edge, ...]
    directions: tuple[Direction, ...]

    @property
    def einsums(self) -> tuple[Einsum, ...]:
        """The Einsums of the cascade, in the order of the text."""
        return self.cascade.einsums

    @cached_property
    def full(self) -> frozenset[str]:
        """The tensors that have the level and every finer one."""
        levels = range(self.level, len(self.partition.levels))
        return frozenset(
            tensor.name
            for tensor in self.cascade.tensors
            if all(any(self.partition.covers_level(r, k) for r in tensor.ranks) for k in levels)
        )

    @property
    def sweepers(self) -> frozenset[int]:
        """The Einsums that are indexed and no mere names for what others sweep."""
        indexed = frozenset(i for i, indexed in enumerate(self.indexed) if indexed)
        return indexed - self.views

    @cached_property
    def views(self) -> frozenset[int]:
        """The Einsums that only rename, for others to read: they sweep nothing themselves."""
        read = {read.tensor for read in self.reads} - set(self.cascade.outputs)
        return frozenset(
            i
            for i, e in enumerate(self.einsums)
            if e.name in read and is_view(e) and len(e.operands) == 1
        )

    @property
    def roots(self) -> tuple[str, ...]:
        """The inputs that are full."""
        return tuple(name for name in self.cascade.inputs if name in self.full)

    def lineage(self, root: str) -> frozenset[str]:
        """Return the root and every full tensor computed from it element by element."""
        found = {root}
        pending = [root]
        while pending:
            tensor = pending.pop()
            for read in self._sweeping.get(tensor, ()):
                for output in self.einsums[read.einsum].outputs:
                    if output.tensor in self.full and output.tensor not in found:
                        found.add(output.tensor)
                        pending.append(output.tensor)
        return frozenset(found)

    def readers(self, root: str) -> frozenset[int]:
        """Return the Einsums whose sweep reads the fiber of a root, itself or its lineage."""
        found = {read.einsum for t in self.lineage(root) for read in self._sweeping.get(t, ())}
        return self.sweepers & found

    def barrier_between(self, x: str, y: str) -> Edge | None:
        """Return a barrier on a path between two Einsums, in either direction; None if none is.

        Einsums are named by the tensor they write. Two Einsums may share a loop over the level
        only where this is None.

        Raises:
            EinfuseError: the cascade has no such Einsum.
        """
        sources = self._named(x)
        targets = self._named(y)
        return self._barrier_on_path(sources, targets) or self._barrier_on_path(targets, sources)

    def can_share(self, x: str, y: str) -> bool:
        """Tell whether two Einsums may share a loop over the level: no barrier lies between."""
        ways = {self.directions[i] for i in self._named(x) | self._named(y)} - {Direction.ANY}
        return len(ways) < 2 and self.barrier_between(x, y) is None

    @cached_property
    def _sweeping(self) -> dict[str, list[Read]]:
        passing = {Kind.ALIGNED, Kind.PREFIX, Kind.SUFFIX, Kind.UNALIGNED}
        found: dict[str, list[Read]] = {}
        for read in self.reads:
            if self.indexed[read.einsum] and read.kind in passing:
                found.setdefault(read.tensor, []).append(read)
        return found

    @cached_property
    def _successors(self) -> dict[int, list[Edge]]:
        found: dict[int, list[Edge]] = {}
        for edge in self.edges:
            if not edge.generations:
                found.setdefault(edge.producer, []).append(edge)
        return found

    def _named(self, name: str) -> frozenset[int]:
        found = frozenset(
            i for i, e in enumerate(self.einsums) if any(o.tensor == name for o in e.outputs)
        )
        if not found:
            known = ", ".join(dict.fromkeys(e.name for e in self.einsums))
            raise EinfuseError(
                f"{self.cascade.name}: expected an Einsum, one of {known}; found {name!r}"
            )
        return found

    def _barrier_on_path(self, sources: frozenset[int], targets: frozenset[int]) -> Edge | None:
        """Search states (Einsum, the first barrier met) and stop at a target behind one."""
        first: dict[tuple[int, bool], Edge | None] = {(s, False): None for s in sources}
        pending = deque(first)
        while pending:
            state = pending.popleft()
            met = first[state]
            if met and state[0] in targets:
                return met
            for edge in self._successors.get(state[0], ()):
                behind = met or (edge if edge.barrier else None)
                if (step := (edge.consumer, behind is not None)) not in first:
                    first[step] = behind
                    pending.append(step)
        return None


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
    family = partition(cascade, rank)
    at = family.levels.index(level) if level else family.covers[rank][0]
    return _Tracer(cascade, family, at).run()


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

    def run(self) -> Dependence:
        reads = [
            (
                Read(
                    i,
                    access.tensor,
                    sweep.kind(access),
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
        edges = [self._turned(edge, ways) for edge in edges]
        mirrored = self._mirrored(by_einsum)
        directions = [_OPPOSITE[w] if i in mirrored else w for i, w in enumerate(ways)]
        return Dependence(
            self.cascade,
            self.family,
            self.level,
            tuple(variable is not None for variable in self.sweep),
            tuple(dict.fromkeys(plain_reads)),
            tuple(dict.fromkeys(edges)),
            tuple(directions),
        )

    def _edge(self, read: Read, access: Access, write: _Write) -> Iterator[Edge]:
        if self._disjoint(write.access, access):
            return
        generations = self._generations(read.einsum, write.einsum, access, write.access)
        if generations is None:
            return
        reason = ""
        if self.sweep[read.einsum] is not None:
            reason = self._reason(read, write)
        yield Edge(write.einsum, read.einsum, read.tensor, read.kind, reason, generations)

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
        producers: dict[str, list[int]] = {}
        for k, einsum in enumerate(self.cascade.einsums):
            for output in einsum.outputs:
                producers.setdefault(output.tensor, []).append(k)
        pending, seen = [i], {i}
        while pending:
            for access in self.cascade.einsums[pending.pop()].operands:
                for k in producers.get(access.tensor, ()):
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
        return f"is folded over {', '.join(gone)}" if gone else "is swept"

    def _ways(self, reads: list[list[Read]], edges: list[Edge]) -> list[Direction]:
        """Return the way each Einsum's own variable has to run: by recurrences and filters."""
        recurrent = self._recurrent(edges)
        ways = []
        for i in range(len(self.sweeps)):
            kinds = {read.kind for read in reads[i] if self.sweep[i] is not None}
            if i in recurrent:
                ways.append(Direction.UP if recurrent[i] >= 0 else Direction.DOWN)
            elif Kind.PREFIX in kinds:
                ways.append(Direction.UP)
            else:
                ways.append(Direction.DOWN if Kind.SUFFIX in kinds else Direction.ANY)
        return ways

    def _recurrent(self, edges: list[Edge]) -> dict[int, int]:
        """Return the Einsums on a cycle along the level, with the sign of its step."""
        import networkx as nx

        graph = nx.DiGraph(
            (e.producer, e.consumer) for e in edges if not e.barrier and not e.generations
        )
        signs: dict[int, int] = {}
        for component in nx.strongly_connected_components(graph):
            if len(component) == 1 and not graph.has_edge(*(2 * tuple(component))):
                continue
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

    def _mirrored(self, reads: list[list[Read]]) -> set[int]:
        """Return the Einsums that run against the order of the inputs they come from."""
        mirrored: set[int] = set()
        produced = {o.tensor: i for i, e in enumerate(self.cascade.einsums) for o in e.outputs}
        for i in range(len(self.cascade.einsums)):
            frames = {
                read.mirrored != (produced.get(read.tensor, -1) in mirrored)
                for read in reads[i]
                if (read.mirrored or read.kind in (Kind.ALIGNED, Kind.PREFIX, Kind.SUFFIX))
                and produced.get(read.tensor, -1) < i
            }
            if frames == {True}:
                mirrored.add(i)
        return mirrored

    def _turned(self, edge: Edge, ways: list[Direction]) -> Edge:
        """Swap first and last where the producer sweeps downwards; refuse a filter its way."""
        if self.sweep[edge.consumer] is None or (edge.reason and edge.kind is not Kind.FINAL):
            return edge
        against = {Kind.PREFIX: Direction.DOWN, Kind.SUFFIX: Direction.UP}.get(edge.kind)
        if against and ways[edge.consumer] is against:
            reason = f"{edge.tensor} is read {edge.kind.value} by a sweep {against.value}"
            return replace(edge, reason=reason)
        if ways[edge.producer] is not Direction.DOWN:
            return edge
        if edge.kind is Kind.FINAL:
            return replace(edge, reason="")
        if edge.kind is Kind.INIT and not edge.reason:
            return replace(
                edge, reason=f"{edge.tensor} is swept downwards and read {edge.kind.value}"
            )
        return edge


def _above(high: Linear, low: Linear) -> bool:
    """Tell whether an index is greater than a constant one, whatever its variables."""
    gap = high.constant - low.constant
    upwards = all(step == 1 for step in high.coefficients.values())
    positive = gap > 0 if isinstance(gap, int) else bool(gap.is_positive)
    return not low.coefficients and upwards and positive


_OPPOSITE = {
    Direction.ANY: Direction.ANY,
    Direction.UP: Direction.DOWN,
    Direction.DOWN: Direction.UP,
}
