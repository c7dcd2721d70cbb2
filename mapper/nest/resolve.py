"""Counting: one walk over a nest finds its homes and its work (`.counts` has the rules)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from einfuse.einsum import closest
from einfuse.mapper.errors import MappingError
from einfuse.mapper.machine.architecture import INSTANCES
from einfuse.mapper.machine.formula import Values

from .exchanges import Exchanges
from .loops import Loop, ceil_divide, loop_in_time
from .nest import (
    Branch,
    Compute,
    Keep,
    Nest,
    Node,
    Parallel,
    Temporal,
    computes_of,
    render_nest,
)
from .reuse import REGISTERS, Counts, Problem, Work
from .storage import (
    Held,
    Home,
    Peak,
    held_by,
    in_turn,
    staying,
    together,
    touched_below,
    words_of,
)
from .transfers import ONE_MEMORY, find_crossing
from .work import find_points, find_work
from .workload import EinsumFacts, Operand


def count(nest: Nest, problem: Problem) -> Counts:
    """Return the counts of a nest whose conditions are decided (see `select`).

    Raises:
        MappingError: the nest leaves a rank, an Einsum or a tensor out, names an unknown one, or
            reads a tensor before it is made or where it is not put.
    """
    walk = _Walk(problem)
    homes = walk.implicit_homes()
    peak = walk.visit(nest, (), dict(problem.sizes), homes, {}, "mapping")
    missing = [name for name in walk.einsums if name not in walk.work]
    if missing:
        raise MappingError(
            f"Einsum {missing[0]} of {problem.facts.cascade.name} has no place in the mapping: add "
            f"'compute {missing[0]} on UNIT'"
        )
    walk.check_sources(homes)
    for home in walk.homes:
        walk.exchanges.settle(home)
    outermost = {problem.memories[0]: Held(0)}
    peak = together([outermost, held_by(homes.values()), peak])
    return Counts(
        walk.exchanges.traffic,
        walk.work,
        {level: held.words for level, held in peak.items()},
        {level: held.holders for level, held in peak.items()},
        walk.valid,
        tuple(walk.exchanges.deliveries),
    )


class _Walk:
    """One walk over a tree."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.facts = problem.facts
        self.einsums = problem.facts.einsums
        self.work: dict[str, Work] = {}
        self.exchanges = Exchanges(problem, self.work)
        self.homes: list[Home] = []
        self.reads: list[tuple[str, Home]] = []
        self.producers = {o.tensor: e.name for e in self.einsums.values() for o in e.outputs}
        self.valid: Values = True

    def implicit_homes(self) -> dict[str, Home]:
        """Inputs and outputs live in the outermost memory."""
        cascade, outer = self.facts.cascade, self.problem.memories[0]
        homes: dict[str, Home] = {}
        for name in (*cascade.inputs, *cascade.outputs):
            root = self.facts.root(name)
            if root in self.facts.ranks and root not in homes:
                homes[root] = Home(root, outer, None, (), dict(self.problem.sizes))
                homes[root].place = homes[root].room = words_of(homes[root], self.problem)
        return homes

    def visit(
        self,
        nest: Nest,
        loops: tuple[Loop, ...],
        tiles: dict[str, Values],
        homes: Mapping[str, Home],
        used: Mapping[str, Values],
        where: str,
    ) -> Peak:
        """Walk a nest; return the peak of each level below."""
        own: list[Home] = []
        below: list[Peak] = []
        homes, used = dict(homes), dict(used)
        for number, node in enumerate(nest):
            step = node.step
            if isinstance(step, Branch):
                passing = self._passing(nest, number, own)
                own = [home for home in own if home not in passing]
                below.append(self._branch(step, loops, tiles, homes, used, where, passing))
                continue
            try:
                loops, tiles = self._step(step, nest[number + 1 :], loops, tiles, homes, used, own)
            except MappingError as error:
                line = render_nest((Node(step),))[0]
                raise MappingError(f"{where}: '{line}': {error}") from None
        return together([held_by(own), in_turn(below)])

    def _passing(self, nest: Nest, number: int, own: Sequence[Home]) -> list[Home]:
        """The homes right above a branch that are there for some of its children only."""
        step = nest[number].step
        assert isinstance(step, Branch)
        branches = sum(isinstance(node.step, Branch) for node in nest)
        if self.problem.retention != "explicit" or step.pipeline or branches > 1:
            return []
        above = reversed(nest[:number])
        direct = list(itertools.takewhile(lambda s: isinstance(s, Keep), (n.step for n in above)))
        return [
            home
            for home in own
            if any(home.keep is kept for kept in direct)
            and any(touched_below(self.facts, home.tensor, child) for child in step.children)
        ]

    def _step(
        self,
        step: Temporal | Parallel | Keep | Compute,
        following: Nest,
        loops: tuple[Loop, ...],
        tiles: dict[str, Values],
        homes: dict[str, Home],
        used: dict[str, Values],
        own: list[Home],
    ) -> tuple[tuple[Loop, ...], dict[str, Values]]:
        """Take one step inwards; return the loops and the tiles below it."""
        match step:
            case Temporal(rank=rank):
                tile = self._tile(step, tiles)
                loops = (*loops, loop_in_time(rank, tiles[rank], tile))
                tiles = {**tiles, rank: tile}
            case Parallel(rank=rank, dimension=dimension):
                tile = self._tile(step, tiles)
                self._check_own(homes, dimension)
                room, shares = self._room(step, following, used)
                wanted = ceil_divide(tiles[rank], tile)
                side = np.minimum(wanted, room)
                used[dimension] = used.get(dimension, 1) * side
                if np.any(wanted > room):
                    loops = (*loops, loop_in_time(rank, tiles[rank], side * tile))
                loops = (*loops, Loop(rank, side, True, tile, dimension, shares))
                tiles = {**tiles, rank: tile}
            case Keep():
                own.extend(self._keep(step, following, loops, tiles, homes))
            case Compute():
                self._compute(step, loops, tiles, homes)
        return loops, tiles

    def _branch(
        self,
        step: Branch,
        loops: tuple[Loop, ...],
        tiles: dict[str, Values],
        homes: Mapping[str, Home],
        used: Mapping[str, Values],
        where: str,
        passing: Sequence[Home],
    ) -> Peak:
        """Walk the children; one after the other, or all at once."""
        peaks: list[Peak] = []
        kept: list[Peak] = []
        kind = "pipeline" if step.pipeline else "branch"
        for number, child in enumerate(step.children):
            first = len(self.homes)
            place = f"{where}.{kind}[{number}]"
            peaks.append(self.visit(child, loops, tiles, homes, used, place))
            kept.append(staying(self.homes[first:], len(loops), self.problem.retention))
        if step.pipeline:
            return together(peaks)
        for home in passing:
            touching = [
                n for n, c in enumerate(step.children) if touched_below(self.facts, home.tensor, c)
            ]
            for number in range(touching[0], touching[-1] + 1):
                peaks[number] = together([held_by([home]), peaks[number]])
        return in_turn(
            together([peak, *kept[:number], *kept[number + 1 :]])
            for number, peak in enumerate(peaks)
        )

    def _tile(self, step: Temporal | Parallel, tiles: Mapping[str, Values]) -> Values:
        rank, formula = step.rank, step.tile
        if rank not in self.problem.sizes:
            raise MappingError(
                f"loop over an unknown rank '{rank}'{closest(rank, self.problem.sizes)}"
            )
        if formula is None:
            return 1
        found = formula.evaluate(self.problem.names)
        tile = self._whole(found, f"a tile of at least 1 of rank {rank}")
        if not formula.names:  # a number by hand; a tile of the hardware's may be larger
            size = self.problem.sizes[rank]
            fits = (np.floor(found) == found) & np.less_equal(found, size)
            expected = f"a whole tile of at most the {np.max(size):.6g} points of rank {rank}"
            tile = self._right(np.broadcast_to(found, np.shape(size))[()], fits, tile, expected)
        return np.minimum(tile, tiles[rank]) if self.problem.exact else tile

    def _whole(self, found: Values, expected: str) -> Values:
        """A number of at least 1, rounded down; elsewhere in an array the mapping is not valid."""
        whole = np.floor(found)
        return self._right(found, (whole >= 1) & np.isfinite(whole), whole, expected)

    def _right(self, found: Values, right: Values, value: Values, expected: str) -> Values:
        """The value where it is right, else 1 and the mapping is not valid there."""
        if np.all(right):
            return value
        if np.ndim(found) == 0:
            raise MappingError(f"expected {expected}, found {found:g}")
        self.valid = self.valid & right
        return np.where(right, value, 1)

    def _room(self, step: Parallel, below: Nest, used: Mapping[str, Values]) -> tuple[Values, str]:
        """The lanes that are free along a dimension, and what they share."""
        units = {compute.unit for compute in computes_of(below)}
        for unit in units:
            dimensions = self.problem.lanes.get(unit, {})
            if unit in self.problem.lanes and step.dimension not in dimensions:
                raise MappingError(
                    f"{unit} has no dimension '{step.dimension}'"
                    f"{closest(step.dimension, dimensions)}"
                )
        rooms = [self.problem.lanes[u][step.dimension] for u in units if u in self.problem.lanes]
        if len(rooms) != 1:
            known = ", ".join(sorted(units)) or "none"
            raise MappingError(
                f"a loop in space needs one unit below it, found {known}"
                f"{'' if units else '; add a compute'}"
            )
        room = np.floor(rooms[0] / used.get(step.dimension, 1))
        shares = self.problem.shares.get(units.pop(), {}).get(step.dimension, "any")
        return np.maximum(room, 1), shares

    def _check_own(self, homes: Mapping[str, Home], dimension: str) -> None:
        for home in homes.values():
            if home.level == REGISTERS:
                raise MappingError(
                    f"{home.tensor} is kept at {REGISTERS} above a loop in space; "
                    "registers are each lane's own: move the keep below it"
                )
            if dimension == INSTANCES and home.level in self.problem.instanced:
                raise MappingError(
                    f"{home.tensor} is kept at {home.level} above a loop over instances; each has "
                    f"{home.level} of its own: move the keep below it"
                )

    def _keep(
        self,
        step: Keep,
        below: Nest,
        loops: tuple[Loop, ...],
        tiles: Mapping[str, Values],
        homes: dict[str, Home],
    ) -> list[Home]:
        levels = (*self.problem.memories, REGISTERS)
        for level in (step.level, *([step.spill.level] if step.spill else [])):
            if level not in levels:
                raise MappingError(f"no level '{level}'{closest(level, levels)}")
        if step.spill and levels.index(step.spill.level) >= levels.index(step.level):
            raise MappingError(
                f"what spills from {step.level} goes to a level further out, not to "
                f"{step.spill.level}"
            )
        kept: list[Home] = []
        beneath: Values = 0
        if step.overlaying is not None:
            under = homes.get(self.facts.root(step.overlaying))
            if under is None or under.level != step.level:
                raise MappingError(
                    f"overlaying {step.overlaying}, which is not kept at {step.level} above"
                )
            beneath = under.place
        for name in step.tensors:
            tensor = self.facts.root(name)
            if tensor not in self.facts.ranks:
                raise MappingError(
                    f"keep of an unknown tensor '{name}'{closest(name, self.facts.ranks)}"
                )
            parent = homes.get(tensor)
            if parent is not None and levels.index(step.level) <= levels.index(parent.level):
                if parent.keep is None and parent.level == step.level:
                    continue  # the implicit home, said aloud
                raise MappingError(
                    f"{name} is kept at {step.level} inside its home at "
                    f"{parent.level}: expected a level further in"
                )
            home = Home(tensor, step.level, parent, loops, dict(tiles), step)
            home.copies = self._copies(step)
            home.spilled = self._spilled(tensor, step)
            home.visited = self.facts.visited(tensor, (c.einsum for c in computes_of(below)))
            home.copy = self._copied(name, step) if step.copied else ""
            home.place = np.maximum(words_of(home, self.problem), beneath)
            home.room = home.place - beneath
            kept.append(home)
            if not step.streamed:
                homes[tensor] = home
                self.homes.append(home)
        return kept

    def _copied(self, name: str, step: Keep) -> str:
        """The view that a copy stands for."""
        views = [view for view, tensor in self.facts.roots.items() if view != tensor]
        if name not in views:
            raise MappingError(
                f"copied: expected a view of {self.facts.cascade.name} "
                f"({', '.join(views) or 'it has none'}), found {name}{closest(name, views)}"
            )
        producer = self.producers.get(self.facts.root(name))
        if producer is not None:
            raise MappingError(
                f"copied: {name} is a view of what {producer} makes: keep it where it is made"
            )
        if step.level == REGISTERS or step.level in self.problem.instanced:
            raise MappingError(
                f"copied: expected one memory that is shared by all lanes, found {step.level}"
            )
        return name

    def _copies(self, keep: Keep) -> Values:
        """How many tiles of what a step keeps are there at once."""
        twice = 2 if keep.double else 1
        if keep.copies is None:
            return twice
        return twice * self._whole(keep.copies.evaluate(self.problem.names), "copies of at least 1")

    def _spilled(self, tensor: str, keep: Keep) -> Values:
        """The share of a tensor that lives elsewhere."""
        if keep.spill is None:
            return 0
        share = keep.spill.share.evaluate(self.problem.names)
        right = (np.asarray(share) >= 0) & (np.asarray(share) <= 1)
        return self._right(share, right, share, f"a spilled share of 0 to 1 of {tensor}")

    def _compute(
        self,
        step: Compute,
        loops: tuple[Loop, ...],
        tiles: Mapping[str, Values],
        homes: Mapping[str, Home],
    ) -> None:
        einsum = self.einsums.get(step.einsum)
        if einsum is None:
            raise MappingError(
                f"compute of an unknown Einsum '{step.einsum}'{closest(step.einsum, self.einsums)}"
            )
        if step.einsum in self.work:
            raise MappingError(f"Einsum {step.einsum} is computed twice")
        if step.unit not in self.problem.lanes:
            raise MappingError(f"no unit '{step.unit}'{closest(step.unit, self.problem.lanes)}")
        for rank in sorted(einsum.ranks):
            if np.any(np.asarray(tiles[rank]) > 1):
                raise MappingError(
                    f"{step.einsum} is left with {np.max(tiles[rank]):g} of rank {rank} "
                    f"in one step: add 'for {rank}' or 'parallel {rank} over ...'"
                )
        self._check_options(step, einsum)
        work = find_work(self.problem, step, einsum, loops, self._register_words(einsum, homes))
        self.work[step.einsum] = work
        points = find_points(self.problem, loops, einsum.ranks, einsum.ranks, work.active)
        for operand in einsum.operands:
            self._read(step, operand, loops, homes, points)
        for output in einsum.outputs:
            self._write(step, output, loops, homes, points)

    def _register_words(self, einsum: EinsumFacts, homes: Mapping[str, Home]) -> Values:
        """The words of one lane: what is kept in its registers, else one of each tensor."""
        words: Values = 0
        for tensor in dict.fromkeys(used.tensor for used in (*einsum.operands, *einsum.outputs)):
            home = homes.get(tensor)
            kept = home is not None and home.level == REGISTERS
            words = words + (words_of(home, self.problem) if home is not None and kept else 1)
        return words

    def _check_options(self, step: Compute, einsum: EinsumFacts) -> None:
        operands = {name for o in einsum.operands for name in (o.name, o.tensor)}
        ranks = frozenset[str]().union(*(output.ranks for output in einsum.outputs))
        for word, names, known, what in (
            ("forwarding", step.forwarding, operands, "operand"),
            ("accumulating", step.accumulating, ranks, "rank of its output"),
        ):
            for name in names:
                if name not in known:
                    raise MappingError(f"{word} {name}, which is no {what}{closest(name, known)}")

    def _read(
        self,
        step: Compute,
        operand: Operand,
        loops: tuple[Loop, ...],
        homes: Mapping[str, Home],
        points: Values,
    ) -> None:
        tensor = operand.tensor
        maker = self.producers.get(tensor, step.einsum)
        if maker not in self.work and tensor not in self.facts.carried:
            raise MappingError(
                f"{step.einsum} reads {tensor} before {maker} makes it: compute {maker} first"
            )
        self.exchanges.add(step.einsum, tensor, REGISTERS, reads=points)
        if operand.name in step.forwarding or tensor in step.forwarding:
            return
        home = homes.get(tensor)
        if home is None:
            raise MappingError(
                f"tensor {operand.name} has no home where {step.einsum} reads it: add "
                f"'keep {operand.name} at LEVEL' above, or 'forwarding {operand.name}'"
            )
        self.reads.append((step.einsum, home))
        register: Home | None = self._register(tensor, home, loops)
        while register is not None:
            register.readers.append((step.einsum, operand.visited))
            register = None if register.forwarded else register.parent

    def _write(
        self,
        step: Compute,
        output: Operand,
        loops: tuple[Loop, ...],
        homes: Mapping[str, Home],
        points: Values,
    ) -> None:
        tensor = output.tensor
        visited = output.visited.without(step.accumulating)
        active = self.work[step.einsum].active
        first = find_crossing(self.problem, loops, {}, visited, ONE_MEMORY, active).lane_once
        self.exchanges.add(step.einsum, tensor, REGISTERS, reads=points - first, writes=points)
        home = homes.get(tensor)
        register = None if home is None else self._register(tensor, home, loops)
        while register is not None:
            register.writers.append((step.einsum, visited))
            register = register.parent

    def _register(self, tensor: str, home: Home, loops: tuple[Loop, ...]) -> Home:
        """The registers that an access goes to: kept ones, or a word for it alone."""
        if home.level == REGISTERS:
            return home
        self.homes.append(Home(tensor, REGISTERS, home, loops, {}))
        return self.homes[-1]

    def check_sources(self, implicit: Mapping[str, Home]) -> None:
        """What is read must come from where its maker puts it, or from the outermost memory."""
        for einsum, home in self.reads:
            source = home.outermost
            maker = self.producers.get(home.tensor)
            if source is None or maker is None or source.writers:
                continue
            if implicit.get(home.tensor) is not source:
                raise MappingError(
                    f"{einsum} reads {home.tensor} from {source.level}, where {maker} does not put "
                    f"it: add 'keep {home.tensor} at LEVEL' above both"
                )
