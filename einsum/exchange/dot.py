"""A cascade as a graph for Graphviz: `dot`."""

from __future__ import annotations

import json
from collections.abc import Iterator

from einfuse.einsum.language.affine import offset
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.expression import Access, accesses
from einfuse.einsum.language.printer import render_einsum, render_expression, render_tensor


def dot(cascade: Cascade) -> str:
    """Return the data flow of a cascade in Graphviz's language.

    Inputs are ellipses, Einsums boxes with their text, outputs boxes with a double border. An
    edge is a read; that of an earlier generation is dashed and does not order the drawing. Each
    of ``init``, ``loop`` and ``final`` is a cluster, where there is a loop.

    >>> from einfuse.einsum.language.parser import parse
    >>> print(dot(parse("rank M\\ninput A[M]\\nY[] = A[m]")), end="")
    digraph "cascade" {
      node [shape=box];
      "A" [shape=ellipse, label="A[M]"];
      "0" [label="Y[] = A[m]", peripheries=2];
      "A" -> "0" [label="A[m]"];
    }
    """
    lines = [f"digraph {_quoted(cascade.name)} {{", "  node [shape=box];"]
    lines += [
        f"  {_quoted(t.name)} [shape=ellipse, label={_quoted(render_tensor(t))}];"
        for t in cascade.input_tensors
    ]
    lines += _nodes(cascade)
    lines += _edges(cascade)
    return "\n".join([*lines, "}"]) + "\n"


def _nodes(cascade: Cascade) -> Iterator[str]:
    place = 0
    for label, section in (
        ("init", cascade.init),
        ("loop", cascade.loop),
        ("final", cascade.final),
    ):
        clustered = bool(section and cascade.loop)
        if clustered:
            yield f"  subgraph cluster_{label} {{ label={label};"
        for einsum in section:
            yield f"  {_quoted(str(place))} [{_attributes(cascade, einsum)}];"
            place += 1
        if clustered:
            yield "  }"


def _attributes(cascade: Cascade, einsum: Einsum) -> str:
    made = any(output.tensor in cascade.outputs for output in einsum.outputs)
    return f"label={_quoted(render_einsum(einsum))}" + ", peripheries=2" * made


def _edges(cascade: Cascade) -> Iterator[str]:
    writers: dict[str, list[tuple[int, Access]]] = {}
    for place, einsum in enumerate(cascade.einsums):
        for output in einsum.outputs:
            writers.setdefault(output.tensor, []).append((place, output))
    for place, einsum in enumerate(cascade.einsums):
        gathered = {a for operand in einsum.operands for i in operand.indices for a in accesses(i)}
        for access in dict.fromkeys(einsum.operands):
            label = _quoted(render_expression(access)) + ", style=dotted" * (access in gathered)
            if access.tensor in cascade.inputs:
                yield f'  {_quoted(access.tensor)} -> "{place}" [label={label}];'
            for writer, output in writers.get(access.tensor, ()):
                earlier = einsum in cascade.loop and _is_earlier(cascade, output, access)
                dashed = ", style=dashed, constraint=false" * earlier
                yield f'  "{writer}" -> "{place}" [label={label}{dashed}];'


def _is_earlier(cascade: Cascade, output: Access, access: Access) -> bool:
    """Tell whether a read is of an earlier generation than the one that an Einsum writes."""
    for iteration in cascade.iterations:
        for written, read in zip(output.indices, access.indices, strict=True):
            made = offset(written.expression, iteration.variable)
            used = offset(read.expression, iteration.variable)
            if made is not None and used is not None and used < made:
                return True
    return False


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
