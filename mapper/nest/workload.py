"""What a mapping needs to know of a cascade, worked out once: ranks, operands, operations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from einfuse.einsum import (
    MULTIPLY_ACCUMULATE,
    Access,
    Binary,
    Cascade,
    Coordinate,
    Einsum,
    Number,
    Populate,
    coordinate_operator,
    filters,
    is_constant,
    is_product_sum,
    is_view,
    monoid,
    operations_per_point,
    render_condition,
    variables,
)
from einfuse.mapper.errors import MappingError

from .coordinates import Coordinates, Part, Subscript, find_coordinates, of_ranks
from .subscripts import find_part


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor as an Einsum accesses it.

    Attributes:
        name: in the text.
        tensor: the one behind a view.
        ranks: those that the access depends on.
        part: its subscripts in the tensor behind, batch ranks first.
    """

    name: str
    tensor: str
    ranks: frozenset[str]
    part: Part = ()

    @property
    def visited(self) -> Coordinates:
        """What the access visits."""
        return find_coordinates(frozenset({self.part}))


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation class, how often a point does it, and the ranks of those points."""

    name: str
    times: int
    ranks: frozenset[str]


@dataclass(frozen=True, slots=True)
class EinsumFacts:
    """An Einsum that needs a place in a mapping."""

    name: str
    ranks: frozenset[str]
    operands: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    operations: tuple[Operation, ...]
    filters: tuple[str, ...]  # that cull points of its iteration space


@dataclass(frozen=True, slots=True)
class Edge:
    """Einsum ``producer`` makes ``tensor`` for ``consumer``, ``generations`` later."""

    producer: str
    consumer: str
    tensor: str
    generations: int


@dataclass(frozen=True, slots=True)
class Facts:
    """A cascade with its batch ranks, as mappings see it.

    ``roots`` maps a view to the tensor behind it; ``ranks`` a tensor to every rank that it is
    accessed along; ``carried`` are the tensors that an iterative rank carries on, of which one
    generation lives at a time; ``aligned`` are those that are made and read point by point: every
    access has the same plain index.
    """

    cascade: Cascade
    einsums: Mapping[str, EinsumFacts]
    roots: Mapping[str, str]
    ranks: Mapping[str, frozenset[str]]
    carried: frozenset[str]
    aligned: frozenset[str]
    iterative: frozenset[str]
    edges: tuple[Edge, ...]

    def root(self, tensor: str) -> str:
        """The tensor behind a name."""
        return self.roots.get(tensor, tensor)

    def accesses(self, tensor: str, einsums: Iterable[str]) -> frozenset[Part]:
        """The accesses of Einsums to a tensor; names that are no Einsum's are passed over."""
        every = [self.einsums[name] for name in einsums if name in self.einsums]
        used = [u for einsum in every for u in (*einsum.operands, *einsum.outputs)]
        return frozenset(u.part for u in used if u.tensor == tensor)

    def visited(self, tensor: str, einsums: Iterable[str]) -> Coordinates:
        """What Einsums read and write of a tensor; of a carried one, of a single generation."""
        own = self.accesses(tensor, einsums)
        found = find_coordinates(own) if own else of_ranks(self.ranks[tensor])
        return found.without(self.generations(tensor))

    def generations(self, tensor: str) -> frozenset[str]:
        """The ranks along which a tensor has generations, of which one lives at a time."""
        return self.iterative if tensor in self.carried else frozenset()


_KEPT: dict[tuple[int, tuple[str, ...]], Facts] = {}


def facts(cascade: Cascade, batch: tuple[str, ...] = ()) -> Facts:
    """Return the facts of a cascade; the last ones asked for are kept.

    Raises:
        MappingError: two Einsums compute one tensor, so that a mapping cannot tell them apart.

    >>> from einfuse.einsum.library.cascades import load
    >>> facts(load("attention/1-pass")).einsums["QK"].operands[1].tensor
    'K'
    """
    key = (id(cascade), batch)  # hashing a cascade walks it; the kept facts keep it alive
    if key not in _KEPT:
        if len(_KEPT) >= 256:
            _KEPT.clear()
        _KEPT[key] = _find(cascade, frozenset(batch))
    return _KEPT[key]


def _find(cascade: Cascade, batch: frozenset[str]) -> Facts:
    roots = _roots(cascade)

    def operand(access: Access) -> Operand:
        found = {
            cascade.rank_of(v) for index in access.indices for v in variables(index.expression)
        }
        tensor = roots.get(access.tensor, access.tensor)
        part = find_part(cascade, access, _is_carried(cascade, tensor))
        return Operand(
            access.tensor,
            tensor,
            frozenset(found) | batch,
            (*(Subscript((rank,), rank) for rank in sorted(batch)), *part),
        )

    einsums: dict[str, EinsumFacts] = {}
    ranks: dict[str, frozenset[str]] = {}
    for name, einsum in _mapped(cascade).items():
        one = EinsumFacts(
            name,
            frozenset(cascade.rank_of(v) for v in einsum.variables) | batch,
            tuple(map(operand, dict.fromkeys(einsum.operands))),
            tuple(map(operand, einsum.outputs)),
            _operations(cascade, einsum, batch),
            tuple(render_condition((cull,)) for cull in filters(einsum)),
        )
        einsums[name] = one
        for used in (*one.outputs, *one.operands):
            ranks[used.tensor] = ranks.get(used.tensor, frozenset()) | used.ranks
    return Facts(
        cascade,
        einsums,
        roots,
        ranks,
        frozenset(tensor for tensor in ranks if _is_carried(cascade, tensor)),
        frozenset(tensor for tensor in ranks if _is_aligned(cascade, roots, tensor)),
        frozenset(i.rank for i in cascade.iterations),
        _edges(cascade),
    )


def _roots(cascade: Cascade) -> dict[str, str]:
    """What each view is a view of; a tensor that starts from another one is not that other one."""
    roots: dict[str, str] = {}
    for einsum in cascade.einsums:
        if is_view(einsum) and not _is_carried(cascade, einsum.name):
            source = einsum.operands[0].tensor
            roots[einsum.name] = roots.get(source, source)
    return roots


def _mapped(cascade: Cascade) -> dict[str, Einsum]:
    """The Einsums that need a place: neither views nor constants that initialise."""
    found: dict[str, Einsum] = {}
    for einsum in cascade.einsums:
        if not is_view(einsum) and not is_constant(einsum.expression):
            if einsum.name in found:
                raise MappingError(
                    f"{cascade.name}: {einsum.name} is computed by two Einsums; a mapping cannot "
                    "tell them apart: give the initial value a name of its own"
                )
            found[einsum.name] = einsum
    return found


def _is_carried(cascade: Cascade, tensor: str) -> bool:
    iterative = {i.variable for i in cascade.iterations}
    return any(
        output.tensor == tensor
        and set(variables(index.expression)) & iterative
        and not isinstance(index.expression, Coordinate)
        for einsum in cascade.producers(tensor)
        for output in einsum.outputs
        for index in output.indices
    )


def _is_aligned(cascade: Cascade, roots: Mapping[str, str], tensor: str) -> bool:
    every = [
        access
        for einsum in _mapped(cascade).values()
        for access in (*einsum.outputs, *einsum.operands)
        if roots.get(access.tensor, access.tensor) == tensor
    ]
    plain = all(isinstance(i.expression, Coordinate) for access in every for i in access.indices)
    if not plain or len({access.tensor for access in every}) > 1:
        return False
    named = {
        tuple(cascade.rank_of(v) for i in access.indices for v in variables(i.expression))
        for access in every
    }
    return len(named) == 1


def _operations(cascade: Cascade, einsum: Einsum, batch: frozenset[str]) -> tuple[Operation, ...]:
    def ranks(kept: set[str]) -> frozenset[str]:
        return frozenset(cascade.rank_of(v) for v in kept) | batch

    kept = set(einsum.variables)
    per_point = dict(operations_per_point(einsum.expression))
    folds: list[Operation] = []
    implicit = [r for r in einsum.reductions if r not in einsum.actions]
    for place, action in enumerate((*implicit, *einsum.actions)):
        if isinstance(action, Populate):
            folds.append(Operation(coordinate_operator(action.operator).operation, 1, ranks(kept)))
            kept -= {action.source}
            continue
        if place == 0 and is_product_sum(einsum):
            per_point["multiply"] -= 1
            folds.append(Operation(MULTIPLY_ACCUMULATE, 1, ranks(kept)))
        else:
            folds.append(Operation(monoid(action.operator).operation, 1, ranks(kept)))
        kept -= set(action.variables)
    whole = ranks(set(einsum.variables))
    mapped = [Operation(name, times, whole) for name, times in per_point.items() if times]
    return (*mapped, *folds)


def _edges(cascade: Cascade) -> tuple[Edge, ...]:
    iterative = {iteration.variable for iteration in cascade.iterations}
    body = cascade.loop or cascade.einsums
    found: list[Edge] = []
    for producer in body:
        for output in producer.outputs:
            written = _generation(output, iterative)
            for consumer in body:
                for operand in consumer.operands:
                    if operand.tensor == output.tensor:
                        later = written - _generation(operand, iterative)
                        if later > 0 or producer.name != consumer.name:
                            found.append(Edge(producer.name, consumer.name, output.tensor, later))
    return tuple(dict.fromkeys(found))


def _generation(access: Access, iterative: set[str]) -> int:
    for index in access.indices:
        match index.expression:
            case Binary(operator="+", left=Coordinate(variable=v), right=Number(value=value)):
                if v in iterative:
                    return int(value)
            case _:
                pass
    return 0
