"""One launch of a Triton function as a value: it can be run, or compiled without a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import triton

from .architecture import is_interpreting
from .interpreter import mend_interpreter


@dataclass(frozen=True, slots=True, eq=False)
class Launch:
    """A Triton function with everything it is launched with.

    ``arguments`` go by the function's parameter names: tensors (on ``meta`` if the launch is only
    to be compiled), tensors with their strides as named tuples, numbers, and the compile-time
    constants. One turn of the main loop covers ``block_p`` of rank P and so on; ``tile`` says, by
    the cascade's ranks, what of it those constants do not. A launch that makes tensor descriptors
    on the device ``needs_scratch`` memory for them.
    """

    function: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    options: Mapping[str, int]
    tile: Mapping[str, int] = field(default_factory=dict)
    needs_scratch: bool = False

    def run(self) -> None:
        """Launch it on its tensors' device; an empty grid launches nothing."""
        if not all(self.grid):
            return
        if is_interpreting():
            mend_interpreter()
        if self.needs_scratch:
            triton.set_allocator(_allocate)
        with self._device():
            self.function[self.grid](**self.arguments, **self.options)

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield the tensors among the arguments, in order; the first is an operand of products."""
        for argument in self.arguments.values():
            first = argument[0] if isinstance(argument, tuple) else argument
            if isinstance(first, torch.Tensor):
                yield first

    def _device(self) -> AbstractContextManager[object]:
        """Triton launches on the current device, which need not be that of the tensors."""
        first = next(self.tensors(), None)
        if first is None or not first.is_cuda:
            return nullcontext()
        return torch.cuda.device(first.device)


def _allocate(size: int, alignment: int, stream: int | None) -> torch.Tensor:
    """Memory for descriptors that a kernel makes on the device."""
    return torch.empty(size, device="cuda", dtype=torch.int8)
