"""The rules of the language, as a list; each raises a `CascadeError` that points at its place."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from .cascade import Cascade
from .declaration_rules import (
    inputs_are_well_declared,
    iterations_are_well_declared,
    known_rank,
    ranks_are_well_declared,
    something_is_computed,
    splits_are_well_declared,
)
from .equation import Einsum, Populate, Reduce
from .errors import CascadeError, CascadeWarning, EinfuseError, closest, located
from .expression import (
    Access,
    Binary,
    Call,
    Comparison,
    Coordinate,
    Expression,
    Index,
    Number,
    RankSize,
    Span,
    accesses,
    children,
    variables,
    walk,
)
from .functions import (
    DEFAULT_MERGES,
    MERGES,
    coordinate_names,
    coordinate_operator,
    function,
    monoid,
    monoid_names,
)
from .generation import check_generations
from .inference import infer_tensors
from .shape import bind_known, representatives


def validated(cascade: Cascade) -> Cascade:
    """Return the cascade with its tensors inferred; CascadeError if it breaks a rule.

    A cascade that names no output gets as outputs what it computes and does not read. Rewrites
    that build a cascade call this to complete ``tensors`` and to check the result.
    """
    with located(cascade):
        for rule in _BEFORE_INFERENCE:
            rule(cascade)
        cascade = replace(cascade, tensors=infer_tensors(cascade))
        if not cascade.outputs:
            cascade = replace(cascade, outputs=_unread(cascade), output_spans=())
        for rule in RULES:
            rule(cascade)
    return cascade


def warnings(cascade: Cascade) -> tuple[str, ...]:
    """Return what is right and probably not meant: inputs that no Einsum reads.

    >>> from einfuse.einsum.language.parser import parse
    >>> warnings(parse("rank M\\ninput A[M]\\nY[] = A[m]"))
    ()
    """
    return tuple(message for message, _ in _unread_inputs(cascade))


def warn(cascade: Cascade) -> None:
    """Emit `warnings` as Python warnings, which go to standard error with file and line."""
    for message, span in _unread_inputs(cascade):
        python_warnings.warn_explicit(
            message, CascadeWarning, cascade.source or cascade.name, span.line if span else 0
        )


def _unread(cascade: Cascade) -> tuple[str, ...]:
    """Return the tensors that no other Einsum reads; what the last one writes, if all are read."""
    made = dict.fromkeys(o.tensor for einsum in cascade.einsums for o in einsum.outputs)
    unread = (t for t in made if all(e.name == t for e in cascade.consumers(t)))
    return tuple(unread) or tuple(output.tensor for output in cascade.einsums[-1].outputs)


def _unread_inputs(cascade: Cascade) -> Iterator[tuple[str, Span | None]]:
    read = {access.tensor for einsum in cascade.einsums for access in einsum.operands}
    read |= {access.tensor for part in cascade.stop for access in accesses(part)}
    for tensor in cascade.input_tensors:
        if tensor.name not in read:
            yield f"input {tensor.name} is never read", tensor.span


# Declarations.


# Single Einsums.


def _functions_are_known(cascade: Cascade) -> None:
    for node in _values(cascade):
        match node:
            case Call(function=name, arguments=arguments, span=span):
                with _pointing_at(span):
                    known = function(name)
                if not known.accepts(len(arguments)):
                    takes = "two or more arguments" if known.arity is None else (
                        f"{known.arity} argument{'s' if known.arity > 1 else ''}"
                    )  # fmt: skip
                    raise CascadeError(f"{name} takes {takes}, found {len(arguments)}", span)
            case Binary(operator="%", span=span):
                raise CascadeError("'%' stands in indices and filters only", span)
            case Access(indices=indices):
                for index in indices:
                    _check_index(index)


def _stops_are_plain(cascade: Cascade) -> None:
    for node in (node for part in cascade.stop for node in walk(part)):
        match node:
            case Call(function=name, span=span):
                raise CascadeError(f"a stop holds no function, found {name}(...)", span)
            case Access(indices=indices):
                for index in indices:
                    _check_index(index)


def _check_index(index: Index) -> None:
    for node in walk(index):
        match node:
            case Binary(operator="/" | "%", right=right) if any(
                isinstance(below, Coordinate | Access) for below in walk(right)
            ):
                raise CascadeError("an index divides by a number or by a size", right.span)
            case Call(function=name, span=span):
                raise CascadeError(f"an index holds no function, found {name}(...)", span)
            case Number(value=value, span=span) if not isinstance(value, int):
                raise CascadeError(f"an index is a whole number, found {value}", span)
            case Binary(operator="/" | "%", right=Number(value=value), span=span) if value < 1:
                raise CascadeError(f"an index divides by at least 1, found {value}", span)


def _actions_are_sound(cascade: Cascade) -> None:
    for einsum in cascade.einsums:
        left = set(einsum.output_variables)
        gone: set[str] = set()
        for action in einsum.actions:
            if isinstance(action, Reduce):
                _check_operator(action)
                for variable in action.variables:
                    _check_folded(einsum, variable, action, gone)
                    if variable in left:
                        raise CascadeError(
                            f"{action.operator}({variable}) reduces a variable that is still on "
                            "the left",
                            action.span,
                        )
                    gone.add(variable)
            else:
                with _pointing_at(action.span):
                    coordinate_operator(action.operator)
                _check_folded(einsum, action.source, action, gone)
                gone.add(action.source)
                _check_target(cascade, einsum, action, left)
        _check_outputs(einsum)


def _check_operator(action: Reduce) -> None:
    if action.operator in monoid_names():
        return
    if action.operator in coordinate_names():
        raise CascadeError(
            f"{action.operator} places coordinates: write "
            f"{action.operator}({action.variables[0]} -> TARGET)",
            action.span,
        )
    with _pointing_at(action.span):
        monoid(action.operator)


def _check_folded(einsum: Einsum, variable: str, action: Reduce | Populate, gone: set[str]) -> None:
    if variable in gone:
        raise CascadeError(f"variable {variable} is folded twice", action.span)
    if variable not in einsum.variables:
        known = ", ".join(einsum.variables) or "none"
        raise CascadeError(
            f"{action.operator} folds variable {variable}, which the right-hand side lacks "
            f"(its variables: {known})",
            action.span,
        )


def _check_target(cascade: Cascade, einsum: Einsum, action: Populate, left: set[str]) -> None:
    if action.source in left:
        raise CascadeError(
            f"{action.operator} replaces {action.source} by {action.target}, so {action.source} "
            "cannot be on the left",
            action.span,
        )
    _known_variable(cascade, action.target, action.span)
    if action.target not in left:
        raise CascadeError(
            f"{action.operator} places along {action.target}, which is not on the left", action.span
        )
    if action.target in variables(einsum.expression):
        raise CascadeError(
            f"{action.operator} places along {action.target}, which the right already has",
            action.span,
        )


def _check_outputs(einsum: Einsum) -> None:
    populates = [a for a in einsum.actions if isinstance(a, Populate)]
    if len(einsum.outputs) == 1:
        return
    if len(einsum.outputs) > 2 or len(populates) != 1:
        raise CascadeError(
            "two outputs are the values and the coordinates of one populate, such as "
            "':: topk(m -> t)'",
            einsum.span,
        )
    values, places = einsum.outputs
    if values.tensor == places.tensor:
        raise CascadeError("values and coordinates need two names", places.span)
    if values.indices != places.indices:
        raise CascadeError("values and coordinates need the same indices", places.span)


def _merges_are_sound(cascade: Cascade) -> None:
    for einsum in cascade.einsums:
        if einsum.merge is None:
            continue
        if einsum.merge not in MERGES:
            raise CascadeError(
                f"unknown merge '{einsum.merge}'{closest(einsum.merge, MERGES)}",
                einsum.merge_span or einsum.span,
            )
        match einsum.expression:
            case Binary(operator=operator) if operator in DEFAULT_MERGES:
                continue
            case Call(function=name) if name in DEFAULT_MERGES:
                continue
        raise CascadeError(
            f"'@ {einsum.merge}' says which coordinates the outermost operator touches: "
            f"expected one of {' '.join(DEFAULT_MERGES)} there",
            einsum.span,
        )


# Names: ranks, variables, tensors.


def _variables_are_bound(cascade: Cascade) -> None:
    for einsum in cascade.einsums:
        read = set(variables(einsum.expression))
        read |= {a.target for a in einsum.actions if isinstance(a, Populate)}
        for root in (*einsum.outputs, einsum.expression):
            for node in walk(root):
                match node:
                    case Coordinate(variable=name, span=span):
                        if root is not einsum.expression and name not in read:
                            _known_left(cascade, name, span)
                        _known_variable(cascade, name, span)
                    case RankSize(rank=name, span=span):
                        known_rank(cascade, name, span)
    for part in cascade.stop:
        for node in walk(part):
            match node:
                case Coordinate(variable=name, span=span):
                    _known_variable(cascade, name, span)
                case RankSize(rank=name, span=span):
                    known_rank(cascade, name, span)


def _known_left(cascade: Cascade, name: str, span: Span | None) -> None:
    if cascade.rank_of(name) not in cascade.rank_names:
        raise CascadeError(
            f"variable {name} on the left is bound by no operand and no rank: declare "
            f"'rank {name.upper()}' or use it on the right",
            span,
        )


def _known_variable(cascade: Cascade, name: str, span: Span | None) -> None:
    rank = cascade.rank_of(name)
    if rank not in cascade.rank_names:
        raise CascadeError(
            f"variable {name} runs over rank {rank}, which is undefined"
            f"{closest(rank, cascade.rank_names)}",
            span,
        )


def _tensors_are_known(cascade: Cascade) -> None:
    known = {tensor.name: tensor for tensor in cascade.tensors}
    shared = representatives(cascade)
    fixed = bind_known(cascade)
    reads = [access for einsum in cascade.einsums for access in einsum.operands]
    reads += [access for part in cascade.stop for access in accesses(part)]
    for access in reads:
        if access.tensor not in known:
            raise CascadeError(
                f"undefined tensor {access.tensor}{closest(access.tensor, known)}", access.span
            )
        tensor = known[access.tensor]
        if len(access.indices) != len(tensor.ranks):
            raise CascadeError(
                f"{tensor.name} is given two rank lists: [{','.join(tensor.ranks)}], but "
                f"{len(access.indices)} ind{'ex' if len(access.indices) == 1 else 'ices'} here",
                access.span,
            )
        for index, rank in zip(access.indices, tensor.ranks, strict=True):
            if isinstance(index.expression, Coordinate):
                other = cascade.rank_of(index.expression.variable)
                same_size = other in fixed and fixed[other] == fixed.get(rank)
                kept = bool(index.condition)  # a filter keeps it inside: ``A[n: n<M]``
                if shared[other] != shared[rank] and not same_size and not kept:
                    raise CascadeError(
                        f"{tensor.name} is given two rank lists: {rank} in "
                        f"[{','.join(tensor.ranks)}], but {other} here (if they have one size, "
                        f"declare 'rank {other} = {rank}')",
                        index.expression.span,
                    )


def _outputs_are_defined(cascade: Cascade) -> None:
    made = {output.tensor for einsum in cascade.einsums for output in einsum.outputs}
    spans = cascade.output_spans or (None,) * len(cascade.outputs)
    seen: set[str] = set()
    for name, span in zip(cascade.outputs, spans, strict=True):
        if name in seen:
            raise CascadeError(f"output {name} is declared twice", span)
        seen.add(name)
        if name in cascade.inputs:
            raise CascadeError(f"output {name} is never defined: it is an input", span)
        if name not in made:
            raise CascadeError(f"output {name} is never defined{closest(name, made)}", span)


@contextmanager
def _pointing_at(span: Span | None) -> Iterator[None]:
    """Turn an error of a registry into one that points at a place of the text."""
    try:
        yield
    except EinfuseError as error:
        raise CascadeError(str(error), span) from None


def _values(cascade: Cascade) -> Iterator[Expression | Comparison | Index]:
    """Yield the nodes of all values; an access without what is inside its indices."""
    stack: list[Expression | Comparison | Index] = []
    for einsum in reversed(cascade.einsums):
        stack += [einsum.expression, *reversed(einsum.outputs)]
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, Access):
            stack += reversed(children(node))


_BEFORE_INFERENCE: tuple[Callable[[Cascade], None], ...] = (
    something_is_computed,
    ranks_are_well_declared,
    splits_are_well_declared,
    iterations_are_well_declared,
    inputs_are_well_declared,
    _functions_are_known,
    _stops_are_plain,
    _variables_are_bound,
)

RULES: tuple[Callable[[Cascade], None], ...] = (
    _tensors_are_known,
    _actions_are_sound,
    _merges_are_sound,
    check_generations,
    _outputs_are_defined,
)
"""The rules over a cascade whose tensors are inferred, in the order of their checking."""
