"""Rule Z: what is 0 by algebra is left out, and with it what only its computation needed.

The adjoint of a softmax's maximum, say: moving every score by one amount changes nothing, so what
flows back to the maximum sums to 0, whatever the outputs' adjoints are.
"""

from __future__ import annotations

from dataclasses import replace

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Expression,
    Negate,
    Number,
    accesses,
    variables,
    walk,
)
from einfuse.einsum.language.substitution import (
    plain_variables,
    replace_accesses,
    with_expression,
    zero_at,
)

from .normal_form import straight
from .polynomial import Polynomials

_ZERO = Number(0)


def vanish(cascade: Cascade) -> tuple[Cascade, tuple[str, ...]] | None:
    """Return a straight-line cascade without the tensors that are 0, and their names.

    None where no tensor is, or none can be left out.

    >>> from einfuse.einsum.language.parser import parse
    >>> from einfuse.einsum.language.printer import render_einsum
    >>> text = (
    ...     "rank M\\ninput X[M]\\noutput Y\\nS[] = X[m]\\nMU[] = S[] / M\\n"
    ...     "D[m] = X[m] - MU[]\\nB[] = D[m]\\nY[] = sq(X[m]) + B[] * X[m] :: +(m)"
    ... )
    >>> simpler, names = vanish(parse(text))
    >>> names, list(map(render_einsum, simpler.init))
    (('B',), ['Y[] = sq(X[m]) :: +(m)'])
    """
    polynomials = Polynomials(cascade)
    zeros = {
        einsum.name
        for einsum in cascade.init
        if (terms := polynomials.of(einsum.name)) is not None
        and einsum.expression != _ZERO
        and polynomials.is_zero(terms)
    }
    if polynomials.absent:
        zeros = {name for name in zeros if _is_only_summed(cascade, name)}
    if not zeros:
        return None
    einsums = [_without(einsum, zeros) for einsum in cascade.init]
    einsums = [
        _present(after) if _loses_points(polynomials, before, after) else after
        for before, after in zip(cascade.init, einsums, strict=True)
    ]
    if tuple(einsums) == cascade.init:
        return None
    simpler = straight(cascade, _without_copies(cascade, einsums))
    left = {e.name for e in simpler.init}
    gone = [e.name for e in cascade.init if e.name in zeros and e.name not in left]
    kept = [n for n in cascade.outputs if n in zeros]
    return simpler, (*gone, *kept)


def _loses_points(polynomials: Polynomials, before: Einsum, after: Einsum) -> bool:
    """Tell whether an output that is no fold may now be absent: then it may stand for infinity."""
    is_output = before.name in polynomials.cascade.outputs
    return (
        is_output
        and before.expression != after.expression
        and not after.reductions
        and polynomials.may_be_absent(after.expression)
    )


def _present(einsum: Einsum) -> Einsum:
    zero = zero_at(einsum.output_variables)
    return with_expression(einsum, Binary("+", einsum.expression, zero))


def _without_copies(cascade: Cascade, einsums: list[Einsum]) -> list[Einsum]:
    """Return Einsums that read past those which have become copies of another tensor."""
    copied: dict[str, str] = {}
    for before, einsum in zip(cascade.init, einsums, strict=True):
        source = einsum.expression
        if einsum == before or einsum.reductions or not isinstance(source, Access):
            continue
        plain = plain_variables(einsum.output)
        if plain is not None and plain == plain_variables(source):
            copied[einsum.name] = copied.get(source.tensor, source.tensor)

    def past(access: Access) -> Access | None:
        if access.tensor not in copied:
            return None
        return Access(copied[access.tensor], access.indices)

    return [with_expression(e, replace_accesses(e.expression, past)) for e in einsums]


def _is_only_summed(cascade: Cascade, name: str) -> bool:
    """Tell whether a tensor reaches outputs by products and sums alone.

    Where it does not, an absent value and 0 may differ: ``exp`` of them, or a maximum.
    """
    reached = {name}
    for einsum in cascade.init:
        if not any(operand.tensor in reached for operand in einsum.operands):
            continue
        reached |= {output.tensor for output in einsum.outputs}
        folds = [*einsum.actions, *einsum.reductions]
        if einsum.merge or any(getattr(action, "operator", "+") != "+" for action in folds):
            return False
        for node in walk(einsum.expression):
            inside = node if isinstance(node, Call) else None
            if isinstance(node, Binary) and node.operator == "/":
                inside = node.right  # type: ignore[assignment]
            if inside is not None and any(a.tensor in reached for a in accesses(inside)):
                return False
    return True


def _without(einsum: Einsum, zeros: set[str]) -> Einsum:
    """Return an Einsum with 0 in place of what is 0, if it still runs over what it folds."""
    if einsum.name in zeros:
        return Einsum(einsum.outputs, _ZERO)
    if einsum.merge is not None:
        return einsum
    simpler = _simplified(einsum.expression, zeros)
    reduced = {v for reduction in einsum.reductions for v in reduction.variables}
    if simpler == einsum.expression or not reduced <= set(variables(simpler)):
        return einsum
    actions = einsum.reductions if simpler != einsum.expression and reduced else einsum.actions
    return replace(with_expression(einsum, simpler), actions=actions)


def _simplified(node: Expression, zeros: set[str]) -> Expression:
    """Return an expression with tensors that are 0 left out of sums and products."""
    match node:
        case Access(tensor=tensor) if tensor in zeros:
            return _ZERO
        case Negate(operand=operand):
            inside = _simplified(operand, zeros)
            return _ZERO if inside == _ZERO else replace(node, operand=inside)
        case Binary(operator="*" | "/" as sign, left=left, right=right):
            left, right = _simplified(left, zeros), _simplified(right, zeros)
            if left == _ZERO or (sign == "*" and right == _ZERO):
                return _ZERO
            return replace(node, left=left, right=right)
        case Binary(operator="+" | "-" as sign, left=left, right=right):
            left, right = _simplified(left, zeros), _simplified(right, zeros)
            if right == _ZERO:
                return left
            if left == _ZERO:
                return right if sign == "+" else Negate(right)
            return replace(node, left=left, right=right)
        case Call(arguments=arguments):
            return replace(node, arguments=tuple(_simplified(a, zeros) for a in arguments))
        case _:
            return node
