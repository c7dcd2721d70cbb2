"""The functional simulation: the tasks of a mapping carry numbers, and are held to what is there.

`simulate_functional` runs the tasks in their order. A task that reads what is not made by then, or
whose tile does not fit, is an illegal mapping, and named. What comes out is compared with the
cascade executed directly (`einfuse.einsum.execution.run.run`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from einfuse.einsum import EinfuseError, available_main_memory_bytes, draw_inputs, run, tensor_shape
from einfuse.mapper import REGISTERS, ArchitectureError, Design, MappingError, Traffic, select
from einfuse.simulator.events.simulation import Prepared, prepare

from .accesses import check_steps, is_walkable, tally
from .liveness import Residency
from .partial_tensors import Tensors
from .rooms import find_peaks
from .tasks import TileTask, order_tasks

LARGEST_TASKS = 300_000
_ELEMENT_BYTES = 64  # of numbers, of how much of each is made, and of when it is touched

Follow = Callable[[Sequence[TileTask]], Iterable[TileTask]]
"""What tasks are taken from, one by one, such as a bar that shows how far they are."""


@dataclass(frozen=True, slots=True)
class Functional:
    """What the tasks of a mapping made.

    Attributes:
        outputs: output -> array in float64, the batch ranks as first axes.
        max_error: largest difference from direct execution, relative where numbers exceed 1.
        tasks: how many tasks ran.
        live_bytes: level -> most bytes that had to be there at once.
        traffic: words read and written by (Einsum, tensor, level), tallied step by step; as
            counted, where `is_walkable` says that this cannot be done.
        peak_bytes: level -> most bytes that the tiles took, as the loop tree is walked.
    """

    outputs: Mapping[str, NDArray[np.float64]]
    max_error: float
    tasks: int
    live_bytes: Mapping[str, float]
    traffic: Mapping[tuple[str, str, str], Traffic]
    peak_bytes: Mapping[str, float]

    @property
    def moved_words(self) -> dict[str, Traffic]:
        """Words read and written at each level; in registers, of one lane."""
        found: dict[str, Traffic] = {}
        for (_, _, level), own in self.traffic.items():
            so_far = found.get(level, Traffic(0.0, 0.0))
            found[level] = Traffic(so_far.reads + own.reads, so_far.writes + own.writes)
        return found

    def __str__(self) -> str:
        """Lines that go under those of the simulation in time."""
        live = ", ".join(f"{level} {held:.6g} bytes" for level, held in self.live_bytes.items())
        lines = [f"  numbers   max error {self.max_error:.3g}", f"  alive     at most {live}"]
        for level, moved in self.moved_words.items():
            lines.append(
                f"  {level}: {moved.reads:.6g} words read, {moved.writes:.6g} written"
                + (" (of one lane)" if level == REGISTERS else "")
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, ready for ``json.dumps``."""
        return {
            "max_error": self.max_error,
            "live_bytes": dict(self.live_bytes),
            "tallied": {
                "peak_bytes": dict(self.peak_bytes),
                "words": {
                    level: {"reads": float(moved.reads), "writes": float(moved.writes)}
                    for level, moved in self.moved_words.items()
                },
            },
        }


def simulate_functional(
    design: Design,
    shape: Mapping[str, int],
    *,
    set: Mapping[str, Any] | None = None,
    repair: bool = True,
    seed: int = 0,
    follow: Follow = iter,
) -> Functional:
    """Run the tasks of a design at a shape on random numbers.

    Args:
        design: a cascade, an architecture and a mapping rule.
        shape: rank -> size; batch ranks included. Every point is worked on: in large tiles some
            1e8 in a second, and a millisecond a tile.
        set: architecture parameter by its path -> value.
        repair: where an offset breaks a dependency, wait; else that is an error.
        seed: of the inputs.
        follow: hands out the tasks, and may show how far they are.

    Raises:
        MappingError: the task and the tensor that make the mapping illegal, or a shape too large.

    >>> from einfuse.mapper.design.design import load_design
    >>> shape = {"B": 1, "H": 1, "M": 16, "P": 16, "E": 4, "F": 4}
    >>> tiny = {"array_2d.rows": 4, "array_2d.columns": 4, "array_1d.lanes": 4}
    >>> simulate_functional(load_design("fusemax"), shape, set=tiny).max_error < 1e-12
    True
    """
    prepared = prepare(design, shape, set=set, repair=repair)
    try:
        _check_shape(prepared)
        tasks = list(islice(order_tasks(prepared, repair=repair), LARGEST_TASKS + 1))
        if len(tasks) > LARGEST_TASKS:
            raise MappingError(
                f"more than {LARGEST_TASKS} tasks take too long: choose a smaller shape, or larger "
                "tiles"
            )
        return run_tasks(prepared, tasks, seed=seed, follow=follow)
    except EinfuseError as error:
        kind = type(error) if isinstance(error, ArchitectureError | MappingError) else MappingError
        raise kind(f"{design.name}: {error}") from None


def run_tasks(
    prepared: Prepared, tasks: Sequence[TileTask], *, seed: int = 0, follow: Follow = iter
) -> Functional:
    """Run tasks in their order, each on every point of the batch in its region.

    Raises:
        MappingError: a task that reads what is not made by then or that does not fit, or an
            output that no task makes.
    """
    point = prepared.point
    cascade, batch = point.design.cascade, point.design.batch
    sizes = {rank: int(size) for rank, size in point.sizes.items()}
    own = {rank: size for rank, size in sizes.items() if rank not in batch}
    extents = tuple(sizes[rank] for rank in batch)
    inputs = {
        at: draw_inputs(cascade, own, seed + number)
        for number, at in enumerate(np.ndindex(extents))
    }
    residency = Residency(point, prepared.chains)
    with np.errstate(all="ignore"):
        runs = {at: Tensors(cascade, given, own) for at, given in inputs.items()}
        for task in follow(tasks):
            residency.touch(task)
            spans = [task.region[rank] for rank in batch]
            for offset in np.ndindex(*(end - first for first, end in spans)):
                at = tuple(first + k for (first, _), k in zip(spans, offset, strict=True))
                missing = runs[at].run(task.einsum, task.region)
                if missing is not None:
                    raise MappingError(
                        f"{task} reads {missing} before it is made there: put it behind the "
                        f"tasks that make {missing}, by a longer offset or a later phase"
                    )
    live_bytes = residency.peak_bytes()
    outputs: dict[str, NDArray[np.float64]] = {}
    error = 0.0
    for name in cascade.outputs:
        for at, tensors in runs.items():
            if not tensors.made(name):
                raise MappingError(f"no task makes all of the output {name}")
            found = tensors.array(name)
            outputs.setdefault(name, np.zeros((*extents, *found.shape)))[at] = found
    for at, given in inputs.items():
        for name, expected in run(cascade, given, own).items():
            error = max(error, _difference(outputs[name][at], expected))
    traffic, peaks = _moved(prepared)
    return Functional(outputs, error, len(tasks), live_bytes, traffic, peaks)


def _moved(
    prepared: Prepared,
) -> tuple[Mapping[tuple[str, str, str], Traffic], Mapping[str, float]]:
    """Words moved and most bytes there, tallied; as they are counted where the walk cannot."""
    point, chains = prepared.point, prepared.chains
    if not is_walkable(point):
        return point.counts.traffic, {n: float(held) for n, held in point.peak_bytes.items()}
    nest = select(point.design.nest, point.scope)
    word_bytes = float(point.number("word_bytes"))
    peaks = find_peaks(point, chains, nest)
    return tally(point, chains, nest), {n: words * word_bytes for n, words in peaks.items()}


def _difference(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """The largest difference, relative to numbers beyond 1; not finite ones must agree."""
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        apart = np.abs(found - expected) / np.maximum(1, np.abs(expected))
    apart = np.where(same, 0, np.where(np.isnan(apart), np.inf, apart))
    return float(apart.max(initial=0.0))


def _check_shape(prepared: Prepared) -> None:
    point, sizes = prepared.point, prepared.point.sizes
    for split in prepared.point.design.cascade.splits:
        whole, outer, inner = (int(sizes[r]) for r in (split.whole, split.outer, split.inner))
        if whole != outer * inner:
            raise MappingError(
                f"{split.whole} of {whole} does not split into {split.outer} x {split.inner} of "
                f"{outer} x {inner}: numbers need tiles that come out even"
            )
    check_steps(prepared.chains)
    shape = {rank: int(size) for rank, size in sizes.items()}
    cascade = point.design.cascade
    words = sum(prod(tensor_shape(cascade, t.name, shape)) for t in cascade.tensors)
    needed = _ELEMENT_BYTES * words * prod(shape[rank] for rank in point.design.batch)
    available = available_main_memory_bytes()
    if available is not None and needed > available:
        raise MappingError(
            f"every tensor is kept whole with what is made of it, about {needed / 1e9:.3g} GB of "
            f"{available / 1e9:.3g} GB of memory: choose a smaller shape"
        )
