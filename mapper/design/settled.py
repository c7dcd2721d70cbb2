"""A design at one shape, in numbers: what its formulas come to, and the lines that hold there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from einfuse.mapper.machine.formula import Formula, Values, parse_formula
from einfuse.mapper.nest.nest import Branch, Keep, Nest, Node, select
from einfuse.mapper.nest.stages import Phase, Stage, Stall

from .design import Design


def settle(design: Design, sizes: Mapping[str, int], names: Mapping[str, Values]) -> Design:
    """Return a design with a number for every formula, without those for parameters and tables.

    Args:
        design: without ``grow``.
        sizes: those of the ranks to which it gives one.
        names: of everything that its formulas read, at one shape.
    """
    return replace(
        design,
        nest=_numbers(select(design.nest, names), names),
        stages=tuple(_stage(stage, names) for stage in design.stages),
        let=tuple((rank, parse_formula(size)) for rank, size in sizes.items()),
        tables=(),
        require=(),
        settings=(),
        unknown=(),
        grow=None,
        omissions=type(design.omissions)(),
    )


def _numbers(nest: Nest, names: Mapping[str, Values]) -> Nest:
    return tuple(Node(_step(node.step, names)) for node in nest)


def _step(step: Any, names: Mapping[str, Values]) -> Any:
    if isinstance(step, Branch):
        return replace(step, children=tuple(_numbers(child, names) for child in step.children))
    changed: dict[str, Any] = {
        one.name: _number(formula, names)
        for one in fields(step)
        if isinstance(formula := getattr(step, one.name), Formula)
    }
    if isinstance(step, Keep) and step.spill is not None:
        share = _number(step.spill.share, names)
        spilled = float(np.asarray(share.evaluate({}))) > 0
        changed["spill"] = replace(step.spill, share=share) if spilled else None
    return replace(step, **changed)


def _stage(stage: Stage, names: Mapping[str, Values]) -> Stage:
    phases: list[Phase | Stall] = [
        replace(phase, times=_number(phase.times, names)) if isinstance(phase, Stall) else phase
        for phase in stage.phases
    ]
    return replace(
        stage,
        phases=tuple(phases),
        distance=_number(stage.distance, names),
        tiles=_number(stage.tiles, names),
    )


def _number(formula: Formula, names: Mapping[str, Values]) -> Formula:
    value = float(np.asarray(formula.evaluate(names)))
    return parse_formula(int(value) if value.is_integer() else repr(value))
