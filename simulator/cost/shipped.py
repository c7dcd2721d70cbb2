"""The shipped designs of a cascade as mappings of a machine: where a search starts from."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from dataclasses import replace
from importlib import resources
from typing import Any

import numpy as np

from einfuse.einsum import EinfuseError
from einfuse.mapper import (
    Branch,
    Constraints,
    Design,
    KernelDesign,
    MapSpace,
    Nest,
    Node,
    Temporal,
    load_design,
    settle,
)
from einfuse.simulator.result.accounting import Accounting
from einfuse.simulator.result.evaluation import Evaluation

from .model import evaluate
from .point import scope_of


def shipped_mappings(
    space: MapSpace, accounting: Accounting
) -> Iterator[tuple[Design, Evaluation]]:
    """Yield the shipped designs of a space's cascade on its machine, at its shape, as they cost.

    A design may tile for less than the machine has (its ``set``); what is yielded are its numbers,
    on the machine as it is. Left out is what does not fit, what breaks a dependency without paying
    for the wait, and all of them where a constraint is given, since they were not made to keep it.
    """
    if space.constraints != Constraints():
        return
    for path in sorted(
        resources.files("einfuse.mapper").joinpath("data/designs").iterdir(), key=str
    ):
        if not path.name.endswith(".yaml"):
            continue
        design = load_design(path.name.removesuffix(".yaml"))
        if isinstance(design, KernelDesign) or design.cascade != space.cascade:
            continue
        try:
            settled = _settled(design, space)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = evaluate(
                    settled,
                    dict(space.shape),
                    accounting=accounting.name,
                    include=accounting.include,
                )
        except EinfuseError:  # the machine lacks a unit or a level of it, or room
            continue
        if accounting.waits or not found.warnings:
            yield settled, found


def _settled(design: Design, space: MapSpace) -> Design:
    """A design in numbers, on the machine of a space.

    Raises:
        EinfuseError: the machine lacks what the design names, or its sizes are not the shape's.
    """
    alone = [rank for rank in design.batch if rank not in space.shape]  # one of each
    scope: Any = scope_of(
        replace(design, architecture=space.architecture),
        {**dict.fromkeys(alone, 1), **space.shape},
        {},
    )
    for formula, otherwise in design.require:
        if not np.all(formula.evaluate(scope)):
            raise EinfuseError(otherwise)
    sizes = {rank: int(scope[rank]) for rank, _ in design.let if rank in space.cascade.rank_names}
    if any(space.shape.get(rank, size) != size for rank, size in sizes.items()):
        raise EinfuseError(f"{design.name} fixes a size that the shape gives")
    settled = settle(replace(design, architecture=space.architecture), sizes, scope)
    return replace(settled, nest=_without(settled.nest, alone), batch=space.batch or ())


def _without(nest: Nest, ranks: Collection[str]) -> Nest:
    """A nest without the loops in time over some ranks."""
    kept: list[Node] = []
    for node in nest:
        step = node.step
        if isinstance(step, Branch):
            step = replace(step, children=tuple(_without(c, ranks) for c in step.children))
        if not (isinstance(step, Temporal) and step.rank in ranks):
            kept.append(replace(node, step=step))
    return tuple(kept)
