"""Whether a cascade is safe in floating point: no exponential of an unbounded argument.

An exponential is safe if its argument is bounded from above by intervals (`interval`) or by order:
``x - GM[p]`` where ``GM`` is the maximum of the ``x``. Orders come from maxima, folded or of two
values, through element-wise definitions and through running maxima, whose last generation is above
all others.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy as sp

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum, Populate
from einfuse.einsum.language.expression import (
    Access,
    Call,
    Coordinate,
    Expression,
    Index,
    RankSize,
    accesses,
    variables,
    walk,
)
from einfuse.einsum.language.functions import function
from einfuse.einsum.language.intervals import (
    ANYTHING,
    Interval,
    interval_of,
    interval_of_call,
    intervals,
)
from einfuse.einsum.language.printer import render_expression
from einfuse.einsum.language.substitution import put, replace_accesses

from .symbols import SymbolTable

Formula = Any

LARGEST_EXPONENT = 80.0
"""The largest argument that float32 exponentiates without overflow, rounded down."""


def overflows(cascade: Cascade) -> tuple[str, ...]:
    """Return the exponentials of a cascade that may overflow, as text with their Einsum.

    >>> from einfuse.einsum.library.cascades import load
    >>> overflows(load("attention/1-pass"))
    ()
    >>> from einfuse.einsum.language.parser import parse
    >>> overflows(parse("rank M\\ninput A[M]\\noutput Y\\nY[] = exp(A[m]) :: +(m)"))
    ('exp(A[m]) in Y',)
    """
    orders = _Orders(cascade)
    found = []
    for einsum in cascade.einsums:
        for node in walk(einsum.expression):
            base = function(node.function).base if isinstance(node, Call) else None
            if isinstance(node, Call) and base is not None:
                scale = math.log(base)
                if not orders.is_bounded(node.arguments[0], LARGEST_EXPONENT / scale):
                    found.append(f"{render_expression(node)} in {einsum.name}")
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class _Fact:
    """An element that an extreme (a maximum or a minimum) bounds, for all their variables."""

    element: Expression
    extreme: Access


class _Orders:
    """The orders that a cascade's maxima imply, and bounds that follow from them."""

    def __init__(self, cascade: Cascade) -> None:
        self.cascade = cascade
        self.known = intervals(cascade)
        self.definitions = self._definitions()
        self.maxima = list(self._facts("max"))
        self.minima = list(self._facts("min"))
        self.table = SymbolTable()
        self.fresh = 0
        self.failed: dict[tuple[Formula, float], int] = {}

    def is_bounded(self, argument: Expression, limit: float) -> bool:
        """Tell whether an argument is at most ``limit`` wherever it is evaluated."""
        formula = self._formula(argument)
        if _upper(formula, self._interval_of) <= limit:
            return True
        return self._below(sp.expand(formula), limit, depth=5)

    def _below(self, formula: Formula, limit: float, depth: int) -> bool:
        if _upper(formula, self._interval_of) <= limit:
            return True
        if self.failed.get((formula, limit), -1) >= depth:
            return False
        found = depth > 0 and self._below_by_orders(formula, limit, depth)
        if not found:
            self.failed[formula, limit] = depth
        return found

    def _below_by_orders(self, formula: Formula, limit: float, depth: int) -> bool:
        for term in sp.Add.make_args(formula):
            weight, symbol = self._access_in(term)
            if symbol is None:
                continue
            access = self.table.part(symbol)
            assert isinstance(access, Access)
            if weight.is_negative:
                lower = self._below_access(access, formula)
                if any(self._replaced(formula, weight, symbol, v, limit, depth) for v in lower):
                    return True
            elif weight.is_positive:
                upper = self._maximum_of(access)
                if upper and all(
                    self._replaced(formula, weight, symbol, v, limit, depth) for v in upper
                ):
                    return True
                least = (*self._above_access(access, formula), *self._selected(access))
                if any(self._replaced(formula, weight, symbol, v, limit, depth) for v in least):
                    return True
        return False

    def _replaced(
        self,
        formula: Formula,
        weight: Formula,
        symbol: Formula,
        value: Formula,
        limit: float,
        depth: int,
    ) -> bool:
        return self._below(sp.expand(formula + weight * (value - symbol)), limit, depth - 1)

    def _access_in(self, term: Formula) -> tuple[Formula, Formula | None]:
        """Return a term as ``weight * access`` where the weight is a number or of sizes."""
        found = [
            s
            for s in sp.Mul.make_args(term)
            if s.is_Symbol and isinstance(self.table.part(s), Access)
        ]
        if len(found) != 1:
            return term, None
        return term / found[0], found[0]

    def _below_access(self, access: Access, formula: Formula) -> Iterable[Formula]:
        """Return what is known to be at most an access, in terms of what a formula holds."""
        return self._known(self.maxima, access, formula)

    def _above_access(self, access: Access, formula: Formula) -> Iterable[Formula]:
        """Return what is known to be at least an access: a minimum's elements."""
        return self._known(self.minima, access, formula)

    def _known(self, facts: Iterable[_Fact], access: Access, formula: Formula) -> Iterable[Formula]:
        for fact in facts:
            if fact.extreme.tensor != access.tensor:
                continue
            values = _matched(fact.extreme, access, frozenset())
            if values is None:
                continue
            yield self._formula(put(fact.element, values))
            loose = [v for v in variables(fact.element) if v not in values]
            if loose:
                self.fresh += 1
                renamed = {v: Coordinate(f"any{self.fresh}_{v}") for v in loose}
                element = self._formula(put(fact.element, {**values, **renamed}))
                yield self._instantiated(element, formula)

    def _instantiated(self, element: Formula, formula: Formula) -> Formula:
        """Choose the free coordinates of a bound so that its accesses are those of a formula."""
        present = [
            part for s in formula.free_symbols if isinstance(part := self.table.part(s), Access)
        ]
        chosen: dict[Formula, Formula] = {}
        for symbol in element.free_symbols:
            part = self.table.part(symbol)
            if not isinstance(part, Access) or part in present:
                continue
            loose = frozenset(v for v in variables(part) if v.startswith("any"))
            for candidate in present:
                if candidate.tensor == part.tensor and _matched(part, candidate, loose) is not None:
                    chosen[symbol] = self.table.symbol(candidate)
                    break
        return element.subs(chosen, simultaneous=True)

    def _maximum_of(self, access: Access) -> list[Formula]:
        """Return the arguments of the maximum that an access is defined as."""
        found: list[Formula] = []
        for einsum in self.cascade.einsums:
            expression = einsum.expression
            if einsum.name != access.tensor or einsum.reductions:
                continue
            if not (isinstance(expression, Call) and expression.function == "max"):
                continue
            values = _matched(einsum.output, access, frozenset())
            if values is not None and any(isinstance(a, Access) for a in expression.arguments):
                found += [self._formula(put(a, values)) for a in expression.arguments]
        return found

    def _selected(self, access: Access) -> Iterable[Formula]:
        """Yield what a selected value is: an element at some coordinate of what was selected."""
        for einsum in self.cascade.einsums:
            if einsum.output.tensor != access.tensor:
                continue
            for action in einsum.actions:
                values = _matched(einsum.output, access, frozenset())
                if isinstance(action, Populate) and values is not None:
                    self.fresh += 1
                    some = {action.source: Coordinate(f"some{self.fresh}_{action.source}")}
                    yield self._formula(put(einsum.expression, {**values, **some}))

    def _facts(self, operator: str) -> Iterable[_Fact]:
        for einsum in self.cascade.einsums:
            expression = einsum.expression
            if [r.operator for r in einsum.reductions] == [operator]:
                yield _Fact(expression, einsum.output)
            elif isinstance(expression, Call) and expression.function == operator:
                for argument in expression.arguments:
                    yield _Fact(argument, einsum.output)
                    yield from self._monotone(einsum, argument)

    def _monotone(self, einsum: Einsum, argument: Expression) -> Iterable[_Fact]:
        """A running extreme: the last generation bounds every other."""
        if not isinstance(argument, Access) or argument.tensor != einsum.name:
            return
        for iteration in self.cascade.iterations:
            last = RankSize(iteration.rank)
            indices = tuple(
                Index(last) if iteration.variable in variables(index.expression) else index
                for index in einsum.output.indices
            )
            yield _Fact(argument, Access(einsum.name, indices))

    def _definitions(self) -> dict[str, Einsum]:
        """Return the element-wise Einsums, to be put in the place of what they define.

        Of what has an initial value, the Einsum of the loop stands for all generations.
        """
        recurrent = self._recurrent()
        writers: dict[str, list[Einsum]] = {}
        for einsum in self.cascade.einsums:
            writers.setdefault(einsum.name, []).append(einsum)
        return {
            name: found[-1]
            for name, found in writers.items()
            if not found[-1].reductions
            and not found[-1].actions
            and not _is_extreme(found[-1].expression)
            and name not in recurrent
        }

    def _recurrent(self) -> frozenset[str]:
        """Return the tensors that are made, by way of others, from themselves."""
        import networkx as nx

        graph = nx.DiGraph(
            (operand.tensor, output.tensor)
            for einsum in self.cascade.einsums
            for output in einsum.outputs
            for operand in einsum.operands
        )
        return frozenset(
            name
            for component in nx.strongly_connected_components(graph)
            for name in component
            if len(component) > 1 or graph.has_edge(name, name)
        )

    def _formula(self, expression: Expression) -> Formula:
        """Return an expression as a formula over inputs, folds and recurrences."""

        def change(access: Access) -> Expression | None:
            tidy = Access(access.tensor, tuple(_tidy(index) for index in access.indices))
            einsum = self.definitions.get(access.tensor)
            values = None if einsum is None else _matched(einsum.output, tidy, frozenset())
            if einsum is None or values is None:
                return tidy
            return replace_accesses(put(einsum.expression, values), change)

        return self.table.formula(replace_accesses(expression, change), _is_opaque)

    def _interval_of(self, symbol: Formula) -> Interval:
        part = self.table.part(symbol)
        return interval_of(part, self.known)


def _is_extreme(expression: Expression) -> bool:
    return isinstance(expression, Call) and expression.function in ("max", "min")


def _is_opaque(part: Expression) -> bool:
    return False


@functools.lru_cache(maxsize=4096)
def _tidy(index: Index) -> Index:
    """Return an index without its filter, sums of numbers evaluated (``m1-1+1`` is ``m1``)."""
    table = SymbolTable()
    if any(True for _ in accesses(index.expression)):
        return Index(index.expression)
    formula = table.formula(index.expression, _is_opaque)
    return Index(table.expression(sp.expand(formula)))


@functools.lru_cache(maxsize=4096)
def _matched(
    template: Access, access: Access, loose: frozenset[str]
) -> Mapping[str, Expression] | None:
    """Return the template's variables such that it is the access; None if it never is.

    An index of ``loose`` variables alone matches anything.
    """
    if len(template.indices) != len(access.indices):
        return None
    values: dict[str, Expression] = {}
    for pattern, index in zip(template.indices, access.indices, strict=True):
        found = set(variables(pattern.expression))
        if found and found <= loose:
            continue
        table = SymbolTable()
        wanted = table.formula(index.expression, _is_opaque)
        shape = table.formula(pattern.expression, _is_opaque)
        free = [v for v in found if v not in loose]
        if len(free) == 1:
            variable = table.symbol(Coordinate(free[0]))
            pattern_rest = shape - variable
            if variable in pattern_rest.free_symbols:
                return None
            value = table.expression(sp.expand(wanted - pattern_rest))
            if values.setdefault(free[0], value) != value:
                return None
        elif sp.expand(shape - wanted) != 0:
            return None
    return values


def _upper(formula: Formula, of_symbol: Any) -> float:
    terms = (term for term in sp.Add.make_args(formula) if not _is_power(term))
    return sum((_bounds(term, of_symbol)[1] for term in terms), 0.0)


def _is_power(term: Formula) -> bool:
    """Tell whether a term is ``number * log(x)``: its exponential is a power of x."""
    return isinstance(term.as_coeff_Mul()[1], sp.log)


def _bounds(formula: Formula, of_symbol: Any) -> Interval:
    if formula.is_number:
        return (float(formula), float(formula)) if formula.is_extended_real else ANYTHING
    if formula.is_Symbol:
        bounds: Interval = of_symbol(formula)
        return bounds
    if formula.is_Add:
        parts = [_bounds(term, of_symbol) for term in formula.args]
        return (sum(p[0] for p in parts), sum(p[1] for p in parts))
    if formula.is_Mul:
        low, high = 1.0, 1.0
        for factor in formula.args:
            a, b = _bounds(factor, of_symbol)
            products = [0.0 if 0.0 in (x, y) else x * y for x in (low, high) for y in (a, b)]
            low, high = min(products), max(products)
        return (low, high)
    if isinstance(formula, sp.Abs) or (formula.is_Pow and formula.exp == 2):
        low, high = _bounds(formula.args[0], of_symbol)
        largest = max(abs(low), abs(high))
        return (0.0, largest if isinstance(formula, sp.Abs) else largest**2)
    if formula.is_Pow and formula.exp == -1:
        low, high = _bounds(formula.base, of_symbol)
        return (1 / high if high else 0.0, 1 / low) if low > 0 else ANYTHING
    if formula.is_Function:
        arguments = [_bounds(argument, of_symbol) for argument in formula.args]
        return interval_of_call(str(formula.func), arguments)
    return ANYTHING
