"""Resolving: one walk over a nest at a shape finds its loops, its storages and its Einsums."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from einfuse.einsum import closest
from einfuse.mapper.errors import MappingError
from einfuse.mapper.machine.architecture import INSTANCES
from einfuse.mapper.machine.formula import Values

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
from .resolved import Chain, ResolvedNest, Use
from .reuse import REGISTERS, Problem
from .storage import (
    Held,
    Peak,
    Storage,
    held_by,
    in_turn,
    staying,
    tile_words,
    together,
    touched_below,
)
from .workload import EinsumFacts, Operand


def resolve(nest: Nest, problem: Problem) -> ResolvedNest:
    """Return a nest whose conditions are decided (see `select`) at a shape.

    Raises:
        MappingError: the nest leaves a rank, an Einsum or a tensor out, names an unknown one, or
            reads a tensor before it is made or where it is not put.

    >>> from einfuse.einsum.language.parser import parse
    >>> from einfuse.mapper.nest.workload import facts
    >>> from einfuse.mapper.nest.nest import parse_nest
    >>> cascade = parse("rank M, N\\ninput A[M,N]\\noutput Y\\nY[n] = A[m,n]")
    >>> problem = Problem(facts(cascade), {"M": 8, "N": 3}, {}, {"vector": {"lanes": 4}}, ("dram",))
    >>> nest = parse_nest(["for N", "for M in 4", "parallel M over lanes", "compute Y on vector"])
    >>> [(loop.rank, int(loop.count)) for loop in resolve(nest, problem).chains["Y"].loops]
    [('N', 3), ('M', 2), ('M', 4)]
    """
    walk = _Walk(problem)
    backing = walk.backing()
    peak = walk.visit(nest, (), dict(problem.sizes), backing, (), {}, "mapping")
    missing = [name for name in walk.einsums if name not in walk.chains]
    if missing:
        raise MappingError(
            f"Einsum {missing[0]} of {problem.facts.cascade.name} has no place in the mapping: add "
            f"'compute {missing[0]} on UNIT'"
        )
    walk.check_sources(backing)
    outermost = {problem.memories[0]: Held(0)}
    peak = together([outermost, held_by(backing.values()), peak])
    return ResolvedNest(problem, walk.chains, tuple(walk.storages), peak, walk.valid)


class _Walk:
    """One walk over a tree."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.facts = problem.facts
        self.einsums = problem.facts.einsums
        self.chains: dict[str, Chain] = {}
        self.storages: list[Storage] = []
        self.reads: list[tuple[str, Storage]] = []
        self.producers = {o.tensor: e.name for e in self.einsums.values() for o in e.outputs}
        self.valid: Values = True

    def backing(self) -> dict[str, Storage]:
        """Inputs and outputs live in the outermost memory."""
        cascade, outer = self.facts.cascade, self.problem.memories[0]
        sizes = dict(self.problem.sizes)
        found: dict[str, Storage] = {}
        for name in (*cascade.inputs, *cascade.outputs):
            root = self.facts.root(name)
            if root in self.facts.ranks and root not in found:
                visited = self.facts.visited(root, self.einsums)
                words = tile_words(self.problem, outer, visited, (), sizes)
                found[root] = Storage(
                    root, outer, None, (), sizes, own_words=words, place=words, words=words
                )
        return found

    def visit(
        self,
        nest: Nest,
        loops: tuple[Loop, ...],
        tiles: dict[str, Values],
        homes: Mapping[str, Storage],
        way: tuple[Storage, ...],
        used: Mapping[str, Values],
        where: str,
    ) -> Peak:
        """Walk a nest; return the peak of each level below.

        Args:
            nest: what is left of it.
            loops: those above, outer before inner.
            tiles: the extent of each rank that they leave.
            homes: where each tensor is found.
            way: the storages above, outer before inner.
            used: the lanes taken of each dimension.
            where: its place in the mapping, for errors.
        """
        own: list[Storage] = []
        below: list[Peak] = []
        homes, used = dict(homes), dict(used)
        for number, node in enumerate(nest):
            step = node.step
            if isinstance(step, Branch):
                above = (*way, *own)
                passing = self._passing(nest, number, own)
                own = [storage for storage in own if storage not in passing]
                below.append(self._branch(step, loops, tiles, homes, above, used, where, passing))
                continue
            try:
                below_it = nest[number + 1 :]
                loops, tiles = self._step(step, below_it, loops, tiles, homes, way, used, own)
            except MappingError as error:
                line = render_nest((Node(step),))[0]
                raise MappingError(f"{where}: '{line}': {error}") from None
        return together([held_by(own), in_turn(below)])

    def _passing(self, nest: Nest, number: int, own: Sequence[Storage]) -> list[Storage]:
        """The storages right above a branch that are there for some of its children only."""
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
        homes: dict[str, Storage],
        way: tuple[Storage, ...],
        used: dict[str, Values],
        own: list[Storage],
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
                self._compute(step, loops, tiles, homes, (*way, *own))
        return loops, tiles

    def _branch(
        self,
        step: Branch,
        loops: tuple[Loop, ...],
        tiles: dict[str, Values],
        homes: Mapping[str, Storage],
        way: tuple[Storage, ...],
        used: Mapping[str, Values],
        where: str,
        passing: Sequence[Storage],
    ) -> Peak:
        """Walk the children; one after the other, or all at once."""
        peaks: list[Peak] = []
        kept: list[Peak] = []
        kind = "pipeline" if step.pipeline else "branch"
        for number, child in enumerate(step.children):
            first = len(self.storages)
            place = f"{where}.{kind}[{number}]"
            peaks.append(self.visit(child, loops, tiles, homes, way, used, place))
            kept.append(staying(self.storages[first:], len(loops), self.problem.retention))
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

    def _check_own(self, homes: Mapping[str, Storage], dimension: str) -> None:
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
        homes: dict[str, Storage],
    ) -> list[Storage]:
        levels = (*self.problem.memories, REGISTERS)
        self._check_levels(step, levels)
        kept: list[Storage] = []
        beneath = self._beneath(step, homes)
        for name in step.tensors:
            tensor = self.facts.root(name)
            if tensor not in self.facts.ranks:
                raise MappingError(
                    f"keep of an unknown tensor '{name}'{closest(name, self.facts.ranks)}"
                )
            parent = homes.get(tensor)
            if parent is not None and levels.index(step.level) <= levels.index(parent.level):
                if parent.keep is None and parent.level == step.level:
                    continue  # its backing storage, said aloud
                raise MappingError(
                    f"{name} is kept at {step.level} inside its home at "
                    f"{parent.level}: expected a level further in"
                )
            copies, spilled = self._copies(step), self._spilled(tensor, step)
            visited = self.facts.visited(tensor, (c.einsum for c in computes_of(below)))
            words = tile_words(self.problem, step.level, visited, loops, tiles)
            words = words * copies * (1 - spilled)
            place = np.maximum(words, beneath)
            storage = Storage(
                tensor,
                step.level,
                parent,
                loops,
                dict(tiles),
                step,
                copies,
                spilled,
                self._copied(name, step) if step.copied else "",
                words,
                place,
                place - beneath,
            )
            kept.append(storage)
            if not step.streamed:
                homes[tensor] = storage
                self.storages.append(storage)
        return kept

    def _check_levels(self, step: Keep, levels: Sequence[str]) -> None:
        for level in (step.level, *([step.spill.level] if step.spill else [])):
            if level not in levels:
                raise MappingError(f"no level '{level}'{closest(level, levels)}")
        if step.spill and levels.index(step.spill.level) >= levels.index(step.level):
            raise MappingError(
                f"what spills from {step.level} goes to a level further out, not to "
                f"{step.spill.level}"
            )

    def _beneath(self, step: Keep, homes: Mapping[str, Storage]) -> Values:
        """The words of the place that a step overlays."""
        if step.overlaying is None:
            return 0
        under = homes.get(self.facts.root(step.overlaying))
        if under is None or under.level != step.level:
            raise MappingError(
                f"overlaying {step.overlaying}, which is not kept at {step.level} above"
            )
        return under.place

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
        homes: Mapping[str, Storage],
        way: tuple[Storage, ...],
    ) -> None:
        einsum = self.einsums.get(step.einsum)
        if einsum is None:
            raise MappingError(
                f"compute of an unknown Einsum '{step.einsum}'{closest(step.einsum, self.einsums)}"
            )
        if step.einsum in self.chains:
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
        self.chains[step.einsum] = Chain(step.einsum, step, loops, way)  # it may read its own
        reads = tuple(self._read(step, operand, loops, homes) for operand in einsum.operands)
        writes = tuple(self._write(step, output, loops, homes) for output in einsum.outputs)
        self.chains[step.einsum] = Chain(step.einsum, step, loops, way, reads, writes)

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
        homes: Mapping[str, Storage],
    ) -> Use:
        tensor = operand.tensor
        maker = self.producers.get(tensor, step.einsum)
        if maker not in self.chains and tensor not in self.facts.carried:
            raise MappingError(
                f"{step.einsum} reads {tensor} before {maker} makes it: compute {maker} first"
            )
        if operand.name in step.forwarding or tensor in step.forwarding:
            return Use(operand, None)
        home = homes.get(tensor)
        if home is None:
            raise MappingError(
                f"tensor {operand.name} has no home where {step.einsum} reads it: add "
                f"'keep {operand.name} at LEVEL' above, or 'forwarding {operand.name}'"
            )
        self.reads.append((step.einsum, home))
        registers = self._registers(tensor, home, loops)
        above: Storage | None = registers
        while above is not None:
            above.readers.append((step.einsum, operand.visited))
            above = None if above.forwarded else above.parent
        return Use(operand, registers)

    def _write(
        self,
        step: Compute,
        output: Operand,
        loops: tuple[Loop, ...],
        homes: Mapping[str, Storage],
    ) -> Use:
        home = homes.get(output.tensor)
        registers = None if home is None else self._registers(output.tensor, home, loops)
        above = registers
        while above is not None:
            above.writers.append((step.einsum, output.visited.without(step.accumulating)))
            above = above.parent
        return Use(output, registers)

    def _registers(self, tensor: str, home: Storage, loops: tuple[Loop, ...]) -> Storage:
        """The registers that an access goes to: kept ones, or a word for it alone."""
        if home.level == REGISTERS:
            return home
        self.storages.append(Storage(tensor, REGISTERS, home, loops, {}))
        return self.storages[-1]

    def check_sources(self, backing: Mapping[str, Storage]) -> None:
        """What is read must come from where its maker puts it, or from the outermost memory."""
        for einsum, home in self.reads:
            source = home.outermost
            maker = self.producers.get(home.tensor)
            if source is None or maker is None or source.writers:
                continue
            if backing.get(home.tensor) is not source:
                raise MappingError(
                    f"{einsum} reads {home.tensor} from {source.level}, where {maker} does not put "
                    f"it: add 'keep {home.tensor} at LEVEL' above both"
                )
