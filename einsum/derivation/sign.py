"""What definitions say of the sign of values, and of what a maximum may have seen."""

from __future__ import annotations

from einfuse.einsum.language.expression import Access, Binary, Call, Expression, Number, RankSize

from .dataflow import Dataflow, Kind, operator_of


def is_positive(part: Expression, flow: Dataflow) -> bool:
    """Tell whether a part is known to be positive from its definition.

    Exponentials are, and absolute values where they are not 0; so are their sums, maxima,
    products and quotients.

    >>> from einfuse.einsum.library.cascades import load
    >>> flow = Dataflow(load("attention/3-pass"), "m")
    >>> [name for name in ("QK", "SN", "SD") if is_positive(flow.producer[name].output, flow)]
    ['SN', 'SD']
    """
    match part:
        case RankSize():
            return True
        case Number(value=value):
            return value > 0
        case Call(function="exp" | "exp2" | "sigmoid" | "softplus"):
            return True
        case Call(function="abs" | "sq"):
            return True
        case Call(function="sqrt" | "rsqrt" | "max" | "min" | "relu", arguments=arguments):
            return all(is_positive(argument, flow) for argument in arguments)
        case Binary(operator="*" | "/" | "+" as operator, left=left, right=right):
            square = operator == "*" and left == right
            return square or (is_positive(left, flow) and is_positive(right, flow))
        case Access(tensor=tensor):
            producer = flow.producer.get(tensor)
            if producer is None or producer.name != tensor:
                return False
            return is_positive(producer.expression, flow)
    return False


def is_never_zero(part: Expression, flow: Dataflow) -> bool:
    """Tell whether a part is above 0 whatever has been seen, as exponentials and their sums are.

    >>> from einfuse.einsum.language.parser import parse
    >>> text = "rank M\\ninput X[M]\\noutput Y\\nS[] = sq(X[m]) :: +(m)\\nY[] = S[] + 0.1"
    >>> flow = Dataflow(parse(text), "m")
    >>> [is_never_zero(flow.producer[name].output, flow) for name in ("S", "Y")]
    [False, True]
    """
    match part:
        case RankSize():
            return True
        case Number(value=value):
            return value > 0
        case Call(function="exp" | "exp2" | "sigmoid" | "softplus"):
            return True
        case Call(function="abs" | "sq" | "sqrt" | "rsqrt" | "min" | "relu", arguments=arguments):
            return all(is_never_zero(argument, flow) for argument in arguments)
        case Call(function="max", arguments=arguments):
            return any(is_never_zero(argument, flow) for argument in arguments)
        case Binary(operator="*" | "/", left=left, right=right):
            return is_never_zero(left, flow) and is_never_zero(right, flow)
        case Binary(operator="+", left=left, right=right):
            both = is_positive(left, flow) and is_positive(right, flow)
            return both and (is_never_zero(left, flow) or is_never_zero(right, flow))
        case Access(tensor=tensor):
            producer = flow.producer.get(tensor)
            return producer is not None and is_never_zero(producer.expression, flow)
    return False


def is_magnitude(flow: Dataflow, tensor: str) -> bool:
    """Tell whether a tensor is a maximum of what is never negative: 0 before anything is seen."""
    producer = flow.producer[tensor]
    return (
        flow.kinds[tensor] is Kind.FOLD
        and operator_of(producer) == "max"
        and is_positive(flow.cone(producer), flow)
    )


def may_be_minus_infinity(flow: Dataflow, tensor: str) -> bool:
    """Tell whether a tensor is a maximum whose data may all be -inf.

    What is added to an input may be, for masks are often added; a product of inputs is taken to
    be finite.
    """
    producer = flow.producer.get(tensor)
    if producer is None or flow.kinds[tensor] is not Kind.FOLD or operator_of(producer) != "max":
        return False
    return _holds_data(flow, producer.expression)


def _holds_data(flow: Dataflow, node: Expression) -> bool:
    match node:
        case Binary(operator="+" | "-", left=left, right=right):
            return _holds_data(flow, left) or _holds_data(flow, right)
        case Call(function="where", arguments=(_, *branches)):
            return any(_holds_data(flow, branch) for branch in branches)
        case Call(function="max" | "min", arguments=arguments):
            return any(_holds_data(flow, argument) for argument in arguments)
        case Call(function="log" | "log2"):
            return True
        case Access(tensor=tensor):
            producer = flow.producer.get(tensor)
            return producer is None or _holds_data(flow, producer.expression)
    return False
