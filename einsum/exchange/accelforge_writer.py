"""A cascade as a workload of AccelForge: `write_accelforge`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from einfuse.einsum.language.affine import Linear
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum, Populate
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.expression import Access, Coordinate, Expression, Number, RankSize
from einfuse.einsum.language.printer import render_expression
from einfuse.einsum.language.shape import bind
from einfuse.einsum.language.substitution import rebuild

from .sums_of_products import Writer

REDUCTIONS = {"add": "+", "max": "max", "min": "min"}


def write_accelforge(
    cascade: Cascade, shape: Mapping[str, int] | None = None, bits_per_value: int = 16
) -> str:
    """Return an AccelForge workload in its concise form.

    Args:
        cascade: element-wise expressions and one fold each (``+``, ``max``, ``min``) at affine
            indices. AccelForge keeps functions as text, and costs them as one operation.
        shape: the sizes of ranks that the text leaves open; AccelForge needs all.
        bits_per_value: of every tensor.

    Raises:
        EinfuseError: a size is missing; CascadeError names what AccelForge cannot express.

    >>> from einfuse.einsum.language.parser import parse
    >>> cascade = parse("rank K = 8, M = 4\\ninput A[K,M], B[K]\\nZ[m] = A[k,m] * B[k]")
    >>> print(write_accelforge(cascade), end="")
    workload:
      rank_sizes: {K: 8, M: 4}
      bits_per_value: {All: 16}
      einsums:
      - "Z[m] = A[k, m] * B[k]"
    """
    if bits_per_value < 1:
        raise EinfuseError(f"expected at least 1 bit per value, found {bits_per_value}")
    sizes = bind(cascade, shape or {})
    writer = Writer("AccelForge", cascade, sizes)
    with writer.located():
        einsums = [_written(writer, einsum) for einsum in writer.einsums()]
    listed = ", ".join(f"{rank}: {size}" for rank, size in sizes.items())
    lines = [
        "workload:",
        f"  rank_sizes: {{{listed}}}",
        f"  bits_per_value: {{All: {bits_per_value}}}",
        "  einsums:",
        *(f"  - {einsum}" for einsum in einsums),
    ]
    return "\n".join(lines) + "\n"


def _written(writer: Writer, einsum: Einsum) -> str:
    """Return an Einsum as an entry of the list: its text, or a mapping where it folds otherwise."""
    operator = _reduction(writer, einsum)
    texts: list[str] = []

    def named(node: Expression) -> Expression | None:
        match node:
            case Access():
                texts.append(_written_access(writer, node))
                return RankSize(f"@{len(texts) - 1}@")
            case Coordinate() | RankSize():
                raise writer.refuse(f"the position {render_expression(node)} as a value", node)
            case Number(value=value) if math.isinf(value):
                raise writer.refuse("an infinite number", node)
            case _:
                return None

    right = render_expression(rebuild(einsum.expression, named))
    right = re.sub(r"@(\d+)@", lambda place: texts[int(place[1])], right)
    if not texts:
        raise writer.refuse(f"the value {right} without a tensor", einsum.expression)
    text = f'"{_written_access(writer, einsum.output)} = {right}"'
    return text if operator == "add" else f"{{einsum: {text}, reduce_op: {operator}}}"


def _reduction(writer: Writer, einsum: Einsum) -> str:
    if einsum.merge is not None:
        raise writer.refuse(f"the merge '@ {einsum.merge}'", einsum)
    for action in einsum.actions:
        if isinstance(action, Populate):
            raise writer.refuse(f"the populate {action.operator}(...)", action)
    folds = einsum.reductions
    known = {sign: name for name, sign in REDUCTIONS.items()}
    if len(folds) > 1:
        signs = " and ".join(fold.operator for fold in folds)
        raise writer.refuse(f"several reductions at once ({signs})", folds[-1])
    if folds and folds[0].operator not in known:
        folded = ",".join(folds[0].variables)
        raise writer.refuse(f"the reduction {folds[0].operator}({folded})", folds[0])
    return known[folds[0].operator] if folds else "add"


def _written_access(writer: Writer, access: Access) -> str:
    if not access.indices:
        raise writer.refuse(f"the scalar {access.tensor}[]", access)
    ranks = writer.cascade.tensor(access.tensor).ranks
    indices = []
    for index, rank in zip(access.indices, ranks, strict=True):
        form = writer.affine(index, access)
        text = _written_index(form)
        indices.append(text if text.upper() == rank else f"{rank}: {text}")
    return f"{access.tensor}[{', '.join(indices)}]"


def _written_index(form: Linear) -> str:
    terms = [v if c == 1 else f"{c} * {v}" for v, c in form.coefficients.items()]
    if form.constant or not terms:
        terms.append(str(form.constant))
    return " + ".join(terms).replace("+ -", "- ")
