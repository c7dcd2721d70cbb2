"""What the schemas of files share: values that are not taken for others, and faults in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

_NUMBER = "expected a number"
_WORDS = {
    "missing": "is missing",
    "model_type": "expected keys and values",
    "model_attributes_type": "expected keys and values",
    "dict_type": "expected keys and values",
    "tuple_type": "expected a list",
    "list_type": "expected a list",
    "string_type": "expected text",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_parsing_size": "expected a smaller number",
    "int_from_float": "expected a whole number",
    "finite_number": "expected a finite number",
    "too_short": "expected at least {min_length}",
    "literal_error": "expected {expected}",
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected at least {ge}",
    "less_than": "expected less than {lt}",
    "less_than_equal": "expected at most {le}",
}


class Spec(BaseModel):
    """A part of a file: no keys but its own; true and false are no numbers, and no text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _is_what_it_looks_like(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        if not _holds(field.annotation, (bool, Any)):
            values = value.values() if isinstance(value, Mapping) else value
            for one in values if isinstance(values, (list, tuple)) else [*_plain(values)]:
                if isinstance(one, bool):
                    raise ValueError(f"expected a number or a text, found {str(one).lower()}")
                if isinstance(one, float) and math.isnan(one):
                    raise ValueError("expected a number, found NaN")
        return value


def _plain(values: Any) -> Any:
    return values if isinstance(values, type({}.values())) else (values,)


def _holds(annotation: Any, kinds: tuple[Any, ...]) -> bool:
    return annotation in kinds or any(_holds(one, kinds) for one in get_args(annotation))


def explain(error: ValidationError, where: str) -> str:
    """Say in words what is wrong with a file, one line for each fault."""
    lines: dict[str, str] = {}
    for fault in error.errors():
        parts = [str(part) for part in fault["loc"]]
        known = fault["type"] in ("missing", "value_error", "extra_forbidden")
        while not known and len(parts) > 1 and _is_kind(parts[-1]):
            parts.pop()  # of a choice of kinds: which of them was tried
        path = ".".join(parts)
        if not path and not known:
            path = "file"
        lines.setdefault(path, f"{where}: {path and path + ': '}{_said(fault)}")
    return "\n".join(dict.fromkeys(lines.values()))


def _is_kind(part: str) -> bool:
    return part in ("float", "int", "str", "bool") or "[" in part


def _said(fault: Any) -> str:
    kind = fault["type"]
    if kind == "value_error":
        return str(fault["msg"]).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return "there is no such key"
    words = _WORDS.get(kind)
    said = (
        words.format(**fault.get("ctx", {}))
        if words is not None
        else str(fault["msg"]).replace("Input should be", "expected")
    )
    found = f", found {fault['input']!r}"
    return said if kind == "missing" or len(found) > 80 else said + found
