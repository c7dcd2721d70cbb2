"""Operations of PyTorch that move elements: views, slices, repeats, what stands side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Comparison,
    Expression,
    Number,
    accesses,
    variables,
)
from einfuse.einsum.language.substitution import zero_at

from .site import Site
from .values import (
    Indices,
    UnsupportedError,
    Value,
    absence_of,
    behind,
    expanded_to,
    moved_by,
    permuted,
    position,
    quotient,
    remainder,
    reshaped,
    scaled_by,
    selected,
    sliced,
    variable_of,
    with_last_swapped,
)


def _transpose(site: Site, value: Value, a: int = 0, b: int = 1) -> Value:
    order = list(range(len(value.shape)))
    order[a], order[b] = order[b], order[a]
    return permuted(value, order)


def _permute(site: Site, value: Value, order: Sequence[int]) -> Value:
    return permuted(value, order)


def with_axis(site: Site, value: Value, axis: int) -> Value:
    """Return a value with an axis of size 1 more."""
    axis %= len(value.shape) + 1
    return replace(
        value,
        shape=(*value.shape[:axis], 1, *value.shape[axis:]),
        hints=(*value.hints[:axis], None, *value.hints[axis:]),
        at=lambda i: value.at((*i[:axis], *i[axis + 1 :])),
    )


def _reshape(site: Site, value: Value, *_: Any) -> Value:
    return reshaped(value, site.shape)


def _expand(site: Site, value: Value, *_: Any, **__: Any) -> Value:
    return expanded_to(value, site.shape)


def _slice(site: Site, value: Value, axis: int = 0, start: int | None = None, *rest: Any) -> Value:
    step = rest[1] if len(rest) > 1 else 1
    size = value.shape[axis]
    first = range(size)[slice(start, None)].start if start is not None else 0
    return sliced(value, axis, min(first, size), site.shape[axis], step)


def _select(site: Site, value: Value, axis: int, place: int) -> Value:
    return selected(value, axis, place)


def _narrow(site: Site, value: Value, axis: int, start: int, length: int) -> Value:
    return sliced(value, axis, start % value.shape[axis], length, 1)


def _split(site: Site, value: Value, sizes: Any, axis: int = 0) -> list[Value]:
    total = value.shape[axis]
    if isinstance(sizes, int):
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    return [sliced(value, axis, a, n, 1) for a, n in zip(starts, sizes, strict=True)]


def _chunk(site: Site, value: Value, count: int, axis: int = 0) -> list[Value]:
    return _split(site, value, -(-value.shape[axis] // count), axis)


def _tensor_split(site: Site, value: Value, parts: Any, axis: int = 0) -> list[Value]:
    total = value.shape[axis]
    if isinstance(parts, int):
        sizes = [total // parts + (k < total % parts) for k in range(parts)]
    else:
        ends = [0, *(min(end, total) for end in parts), total]
        sizes = [after - before for before, after in pairwise(ends)]
    return _split(site, value, sizes, axis)


def _as_strided(
    site: Site, value: Value, shape: Sequence[int], strides: Sequence[int], offset: int | None = 0
) -> Value:
    """Return places counted along the elements one after the other, windows that overlap too."""
    flat = reshaped(value, (math.prod(value.shape),))

    def at(indices: Indices) -> Expression:
        place: Expression = Number(offset or 0)
        for index, stride in zip(indices, strides, strict=True):
            step = scaled_by(index, stride) if stride else Number(0)
            if isinstance(step, Number):
                place = moved_by(place, int(step.value)) if step.value else place
            else:
                place = step if place == Number(0) else Binary("+", place, step)
        return flat.at((place,))

    return replace(value, shape=tuple(shape), hints=(None,) * len(shape), at=at)


def _unbind(site: Site, value: Value, axis: int = 0) -> list[Value]:
    return [selected(value, axis, k) for k in range(value.shape[axis])]


def reversed_along(value: Value, axes: Sequence[int]) -> Value:
    """Return a value with axes in reverse."""
    gone = {axis % len(value.shape) for axis in axes}

    def at(indices: Indices) -> Expression:
        return value.at(
            tuple(
                Binary("-", Number(n - 1), i) if k in gone and n > 1 else i
                for k, (i, n) in enumerate(zip(indices, value.shape, strict=True))
            )
        )

    hints = tuple(None if k in gone else h for k, h in enumerate(value.hints))
    return replace(value, hints=hints, at=at)


def repeated(site: Site, value: Value, times: int, axis: int) -> Value:
    """Return a value with each place of an axis several times."""
    axis %= len(value.shape)
    shape = tuple(n * times if k == axis else n for k, n in enumerate(value.shape))
    one = value.shape[axis] == 1
    return replace(
        value,
        shape=shape,
        hints=tuple(None if k == axis and times > 1 else h for k, h in enumerate(value.hints)),
        at=lambda i: value.at(
            (*i[:axis], Number(0) if one else quotient(i[axis], times), *i[axis + 1 :])
        ),
    )


def _repeat_interleave(
    site: Site, value: Value, times: Any, axis: int | None = None, **_: Any
) -> Value:
    if axis is None and len(value.shape) == 1:
        axis = 0
    if not isinstance(times, int) or axis is None:
        raise UnsupportedError("repeat_interleave with counts that are data, or without a dim")
    return repeated(site, value, times, axis)


def _repeat(site: Site, value: Value, counts: Sequence[int]) -> Value:
    lead = len(counts) - len(value.shape)
    sizes = value.shape
    return replace(
        value,
        shape=site.shape,
        hints=(None,) * lead
        + tuple(h if c == 1 else None for h, c in zip(value.hints, counts[lead:], strict=True)),
        at=lambda i: value.at(
            tuple(
                j if c == 1 else remainder(j, n)
                for j, n, c in zip(i[lead:], sizes, counts[lead:], strict=True)
            )
        ),
    )


def _tile(site: Site, value: Value, counts: Sequence[int]) -> Value:
    return _repeat(site, value, [1] * (len(value.shape) - len(counts)) + list(counts))


def joined(site: Site, values: Sequence[Value], axis: int = 0) -> Value:
    """Return values side by side: each is 0 beyond its own part, and the parts add up."""
    axis %= len(values[0].shape)
    absent = absence_of(values)
    if absent is not None:
        values = [_laid_out(site, value) for value in values]
    starts = [sum(v.shape[axis] for v in values[:k]) for k in range(len(values) + 1)]
    shape = (*values[0].shape[:axis], starts[-1], *values[0].shape[axis + 1 :])

    def part(k: int, indices: Indices) -> Expression:
        moved = moved_by(indices[axis], -starts[k])
        return values[k].at((*indices[:axis], moved, *indices[axis + 1 :]))

    hints = tuple(None if k == axis else h for k, h in enumerate(values[0].hints))
    indices = site.writer.indices(shape, [replace(values[0], hints=hints)])
    if not any(any(accesses(part(k, indices))) for k in range(len(values))):
        return Value(
            shape,
            lambda i: _one_of(position(i[axis]), starts, part, i),
            (None,) * len(indices),
        )
    names = [v for i in indices if (v := variable_of(i))]
    total: Expression | None = None
    for k in range(len(values)):
        first, stop = Number(starts[k]), Number(starts[k + 1])
        inside = (Comparison(indices[axis], ">=", first), Comparison(indices[axis], "<", stop))
        found = behind(part(k, indices), inside) if shape[axis] > 1 else part(k, indices)
        if found is None or set(variables(found)) < set(names):
            # what lacks a variable has no coordinate of it: 0 at all of them adds what is missing
            inner = Binary(
                "*", Call("ge", (indices[axis], first)), Call("lt", (indices[axis], stop))
            )
            here = Binary("*", inner, part(k, indices))
            found = Binary("+", here, zero_at(names))
        total = found if total is None else Binary("+", total, found)
    assert total is not None
    return site.writer.write(site.name, shape, indices, total, absent=absent)


def _laid_out(site: Site, value: Value) -> Value:
    """Return a value as a tensor with all its axes, so that a filter can stand behind it."""
    indices = site.writer.indices(value.shape, [value])
    found, names = value.at(indices), [v for i in indices if (v := variable_of(i))]
    if isinstance(found, Access) and found.indices and set(names) <= set(variables(found)):
        return value
    if value.absent is None:
        found = Binary("+", found, zero_at(names))
    return site.writer.write("PART", value.shape, indices, found, absent=value.absent)


def _one_of(
    here: Expression, starts: Sequence[int], part: Callable[[int, Indices], Expression], i: Indices
) -> Expression:
    """Return the part of constants side by side in which a coordinate lies."""
    found = part(len(starts) - 2, i)
    for k in range(len(starts) - 3, -1, -1):
        found = Call("where", (Call("lt", (here, Number(starts[k + 1]))), part(k, i), found))
    return found


def _diagonal(site: Site, value: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    first, second = dim1 % len(value.shape), dim2 % len(value.shape)
    rest = [k for k in range(len(value.shape)) if k not in (first, second)]
    moved, size = permuted(value, [*rest, first, second]), site.shape[-1]
    down, right = max(-offset, 0), max(offset, 0)
    return replace(
        moved,
        shape=site.shape,
        hints=(*moved.hints[:-2], None),
        at=lambda i: (
            moved.at((*i[:-1], moved_by(i[-1], down), moved_by(i[-1], right)))
            if size > 1
            else moved.at((*i[:-1], Number(down), Number(right)))
        ),
    )


def _glu(site: Site, value: Value, axis: int = -1) -> Value:
    first, second = _chunk(site, value, 2, axis)
    return site.pointwise([first, second], lambda x, y: Binary("*", x, Call("sigmoid", (y,))))


def _roll(site: Site, value: Value, shifts: Any, dims: Any = ()) -> Value:
    steps = [shifts] if isinstance(shifts, int) else list(shifts)
    axes = [dims] if isinstance(dims, int) else list(dims)
    if not axes:
        raise UnsupportedError("roll without dims")
    count = len(value.shape)
    turns = {a % count: s for a, s in zip(axes, steps, strict=True)}
    hints = tuple(None if k in turns else h for k, h in enumerate(value.hints))

    def at(indices: Indices) -> Expression:
        return value.at(
            tuple(
                remainder(moved_by(i, -turns[k] % n), n) if k in turns and n > 1 else i
                for k, (i, n) in enumerate(zip(indices, value.shape, strict=True))
            )
        )

    return replace(value, hints=hints, at=at)


def _stack(site: Site, values: Sequence[Value], axis: int = 0) -> Value:
    return joined(site, [with_axis(site, value, axis) for value in values], axis)


def _scattered(site: Site, value: Value, source: Value, axis: int, first: int, end: int) -> Value:
    """Return a value with places ``first`` to ``end`` of an axis taken from another."""
    size = value.shape[axis]
    parts = [
        sliced(value, axis, 0, first, 1) if first else None,
        source,
        sliced(value, axis, end, size - end, 1) if end < size else None,
    ]
    kept = [part for part in parts if part is not None]
    return joined(site, kept, axis) if len(kept) > 1 else kept[0]


def _slice_scatter(
    site: Site, value: Value, source: Value, axis: int = 0, start: Any = None, *rest: Any
) -> Value:
    first, end, step = slice(start, *(rest or (None,))).indices(value.shape[axis])
    if step != 1:
        raise UnsupportedError("an assignment to every so many places: write torch.where")
    return _scattered(site, value, source, axis, first, max(end, first))


def _select_scatter(site: Site, value: Value, source: Value, axis: int, place: int) -> Value:
    place %= value.shape[axis]
    one = with_axis(site, source, axis % len(value.shape))
    return _scattered(site, value, one, axis, place, place + 1)


def _moved(value: Value, source: Any, target: Any) -> Value:
    sources = [source] if isinstance(source, int) else source
    targets = [target] if isinstance(target, int) else target
    count = len(value.shape)
    placed = {t % count: s % count for s, t in zip(sources, targets, strict=True)}
    rest = iter(k for k in range(count) if k not in placed.values())
    return permuted(value, [placed[k] if k in placed else next(rest) for k in range(count)])


OPERATIONS: dict[str, Callable[..., Any]] = {
    "diagonal": _diagonal,
    "roll": _roll,
    "flip": lambda site, x, axes: reversed_along(x, axes),
    "transpose": _transpose,
    "t": _transpose,
    "mT": lambda site, x: with_last_swapped(x),
    "numpy_T": lambda site, x: permuted(x, range(len(x.shape))[::-1]),
    "permute": _permute,
    "unsqueeze": with_axis,
    "squeeze": _reshape,
    "view": _reshape,
    "reshape": _reshape,
    "_unsafe_view": _reshape,
    "flatten": _reshape,
    "unflatten": _reshape,
    "movedim": lambda site, x, a, b: _moved(x, a, b),
    "expand": _expand,
    "expand_as": _expand,
    "broadcast_to": _expand,
    "slice": _slice,
    "select": _select,
    "narrow": _narrow,
    "split": _split,
    "split_with_sizes": _split,
    "chunk": _chunk,
    "unbind": _unbind,
    "tensor_split": _tensor_split,
    "as_strided": _as_strided,
    "repeat_interleave": _repeat_interleave,
    "repeat": _repeat,
    "tile": _tile,
    "glu": _glu,
    "slice_scatter": _slice_scatter,
    "select_scatter": _select_scatter,
    "swapaxes": _transpose,
    "swapdims": _transpose,
    "concat": joined,
    "concatenate": joined,
    "view_as": lambda site, x, y: reshaped(x, y.shape),
    "reshape_as": lambda site, x, y: reshaped(x, y.shape),
    "cat": joined,
    "stack": _stack,
}
