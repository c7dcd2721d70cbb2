"""One Einsum under ``explicit`` retention: where its tensors live, in which tiles, at what cost.

Every loop in time above a home reloads it, so what a home moves depends on the tiles at that home
alone: words = size of the tensor x iterations above over ranks that it lacks. Ranks that the same
tensors lack count together (a *group*), homes stand in a row along which tiles only shrink, and a
home needs, along its own ranks, what the next home inside that lacks one of them leaves. So the
row is built from the inside out, a home at a time, in all orders and tiles at once; of partial rows
with the same homes those stay that no other beats in cost, room and every tile.

Prices are per word read and written at a level; registers are free, and hold a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .architecture import INSTANCES
from .counts import REGISTERS
from .facts import EinsumFacts
from .tiling import tile_choices

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Level:
    """A level between the outermost memory and the units: what it holds, and what a word costs.

    ``must`` and ``may`` are tensors of one Einsum; ``apart`` tells that every instance of the unit
    has its own.
    """

    name: str
    words: float
    read: float
    write: float
    apart: bool
    must: frozenset[str]
    may: frozenset[str]


@dataclass(frozen=True, slots=True)
class Lanes:
    """A dimension of the unit: its lanes, the tensors whose words they share, and what spreads.

    ``spreads`` are the ranks over which a loop in space may run along it.
    """

    name: str
    count: int
    sharing: frozenset[str]
    spreads: frozenset[str]


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that the same tensors lack: outer to inner, their extents, and who lacks them."""

    ranks: tuple[str, ...]
    extents: tuple[int, ...]
    lacking: frozenset[str]

    @property
    def size(self) -> int:
        """Points of all ranks together."""
        return prod(self.extents)

    def tiles(self) -> tuple[int, ...]:
        """The tiles that nested loops over the ranks, one rank inside the other, may leave."""
        found, inner = {1}, 1
        for extent in reversed(self.extents):
            found |= {inner * d for d in tile_choices(extent, "divisors")}
            inner *= extent
        return tuple(sorted(found))

    def split(self, tile: int) -> dict[str, int]:
        """A tile of all ranks together as a tile of each."""
        found = {}
        for rank, extent in zip(reversed(self.ranks), reversed(self.extents), strict=True):
            own = extent if tile % extent == 0 else tile
            found[rank] = own
            tile //= own
        return found


@dataclass(frozen=True)
class Task:
    """An Einsum at given extents: everything that its cost depends on.

    Attributes:
        extents: of each rank, within one iteration of the loops that it shares with others.
        shared: how many iterations those make, for each rank that they run over.
        levels: those inside the outermost memory, outer to inner, registers last.
        roots: where each tensor comes from or goes to: -1 (outermost memory) or a level's number.
        outer: prices of a word read and written at the outermost memory.
    """

    einsum: EinsumFacts
    extents: Mapping[str, int]
    shared: Mapping[str, int]
    levels: tuple[Level, ...]
    lanes: tuple[Lanes, ...]
    roots: Mapping[str, int]
    outer: tuple[float, float]

    @cached_property
    def ranks(self) -> dict[str, frozenset[str]]:
        """The ranks of each tensor."""
        used = (*self.einsum.operands, *self.einsum.outputs)
        return {u.tensor: u.ranks for u in used}

    @cached_property
    def made(self) -> frozenset[str]:
        """What it writes."""
        return frozenset(o.tensor for o in self.einsum.outputs)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The ranks by who lacks them; those of one point left out."""
        found: dict[frozenset[str], list[str]] = {}
        for rank in sorted(self.einsum.ranks):
            if self.extents[rank] > 1:
                lacking = frozenset(t for t, ranks in self.ranks.items() if rank not in ranks)
                found.setdefault(lacking, []).append(rank)
        return tuple(
            Group(tuple(ranks), tuple(self.extents[r] for r in ranks), lacking)
            for lacking, ranks in sorted(found.items(), key=lambda item: sorted(item[0]))
        )

    def size(self, tensor: str) -> float:
        """Words of a tensor in one iteration of the shared loops."""
        return float(prod(self.extents[rank] for rank in self.ranks[tensor]))

    def times(self, tensor: str | None = None) -> float:
        """Iterations of the shared loops; those that a tensor depends on."""
        known = None if tensor is None else self.ranks[tensor]
        return float(prod(n for rank, n in self.shared.items() if known is None or rank in known))

    def price(self, level: int) -> tuple[float, float]:
        """What a word read and written costs at a level (-1: the outermost memory)."""
        return self.outer if level < 0 else (self.levels[level].read, self.levels[level].write)


Spread = tuple[tuple[int, ...], ...]  # for each dimension, the lanes that each group takes
Chains = Mapping[str, tuple[int, ...]]  # for each tensor, the levels of its homes, outer to inner
UNITS = -2  # beneath all levels


@dataclass(frozen=True, slots=True)
class Home:
    """A tensor at a level, and the tile of each group there, in one lane's step."""

    level: int
    tensor: str
    tiles: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """How an Einsum runs: its homes from the outermost in, and its lanes."""

    task: Task
    spread: Spread
    homes: tuple[Home, ...]


def spreads(task: Task) -> list[Spread]:
    """Return the ways to spread an Einsum over the lanes that use the most of them."""
    groups = task.groups
    tiles = [set(group.tiles()) for group in groups]

    def along(lanes: Lanes) -> list[tuple[int, ...]]:
        allowed = [
            [n for n in sorted(tile) if n <= lanes.count] if lanes.spreads >= set(g.ranks) else [1]
            for g, tile in zip(groups, tiles, strict=True)
        ]
        return [way for way in product(*allowed) if prod(way) <= lanes.count]

    found: list[Spread] = []
    most = 0
    for spread in product(*(along(lanes) for lanes in task.lanes)):
        together = [prod(way[g] for way in spread) for g in range(len(groups))]
        if all(n in tile for n, tile in zip(together, tiles, strict=True)):
            used = prod(together)
            found = found if used == most else [] if used > most else found
            most = max(most, used)
            found += [spread] if used == most else []
    return found


@dataclass(slots=True)
class _States:
    """Partial rows: cost, room at the level in work, tiles so far, and the homes that led there."""

    cost: Floats
    room: Floats
    tiles: NDArray[np.int64]  # [state, group]
    trail: NDArray[np.int64]  # [state, home and its tiles, innermost first]

    def take(self, index: NDArray[Any]) -> _States:
        return _States(self.cost[index], self.room[index], self.tiles[index], self.trail[index])

    def undominated(self) -> _States:
        """Those that none beats or equals in cost, room and every tile; of equals the first."""
        order = np.lexsort((self.room, self.cost))
        room, tiles = self.room[order], self.tiles[order].T
        ladders = [_is_ladder(column) for column in tiles]
        rows = [room, *tiles.astype(np.float64)]
        place = np.arange(len(order))
        kept: list[int] = []
        while len(place):
            kept.append(int(place[0]))
            stay = rows[0] < rows[0][0]
            for column, ladder in zip(rows[1:], ladders, strict=True):
                stay |= column < column[0] if ladder else column % column[0] != 0
            place = place[stay]
            rows = [row[stay] for row in rows]
        return self.take(order[kept])


def _is_ladder(tiles: NDArray[np.int64]) -> bool:
    """Whether of any two tiles the smaller divides the larger."""
    known = np.unique(tiles)
    return bool((known[1:] % known[:-1] == 0).all())


class Nest:
    """An Einsum whose lanes and levels are decided: orders and tiles of homes are left open."""

    def __init__(self, task: Task, spread: Spread, chains: Chains) -> None:
        self.task, self.spread, self.chains = task, spread, chains
        self.groups = task.groups
        width = range(len(self.groups))
        names = [lanes.name for lanes in task.lanes]
        self.lanes = [prod(way[g] for way in spread) for g in width]
        self.inside = [
            prod(w[g] for w, name in zip(spread, names, strict=True) if name != INSTANCES)
            for g in width
        ]
        one = np.ones(1)
        self.fixed = sum(float(self._units_words(tensor)[0]) for tensor in task.ranks)
        self.least = self.fixed + sum(
            float(self._moving(tensor, level, self._parent(tensor, level), one)[0])
            for tensor, chain in chains.items()
            for level in chain
        )

    @cached_property
    def front(self) -> tuple[Floats, Floats, _States]:
        """The least costs, and the room at the first level that they take."""
        states = _States(
            np.full(1, self.fixed),
            np.zeros(1),
            np.ones((1, len(self.groups)), dtype=np.int64),
            np.zeros((1, 0), dtype=np.int64),
        )
        for level in reversed(range(len(self.task.levels))):
            states = self._place_level(level, states)
            if level:
                states.room = np.zeros(len(states.cost))
                states = states.undominated()
        states.tiles = np.ones_like(states.tiles)  # nothing outside needs them
        best = states.undominated()
        return best.cost, best.room, best

    def row(self, index: int) -> Row:
        """The row of an entry of the front."""
        steps = self.front[2].trail[index].reshape(-1, 2 + len(self.groups))[::-1]
        tensors = list(self.task.ranks)
        homes = tuple(
            Home(int(s[0]), tensors[int(s[1])], tuple(int(n) for n in s[2:])) for s in steps
        )
        return Row(self.task, self.spread, homes)

    def _place_level(self, level: int, states: _States) -> _States:
        """Add the homes of a level, in every order."""
        here = [tensor for tensor, chain in self.chains.items() if level in chain]
        fronts = {frozenset[str](): states}
        for count in range(1, len(here) + 1):
            for placed in combinations(here, count):
                ways = [self._place(fronts[frozenset(placed) - {t}], level, t) for t in placed]
                joined = _States(
                    np.concatenate([w.cost for w in ways]),
                    np.concatenate([w.room for w in ways]),
                    np.concatenate([w.tiles for w in ways]),
                    np.concatenate([w.trail for w in ways]),
                )
                fronts[frozenset(placed)] = joined.undominated()
        return fronts[frozenset(here)]

    def _place(self, states: _States, level: int, tensor: str) -> _States:
        """Add a home outside of those that are there, with every tile along the ranks it lacks."""
        where = self.task.levels[level]
        lacking = [g for g, group in enumerate(self.groups) if tensor in group.lacking]
        own = [g for g in range(len(self.groups)) if g not in lacking]
        index = np.arange(len(states.cost))
        tiles = states.tiles
        for g in lacking:
            wider = np.array(self._tiles(g), dtype=np.int64)
            rows, columns = np.nonzero(wider[None, :] % tiles[:, [g]] == 0)
            index, tiles = index[rows], tiles[rows].copy()
            tiles[:, g] = wider[columns]
        below = self.inside if where.apart else self.lanes
        room = np.ones(len(index))
        for g in own:
            room = room * tiles[:, g] * (1 if where.name == REGISTERS else below[g])
        loads = np.ones(len(index))
        for g in lacking:
            loads = loads * (self.groups[g].size / (self.lanes[g] * tiles[:, g]))
        cost = self._moving(tensor, level, self._parent(tensor, level), loads)
        label = np.empty((len(index), 2), dtype=np.int64)
        label[:] = level, list(self.task.ranks).index(tensor)
        added = _States(
            states.cost[index] + cost,
            states.room[index] + room,
            tiles,
            np.concatenate([states.trail[index], label, tiles], axis=1),
        )
        return added.take(np.flatnonzero(added.room <= where.words * (1 + 1e-12)))

    def _tiles(self, g: int) -> list[int]:
        """The tiles of a group in a lane's step that loops can leave at every level."""
        known = set(self.groups[g].tiles())
        lanes = (1, self.inside[g], self.lanes[g])
        return [n for n in sorted(known) if all(n * among in known for among in lanes)]

    def _parent(self, tensor: str, level: int) -> int:
        chain = self.chains[tensor]
        place = chain.index(level)
        return chain[place - 1] if place else self.task.roots[tensor]

    def _units_words(self, tensor: str) -> Floats:
        """The cost of what the units read and write of a tensor."""
        chain = self.chains[tensor]
        parent = chain[-1] if chain else self.task.roots[tensor]
        loads = prod(
            group.size / lanes
            for group, lanes in zip(self.groups, self.lanes, strict=True)
            if tensor in group.lacking
        )
        if parent >= 0 and self.task.levels[parent].name == REGISTERS:
            return np.zeros(1)
        return self._moving(tensor, UNITS, parent, np.array([float(loads)]))

    def _moving(self, tensor: str, level: int, parent: int, loads: Floats) -> Floats:
        """The cost of bringing a tensor's tiles to a level (and back), so often."""
        task = self.task
        read, write = task.price(parent)
        own_read, own_write = (0.0, 0.0) if level == UNITS else task.price(level)
        above, own = self._copies(tensor, level, parent)
        size = task.size(tensor)
        moved = size * task.times() * loads
        if tensor not in task.made:
            return np.asarray(moved * (above * read + own * own_write))
        again = moved - size * task.times(tensor)
        there, back = above * write + own * own_read, above * read + own * own_write
        return np.asarray(moved * there + again * back)

    def _copies(self, tensor: str, level: int, parent: int) -> tuple[float, float]:
        """How many copies cross for a word, as the home above counts them, and at the home."""
        above, own = 1.0, 1.0
        lane = level == UNITS or self.task.levels[level].name == REGISTERS
        for way, lanes in zip(self.spread, self.task.lanes, strict=True):
            lacking = prod(
                n for n, group in zip(way, self.groups, strict=True) if tensor in group.lacking
            )
            over = lanes.name == INSTANCES
            each = lane or (over and self.task.levels[level].apart)
            from_each = over and parent >= 0 and self.task.levels[parent].apart
            if from_each or (each and tensor not in lanes.sharing):
                above *= lacking
            own *= lacking if each else 1
        return above, own


def nests(task: Task) -> list[Nest]:
    """Return the ways to choose lanes and levels, those of the least bound first."""
    last = len(task.levels)
    chains: list[list[tuple[int, ...]]] = []
    for tensor in task.ranks:
        inner = range(task.roots[tensor] + 1, last)
        must = [n for n in inner if tensor in task.levels[n].must]
        may = [n for n in inner if tensor in task.levels[n].may and n not in must]
        chains.append(
            [
                tuple(sorted((*must, *some)))
                for count in range(len(may) + 1)
                for some in combinations(may, count)
            ]
        )
    found = [
        Nest(task, spread, dict(zip(task.ranks, chosen, strict=True)))
        for spread in spreads(task)
        for chosen in product(*chains)
    ]
    return sorted(found, key=lambda nest: nest.least)


class Options:
    """The ways to run an Einsum; they are worked out as far as a question needs."""

    def __init__(self, task: Task) -> None:
        self.nests = nests(task)
        self.least = self.nests[0].least if self.nests else np.inf
        self._kept: dict[float, tuple[float, Row | None]] = {}

    def within(self, words: float) -> tuple[float, Row | None]:
        """The least cost with so much room at the first level, and the row that has it."""
        if words not in self._kept:
            self._kept[words] = self._within(words)
        return self._kept[words]

    def _within(self, words: float) -> tuple[float, Row | None]:
        best, row = np.inf, None
        for nest in self.nests:
            if nest.least >= best * (1 - 1e-12):
                break
            cost, room, _ = nest.front
            fits = np.flatnonzero(room <= words * (1 + 1e-12))
            if len(fits):
                index = int(fits[np.argmin(cost[fits])])
                if cost[index] < best * (1 - 1e-12):
                    best, row = float(cost[index]), nest.row(index)
        return best, row
