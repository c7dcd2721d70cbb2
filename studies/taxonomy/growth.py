"""Orders of growth: what power of the sequence length a count follows, and whether a logarithm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_STEP = 0.5  # exponents are multiples of it
_LOGARITHM = 0.004  # of an exponent: more than lower terms leave at the lengths that are compared


@dataclass(frozen=True, slots=True, order=True)
class Order:
    """n to the power of ``exponent``, times log n where ``logarithm`` says so.

    >>> str(Order(1.0, True)), str(Order(0.5)), str(Order(2.0)), str(Order(0.0))
    ('n log n', 'n^0.5', 'n^2', '1')
    """

    exponent: float
    logarithm: bool = False

    def __str__(self) -> str:
        power = {0.0: "", 1.0: "n"}.get(self.exponent, f"n^{self.exponent:g}")
        return " ".join(filter(None, (power, "log n" if self.logarithm else ""))) or "1"


CONSTANT = Order(0.0)


def order_between(lengths: tuple[int, int], counts: Sequence[float]) -> Order:
    """Return the order of a count that is ``counts[k]`` at ``lengths[k]``.

    Where the second length is the square of the first, so that log n has doubled, what is left
    of the exponent over a multiple of a half is a logarithm.

    >>> str(order_between((2**20, 2**40), (20 * 2**20, 40 * 2**40)))
    'n log n'
    >>> str(order_between((1024, 2048), (1000, 2829)))
    'n^1.5'
    """
    small, large = counts
    if small <= 0 or large <= 0:
        return CONSTANT
    steps = math.log2(lengths[1] / lengths[0])
    exponent = (math.log2(large) - math.log2(small)) / steps
    if lengths[1] != lengths[0] ** 2:
        return Order(round(exponent / _STEP) * _STEP)
    power = math.floor((exponent + _LOGARITHM) / _STEP) * _STEP
    return Order(power, exponent - power > _LOGARITHM)
