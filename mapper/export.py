"""A chosen mapping as a design file: YAML with explicit numbers, for `einfuse evaluate` and people.

What is shipped is named; an architecture that was changed is written out, so that the file stands
alone. A cascade that is not shipped is named by its path.
"""

from __future__ import annotations

from typing import Any

import yaml

from .architecture import load_architecture
from .design import Design
from .errors import ArchitectureError
from .formula import Formula, parse_formula
from .mapping import parse_nest
from .pipeline import StageFile, parse_stage
from .space import MapSpace
from .structure import Plan, to_mapping, to_stages


def to_content(space: MapSpace, plan: Plan, name: str = "found") -> dict[str, Any]:
    """Return the content of the design file of a mapping."""
    sizes = next(s for s in space.splits() if space.open_sizes(s) == plan.splits)
    content: dict[str, Any] = {
        "schema": 1,
        "name": name,
        "description": f"Found by search for {space.cascade.name} on {space.architecture.name}.",
        "cascade": space.cascade.source or space.cascade.name,
        "architecture": _architecture(space),
        "batch": list(space.batch or ()),
    }
    if plan.splits:
        content["let"] = dict(plan.splits)
    if space.constraints.retention != "trailing":
        content["retention"] = space.constraints.retention
    content["mapping"] = to_mapping(plan, space.facts, sizes, space.lanes, space.memories[0])
    content["stages"] = to_stages(plan, space.facts)
    return content


def to_design(space: MapSpace, plan: Plan, name: str = "found") -> Design:
    """Return the design of a mapping, as its file would be read back."""
    content = to_content(space, plan, name)
    return Design(
        name=name,
        cascade=space.cascade,
        architecture=space.architecture,
        nest=parse_nest(content["mapping"]),
        stages=tuple(
            parse_stage(StageFile.model_validate(stage), f"stages[{number}]")
            for number, stage in enumerate(content["stages"])
        ),
        batch=space.batch or (),
        let=tuple((rank, parse_formula(size)) for rank, size in plan.splits),
        retention=space.constraints.retention,
        description=content["description"],
    )


def to_yaml(space: MapSpace, plan: Plan, name: str = "found") -> str:
    """Return the text of the design file of a mapping."""
    return yaml.safe_dump(to_content(space, plan, name), sort_keys=False, width=96)


def _architecture(space: MapSpace) -> str | dict[str, Any]:
    """The name of a shipped architecture, or the content of a file."""
    architecture = space.architecture
    try:
        shipped = load_architecture(architecture.name)
    except ArchitectureError:
        shipped = None
    if shipped is not None and dict(shipped.parameters) == dict(architecture.parameters):
        return architecture.name
    content: dict[str, Any] = architecture.file.model_dump(by_alias=True, exclude_none=True)
    for path, value in architecture.parameters.items():
        *groups, key = path.split(".")
        place = content
        if groups:
            kind = "memories" if groups[0] in architecture.memories else "units"
            place = content[kind]
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
