"""One launch of a Triton function as a value: it can be run, or compiled without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, eq=False)
class Launch:
    """A Triton function with everything it is launched with.

    ``arguments`` go by the function's parameter names: tensors (on ``meta`` if the launch is only
    to be compiled), numbers, and the compile-time constants. ``tile`` gives, by the cascade's
    ranks, what one turn of the main loop covers, for models of the loop.
    """

    function: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    options: Mapping[str, int]
    tile: Mapping[str, int] = field(default_factory=dict)

    def run(self) -> None:
        """Launch it on the current device; an empty grid launches nothing."""
        if all(self.grid):
            self.function[self.grid](**self.arguments, **self.options)
