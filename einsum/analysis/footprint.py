"""What has to be held on chip, at least, to sweep a rank no more often than a cascade needs.

At every boundary between two sweeps some fibers are needed on both sides. They are held where
that is smallest: a minimum vertex cut through the tensors between the inputs and what the later
sweeps compute. Holding a late tensor spares work, holding an early one recomputes the rest. Words
come in rank sizes, for one point of the *outer* ranks: those that every Einsum runs over (batch,
heads, queries), around which a loop can stand; a tile of points multiplies what is theirs alone.

Within a sweep, one slice of every streamed input is on chip, and what lives from step to step:
values without the rank, accumulators and one generation of every recurrence. Temporaries of one
step are left out: a bound from below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from einfuse.einsum.language.cascade import Cascade, Rank
from einfuse.einsum.language.expression import Access, Binary, variables
from einfuse.einsum.language.shape import bind, bind_symbolic

from .access_kinds import Kind
from .dependence import Dependence, Direction, Read
from .held_tensors import Use, crossings, origins
from .lineage import trace
from .live_words import Boundary, Words, choice, common, exceeds, no_words
from .operations import is_view
from .partition import finest_levels
from .placement import positions, within_generation

if TYPE_CHECKING:
    import sympy

_LARGE = {"swept": 2**20, "inner": 2**7, "other": 2**6}
"""Sizes at which two symbolic word counts are compared: a long rank, its tiles, the others."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """The least live words of a cascade at one level of a rank.

    ``sweeps`` holds the words of every sweep, what crosses its boundaries included. The string
    is the formula for one point of the outer ranks.
    """

    level: str
    outer: tuple[str, ...]
    sweeps: tuple[Words, ...]
    boundaries: tuple[Boundary, ...]

    def words(self, points: Any = 1) -> sympy.Expr:
        """Return the live words of the sweep that needs most, in rank sizes."""
        import sympy

        found = [w.total(points) for w in self.sweeps] or [sympy.Integer(0)]
        kept = [w for w in dict.fromkeys(found) if not any(exceeds(v, w) for v in found)]
        shared = common(kept)
        rest = [w - shared for w in kept]
        return shared + (rest[0] if len(rest) == 1 else sympy.Max(*rest))

    def bytes(
        self, cascade: Cascade, shape: Mapping[str, int], word_bytes: int, points: int
    ) -> int:
        """Return the live bytes for sizes of all ranks."""
        sizes = bind(cascade, shape)
        words = self.words(points)
        return int(words.subs({s: sizes[s.name] for s in words.free_symbols})) * word_bytes

    def __str__(self) -> str:
        return str(self.words())


def footprint(cascade: Cascade, rank: str, level: str | None = None) -> Footprint:
    """Return the least live words at one level of a rank, and what crosses between its sweeps.

    Args:
        cascade: what is computed.
        rank: any rank of the cascade.
        level: a level of its partition; the outermost that the rank covers by default.

    Raises:
        EinfuseError: the cascade has no such rank.

    >>> from einfuse.einsum.library.cascades import load
    >>> print(footprint(load("attention/3-pass"), "M"))
    M + Max(2*E, 2*F) + 1
    >>> [name for name, _ in footprint(load("attention/3-pass"), "M").boundaries[0].stored]
    ['QK']
    """
    return footprint_along(trace(cascade, rank, level))


def footprint_along(dependence: Dependence) -> Footprint:
    """Return the least live words of a cascade along a level whose dependences are known."""
    return _Footprint(within_generation(dependence)).run()


def outer_ranks(cascade: Cascade) -> tuple[str, ...]:
    """Return the finest ranks that every Einsum runs over, views and constants left out.

    >>> from einfuse.einsum.library.cascades import load
    >>> outer_ranks(load("attention/1-pass"))
    ('P',)
    """
    finest = finest_levels(cascade)
    working = [e for e in cascade.einsums if e.operands and not is_view(e)]
    spaces = [
        {leaf for v in einsum.variables for leaf in finest[cascade.rank_of(v)]}
        for einsum in working
    ]
    common = set.intersection(*spaces) if spaces else set()
    folded = {
        leaf
        for e in working
        for r in e.reductions
        for v in r.variables
        for leaf in finest[cascade.rank_of(v)]
    }
    leaves = dict.fromkeys(leaf for r in cascade.rank_names for leaf in finest[r])
    return tuple(leaf for leaf in leaves if leaf in common - folded)


class _Footprint:
    """What `footprint` computes once and several of its steps need."""

    def __init__(self, dependence: Dependence) -> None:
        self.dependence = dependence
        self.cascade = dependence.cascade
        self.family = dependence.partition
        self.level = dependence.level
        open_ranks = tuple(_open(r) for r in self.cascade.ranks)
        self.finest = finest_levels(self.cascade)
        self.sizes = bind_symbolic(replace(self.cascade, ranks=open_ranks))
        self.outer = [r for r in outer_ranks(self.cascade) if r not in self.family.covers]
        self.views = {i for i, e in enumerate(self.cascade.einsums) if is_view(e)}
        self.alias = self._aliases()
        self.sweep = self._sweeps()
        self.last = max((self.sweep[i] for i in dependence.sweepers), default=0)
        self.reads = [r for r in dependence.reads if r.einsum not in self.views]
        self.reference = self._reference()
        self.ranks = {t.name: t.ranks for t in self.cascade.tensors}
        self.states = self._states()
        self.makers = self._makers()
        self.reads_of = self._readers()
        self.known_swept: dict[str, bool] = {}
        self.known_words: dict[tuple[str, tuple[str, ...]], Words] = {}
        self.known_numbers: dict[Words, int] = {}

    def run(self) -> Footprint:
        boundaries = self._boundaries()
        crossing = [no_words(), *(b.words for b in boundaries), no_words()]
        within = self._within()
        sweeps = tuple(
            within[s] + max(crossing[s - 1], crossing[s], key=self._number)
            for s in range(1, self.last + 1)
        )
        name = self.family.levels[self.level]
        return Footprint(name, tuple(self.outer), sweeps, boundaries)

    def _aliases(self) -> dict[str, str]:
        """Map every view to the tensor that it is a view of."""
        alias: dict[str, str] = {}
        for i in sorted(self.views):
            einsum = self.cascade.einsums[i]
            source = einsum.operands[0].tensor
            alias[einsum.name] = alias.get(source, source)
        return alias

    def _root(self, tensor: str) -> str:
        return self.alias.get(tensor, tensor)

    def _sweeps(self) -> list[int]:
        """Return a sweep for every Einsum: the earliest, but maps beside their first consumer."""
        earliest = positions(self.dependence, self.dependence.sweepers)
        sweep = [position // 2 for position in earliest]
        out: dict[int, list[tuple[int, bool]]] = {}
        ways = self.dependence.directions
        for edge in self.dependence.edges:
            if edge.producer != edge.consumer:
                turns = {Direction.UP, Direction.DOWN} == {ways[edge.producer], ways[edge.consumer]}
                found = out.setdefault(edge.producer, [])
                found.append((edge.consumer, edge.barrier or turns))
        for i in reversed(range(len(sweep))):
            if self._is_map(i) and i in out and all(c > i for c, _ in out[i]):
                latest = min(sweep[c] - barrier for c, barrier in out[i])
                sweep[i] = max(sweep[i], latest)
        return sweep

    def _is_map(self, i: int) -> bool:
        """Tell whether an Einsum is a map over the level that may move to a later sweep."""
        einsum = self.cascade.einsums[i]
        names = {output.tensor for output in einsum.outputs}
        return (
            self.dependence.indexed[i]
            and names <= self.dependence.full
            and not names & set(self.cascade.outputs)
        )

    def _within(self) -> list[Words]:
        """Return the words that each sweep, from 0, needs beside what crosses its boundaries."""
        words = [no_words() for _ in range(self.last + 1)]
        for tensor in dict.fromkeys(self._root(t.name) for t in self.cascade.tensors):
            first, last = self._lifetime(tensor)
            if not self._swept(tensor):
                needed = dict.fromkeys(range(first, last + 1), self._words(tensor, ()))
            elif tensor in self.states:
                needed = dict.fromkeys(range(first, last + 1), self._words(tensor, self._fixed()))
            else:
                needed = self._streamed(tensor)
            for sweep, more in needed.items():
                if first <= sweep <= last:
                    words[sweep] += more
        return words

    def _streamed(self, tensor: str) -> dict[int, Words]:
        """Return the words that a tensor with the level takes in the sweeps that read it."""
        reads: dict[int, list[Read]] = {}
        for read in self.reads_of.get(tensor, ()):
            if self._sweeping(read):
                reads.setdefault(self.sweep[read.einsum], []).append(read)
        needed = {}
        for sweep, found in reads.items():
            if any(self._holds_fiber(read) for read in found):
                needed[sweep] = self._words(tensor, self._fixed()[:-1])
            elif tensor in self.cascade.inputs:
                needed[sweep] = self._words(tensor, self._fixed())
        return needed

    def _lifetime(self, tensor: str) -> tuple[int, int]:
        """Return the sweeps between which a tensor without the level is alive."""
        made = self.makers.get(tensor, [])
        used = [read.einsum for read in self.reads_of.get(tensor, ())]
        swept = [i for i in used if self.dependence.indexed[i]]
        folded = [i for i in made if self.dependence.indexed[i]]
        if not swept and not folded:
            return 1, 0  # beside the sweeps: no sweep has to hold it
        starts = [max(1, self.sweep[i]) for i in (made or swept)]
        return min(starts), max(self.sweep[i] for i in (*swept, *folded, *used))

    def _makers(self) -> dict[str, list[int]]:
        """Map every tensor to the Einsums that compute it from others."""
        found: dict[str, list[int]] = {}
        for i, einsum in enumerate(self.cascade.einsums):
            if einsum.operands:
                for name in dict.fromkeys(output.tensor for output in einsum.outputs):
                    found.setdefault(name, []).append(i)
        return found

    def _readers(self) -> dict[str, list[Read]]:
        """Map every tensor to the reads of it, by way of views too."""
        found: dict[str, list[Read]] = {}
        for read in self.reads:
            found.setdefault(self._root(read.tensor), []).append(read)
        return found

    def _sweeping(self, read: Read) -> bool:
        return self.dependence.indexed[read.einsum] and read.kind not in (
            Kind.BROADCAST,
            Kind.INIT,
            Kind.FINAL,
        )

    def _holds_fiber(self, read: Read) -> bool:
        """Tell whether a filtered read needs what has been swept: no running value stands in."""
        if read.kind not in (Kind.PREFIX, Kind.SUFFIX):
            return False
        einsum = self.cascade.einsums[read.einsum]
        kept = {v for v in einsum.output_variables if self._along(v)}
        return any(kept & set(_values(a)) for a in einsum.operands) or not any(
            self._along(v) for r in einsum.reductions for v in r.variables
        )

    def _along(self, variable: str) -> bool:
        return self.family.covers_level(self.cascade.rank_of(variable), self.level)

    def _swept(self, tensor: str) -> bool:
        """Tell whether a tensor has the level."""
        if tensor not in self.known_swept:
            self.known_swept[tensor] = any(
                self.family.covers_level(r, self.level) for r in self.ranks[tensor]
            )
        return self.known_swept[tensor]

    def _states(self) -> set[str]:
        """Return the tensors that are carried from coordinate to coordinate of the level."""
        iterating = {iteration.variable for iteration in self.cascade.iterations}
        return {
            o.tensor
            for e in self.cascade.loop
            for o in e.outputs
            for index in o.indices
            if isinstance(index.expression, Binary)
            for v in variables(index.expression)
            if v in iterating and self.cascade.rank_of(v) in self.family.covers
        }

    def _fixed(self) -> tuple[str, ...]:
        """Return the levels at one coordinate in a step of the sweep, the swept one last."""
        return self.family.levels[: self.level + 1]

    def _words(self, tensor: str, fixed: tuple[str, ...]) -> Words:
        """Return the words of a tensor, with some levels at one coordinate."""
        key = tensor, fixed
        if key not in self.known_words:
            self.known_words[key] = self._counted_words(tensor, fixed)
        return self.known_words[key]

    def _counted_words(self, tensor: str, fixed: tuple[str, ...]) -> Words:
        import sympy

        leaves = [leaf for r in self.ranks[tensor] for leaf in self.finest[r]]
        swept = list(leaves)
        for level in range(len(fixed) or self.level):  # at one coordinate of each of these
            along = (leaf for leaf in swept if self.family.covers_level(leaf, level))
            if (found := next(along, None)) is not None:
                swept.remove(found)
        size = sympy.Mul(*(self.sizes[leaf] for leaf in swept if leaf not in self.outer))
        own = all(leaf in leaves for leaf in self.outer)
        zero = sympy.Integer(0)
        return Words(size, zero) if own else Words(zero, size)

    def _fiber(self, tensor: str) -> Words:
        return self._words(tensor, self._fixed()[:-1])

    def _boundaries(self) -> tuple[Boundary, ...]:
        """Return what crosses from each sweep into the later ones.

        Summaries count as early: to recompute one would sweep the full fiber once more.
        """
        made = {
            self._root(o.tensor): self.sweep[i]
            for i, e in enumerate(self.cascade.einsums)
            if i not in self.views
            for o in e.outputs
        }
        full = {self._root(t) for t in self.dependence.full}
        inputs = frozenset(self.cascade.inputs)
        uses = [
            Use(
                self._root(read.tensor),
                self.sweep[read.einsum],
                tuple(
                    self._root(o.tensor)
                    for o in self.cascade.einsums[read.einsum].outputs
                    if self._swept(o.tensor)
                ),
                read.kind is not Kind.UNALIGNED,
            )
            for read in filter(self._sweeping, self.reads)
            if self._swept(self._root(read.tensor))
        ]
        early = frozenset(u.tensor for u in uses if u.tensor in inputs or u.tensor not in full)
        found = crossings(uses, made, early, lambda t: self._number(self._fiber(t)), self.last)
        origin = origins(uses, inputs)
        return tuple(
            self._boundary(after, sorted(stored), origin)
            for after, stored in enumerate(found, start=1)
        )

    def _boundary(
        self, after: int, stored: list[str], origin: Mapping[str, frozenset[str]]
    ) -> Boundary:
        words = sum((self._fiber(t) for t in stored), no_words())
        upstream = {name for t in stored for name in origin.get(t, ())}
        reread = tuple(name for name in self.cascade.inputs if name in upstream)
        again = sum((self._fiber(t) for t in reread), no_words())
        return Boundary(
            after,
            tuple((t, self._fiber(t)) for t in stored),
            words,
            reread,
            again,
            choice(stored, words, reread, again),
        )

    def _number(self, words: Words) -> int:
        if words not in self.known_numbers:
            total = words.total()
            sizes = {s: self.reference[s.name] for s in total.free_symbols}
            self.known_numbers[words] = int(total.subs(sizes))
        return self.known_numbers[words]

    def _reference(self) -> dict[str, int]:
        sizes = {s.name: _LARGE["other"] for e in self.sizes.values() for s in e.free_symbols}
        for k, level in enumerate(self.family.levels):
            kind = "swept" if k <= self.level else "inner"
            sizes |= {s.name: _LARGE[kind] for s in self.sizes[level].free_symbols}
        return sizes


def _values(access: Access) -> tuple[str, ...]:
    """Return the variables at which an access stands, its filters left out."""
    return tuple(v for index in access.indices for v in variables(index.expression))


def _open(rank: Rank) -> Rank:
    return replace(rank, size=None) if isinstance(rank.size, int) else rank
