"""How one Einsum runs under ``explicit`` retention: homes in a row, and what they cost.

Every loop in time above a home reloads it, so what a home moves depends on the tiles at that home
alone: words = size of the tensor x iterations above over ranks that it lacks. Homes stand in a row
along which tiles only shrink, and a home needs, along its own ranks, what the next home inside that
lacks one of them leaves. So the row is built from the inside out, a home at a time, in all orders
and tiles at once; of partial rows with the same homes those stay that no other beats in every
column of cost, in room and in every tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from einfuse.mapper.machine.architecture import INSTANCES
from einfuse.mapper.nest.reuse import REGISTERS
from einfuse.mapper.space.choices import Tally

from .einsum import Floats, Prices, Spread, Task, spreads

Chains = Mapping[str, tuple[int, ...]]  # for each tensor, the levels of its homes, outer to inner
_FEW_AND_MANY = np.array([1.0, 1e9])  # lanes
UNITS = -2  # beneath all levels
_ROUNDING = 1e-12


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

    @property
    def feeding(self) -> dict[str, int]:
        """The memory that feeds the units with each tensor (-1: the outermost)."""
        found = dict(self.task.roots)
        found |= {h.tensor: h.level for h in self.homes if not self._in_registers(h)}
        return found

    def _in_registers(self, home: Home) -> bool:
        return self.task.levels[home.level].name == REGISTERS


@dataclass(slots=True)
class _States:
    """Partial rows: cost, room at the level in work, tiles so far, and the homes that led there."""

    cost: Floats  # [state, column]
    room: Floats
    tiles: NDArray[np.int64]  # [state, group]
    trail: NDArray[np.int64]  # [state, home and its tiles, innermost first]

    def take(self, index: NDArray[Any]) -> _States:
        return _States(self.cost[index], self.room[index], self.tiles[index], self.trail[index])

    def undominated(self) -> _States:
        """Those that none beats or equals in cost, room and every tile; of equals the first."""
        costs = [*self.cost.T, self.room]
        order = np.lexsort(costs[::-1])
        tiles = self.tiles[order].T
        ladders = [True] * (len(costs) - 1) + [_is_ladder(column) for column in tiles]
        rows = [*(c[order] for c in costs[1:]), *tiles.astype(np.float64)]
        slack = [1 - _ROUNDING] * (len(costs) - 1) + [1.0] * len(tiles)
        place = np.arange(len(order))
        kept: list[int] = []
        while len(place):
            kept.append(int(place[0]))
            stay = np.zeros(len(place), dtype=bool)
            for column, ladder, less in zip(rows, ladders, slack, strict=True):
                stay |= column < column[0] * less if ladder else column % column[0] != 0
            place = place[stay]
            rows = [row[stay] for row in rows]
        return self.take(order[kept])


def _is_ladder(tiles: NDArray[np.int64]) -> bool:
    """Whether of any two tiles the smaller divides the larger."""
    known = np.unique(tiles)
    return bool((known[1:] % known[:-1] == 0).all())


class Nest:
    """An Einsum whose levels are decided: its lanes, orders and tiles are left open.

    Arrays run over the ``spreads``, which use as many instances of the unit. No row goes below
    ``least`` in columns of cost, [spread, column], nor below ``least_room`` in words at the first
    level, [spread]; ``overflow`` is by how many words a level is too small even for tiles of one
    point, [spread].
    """

    def __init__(
        self, task: Task, prices: Prices, spreads: NDArray[np.int64], chains: Chains
    ) -> None:
        self.task, self.prices, self.spreads, self.chains = task, prices, spreads, chains
        self.groups = task.groups
        apart = np.array([lanes.name == INSTANCES for lanes in task.lanes], dtype=bool)
        self.lanes = spreads.prod(axis=1)  # [spread, group]
        self.inside = self.spreads[:, ~apart].prod(axis=1)
        self.instances = int(spreads[0, apart].prod())
        used, which = np.unique(self.lanes.prod(axis=1), return_inverse=True)
        work = [prices.work(float(lanes), self.instances) for lanes in used]
        operations, self.read, self.write = (
            np.array(columns)[which.ravel()] for columns in zip(*work, strict=True)
        )  # [spread, column]; of a word of a lane's registers
        self.fixed = operations + self._accesses()
        for tensor in task.ranks:
            self.fixed = self.fixed + self._units_words(tensor)
        ones = np.ones(len(spreads))
        self.least = self.fixed + sum(
            self._moving(tensor, level, ones, slice(None))
            for tensor, chain in chains.items()
            for level in chain
        )
        rooms = [self._least_room(level) for level in range(len(task.levels))]
        self.least_room = rooms[0]
        self.overflow = {
            where.name: np.where(room > where.words * (1 + _ROUNDING), room - where.words, 0.0)
            for where, room in zip(task.levels, rooms, strict=True)
        }

    def front(self, spread: int, tally: Tally) -> tuple[Floats, Floats, _States]:
        """The least costs of a spread, [row, column], and the room at the first level they take."""
        states = _States(
            np.zeros((1, self.fixed.shape[1])),
            np.zeros(1),
            np.ones((1, len(self.groups)), dtype=np.int64),
            np.zeros((1, 0), dtype=np.int64),
        )
        moving = np.any([self._moves(level) for level in range(len(self.task.levels))], axis=0)
        varying = np.flatnonzero(moving)
        states.cost = states.cost[:, varying]
        for level in reversed(range(len(self.task.levels))):
            states = self._place_level(level, states, spread, varying, tally)
            if level:
                states.room = np.zeros(len(states.cost))
                states = states.undominated()
        tally.candidates += len(states.cost)
        states.tiles = np.ones_like(states.tiles)  # nothing outside needs them
        best = states.undominated()
        columns = np.repeat(self.fixed[[spread]], len(best.cost), axis=0)
        columns[:, varying] += best.cost
        return columns, best.room, best

    def row(self, spread: int, trail: NDArray[np.int64]) -> Row:
        """The row that a state's homes make."""
        steps = trail.reshape(-1, 2 + len(self.groups))[::-1]
        tensors = list(self.task.ranks)
        homes = tuple(
            Home(int(s[0]), tensors[int(s[1])], tuple(int(n) for n in s[2:])) for s in steps
        )
        return Row(self.task, self.spreads[spread], homes)

    # Homes, from the inside out.

    def _place_level(
        self, level: int, states: _States, spread: int, varying: Any, tally: Tally
    ) -> _States:
        """Add the homes of a level, in every order."""
        here = [tensor for tensor, chain in self.chains.items() if level in chain]
        fronts = {frozenset[str](): states}
        for count in range(1, len(here) + 1):
            for placed in combinations(here, count):
                ways = [
                    self._place(fronts[frozenset(placed) - {t}], level, t, spread, varying, tally)
                    for t in placed
                ]
                joined = _States(
                    np.concatenate([w.cost for w in ways]),
                    np.concatenate([w.room for w in ways]),
                    np.concatenate([w.tiles for w in ways]),
                    np.concatenate([w.trail for w in ways]),
                )
                fronts[frozenset(placed)] = joined.undominated()
        return fronts[frozenset(here)]

    def _place(
        self, states: _States, level: int, tensor: str, spread: int, varying: Any, tally: Tally
    ) -> _States:
        """Add a home outside of those that are there, with every tile along the ranks it lacks."""
        where, lanes = self.task.levels[level], self.lanes[spread]
        lacking, own = self._lacking(tensor)
        index = np.arange(len(states.cost))
        tiles = states.tiles
        for g in lacking:
            wider = np.array(self._tiles(spread, g), dtype=np.int64)
            rows, columns = np.nonzero(wider[None, :] % tiles[:, [g]] == 0)
            index, tiles = index[rows], tiles[rows].copy()
            tiles[:, g] = wider[columns]
        room = (tiles[:, own] * self._below(level)[spread, own]).prod(axis=1).astype(np.float64)
        if where.name == REGISTERS:
            room = room - 1  # a word of it is there anyhow
        loads = np.ones(len(index))
        for g in lacking:
            loads = loads * (self.groups[g].size / (lanes[g] * tiles[:, g]))
        cost = self._moving(tensor, level, loads, spread)[:, varying]
        label = np.empty((len(index), 2), dtype=np.int64)
        label[:] = level, list(self.task.ranks).index(tensor)
        added = _States(
            states.cost[index] + cost,
            states.room[index] + room,
            tiles,
            np.concatenate([states.trail[index], label, tiles], axis=1),
        )
        beyond = added.room > where.words * (1 + _ROUNDING)
        if beyond.any():
            tally.infeasible[f"capacity of {where.name}"] += int(beyond.sum())
        return added.take(np.flatnonzero(~beyond))

    def _lacking(self, tensor: str) -> tuple[list[int], list[int]]:
        """The groups that a tensor lacks, and the others."""
        lacking = [g for g, group in enumerate(self.groups) if tensor in group.lacking]
        return lacking, [g for g in range(len(self.groups)) if g not in lacking]

    def _tiles(self, spread: int, g: int) -> list[int]:
        """The tiles of a group in a lane's step that loops can leave at every level."""
        known = set(self.groups[g].tiles())
        lanes = (1, int(self.inside[spread, g]), int(self.lanes[spread, g]))
        return [n for n in sorted(known) if all(n * among in known for among in lanes)]

    def _below(self, level: int) -> NDArray[np.int64]:
        """The lanes of each group beneath a home of a level, [spread, group]."""
        where = self.task.levels[level]
        if where.name == REGISTERS:
            return np.ones_like(self.lanes)
        return np.asarray(self.inside if where.apart else self.lanes)

    def _least_room(self, level: int) -> Floats:
        """The words at a level if every tile is of one point."""
        where, below = self.task.levels[level], self._below(level)
        least = np.zeros(len(self.spreads))
        for tensor, chain in self.chains.items():
            if level in chain:
                own = self._lacking(tensor)[1]
                least = least + below[:, own].prod(axis=1) - (where.name == REGISTERS)
        return least

    # What moves, in columns.

    def _moves(self, level: int) -> NDArray[np.bool_]:
        """The columns in which homes of a level differ."""
        pair = (self.read[0], self.write[0])
        if self.task.levels[level].name != REGISTERS:
            pair = self.prices.words(level, self.instances)
        vectors = (*pair, *self.prices.words(-1, 1), *self.prices.delivered(_FEW_AND_MANY))
        return np.asarray(np.any([vector != 0 for vector in vectors], axis=0))

    def _accesses(self) -> Floats:
        """The cost of what the operations read and write in a lane's registers."""
        task = self.task
        points = prod(group.size for group in self.groups) * task.times()
        steps = points / self.lanes.prod(axis=1)
        reads, writes = steps * len(task.einsum.operands), np.zeros(len(steps))
        for tensor in task.made:
            first = task.size(tensor) * task.times(tensor) * self._of_a_lane(tensor)
            reads, writes = reads + steps - first, writes + steps
        return np.asarray(reads[:, None] * self.read + writes[:, None] * self.write)

    def _units_words(self, tensor: str) -> Floats:
        """The cost of what the units read and write of a tensor."""
        chain = self.chains[tensor]
        parent = chain[-1] if chain else self.task.roots[tensor]
        if parent >= 0 and self.task.levels[parent].name == REGISTERS:
            return np.zeros_like(self.fixed)
        loads = np.ones(len(self.spreads))
        for g in self._lacking(tensor)[0]:
            loads = loads * self.groups[g].size / self.lanes[:, g]
        return self._moving(tensor, UNITS, loads, slice(None))

    def _moving(self, tensor: str, level: int, loads: Floats, spread: int | slice) -> Floats:
        """The columns of bringing a tensor's tiles to a level (and back), so often."""
        task = self.task
        chain = self.chains[tensor]
        place = len(chain) if level == UNITS else chain.index(level)
        parent = chain[place - 1] if place else task.roots[tensor]
        read, write = self.prices.words(parent, self.instances)
        inside = level == UNITS or task.levels[level].name == REGISTERS
        own_read, own_write = (
            (self.read[spread], self.write[spread])
            if inside
            else self.prices.words(level, self.instances)
        )
        copies = self._copies(tensor, level, parent)
        above, own = (np.atleast_1d(one[spread])[:, None] for one in copies)
        moved = (task.size(tensor) * task.times() * loads)[:, None]
        if inside:  # on top of a word at the home above
            active = np.atleast_1d(self.lanes.prod(axis=1)[spread])
            hops = self.prices.delivered(active * own[:, 0] / above[:, 0])
            read, write = read + hops, write + hops
        if tensor not in task.made:
            return np.asarray(moved * (above * read + own * own_write))
        again = moved - task.size(tensor) * task.times(tensor)
        drain = own * own_read if self.prices.drained and level != UNITS else 0.0
        there, back = above * write + drain, above * read + own * own_write
        return np.asarray(moved * there + again * back)

    def _of_a_lane(self, tensor: str) -> Floats:
        """The share of a tensor's words that comes to one lane."""
        return np.asarray(1 / self.lanes[:, self._lacking(tensor)[1]].prod(axis=1))

    def _copies(self, tensor: str, level: int, parent: int) -> tuple[Floats, Floats]:
        """How many copies cross for a word, as the home above counts them, and at the home.

        At registers the traffic is that of one lane.
        """
        above, own = np.ones(len(self.spreads)), np.ones(len(self.spreads))
        lane = level == UNITS or self.task.levels[level].name == REGISTERS
        for d, lanes in enumerate(self.task.lanes):
            lacking = self.spreads[:, d, self._lacking(tensor)[0]].prod(axis=1)
            over = lanes.name == INSTANCES
            each = lane or (over and self.task.levels[level].apart)
            from_each = over and parent >= 0 and self.task.levels[parent].apart
            if from_each or (each and tensor not in lanes.sharing):
                above = above * lacking
            own = own * lacking if each else own
        return above, self._of_a_lane(tensor) if lane else own


def nests(task: Task, prices: Prices, every: bool = False) -> list[Nest]:
    """Return the ways to choose levels and how many instances are in use.

    Args:
        task: the Einsum.
        prices: what it costs.
        every: with any number of lanes, not only the most.
    """
    last = len(task.levels)
    chains: list[list[tuple[int, ...]]] = []
    for tensor in task.ranks:
        inner = range(task.roots[tensor] + 1, last)
        must = [n for n in inner if tensor in task.levels[n].must]
        may = [n for n in inner if tensor in task.levels[n].may and n not in must]
        kept = (
            tuple(sorted((*must, *some)))
            for count in range(len(may) + 1)
            for some in combinations(may, count)
        )
        registers = last - 1
        chains.append(
            [
                chain
                for chain in kept
                if max((task.roots[tensor], *(n for n in chain if n != registers)))
                in task.feeding[tensor]
            ]
        )
    ways = spreads(task, every)
    over = np.array([lanes.name == INSTANCES for lanes in task.lanes], dtype=bool)
    instances = ways[:, over].prod(axis=(1, 2))
    return [
        Nest(task, prices, ways[instances == number], dict(zip(task.ranks, chosen, strict=True)))
        for number in np.unique(instances)
        for chosen in product(*chains)
    ]
