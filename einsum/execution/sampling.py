"""Inputs to try a cascade on: random numbers, and coordinates where it reads them as such."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.expression import Access, Binary, Coordinate, Expression, Index, Negate
from einfuse.einsum.language.shape import bind, representatives, tensor_shape


def draw_inputs(
    cascade: Cascade, sizes: Mapping[str, int], seed: int, dtype: npt.DTypeLike = np.float64
) -> dict[str, npt.NDArray[Any]]:
    """Return random inputs of a cascade: standard normal, or whole numbers.

    An input that stands in an index is drawn from the coordinates of that axis; one that stands
    in a filter, from those of the variables beside it and their extent.

    Args:
        cascade: the cascade.
        sizes: the size of every rank.
        seed: of NumPy's default generator.
        dtype: of the numbers that are no coordinates.

    >>> from einfuse.einsum.language.parser import parse
    >>> cascade = parse("rank M, T\\ninput V[M], I[T]\\noutput Y\\nY[t] = V[I[t]]")
    >>> inputs = draw_inputs(cascade, {"M": 3, "T": 5}, seed=0)
    >>> inputs["V"].shape, bool((inputs["I"] < 3).all()), inputs["I"].dtype.kind
    ((3,), True, 'i')
    """
    generator = np.random.default_rng(seed)
    limits = _coordinate_limits(cascade, sizes)
    found: dict[str, npt.NDArray[Any]] = {}
    for tensor in cascade.input_tensors:
        shape = tuple(sizes[rank] for rank in tensor.ranks)
        if tensor.name in limits:
            found[tensor.name] = generator.integers(0, limits[tensor.name], shape)
        else:
            found[tensor.name] = generator.standard_normal(shape).astype(dtype)
    return found


def shrunk(
    cascade: Cascade, sizes: Mapping[str, int], largest: int
) -> tuple[Cascade, dict[str, int]]:
    """Return the cascade with open ranks, and a small shape of it; `largest` bounds its sizes.

    Sizes differ from rank to rank where they can, so that mixed-up axes show.

    Raises:
        EinfuseError: no small shape keeps all indices inside their tensors.
    """
    opened = replace(
        cascade,
        ranks=tuple(replace(r, size=None) if isinstance(r.size, int) else r for r in cascade.ranks),
    )
    roots = representatives(opened)
    wholes = {roots[split.whole] for split in cascade.splits}
    names = [n for n in dict.fromkeys(roots.values()) if n not in wholes]
    problem: EinfuseError | None = None
    for least in range(2, largest + 1):
        spread = range(least, largest + 1)
        tiny = {n: min(sizes[n], spread[k % len(spread)]) for k, n in enumerate(names)}
        for shape in (tiny, dict.fromkeys(names, least)):
            try:
                return opened, bind(opened, {n: min(sizes[n], s) for n, s in shape.items()})
            except EinfuseError as error:
                problem = error
    raise problem or EinfuseError(f"{cascade.name} has no small shape")


def _coordinate_limits(cascade: Cascade, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return for every tensor that is read as coordinates the number that they stay below.

    What a tensor is copied or gathered from holds coordinates where it does.
    """
    limits: dict[str, int] = {}

    def limit(name: str, extent: int) -> None:
        limits[name] = min(extent, limits.get(name, extent))

    for einsum in cascade.einsums:
        for access in (*einsum.outputs, *einsum.operands):
            extents = tensor_shape(cascade, access.tensor, sizes)
            for index, extent in zip(access.indices, extents, strict=True):
                for node in _outside_gathers(index.expression):
                    if isinstance(node, Access):
                        limit(node.tensor, extent)
                _limit_filters(cascade, sizes, index, limit)
    for _ in cascade.einsums:  # a chain of copies is no longer than that
        for einsum in cascade.einsums:
            if einsum.name in limits and isinstance(einsum.expression, Access):
                limit(einsum.expression.tensor, limits[einsum.name])
    return limits


def _limit_filters(
    cascade: Cascade, sizes: Mapping[str, int], index: Index, limit: Callable[[str, int], None]
) -> None:
    for comparison in index.condition:
        nodes = [*_outside_gathers(comparison.left), *_outside_gathers(comparison.right)]
        inside = {n.variable for n in nodes if isinstance(n, Coordinate)}
        extents = [sizes[cascade.rank_of(v)] + 1 for v in inside]
        for node in nodes:
            if isinstance(node, Access):
                limit(node.tensor, max(extents, default=2))


def _outside_gathers(node: Expression) -> Iterator[Expression]:
    """Yield the nodes of an index, accesses included, but not what stands inside an access."""
    yield node
    match node:
        case Binary(left=left, right=right):
            yield from _outside_gathers(left)
            yield from _outside_gathers(right)
        case Negate(operand=operand):
            yield from _outside_gathers(operand)
        case _:
            return
