"""Which way Einsums sweep: recurrences, reversed reads, and what they make of first and last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from einfuse.einsum.language.equation import Einsum

from .access_kinds import Kind
from .dependence import Direction, Edge, Read

OPPOSITE = {
    Direction.ANY: Direction.ANY,
    Direction.UP: Direction.DOWN,
    Direction.DOWN: Direction.UP,
}


def mirrored(einsums: Sequence[Einsum], reads: list[list[Read]], edges: list[Edge]) -> set[int]:
    """Return the Einsums that run against the order of the inputs they come from.

    Those of one recurrence run the same way: all of them against it, or none.
    """
    against: set[int] = set()
    produced = {o.tensor: i for i, e in enumerate(einsums) for o in e.outputs}
    together = {i: cycle for cycle in cycles(edges) for i in cycle}
    for i in range(len(einsums)):
        group = together.get(i, frozenset({i}))
        frames = {
            read.mirrored != (producer in against)
            for member in group
            for read in reads[member]
            if (read.mirrored or read.kind in (Kind.ALIGNED, Kind.PREFIX, Kind.SUFFIX))
            and (producer := produced.get(read.tensor, -1)) < member
            and producer not in group
        }
        if frames == {True}:
            against |= group
    return against


def turned(edge: Edge, ways: list[Direction], swept: bool) -> Edge:
    """Swap first and last where the producer sweeps downwards; refuse a filter its way."""
    if not swept or (edge.reason and edge.kind is not Kind.FINAL):
        return edge
    against = {Kind.PREFIX: Direction.DOWN, Kind.SUFFIX: Direction.UP}.get(edge.kind)
    if against and ways[edge.consumer] is against:
        reason = f"{edge.tensor} is read {edge.kind.value} by a sweep {against.value}"
        return replace(edge, reason=reason)
    if ways[edge.producer] is not Direction.DOWN:
        return edge
    if edge.kind is Kind.FINAL:
        return replace(edge, reason="")
    if edge.kind is Kind.INIT and not edge.reason:
        return replace(edge, reason=f"{edge.tensor} is swept downwards and read {edge.kind.value}")
    return edge


def cycles(edges: list[Edge]) -> list[frozenset[int]]:
    """Return the Einsums of every recurrence that one sweep has to hold."""
    import networkx as nx

    graph = nx.DiGraph(
        (e.producer, e.consumer) for e in edges if not e.barrier and not e.generations
    )
    return [
        frozenset(found)
        for found in nx.strongly_connected_components(graph)
        if len(found) > 1 or graph.has_edge(*(2 * tuple(found)))
    ]
