"""A chosen mapping as a design file: YAML with explicit numbers, for `einfuse evaluate` and people.

What is shipped is named; an architecture or a cascade that was changed, or was made in Python, is
written out, so that the file stands alone. A cascade from a file is named by its path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from einfuse.einsum import expect, load, names, render
from einfuse.mapper.design.design import Design
from einfuse.mapper.errors import ArchitectureError
from einfuse.mapper.machine.architecture import load_architecture
from einfuse.mapper.machine.formula import Formula, parse_formula
from einfuse.mapper.nest.nest import parse_nest, render_nest
from einfuse.mapper.nest.stages import StageFile, parse_stage, render_stage
from einfuse.mapper.sequential.nest import ExplicitPlan, to_lines
from einfuse.mapper.space.space import MapSpace
from einfuse.mapper.space.structures import Plan, to_mapping, to_stages


def to_content(
    space: MapSpace,
    plan: Plan | ExplicitPlan | Design,
    name: str = "found",
    asked: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of the design file of a mapping.

    Args:
        space: the map space.
        plan: the mapping.
        name: of the design.
        asked: what else the search was asked (its objective), to be kept with the shape and the
            constraints.
    """
    lines, stages = _tree(space, plan)
    made = "Found by search for"
    if isinstance(plan, Design):
        made = f"The design {plan.name}, in numbers, for"
    content: dict[str, Any] = {
        "schema": 1,
        "name": name,
        "description": f"{made} {space.cascade.name} on {space.architecture.name}.",
        "cascade": _cascade(space),
        "architecture": _architecture(space),
        "batch": list(space.batch or ()),
    }
    if splits := open_sizes(plan):
        content["let"] = splits
    counting = {"retention", "drains", "composition"}
    content |= space.constraints.model_dump(include=counting, exclude_defaults=True)
    content["mapping"] = lines
    if stages:
        content["stages"] = stages
    if asked is not None:
        content["found"] = {
            **asked,
            "shape": dict(space.shape),
            "constraints": space.constraints.model_dump(mode="json", exclude_defaults=True),
        }
    return content


def open_sizes(plan: Plan | ExplicitPlan | Design) -> dict[str, int]:
    """Return the sizes of the splits that the shape leaves open to a mapping."""
    if isinstance(plan, Design):
        return {rank: int(size.evaluate({})) for rank, size in plan.let}
    return dict(plan.splits)


def to_design(space: MapSpace, plan: Plan | ExplicitPlan | Design, name: str = "found") -> Design:
    """Return the design of a mapping, as its file would be read back."""
    expect(space, MapSpace, "space", "an einfuse.MapSpace")
    if isinstance(plan, Design):
        return replace(plan, name=name)
    lines, stages = _tree(space, plan)
    given = space.constraints
    return Design(
        name=name,
        cascade=space.cascade,
        architecture=space.architecture,
        nest=parse_nest(lines),
        stages=tuple(
            parse_stage(StageFile.model_validate(stage), f"stages[{number}]")
            for number, stage in enumerate(stages)
        ),
        batch=space.batch or (),
        let=tuple((rank, parse_formula(size)) for rank, size in plan.splits),
        retention=given.retention,
        drains=given.drains,
        composition=given.composition,
    )


def to_yaml(
    space: MapSpace,
    plan: Plan | ExplicitPlan | Design,
    name: str = "found",
    asked: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of the design file of a mapping; see `to_content`."""
    return yaml.safe_dump(to_content(space, plan, name, asked), sort_keys=False, width=96)


def _tree(
    space: MapSpace, plan: Plan | ExplicitPlan | Design
) -> tuple[list[Any], list[dict[str, Any]]]:
    """The loop tree of a mapping, and the stages; none where Einsums run one after the other."""
    if isinstance(plan, Design):
        return render_nest(plan.nest), [render_stage(stage) for stage in plan.stages]
    if isinstance(plan, ExplicitPlan):
        return to_lines(space, plan), []
    sizes = next(s for s in space.splits() if space.open_sizes(s) == plan.splits)
    lines = to_mapping(plan, space.facts, sizes, space.lanes, space.memories[0])
    return lines, to_stages(plan, space.facts, sizes)


def _cascade(space: MapSpace) -> str:
    """The name of a shipped cascade, the path of a file, or the text if it is neither."""
    cascade, source = space.cascade, space.cascade.source
    shipped = source in names()
    if (shipped or Path(source).is_file()) and load(source) == cascade:
        return source if shipped else str(Path(source).resolve())
    return render(cascade)


def _architecture(space: MapSpace) -> str | dict[str, Any]:
    """The name of a shipped architecture, or the content of a file."""
    architecture = space.architecture
    try:
        shipped = load_architecture(architecture.name)
    except ArchitectureError:
        shipped = None
    if (
        shipped is not None
        and shipped.file == architecture.file
        and dict(shipped.parameters) == dict(architecture.parameters)
    ):
        return architecture.name
    content: dict[str, Any] = architecture.file.model_dump(by_alias=True, exclude_none=True)
    for path, value in architecture.parameters.items():
        *groups, key = path.split(".")
        place = content
        if groups:
            kinds = ("memories", "units", "costs")
            place = content[next(kind for kind in kinds if groups[0] in content[kind])]
            for part in groups:
                place = place[part]
        place[key] = value.text if isinstance(value, Formula) else _plain(value)
    for memory in content["memories"].values():
        if "holds" in memory:
            memory["holds"] = list(memory["holds"])
    return content


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, float) and value.is_integer() else value
