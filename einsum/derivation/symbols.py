"""Expressions as sympy formulas, and back: each maximal part of interest is one symbol."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import sympy as sp

from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Coordinate,
    Expression,
    Negate,
    Number,
    RankSize,
)
from einfuse.einsum.language.functions import function

Formula = Any  # sympy ships no types
Symbol = Any


@dataclass(slots=True)
class SymbolTable:
    """One symbol per distinct part of an expression, in the order of the text.

    ``positive`` tells which parts are known to be positive.
    """

    positive: Callable[[Expression], bool] = lambda part: False
    _symbols: dict[Expression, Symbol] = field(default_factory=dict)
    _parts: dict[Symbol, Expression] = field(default_factory=dict)

    def symbol(self, part: Expression, *, first: bool = False) -> Symbol:
        """Return the symbol of a part, a new one if it has none yet.

        Symbols are written in the order in which they were made, but those made ``first``.
        """
        if part not in self._symbols:
            name = f"{'a' if first else 'x'}{len(self._symbols):04d}"
            positive = True if isinstance(part, RankSize) or self.positive(part) else None
            symbol = sp.Symbol(name, real=True, positive=positive)
            self._symbols[part], self._parts[symbol] = symbol, part
        return self._symbols[part]

    def part(self, symbol: Symbol) -> Expression:
        """Return the part that a symbol stands for."""
        return self._parts[symbol]

    def formula(self, node: Expression, whole: Callable[[Expression], bool]) -> Formula:
        """Return an expression as a formula; parts for which ``whole`` holds are one symbol.

        >>> from einfuse.einsum.language.expression import Access, Binary, Call
        >>> a, b = Access("A"), Access("B")
        >>> SymbolTable().formula(Call("exp", (Binary("-", a, b),)), lambda part: part == a)
        exp(x0000 - x0001)
        """
        match node:
            case Number(value=value):
                return self.symbol(node) if math.isinf(value) else sp.nsimplify(value)
            case RankSize() | Coordinate() | Access():
                return self.symbol(node)
        if whole(node):
            return self.symbol(node)
        match node:
            case Negate(operand=operand):
                return -self.formula(operand, whole)
            case Binary(operator=operator, left=left, right=right):
                return self._binary(operator, self.formula(left, whole), self.formula(right, whole))
            case Call(function="where", arguments=(condition, yes, no)) if whole(condition):
                return self._choice(condition, yes, no, whole)
            case Call(function=name, arguments=arguments):
                values = [self.formula(argument, whole) for argument in arguments]
                known = function(name).sympy
                return (known(sp) if known else sp.Function(name, real=True))(*values)
        raise AssertionError(node)

    def expression(self, formula: Formula) -> Expression:
        """Return a formula as an expression: numerators first, in the order of the text."""
        return _to_expression(formula, self)

    def _binary(self, operator: str, left: Formula, right: Formula) -> Formula:
        match operator:
            case "+":
                return left + right
            case "-":
                return left - right
            case "*":
                return left * right
            case "/":
                return left / right
        return sp.Function("mod", real=True)(left, right)

    def _choice(
        self,
        condition: Expression,
        yes: Expression,
        no: Expression,
        whole: Callable[[Expression], bool],
    ) -> Formula:
        """``where(c, a, b)`` is ``[c]*a + [not c]*b``, unless a branch is infinite."""
        if any(isinstance(branch, Number) and math.isinf(branch.value) for branch in (yes, no)):
            function = sp.Function("where", real=True)
            return function(*(self.formula(part, whole) for part in (condition, yes, no)))
        chosen = self.symbol(Call("where", (condition, Number(1), Number(0))))
        other = self.symbol(Call("where", (condition, Number(0), Number(1))))
        return chosen * self.formula(yes, whole) + other * self.formula(no, whole)


def _to_expression(formula: Formula, table: SymbolTable) -> Expression:
    def convert(value: Formula) -> Expression:
        return _to_expression(value, table)

    if formula.is_Symbol:
        return table.part(formula)
    if formula.is_Integer:
        return Number(int(formula))
    if formula.is_Rational:
        number: Expression = Binary("/", Number(abs(int(formula.p))), Number(int(formula.q)))
        return Negate(number) if formula < 0 else number
    if formula.is_number and formula.is_finite:
        return Number(float(formula))
    if formula.is_Add:
        return _sum(formula, convert)
    if formula.is_Mul:
        return _quotient(formula, convert)
    if isinstance(formula, sp.exp):
        return Call("exp", (convert(formula.args[0]),))
    if formula.is_Pow:
        return _power(formula.base, formula.exp, convert)
    if isinstance(formula, sp.Abs):
        return Call("abs", (convert(formula.args[0]),))
    return Call(str(formula.func), tuple(convert(argument) for argument in formula.args))


def _order(formula: Formula) -> tuple[int, str]:
    names = sorted(str(symbol) for symbol in formula.free_symbols)
    return (1 if names else 0, " ".join(names) + " " + str(formula))


def _sum(formula: Formula, convert: Callable[[Formula], Expression]) -> Expression:
    terms = sorted(formula.args, key=lambda t: (bool(t.could_extract_minus_sign()), _order(t)))
    total = convert(terms[0])
    for term in terms[1:]:
        negative = term.could_extract_minus_sign()
        total = Binary("-" if negative else "+", total, convert(-term if negative else term))
    return total


def _quotient(formula: Formula, convert: Callable[[Formula], Expression]) -> Expression:
    number, _ = formula.as_coeff_Mul()
    if number < 0:
        return Negate(convert(-formula)) if -formula != formula else convert(formula)
    above, below = [], []
    for factor in sorted(formula.args, key=_order):
        if factor.is_Rational and not factor.is_Integer:
            above += [sp.Integer(factor.p)] if factor.p != 1 else []
            below.append(sp.Integer(factor.q))
        elif _is_reciprocal(factor):
            below.append(1 / factor)
        else:
            above.append(factor)
    total = _chain("*", map(convert, above)) if above else Number(1)
    return _chain("/", (total, *map(convert, below)))


def _is_reciprocal(factor: Formula) -> bool:
    if not factor.is_Pow or isinstance(factor, sp.exp):
        return False
    exponent = factor.exp
    return bool(exponent.is_Number and exponent < 0 and exponent != -sp.Rational(1, 2))


def _power(
    base: Formula, exponent: Formula, convert: Callable[[Formula], Expression]
) -> Expression:
    if base == 2 and not exponent.is_Number:
        return Call("exp2", (convert(exponent),))
    if exponent == 2:
        return Call("sq", (convert(base),))
    if exponent.is_Integer and 2 < exponent <= 8:
        return _chain("*", [convert(base)] * int(exponent))
    if exponent == sp.Rational(1, 2):
        return Call("sqrt", (convert(base),))
    if exponent == -sp.Rational(1, 2):
        return Call("rsqrt", (convert(base),))
    if exponent.is_Number and exponent < 0:
        return Binary("/", Number(1), convert(1 / sp.Pow(base, exponent)))
    return Call("exp", (Binary("*", convert(exponent), Call("log", (convert(base),))),))


def _chain(operator: str, values: Iterable[Expression]) -> Expression:
    return reduce(lambda left, right: Binary(operator, left, right), values)
