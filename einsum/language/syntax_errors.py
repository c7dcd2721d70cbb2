"""What is wrong with a text that does not parse, in words: `syntax_error`, `check_size`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .errors import CascadeError
from .expression import Span

if TYPE_CHECKING:
    from lark import Token, UnexpectedInput
    from lark.lexer import TerminalDef

NESTING_LIMIT = 50
"""How deep the brackets of a line may nest."""


OPERATOR_LIMIT = 200
"""How many operators a line may have."""


KEYWORDS = frozenset(
    {"rank", "split", "iter", "over", "input", "output", "init", "loop", "final", "stop", "inf"}
)


def token_span(token: Token) -> Span:
    """Return where a token stands."""
    line, column = token.line or 1, token.column or 1
    return Span(line, column, token.end_line or line, token.end_column or column)


def check_size(text: str, source: str) -> None:
    """Refuse what would nest deeper than trees are walked; brackets and operators bound that."""
    for number, line in enumerate(text.split("\n"), start=1):
        depth = operators = 0
        for column, character in enumerate(line, start=1):
            if character == "#":
                break
            depth += (character in "([") - (character in ")]")
            operators += character in "+-*/%"
            if depth > NESTING_LIMIT:
                message = f"brackets nest more than {NESTING_LIMIT} deep"
                raise CascadeError(message, _point(number, column), text, source)
            if operators > OPERATOR_LIMIT:
                message = f"more than {OPERATOR_LIMIT} operators on a line: split it in Einsums"
                raise CascadeError(message, _point(number, column), text, source)


def _point(line: int, column: int) -> Span:
    return Span(line, column, line, column + 1)


def syntax_error(
    error: UnexpectedInput, text: str, source: str, terminals: Iterable[TerminalDef]
) -> CascadeError:
    """Return what was expected and what was found, where; the terminals are the grammar's."""
    token: Token | None = getattr(error, "token", None)
    if token is None:  # no token starts here
        found = repr(getattr(error, "char", "?"))
        return CascadeError(
            f"unexpected character {found}", _point(error.line, error.column), text, source
        )
    if token.type in {"_NL", "$END"}:
        found, span = "the end of the line", _point(token.line or 1, token.column or 1)
    else:
        found, span = f"'{token}'", token_span(token)
        if token in KEYWORDS:
            found += " (a reserved word)"
    accepted = set(getattr(error, "accepts", None) or error.expected)  # type: ignore[attr-defined]
    spelled = {t.name: t.pattern.value for t in terminals if t.pattern.type == "str"}
    wanted = _wanted(accepted, spelled)
    return CascadeError(f"expected {wanted}, found {found}", span, text, source)


_VALUE = {"NAME", "INT", "FLOAT", "INF", "LPAR", "MINUS"}


_OPERATORS = {"PLUS", "MINUS", "STAR", "SLASH", "PERCENT"}


_WORDS = {
    "NAME": "a name",
    "INT": "a whole number",
    "COMPARE": "a comparison (< <= > >= == !=)",
    "_NL": "the end of the line",
    "$END": "the end",
}


def _wanted(terminals: set[str], spelled: Mapping[str, str]) -> str:
    """Say in plain words which of some terminals may come next."""
    if "RANK" in terminals:
        return "a declaration, a section label or an Einsum such as 'Y[p] = A[m,p] * B[m]'"
    words: list[str] = []
    if terminals >= _VALUE:
        words.append("a value")
        terminals -= _VALUE
    closing = terminals & {"RPAR", "RSQB"}
    words += [f"'{')' if bracket == 'RPAR' else ']'}'" for bracket in sorted(closing)]
    terminals -= closing
    if {"PLUS", "MINUS"} <= terminals:  # after a reduction the parser may have forgotten '*'
        words.append("an operator")
        terminals -= _OPERATORS
    words += sorted(_WORDS.get(t) or f"'{spelled.get(t, t)}'" for t in terminals)
    return " or ".join(words)
