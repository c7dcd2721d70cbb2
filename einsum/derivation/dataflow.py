"""A straight-line cascade seen along one rank: what is folded, what waits for a fold.

An Einsum is *free* of the rank, a *map* over it (the rank stays), a *fold* (the rank is reduced)
or *opaque* (a populate, or indices on the left that are no plain variables). A tensor is
*dependent* if some fold over the rank must be complete before it. A free dependent tensor that a
map or a fold reads is a *reference*: reading it is a barrier.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum, Populate
from einfuse.einsum.language.expression import Access, Expression, Index, accesses, variables, walk
from einfuse.einsum.language.function_row import Sign
from einfuse.einsum.language.substitution import inlined, plain_variables, replace_accesses


class Kind(Enum):
    """What an Einsum does with a rank."""

    FREE = "free"
    MAP = "map"
    FOLD = "fold"
    OPAQUE = "opaque"


@dataclass(frozen=True)
class Dataflow:
    """A cascade of one section and one variable of it.

    >>> from einfuse.einsum.library.cascades import load
    >>> flow = Dataflow(load("attention/3-pass"), "m")
    >>> [(fold.name, sorted(flow.waits_for[fold.name])) for fold in flow.folds]
    [('GM', []), ('SD', ['GM']), ('AV', ['GM', 'SD'])]
    >>> [(e.name, [r.tensor for r in references]) for e, references in flow.barriers()]
    [('SD', ['GM']), ('AV', ['GM', 'SD'])]
    """

    cascade: Cascade
    variable: str

    @functools.cached_property
    def signs(self) -> dict[str, Sign]:
        """The signs of tensors that have been asked for (`value_facts.sign_of`)."""
        return {}

    @property
    def einsums(self) -> tuple[Einsum, ...]:
        """The Einsums in the order of the text."""
        return self.cascade.init

    @functools.cached_property
    def producer(self) -> dict[str, Einsum]:
        """The Einsum that writes a tensor."""
        return {output.tensor: einsum for einsum in self.einsums for output in einsum.outputs}

    @functools.cached_property
    def kinds(self) -> dict[str, Kind]:
        """What the producer of each tensor does with the rank."""
        return {name: self._kind(einsum) for name, einsum in self.producer.items()}

    @functools.cached_property
    def folds(self) -> tuple[Einsum, ...]:
        """The folds over the rank, in order."""
        return tuple(e for e in self.einsums if self.kinds[e.name] is Kind.FOLD)

    @functools.cached_property
    def waits_for(self) -> dict[str, frozenset[str]]:
        """The folds (and opaque reductions) that must be complete before a tensor."""
        found: dict[str, frozenset[str]] = {}
        for einsum in self.einsums:
            names: set[str] = set()
            for operand in einsum.operands:
                names |= found.get(operand.tensor, frozenset())
                if self._completes(operand.tensor):
                    names.add(operand.tensor)
            for output in einsum.outputs:
                found[output.tensor] = frozenset(names)
        return found

    def dependent(self, tensor: str) -> bool:
        """Tell whether a tensor is, or needs, a complete fold over the rank."""
        return bool(self.waits_for.get(tensor)) or self._completes(tensor)

    def is_reference(self, tensor: str) -> bool:
        """Tell whether a tensor is free of the rank and dependent."""
        return self.dependent(tensor) and self.kinds[tensor] in (Kind.FREE, Kind.FOLD)

    def cone(self, einsum: Einsum, only: str | None = None) -> Expression:
        """Return the right-hand side with the dependent maps inlined, down to references.

        With ``only``, maps are inlined where they depend on that tensor alone or among others.
        """

        def change(access: Access) -> Expression | None:
            producer = self.producer.get(access.tensor)
            if producer is None or self.kinds[access.tensor] is not Kind.MAP:
                return None
            if not (self.reads(access.tensor, only) if only else self.dependent(access.tensor)):
                return None
            definition = None if producer.merge else inlined(producer, access)
            return None if definition is None else replace_accesses(definition, change)

        return replace_accesses(einsum.expression, change)

    def reads(self, tensor: str, source: str) -> bool:
        """Tell whether a tensor's definition reaches ``source`` through maps over the rank."""
        einsum = self.producer.get(tensor)
        if einsum is None or self.kinds[tensor] is not Kind.MAP:
            return False
        return any(
            operand.tensor == source or self.reads(operand.tensor, source)
            for operand in einsum.operands
        )

    def references(self, expression: Expression) -> tuple[Access, ...]:
        """Return the distinct accesses to references in an expression."""
        found = (a for a in accesses(expression) if self.is_reference(a.tensor))
        return tuple(dict.fromkeys(found))

    def blocking_maps(self, expression: Expression) -> tuple[str, ...]:
        """Return the dependent maps that could not be inlined (they reduce, or are filtered)."""
        return tuple(
            dict.fromkeys(
                access.tensor
                for access in accesses(expression)
                if self.kinds.get(access.tensor) in (Kind.MAP, Kind.OPAQUE)
                and self.dependent(access.tensor)
            )
        )

    def culls(self, expression: Expression) -> bool:
        """Tell whether a filter culls points of an expression, here or in a map that it reads."""
        return is_filtered(expression) or any(
            access.tensor in self._culling_maps for access in accesses(expression)
        )

    @functools.cached_property
    def _culling_maps(self) -> frozenset[str]:
        """The maps over the rank some of whose points are culled."""
        found: set[str] = set()
        for einsum in self.einsums:
            if is_filtered(einsum.expression) or any(o.tensor in found for o in einsum.operands):
                maps = (o.tensor for o in einsum.outputs if self.kinds[o.tensor] is Kind.MAP)
                found.update(maps)
        return frozenset(found)

    def barriers(self) -> tuple[tuple[Einsum, tuple[Access, ...]], ...]:
        """Return the folds and long outputs that read references, with what they read."""
        found = []
        for einsum in self.einsums:
            kind = self.kinds[einsum.name]
            long_output = kind is Kind.MAP and einsum.name in self.cascade.outputs
            if kind is Kind.FOLD or long_output:
                references = self.references(self.cone(einsum))
                if references:
                    found.append((einsum, references))
        return tuple(found)

    def _completes(self, tensor: str) -> bool:
        return self.kinds.get(tensor) is Kind.FOLD or (
            self.kinds.get(tensor) is Kind.OPAQUE and self._opaque_waits(tensor)
        )

    def _opaque_waits(self, tensor: str) -> bool:
        einsum = self.producer[tensor]
        sources = {a.source for a in einsum.actions if isinstance(a, Populate)}
        return self.variable in sources or self.variable not in einsum.output_variables

    def _kind(self, einsum: Einsum) -> Kind:
        if self.variable not in einsum.variables:
            return Kind.FREE
        if any(isinstance(action, Populate) for action in einsum.actions):
            return Kind.OPAQUE
        if self.variable in einsum.output_variables:
            return Kind.MAP if plain_variables(einsum.output) is not None else Kind.OPAQUE
        return Kind.FOLD if plain_variables(einsum.output) is not None else Kind.OPAQUE


def reduced_variables(einsum: Einsum) -> tuple[str, ...]:
    """Return all variables that an Einsum folds away."""
    return tuple(v for reduction in einsum.reductions for v in reduction.variables)


def operator_of(einsum: Einsum) -> str:
    """Return the one operator that a fold reduces with (`normalise` makes it one)."""
    return einsum.reductions[0].operator


def is_filtered(expression: Expression) -> bool:
    """Tell whether an expression culls points: some index has a condition."""
    return any(isinstance(node, Index) and node.condition for node in walk(expression))


def uses(expression: Expression, names: Iterable[str]) -> bool:
    """Tell whether an expression mentions one of the rank variables."""
    return not frozenset(names).isdisjoint(variables(expression))
