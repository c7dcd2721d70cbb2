"""Templates of AccelForge's files: `render_template`, as far as its own examples go.

``{% set N = N | default(8) %}``, ``{{N}}``, ``{% for i in range(N + 1) %}``, ``{% if N > 1 %}``
with ``else``, ``{# a comment #}``; in expressions whole numbers, names, ``+ - * // %`` and
comparisons. Anything else is refused.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from einfuse.einsum.language.errors import EinfuseError

_TAG = re.compile(r"\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\}", re.DOTALL)
_SET = re.compile(
    r"set\s+(\w+)\s*=\s*(?:(\w+)\s*\|\s*default\(\s*([0-9][0-9\s*]*)\)|([0-9][0-9\s*]*))"
)
_FOR = re.compile(r"for\s+([A-Za-z_]\w*)\s+in\s+range\((.*)\)", re.DOTALL)
_MOST = 100_000  # pieces that a template may come to

_OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def render_template(text: str, settings: Mapping[str, str], source: str = "<template>") -> str:
    """Return a template's text with its tags carried out.

    Args:
        text: of the file.
        settings: values of names that it does not set itself.
        source: the file's name, for errors.

    Raises:
        EinfuseError: a tag that is not known, a name without a value, a block that does not end.

    >>> render_template("{% for i in range(N) %}T{{i}} {% endfor %}", {"N": "3"})
    'T0 T1 T2 '
    """
    return _Renderer(text, dict(settings), source).render()


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text, or the inside of a tag: ``kind`` is "", "%", "{" or "#"."""

    kind: str
    body: str
    tag: str
    line: int


class _Renderer:
    def __init__(self, text: str, values: dict[str, str], source: str) -> None:
        self.values, self.source = values, source
        self.pieces: list[_Piece] = []
        end = 0
        for tag in _TAG.finditer(text):
            line = text.count("\n", 0, tag.start()) + 1
            self.pieces.append(_Piece("", text[end : tag.start()], "", line))
            self.pieces.append(_Piece(tag[0][1], tag[0][2:-2].strip(" -\n\t"), tag[0], line))
            end = tag.end()
        self.pieces.append(_Piece("", text[end:], "", 0))
        self.out: list[str] = []

    def render(self) -> str:
        place = self.block(0, True, ())
        if place < len(self.pieces):
            raise self.unknown(self.pieces[place])
        return "".join(self.out)

    def block(self, place: int, active: bool, ends: tuple[str, ...]) -> int:
        """Carry out pieces up to one of some ends; return its place, or that behind the last."""
        while place < len(self.pieces):
            piece = self.pieces[place]
            word = piece.body.split(None, 1)[0] if piece.body.strip() else ""
            if piece.kind == "%" and word in ends:
                return place
            if piece.kind == "%" and word in ("for", "if"):
                place = (
                    self.repeated(place, active) if word == "for" else self.chosen(place, active)
                )
                continue
            if active:
                self.simple(piece)
            place += 1
        if ends:
            raise EinfuseError(f"{self.source}: the template lacks {{% {ends[-1]} %}}")
        return place

    def simple(self, piece: _Piece) -> None:
        match piece.kind:
            case "":
                self.put(piece.body)
            case "{":
                named = self.values.get(piece.body)
                self.put(str(self.number(piece.body, piece)) if named is None else named)
            case "%":
                given = _SET.fullmatch(piece.body)
                if given is None:
                    raise self.unknown(piece)
                target, origin, default, constant = given.groups()
                self.values[target] = constant or self.values.get(origin, default)

    def repeated(self, place: int, active: bool) -> int:
        piece = self.pieces[place]
        given = _FOR.fullmatch(piece.body)
        if given is None:
            raise self.unknown(piece)
        name, count = given[1], self.number(given[2], piece) if active else 0
        before, end = self.values.get(name), place
        for index in range(count):
            self.values[name] = str(index)
            end = self.block(place + 1, True, ("endfor",))
        if count < 1:
            end = self.block(place + 1, False, ("endfor",))
        self.values.pop(name, None)
        if before is not None:
            self.values[name] = before
        return end + 1

    def chosen(self, place: int, active: bool) -> int:
        piece = self.pieces[place]
        holds = active and bool(self.number(piece.body[2:], piece))
        end = self.block(place + 1, holds, ("else", "endif"))
        if self.pieces[end].body == "else":
            end = self.block(end + 1, active and not holds, ("endif",))
        return end + 1

    def put(self, text: str) -> None:
        self.out.append(text)
        if len(self.out) > _MOST:
            raise EinfuseError(f"{self.source}: the template comes to more than {_MOST} pieces")

    def number(self, text: str, piece: _Piece) -> int:
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError):
            raise self.unknown(piece) from None
        try:
            return self.value(tree, piece)
        except ZeroDivisionError:
            raise self.unknown(piece) from None

    def value(self, node: ast.AST, piece: _Piece) -> int:
        match node:
            case ast.Constant(value=int(value)):
                return value
            case ast.Name(id=name):
                if name not in self.values:
                    raise EinfuseError(
                        f"{self.source}:{piece.line}: the template needs a value: --set {name}=..."
                    )
                given = self.values[name]
                if not re.fullmatch(r"[0-9]+", given):
                    raise EinfuseError(
                        f"{self.source}:{piece.line}: expected a whole number for {name}, found "
                        f"'{given}'"
                    )
                return int(given)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                apply = _OPERATORS[type(op)]
                return int(apply(self.value(left, piece), self.value(right, piece)))
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _OPERATORS:
                apply = _OPERATORS[type(op)]
                return int(apply(self.value(left, piece), self.value(right, piece)))
            case _:
                raise self.unknown(piece)

    def unknown(self, piece: _Piece) -> EinfuseError:
        shown = " ".join(piece.tag.split())
        return EinfuseError(
            f"{self.source}:{piece.line}: cannot read the template tag {shown}: render it first"
        )
