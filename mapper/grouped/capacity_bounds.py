"""The room that a group takes at least: whether it can fit at all, before anything is laid out.

What a group makes and reads lives at its exchange level, right below the last loop that all who
touch it share; so do all that stand between them, or are computed anew in it. So a tensor takes at
least one tile of each rank over which all of these may share a loop, and the whole of the others;
nothing, where it may be forwarded or take over the room of another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

import numpy as np

from einfuse.mapper.errors import MappingError
from einfuse.mapper.space.memo import Pieces
from einfuse.mapper.space.space import MapSpace

from .forwarding import may_forward
from .group_tree import GroupTree
from .tile_bounds import least_rooms

Run = tuple[int, int]  # the first Einsum, and the one behind the last


def least_words(space: MapSpace, einsums: tuple[str, ...], sizes: Mapping[str, int]) -> float:
    """Return the words that what a group of Einsums makes and reads takes at least.

    Args:
        space: the mappings.
        einsums: those of the group.
        sizes: the size of every rank.

    >>> from einfuse.einsum.library.cascades import load
    >>> from einfuse.mapper.machine.architecture import load_architecture
    >>> shape = {"B": 1, "H": 1, "E": 64, "F": 64, "M": 1024, "P": 1024}
    >>> space = MapSpace(load("attention/1-pass"), load_architecture("fusemax"), shape)
    >>> least_words(space, space.einsums, next(space.splits()))  # RM, RD, RNV of one query
    3.0
    """
    roles = space.roles(einsums)
    known = space.facts
    repeated = space.legality.repeatable(einsums, roles.inside)
    total = 0.0
    for tensor in (*roles.inside, *roles.through):
        touching = roles.touched_by[tensor]
        if tensor in roles.inside and (may_forward(space, tensor) or _may_overlay(space, tensor)):
            continue
        first, last = einsums.index(touching[0]), einsums.index(touching[-1])
        shared = {*space.legality.shared(einsums[first : last + 1]), *repeated}
        tiles = {
            rank: min(space.loop_tiles(rank, size, touching), default=size)  # none: no such loop
            if rank in shared
            else size
            for rank, size in sizes.items()
        }
        words = float(known.visited(tensor, touching).words(tiles, sizes))
        total += words * (2.0 if tensor in space.constraints.double else 1.0)
    return total


def _may_overlay(space: MapSpace, tensor: str) -> bool:
    """Whether a tensor may take over the room of one that it is made from."""
    ranks = space.facts.ranks
    return tensor not in space.facts.carried and any(
        einsum.ranks == ranks[tensor] and any(o.tensor == tensor for o in einsum.outputs)
        for einsum in space.facts.einsums.values()
    )


def runs_that_fit(
    pieces: Pieces, runs: Sequence[Run], sizes: Sequence[Mapping[str, int]]
) -> list[Run]:
    """Return the runs of Einsums for which a level may have room.

    Args:
        pieces: of the space and the objective.
        runs: those that may stand in one group, in order.
        sizes: the size of every rank, for each choice of the open splits.

    Raises:
        MappingError: no grouping of all Einsums fits; which level lacks how much at least.
    """
    space = pieces.space
    names = space.einsums
    least = {rank: min(one[rank] for one in sizes) for rank in sizes[0]}
    lacking: dict[Run, tuple[float, str]] = {}
    for run in runs:
        words = least_words(space, names[slice(*run)], least)
        lacking[run] = min(_beyond(pieces, level, words) for level in _levels(space, run))
    fitting = [run for run in runs if not lacking[run][0]]
    path = _narrowest(lacking, len(names))
    if not path or all(not lacking[run][0] for run in path):
        return fitting
    exact: set[Run] = set()
    while left := [run for run in path if run not in exact]:
        run = max(left, key=lambda one: lacking[one][0])
        lacking[run] = _least_lacking(pieces, run, sizes, lacking[run][0])
        exact.add(run)
        path = _narrowest(lacking, len(names))
    words, level = max(lacking[run] for run in path)
    if not words:
        return fitting
    raise MappingError(
        f"{space.cascade.name} on {space.architecture.name}: no tile fits: the smallest needs "
        f"{words * space.values['word_bytes']:.0f} bytes more than {level} has; raise "
        f"{level}.bytes, or allow smaller tiles"
    )


def _levels(space: MapSpace, run: Run) -> tuple[int, ...]:
    return space.levels(space.einsums[slice(*run)])[0][1]


def _beyond(pieces: Pieces, number: int, words: float) -> tuple[float, str]:
    """The words that a level lacks to hold some, and its name."""
    level = pieces.space.memories[number]
    held = pieces.space.values.get(f"{level}.bytes")
    limit = inf if held is None else held / pieces.space.values["word_bytes"]
    return (words - limit if words > limit * (1 + 1e-12) else 0.0), level


def _least_lacking(
    pieces: Pieces, run: Run, sizes: Sequence[Mapping[str, int]], bound: float
) -> tuple[float, str]:
    """The words that a run lacks at the smallest tiles of the structure that takes least.

    Args:
        pieces: of the space and the objective.
        run: of Einsums.
        sizes: the size of every rank, for each choice of the open splits.
        bound: none takes less than that.
    """
    space = pieces.space
    names = space.einsums[slice(*run)]
    (_, levels), *faces = space.levels(names)
    fed = tuple((tensor, choice[0]) for tensor, choice in faces)
    found = [(inf, "")]
    for one in sizes:
        for structure in space.structures_at(names, levels[0], fed):  # at others it takes the same
            tiles = {r: space.loop_tiles(r, one[r], names) for r in structure.loops}
            if not all(tiles.values()):
                continue
            points = {rank: np.array([min(choice)]) for rank, choice in tiles.items()}
            tree = GroupTree(pieces, structure, one, points, np.zeros(1, dtype=bool))
            taken = float(least_rooms(tree)[:, 0].sum())
            found.append(min(_beyond(pieces, level, taken) for level in levels))
            if found[-1][0] <= bound:
                return found[-1]
    return min(found)


def _narrowest(lacking: Mapping[Run, tuple[float, str]], count: int) -> list[Run]:
    """The path through runs of which the tightest lacks least; none if there is no path.

    >>> _narrowest({(0, 1): (0, ""), (1, 2): (9, "buffer"), (0, 2): (5, "buffer")}, 2)
    [(0, 2)]
    """
    paths: dict[int, tuple[float, list[Run]]] = {0: (0.0, [])}
    for (start, end), (words, _) in sorted(lacking.items()):
        if start in paths:
            worst = max(paths[start][0], words)
            if end not in paths or worst < paths[end][0]:
                paths[end] = worst, [*paths[start][1], (start, end)]
    return paths.get(count, (0.0, []))[1]
