"""Words that live at each memory while tasks run: from the task that brings them to the last user.

A word lives at a home from the first task that touches it there until the last one before the home
comes to another tile. What passes through inside one task takes the room of a tile, but what one
task makes for another stays between them; what is forwarded stays where its maker puts it; where
homes take turns in one place (``overlaying``) the fuller one counts, and of words of one kind each
place that either has. This is what must be there: a copy that is fetched ahead is not in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from einfuse.mapper import (
    REGISTERS,
    Chain,
    Facts,
    Loop,
    MappingError,
    Operand,
    Storage,
    Values,
    moving_loops,
)
from einfuse.simulator.cost.point import Point

from .tasks import Region, TileTask

_Place = tuple[str, int]  # a tensor, and the step that keeps it


_Box = tuple[tuple[int, int], ...]  # of each rank, the first coordinate and the one after the last


@dataclass(slots=True)
class _Stay:
    """Words of a tensor at a home: the first and the last task that touches each, -1 if none."""

    box: _Box
    first: NDArray[np.int64]
    last: NDArray[np.int64]

    @classmethod
    def empty(cls, box: _Box) -> _Stay:
        """The words of a box, before any is touched."""
        extents = [end - first for first, end in box]
        return cls(box, np.full(extents, -1), np.full(extents, -1))

    def touch(self, number: int, box: _Box) -> None:
        """A task touches a box of words."""
        grown = tuple((min(a, b), max(c, d)) for (a, c), (b, d) in zip(self.box, box, strict=True))
        if grown != self.box:
            larger = _Stay.empty(grown)
            span = larger.span(self.box)
            larger.first[span], larger.last[span] = self.first, self.last
            self.box, self.first, self.last = grown, larger.first, larger.last
        span = self.span(box)
        first = self.first[span]
        self.first[span] = np.where(first < 0, number, first)
        self.last[span] = number

    def span(self, box: _Box) -> tuple[slice, ...]:
        """Where a box within lies."""
        return tuple(slice(a - k, b - k) for (a, b), (k, _) in zip(box, self.box, strict=True))


@dataclass(slots=True)
class _Room:
    """A home over the run: its tiles by where the loops above it stand."""

    level: str
    share: float
    group: _Place
    stays: dict[tuple[int, ...], _Stay] = field(default_factory=dict)
    passing: dict[int, int] = field(default_factory=dict)  # task -> words that pass through


class Residency:
    """What lives where; `touch` for every task in its order, then `peak_bytes`."""

    def __init__(self, point: Point, chains: Mapping[str, Chain]) -> None:
        self.point, self.chains, self.facts = point, chains, point.facts
        self.rooms: dict[_Place, _Room] = {}
        self.tasks: list[TileTask] = []
        self.word_bytes = float(point.number("word_bytes"))
        self.makers = {o.tensor: e.name for e in self.facts.einsums.values() for o in e.outputs}
        self.exchanged = self._find_exchanged()

    def _find_exchanged(self) -> set[_Place]:
        """The homes at which an Einsum finds what another has made there."""
        made: set[_Place] = set()
        read: set[_Place] = set()
        for name, chain in self.chains.items():
            einsum = self.facts.einsums[name]
            for users, places in ((einsum.outputs, made), (einsum.operands, read)):
                tensors = {used.tensor for used in users}
                places |= {(h.tensor, id(h.keep)) for h in chain.homes if h.tensor in tensors}
        return made & read

    def touch(self, task: TileTask) -> None:
        """Take note of what a task reads and writes at the homes above it."""
        number = len(self.tasks)
        self.tasks.append(task)
        einsum = self.facts.einsums[task.einsum]
        for used in dict.fromkeys((*einsum.operands, *einsum.outputs)):
            chain = self.chains[task.einsum]
            if not any(home.tensor == used.tensor for home in chain.homes):
                chain = self.chains[self.makers.get(used.tensor, task.einsum)]
            for home in chain.homes:
                if home.tensor == used.tensor and home.level != REGISTERS:
                    self._touch(number, task.region, chain, home, used)

    def _touch(
        self, number: int, region: Region, chain: Chain, home: Storage, used: Operand
    ) -> None:
        place = (home.tensor, id(home.keep))
        if place not in self.rooms:
            self.rooms[place] = self._room(chain, home, place)
        room = self.rooms[place]
        loops = chain.loops[: home.depth]
        axes = _axes(self.facts, home.tensor)
        starts = _starts(loops, region)
        joint = _is_joint(self.facts, home.tensor)
        ranks = sorted(used.ranks) if joint else axes
        here = {r: region[r] if r in used.ranks else (0, self._size(r)) for r in ranks}
        tile = {
            r: min(_tile(loops, r, end - first), end - first) for r, (first, end) in here.items()
        }
        inside = any(tile[r] < end - first for r, (first, end) in here.items())
        if (inside and place not in self.exchanged) or home.streamed:
            words = int(np.prod(list(tile.values()), dtype=int))
            words = int(used.visited.words(tile, self.point.sizes)) if joint else words
            room.passing[number] = max(words, room.passing.get(number, 0))
            return
        moving = moving_loops(loops, used.ranks, self.point.design.retention)
        key = tuple(
            start
            for loop, start, moves in zip(loops, starts, moving, strict=True)
            if not loop.parallel and moves
        )
        spans = _spans(used, here, self.point.sizes) if joint else [here[r] for r in axes]
        if key not in room.stays:
            room.stays[key] = _Stay.empty(tuple(spans))
        room.stays[key].touch(number, tuple(spans))

    def _size(self, rank: str) -> int:
        return int(self.point.sizes[rank])

    def _room(self, chain: Chain, home: Storage, place: _Place) -> _Room:
        share = 1 - float(home.spilled)
        group, over = place, home
        while over.overlaying is not None:
            under = self.facts.root(over.overlaying)
            below = [h for h in chain.homes if h.tensor == under and h.level == home.level]
            if not below:
                break
            over = below[-1]
            group = (over.tensor, id(over.keep))
        return _Room(home.level, share, group)

    def peak_bytes(self) -> dict[str, float]:
        """The most bytes that live at each memory.

        Raises:
            MappingError: a level that has less, with the task and the tensor that do not fit.
        """
        levels = self.point.architecture.memories
        outside = self.facts.cascade.inputs + self.facts.cascade.outputs
        rooted = {self.facts.root(t) for t in outside} & self.facts.ranks.keys()
        found: dict[str, float] = {}
        for level in levels:
            taken = {tensor: words for tensor, words in self._taken(level)}
            total = np.sum([words for words in taken.values()], axis=0)
            if level == levels[0]:
                total = total + sum(self._words(tensor) for tensor in rooted)
            used = np.atleast_1d(total) * self.word_bytes
            found[level] = float(used.max())
            room = self.point.values[f"{level}.bytes"]
            if room is not None and found[level] > float(room) * (1 + 1e-12):
                task = int(np.argmax(used > float(room) * (1 + 1e-12)))
                grown = {
                    t: words[task] - (words[task - 1] if task else 0) for t, words in taken.items()
                }
                worst = max(grown, key=lambda place: grown[place])
                raise MappingError(
                    f"{self.tasks[task]} brings {worst[0]} to {level}, where {used[task]:.0f} "
                    f"bytes of {float(room):.0f} would live: fewer tiles under way, smaller ones, "
                    "or a larger memory"
                )
        return found

    def _words(self, tensor: str) -> int:
        visited = self.facts.visited(tensor, self.facts.einsums)
        return int(visited.words(self.point.sizes, self.point.sizes))

    def _taken(self, level: str) -> Iterator[tuple[_Place, NDArray[np.float64]]]:
        """Words at a level during every task, by the home that has the place."""
        groups: dict[_Place, list[_Place]] = {}
        for place, room in self.rooms.items():
            if room.level == level:
                groups.setdefault(room.group, []).append(place)
        for group, places in groups.items():
            alike = len({tuple(_axes(self.facts, tensor)) for tensor, _ in places}) == 1
            every = [self._series(self.rooms[place]) for place in places]
            words = np.max(every, axis=0)
            if alike and len(places) > 1:
                words = np.sum(every, axis=0) - self._handed_over(places)
            yield group, words

    def _handed_over(self, places: Sequence[_Place]) -> NDArray[np.float64]:
        """Words that two of them have in one place, while a task makes the one of the other."""
        both = np.zeros(len(self.tasks) + 1)
        for one, other in pairwise(places):
            rooms = self.rooms[one], self.rooms[other]
            for key in rooms[0].stays.keys() & rooms[1].stays.keys():
                stays = [room.stays[key] for room in rooms]
                box = tuple(
                    (max(a, b), min(c, d))
                    for (a, c), (b, d) in zip(*(stay.box for stay in stays), strict=True)
                )
                if any(first >= end for first, end in box):
                    continue
                firsts, lasts = zip(
                    *((stay.first[stay.span(box)], stay.last[stay.span(box)]) for stay in stays),
                    strict=True,
                )
                first, last = np.maximum(*firsts), np.minimum(*lasts)
                shared = (np.minimum(*firsts) >= 0) & (first <= last)
                np.add.at(both, first[shared], rooms[0].share)
                np.add.at(both, last[shared] + 1, -rooms[0].share)
        return np.cumsum(both)[:-1]

    def _series(self, room: _Room) -> NDArray[np.float64]:
        change = np.zeros(len(self.tasks) + 1)
        for stay in room.stays.values():
            touched = stay.first >= 0
            np.add.at(change, stay.first[touched], 1)
            np.add.at(change, stay.last[touched] + 1, -1)
        words = np.cumsum(change)[:-1]
        for task, passing in room.passing.items():
            words[task] += passing
        return words * room.share


def _is_joint(facts: Facts, tensor: str) -> bool:
    """Whether words are told apart by coordinates, as accesses along several ranks have some."""
    return tensor not in facts.carried and not facts.visited(tensor, facts.einsums).plain


def _axes(facts: Facts, tensor: str) -> list[str]:
    """The ranks of what lives at a home: of a carried tensor, one generation."""
    if _is_joint(facts, tensor):
        part = facts.visited(tensor, facts.einsums).parts[0]
        sizes = [subscript.size for subscript in part]
        return sizes if all(sizes) else sorted(facts.ranks[tensor])
    return sorted(facts.ranks[tensor] - facts.generations(tensor))


def _spans(
    used: Operand, here: Mapping[str, tuple[int, int]], sizes: Mapping[str, Values]
) -> list[tuple[int, int]]:
    """The coordinates that an access visits along each dimension; all where they are not known."""
    spans: list[tuple[int, int]] = []
    for subscript in used.part:
        whole, strides = int(sizes[subscript.size]), subscript.strides
        if strides is None and len(subscript.ranks) == 1 and subscript.first:
            strides = (1,)
        if strides is None or subscript.origin:
            spans.append((0, whole))
            continue
        first = last = subscript.offsets[0]
        for rank, stride in zip(subscript.ranks, strides, strict=True):
            ends = sorted((stride * here[rank][0], stride * (here[rank][1] - 1)))
            first, last = first + ends[0], last + ends[1]
        first = min(max(first, 0), whole)
        spans.append((first, max(min(last + 1, whole), first)))
    return spans


def _starts(loops: Sequence[Loop], region: Region) -> list[int]:
    """Where the tile of each loop begins in which a region begins."""
    starts: list[int] = []
    base: dict[str, int] = {}
    for loop in loops:
        start = base.get(loop.rank, 0)
        if not loop.parallel:
            start += (region[loop.rank][0] - start) // int(loop.tile) * int(loop.tile)
            base[loop.rank] = start
        starts.append(start)
    return starts


def _tile(loops: Sequence[Loop], rank: str, extent: int) -> int:
    """The extent of a rank in a home: of the last loop in time over it; side by side, all lanes."""
    tiles = [int(loop.tile) for loop in loops if loop.rank == rank and not loop.parallel]
    return tiles[-1] if tiles else extent
