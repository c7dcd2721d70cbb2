"""The public names of Einfuse."""

__version__: str

from einfuse.einsum import EinfuseError as EinfuseError
from einfuse.einsum import count_passes as passes
from einfuse.einsum import derive as derive
from einfuse.einsum import from_torch as from_torch
from einfuse.einsum import load as load_cascade
from einfuse.einsum import parse as parse
from einfuse.einsum import render as render
from einfuse.einsum import run as run
from einfuse.mapper import Constraints as Constraints
from einfuse.mapper import MapSpace as MapSpace
from einfuse.mapper import find_best as find_best
from einfuse.mapper import load_architecture as load_architecture
from einfuse.mapper import load_design as load_design
from einfuse.mapper import parse_design as parse_design
from einfuse.mapper import to_design as to_design
from einfuse.simulator import evaluate as evaluate
from einfuse.simulator import find_objective as find_objective

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
