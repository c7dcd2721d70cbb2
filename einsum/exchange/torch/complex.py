"""Complex tensors of PyTorch as pairs of real ones: rotary embeddings, complex states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from einfuse.einsum.language.expression import Binary, Call

from .pointwise import arithmetic
from .site import Site
from .values import UnsupportedError, Value, as_value, constant_of, number, selected
from .views import joined, with_axis


@dataclass(frozen=True, slots=True)
class Complex:
    """A complex tensor: two real ones of one shape."""

    real: Value
    imaginary: Value


def complex_input(value: Value) -> Complex:
    """Return a real value whose last axis holds real and imaginary part as a complex one."""
    last = len(value.shape) - 1
    return Complex(selected(value, last, 0), selected(value, last, 1))


def translated(
    operations: Mapping[str, Callable[..., Any]],
    name: str,
    site: Site,
    *arguments: Any,
    **named: Any,
) -> Any:
    """Return an operation on complex values: its own form, or each part by itself if linear."""
    own = OPERATIONS.get(name)
    if own is not None:
        return own(site, *arguments, **named)
    if name in _PRODUCTS:
        return _bilinear(operations[name], site, arguments, named)
    if name not in _LINEAR:
        raise UnsupportedError(f"{name} of complex numbers: write it with real and imaginary part")
    parts = [
        operations[name](site, *(_part(a, part) for a in arguments), **named)
        for part in ("real", "imaginary")
    ]
    if isinstance(parts[0], list):
        return [Complex(a, b) for a, b in zip(*parts, strict=True)]
    return Complex(*parts)


def has_complex(argument: Any) -> bool:
    """Tell whether an argument is, or lists, a complex value."""
    if isinstance(argument, list):
        return any(map(has_complex, argument))
    return isinstance(argument, Complex)


def _part(argument: Any, part: str) -> Any:
    if isinstance(argument, list) and has_complex(argument):
        return [_part(a, part) for a in argument]
    return getattr(argument, part) if isinstance(argument, Complex) else argument


def as_complex(value: Any) -> Complex:
    """Return a value or a number as a complex one."""
    if isinstance(value, Complex):
        return value
    if isinstance(value, complex):
        return Complex(as_value(value.real), as_value(value.imag))
    real = as_value(value)
    return Complex(real, number(0, real.shape))


def _bilinear(
    product: Callable[..., Value], site: Site, arguments: tuple[Any, ...], named: dict[str, Any]
) -> Complex:
    """Return a product of two complex values by four products of their parts."""
    listed = isinstance(arguments[-1], list)  # einsum(equation, [a, b])
    operands = arguments[-1] if listed else arguments
    lead = arguments[:-1] if listed else ()
    if len(operands) != 2:
        raise UnsupportedError(f"{site.name} of {len(operands)} complex tensors: take two at once")
    a, b = map(as_complex, operands)
    plain = [not isinstance(operand, Complex) for operand in operands]

    def times(x: Value, y: Value) -> Value:
        if 0 in (constant_of(x), constant_of(y)):
            return number(0, site.shape)
        return product(site, *lead, [x, y], **named) if listed else product(site, x, y, **named)

    if plain[0]:
        return Complex(times(a.real, b.real), times(a.real, b.imaginary))
    if plain[1]:
        return Complex(times(a.real, b.real), times(a.imaginary, b.real))
    minus, plus = arithmetic("-"), arithmetic("+")
    return Complex(
        minus(site, times(a.real, b.real), times(a.imaginary, b.imaginary)),
        plus(site, times(a.real, b.imaginary), times(a.imaginary, b.real)),
    )


def _sum(sign: str) -> Callable[..., Complex]:
    def translate(site: Site, a: Any, b: Any) -> Complex:
        x, y = as_complex(a), as_complex(b)
        parts = arithmetic(sign)
        return Complex(parts(site, x.real, y.real), parts(site, x.imaginary, y.imaginary))

    return translate


def _quotient(site: Site, a: Any, b: Any) -> Complex:
    if isinstance(b, Complex):
        above = _bilinear(arithmetic("*"), site, (a, _conjugate(site, b)), {})
        below: Any = _square(site, b)
    else:
        above, below = as_complex(a), b
    parts = (
        site.pointwise([part, below], lambda x, y: Binary("/", x, y))
        for part in (above.real, above.imaginary)
    )
    return Complex(*parts)


def _square(site: Site, value: Complex) -> Value:
    return site.pointwise(
        [value.real, value.imaginary],
        lambda x, y: Binary("+", Call("sq", (x,)), Call("sq", (y,))),
    )


def _conjugate(site: Site, value: Complex) -> Complex:
    return Complex(value.real, arithmetic("*")(site, value.imaginary, -1))


def _exponential(site: Site, value: Complex) -> Complex:
    size = site.pointwise([value.real], lambda x: Call("exp", (x,)))
    return _polar(site, size, value.imaginary)


def _polar(site: Site, size: Any, angle: Any) -> Complex:
    parts = (
        site.pointwise([size, angle], lambda r, a, f=f: Binary("*", r, Call(f, (a,))))
        for f in ("cos", "sin")
    )
    return Complex(*parts)


def _pair(site: Site, value: Complex) -> Value:
    axis = len(value.real.shape)
    parts = [with_axis(site, part, axis) for part in (value.real, value.imaginary)]
    return joined(site, parts, axis)


def _absolute(site: Site, value: Complex) -> Value:
    return site.pointwise([_square(site, value)], lambda x: Call("sqrt", (x,)))


def _negative(site: Site, value: Complex) -> Complex:
    return Complex(*(arithmetic("*")(site, v, -1) for v in (value.real, value.imaginary)))


def _same(site: Site, value: Any, *_: Any, **__: Any) -> Any:
    return value


MAKING: dict[str, Callable[..., Any]] = {
    "view_as_complex": lambda site, x: complex_input(x),
    "complex": lambda site, x, y: Complex(x, y),
    "polar": _polar,
}
"""Operations that make complex values of real ones."""

OPERATIONS: dict[str, Callable[..., Any]] = {
    "view_as_real": _pair,
    "real": lambda site, x: x.real,
    "imag": lambda site, x: x.imaginary,
    "abs": _absolute,
    "conj": _conjugate,
    "_conj": _conjugate,
    "conj_physical": _conjugate,
    "resolve_conj": _same,
    "resolve_neg": _same,
    "neg": _negative,
    "exp": _exponential,
    "div": _quotient,
    "add": _sum("+"),
    "sub": _sum("-"),
}
_PRODUCTS = {"mul", "matmul", "bmm", "mm", "einsum"}
_LINEAR = {
    "clone", "contiguous", "detach", "alias", "lift_fresh_copy", "to", "_to_copy", "sum", "mean",
    "transpose", "t", "permute", "unsqueeze", "squeeze", "view", "reshape", "flatten", "unflatten",
    "_unsafe_view", "movedim", "expand", "expand_as", "slice", "select", "narrow", "split",
    "split_with_sizes", "chunk", "unbind", "repeat_interleave", "repeat", "cat", "stack", "flip",
    "roll", "index_select", "index", "gather", "cumsum", "pad", "constant_pad_nd",
}  # fmt: skip
