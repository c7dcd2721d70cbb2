"""A mapping: a tree of loops, storage and branches, a unit for each Einsum, and a pipeline.

::

    Nest     = [Node, ...]                      # outermost first
    Node     = Temporal(rank, tile)             for P in P1*array_2d.columns
             | Parallel(rank, tile, dimension)  parallel P over columns
             | Keep(tensors, level)             keep Q, RNV at buffer
             | Branch(children)                 branch: [[...], [...]]
             | Compute(einsum, unit)            compute QK on array_2d

Each line may end in ``when CONDITION``. All of it is choices: what follows from them (counts,
time) is derived elsewhere. The words mean:

``for R in T``       visit the current tile of R in tiles of T (1 if left out), one after another
``parallel R over D``  the same side by side, on dimension D of the unit; more than fit go in waves
``keep T at L``      the current tile of T lives at level L while the nest below runs
  ``double``           twice, so that the next tile loads while this one is used
  ``copies N``         N tiles of it are under way (between Einsums that overlap)
  ``streamed``         it only passes through: it takes room there, and is counted as if it did not
  ``overlaying T``     it takes turns with T in one place, and room only beyond T's
  ``forwarded``        it comes from the unit that makes it, not from its home above
  ``copied``           T is a view: the copy that it stands for brings it, in a time of its own
  ``spilling S to L``  the share S of it does not fit: accesses to that share go to level L
``compute X on U``   the innermost step of Einsum X on unit U
  ``forwarding A``     operand A is taken from the registers it was made in, not from its home
  ``accumulating R``   the output is folded over R in place, as if it had no rank R
  ``pipelined``        the operations of a point overlap: it takes the longest one's slots
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import lark
import numpy as np

from einfuse.mapper.errors import MappingError
from einfuse.mapper.machine.formula import (
    Formula,
    Values,
    formula_of,
    parse_formula,
    parser,
    unexpected,
)


@dataclass(frozen=True, slots=True)
class Temporal:
    """A loop in time over a rank, in tiles (None: of 1)."""

    rank: str
    tile: Formula | None = None


@dataclass(frozen=True, slots=True)
class Parallel:
    """A loop in space over a rank, on a dimension of the unit below."""

    rank: str
    tile: Formula | None
    dimension: str


@dataclass(frozen=True, slots=True)
class Spill:
    """The share of a kept tensor that does not fit, and the level that takes it."""

    share: Formula
    level: str


@dataclass(frozen=True, slots=True)
class Keep:
    """Storage: the current tile of each tensor lives at a level."""

    tensors: tuple[str, ...]
    level: str
    double: bool = False
    copies: Formula | None = None
    streamed: bool = False
    forwarded: bool = False
    copied: bool = False
    overlaying: str | None = None
    spill: Spill | None = None


@dataclass(frozen=True, slots=True)
class Compute:
    """The innermost step of an Einsum, and the unit that does it."""

    einsum: str
    unit: str
    forwarding: tuple[str, ...] = ()
    accumulating: tuple[str, ...] = ()
    pipelined: bool = False


@dataclass(frozen=True, slots=True)
class Branch:
    """Nests that share the loops above: one after the other, or overlapped as a pipeline."""

    children: tuple[Nest, ...]
    pipeline: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """A step of a nest, with the condition under which it is there."""

    step: Temporal | Parallel | Keep | Compute | Branch
    when: Formula | None = None


Nest = tuple[Node, ...]


def parse_nest(lines: Any, where: str = "mapping") -> Nest:
    """Return the nest of a list of lines and ``{branch: [...]}`` or ``{pipeline: [...]}`` blocks.

    >>> nest = parse_nest(["for B", "for P in 256", "compute QK on array_2d"])
    >>> [type(node.step).__name__ for node in nest]
    ['Temporal', 'Temporal', 'Compute']
    """
    if not isinstance(lines, list) or not lines:
        raise MappingError(f"{where}: expected a list of lines, found {lines!r}")
    nest: list[Node] = []
    for number, line in enumerate(lines):
        place = f"{where}[{number}]"
        if isinstance(line, str):
            nest.extend(_parse_line(line, place))
        elif isinstance(line, dict):
            nest.append(_parse_branch(line, place))
        else:
            raise MappingError(f"{place}: expected a line or a branch, found {line!r}")
    for number, node in enumerate(nest[:-1]):
        if isinstance(node.step, Compute | Branch) and node.when is None:
            following = nest[number + 1]
            if not isinstance(following.step, Compute | Branch) or following.when is None:
                raise MappingError(
                    f"{where}: nothing may follow a compute or a branch in a nest; found "
                    f"'{render_nest((following,))[0]}'"
                )
    return tuple(nest)


def _parse_branch(block: dict[Any, Any], where: str) -> Node:
    kinds = [key for key in ("branch", "pipeline") if key in block]
    extra = set(block) - {"branch", "pipeline", "when"}
    if len(kinds) != 1 or extra:
        raise MappingError(
            f"{where}: expected 'branch: [...]' or 'pipeline: [...]' with an optional 'when', "
            f"found the keys {', '.join(map(str, block)) or 'none'}"
        )
    kind = kinds[0]
    children = block[kind]
    if not isinstance(children, list) or not children:
        raise MappingError(f"{where}.{kind}: expected a list of nests, found {children!r}")
    when = block.get("when")
    return Node(
        Branch(
            tuple(parse_nest(child, f"{where}.{kind}[{n}]") for n, child in enumerate(children)),
            pipeline=kind == "pipeline",
        ),
        None if when is None else _formula_of(str(when), where),
    )


def _formula_of(text: str, where: str) -> Formula:
    try:
        return parse_formula(text)
    except MappingError as error:
        raise MappingError(f"{where}: {error}") from None


def _parse_line(line: str, where: str) -> list[Node]:
    try:
        tree = parser().parse(line, start="node")
    except lark.exceptions.UnexpectedInput as error:
        raise MappingError(
            f"{where}: expected 'for', 'parallel', 'keep' or 'compute' as in "
            f"'for P in 256', found {unexpected(error, line)} in '{line}'"
        ) from None
    action, condition = tree.children
    when = _formula(condition)
    return [Node(step, when) for step in _steps(action)]


def _steps(action: Any) -> list[Temporal | Parallel | Keep | Compute]:
    first, *rest = action.children
    match action.data:
        case "temporal":
            return [Temporal(rank, _formula(rest[0])) for rank in _names(first)]
        case "parallel":
            return [Parallel(str(first), _formula(rest[0]), str(rest[1]))]
        case "keep":
            options = {option.data: option.children for option in rest[1:]}
            spill = None
            if "spilling" in options:
                share, level = options["spilling"]
                found = _formula(share)
                assert found is not None
                spill = Spill(found, str(level))
            return [
                Keep(
                    _names(first),
                    str(rest[0]),
                    double="double" in options,
                    copies=_formula(options["copies"][0]) if "copies" in options else None,
                    streamed="streamed" in options,
                    forwarded="forwarded" in options,
                    copied="copied" in options,
                    overlaying=next(map(str, options.get("overlaying", [])), None),
                    spill=spill,
                )
            ]
        case _:
            options = {option.data: option.children for option in rest[1:]}
            return [
                Compute(
                    str(first),
                    str(rest[0]),
                    forwarding=_names(*options.get("forwarding", [""])),
                    accumulating=_names(*options.get("accumulating", [""])),
                    pipelined="pipelined" in options,
                )
            ]


def _names(token: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in str(token).split(",") if name.strip())


def _formula(node: Any) -> Formula | None:
    return None if node is None else formula_of(node)


def render_nest(nest: Nest) -> list[Any]:
    """Return the lines and blocks that `parse_nest` reads back as the same nest."""
    lines: list[Any] = []
    for node in nest:
        when = f" when {node.when.text}" if node.when else ""
        match node.step:
            case Branch(children=children, pipeline=pipeline):
                block: dict[str, Any] = {
                    "pipeline" if pipeline else "branch": [render_nest(c) for c in children]
                }
                if node.when:
                    block["when"] = node.when.text
                lines.append(block)
            case step:
                lines.append(_render_step(step) + when)
    return lines


def _render_step(step: Temporal | Parallel | Keep | Compute) -> str:
    match step:
        case Temporal(rank=rank, tile=tile):
            return f"for {rank}" + (f" in {tile.text}" if tile else "")
        case Parallel(rank=rank, tile=tile, dimension=dimension):
            return f"parallel {rank}" + (f" in {tile.text}" if tile else "") + f" over {dimension}"
        case Keep():
            words = [f"keep {', '.join(step.tensors)} at {step.level}"]
            words += [w for w in ("double", "streamed", "forwarded", "copied") if getattr(step, w)]
            if step.copies:
                words.append(f"copies {step.copies.text}")
            if step.overlaying:
                words.append(f"overlaying {step.overlaying}")
            if step.spill:
                words.append(f"spilling {step.spill.share.text} to {step.spill.level}")
            return " ".join(words)
        case Compute():
            words = [f"compute {step.einsum} on {step.unit}"]
            if step.forwarding:
                words.append(f"forwarding {', '.join(step.forwarding)}")
            if step.accumulating:
                words.append(f"accumulating {', '.join(step.accumulating)}")
            if step.pipelined:
                words.append("pipelined")
            return " ".join(words)


def walk_nest(nest: Nest) -> Iterator[Node]:
    """Yield every node of a nest, outer before inner, branches in order."""
    for node in nest:
        yield node
        if isinstance(node.step, Branch):
            for child in node.step.children:
                yield from walk_nest(child)


def computes_of(nest: Nest) -> list[Compute]:
    """Return the compute steps of a nest, branches in order."""
    return [node.step for node in walk_nest(nest) if isinstance(node.step, Compute)]


def select(nest: Nest, names: Mapping[str, Values]) -> Nest:
    """Return the nest with its conditions decided; they must not differ over an array."""

    def holds(node: Node) -> bool:
        return node.when is None or bool(np.all(node.when.evaluate(names)))

    chosen: list[Node] = []
    for node in nest:
        if holds(node):
            step = node.step
            if isinstance(step, Branch):
                children = tuple(select(child, names) for child in step.children)
                step = Branch(tuple(child for child in children if child), step.pipeline)
                if not step.children:
                    continue
            chosen.append(Node(step))
    return tuple(chosen)
