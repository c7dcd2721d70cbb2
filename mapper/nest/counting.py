"""Counting: what a resolved nest reads, writes, computes and holds (`.counts` has the rules)."""

from __future__ import annotations

from einfuse.mapper.machine.formula import Values

from .exchanges import Exchanges
from .nest import Nest
from .resolve import resolve
from .resolved import Chain, ResolvedNest
from .reuse import REGISTERS, Counts, Problem, Work
from .transfers import ONE_MEMORY, find_crossing
from .work import find_points, find_work


def count(nest: Nest, problem: Problem) -> Counts:
    """Return the counts of a nest whose conditions are decided (see `select`).

    Raises:
        MappingError: see `einfuse.mapper.nest.resolve.resolve`.
    """
    return count_resolved(resolve(nest, problem))


def count_resolved(resolved: ResolvedNest) -> Counts:
    """Return the counts of a resolved nest."""
    work = {name: _find_work(resolved.problem, chain) for name, chain in resolved.chains.items()}
    exchanges = Exchanges(resolved.problem, work)
    for chain in resolved.chains.values():
        _count_registers(resolved.problem, chain, work[chain.einsum], exchanges)
    for storage in resolved.storages:
        exchanges.settle(storage)
    return Counts(
        exchanges.traffic,
        work,
        {level: held.words for level, held in resolved.peak.items()},
        {level: held.holders for level, held in resolved.peak.items()},
        resolved.valid,
        tuple(exchanges.deliveries),
    )


def _find_work(problem: Problem, chain: Chain) -> Work:
    einsum = problem.facts.einsums[chain.einsum]
    return find_work(problem, chain.step, einsum, chain.loops, _register_words(chain))


def _register_words(chain: Chain) -> Values:
    """The words of one lane: what is kept in its registers, else one of each tensor."""
    kept = {home.tensor: home for home in chain.homes if home.level == REGISTERS}
    used = dict.fromkeys(use.operand.tensor for use in (*chain.reads, *chain.writes))
    words: Values = 0
    for tensor in used:
        home = kept.get(tensor)
        words = words + (1 if home is None or home.streamed else home.own_words)
    return words


def _count_registers(problem: Problem, chain: Chain, work: Work, exchanges: Exchanges) -> None:
    """What an Einsum reads and writes in the registers of a lane."""
    loops, ranks = chain.loops, problem.facts.einsums[chain.einsum].ranks
    points = find_points(problem, loops, ranks, ranks, work.active)
    for use in chain.reads:
        exchanges.add(chain.einsum, use.operand.tensor, REGISTERS, reads=points)
    for use in chain.writes:
        visited = use.operand.visited.without(chain.step.accumulating)
        first = find_crossing(problem, loops, {}, visited, ONE_MEMORY, work.active).lane_once
        tensor = use.operand.tensor
        exchanges.add(chain.einsum, tensor, REGISTERS, reads=points - first, writes=points)
