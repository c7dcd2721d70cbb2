"""Where arrays live: NumPy and PyTorch behind one thin class, `Backend`.

Both libraries share operators, ``reshape`` and indexing; a backend holds only what differs.
Truth arrays are boolean; coordinates are 64-bit integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from einfuse.einsum.language.function_row import Function
from einfuse.einsum.language.functions import CoordinateOperator, Monoid

Array: TypeAlias = Any  # numpy.ndarray or torch.Tensor, whichever the backend handles
DType: TypeAlias = Any  # the backend's own kind of dtype
Operand: TypeAlias = Any  # an Array or a Python number


class Backend(Protocol):
    """The operations an execution needs of an array library."""

    name: str

    def import_input(self, name: str, array: object) -> Array:
        """Return an input as an array of this library; EinfuseError if it is none."""

    def dtype_of(self, arrays: Iterable[Array]) -> DType:
        """Return the dtype to compute in: what the floating arrays promote to."""

    def item_bytes(self, dtype: DType) -> int:
        """Return the bytes of one element."""

    def is_array(self, value: Operand) -> bool:
        """Tell an array from a Python number."""

    def follows_gradients(self, *operands: Operand) -> bool:
        """Tell whether derivatives will be asked of a result of these."""

    def is_floating(self, array: Array) -> bool:
        """Tell floating from integer and truth arrays."""

    def cast(self, array: Array, dtype: DType) -> Array:
        """Return the array in a dtype, itself if it has it."""

    def integers(self, array: Array) -> Array:
        """Return the array as 64-bit integers."""

    def arange(self, count: int) -> Array:
        """Return the coordinates 0 to count - 1."""

    def full(self, shape: Sequence[int], value: float, dtype: DType) -> Array:
        """Return a constant array."""

    def truth(self, shape: Sequence[int], value: bool) -> Array:
        """Return a constant truth array."""

    def transpose(self, array: Array, axes: Sequence[int]) -> Array:
        """Return a view with permuted axes."""

    def broadcast(self, array: Array, shape: Sequence[int]) -> Array:
        """Return a read-only view of that shape."""

    def copy(self, array: Array) -> Array:
        """Return a contiguous copy."""

    def compact(self, array: Array) -> Array:
        """Return the array, copied only if it is not contiguous."""

    def stack(self, arrays: Sequence[Array], axis: int) -> Array:
        """Return arrays of one shape joined along a new axis."""

    def strided(
        self,
        array: Array,
        start: Sequence[int],
        sizes: Sequence[int],
        steps: Sequence[Sequence[int]],
    ) -> Array | None:
        """Return ``view[i] = array[start + sum_n i_n * steps[n]]``, or None if it cannot."""

    def scatter_sum(self, count: int, values: Array, index: Array) -> Array:
        """Return zeros, ``count`` rows of them, with the rows of values added at an index."""

    def scatter_any(self, count: int, truth: Array, index: Array) -> Array:
        """Return ``count`` rows of truth: whether any row that goes there is true."""

    def where(self, truth: Array, chosen: Operand, other: Operand) -> Array:
        """Return chosen where true, other elsewhere, in the dtype of the array among them."""

    def fill(self, array: Array, truth: Array, value: float) -> Array:
        """Return the array with a value where truth is false, overwriting it if it can."""

    def binary(self, operator: str, left: Operand, right: Operand, out: Array | None) -> Array:
        """Return ``left operator right`` for ``+ - * / max min``, into ``out`` if it can."""

    def call(self, function: Function, arguments: Sequence[Operand], out: Array | None) -> Array:
        """Return the function's value, into ``out`` if it can."""

    def fold(self, monoid: Monoid, array: Array, axes: tuple[int, ...]) -> Array:
        """Return the fold along axes, kept with size 1."""

    def any(self, truth: Array, axes: tuple[int, ...]) -> Array:
        """Return whether any is true along axes, kept with size 1."""

    def select(
        self, operator: CoordinateOperator, array: Array, count: int, axis: int
    ) -> tuple[Array, Array]:
        """Return values and coordinates that a coordinate operator chooses along an axis."""

    def take_along(self, array: Array, coordinates: Array, axis: int) -> Array:
        """Return the elements at coordinates along an axis."""

    def sum(self, array: Array, axes: tuple[int, ...]) -> Array:
        """Return the sum along axes, kept with size 1; half precision adds up in single."""

    def as_float64(self, array: Array) -> Array:
        """Return the array in double precision."""

    def matmul(self, left: Array, right: Array) -> Array:
        """Return the batched matrix product."""

    def row_dot(self, left: Array, right: Array, axes: tuple[int, ...]) -> Array:
        """Return ``sum(left * right)`` along axes, kept with size 1, without the product."""

    def is_finite(self, array: Array) -> bool:
        """Tell whether every element is finite."""

    def available_bytes(self) -> int | None:
        """Return the memory that is free for arrays, None where it cannot be told."""

    def quiet(self) -> Any:
        """Return a context in which inf and NaN come about without a warning."""


def available_main_memory_bytes() -> int | None:
    """Return the bytes this process may still take, by the kernel's and the group's account."""
    found = []
    for read in (_unused_bytes, _group_bytes):
        try:
            found.append(read())
        except (OSError, ValueError, StopIteration):
            continue
    return min(found, default=None)


def _unused_bytes() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _group_bytes() -> int:
    """Return what a memory limit on this group of processes leaves; file caches can be dropped."""
    group = Path("/sys/fs/cgroup")
    limit = int((group / "memory.max").read_text(encoding="ascii"))
    used = int((group / "memory.current").read_text(encoding="ascii"))
    lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    cached = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return max(0, limit - used + cached)
