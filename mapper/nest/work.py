"""What an Einsum does under its loops: steps in time, active lanes, operations of each."""

from __future__ import annotations

from collections.abc import Sequence

from einfuse.mapper.machine.architecture import INSTANCES
from einfuse.mapper.machine.formula import Values

from .loops import Loop, by_rank, count_pieces, product
from .nest import Compute
from .reuse import Problem, Work
from .workload import EinsumFacts


def find_work(
    problem: Problem, step: Compute, einsum: EinsumFacts, loops: Sequence[Loop], registers: Values
) -> Work:
    """Return what a compute step does.

    Args:
        problem: the unit's lanes, the sizes of the ranks, how edges count.
        step: the step.
        einsum: the facts of its Einsum.
        loops: all above it, outer before inner.
        registers: the words that it takes of one lane's.
    """
    steps: Values = 1
    active: Values = 1
    if problem.exact:
        for rank, own in by_rank(loops).items():
            steps = steps * count_pieces(problem.sizes[rank], own, True, spread=False)
            active = active * count_pieces(problem.sizes[rank], own, None, spread=True)
    else:
        steps = product(loop.count for loop in loops if not loop.parallel)
        active = product(loop.count for loop in loops if loop.parallel)
    operations: dict[str, Values] = {}
    per_point: dict[str, int] = {}
    for operation in einsum.operations:
        done = find_points(problem, loops, operation.ranks, einsum.ranks, active)
        operations[operation.name] = operations.get(operation.name, 0) + operation.times * done
        if operation.ranks == einsum.ranks:
            per_point[operation.name] = per_point.get(operation.name, 0) + operation.times
    lanes = product(problem.lanes[step.unit].values())
    instances = product(loop.count for loop in loops if loop.dimension == INSTANCES)
    return Work(
        step.unit,
        steps,
        active,
        lanes,
        operations,
        per_point,
        step.pipelined,
        register_words=registers,
        instances=instances,
    )


def find_points(
    problem: Problem,
    loops: Sequence[Loop],
    ranks: frozenset[str],
    own: frozenset[str],
    active: Values,
) -> Values:
    """Return the points of some ranks of an Einsum, again in every loop over others, on one lane.

    Args:
        problem: the sizes of the ranks, and how edges count.
        loops: all above the Einsum.
        ranks: those that what is done depends on.
        own: the Einsum's.
        active: the lanes that share the work.
    """
    gone = own - ranks
    if not problem.exact:
        points = product(o.count for o in loops if not o.parallel and o.rank not in gone)
        shared = product(o.count for o in loops if o.parallel and o.rank in gone)
        return points / shared if gone else points
    points = product(problem.sizes[rank] for rank in ranks)
    for rank, chain in by_rank(loops).items():
        if rank not in ranks | gone:
            points = points * count_pieces(problem.sizes[rank], chain, True, spread=True)
    return points / active
