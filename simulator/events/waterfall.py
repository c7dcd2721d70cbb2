"""The waterfall: what each unit does over time, coloured by Einsum.

A run of one schedule is drawn task by task, its first epochs. A run of several, one after the
other, is drawn whole: of each of them the time that its Einsums take on their units, side by side,
and that of the memories.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from einfuse.figures import blank_figure

from .program import FETCH
from .simulation import Simulation
from .trace import Span, spans

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPOCHS = 9
"""How many epochs from the start are drawn."""
_TRAFFIC = "traffic"
_SEEN = 0.002  # of the width: bars that can be told from a line
_NAMED = 0.035  # of the width: bars that have room for their name


def draw_waterfall(simulation: Simulation) -> Figure:
    """Return the figure of a simulation whose first epochs were recorded.

    >>> from einfuse.mapper.design.design import load_design
    >>> from einfuse.simulator.events.machine import Recording
    >>> from einfuse.simulator.events.simulation import simulate
    >>> shape = {"B": 1, "H": 1, "M": 256, "P": 256, "E": 64, "F": 64}
    >>> run = simulate(load_design("fusemax"), shape, recording=Recording(1, EPOCHS))
    >>> figure = draw_waterfall(run)
    >>> [label.get_text().split(chr(10))[0] for label in figure.axes[0].get_yticklabels()]
    ['array_2d', 'array_1d']
    """
    whole = len(simulation.runs) > 1
    found = list(_work(simulation)) if whole else list(spans(simulation))
    rows = _rows(simulation, found)
    end = simulation.cycles if whole else max((span.end for span in found), default=1.0)
    figure = blank_figure(12, 1.9 + 0.75 * len(rows))  # before matplotlib is imported otherwise
    colours = _colours(simulation, found)
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter

    axes = figure.subplots()
    for number, row in enumerate(rows):
        own = [span for span in found if span.resource == row]
        lanes = 1 + max(span.lane for span in own)
        for span in own:
            height = 0.8 / lanes
            low = number - 0.4 + span.lane * height
            width = span.end - span.start
            axes.broken_barh(
                [(span.start, width)], (low, height), facecolor=colours[span.name],
                edgecolor="white", linewidth=0.6,
            )  # fmt: skip
            label = span.name if whole else f"{span.name} {span.tile}"
            if width > _NAMED * end:
                axes.text(
                    span.start + width / 2, low + height / 2, label, ha="center", va="center",
                    fontsize=8 if lanes < 3 else 6, color=_ink(colours[span.name]), clip_on=True,
                )  # fmt: skip
    axes.set_yticks(range(len(rows)), [_label(simulation, row) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, end)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda cycles, _: f"{cycles:,.0f}"))
    axes.set_xlabel("cycles")
    axes.set_title(_title(simulation, whole), fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    drawn = {span.name for span in found if span.end - span.start > _SEEN * end}
    colours = {name: colour for name, colour in colours.items() if name in drawn}
    columns = len(colours) if len(colours) <= 12 else -(-len(colours) // 2)
    figure.legend(
        [Patch(color=colours[name]) for name in colours], list(colours), loc="outside lower center",
        frameon=False, fontsize=9, ncols=columns,
    )  # fmt: skip
    return figure


def _work(simulation: Simulation) -> list[Span]:
    """Of each run the time that its Einsums take on their units, one behind the other."""
    found: list[Span] = []
    for run in simulation.runs:
        free = dict.fromkeys(run.program.units, run.start)
        for task in run.program.tasks:
            if task.unit < 0:
                continue
            unit = run.program.units[task.unit]
            taken = task.cycles * (run.program.tiles // task.period)
            found.append(Span(unit, task.name, 0, free[unit], free[unit] + taken))
            free[unit] += taken
    for level, start, taken in simulation.memories:
        if taken:
            found.append(Span(level, _TRAFFIC, 0, start, start + taken))
    return found


def _rows(simulation: Simulation, found: Sequence[Span]) -> list[str]:
    used = dict.fromkeys(span.resource for span in found)
    return [name for name in simulation.stalls if name in used] + [
        name for name in used if name not in simulation.stalls
    ]


def _colours(simulation: Simulation, found: Sequence[Span]) -> dict[str, Any]:
    """A colour for each Einsum, the same in every design of a cascade; what is fetched is grey."""
    from matplotlib import colormaps

    table = colormaps["tab20"].colors  # type: ignore[attr-defined]
    strong_first = [*table[0::2], *table[1::2]]
    names = dict.fromkeys(span.name for span in found)
    fetched = {t.name for run in simulation.runs for t in run.program.tasks if t.unit == FETCH}
    ordered = [name for name in simulation.einsums if name in names]
    places = {name: number for number, name in enumerate(simulation.einsums)}
    colours = {name: strong_first[places[name] % len(strong_first)] for name in ordered}
    greys = ("0.45", "0.6", "0.75")
    others = [name for name in names if name not in colours]
    return colours | {
        name: greys[number % 3] if name in fetched else "0.6" for number, name in enumerate(others)
    }


def _ink(colour: Any) -> str:
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    return "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.55 else "white"


def _label(simulation: Simulation, row: str) -> str:
    if row not in simulation.busy_cycles:
        return row
    return f"{row}\nbusy {100 * simulation.busy_cycles[row] / simulation.cycles:.0f} %"


def _title(simulation: Simulation, whole: bool) -> str:
    charged = ", ".join(simulation.overheads.names) or "none"
    text = f"{simulation.design}: {simulation.cycles:,.0f} cycles, overheads: {charged}"
    if whole:
        return f"{text}; the work of each step by Einsum"
    epochs = simulation.runs[0].program.epochs
    drawn = min(EPOCHS, epochs)
    return text if drawn == epochs else f"{text}; the first {drawn} of {epochs:,} epochs"
