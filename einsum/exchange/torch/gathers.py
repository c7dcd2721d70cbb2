"""Operations of PyTorch that follow data: gathers, embeddings, the largest k, scatters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from einfuse.einsum.language.equation import Einsum, Populate, Reduce
from einfuse.einsum.language.expression import Binary, Call, Coordinate, Expression, Number

from .masks import choose
from .site import Site, dense
from .values import (
    Indices,
    UnsupportedError,
    Value,
    access_at,
    broadcast,
    clipped,
    expanded_to,
    index_of,
    position,
    sliced,
    variable_of,
)


def _pointer(site: Site, index: Value) -> Callable[[Indices], Expression]:
    """Return a tensor of whole numbers as an index expression at given indices."""
    if index.flag:
        raise UnsupportedError(f"{site.name} by truth values: their count is data; use where")
    own = site.writer.indices(index.shape, [index])
    if index_of(index.at(own), gathers=True) is None:
        index = site.writer.write("AT", index.shape, own, index.at(own))

    def at(indices: Indices) -> Expression:
        found = index_of(index.at(indices), gathers=True)
        assert found is not None
        return found

    return at


def _gather(site: Site, value: Value, axis: int, index: Value, *_: Any, **__: Any) -> Value:
    axis %= max(len(value.shape), 1)
    pointer = _pointer(site, index)
    hints = tuple(h if n == m else None for h, n, m in zip(
        index.hints, index.shape, site.shape, strict=True))  # fmt: skip

    def at(i: Indices) -> Expression:
        chosen = Number(0) if value.shape[axis] == 1 else pointer(i)
        return value.at((*i[:axis], chosen, *i[axis + 1 :]))

    return replace(value, shape=site.shape, hints=hints, at=at)


def _embedding(site: Site, table: Value, index: Value, *_: Any, **__: Any) -> Value:
    pointer, count = _pointer(site, index), len(index.shape)
    return replace(
        table,
        shape=site.shape,
        hints=(*index.hints, table.hints[1]),
        at=lambda i: table.at((pointer(i[:count]), i[count])),
    )


def _index_select(site: Site, value: Value, axis: int, index: Value) -> Value:
    axis %= len(value.shape)
    places: list[Value | None] = [None] * axis
    return _index(site, value, [*places, index])


def _index(site: Site, value: Value, given: Sequence[Value | None]) -> Value:
    """Return ``value[given]``: what is not None is broadcast together, as in NumPy."""
    places = [axis for axis, index in enumerate(given) if index is not None]
    picked = [index for index in given if index is not None]
    shape = broadcast([index.shape for index in picked])
    pointers = [_pointer(site, index) for index in picked]
    lead = [len(shape) - len(index.shape) for index in picked]
    together = places == list(range(places[0], places[-1] + 1))
    front = places[0] if together else 0
    rest = [axis for axis in range(len(value.shape)) if axis not in places]

    def at(i: Indices) -> Expression:
        chosen = i[front : front + len(shape)]
        others = iter((*i[:front], *i[front + len(shape) :]))
        full: list[Expression] = [Number(0)] * len(value.shape)
        for axis in rest:
            full[axis] = next(others)
        for axis, index, pointer, skip in zip(places, picked, pointers, lead, strict=True):
            own = tuple(
                Number(0) if n == 1 else j for n, j in zip(index.shape, chosen[skip:], strict=True)
            )
            full[axis] = Number(0) if value.shape[axis] == 1 else pointer(own)
        return value.at(tuple(full))

    hints = [value.hints[axis] for axis in rest]
    hints[front:front] = [None] * len(shape)
    if len(picked) == 1:
        hints[front : front + len(shape)] = picked[0].hints
    return replace(value, shape=site.shape, hints=tuple(hints), at=at)


def _top(
    site: Site, value: Value, count: int, axis: int = -1, largest: bool = True, *_: Any, **__: Any
) -> list[Value]:
    """Return the ``count`` largest (or smallest) of an axis, best first, and where they were."""
    axis %= max(len(value.shape), 1)
    if value.absent is not None and not (largest and value.absent == -math.inf):
        value = dense(site, value)
    if not value.shape or value.shape[axis] == 1:
        return [value, replace(value, at=lambda i: Number(0), absent=None)]
    writer = site.writer
    indices = writer.indices(value.shape, [value])
    source = variable_of(indices[axis])
    assert source is not None
    taken = {v for i in indices if (v := variable_of(i))}
    target = writer.unread(count, taken)
    left = (*indices[:axis], Coordinate(target), *indices[axis + 1 :])
    names = [writer.tensor(f"{name}{site.name}", left) for name in ("", "AT_")]
    kept = tuple(k for k, index in enumerate(left) if isinstance(index, Coordinate))
    outputs = tuple(access_at(name, tuple(left[k] for k in kept)) for name in names)
    action = Populate("topk" if largest else "bottomk", source, target)
    writer.einsums.append(Einsum(outputs, value.at(indices), (action,)))
    shape = tuple(count if k == axis else n for k, n in enumerate(value.shape))
    hints = tuple(variable_of(index) for index in left)

    def found(name: str, absent: float | None) -> Value:
        return Value(shape, lambda i: access_at(name, tuple(i[k] for k in kept)), hints, absent)

    return [found(names[0], value.absent), found(names[1], None)]


def _sort(site: Site, value: Value, axis: int = -1, descending: bool = False, **_: Any) -> Any:
    return _top(site, value, value.shape[axis] if value.shape else 1, axis, descending)


def extreme_place(largest: bool) -> Callable[..., Value]:
    """Return argmax or argmin."""

    def translate(
        site: Site, value: Value, axis: int | None = None, keepdim: bool = False
    ) -> Value:
        if axis is None:
            raise UnsupportedError(f"{site.name} without dim: flatten the tensor first")
        axis %= len(value.shape)
        found = _top(site, value, 1, axis, largest)[1]
        return found if keepdim else _first(found, axis)

    return translate


def _first(value: Value, axis: int) -> Value:
    return replace(
        sliced(value, axis, 0, 1, 1),
        shape=value.shape[:axis] + value.shape[axis + 1 :],
        hints=value.hints[:axis] + value.hints[axis + 1 :],
        at=lambda i: value.at((*i[:axis], Number(0), *i[axis:])),
    )


def _scatter(
    site: Site, base: Value, axis: int, index: Value, source: Any, *rest: Any, **named: Any
) -> Value:
    """Return ``base`` with elements put, or added, where an index points along an axis."""
    added = "add" in site.name
    if not added and (rest or named):
        raise UnsupportedError(f"{site.name} with a reduction: write scatter_add")
    axis %= len(base.shape)
    others = [k for k in range(len(base.shape)) if k != axis]
    if any(index.shape[k] != base.shape[k] for k in others):
        raise UnsupportedError(f"{site.name} whose index covers a part of the other axes")
    values = source if isinstance(source, Value) else None
    if values is not None:
        values = dense(site, values)
        for k, size in enumerate(index.shape):
            values = sliced(values, k, 0, size, 1) if values.shape[k] != size else values
    one = float(source) if values is None else 1.0
    hit = _hits(site, index, axis, base.shape[axis], None)
    put = _hits(site, index, axis, base.shape[axis], values) if values is not None else hit
    if added:
        total = put if values is not None else site.pointwise([hit], lambda x: Binary(
            "*", x, Number(one)))  # fmt: skip
        return site.pointwise([dense(site, base), total], lambda x, y: Binary("+", x, y))
    return choose(site, replace(hit, flag=True), put if values is not None else one, base)


def _hits(site: Site, index: Value, axis: int, size: int, values: Value | None) -> Value:
    """Return for each place of an axis the sum of the values that an index puts there."""
    writer = site.writer
    shape = tuple(size if k == axis else n for k, n in enumerate(index.shape))
    inner = writer.indices(index.shape, [index])
    taken = {v for i in inner if (v := variable_of(i))}
    place: Expression = Number(0)
    if size > 1:
        place = Coordinate(writer.another(size, axis - len(shape), taken))
    here = index.at(inner)
    equal: Expression = Binary(
        "*", Call("ge", (here, position(place))), Call("le", (here, position(place)))
    )
    if values is not None:
        equal = Binary("*", equal, clipped(values, inner))
    left = (*inner[:axis], place, *inner[axis + 1 :])
    gone = variable_of(inner[axis])
    actions = (Reduce("+", (gone,)),) if gone else ()
    return writer.write("PUT" if values is not None else "HIT", shape, left, equal, actions)


def _one_hot(site: Site, index: Value, *_: Any) -> Value:
    count = len(index.shape)

    def build(i: Indices) -> Expression:
        here, place = index.at(i[:count]), position(i[count])
        return Binary("*", Call("ge", (here, place)), Call("le", (here, place)))

    wide = replace(index, shape=site.shape, hints=(*index.hints, None), at=build)
    return site.writer.define(site.name, site.shape, [wide], build)


def _index_put(
    site: Site, base: Value, given: Sequence[Value | None], source: Value, added: bool = False
) -> Value:
    places = [axis for axis, index in enumerate(given) if index is not None]
    if len(places) != 1:
        raise UnsupportedError("an assignment to places along several axes: write torch.where")
    axis, index = places[0], given[places[0]]
    assert index is not None
    if len(index.shape) != 1 or index.flag:
        raise UnsupportedError("an assignment to places that are not a list: write torch.where")
    shape = tuple(index.shape[0] if k == axis else n for k, n in enumerate(base.shape))
    wide = replace(
        index,
        shape=shape,
        hints=tuple(index.hints[0] if k == axis else None for k in range(len(shape))),
        at=lambda i: index.at((i[axis],)),
    )
    values = expanded_to(source, shape)
    return _scatter(replace(site, name="scatter_add" if added else "scatter"),
                    base, axis, wide, values)  # fmt: skip


def _index_copy(site: Site, base: Value, axis: int, index: Value, source: Value) -> Value:
    places: list[Value | None] = [None] * (axis % len(base.shape))
    return _index_put(site, base, [*places, index], source, "add" in site.name)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "gather": _gather,
    "embedding": _embedding,
    "index_select": _index_select,
    "index": _index,
    "topk": _top,
    "sort": _sort,
    "argsort": lambda site, x, *a, **k: _sort(site, x, *a, **k)[1],
    "argmax": extreme_place(True),
    "argmin": extreme_place(False),
    "scatter": _scatter,
    "scatter_add": _scatter,
    "one_hot": _one_hot,
    "index_put": _index_put,
    "index_copy": _index_copy,
    "index_add": _index_copy,
}
