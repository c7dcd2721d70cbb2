"""Rule D: a reference leaves the folds that it does not vary in, by the distributive law.

FuseMax (arXiv 2406.10491, section IV-D) does it by hand for the division of the softmax; RedFuser
(arXiv 2603.10026) states the same condition for compilers. `cancel` then drops what numerators
and denominators share.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import sympy as sp

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum, Reduce
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Expression,
    RankSize,
    accesses,
    variables,
    walk,
)
from einfuse.einsum.language.substitution import (
    inlined,
    plain_access,
    plain_variables,
    rebuild,
    replace_accesses,
    with_expression,
)

from .algebra import Term, additive, separate, simplified
from .dataflow import Dataflow, Kind, is_filtered, operator_of, reduced_variables, uses
from .deadline import check_time
from .needs import element_needs, implied, needs_of
from .normal_form import fresh, names_of, straight
from .symbols import Formula, SymbolTable
from .value_facts import is_positive


def defer(flow: Dataflow, reference: str) -> Cascade | None:
    """Return the cascade with a reference moved out of every fold that it leaves (rule D).

    None where it leaves no fold.

    >>> from einfuse.einsum.library.cascades import load
    >>> from einfuse.einsum.language.printer import render_einsum
    >>> deferred = defer(Dataflow(load("attention/3-pass"), "m"), "SD")
    >>> print(*map(render_einsum, deferred.init[-2:]), sep="\\n")
    AV0[f,p] = SN[m,p] * V[f,m]
    AV[f,p] = AV0[f,p] / SD[p]
    """
    taken = names_of(flow.cascade)
    einsums: list[Einsum] = []
    changed = False
    for einsum in flow.einsums:
        deferred = None
        if flow.kinds[einsum.name] is Kind.FOLD:
            deferred = _deferred(flow, einsum, reference, taken)
        changed |= deferred is not None
        einsums += deferred or [einsum]
        taken |= {e.name for e in deferred or ()}
    return straight(flow.cascade, shared(einsums, taken)) if changed else None


def cancel(flow: Dataflow) -> Cascade | None:
    """Return the cascade with outputs simplified to need fewer folds; None if none does.

    ``exp(-GM)`` in numerator and denominator, say, after both have left their folds.

    >>> from einfuse.einsum.library.cascades import load
    >>> deferred = defer(Dataflow(load("attention/3-pass"), "m"), "GM")
    >>> [e.name for e in cancel(Dataflow(deferred, "m")).init]
    ['QK', 'SD0E', 'SD0', 'AV0', 'AV']
    """
    einsums, changed = [], False
    for einsum in flow.einsums:
        better = None
        if flow.kinds[einsum.name] is Kind.FREE and einsum.name in flow.cascade.outputs:
            better = _cancelled(flow, einsum)
        changed |= better is not None
        einsums.append(better or einsum)
    return straight(flow.cascade, einsums) if changed else None


def _deferred(
    flow: Dataflow, einsum: Einsum, reference: str, taken: set[str]
) -> list[Einsum] | None:
    check_time()
    if len(einsum.reductions) != 1:
        return None
    cone = flow.cone(einsum, reference)
    if not any(access.tensor == reference for access in accesses(cone)):
        return None
    if any(flow.reads(name, reference) for name in flow.blocking_maps(cone)):
        return None
    if not needs_of(flow).is_uniform(cone):
        return None
    table = SymbolTable(positive=lambda part: is_positive(part, flow))
    reduced = reduced_variables(einsum)

    def whole(part: Expression) -> bool:
        return not any(access.tensor == reference for access in accesses(part))

    formula = table.formula(cone, whole)
    elements = frozenset(s for s in formula.free_symbols if uses(table.part(s), reduced))
    if any(isinstance(p, Access) and p.tensor == reference for p in map(table.part, elements)):
        return None
    operator = operator_of(einsum)
    if operator not in ("+", "max", "min"):
        return None
    terms = separate(formula, elements) if operator == "+" else _shift(formula, elements)
    needs, needed = needs_of(flow), element_needs(flow, cone)
    if terms is None or not all(
        implied(needed, needs.of(table.expression(t.element * t.reference))) for t in terms
    ):
        return None  # a term without the filter would count what it culls
    if operator == "+":
        return _distributed(einsum, terms, table, taken)
    shifts = additive(formula, elements) is not None
    return _shifted(einsum, terms[0], table, taken, shifts=shifts, absent=bool(needed))


def _shift(formula: Formula, elements: frozenset[Formula]) -> tuple[Term, ...] | None:
    """Return what an extreme is of, and what is added to it or is a positive factor of it."""
    split = additive(formula, elements)
    if split is not None:
        return (Term(*split),)
    terms = separate(formula, elements)
    if terms is None or len(terms) != 1 or not terms[0].reference.is_positive:
        return None
    return terms


def _distributed(
    einsum: Einsum, terms: tuple[Term, ...], table: SymbolTable, taken: set[str]
) -> list[Einsum]:
    """The sum of products: a fold for each element, weighted by what left it."""
    parts: list[Einsum] = []
    total: Formula = sp.Integer(0)
    for term in terms:
        if term.element == 1:
            total += term.reference * _sizes(reduced_variables(einsum), table)
            continue
        name = fresh(f"{einsum.name}0", taken | {part.name for part in parts})
        part, missing = _fold_of(einsum, name, table.expression(sp.powsimp(term.element)))
        parts.append(part)
        weight = term.reference * _sizes(missing, table)
        total += table.symbol(part.output, first=True) * weight
    return [*parts, Einsum(einsum.outputs, table.expression(total))]


def _shifted(
    einsum: Einsum,
    term: Term,
    table: SymbolTable,
    taken: set[str],
    *,
    shifts: bool,
    absent: bool,
) -> list[Einsum] | None:
    """The maximum of a sum, or of a product with a positive factor.

    A shift of a maximum that may be absent has a tensor of its own: it must not stand for it.
    """
    name = fresh(f"{einsum.name}0", taken)
    part, missing = _fold_of(einsum, name, table.expression(term.element))
    if missing:
        return None
    extreme = table.symbol(part.output, first=True)
    if not shifts:
        return [part, Einsum(einsum.outputs, table.expression(extreme * term.reference))]
    if not absent:
        return [part, Einsum(einsum.outputs, table.expression(extreme + term.reference))]
    shift = table.expression(term.reference)
    names = variables(shift)
    access = plain_access(fresh(f"{einsum.name}D", taken | {part.name}), names)
    total = Binary("+", part.output, access)
    return [part, Einsum((access,), shift), Einsum(einsum.outputs, total, merge="left")]


def _fold_of(einsum: Einsum, name: str, expression: Expression) -> tuple[Einsum, tuple[str, ...]]:
    """Return the fold of another expression, and the variables that it no longer has."""
    found = set(variables(expression))
    missing = tuple(v for v in reduced_variables(einsum) if v not in found)
    kept = tuple(v for v in plain_variables(einsum.output) or () if v in found)
    actions = tuple(
        Reduce(a.operator, tuple(v for v in a.variables if v not in missing))
        for a in einsum.actions
        if isinstance(a, Reduce) and not set(a.variables) <= set(missing)
    )
    merge = einsum.merge if expression == einsum.expression else None
    return Einsum((plain_access(name, kept),), expression, actions, merge), missing


def _sizes(names: Iterable[str], table: SymbolTable) -> Formula:
    sizes = (table.symbol(RankSize(name.upper())) for name in names)
    return reduce(lambda left, right: left * right, sizes, sp.Integer(1))


def _cancelled(flow: Dataflow, einsum: Einsum) -> Einsum | None:
    def change(access: Access) -> Expression | None:
        producer = flow.producer.get(access.tensor)
        if producer is None or flow.kinds[access.tensor] is not Kind.FREE:
            return None
        definition = inlined(producer, access)
        return None if definition is None else replace_accesses(definition, change)

    if einsum.reductions:
        return None
    whole = replace_accesses(einsum.expression, change)
    table = SymbolTable(positive=lambda part: is_positive(part, flow))
    formula = table.formula(whole, lambda part: not flow.references(part))
    expression = table.expression(simplified(formula))
    needs = needs_of(flow)
    wholly = implied(needs.of(whole), needs.of(expression)) and needs.is_uniform(whole)
    if not wholly:
        return None
    if not set(flow.references(expression)) < set(flow.references(whole)):
        return None
    if set(variables(expression)) != set(einsum.output_variables):
        return None
    return Einsum(einsum.outputs, expression)


def shared(einsums: list[Einsum], taken: set[str]) -> list[Einsum]:
    """Return the Einsums with each function call that two of them make given its own tensor."""
    counts: dict[Call, int] = {}
    for einsum in einsums:
        calls = dict.fromkeys(n for n in walk(einsum.expression) if isinstance(n, Call))
        for call in calls:
            counts[call] = counts.get(call, 0) + 1
    repeated = [
        call
        for call, count in counts.items()
        if count > 1 and not is_filtered(call) and any(True for _ in accesses(call))
    ]
    for call in sorted(repeated, key=lambda c: sum(1 for _ in walk(c)), reverse=True):
        users = [e for e in einsums if any(node == call for node in walk(e.expression))]
        if len(users) < 2:
            continue
        whole = next((e for e in users if e.expression == call and not e.actions), None)
        first = einsums.index(users[0])
        if whole is not None and plain_variables(whole.output) == variables(call):
            access = whole.output
            einsums.remove(whole)
        else:
            name = fresh(f"{users[0].name}E", taken | {e.name for e in einsums})
            access = plain_access(name, variables(call))
            whole = Einsum((access,), call)
        einsums.insert(first, whole)
        einsums = [
            e if n == first else with_expression(e, _with_call(e.expression, call, access))
            for n, e in enumerate(einsums)
        ]
    return einsums


def _with_call(expression: Expression, call: Call, access: Access) -> Expression:
    return rebuild(expression, lambda node: access if node == call else None)


def redefined(before: Cascade, after: Cascade) -> tuple[str, ...]:
    """Return the tensors that both define, differently."""
    old = {e.name: e for e in before.init}
    return tuple(e.name for e in after.init if e.name in old and old[e.name] != e)


def deferral_hazards(flow: Dataflow, reference: str, deferred: Cascade) -> tuple[str, ...]:
    """Return what deferral costs in accuracy: scales lost, differences of large sums."""
    found = []
    scales = _scales(flow, reference)
    folds = [e.name for e in deferred.init if e.name in flow.producer]
    names = set(redefined(flow.cascade, deferred)) & set(folds)
    sums = [n for n in names if flow.kinds[n] is Kind.FOLD and _folds_with(flow, n, "+")]
    if scales and sums:
        found.append(f"{', '.join(sorted(sums))} no longer scaled by {scales[0]}")
    for einsum in deferred.init:
        if (
            einsum.name in sums
            and any(isinstance(n, Binary) and n.operator in "+-" for n in walk(einsum.expression))
            and _is_location(flow, flow.producer[einsum.name], reference)
        ):
            found.append(f"{einsum.name} is a difference of sums, which may cancel")
    return tuple(found)


def _scales(flow: Dataflow, reference: str) -> list[str]:
    """Return the maxima and minima that a reference is made of: they bound what they divide."""
    if flow.kinds[reference] is Kind.FOLD:
        return [reference] if not _folds_with(flow, reference, "+") else []
    definition = flow.producer[reference].expression
    if any(isinstance(n, Binary) and n.operator in ("+", "-") for n in walk(definition)):
        return []
    names = dict.fromkeys(a.tensor for a in accesses(definition) if flow.is_reference(a.tensor))
    return [scale for name in names for scale in _scales(flow, name)]


def _is_location(flow: Dataflow, fold: Einsum, reference: str) -> bool:
    """Tell whether a reference, scaled or not, is added to elements of a fold, or subtracted.

    Without it they may cancel.
    """
    reduced = reduced_variables(fold)

    def is_shift(node: Expression) -> bool:
        reads = any(access.tensor == reference for access in accesses(node))
        return reads and not uses(node, reduced)

    return any(
        isinstance(node, Binary)
        and node.operator in ("+", "-")
        and uses(node, reduced)
        and (is_shift(node.left) or is_shift(node.right))
        for node in walk(flow.cone(fold))
    )


def _folds_with(flow: Dataflow, tensor: str, operator: str) -> bool:
    if flow.kinds.get(tensor) is not Kind.FOLD:
        return False
    return operator_of(flow.producer[tensor]) == operator
