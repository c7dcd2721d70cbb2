"""Rule T: folds over a rank in tiles, inputs read through views of two ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from einfuse.einsum.language.cascade import Cascade, Rank, Split
from einfuse.einsum.language.equation import Einsum, Reduce
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Coordinate,
    Expression,
    Index,
    RankSize,
    accesses,
    walk,
)
from einfuse.einsum.language.substitution import (
    plain_access,
    plain_variables,
    put,
    put_in_condition,
    replace_accesses,
)

from .dataflow import Dataflow, Kind
from .normal_form import fresh, names_of, straight


def tile(
    cascade: Cascade, variable: str, outer: str, inner: str, inner_size: int | None
) -> Cascade:
    """Return the cascade with the folds over a rank, and what they need, in tiles (rule T).

    Args:
        cascade: of one section.
        variable: the variable of the rank that is split.
        outer: name of the new outer rank.
        inner: name of the new inner rank.
        inner_size: its size, a divisor of the rank's, or None where that is left open.

    Tensors that stay whole (outputs along the rank) keep their Einsums; a tile of them is a view
    where they need no fold, and is computed again where they do.

    >>> from einfuse.einsum.library.cascades import load
    >>> from einfuse.einsum.language.printer import render_einsum
    >>> tiled = tile(load("attention/3-pass"), "m", "M1", "M0", 256)
    >>> print(*map(render_einsum, tiled.init[:4]), sep="\\n")
    BK[e,m1,m0] = K[e,m1*M0+m0]
    BV[f,m1,m0] = V[f,m1*M0+m0]
    QK[m1,m0,p] = Q[e,p] * BK[e,m1,m0]
    GM[p] = QK[m1,m0,p] :: max(m1,m0)
    """
    return _Tiling(Dataflow(cascade, variable), outer, inner, inner_size).cascade()


def tile_size(size: int, largest: int = 256) -> int:
    """Return the largest divisor of a size up to a bound that leaves two tiles or more.

    >>> [tile_size(size) for size in (4096, 12, 7, 1)]
    [256, 6, 1, 1]
    """
    bound = min(largest, max(1, size // 2))
    return max(divisor for divisor in range(1, bound + 1) if size % divisor == 0)


def size_of(cascade: Cascade, rank: str) -> int | None:
    """Return the size that a cascade's text gives a rank; None where it is left open."""
    sizes: Mapping[str, int | str | None] = {r.name: r.size for r in cascade.ranks}
    seen: set[str] = set()
    while isinstance(size := sizes.get(rank), str) and size not in seen:
        seen.add(size)
        rank = size
    return size if isinstance(size, int) else None


class _Tiling:
    """The state of one `tile`: which tensors stay whole, and the views of them."""

    def __init__(self, flow: Dataflow, outer: str, inner: str, inner_size: int | None) -> None:
        self.flow = flow
        self.outer, self.inner = outer, inner
        self.inner_size = inner_size
        self.variables = (outer.lower(), inner.lower())
        self.taken = names_of(flow.cascade) | {outer, inner}
        self.whole = self._whole()
        self.views: dict[str, Einsum] = {}
        self.copies: dict[str, str] = {}
        self.tiled: list[Einsum] = []

    def cascade(self) -> Cascade:
        cascade, rank = self.flow.cascade, self.flow.cascade.rank_of(self.flow.variable)
        body: list[Einsum] = []
        for einsum in self.flow.einsums:
            kind = self.flow.kinds[einsum.name]
            if kind is Kind.FOLD or (kind is Kind.MAP and not self._stays(einsum.name)):
                body.append(self._in_tiles(einsum))
            elif kind is Kind.MAP and self.flow.dependent(einsum.name):
                name = fresh(f"B{einsum.name}", self.taken)
                self.taken.add(name)
                self.copies[einsum.name] = name
                body += [einsum, self._in_tiles(einsum, name)]
            else:
                body.append(einsum)
        einsums = _views_placed(body, list(self.views.values()))
        size = next((r.size for r in cascade.ranks if r.name == rank), None)
        ranks = [r for r in cascade.ranks if r.name != rank or self._mentions_whole(einsums)]
        if not any(r.name == rank for r in ranks) and size is not None:
            ranks.append(Rank(rank, size))
        sizes: dict[str, int | str | None] = {self.outer: None, self.inner: self.inner_size}
        sizes |= {r.name: r.size for r in ranks if r.size is not None and r.name in sizes}
        ranks = [r for r in ranks if r.name not in sizes]
        ranks += [Rank(name, known) for name, known in sizes.items()]
        splits = tuple(dict.fromkeys((*cascade.splits, Split(rank, self.outer, self.inner))))
        return straight(replace(cascade, ranks=tuple(ranks), splits=splits), einsums)

    def _mentions_whole(self, einsums: list[Einsum]) -> bool:
        variable = self.flow.variable
        rank = self.flow.cascade.rank_of(variable)
        return any(
            variable in e.variables
            or any(isinstance(node, RankSize) and node.rank == rank for node in walk(e.expression))
            for e in einsums
        )

    def _stays(self, tensor: str) -> bool:
        return tensor in self.whole

    def _whole(self) -> set[str]:
        """Outputs along the rank, what is read at another place of the rank, and what they need."""
        flow, variable = self.flow, self.flow.variable
        whole: set[str] = set()
        for einsum in flow.einsums:
            if flow.kinds[einsum.name] is Kind.MAP and einsum.name in flow.cascade.outputs:
                whole.add(einsum.name)
            opaque = flow.kinds[einsum.name] is Kind.OPAQUE
            whole |= {name for name in _inside(einsum) if flow.kinds.get(name) is Kind.MAP}
            for operand in einsum.operands:
                definition = flow.producer.get(operand.tensor)
                if definition is None or flow.kinds[operand.tensor] is not Kind.MAP:
                    continue
                place = (plain_variables(definition.output) or ()).index(variable)
                if opaque or operand.indices[place].expression != Coordinate(variable):
                    whole.add(operand.tensor)
        for einsum in reversed(flow.einsums):
            if einsum.name in whole:
                whole |= {
                    operand.tensor
                    for operand in einsum.operands
                    if flow.kinds.get(operand.tensor) is Kind.MAP
                }
        return whole

    def _in_tiles(self, einsum: Einsum, name: str | None = None) -> Einsum:
        position = self._position()
        output = self._access_in_tiles(einsum.output, name)
        expression = put(self._with_views(einsum.expression), {self.flow.variable: position})
        actions = tuple(
            Reduce(a.operator, self._spread(a.variables)) if isinstance(a, Reduce) else a
            for a in einsum.actions
        )
        return Einsum((output,), expression, actions, einsum.merge)

    def _position(self) -> Expression:
        outer, inner = self.variables
        return Binary("+", Binary("*", Coordinate(outer), RankSize(self.inner)), Coordinate(inner))

    def _spread(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(
            part
            for name in names
            for part in (self.variables if name == self.flow.variable else (name,))
        )

    def _access_in_tiles(self, access: Access, name: str | None = None) -> Access:
        """Return the access with the rank's index, if it is bare, as two."""
        indices: list[Index] = []
        for index in access.indices:
            if index.expression == Coordinate(self.flow.variable):
                outer, inner = (Coordinate(v) for v in self.variables)
                condition = put_in_condition(
                    index.condition, {self.flow.variable: self._position()}
                )
                indices += [Index(outer), Index(inner, condition)]
            else:
                indices.append(index)
        return Access(name or access.tensor, tuple(indices))

    def _with_views(self, expression: Expression) -> Expression:
        variable = Coordinate(self.flow.variable)

        def change(access: Access) -> Expression | None:
            if not any(index.expression == variable for index in access.indices):
                return None
            along = self.flow.kinds.get(access.tensor) is Kind.MAP
            if along and not self._stays(access.tensor):
                return self._access_in_tiles(access)
            if access.tensor in self.copies:
                return self._access_in_tiles(access, self.copies[access.tensor])
            view = self._view(access)
            return None if view is None else self._access_in_tiles(access, view)

        return replace_accesses(expression, change)

    def _view(self, access: Access) -> str | None:
        """Return the name of the tensor's view in tiles; None where its ranks do not allow one."""
        tensor = self.flow.cascade.tensor(access.tensor)
        names = tuple(rank.lower() for rank in tensor.ranks)
        places = [
            n
            for n, i in enumerate(access.indices)
            if i.expression == Coordinate(self.flow.variable)
        ]
        if len(set(names)) < len(names) or [names[n] for n in places] != [self.flow.variable]:
            return None
        if tensor.name not in self.views:
            name = fresh(f"B{tensor.name}", self.taken)
            self.taken.add(name)
            source = plain_access(tensor.name, names)
            self.views[tensor.name] = Einsum(
                (self._access_in_tiles(plain_access(name, names)),),
                put(source, {self.flow.variable: self._position()}),
            )
        return self.views[tensor.name].name


def _inside(einsum: Einsum) -> set[str]:
    """Return the tensors that an Einsum reads inside indices and filters."""
    indices = [index for access in (*einsum.operands, *einsum.outputs) for index in access.indices]
    return {access.tensor for index in indices for access in accesses(index)}


def _views_placed(body: list[Einsum], views: list[Einsum]) -> list[Einsum]:
    """Put views of inputs first, and a view of a whole tensor behind its definition."""
    made = {e.name for e in body}
    first = [v for v in views if v.operands[0].tensor not in made]
    placed = list(first)
    for einsum in body:
        placed.append(einsum)
        placed += [v for v in views if v.operands[0].tensor == einsum.name]
    return placed
