"""Formulas of designs: ``largest_divisor(ceil(P / array_2d.columns), buffer.bytes / 512)``.

A formula is parsed once and evaluated over scalars or whole arrays of shapes and architectures.
Names are rank sizes, earlier definitions, and parameters of the architecture by their path.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import lark
import numpy as np
from numpy.typing import NDArray

from einfuse.einsum import closest
from einfuse.mapper.errors import MappingError

_LONGEST = 50_000  # characters of a formula
_CHAIN = 50  # operators in a row that are compiled as a chain
Values = Any  # a number, a truth value, or a NumPy array of either


@dataclass(frozen=True, slots=True)
class Formula:
    """A parsed formula; ``text`` is what the file says."""

    text: str
    tree: lark.Tree[lark.Token]
    names: tuple[str, ...]  # that it reads, each once
    function: Callable[[Mapping[str, Values]], Values] = field(compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Go to another process as what was parsed: its compiled form stays here."""
        return formula_of, (self.tree, self.text)

    def evaluate(self, names: Mapping[str, Values]) -> Values:
        """Return the value for the values of its names (broadcast against each other).

        >>> float(parse_formula("ceil(P / 256) * 2").evaluate({"P": 300}))
        4.0
        >>> parse_formula("largest_divisor(P, 5)").evaluate({"P": np.array([12, 14])})
        array([4., 2.])
        """
        return self.function(names)


class Scope(Mapping[str, Values]):
    """Names with their values, worked out when they are asked for.

    ``known`` are values (None: unknown); ``definitions`` are formulas over all names of the
    scope; ``sources`` make several names at once from the scope (a row of a table); ``ranks``
    need a size when they are read. A formula
    that reads an unknown value is itself unknown. ``ranks`` need a size if they are read.

    >>> scope = Scope({"P": 512}, {"tiles": parse_formula("P / lanes"), "lanes": parse_formula(64)})
    >>> scope["tiles"]
    8.0
    """

    def __init__(
        self,
        known: Mapping[str, Values | None],
        definitions: Mapping[str, Formula] | None = None,
        sources: Mapping[str, Callable[[Mapping[str, Values]], Mapping[str, Values]]] | None = None,
        ranks: Collection[str] = (),
    ) -> None:
        self._found: dict[str, Values | None] = dict(known)
        self._definitions = dict(definitions or {})
        self._sources = dict(sources or {})
        self._ranks = frozenset(ranks)
        self._rows: dict[str, Mapping[str, Values | None]] = {}
        self._busy: list[str] = []

    def __getitem__(self, name: str) -> Values:
        if name in self._found:
            return self._found[name]
        if name in self._busy:
            circle = " -> ".join([*self._busy[self._busy.index(name) :], name])
            raise MappingError(f"{circle} go round in a circle")
        if name in self._definitions:
            formula = self._definitions[name]
            self._busy.append(name)
            unknown = any(self[read] is None for read in formula.names if read in self)
            self._found[name] = None if unknown else formula.evaluate(self)
            self._busy.pop()
            return self._found[name]
        if name in self._ranks:
            raise MappingError(f"rank {name} has no size: give {name}=... in the shape (--shape)")
        row = self.row(name.partition(".")[0])
        if name not in row:
            raise MappingError(f"unknown name '{name}'{closest(name, row)}")
        self._found[name] = row[name]
        return self._found[name]

    def row(self, source: str) -> Mapping[str, Values | None]:
        """Return the names that a source makes, with their values."""
        if source not in self._rows:
            if source in self._busy:
                circle = " -> ".join([*self._busy[self._busy.index(source) :], source])
                raise MappingError(f"{circle} go round in a circle")
            self._busy.append(source)
            self._rows[source] = self._sources[source](self)
            self._busy.pop()
        return self._rows[source]

    def __contains__(self, name: object) -> bool:
        return (
            name in self._found
            or name in self._definitions
            or name in self._ranks
            or (isinstance(name, str) and name.partition(".")[0] in self._sources)
        )

    def __iter__(self) -> Iterator[str]:
        return iter({**self._found, **self._definitions, **self._sources})

    def __len__(self) -> int:
        return sum(1 for _ in self)


@cache
def parse_formula(text: str | int | float) -> Formula:
    """Parse a formula; MappingError with the place if it is none."""
    source = str(text)
    if len(source) > _LONGEST:
        raise MappingError(
            f"formula '{source[:40]} ...': expected at most {_LONGEST:,} characters, "
            f"found {len(source):,}"
        )
    try:
        return formula_of(parser().parse(source, start="formula"), source)
    except RecursionError:
        raise MappingError(f"formula '{source[:40]} ...': nested too deeply") from None
    except lark.exceptions.UnexpectedInput as error:
        raise MappingError(
            f"formula '{source}': expected a number, a name, a function or an operator, "
            f"found {unexpected(error, source)}"
        ) from None


def formula_of(tree: lark.Tree[lark.Token], text: str | None = None) -> Formula:
    """Return the formula of a parsed tree."""
    found = (str(name.children[0]) for name in tree.find_data("name"))
    shown = text or render_formula(tree)
    return Formula(shown, tree, tuple(dict.fromkeys(found)), _compile(tree, shown))


@cache
def parser() -> lark.Lark:
    """Return the parser of design.lark; it starts at ``formula`` or at ``node``."""
    grammar = Path(__file__).with_name("design.lark").read_text(encoding="utf-8")
    return lark.Lark(grammar, parser="lalr", start=["formula", "node"], propagate_positions=True)


def unexpected(error: lark.exceptions.UnexpectedInput, source: str) -> str:
    """Say what a parser stumbled over, and where."""
    token: lark.Token | None = getattr(error, "token", None)
    if token is not None and token.type == "$END":
        return "the end"
    place = max(0, error.column - 1)
    return f"'{source[place:]}' at column {place + 1}"


def render_formula(tree: Any) -> str:
    """Return the text of a formula's tree, with parentheses only where they are needed.

    >>> render_formula(parse_formula("(P + 1) * 2 - (3 - Q)").tree)
    '(P + 1) * 2 - (3 - Q)'
    """
    return _render(tree, 0)


def _render(tree: Any, floor: int) -> str:
    children = tree.children
    match tree.data:
        case "number" | "name":
            return str(children[0])
        case "call":
            return f"{children[0]}({', '.join(_render(c, 0) for c in children[1:])})"
        case "minus":
            level, text = 6, f"-{_render(children[0], 6)}"
        case "inverse":
            level, text = 2, f"not {_render(children[0], 3)}"
        case "either" | "both":
            level, word = (0, "or") if tree.data == "either" else (1, "and")
            text = f"{_render(children[0], level)} {word} {_render(children[1], level + 1)}"
        case _:
            sign = str(children[1])
            level = 3 if tree.data == "compare" else 4 if sign in "+-" else 5
            left = _render(children[0], level + (tree.data == "compare"))
            text = f"{left} {sign} {_render(children[2], level + 1)}"
    return f"({text})" if level < floor else text


def _divisors(number: int) -> Iterator[int]:
    for small in range(1, int(number**0.5) + 1):
        if number % small == 0:
            yield small
            yield number // small


def _over_pairs(
    choose: Callable[[int, float], float],
) -> Callable[[Values, Values], NDArray[np.float64]]:
    """Vectorise a function of (whole number, limit) by evaluating each distinct pair once."""

    def vectorised(numbers: Values, limits: Values) -> NDArray[np.float64]:
        number, limit = np.broadcast_arrays(np.asarray(numbers, float), np.asarray(limits, float))
        pairs, where = np.unique(
            np.stack([number.ravel(), limit.ravel()]), axis=1, return_inverse=True
        )
        chosen = np.array([choose(int(n), float(k)) for n, k in pairs.T])
        result = chosen[where.reshape(-1)].reshape(number.shape)
        return result if result.shape else result[()]

    return vectorised


def _largest(number: int, limit: float) -> float:
    """The largest divisor at most the limit; 0 if there is none."""
    return float(max((d for d in _divisors(number) if d <= limit), default=0))


def _smallest(number: int, limit: float) -> float:
    """The smallest divisor at least the limit; the number itself if the limit is beyond it."""
    return float(min((d for d in _divisors(number) if d >= limit), default=number))


def _ceil(value: Values) -> Values:
    return np.ceil(value)


def _power_of_two(value: Values) -> Values:
    """The largest power of two at most the value; 0 below 1."""
    clipped = np.maximum(value, 1)
    return np.where(np.asarray(value) >= 1, 2.0 ** np.floor(np.log2(clipped)), 0.0)[()]


FUNCTIONS: dict[str, tuple[int, Callable[..., Values]]] = {
    "ceil": (1, _ceil),
    "floor": (1, np.floor),
    "log2": (1, np.log2),
    "sqrt": (1, np.sqrt),
    "min": (2, np.minimum),
    "max": (2, np.maximum),
    "where": (3, lambda test, yes, no: np.where(test, yes, no)[()]),
    "largest_divisor": (2, _over_pairs(_largest)),
    "smallest_divisor": (2, _over_pairs(_smallest)),
    "power_of_two": (1, _power_of_two),
    "round": (2, lambda value, digits: np.round(value, int(digits))),
}

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": np.not_equal,
}


def _compile(node: Any, text: str) -> Callable[[Mapping[str, Values]], Values]:
    """Return the function of a tree: names are looked up when it is called."""
    children: list[Any] = list(node.children)
    match node.data:
        case "number":
            number = float(children[0])
            value = int(number) if number.is_integer() and abs(number) < 2**53 else number
            return lambda names: value
        case "name":
            return _compile_name(str(children[0]), text)
        case "call":
            return _compile_call(str(children[0]), children[1:], text)
        case "binary" | "either" | "both" if _links(node) > _CHAIN:
            return _compile_chain(node, text)
        case "binary" | "compare":
            left, right = _compile(children[0], text), _compile(children[2], text)
            if children[1] in ("/", "%"):
                divide = _divide if children[1] == "/" else _remainder
                return lambda names: divide(left(names), right(names), text)
            meaning = _OPERATORS[str(children[1])]
            return lambda names: meaning(left(names), right(names))
        case "minus":
            operand = _compile(children[0], text)
            return lambda names: -operand(names)
        case "inverse":
            operand = _compile(children[0], text)
            return lambda names: np.logical_not(operand(names))
        case either_or_both:
            left, right = _compile(children[0], text), _compile(children[1], text)
            join = np.logical_or if either_or_both == "either" else np.logical_and
            return lambda names: join(left(names), right(names))


def _links(node: Any) -> int:
    """Return how many operators follow each other: ``a + b + c`` has two."""
    count = 0
    while node.data in ("binary", "either", "both"):
        node, count = node.children[0], count + 1
    return count


def _compile_chain(node: Any, text: str) -> Callable[[Mapping[str, Values]], Values]:
    """Return the function of a long chain of operators, from left to right, without recursion."""
    steps: list[tuple[Callable[[Any, Any], Any], Callable[[Mapping[str, Values]], Values]]] = []
    while node.data in ("binary", "either", "both"):
        sign = str(node.children[1]) if node.data == "binary" else node.data
        steps.append((_meaning(sign, text), _compile(node.children[-1], text)))
        node = node.children[0]
    first = _compile(node, text)
    steps.reverse()

    def evaluate(names: Mapping[str, Values]) -> Values:
        value = first(names)
        for meaning, operand in steps:
            value = meaning(value, operand(names))
        return value

    return evaluate


def _meaning(sign: str, text: str) -> Callable[[Any, Any], Any]:
    if sign in ("/", "%"):
        divide = _divide if sign == "/" else _remainder
        return lambda left, right: divide(left, right, text)
    known = {"either": np.logical_or, "both": np.logical_and}
    return known[sign] if sign in known else _OPERATORS[sign]


def _compile_name(name: str, text: str) -> Callable[[Mapping[str, Values]], Values]:
    def look_up(names: Mapping[str, Values]) -> Values:
        if name not in names:
            raise MappingError(f"formula '{text}': unknown name '{name}'{closest(name, names)}")
        return names[name]

    return look_up


def _compile_call(
    function: str, arguments: list[Any], text: str
) -> Callable[[Mapping[str, Values]], Values]:
    if function not in FUNCTIONS:
        near = closest(function, FUNCTIONS)
        raise MappingError(f"formula '{text}': unknown function '{function}'{near}")
    arity, meaning = FUNCTIONS[function]
    if len(arguments) != arity:
        raise MappingError(
            f"formula '{text}': {function} takes {arity} arguments, found {len(arguments)}"
        )
    parts = [_compile(argument, text) for argument in arguments]
    return lambda names: meaning(*(part(names) for part in parts))


def _divide(left: Values, right: Values, text: str) -> Values:
    zero = np.equal(right, 0)
    if not np.any(zero):
        return left / right
    if np.ndim(right) == 0:
        raise MappingError(f"formula '{text}': division by zero")
    return np.where(zero, np.inf, left / np.where(zero, 1, right))  # at a point of an array


def _remainder(left: Values, right: Values, text: str) -> Values:
    zero = np.equal(right, 0)
    if np.ndim(right) == 0 and zero:
        raise MappingError(f"formula '{text}': remainder of a division by zero")
    return np.where(zero, np.nan, np.mod(left, np.where(zero, 1, right)))[()]
