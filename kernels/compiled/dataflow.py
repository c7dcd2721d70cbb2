"""The dataflow of one turn of a loop: what a cascade's Einsums compute on one tile.

A node is one operation on a tile; the ranks of the tile that it runs over are its ``ranks``.
Ranks of size one in the tile (a batch, the outer part of a split) take no part.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from einfuse.einsum import (
    Access,
    Binary,
    Call,
    Cascade,
    Coordinate,
    Einsum,
    Expression,
    Negate,
    Number,
    RankSize,
    variables,
)
from einfuse.kernels.errors import KernelError

Ranks: TypeAlias = frozenset[str]


_COMBINE = {"+": "add", "*": "multiply"}


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """An operation: ``load`` (of what the turn does not compute), ``constant``, ``matrix``
    (a product of two tiles, ``folded`` the rank they share), ``fold`` (a reduction of ``folded``),
    ``add``, ``multiply``, ``divide``, or a function of the language. ``operator`` names the
    monoid of a fold. Two nodes are equal if they are the same object.
    """

    operation: str
    operands: tuple[Node, ...] = ()
    ranks: Ranks = frozenset()
    folded: Ranks = frozenset()
    operator: str = ""
    tensor: str = ""


@dataclass(frozen=True, slots=True)
class Dataflow:
    """The nodes that leave a turn of the loop, by tensor; ``size`` is that of each rank."""

    results: tuple[Node, ...]
    size: Mapping[str, int]

    def nodes(self) -> tuple[Node, ...]:
        """Return every node that a result depends on, operands first."""
        order: dict[int, Node] = {}

        def visit(node: Node) -> None:
            if id(node) not in order:
                for operand in node.operands:
                    visit(operand)
                order[id(node)] = node

        for result in self.results:
            visit(result)
        return tuple(order.values())


def trace(
    cascade: Cascade,
    tile: Mapping[str, int],
    over: str = "M",
    names: Iterable[str] = (),
    late_folds: bool = False,
) -> Dataflow:
    """Return the dataflow of the named Einsums on one tile (rank -> size) of a loop over a rank.

    Without names it is the cascade's ``loop:``, or all of a cascade that has none. Of a split
    rank the tile may name the whole, which is then the inner part, the outer having one
    coordinate. Ranks that the tile does not name have one coordinate. A reduction of the rank
    that the loop is ``over`` goes on from turn to turn: tile by tile or, with ``late_folds``,
    element by element, so that a tile is folded once, behind the loop. What no later Einsum of
    the turn reads is a result, and so is what the next turn or a final Einsum reads.
    """
    wanted = tuple(names)
    einsums = cascade.loop or cascade.einsums
    if wanted:
        einsums = tuple(e for e in cascade.einsums if e.name in wanted)
        unknown = sorted(set(wanted) - {e.name for e in einsums})
        if unknown:
            raise KernelError(f"cascade {cascade.name}: no Einsum is called {', '.join(unknown)}")
        if cascade.loop:  # an initialiser is not part of a turn
            einsums = tuple(e for e in einsums if e in cascade.loop or e not in cascade.init)
    outer = {split.outer for split in cascade.splits if split.whole == over}
    tracer = _Tracer(cascade, _sizes(cascade, tile), outer or {over}, late_folds)
    for einsum in einsums:
        tracer.add(einsum)
    return Dataflow(tracer.results(), tracer.size)


def _sizes(cascade: Cascade, tile: Mapping[str, int]) -> dict[str, int]:
    """Return the size of every rank that has more than one coordinate in a tile."""
    sizes = {**tile, **{s.inner: tile[s.whole] for s in cascade.splits if s.whole in tile}}
    for rank in cascade.ranks:  # rank J = I
        if isinstance(rank.size, str) and rank.size in sizes:
            sizes.setdefault(rank.name, sizes[rank.size])
    return {rank: size for rank, size in sizes.items() if size > 1}


@dataclass(slots=True)
class _Tracer:
    cascade: Cascade
    size: dict[str, int]
    over: set[str]
    late_folds: bool
    written: list[tuple[Access, Node]] = field(default_factory=list)

    def add(self, einsum: Einsum) -> None:
        if isinstance(einsum.expression, Access) and not einsum.reductions:
            node = self._access(einsum.expression)  # a view, or a copy
        else:
            node = self._reduced(einsum)
        self.written.append((einsum.output, node))

    def results(self) -> tuple[Node, ...]:
        read = {id(operand) for _, node in self.written for operand in _below(node)}
        return tuple(
            node
            for access, node in self.written
            if node.operation != "load" and (id(node) not in read or self._outlives(access))
        )

    def _outlives(self, access: Access) -> bool:
        """Whether the next turn, or an Einsum behind the loop, reads the tensor."""
        tensor = access.tensor
        ranks = {i.rank for i in self.cascade.iterations}
        is_state = bool(ranks & set(self.cascade.tensor(tensor).ranks)) and any(
            e.name == tensor for e in self.cascade.init
        )
        read_later = any(
            operand.tensor == tensor for e in self.cascade.final for operand in e.operands
        )
        return is_state or read_later or tensor in self.cascade.outputs

    def _reduced(self, einsum: Einsum) -> Node:
        folds = [(r.operator, r.variables, self._ranks(r.variables)) for r in einsum.reductions]
        node = None
        if len(folds) == 1 and folds[0][0] == "+":
            node = self._contraction(einsum.expression, folds[0][2])
        is_product = node is not None
        node = node or self._node(einsum.expression)
        for operator, names, ranks in folds:
            folded = ranks & node.ranks
            goes_on = self.over & {self.cascade.rank_of(name) for name in names}
            if folded and not is_product and not (goes_on and self.late_folds):
                node = Node("fold", (node,), node.ranks - folded, folded, operator)
            if goes_on and node.operation != "matrix":  # a product accumulates by itself
                running = Node("load", ranks=node.ranks)
                node = _apply(_COMBINE.get(operator, operator), (node, running))
        return node

    def _contraction(self, expression: Expression, folded: Ranks) -> Node | None:
        """Return a matrix product with whatever else is multiplied, None if it is none."""
        factors = [self._node(factor) for factor in _factors(expression)]
        tiles = [f for f in factors if folded <= f.ranks and len(f.ranks) > 1]
        if len(folded) != 1 or len(tiles) != 2:
            return None
        left, right = tiles
        kept = (left.ranks ^ right.ranks) - folded
        if len(kept) != 2 or (left.ranks & right.ranks) != folded:
            return None
        for factor in (f for f in factors if f not in tiles and folded & f.ranks):
            left = Node("multiply", (left, factor), left.ranks | factor.ranks)
        node = Node("matrix", (left, right), kept, folded)
        for factor in (f for f in factors if f not in tiles and not folded & f.ranks):
            node = Node("multiply", (node, factor), node.ranks | factor.ranks)
        return node

    def _node(self, expression: Expression) -> Node:
        match expression:
            case Access():
                return self._access(expression)
            case Number() | RankSize():
                return Node("constant")
            case Coordinate():
                return Node("load", ranks=self._ranks(variables(expression)))
            case Negate(operand=operand):
                return self._node(operand)  # a sign is part of the instruction that reads it
            case Binary(operator="*" | "/"):
                return self._product(expression)
            case Binary(left=left, right=right):
                return _apply("add", (self._node(left), self._node(right)))
            case Call(function=function, arguments=arguments):
                return _apply(function, tuple(self._node(a) for a in arguments))

    def _product(self, expression: Expression) -> Node:
        """Return a product; factors over fewer ranks meet before they meet a tile."""
        over, under = _fraction(expression)
        above = [self._node(factor) for factor in over]
        below = [self._node(factor) for factor in under]
        whole = max(len(node.ranks) for node in (*above, *below))
        few = [node for node in above if len(node.ranks) < whole and node.ranks]
        many = [node for node in above if node not in few]
        if below and few:  # then the quotient is taken over fewer ranks, too
            few, below = [_quotient(few, below)], []
        return _quotient([*many, *few], below) if many else _quotient(few, below)

    def _access(self, access: Access) -> Node:
        for output, node in reversed(self.written):
            if output.tensor == access.tensor and self._same_generation(output, access):
                return node
        return Node("load", ranks=self._ranks(variables(access)), tensor=access.tensor)

    def _same_generation(self, output: Access, access: Access) -> bool:
        generational = {i.variable for i in self.cascade.iterations}
        return all(
            written.expression == read.expression
            for written, read in zip(output.indices, access.indices, strict=True)
            if generational & set(variables(written))
        )

    def _ranks(self, names: Iterable[str]) -> Ranks:
        return frozenset(self.cascade.rank_of(name) for name in names) & self.size.keys()


def _apply(operation: str, operands: tuple[Node, ...]) -> Node:
    if all(operand.operation == "constant" for operand in operands):
        return Node("constant")
    return Node(operation, operands, frozenset().union(*(o.ranks for o in operands)))


def _quotient(above: Sequence[Node], below: Sequence[Node]) -> Node:
    node = functools.reduce(lambda left, right: _apply("multiply", (left, right)), above)
    return functools.reduce(lambda left, right: _apply("divide", (left, right)), below, node)


def _fraction(
    expression: Expression,
) -> tuple[tuple[Expression, ...], tuple[Expression, ...]]:
    """Return the factors above and below the line of a chain of ``*`` and ``/``."""
    match expression:
        case Binary(operator="*", left=left, right=right):
            (above, below), (more, under) = _fraction(left), _fraction(right)
            return above + more, below + under
        case Binary(operator="/", left=left, right=right):
            (above, below), (under, more) = _fraction(left), _fraction(right)
            return above + more, below + under
        case _:
            return (expression,), ()


def _factors(expression: Expression) -> tuple[Expression, ...]:
    if isinstance(expression, Binary) and expression.operator == "*":
        return (*_factors(expression.left), *_factors(expression.right))
    return (expression,)


def _below(node: Node) -> Iterable[Node]:
    for operand in node.operands:
        yield operand
        yield from _below(operand)
