"""The search on every shipped cascade: what it finds, written to a file, costs what it says.

Where an architecture lacks an operation, the refusal names the Einsum and the operation.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.library.cascades import load
from einfuse.einsum.library.zoo import defaults, entries, with_parameters
from einfuse.mapper.design.design import load_design
from einfuse.mapper.errors import ArchitectureError, MappingError
from einfuse.mapper.machine.architecture import Architecture, load_architecture
from einfuse.mapper.nest.workload import facts
from einfuse.mapper.search.export import to_yaml
from einfuse.mapper.search.search import find_best
from einfuse.mapper.space.space import MapSpace
from einfuse.simulator.cost.model import evaluate
from einfuse.simulator.cost.objectives import find_objective

from .test_beyond_attention import machine, shape_of

FEW = ["attention/1-pass", "attention/linear-decay", "attention/ring", "mixer/monarch"]


def fixed(name: str) -> Cascade:
    cascade = load(name)
    return with_parameters(cascade, defaults(cascade, cascade.rank_names))


def able(architecture: Architecture, cascade: Cascade) -> bool:
    """Whether a unit has the operations of each Einsum."""
    units = architecture.file.units.values()
    return all(
        any(all(o.name in unit.operations for o in einsum.operations) for unit in units)
        for einsum in facts(cascade).einsums.values()
    )


def steps(most: int) -> Callable[[str], None]:
    """A report that interrupts a search after so many lines."""
    lines = itertools.count(1)

    def report(line: str) -> None:
        if next(lines) > most:
            raise KeyboardInterrupt

    return report


def check(name: str, objective: str, most: int, folder: Path) -> None:
    try:
        facts(cascade := fixed(name))
    except MappingError as error:
        assert "computed by two Einsums" in str(error)
        return
    shape = shape_of(cascade, long=16, short=4, batch=(2, 2))
    architecture = load_architecture("fusemax")
    if not able(architecture, cascade):
        with pytest.raises(ArchitectureError, match=r"no unit can run Einsum \w+: .* lacks \w+"):
            MapSpace(cascade, architecture, shape)
        architecture = machine("nvdla-like", cascade)
    space = MapSpace(cascade, architecture, shape)
    asked = find_objective(objective, architecture)
    result = find_best(space, asked, report=steps(most))
    path = folder / "found.yaml"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for solution in result.solutions:
            path.write_text(to_yaml(space, solution.plan))
            written = evaluate(load_design(path), shape)
            for figure, value in zip(result.objective.figures, solution.figures, strict=True):
                assert getattr(written, figure) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("name", FEW)
def test_what_is_found_costs_what_its_file_costs(name: str, tmp_path: Path) -> None:
    check(name, "latency", 1, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["latency", "energy"])
@pytest.mark.parametrize("name", [entry.name for entry in entries()])
def test_on_every_cascade_what_is_found_costs_what_its_file_costs(
    name: str, objective: str, tmp_path: Path
) -> None:
    check(name, objective, 40, tmp_path)
