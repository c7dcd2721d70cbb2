"""Arrays in, arrays out: flatten the inputs, evaluate groups of points, put them together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from einfuse.mapper import MappingError

from .evaluation import EinsumResult, Evaluation, LevelTraffic

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

    def form(value: Any) -> Any:
        if value is None or isinstance(value, str):
            return value
        if points is None:
            return np.asarray(value)[()].item() if not isinstance(value, bool) else value
        flat = np.broadcast_to(np.asarray(value), int(np.prod(points)))
        return flat.reshape(points)

    return _map(result, form)


def merge(groups: list[tuple[NDArray[Any], Evaluation]]) -> Evaluation:
    """Scatter the results of groups of points into one."""
    total = sum(len(where) for where, _ in groups)

    def gather(values: list[Any]) -> Any:
        if all(value is None for value in values):
            return None
        kinds = [np.asarray(np.nan if value is None else value) for value in values]
        out = np.empty(total, dtype=object if kinds[0].dtype == object else np.result_type(*kinds))
        for (where, _), value in zip(groups, kinds, strict=True):
            out[where] = value
        return out

    results = [result for _, result in groups]
    first = results[0]
    merged: dict[str, Any] = {}
    for item in fields(Evaluation):
        values = [getattr(result, item.name) for result in results]
        if item.name in ("design", "accounting", "include", "sources"):
            continue
        if item.name in ("unknown",):
            merged[item.name] = {k: v for value in values for k, v in value.items()}
        elif item.name == "warnings":
            merged[item.name] = tuple(dict.fromkeys(w for value in values for w in value))
        elif item.name == "holders_bytes":
            merged[item.name] = {}  # they differ from group to group
        elif item.name == "per_einsum":
            merged[item.name] = {
                name: EinsumResult(
                    values[0][name].unit if name in values[0] else "",
                    gather([v[name].cycles for v in values]),
                    gather([v[name].utilization for v in values]),
                )
                for name in values[0]
            }
        elif item.name == "traffic":
            merged[item.name] = {
                name: LevelTraffic(
                    gather([v[name].read_bytes for v in values]),
                    gather([v[name].write_bytes for v in values]),
                )
                for name in values[0]
            }
        elif isinstance(values[0], Mapping):
            keys = dict.fromkeys(key for value in values for key in value)
            merged[item.name] = {key: gather([v.get(key, 0.0) for v in values]) for key in keys}
        else:
            merged[item.name] = gather(values)
    return replace(first, **merged)


def _map(result: Evaluation, form: Any) -> Evaluation:
    changed: dict[str, Any] = {}
    for item in fields(Evaluation):
        value = getattr(result, item.name)
        if item.name in ("design", "accounting", "include", "sources", "unknown", "warnings"):
            continue
        if item.name == "holders_bytes":
            changed[item.name] = {
                level: tuple((tensor, form(words)) for tensor, words in held)
                for level, held in value.items()
            }
        elif item.name == "per_einsum":
            changed[item.name] = {
                name: EinsumResult(one.unit, form(one.cycles), form(one.utilization))
                for name, one in value.items()
            }
        elif item.name == "traffic":
            changed[item.name] = {
                name: LevelTraffic(form(one.read_bytes), form(one.write_bytes))
                for name, one in value.items()
            }
        elif isinstance(value, Mapping):
            changed[item.name] = {key: form(one) for key, one in value.items()}
        else:
            changed[item.name] = form(value)
    return replace(result, **changed)
