"""Corrections as Einsums: what moves folds from old references to new ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import sympy as sp

from einfuse.einsum.language.equation import Einsum, Reduce
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Expression,
    Negate,
    Number,
    accesses,
    variables,
    walk,
)
from einfuse.einsum.language.functions import monoid
from einfuse.einsum.language.substitution import (
    plain_access,
    plain_variables,
    rebuild,
    replace_accesses,
)

from .dataflow import Dataflow, Kind, operator_of
from .divisors import divisors, opened
from .movement import Move
from .normal_form import fresh, names_of
from .symbols import Formula
from .value_facts import is_magnitude, may_be_minus_infinity


class Corrector:
    """Writes what moves folds from old references to new ones, each correction once.

    ``old`` and ``new`` give the two accesses of a reference; Einsums go to ``sink``. With
    ``from_start`` the old one may still be a fold's identity.
    """

    def __init__(
        self,
        flow: Dataflow,
        old: Callable[[Access], Access],
        new: Callable[[Access], Access],
        sink: list[Einsum],
        *,
        from_start: bool,
    ) -> None:
        self.flow = flow
        self.old, self.new = old, new
        self.sink = sink
        self.from_start = from_start
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
        sources = tuple(a.tensor for a in move.references)
        factor = self._in_ratios(move, indices)
        parts = sp.Mul.make_args(factor)
        easy = [p for p in parts if p.is_rational_function()]
        hard = [p for p in parts if p not in easy]
        if hard and easy:
            exponential = self._named(self.formula(move, sp.Mul(*hard)), indices, "C", sources)
            factor = move.table.symbol(exponential) * sp.Mul(*easy)
        return self._named(self.formula(move, factor), indices, "C", sources)

    def _in_ratios(self, move: Move, indices: tuple[str, ...]) -> Formula:
        """Return the factor of a move with powers of ratios for ratios of powers.

        ``(old / new)^2`` is in range wherever the ratio is; ``old^2 / new^2`` is not.
        """
        powers = move.orbit.factor.as_powers_dict()
        renewed = dict(move.moved)
        sources = tuple(a.tensor for a in move.references)
        ratios = []
        for old, exponent in list(powers.items()):
            new = old.subs(renewed, simultaneous=True)
            if old == new or not exponent.is_Rational or abs(exponent) == 1:
                continue
            if powers.get(new) != -exponent:
                continue
            above, below = (old, new) if exponent.is_positive else (new, old)
            ratio: Expression = Binary("/", self.formula(move, above), self.formula(move, below))
            if abs(exponent) not in (2, sp.Rational(1, 2)):
                ratio = self._named(ratio, indices, "C", sources)
            ratios.append(move.table.symbol(ratio) ** abs(exponent))
            del powers[old], powers[new]
        if not ratios:
            return move.orbit.factor
        rest = sp.Mul(*(base**exponent for base, exponent in powers.items()))
        return sp.Mul(rest, *ratios)

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
        for tensor in sources if self.from_start else ():
            producer = self.flow.producer[tensor]
            if self.flow.kinds[tensor] is not Kind.FOLD or is_magnitude(self.flow, tensor):
                continue
            identity = monoid(operator_of(producer)).identity
            if math.isinf(identity) and not may_be_minus_infinity(self.flow, tensor):
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
        sources = tuple(dict.fromkeys(sources))
        for tensor in sorted({*sources, *(w for s in sources for w in self.flow.waits_for[s])}):
            floor = self._floor(tensor, expression, sources)
            if floor is not None:
                seen = Call("gt", (read(self.flow.producer[tensor].output), floor))
                expression = Call("where", (seen, expression, Number(0)))
        return expression

    def _floor(self, tensor: str, expression: Expression, sources: Iterable[str]) -> Number | None:
        """Return the value of a maximum that has seen nothing, if the expression fails at it."""
        if may_be_minus_infinity(self.flow, tensor):
            return Number(-math.inf)
        if not is_magnitude(self.flow, tensor):
            return None
        quotients = (n for n in walk(expression) if isinstance(n, Binary) and n.operator == "/")
        below = {access.tensor for q in quotients for access in accesses(q.right)}
        read = {access.tensor for access in accesses(expression)}
        for source in sources:
            output = self.flow.producer[source].output
            definition = opened(self.flow, output)
            if not any(access.tensor == tensor for access in accesses(definition)):
                continue
            divided = any(
                access.tensor == tensor for d in divisors(definition) for access in accesses(d)
            )
            if {self.old(output).tensor, self.new(output).tensor} & (read if divided else below):
                return Number(0)
        return None


def without_variable(fold: Einsum, variable: str) -> tuple[Reduce, ...]:
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
