"""A picture of a cascade: its Einsums as a graph, coloured by the pass that they stand in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from einfuse.einsum import Cascade, PassReport, trace
from einfuse.figures import require_figure, write_figure

from .plot import PALETTE, new_figure

if TYPE_CHECKING:
    import networkx as nx

_COLUMN_INCHES, _ROW_INCHES = 1.35, 0.75
_OUTSIDE = PALETTE[0]
_PASSES = (PALETTE[2], PALETTE[1], PALETTE[3], PALETTE[6], PALETTE[7], PALETTE[4])
_BARRIER = PALETTE[5]


def draw_passes(cascade: Cascade, report: PassReport, path: Path) -> None:
    """Write the graph of a cascade to a file whose suffix names the format.

    Inputs stand at the left, every Einsum right of what it reads; barriers are thick and red.

    Raises:
        EinfuseError: the suffix is no format of figures, or the folder does not exist.
    """
    require_figure(path)
    graph = build_graph(cascade, report)
    places = _layers(graph)
    width = _COLUMN_INCHES * (1 + max(x for x, _ in places.values()))
    height = _ROW_INCHES * (
        1 + max(y for _, y in places.values()) - min(y for _, y in places.values())
    )
    figure, axes = new_figure(1, 1, max(6.0, width), max(3.0, height + 0.8))
    _draw(graph, places, axes[0][0], report)
    write_figure(path, figure, dpi=200)


def build_graph(cascade: Cascade, report: PassReport) -> nx.DiGraph:
    """Return the graph: inputs and Einsums, each with label and colour, edges with ``barrier``.

    Edges that carry a value to a later generation have ``carried``: they take no part in the
    order from left to right.
    """
    import networkx as nx

    dependence = trace(cascade, report.rank)
    graph = nx.DiGraph()
    for name in cascade.inputs:
        graph.add_node(name, label=name, colour="white", number=0)
    for placement in report.placements:
        number = placement.pass_number if dependence.indexed[placement.index] else 0
        colour = _PASSES[(number - 1) % len(_PASSES)] if number else _OUTSIDE
        graph.add_node(placement.index, label=placement.einsum, colour=colour, number=number)
    for read in dependence.reads:
        if read.tensor in cascade.inputs:
            graph.add_edge(read.tensor, read.einsum, barrier=False, carried=False)
    for edge in dependence.edges:
        known = graph.get_edge_data(edge.producer, edge.consumer, {"barrier": False})
        graph.add_edge(
            edge.producer,
            edge.consumer,
            barrier=edge.barrier or known["barrier"],
            carried=edge.producer >= edge.consumer,
        )
    return graph


def _layers(graph: nx.DiGraph) -> dict[Any, tuple[float, float]]:
    """Place nodes in layers by their longest path, ordered so that edges cross little."""
    import networkx as nx

    forward = nx.DiGraph()
    forward.add_nodes_from(graph)
    forward.add_edges_from((a, b) for a, b, carried in graph.edges(data="carried") if not carried)
    layer: dict[Any, int] = {}
    for node in nx.topological_sort(forward):
        layer[node] = max((layer[before] + 1 for before in forward.predecessors(node)), default=0)
    for node in reversed(list(nx.topological_sort(forward))):
        after = [layer[n] for n in forward.successors(node)]
        if after and not forward.in_degree(node):
            layer[node] = min(after) - 1  # sources stand beside their first reader
    rows: dict[Any, float] = {}
    columns: dict[int, list[Any]] = {}
    for node, column in layer.items():
        columns.setdefault(column, []).append(node)
    for column in sorted(columns):
        nodes = columns[column]
        nodes.sort(key=lambda node: _centre(rows, forward.predecessors(node)))
        for place, node in enumerate(nodes):
            rows[node] = (len(nodes) - 1) / 2 - place
    for _ in range(4):
        for column in sorted(columns, reverse=True):
            nodes = columns[column]
            nodes.sort(key=lambda node: _centre(rows, nx.all_neighbors(forward, node)))
            for place, node in enumerate(nodes):
                rows[node] = (len(nodes) - 1) / 2 - place
    # Every other layer is shifted by a little, so that long edges pass between nodes.
    return {n: (float(layer[n]), rows[n] + 0.18 * (layer[n] % 2)) for n in graph}


def _centre(rows: dict[Any, float], neighbours: Any) -> float:
    found = [rows[n] for n in neighbours if n in rows]
    return -sum(found) / len(found) if found else 0.0


def _bend(places: dict[Any, tuple[float, float]], a: Any, b: Any) -> float:
    """Return the curvature with which an arc from a to b keeps clear of the other nodes."""
    (x0, y0), (x1, y1) = (_inches(places[n]) for n in (a, b))
    others = [_inches(place) for n, place in places.items() if n not in (a, b)]

    def clearance(bend: float) -> float:
        middle = (x0 + x1) / 2 + bend * (y1 - y0), (y0 + y1) / 2 - bend * (x1 - x0)
        curve = [
            tuple(
                (1 - t) ** 2 * p + 2 * t * (1 - t) * q + t**2 * r
                for p, q, r in zip((x0, y0), middle, (x1, y1), strict=True)
            )
            for t in (k / 20 for k in range(3, 18))
        ]
        gap = min((math.dist(point, other) for point in curve for other in others), default=1.0)
        return min(gap, 0.35) - 0.1 * abs(bend)

    return max((0.04, -0.04, 0.12, -0.12, 0.2, -0.2, 0.3, -0.3), key=clearance)


def _inches(place: tuple[float, float]) -> tuple[float, float]:
    return place[0] * _COLUMN_INCHES, place[1] * _ROW_INCHES


def _draw(
    graph: nx.DiGraph, places: dict[Any, tuple[float, float]], axis: Any, report: PassReport
) -> None:
    import networkx as nx
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axis.grid(False)
    axis.axis("off")
    for a, b, data in sorted(graph.edges(data=True), key=lambda edge: bool(edge[2]["barrier"])):
        if a == b:
            continue
        bend = 0.28 if data["carried"] else _bend(places, a, b)
        nx.draw_networkx_edges(
            graph,
            places,
            [(a, b)],
            ax=axis,
            edge_color=_BARRIER if data["barrier"] else "#555555",
            width=2.2 if data["barrier"] else 0.9,
            style="dashed" if data["carried"] else "solid",
            connectionstyle=f"arc3,rad={bend}",
            node_size=1500,
            arrowsize=10,
        )
    for node, data in graph.nodes(data=True):
        axis.text(
            *places[node],
            data["label"],
            ha="center",
            va="center",
            fontsize=9,
            bbox={
                "boxstyle": "square,pad=0.35" if data["colour"] == "white" else "round,pad=0.35",
                "facecolor": data["colour"],
                "edgecolor": "#333333",
                "linewidth": 0.8,
            },
        )
    numbers = sorted({number for _, number in graph.nodes(data="number") if number})
    handles: list[Any] = [Patch(facecolor="white", edgecolor="#333333", label="input")]
    handles += [
        Patch(facecolor=_PASSES[(n - 1) % len(_PASSES)], edgecolor="#333333", label=f"pass {n}")
        for n in numbers
    ]
    if any(data["colour"] == _OUTSIDE for _, data in graph.nodes(data=True)):
        handles.append(
            Patch(facecolor=_OUTSIDE, edgecolor="#333333", label=f"not over {report.rank}")
        )
    if any(barrier for _, _, barrier in graph.edges(data="barrier")):
        handles.append(Line2D([], [], color=_BARRIER, linewidth=2.2, label="waits for the whole"))
    if any(carried for _, _, carried in graph.edges(data="carried")):
        handles.append(Line2D([], [], color="#555555", linestyle="dashed", label="next generation"))
    each = " per generation" if report.per_iteration else ""
    axis.set_title(
        f"{report.cascade} over {report.rank}: passes {report.passes}, sweeps {report.sweeps}{each}"
    )
    axis.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=len(handles)
    )
    axis.margins(0.08)
