"""Rules L, V, P, I: an iterative rank, along which folds run at the references so far."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import sympy as sp

from einfuse.einsum.analysis.operations import is_view
from einfuse.einsum.language.cascade import Iteration
from einfuse.einsum.language.equation import Einsum, Reduce
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Comparison,
    Coordinate,
    Expression,
    Index,
    Number,
    RankSize,
    walk,
)
from einfuse.einsum.language.functions import function, monoid
from einfuse.einsum.language.printer import render_expression
from einfuse.einsum.language.rules import validated
from einfuse.einsum.language.substitution import (
    plain_access,
    plain_variables,
    rebuild,
    replace_accesses,
)

from .correction import Corrector, place_of, without_variable
from .dataflow import Dataflow, Kind, operator_of, reduced_variables, uses
from .movement import Move, Rewritten, move_of
from .needs import needs_of
from .normal_form import NotDerivableError, prune
from .symbols import Formula, SymbolTable
from .value_facts import is_magnitude, is_never_zero


def stream(flow: Dataflow) -> Rewritten:
    """Return the cascade with the rank iterative and its folds running (rules L, V, P, I).

    Folds without a correction, and what is as long as the rank, follow in the final section.

    Raises:
        NotDerivableError: no fold is freed of a barrier this way; the text says why.

    >>> from einfuse.einsum.library.cascades import load
    >>> from einfuse.einsum.derivation.tiling import tile
    >>> tiled = tile(load("attention/3-pass-deferred"), "m", "M1", "M0", None)
    >>> streamed = stream(Dataflow(tiled, "m1"))
    >>> print(*map(str, streamed.moves), sep="\\n")
    SD moves to a new GM by the factor exp(GM - GM')
    SNV moves to a new GM by the factor exp(GM - GM')
    >>> [len(s) for s in (streamed.cascade.init, streamed.cascade.loop, streamed.cascade.final)]
    [5, 11, 1]
    """
    return _Stream(flow).rewritten()


class _Stream:
    """The state of one `stream`."""

    def __init__(self, flow: Dataflow) -> None:
        self.flow = flow
        self.variable = flow.variable
        self.rank = flow.cascade.rank_of(flow.variable)
        self.moves: dict[str, Move] = {}
        self.reasons: dict[str, str] = {}
        self.factors: dict[str, list[tuple[Formula, Formula]]] = {}
        self.running: dict[str, str] = {}
        self.held: set[str] = set()
        self.places: dict[str, int] = {}
        self.init: list[Einsum] = []
        self.loop: list[Einsum] = []
        self.final: list[Einsum] = []
        self.corrector = Corrector(flow, self._before, self._after, self.loop, from_start=True)

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
        return Rewritten(validated(prune(cascade)), tuple(freed), frozenset(self.held))

    # Which tensors run

    def _streamable(self) -> set[str]:
        """Return the names of the dependent tensors that have a running value."""
        flow, found = self.flow, set[str]()
        moves = self._moves()
        for einsum in flow.einsums:
            kind = flow.kinds[einsum.name]
            waits = [o.tensor for o in einsum.operands if flow.dependent(o.tensor)]
            ready = all(name in found for name in waits)
            if kind is Kind.FOLD:
                move = moves.get(einsum.name)
                if move is not None and ready and self._is_finite(move):
                    self.moves[einsum.name] = move
                    found.add(einsum.name)
            elif flow.dependent(einsum.name) and ready and self._stays_in_tiles(einsum):
                found.add(einsum.name)
        return found

    def _moves(self) -> dict[str, Move]:
        """Return how each fold moves, where it does, and note the references in their factors."""
        found = {}
        for fold in self.flow.folds:
            try:
                move = found[fold.name] = move_of(self.flow, fold)
            except NotDerivableError as error:
                self.reasons[fold.name] = str(error)
                continue
            symbols = move.orbit.factor.free_symbols
            for (old, _), reference in zip(move.moved, move.references, strict=True):
                if old in symbols:
                    self.factors.setdefault(reference.tensor, []).append((move.orbit.factor, old))
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
        for part in move.orbit.functions:
            values += [_without_differences(c, move) for _, c in part.coefficients]
        for value in values:
            at_start = value.subs(start, simultaneous=True)
            if _is_infinite(at_start):
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
        at its value there. Where that is no finite number any other will do, for what follows it
        is still 0: 0, or 1 if a factor divides by it; but -inf in a factor, for it may be that of
        an exponential.
        """
        producer = self.flow.producer[tensor]
        if self.flow.kinds[tensor] is Kind.FOLD:
            if is_magnitude(self.flow, tensor) and not self._may_be_absent(producer):
                return Number(0)
            return Number(_number(monoid(operator_of(producer)).identity))
        return self._start_of_map(producer)

    def _start_of_map(self, einsum: Einsum) -> Expression:
        def change(access: Access) -> Expression | None:
            return self._start(access.tensor) if self.flow.is_reference(access.tensor) else None

        start = _settled(replace_accesses(einsum.expression, change))
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
        if value == -sp.oo and einsum.name in self.factors:
            return Number(-math.inf)
        if counts or _is_infinite(value):
            value = sp.Integer(0)
        if any(_is_infinite(f.subs(old, value)) for f, old in self.factors.get(einsum.name, ())):
            return Number(1)
        return table.expression(value)

    def _may_be_absent(self, einsum: Einsum) -> bool:
        return bool(needs_of(self.flow).of(einsum.output))

    def _starts_absent(self, move: Move) -> bool:
        """Tell whether a sum must start absent: it may stay so, and no factor makes it so."""
        needs = needs_of(self.flow)
        own = needs.of(move.fold.output)
        factors = move.orbit.factor.free_symbols
        absent = any(
            needs.of(reference) == own
            for (old, _), reference in zip(move.moved, move.references, strict=True)
            if old in factors
        )
        return bool(own) and not absent

    # Emission

    def _emit(self, einsum: Einsum, streamed: set[str], needed: set[str]) -> None:
        flow, kind, name = self.flow, self.flow.kinds[einsum.name], einsum.name
        if name in self.moves:
            self._emit_fold(self.moves[name])
        elif name in streamed and kind is Kind.FREE and name in needed:
            self._emit_running_map(einsum)
        elif name in streamed and kind is Kind.MAP and self._runs(einsum):
            self._emit_map_of_tile(einsum)
        if flow.dependent(name):
            if name not in self.running:
                self.final.append(self._at_end(einsum))
        elif kind is Kind.MAP and not (is_view(einsum) and self._reads_inputs(einsum)):
            self.loop.append(einsum)
        else:
            self.init.append(einsum)

    def _runs(self, einsum: Einsum) -> bool:
        """Tell whether all that waits for a fold in an Einsum has a value in the loop."""
        waits = {o.tensor for o in einsum.operands if self.flow.dependent(o.tensor)}
        return waits <= self.running.keys() | self.corrector.renamed.keys()

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
            first = state(number, Number(0))
            if move.operator == "+" and self._starts_absent(move):
                first = _nowhere(first)
            self.init.append(Einsum((first,), start))
        values = {number: self._tile_value(move, number, indices) for number in states}
        for number in states:
            old = state(number, here)
            moved = self.corrector.moved(
                move, number, lambda n: state(n, here), self._count(fold), indices
            )
            if moved != old:
                base = name if number == 0 else f"{name}{number}"
                corrected = plain_access(self.corrector.name(f"P{base}"), indices)
                # a shift alone is no value: nothing is seen until an element is
                merge = "left" if move.orbit.shift != 0 else None
                self.loop.append(Einsum((corrected,), moved, merge=merge))
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
        self.loop.append(
            Einsum((access,), expression, without_variable(fold, self.variable), merge)
        )
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
        expression = self._held(einsum, expression)
        self.loop.append(
            Einsum((self._after(einsum.output),), expression, einsum.actions, einsum.merge)
        )

    def _held(self, einsum: Einsum, mean: Expression) -> Expression:
        """Return a weighted mean that stays where it was while its weights cancel (or are all 0).

        A vector state may be centred anywhere; far off it loses digits. The last tile moves to the
        mean whatever the weights are, as the origin does.
        """
        match einsum.expression:
            case Binary("/", _, Access(tensor=weight)) if (
                self._only_centres(einsum.name)
                and self.flow.kinds.get(weight) is Kind.FOLD
                and operator_of(self.flow.producer[weight]) == "+"
                and not is_never_zero(self.flow.producer[weight].output, self.flow)
                and not self.flow.waits_for[weight]
            ):
                pass
            case _:
                return mean
        assert isinstance(einsum.expression, Binary)
        total = einsum.expression.right
        assert isinstance(total, Access)
        size = self._running_size(weight)
        twice = Binary("*", Number(2), Call("abs", (self._after(total),)))
        firm = Call("gt", (twice, self._at(size, total)))
        end = Binary("-", RankSize(self.rank), Number(1))
        last = Call("ge", (Coordinate(self.variable), end))
        self.held.add(render_expression(total))
        return Call("where", (Call("max", (firm, last)), mean, self._before(einsum.output)))

    def _only_centres(self, name: str) -> bool:
        """Tell whether all corrections by a reference are of whole vector states centred on it."""
        found = [m for m in self.moves.values() if name in {a.tensor for a in m.references}]
        return bool(found) and all(
            move.orbit.factor == 1
            and name in {a.tensor for a in move.centres}
            and all(
                sp.degree(move.orbit.functions[0].formula, old) + 1 == len(move.orbit.functions)
                for (old, _), reference in zip(move.moved, move.references, strict=True)
                if reference.tensor == name
            )
            for move in found
        )

    def _running_size(self, weight: str) -> str:
        """Emit the sum of the absolute values that a sum adds; return the running tensor's name."""
        fold = self.flow.producer[weight]
        output = plain_variables(fold.output) or ()
        indices = self._with_generation(output, self.places[weight])
        tile = plain_access(self.corrector.name(f"L{weight}A"), indices)
        sizes = self.corrector.name(f"R{weight}A")
        absolute = Call("abs", (self._new(fold.expression),))
        actions = without_variable(fold, self.variable)
        self.loop.append(Einsum((tile,), absolute, actions or _sums(fold, self.variable)))
        start, before, after = (
            self._generation(plain_access(sizes, output), weight, generation)
            for generation in (Number(0), Coordinate(self.variable), self._next())
        )
        self.init.append(Einsum((start,), Number(0)))
        self.loop.append(Einsum((after,), Binary("+", before, tile)))
        return sizes

    def _at(self, tensor: str, like: Access) -> Access:
        """Return a tensor's next generation at the indices of another's access."""
        return self._generation(Access(tensor, like.indices), like.tensor, self._next())

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


def _sums(fold: Einsum, variable: str) -> tuple[Reduce, ...]:
    """Return the sum over what a fold reduces but for a variable."""
    inner = tuple(v for v in reduced_variables(fold) if v != variable)
    return (Reduce("+", inner),) if inner else ()


def _nowhere(access: Access) -> Access:
    """Return an access with a filter that holds at no point."""
    *others, last = access.indices
    filtered = Index(last.expression, (Comparison(last.expression, "<", Number(0)),))
    return Access(access.tensor, (*others, filtered))


def _without_differences(coefficient: Formula, move: Move) -> Formula:
    """Return a coefficient with 0 for the differences of references, which are kept finite."""
    for old, new in move.moved:
        step = sp.Symbol("step", real=True)
        in_steps = sp.expand(coefficient.subs(new, old + step))
        if old not in in_steps.free_symbols:
            coefficient = in_steps.subs(step, 0)
    return coefficient


def _is_infinite(value: Formula) -> bool:
    return bool(value.has(sp.oo, -sp.oo, sp.zoo, sp.nan))


def _settled(expression: Expression) -> Expression:
    """Return an expression with its calls on numbers evaluated, from the inside out."""
    while (simpler := rebuild(expression, _evaluated)) != expression:
        expression = simpler
    return expression


def _evaluated(node: Expression) -> Expression | None:
    """Return a call's value where its arguments are numbers, or one is the identity of it."""
    match node:
        case Call(function="max" | "min" as name, arguments=(left, right)) if Number(
            monoid(name).identity
        ) in (left, right):
            return right if left == Number(monoid(name).identity) else left
        case Call(function=name, arguments=arguments):
            numbers = [a.value for a in arguments if isinstance(a, Number)]
            if len(numbers) == len(arguments):
                with np.errstate(all="ignore"):
                    value = float(function(name).numpy(*map(float, numbers)))
                return None if math.isnan(value) else Number(value)
    return None


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value
