"""A lower bound on DRAM traffic that follows from the passes of a cascade and a buffer's size.

Every input is read once and every output written once. Beyond that, at the end of pass b of a
root, for every point of the outer ranks, all coordinates of the root have been used and pass b+1
uses them again. Each has to be on chip at that moment, or move once more: a re-read of an input
(which serves all points), a read of a spilled intermediate, which also costs one write. The
cheapest way is a minimum vertex cut with the price of a tensor the lesser of holding and moving
it; a price on buffer space (a Lagrange multiplier) turns the capacity into part of the price, so
that every price gives a valid bound and the best of them the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.expression import Access, Binary, Coordinate, Index, walk
from einfuse.einsum.language.shape import bind

from .access_kinds import Kind
from .coordinates import same_coordinates
from .dependence import Dependence
from .footprint import outer_ranks
from .lineage import trace
from .minimum_cut import minimum_cut
from .partition import finest_levels
from .placement import critical_path, positions


def traffic_bound_bytes(
    cascade: Cascade,
    shape: Mapping[str, int],
    buffer_bytes: npt.ArrayLike,
    word_bytes: int = 2,
) -> npt.NDArray[np.float64]:
    """Return the fewest bytes that any mapping moves to and from DRAM, for each buffer size.

    The bound never grows with the buffer, and reaches the compulsory traffic once the buffer
    holds what crosses the passes. Where filters or gathers skip points it counts only what is
    certain; every word is taken to be dense, and no reduction to end early.

    Args:
        cascade: what is computed.
        shape: sizes of the ranks that the text leaves open.
        buffer_bytes: one size or an array of sizes of the on-chip buffer.
        word_bytes: bytes of a word, the same for every tensor.

    Raises:
        EinfuseError: a size is missing, or a buffer or word has a negative size.

    >>> from einfuse.einsum.library.cascades import load
    >>> shape = {"E": 64, "F": 64, "P": 256, "M": 4096}
    >>> traffic_bound_bytes(load("attention/3-pass"), shape, [0, 2 * 4096])
    array([2162688., 1114112.])
    """
    buffer = np.asarray(buffer_bytes, dtype=np.float64)
    if not (np.all(buffer >= 0) and word_bytes > 0):
        raise EinfuseError(
            "expected buffers of at least 0 bytes and words of at least 1, "
            f"found {buffer.min()} and {word_bytes}"
        )
    sizes = bind(cascade, shape)
    same = same_coordinates(cascade).cascade
    finest = {rank: set(levels) for rank, levels in finest_levels(same).items()}
    wholes = [r for r, own in finest.items() if not any(own < other for other in finest.values())]
    extra = np.zeros_like(buffer)
    for whole in wholes:
        dependence = trace(same, whole)
        for root in dependence.roots:
            prices = _PassPrices(dependence, root, sizes).extra_words(buffer / word_bytes)
            extra = np.maximum(extra, prices)
    return np.asarray((compulsory_words(cascade, sizes) + extra) * word_bytes)


def compulsory_words(cascade: Cascade, sizes: Mapping[str, int]) -> int:
    """Return the words of the inputs that are certainly read and the outputs written.

    An input that is only gathered, filtered or read at fixed coordinates counts as nothing.
    """
    read = [name for name in cascade.inputs if _is_read_whole(cascade, name)]
    written = [
        name
        for name in cascade.outputs
        if not any(
            _is_culled(e) or any(map(_is_gathered, e.outputs)) for e in cascade.producers(name)
        )
    ]
    return sum(_words(cascade, name, sizes) for name in (*read, *written))


@dataclass(frozen=True, slots=True)
class _Cut:
    """A cut at one price of buffer space: words that are held, summed over points, and moved."""

    held: float
    moved: float

    def price(self, per_word: float) -> float:
        return self.moved + per_word * self.held


class _PassPrices:
    """What the passes of one root cost beyond its first."""

    def __init__(self, dependence: Dependence, root: str, sizes: Mapping[str, int]) -> None:
        self.dependence = dependence
        self.cascade = dependence.cascade
        self.root = root
        self.sizes = sizes
        self.finest = finest_levels(self.cascade)
        self.outer = [
            rank for rank in outer_ranks(self.cascade) if rank not in dependence.partition.covers
        ]
        self.points = math.prod(sizes[rank] for rank in self.outer)
        self.lineage = dependence.lineage(root)
        self.readers = dependence.readers(root)
        self.positions = positions(dependence, self.readers)

    def extra_words(self, buffer_words: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the words that move beyond the compulsory ones.

        Reads of different boundaries are distinct, but one write may serve several: it counts
        at the boundary where it costs most.
        """
        none = np.zeros_like(buffer_words)
        if not self._is_dense():
            return none
        path = critical_path(self.dependence, self.readers)
        steps = {e.producer for e in path} | {e.consumer for e in path}
        passes = range(2, max((self.positions[i] for i in self.readers), default=0) // 2 + 1)
        reads, writes = none, none
        for number in passes:
            late = {i for i in steps & self.readers if self.positions[i] == 2 * number}
            plain = self._boundary(late, number, buffer_words, spill=1)
            reads = reads + plain
            writes = np.maximum(writes, self._boundary(late, number, buffer_words, spill=2) - plain)
        return reads + writes

    def _is_dense(self) -> bool:
        """Tell whether every coordinate is certain to be read: no filter, no gather."""
        reading = [self.cascade.einsums[i] for i in self.readers]
        return _is_read_whole(self.cascade, self.root) and not any(
            _is_culled(e) or any(map(_is_gathered, (*e.outputs, *e.operands))) for e in reading
        )

    def _boundary(
        self, late: set[int], number: int, buffer_words: npt.NDArray[np.float64], spill: int
    ) -> npt.NDArray[np.float64]:
        """Return the words that move since pass ``number`` reads again what came before."""
        arcs, needed = self._network(late)
        known = {
            tensor
            for tensor in self.lineage
            if tensor == self.root or self._complete(tensor) <= 2 * (number - 1)
        }
        hold = {t: float(self._hold(t)) for t in known}
        move = {t: float(self._move(t, spill)) for t in known}

        def cut(per_word: float) -> _Cut:
            capacity = {t: min(per_word * hold[t], move[t]) for t in known}
            chosen = minimum_cut(arcs, {self.root}, needed, capacity)
            held = {t for t in chosen if per_word * hold[t] < move[t]}
            return _Cut(sum(hold[t] for t in held), sum(move[t] for t in chosen - held))

        highest = max(move[t] / hold[t] for t in known)
        prices = _breakpoints(cut, 0.0, highest, cut(0.0), cut(highest))
        bounds = [cut(p).price(p) - p * self.points * buffer_words for p in prices]
        return np.asarray(np.maximum(np.max(bounds, axis=0), 0.0))

    def _network(self, late: set[int]) -> tuple[set[tuple[str, str]], set[str]]:
        """Return the element-wise arcs within the lineage, and what the late Einsums read."""
        arcs: set[tuple[str, str]] = set()
        needed: set[str] = set()
        sweeping = {Kind.ALIGNED, Kind.PREFIX, Kind.SUFFIX, Kind.UNALIGNED}
        for read in self.dependence.reads:
            if read.tensor not in self.lineage or read.kind not in sweeping:
                continue
            if read.einsum in late:
                needed.add(read.tensor)
            if self.dependence.indexed[read.einsum]:
                outputs = self.cascade.einsums[read.einsum].outputs
                arcs |= {(read.tensor, o.tensor) for o in outputs if o.tensor in self.lineage}
        return arcs, needed

    def _complete(self, tensor: str) -> int:
        """Return the position at which a tensor of the lineage can first be there."""
        einsums = self.cascade.einsums
        return max(
            self.positions[i]
            for i, e in enumerate(einsums)
            if any(o.tensor == tensor for o in e.outputs)
        )

    def _hold(self, tensor: str) -> int:
        """Return the words held over all points, each of which holds all of a shared tensor."""
        own = {level for rank in self.cascade.tensor(tensor).ranks for level in self.finest[rank]}
        missing = math.prod(self.sizes[rank] for rank in self.outer if rank not in own)
        return missing * _words(self.cascade, tensor, self.sizes)

    def _move(self, tensor: str, spill: int) -> int:
        """Return the words moved: an input or output is read again, others written as well."""
        given = tensor in self.cascade.inputs or tensor in self.cascade.outputs
        return (1 if given else spill) * _words(self.cascade, tensor, self.sizes)


def _breakpoints(
    cut: Callable[[float], _Cut], low: float, high: float, at_low: _Cut, at_high: _Cut
) -> list[float]:
    """Return the prices at which the cheapest cut changes (Eisner and Severance, 1976)."""
    if at_low == at_high or at_low.held <= at_high.held:
        return [low, high]
    middle = (at_high.moved - at_low.moved) / (at_low.held - at_high.held)
    if not low < middle < high:
        return [low, high]
    between = cut(middle)
    if between.price(middle) >= at_low.price(middle) * (1 - 1e-12):
        return [low, middle, high]
    below = _breakpoints(cut, low, middle, at_low, between)
    return below + _breakpoints(cut, middle, high, between, at_high)[1:]


def _is_read_whole(cascade: Cascade, name: str) -> bool:
    """Tell whether some Einsum certainly reads every word of an input."""
    return any(
        access.tensor == name and not _is_gathered(access) and _spans(cascade, access)
        for einsum in cascade.einsums
        if not _is_culled(einsum)
        for access in einsum.operands
    )


def _spans(cascade: Cascade, access: Access) -> bool:
    """Tell whether an access runs over all of its tensor: each index over all of its rank."""
    finest = finest_levels(cascade)
    seen: set[str] = set()
    for rank, index in zip(cascade.tensor(access.tensor).ranks, access.indices, strict=True):
        nodes = list(walk(index.expression))
        found = {node.variable for node in nodes if isinstance(node, Coordinate)}
        spanned = {level for v in found for level in finest[cascade.rank_of(v)]}
        rounded = any(isinstance(node, Binary) and node.operator in "/%" for node in nodes)
        if rounded or found & seen or not spanned >= set(finest[rank]):
            return False
        seen |= found
    return True


def _is_culled(einsum: Einsum) -> bool:
    """Tell whether a filter culls points of an Einsum."""
    return any(
        isinstance(node, Index) and node.condition
        for tree in (*einsum.outputs, einsum.expression)
        for node in walk(tree)
    )


def _is_gathered(access: Access) -> bool:
    """Tell whether a tensor of coordinates says where an access stands."""
    return any(isinstance(node, Access) for index in access.indices for node in walk(index))


def _words(cascade: Cascade, tensor: str, sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[rank] for rank in cascade.tensor(tensor).ranks)
