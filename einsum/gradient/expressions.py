"""What a gradient writes: names that are free, filters and presence as values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from einfuse.einsum.derivation.normal_form import fresh
from einfuse.einsum.language.cascade import Cascade, Rank
from einfuse.einsum.language.derivative import ONE, times
from einfuse.einsum.language.equation import Einsum
from einfuse.einsum.language.expression import (
    Access,
    Binary,
    Call,
    Condition,
    Expression,
    Index,
    Negate,
    Number,
)
from einfuse.einsum.language.substitution import replace_accesses


@dataclass
class Names:
    """What is taken, and the ranks that are added."""

    cascade: Cascade
    taken: set[str]
    ranks: list[Rank]

    def tensor(self, base: str) -> str:
        """Return a new tensor's name."""
        name = fresh(base, self.taken)
        self.taken.add(name)
        return name

    def variable(self, rank: str, used: set[str]) -> str:
        """Return a variable over a rank that is not among those used."""
        if rank.lower() not in used:
            return rank.lower()
        for known in self.ranks:
            if known.size == rank and known.name.lower() not in used:
                return known.name.lower()
        names = self.taken | set(self.cascade.rank_names) | {r.name for r in self.ranks}
        alias = fresh(rank + "X", names)
        self.ranks.append(Rank(alias, rank))
        return alias.lower()


def values_of(node: Expression) -> Iterator[Access]:
    """Yield the accesses whose values an expression takes, not those inside indices."""
    if isinstance(node, Access):
        yield node
        return
    match node:
        case Negate(operand=operand):
            yield from values_of(operand)
        case Binary(left=left, right=right):
            yield from values_of(left)
            yield from values_of(right)
        case Call(arguments=arguments):
            for argument in arguments:
                yield from values_of(argument)


def renamed(einsum: Einsum, titles: Mapping[str, str]) -> Einsum:
    """Return an Einsum with other names of tensors; an adjoint stands inside no index."""

    def change(access: Access) -> Access | None:
        return replace(access, tensor=titles[access.tensor]) if access.tensor in titles else None

    return replace(
        einsum,
        outputs=tuple(change(output) or output for output in einsum.outputs),
        expression=replace_accesses(einsum.expression, change),
    )


def presence(expression: Expression) -> Expression:
    """Return an expression that is 1 where another has a value, and absent elsewhere."""
    return Call("ge", (Call("abs", (expression,)), Number(0)))


def filtered(expression: Expression, conditions: Condition) -> Expression:
    """Return an expression behind filters, on the first index of its first access that has one."""
    if not conditions:
        return expression
    done = False

    def first(node: Expression) -> Expression:
        nonlocal done
        match node:
            case Access(indices=(index, *rest)) if not done:
                done = True
                added = tuple(c for c in conditions if c not in index.condition)
                return replace(
                    node, indices=(Index(index.expression, index.condition + added), *rest)
                )
            case Negate(operand=operand):
                return replace(node, operand=first(operand))
            case Binary(left=left, right=right):
                return replace(node, left=first(left), right=first(right))
            case Call(arguments=arguments):
                return replace(node, arguments=tuple(map(first, arguments)))
        return node

    found = first(expression)
    if done:
        return found
    return times(expression, as_value(conditions))


_COMPARISONS = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge"}


def as_value(conditions: Condition) -> Expression:
    """Return 1 where conditions hold, else 0."""
    product: Expression = ONE
    for c in conditions:
        if c.operator in _COMPARISONS:
            holds: Expression = Call(_COMPARISONS[c.operator], (c.left, c.right))
        else:
            holds = times(Call("ge", (c.left, c.right)), Call("le", (c.left, c.right)))
            if c.operator == "!=":
                holds = Binary("-", ONE, holds)
        product = times(product, holds)
    return product
