"""Expressions of a cascade: frozen trees that know nothing of the analyses over them.

::

    Expression = Number(value) | RankSize(rank) | Coordinate(variable)
               | Access(tensor, indices) | Negate(operand)
               | Binary(operator, left, right) | Call(function, arguments)
    Index      = (expression, condition)        # K[e, m: m<=p]
    Condition  = (Comparison, ...)              # joined by '&'; empty: no filter
    Comparison = (left, operator, right)

The same nodes serve values (``exp(QK[m,p] - GM[p])``) and indices (``m1*M0 + m0``,
``TI[t,p]`` as a data-dependent gather). Source spans take no part in equality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Span:
    """Where a node stands in its text: line and column count from 1, the end is exclusive."""

    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True, slots=True)
class Number:
    """A literal; ``inf`` is ``Number(math.inf)``."""

    value: int | float
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class RankSize:
    """A bare rank name: its size (its shape)."""

    rank: str
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Coordinate:
    """A bare rank variable: its coordinate."""

    variable: str
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Negate:
    """Minus an operand."""

    operand: Expression
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Binary:
    """``left operator right``; the operators are ``+ - * /``, and ``%`` in indices."""

    operator: str
    left: Expression
    right: Expression
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Call:
    """A function of the language, or one that a user registered."""

    function: str
    arguments: tuple[Expression, ...]
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Comparison:
    """``left operator right`` with an operator of ``< <= > >= == !=``."""

    left: Expression
    operator: str
    right: Expression
    span: Span | None = field(default=None, compare=False, repr=False)


Condition = tuple[Comparison, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """One index of an access, with the filter that stands behind its colon, if any."""

    expression: Expression
    condition: Condition = ()


@dataclass(frozen=True, slots=True)
class Access:
    """``Q[e,p]``: a tensor at indices; ``S[]`` is a scalar."""

    tensor: str
    indices: tuple[Index, ...] = ()
    span: Span | None = field(default=None, compare=False, repr=False)


Expression = Number | RankSize | Coordinate | Access | Negate | Binary | Call


_CHILDREN: dict[type, Callable[[Any], tuple[Expression | Comparison | Index, ...]]] = {
    Number: lambda node: (),
    RankSize: lambda node: (),
    Coordinate: lambda node: (),
    Negate: lambda node: (node.operand,),
    Binary: lambda node: (node.left, node.right),
    Comparison: lambda node: (node.left, node.right),
    Call: lambda node: node.arguments,
    Access: lambda node: node.indices,
    Index: lambda node: (node.expression, *node.condition),
}


def children(node: Expression | Comparison | Index) -> tuple[Expression | Comparison | Index, ...]:
    """Return the direct children of a node, in the order of the text."""
    return _CHILDREN[type(node)](node)


def walk(node: Expression | Comparison | Index) -> Iterator[Expression | Comparison | Index]:
    """Yield a node and everything below it, parents first.

    >>> from einfuse.einsum.language.expression import Access, Binary, Coordinate, Index
    >>> q = Access("Q", (Index(Coordinate("p")),))
    >>> [type(node).__name__ for node in walk(Binary("*", q, q))]
    ['Binary', 'Access', 'Index', 'Coordinate', 'Access', 'Index', 'Coordinate']
    """
    pending = [node]
    while pending:
        node = pending.pop()
        yield node
        pending += reversed(children(node))


def accesses(node: Expression | Comparison | Index) -> Iterator[Access]:
    """Yield every access below a node, gathers inside indices included."""
    return (found for found in walk(node) if isinstance(found, Access))


def variables(node: Expression | Comparison | Index) -> tuple[str, ...]:
    """Return the rank variables below a node, each once, in the order of the text."""
    found = (below.variable for below in walk(node) if isinstance(below, Coordinate))
    return tuple(dict.fromkeys(found))
