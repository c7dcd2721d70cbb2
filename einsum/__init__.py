"""What is computed: cascades of Extended Einsums, no hardware.

The names below are loaded on first use, so that importing one of them imports what it needs and
no more.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch import with_batch as with_batch
    from .cascade import Cascade as Cascade
    from .cascade import Iteration as Iteration
    from .cascade import Rank as Rank
    from .cascade import Split as Split
    from .cascade import Tensor as Tensor
    from .equation import Einsum as Einsum
    from .errors import CascadeError as CascadeError
    from .errors import CascadeWarning as CascadeWarning
    from .errors import EinfuseError as EinfuseError
    from .execute import run as run
    from .functions import register_coordinate as register_coordinate
    from .functions import register_function as register_function
    from .functions import register_monoid as register_monoid
    from .library import load as load
    from .library import names as names
    from .operations import count_operations as count_operations
    from .parser import parse as parse
    from .passes import PassReport as PassReport
    from .passes import count_passes as count_passes
    from .printer import latex as latex
    from .printer import render as render
    from .shape import bind as bind
    from .shape import bind_symbolic as bind_symbolic
    from .space import iteration_space as iteration_space
    from .traffic import traffic_bound_bytes as traffic_bound_bytes
    from .validate import validated as validated

_MODULES = {
    "Cascade": "cascade",
    "CascadeError": "errors",
    "CascadeWarning": "errors",
    "EinfuseError": "errors",
    "Einsum": "equation",
    "Iteration": "cascade",
    "PassReport": "passes",
    "Rank": "cascade",
    "Split": "cascade",
    "Tensor": "cascade",
    "bind": "shape",
    "bind_symbolic": "shape",
    "count_operations": "operations",
    "count_passes": "passes",
    "iteration_space": "space",
    "latex": "printer",
    "load": "library",
    "names": "library",
    "parse": "parser",
    "register_coordinate": "functions",
    "register_function": "functions",
    "register_monoid": "functions",
    "render": "printer",
    "run": "execute",
    "traffic_bound_bytes": "traffic",
    "validated": "validate",
    "with_batch": "batch",
}

__all__ = [
    "Cascade",
    "CascadeError",
    "CascadeWarning",
    "EinfuseError",
    "Einsum",
    "Iteration",
    "PassReport",
    "Rank",
    "Split",
    "Tensor",
    "bind",
    "bind_symbolic",
    "count_operations",
    "count_passes",
    "iteration_space",
    "latex",
    "load",
    "names",
    "parse",
    "register_coordinate",
    "register_function",
    "register_monoid",
    "render",
    "run",
    "traffic_bound_bytes",
    "validated",
    "with_batch",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
