"""Rewrites that let a fold run at references that are not final: running, or of one tile.

`stream` (rules L, V, P, I) makes the rank iterative: every fold keeps a running value, and each
generation moves it from the old references to the new ones by corrections that depend on the
references alone. `localise` folds each tile at the tile's own references and corrects once, when
the tiles are merged. Both rest on the orbits of `algebra`: one function means a factor (the online
softmax of Milakov and Gimelshein, arXiv 1805.02867), several a vector state (the variance of
Welford, and of Chan, Golub and LeVeque).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import cast

import sympy as sp

from .algebra import Formula, Function, Orbit, SymbolTable, extreme_orbit, orbit, without
from .cascade import Cascade, Iteration
from .dataflow import (
    Dataflow,
    Kind,
    is_filtered,
    is_view,
    operator_of,
    reduced_variables,
    uses,
)
from .equation import Einsum, Reduce
from .expression import (
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
from .functions import monoid
from .printer import render_einsum
from .rewrite import NotDerivableError, fresh, is_positive, names_of, prune
from .substitution import inlined, plain_access, plain_variables, put, rebuild, replace_accesses
from .validate import validated


@dataclass(frozen=True, slots=True)
class Move:
    """How one fold follows its references.

    ``table`` has the symbols of ``orbit``; ``old`` and ``new`` are the symbols of each reference.
    ``counted`` are the functions of the orbit that no element enters: their folds are counts.
    """

    fold: Einsum
    references: tuple[Access, ...]
    table: SymbolTable
    orbit: Orbit
    moved: tuple[tuple[Formula, Formula], ...]
    counted: frozenset[int]
    operator: str

    def __str__(self) -> str:
        names: dict[Formula, Formula] = {}
        for (old, new), reference in zip(self.moved, self.references, strict=True):
            names[old] = sp.Symbol(reference.tensor)
            names[new] = sp.Symbol(f"{reference.tensor}'")
        functions = self.orbit.functions
        factor = self.orbit.factor.subs(names)
        listed = ", ".join(dict.fromkeys(r.tensor for r in self.references))
        if self.orbit.shift != 0:
            return (
                f"{self.fold.name} moves to a new {listed} by adding {self.orbit.shift.subs(names)}"
            )
        if len(functions) == 1:
            return f"{self.fold.name} moves to a new {listed} by the factor {factor}"
        return (
            f"{self.fold.name} moves to a new {listed} with a state of {len(functions)} functions"
            + (f" and the factor {factor}" if factor != 1 else "")
        )


def move_of(flow: Dataflow, fold: Einsum) -> Move:
    """Return how a fold follows its references.

    Raises:
        NotDerivableError: there is no correction that leaves the elements out; the text says why.
    """
    if len(fold.reductions) != 1:
        raise NotDerivableError(f"{fold.name} folds with several operators at once")
    return _move(flow, fold, reduced_variables(fold), operator_of(fold))


def _move(flow: Dataflow, einsum: Einsum, reduced: tuple[str, ...], operator: str) -> Move:
    cone = flow.cone(einsum)
    blocking = flow.blocking_maps(cone)
    if blocking:
        raise NotDerivableError(
            f"{einsum.name} reads {', '.join(blocking)}, which reduces, selects or is filtered "
            f"after a complete fold over {flow.variable}"
        )
    references = flow.references(cone)
    held = [a for a in references if uses(a, reduced)]
    if held:
        raise NotDerivableError(
            f"{einsum.name} folds over {', '.join(variables(held[0]))}, along which its "
            f"reference {held[0].tensor} varies"
        )
    table = SymbolTable(positive=lambda part: is_positive(part, flow))
    formula = table.formula(cone, lambda part: not flow.references(part))
    elements = frozenset(s for s in formula.free_symbols if uses(table.part(s), reduced))
    moved = {
        table.symbol(a): sp.Symbol(f"{table.symbol(a)}_", **table.symbol(a).assumptions0)
        for a in references
    }
    found = _orbit_of(formula, elements, moved, operator)
    if found is None:
        raise NotDerivableError(_no_correction(einsum, references))
    found = without(found, _vanishing(flow, einsum, table, found, tuple(moved)))
    counted = frozenset(
        n for n, f in enumerate(found.functions) if n and not f.formula.free_symbols & elements
    )
    if counted and (operator != "+" or _culls(flow, einsum)):
        raise NotDerivableError(
            f"{einsum.name} needs the number of points that it folds, and a filter culls some"
        )
    return Move(einsum, references, table, found, tuple(moved.items()), counted, operator)


def _vanishing(
    flow: Dataflow, fold: Einsum, table: SymbolTable, found: Orbit, references: tuple[Formula, ...]
) -> frozenset[int]:
    """Return the functions of an orbit whose folds are 0 at their own references.

    The deviations from a mean sum to 0 where the mean is that of the same elements: if the
    function is a combination of what other folds fold, with the references' definitions put in.
    """
    if len(found.functions) < 2 or operator_of_or_none(fold) != "+":
        return frozenset()
    known = _known_folds(flow, fold, table)
    values = {g: _definition(flow, table, table.part(g)) for g in references}
    zero = set()
    for number, function in enumerate(found.functions[1:], start=1):
        polynomial = [
            g
            for g in references
            if sp.diff(function.formula, g, 2) == 0 and sp.diff(function.formula, g) != 0
        ]
        for g in polynomial:
            slope = sp.powsimp(sp.diff(function.formula, g))
            level = sp.powsimp(sp.expand(function.formula - slope * g))
            total = _total(level, known), _total(slope, known)
            if None not in total and sp.simplify(total[0] + total[1] * values[g]) == 0:
                zero.add(number)
    return frozenset(zero)


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A cascade after a rewrite, and how the folds that were freed of a barrier move."""

    cascade: Cascade
    moves: tuple[Move, ...]


def stream(flow: Dataflow) -> Rewritten:
    """Return the cascade with the rank iterative and its folds running (rules L, V, P, I).

    Folds without a correction, and what is as long as the rank, follow in the final section.

    Raises:
        NotDerivableError: no fold is freed of a barrier this way; the text says why.
    """
    return _Stream(flow).rewritten()


def localise(flow: Dataflow) -> Rewritten:
    """Return the cascade with references of each tile in the place of global ones.

    A fold that only needs such references is folded per tile and corrected when the tiles are
    merged (split-K); a map whose other readers need more is corrected element by element (the
    local maximum of the two-pass softmax).

    Raises:
        NotDerivableError: nothing can be localised; the text says why.
    """
    return _Localisation(flow).rewritten()


def _orbit_of(
    formula: Formula, elements: frozenset[Formula], moved: dict[Formula, Formula], operator: str
) -> Orbit | None:
    if not moved:
        return Orbit((Function(formula, ((0, sp.Integer(1)),)),), sp.Integer(1))
    if operator == "+":
        return orbit(formula, elements, moved)
    return extreme_orbit(formula, elements, moved) if operator in ("max", "min") else None


def _no_correction(fold: Einsum, references: tuple[Access, ...]) -> str:
    names = ", ".join(dict.fromkeys(a.tensor for a in references))
    return (
        f"{fold.name} has no correction: no factor or finite state that leaves the elements out "
        f"moves it to another value of {names} ({render_einsum(fold)})"
    )


def operator_of_or_none(einsum: Einsum) -> str | None:
    """Return the operator of a fold, None for an Einsum that folds nothing."""
    return operator_of(einsum) if einsum.reductions else None


def _known_folds(flow: Dataflow, fold: Einsum, table: SymbolTable) -> dict[Formula, Formula]:
    """Return what other sums over the same variables fold -> the sum's symbol, and 1 -> a count.

    The count is the symbol of the rank's size, which a running mean replaces by the count so far.
    """
    known: dict[Formula, Formula] = {}
    reduced = set(reduced_variables(fold))
    for other in flow.folds:
        if other.name == fold.name or set(reduced_variables(other)) != reduced:
            continue
        if operator_of_or_none(other) != "+" or _culls(flow, other):
            continue
        cone = flow.cone(other)
        formula = table.formula(cone, lambda part: not flow.references(part))
        known[sp.powsimp(formula)] = table.symbol(other.output)
    rank = flow.cascade.rank_of(flow.variable)
    split = next((s for s in flow.cascade.splits if s.outer == rank), None)
    whole = rank if split is None else split.whole
    inner = {split.inner.lower()} if split else set()
    if reduced == {flow.variable} | inner:
        known[sp.Integer(1)] = table.symbol(RankSize(whole))
    return known


def _definition(flow: Dataflow, table: SymbolTable, reference: Expression) -> Formula:
    """Return a reference's value in terms of the folds that it is made of."""
    if not isinstance(reference, Access) or flow.kinds[reference.tensor] is not Kind.FREE:
        return table.symbol(reference)
    definition = inlined(flow.producer[reference.tensor], reference)
    if definition is None:
        return table.symbol(reference)
    return table.formula(definition, lambda part: not flow.references(part))


def _total(formula: Formula, known: dict[Formula, Formula]) -> Formula | None:
    """Return the fold of a formula from known folds, up to a number."""
    number, rest = formula.as_coeff_Mul()
    return number * known[rest] if rest in known else None


def _culls(flow: Dataflow, fold: Einsum) -> bool:
    """Tell whether a filter culls points of the fold, here or in a map that it reads."""
    seen: set[str] = set()
    pending = [fold]
    while pending:
        einsum = pending.pop()
        if is_filtered(einsum.expression):
            return True
        for operand in einsum.operands:
            if operand.tensor in flow.producer and operand.tensor not in seen:
                seen.add(operand.tensor)
                if flow.kinds[operand.tensor] is Kind.MAP:
                    pending.append(flow.producer[operand.tensor])
    return False


class _Corrector:
    """Writes what moves folds from old references to new ones, each correction once.

    ``old`` and ``new`` give the two accesses of a reference; Einsums go to ``sink``.
    """

    def __init__(
        self,
        flow: Dataflow,
        old: Callable[[Access], Access],
        new: Callable[[Access], Access],
        sink: list[Einsum],
    ) -> None:
        self.flow = flow
        self.old, self.new = old, new
        self.sink = sink
        self.taken = names_of(flow.cascade)
        self.named: dict[Expression, Access] = {}
        self.renamed: dict[str, str] = {}

    def name(self, base: str) -> str:
        """Return a fresh name."""
        name = fresh(base, self.taken)
        self.taken.add(name)
        return name

    def rename(self, expression: Expression) -> Expression:
        """Return the expression with the names that maps have in tiles."""
        return replace_accesses(
            expression,
            lambda access: (
                Access(self.renamed[access.tensor], access.indices)
                if access.tensor in self.renamed
                else None
            ),
        )

    def formula(self, move: Move, formula: Formula, *, at_new: bool = False) -> Expression:
        """Return a formula of a move as an expression, its functions at old or new references."""
        table, values = move.table, {}
        for (old, moved), reference in zip(move.moved, move.references, strict=True):
            values[moved] = table.symbol(self.new(reference))
            values[old] = values[moved] if at_new else table.symbol(self.old(reference))
        return self.rename(table.expression(formula.subs(values, simultaneous=True)))

    def moved(
        self,
        move: Move,
        number: int,
        state: Callable[[int], Access],
        count: Expression,
        indices: tuple[str, ...],
    ) -> Expression:
        """Return function ``number`` of a move's orbit at the new references.

        Args:
            move: how the fold moves.
            number: which function of its orbit.
            state: the folds of the orbit's functions at the old references.
            count: how many points of the rank those folds have seen.
            indices: the variables of a state, in order.
        """
        total: Expression | None = None
        for place, coefficient in move.orbit.functions[number].coefficients:
            sign, term = 1, self._term(move, place, state, count, indices)
            if coefficient != 1:
                shift = self._shifted(move, coefficient, indices)
                sign = -1 if shift.could_extract_minus_sign() else 1
                if sign * shift != 1:
                    term = Binary("*", term, self.formula(move, sign * shift))
            if total is None:
                total = term if sign > 0 else Negate(term)
            else:
                total = Binary("+" if sign > 0 else "-", total, term)
        assert total is not None
        if move.orbit.shift != 0:
            shift = self.formula(move, move.orbit.shift)
            sources = tuple(a.tensor for a in move.references)
            return Binary("+", total, self._named(shift, indices, "D", sources))
        if move.orbit.factor == 1:
            return total
        return Binary("*", total, self._factor(move, indices))

    def _term(
        self,
        move: Move,
        place: int,
        state: Callable[[int], Access],
        count: Expression,
        indices: tuple[str, ...],
    ) -> Expression:
        if place not in move.counted:
            return state(place)
        function = move.orbit.functions[place].formula
        return count if function == 1 else Binary("*", count, self.formula(move, function))

    def _shifted(self, move: Move, coefficient: Formula, indices: tuple[str, ...]) -> Formula:
        """Return a coefficient with the differences of references as tensors of their own."""
        for (old, moved), reference in zip(move.moved, move.references, strict=True):
            if not {old, moved} <= coefficient.free_symbols:
                continue
            step = sp.Symbol("step", real=True)
            in_steps = sp.expand(coefficient.subs(moved, old + step))
            if old in in_steps.free_symbols:
                continue
            difference = Binary("-", self.new(reference), self.old(reference))
            named = self._named(difference, indices, "D", (reference.tensor,))
            coefficient = in_steps.subs(step, move.table.symbol(named))
        return coefficient

    def _factor(self, move: Move, indices: tuple[str, ...]) -> Access:
        """Return the correction as a tensor of its own, its transcendental part as another."""
        factor, sources = move.orbit.factor, tuple(a.tensor for a in move.references)
        parts = sp.Mul.make_args(factor)
        easy = [p for p in parts if p.is_rational_function()]
        hard = [p for p in parts if p not in easy]
        if hard and easy:
            exponential = self._named(self.formula(move, sp.Mul(*hard)), indices, "C", sources)
            factor = move.table.symbol(exponential) * sp.Mul(*easy)
        return self._named(self.formula(move, factor), indices, "C", sources)

    def _named(
        self,
        expression: Expression,
        indices: tuple[str, ...],
        base: str,
        sources: tuple[str, ...],
    ) -> Access:
        if expression not in self.named:
            if base == "D":
                guarded = self._finite(expression, sources)
            else:
                guarded = self._from_minima(expression, sources)
            guarded = self.guarded(guarded, sources, self.old)
            found = set(variables(guarded))
            access = plain_access(self.name(base), tuple(v for v in indices if v in found))
            self.sink.append(Einsum((access,), guarded))
            self.named[expression] = access
        return self.named[expression]

    def _finite(self, expression: Expression, sources: Iterable[str]) -> Expression:
        """Return a difference of references, 0 while the old one is an infinite identity."""
        for tensor in sources:
            producer = self.flow.producer[tensor]
            if self.flow.kinds[tensor] is not Kind.FOLD or is_magnitude(self.flow, tensor):
                continue
            if may_be_minus_infinity(self.flow, tensor):
                continue  # `guarded` sees to it
            identity = monoid(operator_of(producer)).identity
            if math.isinf(identity) and self.old(producer.output) != producer.output:
                compare = "gt" if identity < 0 else "lt"
                seen = Call(compare, (self.old(producer.output), Number(identity)))
                expression = Call("where", (seen, expression, Number(0)))
        return expression

    def _from_minima(self, expression: Expression, sources: Iterable[str]) -> Expression:
        """Return the expression with what subtracts an old minimum turned around.

        A minimum that has seen nothing is absent, and stands for infinity only on the left.
        """
        minima = [
            self.old(self.flow.producer[tensor].output)
            for tensor in sources
            if self.flow.kinds[tensor] is Kind.FOLD
            and operator_of(self.flow.producer[tensor]) == "min"
        ]

        def turn(node: Expression) -> Expression | None:
            match node:
                case Binary(operator="-", left=left, right=right) if right in minima:
                    return Negate(Binary("-", right, left))
            return None

        return rebuild(expression, turn) if minima else expression

    # Maxima that have seen nothing

    def guarded(
        self, expression: Expression, sources: Iterable[str], read: Callable[[Access], Access]
    ) -> Expression:
        """Return the expression, or 0 where a maximum that it rests on has seen nothing yet.

        Filters and infinite literals need none of it: what they leave out is absent, and so is
        what is made of it. Data may be -inf, and magnitudes all 0.
        """
        for tensor in sorted(set(sources) | {w for s in sources for w in self.flow.waits_for[s]}):
            floor = self._floor(tensor, expression)
            if floor is not None:
                seen = Call("gt", (read(self.flow.producer[tensor].output), floor))
                expression = Call("where", (seen, expression, Number(0)))
        return expression

    def _floor(self, tensor: str, expression: Expression) -> Number | None:
        """Return the value of a maximum that has seen nothing, if the expression fails at it."""
        if may_be_minus_infinity(self.flow, tensor):
            return Number(-math.inf)
        if not is_magnitude(self.flow, tensor):
            return None
        quotients = (n for n in walk(expression) if isinstance(n, Binary) and n.operator == "/")
        read = {access.tensor for q in quotients for access in accesses(q.right)}
        own = {tensor, *(a.tensor for a in self.reads_of(tensor))}
        return Number(0) if own & read else None

    def reads_of(self, tensor: str) -> tuple[Access, ...]:
        """Return the accesses that stand for a reference in what is written."""
        access = self.flow.producer[tensor].output
        return self.old(access), self.new(access)


def is_magnitude(flow: Dataflow, tensor: str) -> bool:
    """Tell whether a tensor is a maximum of what is never negative: 0 before anything is seen."""
    producer = flow.producer[tensor]
    return (
        flow.kinds[tensor] is Kind.FOLD
        and operator_of(producer) == "max"
        and is_positive(flow.cone(producer), flow)
    )


def may_be_minus_infinity(flow: Dataflow, tensor: str) -> bool:
    """Tell whether a tensor is a maximum whose data may all be -inf.

    What is added to an input may be, for masks are often added; a product of inputs is taken to
    be finite.
    """
    producer = flow.producer.get(tensor)
    if producer is None or flow.kinds[tensor] is not Kind.FOLD or operator_of(producer) != "max":
        return False
    return _holds_data(flow, producer.expression)


def _holds_data(flow: Dataflow, node: Expression) -> bool:
    match node:
        case Binary(operator="+" | "-", left=left, right=right):
            return _holds_data(flow, left) or _holds_data(flow, right)
        case Call(function="where", arguments=(_, *branches)):
            return any(_holds_data(flow, branch) for branch in branches)
        case Call(function="max" | "min", arguments=arguments):
            return any(_holds_data(flow, argument) for argument in arguments)
        case Call(function="log" | "log2"):
            return True
        case Access(tensor=tensor):
            producer = flow.producer.get(tensor)
            return producer is None or _holds_data(flow, producer.expression)
    return False


class _Localisation:
    """The state of one `localise`."""

    def __init__(self, flow: Dataflow) -> None:
        self.flow = flow
        self.variable = flow.variable
        self.body: list[Einsum] = []
        self.local: dict[str, Access] = {}
        self.corrector = _Corrector(flow, self._here, lambda access: access, self.body)
        self.maps: dict[str, tuple[Access, Move]] = {}
        self.merged: set[str] = set()

    def rewritten(self) -> Rewritten:
        reasons: list[str] = []
        moves: dict[str, Move] = {}
        for fold in self.flow.folds:
            try:
                moves[fold.name] = move_of(self.flow, fold)
            except NotDerivableError as error:
                reasons.append(str(error))
        wanted = {a.tensor for m in moves.values() for a in m.references}
        self._localisable(wanted)
        if not self.local:
            raise NotDerivableError("; ".join(reasons) or "no reference has a value of each tile")
        changed = [e.name for e in self.flow.einsums if self._emit(e, moves)]
        if not changed:
            raise NotDerivableError("; ".join(reasons) or "no fold can use references of a tile")
        cascade = validated(prune(replace(self.flow.cascade, init=tuple(self.body))))
        rescaled = [move for _, move in self.maps.values()]
        return Rewritten(cascade, (*(moves[n] for n in changed if n in self.merged), *rescaled))

    def _localisable(self, wanted: set[str]) -> None:
        """Choose the folds of independent elements, and maps of them, that get tile values."""
        flow = self.flow
        for einsum in flow.einsums:
            kind = flow.kinds[einsum.name]
            if not flow.is_reference(einsum.name):
                continue
            if kind is Kind.FOLD:
                if flow.waits_for[einsum.name] or len(einsum.reductions) != 1:
                    continue
                inner = tuple(v for v in reduced_variables(einsum) if v != self.variable)
                if not inner and isinstance(einsum.expression, Access):
                    self.local[einsum.name] = einsum.expression
                    continue
            elif not all(
                o.tensor in self.local for o in einsum.operands if flow.is_reference(o.tensor)
            ):
                continue
            indices = self._indices(einsum)
            name = self.corrector.name(f"L{einsum.name}")
            self.local[einsum.name] = plain_access(name, indices)

    def _indices(self, einsum: Einsum) -> tuple[str, ...]:
        kept = list(plain_variables(einsum.output) or ())
        kept.insert(min(place_of(einsum, self.variable, self.flow), len(kept)), self.variable)
        return tuple(kept)

    def _here(self, access: Access) -> Access:
        """Return the value of this tile for a reference."""
        local = self.local[access.tensor]
        own = plain_variables(self.flow.producer[access.tensor].output) or ()
        values = dict(zip(own, (index.expression for index in access.indices), strict=True))
        return cast(Access, put(local, values))

    def _emit(self, einsum: Einsum, moves: dict[str, Move]) -> bool:
        flow, kind, name = self.flow, self.flow.kinds[einsum.name], einsum.name
        if name in self.local:
            self._emit_local(einsum)
            return False
        move = moves.get(name)
        if move and move.references and all(a.tensor in self.local for a in move.references):
            self._emit_merged(move)
            self.merged.add(name)
            return True
        if kind is Kind.MAP and flow.dependent(name):
            self._emit_map(einsum)
        expression = replace_accesses(einsum.expression, self._rescaled)
        self.body.append(replace(einsum, expression=expression, span=None))
        return expression != einsum.expression

    def _emit_local(self, einsum: Einsum) -> None:
        local = self.local[einsum.name]
        if self.flow.kinds[einsum.name] is Kind.FREE:
            expression = replace_accesses(
                einsum.expression,
                lambda access: self._here(access) if access.tensor in self.local else None,
            )
            expression = rebuild(expression, self._size_of_tile)
            self.body += [einsum, Einsum((local,), expression, einsum.actions, einsum.merge)]
            return
        if local == einsum.expression:
            self.body.append(einsum)
            return
        operator = operator_of(einsum)
        self.body.append(
            Einsum((local,), einsum.expression, _without(einsum, self.variable), einsum.merge)
        )
        self.body.append(Einsum(einsum.outputs, local, (Reduce(operator, (self.variable,)),)))

    def _size_of_tile(self, node: Expression) -> Expression | None:
        if not isinstance(node, RankSize):
            return None
        outer = self.flow.cascade.rank_of(self.variable)
        if node.rank == outer:
            return Number(1)
        split = next((s for s in self.flow.cascade.splits if s.outer == outer), None)
        return RankSize(split.inner) if split and node.rank == split.whole else None

    def _emit_merged(self, move: Move) -> None:
        """Emit the folds of one tile at its own references, and their corrected merge."""
        fold = move.fold
        indices = self._indices(fold)
        states = {}
        for number, function in enumerate(move.orbit.functions):
            if number in move.counted:
                continue
            base = fold.name if number == 0 else f"{fold.name}{number}"
            if number == 0:
                expression = self._at_tile(fold.expression)
            else:
                expression = self.corrector.formula(move, function.formula)
            expression = self._guarded(fold, expression)
            states[number] = plain_access(self.corrector.name(f"L{base}"), indices)
            actions = _without(fold, self.variable)
            self.body.append(Einsum((states[number],), expression, actions))
        inner = next(
            (s.inner for s in self.flow.cascade.splits if s.outer == self.variable.upper()), None
        )
        count = Number(1) if inner is None else RankSize(inner)
        moved = self.corrector.moved(move, 0, states.__getitem__, count, indices)
        self.body.append(Einsum(fold.outputs, moved, (Reduce(move.operator, (self.variable,)),)))

    def _at_tile(self, expression: Expression) -> Expression:
        local = replace_accesses(
            expression,
            lambda access: self._here(access) if access.tensor in self.local else None,
        )
        return self.corrector.rename(local)

    def _emit_map(self, einsum: Einsum) -> None:
        """Emit a map at the references of its tile, for it to be rescaled where it is read."""
        references = self.flow.references(self.flow.cone(einsum))
        blocked = self.flow.blocking_maps(self.flow.cone(einsum))
        if blocked or einsum.reductions or not all(a.tensor in self.local for a in references):
            return
        own = plain_variables(einsum.output)
        if own is None:
            return
        local = Access(self.corrector.name(f"L{einsum.name}"), einsum.output.indices)
        expression = self._guarded(einsum, self._at_tile(einsum.expression))
        self.body.append(Einsum((local,), expression, (), einsum.merge))
        self.corrector.renamed[einsum.name] = local.tensor
        varying = {v for a in references for v in variables(a)}
        try:
            move = _move(self.flow, einsum, tuple(v for v in own if v not in varying), "+")
        except NotDerivableError:
            return
        if len(move.orbit.functions) == 1:
            self.maps[einsum.name] = local, move

    def _guarded(self, einsum: Einsum, expression: Expression) -> Expression:
        sources = [o.tensor for o in einsum.operands if self.flow.is_reference(o.tensor)]
        return self.corrector.guarded(expression, sources, self._here)

    def _rescaled(self, access: Access) -> Expression | None:
        if access.tensor not in self.maps:
            return None
        local, move = self.maps[access.tensor]
        own = plain_variables(local) or ()
        whole = self.corrector.moved(move, 0, lambda _: local, Number(1), own)
        values = dict(zip(own, (index.expression for index in access.indices), strict=True))
        return put(whole, values)


class _Stream:
    """The state of one `stream`."""

    def __init__(self, flow: Dataflow) -> None:
        self.flow = flow
        self.variable = flow.variable
        self.rank = flow.cascade.rank_of(flow.variable)
        self.moves: dict[str, Move] = {}
        self.reasons: dict[str, str] = {}
        self.running: dict[str, str] = {}
        self.places: dict[str, int] = {}
        self.init: list[Einsum] = []
        self.loop: list[Einsum] = []
        self.final: list[Einsum] = []
        self.corrector = _Corrector(flow, self._before, self._after, self.loop)

    def rewritten(self) -> Rewritten:
        streamed = self._streamable()
        freed = [m for m in self.moves.values() if m.references]
        if not freed:
            reasons = list(dict.fromkeys(self.reasons.values()))
            raise NotDerivableError("; ".join(reasons) or "no fold reads a reference")
        needed = {a.tensor for move in self.moves.values() for a in move.references}
        for einsum in reversed(self.flow.einsums):
            if einsum.name in needed and self.flow.kinds[einsum.name] is Kind.FREE:
                needed |= {o.tensor for o in einsum.operands if self.flow.is_reference(o.tensor)}
        for einsum in self.flow.einsums:
            self._emit(einsum, streamed, needed)
        self._read_outputs()
        cascade = replace(
            self.flow.cascade,
            iterations=(*self.flow.cascade.iterations, Iteration(self.variable, self.rank)),
            init=tuple(self.init),
            loop=tuple(self.loop),
            final=tuple(self.final),
        )
        return Rewritten(validated(prune(cascade)), tuple(freed))

    # Which tensors run

    def _streamable(self) -> set[str]:
        """Return the names of the dependent tensors that have a running value."""
        flow, found = self.flow, set[str]()
        for einsum in flow.einsums:
            kind = flow.kinds[einsum.name]
            waits = [o.tensor for o in einsum.operands if flow.dependent(o.tensor)]
            ready = all(name in found for name in waits)
            if kind is Kind.FOLD:
                try:
                    move = move_of(flow, einsum)
                except NotDerivableError as error:
                    self.reasons[einsum.name] = str(error)
                    continue
                if ready and self._is_finite(move):
                    self.moves[einsum.name] = move
                    found.add(einsum.name)
            elif flow.dependent(einsum.name) and ready and self._stays_in_tiles(einsum):
                found.add(einsum.name)
        return found

    def _stays_in_tiles(self, einsum: Einsum) -> bool:
        kind = self.flow.kinds[einsum.name]
        if kind is Kind.MAP:
            return True
        return kind is Kind.FREE and not self._is_whole(einsum)

    def _is_whole(self, einsum: Einsum) -> bool:
        """Tell whether an Einsum runs over the rank that the loop's rank is a tile of."""
        wholes = {s.whole.lower() for s in self.flow.cascade.splits if s.outer == self.rank}
        return uses(einsum.expression, wholes)

    def _is_finite(self, move: Move) -> bool:
        """Tell whether the corrections are finite at the initial references; says why not."""
        start = {
            old: self._start_formula(reference)
            for (old, _), reference in zip(move.moved, move.references, strict=True)
        }
        values = [move.orbit.factor, _without_differences(move.orbit.shift, move)]
        for function in move.orbit.functions:
            values += [_without_differences(c, move) for _, c in function.coefficients]
        for value in values:
            at_start = value.subs(start, simultaneous=True)
            if at_start.has(sp.oo, -sp.oo, sp.zoo, sp.nan):
                self.reasons[move.fold.name] = (
                    f"the correction of {move.fold.name} is infinite before the first tile"
                )
                return False
        return True

    # Initial values

    def _start_formula(self, reference: Access) -> Formula:
        value = self._start(reference.tensor)
        match value:
            case Number(value=number):
                return (
                    sp.sympify(number) if abs(number) != float("inf") else sp.oo * sp.sign(number)
                )
        return sp.Symbol("start", real=True)

    def _start(self, tensor: str) -> Expression:
        """Return the value of a running tensor before the first tile.

        A fold starts at its identity (0 for a maximum of what is never negative); a map of folds
        at its value there, or where that is no number at 0, or at 1 if it is a divisor.
        """
        producer = self.flow.producer[tensor]
        if self.flow.kinds[tensor] is Kind.FOLD:
            if is_magnitude(self.flow, tensor):
                return Number(0)
            return Number(_number(monoid(operator_of(producer)).identity))
        return self._start_of_map(producer)

    def _start_of_map(self, einsum: Einsum) -> Expression:
        def change(access: Access) -> Expression | None:
            return self._start(access.tensor) if self.flow.is_reference(access.tensor) else None

        start = rebuild(replace_accesses(einsum.expression, change), _without_identities)
        table = SymbolTable()
        formula = table.formula(start, lambda part: False)
        infinite = {
            symbol: sp.oo * sp.sign(part.value)
            for symbol in formula.free_symbols
            if isinstance(part := table.part(symbol), Number)
        }
        value = formula.subs(infinite)
        counts = any(
            isinstance(node, RankSize) and node.rank in self._sizes()
            for node in walk(einsum.expression)
        )
        if counts or value.has(sp.oo, -sp.oo, sp.zoo, sp.nan):
            return Number(1 if is_positive(einsum.expression, self.flow) else 0)
        return table.expression(value)

    # Emission

    def _emit(self, einsum: Einsum, streamed: set[str], needed: set[str]) -> None:
        flow, kind, name = self.flow, self.flow.kinds[einsum.name], einsum.name
        if name in self.moves:
            self._emit_fold(self.moves[name])
        elif name in streamed and kind is Kind.FREE and name in needed:
            self._emit_running_map(einsum)
        elif name in streamed and kind is Kind.MAP:
            self._emit_map_of_tile(einsum)
        if flow.dependent(name):
            if name not in self.running:
                self.final.append(self._at_end(einsum))
        elif kind is Kind.MAP and not (is_view(einsum) and self._reads_inputs(einsum)):
            self.loop.append(einsum)
        else:
            self.init.append(einsum)

    def _reads_inputs(self, einsum: Einsum) -> bool:
        """Tell whether nothing that an Einsum reads is made in the loop."""
        made = {e.name for e in self.loop}
        return not any(operand.tensor in made for operand in einsum.operands)

    def _emit_fold(self, move: Move) -> None:
        fold, name = move.fold, move.fold.name
        self.places[name] = place_of(fold, self.variable, self.flow)
        output = plain_variables(fold.output) or ()
        indices = self._with_generation(output, self.places[name])
        states: dict[int, str] = {}
        for number in range(len(move.orbit.functions)):
            if number not in move.counted:
                base = name if number == 0 else f"{name}{number}"
                states[number] = self.corrector.name(f"R{base}")
        self.running[name] = states[0]

        def state(number: int, generation: Expression) -> Access:
            return self._generation(plain_access(states[number], output), name, generation)

        here, after = Coordinate(self.variable), self._next()
        for number in states:
            start = self._start(name) if number == 0 else Number(0)
            self.init.append(Einsum((state(number, Number(0)),), start))
        values = {number: self._tile_value(move, number, indices) for number in states}
        for number in states:
            old = state(number, here)
            moved = self.corrector.moved(
                move, number, lambda n: state(n, here), self._count(fold), indices
            )
            if moved != old:
                base = name if number == 0 else f"{name}{number}"
                corrected = plain_access(self.corrector.name(f"P{base}"), indices)
                self.loop.append(Einsum((corrected,), moved))
                pair = (values[number], corrected)
            else:
                pair = (old, values[number])
            joined = self._joined(move.operator, *pair)
            self.loop.append(Einsum((state(number, after),), joined))

    @staticmethod
    def _joined(operator: str, left: Access, right: Access) -> Expression:
        if operator in ("+", "*"):
            return Binary(operator, left, right)
        return Call(operator, (left, right))

    def _tile_value(self, move: Move, number: int, indices: tuple[str, ...]) -> Access:
        """Emit the fold of one tile at the new references; return its value."""
        fold = move.fold
        if number == 0:
            expression = self._new(fold.expression)
        else:
            expression = self.corrector.formula(
                move, move.orbit.functions[number].formula, at_new=True
            )
        expression = self._guarded(fold, expression)
        inner = [v for v in reduced_variables(fold) if v != self.variable]
        if not inner and isinstance(expression, Access):
            return expression
        base = fold.name if number == 0 else f"{fold.name}{number}"
        access = plain_access(self.corrector.name(f"L{base}"), indices)
        merge = fold.merge if number == 0 else None
        self.loop.append(Einsum((access,), expression, _without(fold, self.variable), merge))
        return access

    def _emit_map_of_tile(self, einsum: Einsum) -> None:
        name = self.corrector.name(f"L{einsum.name}")
        expression = self._guarded(einsum, self._new(einsum.expression))
        output = Access(name, einsum.output.indices)
        self.loop.append(Einsum((output,), expression, einsum.actions, einsum.merge))
        self.corrector.renamed[einsum.name] = name

    def _guarded(self, einsum: Einsum, expression: Expression) -> Expression:
        sources = [o.tensor for o in einsum.operands if self.flow.is_reference(o.tensor)]
        return self.corrector.guarded(expression, sources, self._after)

    def _emit_running_map(self, einsum: Einsum) -> None:
        name = einsum.name
        places = [self.places[a.tensor] for a in einsum.operands if a.tensor in self.places]
        self.places[name] = min(max(places, default=0), len(einsum.output.indices))
        self.running[name] = self.corrector.name(f"R{name}")
        start = self._generation(Access(self.running[name], einsum.output.indices), name, Number(0))
        self.init.append(Einsum((start,), self._start(name)))
        expression = self._counted(self._new(einsum.expression))
        self.loop.append(
            Einsum((self._after(einsum.output),), expression, einsum.actions, einsum.merge)
        )

    def _at_end(self, einsum: Einsum) -> Einsum:
        return replace(einsum, expression=self._end(einsum.expression), span=None)

    def _read_outputs(self) -> None:
        for name in self.flow.cascade.outputs:
            if name in self.running:
                access = self.flow.producer[name].output
                self.final.append(Einsum((access,), self._last(access)))

    # Expressions at a generation

    def _new(self, expression: Expression) -> Expression:
        """Return an expression that reads running values of the next generation."""
        running = replace_accesses(
            expression,
            lambda access: self._after(access) if access.tensor in self.running else None,
        )
        return self.corrector.rename(running)

    def _end(self, expression: Expression) -> Expression:
        """Return an expression that reads running values of the last generation."""
        return replace_accesses(
            expression,
            lambda access: self._last(access) if access.tensor in self.running else None,
        )

    def _before(self, access: Access) -> Access:
        running = Access(self.running[access.tensor], access.indices)
        return self._generation(running, access.tensor, Coordinate(self.variable))

    def _after(self, access: Access) -> Access:
        running = Access(self.running[access.tensor], access.indices)
        return self._generation(running, access.tensor, self._next())

    def _last(self, access: Access) -> Access:
        running = Access(self.running[access.tensor], access.indices)
        return self._generation(running, access.tensor, RankSize(self.rank))

    def _generation(self, access: Access, tensor: str, generation: Expression) -> Access:
        indices = list(access.indices)
        indices.insert(self.places[tensor], Index(generation))
        return Access(access.tensor, tuple(indices))

    def _with_generation(self, output: tuple[str, ...], place: int) -> tuple[str, ...]:
        return (*output[:place], self.variable, *output[place:])

    def _next(self) -> Expression:
        return Binary("+", Coordinate(self.variable), Number(1))

    # Counts

    def _count(self, fold: Einsum) -> Expression:
        """Return how many points a fold has seen before this tile."""
        inner, here = self._inner(), Coordinate(self.variable)
        count: Expression = here if inner is None else Binary("*", here, RankSize(inner))
        own = {self.variable} | ({inner.lower()} if inner else set())
        for name in reduced_variables(fold):
            if name not in own:
                count = Binary("*", count, RankSize(name.upper()))
        return count

    def _counted(self, expression: Expression) -> Expression:
        """Return a running expression with the rank's size as the count so far."""
        inner, after = self._inner(), self._next()

        def change(node: Expression) -> Expression | None:
            if not isinstance(node, RankSize):
                return None
            if node.rank == self.rank:
                return after
            if inner is not None and node.rank in self._wholes():
                return Binary("*", after, RankSize(inner))
            return None

        return rebuild(expression, change)

    def _inner(self) -> str | None:
        return next((s.inner for s in self.flow.cascade.splits if s.outer == self.rank), None)

    def _wholes(self) -> set[str]:
        return {s.whole for s in self.flow.cascade.splits if s.outer == self.rank}

    def _sizes(self) -> set[str]:
        return {self.rank, *self._wholes()}


def _without_differences(coefficient: Formula, move: Move) -> Formula:
    """Return a coefficient with 0 for the differences of references, which are kept finite."""
    for old, new in move.moved:
        step = sp.Symbol("step", real=True)
        in_steps = sp.expand(coefficient.subs(new, old + step))
        if old not in in_steps.free_symbols:
            coefficient = in_steps.subs(step, 0)
    return coefficient


def _without_identities(node: Expression) -> Expression | None:
    """Return the other argument of a maximum or minimum of two, if one is its identity."""
    match node:
        case Call(function="max" | "min" as name, arguments=(left, right)):
            identity = Number(monoid(name).identity)
            if left == identity:
                return right
            if right == identity:
                return left
    return None


def _without(fold: Einsum, variable: str) -> tuple[Reduce, ...]:
    """Return a fold's written actions without one variable."""
    kept = (
        Reduce(a.operator, tuple(v for v in a.variables if v != variable))
        for a in fold.actions
        if isinstance(a, Reduce)
    )
    return tuple(action for action in kept if action.variables)


def place_of(fold: Einsum, variable: str, flow: Dataflow) -> int:
    """Return where a variable belongs among a fold's indices: behind those before it in operands.

    ``RNV[f,m1,p]`` from ``SN[m1,m0,p] * BV[f,m1,m0]``.
    """
    output = plain_variables(fold.output) or ()
    before: set[str] = set()
    for access in accesses(flow.cone(fold)):
        names = [v for index in access.indices for v in variables(index)]
        if variable in names:
            before |= set(names[: names.index(variable)])
    places = [n + 1 for n, v in enumerate(output) if v in before]
    return max(places, default=0)


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value
