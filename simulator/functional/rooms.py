"""The room that tiles take at each level, as the loop tree is walked.

A tile takes its room from the visit that fetches it to the last that finds it there. The children
of a branch take turns, but what a child holds on to stays while the others run; those of a pipeline
run side by side, so that each counts with the most that it ever takes. Where every loop reloads
(``explicit``), a home right above a branch is there from the first child that uses it to the last.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import takewhile

from einfuse.mapper import (
    REGISTERS,
    Branch,
    Chain,
    Keep,
    Loop,
    Nest,
    Parallel,
    Temporal,
    Values,
    computes_of,
    touched_below,
    walk_nest,
)
from einfuse.simulator.cost.point import Point

from .accesses import Place, Tally, check_steps
from .steps import Piece, Pieces, take_loop

_Peak = dict[str, float]
_Key = tuple[str, int]  # a tensor, and the step that keeps it


def find_peaks(point: Point, chains: Mapping[str, Chain], nest: Nest) -> dict[str, float]:
    """Return the most words that tiles take at each level, as `Counts.peak_words` does.

    Args:
        point: the design at a shape.
        chains: the loops above each Einsum.
        nest: the mapping, its conditions decided.

    Raises:
        MappingError: a shape with too many steps to walk.

    >>> from einfuse.mapper.nest.nest import select
    >>> from einfuse.mapper.design.design import load_design
    >>> from einfuse.simulator.events.simulation import prepare
    >>> tiny = {"array_2d.rows": 4, "array_2d.columns": 4, "array_1d.lanes": 4}
    >>> shape = {"B": 1, "H": 1, "M": 16, "P": 16, "E": 4, "F": 4}
    >>> prepared = prepare(load_design("fusemax"), shape, set=tiny)
    >>> point = prepared.point
    >>> nest = select(point.design.nest, point.scope)
    >>> find_peaks(point, prepared.chains, nest)["buffer"] == int(point.counts.peak_words["buffer"])
    True
    """
    check_steps(chains)
    rooms = _Rooms(point, chains, nest)
    peaks = rooms.run(nest, 0, rooms.tally.whole, {})
    outer = point.architecture.memories[0]
    rooted = sum(rooms.words(t, outer, rooms.tally.whole) for t in rooms.tally.roots)
    return {**peaks, outer: peaks.get(outer, 0.0) + rooted}


class _Rooms:
    """What every home holds while the tree is walked."""

    def __init__(self, point: Point, chains: Mapping[str, Chain], nest: Nest) -> None:
        self.point, self.chains, self.facts = point, chains, point.facts
        self.tally = Tally(point, chains, nest)
        self.held: dict[_Key, float] = {}
        self.visits: dict[_Key, int] = {}
        self.stays = {key: self._stays(place) for key, place in self.tally.kept.items()}
        explicit = self.tally.retention == "explicit"
        self.turns = dict(self._turns(nest)) if explicit else {}
        self.taken: dict[_Key, _Peak] = {}

    def _stays(self, place: Place) -> list[bool]:
        """Of every visit to a home, whether the next one finds the same tile."""
        keys = [key for key, _ in self.tally.visit(place)]
        trailing = self.tally.retention == "trailing"
        return [trailing and a == b for a, b in zip(keys, [*keys[1:], None], strict=True)]

    def _turns(self, nest: Nest) -> Iterator[tuple[_Key, tuple[int, range]]]:
        """The homes right above a branch: the branch, and the children that they are there for."""
        branches = [(n, node.step) for n, node in enumerate(nest) if isinstance(node.step, Branch)]
        for number, branch in branches:
            for child in branch.children:
                yield from self._turns(child)
            if branch.pipeline or len(branches) > 1:
                continue
            above = (node.step for node in reversed(nest[:number]))
            for step in takewhile(lambda one: isinstance(one, Keep), above):
                assert isinstance(step, Keep)
                for tensor in map(self.facts.root, step.tensors):
                    using = [
                        n
                        for n, c in enumerate(branch.children)
                        if touched_below(self.facts, tensor, c)
                    ]
                    if using:
                        yield (tensor, id(step)), (id(branch), range(using[0], using[-1] + 1))

    def run(self, nest: Nest, depth: int, pieces: Pieces, places: Mapping[str, float]) -> _Peak:
        """Walk a nest; return the most that its homes hold at each level meanwhile.

        Args:
            nest: what is left of it.
            depth: how many loops of the chains below stand above it.
            pieces: what there is of each rank.
            places: tensor -> the words of the place that it has, which others may share.
        """
        if not any(isinstance(node.step, Keep | Branch) for node in walk_nest(nest)):
            return {}
        step, rest = nest[0].step, nest[1:]
        match step:
            case Temporal() | Parallel():
                first = computes_of(rest)[0]
                loops = self.chains[first.einsum].loops
                taken = [loops[depth]]
                if isinstance(step, Parallel) and not loops[depth].parallel:  # its waves
                    taken.append(loops[depth + 1])
                return self._loops(taken, rest, depth, pieces, places)
            case Keep():
                return self._keep(step, rest, depth, pieces, places)
            case Branch(children=children, pipeline=pipeline):
                turns = [
                    _sum([self._child(child, children, depth, pieces, places, pipeline),
                          *self._taken(id(step), number)])
                    for number, child in enumerate(children)
                ]  # fmt: skip
                together = _sum(turns) if pipeline else _most(turns)
                return _most([together, self.run(rest, depth, pieces, places)])
            case _:
                return self.run(rest, depth, pieces, places)

    def _loops(
        self,
        loops: Sequence[Loop],
        rest: Nest,
        depth: int,
        pieces: Pieces,
        places: Mapping[str, float],
    ) -> _Peak:
        if not loops:
            return self.run(rest, depth, pieces, places)
        return _most(
            [
                self._loops(loops[1:], rest, depth + 1, inner, places)
                for _, inner in take_loop(loops[0], pieces, self.tally.exact)
            ]
        )

    def _child(
        self,
        child: Nest,
        children: Collection[Nest],
        depth: int,
        pieces: Pieces,
        places: Mapping[str, float],
        pipeline: bool,
    ) -> _Peak:
        """What a child takes, and what the others hold on to."""
        own = self.run(child, depth, pieces, places)
        if pipeline:
            return own
        return _sum([own, *(self._holding(other) for other in children if other is not child)])

    def _taken(self, branch: int, child: int) -> list[_Peak]:
        """What homes right above a branch take while a child runs."""
        return [
            taken
            for key, taken in self.taken.items()
            if self.turns[key][0] == branch and child in self.turns[key][1]
        ]

    def _holding(self, nest: Nest) -> _Peak:
        inside = {id(n.step) for n in walk_nest(nest)}
        return _sum(
            [
                {self.tally.kept[key].level: words}
                for key, words in self.held.items()
                if key[1] in inside
            ]
        )

    def _keep(
        self, step: Keep, rest: Nest, depth: int, pieces: Pieces, places: Mapping[str, float]
    ) -> _Peak:
        places = dict(places)
        visited: list[_Key] = []
        taken: dict[_Key, _Peak] = {}
        under = places.get(self.facts.root(step.overlaying), 0.0) if step.overlaying else 0.0
        for name in step.tensors:
            tensor = self.facts.root(name)
            key = (tensor, id(step))
            if not step.streamed and key not in self.tally.kept:
                continue  # it lives there anyway
            place = max(self._place(step, tensor, pieces, rest), under)
            taken[key] = {step.level: place - under}
            if not step.streamed:
                places[tensor] = place
                self.held[key] = place - under
                visited.append(key)
        by_turns = {key: words for key, words in taken.items() if key in self.turns}
        self.taken |= by_turns
        below = self.run(rest, depth, pieces, places)
        peak = _sum([below, *(words for key, words in taken.items() if key not in by_turns)])
        self.taken = {key: words for key, words in self.taken.items() if key not in by_turns}
        for key in visited:
            number = self.visits[key] = self.visits.get(key, -1) + 1
            if not self.stays[key][number]:
                del self.held[key]
        return peak

    def _place(self, step: Keep, tensor: str, pieces: Pieces, below: Nest) -> float:
        share = 0.0 if step.spill is None else float(step.spill.share.evaluate(self.point.scope))
        words = self.words(tensor, step.level, pieces, below) * (1 - share)
        return words * copies_of(step, self.point.scope)

    def words(self, tensor: str, level: str, pieces: Pieces, below: Nest = ()) -> float:
        """The words of a tile: of all lanes in a memory, of one in its registers.

        Those that the Einsums below read and write.
        """
        names = [compute.einsum for compute in computes_of(below)] or self.facts.einsums
        visited = self.facts.visited(tensor, names)

        def extent(own: Collection[Piece]) -> int:
            extents = [piece.extent for piece in own]
            return max(extents) if level == REGISTERS else sum(extents)

        extents = {rank: extent(pieces[rank]) for rank in visited.ranks}
        return float(visited.words(extents, self.point.sizes))


def copies_of(keep: Keep, names: Mapping[str, Values]) -> int:
    """How many tiles of what a step keeps are there at once."""
    copies = 1 if keep.copies is None else int(keep.copies.evaluate(names))
    return copies * (2 if keep.double else 1)


def _sum(peaks: Collection[_Peak]) -> _Peak:
    levels = dict.fromkeys(level for peak in peaks for level in peak)
    return {level: sum(peak.get(level, 0.0) for peak in peaks) for level in levels}


def _most(peaks: Collection[_Peak]) -> _Peak:
    levels = dict.fromkeys(level for peak in peaks for level in peak)
    return {level: max(peak.get(level, 0.0) for peak in peaks) for level in levels}
