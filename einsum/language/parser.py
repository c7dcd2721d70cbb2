"""The text of a cascade, read: `parse`."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .cascade import Cascade, Iteration, Rank, Split, Tensor
from .equation import Action, Einsum, Populate, Reduce
from .errors import CascadeError, expect
from .expression import (
    Access,
    Binary,
    Call,
    Comparison,
    Condition,
    Coordinate,
    Expression,
    Index,
    Negate,
    Number,
    RankSize,
    Span,
)
from .rules import validated, warn
from .syntax_errors import check_size, syntax_error, token_span

if TYPE_CHECKING:
    from lark import Lark, Token


def parse(text: str, name: str = "cascade", source: str = "<cascade>") -> Cascade:
    """Return the cascade that a text describes, checked by every rule of the language.

    Lines before any section label belong to ``init``. Declarations may stand anywhere. An input
    that nothing reads is a `CascadeWarning`, a Python warning on standard error.

    Args:
        text: the text form, one statement a line.
        name: what the cascade is called.
        source: the file's name, for errors.

    Raises:
        CascadeError: names line and column, and points with a caret.

    >>> cascade = parse('''
    ... rank M = 8, P
    ... input A[M,P]
    ... output Y
    ... Y[p] = A[m,p] :: max(m)
    ... ''')
    >>> cascade.inputs, cascade.tensor("Y").ranks
    (('A',), ('P',))
    """
    expect(text, str, "text", "a text")
    from lark import UnexpectedInput

    check_size(text, source)
    try:
        statements = _lark().parse(text + "\n")
    except UnexpectedInput as error:
        raise syntax_error(error, text, source, _lark().terminals) from None
    except _MisplacedError as error:
        raise CascadeError(error.message, error.span, text, source) from None
    cascade = validated(_assemble(cast(Any, statements), name, text, source))
    warn(cascade)
    return cascade


@functools.cache
def _lark() -> Lark:
    from lark import Lark

    return Lark(
        Path(__file__).with_name("grammar.lark").read_text(encoding="utf-8"),
        parser="lalr",
        lexer="basic",
        transformer=_Builder(),
        keep_all_tokens=True,
        maybe_placeholders=False,
    )


@dataclass(frozen=True, slots=True)
class _Outputs:
    names: tuple[str, ...]
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    span: Span


@dataclass(frozen=True, slots=True)
class _Merge:
    name: str
    span: Span


@dataclass(frozen=True, slots=True)
class _Stop:
    condition: Condition
    span: Span


class _MisplacedError(Exception):
    """A construct the grammar admits and the language does not."""

    def __init__(self, message: str, span: Span) -> None:
        self.message = message
        self.span = span
        super().__init__(message)


def _span(children: list[Any]) -> Span:
    """Return the stretch from the first child to the last, tokens or nodes."""
    first, last = _edge(children[0], 0), _edge(children[-1], -1)
    return Span(first.line, first.column, last.end_line, last.end_column)


def _edge(child: Any, side: int) -> Span:
    if isinstance(child, list):
        return _edge(child[side], side)
    if isinstance(child, Index):
        if side == -1 and child.condition:
            return _edge(child.condition[-1], side)
        return _edge(child.expression, side)
    if hasattr(child, "span"):
        span: Span = child.span
        return span
    return token_span(child)


def _names(children: list[Any]) -> list[Token]:
    return [c for c in children if getattr(c, "type", None) == "NAME"]


def _only(kind: Any, children: list[Any]) -> tuple[Any, ...]:
    return tuple(c for c in children if isinstance(c, kind))


class _Builder:
    """Builds the nodes as the parser reduces; every child, punctuation too, has its place."""

    def start(self, c: list[Any]) -> list[Any]:
        return [child for child in c if getattr(child, "type", None) != "_NL"]

    def ranks(self, c: list[Any]) -> tuple[Rank, ...]:
        return _only(Rank, c)

    def rank(self, c: list[Any]) -> Rank:
        size: int | str | None = None
        if len(c) == 3:
            size = _integer(c[2]) if c[2].type == "INT" else str(c[2])
        return Rank(str(c[0]), size, _span(c))

    def split(self, c: list[Any]) -> Split:
        whole, outer, inner = map(str, _names(c))
        return Split(whole, outer, inner, _span(c))

    def iteration(self, c: list[Any]) -> Iteration:
        variable, rank = map(str, _names(c))
        return Iteration(variable, rank, _span(c))

    def inputs(self, c: list[Any]) -> tuple[Tensor, ...]:
        return _only(Tensor, c)

    def tensor(self, c: list[Any]) -> Tensor:
        name, *ranks = map(str, _names(c))
        return Tensor(name, tuple(ranks), _span(c))

    def outputs(self, c: list[Any]) -> _Outputs:
        names = _names(c)
        return _Outputs(tuple(map(str, names)), tuple(map(token_span, names)))

    def section(self, c: list[Any]) -> _Section:
        return _Section(str(c[0]), _span(c))

    def stop(self, c: list[Any]) -> _Stop:
        return _Stop(_only(Comparison, c), _span(c))

    def einsum(self, c: list[Any]) -> Einsum:
        outputs, expression = c[0], c[2]
        actions: tuple[Action, ...] = ()
        merge: str | None = None
        marked: Span | None = None
        for part in c[3:]:
            if isinstance(part, _Merge):
                merge, marked = part.name, part.span
            else:
                actions = part
        span = _span([outputs, expression])
        return Einsum(outputs.accesses, expression, actions, merge, span, marked)

    def left(self, c: list[Any]) -> _Left:
        return _Left(_only(Access, c), _span(c))

    def actions(self, c: list[Any]) -> tuple[Action, ...]:
        return _only((Reduce, Populate), c)

    def action(self, c: list[Any]) -> Action:
        operator, names = str(c[0]), [str(n) for n in _names(c[1:])]
        if isinstance(c[3], list):
            return Populate(operator, names[0], str(c[3][1]), _span(c))
        return Reduce(operator, tuple(names), _span(c))

    def populate(self, c: list[Any]) -> list[Any]:
        return c

    def merge(self, c: list[Any]) -> _Merge:
        return _Merge(str(c[1]), _span(c))

    def sum(self, c: list[Any]) -> Binary:
        return Binary(str(c[1]), c[0], c[2], _span(c))

    product = sum

    def negate(self, c: list[Any]) -> Expression:
        if isinstance(c[1], Number):
            return Number(-c[1].value, _span(c))
        return Negate(c[1], _span(c))

    def number(self, c: list[Any]) -> Number:
        token = c[0]
        value: int | float
        if token.type == "INF":
            value = math.inf
        else:
            value = _integer(token) if token.type == "INT" else float(token)
        return Number(value, token_span(token))

    def name(self, c: list[Any]) -> Expression:
        name, span = str(c[0]), token_span(c[0])
        if name == name.upper():
            return RankSize(name, span)
        if name == name.lower():
            return Coordinate(name, span)
        raise _MisplacedError(
            f"'{name}' alone is neither a rank's size (upper case) nor a variable (lower case); "
            f"a tensor takes indices: {name}[...]",
            span,
        )

    def call(self, c: list[Any]) -> Call:
        arguments = tuple(child for child in c[2:] if not isinstance(child, str))
        return Call(str(c[0]), arguments, _span(c))

    def group(self, c: list[Any]) -> Expression:
        grouped: Expression = replace(c[1], span=_span(c))
        return grouped

    def access(self, c: list[Any]) -> Access:
        return Access(str(c[0]), _only(Index, c), _span(c))

    def index(self, c: list[Any]) -> Index:
        return Index(c[0], _only(Comparison, c))

    def comparison(self, c: list[Any]) -> Comparison:
        return Comparison(c[0], str(c[1]), c[2], _span(c))


@dataclass(frozen=True, slots=True)
class _Left:
    accesses: tuple[Access, ...]
    span: Span


def _integer(token: Token) -> int:
    if len(token) > 18:
        raise _MisplacedError("a whole number has at most 18 digits", token_span(token))
    return int(token)


def _assemble(statements: Iterable[Any], name: str, text: str, source: str) -> Cascade:
    ranks: list[Rank] = []
    splits: list[Split] = []
    iterations: list[Iteration] = []
    inputs: list[Tensor] = []
    outputs: list[str] = []
    output_spans: list[Span] = []
    sections: dict[str, list[Einsum]] = {"init": []}
    current, labelled = "init", False
    stop: Condition | None = None
    for statement in statements:
        match statement:
            case Split():
                splits.append(statement)
            case Iteration():
                iterations.append(statement)
            case _Outputs(names, spans):
                outputs.extend(names)
                output_spans.extend(spans)
            case _Section(label, span):
                order = ("init", "loop", "final")
                first = label == "init" and not labelled
                if not first and order.index(label) <= order.index(current):
                    message = f"'{label}:' after '{current}:'; the order is init, loop, final"
                    raise CascadeError(message, span, text, source)
                current, labelled = label, True
                sections.setdefault(label, [])
            case _Stop(condition, span):
                if stop is not None:
                    raise CascadeError("a second stop: join conditions by '&'", span, text, source)
                stop = condition
            case Einsum():
                sections[current].append(statement)
            case tuple() if statement and isinstance(statement[0], Rank):
                ranks.extend(statement)
            case _:
                inputs.extend(statement)
    return Cascade(
        name,
        tuple(ranks),
        tuple(splits),
        tuple(iterations),
        tuple(inputs),
        tuple(outputs),
        tuple(sections["init"]),
        tuple(sections.get("loop", ())),
        tuple(sections.get("final", ())),
        stop or (),
        output_spans=tuple(output_spans),
        text=text,
        source=source,
    )
