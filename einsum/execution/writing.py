"""Placing a value at the indices on the left of an Einsum: `place`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from einfuse.einsum.language.expression import Access, Coordinate, Index

from .absence import Arithmetic, Value
from .backend import Array, Backend
from .reading import ReadAccess, Space, condition, coordinates_of


@dataclass(frozen=True, slots=True)
class Target:
    """Where an Einsum writes: an index and an extent for each axis."""

    indices: tuple[Index, ...]
    extents: tuple[int, ...]


def place(
    value: Value,
    space: Space,
    access: Access,
    target: Target,
    arithmetic: Arithmetic,
    read: ReadAccess,
) -> Value:
    """Return a value with an axis for each index of a target.

    Args:
        value: over the space; of size 1 along the axes that are reduced.
        space: whose axes the value has.
        access: the left-hand side, for errors.
        target: the indices and extents of the axes that are written.
        arithmetic: the operators.
        read: gives the numbers of an access in an index.
    """
    backend = arithmetic.backend
    value = arithmetic.as_array(value, space.ndim)
    names = [_own_variable(index, space) for index in target.indices]
    if None in names or len(set(names)) != len(names):
        return _scattered(value, space, access, target, arithmetic, read)
    comparisons = [c for index in target.indices for c in index.condition]
    value = arithmetic.cleaned(_culled(value, condition(comparisons, space, backend, read)))
    order = [space.variables.index(name) for name in names if name is not None]
    present = None if value.present is None else _arranged(backend, value.present, order)
    return replace(value, data=_arranged(backend, value.data, order), present=present)


def _own_variable(index: Index, space: Space) -> str | None:
    """Return the free variable that an index consists of, None for any other index."""
    match index.expression:
        case Coordinate(variable=variable) if variable in space.variables:
            return variable
        case _:
            return None


def _culled(value: Value, live: Array | None) -> Value:
    if live is None:
        return value
    present = live if value.present is None else value.present & live
    return replace(value, present=present, clean=False)


def _arranged(backend: Backend, array: Array, order: Sequence[int]) -> Array:
    """Return the axes in an order; the others, all of size 1, are gone."""
    if len(order) != len(array.shape):
        kept = (slice(None) if a in order else 0 for a in range(len(array.shape)))
        array = array[(*kept, ...)]
    ranked = sorted(order)
    moved = [ranked.index(axis) for axis in order]
    if all(a < b for a, b in pairwise(moved)):
        return array
    return backend.transpose(array, moved)


def _scattered(
    value: Value,
    space: Space,
    access: Access,
    target: Target,
    arithmetic: Arithmetic,
    read: ReadAccess,
) -> Value:
    """Return the value placed at coordinates; what meets at one of them adds up."""
    backend = arithmetic.backend
    places, live = coordinates_of(backend, space, access, target.indices, target.extents, read)
    value = _culled(value, live)
    data = arithmetic.filled(value, 0.0)
    truth = backend.truth((1,) * space.ndim, True) if value.present is None else value.present
    index = backend.integers(truth) * 0
    for coordinates, extent in zip(places, target.extents, strict=True):
        index = index * extent + coordinates
    full = [max(sizes) for sizes in zip(index.shape, data.shape, strict=True)]
    rows, count = math.prod(full), math.prod(target.extents)
    at, numbers, there = (
        backend.broadcast(array, full).reshape(rows) for array in (index, data, truth)
    )
    filled = backend.scatter_sum(count, numbers, at).reshape(tuple(target.extents))
    hit = backend.scatter_any(count, there, at).reshape(tuple(target.extents))
    return arithmetic.cleaned(Value(filled, hit, 0.0, True, True))
