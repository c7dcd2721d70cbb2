"""How values grow with the number of points along a rank: a sum has degree 1, a mean 0."""

from __future__ import annotations

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

from .dataflow import Dataflow, Kind

_POWERS = {"abs": Fraction(1), "relu": Fraction(1), "sq": Fraction(2)}
_POWERS |= {"sqrt": Fraction(1, 2), "rsqrt": Fraction(-1, 2)}

_LOGARITHMS = frozenset({"log", "log2"})


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
        first = arguments[0]
        if name in _LOGARITHMS:
            return Fraction(0)
        if first is None:
            return None
        if name in _POWERS:
            return first * _POWERS[name]
        if name in ("max", "min"):
            return first if arguments[1] == first else None
        return Fraction(0) if all(argument == 0 for argument in arguments) else None
