"""Where every figure that a result stands on comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from einfuse.mapper import Architecture, Design, Formula, Scope, Values
from einfuse.simulator.components.components import Priced
from einfuse.simulator.components.price import Price

Kind = Literal["stated", "formula", "set by the design", "set by the caller"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a parameter of the architecture comes from; its value is ``parameters[path]``.

    Attributes:
        path: of the parameter, such as ``buffer.read_pj``.
        kind: whether the architecture's file states it or works it out, or who set it.
        formula: its text, if it is worked out.
        reads: the names that the formula reads.
        prices: what the cost model looked up for it: the rows, and how they were scaled.
        source: who published it.
    """

    path: str
    kind: Kind
    formula: str
    reads: tuple[str, ...]
    prices: tuple[str, ...]
    source: str

    @property
    def unit(self) -> str:
        """The unit of the value, as the path's last word says it.

        >>> Source("buffer.read_pj", "stated", "", (), (), "").unit
        'pJ'
        """
        return next((unit for end, unit in _UNITS.items() if self.path.endswith(end)), "")


_UNITS = {
    "_pj": "pJ",
    "_um2": "um^2",
    "_mw": "mW",
    "_hz": "Hz",
    "_bytes_per_s": "bytes/s",
    "bytes": "bytes",
    ".slots": "cycles",
    "_bits": "bits",
    "_mm": "mm",
}


def find_sources(
    architecture: Architecture,
    values: Mapping[str, Values | None],
    settings: Mapping[str, Any],
    design: Design | None = None,
    scope: Scope | None = None,
) -> tuple[Source, ...]:
    """Return the source of every known parameter of an architecture.

    Args:
        architecture: with what the design and the caller set.
        values: parameter -> its value.
        settings: what the caller set.
        design: what may have set parameters too.
        scope: where the values were worked out, with the prices of components.
    """
    own = dict(design.settings) if design is not None else {}
    found: list[Source] = []
    for path, value in values.items():
        if value is None:
            continue
        given = architecture.parameters[path]
        kind: Kind = "formula" if isinstance(given, Formula) else "stated"
        if path in settings:
            kind, text = "set by the caller", ""
        elif design is not None and path in own:
            kind, text = "set by the design", " ".join(design.source.split())
        else:
            text = stated_source(architecture, path)
        if not isinstance(given, Formula):
            found.append(Source(path, kind, "", (), (), text))
            continue
        prices = _prices(architecture, scope, given, {path})
        cited = "; ".join(dict.fromkeys(price.source for price in prices.values())) or text
        looked_up = tuple(f"{name} = {price.how}" for name, price in prices.items())
        found.append(Source(path, kind, given.text, given.names, looked_up, cited))
    return tuple(found)


def _prices(
    architecture: Architecture, scope: Scope | None, formula: Formula, seen: set[str]
) -> dict[str, Price]:
    """What a cost model looked up for a formula and for the formulas that it reads."""
    prices: dict[str, Price] = {}
    for name in formula.names:
        head = name.partition(".")[0]
        read = architecture.parameters.get(name)
        if isinstance(read, Formula) and name not in seen:
            prices |= _prices(architecture, scope, read, seen | {name})
        elif read is None and scope is not None and head in architecture.file.costs:
            row = scope.row(head)
            if isinstance(row, Priced) and name in row.prices:
                prices[name] = row.prices[name]
    return prices


def stated_source(architecture: Architecture, path: str) -> str:
    """What the architecture's file says of a parameter: the nearest text, then the file's own."""
    file = architecture.file
    head, *rest = path.split(".")
    texts: list[str] = []
    spec: Any = file.memories.get(head) or file.units.get(head)
    if spec is not None:
        texts.append(spec.source)
        for part in rest[:-1]:
            spec = spec[part] if isinstance(spec, Mapping) else getattr(spec, part)
            texts.append(getattr(spec, "source", ""))
    elif head == "processors" and file.processors is not None:
        texts.append(file.processors.sources.get(rest[0], ""))
    nearest = next((text for text in reversed(texts) if text), "")
    return _join(nearest, file.source)


@cache
def _join(nearest: str, whole: str) -> str:
    said = "; ".join(" ".join(text.split()) for text in (nearest, whole) if text)
    return said or "the file does not say"
