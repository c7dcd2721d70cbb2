"""The zoo: what is known of every shipped cascade, and its algorithm's own parameters.

Facts stand in ``data/zoo.yaml`` beside the texts: paper, family, phase, masks, parameters with
their defaults, where the definition comes from, what the cascade is checked against, and how sure
the transcription is. A parameter is the size of a rank (a window, a chunk, k of a top-k) or the
value of a scalar input (a threshold, a bias); setting it gives a cascade that has it fixed.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from einfuse.einsum.analysis.passes import count_passes
from einfuse.einsum.language.cascade import Cascade, Rank
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.errors import CascadeError, EinfuseError, closest
from einfuse.einsum.language.expression import Access, Expression, Number
from einfuse.einsum.language.rules import validated
from einfuse.einsum.language.shape import representatives
from einfuse.einsum.language.substitution import rebuild

_PATH = Path(__file__).with_name("data") / "zoo.yaml"


class Parameter(BaseModel, frozen=True, extra="forbid"):
    """A parameter of an algorithm: the size of a ``rank``, or the value of a scalar ``input``.

    ``default`` is the paper's or the official code's; None where it depends on the model.
    ``grows`` says how the paper lets a size grow with the sequence: with its root, its logarithm,
    or as a share of it; None where it stays.
    """

    rank: str | None = None
    input: str | None = None
    default: float | None = None
    grows: Literal["root", "logarithm", "share"] | None = None
    meaning: str

    @model_validator(mode="after")
    def _one_target(self) -> Parameter:
        if (self.rank is None) == (self.input is None):
            raise ValueError("a parameter names either a rank or an input")
        if self.grows and self.rank is None:
            raise ValueError("only the size of a rank grows")
        return self


class Entry(BaseModel, frozen=True, extra="forbid"):
    """A cascade's facts.

    ``keys`` and ``queries`` are the ranks that passes are counted over, None where there is no
    such rank. ``implements`` are the names of published algorithms and schedules that compute
    just this cascade. ``assumption`` says what was assumed where a detail could not be read;
    ``simplification`` what the paper or its code is known to compute, and the cascade does not.
    """

    name: str
    title: str
    paper: str
    implements: tuple[str, ...]
    family: str
    phases: tuple[Literal["prefill", "decode", "training"], ...]
    masks: tuple[str, ...] = ()
    keys: str | None
    queries: str | None = None
    parameters: dict[str, Parameter] = {}
    source: str
    checked: str
    confidence: Literal["sure", "outline"]
    assumption: str = ""
    simplification: str = ""


class _Zoo(BaseModel, frozen=True, extra="forbid"):
    families: dict[str, str]
    cascades: dict[str, Entry]

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: dict[str, dict[str, dict[str, object]]]) -> object:
        named = {name: {"name": name, **facts} for name, facts in data["cascades"].items()}
        return {**data, "cascades": named}

    @model_validator(mode="after")
    def _known_families(self) -> _Zoo:
        for entry in self.cascades.values():
            if entry.family not in self.families:
                raise ValueError(f"{entry.name}: unknown family {entry.family}")
        return self


@functools.cache
def _zoo() -> _Zoo:
    try:
        return _Zoo.model_validate(yaml.safe_load(_PATH.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise EinfuseError(f"{_PATH}: {error}") from None


def families() -> Mapping[str, str]:
    """Return the families, each with what its members share.

    >>> families()["dense"]
    'every query meets every key: softmax in 3, 2 or 1 pass, or without one'
    """
    return _zoo().families


def entries(family: str | None = None) -> tuple[Entry, ...]:
    """Return the facts of all cascades, or of one family's, in the order of the file.

    Raises:
        EinfuseError: there is no such family.

    >>> [entry.name for entry in entries("dense")][:2]
    ['attention/3-pass', 'attention/3-pass-deferred']
    """
    if family is not None and family not in families():
        raise EinfuseError(f"no family '{family}'{closest(family, families())}")
    return tuple(e for e in _zoo().cascades.values() if family in (None, e.family))


def entry_of(cascade: Cascade) -> Entry | None:
    """Return the facts of a cascade of the library; None for a cascade of the user's own."""
    entry = _zoo().cascades.get(cascade.name)
    return entry if cascade.source == cascade.name else None


def passes_over(cascade: Cascade, rank: str | None) -> int | float | None:
    """Return the passes over a rank, as numbers that JSON has; None without a rank."""
    if rank is None:
        return None
    count = count_passes(cascade, rank).passes
    return count if isinstance(count, int) else float(count)


def with_parameters(cascade: Cascade, settings: Mapping[str, float]) -> Cascade:
    """Return the cascade with parameters of its algorithm fixed.

    Ranks get their size; a scalar input is replaced by its value and is no input any more.

    Args:
        cascade: a cascade of the library, or one of the user's own, whose parameters are its
            ranks and scalar inputs under their own names.
        settings: value by parameter name.

    Raises:
        EinfuseError: the algorithm has no such parameter (names the closest), the value is no
            size of a rank, or two parameters give one rank two sizes; CascadeError where sizes
            contradict each other.

    >>> from einfuse.einsum.library.cascades import load
    >>> fixed = with_parameters(load("attention/window"), {"window": 512, "sinks": 4})
    >>> [(rank.name, rank.size) for rank in fixed.ranks if rank.size]
    [('W', 512), ('S', 4)]
    """
    known = parameters_of(cascade)
    roots = representatives(cascade)
    sizes: dict[str, int] = {}
    values: dict[str, float] = {}
    for name, value in settings.items():
        if name not in known:
            raise EinfuseError(f"{cascade.name} has no parameter '{name}'{closest(name, known)}")
        parameter = known[name]
        if parameter.rank is not None:
            size, root = _size(cascade, name, value), roots[parameter.rank]
            if sizes.setdefault(root, size) != size:
                raise EinfuseError(
                    f"{cascade.name}: {name} is the size of rank {root}, which is set to "
                    f"{sizes[root]} already; found {size}"
                )
        elif parameter.input is not None:
            if not math.isfinite(value):
                raise EinfuseError(f"{cascade.name}: {name} needs a finite number, found {value}")
            values[parameter.input] = int(value) if value == int(value) else value
    if not settings:
        return cascade
    with naming_parameters(cascade):
        return _fixed(cascade, sizes, values)


@contextmanager
def naming_parameters(cascade: Cascade) -> Iterator[None]:
    """Add to an error about ranks from inside which parameters have their sizes.

    >>> from einfuse.einsum.library.cascades import load
    >>> from einfuse.einsum.language.shape import bind
    >>> try:
    ...     with naming_parameters(load("attention/1-pass")):
    ...         bind(load("attention/1-pass"), {"E": 1, "F": 1, "P": 1, "M": 10, "M0": 4})
    ... except CascadeError as error:
    ...     print(error.message.partition("; ")[2])
    M0 is the parameter tile (keys of a tile; must divide the keys)
    """
    try:
        yield
    except CascadeError as error:
        message = error.message + _told(cascade, error.message)
        raise CascadeError(message, error.span, error.text, error.source) from None
    except EinfuseError as error:
        told = _told(cascade, str(error))
        raise (EinfuseError(f"{error}{told}") if told else error) from None


def _told(cascade: Cascade, message: str) -> str:
    entry = entry_of(cascade)
    words = set(re.findall(r"\w+", message))
    return "".join(
        f"; {parameter.rank} is the parameter {name} ({parameter.meaning})"
        for name, parameter in (entry.parameters if entry else {}).items()
        if parameter.rank in words
    )


def defaults(cascade: Cascade, known: Collection[str] = ()) -> dict[str, float]:
    """Return the default of every parameter whose rank or input is not known otherwise.

    >>> from einfuse.einsum.library.cascades import load
    >>> defaults(load("attention/window"), known=["W"])
    {'sinks': 4.0}
    """
    return {
        name: parameter.default
        for name, parameter in parameters_of(cascade).items()
        if parameter.default is not None and not {parameter.rank, parameter.input} & set(known)
    }


def parameters_of(cascade: Cascade) -> dict[str, Parameter]:
    """Return what ``--set`` may fix: an algorithm's parameters, else open ranks and scalars."""
    entry = entry_of(cascade)
    if entry is not None:
        return entry.parameters
    ranks = {r.name: Parameter(rank=r.name, meaning="the size of a rank") for r in cascade.ranks}
    scalars = {
        t.name: Parameter(input=t.name, meaning="a scalar input")
        for t in cascade.input_tensors
        if not t.ranks
    }
    return ranks | scalars


def _size(cascade: Cascade, name: str, value: float) -> int:
    if not math.isfinite(value) or value != int(value) or value < 1:
        raise EinfuseError(
            f"{cascade.name}: {name} is the size of a rank, a whole number of at least 1; "
            f"found {value:g}"
        )
    return int(value)


def _fixed(cascade: Cascade, sizes: Mapping[str, int], values: Mapping[str, float]) -> Cascade:
    def constant(node: Expression) -> Expression | None:
        if isinstance(node, Access) and node.tensor in values:
            return Number(values[node.tensor])
        return None

    def filled(einsum: Einsum) -> Einsum:
        return replace(einsum, expression=rebuild(einsum.expression, constant))

    declared = {rank.name for rank in cascade.ranks}
    ranks = tuple(replace(r, size=sizes.get(r.name, r.size)) for r in cascade.ranks)
    ranks += tuple(Rank(name, size) for name, size in sizes.items() if name not in declared)
    kept = tuple(t for t in cascade.input_tensors if t.name not in values)
    return validated(
        replace(
            cascade,
            ranks=ranks,
            input_tensors=kept,
            init=tuple(map(filled, cascade.init)),
            loop=tuple(map(filled, cascade.loop)),
            final=tuple(map(filled, cascade.final)),
        )
    )
