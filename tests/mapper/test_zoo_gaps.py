"""How far the search comes on every cascade of the zoo in half a minute: its gaps, printed.

``pytest -m slow -s tests/mapper/test_zoo_gaps.py`` shows the table.
"""

from __future__ import annotations

import pytest

from einfuse.einsum.library.zoo import entries
from einfuse.mapper.errors import MappingError
from einfuse.mapper.machine.architecture import load_architecture
from einfuse.mapper.nest.workload import facts
from einfuse.mapper.search.search import find_best
from einfuse.mapper.space.space import MapSpace
from einfuse.simulator.cost.objectives import find_objective

from .test_beyond_attention import shape_of
from .test_every_cascade import able, fixed

SECONDS = 30
PROVEN = [  # on one core, within the time
    ("attention/1-pass", "energy"),
    ("attention/3-pass", "energy"),
    ("attention/3-pass-deferred", "edp"),
]


def gap_of(name: str, objective: str) -> float:
    cascade, architecture = fixed(name), load_architecture("fusemax")
    try:
        facts(cascade)
    except MappingError as error:
        pytest.skip(str(error))
    if not able(architecture, cascade):
        pytest.skip("fusemax lacks an operation of it")
    space = MapSpace(cascade, architecture, shape_of(cascade))
    found = find_best(space, find_objective(objective, architecture), seconds=SECONDS)
    print(f"{name:36} {objective:8} gap {100 * found.gap:6.2f} %  {found.score:.6g}")
    assert 0 <= found.gap < 1 and found.optimal == (found.gap == 0)
    return found.gap


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["latency", "energy", "edp"])
@pytest.mark.parametrize("name", [entry.name for entry in entries()])
def test_every_cascade_ends_with_a_mapping_and_a_bound(name: str, objective: str) -> None:
    gap_of(name, objective)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "objective"), PROVEN)
def test_what_was_proven_in_half_a_minute_still_is(name: str, objective: str) -> None:
    assert gap_of(name, objective) <= 0.02
