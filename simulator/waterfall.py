"""The waterfall: what each unit does over time, coloured by Einsum."""

from __future__ import annotations

from pathlib import Path

from einfuse.mapper.errors import MappingError

from .simulation import Simulation
from .trace import Span, spans

EPOCHS = 12
"""How many epochs from the start of each stage are drawn."""


def draw_waterfall(simulation: Simulation, path: Path) -> None:
    """Write the recorded tasks of a simulation as a figure (PNG, SVG or PDF by the suffix).

    Raises:
        MappingError: the file cannot be written, or is of an unknown kind.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    found = list(spans(simulation))
    rows = _rows(simulation, found)
    names = list(dict.fromkeys(span.name for span in found))
    colours = dict(zip(names, pyplot.colormaps["tab20"].colors * 8, strict=False))  # type: ignore[attr-defined]
    figure, axes = pyplot.subplots(figsize=(11, 1.2 + 0.55 * len(rows)), layout="constrained")
    for name in names:
        for number, row in enumerate(rows):
            own = [s for s in found if s.name == name and s.resource == row]
            if own:
                bars = [(span.start, span.end - span.start) for span in own]
                axes.broken_barh(
                    bars, (number - 0.4, 0.8), facecolor=colours[name], edgecolor="white",
                    linewidth=0.3,
                )  # fmt: skip
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xlabel("cycles")
    axes.set_title(_title(simulation), fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    handles = [Patch(color=colours[name]) for name in names]
    axes.legend(
        handles, names, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8,
        ncols=2,
    )  # fmt: skip
    try:
        figure.savefig(path, dpi=160)
    except (OSError, ValueError) as error:
        raise MappingError(f"{path}: cannot write the plot: {error}") from None
    finally:
        pyplot.close(figure)


def _rows(simulation: Simulation, found: list[Span]) -> list[str]:
    used = dict.fromkeys(span.resource for span in found)
    return [name for name in simulation.stalls if name in used] + [
        name for name in used if name not in simulation.stalls
    ]


def _title(simulation: Simulation) -> str:
    charged = ", ".join(simulation.overheads.names) or "no overheads"
    return f"{simulation.design}: {simulation.cycles:.6g} cycles ({charged})"
