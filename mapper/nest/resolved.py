"""The way down to each Einsum: the loops above it and the homes on the way, outer before inner.

What stands above several Einsums is one object, shared by their chains: `shared_loops` finds it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from .loops import Loop
from .nest import Branch, Compute, Keep, Nest, Parallel, Temporal, computes_of
from .reuse import Problem


@dataclass(frozen=True, slots=True)
class Home:
    """A tensor kept at a level below the first ``depth`` loops of a chain."""

    tensor: str
    keep: Keep
    depth: int


@dataclass(frozen=True, slots=True)
class Chain:
    """An Einsum's loops (those in space with their waves in time before them) and homes."""

    einsum: str
    unit: str
    loops: tuple[Loop, ...]
    homes: tuple[Home, ...]

    @property
    def steps_in_time(self) -> tuple[Loop, ...]:
        """The loops in time above the first loop in space: what a tile of work stands under."""
        found: list[Loop] = []
        for loop in self.loops:
            if loop.parallel:
                break
            found.append(loop)
        return tuple(found)


def find_chains(nest: Nest, problem: Problem) -> dict[str, Chain]:
    """Return the chain of every Einsum of a nest that `einfuse.mapper.nest.resolve.count` accepts.

    >>> from einfuse.einsum.language.parser import parse
    >>> from einfuse.mapper.nest.workload import facts
    >>> from einfuse.mapper.nest.nest import parse_nest
    >>> cascade = parse("rank M, N\\ninput A[M,N]\\noutput Y\\nY[n] = A[m,n]")
    >>> problem = Problem(facts(cascade), {"M": 8, "N": 3}, {}, {"vector": {"lanes": 4}}, ("dram",))
    >>> nest = parse_nest(["for N", "for M in 4", "parallel M over lanes", "compute Y on vector"])
    >>> [(loop.rank, int(loop.count)) for loop in find_chains(nest, problem)["Y"].loops]
    [('N', 3), ('M', 2), ('M', 4)]
    """
    chains: dict[str, Chain] = {}
    _walk(nest, problem, (), dict(problem.sizes), (), {}, chains)
    return chains


def _walk(
    nest: Nest,
    problem: Problem,
    loops: tuple[Loop, ...],
    tiles: Mapping[str, float],
    homes: tuple[Home, ...],
    used: Mapping[str, float],
    chains: dict[str, Chain],
) -> None:
    for number, node in enumerate(nest):
        match node.step:
            case Temporal(rank=rank) as step:
                tile = _tile(step, tiles, problem)
                loops = (*loops, Loop(rank, np.ceil(tiles[rank] / tile), False, tile))
                tiles = {**tiles, rank: tile}
            case Parallel(rank=rank, dimension=dimension) as step:
                tile = _tile(step, tiles, problem)
                unit = computes_of(nest[number:])[0].unit
                room = np.floor(problem.lanes[unit][dimension] / used.get(dimension, 1))
                wanted = np.ceil(tiles[rank] / tile)
                side = min(wanted, max(room, 1))
                used = {**used, dimension: used.get(dimension, 1) * side}
                if wanted > side:
                    waves = np.ceil(tiles[rank] / (side * tile))
                    loops = (*loops, Loop(rank, waves, False, side * tile))
                loops = (*loops, Loop(rank, side, True, tile))
                tiles = {**tiles, rank: tile}
            case Keep(tensors=tensors) as step:
                root = problem.facts.root
                homes = (*homes, *(Home(root(name), step, len(loops)) for name in tensors))
            case Compute(einsum=einsum, unit=unit):
                chains[einsum] = Chain(einsum, unit, loops, homes)
            case Branch(children=children):
                for child in children:
                    _walk(child, problem, loops, tiles, homes, used, chains)


def _tile(step: Temporal | Parallel, tiles: Mapping[str, float], problem: Problem) -> float:
    tile = 1.0 if step.tile is None else float(np.floor(step.tile.evaluate(problem.names)))
    return min(tile, tiles[step.rank]) if problem.edges == "exact" else tile


def shared_loops(chains: Iterable[Chain]) -> tuple[Loop, ...]:
    """Return the loops in time that stand above all of them (the same loops, not equal ones)."""
    first, *others = [chain.steps_in_time for chain in chains]
    depth = 0
    for depth, loop in enumerate(first, start=1):
        if not all(len(other) >= depth and other[depth - 1] is loop for other in others):
            return first[: depth - 1]
    return first[:depth]


def iterations(loops: Collection[Loop]) -> int:
    """Return how many iterations nested loops make."""
    return int(np.prod([loop.count for loop in loops], dtype=float))
