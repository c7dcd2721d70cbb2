"""Blocks: Einsums alone or under loops that they share, and where their tensors lie: `Blocks`.

What one Einsum makes for another lies in the outermost memory, or whole at the first level inside
it from the block that makes it to the last that reads it, or, within a block, there in tiles
beneath the shared loops. What comes from outside may lie there whole too, from the first block that
reads it to the last; or, as what goes outside, beneath some of the loops that a block shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations, product
from math import prod

import numpy as np

from einfuse.mapper.space.tiling import tile_choices

from .einsum import Floats, Loops
from .rows import Row
from .space import ExplicitSpace


@dataclass(frozen=True, slots=True)
class Block:
    """Einsums under loops that they share.

    Attributes:
        loops: rank and tile of each shared loop, outer to inner.
        tiled: what lies in tiles at the first level, beneath the loops.
        standing: what lies there beneath some of the loops, and how many, though it is not handed
            on: beneath the others it would come again.
        rows: how each Einsum runs.
    """

    einsums: tuple[str, ...]
    loops: Loops
    tiled: tuple[str, ...]
    standing: tuple[tuple[str, int], ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Edge:
    """A block that may come next, without its rows.

    Attributes:
        first: its first Einsum's number.
        last: the number after its last Einsum's.
        near: tensors at the first level as the Einsums see them.
        after: those that stay there when it is done.
        extra: for each Einsum the columns of what comes to the first level with it, and goes.
    """

    first: int
    last: int
    loops: Loops
    near: frozenset[str]
    tiled: frozenset[str]
    standing: tuple[tuple[str, int], ...]
    after: frozenset[str]
    extra: tuple[Floats, ...]


class Blocks:
    """The blocks of a space; without `fuse` and `split` any Einsums that may share a loop."""

    def __init__(self, space: ExplicitSpace) -> None:
        self.space, self.facts, self.names = space, space.facts, space.names
        self.legality, self.given = space.space.legality, space.space.constraints
        cascade = self.facts.cascade
        place = {name: n for n, name in enumerate(self.names)}
        self.maker = {
            o.tensor: place[e.name] for e in self.facts.einsums.values() for o in e.outputs
        }
        self.readers: dict[str, list[int]] = {}
        for einsum in self.facts.einsums.values():
            for operand in einsum.operands:
                self.readers.setdefault(operand.tensor, []).append(place[einsum.name])
        self._users = {
            tensor: [*([self.maker[tensor]] if tensor in self.maker else []), *readers]
            for tensor, readers in {**dict.fromkeys(self.maker, ()), **self.readers}.items()
        }
        self._indexed = {
            (used.tensor, n): used.ranks
            for n, einsum in enumerate(self.facts.einsums.values())
            for used in (*einsum.outputs, *einsum.operands)
        }
        outputs = {self.facts.root(name) for name in cascade.outputs}
        handed = {t for t in self.maker if t in self.readers and t not in outputs}
        exchange = self.given.exchange
        may = exchange is None or space.first_level in exchange
        self.nothing = np.zeros(len(space.objective.columns))
        self._moved: dict[tuple[str, Loops], Floats] = {}
        self.near = {t for t in handed if may and self.may_lie_near(t)}
        self.often = {
            t
            for t, readers in self.readers.items()
            if t not in self.maker and len(readers) > 1 and self.may_lie_near(t)
        }

    def may_lie_near(self, tensor: str) -> bool:
        """Whether every Einsum that touches a tensor may have it at the first level.

        From outside, only if all index it along the same ranks.
        """
        level = self.space.first_level
        if level in self.space.architecture.instanced:
            return False
        users = self.users(tensor)
        alike = tensor in self.maker or len(set(self.indexed(tensor, users))) == 1
        return alike and all(self.space.holds(level, self.names[n], tensor) for n in users)

    def users(self, tensor: str) -> list[int]:
        """The Einsums that touch a tensor, its maker first."""
        return self._users[tensor]

    def indexed(self, tensor: str, einsums: Sequence[int]) -> list[frozenset[str]]:
        """The ranks along which each of some Einsums indexes a tensor."""
        return [self._indexed[tensor, n] for n in einsums]

    def words(self, tensor: str, tiles: Mapping[str, int] | None = None) -> float:
        """The words of a tensor as its maker, or its first reader, indexes it."""
        return self._words(self.indexed(tensor, self.users(tensor))[0], tiles)

    def room(self, tensor: str, tiles: Mapping[str, int] | None = None) -> float:
        """The words that it takes: the most that one of its Einsums indexes."""
        every = self.indexed(tensor, self.users(tensor))
        return max(self._words(ranks, tiles) for ranks in every)

    def _words(self, ranks: frozenset[str], tiles: Mapping[str, int] | None) -> float:
        known = {} if tiles is None else tiles
        return float(prod(known.get(rank, self.space.sizes[rank]) for rank in ranks))

    def edges(self, first: int, residents: frozenset[str]) -> Iterator[Edge]:
        """Yield the blocks that may come next."""
        for last in range(first + 1, len(self.names) + 1):
            if not self.allowed(self.names[first:last]):
                continue
            inside = range(first, last)
            made = [t for t in self.near if self.maker[t] in inside]
            here = [t for t in made if max(self.readers[t]) < last]
            onward = [t for t in made if max(self.readers[t]) >= last]
            starting = [
                t
                for t in self.often
                if min(self.readers[t]) in inside and max(self.readers[t]) >= last
            ]
            for loops in self.loops(first, last):
                within = sorted(t for t in here if self.depends(t, loops)) if loops else []
                for tiled in subsets(within):
                    if not self.joined(first, last, tiled):
                        continue
                    for standing, kept, begun in product(
                        self.standing(first, last, loops, residents),
                        subsets(sorted(onward)),
                        subsets(sorted(starting)),
                    ):
                        there = {t for t, _ in standing}
                        if there & {*begun}:
                            continue
                        held = {*residents, *kept, *begun}
                        yield Edge(
                            first,
                            last,
                            loops,
                            frozenset({*residents, *tiled, *there, *kept, *begun}),
                            frozenset(tiled),
                            standing,
                            frozenset(t for t in held if max(self.readers[t]) >= last),
                            self.extra(first, last, loops, standing, begun),
                        )

    def alone(self, first: int, residents: frozenset[str]) -> Edge:
        """The block of one Einsum that hands its own on through the outermost memory."""
        after = frozenset(t for t in residents if max(self.readers[t]) > first)
        extra = self.extra(first, first + 1, (), (), ())
        return Edge(first, first + 1, (), residents, frozenset(), (), after, extra)

    def allowed(self, einsums: tuple[str, ...]) -> bool:
        """Whether the constraints let Einsums stand in one block, and no others with them."""
        own = set(einsums)
        if any(set(fused) & own and not set(fused) <= own for fused in self.given.fuse):
            return False
        return not any({x, y} <= own for x, y in self.given.split)

    def joined(self, first: int, last: int, tiled: tuple[str, ...]) -> bool:
        """Whether tiles pass over every place between two Einsums: else two blocks do as well.

        Those that have to be fused may stand in a block anyhow.
        """
        bound = [fused for fused in self.given.fuse if len(fused) > 1]
        return all(
            any(self.maker[t] < n <= max(self.readers[t]) for t in tiled)
            or any({*self.names[first:n]} & {*f} and {*self.names[n:last]} & {*f} for f in bound)
            for n in range(first + 1, last)
        )

    def depends(self, tensor: str, loops: Loops) -> bool:
        """Whether everyone indexes a tensor along all shared loops."""
        used = self.indexed(tensor, self.users(tensor))
        return all(rank in ranks for rank, _ in loops for ranks in used)

    def standing(
        self, first: int, last: int, loops: Loops, residents: frozenset[str]
    ) -> Iterator[tuple[tuple[str, int], ...]]:
        """Yield what may stand right above a shared loop that it does not depend on, and where."""
        places: dict[str, list[int]] = {}
        for n in range(first, last):
            einsum = self.facts.einsums[self.names[n]]
            for used in (*einsum.operands, *einsum.outputs):
                tensor, made = used.tensor, used in einsum.outputs
                outside = tensor not in self.readers if made else self.maker.get(tensor, -1) < first
                own = [m for m in self.users(tensor) if first <= m < last]
                alike = len(set(self.indexed(tensor, own))) == 1
                if outside and alike and tensor not in residents and self.may_lie_near(tensor):
                    places[tensor] = [
                        depth for depth, (rank, _) in enumerate(loops) if rank not in used.ranks
                    ]
        names = list(places)
        for chosen in product(*([None, *places[t]] for t in names)):
            yield tuple((t, d) for t, d in zip(names, chosen, strict=True) if d is not None)

    def extra(
        self,
        first: int,
        last: int,
        loops: Loops,
        standing: tuple[tuple[str, int], ...],
        begun: tuple[str, ...],
    ) -> tuple[Floats, ...]:
        """What comes to the first level, and goes from there, for the Einsum that it is charged to.

        That is the one that makes it, or the first to read it.
        """
        found = [self.nothing] * (last - first)
        depths = dict(standing)
        for tensor in (*depths, *begun):
            users = [n for n in self.users(tensor) if first <= n < last]
            moving = self.moving(tensor, loops[: depths.get(tensor, 0)])
            found[users[0] - first] = found[users[0] - first] + moving
        return tuple(found)

    def moving(self, tensor: str, above: Loops) -> Floats:
        """The columns of a tensor's way between the outermost memory and a home beneath loops."""
        if (tensor, above) not in self._moved:
            self._moved[tensor, above] = self._move(tensor, above)
        return self._moved[tensor, above]

    def _move(self, tensor: str, above: Loops) -> Floats:
        whole = self.words(tensor)
        moved = self.words(tensor, dict(above))
        for rank, tile in above:
            moved *= self.space.sizes[rank] // tile
        (outer_read, outer_write), (read, write) = self.space.prices(-1), self.space.prices(0)
        if tensor not in self.maker or tensor in self.readers:
            return np.asarray(moved * (outer_read + write))
        drain = read if self.given.drains == "read" else 0.0
        return np.asarray(moved * (outer_write + drain) + (moved - whole) * (outer_read + write))

    def loops(self, first: int, last: int) -> Iterator[Loops]:
        """Yield the shared loops of a block: none of one Einsum, some of several.

        Those that all tensors have come first, the others in any order.
        """
        own = self.names[first:last]
        if len(own) == 1:
            yield ()
            return
        if self.legality.torn(own):
            return
        sizes = self.space.sizes
        ranks = [r for r in self.legality.shared(own) if sizes[r] > 1]
        most = len(ranks) if self.given.fused_loops is None else self.given.fused_loops
        used = [
            u.ranks
            for name in own
            for e in (self.facts.einsums[name],)
            for u in (*e.operands, *e.outputs)
        ]
        for number in range(1, min(most, len(ranks)) + 1):
            for chosen in combinations(ranks, number):
                common = [r for r in chosen if all(r in known for known in used)]
                tiles = {
                    r: [t for t in tile_choices(sizes[r], "divisors") if t < sizes[r]]
                    for r in chosen
                }
                for others in permutations([r for r in chosen if r not in common]):
                    order = (*common, *others)
                    for some in product(*(tiles[r] for r in order)):
                        yield tuple(zip(order, some, strict=True))


def subsets(entries: list[str]) -> list[tuple[str, ...]]:
    """All subsets, the small ones first.

    >>> subsets(["a", "b"])
    [(), ('a',), ('b',), ('a', 'b')]
    """
    return [some for n in range(len(entries) + 1) for some in combinations(entries, n)]
