"""Einfuse: attention algorithms as Einsum cascades, mapped, simulated and measured.

The names below are loaded on first use, so that ``import einfuse`` is quick and light.

>>> import einfuse as ef
>>> shape = {"B": 1, "H": 1, "M": 1024, "P": 1024, "E": 64, "F": 64}
>>> ef.evaluate(ef.load_design("fusemax"), shape).bound
'array_1d'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from einfuse.einsum.derivation import derive
    from einfuse.einsum.errors import EinfuseError
    from einfuse.einsum.execute import run
    from einfuse.einsum.library import load as load_cascade
    from einfuse.einsum.parser import parse
    from einfuse.einsum.passes import count_passes as passes
    from einfuse.einsum.printer import render
    from einfuse.einsum.torch_export import from_torch
    from einfuse.mapper.architecture import load_architecture
    from einfuse.mapper.constraints import Constraints
    from einfuse.mapper.design import load_design, parse_design
    from einfuse.mapper.export import to_design
    from einfuse.mapper.search import find_best
    from einfuse.mapper.space import MapSpace
    from einfuse.simulator.model import evaluate
    from einfuse.simulator.objectives import find_objective

__version__ = "0.1.0"

_HOMES = {
    "Constraints": ("einfuse.mapper.constraints", "Constraints"),
    "EinfuseError": ("einfuse.einsum.errors", "EinfuseError"),
    "MapSpace": ("einfuse.mapper.space", "MapSpace"),
    "derive": ("einfuse.einsum.derivation", "derive"),
    "evaluate": ("einfuse.simulator.model", "evaluate"),
    "find_best": ("einfuse.mapper.search", "find_best"),
    "find_objective": ("einfuse.simulator.objectives", "find_objective"),
    "from_torch": ("einfuse.einsum.torch_export", "from_torch"),
    "load_architecture": ("einfuse.mapper.architecture", "load_architecture"),
    "load_cascade": ("einfuse.einsum.library", "load"),
    "load_design": ("einfuse.mapper.design", "load_design"),
    "parse": ("einfuse.einsum.parser", "parse"),
    "parse_design": ("einfuse.mapper.design", "parse_design"),
    "passes": ("einfuse.einsum.passes", "count_passes"),
    "render": ("einfuse.einsum.printer", "render"),
    "run": ("einfuse.einsum.execute", "run"),
    "to_design": ("einfuse.mapper.export", "to_design"),
}

__all__ = [
    "Constraints",
    "EinfuseError",
    "MapSpace",
    "derive",
    "evaluate",
    "find_best",
    "find_objective",
    "from_torch",
    "load_architecture",
    "load_cascade",
    "load_design",
    "parse",
    "parse_design",
    "passes",
    "render",
    "run",
    "to_design",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module, attribute = _HOMES[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
