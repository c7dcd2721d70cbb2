"""A picture of a cascade: its Einsums as a graph, coloured by the pass that they stand in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from einfuse.einsum.cascade import Cascade
from einfuse.einsum.errors import EinfuseError
from einfuse.einsum.lineage import trace
from einfuse.einsum.passes import PassReport

from .plot import PALETTE, new_figure

if TYPE_CHECKING:
    import networkx as nx

_OUTSIDE = PALETTE[0]
_PASSES = (PALETTE[2], PALETTE[1], PALETTE[3], PALETTE[6], PALETTE[7], PALETTE[4])
_BARRIER = PALETTE[5]


def draw_passes(cascade: Cascade, report: PassReport, path: Path) -> None:
    """Write the graph of a cascade to a file whose suffix names the format.

    Inputs stand at the left, every Einsum right of what it reads; barriers are thick and red.

    Raises:
        EinfuseError: the suffix is no format of figures, or the folder does not exist.
    """
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise EinfuseError(f"--plot: expected a file ending in .png, .svg or .pdf, found '{path}'")
    if not path.parent.is_dir():
        raise EinfuseError(f"--plot: the folder '{path.parent}' does not exist")
    from matplotlib import pyplot

    graph = build_graph(cascade, report)
    places = _layers(graph)
    width = 1.35 * (1 + max(x for x, _ in places.values()))
    height = 0.75 * (1 + max(y for _, y in places.values()) - min(y for _, y in places.values()))
    figure, axes = new_figure(1, 1, max(6.0, width), max(3.0, height + 0.8))
    _draw(graph, places, axes[0][0], report)
    figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    pyplot.close(figure)


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


def _draw(
    graph: nx.DiGraph, places: dict[Any, tuple[float, float]], axis: Any, report: PassReport
) -> None:
    import networkx as nx
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axis.grid(False)
    axis.axis("off")
    for a, b, data in sorted(graph.edges(data=True), key=lambda edge: bool(edge[2]["barrier"])):
        span = abs(places[a][0] - places[b][0])
        bend = 0.28 if data["carried"] else 0.04 if span <= 1 else 0.16
        if a == b:
            continue
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
