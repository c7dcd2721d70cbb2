"""A cascade: declarations and an ordered list of Einsums, in up to three sections."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .equation import Einsum
from .expression import Condition, Span


@dataclass(frozen=True, slots=True)
class Rank:
    """A named dimension; its size may be a number, another rank's name, or left open."""

    name: str
    size: int | str | None = None
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Split:
    """``split M -> M1, M0``: the whole is the product of the outer and the inner rank."""

    whole: str
    outer: str
    inner: str
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Iteration:
    """``iter i over K``: the variable is generational and aliases that rank."""

    variable: str
    rank: str
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor with its ranks, in the order of its declaration or definition.

    An input may carry its ``value``, an array that `run` takes where none is given: the weights of
    an imported module.
    """

    name: str
    ranks: tuple[str, ...]
    span: Span | None = field(default=None, compare=False, repr=False)
    value: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Cascade:
    """What is computed.

    Without a ``loop:`` every Einsum stands in ``init``. ``tensors`` holds every tensor of the
    cascade (inputs first, then by definition) with its ranks: a generational tensor counts its
    iterative rank among them, under the rank that the iterative variable aliases. Two cascades
    of one text are equal whatever they are called. ``text`` and ``source`` are what was parsed, for
    errors that point into it later. ``aliases`` are variables of the analyses' own spelling that
    run over another rank than their upper case (`coordinates`); a text has none.
    """

    name: str = field(compare=False)
    ranks: tuple[Rank, ...] = ()
    splits: tuple[Split, ...] = ()
    iterations: tuple[Iteration, ...] = ()
    input_tensors: tuple[Tensor, ...] = ()
    outputs: tuple[str, ...] = ()
    init: tuple[Einsum, ...] = ()
    loop: tuple[Einsum, ...] = ()
    final: tuple[Einsum, ...] = ()
    stop: Condition = ()
    tensors: tuple[Tensor, ...] = ()
    output_spans: tuple[Span | None, ...] = field(default=(), compare=False, repr=False)
    text: str = field(default="", compare=False, repr=False)
    source: str = field(default="", compare=False, repr=False)
    aliases: tuple[tuple[str, str], ...] = ()

    @functools.cached_property
    def rank_names(self) -> tuple[str, ...]:
        """All ranks: those of the ``rank`` lines, then those that only a split declares."""
        split = (name for s in self.splits for name in (s.whole, s.outer, s.inner))
        return tuple(dict.fromkeys((*(rank.name for rank in self.ranks), *split)))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the input tensors, in the order of declaration."""
        return tuple(tensor.name for tensor in self.input_tensors)

    @functools.cached_property
    def einsums(self) -> tuple[Einsum, ...]:
        """All Einsums in the order of the text."""
        return self.init + self.loop + self.final

    def tensor(self, name: str) -> Tensor:
        """Return a tensor by its name; KeyError if the cascade has none such."""
        return self._tensors_by_name[name]

    def rank_of(self, variable: str) -> str:
        """Return the rank that a variable runs over: its (iterative) alias, or its upper case."""
        for iteration in self.iterations:
            if iteration.variable == variable:
                return iteration.rank
        for alias, rank in self.aliases:
            if alias == variable:
                return rank
        return variable.upper()

    def producers(self, name: str) -> tuple[Einsum, ...]:
        """Return the Einsums that write a tensor (an initialiser and a loop may both do)."""
        return self._producers.get(name, ())

    def consumers(self, name: str) -> tuple[Einsum, ...]:
        """Return the Einsums that read a tensor."""
        return self._consumers.get(name, ())

    @functools.cached_property
    def _tensors_by_name(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in reversed(self.tensors)}

    @functools.cached_property
    def _producers(self) -> dict[str, tuple[Einsum, ...]]:
        return _grouped((o.tensor, e) for e in self.einsums for o in e.outputs)

    @functools.cached_property
    def _consumers(self) -> dict[str, tuple[Einsum, ...]]:
        return _grouped((a.tensor, e) for e in self.einsums for a in e.operands)


def _grouped(pairs: Iterable[tuple[str, Einsum]]) -> dict[str, tuple[Einsum, ...]]:
    """Return name -> its Einsums, each once at its place, in the order of the text."""
    found: dict[str, dict[int, Einsum]] = {}
    for name, einsum in pairs:
        found.setdefault(name, {})[id(einsum)] = einsum
    return {name: tuple(einsums.values()) for name, einsums in found.items()}
