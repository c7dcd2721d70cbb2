"""What TeAAL's and AccelForge's files share: sums of products of tensors at affine indices.

Reading writes a cascade's text and parses it, so that every rule of the language holds; writing
takes an Einsum apart into terms and factors, and refuses by name what the other side cannot say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from einfuse.einsum.language.affine import Linear, linear
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum, Populate, Reduce
from einfuse.einsum.language.errors import CascadeError, EinfuseError, located
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Coordinate,
    Expression,
    Index,
    Negate,
    Number,
    RankSize,
    accesses,
    variables,
    walk,
)
from einfuse.einsum.language.printer import render_condition, render_expression, render_index
from einfuse.einsum.language.syntax_errors import KEYWORDS

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


@dataclass
class Ranks:
    """The ranks of a file while it is read: their sizes, and which must have one size."""

    sizes: dict[str, int] = field(default_factory=dict)
    roots: dict[str, str] = field(default_factory=dict)

    def add(self, rank: str) -> None:
        """Know a rank."""
        self.roots.setdefault(rank, rank)

    def root(self, rank: str) -> str:
        """Return the rank that stands for all of its size."""
        self.add(rank)
        while self.roots[rank] != rank:
            rank = self.roots[rank]
        return rank

    def unite(self, variable: str, rank: str) -> None:
        """Let the rank of a variable have the size of the rank that it indexes."""
        own, other = self.root(variable.upper()), self.root(rank)
        if own != other:
            self.roots[own] = other
            if own in self.sizes:
                self.sizes.setdefault(other, self.sizes[own])

    def declaration(self) -> str:
        """Return the ``rank`` line, or nothing without a rank."""
        declared = []
        for rank in self.roots:
            size = self.sizes.get(rank)
            if self.roots[rank] != rank:
                declared.append(f"{rank} = {self.root(rank)}")
            else:
                declared.append(rank if size is None else f"{rank} = {size}")
        return "rank " + ", ".join(declared) + "\n" if declared else ""


def load_yaml(text: str, source: str) -> dict[str, Any]:
    """Return the mapping that a YAML text is; EinfuseError with line and column if it is none."""
    from einfuse.einsum.language.yaml_text import parse_yaml

    document = parse_yaml(text, source)
    if not isinstance(document, dict):
        kind = type(document).__name__
        raise EinfuseError(f"{source}: expected a mapping of keys to values, found {kind}")
    return document


def section(document: Mapping[str, Any], key: str, kind: type, source: str) -> Any:
    """Return what stands under a key, of the kind that belongs there."""
    found = document.get(key)
    if not isinstance(found, kind):
        expected = {"dict": "a mapping", "list": "a list"}[kind.__name__]
        what = "nothing" if found is None else type(found).__name__
        raise EinfuseError(f"{source}: expected {expected} under '{key}', found {what}")
    return found


def identifier(name: object, what: str, source: str) -> str:
    """Return a name that the language can hold, else EinfuseError."""
    if isinstance(name, str) and _IDENTIFIER.fullmatch(name) and name not in KEYWORDS:
        return name
    raise EinfuseError(f"{source}: expected the name of {what}, found {name!r}")


def cascade_text(
    ranks: Ranks,
    tensors: Mapping[str, Sequence[str]],
    lines: Iterable[tuple[str, str]],
) -> str:
    """Return the text of a cascade from ranks, tensors and (written tensor, line) pairs."""
    written = list(lines)
    made = {name for name, _ in written}
    inputs = [f"{n}[{','.join(r)}]" for n, r in tensors.items() if n not in made]
    declared = "input " + ", ".join(inputs) + "\n" if inputs else ""
    return ranks.declaration() + declared + "".join(line + "\n" for _, line in written)


# Writing.


@dataclass(frozen=True, slots=True)
class Writer:
    """The other side: its name, and the sizes that stand for ranks in indices."""

    tool: str
    cascade: Cascade
    sizes: Mapping[str, int]

    def refuse(self, what: str, node: Any = None) -> CascadeError:
        """Return the error that names what the other side cannot express."""
        return CascadeError(f"{self.tool} cannot express {what}", getattr(node, "span", None))

    def einsums(self) -> tuple[Einsum, ...]:
        """Return the Einsums of a cascade without a loop."""
        cascade = self.cascade
        if cascade.loop or cascade.stop:
            first = cascade.iterations[0]
            raise self.refuse(f"a loop (iter {first.variable} over {first.rank})", first)
        return cascade.einsums

    def terms(self, einsum: Einsum) -> tuple[tuple[Expression, ...], ...]:
        """Return the factors of each term of an Einsum that is a sum of products."""
        for action in einsum.actions:
            if isinstance(action, Populate):
                raise self.refuse(f"the populate {action.operator}(...)", action)
            if isinstance(action, Reduce) and action.operator != "+":
                folded = ",".join(action.variables)
                raise self.refuse(f"the reduction {action.operator}({folded})", action)
        if einsum.merge is not None:
            raise self.refuse(f"the merge '@ {einsum.merge}'", einsum)
        terms = tuple(map(self._factors, _summands(einsum.expression)))
        kept = set(einsum.output_variables)
        folded_in = {
            frozenset(v for factor in term for v in variables(factor) if v not in kept)
            for term in terms
        }
        if len(folded_in) > 1:
            raise self.refuse(
                "a sum whose terms are reduced over different variables", einsum.expression
            )
        return terms

    def _factors(self, node: Expression) -> tuple[Expression, ...]:
        match node:
            case Access() | Call():
                return (node,)
            case Binary(operator="*", left=left, right=right):
                return self._factors(left) + self._factors(right)
            case Binary(operator="-") | Negate():
                raise self.refuse(f"the subtraction in {render_expression(node)}", node)
            case Binary(operator="/"):
                raise self.refuse(f"the division {render_expression(node)}", node)
            case Binary():
                raise self.refuse(f"a sum within a product, {render_expression(node)}", node)
            case Number() | RankSize() | Coordinate():
                raise self.refuse(f"the value {render_expression(node)} without a tensor", node)

    def plain(self, factor: Expression) -> Access:
        """Return a factor that is a tensor, and refuse a function."""
        if isinstance(factor, Call):
            raise self.refuse(f"the function {factor.function}(...)", factor)
        assert isinstance(factor, Access)
        return factor

    def affine(self, index: Index, access: Access) -> Linear:
        """Return the affine form of an index, whole coefficients."""
        text = f"{access.tensor}[{render_index(index.expression)}]"
        if index.condition:
            raise self.refuse(f"the filter {render_condition(index.condition)}", access)
        for gather in accesses(index):
            raise self.refuse(f"the gather through {gather.tensor} in {text}", access)
        form = linear(index.expression, self.sizes)
        if form is None:
            ranks = [n.rank for n in walk(index.expression) if isinstance(n, RankSize)]
            unknown = [rank for rank in ranks if rank not in self.sizes]
            if unknown and linear(index.expression, dict.fromkeys(unknown, 2) | {**self.sizes}):
                raise CascadeError(
                    f"{self.tool} needs whole coefficients in {text}: give the sizes of ranks, "
                    f"such as --shape {unknown[0]}=...",
                    index.expression.span,
                )
            raise self.refuse(f"the index {text}, which is not affine", access)
        return form

    def located(self) -> Any:
        """Point into the cascade's text with every error raised inside."""
        return located(self.cascade)


def _summands(node: Expression) -> tuple[Expression, ...]:
    match node:
        case Binary(operator="+", left=left, right=right):
            return _summands(left) + _summands(right)
        case _:
            return (node,)
