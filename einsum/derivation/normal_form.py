"""The normal form of a straight-line cascade along a rank, and what all rewrites share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum, Reduce
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Expression,
    Negate,
    RankSize,
    variables,
    walk,
)
from einfuse.einsum.language.rules import validated
from einfuse.einsum.language.substitution import (
    definition_at,
    plain_access,
    plain_variables,
    rebuild,
    with_expression,
)

from .dataflow import Dataflow, Kind, is_filtered, operator_of, reduced_variables, uses
from .deadline import check_time
from .value_facts import degree, sizes_along


class NotDerivableError(EinfuseError):
    """A rewrite does not apply; the text says why, in terms of the cascade."""


def fresh(base: str, taken: Iterable[str]) -> str:
    """Return the base, or the base with the first number that makes it new.

    >>> fresh("RM", {"RM", "RM2"})
    'RM3'
    """
    names = set(taken)
    if base not in names:
        return base
    number = 2
    while f"{base}{number}" in names:
        number += 1
    return f"{base}{number}"


def names_of(cascade: Cascade) -> set[str]:
    """Return every name that a new tensor must not take."""
    tensors = {output.tensor for einsum in cascade.einsums for output in einsum.outputs}
    return tensors | set(cascade.inputs) | set(cascade.rank_names)


def straight(cascade: Cascade, einsums: Iterable[Einsum]) -> Cascade:
    """Return the cascade with other Einsums, what no output needs left out."""
    check_time()
    return validated(prune(replace(cascade, init=tuple(einsums))))


def prune(cascade: Cascade) -> Cascade:
    """Return the cascade without the Einsums that no output needs.

    >>> from einfuse.einsum.language.parser import parse
    >>> text = "rank M\\ninput A[M]\\noutput Y\\nY[] = A[m]\\nZ[] = A[m]"
    >>> [e.name for e in prune(parse(text)).einsums]
    ['Y']
    """
    needed = set(cascade.outputs)
    grown = True
    while grown:
        before = len(needed)
        for einsum in reversed(cascade.einsums):
            if any(output.tensor in needed for output in einsum.outputs):
                needed |= {operand.tensor for operand in einsum.operands}
        grown = len(needed) > before

    def keep(section: tuple[Einsum, ...]) -> tuple[Einsum, ...]:
        return tuple(e for e in section if any(o.tensor in needed for o in e.outputs))

    return replace(
        cascade, init=keep(cascade.init), loop=keep(cascade.loop), final=keep(cascade.final)
    )


def normalise(cascade: Cascade, variable: str) -> Cascade:
    """Return an equal cascade whose folds over the rank each are one operator, ready to move.

    A chain of reductions becomes one Einsum each; a fold over more variables than its
    references allow is taken apart (rule S); a division by the rank's own size leaves the fold,
    so that a mean is a sum and a count, and functions and means of references alone are computed
    once for the rank (rule H).

    >>> from einfuse.einsum.language.parser import parse
    >>> from einfuse.einsum.language.printer import render_einsum
    >>> text = "rank M\\ninput X[M]\\noutput Y\\nY[] = X[m] / M :: +(m)"
    >>> print(*map(render_einsum, normalise(parse(text), "m").init), sep="\\n")
    Y0[] = X[m] :: +(m)
    Y[] = Y0[] / M
    """
    cascade = straight(cascade, [part for e in cascade.init for part in _unchained(e, cascade)])
    cascade = straight(cascade, _swapped(Dataflow(cascade, variable)))
    cascade = straight(cascade, _hoisted(Dataflow(cascade, variable)))
    return straight(cascade, _hoisted_calls(Dataflow(cascade, variable)))


def interchange(flow: Dataflow) -> Cascade | None:
    """Return the cascade with sums inside of folds that wait for a fold joined to them (rule S).

    ``sum over m of W[m] * (sum over k of X[m,k] / S[k])`` is one sum over m and k, from which
    ``S[k]`` may leave. None where there is no such sum.

    >>> from einfuse.einsum.language.parser import parse
    >>> from einfuse.einsum.language.printer import render_einsum
    >>> text = (
    ...     "rank M, K\\ninput X[M,K], W[M]\\noutput Y\\nS[k] = X[m,k]\\n"
    ...     "T[m] = X[m,k] / S[k] :: +(k)\\nY[] = W[m] * T[m]"
    ... )
    >>> for einsum in interchange(Dataflow(parse(text), "m")).init[-2:]:
    ...     print(render_einsum(einsum))
    Y0[k] = W[m] * (X[m,k] / S[k]) :: +(m)
    Y[] = Y0[k] :: +(k)
    """
    einsums = [_joined(flow, einsum) for einsum in flow.einsums]
    changed = straight(flow.cascade, einsums)
    return normalise(changed, flow.variable) if changed != flow.cascade else None


def factor_out(flow: Dataflow) -> Cascade | None:
    """Return the cascade with sums inside of maps freed of what waits and does not vary in them.

    None where there is no such factor (rule H).

    >>> from einfuse.einsum.language.parser import parse
    >>> from einfuse.einsum.language.printer import render_einsum
    >>> text = "rank E, M\\ninput Q[E], K[E,M]\\noutput Y\\nA[] = abs(K[e,m]) :: max(e,m)\\n"
    >>> text += "KQ[e,m] = K[e,m] / A[]\\nS[m] = Q[e] * KQ[e,m]\\nY[] = S[m] :: max(m)"
    >>> found = factor_out(Dataflow(parse(text), "m"))
    >>> print(*map(render_einsum, found.einsums[1:3]), sep="\\n")
    S0[m] = Q[e] * K[e,m]
    S[m] = S0[m] / A[]
    """
    einsums, taken = list[Einsum](), names_of(flow.cascade)
    for einsum in flow.einsums:
        einsums += _factored_out(flow, einsum, taken) or (einsum,)
    if len(einsums) == len(flow.einsums):
        return None
    apart = Dataflow(straight(flow.cascade, einsums), flow.variable)
    return straight(apart.cascade, (_cancelled(apart, einsum) for einsum in apart.einsums))


def _cancelled(flow: Dataflow, einsum: Einsum) -> Einsum:
    """Return a map without the references that it multiplies by and divides by."""
    if flow.kinds[einsum.name] is not Kind.MAP or einsum.reductions:
        return einsum
    cone = flow.cone(einsum)
    parts = list(_quotient_parts(cone))
    for operator, part in list(parts):
        pair = [("*", part), ("/", part)]
        if operator == "/" and flow.references(part) and all(p in parts for p in pair):
            for p in pair:
                parts.remove(p)
    if len(parts) == len(list(_quotient_parts(cone))) or not parts or parts[0][0] != "*":
        return einsum
    return with_expression(einsum, _product(parts[0][1], parts[1:]))


def _factored_out(flow: Dataflow, einsum: Einsum, taken: set[str]) -> tuple[Einsum, Einsum] | None:
    output = plain_variables(einsum.output)
    if flow.kinds[einsum.name] is not Kind.MAP or _operators(einsum) != ["+"] or output is None:
        return None
    cone, reduced = flow.cone(einsum), reduced_variables(einsum)
    if flow.blocking_maps(cone) or flow.culls(cone):
        return None
    parts = list(_quotient_parts(cone))
    held = [p for p in parts if flow.references(p[1]) and not uses(p[1], reduced)]
    rest = [p for p in parts if p not in held]
    if not held or rest[:1] == [] or rest[0][0] != "*" or any(flow.references(p) for _, p in rest):
        return None
    inner = plain_access(fresh(f"{einsum.name}0", taken), output)
    taken.add(inner.tensor)
    inside = replace(einsum, outputs=(inner,), expression=_product(rest[0][1], rest[1:]), span=None)
    return inside, Einsum(einsum.outputs, _product(inner, held))


def _quotient_parts(node: Expression) -> Iterator[tuple[str, Expression]]:
    """Yield what an expression multiplies (``*``) and what it divides by (``/``)."""
    match node:
        case Binary(operator="*", left=left, right=right):
            yield from _quotient_parts(left)
            yield from _quotient_parts(right)
        case Binary(operator="/", left=left, right=right):
            yield from _quotient_parts(left)
            yield ("/", right)
        case _:
            yield ("*", node)


def _product(first: Expression, others: Iterable[tuple[str, Expression]]) -> Expression:
    for operator, part in others:
        first = Binary(operator, first, part)
    return first


def _joined(flow: Dataflow, einsum: Einsum) -> Einsum:
    if flow.kinds[einsum.name] is not Kind.FOLD or _operators(einsum) != ["+"] or einsum.merge:
        return einsum
    for access in _factors_of(einsum.expression):
        inner = flow.producer.get(access.tensor)
        if inner is None or flow.kinds[access.tensor] is not Kind.MAP:
            continue
        if not flow.dependent(access.tensor) or _operators(inner) != ["+"] or inner.merge:
            continue
        own = reduced_variables(inner)
        clash = set(own) & set(einsum.variables)
        definition = definition_at(inner, access)
        if clash or definition is None:
            continue
        joined = rebuild(einsum.expression, _replacing(access, definition))
        actions = tuple(
            Reduce(a.operator, (*a.variables, *own)) if isinstance(a, Reduce) else a
            for a in einsum.actions
        )
        return Einsum(einsum.outputs, joined, actions)
    return einsum


def _operators(einsum: Einsum) -> list[str]:
    return [reduction.operator for reduction in einsum.reductions]


def _replacing(access: Access, definition: Expression) -> Callable[[Expression], Expression | None]:
    return lambda node: definition if node == access else None


def _factors_of(node: Expression) -> Iterator[Access]:
    """Yield the accesses that an expression is proportional to."""
    match node:
        case Access():
            yield node
        case Negate(operand=operand):
            yield from _factors_of(operand)
        case Binary(operator="*", left=left, right=right):
            yield from _factors_of(left)
            yield from _factors_of(right)
        case Binary(operator="/", left=left):
            yield from _factors_of(left)


def _unchained(einsum: Einsum, cascade: Cascade) -> list[Einsum]:
    reductions = einsum.reductions
    if (
        len(reductions) < 2
        or len(einsum.outputs) > 1
        or len(reductions)
        != len([a for a in einsum.actions if isinstance(a, Reduce)])
        + (0 if reductions == einsum.actions else 1)
    ):
        return [einsum]
    parts, expression, kept = [], einsum.expression, list(einsum.variables)
    taken = names_of(cascade)
    for reduction in reductions[:-1]:
        kept = [v for v in kept if v not in reduction.variables]
        access = plain_access(fresh(f"{einsum.name}0", taken), tuple(kept))
        taken.add(access.tensor)
        parts.append(Einsum((access,), expression, (reduction,), einsum.merge))
        expression = access
    return [*parts, Einsum(einsum.outputs, expression, (reductions[-1],))]


def _swapped(flow: Dataflow) -> list[Einsum]:
    einsums = []
    taken = names_of(flow.cascade)
    for einsum in flow.einsums:
        if flow.kinds[einsum.name] is not Kind.FOLD or len(einsum.reductions) != 1:
            einsums.append(einsum)
            continue
        reduced = reduced_variables(einsum)
        held = [
            v
            for v in reduced
            if v != flow.variable
            and any(uses(reference, [v]) for reference in flow.references(flow.cone(einsum)))
        ]
        if not held:
            einsums.append(einsum)
            continue
        kept = (*(plain_variables(einsum.output) or ()), *held)
        inside = plain_access(fresh(f"{einsum.name}0", taken), kept)
        taken.add(inside.tensor)
        rest = tuple(v for v in reduced if v not in held)
        operator = operator_of(einsum)
        einsums.append(
            Einsum((inside,), einsum.expression, (Reduce(operator, rest),), einsum.merge)
        )
        einsums.append(Einsum(einsum.outputs, inside, (Reduce(operator, tuple(held)),)))
    return einsums


def _hoisted(flow: Dataflow) -> list[Einsum]:
    einsums = []
    taken = names_of(flow.cascade)
    sizes = sizes_along(flow)
    for einsum in flow.einsums:
        match einsum.expression:
            case Binary("/", numerator, RankSize(rank=size)) if (
                flow.kinds[einsum.name] is Kind.FOLD
                and size in sizes
                and [r.operator for r in einsum.reductions] == ["+"]
            ):
                total = plain_access(
                    fresh(f"{einsum.name}0", taken), plain_variables(einsum.output) or ()
                )
                taken.add(total.tensor)
                einsums.append(replace(einsum, outputs=(total,), expression=numerator, span=None))
                einsums.append(Einsum(einsum.outputs, Binary("/", total, RankSize(size))))
            case _:
                einsums.append(einsum)
    return einsums


def _is_mean(flow: Dataflow, node: Expression) -> bool:
    """Tell whether an expression divides what grows along the rank by the rank's size."""
    sizes = sizes_along(flow)
    counts = any(isinstance(part, RankSize) and part.rank in sizes for part in walk(node))
    return counts and degree(flow, node) == 0


def _hoisted_calls(flow: Dataflow) -> list[Einsum]:
    einsums: list[Einsum] = []
    taken = names_of(flow.cascade)
    made: dict[Expression, Access] = {}
    for einsum in flow.einsums:
        if flow.kinds[einsum.name] in (Kind.FREE, Kind.OPAQUE):
            einsums.append(einsum)
            continue
        along = {flow.variable, *reduced_variables(einsum)}

        def hoist(node: Expression, along: set[str] = along) -> Expression | None:
            if not isinstance(node, Call | Binary) or uses(node, along) or is_filtered(node):
                return None
            references = flow.references(node)
            calls = any(isinstance(part, Call) for part in walk(node))
            if not references or not (calls or _is_mean(flow, node)):
                return None
            if node not in made:
                name = fresh(f"{references[0].tensor}H", taken)
                taken.add(name)
                made[node] = plain_access(name, variables(node))
                einsums.append(Einsum((made[node],), node))
            return made[node]

        hoisted = rebuild(einsum.expression, hoist)
        einsums.append(einsum if hoisted == einsum.expression else with_expression(einsum, hoisted))
    return einsums
