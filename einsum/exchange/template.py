"""Templates of AccelForge's files by Jinja, as far as its own examples go: `render_template`.

``{% set N = N | default(8) %}``, ``{{N}}``, ``{% for i in range(N + 1) %}``, ``{% if N > 1 %}``
with ``else``, ``{# a comment #}``; in expressions whole numbers, names, ``+ - * // %`` and
comparisons. Anything else is refused, and what comes to too much.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError, nodes
from jinja2.sandbox import SandboxedEnvironment

from einfuse.einsum.language.errors import EinfuseError

_TAG = re.compile(r"\{%.*?%\}|\{\{.*?\}\}", re.DOTALL)
_MOST = 100_000  # turns of loops, and pieces that a template may come to
_LARGEST = 10**18
_ARITHMETIC = (nodes.Add, nodes.Sub, nodes.Mul, nodes.FloorDiv, nodes.Mod)
_TEXT = (nodes.Template, nodes.Output, nodes.TemplateData, nodes.Assign, nodes.If, nodes.For)
_VALUES = (nodes.Name, nodes.Compare, nodes.Operand, *_ARITHMETIC)


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
    environment = _Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    try:
        tree = environment.parse(text)
        for line, problem in _problems(tree, settings):
            raise EinfuseError(f"{source}:{line}: {problem or _unknown(text, line)}")
        values = {n: int(v) if re.fullmatch("[0-9]{1,18}", v) else v for n, v in settings.items()}
        template = environment.from_string(tree)
        pieces = []
        for piece in template.generate(values):
            pieces.append(piece)
            if len(pieces) > _MOST:
                raise _TooMuchError
        return "".join(pieces)
    except TemplateSyntaxError as error:
        unclosed = re.search(r"needs to be closed is '(\w+)'", error.message or "")
        if unclosed:
            raise EinfuseError(f"{source}: the template lacks {{% end{unclosed[1]} %}}") from None
        problem = _unknown(text, error.lineno)
        raise EinfuseError(f"{source}:{error.lineno}: {problem}") from None
    except _TooMuchError:
        raise EinfuseError(f"{source}: the template comes to more than {_MOST} pieces") from None
    except UndefinedError as error:
        name = (re.findall("'(.*)'", error.message or "") or ["?"])[0]
        raise EinfuseError(
            f"{source}:{_line_of(error)}: the template needs a value: --set {name}=..."
        ) from None
    except (ArithmeticError, TypeError, RecursionError) as error:
        line = _line_of(error)
        raise EinfuseError(f"{source}:{line}: {_unknown(text, line)}") from None


class _TooMuchError(Exception):
    """A template that comes to more than a file ever does."""


class _Environment(SandboxedEnvironment):
    """Jinja with whole numbers of a bounded size, and a bounded number of turns."""

    intercepted_binops = frozenset({"+", "-", "*", "//", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.turns = 0
        self.globals = {"range": self._range}

    def _range(self, count: int) -> range:
        self.turns += max(count, 0)
        if self.turns > _MOST:
            raise _TooMuchError
        return range(count)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        found = super().call_binop(context, operator, left, right)
        if abs(found) > _LARGEST:
            raise OverflowError
        return found


def _problems(node: nodes.Node, settings: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Yield the lines of what is not known, and of names that are no whole numbers."""
    match node:
        case nodes.For(iter=nodes.Call(node=nodes.Name(name="range"), args=[count]) as called):
            plain = not (called.kwargs or called.dyn_args or called.dyn_kwargs or node.test)
            if not plain or node.recursive or not isinstance(node.target, nodes.Name):
                yield node.lineno, ""
            yield from _numbers(count, settings)
            for part in (count, *node.body, *node.else_):
                yield from _problems(part, settings)
            return
        case nodes.Filter(name="default", node=nodes.Name(), args=[number], kwargs=[]):
            yield from _problems(number, settings)
            return
        case nodes.Const(value=int()):
            return
        case nodes.For() | nodes.Filter() | nodes.Const():
            yield node.lineno, ""
        case nodes.Assign(target=target) if not isinstance(target, nodes.Name):
            yield node.lineno, ""
        case _ if not isinstance(node, (*_TEXT, *_VALUES)):
            yield node.lineno, ""
    if isinstance(node, (nodes.Compare, *_ARITHMETIC)):
        yield from _numbers(node, settings)
    for child in node.iter_child_nodes():
        yield from _problems(child, settings)


def _numbers(node: nodes.Node, settings: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    for name in [node] if isinstance(node, nodes.Name) else node.find_all(nodes.Name):
        given = settings.get(name.name, "0")
        if not re.fullmatch("[0-9]{1,18}", given):
            yield name.lineno, f"expected a whole number for {name.name}, found '{given}'"


def _unknown(text: str, line: int) -> str:
    found = (tag for tag in _TAG.finditer(text) if text.count("\n", 0, tag.end()) + 1 >= line)
    tag = next(found, None)
    shown = " ".join(tag[0].split()) if tag else "{%"
    return f"cannot read the template tag {shown}: render it first"


def _line_of(error: BaseException) -> int:
    """Return the line of a template at which it failed: Jinja writes it into the traceback."""
    lines, trace = [1], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in ("<template>", "<unknown>"):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return lines[-1]
