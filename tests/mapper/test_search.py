"""The search against an enumeration that knows neither of its bounds nor of its columns.

The enumeration writes every mapping of a small space as a design and evaluates it: its loops may
stand in every order, homes at every depth, ranks on every dimension. What it finds best, the search
has to find, to the last digit.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from einfuse.einsum.language.parser import parse
from einfuse.einsum.library.cascades import load
from einfuse.mapper.design.design import Design, load_design
from einfuse.mapper.errors import MappingError
from einfuse.mapper.machine.architecture import (
    Architecture,
    load_architecture,
    parse_architecture,
)
from einfuse.mapper.nest.nest import parse_nest, render_nest
from einfuse.mapper.nest.stages import StageFile, parse_stage
from einfuse.mapper.search.explanation import explain_mapping
from einfuse.mapper.search.export import to_design, to_yaml
from einfuse.mapper.search.search import SearchResult, find_best
from einfuse.mapper.space.constraints import Constraints
from einfuse.mapper.space.space import MapSpace
from einfuse.mapper.space.tile_sizes import block_tiles, group_tiles
from einfuse.simulator.cost.charges import OPTIONS
from einfuse.simulator.cost.model import evaluate
from einfuse.simulator.cost.objectives import find_objective
from einfuse.simulator.result.evaluation import Evaluation

CASCADES = {
    "copy": "rank P\ninput A[P]\noutput Y\nY[p] = A[p] + A[p]",
    "sum": "rank P, K\ninput A[P,K]\noutput Y\nY[p] = A[p,k]",
    "vector": "rank P, K\ninput A[P,K], X[K]\noutput Y\nY[p] = A[p,k] * X[k]",
    "outer": "rank P, K\ninput A[P], X[K]\noutput Y\nY[p,k] = A[p] * X[k]",
    "two": "rank P, K\ninput A[P,K]\noutput Y\nY[p,k] = max(A[p,k] + A[p,k], A[p,k] * A[p,k])",
    "pair": "rank P\ninput A[P]\noutput Y\nT[p] = A[p] + A[p]\nY[p] = T[p] * T[p]",
    "chain": (
        "rank P\ninput A[P]\noutput Y\nT[p] = A[p] + A[p]\nU[p] = T[p] * T[p]\nY[p] = U[p] + U[p]"
    ),
    "again": "rank P, K\ninput A[P], X[K]\noutput Y\nT[p] = A[p] + A[p]\nY[p,k] = T[p] * X[k]",
    "barrier": "rank P\ninput A[P]\noutput Y\nS[] = A[p] :: +(p)\nY[p] = A[p] * S[]",
    "running": (
        "rank P, M\niter m over M\ninput A[M]\noutput Y\ninit:\nR[0] = 0\nloop:\n"
        "R[m+1] = R[m] + A[m]\nfinal:\nY[] = R[M] + R[M]"
    ).replace("rank P, M", "rank M"),
}


def make_architecture(
    lanes: int,
    buffer_bytes: float,
    bandwidth: float,
    second: bool = False,
    pj: float = 4.0,
    pipelined: bool = False,
    milliwatts: float = 1e-9,
) -> Architecture:
    operations = {
        op: {"energy_pj": 1 + n} for n, op in enumerate(("add", "mac", "multiply", "max"))
    }
    registers = {"depth": 1, "read_pj": 0.5, "write_pj": 0.25}
    units: dict[str, Any] = {
        "vector": {
            "lanes": lanes,
            "operations": operations,
            "registers": registers,
            "pipelined": pipelined,
            "leakage_mw": milliwatts,
            "hop_pj": 3.0,
            "mesh_hop_pj": 2.0,
        }
    }
    if second:
        units["scalar"] = {
            "lanes": 1,
            "operations": {op: {"energy_pj": 0.5} for op in operations},
            "registers": registers,
            "leakage_mw": 2 * milliwatts,
            "hop_pj": 0.5,
            "mesh_hop_pj": 0.25,
        }
    return parse_architecture(
        {
            "schema": 1,
            "name": "small",
            "clock_hz": 1.0,
            "memories": {
                "dram": {
                    "access_bytes": 2,
                    "read_pj": 64.0,
                    "write_pj": 80.0,
                    "bandwidth_bytes_per_s": bandwidth,
                    "leakage_mw": 8 * milliwatts,
                },
                "buffer": {
                    "bytes": buffer_bytes,
                    "access_bytes": 2,
                    "read_pj": pj,
                    "write_pj": pj + 1,
                    "leakage_mw": milliwatts,
                    "ports": 1,
                    "port_hz": 0.75,
                },
            },
            "units": units,
        },
        "small",
    )


FIGURES = {
    "latency": lambda e: e.seconds,
    "energy": lambda e: e.energy_pj,
    "traffic": lambda e: e.dram_bytes,
    "edp": lambda e: e.seconds * e.energy_pj,
    "buffer": lambda e: e.peak_bytes.get("buffer", 0.0),
}

# What relations say, of the tiles left beneath a group's loops and of the number of lanes; they
# bind the Einsums that have all of some ranks.
RELATIONS: dict[str, tuple[set[str], Callable[[dict[str, int], int], bool]]] = {
    "P % 2 == 0 or P == 1": ({"P"}, lambda t, n: t["P"] % 2 == 0 or t["P"] == 1),
    "P > 1": ({"P"}, lambda t, n: t["P"] > 1),
    "K <= 2 * P": ({"P", "K"}, lambda t, n: t["K"] <= 2 * t["P"]),
    "P * K < 4 * vector.lanes": ({"P", "K"}, lambda t, n: t["P"] * t["K"] < 4 * n),
    "M != 2": ({"M"}, lambda t, n: t["M"] != 2),
}


def search(space: MapSpace, objective: str, **charged: Any) -> SearchResult:
    return find_best(space, find_objective(objective, space.architecture, **charged))


def evaluated(space: MapSpace, result: SearchResult, **charged: Any) -> Evaluation:
    return evaluate(to_design(space, result.best.plan), dict(space.shape), **charged)


# The enumeration.


def runs(names: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], ...]]:
    for cuts in itertools.product((False, True), repeat=len(names) - 1):
        out: list[list[str]] = [[names[0]]]
        for name, cut in zip(names[1:], cuts, strict=True):
            out.append([name]) if cut else out[-1].append(name)
        yield tuple(map(tuple, out))


def factor(size: int) -> list[int]:
    return [t for t in range(1, size + 1) if size % t == 0]


def leaves(space: MapSpace, name: str, left: dict[str, int]) -> Iterator[list[str]]:
    ranks = [r for r in sorted(space.facts.einsums[name].ranks) if left[r] > 1]
    fixed = space.constraints.parallel.get(name)
    last = space.constraints.innermost.get(name)
    for unit in space.units_of[name]:
        lanes = int(space.lanes[unit]["lanes"])
        for spatial in (None, *ranks):
            if fixed is not None and spatial != next((r for r in fixed if r in ranks), None):
                continue
            wide = 1
            if spatial is not None:
                waves = math.ceil(left[spatial] / lanes)
                wide = math.ceil(left[spatial] / waves)
            for order in itertools.permutations(ranks):
                if last in ranks and order[-1] != last:
                    continue
                lines = []
                for rank in order:
                    tile = wide if rank == spatial else 1
                    if tile < left[rank]:
                        lines.append(f"for {rank} in {tile}")
                if spatial is not None and wide > 1:
                    lines.append(f"parallel {spatial} over lanes")
                yield [*lines, f"compute {name} on {unit}"]
                if space.architecture.file.units[unit].pipelined:
                    yield [*lines, f"compute {name} on {unit} pipelined"]


def nests(space: MapSpace, sizes: dict[str, int], group: tuple[str, ...]) -> Iterator[list[Any]]:
    """Every loop order over the ranks that a group may share, every depth of every home."""
    iterative = space.facts.iterative
    if space.legality.torn(group):
        return
    common = [r for r in sizes if space.legality.may_share(r, group)]
    common += [r for r in sizes if repeats(space, r, group)]
    needs = [r for r, members in space.legality.recurrences if members & set(group)]
    if any(r not in common for r in needs):
        return
    roles = space.roles(group)
    for order in itertools.permutations(common):
        choices = [[1] if r in needs else factor(sizes[r]) for r in order]
        for tiles in itertools.product(*choices):
            left = dict(sizes) | dict(zip(order, tiles, strict=True))
            if not keeps_to(space, group, sizes, order, left):
                continue
            options: list[list[tuple[str, int] | None]] = []
            for tensor in roles.touched_by:
                depths = range(len(order) + 1)
                if tensor in space.facts.carried:
                    first = min((n for n, r in enumerate(order) if r in iterative), default=99)
                    depths = [d for d in depths if d <= first]  # type: ignore[assignment]
                places: list[tuple[str, int] | None] = [(tensor, d) for d in depths]
                depends = all(r in space.facts.ranks[tensor] for r in order if left[r] < sizes[r])
                often = {
                    rank
                    for one, other in itertools.combinations(group, 2)
                    for rank in space.facts.einsums[one].ranks & space.facts.einsums[other].ranks
                    if rank not in common
                }  # they may have loops of their own over these, so are no block
                alike = not any(
                    often & space.facts.einsums[name].ranks for name in roles.touched_by[tensor]
                )
                carried = tensor in space.facts.carried
                forwards = tensor in roles.inside and not carried and depends and alike
                without = forwards or tensor in roles.outside
                options.append([None, *places] if without else places)
            for homes in itertools.product(*options):
                keeps = [h for h in homes if h is not None]
                gone = {*roles.inside} - {tensor for tensor, _ in keeps}
                lines: list[Any] = []
                for depth in range(len(order) + 1):
                    if depth:
                        rank = order[depth - 1]
                        if left[rank] < sizes[rank]:
                            lines.append(f"for {rank} in {left[rank]}")
                    lines += [
                        f"keep {t} at buffer"
                        + (" overlaying T" if t == "U" and ("T", d) in keeps else "")
                        for t, d in keeps
                        if d == depth
                    ]
                for chosen in itertools.product(*(leaves(space, n, left) for n in group)):
                    if not all(in_lanes(space, t, roles.touched_by[t], chosen) for t in gone):
                        continue
                    own = [forward(space, leaf, gone) for leaf in chosen]
                    tail = own[0] if len(group) == 1 else [{"pipeline": own}]
                    yield [*lines, *tail]


def repeats(space: MapSpace, rank: str, group: tuple[str, ...]) -> bool:
    """Whether a loop over a rank may stand above those of a chain that lack it, and come first."""
    every = space.facts.einsums
    first = [name for name in group if rank not in every[name].ranks]
    inside = space.roles(group).inside
    made = [output.tensor for name in first for output in every[name].outputs]
    alone = len(group) == len(first) + 1 and group[: len(first)] == tuple(first)
    return bool(first) and alone and all(tensor in inside for tensor in made)


def in_lanes(
    space: MapSpace, tensor: str, names: tuple[str, ...], leaves: tuple[list[str], ...]
) -> bool:
    """Whether those that touch a tensor make and read each of its words in one lane, at once."""
    ranks = space.facts.ranks[tensor]
    own = [leaf for leaf in leaves if any(line.split()[1] in names for line in leaf[-1:])]
    spread = {(line.split()[1], leaf[-1].split()[3]) for leaf in own for line in leaf[:-1]
              if line.startswith("parallel")}  # fmt: skip
    everywhere = all(
        sum(line.startswith("parallel") for line in leaf) == bool(spread) for leaf in own
    )
    units = {leaf[-1].split()[3] for leaf in own}
    steps = {line.split()[1] for leaf in own for line in leaf if line.startswith("for")}
    alike = len(units) == 1 and len(spread) < 2 and everywhere
    return alike and not steps & ranks and {rank for rank, _ in spread} <= ranks


def forward(space: MapSpace, leaf: list[str], gone: set[str]) -> list[str]:
    """A leaf that takes tensors from the registers that they were made in."""
    _, name, _, unit, *rest = leaf[-1].split()
    taken = [o.tensor for o in space.facts.einsums[name].operands if o.tensor in gone]
    words = ["forwarding", ", ".join(taken)] if taken else []
    return [*leaf[:-1], " ".join(["compute", name, "on", unit, *words, *rest])]


def keeps_to(
    space: MapSpace,
    group: tuple[str, ...],
    sizes: dict[str, int],
    order: tuple[str, ...],
    left: dict[str, int],
) -> bool:
    """Whether loops of a group keep to what the constraints say of order and tiles."""
    loops = [r for r in order if left[r] < sizes[r] and r in space.constraints.order]
    if loops != [r for r in space.constraints.order if r in loops]:
        return False
    lanes = int(space.lanes["vector"]["lanes"])
    return all(
        RELATIONS[text][1](left, lanes)
        for text in space.constraints.relations
        if any(RELATIONS[text][0] <= space.facts.einsums[name].ranks for name in group)
    )


def units_in(nest: list[Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in nest:
        if isinstance(line, dict):
            for child in next(iter(line.values())):
                found |= units_in(child)
        elif line.startswith("compute"):
            _, name, _, unit, *_ = line.split()
            found[name] = unit
    return found


def enumerate_space(space: MapSpace, **charged: Any) -> Iterator[Evaluation]:
    """Evaluate every mapping; what does not fit is left out."""
    (sizes,) = space.splits()
    for groups in runs(space.einsums):
        ways = [
            way for g in groups for n in nests(space, sizes, g) for way in overlaps(space, g, n)
        ]
        once = {repr(way): way for way in ways}.values()  # loops of one iteration are not written
        by_group = {g: [way for way in once if way[0] == g] for g in groups}
        for chosen in itertools.product(*by_group.values()):
            design = build(space, groups, [n for _, n, _ in chosen], [o for _, _, o in chosen])
            try:
                yield evaluate(design, dict(space.shape), **charged)
            except MappingError as error:
                assert "do not fit" in str(error), error


def overlaps(
    space: MapSpace, group: tuple[str, ...], nest: list[Any]
) -> Iterator[tuple[tuple[str, ...], list[Any], bool]]:
    """A nest one Einsum at a time, and overlapped with the copies that live at once, if it may."""
    yield group, nest, False
    counts = group_loops(space, group, nest)
    tiles = math.prod(counts.values())
    if len(group) == 1 or tiles <= len(group) - 1:
        return
    touch: dict[str, set[int]] = {}
    for offset, name in enumerate(group):
        einsum = space.facts.einsums[name]
        for used in (*einsum.operands, *einsum.outputs):
            touch.setdefault(used.tensor, set()).add(offset)
    for line in nest:
        if isinstance(line, str) and "overlaying" in line:
            made, read = line.split()[1], line.split()[-1]
            touch[made] = touch[read] = touch[made] | touch[read]
    lines: list[Any] = []
    for number, line in enumerate(nest):
        if isinstance(line, str) and line.startswith("keep"):
            own = touch[line.split()[1]]
            lasts = math.prod(n for at, n in counts.items() if at > number)
            lives = [  # the epochs in which each of its tiles is touched, from first to last
                (lasts * one + min(own), lasts * (one + 1) - 1 + max(own))
                for one in range(tiles // lasts)
            ]
            alive = max(sum(a <= epoch <= b for a, b in lives) for epoch, _ in lives)
            place, *overlaying = line.split(" overlaying ")
            line = " overlaying ".join([f"{place} copies {alive}", *overlaying])
        lines.append(line)
    yield group, lines, True


def group_loops(space: MapSpace, group: tuple[str, ...], nest: list[Any]) -> dict[int, int]:
    """The place in a nest of each loop of its group, and its iterations."""
    counts: dict[int, int] = {}
    left = dict(space.shape)
    for number, line in enumerate(nest):
        if not isinstance(line, str) or not line.startswith(("for", "keep")):
            break
        if line.startswith("for") and len(group) > 1:
            _, rank, _, tile = line.split()
            counts[number] = int(left[rank]) // int(tile)
            left[rank] = int(tile)
    return counts


def build(
    space: MapSpace,
    groups: tuple[tuple[str, ...], ...],
    nested: list[list[Any]],
    overlapped: list[bool],
) -> Design:
    place = {n: i for i, g in enumerate(groups) for n in g}
    known = {*space.cascade.inputs, *space.cascade.outputs}
    handed = [
        o.tensor
        for n, e in space.facts.einsums.items()
        for o in e.outputs
        if o.tensor not in known
        and any(
            place[m] != place[n] and o.tensor in [x.tensor for x in f.operands]
            for m, f in space.facts.einsums.items()
        )
    ]
    lines = [f"keep {t} at dram" for t in handed]
    lines += nested[0] if len(nested) == 1 else [{"branch": nested}]
    stages = []
    for group, nest, together in zip(groups, nested, overlapped, strict=True):
        units = units_in(nest)
        if together:  # a chain: each reads the one before
            phase: dict[str, list[str]] = {}
            for name in group:
                phase.setdefault(units[name], []).append(name)
            offsets = {name: n for n, name in enumerate(group)}
            stages.append({"phases": [phase], "offsets": offsets})
        else:
            stages.append({"phases": [{units[name]: [name]} for name in group]})
    return Design(
        "enumerated",
        space.cascade,
        space.architecture,
        parse_nest(lines),
        tuple(parse_stage(StageFile.model_validate(s), "stage") for s in stages),
        space.batch or (),
    )


@st.composite
def constraints(draw: st.DrawFn, space: MapSpace) -> Constraints:
    """Fixed loops and relations between tiles, some that leave no mapping."""
    given: dict[str, Any] = {"tile_choices": "divisors"}
    looped = sorted({rank for e in space.facts.einsums.values() for rank in e.ranks})
    apt = [text for text, (ranks, _) in sorted(RELATIONS.items()) if ranks <= {*looped}]
    given["relations"] = draw(st.lists(st.sampled_from(apt), max_size=2, unique=True))
    given["order"] = draw(st.sampled_from([(), *itertools.permutations(looped)]))
    for name, einsum in space.facts.einsums.items():
        ranks = sorted(einsum.ranks)
        spread = draw(st.sampled_from([None, None, {}, *({rank: "lanes"} for rank in ranks)]))
        if spread is not None:
            given.setdefault("parallel", {})[name] = spread
        if ranks and draw(st.booleans()):
            given.setdefault("innermost", {})[name] = draw(st.sampled_from(ranks))
    return Constraints(**given)


@st.composite
def constrained(draw: st.DrawFn, **limits: Any) -> tuple[MapSpace, str]:
    space, objective = draw(cases(**limits))
    return replace(space, constraints=draw(constraints(space))), objective


@st.composite
def cases(draw: st.DrawFn, without: tuple[str, ...] = (), most: int = 4) -> tuple[MapSpace, str]:
    name = draw(st.sampled_from(sorted({*CASCADES} - {*without})))
    cascade = parse(CASCADES[name], name)
    largest = min(
        most, 2 if name in ("again", "chain") else 3 if len(cascade.rank_names) > 1 else 4
    )
    sizes = {r: draw(st.integers(1, largest)) for r in cascade.rank_names}
    architecture = make_architecture(
        draw(st.sampled_from((1, 2, 3, 4))),
        draw(st.sampled_from((4, 8, 12, 16, 1024))),
        draw(st.sampled_from((0.5, 2.0, 100.0))),
        draw(st.booleans()) and name in ("copy", "pair", "sum"),
        draw(st.sampled_from((0.5, 4.0, 100.0))),
        draw(st.booleans()) and name not in ("chain", "barrier"),
    )
    objective = draw(st.sampled_from(sorted(FIGURES)))
    space = MapSpace(cascade, architecture, sizes, Constraints(tile_choices="divisors"))
    return space, objective


def check(space: MapSpace, objective: str, **charged: Any) -> None:
    figure = FIGURES[objective]
    truth = [figure(e) for e in enumerate_space(space, **charged)]
    try:
        result = search(space, objective, **charged)
    except MappingError:
        assert not truth
        return
    found = evaluated(space, result, **charged)
    assert result.optimal
    assert figure(found) == pytest.approx(min(truth), rel=1e-12)
    reported = math.prod(result.best.figures) if objective == "edp" else result.best.figures[0]
    assert reported == pytest.approx(figure(found), rel=1e-12)


SLOW_OK = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


@settings(max_examples=4, derandomize=True, **SLOW_OK)
@given(cases(without=("again", "chain", "two"), most=2))
def test_the_optimum_is_that_of_an_enumeration(case: tuple[MapSpace, str]) -> None:
    check(*case)


@settings(max_examples=5, derandomize=True, **SLOW_OK)
@given(constrained(without=("chain", "two"), most=2))
def test_the_optimum_under_fixed_loops_and_relations_is_that_of_an_enumeration(
    case: tuple[MapSpace, str],
) -> None:
    check(*case)


@pytest.mark.slow
@settings(max_examples=100, **SLOW_OK)
@given(constrained())
def test_the_optimum_under_constraints_is_that_of_an_enumeration_on_hundreds_of_cases(
    case: tuple[MapSpace, str],
) -> None:
    check(*case)


@pytest.mark.slow
@settings(max_examples=300, **SLOW_OK)
@given(cases())
def test_the_optimum_is_that_of_an_enumeration_on_hundreds_of_cases(
    case: tuple[MapSpace, str],
) -> None:
    check(*case)


@st.composite
def charged_cases(draw: st.DrawFn, **limits: Any) -> tuple[MapSpace, str, dict[str, Any]]:
    """Spaces under every accounting and set of options; leakage is next to nothing, or most."""
    space, objective = draw(cases(**limits))
    milliwatts = draw(st.sampled_from((1e-10, 1e-8, 1e-6)))
    settings = {"vector.hop_pj": draw(st.sampled_from((0.0, 3.0, 300.0)))}
    names = (*space.architecture.memories, *space.architecture.units)
    settings |= {f"{name}.leakage_mw": (n + 1) * milliwatts for n, name in enumerate(names)}
    architecture = space.architecture.with_settings(settings)
    accounting = draw(st.sampled_from(("published", "published-all-registers", *["physical"] * 4)))
    include = draw(st.sets(st.sampled_from(sorted(OPTIONS)))) if accounting == "physical" else ()
    charged = {"accounting": accounting, "include": sorted(include)}
    return replace(space, architecture=architecture), objective, charged


@settings(max_examples=8, derandomize=True, **SLOW_OK)
@given(charged_cases(without=("again", "chain", "two"), most=2))
def test_the_optimum_of_what_is_charged_on_request_is_that_of_an_enumeration(
    case: tuple[MapSpace, str, dict[str, Any]],
) -> None:
    space, objective, charged = case
    check(space, objective, **charged)


@pytest.mark.slow
@settings(max_examples=200, derandomize=True, **SLOW_OK)
@given(charged_cases(without=("again", "chain"), most=3))
def test_the_optimum_of_what_is_charged_is_that_of_an_enumeration_on_hundreds_of_cases(
    case: tuple[MapSpace, str, dict[str, Any]],
) -> None:
    space, objective, charged = case
    check(space, objective, **charged)


def test_what_a_lane_makes_and_reads_goes_from_register_to_register() -> None:
    # a word of T at home: a write of 5 and a read of 4 pJ there, and a write of 0.25 pJ that
    # brings it back into a register
    architecture = make_architecture(lanes=4, buffer_bytes=1024, bandwidth=2.0)
    space = MapSpace(parse(CASCADES["pair"], "pair"), architecture, {"P": 8})
    result = search(space, "energy")
    assert [group.forwarded for group in result.best.plan.groups] == [{"T"}]
    lines = str(render_nest(to_design(space, result.best.plan).nest))
    assert "compute Y on vector forwarding T" in lines
    kept = replace(space, constraints=Constraints(forward=()))
    assert best_of(kept, "energy") - result.score == pytest.approx(8 * (5 + 4 + 0.25))


def test_registers_bound_what_is_forwarded() -> None:
    # an Einsum touches two tensors; T and U take two registers each, since the chain may overlap
    found = {}
    for words in (3, 4, 6):
        architecture = make_architecture(lanes=2, buffer_bytes=1024, bandwidth=2.0).with_settings(
            {"vector.registers.bytes": 2 * words}
        )
        constraints = Constraints(tile_choices="divisors", tiles={"P": 2})
        space = MapSpace(parse(CASCADES["chain"], "chain"), architecture, {"P": 2}, constraints)
        best = search(space, "energy").best.plan
        found[words] = sum(len(group.forwarded) for group in best.groups)
    assert found == {3: 0, 4: 1, 6: 2}


@pytest.mark.slow
def test_forwarding_makes_the_product_of_attention_less_than_by_hand() -> None:
    shape = {"B": 64, "H": 12, "M": 4096, "P": 4096, "E": 64, "F": 64}
    by_hand = evaluate(load_design("fusemax"), shape)
    space = MapSpace(load("attention/1-pass"), load_architecture("fusemax"), shape)
    result = find_best(space, find_objective("edp", space.architecture), seconds=60)
    assert result.score < 0.95 * by_hand.seconds * by_hand.energy_pj
    assert {"QK", "SLN"} <= result.best.plan.groups[0].forwarded


def best_of(space: MapSpace, objective: str) -> float:
    """The score of the optimum; infinite where nothing is possible."""
    try:
        return search(space, objective).score
    except MappingError:
        return math.inf


MORE = ("buffer.bytes", "dram.bandwidth_bytes_per_s", "vector.lanes")


@settings(max_examples=20, derandomize=True, **SLOW_OK)
@given(cases(), st.sampled_from(MORE), st.sampled_from((1.5, 2.0, 3.0)))
def test_more_of_a_resource_never_makes_the_optimum_worse(
    case: tuple[MapSpace, str], path: str, by: float
) -> None:
    space, objective = case
    value = space.architecture.parameters[path]
    assert isinstance(value, int | float)
    more = space.architecture.with_settings({path: math.ceil(value * by)})
    again = best_of(replace(space, architecture=more), objective)
    assert again <= best_of(space, objective) * (1 + 1e-12)


@settings(max_examples=20, derandomize=True, **SLOW_OK)
@given(cases(), st.data())
def test_a_constraint_never_makes_the_optimum_better(
    case: tuple[MapSpace, str], data: st.DataObject
) -> None:
    space, objective = case
    rank = data.draw(st.sampled_from(space.cascade.rank_names))
    tensor = data.draw(st.sampled_from(sorted(space.facts.ranks)))
    level = data.draw(st.sampled_from(space.memories))
    fewer = space.constraints.model_copy(update={"tiles": {rank: (1,)}, "keep": {tensor: (level,)}})
    constrained = best_of(replace(space, constraints=fewer), objective)
    assert constrained >= best_of(space, objective) * (1 - 1e-12)


@settings(max_examples=20, derandomize=True, **SLOW_OK)
@given(cases())
def test_a_front_holds_the_optima_of_its_figures(case: tuple[MapSpace, str]) -> None:
    space, _ = case
    names = ("latency", "energy", "buffer")
    alone = [best_of(space, name) for name in names]
    if math.inf in alone:
        return
    result = search(space, ",".join(names))
    points = [s.figures for s in result.solutions]
    assert [min(column) for column in zip(*points, strict=True)] == pytest.approx(alone, rel=1e-12)
    for x, y in itertools.permutations(points, 2):
        assert any(a < b for a, b in zip(x, y, strict=True))


def attention(length: int, heads: int = 12, embedding: int = 64) -> dict[str, int]:
    return {"B": 64, "H": heads, "E": embedding, "F": embedding, "M": length, "P": length}


def published(design: str, shape: dict[str, int]) -> Evaluation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return evaluate(load_design(design), shape, accounting="published")


def fastest(cascade: str, architecture: str, shape: dict[str, int], **given: Any) -> Evaluation:
    space = MapSpace(load(cascade), load_architecture(architecture), shape, Constraints(**given))
    result = search(space, "latency")
    found = evaluated(space, result)
    assert result.optimal and result.gap == 0
    assert found.seconds == pytest.approx(result.score, rel=1e-12)
    return found


def test_the_fusemax_binding_is_found_and_bettered_by_larger_key_tiles() -> None:
    shape = attention(1024)
    found = fastest("attention/1-pass", "fusemax", shape)
    # by hand: the 2D array does 2E + 9 cycles for 256 keys and 256 queries, and is the longer unit
    # once a tile of keys is higher than the array
    assert found.cycles == pytest.approx(64 * 12 * 4 * 4 * (2 * 64 + 9))
    assert found.bound == "array_2d"
    assert found.seconds < published("fusemax", shape).seconds


def test_the_speed_of_flat_is_that_of_its_vector_unit_and_is_found() -> None:
    shape = attention(1024)
    found = fastest("attention/3-pass", "flat", shape)
    # by hand: four slots for each of the scores on 256 lanes, of which exp and its subtraction
    # take one together; five where they may not
    assert found.cycles == pytest.approx(64 * 12 * 1024 * 1024 * 4 / 256)
    assert found.seconds <= published("flat", shape).seconds * (1 + 1e-12)
    alone = fastest("attention/3-pass", "flat", shape, pipelined=())
    assert alone.cycles == pytest.approx(64 * 12 * 1024 * 1024 * 5 / 256)


def test_a_unit_pipelines_only_if_its_architecture_says_so() -> None:
    fusemax = load_architecture("fusemax")
    with pytest.raises(MappingError, match="do not overlap on array_1d of fusemax"):
        MapSpace(
            load("attention/1-pass"), fusemax, attention(1024), Constraints(pipelined=("array_1d",))
        )
    moved = replace(
        load_design("flat"), architecture=replace(load_architecture("flat"), file=fusemax.file)
    )
    with pytest.raises(MappingError, match="compute SN on array_1d pipelined"):
        evaluate(moved, attention(1024))


@pytest.mark.slow
@pytest.mark.parametrize("pair", list(itertools.combinations(sorted(FIGURES), 2)), ids="-".join)
def test_a_front_that_is_stopped_is_within_its_gap(pair: tuple[str, str]) -> None:
    space = MapSpace(load("attention/3-pass"), load_architecture("flat"), attention(4096))
    result = find_best(space, find_objective(pair, space.architecture), seconds=8)
    # what is best of each figure alone is no further below than the gap says
    figures = result.objective.figures
    for number, figure in enumerate(figures):
        name = {"seconds": "latency", "energy_pj": "energy", "dram_bytes": "traffic"}
        alone = find_best(
            space, find_objective(name.get(figure, "buffer"), space.architecture), seconds=60
        )
        least = min(one.figures[number] for one in result.solutions)
        assert alone.score <= least * (1 + 1e-9)
        if result.is_front:
            assert alone.score >= least * (1 - result.gap - 1e-9)
    for one in result.solutions:
        found = evaluate(to_design(space, one.plan), dict(space.shape))
        for figure, value in zip(figures, one.figures, strict=True):
            known = (
                found.peak_bytes.get("buffer", 0.0)
                if figure == "peak_bytes"
                else getattr(found, figure)
            )
            assert known == pytest.approx(value, rel=1e-9)


MODELS = {"BERT": (12, 64), "TrXL": (16, 64), "T5": (8, 64), "XLM": (16, 128)}


@pytest.mark.slow
@pytest.mark.parametrize("length", [2**k for k in range(10, 21, 2)])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("hand", ["attention/1-pass fusemax", "attention/3-pass flat"])
def test_all_models_at_all_lengths_are_as_fast_as_published(
    model: str, length: int, hand: str
) -> None:
    cascade, design = hand.split()
    shape = attention(length, *MODELS[model])
    found = fastest(cascade, design, shape)
    assert found.seconds <= published(design, shape).seconds * (1 + 1e-12)


def test_searches_in_other_processes_find_the_same() -> None:
    architecture = load_architecture("fusemax")
    sizes = [{"B": 1, "H": 1, "E": 4, "F": 4, "M": 16, "P": queries} for queries in (8, 16)]
    spaces = [MapSpace(load("attention/3-pass"), architecture, shape) for shape in sizes]
    one = partial(find_best, objective=find_objective("latency", architecture))
    with ProcessPoolExecutor(2) as pool:
        found = list(pool.map(one, spaces))
    for result, space in zip(found, spaces, strict=True):
        assert result.best == one(space).best and result.optimal
        written = evaluate(to_design(result.space, result.best.plan), dict(space.shape))
        assert written.seconds == pytest.approx(result.score, rel=1e-12)


def test_the_same_mapping_is_found_again() -> None:
    shape = {"B": 1, "H": 1, "E": 4, "F": 4, "M": 16, "P": 8}
    space = MapSpace(load("attention/3-pass"), load_architecture("flat"), shape)
    assert search(space, "latency").best == search(space, "latency").best


def test_a_search_that_is_interrupted_keeps_its_best_and_the_gap() -> None:
    met: list[str] = []

    def interrupt(line: str) -> None:
        met.extend([line] if line.startswith("best so far") else [])
        if len(met) == 2:  # the first is found before anything is bounded
            raise KeyboardInterrupt

    shape = {"B": 1, "H": 1, "E": 4, "F": 4, "M": 16, "P": 8}
    architecture = load_architecture("fusemax")
    space = MapSpace(load("attention/1-pass"), architecture, shape)
    result = find_best(space, find_objective("energy", architecture), report=interrupt)
    assert not result.optimal
    assert 0 <= result.gap < 1
    assert evaluated(space, result).energy_pj == pytest.approx(result.score)


def test_a_search_without_time_ends_with_a_mapping_and_no_proof() -> None:
    shape = {"B": 1, "H": 1, "E": 16, "F": 16, "M": 256, "P": 256}
    architecture = load_architecture("fusemax")
    space = MapSpace(load("attention/2-pass"), architecture, shape)
    found = find_best(space, find_objective("energy", architecture), seconds=1e-9)
    assert not found.optimal and found.gap == 1
    assert evaluated(space, found).energy_pj == pytest.approx(found.score, rel=1e-12)


def test_an_empty_space_says_what_does_not_fit() -> None:
    tight = load_architecture("fusemax").with_settings({"buffer.bytes": 1, "staging.bytes": 1})
    shape = {"B": 1, "H": 1, "E": 4, "F": 4, "M": 8, "P": 8}
    space = MapSpace(load("attention/1-pass"), tight, shape)
    with pytest.raises(MappingError, match=r"needs 1 bytes more than (buffer|staging) has"):
        search(space, "latency")


def test_constraints_without_a_mapping_are_named() -> None:
    given = Constraints(split=(("RD", "SPD"),))
    shape = {"B": 1, "H": 1, "E": 4, "F": 4, "M": 8, "P": 8}
    space = MapSpace(load("attention/1-pass"), load_architecture("fusemax"), shape, given)
    with pytest.raises(MappingError, match=r"the constraint split\[0\] \(RD, SPD\) leaves"):
        search(space, "latency")


def test_a_file_of_a_changed_architecture_stands_alone(tmp_path: Path) -> None:
    changed = load_architecture("fusemax").with_settings({"array_1d.lanes": 512})
    shape = {"B": 1, "H": 1, "E": 16, "F": 16, "M": 256, "P": 256}
    space = MapSpace(load("attention/1-pass"), changed, shape)
    result = search(space, "latency")
    path = tmp_path / "found.yaml"
    path.write_text(to_yaml(space, result.best.plan))
    again = evaluate(load_design(path), shape)
    assert again.seconds == evaluated(space, result).seconds
    assert again.parameters["array_1d.lanes"] == 512


def in_space(space: MapSpace, result: SearchResult) -> dict[str, dict[str, str]]:
    leaves = [leaf for group in result.best.plan.groups for leaf in group.leaves]
    return {leaf.einsum: dict(leaf.spatial) for leaf in leaves}


def test_fixed_loops_and_relations_are_kept() -> None:
    tiles: dict[str, tuple[int, ...]] = {"M0": (64, 128)}
    given = Constraints(
        fuse=(("QK", "LM"),),
        tiles=tiles,
        order=("P", "M1"),
        relations=("P <= 2 * M0", "P % array_1d.lanes == 0"),
        parallel={"QK": {"M0": "columns", "P": "rows"}, "LM": {}},
        innermost={"QK": "P"},
    )
    shape = {"B": 1, "H": 1, "E": 4, "F": 4, "M": 256, "P": 256}
    architecture = load_architecture("fusemax")
    space = MapSpace(load("attention/1-pass"), architecture, shape, given)
    result = search(space, "latency")
    assert result.optimal
    assert {"relation P <= 2 * M0", "relation P % array_1d.lanes == 0"} <= {*result.infeasible}
    found = in_space(space, result)
    assert found["QK"] == {"M0": "columns", "P": "rows"} and found["LM"] == {}
    for group in result.best.plan.groups:
        tiles, inner = dict(group.loops), [dict(one.loops) for one in group.inner]
        for loops in ({**tiles, **one} for one in inner):
            queries, keys = loops.get("P", 256), loops.get("M0", dict(result.best.plan.splits))
            if "M0" in loops:
                assert queries <= 2 * keys
            assert queries % 256 == 0
            order = [r for r in loops if r == "M1" or (r == "P" and queries < 256)]
            assert order != ["M1", "P"]
    free = search(replace(space, constraints=Constraints(tiles=tiles)), "latency")
    assert result.score > free.score  # LM takes one lane
    evaluated(space, result)


def small(**given: Any) -> MapSpace:
    cascade = parse("rank P, K\ninput A[P,K]\noutput Y\nS[p] = A[p,k]\nY[p,k] = A[p,k] * S[p]")
    architecture = make_architecture(2, 1024, 2.0)
    return MapSpace(cascade, architecture, {"P": 4, "K": 4}, Constraints(**given))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"relations": ("P > 4",)}, r"the constraint relations\[0\] \(P > 4\) leaves no mapping"),
        (
            {"relations": ("P > 2", "K <= 4", "P * K < 4")},
            r"relations\[0\] \(P > 2\) and relations\[2\] \(P \* K < 4\) together leave",
        ),
        (
            {"tiles": {"P": (1,), "K": (1, 2)}, "relations": ("P >= 2",)},
            r"the constraints tiles.P \(1\) and relations\[0\] \(P >= 2\) together",
        ),
        (
            {"fuse": (("S", "Y"),), "exchange": (), "order": ("P", "K")},
            r"fuse\[0\] \(S, Y\) together leave",
        ),
    ],
)
def test_constraints_that_leave_nothing_together_are_named(
    given: dict[str, Any], words: str
) -> None:
    with pytest.raises(MappingError, match=words):
        search(small(**given), "latency")


@pytest.mark.parametrize("objective", ["latency", "energy"])
@pytest.mark.parametrize(
    ("given", "apt"),
    [
        ({"relations": ("K < P",)}, lambda p, k: k < p),
        ({"relations": ("P * K == 4", "K > 1")}, lambda p, k: p * k == 4 and k > 1),
        ({"order": ("K", "P")}, lambda p, k: p == 4 or k == 4),
    ],
)
def test_what_relates_the_tiles_of_a_group_and_its_blocks_is_all_that_keeps_to_it(
    objective: str, given: dict[str, Any], apt: Callable[[int, int], bool]
) -> None:
    # S and Y share the loop over P; K, behind the barrier, is a loop of a block of each
    fused: dict[str, Any] = {"fuse": (("S", "Y"),), "tile_choices": "divisors"}
    scores: list[float] = []
    counts = 0
    for queries in (1, 2, 4):
        if keys := tuple(k for k in (4, 2, 1) if apt(queries, k)):
            space = small(**fused, tiles={"P": (queries,), "K": keys})
            scores.append(best_of(space, objective))
            counts += tiles_of(space)
    space = small(**fused, **given)
    assert best_of(space, objective) == pytest.approx(min(scores), rel=1e-12)
    assert tiles_of(space) == counts


def tiles_of(space: MapSpace) -> int:
    """The tiles of all loops of the structures, counted one by one."""
    (sizes,) = space.splits()
    return sum(
        len(next(iter(points.values())))
        * math.prod(len(block_tiles(space, s, b, sizes, points)) for b in range(len(s.blocks)))
        for s in space.structures(space.einsums)
        for points in group_tiles(space, s, sizes)
    )


def test_what_constraints_rule_out_is_no_alternative() -> None:
    # nothing but the 2D array has rows, and the group is fixed
    given = Constraints(fuse=(("S", "Z"),), parallel={"S": {"P": "rows"}})
    text = "rank P, K\ninput A[P,K]\noutput Z\nS[p,k] = A[p,k] * A[p,k]\nZ[p,k] = S[p,k] * A[p,k]"
    space = MapSpace(parse(text), load_architecture("fusemax"), {"P": 2, "K": 2}, given)
    result = search(space, "latency")
    design, figures = to_design(space, result.best.plan), result.best.figures
    _, others = explain_mapping(space, design, figures, partial(find_objective, "latency"), 60)
    found = {one.decision: one for one in others}
    assert found["S ... Z in one group"].note == "nothing else is possible"
    assert "S on array_2d" not in found


def test_what_is_explained_is_the_mapping_that_is_given() -> None:
    # not the best one: the product is on the vector unit, 256 times as slow as the array
    text = "rank M, N, K\ninput A[M,K], B[K,N]\noutput Z\nZ[m,n] = A[m,k] * B[k,n]"
    machine = load_architecture("fusemax").with_settings({"dram.bandwidth_bytes_per_s": 1e15})
    space = MapSpace(parse(text), machine, {"M": 256, "N": 256, "K": 16})
    slow = search(replace(space, constraints=Constraints(units={"Z": ("array_1d",)})), "latency")
    design, figures = to_design(space, slow.best.plan), slow.best.figures
    _, others = explain_mapping(space, design, figures, partial(find_objective, "latency"), 60)
    ratios = {one.decision: one.ratio for one in others}
    better = ratios["Z on array_1d"]
    assert better is not None and better.proven == pytest.approx(1 / 256)
