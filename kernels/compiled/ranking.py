"""Which tiles a launch should have: candidates compiled and ranked, without a GPU.

The shipped rows were chosen like this: what does not fit into shared memory or spills registers
in a loop is out; of the rest the fewest instructions per score of the main loop win. A ranking by
resources is a first word, to be confirmed by measuring.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from einfuse.kernels.calls.launch import Launch
from einfuse.kernels.calls.problem import Problem
from einfuse.kernels.calls.registry import Configuration, Kernel
from einfuse.kernels.errors import KernelError

from .compilation import Compiled, compile_launch
from .examples import example_problem, list_launches
from .lowering import lowering_table
from .sass import SPILLS


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration with what it compiles to; ``error`` says why it did not.

    ``instructions_per_score`` are those of all threads in one turn of the largest loop over the
    scores that it computes; ``spills`` are loads and stores of spilled registers inside loops.
    """

    configuration: Configuration
    registers: int = 0
    shared_bytes: int = 0
    spills: int = 0
    instructions_per_score: float = 0.0
    error: str = ""

    @property
    def is_fit(self) -> bool:
        """Whether it compiles, fits into shared memory and keeps its loops in registers."""
        limit = lowering_table().shared_bytes[self.configuration.architecture]
        return not self.error and self.spills == 0 and self.shared_bytes <= limit


def rank_candidates(
    kernel: Kernel,
    launch: str,
    architecture: str,
    head_size: int,
    dtype: torch.dtype = torch.float16,
    *,
    tiles: Mapping[str, Sequence[int]],
    warps: Sequence[int] = (4, 8),
    stages: Sequence[int] = (2, 3),
    causal: bool = False,
    cache: Path | None = None,
) -> tuple[Candidate, ...]:
    """Return every combination of tiles, warps and stages of a launch, the best first.

    ``launch`` is a name of the kernel's configurations; ``tiles`` has the sizes to try of each
    of its tiles. Raises KernelError for an unknown launch, tile or architecture.
    """
    problem = example_problem(kernel, head_size, dtype, causal)
    row = _row_to_vary(kernel, launch, architecture, problem, tiles)

    def compiled(candidate: Configuration) -> Candidate:
        others = (other for other in kernel.configurations if other.launch != launch)
        varied = replace(kernel, configurations=(candidate, *others))
        try:
            found = _launch_of(varied, candidate, list_launches(varied, problem, architecture))
            return _judge(candidate, found, compile_launch(found, architecture, cache))
        except KernelError as error:
            return Candidate(candidate, error=str(error))

    candidates = (
        compiled(replace(row, tiles=tuple(sizes.items()), warps=warp, stages=stage, when=()))
        for sizes in _products(dict(row.tiles) | dict(tiles))
        for warp, stage in itertools.product(warps, stages)
    )
    return tuple(sorted(candidates, key=lambda c: (not c.is_fit, c.spills, _cost(c))))


def _cost(candidate: Candidate) -> float:
    return candidate.instructions_per_score if not candidate.error else float("inf")


def _row_to_vary(
    kernel: Kernel,
    launch: str,
    architecture: str,
    problem: Problem,
    tiles: Mapping[str, Sequence[int]],
) -> Configuration:
    known = lowering_table().shared_bytes
    if architecture not in known:
        raise KernelError(
            f"architecture: expected one of {', '.join(known)}, found '{architecture}'"
        )
    launches = dict.fromkeys(row.launch for row in kernel.configurations)
    if launch not in launches:
        raise KernelError(
            f"launch: kernel {kernel.name} has {', '.join(launches) or 'none'}, not '{launch}'"
        )
    row = kernel.configuration(launch, architecture, **problem.sizes)
    unknown = sorted(set(tiles) - set(dict(row.tiles)))
    if unknown:
        raise KernelError(
            f"tiles: {launch} of kernel {kernel.name} has {', '.join(dict(row.tiles))}, "
            f"not {', '.join(unknown)}"
        )
    return replace(row, architecture=architecture)


def _products(sizes: Mapping[str, int | Sequence[int]]) -> Iterator[dict[str, int]]:
    columns = [(size,) if isinstance(size, int) else size for size in sizes.values()]
    for chosen in itertools.product(*columns):
        yield dict(zip(sizes, chosen, strict=True))


def _launch_of(kernel: Kernel, row: Configuration, launches: Iterator[Launch]) -> Launch:
    """The launch that a row is for: the one with its tiles and options."""
    for launch in launches:
        same = all(launch.arguments.get(name) == size for name, size in row.tiles)
        if same and launch.function.__name__.startswith(row.launch):
            return launch
    raise KernelError(f"launch: no launch of {kernel.name} takes the row '{row.launch}'")


def _judge(row: Configuration, launch: Launch, compiled: Compiled) -> Candidate:
    scores = launch.arguments.get("block_p", 1) * launch.arguments.get("block_m", 1)
    largest = max((sum(loop.values()) for loop in compiled.loops), default=0)
    return Candidate(
        row,
        registers=compiled.resources.registers,
        shared_bytes=compiled.shared_bytes,
        spills=sum(loop.get(name, 0) for loop in compiled.loops for name in SPILLS),
        instructions_per_score=largest * compiled.threads / scores,
    )
