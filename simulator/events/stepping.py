"""Epoch after epoch: where each task starts and ends, compiled by Numba and kept on disk.

Loading this module loads Numba: import it where it is used. A program comes as tables of tasks,
edges and demands (`Program.tables`); a state is the last times of each task in a ring, and of each
unit, then each port. Numba counts references to arrays that sit in tuples, which costs more than
all else here: hence arguments one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

STALL, FETCH, RELEASE = -1, -2, -3  # instead of a unit, as in `program`
DEPENDENCY, UNIT = 0, 1  # causes


@njit(inline="always")
def tile_of(task: Any, epoch: int, interval: int, tiles: int) -> int:
    """The tile that a task is on in an epoch, -1 if it does not stand there."""
    since = epoch - task.offset
    if since < 0:
        return -1
    tile: int = since
    if interval > 1:
        if since % interval != 0:
            return -1
        tile = since // interval
    if tile >= tiles or (task.period > 1 and tile % task.period != task.when):
        return -1
    return tile


@njit(inline="always")
def place_of(task: Any, tile: int, ring: int) -> int:
    """Where a task's times on a tile are in its ring, whose size is a power of two."""
    place: int = (tile if task.period == 1 else tile // task.period) & (ring - 1)
    return place


@njit(inline="always")
def wait_for_tiles(
    tasks: Any, edges: Any, starts: Any, ends: Any, task: int, tile: int, start: float, cause: int
) -> tuple[float, int, float]:
    """When what a task waits for is there, what it was, and when it can end at the earliest."""
    ring = ends.shape[1]
    end_at_least = 0.0
    for number in range(tasks[task].first_edge, tasks[task].last_edge):
        edge = edges[number]
        other = tile - edge.tiles
        if other < 0 or (edge.period > 1 and tile % edge.period != 0):
            continue
        if edge.block > 0 and tile % edge.block < edge.tiles:
            continue
        place = place_of(tasks[edge.producer], other, ring)
        done = ends[edge.producer, place] + edge.latency
        ready = done
        if edge.streams:
            ready = starts[edge.producer, place] + edge.latency
            end_at_least = max(end_at_least, done)
        if ready > start:
            start = ready
            cause = edge.cause
    return start, cause, end_at_least


@njit(inline="always")
def end_phase(
    units: int, port_cause: Any, free: Any, clock: Any, stalls: Any, used: Any,
    over: float, cause: int,
) -> None:  # fmt: skip
    """Move the clock to the end of a phase: when its units are through, and then its ports.

    Every unit has waited until then, for the longest of them (or what ``cause`` says), and from
    there on for the ports.
    """
    for unit in range(units):
        stalls[unit, cause] += over - free[unit]
    for port in range(len(used)):
        if used[port] > 0.0:
            done = max(free[units + port], clock[0]) + used[port]
            free[units + port] = done
            used[port] = 0.0
            if done > over:
                for unit in range(units):
                    stalls[unit, port_cause[port]] += done - over
                over = done
    for unit in range(units):
        free[unit] = over
    clock[0] = over


@njit(inline="always")
def run_alone(
    lockstep: bool, units: int, tasks: Any, edges: Any, demands: Any, port_cause: Any,
    starts: Any, ends: Any, free: Any, stalls: Any, used: Any,
    task: int, tile: int,
) -> tuple[float, float]:  # fmt: skip
    """Run a task that has its unit, or its port, to itself; return its start and its end."""
    one = tasks[task]
    mine = one.unit
    resource = mine if mine >= 0 else units + one.port
    idle_since = free[resource] if mine != RELEASE else 0.0
    start, cause, end_at_least = wait_for_tiles(
        tasks, edges, starts, ends, task, tile, idle_since, UNIT
    )
    end = start + one.cycles
    stretch = 0.0
    stretch_cause = DEPENDENCY
    if end_at_least > end:
        stretch = end_at_least - end
        end = end_at_least
    for number in range(one.first_demand, one.last_demand):
        demand = demands[number]
        if lockstep:
            used[demand.port] += demand.cycles
        else:
            done = max(free[units + demand.port], start) + demand.cycles
            free[units + demand.port] = done
            if done > end:
                stretch += done - end
                stretch_cause = port_cause[demand.port]
                end = done
    if mine != RELEASE:
        free[resource] = end
    if mine >= 0:
        stalls[mine, cause] += start - idle_since
        stalls[mine, stretch_cause] += stretch
    return start, end


@njit(cache=True)
def step_in_order(
    first: int, last: int, every: int, interval: int, tiles: int, lockstep: bool, units: int,
    tasks: Any, edges: Any, demands: Any, port_cause: Any,
    starts: Any, ends: Any, free: Any, clock: Any, stalls: Any, count: Any,
    record: Any,
) -> None:  # fmt: skip
    """Step through epochs first to last - 1; the tasks of a unit run one after the other."""
    ring = ends.shape[1]
    used = np.zeros(len(port_cause))
    for epoch in range(first, last):
        now = -1
        over, cause_over = clock[0], UNIT
        for task in range(len(tasks)):
            one = tasks[task]
            tile = tile_of(one, epoch, interval, tiles)
            if tile < 0:
                continue
            if lockstep and one.phase > now:
                end_phase(units, port_cause, free, clock, stalls, used, over, cause_over)
                over, cause_over = clock[0], UNIT
                now = one.phase
            if one.unit == STALL:  # nothing runs
                over = max(over, clock[0] + one.cycles)
                cause_over = DEPENDENCY
                continue
            start, end = run_alone(
                lockstep, units, tasks, edges, demands, port_cause,
                starts, ends, free, stalls, used, task, tile,
            )  # fmt: skip
            place = place_of(one, tile, ring)
            starts[task, place] = start
            ends[task, place] = end
            if one.unit == RELEASE:
                continue
            count[0] += 1
            if every > 0 and epoch % every == 0 and epoch // every < record.shape[1]:
                record[0, epoch // every, task] = start
                record[1, epoch // every, task] = end
            if one.unit >= 0 and end > over:
                over, cause_over = end, UNIT
        if lockstep:
            end_phase(units, port_cause, free, clock, stalls, used, over, cause_over)
