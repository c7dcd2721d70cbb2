"""One launch on a GPU: what fits a processor, what moves, and how long it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from einfuse.mapper import TENSOR, Launch, MappingError, Values

from .blocks import UNBOUNDED, Blocks, count_tiles, find_makespan
from .machine import Array, Machine
from .memory import memory_seconds, streamed_bytes
from .occupancy import find_occupancy
from .tile import UnitWork, compose_tile, lanes_of, tile_operations, unit_work


@dataclass(frozen=True, slots=True)
class LaunchCost:
    """What a launch costs at every point.

    ``slots`` are operations x issue slots by Einsum and unit, all blocks together; ``resources``
    the seconds that each alone would take, ``critical`` those of the launch under what sets them;
    ``held`` the bytes of each tensor by level, ``tensors`` those in DRAM.
    """

    seconds: Array
    resources: Mapping[str, Array]
    critical: Mapping[str, Array]
    slots: Mapping[str, Mapping[str, Array]]
    reads: Array
    writes: Array
    l2_bytes: Array
    held: Mapping[str, Mapping[str, Array]]
    tensors: Mapping[str, Array]
    feasible: NDArray[np.bool_]


def find_launch(launch: Launch, machine: Machine) -> LaunchCost:
    """Return the cost of a launch; MappingError names the launch and what does not fit."""
    try:
        return _find_launch(launch, machine)
    except MappingError as error:
        raise MappingError(f"launch {launch.name}: {error}") from None


def _find_launch(launch: Launch, machine: Machine) -> LaunchCost:
    sizes = {rank: machine.of(formula) for rank, formula in launch.sizes.items()}
    for name, rate in launch.rates.items():
        if np.any(~(machine.of(rate) > 0)):
            raise MappingError(
                f"the rate of {name} needs a share above 0, found "
                f"{np.min(machine.of(rate)):g} ({rate.text})"
            )
    einsums = (*launch.tensor, *launch.vector, *launch.final)
    operations = tile_operations(launch.cascade, sizes) if einsums else {}
    done = [n for n in launch.tensor if n not in launch.accumulated]
    arguments = machine.architecture, machine.values
    tensor = unit_work(operations, done, (TENSOR,), *arguments)
    vector = unit_work(operations, launch.vector, machine.vector_units, *arguments)
    extras = {"extras": {k: machine.of(f) for k, f in launch.extras.items()}}
    extra = unit_work(extras, extras, machine.vector_units, *arguments)
    final = unit_work(operations, launch.final, machine.vector_units, *arguments)
    masks = {"masking": {k: machine.of(f) for k, f in launch.masking.items()}}
    masking = unit_work(masks, masks, machine.vector_units, *arguments)
    tile = _Tile(launch, machine, tensor, (vector, extra), final, masking)
    cost = _in_blocks(launch, machine, tile) if launch.grid else _flat(launch, machine, tile)
    return _started(cost, machine.of(launch.when) != 0, machine)


@dataclass(frozen=True, slots=True)
class _Tile:
    """The work of a tile (of everything, in a flat launch) on one processor."""

    launch: Launch
    machine: Machine
    tensor: UnitWork
    vectors: tuple[UnitWork, ...]
    final: UnitWork
    masking: UnitWork

    def tensor_cycles(self) -> Array:
        """Of the tensor cores and what they read from shared memory."""
        busy = self._cycles(self.tensor)
        fed = self.machine.of(self.launch.feeds)
        return np.maximum(busy, fed / self.machine.number("processors.shared_bytes_per_cycle"))

    def warp_cycles(self) -> Array:
        """Of the vector units, and of what the warps move."""
        return sum(self.warp_parts().values(), np.zeros(self.machine.points))

    def warp_parts(self) -> dict[str, Array]:
        """The warps' cycles by the unit or the level that takes them."""
        found: dict[str, Array] = {}
        for work in self.vectors:
            for unit, slots in work.by_unit.items():
                found[unit] = found.get(unit, 0.0) + self._unit_cycles(unit, slots)
        for level, moved in self.launch.moves.items():
            rate = self.machine.number(f"processors.{level}_bytes_per_cycle")
            found[level] = self.machine.of(moved) / rate
        return found

    def final_cycles(self) -> Array:
        """Of what a block does once."""
        return self._cycles(self.final)

    def masking_cycles(self) -> Array:
        """Of masking a tile."""
        return self._cycles(self.masking)

    def slots(self, tiles: Values, blocks: Values) -> dict[str, dict[str, Array]]:
        """Slots by Einsum and unit over all tiles and blocks."""
        found: dict[str, dict[str, Array]] = {}
        for work, times in (
            (self.tensor, tiles),
            *((work, tiles) for work in self.vectors),
            (self.final, blocks),
        ):
            for einsum, own in work.by_einsum.items():
                for unit, slots in own:
                    found.setdefault(einsum, {})
                    found[einsum][unit] = self.machine.spread(slots * times)
        return found

    def _cycles(self, work: UnitWork) -> Array:
        total = np.zeros(self.machine.points)
        for unit, slots in work.by_unit.items():
            total = total + self._unit_cycles(unit, slots)
        return total

    def _unit_cycles(self, unit: str, slots: Values) -> Array:
        lanes = lanes_of(unit, self.machine.architecture, self.machine.values)
        return self.machine.spread(slots / (lanes * self.share(unit)))

    def share(self, unit: str) -> Array:
        """The part of a unit's rate that the launch reaches."""
        rate = self.launch.rates.get(unit)
        return self.machine.spread(1.0) if rate is None else self.machine.of(rate)


def _flat(launch: Launch, machine: Machine, tile: _Tile) -> LaunchCost:
    """All of it at once, spread evenly over the processors, beside the memory."""
    copies = machine.of(launch.copies)
    count, clock = (
        machine.number("processors.count"),
        machine.number("processors.sustained_clock_hz"),
    )
    exposed = machine.of(launch.exposed)
    tensor, warps = tile.tensor_cycles(), tile.warp_cycles()
    compute = compose_tile(tensor, warps, exposed, 2) * copies / count / clock
    reads, writes = machine.added(launch.reads), machine.added(launch.writes)
    memory = memory_seconds(launch, machine, reads + writes, reads + writes)
    longest = np.maximum.reduce([compute, *memory.values()])
    seconds = longest + exposed * np.minimum(compute, memory["dram"])
    slots = tile.slots(copies, np.zeros(machine.points))
    return LaunchCost(
        seconds=seconds,
        resources={**_unit_seconds(machine, tile, slots), **memory},
        critical=_critical(tile, tensor - exposed * warps, compute, memory, seconds),
        slots=slots,
        reads=reads,
        writes=writes,
        l2_bytes=reads + writes,
        held={},
        tensors=_tensors(launch, machine),
        feasible=np.ones(machine.points, bool),
    )


def _in_blocks(launch: Launch, machine: Machine, tile: _Tile) -> LaunchCost:
    """Blocks over the processors, in waves."""
    assert launch.grid is not None
    held = {
        level: {tensor: machine.of(f) for tensor, f in tensors.items()}
        for level, tensors in launch.keep.items()
    }
    occupancy, feasible = find_occupancy(launch, machine, held)
    blocks = _blocks(launch, machine)
    counted = count_tiles(blocks)
    count = machine.number("processors.count")
    resident = np.minimum(occupancy, np.ceil(np.maximum(counted.blocks, 1) / count))
    streams = machine.of(launch.streams) * resident
    exposed = machine.of(launch.exposed)
    tensor, warps = tile.tensor_cycles(), tile.warp_cycles()
    each = compose_tile(tensor, warps, exposed, streams)
    masked = compose_tile(tensor, warps + tile.masking_cycles(), exposed, streams)
    cycles = find_makespan(
        blocks,
        (resident * count).astype(np.int64),
        each * resident,
        (masked - each) * resident,
        (machine.of(launch.block_cycles) + tile.final_cycles()) * resident,
        launch.grid.order,
    )
    seconds = cycles / machine.number("processors.sustained_clock_hz")
    reads, l2_bytes = streamed_bytes(
        launch, machine, counted.tiles, counted.blocks, resident * count
    )
    if "l2" in launch.moves:
        l2_bytes = l2_bytes + machine.of(launch.moves["l2"]) * counted.tiles
    writes = machine.added(launch.writes)
    once = machine.added(launch.reads)
    memory = memory_seconds(launch, machine, reads + once + writes, l2_bytes + once + writes)
    path = np.where(each > warps, 2 * tensor - each, -1.0)  # the tensor cores' part of it, or not
    longest = np.maximum.reduce([seconds, *memory.values()])
    done = tile.slots(counted.tiles, counted.blocks)
    return LaunchCost(
        seconds=longest,
        resources={**_unit_seconds(machine, tile, done), **memory},
        critical=_critical(tile, path, seconds, memory, longest),
        slots=done,
        reads=reads + once,
        writes=writes,
        l2_bytes=l2_bytes + once + writes,
        held=held,
        tensors=_tensors(launch, machine),
        feasible=feasible,
    )


def _critical(
    tile: _Tile, path: Array, compute: Array, memory: Mapping[str, Array], seconds: Array
) -> dict[str, Array]:
    """The seconds under what sets them: a memory, or what a block spends most of its path on.

    That is the tensor cores where ``path`` is at least 0, else the largest part of the warps' work.
    """
    names = ["compute", *memory]
    winner = np.argmax(np.stack([compute, *memory.values()]), axis=0)
    found = {level: np.where(winner == names.index(level), seconds, 0.0) for level in memory}
    computing = np.where(winner == 0, seconds, 0.0)
    parts = tile.warp_parts()
    if tile.tensor.by_unit:
        found[TENSOR] = np.where((path >= 0) | (not parts), computing, 0.0)
        computing = np.where(path >= 0, 0.0, computing)
    if parts:
        largest = np.argmax(np.stack(list(parts.values())), axis=0)
        for number, name in enumerate(parts):
            own = np.where(largest == number, computing, 0.0)
            found[name] = found.get(name, 0.0) + own
    return found


def _started(cost: LaunchCost, when: NDArray[np.bool_], machine: Machine) -> LaunchCost:
    """Return the cost with that of its start; nothing where there is no such launch."""

    def masked(parts: Mapping[str, Array]) -> dict[str, Array]:
        return {name: np.where(when, part, 0.0) for name, part in parts.items()}

    start = {"launch": machine.number("processors.launch_seconds")}
    return replace(
        cost,
        seconds=np.where(when, cost.seconds + start["launch"], 0.0),
        resources=masked({**cost.resources, **start}),
        critical=masked({**cost.critical, **start}),
        slots={einsum: masked(own) for einsum, own in cost.slots.items()},
        reads=np.where(when, cost.reads, 0.0),
        writes=np.where(when, cost.writes, 0.0),
        l2_bytes=np.where(when, cost.l2_bytes, 0.0),
        tensors=masked(cost.tensors),
        feasible=cost.feasible | ~when,
    )


def _tensors(launch: Launch, machine: Machine) -> dict[str, Array]:
    """The bytes in DRAM of the tensors that a launch reads or writes."""
    found: dict[str, Array] = {}
    whole = {tensor: formula for tensor, (_, formula) in launch.streamed.items()}
    for tensors in (launch.reads, launch.writes, whole):
        for tensor, formula in tensors.items():
            found[tensor] = np.maximum(found.get(tensor, 0.0), machine.of(formula))
    return found


def _unit_seconds(
    machine: Machine, tile: _Tile, slots: Mapping[str, Mapping[str, Array]]
) -> dict[str, Array]:
    """The seconds of each unit alone, at the rate that the launch reaches."""
    clock = machine.number("processors.sustained_clock_hz") * machine.number("processors.count")
    found: dict[str, Array] = {}
    for own in slots.values():
        for unit, amount in own.items():
            lanes = lanes_of(unit, machine.architecture, machine.values)
            seconds = amount / (lanes * tile.share(unit) * clock)
            found[unit] = found.get(unit, 0.0) + seconds
    return found


def _blocks(launch: Launch, machine: Machine) -> Blocks:
    assert launch.grid is not None and launch.loop is not None
    grid, loop = launch.grid, launch.loop
    owned = machine.whole(grid.size, "grid.size")
    looped = machine.whole(loop.size, "loop.size")
    tile = machine.whole(grid.tile, "grid.tile")
    step = machine.whole(loop.tile, "loop.tile")
    copies = machine.whole(grid.copies, "grid.copies")
    free = np.full(machine.points, UNBOUNDED, dtype=np.int64)
    below, above = -free, free
    if loop.sees != "all":
        window = machine.spread(machine.scope["window"]).astype(np.int64)
        causal = machine.spread(machine.scope["causal"]) != 0
        shift = looped - owned
        if loop.sees == "keys":
            above = np.where(causal, shift, above)
            below = np.where(window > 0, shift - window + 1, below)
        else:
            below = np.where(causal, shift, below)
            above = np.where(window > 0, shift + window - 1, above)
    split = np.maximum(machine.of(grid.split), 1.0)
    if grid.workers is not None:  # all tiles spread evenly over so many blocks
        rows = -(-owned // tile) * copies
        most = rows * -(-looped // step)
        split = np.minimum(machine.of(grid.workers), most) / rows
    density = machine.of(loop.density)
    return Blocks(owned, tile, looped, step, below, above, copies, density, split)
