"""The search under ``explicit`` retention and ``sequential`` composition: `ExplicitSearch`.

The Einsums run in the cascade's order, in blocks (`sequential.blocks`). Each Einsum has
what room is left, and runs in the best ways (`einfuse.mapper.sequential.ways`): given where its
tensors are, no Einsum changes what another costs, and figures join over Einsums. So the best
mapping is a shortest path over blocks, by bounds that are tightened as they come up; with several
figures, partial paths to the same place stay if no other beats them in every figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import combinations, count
from time import monotonic
from typing import Any

import numpy as np

from einfuse.mapper.space.choices import Interrupted, Tally
from einfuse.mapper.space.front import Front, find_gaps, may_improve
from einfuse.mapper.space.objective import Objective, cost_of
from einfuse.mapper.space.space import MapSpace

from .blocks import Block, Blocks, Edge
from .einsum import Floats
from .nest import ExplicitPlan
from .space import ExplicitSpace
from .ways import Way


@dataclass(frozen=True, slots=True)
class _Path:
    """Blocks up to a place, what lies at the first level there, and the figures so far."""

    sized: int
    figures: Floats
    place: int
    residents: frozenset[str]
    steps: tuple[tuple[Edge, Block], ...] = ()


@dataclass(frozen=True, slots=True)
class _Step:
    """A path and a block that may come next; ``tight`` tells that its bound knows its loops."""

    path: _Path
    edge: Edge
    tight: bool


class ExplicitSearch:
    """The search of a space for an objective; `run` it, then take ``front``."""

    def __init__(
        self,
        space: MapSpace,
        objective: Objective,
        deadline: float | None,
        report: Callable[[str], None],
    ) -> None:
        self.space, self.objective = space, objective
        self.deadline, self.report = deadline, report
        self.tally = Tally()
        self.figures = len(objective.figures)
        self.adds = np.array(objective.adds)
        self.peaks = not self.adds.all()  # whether a figure tells the room that is taken
        self.scored = objective.score(np.ones((self.figures, 1))) is not None
        self.front = Front(self.figures)
        self.sized: list[Blocks] = []
        self.ahead: list[list[Floats]] = []
        self.closed: dict[Any, Front] = {}
        self.heap: list[tuple[float, int, Floats, _Path | _Step]] = []
        self.number = count()
        self.working: Floats | None = None

    def expired(self) -> bool:
        """Whether the time is up."""
        return self.deadline is not None and monotonic() > self.deadline

    @property
    def structures(self) -> int:
        """The ways of choosing lanes and levels of an Einsum that were worked on."""
        return sum(blocks.space.structures for blocks in self.sized)

    def run(self) -> None:
        """Work on what promises most, until nothing is left that may improve the front."""
        for sizes in self.space.splits():
            space = ExplicitSpace(self.space, self.objective, sizes, self.tally, self.expired)
            self.sized.append(Blocks(space))
        for number, blocks in enumerate(self.sized):
            start = _Path(number, np.zeros(self.figures), 0, frozenset())
            self.complete(start)
            self.ahead.append(self.least_ahead(blocks))
            self.put(start)
        while self.heap:
            _, _, bound, entry = heappop(self.heap)
            if not self.may_improve(bound):
                if self.scored:
                    break
                continue
            self.working = bound
            if self.expired():
                raise Interrupted
            if isinstance(entry, _Step):
                self.take(entry)
            else:
                self.extend(entry)
            self.working = None

    def complete(self, path: _Path) -> None:
        """Find some mapping soon: the Einsums that are left each by itself, in the best way."""
        blocks = self.sized[path.sized]
        for figure in range(self.figures):
            whole = path
            while whole.place < len(blocks.names):
                edge = blocks.alone(whole.place, whole.residents)
                if not blocks.allowed((blocks.names[whole.place],)):
                    return
                every = list(self.exact(blocks, edge))
                if not every:
                    return
                best = min(every, key=lambda one: float(one[0][figure]))
                whole = self.longer(whole, edge, best[1], best[0])
                if not self.may_improve(whole.figures):
                    break
            else:
                self.finish(whole)

    def least_ahead(self, blocks: Blocks) -> list[Floats]:
        """From every Einsum on, the figures that no mapping goes below."""
        least = [np.zeros(self.figures)]
        for n, name in reversed(list(enumerate(blocks.names))):
            near = {t for t in blocks.space.tensors[name] if t in blocks.near}
            outside = blocks.readers.keys() - blocks.maker.keys()
            near |= {t for t in blocks.space.tensors[name] & outside if blocks.may_lie_near(t)}
            ends = (t for t in blocks.space.tensors[name] if blocks.maker.get(t) == n)
            near |= {t for t in ends if t not in blocks.readers and blocks.may_lie_near(t)}
            ways = [
                blocks.space.floor(name, frozenset(some), blocks.nothing)
                for number in range(len(near) + 1)
                for some in combinations(sorted(near), number)
            ]
            least.append(self.join(np.min(ways, axis=0), least[-1]))
        return least[::-1]

    # Paths and blocks.

    def extend(self, path: _Path) -> None:
        """Put the blocks that may come next."""
        blocks = self.sized[path.sized]
        if path.place == len(blocks.names):
            self.finish(path)
            return
        if not self.is_new(path):
            return
        self.report(f"{blocks.names[path.place]}: {len(self.heap)} blocks are open")
        for edge in blocks.edges(path.place, path.residents):
            self.put(_Step(path, edge, not edge.loops))

    def take(self, step: _Step) -> None:
        """Tighten the bound of a block, or work it out."""
        if not step.tight:
            self.put(_Step(step.path, step.edge, True))
            return
        for figures, block in self.exact(self.sized[step.path.sized], step.edge):
            path = self.longer(step.path, step.edge, block, figures)
            self.put(path)
            self.complete(path)

    def longer(self, path: _Path, edge: Edge, block: Block, figures: Floats) -> _Path:
        """A path with a block more."""
        joined = self.join(path.figures, figures)
        return _Path(path.sized, joined, edge.last, edge.after, (*path.steps, (edge, block)))

    def put(self, entry: _Path | _Step) -> None:
        """Put what may be worked on next, unless its bound cannot improve the front."""
        if isinstance(entry, _Path):
            ahead = self.ahead[entry.sized][entry.place]
            bound = self.join(entry.figures, ahead)
        else:
            edge, path = entry.edge, entry.path
            own = self.least(self.sized[path.sized], edge, entry.tight)
            ahead = self.ahead[path.sized][edge.last]
            bound = self.join(self.join(path.figures, own), ahead)
        if self.may_improve(bound):
            order = cost_of(self.objective, bound) if self.scored else float(bound[0])
            heappush(self.heap, (order, next(self.number), bound, entry))

    def least(self, blocks: Blocks, edge: Edge, tight: bool) -> Floats:
        """The figures that no block of an edge goes below; loosely, whatever its loops are."""
        space, found = blocks.space, np.zeros(self.figures)
        for n, extra in zip(range(edge.first, edge.last), edge.extra, strict=True):
            name = blocks.names[n]
            if tight:
                own = space.ways(name, edge.loops, edge.near).bounds(extra)
            else:
                own = space.floor(name, edge.near, extra)
            found = self.join(found, own)
        return found

    def exact(self, blocks: Blocks, edge: Edge) -> Iterator[tuple[Floats, Block]]:
        """Yield the blocks of an edge, the best ones; none where it has no room."""
        space, tiles = blocks.space, dict(edge.loops)
        elsewhere = edge.tiled | {t for t, _ in edge.standing}
        standing = sum(map(blocks.room, edge.near - elsewhere))
        standing += sum(blocks.room(t, dict(edge.loops[:depth])) for t, depth in edge.standing)
        found: list[tuple[Floats, tuple[Way, ...]]] = [(np.zeros(self.figures), ())]
        for n, extra in zip(range(edge.first, edge.last), edge.extra, strict=True):
            held = standing + sum(
                blocks.room(t, tiles)
                for t in edge.tiled
                if blocks.maker[t] <= n <= max(blocks.readers[t])
            )
            ways = space.ways(blocks.names[n], edge.loops, edge.near)
            own = ways.within(space.room - held, held if self.peaks else 0.0, extra)
            front = Front(self.figures)
            pairs = [(self.join(f, way.figures), (*w, way)) for f, w in found for way in own]
            if pairs:
                for index in front.add_all(np.stack([figures for figures, _ in pairs], axis=1)):
                    front.add(*pairs[index])
            found = list(zip(front.points.T, front.payloads, strict=True))
        own_names = blocks.names[edge.first : edge.last]
        for figures, chosen in found:
            rows = tuple(way.row for way in chosen)
            tiled = tuple(sorted(edge.tiled))
            yield figures, Block(own_names, edge.loops, tiled, edge.standing, rows)

    def is_new(self, path: _Path) -> bool:
        """Whether no path to the same place beats or equals one; it is remembered."""
        key = (path.sized, path.place, path.residents)
        front = self.closed.setdefault(key, Front(self.figures))
        if not front.improves(path.figures[:, None])[0]:
            return False
        front.add(path.figures, None)
        return True

    def finish(self, path: _Path) -> None:
        """Put a mapping onto the front."""
        if not self.may_improve(path.figures):
            return
        if self.scored:
            self.front = Front(self.figures)
        blocks = self.sized[path.sized]
        resident: set[str] = set()
        for edge, _ in path.steps:
            resident |= {*edge.near, *edge.after} - edge.tiled - {t for t, _ in edge.standing}
        order = tuple(t for t in blocks.facts.ranks if t in resident)
        splits = self.space.open_sizes(blocks.space.sizes)
        steps = tuple(block for _, block in path.steps)
        self.front.add(path.figures, ExplicitPlan(splits, steps, order))
        self.report(f"best so far: {', '.join(f'{value:.6g}' for value in path.figures)}")

    # Figures.

    def join(self, first: Floats, second: Floats) -> Floats:
        """The figures of what runs one after the other."""
        if not self.peaks:
            return first + second
        return np.where(self.adds, first + second, np.maximum(first, second))

    def may_improve(self, figures: Floats) -> bool:
        """Whether figures, or what they bound, may improve on what was found."""
        return bool(may_improve(self.objective, self.front, figures[:, None])[0])

    def gap(self) -> float:
        """How far, relatively, the best may be above what is still open."""
        bounds = [bound for _, _, bound, _ in self.heap]
        bounds += [] if self.working is None else [self.working]
        if len(self.ahead) < len(self.sized) or not self.sized:
            return 1.0
        if not bounds:
            return 0.0
        return float(find_gaps(self.objective, self.front, np.stack(bounds, axis=1)).max())

    def reason(self, finished: bool) -> str:
        """Why there is no mapping."""
        name = f"{self.space.cascade.name} on {self.space.architecture.name}"
        if not finished:
            return f"{name}: the time was up before a mapping was found; give it more seconds"
        if self.tally.overflow:
            level, words = min(self.tally.overflow.items(), key=lambda item: item[1])
            lacking = words * self.space.values["word_bytes"]
            return (
                f"{name}: no mapping has room: the smallest tiles need {lacking:.0f} bytes more "
                f"than {level} has; raise {level}.bytes, or use fewer lanes"
            )
        return (
            f"{name}: the constraints leave no mapping: no way to group all Einsums meets 'fuse', "
            "'split', 'keep', 'homes', 'exchange' and 'fused_loops' together"
        )
