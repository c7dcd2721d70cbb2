"""The cheapest tensors between two sets of tensors: a minimum vertex cut by maximum flow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def minimum_cut(
    arcs: Iterable[tuple[str, str]],
    early: Iterable[str],
    late: Iterable[str],
    capacity: Mapping[str, float],
) -> frozenset[str]:
    """Return the cheapest tensors that part the early from the late, as late as possible.

    Args:
        arcs: tensor -> tensor computed from it.
        early: tensors at which paths start.
        late: tensors at which they end; one of both kinds has to be cut itself.
        capacity: the price of each tensor; one without a price cannot be cut.

    >>> sorted(minimum_cut([("K", "QK")], ["K"], ["QK"], {"K": 64, "QK": 1}))
    ['QK']
    """
    import networkx as nx

    network = nx.DiGraph()
    network.add_nodes_from(("early", "late"))
    for tensor in {*early, *late, *(t for arc in arcs for t in arc)}:
        price = {"capacity": capacity[tensor]} if tensor in capacity else {}
        network.add_edge((tensor, "in"), (tensor, "out"), **price)
    for source, target in arcs:
        network.add_edge((source, "out"), (target, "in"))
    for tensor in early:
        network.add_edge("early", (tensor, "in"))
    for tensor in late:
        network.add_edge((tensor, "out"), "late")
    # networkx puts all that can still reach the sink on its side: the cut next to the late.
    _, (near, far) = nx.minimum_cut(network, "early", "late")
    return frozenset(t for t in capacity if (t, "in") in near and (t, "out") in far)
