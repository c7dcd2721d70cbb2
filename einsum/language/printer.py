"""A cascade, written: as its text (`render`) and in the notation of papers (`latex`)."""

from __future__ import annotations

import math

from .cascade import Cascade, Rank, Tensor
from .equation import Action, Einsum, Reduce
from .errors import expect
from .expression import (
    Access,
    Binary,
    Call,
    Condition,
    Coordinate,
    Expression,
    Index,
    Negate,
    Number,
    RankSize,
)

_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "%": 2}


def render(cascade: Cascade) -> str:
    """Return the text form; ``parse(render(cascade)) == cascade``.

    >>> from einfuse.einsum.language.parser import parse
    >>> print(render(parse("rank M\\ninput A[M]\\noutput Y\\nY[]=A[m]*A[m]")), end="")
    rank M
    input A[M]
    output Y
    Y[] = A[m] * A[m]
    """
    expect(cascade, Cascade, "cascade", "a cascade (of einfuse.load_cascade or einfuse.parse)")
    lines: list[str] = []
    if cascade.ranks:
        lines.append("rank " + ", ".join(map(_rank, cascade.ranks)))
    lines += [f"split {s.whole} -> {s.outer}, {s.inner}" for s in cascade.splits]
    lines += [f"iter {i.variable} over {i.rank}" for i in cascade.iterations]
    if cascade.input_tensors:
        lines.append("input " + ", ".join(map(render_tensor, cascade.input_tensors)))
    if cascade.outputs:
        lines.append("output " + ", ".join(cascade.outputs))
    sectioned = bool(cascade.loop or cascade.final)
    for label, section in (
        ("init", cascade.init),
        ("loop", cascade.loop),
        ("final", cascade.final),
    ):
        if section and sectioned:
            lines.append(f"{label}:")
        lines += map(render_einsum, section)
        if label == "loop" and cascade.stop:
            lines.append(f"stop {render_condition(cascade.stop)}")
    return "\n".join(lines) + "\n"


def render_einsum(einsum: Einsum) -> str:
    """Return one Einsum's line.

    >>> from einfuse.einsum.library.cascades import load
    >>> render_einsum(load("attention/3-pass").einsums[1])
    'GM[p] = QK[m,p] :: max(m)'
    """
    outputs = ", ".join(map(render_expression, einsum.outputs))
    line = f"({outputs})" if len(einsum.outputs) > 1 else outputs
    line += f" = {render_expression(einsum.expression)}"
    if einsum.actions:
        line += " :: " + "; ".join(map(_action, einsum.actions))
    return line + (f" @ {einsum.merge}" if einsum.merge else "")


def render_tensor(tensor: Tensor) -> str:
    """Return ``Q[E,P]``."""
    return f"{tensor.name}[{','.join(tensor.ranks)}]"


def render_expression(expression: Expression) -> str:
    """Return the text of a value, with the fewest brackets that keep its tree."""
    return _expression(expression, 0, " ")


def render_index(expression: Expression) -> str:
    """Return the text of an index, without blanks: ``m1*M0+m0``."""
    return _expression(expression, 0, "")


def render_condition(condition: Condition) -> str:
    """Return the text of a filter or a stop condition."""
    return " & ".join(
        f"{_expression(c.left, 0, '')}{c.operator}{_expression(c.right, 0, '')}" for c in condition
    )


def latex(cascade: Cascade) -> str:
    """Return the Einsums in the notation of papers, as a LaTeX ``align*``.

    >>> from einfuse.einsum.library.cascades import load
    >>> print(latex(load("attention/3-pass")).splitlines()[2])
    GM_{p} &= QK_{m,p} :: \\bigvee_{m} \\max(\\cup) \\\\
    """
    lines: list[str] = []
    sectioned = bool(cascade.loop or cascade.final)
    for label, section in (
        ("init", cascade.init),
        ("loop", cascade.loop),
        ("final", cascade.final),
    ):
        if section and sectioned:
            lines.append(rf"\textbf{{{label}:}} &")
        lines += map(_latex_einsum, section)
        if label == "loop" and cascade.stop:
            lines.append(rf"\textbf{{stop}}\ & {_latex_condition(cascade.stop)}")
    return "\\begin{align*}\n" + " \\\\\n".join(lines) + "\n\\end{align*}\n"


def _latex_einsum(einsum: Einsum) -> str:
    outputs = ", ".join(_latex(output, 0) for output in einsum.outputs)
    line = f"({outputs})" if len(einsum.outputs) > 1 else outputs
    line += f" &= {_latex(einsum.expression, 0)}"
    if einsum.merge is not None:
        operator = {Binary: "operator", Call: "function"}[type(einsum.expression)]
        sign = _latex_operator(getattr(einsum.expression, operator))
        line += rf" :: \bigwedge {sign}({_LATEX_MERGES[einsum.merge]})"
    for action in einsum.actions:
        if isinstance(action, Reduce):
            folded = ",".join(map(_latex_name, action.variables))
            line += rf" :: \bigvee_{{{folded}}} {_latex_operator(action.operator)}(\cup)"
        else:
            source, target = _latex_name(action.source), _latex_name(action.target)
            line += rf" :: \operatorname{{{action.operator}}}_{{{source} \to {target}}}"
    return line


_LATEX_MERGES = {
    "union": r"\cup",
    "inter": r"\cap",
    "left": r"\leftarrow",
    "right": r"\rightarrow",
}
_LATEX_OPERATORS = {
    "*": r"\times",
    "%": r"\;\mathrm{mod}\;",
    "<=": r"\leq",
    ">=": r"\geq",
    "==": "=",
    "!=": r"\neq",
}
_LATEX_FUNCTIONS = {"max", "min", "log", "sin", "cos", "tanh"}


def _latex_operator(name: str) -> str:
    if name in _LATEX_FUNCTIONS:
        return "\\" + name
    return _LATEX_OPERATORS.get(name, rf"\operatorname{{{name}}}" if name.isalnum() else name)


def _latex_name(name: str) -> str:
    stem = name.rstrip("0123456789")
    digits = name[len(stem) :]
    stem = stem.replace("_", r"\_")
    return rf"{stem}_{{{digits}}}" if digits and stem else stem + digits


def _latex_condition(condition: Condition) -> str:
    return r" \wedge ".join(
        f"{_latex(c.left, 0)} {_LATEX_OPERATORS.get(c.operator, c.operator)} {_latex(c.right, 0)}"
        for c in condition
    )


def _latex(node: Expression, precedence: int) -> str:
    match node:
        case Number(value=value):
            return _number(value).replace("inf", r"\infty")
        case RankSize(rank=name) | Coordinate(variable=name):
            return _latex_name(name)
        case Access(tensor=tensor, indices=indices):
            places = (
                _latex(i.expression, 0) + (": " + _latex_condition(i.condition)) * bool(i.condition)
                for i in indices
            )
            name = tensor.replace("_", r"\_")
            return f"{name}_{{{','.join(places)}}}" if indices else name
        case Call(function="exp", arguments=(argument,)):
            return f"e^{{{_latex(argument, 0)}}}"
        case Call(function="sqrt", arguments=(argument,)):
            return rf"\sqrt{{{_latex(argument, 0)}}}"
        case Call(function=function, arguments=arguments):
            return f"{_latex_operator(function)}({', '.join(_latex(a, 0) for a in arguments)})"
        case Negate(operand=operand):
            return "-" + _latex(operand, 3)
        case Binary(operator=operator, left=left, right=right):
            own = _PRECEDENCE[operator]
            sign = _LATEX_OPERATORS.get(operator, operator)
            text = f"{_latex(left, own)} {sign} {_latex(right, own + 1)}"
            return f"({text})" if own < precedence else text


def _rank(rank: Rank) -> str:
    return rank.name if rank.size is None else f"{rank.name} = {rank.size}"


def _action(action: Action) -> str:
    if isinstance(action, Reduce):
        return f"{action.operator}({','.join(action.variables)})"
    return f"{action.operator}({action.source} -> {action.target})"


def _expression(node: Expression, precedence: int, space: str) -> str:
    match node:
        case Number(value=value):
            return _number(value)
        case RankSize(rank=name) | Coordinate(variable=name):
            return name
        case Access(tensor=tensor, indices=indices):
            return f"{tensor}[{','.join(map(_index, indices))}]"
        case Call(function=function, arguments=arguments):
            return f"{function}({', '.join(_expression(a, 0, space) for a in arguments)})"
        case Negate(operand=operand):
            nested = isinstance(operand, Negate | Number)
            inner = _expression(operand, 0 if nested else 3, space)
            return f"-({inner})" if nested else f"-{inner}"
        case Binary(operator=operator, left=left, right=right):
            own = _PRECEDENCE[operator]
            text = (
                _expression(left, own, space)
                + f"{space}{operator}{space}"
                + _expression(right, own + 1, space)
            )
            return f"({text})" if own < precedence else text


def _index(index: Index) -> str:
    text = _expression(index.expression, 0, "")
    return f"{text}: {render_condition(index.condition)}" if index.condition else text


def _number(value: int | float) -> str:
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return repr(int(value) if isinstance(value, int) else float(value))
