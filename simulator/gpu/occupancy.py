"""What fits a processor: how many blocks are resident, and which tile is too large."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from einfuse.mapper import Launch, MappingError

from .machine import Array, Machine

_REGISTER_BYTES = 4


def find_occupancy(
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
                f"a block's tiles do not fit {level}: they take "
                f"{used[0]:.0f} bytes of {room[level][0]:.0f}; the largest is that of {tensor} "
                f"with {taken[0]:.0f}: choose smaller tiles"
            )
        feasible &= fits
    occupancy = np.minimum.reduce(limits)
    if machine.scalar and occupancy[0] < 1 and np.all(feasible):
        raise MappingError(
            f"no block of {warps[0]:g} warps fits a processor of "
            f"{machine.architecture.name} (registers, shared memory, warps and blocks allow "
            f"{', '.join(f'{limit[0]:g}' for limit in limits)})"
        )
    return np.maximum(occupancy, 1), feasible & (occupancy >= 1)
