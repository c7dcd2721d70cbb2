"""Rule K: the largest of increasing functions of elements are those of the largest elements."""

from __future__ import annotations

from dataclasses import replace

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum, Populate
from einfuse.einsum.language.expression import Access, Binary, Call, Expression
from einfuse.einsum.language.functions import function
from einfuse.einsum.language.substitution import rebuild

from .dataflow import Dataflow, is_filtered, uses
from .normal_form import fresh, names_of, straight
from .value_facts import is_never_zero, is_positive


def select_first(flow: Dataflow) -> Cascade | None:
    """Return the cascade that selects elements before what waits for a fold is applied to them.

    None where no selection (`topk`, `bottomk`) reads what waits, or that is not increasing.

    >>> from einfuse.einsum.language.parser import parse
    >>> from einfuse.einsum.language.printer import render_einsum
    >>> text = "rank M, T = 2\\ninput X[M]\\noutput Y\\nG[] = X[m] :: max(m)\\n"
    >>> text += "A[m] = exp(X[m] - G[])\\n(Y[t], I[t]) = A[m] :: topk(m -> t)"
    >>> found = select_first(Dataflow(parse(text), "m"))
    >>> print(*map(render_einsum, found.einsums), sep="\\n")
    G[] = X[m] :: max(m)
    (YX[t], I[t]) = X[m] :: topk(m -> t)
    Y[t] = exp(YX[t] - G[])
    """
    einsums, changed = list[Einsum](), False
    taken = names_of(flow.cascade)
    for einsum in flow.einsums:
        found = _selected_first(flow, einsum, taken)
        changed |= found is not None
        einsums += found or (einsum,)
    return straight(flow.cascade, einsums) if changed else None


def _selected_first(
    flow: Dataflow, einsum: Einsum, taken: set[str]
) -> tuple[Einsum, Einsum] | None:
    match einsum.actions:
        case (Populate(source=source),) if source == flow.variable:
            pass
        case _:
            return None
    cone = flow.cone(einsum)
    core = _core(flow, cone)
    if core is None or core == cone or is_filtered(cone) or flow.blocking_maps(cone):
        return None
    values = einsum.output
    chosen = Access(fresh(f"{values.tensor}X", taken), values.indices)
    taken.add(chosen.tensor)
    selection = replace(einsum, outputs=(chosen, *einsum.outputs[1:]), expression=core, span=None)
    after = rebuild(cone, lambda node: chosen if node == core else None)
    if uses(after, (source,)):
        return None
    return selection, Einsum((values,), after)


def _core(flow: Dataflow, node: Expression) -> Expression | None:
    """Return the elements that an expression is an increasing function of, None for any other."""
    if not flow.references(node):
        return node
    match node:
        case Call(function=called, arguments=(inner,)) if function(called).increasing:
            return _core(flow, inner)
        case Binary(operator="+" | "-", left=left, right=right) if not _varies(flow, right):
            return _core(flow, left)
        case Binary(operator="+", left=left, right=right) if not _varies(flow, left):
            return _core(flow, right)
        case Binary(operator="*", left=left, right=right) if not _varies(flow, right):
            return _core(flow, left) if _keeps_order(flow, right) else None
        case Binary(operator="/", left=left, right=right) if not _varies(flow, right):
            return _core(flow, left) if is_positive(right, flow) else None
        case Binary(operator="*", left=left, right=right) if not _varies(flow, left):
            return _core(flow, right) if _keeps_order(flow, left) else None
    return None


def _keeps_order(flow: Dataflow, factor: Expression) -> bool:
    """Tell whether products with a factor are ordered as elements are: with 0 all are equal."""
    return is_positive(factor, flow) and is_never_zero(factor, flow)


def _varies(flow: Dataflow, node: Expression) -> bool:
    return uses(node, (flow.variable,))
