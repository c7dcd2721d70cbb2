"""The search under sequential composition on random cascades, machines and constraints.

What is found costs what `evaluate` says of it, and is what the search finds with its bounds off.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from einfuse.einsum.language.parser import parse
from einfuse.mapper.errors import MappingError
from einfuse.mapper.machine.architecture import Architecture, parse_architecture
from einfuse.mapper.search.export import to_design
from einfuse.mapper.search.search import SearchResult, find_best
from einfuse.mapper.sequential.search import ExplicitSearch
from einfuse.mapper.sequential.ways import Ways
from einfuse.mapper.space.constraints import ROLES, Constraints
from einfuse.mapper.space.space import MapSpace
from einfuse.simulator.cost.charges import OPTIONS
from einfuse.simulator.cost.model import evaluate
from einfuse.simulator.cost.objectives import find_objective

CASCADES = {
    "product": "rank M, K, N\ninput A[M,K], B[K,N]\noutput C\nC[m,n] = A[m,k] * B[k,n]\n",
    "chain": "rank M, K, N, J\ninput A[M,K], B[K,N], D[N,J]\noutput C\n"
    "T[m,n] = A[m,k] * B[k,n]\nC[m,j] = T[m,n] * D[n,j]\n",
    "attention": "rank M, P, E, F\ninput Q[M,E], K[P,E], V[P,F]\noutput AV\n"
    "QK[m,p] = Q[m,e] * K[p,e]\nS[m,p] = exp(QK[m,p])\nAV[m,f] = S[m,p] * V[p,f]\n",
    "gated": "rank M, N, J\ninput X[M,N], W[N,J], U[N,J]\noutput Y\n"
    "A[m,j] = X[m,n] * W[n,j]\nB[m,j] = X[m,n] * U[n,j]\nY[m,j] = A[m,j] * B[m,j]\n",
    "norm": "rank M, N\ninput X[M,N], G[M,N]\noutput Y\n"
    "S[m] = X[m,n] * G[m,n]\nY[m,n] = X[m,n] * S[m]\n",
}
OBJECTIVES = ("energy", "latency", "edp", "traffic", "buffer", "latency,energy,traffic,buffer")


def draw_machine(draw: random.Random) -> Architecture:
    """Two or three levels, any bandwidths; lanes, an array, or instances with memories."""

    def memory(words: float | None, scale: float, **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = {"access_bytes": 2, **more}
        found |= {f"{way}_pj": scale * draw.choice([1, 2, 3]) for way in ("read", "write")}
        found |= {"bytes": 2 * words} if words else {}
        ways = draw.choice([(), ("",), ("read_", "write_")])
        return found | {f"{way}bandwidth_bytes_per_s": draw.choice([0.5, 1, 4]) for way in ways}

    memories = {"dram": memory(None, 20), "buffer": memory(draw.choice([8, 12, 20, 60, 300]), 3)}
    kinds = ("mac", "exp", "multiply", "add")
    unit: dict[str, Any] = {
        "operations": {kind: {"energy_pj": draw.choice([0, 1])} for kind in kinds},
        "registers": {
            "depth": 1,
            "read_pj": draw.choice([0, 0.2]),
            "write_pj": draw.choice([0, 0.3]),
        },
    }
    kind = draw.choice(["lanes", "array", "instances"])
    if kind == "lanes":
        unit["lanes"] = draw.choice([1, 2, 4])
    else:
        shares = draw.choice([{}, {"columns": "operands", "rows": "outputs"}])
        unit |= {"rows": draw.choice([1, 2, 4]), "columns": draw.choice([1, 2, 3])}
        unit["shares"] = dict(shares)
    if kind == "instances":
        unit["instances"] = count = draw.choice([2, 4])
        unit["shares"]["instances"] = draw.choice(["none", "any", "operands"])
        memories["local"] = memory(draw.choice([4, 8, 30]), 1, instances=count)
    content = {"schema": 1, "name": "drawn", "clock_hz": 1, "memories": memories}
    found = parse_architecture({**content, "units": {"unit": unit}}, "drawn")
    power = draw.choice([1e-10, 1e-8])
    figures: dict[str, float] = {f"{name}.leakage_mw": power for name in (*memories, "unit")}
    figures |= {f"{name}.ports": draw.choice([1, 2]) for name in memories}
    return found.with_settings(
        {**figures, "unit.hop_pj": draw.choice([0.25, 40]), "unit.mesh_hop_pj": 2}
    )


def draw_constraints(draw: random.Random, machine: Architecture) -> Constraints:
    homes: dict[str, Any] | None = None
    if draw.random() < 0.6:
        rules: list[dict[str, Any]] = [
            {"may": ROLES},
            {"must": [draw.choice(ROLES)], "may": ROLES},
            {"must": ["weight"]},
            {},
        ]
        homes = {level: draw.choice(rules) for level in (*machine.memories[1:], "registers")}
    counted = {"retention": "explicit", "composition": "sequential"}
    more = {"drains": draw.choice(["free", "read"]), "fused_loops": draw.choice([0, 1, 1, None])}
    return Constraints.model_validate({**counted, **more, "homes": homes})


def without_bounds(patch: pytest.MonkeyPatch) -> None:
    """Nothing bounds anything: every block and every way is worked out."""
    every = Ways._every  # pyright: ignore[reportPrivateUsage]
    patch.setattr(ExplicitSearch, "least", lambda self, *_: np.zeros(self.figures))
    ahead = lambda self, blocks: [np.zeros(self.figures)] * (len(blocks.names) + 1)  # noqa: E731
    patch.setattr(ExplicitSearch, "least_ahead", ahead)
    patch.setattr(Ways, "_every", lambda self, *given: np.zeros_like(every(self, *given)))


def check(seed: int, largest: int, patch: pytest.MonkeyPatch, options: Sequence[str] = ()) -> None:
    draw = random.Random(seed)
    cascade = parse(CASCADES[draw.choice(sorted(CASCADES))])
    machine = draw_machine(draw)
    sizes = {rank: draw.randint(1, largest) for rank in cascade.rank_names}
    space = MapSpace(cascade, machine, sizes, draw_constraints(draw, machine))
    objective = find_objective(draw.choice(OBJECTIVES), machine, include=options)
    try:
        found = find_best(space, objective)
    except MappingError as error:
        assert "bytes more than" in str(error)
        return
    for one in found.solutions:
        own = evaluate(to_design(space, one.plan), sizes, include=options)
        known = {
            "seconds": own.seconds,
            "energy_pj": own.energy_pj,
            "dram_bytes": own.dram_bytes,
            "peak_bytes": own.peak_bytes.get("buffer", 0),
        }
        for figure, value in zip(objective.figures, one.figures, strict=True):
            assert value == pytest.approx(known[figure], rel=1e-9), figure
    without_bounds(patch)
    assert best_of(find_best(space, objective)) == pytest.approx(best_of(found), rel=1e-9)


def best_of(found: SearchResult) -> Any:
    """The score, or the points of the front."""
    assert found.optimal
    return np.array([one.figures for one in found.solutions]) if found.is_front else found.score


@pytest.mark.parametrize("seed", range(2, 7))
def test_bounds_cut_nothing_and_figures_are_those_of_evaluate(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(seed, 2, monkeypatch)


@pytest.mark.parametrize("seed", range(10, 16))
def test_what_is_charged_on_request_is_searched_and_evaluated_alike(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = random.Random(seed).sample(sorted(OPTIONS), seed % 4 + 1)
    check(seed, 2, monkeypatch, drawn)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_bounds_cut_nothing_on_many_spaces(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check(seed, 3, monkeypatch)
