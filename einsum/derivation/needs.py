"""What must hold for an expression to be there: the filters, and the folds, that it needs.

Algebra takes every operand for present. It is right of an expression at the points where the
expression is there if all its operands are there too (`Needs.is_uniform`), and a rewritten one
stands for it if it is there at the same points (`Needs.implied`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from einfuse.einsum.execution.absence import Touch, touch_of
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Comparison,
    Expression,
    Negate,
    Number,
    accesses,
    variables,
)
from einfuse.einsum.language.substitution import plain_variables, put, put_in_condition

from .dataflow import Dataflow


@dataclass(frozen=True)
class Truth:
    """A condition of ``where`` that must hold, or must not."""

    condition: Expression
    holds: bool


@dataclass(frozen=True)
class Some:
    """A fold has seen a point: one at which all of these hold."""

    needs: frozenset[Atom]


@dataclass(frozen=True)
class Opaque:
    """An expression is there: nothing more is known."""

    expression: Expression


Atom = Comparison | Truth | Some | Opaque
Atoms = frozenset[Atom]
_ALWAYS: Atoms = frozenset()


class Needs:
    """What the expressions of one flow need.

    >>> from einfuse.einsum.language.parser import parse
    >>> text = "rank K\\ninput A[K]\\noutput Y\\nT[k] = A[k: k<4] - 1\\nY[] = A[k] + T[k]"
    >>> needs = Needs(Dataflow(parse(text), "k"))
    >>> [needs.is_uniform(e.expression) for e in needs.flow.einsums]
    [True, False]
    """

    def __init__(self, flow: Dataflow) -> None:
        self.flow = flow
        self._of_tensors: dict[str, Atoms] = {}

    def of(self, node: Expression) -> Atoms:
        """Return what must hold for an expression to be there."""
        match node:
            case Number(value=value) if math.isinf(value):
                return frozenset({Opaque(node)})
            case Access():
                return self._of_access(node)
            case Negate(operand=operand):
                return self.of(operand)
            case Binary(operator=operator, left=left, right=right):
                return self._of_two(operator, left, right, node)
            case Call(function="max" | "min" as name, arguments=arguments):
                kept = [a for a in arguments if not _is_infinite(a)]
                return functools.reduce(
                    lambda found, a: self._joined(name, found, self.of(a), kept[0], a, node),
                    kept[1:],
                    self.of(kept[0]) if kept else frozenset({Opaque(node)}),
                )
            case Call(function="where", arguments=(condition, yes, no)):
                return self.of(condition) | self._of_choice(condition, yes, no, node)
            case Call(arguments=arguments):
                return frozenset[Atom]().union(*map(self.of, arguments))
        return _ALWAYS

    def is_uniform(self, whole: Expression) -> bool:
        """Tell whether all operands are there wherever an expression is."""
        needs = self.of(whole)
        return all(implied(part, needs) for part in self._optional(whole))

    def _optional(self, node: Expression) -> Iterable[Atoms]:
        """Yield what the operands need that an expression can do without."""
        match node:
            case Negate(operand=operand):
                yield from self._optional(operand)
            case Binary(operator=operator, left=left, right=right):
                touch = _touch(operator, left, right)
                yield from () if touch.left else (self.of(left),)
                yield from () if touch.right else (self.of(right),)
                yield from self._optional(left)
                yield from self._optional(right)
            case Call(function=name, arguments=arguments):
                kept = [a for a in arguments if not _is_infinite(a)]
                if name in ("max", "min", "where"):
                    yield from map(self.of, kept)
                for argument in kept:
                    yield from self._optional(argument)

    def _of_two(
        self, operator: str, left: Expression, right: Expression, node: Expression
    ) -> Atoms:
        return self._joined(operator, self.of(left), self.of(right), left, right, node)

    def _joined(
        self,
        operator: str,
        first: Atoms,
        second: Atoms,
        left: Expression,
        right: Expression,
        node: Expression,
    ) -> Atoms:
        touch = _touch(operator, left, right)
        if touch.left and touch.right:
            return first | second
        if touch.left or touch.right:
            return first if touch.left else second
        if implied(first, second) or implied(second, first):  # one is there wherever the other is
            return first if implied(first, second) else second
        return frozenset({Opaque(node)})

    def _of_choice(
        self, condition: Expression, yes: Expression, no: Expression, node: Expression
    ) -> Atoms:
        if _is_infinite(no) or _is_infinite(yes):
            kept = yes if _is_infinite(no) else no
            return self.of(kept) | {Truth(condition, kept is yes)}
        first, second = self.of(yes), self.of(no)
        return first if first == second else frozenset({Opaque(node)})

    def _of_access(self, access: Access) -> Atoms:
        found: Atoms = frozenset(c for index in access.indices for c in index.condition)
        for index in access.indices:
            for inner in accesses(index):
                found |= self.of(inner)
        producer = self.flow.producer.get(access.tensor)
        if producer is None:
            return found
        own = self._of_tensor(producer)
        if not own:
            return found
        names = plain_variables(producer.output)
        bare = Access(access.tensor, tuple(type(i)(i.expression) for i in access.indices))
        if names is None or any(isinstance(atom, Opaque) for atom in own):
            return found | {Opaque(bare)}
        values = dict(zip(names, (i.expression for i in access.indices), strict=True))
        same = plain_variables(bare) == names
        if not same and any(isinstance(atom, Some) for atom in own):
            return found | {Opaque(bare)}
        return found | {atom if same else _put(atom, values) for atom in own}

    def _of_tensor(self, einsum: Einsum) -> Atoms:
        name = einsum.name
        if name not in self._of_tensors:
            self._of_tensors[name] = self._of_einsum(einsum)
        return self._of_tensors[name]

    def _of_einsum(self, einsum: Einsum) -> Atoms:
        names = plain_variables(einsum.output)
        plain = names is not None and len(einsum.outputs) == 1
        folds = einsum.reductions
        if not plain or len(einsum.actions) > len(folds):
            return frozenset({Opaque(einsum.output)})
        found = self._merged(einsum)
        return frozenset({Some(found)}) if folds and found else found

    def _merged(self, einsum: Einsum) -> Atoms:
        """Return what a right-hand side needs where its outermost operator is merged otherwise."""
        match einsum.expression:
            case Binary(operator=operator, left=left, right=right) if einsum.merge is not None:
                first, second = self.of(left), self.of(right)
                names = frozenset(variables(left)), frozenset(variables(right))
                touch = touch_of(operator, einsum.merge, *names)
                needed = (first if touch.left else _ALWAYS) | (second if touch.right else _ALWAYS)
                if touch.left or touch.right or not (first or second):
                    return needed
                return frozenset({Opaque(einsum.output)})
        found = self.of(einsum.expression)
        return frozenset({Opaque(einsum.output)}) if einsum.merge and found else found


def needs_of(flow: Dataflow) -> Needs:
    """Return what the expressions of a flow need, found once a flow."""
    found: Needs = vars(flow).setdefault("_needs", Needs(flow))
    return found


def element_needs(flow: Dataflow, cone: Expression) -> Atoms:
    """Return what a cone needs besides its references."""
    needs = needs_of(flow)
    found = needs.of(cone)
    waits = frozenset[Atom]().union(*map(needs.of, flow.references(cone)))
    return frozenset(a for a in found if isinstance(a, Comparison | Truth) or a not in waits)


def implied(some: Atoms, by: Atoms) -> bool:
    """Tell whether some conditions hold wherever others do."""
    return all(atom in by or (isinstance(atom, Some) and implied(atom.needs, by)) for atom in some)


def _touch(operator: str, left: Expression, right: Expression) -> Touch:
    return touch_of(operator, None, frozenset(variables(left)), frozenset(variables(right)))


def _is_infinite(node: Expression) -> bool:
    if isinstance(node, Negate):
        node = node.operand
    return isinstance(node, Number) and math.isinf(node.value)


def _put(atom: Atom, values: dict[str, Expression]) -> Atom:
    match atom:
        case Comparison():
            return put_in_condition((atom,), values)[0]
        case Truth(condition=condition, holds=holds):
            return Truth(put(condition, values), holds)
    return atom
