"""One launch on a GPU: what fits a processor, what moves, and how long it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from einfuse.mapper.architecture import Architecture
from einfuse.mapper.errors import MappingError
from einfuse.mapper.formula import Formula, Scope, Values
from einfuse.mapper.kernel import TENSOR, Launch

from .gpu_blocks import UNBOUNDED, Blocks, count_tiles, find_makespan
from .gpu_tile import UnitWork, compose_tile, lanes_of, tile_operations, unit_work

Array = NDArray[np.float64]
_REGISTER_BYTES = 4


@dataclass(frozen=True, slots=True)
class Machine:
    """An architecture with its values at the points, and the names that formulas read."""

    architecture: Architecture
    values: Mapping[str, Values | None]
    scope: Scope
    points: int
    scalar: bool  # one point: what does not fit is an error

    def number(self, path: str) -> Array:
        """A parameter at every point."""
        return self.spread(self.values[path])

    def spread(self, value: Any) -> Array:
        """A value at every point."""
        return np.broadcast_to(np.asarray(value, float), (self.points,))

    def of(self, formula: Formula) -> Array:
        """A formula's value at every point."""
        return self.spread(formula.evaluate(self.scope))

    def added(self, formulas: Mapping[str, Formula]) -> Array:
        """The sum of some formulas at every point."""
        return sum((self.of(f) for f in formulas.values()), np.zeros(self.points))

    def whole(self, formula: Formula, what: str) -> NDArray[np.int64]:
        """A formula that must be a whole number of at least 1."""
        found = self.of(formula)
        wrong = ~(np.isfinite(found) & (found >= 1) & (found == np.floor(found)))
        if np.any(wrong):
            raise MappingError(
                f"{what}: expected a whole number of at least 1, found {found[wrong][0]:g} "
                f"({formula.text})"
            )
        return found.astype(np.int64)

    @property
    def vector_units(self) -> tuple[str, ...]:
        """The units with lanes."""
        units = self.architecture.file.units
        return tuple(name for name, unit in units.items() if unit.lanes is not None)


@dataclass(frozen=True, slots=True)
class LaunchCost:
    """What a launch costs at every point.

    ``slots`` are operations x issue slots by Einsum and unit, all blocks together; ``resources``
    the seconds that each alone would take; ``held`` the bytes of each tensor by level.
    """

    seconds: Array
    resources: Mapping[str, Array]
    slots: Mapping[str, Mapping[str, Array]]
    reads: Array
    writes: Array
    l2_bytes: Array
    held: Mapping[str, Mapping[str, Array]]
    resident: Array
    feasible: NDArray[np.bool_]


def find_launch(launch: Launch, machine: Machine) -> LaunchCost:
    """Return the cost of a launch; MappingError names what does not fit."""
    sizes = {rank: machine.of(formula) for rank, formula in launch.sizes.items()}
    for name, rate in launch.rates.items():
        if np.any(~(machine.of(rate) > 0)):
            raise MappingError(
                f"launch {launch.name}: the rate of {name} needs a share above 0, found "
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
    return _in_blocks(launch, machine, tile) if launch.grid else _flat(launch, machine, tile)


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
        machine, moves = self.machine, self.launch.moves
        busy = sum((self._cycles(work) for work in self.vectors), np.zeros(machine.points))
        for level, moved in moves.items():
            rate = machine.number(f"processors.{level}_bytes_per_cycle")
            busy = busy + machine.of(moved) / rate
        return busy

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
            lanes = lanes_of(unit, self.machine.architecture, self.machine.values)
            total = total + self.machine.spread(slots / (lanes * self.share(unit)))
        return total

    def share(self, unit: str) -> Array:
        """The part of a unit's rate that the launch reaches."""
        rate = self.launch.rates.get(unit)
        return self.machine.spread(1.0) if rate is None else self.machine.of(rate)


def _flat(launch: Launch, machine: Machine, tile: _Tile) -> LaunchCost:
    """All of it at once, spread evenly over the processors, beside the memory."""
    when, copies = machine.of(launch.when) != 0, machine.of(launch.copies)
    count, clock = (
        machine.number("processors.count"),
        machine.number("processors.sustained_clock_hz"),
    )
    exposed = machine.of(launch.exposed)
    cycles = compose_tile(tile.tensor_cycles(), tile.warp_cycles(), exposed, 2)
    compute = cycles * copies / count / clock
    reads, writes = machine.added(launch.reads), machine.added(launch.writes)
    memory = _memory_seconds(launch, machine, reads + writes, reads + writes)
    longest = np.maximum.reduce([compute, *memory.values()])
    seconds = longest + exposed * np.minimum(compute, memory["dram"])
    nothing = np.zeros(machine.points)
    return _cost(
        machine, when, seconds, tile, copies, nothing, memory,
        (reads, writes, reads + writes), {}, np.ones(machine.points), np.ones(machine.points, bool),
    )  # fmt: skip


def _in_blocks(launch: Launch, machine: Machine, tile: _Tile) -> LaunchCost:
    """Blocks over the processors, in waves."""
    assert launch.grid is not None
    when = machine.of(launch.when) != 0
    held = {
        level: {tensor: machine.of(f) for tensor, f in tensors.items()}
        for level, tensors in launch.keep.items()
    }
    occupancy, feasible = _occupancy(launch, machine, held)
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
    reads, l2_bytes = _streamed(launch, machine, counted.tiles, counted.blocks, resident * count)
    if "l2" in launch.moves:
        l2_bytes = l2_bytes + machine.of(launch.moves["l2"]) * counted.tiles
    writes = machine.added(launch.writes)
    once = machine.added(launch.reads)
    memory = _memory_seconds(launch, machine, reads + once + writes, l2_bytes + once + writes)
    seconds = np.maximum.reduce([seconds, *memory.values()])
    return _cost(
        machine, when, seconds, tile, counted.tiles, counted.blocks, memory,
        (reads + once, writes, l2_bytes + once + writes), held, resident, feasible,
    )  # fmt: skip


def _cost(
    machine: Machine,
    when: NDArray[np.bool_],
    seconds: Array,
    tile: _Tile,
    tiles: Array,
    blocks: Array,
    memory: Mapping[str, Array],
    moved: tuple[Array, Array, Array],
    held: Mapping[str, Mapping[str, Array]],
    resident: Array,
    feasible: NDArray[np.bool_],
) -> LaunchCost:
    start = machine.number("processors.launch_seconds")
    slots = {
        einsum: {unit: np.where(when, n, 0.0) for unit, n in own.items()}
        for einsum, own in tile.slots(tiles, blocks).items()
    }
    times = {**_unit_seconds(machine, tile, slots), **memory}
    resources = {name: np.where(when, taken, 0.0) for name, taken in times.items()}
    resources["launch"] = np.where(when, start, 0.0)
    reads, writes, l2_bytes = (np.where(when, amount, 0.0) for amount in moved)
    return LaunchCost(
        np.where(when, seconds + start, 0.0), resources, slots, reads, writes, l2_bytes,
        held, resident, feasible | ~when,
    )  # fmt: skip


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
    place = f"launch {launch.name}"
    owned = machine.whole(grid.size, f"{place}: grid.size")
    looped = machine.whole(loop.size, f"{place}: loop.size")
    tile = machine.whole(grid.tile, f"{place}: grid.tile")
    step = machine.whole(loop.tile, f"{place}: loop.tile")
    copies = machine.whole(grid.copies, f"{place}: grid.copies")
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


def _streamed(
    launch: Launch, machine: Machine, tiles: Array, blocks: Array, slots: Array
) -> tuple[Array, Array]:
    """Bytes from DRAM and through L2 of the tensors that blocks read tile by tile.

    Copies in flight whose tensors fit L2 read DRAM once; else every wave of a copy does.
    """
    assert launch.grid is not None
    copies = np.maximum(machine.of(launch.grid.copies), 1)
    waves = np.maximum(np.ceil(blocks / copies / slots), 1)
    flying = np.minimum(slots / np.maximum(blocks, 1), 1)
    room = machine.number("l2.bytes")
    from_dram, through_l2 = np.zeros(machine.points), np.zeros(machine.points)
    whole = {tensor: machine.of(f) for tensor, (_, f) in launch.streamed.items()}
    fits = sum(whole.values(), np.zeros(machine.points)) * flying <= room
    for tensor, (each, _) in launch.streamed.items():
        through = machine.of(each) * tiles
        through_l2 = through_l2 + through
        again = np.minimum(whole[tensor] * np.where(fits, 1, waves), np.maximum(through, 0))
        from_dram = from_dram + again
    return from_dram, through_l2


def _memory_seconds(
    launch: Launch, machine: Machine, dram_bytes: Array, l2_bytes: Array
) -> dict[str, Array]:
    found = {}
    for level, moved in (("dram", dram_bytes), ("l2", l2_bytes)):
        bandwidth = machine.number(f"{level}.bandwidth_bytes_per_s")
        share = machine.number("processors.dram_share") if level == "dram" else 1.0
        rate = launch.rates.get(level)
        if rate is not None:
            share = share * machine.of(rate)
        found[level] = moved / (bandwidth * share)
    return found


def _occupancy(
    launch: Launch, machine: Machine, held: Mapping[str, Mapping[str, Array]]
) -> tuple[Array, NDArray[np.bool_]]:
    """Blocks that are resident on a processor; what does not fit even once is infeasible."""
    warps = machine.of(launch.warps) + machine.of(launch.helpers)
    threads = warps * machine.number("processors.threads_per_warp")
    registers = np.minimum(
        machine.of(launch.registers), machine.number("processors.registers_per_thread")
    )
    needed = registers * threads * _REGISTER_BYTES
    shared = sum(held.get("shared", {}).values(), np.zeros(machine.points))
    reserved = machine.number("processors.block_reserved_bytes")
    limits = [
        np.floor(machine.number("register_file.bytes") / needed),
        np.floor(machine.number("shared.bytes") / np.maximum(shared + reserved, 1)),
        np.floor(machine.number("processors.warp_slots") / warps),
        machine.number("processors.block_slots"),
    ]
    room = {
        "shared": machine.number("processors.block_shared_bytes"),
        "register_file": np.minimum(
            machine.of(launch.warps) * machine.number("processors.threads_per_warp")
            * machine.number("processors.registers_per_thread") * _REGISTER_BYTES,
            machine.number("register_file.bytes"),
        ),
    }  # fmt: skip
    feasible = np.ones(machine.points, dtype=bool)
    for level, tensors in held.items():
        used = sum(tensors.values(), np.zeros(machine.points))
        fits = used <= room[level]
        if machine.scalar and not np.all(fits):
            tensor, taken = max(tensors.items(), key=lambda item: float(item[1][0]))
            raise MappingError(
                f"launch {launch.name}: a block's tiles do not fit {level}: they take "
                f"{used[0]:.0f} bytes of {room[level][0]:.0f}; the largest is that of {tensor} "
                f"with {taken[0]:.0f}: choose smaller tiles"
            )
        feasible &= fits
    occupancy = np.minimum.reduce(limits)
    if machine.scalar and occupancy[0] < 1 and np.all(feasible):
        raise MappingError(
            f"launch {launch.name}: no block of {warps[0]:g} warps fits a processor of "
            f"{machine.architecture.name} (registers, shared memory, warps and blocks allow "
            f"{', '.join(f'{limit[0]:g}' for limit in limits)})"
        )
    return np.maximum(occupancy, 1), feasible & (occupancy >= 1)
