"""Tensors that a PyTorch function holds itself: weights, buffers, what it captured.

Each becomes an input that remembers its value, under the name by which the function reaches it.
A constant that depends on positions alone (all equal, an `arange`, a band such as a causal mask)
stays an expression of positions, so that a mask of it is a filter; weights never do.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

from einfuse.einsum.language.expression import Binary, Call, Expression, Number

from .values import Indices, Value, number, position

_Key = tuple[int, tuple[int, ...], tuple[int, ...]]


class Holdings:
    """The tensors that a function reaches without being given them, with their names."""

    def __init__(self, function: Callable[..., Any]) -> None:
        import torch

        self._names: dict[_Key, tuple[str, bool]] = {}
        for name, tensor in _reached(function):
            weight = isinstance(tensor, torch.nn.Parameter)
            self._names.setdefault(_key(tensor), (name, weight))

    def name_of(self, tensor: Any, otherwise: str) -> tuple[str, bool]:
        """Return the name of a tensor as an input, and whether it is a weight."""
        name, weight = self._names.get(_key(tensor), (otherwise, False))
        spelled = "".join(c if c.isalnum() and c.isascii() else "_" for c in name).upper()
        return (spelled if spelled[:1].isalpha() else f"C{spelled}"), weight


def array_of(tensor: Any) -> Any:
    """Return a tensor as a NumPy array; a complex one with both parts on a last axis."""
    import torch

    plain = tensor.detach().cpu().resolve_conj()
    if plain.is_complex():
        plain = torch.view_as_real(plain)
    elif plain.dtype in (torch.bfloat16, torch.float16):
        plain = plain.float()
    return plain.numpy().copy()


def _key(tensor: Any) -> _Key:
    return tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride())


def _reached(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Yield tensors of a module, of a bound method's object, of closures and globals."""
    import torch

    owner = getattr(function, "__self__", function)
    yield from _of_object("", owner)
    inner = inspect.unwrap(function)
    if hasattr(inner, "func"):  # functools.partial
        yield from _reached(inner.func)
    if not inspect.isfunction(inner):
        return
    found = inspect.getclosurevars(inner)
    for name, value in {**found.globals, **found.nonlocals}.items():
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, list | tuple):
            yield from ((f"{name}{k}", v) for k, v in enumerate(value) if torch.is_tensor(v))
        elif isinstance(value, dict):
            yield from ((f"{name}_{k}", v) for k, v in value.items() if torch.is_tensor(v))
        elif inspect.isfunction(value) and value is not inner and value.__closure__:
            yield from _reached(value)
        else:
            yield from _of_object(f"{name}.", value)


def _of_object(prefix: str, owner: Any) -> Iterator[tuple[str, Any]]:
    import torch

    if isinstance(owner, torch.nn.Module):
        yield from ((prefix + name, tensor) for name, tensor in owner.named_parameters())
        yield from ((prefix + name, tensor) for name, tensor in owner.named_buffers())
    for name, value in getattr(owner, "__dict__", {}).items():
        if isinstance(value, torch.Tensor):
            yield prefix + name, value


def by_position(tensor: Any) -> Value | None:
    """Return a constant as an expression of positions, if it is one of the plain forms."""
    shape = tuple(tensor.shape)
    flat = tensor.reshape(-1)
    first = flat[0].item()
    if bool((flat == first).all()):
        return number(first, shape)
    long = [axis for axis, size in enumerate(shape) if size > 1]
    if len(long) == 1 and not tensor.dtype.is_floating_point:
        return _progression(tensor, shape, long[0])
    if len(long) == 2:
        return _band(tensor, shape, long)
    return None


def _progression(tensor: Any, shape: tuple[int, ...], axis: int) -> Value | None:
    values = [int(v) for v in tensor.reshape(-1).tolist()]
    start, step = values[0], values[1] - values[0]
    if str(tensor.dtype) == "torch.bool" or step < 1:
        return None
    if values != list(range(start, start + step * len(values), step)):
        return None

    def at(indices: Indices) -> Expression:
        found = position(indices[axis])
        found = found if step == 1 else Binary("*", found, Number(step))
        return Binary("+", found, Number(start)) if start else found

    return Value(shape, at, (None,) * len(shape))


def _band(tensor: Any, shape: tuple[int, ...], axes: list[int]) -> Value | None:
    """Return a matrix that holds one number on a band of diagonals and another beside it."""
    import torch

    rows, columns = (shape[axis] for axis in axes)
    matrix = tensor.reshape(rows, columns)
    kinds = matrix.unique().tolist()
    if len(kinds) != 2:
        return None
    offset = torch.arange(columns)[None, :] - torch.arange(rows)[:, None]
    for inside in sorted(kinds, key=lambda kind: (kind != 1, math.isinf(kind))):
        chosen = matrix == inside
        low, high = int(offset[chosen].min()), int(offset[chosen].max())
        if bool(torch.equal(chosen, (offset >= low) & (offset <= high))):
            break
    else:
        return None
    outside = kinds[1] if inside == kinds[0] else kinds[0]

    def at(indices: Indices) -> Expression:
        row, column = (position(indices[axis]) for axis in axes)
        parts = []
        if low > 1 - rows:
            parts.append(Call("ge", (column, _moved(row, low))))
        if high < columns - 1:
            parts.append(Call("le", (column, _moved(row, high))))
        keep = parts[0] if len(parts) == 1 else Binary("*", parts[0], parts[1])
        if (inside, outside) == (1, 0):
            return keep
        return Call("where", (keep, _literal(inside), _literal(outside)))

    absent = -math.inf if -math.inf in kinds else None
    return Value(shape, at, (None,) * len(shape), absent)


def _moved(row: Expression, offset: int) -> Expression:
    return Binary("+", row, Number(offset)) if offset else row


def _literal(value: float) -> Number:
    found = number(value).at(())
    assert isinstance(found, Number)
    return found
