"""How folds follow their references: the orbit of what they fold, if it is finite.

One function means a factor (the online softmax of Milakov and Gimelshein, arXiv 1805.02867),
several a vector state (the variance of Welford, and of Chan, Golub and LeVeque).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import sympy as sp

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.expression import Access, Expression, RankSize, variables
from einfuse.einsum.language.printer import render_einsum
from einfuse.einsum.language.substitution import inlined

from .algebra import Function, Orbit, denominators, extreme_orbit, orbit, without
from .dataflow import Dataflow, Kind, operator_of, reduced_variables, uses
from .deadline import check_time
from .divisors import zero_divisors
from .needs import Atoms, element_needs, implied, needs_of
from .normal_form import NotDerivableError
from .symbols import Formula, SymbolTable
from .value_facts import degree, is_positive


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

    @property
    def divisors(self) -> tuple[Expression, ...]:
        """What the corrections divide by, in terms of the references."""
        back = {new: old for old, new in self.moved}
        values = [self.orbit.factor]
        values += [c for f in self.orbit.functions for _, c in f.coefficients]
        bases = [base.subs(back) for value in values for base in denominators(value)]
        return tuple(self.table.expression(base) for base in dict.fromkeys(bases))

    @property
    def centres(self) -> tuple[Access, ...]:
        """The references whose differences the corrections of a vector state are made of."""
        held = [c.free_symbols for f in self.orbit.functions for _, c in f.coefficients]
        return tuple(
            reference
            for (old, new), reference in zip(self.moved, self.references, strict=True)
            if any({old, new} <= symbols for symbols in held)
        )

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


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A cascade after a rewrite, and how the folds that were freed of a barrier move.

    ``held`` are divisors of which the rewrite takes care where they are 0.
    """

    cascade: Cascade
    moves: tuple[Move, ...]
    held: frozenset[str] = frozenset()


def move_of(flow: Dataflow, fold: Einsum) -> Move:
    """Return how a fold follows its references.

    Raises:
        NotDerivableError: there is no correction that leaves the elements out; the text says why.

    >>> from einfuse.einsum.language.parser import parse
    >>> text = "rank M\\ninput X[M]\\noutput Y\\nS[] = X[m]\\nY[] = sq(X[m] - S[]) :: +(m)"
    >>> flow = Dataflow(parse(text), "m")
    >>> print(move_of(flow, flow.folds[1]))
    Y moves to a new S with a state of 3 functions
    """
    known: dict[str, Move | str] = vars(flow).setdefault("_moves", {})
    if fold.name not in known:
        try:
            known[fold.name] = _move_of(flow, fold)
        except NotDerivableError as error:
            known[fold.name] = str(error)
    move = known[fold.name]
    if isinstance(move, str):
        raise NotDerivableError(move)
    return move


def _move_of(flow: Dataflow, fold: Einsum) -> Move:
    if len(fold.reductions) != 1:
        raise NotDerivableError(f"{fold.name} folds with several operators at once")
    return move_along(flow, fold, reduced_variables(fold), operator_of(fold))


def move_along(flow: Dataflow, einsum: Einsum, reduced: tuple[str, ...], operator: str) -> Move:
    """Return how what an Einsum computes follows its references, as if folded.

    Args:
        flow: the cascade along a rank.
        einsum: a fold, or a map.
        reduced: the variables that tell elements apart.
        operator: what they are folded with.

    Raises:
        NotDerivableError: there is no correction that leaves the elements out; the text says why.
    """
    check_time()
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
    needed = _checked_needs(flow, einsum, cone)
    table = SymbolTable(positive=lambda part: is_positive(part, flow))
    formula = table.formula(cone, lambda part: not flow.references(part))
    elements = frozenset(s for s in formula.free_symbols if uses(table.part(s), reduced))
    moved = {
        table.symbol(a): sp.Symbol(f"{table.symbol(a)}_", **table.symbol(a).assumptions0)
        for a in references
    }
    found = _orbit_of(formula, elements, tuple(moved.items()), operator)
    if found is None:
        raise NotDerivableError(_no_correction(einsum, references))
    found = without(found, _vanishing(flow, einsum, table, found, tuple(moved)))
    counted = frozenset(
        n for n, f in enumerate(found.functions) if n and not f.formula.free_symbols & elements
    )
    if counted and operator != "+":
        raise NotDerivableError(_no_correction(einsum, references))
    if needed and not all(
        implied(needed, needs_of(flow).of(table.expression(f.formula))) for f in found.functions
    ):
        raise NotDerivableError(
            f"{einsum.name} needs the number of points that it folds, and a filter culls some"
        )
    return Move(einsum, references, table, found, tuple(moved.items()), counted, operator)


def movement_hazards(
    flow: Dataflow, move: Move, held: frozenset[str] = frozenset()
) -> tuple[str, ...]:
    """Return what a move costs in accuracy: divisors that may be 0, centres that are none.

    A deviation keeps its digits if its centre is near the elements seen so far: a mean or an
    extreme of them, not a sum that only all elements make a mean of.

    >>> from einfuse.einsum.language.parser import parse
    >>> text = (
    ...     "rank M = 8\\ninput X[M]\\noutput Y\\nS[] = X[m]\\nMU[] = S[] / 8\\n"
    ...     "Y[] = sq(X[m] - MU[]) :: +(m)"
    ... )
    >>> flow = Dataflow(parse(text), "m")
    >>> print(*movement_hazards(flow, move_of(flow, flow.folds[1])))
    Y is centred on MU, which is no mean of the elements before the last
    """
    divided = (
        f"{move.fold.name} needs division by {divisor}, which may be 0 before the last element"
        for divisor in zero_divisors(flow, move.fold, move.divisors)
        if divisor not in held
    )
    centred = (
        f"{move.fold.name} is centred on {access.tensor}, which is no mean of the elements "
        "before the last"
        for access in move.centres
        if degree(flow, access) != 0
    )
    return (*divided, *centred)


def _checked_needs(flow: Dataflow, einsum: Einsum, cone: Expression) -> Atoms:
    """Return what the elements of a cone need, all of which must be there with the references."""
    needs = needs_of(flow)
    if not needs.is_uniform(cone):
        raise NotDerivableError(
            f"{einsum.name} folds points at which a filter culls some operands and others stay"
        )
    needed = element_needs(flow, cone)
    for reference in flow.references(cone):
        if not implied(needs.of(reference), needed):
            raise NotDerivableError(
                f"{einsum.name} needs points that a filter culls from {reference.tensor}: tiles "
                "without any other have no reference"
            )
    return needed


@functools.lru_cache(maxsize=1024)
def _orbit_of(
    formula: Formula,
    elements: frozenset[Formula],
    references: tuple[tuple[Formula, Formula], ...],
    operator: str,
) -> Orbit | None:
    """Return the orbit of a formula; formulas of many candidates are alike, up to their parts."""
    moved = dict(references)
    if formula.free_symbols.isdisjoint(moved):
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
        if operator_of_or_none(other) != "+" or flow.culls(other.expression):
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
