"""Records what AccelForge says: ``python -m einfuse.studies.accelforge.record``, where it is there.

It writes mapping files (those that its mapper finds for `CASES`, and drawn ones, the same at every
run) and a line of JSON for each: energy, seconds, actions, CPU seconds, and versions.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from einfuse.einsum import load
from einfuse.mapper import EinsumFacts, facts

from .cases import CASES, DATA, Case, find_case
from .peer import evaluate_there, search_there, versions

DRAWN = 12

_DIMENSIONS: dict[str, tuple[tuple[str, str, int], ...]] = {
    "simple": (),
    "nvdla": (("ProcessingElement", "reuse_input", 32), ("ProcessingElement", "reuse_output", 192)),
    "tpu_v4i": (
        ("LocalBuffer", "Z", 4),
        ("ProcessingElement", "reuse_input", 128),
        ("ProcessingElement", "reuse_output", 128),
    ),
}
_SHAPES: dict[str, dict[str, int]] = {
    "peer/matmuls": {"M": 96, "N0": 64, "N1": 48, "N2": 80},
    "peer/attention": {"B": 2, "H": 3, "M": 48, "P": 64, "E": 16, "F": 32},
}


def drawn_cases() -> Iterator[tuple[Case, str]]:
    """Yield small cases with a drawn mapping each, tiles dividing what they tile."""
    for number in range(DRAWN):
        draw = random.Random(number)
        architecture = list(_DIMENSIONS)[number % 3]
        cascade = draw.choice(list(_SHAPES)) if architecture != "simple" else "peer/matmuls"
        base = find_case(f"{cascade.split('/')[1]}-{architecture}")
        case = replace(base, name=f"drawn-{number}-{architecture}", shape=_SHAPES[cascade])
        yield case, _draw(draw, case)


def _draw(draw: random.Random, case: Case) -> str:
    """Return a mapping: Einsums one after the other, what they hand on in main memory."""
    known = facts(load(case.cascade))
    outside = {*known.cascade.inputs, *known.cascade.outputs}
    handed = [t for t in known.ranks if t not in outside]
    lines = ["mapping:", "  nodes:", _storage(2, handed, "MainMemory"), "  - !Sequential"]
    lines.append("    nodes:")
    for einsum in known.einsums.values():
        lines += ["    - !Nested", "      nodes:", *_nest(draw, case, einsum, outside)]
    return "\n".join(lines) + "\n"


def _nest(draw: random.Random, case: Case, einsum: EinsumFacts, outside: set[str]) -> Iterator[str]:
    operands = [o.tensor for o in einsum.operands]
    output = einsum.outputs[0]
    weight = operands[-1] if len(operands) > 1 else None
    tpu = case.architecture == "tpu_v4i"
    unit = "ScalarUnit" if tpu and weight is None else "MAC"
    left = {rank: case.shape[rank] for rank in sorted(einsum.ranks)}

    def tiled(rank: str, least: int = 1) -> str:
        tile = draw.choice([d for d in _divisors(left[rank]) if d % least == 0])
        left[rank] = tile
        return f"      - !Temporal {{rank_variable: {rank.lower()}, tile_shape: {tile}}}"

    lanes: dict[str, tuple[str, str, int]] = {}  # rank -> component, dimension, lanes
    for component, dimension, extent in _DIMENSIONS[case.architecture]:
        operand = einsum.operands[0].ranks
        ranks = {
            "Z": [r for r in sorted(einsum.ranks) if r not in lanes],
            "reuse_input": [r for r in sorted(einsum.ranks - operand) if r not in lanes],
            "reuse_output": [r for r in sorted(einsum.ranks - output.ranks) if r not in lanes],
        }[dimension]
        if ranks and (unit == "MAC" or dimension == "Z"):
            rank = draw.choice(ranks)
            among = draw.choice([d for d in _divisors(case.shape[rank]) if d <= extent])
            lanes[rank] = (component, dimension, among)

    def width(rank: str) -> int:
        return lanes[rank][2] if rank in lanes else 1

    def spread(at: str) -> Iterator[str]:
        for rank, (component, dimension, lanes_used) in lanes.items():
            if component == at:
                left[rank] //= lanes_used
                yield (
                    f"      - !Spatial {{rank_variable: {rank.lower()}, "
                    f"tile_shape: {left[rank]}, name: {dimension}, component: {component}}}"
                )

    tensors = [*operands, output.tensor]
    for tensor in [t for t in tensors if t in outside]:
        yield _storage(6, [tensor], "MainMemory")
    for tensor in draw.sample(tensors, len(tensors)):
        for rank in draw.sample(sorted(left), 2 if len(left) > 1 else 1):
            yield tiled(rank, width(rank))
        if not tpu or draw.random() < 0.6:
            yield _storage(6, [tensor], "GlobalBuffer")
    if tpu:
        yield from spread("LocalBuffer")
        for tensor in draw.sample([operands[0], output.tensor], 2):
            rank = draw.choice(sorted(left))
            inside = 1 if lanes.get(rank, ("", "", 1))[0] == "LocalBuffer" else width(rank)
            yield tiled(rank, inside)
            yield _storage(6, [tensor], "LocalBuffer")
    for rank in draw.sample(sorted(left), len(left)):
        if rank in lanes and lanes[rank][0] == "ProcessingElement":
            yield tiled(rank, width(rank))
    yield from spread("ProcessingElement")
    order = draw.sample(sorted(left), len(left))
    if weight is not None and case.architecture != "simple":
        held = einsum.operands[-1].ranks
        for rank in [r for r in order if r in held]:
            left[rank] = 1
            yield f"      - !Temporal {{rank_variable: {rank.lower()}, tile_shape: 1}}"
        yield _storage(6, [weight], "Register")
        order = [r for r in order if r not in held]
    for rank in order:
        yield f"      - !Temporal {{rank_variable: {rank.lower()}, tile_shape: 1}}"
    yield f"      - !Compute {{einsum: {output.tensor}, component: {unit}}}"


def _storage(indent: int, tensors: list[str], component: str) -> str:
    listed = ", ".join(tensors)
    return f"{' ' * indent}- !Storage {{tensors: [{listed}], component: {component}}}"


def _divisors(size: int) -> list[int]:
    return [d for d in range(1, size + 1) if size % d == 0]


def main() -> None:
    """Write the mapping files and the records."""
    folder = DATA / "mappings"
    folder.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for case in CASES:
        text, found = search_there(case)
        (folder / f"{case.name}.yaml").write_text(text, encoding="utf-8")
        records.append({"case": case.name, "what": "search", **found})
        again = evaluate_there(case, text)
        records.append({"case": case.name, "what": "evaluation", **again})
        print(case.name, found["energy_j"], found["seconds"], found["cpu_seconds"], flush=True)
    for case, text in drawn_cases():
        (folder / f"{case.name}.yaml").write_text(text, encoding="utf-8")
        records.append({"case": case.name, "what": "evaluation", **evaluate_there(case, text)})
    known = versions()
    with (DATA / "records.jsonl").open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps({**record, "versions": known}) + "\n")


if __name__ == "__main__":
    main()
