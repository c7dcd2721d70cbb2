"""What a launch moves through DRAM and L2, how long that takes, and whether it fits the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from einfuse.mapper import Launch, MappingError

from .machine import Array, Machine


def streamed_bytes(
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


def memory_seconds(
    launch: Launch, machine: Machine, dram_bytes: Array, l2_bytes: Array
) -> dict[str, Array]:
    """Return the seconds that DRAM and L2 take for what moves through them."""
    found = {}
    for level, moved in (("dram", dram_bytes), ("l2", l2_bytes)):
        bandwidth = machine.number(f"{level}.bandwidth_bytes_per_s")
        share = machine.number("processors.dram_share") if level == "dram" else 1.0
        rate = launch.rates.get(level)
        if rate is not None:
            share = share * machine.of(rate)
        found[level] = moved / (bandwidth * share)
    return found


def find_footprints(launches: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
    """Return the bytes that each launch's tensors take in DRAM.

    Args:
        launches: tensor -> bytes that a launch moves; one that is moved more than once takes what
            the launch that moves least of it says.
    """
    least: dict[str, Array] = {}
    for tensors in launches:
        for tensor, moved in tensors.items():
            known = least.get(tensor, np.full(len(moved), np.inf))
            least[tensor] = np.minimum(known, np.where(moved > 0, moved, np.inf))
    return [
        {tensor: np.where(moved > 0, least[tensor], 0.0) for tensor, moved in tensors.items()}
        for tensors in launches
    ]


def fits_dram(
    machine: Machine, launches: Sequence[str], footprints: Sequence[Mapping[str, Array]]
) -> NDArray[np.bool_]:
    """Return whether all launches' tensors fit DRAM; MappingError if a single point's do not."""
    room = machine.number("dram.bytes")
    fits = np.ones(machine.points, dtype=bool)
    for launch, tensors in zip(launches, footprints, strict=True):
        taken = sum(tensors.values(), np.zeros(machine.points))
        fits &= taken <= room
        if machine.scalar and not fits[0]:
            tensor = max(tensors, key=lambda name: float(tensors[name][0]))
            raise MappingError(
                f"launch {launch}: its tensors do not fit dram: they take {taken[0]:.4g} bytes of "
                f"{room[0]:.4g}; the largest is {tensor} with {tensors[tensor][0]:.4g}"
            )
    return fits
