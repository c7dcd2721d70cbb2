"""What definitions say of values: signs, growth, and what a maximum may have seen.

What a function passes on of them stands in its row of the function table.
"""

from __future__ import annotations

import math
from fractions import Fraction

from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Coordinate,
    Expression,
    Negate,
    Number,
    RankSize,
)
from einfuse.einsum.language.function_row import Sign
from einfuse.einsum.language.functions import function

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
    return sign_of(part, flow) is not Sign.UNKNOWN


def is_never_zero(part: Expression, flow: Dataflow) -> bool:
    """Tell whether a part is above 0 whatever has been seen, as exponentials and their sums are.

    >>> from einfuse.einsum.language.parser import parse
    >>> text = "rank M\\ninput X[M]\\noutput Y\\nS[] = sq(X[m]) :: +(m)\\nY[] = S[] + 0.1"
    >>> flow = Dataflow(parse(text), "m")
    >>> [is_never_zero(flow.producer[name].output, flow) for name in ("S", "Y")]
    [False, True]
    """
    return sign_of(part, flow) is Sign.POSITIVE


def sign_of(part: Expression, flow: Dataflow) -> Sign:
    """Return what the definition of a part says of its sign."""
    match part:
        case RankSize():
            return Sign.POSITIVE
        case Number(value=value):
            return Sign.POSITIVE if value > 0 else Sign.UNKNOWN
        case Call(function=name, arguments=arguments):
            return function(name).sign(*(sign_of(argument, flow) for argument in arguments))
        case Binary(operator="*" | "/" | "+" as operator, left=left, right=right):
            first, second = sign_of(left, flow), sign_of(right, flow)
            least, most = min(first, second), max(first, second)
            if operator == "*" and left == right:
                return max(Sign.NOT_NEGATIVE, least)
            return most if operator == "+" and least is not Sign.UNKNOWN else least
        case Access(tensor=tensor):
            return _sign_of_tensor(tensor, flow)
    return Sign.UNKNOWN


def _sign_of_tensor(tensor: str, flow: Dataflow) -> Sign:
    producer = flow.producer.get(tensor)
    if producer is None or producer.name != tensor:
        return Sign.UNKNOWN
    if tensor not in flow.signs:
        flow.signs[tensor] = sign_of(producer.expression, flow)
    return flow.signs[tensor]


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
        case Call(function=name) if function(name).at(0.0) == -math.inf:
            return True
        case Access(tensor=tensor):
            producer = flow.producer.get(tensor)
            return producer is None or _holds_data(flow, producer.expression)
    return False


def degree(flow: Dataflow, expression: Expression) -> Fraction | None:
    """Return the degree of a value in the number of points that its folds have seen.

    A value of degree 0 means the same after some of the points as after all: extremes, means,
    quotients of sums. Logarithms count as such, for they grow by little. None where terms of
    different degrees meet, or a function turns growth into something else.

    >>> from einfuse.einsum.language.parser import parse
    >>> text = "rank M\\ninput X[M]\\noutput Y\\nS[] = X[m]\\nMU[] = S[] / M\\nY[] = S[] * MU[]"
    >>> flow = Dataflow(parse(text), "m")
    >>> [str(degree(flow, einsum.output)) for einsum in flow.einsums]
    ['1', '0', '1']
    """
    return _Degrees(flow).of(expression)


def sizes_along(flow: Dataflow) -> frozenset[str]:
    """Return the ranks whose size is the number of points, or of tiles, along a flow's rank."""
    rank = flow.cascade.rank_of(flow.variable)
    return frozenset({rank} | {s.whole for s in flow.cascade.splits if s.outer == rank})


class _Degrees:
    """The degrees of one flow's tensors, each found once."""

    def __init__(self, flow: Dataflow) -> None:
        self.flow = flow
        self.sizes = sizes_along(flow)
        self.known: dict[str, Fraction | None] = {}

    def of(self, node: Expression) -> Fraction | None:
        match node:
            case Number() | Coordinate():
                return Fraction(0)
            case RankSize(rank=rank):
                return Fraction(rank in self.sizes)
            case Access(tensor=tensor):
                return self._of_tensor(tensor)
            case Negate(operand=operand):
                return self.of(operand)
            case Binary(operator=operator, left=left, right=right):
                return self._of_two(operator, self.of(left), self.of(right))
            case Call(function=name, arguments=arguments):
                return self._of_call(name, [self.of(argument) for argument in arguments])
        return None

    def _of_tensor(self, tensor: str) -> Fraction | None:
        if tensor not in self.flow.producer:
            return Fraction(0)
        if tensor not in self.known:
            self.known[tensor] = self._of_einsum(self.flow.producer[tensor])
        return self.known[tensor]

    def _of_einsum(self, einsum: Einsum) -> Fraction | None:
        found = self.of(einsum.expression)
        kind = self.flow.kinds[einsum.name]
        if found is None or kind is Kind.OPAQUE:
            return None
        for reduction in einsum.reductions:
            along = self.flow.variable in reduction.variables
            if reduction.operator == "+":
                found += along
            elif reduction.operator not in ("max", "min") and (along or found != 0):
                return None
        return found

    @staticmethod
    def _of_two(operator: str, left: Fraction | None, right: Fraction | None) -> Fraction | None:
        if left is None or right is None:
            return None
        match operator:
            case "*":
                return left + right
            case "/":
                return left - right
        return left if left == right else None

    @staticmethod
    def _of_call(name: str, arguments: list[Fraction | None]) -> Fraction | None:
        power, first = function(name).power, arguments[0]
        if power == 0:
            return Fraction(0)
        if first is None:
            return None
        if power is not None:
            return first * power if all(argument == first for argument in arguments) else None
        return Fraction(0) if all(argument == 0 for argument in arguments) else None
