"""Rewrites of a straight-line cascade along one rank: normalise, defer, cancel, tile.

Each takes and returns a `Cascade`; a rewrite that does not apply returns None or raises
`NotDerivableError` with the reason. Deferral (rule D) moves a reference out of a fold by the
distributive law; FuseMax (arXiv 2406.10491, section IV-D) does it by hand for the division of the
softmax, RedFuser (arXiv 2603.10026) states the same condition for compilers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import reduce

import sympy as sp

from .algebra import Formula, SymbolTable, Term, additive, separate, simplified
from .cascade import Cascade, Rank, Split
from .dataflow import (
    Dataflow,
    Kind,
    is_filtered,
    operator_of,
    reduced_variables,
    uses,
)
from .equation import Einsum, Reduce
from .errors import EinfuseError
from .expression import (
    Access,
    Binary,
    Call,
    Coordinate,
    Expression,
    Index,
    Number,
    RankSize,
    accesses,
    variables,
    walk,
)
from .substitution import (
    inlined,
    plain_access,
    plain_variables,
    put,
    put_in_condition,
    rebuild,
    replace_accesses,
    with_expression,
)
from .validate import validated


class NotDerivableError(EinfuseError):
    """A rewrite does not apply; the text says why, in terms of the cascade."""


def fresh(base: str, taken: Iterable[str]) -> str:
    """Return the base, or the base with the first number that makes it new.

    >>> fresh("RM", {"RM", "RM2"})
    'RM3'
    """
    names = set(taken)
    if base not in names:
        return base
    number = 2
    while f"{base}{number}" in names:
        number += 1
    return f"{base}{number}"


def names_of(cascade: Cascade) -> set[str]:
    """Return every name that a new tensor must not take."""
    tensors = {output.tensor for einsum in cascade.einsums for output in einsum.outputs}
    return tensors | set(cascade.inputs) | set(cascade.rank_names)


def straight(cascade: Cascade, einsums: Iterable[Einsum]) -> Cascade:
    """Return the cascade with other Einsums, what no output needs left out."""
    return validated(prune(replace(cascade, init=tuple(einsums))))


def prune(cascade: Cascade) -> Cascade:
    """Return the cascade without the Einsums that no output needs.

    >>> from einfuse.einsum.parser import parse
    >>> text = "rank M\\ninput A[M]\\noutput Y\\nY[] = A[m]\\nZ[] = A[m]"
    >>> [e.name for e in prune(parse(text)).einsums]
    ['Y']
    """
    needed = set(cascade.outputs)
    grown = True
    while grown:
        before = len(needed)
        for einsum in cascade.einsums:
            if any(output.tensor in needed for output in einsum.outputs):
                needed |= {operand.tensor for operand in einsum.operands}
        grown = len(needed) > before

    def keep(section: tuple[Einsum, ...]) -> tuple[Einsum, ...]:
        return tuple(e for e in section if any(o.tensor in needed for o in e.outputs))

    return replace(
        cascade, init=keep(cascade.init), loop=keep(cascade.loop), final=keep(cascade.final)
    )


def normalise(cascade: Cascade, variable: str) -> Cascade:
    """Return an equal cascade whose folds over the rank each are one operator, ready to move.

    A chain of reductions becomes one Einsum each; a fold over more variables than its
    references allow is taken apart (rule S); a division by the rank's own size leaves the fold,
    so that a mean is a sum and a count, and functions of references alone are computed once for
    the rank (rule H).
    """
    cascade = straight(cascade, [part for e in cascade.init for part in _unchained(e, cascade)])
    cascade = straight(cascade, _swapped(Dataflow(cascade, variable)))
    cascade = straight(cascade, _hoisted(Dataflow(cascade, variable)))
    return straight(cascade, _hoisted_calls(Dataflow(cascade, variable)))


def defer(flow: Dataflow, reference: str) -> Cascade | None:
    """Return the cascade with a reference moved out of every fold that it leaves (rule D).

    None where it leaves no fold.
    """
    taken = names_of(flow.cascade)
    einsums: list[Einsum] = []
    changed = False
    for einsum in flow.einsums:
        deferred = None
        if flow.kinds[einsum.name] is Kind.FOLD:
            deferred = _deferred(flow, einsum, reference, taken)
        changed |= deferred is not None
        einsums += deferred or [einsum]
        taken |= {e.name for e in deferred or ()}
    return straight(flow.cascade, shared(einsums, taken)) if changed else None


def shared(einsums: list[Einsum], taken: set[str]) -> list[Einsum]:
    """Return the Einsums with each function call that two of them make given its own tensor."""
    counts: dict[Call, int] = {}
    for einsum in einsums:
        calls = {node for node in walk(einsum.expression) if isinstance(node, Call)}
        for call in calls:
            counts[call] = counts.get(call, 0) + 1
    repeated = [
        call
        for call, count in counts.items()
        if count > 1 and not is_filtered(call) and any(True for _ in accesses(call))
    ]
    for call in sorted(repeated, key=lambda c: sum(1 for _ in walk(c)), reverse=True):
        users = [e for e in einsums if any(node == call for node in walk(e.expression))]
        if len(users) < 2:
            continue
        whole = next((e for e in users if e.expression == call and not e.actions), None)
        if whole is not None and plain_variables(whole.output) == variables(call):
            access, position = whole.output, einsums.index(whole)
        else:
            first = einsums.index(users[0])
            access = plain_access(
                fresh(f"{users[0].name}E", taken | {e.name for e in einsums}), variables(call)
            )
            einsums.insert(first, Einsum((access,), call))
            position = first
        einsums = [
            e if n == position else with_expression(e, _with_call(e.expression, call, access))
            for n, e in enumerate(einsums)
        ]
    return einsums


def _with_call(expression: Expression, call: Call, access: Access) -> Expression:
    return rebuild(expression, lambda node: access if node == call else None)


def cancel(flow: Dataflow) -> Cascade | None:
    """Return the cascade with outputs simplified to need fewer folds; None if none does.

    ``exp(-GM)`` in numerator and denominator, say, after both have left their folds.
    """
    einsums, changed = [], False
    for einsum in flow.einsums:
        better = None
        if flow.kinds[einsum.name] is Kind.FREE and einsum.name in flow.cascade.outputs:
            better = _cancelled(flow, einsum)
        changed |= better is not None
        einsums.append(better or einsum)
    return straight(flow.cascade, einsums) if changed else None


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
    """
    return _Tiling(Dataflow(cascade, variable), outer, inner, inner_size).cascade()


def _unchained(einsum: Einsum, cascade: Cascade) -> list[Einsum]:
    reductions = einsum.reductions
    if (
        len(reductions) < 2
        or len(einsum.outputs) > 1
        or len(reductions)
        != len([a for a in einsum.actions if isinstance(a, Reduce)])
        + (0 if reductions == einsum.actions else 1)
    ):
        return [einsum]
    parts, expression, kept = [], einsum.expression, list(einsum.variables)
    taken = names_of(cascade)
    for reduction in reductions[:-1]:
        kept = [v for v in kept if v not in reduction.variables]
        access = plain_access(fresh(f"{einsum.name}0", taken), tuple(kept))
        taken.add(access.tensor)
        parts.append(Einsum((access,), expression, (reduction,), einsum.merge))
        expression = access
    return [*parts, Einsum(einsum.outputs, expression, (reductions[-1],))]


def _swapped(flow: Dataflow) -> list[Einsum]:
    einsums = []
    taken = names_of(flow.cascade)
    for einsum in flow.einsums:
        if flow.kinds[einsum.name] is not Kind.FOLD or len(einsum.reductions) != 1:
            einsums.append(einsum)
            continue
        reduced = reduced_variables(einsum)
        held = [
            v
            for v in reduced
            if v != flow.variable
            and any(uses(reference, [v]) for reference in flow.references(flow.cone(einsum)))
        ]
        if not held:
            einsums.append(einsum)
            continue
        kept = (*(plain_variables(einsum.output) or ()), *held)
        inside = plain_access(fresh(f"{einsum.name}0", taken), kept)
        taken.add(inside.tensor)
        rest = tuple(v for v in reduced if v not in held)
        operator = operator_of(einsum)
        einsums.append(
            Einsum((inside,), einsum.expression, (Reduce(operator, rest),), einsum.merge)
        )
        einsums.append(Einsum(einsum.outputs, inside, (Reduce(operator, tuple(held)),)))
    return einsums


def _hoisted(flow: Dataflow) -> list[Einsum]:
    einsums = []
    taken = names_of(flow.cascade)
    rank = flow.cascade.rank_of(flow.variable)
    sizes = {rank} | {s.whole for s in flow.cascade.splits if s.outer == rank}
    for einsum in flow.einsums:
        match einsum.expression:
            case Binary("/", numerator, RankSize(rank=size)) if (
                flow.kinds[einsum.name] is Kind.FOLD
                and size in sizes
                and [r.operator for r in einsum.reductions] == ["+"]
            ):
                total = plain_access(
                    fresh(f"{einsum.name}0", taken), plain_variables(einsum.output) or ()
                )
                taken.add(total.tensor)
                einsums.append(replace(einsum, outputs=(total,), expression=numerator, span=None))
                einsums.append(Einsum(einsum.outputs, Binary("/", total, RankSize(size))))
            case _:
                einsums.append(einsum)
    return einsums


def _hoisted_calls(flow: Dataflow) -> list[Einsum]:
    einsums: list[Einsum] = []
    taken = names_of(flow.cascade)
    made: dict[Expression, Access] = {}
    for einsum in flow.einsums:
        if flow.kinds[einsum.name] in (Kind.FREE, Kind.OPAQUE):
            einsums.append(einsum)
            continue
        along = {flow.variable, *reduced_variables(einsum)}

        def hoist(node: Expression, along: set[str] = along) -> Expression | None:
            calls = any(isinstance(part, Call) for part in walk(node))
            if not calls or uses(node, along) or is_filtered(node):
                return None
            references = flow.references(node)
            if not references or not isinstance(node, Call | Binary):
                return None
            if node not in made:
                name = fresh(f"{references[0].tensor}H", taken)
                taken.add(name)
                made[node] = plain_access(name, variables(node))
                einsums.append(Einsum((made[node],), node))
            return made[node]

        hoisted = rebuild(einsum.expression, hoist)
        einsums.append(einsum if hoisted == einsum.expression else with_expression(einsum, hoisted))
    return einsums


def _deferred(
    flow: Dataflow, einsum: Einsum, reference: str, taken: set[str]
) -> list[Einsum] | None:
    if len(einsum.reductions) != 1:
        return None
    cone = flow.cone(einsum, reference)
    if not any(access.tensor == reference for access in accesses(cone)):
        return None
    if any(flow.reads(name, reference) for name in flow.blocking_maps(cone)):
        return None
    table = SymbolTable(positive=lambda part: is_positive(part, flow))
    reduced = reduced_variables(einsum)

    def whole(part: Expression) -> bool:
        return not any(access.tensor == reference for access in accesses(part))

    formula = table.formula(cone, whole)
    elements = frozenset(s for s in formula.free_symbols if uses(table.part(s), reduced))
    if any(isinstance(p, Access) and p.tensor == reference for p in map(table.part, elements)):
        return None
    operator = operator_of(einsum)
    if operator == "+":
        return _distributed(einsum, separate(formula, elements), table, taken)
    if operator in ("max", "min"):
        return _shifted(einsum, formula, elements, table, taken)
    return None


def _distributed(
    einsum: Einsum, terms: tuple[Term, ...] | None, table: SymbolTable, taken: set[str]
) -> list[Einsum] | None:
    """The sum of products: a fold for each element, weighted by what left it."""
    if terms is None:
        return None
    parts: list[Einsum] = []
    total: Formula = sp.Integer(0)
    for term in terms:
        if term.element == 1:
            if is_filtered(einsum.expression):
                return None
            total += term.reference * _sizes(reduced_variables(einsum), table)
            continue
        name = fresh(f"{einsum.name}0", taken | {part.name for part in parts})
        part, missing = _fold_of(einsum, name, table.expression(sp.powsimp(term.element)))
        parts.append(part)
        weight = term.reference * _sizes(missing, table)
        total += table.symbol(part.output, first=True) * weight
    return [*parts, Einsum(einsum.outputs, table.expression(total))]


def _shifted(
    einsum: Einsum,
    formula: Formula,
    elements: frozenset[Formula],
    table: SymbolTable,
    taken: set[str],
) -> list[Einsum] | None:
    """The maximum of a sum, or of a product with a positive factor."""
    name = fresh(f"{einsum.name}0", taken)
    split = additive(formula, elements)
    if split is not None:
        part, missing = _fold_of(einsum, name, table.expression(split[0]))
        total = table.symbol(part.output, first=True) + split[1]
    else:
        terms = separate(formula, elements)
        if terms is None or len(terms) != 1 or not terms[0].reference.is_positive:
            return None
        part, missing = _fold_of(einsum, name, table.expression(terms[0].element))
        total = table.symbol(part.output, first=True) * terms[0].reference
    return None if missing else [part, Einsum(einsum.outputs, table.expression(total))]


def _fold_of(einsum: Einsum, name: str, expression: Expression) -> tuple[Einsum, tuple[str, ...]]:
    """Return the fold of another expression, and the variables that it no longer has."""
    found = set(variables(expression))
    missing = tuple(v for v in reduced_variables(einsum) if v not in found)
    kept = tuple(v for v in plain_variables(einsum.output) or () if v in found)
    actions = tuple(
        Reduce(a.operator, tuple(v for v in a.variables if v not in missing))
        for a in einsum.actions
        if isinstance(a, Reduce) and not set(a.variables) <= set(missing)
    )
    merge = einsum.merge if expression == einsum.expression else None
    return Einsum((plain_access(name, kept),), expression, actions, merge), missing


def _sizes(names: Iterable[str], table: SymbolTable) -> Formula:
    sizes = (table.symbol(RankSize(name.upper())) for name in names)
    return reduce(lambda left, right: left * right, sizes, sp.Integer(1))


def _cancelled(flow: Dataflow, einsum: Einsum) -> Einsum | None:
    def change(access: Access) -> Expression | None:
        producer = flow.producer.get(access.tensor)
        if producer is None or flow.kinds[access.tensor] is not Kind.FREE:
            return None
        definition = inlined(producer, access)
        return None if definition is None else replace_accesses(definition, change)

    if einsum.reductions:
        return None
    whole = replace_accesses(einsum.expression, change)
    table = SymbolTable(positive=lambda part: is_positive(part, flow))
    formula = table.formula(whole, lambda part: not flow.references(part))
    expression = table.expression(simplified(formula))
    if not set(flow.references(expression)) < set(flow.references(whole)):
        return None
    if set(variables(expression)) != set(einsum.output_variables):
        return None
    return Einsum(einsum.outputs, expression)


def is_positive(part: Expression, flow: Dataflow) -> bool:
    """Tell whether a part is known to be positive from its definition.

    Exponentials are, and absolute values where they are not 0; so are their sums, maxima,
    products and quotients.
    """
    match part:
        case RankSize():
            return True
        case Number(value=value):
            return value > 0
        case Call(function="exp" | "exp2" | "sigmoid" | "softplus"):
            return True
        case Call(function="abs" | "sq"):
            return True
        case Call(function="sqrt" | "rsqrt" | "max" | "min" | "relu", arguments=arguments):
            return all(is_positive(argument, flow) for argument in arguments)
        case Binary(operator="*" | "/" | "+", left=left, right=right):
            return left == right or (is_positive(left, flow) and is_positive(right, flow))
        case Access(tensor=tensor):
            producer = flow.producer.get(tensor)
            return producer is not None and is_positive(producer.expression, flow)
    return False


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
        ranks += [Rank(self.outer), Rank(self.inner, self.inner_size)]
        splits = (*cascade.splits, Split(rank, self.outer, self.inner))
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
            produced = access.tensor in self.flow.producer
            if produced and not self._stays(access.tensor):
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


def _views_placed(body: list[Einsum], views: list[Einsum]) -> list[Einsum]:
    """Put views of inputs first, and a view of a whole tensor behind its definition."""
    made = {e.name for e in body}
    first = [v for v in views if v.operands[0].tensor not in made]
    placed = list(first)
    for einsum in body:
        placed.append(einsum)
        placed += [v for v in views if v.operands[0].tensor == einsum.name]
    return placed


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
