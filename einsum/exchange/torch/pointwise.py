"""Operations of PyTorch on elements: arithmetic, functions, extremes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from einfuse.einsum.language.expression import (
    Binary,
    Call,
    Expression,
    Negate,
    Number,
)
from einfuse.einsum.language.functions import function

from .gathers import extreme_place
from .site import COPIES, Site, dense
from .values import (
    UnsupportedError,
    Value,
    absence_of,
    as_value,
    broadcast,
    constant_of,
    expanded_to,
)


def _same(site: Site, value: Value, *_: Any, **__: Any) -> Value:
    return value


def function_operation(called: str) -> Callable[..., Value]:
    """Return the operation that is a function of the language, element by element."""

    def translate(site: Site, value: Any, *rest: Any, **named: Any) -> Value:
        if called == "gelu" and named.get("approximate") == "tanh":
            return _formula(_gelu_by_tanh)(site, value)
        if any(rest) or named.get("approximate", "none") != "none":
            raise UnsupportedError(f"{site.name} with options {[*rest, *named.values()]}")
        row = function(called)
        absent = as_value(value).absent
        if absent == 0 and row.at(0.0) != 0:
            value = dense(site, value)
            absent = None
        if absent is not None and math.isinf(absent):
            if absent > 0 or row.at(absent) != 0:
                raise UnsupportedError(f"{site.name} of scores that are masked with {absent}")
            absent = 0
        return site.pointwise([value], lambda x: Call(called, (x,)), absent=absent)

    return translate


def _formula(build: Callable[..., Expression]) -> Callable[..., Value]:
    """Return an operation that is a formula of its elements."""

    def translate(site: Site, *values: Any, **_: Any) -> Value:
        return site.pointwise([dense(site, v) for v in values], build)

    return translate


def _plus(*terms: Expression) -> Expression:
    total = terms[0]
    for term in terms[1:]:
        total = Binary("+", total, term)
    return total


def _times(*factors: Expression) -> Expression:
    product = factors[0]
    for factor in factors[1:]:
        product = Binary("*", product, factor)
    return product


def _call(called: str) -> Callable[..., Expression]:
    return lambda *arguments: Call(called, arguments)


_ONE = Number(1)
_exp, _log, _tanh, _softplus, _max = map(_call, ("exp", "log", "tanh", "softplus", "max"))


def _gelu_by_tanh(x: Expression) -> Expression:
    inner = _times(x, _plus(_ONE, _times(Number(0.044715), Call("sq", (x,)))))
    return _times(Number(0.5), x, _plus(_ONE, _tanh(_times(Number(math.sqrt(2 / math.pi)), inner))))


def _six(x: Expression) -> Expression:
    return Call("clamp", (_plus(x, Number(3)), Number(0), Number(6)))


def _round(x: Expression) -> Expression:
    """Return the nearest whole number, of two as near the even one."""
    half = _plus(x, Number(0.5))
    above = Call("floor", (half,))
    tie = _times(Call("ge", (above, half)), Call("le", (above, half)))
    odd = Binary("-", above, _times(Number(2), Call("floor", (Binary("/", above, Number(2)),))))
    return Binary("-", above, _times(tie, odd))


def _truncated(x: Expression) -> Expression:
    return _times(Call("sign", (x,)), Call("floor", (Call("abs", (x,)),)))


def truncated(site: Site, value: Value) -> Value:
    """Return a value without its fractions, as a conversion to whole numbers gives it."""
    return site.pointwise([dense(site, value)], _truncated)


def _rounded(site: Site, value: Value, *, decimals: int = 0) -> Value:
    if decimals:
        raise UnsupportedError(f"round to {decimals} decimals: scale, round and scale back")
    return site.pointwise([dense(site, value)], _round)


def _log_sum(site: Site, a: Value, b: Value) -> Value:
    for one, other in ((a, b), (b, a)):
        if constant_of(one) == -math.inf:
            return expanded_to(other, broadcast([a.shape, b.shape]))
    return _formula(_logaddexp)(site, a, b)


def _logaddexp(x: Expression, y: Expression) -> Expression:
    return _plus(_max(x, y), _softplus(Negate(Call("abs", (Binary("-", x, y),)))))


_FORMULAS: dict[str, Callable[..., Expression]] = {
    "log1p": lambda x: _log(_plus(_ONE, x)),
    "expm1": lambda x: Binary("-", _exp(x), _ONE),
    "log10": lambda x: Binary("/", _log(x), Number(math.log(10))),
    "tan": lambda x: Binary("/", Call("sin", (x,)), Call("cos", (x,))),
    "sinh": lambda x: _times(Number(0.5), Binary("-", _exp(x), _exp(Negate(x)))),
    "cosh": lambda x: _times(Number(0.5), _plus(_exp(x), _exp(Negate(x)))),
    "ceil": lambda x: Negate(Call("floor", (Negate(x),))),
    "mish": lambda x: _times(x, _tanh(_softplus(x))),
    "hardsigmoid": lambda x: Binary("/", _six(x), Number(6)),
    "hardswish": lambda x: _times(x, Binary("/", _six(x), Number(6))),
    "softsign": lambda x: Binary("/", x, _plus(_ONE, Call("abs", (x,)))),
    "relu6": lambda x: Call("clamp", (x, Number(0), Number(6))),
    "prelu": lambda x, slope: Call("where", (Call("gt", (x, Number(0))), x, _times(slope, x))),
    "trunc": _truncated,
    "isinf": lambda x: Call("ge", (Call("abs", (x,)), Number(math.inf))),
    "lerp": lambda x, y, weight: _plus(x, _times(weight, Binary("-", y, x))),
    "xlogy": lambda x, y: _times(x, _log(y)),
    "logit": lambda x: _log(Binary("/", x, Binary("-", _ONE, x))),
}


def _added(sign: str) -> Callable[..., Value]:
    """Return addcmul or addcdiv: ``x + value * (y op z)``."""

    def translate(site: Site, x: Value, y: Value, z: Value, *, value: float = 1) -> Value:
        return site.pointwise(
            [dense(site, v) for v in (x, y, z)],
            lambda a, b, c: _plus(a, _times(Number(value), Binary(sign, b, c))),
        )

    return translate


def arithmetic(sign: str) -> Callable[..., Value]:
    """Return the operation ``+``, ``-`` or ``*``."""

    def translate(site: Site, a: Any, b: Any, alpha: Any = 1) -> Value:
        if alpha != 1:
            b = arithmetic("*")(site, b, alpha)
        left, right = as_value(a), as_value(b)
        if left.absent == right.absent == 0 and left.shape == right.shape:
            return site.pointwise([a, b], lambda x, y: Binary(sign, x, y), absent=0)
        a, b = (dense(site, v) if as_value(v).absent == 0 else v for v in (a, b))
        absent = absence_of([a, b])
        if absent is not None and sign == "-" and right.absent is not None and not right.whole_rows:
            raise UnsupportedError(f"the difference from scores that are masked with {absent}")
        merge = None if absent is None else "inter"
        if sign == "-" and right.whole_rows:
            merge = "left"  # where a row has nothing, neither has what it is taken from
        found = site.pointwise([a, b], lambda x, y: Binary(sign, x, y), absent=absent, merge=merge)
        whole = all(v.whole_rows for v in map(as_value, (a, b)) if v.absent is not None)
        return replace(found, whole_rows=absent is not None and whole)

    def multiply(site: Site, a: Any, b: Any) -> Value:
        absent = absence_of([a, b])
        if absent is not None and math.isinf(absent):
            scale = next((v for v in (a, b) if constant_of(v) is not None), None)
            if scale is None or (constant_of(scale) or 0) <= 0:
                raise UnsupportedError(f"a product with scores that are masked with {absent}")
        return site.pointwise([a, b], lambda x, y: Binary("*", x, y), absent=absent)

    return multiply if sign == "*" else translate


def _divide(site: Site, a: Any, b: Any, rounding_mode: str | None = None) -> Value:
    scale = constant_of(b)
    if as_value(b).absent not in (None, 0):
        raise UnsupportedError("a division by masked scores")
    if as_value(a).absent not in (None, 0) and (scale is None or scale <= 0):
        raise UnsupportedError("a division of masked scores by a tensor or by minus")
    quotient = site.pointwise([a, b], lambda x, y: Binary("/", x, y), absent=absence_of([a, b]))
    if rounding_mode is None:
        return quotient
    if rounding_mode != "floor":
        raise UnsupportedError(f"a division rounded by '{rounding_mode}'")
    return site.pointwise([quotient], lambda x: Call("floor", (x,)))


def _remainder_of(site: Site, a: Any, b: Any) -> Value:
    return site.pointwise(
        [a, b],
        lambda x, y: Binary("-", x, Binary("*", y, Call("floor", (Binary("/", x, y),)))),
    )


def _negate(site: Site, value: Any) -> Value:
    absent = as_value(value).absent
    if absent is not None and absent != 0:
        raise UnsupportedError(f"minus scores that are masked with {absent}")
    return site.pointwise([value], Negate, absent=absent)


def _power(site: Site, base: Any, exponent: Any) -> Value:
    if not isinstance(exponent, Value):
        infinite = as_value(base).absent not in (None, 0)
        base = dense(site, base) if exponent <= 0 or infinite else base
        forms: dict[float, Callable[[Expression], Expression]] = {
            2: lambda x: Call("sq", (x,)),
            0.5: lambda x: Call("sqrt", (x,)),
            -0.5: lambda x: Call("rsqrt", (x,)),
            -1: lambda x: Binary("/", Number(1), x),
            0: lambda x: Number(1),
            1: lambda x: x,
            3: lambda x: Binary("*", Call("sq", (x,)), x),
            4: lambda x: Call("sq", (Call("sq", (x,)),)),
        }
        if float(exponent) not in forms:
            return _power_of(site, base, float(exponent))
        return site.pointwise([base], forms[float(exponent)], absent=as_value(base).absent)
    if isinstance(base, Value) or base <= 0:
        raise UnsupportedError("a power whose base is not a positive number")
    logarithm = Number(math.log(base))
    return site.pointwise([exponent], lambda x: Call("exp", (Binary("*", logarithm, x),)))


def _power_of(site: Site, base: Value, exponent: float) -> Value:
    """Return a power by logarithms; of a whole exponent by the size, with the sign put back."""

    def build(x: Expression) -> Expression:
        if not exponent.is_integer():
            return _exp(_times(Number(exponent), _log(x)))
        found = _exp(_times(Number(int(exponent)), _log(Call("abs", (x,)))))
        return _times(Call("sign", (x,)), found) if exponent % 2 else found

    return site.pointwise([dense(site, base)], build)


def _extreme(called: str) -> Callable[..., Any]:
    def translate(site: Site, a: Any, b: Any = None, keepdim: bool = False) -> Any:
        if b is None:
            return extreme_fold(called)(site, a)
        if isinstance(b, int):  # max(x, dim): values, and coordinates if somebody reads them
            place = extreme_place(called == "max")
            return [extreme_fold(called)(site, a, b, keepdim), lambda: place(site, a, b, keepdim)]
        least = -math.inf if called == "max" else math.inf
        masked = [v for v in map(as_value, (a, b)) if v.absent == least]
        values = [v if as_value(v).absent == least else dense(site, v) for v in (a, b)]
        found = site.pointwise(
            values,
            lambda x, y: Call(called, (x, y)),
            absent=least if len(masked) == 2 else None,
        )
        whole = all(v.whole_rows or constant_of(v) is not None for v in masked)
        return replace(found, whole_rows=len(masked) == 2 and whole)

    return translate


def extreme_fold(monoid: str) -> Callable[..., Value]:
    """Return ``amax`` (``max``) or ``amin``."""

    def translate(site: Site, value: Value, dim: Any = (), keepdim: bool = False) -> Value:
        if value.absent == 0 or (value.absent is not None and monoid == "min"):
            value = dense(site, value)
        return site.fold(value, [dim] if isinstance(dim, int) else dim, keepdim, monoid)

    return translate


def _clamp(site: Site, value: Any, low: Any = None, high: Any = None) -> Value:
    value = dense(site, value)
    if low is not None and high is not None:
        return site.pointwise([value, low, high], lambda x, a, b: Call("clamp", (x, a, b)))
    bound, called = (low, "max") if low is not None else (high, "min")
    return site.pointwise([value, bound], lambda x, y: Call(called, (x, y)))


def _elu(site: Site, value: Any, alpha: float = 1, scale: float = 1, inner: float = 1) -> Value:
    def build(x: Expression) -> Expression:
        if (alpha, scale, inner) == (1, 1, 1):
            return Binary("-", Call("elu1", (x,)), _ONE)
        below = Call("min", (_times(Number(inner), x), Number(0)))
        negative = _times(Number(alpha), Binary("-", _exp(below), _ONE))
        return _times(Number(scale), _plus(Call("relu", (x,)), negative))

    return site.pointwise([dense(site, value)], build)


def _leaky_relu(site: Site, value: Any, slope: float = 0.01) -> Value:
    value = dense(site, value)
    return site.pointwise(
        [value],
        lambda x: Call("where", (Call("gt", (x, Number(0))), x, Binary("*", Number(slope), x))),
    )


def _log_sigmoid(site: Site, value: Any) -> Value:
    value = dense(site, value)
    return site.pointwise([value], lambda x: Negate(Call("softplus", (Negate(x),))))


def _nan_to_num(site: Site, value: Value, nan: float | None = None, *bounds: Any) -> Value:
    """Return masked values as they are: a row without a key is 0 in a cascade, not NaN."""
    if value.absent != 0 or nan or any(b is not None for b in bounds):
        raise UnsupportedError("nan_to_num of anything but masked weights, or to other than 0")
    return value


def _dropout(site: Site, value: Value, p: float, train: bool) -> Value:
    if train and p:
        raise UnsupportedError("dropout, which is random: export the function in evaluation mode")
    return value


OPERATIONS: dict[str, Callable[..., Any]] = {
    **{name: _same for name in COPIES},
    **{name: _formula(build) for name, build in _FORMULAS.items()},
    "logaddexp": _log_sum,
    "round": _rounded,
    "addcmul": _added("*"),
    "addcdiv": _added("/"),
    "true_divide": _divide,
    "divide": _divide,
    "multiply": arithmetic("*"),
    "subtract": arithmetic("-"),
    "add": arithmetic("+"),
    "sub": arithmetic("-"),
    "rsub": lambda site, a, b, alpha=1: arithmetic("-")(site, b, a, alpha),
    "mul": arithmetic("*"),
    "div": _divide,
    "floor_divide": lambda site, a, b: _divide(site, a, b, "floor"),
    "remainder": _remainder_of,
    "reciprocal": lambda site, x: _divide(site, 1, x),
    "neg": _negate,
    "pow": _power,
    "maximum": _extreme("max"),
    "minimum": _extreme("min"),
    "max": _extreme("max"),
    "min": _extreme("min"),
    "amax": extreme_fold("max"),
    "amin": extreme_fold("min"),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": lambda site, x, high: _clamp(site, x, None, high),
    "clip": _clamp,
    "hardtanh": lambda site, x, low=-1, high=1: _clamp(site, x, low, high),
    "leaky_relu": _leaky_relu,
    "log_sigmoid": _log_sigmoid,
    "nan_to_num": _nan_to_num,
    "elu": _elu,
    "dropout": _dropout,
    **{f"{kind}dropout": _dropout for kind in ("feature_", "alpha_", "feature_alpha_")},
    "copy": lambda site, x, y, *_: expanded_to(as_value(y), x.shape),
    "fill": lambda site, x, y: expanded_to(as_value(y), x.shape),
    "_assert_tensor_metadata": lambda *_, **__: None,
}
