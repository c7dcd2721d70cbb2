"""Results that are 0 where nothing flows to them, whatever an absent point may stand for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from einfuse.einsum.derivation.polynomial import absent_tensors
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.expression import Binary, Call, Number, walk
from einfuse.einsum.language.substitution import zero_at


def zero_where_nothing(cascade: Cascade, count: int) -> Cascade:
    """Return a straight-line cascade whose first outputs are 0 where nothing flows to them.

    A sum over nothing is 0 in a result; an absent product with a maximum may be its -inf.
    """
    absent = absent_tensors(cascade)
    outputs = {name for name in cascade.outputs[:count] if name in absent}
    producer = {einsum.name: einsum for einsum in cascade.einsums}

    def changed(einsum: Einsum) -> Einsum:
        if einsum.name not in outputs or einsum.merge is not None:
            return einsum
        if not _meets_extreme(producer, einsum):
            return einsum
        zero = zero_at(einsum.output_variables)
        return replace(einsum, expression=Binary("+", einsum.expression, zero))

    return replace(cascade, init=tuple(map(changed, cascade.init)))


def _meets_extreme(producer: Mapping[str, Einsum], einsum: Einsum) -> bool:
    """Tell whether a value is made, without a sum in between, of a maximum or a minimum."""
    pending, seen = [einsum], {einsum.name}
    while pending:
        one = pending.pop()
        operators = {reduction.operator for reduction in one.reductions}
        if operators & {"max", "min"}:
            return True
        if operators:
            continue
        for node in walk(one.expression):
            infinite = isinstance(node, Number) and math.isinf(node.value)
            if infinite or (isinstance(node, Call) and node.function in ("max", "min")):
                return True
        for operand in one.operands:
            made = producer.get(operand.tensor)
            if made is not None and made.name not in seen:
                seen.add(made.name)
                pending.append(made)
    return False
