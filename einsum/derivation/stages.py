"""A cascade cut behind a fold: what the fold needs, and what follows as a cascade of its own.

A fold that no correction moves must be complete before what reads it starts. What follows may
stream all the same, with the fold as an input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.rules import validated

from .dataflow import Dataflow
from .movement import move_of
from .normal_form import NotDerivableError


@dataclass(frozen=True, slots=True)
class Cut:
    """A straight-line cascade in two: the ``rest`` takes what the ``first`` Einsums write."""

    whole: Cascade
    first: tuple[Einsum, ...]
    rest: Cascade

    def joined(self, rest: Cascade) -> Cascade:
        """Return the whole again, with the rest rewritten."""
        return validated(
            replace(
                rest,
                input_tensors=self.whole.input_tensors,
                outputs=self.whole.outputs,
                init=(*self.first, *rest.init),
                tensors=(),
            )
        )


def cuts(flow: Dataflow) -> Iterator[Cut]:
    """Yield the cuts before and behind folds that wait and have no correction, nearest first.

    Before such a fold: behind what it waits for.

    >>> from einfuse.einsum.language.parser import parse
    >>> text = "rank M\\ninput X[M]\\noutput Y\\nS[] = X[m]\\nT[] = tanh(X[m] - S[]) :: +(m)\\n"
    >>> text += "U[] = X[m] * T[]\\nY[] = exp(X[m] - U[]) :: +(m)"
    >>> [([e.name for e in cut.first], cut.rest.inputs) for cut in cuts(Dataflow(parse(text), "m"))]
    [(['S'], ('X', 'S')), (['S', 'T'], ('X', 'T'))]
    """
    held, seen = set[str](), set[frozenset[str]]()
    for einsum in flow.folds:
        waits = flow.waits_for[einsum.name]
        if not waits or _moves(flow, einsum):
            continue
        for needed in (*(flow.producer[name] for name in sorted(waits)), einsum):
            held |= _needed(flow, needed)
        before = held - {output.tensor for output in einsum.outputs}
        for names in map(frozenset, (before, held)):
            cut = None if names in seen else _cut(flow.cascade, names)
            seen.add(names)
            if cut is not None:
                yield cut


def _moves(flow: Dataflow, fold: Einsum) -> bool:
    try:
        move_of(flow, fold)
    except NotDerivableError:
        return False
    return True


def _needed(flow: Dataflow, einsum: Einsum) -> set[str]:
    """Return the tensors that an Einsum writes, and those that it needs."""
    found, pending = {o.tensor for o in einsum.outputs}, [einsum]
    while pending:
        for operand in pending.pop().operands:
            producer = flow.producer.get(operand.tensor)
            if producer is not None and operand.tensor not in found:
                found |= {o.tensor for o in producer.outputs}
                pending.append(producer)
    return found


def _cut(cascade: Cascade, held: frozenset[str]) -> Cut | None:
    first = tuple(e for e in cascade.init if e.name in held)
    rest = tuple(e for e in cascade.init if e.name not in held)
    outputs = tuple(name for name in cascade.outputs if name not in held)
    if not outputs:
        return None
    read = {operand.tensor for einsum in rest for operand in einsum.operands}
    inputs = tuple(t for t in cascade.input_tensors if t.name in read)
    given = tuple(cascade.tensor(e.name) for e in first if e.name in read)
    part = replace(
        cascade,
        input_tensors=(*inputs, *given),
        outputs=outputs,
        output_spans=(),
        init=rest,
        tensors=(),
        text="",
    )
    return Cut(cascade, first, validated(part))
