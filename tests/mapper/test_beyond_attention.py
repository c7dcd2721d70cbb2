"""The search on chains of products, layers, and every dense cascade of the zoo, on three machines.

The costs found equal the evaluation of the file that is written, no unit is asked for more than it
has, and the compute and traffic that nothing can avoid are bounds from below.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.parser import parse
from einfuse.einsum.library.cascades import load
from einfuse.einsum.library.zoo import defaults, entries, with_parameters
from einfuse.mapper.machine.architecture import Architecture, load_architecture, parse_architecture
from einfuse.mapper.nest.workload import facts
from einfuse.mapper.search.export import to_design
from einfuse.mapper.search.search import find_best
from einfuse.mapper.space.space import MapSpace
from einfuse.simulator.cost.model import evaluate
from einfuse.simulator.cost.objectives import find_objective

SECONDS = 30
LONG = "MPNKLST"  # ranks of a sequence
LAYERS = {
    "gemm-chain": (
        "rank M, K, N, L\ninput A[M,K], B[K,N], C[N,L]\noutput Z\n"
        "Y[m,n] = A[m,k] * B[k,n]\nZ[m,l] = Y[m,n] * C[n,l]"
    ),
    "mlp": (
        "rank M, K, N, L\ninput X[M,K], W1[K,N], W2[N,L]\noutput Z\n"
        "H[m,n] = X[m,k] * W1[k,n]\nR[m,n] = max(H[m,n], 0)\nZ[m,l] = R[m,n] * W2[n,l]"
    ),
    "rmsnorm-matmul": (
        "rank M, K, N\ninput X[M,K], W[K,N]\noutput Y\n"
        "S[m] = X[m,k] * X[m,k]\nZ[m,k] = X[m,k] * rsqrt(S[m])\nY[m,n] = Z[m,k] * W[k,n]"
    ),
}
ZOO = [entry.name for entry in entries() if entry.family == "dense"]
REGISTERS = {"depth": 16, "read_pj": 0.2, "write_pj": 0.2}


def memory(**figures: float) -> dict[str, float]:
    return {"access_bytes": 64, "read_pj": 100, "write_pj": 100, **figures}


MACHINES: dict[str, dict[str, Any]] = {
    "tpu-like": {
        "clock_hz": 1.05e9,
        "memories": {
            "hbm": memory(bandwidth_bytes_per_s=614e9),
            "cmem": memory(bytes=128 * 2**20, bandwidth_bytes_per_s=5e12),
            "vmem": memory(bytes=16 * 2**20),
        },
        "units": {"mxu": {"rows": 128, "columns": 512}, "vpu": {"lanes": 4096}},
    },
    "nvdla-like": {
        "clock_hz": 1e9,
        "word_bytes": 1,
        "memories": {
            "dram": memory(bandwidth_bytes_per_s=25e9),
            "cbuf": memory(bytes=512 * 2**10),
        },
        "units": {"cmac": {"rows": 64, "columns": 16}, "sdp": {"lanes": 16}},
    },
}


def machine(name: str, cascade: Cascade) -> Architecture:
    """A machine whose vector unit has every operation of the cascade, its array products alone."""
    if name == "fusemax":
        return load_architecture(name)
    content = MACHINES[name]
    array, vector = content["units"].items()
    needed = {o.name for e in facts(cascade).einsums.values() for o in e.operations} | {"mac"}
    units = {
        array[0]: {**array[1], "operations": {"mac": {"energy_pj": 0.5}}, "registers": REGISTERS},
        vector[0]: {
            **vector[1],
            "operations": {operation: {"energy_pj": 1} for operation in sorted(needed)},
            "registers": REGISTERS,
        },
    }
    return parse_architecture({**content, "schema": 1, "name": name, "units": units}, name)


def shape_of(
    cascade: Cascade, long: int = 1024, short: int = 64, batch: tuple[int, int] = (4, 8)
) -> dict[str, int]:
    parts = {name for split in cascade.splits for name in (split.inner, split.outer)}
    sized = {rank.name for rank in cascade.ranks if rank.size is not None}
    free = [rank for rank in cascade.rank_names if rank not in parts | sized]
    batches = {} if {"B", "H"} & set(cascade.rank_names) else dict(zip("BH", batch, strict=True))
    return {**batches, **{rank: long if rank in LONG else short for rank in free}}


@pytest.mark.slow
@pytest.mark.parametrize("on", ["fusemax", *MACHINES])
@pytest.mark.parametrize("name", [*LAYERS, *ZOO])
def test_the_best_mapping_is_proven(name: str, on: str) -> None:
    cascade = parse(LAYERS[name]) if name in LAYERS else load(name)
    if name in ZOO:
        cascade = with_parameters(cascade, defaults(cascade, cascade.rank_names))
    architecture = machine(on, cascade)
    missing = {
        operation.name
        for einsum in facts(cascade).einsums.values()
        for operation in einsum.operations
        if not any(operation.name in u.operations for u in architecture.file.units.values())
    }
    if missing:
        pytest.skip(f"{on} has no {', '.join(sorted(missing))}: the search refuses it in words")
    space = MapSpace(cascade, architecture, shape_of(cascade))
    found = find_best(space, find_objective("latency", architecture), seconds=SECONDS)
    assert found.optimal and found.gap == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = evaluate(to_design(space, found.best.plan), dict(space.shape))
    assert written.seconds == pytest.approx(found.score, rel=1e-12)
    busy = max(written.resource_seconds.values())
    assert busy <= written.seconds * (1 + 1e-12)
    assert all(used <= 1 + 1e-12 for used in written.utilization.values())
