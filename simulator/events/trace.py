"""A simulation as a Chrome trace, which Perfetto (https://ui.perfetto.dev) opens.

The format is Google's "Trace Event Format": an object with ``traceEvents``; a complete event
(``ph`` is "X") has a start ``ts`` and a duration ``dur`` in microseconds; metadata events ("M")
name the rows. Here a process is the machine, a thread a unit or a port, or a lane of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .program import FETCH
from .simulation import Run, Simulation


@dataclass(frozen=True, slots=True)
class Span:
    """A task in time: cycles from the start of the run.

    Tasks that share a unit, or wait on it side by side, stand in several of its *lanes*.
    """

    resource: str
    name: str
    tile: int
    start: float
    end: float
    lane: int = 0


def spans(simulation: Simulation) -> Iterator[Span]:
    """Yield the recorded tasks of a simulation by their starts."""
    found = [span for run in simulation.runs for span in _of_run(run, simulation)]
    lanes: dict[str, list[float]] = {}  # of each resource, when each lane is free
    for span in sorted(found, key=lambda span: (span.start, span.end)):
        free = lanes.setdefault(span.resource, [])
        rounding = 1e-9 * max(1.0, span.start)
        lane = next((n for n, end in enumerate(free) if end <= span.start + rounding), len(free))
        if lane == len(free):
            free.append(0.0)
        free[lane] = span.end
        yield replace(span, lane=lane)


def _of_run(run: Run, simulation: Simulation) -> Iterator[Span]:
    program, starts, ends = run.program, run.events.starts, run.events.ends
    every = simulation.recording.every if simulation.recording else 1
    for row, number in np.argwhere(~np.isnan(starts)):
        task = program.tasks[number]
        if task.unit < 0 and task.unit != FETCH:
            continue
        resource = program.ports[task.port] if task.unit == FETCH else program.units[task.unit]
        tile = (int(row) * every - task.offset) // program.interval
        yield Span(
            resource,
            task.name,
            tile,
            run.start + float(starts[row, number]),
            run.start + float(ends[row, number]),
        )


def render_trace(simulation: Simulation) -> dict[str, Any]:
    """Return the trace, ready for ``json.dumps``; times in microseconds.

    >>> from einfuse.mapper.design.design import load_design
    >>> from einfuse.simulator.events.machine import Recording
    >>> from einfuse.simulator.events.simulation import simulate
    >>> shape = {"B": 1, "H": 1, "M": 256, "P": 256, "E": 64, "F": 64}
    >>> run = simulate(load_design("fusemax"), shape, recording=Recording())
    >>> events = render_trace(run)["traceEvents"]
    >>> [e["name"] for e in events if e["ph"] == "X"][:3]
    ['QK', 'LM', 'RM']
    """
    microseconds = 1e6 / simulation.clock_hz
    rows: dict[tuple[str, int], int] = {}
    events: list[dict[str, Any]] = []
    for span in spans(simulation):
        row = rows.setdefault((span.resource, span.lane), len(rows) + 1)
        events.append(
            {
                "name": span.name,
                "cat": "task",
                "ph": "X",
                "pid": 1,
                "tid": row,
                "ts": span.start * microseconds,
                "dur": (span.end - span.start) * microseconds,
                "args": {"tile": span.tile, "cycles": span.end - span.start},
            }
        )
    names: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": simulation.design}}
    ]
    for (resource, lane), row in rows.items():
        resource += f" ({lane + 1})" if lane else ""
        names.append(
            {"name": "thread_name", "ph": "M", "pid": 1, "tid": row, "args": {"name": resource}}
        )
    return {"traceEvents": names + events, "displayTimeUnit": "ns"}
