"""The definition of passes by exhaustion: every assignment of sweeps to random cascades.

Independent of the analysis: the generator knows what each access means because it wrote it, the
edges follow from the definition word for word, and the counts from trying all assignments.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from einfuse.einsum.analysis.lineage import trace
from einfuse.einsum.analysis.passes import count_passes
from einfuse.einsum.analysis.placement import fewest_passes
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.parser import parse
from einfuse.einsum.testing import cascades

STREAMED = {"aligned", "prefix", "suffix"}
TOUCHING = STREAMED | {"unaligned"}
LONGEST = 5  # Einsums over the rank, at most: 5**5 assignments


@dataclass
class Step:
    """An Einsum as its writer means it: what it writes, runs over, and reads how."""

    output: str
    kept: frozenset[str]
    space: frozenset[str]
    reads: list[tuple[str, str]]
    text: str
    way: str = ""
    initialiser: bool = False


@dataclass
class Program:
    """Steps by section, and the inputs with the variables that they have."""

    inputs: dict[str, frozenset[str]]
    header: str
    init: list[Step] = field(default_factory=list)
    loop: list[Step] = field(default_factory=list)
    final: list[Step] = field(default_factory=list)

    @property
    def steps(self) -> list[Step]:
        return self.init + self.loop + self.final

    @property
    def text(self) -> str:
        lines = [self.header]
        for name in ("init", "loop", "final"):
            section = getattr(self, name)
            if section:
                lines += [f"{name}:", *(step.text for step in section)]
        lines.insert(1, f"output {self.steps[-1].output}")
        return "\n".join(lines)


def count_by_exhaustion(program: Program, levels: tuple[str, ...]) -> tuple[int, dict[str, int]]:
    """Return the sweeps over ``levels[0]`` and the passes of every root, by definition."""
    top, steps = levels[0], program.steps
    full = set(levels)
    kept = {s.output: s.kept for s in steps} | program.inputs
    indexed = [i for i, s in enumerate(steps) if top in s.space]
    if not indexed:
        return 0, {t: 0 for t, v in program.inputs.items() if full <= v}
    grid = assignments(len(indexed))
    sweep = dict(zip(indexed, grid, strict=True))
    writers: dict[str, list[int]] = {}
    for i, step in enumerate(steps):
        writers.setdefault(step.output, []).append(i)
    feasible = np.ones(grid.shape[1], bool)
    completion: dict[int, npt.NDArray[np.int64]] = {}
    nothing = np.zeros(grid.shape[1], np.int64)

    def complete(i: int) -> npt.NDArray[np.int64]:
        if i in sweep:
            return sweep[i]
        if i not in completion:
            before = [complete(w) for t, kind in steps[i].reads for w in sources(t, kind)]
            completion[i] = functools.reduce(np.maximum, before, nothing)
        return completion[i]

    def sources(tensor: str, kind: str) -> list[int]:
        found = writers.get(tensor, [])
        first = [w for w in found if steps[w].initialiser]
        return first if kind == "init" and first else found

    for i in indexed:
        for tensor, kind in steps[i].reads:
            for w in sources(tensor, kind):
                streams = kind in STREAMED
                if kind in ("init", "final"):  # a downward sweep ends at the first coordinate
                    streams = (kind == "init") != (steps[w].way == "suffix")
                if w in sweep and top in kept[tensor] and streams:
                    feasible &= sweep[i] >= sweep[w]
                else:
                    feasible &= sweep[i] >= complete(w) + 1
    up, down = (
        [i for i in indexed if steps[i].way in ways]
        for ways in (("prefix", "recurrent"), ("suffix", "mirrored"))
    )
    for i, j in itertools.product(up, down):
        feasible &= sweep[i] != sweep[j]
    used = functools.reduce(np.maximum, sweep.values())
    roots = {}
    for root, variables in program.inputs.items():
        if full <= variables:
            members = lineage(root, steps, full, top)
            readers = [
                i for i in indexed if any(t in members and k in TOUCHING for t, k in steps[i].reads)
            ]
            masks = functools.reduce(np.bitwise_or, (1 << sweep[i] for i in readers), nothing)
            roots[root] = int(np.bitwise_count(masks[feasible]).min())
    return int(used[feasible].min()), roots


def lineage(root: str, steps: list[Step], full: set[str], top: str) -> set[str]:
    members = {root}
    while True:
        more = {
            s.output
            for s in steps
            if top in s.space
            and full <= s.kept
            and any(t in members and k in TOUCHING for t, k in s.reads)
        }
        if more <= members:
            return members
        members |= more


@functools.cache
def assignments(count: int) -> npt.NDArray[np.int64]:
    """Return all assignments of sweeps 1..count to that many Einsums, one a column."""
    return np.stack(
        [axis.ravel() for axis in np.meshgrid(*[np.arange(1, count + 1)] * count, indexing="ij")]
    )


FLAT_ACCESS = {
    "aligned": "{t}[{v}]",
    "shifted": "{t}[{v}+1]",
    "init": "{t}[0]",
    "final": "{t}[M-1]",
    "unaligned": "{t}[IX[{v}]]",
    "reversed": "{t}[M-1-{v}]",
}
MEANING = {"shifted": "aligned", "reversed": "unaligned"}
M = frozenset("m")
NONE: frozenset[str] = frozenset()


@st.composite
def flat_programs(draw: st.DrawFn) -> Program:
    """Programs over one rank: maps, folds, prefix and suffix sums, scalars, all access kinds."""
    inputs = {"X": M, "Z": M, "IX": M}
    program = Program(inputs, "rank M\niter i over M\ninput X[M], Z[M], IX[M]")
    known = {"X": M, "Z": M}
    over_rank = 0
    for n in range(draw(st.integers(2, 8))):
        kind = draw(st.sampled_from(["map", "map", "fold", "fold", "scalar", "filter"]))
        scalars = [t for t, v in known.items() if not v]
        if kind == "scalar" and not scalars:
            kind = "fold"
        if kind != "scalar":
            if over_rank == LONGEST:
                continue
            over_rank += 1
        name = f"T{n}"
        if kind == "scalar":
            operands = draw(st.lists(st.sampled_from(scalars), min_size=1, max_size=2))
            reads = [(t, "broadcast") for t in operands]
            text = f"{name}[] = " + " + ".join(f"{t}[]" for t in (*operands, operands[0]))
            step = Step(name, NONE, NONE, reads, text)
        elif kind == "filter":
            source = draw(st.sampled_from([t for t, v in known.items() if v]))
            way = draw(st.sampled_from(["prefix", "suffix"]))
            sign = "<=" if way == "prefix" else ">="
            text = f"{name}[i] = {source}[m: m{sign}i]"
            step = Step(name, M, M, [(source, way)], text, way)
        else:
            step = draw(pointwise(name, known, fold=kind == "fold"))
        program.init.append(step)
        known[name] = step.kept
    return program


@st.composite
def pointwise(draw: st.DrawFn, name: str, known: dict[str, frozenset[str]], fold: bool) -> Step:
    """A map or a fold over m of one to three operands, one of them certainly aligned."""
    vectors = [t for t, v in known.items() if v]
    reads = [(draw(st.sampled_from(vectors)), "aligned")]
    texts = [f"{reads[0][0]}[m]"]
    for tensor in draw(st.lists(st.sampled_from(sorted(known)), max_size=2)):
        if known[tensor]:
            kind = draw(st.sampled_from(sorted(FLAT_ACCESS)))
            texts.append(FLAT_ACCESS[kind].format(t=tensor, v="m"))
            reads.append((tensor, MEANING.get(kind, kind)))
            if kind == "unaligned":
                reads.append(("IX", "aligned"))
        else:
            texts.append(f"{tensor}[]")
            reads.append((tensor, "broadcast"))
    left = f"{name}[]" if fold else f"{name}[m]"
    action = " :: +(m)" if fold else ""
    return Step(name, NONE if fold else M, M, reads, f"{left} = 1 + {' + '.join(texts)}{action}")


@st.composite
def loop_programs(draw: st.DrawFn) -> Program:
    """Programs with recurrences along the rank, what initialises them and what follows."""
    inputs = {"X": M, "Z": M, "IX": M}
    program = Program(inputs, "rank M\niter i over M\ninput X[M], Z[M], IX[M]")
    known = {"X": M, "Z": M}
    budget = LONGEST
    if draw(st.booleans()):
        step = draw(pointwise("S", {"X": M, "Z": M}, fold=True))
        program.init.append(step)
        known["S"] = NONE
        budget -= 1
    recurrences = draw(st.integers(1, 2))
    scalars = [t for t, v in known.items() if not v]
    for n in range(recurrences):
        start = draw(st.sampled_from(["0", *(f"{t}[]" for t in scalars)]))
        reads = [] if start == "0" else [(start[:-2], "broadcast")]
        program.init.append(Step(f"R{n}", M, NONE, reads, f"R{n}[0] = {start}", initialiser=True))
    for n in range(recurrences):
        reads = [(f"R{n}", "aligned")]
        texts = [f"R{n}[i]"]
        mirrored = draw(st.booleans())
        source = draw(st.sampled_from(["X", "Z"]))
        texts.append(f"{source}[M-1-i]" if mirrored else f"{source}[i]")
        reads.append((source, "unaligned" if mirrored else "aligned"))
        upwards = not mirrored and n and program.loop[0].way == "recurrent"
        if upwards and draw(st.booleans()):
            texts.append("R0[i+1]")
            reads.append(("R0", "aligned"))
        if scalars and draw(st.booleans()):
            texts.append(f"{scalars[0]}[]")
            reads.append((scalars[0], "broadcast"))
        way = "mirrored" if mirrored else "recurrent"
        text = f"R{n}[i+1] = {' + '.join(texts)}"
        program.loop.append(Step(f"R{n}", M, M, reads, text, way))
    budget -= recurrences
    for n in range(draw(st.integers(1, 3))):
        if not budget:
            break
        budget -= 1
        step = draw(pointwise(f"T{n}", known, fold=draw(st.booleans())))
        kind = draw(st.sampled_from(["aligned", "final", "init"]))
        tensor = f"R{draw(st.integers(0, recurrences - 1))}"
        access = {"aligned": "[m+1]", "final": "[M]", "init": "[0]"}[kind]
        step.text = step.text.replace(" = ", f" = {tensor}{access} + ", 1)
        step.reads.append((tensor, kind))
        program.final.append(step)
        known[step.output] = step.kept
    if not program.final:
        program.final.append(Step("T", NONE, NONE, [("R0", "final")], "T[] = R0[M]"))
    return program


TILE = frozenset({"m1", "m0"})
TILE_INDEX = {TILE: "[m1,m0]", frozenset({"m1"}): "[m1]", NONE: "[]"}


@st.composite
def tiled_programs(draw: st.DrawFn) -> Program:
    """Programs over a split rank: full tensors, summaries of tiles, global values, views."""
    program = Program({"X": TILE, "Z": TILE}, "rank M1, M0\nsplit M -> M1, M0\ninput X[M], Z[M]")
    whole = {"X": "[m1*M0+m0]", "Z": "[m1*M0+m0]"}
    known: dict[str, frozenset[str]] = dict.fromkeys("XZ", TILE)
    swept = 0
    for n in range(draw(st.integers(2, 8))):
        operands = draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=3))
        space = frozenset().union(*(known[t] for t in operands))
        smaller = [v for v in TILE_INDEX if v <= space and (v != frozenset({"m0"}))]
        kept = draw(st.sampled_from(sorted(smaller, key=sorted)))
        if space and swept == LONGEST:
            continue
        swept += bool(space)
        gone = ",".join(sorted(space - kept))
        name = f"T{n}"
        texts = [t + whole.get(t, TILE_INDEX[known[t]]) for t in operands]
        action = f" :: max({gone})" if gone else ""
        text = f"{name}{TILE_INDEX[kept]} = 1 + {' + '.join(texts)}{action}"
        reads = [(t, "aligned" if known[t] else "broadcast") for t in operands]
        program.init.append(Step(name, kept, space, reads, text))
        known[name] = kept
    return program


def assert_agrees(program: Program, levels: tuple[str, ...], rank: str) -> None:
    dependence = trace(parse(program.text), rank)
    found = (
        fewest_passes(dependence, dependence.sweepers, rank).count,
        {r: fewest_passes(dependence, dependence.readers(r), r).count for r in dependence.roots},
    )
    if rank == "M0":
        tops = {t for t, v in program.inputs.items() if set(levels) <= v}
        assert tops == set(dependence.roots)
    assert found == count_by_exhaustion(program, levels), program.text


FEW = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
pytestmark = pytest.mark.filterwarnings("ignore:.*never read")
MANY = settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@FEW
@given(flat_programs())
def test_counts_agree_with_exhaustion(program: Program) -> None:
    assert_agrees(program, ("m",), "M")


@FEW
@given(loop_programs())
def test_counts_of_recurrences_agree_with_exhaustion(program: Program) -> None:
    assert_agrees(program, ("m",), "M")


@FEW
@given(tiled_programs())
def test_counts_of_tiled_cascades_agree_with_exhaustion(program: Program) -> None:
    assert_agrees(program, ("m1", "m0"), "M")
    assert_agrees(program, ("m0",), "M0")


@pytest.mark.slow
@MANY
@given(flat_programs())
def test_counts_agree_with_exhaustion_on_thousands(program: Program) -> None:
    assert_agrees(program, ("m",), "M")


@pytest.mark.slow
@MANY
@given(loop_programs())
def test_counts_of_recurrences_agree_with_exhaustion_on_thousands(program: Program) -> None:
    assert_agrees(program, ("m",), "M")


@pytest.mark.slow
@MANY
@given(tiled_programs())
def test_counts_of_tiled_cascades_agree_with_exhaustion_on_thousands(program: Program) -> None:
    assert_agrees(program, ("m1", "m0"), "M")
    assert_agrees(program, ("m0",), "M0")


@settings(FEW, max_examples=40)
@given(cascades())
def test_every_random_cascade_has_a_report_with_its_proof(cascade: Cascade) -> None:
    for rank in cascade.rank_names:
        report = count_passes(cascade, rank)
        assert report.passes <= report.sweeps
        if not report.per_iteration:
            assert len(report.barriers) == max(0, report.passes - 1)


def unrolled(body: str, generations: int) -> Cascade:
    """Write a loop over T out: ``{t}`` is a generation, ``{n}`` the next one."""
    lines = ["rank K", "input X0[K]", f"output X{generations}"]
    lines += [body.format(t=t, n=t + 1) for t in range(generations)]
    return parse("\n".join(lines))


@pytest.mark.parametrize(
    ("loop", "body"),
    [
        (
            "N[t] = sq(X[t,k]) :: +(k)\nX[t+1,k] = X[t,k] / N[t]",
            "N{t}[] = sq(X{t}[k]) :: +(k)\nX{n}[k] = X{t}[k] / N{t}[]",
        ),
        (
            "A[t] = sq(X[t,k]) :: +(k)\nZ[t,k] = X[t,k] / A[t]\nB[t] = abs(Z[t,k]) :: +(k)\n"
            "X[t+1,k] = Z[t,k] - B[t]",
            "A{t}[] = sq(X{t}[k]) :: +(k)\nZ{t}[k] = X{t}[k] / A{t}[]\n"
            "B{t}[] = abs(Z{t}[k]) :: +(k)\nX{n}[k] = Z{t}[k] - B{t}[]",
        ),
        ("X[t+1,k] = sq(X[t,k])", "X{n}[k] = sq(X{t}[k])"),
    ],
)
def test_a_slope_is_what_one_more_generation_adds(loop: str, body: str) -> None:
    header = "rank T, K\niter t over T\ninput X0[K]\noutput Y\ninit:\nX[0,k] = X0[k]\nloop:\n"
    report = count_passes(parse(f"{header}{loop}\nfinal:\nY[k] = X[T,k]"), "K")
    slope = report.passes if report.per_iteration else 0
    for generations in (3, 4):
        more, less = (
            count_passes(unrolled(body, n), "K").passes for n in (generations + 1, generations)
        )
        assert more - less == slope
