"""What a backward pass reads from the forward pass, in place of computing it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from einfuse.einsum.derivation.dataflow import Dataflow
from einfuse.einsum.derivation.normal_form import prune
from einfuse.einsum.derivation.reassociation import reassociate
from einfuse.einsum.derivation.vanishing import vanish
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.errors import EinfuseError, closest
from einfuse.einsum.language.rules import validated


def check_saved(cascade: Cascade, saved: Sequence[str]) -> None:
    """Refuse names that are no tensors a forward pass can save.

    Raises:
        EinfuseError: a name is none of the cascade's, an input, given twice, or coordinates.
    """
    producer = {output.tensor: e for e in cascade.einsums for output in e.outputs}
    for name in saved:
        if name in cascade.inputs:
            raise EinfuseError(f"{name} is an input of {cascade.name}: it need not be saved")
        if name not in producer:
            raise EinfuseError(f"{cascade.name} has no tensor {name}{closest(name, producer)}")
        if len(producer[name].outputs) > 1:
            raise EinfuseError(f"{name} is selected with its coordinates: it cannot be saved alone")
    if len(set(saved)) < len(saved):
        raise EinfuseError("expected names of tensors to save, each once, such as AV,GM,SD")


def read_saved(cascade: Cascade, saved: Sequence[str]) -> Cascade:
    """Return a straight-line cascade that takes some of its outputs as inputs.

    Before, what is 0 leaves it (rule Z), and sums are read off what is saved (rule A): so that the
    adjoint of a softmax's denominator is read off the output, as in FlashAttention-2.

    Args:
        cascade: with the saved tensors among its outputs, and others.
        saved: their names; those that nothing reads any more are left out.

    >>> from einfuse.einsum.language.parser import parse
    >>> from einfuse.einsum.language.printer import render_einsum
    >>> text = (
    ...     "rank M, F\\ninput V[F,M], P[M], A[F]\\noutput O, D\\nO[f] = V[f,m] * P[m]\\n"
    ...     "T[m] = A[f] * V[f,m]\\nD[] = T[m] * P[m]"
    ... )
    >>> found = read_saved(parse(text), ["O"])
    >>> found.inputs, list(map(render_einsum, found.einsums))
    (('A', 'O'), ['D[] = A[f] * O[f]'])
    """
    ranks = {tensor.name: tensor for tensor in cascade.tensors}
    without = vanish(cascade)
    cascade = cascade if without is None else without[0]
    producers = [e for e in cascade.einsums if e.name in saved]
    reduced = [v for e in producers for reduction in e.reductions for v in reduction.variables]
    for variable in dict.fromkeys(reduced):
        read_off = reassociate(Dataflow(cascade, variable))
        cascade = cascade if read_off is None else read_off.cascade
    cut = replace(
        cascade,
        input_tensors=(*cascade.input_tensors, *(ranks[name] for name in saved)),
        outputs=tuple(name for name in cascade.outputs if name not in saved),
        init=tuple(e for e in cascade.init if e.name not in saved),
        tensors=(),
        output_spans=(),
    )
    left = prune(cut)
    read = {access.tensor for einsum in left.einsums for access in einsum.operands}
    inputs = tuple(t for t in left.input_tensors if t.name in read)
    return validated(replace(left, input_tensors=inputs))
