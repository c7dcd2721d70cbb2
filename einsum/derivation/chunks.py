"""A loop that writes a chunk of a flat rank per generation, as one that writes generations."""

from __future__ import annotations

from dataclasses import replace

from einfuse.einsum.language.affine import offset
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.expression import Access, Coordinate, Expression, Index, variables
from einfuse.einsum.language.rules import validated
from einfuse.einsum.language.substitution import rebuild

from .normal_form import fresh, names_of


def without_chunks(cascade: Cascade) -> Cascade:
    """Return the cascade with chunks kept by generation, and put into their place after the loop.

    >>> from einfuse.einsum.language.parser import parse
    >>> from einfuse.einsum.language.printer import render_einsum
    >>> text = "split M -> M1, M0\\niter m1 over M1\\ninput A[M1,M0]\\noutput Y\\nloop:\\n"
    >>> found = without_chunks(parse(text + "Y[m1*M0+m0] = exp(A[m1,m0])"))
    >>> print(*map(render_einsum, found.einsums), sep="\\n")
    YC[m1,m0] = exp(A[m1,m0])
    Y[m1*M0+m0] = YC[m1,m0]
    """
    own = {iteration.variable for iteration in cascade.iterations}
    taken = names_of(cascade)
    parts: dict[str, tuple[Access, Access]] = {}
    for einsum in cascade.loop:
        for output in einsum.outputs:
            if any(_is_chunk(index, own) for index in output.indices):
                name = fresh(f"{output.tensor}C", taken)
                taken.add(name)
                flat = tuple(_parts(index, own) for index in output.indices)
                kept = tuple(index for indices in flat for index in indices)
                parts[output.tensor] = (output, Access(name, kept))
    if not parts:
        return cascade

    def change(node: Expression) -> Expression | None:
        if isinstance(node, Access) and node.tensor in parts:
            return parts[node.tensor][1]
        return None

    loop = tuple(
        replace(
            einsum,
            outputs=tuple(parts[o.tensor][1] if o.tensor in parts else o for o in einsum.outputs),
            expression=rebuild(einsum.expression, change),
        )
        for einsum in cascade.loop
    )
    joined = tuple(Einsum((output,), part) for output, part in parts.values())
    final = (*joined, *cascade.final)
    return validated(replace(cascade, loop=loop, final=final, tensors=(), text="", source=""))


def _is_chunk(index: Index, own: set[str]) -> bool:
    found = own & set(variables(index.expression))
    return any(offset(index.expression, v) is None for v in found)


def _parts(index: Index, own: set[str]) -> tuple[Index, ...]:
    """Return the variables of a chunk's index as indices of their own, the loop's first."""
    if not _is_chunk(index, own):
        return (index,)
    names = sorted(variables(index.expression), key=lambda v: v not in own)
    return tuple(Index(Coordinate(name)) for name in names)
