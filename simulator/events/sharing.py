"""Units that are shared cycle by cycle: the tasks of a phase on a unit alternate on it.

As many tasks as have begun on a unit and have work left share it evenly, so that it is idle only
where none of them has work. A task that waits, for its operands or for a producer that streams to
it, takes no part meanwhile. The events of a phase (of an epoch, where units are not in lockstep)
are taken in the order of time: the next is the earliest of what can begin, what is through with
its work, and what ends. A task that has not begun or ended has infinite times.

Loading this module loads Numba, as `stepping` does, whose tables and state it works on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from .stepping import (
    DEPENDENCY,
    STALL,
    UNIT,
    end_phase,
    place_of,
    run_alone,
    tile_of,
    wait_for_tiles,
)

_WAITING, _RUNNING, _LINGERING, _DONE = 0, 1, 2, 3


@njit(cache=True)
def step_shared(
    first: int, last: int, every: int, interval: int, tiles: int, lockstep: bool, units: int,
    tasks: Any, edges: Any, demands: Any, port_cause: Any,
    starts: Any, ends: Any, free: Any, clock: Any, stalls: Any, count: Any,
    record: Any,
) -> None:  # fmt: skip
    """Step through epochs first to last - 1; the tasks of a phase on a unit share it."""
    ring = ends.shape[1]
    used = np.zeros(len(port_cause))
    tile = np.zeros(len(tasks), dtype=np.int64)
    progress = np.zeros(len(tasks), dtype=np.int64)
    of_task = np.zeros((4, len(tasks)))
    of_unit = np.zeros((7, units))
    for epoch in range(first, last):
        now = -1
        over, cause_over = clock[0], UNIT
        task = 0
        while task < len(tasks):
            one = tasks[task]
            tile[task] = tile_of(one, epoch, interval, tiles)
            if tile[task] < 0:
                task += 1
                continue
            if lockstep and one.phase > now:
                end_phase(units, port_cause, free, clock, stalls, used, over, cause_over)
                over, cause_over = clock[0], UNIT
                now = one.phase
            if one.unit == STALL:  # nothing runs
                over = max(over, clock[0] + one.cycles)
                cause_over = DEPENDENCY
                task += 1
                continue
            stop = task + 1
            if one.unit < 0:
                place = place_of(one, tile[task], ring)
                starts[task, place], ends[task, place] = run_alone(
                    lockstep, units, tasks, edges, demands, port_cause,
                    starts, ends, free, stalls, used, task, tile[task],
                )  # fmt: skip
            else:
                while (
                    stop < len(tasks)
                    and tasks[stop].unit >= STALL
                    and (not lockstep or tasks[stop].phase == now)
                ):
                    tile[stop] = tile_of(tasks[stop], epoch, interval, tiles)
                    if tasks[stop].unit == STALL:
                        tile[stop] = -1
                    stop += 1
                end = _run_phase(
                    task, stop, lockstep, units, tasks, edges, demands, port_cause,
                    starts, ends, free, stalls, used,
                    tile, progress, of_task, of_unit,
                )  # fmt: skip
                if end > over:
                    over, cause_over = end, UNIT
            if one.unit >= STALL - 1:
                for own in range(task, stop):
                    if tile[own] >= 0:
                        count[0] += 1
                        if every > 0 and epoch % every == 0 and epoch // every < record.shape[1]:
                            place = place_of(tasks[own], tile[own], ring)
                            record[0, epoch // every, own] = starts[own, place]
                            record[1, epoch // every, own] = ends[own, place]
            task = stop
        if lockstep:
            end_phase(units, port_cause, free, clock, stalls, used, over, cause_over)


@njit(cache=True, forceinline=True)
def _run_phase(
    first: int, stop: int, lockstep: bool, units: int,
    tasks: Any, edges: Any, demands: Any, port_cause: Any,
    starts: Any, ends: Any, free: Any, stalls: Any, used: Any,
    tile: Any, progress: Any, of_task: Any, of_unit: Any,
) -> float:  # fmt: skip
    """Run tasks first to stop - 1, those that stand in the epoch; return the last end.

    Of each task: what its unit will have served when it is through, when the ports are through with
    it, when its next event is and why (infinite: not known yet). Of each unit: how many share it,
    what each of them has been served since it was idle, when that was last worked out, since when
    it is busy, with how much work, when its phase could begin, and which phase that is.
    """
    ring = ends.shape[1]
    needs, ported, event, why = of_task[0], of_task[1], of_task[2], of_task[3]
    sharers, served, at, busy_since = of_unit[0], of_unit[1], of_unit[2], of_unit[3]
    work, gate, open_phase = of_unit[4], of_unit[5], of_unit[6]
    left = 0
    for task in range(first, stop):
        progress[task] = _DONE
        if tile[task] >= 0:
            left += 1
            progress[task] = _WAITING
            event[task] = np.inf
            place = place_of(tasks[task], tile[task], ring)
            starts[task, place] = ends[task, place] = np.inf
    for unit in range(units):
        sharers[unit] = 0
        gate[unit] = free[unit]
    over = 0.0
    while left > 0:
        open_phase[:] = -1
        now, which = np.inf, -1
        for task in range(first, stop):
            state = progress[task]
            if state == _DONE:
                continue
            unit = tasks[task].unit
            if open_phase[unit] < 0:
                open_phase[unit] = tasks[task].phase
            if state == _RUNNING and sharers[unit] == 1:
                event[task] = busy_since[unit] + work[unit]
            elif state == _RUNNING:
                event[task] = at[unit] + (needs[task] - served[unit]) * sharers[unit]
            elif event[task] == np.inf and tasks[task].phase == open_phase[unit]:
                begin, cause, end_at_least = wait_for_tiles(
                    tasks, edges, starts, ends, task, tile[task], gate[unit], UNIT
                )
                event[task] = begin if state == _WAITING else max(ported[task], end_at_least)
                why[task] = cause
            if event[task] < now:
                now, which = event[task], task
        one = tasks[which]
        unit = one.unit
        place = place_of(one, tile[which], ring)
        if progress[which] == _WAITING:
            if sharers[unit] > 0:
                served[unit] += (now - at[unit]) / sharers[unit]
            else:
                stalls[unit, int(why[which])] += now - free[unit]
                free[unit] = busy_since[unit] = now
                served[unit] = work[unit] = 0.0
            at[unit] = now
            sharers[unit] += 1
            work[unit] += one.cycles
            needs[which] = served[unit] + one.cycles
            starts[which, place] = now
            progress[which] = _RUNNING
            if lockstep:
                for demand in range(one.first_demand, one.last_demand):
                    used[demands[demand].port] += demands[demand].cycles
            continue
        stretch_cause = DEPENDENCY
        if progress[which] == _RUNNING:
            served[unit] = needs[which]
            at[unit] = free[unit] = now
            sharers[unit] -= 1
            ported[which] = now
            if not lockstep:
                for demand in range(one.first_demand, one.last_demand):
                    port = units + demands[demand].port
                    free[port] = max(free[port], starts[which, place]) + demands[demand].cycles
                    ported[which] = max(ported[which], free[port])
            _, _, end_at_least = wait_for_tiles(
                tasks, edges, starts, ends, which, tile[which], 0.0, UNIT
            )
            progress[which] = _LINGERING
            event[which] = max(ported[which], end_at_least)
            if event[which] > now:
                continue
        elif now == ported[which]:
            for demand in range(one.first_demand, one.last_demand):
                if free[units + demands[demand].port] >= now:
                    stretch_cause = port_cause[demands[demand].port]
        if sharers[unit] == 0 and now > free[unit]:
            stalls[unit, stretch_cause] += now - free[unit]
            free[unit] = now
        if not lockstep:
            gate[unit] = free[unit]
        ends[which, place] = now
        progress[which] = _DONE
        left -= 1
        over = max(over, now)
    return over
