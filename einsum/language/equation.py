"""One Einsum: outputs, the expression that is mapped, and the actions that follow it."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

from .expression import Access, Expression, Span, accesses, variables


@dataclass(frozen=True, slots=True)
class Reduce:
    """``max(m0)`` or ``+(e,m)``: fold the variables away with a monoid."""

    operator: str
    variables: tuple[str, ...]
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Populate:
    """``topk(m -> t)``: a coordinate operator places the result along another rank."""

    operator: str
    source: str
    target: str
    span: Span | None = field(default=None, compare=False, repr=False)


Action = Reduce | Populate


@dataclass(frozen=True)
class Einsum:
    """One line of a cascade.

    ``outputs`` has one access, or two for a populate (values, then coordinates).
    ``actions`` holds what the text says; `reductions` adds the implicit ``+`` before them.
    ``merge`` is ``union``, ``inter``, ``left``, ``right`` or None for the operator's default.
    """

    outputs: tuple[Access, ...]
    expression: Expression
    actions: tuple[Action, ...] = ()
    merge: str | None = None
    span: Span | None = field(default=None, compare=False, repr=False)
    merge_span: Span | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The tensor it writes (the first one), which also names the Einsum."""
        return self.outputs[0].tensor

    @property
    def output(self) -> Access:
        """The first output access."""
        return self.outputs[0]

    @functools.cached_property
    def operands(self) -> tuple[Access, ...]:
        """The tensors read, gathers inside indices included, in the order of the text."""
        return tuple(accesses(self.expression)) + tuple(
            below
            for output in self.outputs
            for index in output.indices
            for below in accesses(index)
        )

    @functools.cached_property
    def output_variables(self) -> tuple[str, ...]:
        """The rank variables on the left, each once."""
        found = (v for output in self.outputs for index in output.indices for v in variables(index))
        return tuple(dict.fromkeys(found))

    @functools.cached_property
    def variables(self) -> tuple[str, ...]:
        """The rank variables of the iteration space: the right's, then those only on the left.

        The target of a populate is no part of the iteration space.
        """
        targets = {a.target for a in self.actions if isinstance(a, Populate)}
        found = (*variables(self.expression), *self.output_variables)
        return tuple(v for v in dict.fromkeys(found) if v not in targets)

    @functools.cached_property
    def reductions(self) -> tuple[Reduce, ...]:
        """All reductions in their order: the implicit ``+`` of the Einsum, then its actions.

        ``Q[e,p] * K[e,m] :: max(m)`` sums over ``e`` first and takes the maximum of the sums.
        """
        named = tuple(a for a in self.actions if isinstance(a, Reduce))
        gone = {v for a in named for v in a.variables}
        gone |= {a.source for a in self.actions if isinstance(a, Populate)}
        left = tuple(v for v in self.variables if v not in gone | set(self.output_variables))
        return (Reduce("+", left), *named) if left else named
