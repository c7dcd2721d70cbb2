"""Where every figure that a result stands on comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from einfuse.mapper.architecture import Architecture
from einfuse.mapper.formula import Formula

from .components import Priced
from .point import Point

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


def find_sources(point: Point, settings: Mapping[str, Any]) -> tuple[Source, ...]:
    """Return the source of every known parameter of the architecture at a point.

    Args:
        point: the design at a shape.
        settings: what the caller set.
    """
    own = dict(point.design.settings)
    return tuple(
        _source(point, path, "set by the caller" if path in settings else _kind(path, own, point))
        for path, value in point.values.items()
        if value is not None
    )


def _kind(path: str, own: Mapping[str, Any], point: Point) -> Kind:
    if path in own:
        return "set by the design"
    formula = isinstance(point.architecture.parameters[path], Formula)
    return "formula" if formula else "stated"


def _source(point: Point, path: str, kind: Kind) -> Source:
    given = point.architecture.parameters[path]
    if not isinstance(given, Formula):
        text = "" if kind == "set by the caller" else stated_source(point.architecture, path)
        return Source(path, kind, "", (), (), text)
    prices, sources = _priced(point, given, {path})
    if not sources and kind == "set by the design":
        sources = [" ".join(point.design.source.split())]
    sources = sources or [stated_source(point.architecture, path)]
    return Source(
        path, kind, given.text, given.names, tuple(dict.fromkeys(prices)),
        "; ".join(dict.fromkeys(sources)),
    )  # fmt: skip


def _priced(point: Point, formula: Formula, seen: set[str]) -> tuple[list[str], list[str]]:
    """What a cost model looked up for a formula and for the formulas it reads."""
    prices: list[str] = []
    sources: list[str] = []
    for name in formula.names:
        head = name.partition(".")[0]
        read = point.architecture.parameters.get(name)
        if isinstance(read, Formula) and name not in seen:
            more, further = _priced(point, read, seen | {name})
            prices, sources = prices + more, sources + further
        elif read is None and head in point.architecture.file.costs:
            row = point.scope.row(head)
            if isinstance(row, Priced) and name in row.prices:
                prices.append(f"{name} = {row.prices[name].how}")
                sources.append(row.prices[name].source)
    return prices, sources


def stated_source(architecture: Architecture, path: str) -> str:
    """What the architecture's file says of a parameter: the nearest text, then the file's own."""
    file = architecture.file
    head, *rest = path.split(".")
    texts: list[str] = []
    spec: Any = file.memories.get(head) or file.units.get(head) or file.costs.get(head)
    if spec is not None:
        texts.append(getattr(spec, "source", ""))
        for part in rest[:-1]:
            spec = spec[part] if isinstance(spec, Mapping) else getattr(spec, part)
            texts.append(getattr(spec, "source", ""))
    nearest = [text for text in texts if text][-1:]
    said = "; ".join(" ".join(text.split()) for text in (*nearest, file.source) if text)
    return said or "the file does not say"
