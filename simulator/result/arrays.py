"""Arrays in, arrays out: flatten the inputs, evaluate groups of points, put them together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from einfuse.mapper import MappingError

from .evaluation import Evaluation

Points = tuple[int, ...]
_WRAPS = 2.0**62  # products of sizes from here on are counted in floating point


def broadcast_inputs(
    shape: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[Points | None, dict[str, Any], dict[str, Any]]:
    """Return the common array shape (None: all scalars) and the inputs, flat.

    >>> broadcast_inputs({"M": [1, 2], "P": 3}, {})[1]["P"].tolist()
    [3, 3]
    """
    arrays = {
        **{("", k): v for k, v in shape.items()},
        **{("s", k): v for k, v in settings.items()},
    }
    if all(np.ndim(value) == 0 for value in arrays.values()):
        return (
            None,
            {k: _scalar(v) for k, v in shape.items()},
            {k: _scalar(v) for k, v in settings.items()},
        )
    try:
        together = np.broadcast_arrays(*arrays.values())
    except ValueError:
        sizes = ", ".join(f"{k} {np.shape(v)}" for (_, k), v in arrays.items() if np.ndim(v))
        raise MappingError(f"arrays of sizes and settings do not broadcast: {sizes}") from None
    wide = [_wide(array) for array in together]
    if math.prod(float(array.max(initial=1)) for array in wide[: len(shape)]) >= _WRAPS:
        wide = [array.astype(np.float64) for array in wide]
    spread = dict(zip(arrays, wide, strict=True))
    points = next(iter(spread.values())).shape
    return (
        points,
        {k: spread["", k].ravel() for k in shape},
        {k: spread["s", k].ravel() for k in settings},
    )


def _wide(array: Any) -> Any:
    """Return numbers of few bits in 64: products of sizes do not wrap round."""
    kinds = {"i": np.int64, "u": np.int64, "f": np.float64}
    return array.astype(kinds[array.dtype.kind]) if array.dtype.kind in kinds else array


def _scalar(value: Any) -> Any:
    return np.asarray(value)[()].item()


def finish(result: Evaluation, points: Points | None) -> Evaluation:
    """Give every number its final form: a Python number, or an array of the inputs' shape."""

    def number(values: Sequence[Any]) -> Any:
        (value,) = values
        return value.item() if isinstance(value, np.generic | np.ndarray) else value

    def array(values: Sequence[Any]) -> Any:
        (value,) = values
        if value is None or isinstance(value, str):
            return value
        assert points is not None
        return np.broadcast_to(np.asarray(value), math.prod(points)).reshape(points)

    finished: Evaluation = _map(number if points is None else array, [result])
    return finished


def merge(groups: list[tuple[NDArray[Any], Evaluation]]) -> Evaluation:
    """Scatter the results of groups of points into one."""
    total = sum(len(where) for where, _ in groups)

    def gather(values: Sequence[Any]) -> Any:
        if all(value is None for value in values):
            return None
        kinds = [np.asarray(np.nan if value is None else value) for value in values]
        out = np.empty(total, dtype=object if kinds[0].dtype == object else np.result_type(*kinds))
        for (where, _), value in zip(groups, kinds, strict=True):
            out[where] = value
        return out

    results = [replace(result, holders_bytes={}) for _, result in groups]  # they differ
    merged: Evaluation = _map(gather, results)
    return replace(
        merged,
        unknown={name: why for result in results for name, why in result.unknown.items()},
        warnings=tuple(dict.fromkeys(text for result in results for text in result.warnings)),
    )


def _map(form: Callable[[Sequence[Any]], Any], values: Sequence[Any]) -> Any:
    """Put what stands at the same place of several results through a function; texts stay.

    What one of them lacks by name is 0 there.
    """
    first = values[0]
    if first is None or isinstance(first, float | int | str | np.generic | np.ndarray):
        return form(values)
    if is_dataclass(first) and not isinstance(first, type):
        changed = {
            name: _map(form, [getattr(value, name) for value in values])
            for name in _numbers_of(type(first))
        }
        return replace(first, **changed)
    if isinstance(first, Mapping):
        names = first if len(values) == 1 else dict.fromkeys(n for value in values for n in value)
        return {name: _map(form, [value.get(name, 0.0) for value in values]) for name in names}
    if isinstance(first, tuple):
        return tuple(_map(form, parts) for parts in zip(*values, strict=True))
    return form(values)


@cache
def _numbers_of(kind: type) -> tuple[str, ...]:
    """The fields of a dataclass that have numbers."""
    texts = ("design", "accounting", "include", "sources", "unknown", "warnings", "unit")
    return tuple(item.name for item in fields(kind) if item.name not in texts)
