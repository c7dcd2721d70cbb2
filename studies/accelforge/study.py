"""Einfuse against AccelForge on the same cases: `compare_mappings` and `compare_searches`.

Fixed mappings, exactly tiled, are counted by both; then each searches the mapping of least energy
under the same rules (`Case.constraints`), one process each, CPU seconds without imports. Where
AccelForge is not installed its side is what `einfuse.studies.accelforge.record` wrote, with its
versions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time
from typing import Any

import pandas as pd

from einfuse.einsum import EinfuseError, closest, load
from einfuse.files import write_table, write_text
from einfuse.mapper import (
    REGISTERS,
    Design,
    MapSpace,
    SearchResult,
    facts,
    find_best,
    load_architecture,
    parse_design,
    read_mapping,
    to_design,
)
from einfuse.simulator import evaluate, find_objective, find_point

from .cases import CASES, DATA, Case
from .peer import evaluate_there, is_installed, search_there, versions
from .record import drawn_cases


@dataclass(frozen=True, slots=True)
class Replay:
    """A mapping counted by both: ratios of Einfuse's figure to AccelForge's.

    ``worst_access`` is the largest relative difference of the words of one Einsum, tensor, level
    and direction. ``refused`` says why a design cannot say the mapping.
    """

    mapping: str
    architecture: str
    energy_j: float
    energy_ratio: float
    seconds: float
    seconds_ratio: float
    worst_access: float
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Duel:
    """A search by both; CPU seconds without imports.

    ``counted_energy_j`` is that of the mapping which AccelForge found as Einfuse counts it.
    """

    case: str
    energy_j: float
    counted_energy_j: float
    accelforge_energy_j: float
    energy_ratio: float
    seconds: float
    accelforge_seconds: float
    cpu_seconds: float
    accelforge_cpu_seconds: float
    cpu_ratio: float


def read_records() -> list[dict[str, Any]]:
    """Return what was recorded of AccelForge: a record for each search and evaluation."""
    lines = (DATA / "records.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def mapping_cases() -> Iterator[tuple[Case, str]]:
    """Yield the cases with their mapping files: found ones, then drawn ones."""
    for case in (*CASES, *(case for case, _ in drawn_cases())):
        path = DATA / "mappings" / f"{case.name}.yaml"
        yield case, path.read_text(encoding="utf-8")


def converted(case: Case, mapping: str) -> Design:
    """Return the design of an AccelForge mapping of a case; MappingError if it cannot be said."""
    known, architecture = facts(load(case.cascade)), load_architecture(case.architecture)
    content = read_mapping(mapping, known, architecture, name=case.name)
    return parse_design(content, case.name)


def count_bits(case: Case, design: Design) -> dict[str, float]:
    """Return the bits read and written, keyed as AccelForge's actions: "QK/GlobalBuffer/K/read"."""
    point = find_point(design, case.shape, case.settings, scalar=True)
    found: dict[str, float] = {}
    for (einsum, tensor, level), traffic in point.counts.traffic.items():
        if level != REGISTERS:
            for action, words in (("read", traffic.reads), ("write", traffic.writes)):
                found[f"{einsum}/{level}/{tensor}/{action}"] = float(words) * case.bits
    return found


def replay(case: Case, mapping: str, there: Mapping[str, Any]) -> Replay:
    """Return how Einfuse counts a mapping, against what AccelForge says of it."""
    name, machine = case.name, case.architecture
    try:
        design = converted(case, mapping)
    except EinfuseError as error:
        nothing = float("nan")
        return Replay(name, machine, *(nothing,) * 5, refused=str(error).split(": ", 1)[-1])
    own = evaluate(design, case.shape, set=case.settings)
    assert own.energy_pj is not None
    energy = float(own.energy_pj) * 1e-12
    seconds = float(own.seconds)
    return Replay(
        name,
        machine,
        energy,
        energy / there["energy_j"],
        seconds,
        seconds / there["seconds"],
        _worst(count_bits(case, design), _bits_there(case, there["actions"])),
    )


def compare_mappings(cases: Sequence[Case] | None = None, *, live: bool = False) -> list[Replay]:
    """Return the replay of every mapping; ``live`` asks AccelForge again."""
    recorded = {r["case"]: r for r in read_records() if r["what"] == "evaluation"}
    wanted = None if cases is None else {case.name for case in cases}
    return [
        replay(case, text, evaluate_there(case, text) if live else recorded[case.name])
        for case, text in mapping_cases()
        if wanted is None or case.name in wanted
    ]


def search_here(case: Case, objective: str = "energy") -> tuple[SearchResult, Design]:
    """Return what Einfuse finds under AccelForge's rules, and the best as a design."""
    machine = load_architecture(case.architecture).with_settings(case.settings)
    space = MapSpace(load(case.cascade), machine, dict(case.shape), case.constraints, ())
    found = find_best(space, find_objective(objective, machine))
    return found, to_design(space, found.best.plan, case.name)


def duel(case: Case, mapping: str, there: Mapping[str, Any]) -> Duel:
    """Return what both find for a case: AccelForge's mapping, and what it says of it."""
    started = process_time()
    _, design = search_here(case)
    cpu_seconds = process_time() - started
    own = evaluate(design, case.shape, set=case.settings)
    its = evaluate(converted(case, mapping), case.shape, set=case.settings)
    assert own.energy_pj is not None and its.energy_pj is not None
    energy, counted = float(own.energy_pj) * 1e-12, float(its.energy_pj) * 1e-12
    return Duel(
        case.name,
        energy,
        counted,
        there["energy_j"],
        energy / counted,
        float(own.seconds),
        there["seconds"],
        cpu_seconds,
        there["cpu_seconds"],
        there["cpu_seconds"] / cpu_seconds,
    )


def compare_searches(cases: Sequence[Case] = CASES, *, live: bool = False) -> list[Duel]:
    """Return what both find for every case; ``live`` lets AccelForge search again."""
    recorded = {r["case"]: r for r in read_records() if r["what"] == "search"}
    kept = {case.name: mapping for case, mapping in mapping_cases()}
    return [
        duel(case, *(search_there(case) if live else (kept[case.name], recorded[case.name])))
        for case in cases
    ]


def run(
    out: Path, *, models: Sequence[str] | None = None, lengths: Sequence[str] | None = None
) -> Path:
    """Write both tables and the report; ``models`` are names of cases.

    Raises:
        EinfuseError: an unknown case, a length, or a folder that cannot be written.
    """
    if lengths:
        raise EinfuseError("the cases of this study have their shapes: leave --length out")
    names = [case.name for case in CASES]
    for name in models or ():
        if name not in names:
            raise EinfuseError(f"no case '{name}'{closest(name, names)}")
    cases = [case for case in CASES if not models or case.name in models]
    live = is_installed()
    replays = compare_mappings(cases if models else None, live=live)
    duels = compare_searches(cases, live=live)
    write_table(out / "mappings.csv", pd.DataFrame([asdict(one) for one in replays]))
    write_table(out / "searches.csv", pd.DataFrame([asdict(one) for one in duels]))
    report = out / "report.md"
    write_text(report, _report(replays, duels, live))
    print(_searches(duels))
    print(_side(live))
    return report


def _bits_there(case: Case, actions: Mapping[str, float]) -> dict[str, float]:
    known = facts(load(case.cascade))
    found: dict[str, float] = {}
    for key, bits in actions.items():
        einsum, level, tensor, action = key.split("/")
        if action != "compute" and level != "Register":
            key = f"{einsum}/{level}/{known.root(tensor)}/{action}"
            found[key] = found.get(key, 0.0) + bits
    return found


def _worst(own: Mapping[str, float], there: Mapping[str, float]) -> float:
    """The largest relative difference."""
    worst = 0.0
    for key in {*own, *there}:
        a, b = own.get(key, 0.0), there.get(key, 0.0)
        worst = max(worst, abs(a - b) / max(a, b) if a or b else 0.0)
    return worst


def _side(live: bool) -> str:
    if live:
        known = versions()
        return f"AccelForge ran beside it: {', '.join(f'{k} {v}' for k, v in known.items())}."
    known = read_records()[0]["versions"]
    return (
        "AccelForge is not installed (it needs Python 3.12: pip install accelforge); its side was "
        f"recorded with {', '.join(f'{k} {v}' for k, v in known.items())}."
    )


def _searches(duels: Sequence[Duel]) -> str:
    lines = [
        "| case | energy (J) | AccelForge's mapping (J) | ratio | AccelForge says (J) | time (s) "
        "| AccelForge (s) | CPU s | AccelForge CPU s | times less |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {d.case} | {d.energy_j:.6g} | {d.counted_energy_j:.6g} | {d.energy_ratio:.6f} "
        f"| {d.accelforge_energy_j:.6g} | {d.seconds:.6g} | {d.accelforge_seconds:.6g} "
        f"| {d.cpu_seconds:.2f} | {d.accelforge_cpu_seconds:.2f} | {d.cpu_ratio:.1f} |"
        for d in duels
    ]
    return "\n".join(lines)


def _report(replays: Sequence[Replay], duels: Sequence[Duel], live: bool) -> str:
    table = [
        "| mapping | architecture | energy (J) | ratio - 1 | time (s) | ratio - 1 | worst access |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in replays:
        table.append(
            f"| {r.mapping} | {r.architecture} | refused: {r.refused} | | | | |"
            if r.refused
            else f"| {r.mapping} | {r.architecture} | {r.energy_j:.6g} | {r.energy_ratio - 1:.1e} "
            f"| {r.seconds:.6g} | {r.seconds_ratio - 1:.1e} | {r.worst_access:.1e} |"
        )
    return "\n".join(
        [
            "# Einfuse and AccelForge on the same cases",
            "",
            _side(live) + " Its totals are float32.",
            "",
            "## Searches for the least energy",
            "",
            "Both keep the same tensors at the same levels, use as many lanes as they can, and "
            "share at most one loop between Einsums in attention and the layer (any number in the "
            "products). CPU seconds of one process, imports apart.",
            "",
            _searches(duels),
            "",
            "The ratio is that of both mappings as they are counted here. What AccelForge's search "
            "says of its mapping is what its `evaluate_mapping` and Einfuse count, but for the "
            "layer on tpu_v4i. There a copy brings the layer's input, B x M x D = 1 x 2048 x 4096 "
            "values of 16 bits, 134,217,728 bits, from main memory to the buffer: 7.03 pJ/bit read "
            "and 2.36 pJ/bit written, 1.26030 mJ. Its search charges the way back, 1.88 pJ/bit for "
            "reading the buffer and 7.03 pJ/bit for writing main memory, 1.19588 mJ: 0.0644 mJ, or "
            "0.04 %, less than any execution takes, for an input that is in main memory to begin "
            "with. The reason is in its analysis: a copy counts as written from the inner of the "
            "two storage nodes to the outer one (`convert_to_copy` looks for the backing storage "
            "by the identity of nodes that it then copies), so the same mapping costs 0.159284 J "
            "with the node of main memory outside the buffer's, as its search has it, and "
            "0.159349 J with the nodes the other way round, as in the file that it writes. "
            "The optimum here hides the copy behind the first product, which takes 0.027 ms less.",
            "",
            "## Mappings counted by both",
            "",
            "Those of the cases are what AccelForge's mapper found, the others are drawn; every "
            "tile divides what it tiles. The last column is the largest relative difference of the "
            "bits that one Einsum reads or writes of one tensor at one level.",
            "",
            *table,
            "",
        ]
    )
