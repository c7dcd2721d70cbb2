"""Pass counts do not depend on spelling: random programs, each written down in many ways.

A program says what is read where along one axis. What it needs follows from the definition of
passes by trying every assignment of sweeps. A spelling decides everything else: names of variables
and ranks, splits, copies, order, literal sizes. All spellings have to be counted alike.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest

from einfuse.einsum.analysis.passes import count_passes
from einfuse.einsum.language.parser import parse

pytestmark = pytest.mark.filterwarnings("ignore:.*never read")
LONGEST = 5  # steps along the axis, at most: 5**5 assignments
STREAMED = {"aligned", "shifted", "prefix", "suffix"}
TOUCHING = STREAMED | {"reversed", "gathered"}
INPUTS = ("X", "Z", "IX")


@dataclass(frozen=True)
class Step:
    """What is computed: ``form`` is full, tiles (a summary) or scalar; reads are (tensor, how)."""

    name: str
    form: str
    reads: tuple[tuple[str, str], ...]
    action: str = ""  # of what is folded away: all of the axis, or each tile

    @property
    def swept(self) -> bool:
        return self.action != "" or self.form != "scalar"

    @property
    def way(self) -> str:
        kinds = {kind for _, kind in self.reads}
        return "up" if "prefix" in kinds else "down" if "suffix" in kinds else ""


Program = tuple[Step, ...]


def draw_program(rng: random.Random) -> Program:
    """Return two to seven steps: maps, folds, folds of tiles, running folds, scalars."""
    forms = {"X": "full", "Z": "full"}
    steps: list[Step] = []
    for n in range(rng.randint(2, 7)):
        vectors = [t for t, form in forms.items() if form == "full"]
        scalars = [t for t, form in forms.items() if form == "scalar"]
        tiles = [t for t, form in forms.items() if form == "tiles"]
        kind = rng.choice(["map", "map", "fold", "fold", "scan", "tiles", "merge", "scalar"])
        if kind == "scalar" and scalars:
            reads = tuple((t, "scalar") for t in rng.choices(scalars, k=rng.randint(1, 2)))
            steps.append(Step(f"T{n}", "scalar", reads))
            forms[f"T{n}"] = "scalar"
            continue
        if sum(step.swept for step in steps) == LONGEST:
            continue
        if kind == "scan":
            reads = ((rng.choice(vectors), rng.choice(["prefix", "suffix"])),)
            step = Step(f"T{n}", "full", reads)
        elif kind == "merge" and tiles:
            step = Step(f"T{n}", "scalar", ((rng.choice(tiles), "aligned"),), "max")
        else:
            reads = ((rng.choice(vectors), "aligned"),)
            for t in rng.choices(sorted(forms), k=rng.randint(0, 2)):
                if forms[t] == "full":
                    how = ("aligned", "aligned", "shifted", "reversed", "gathered", "init", "final")
                    reads += ((t, rng.choice(how)),)
                else:
                    reads += ((t, "scalar" if forms[t] == "scalar" else "aligned"),)
            form = {"fold": "scalar", "tiles": "tiles"}.get(kind, "full")
            step = Step(f"T{n}", form, reads, "" if form == "full" else rng.choice(["+", "max"]))
        steps.append(step)
        forms[step.name] = step.form
    return tuple(steps)


def count_by_exhaustion(program: Program) -> tuple[int, dict[str, int]]:
    """Return the sweeps, and the passes of every input, by trying all assignments."""
    by_name = {step.name: step for step in program}
    form = {t: "full" for t in INPUTS} | {s.name: s.form for s in program}
    swept = [step.name for step in program if step.swept]
    grid = assignments(len(swept))
    sweep = dict(zip(swept, grid, strict=True))
    feasible = np.ones(grid.shape[1], bool)
    nothing = np.zeros(grid.shape[1], np.int64)

    def complete(tensor: str) -> npt.NDArray[np.int64]:
        if tensor in sweep:
            return sweep[tensor]
        reads = by_name[tensor].reads if tensor in by_name else ()
        return functools.reduce(np.maximum, (complete(t) for t, _ in reads), nothing)

    for name in swept:
        for tensor, how in by_name[name].reads:
            if tensor not in by_name:
                continue
            ends = {"init": "up", "final": "down"}.get(how)  # the end where a sweep begins
            begins = ends is not None and (by_name[tensor].way or "up") == ends
            if form[tensor] != "scalar" and (how in STREAMED or begins):
                feasible &= sweep[name] >= sweep[tensor]
            else:
                feasible &= sweep[name] >= complete(tensor) + 1
    for one in swept:
        for other in swept:
            if (by_name[one].way, by_name[other].way) == ("up", "down"):
                feasible &= sweep[one] != sweep[other]
    passes = {}
    for root in INPUTS:
        members = {root}
        for step in program:
            if step.form == "full" and touches(step, members):
                members.add(step.name)
        readers = [name for name in swept if touches(by_name[name], members)]
        used = functools.reduce(np.bitwise_or, (1 << sweep[n] for n in readers), nothing)
        passes[root] = int(np.bitwise_count(used[feasible]).min())
    last = functools.reduce(np.maximum, sweep.values(), nothing)
    return int(last[feasible].min()), passes


def touches(step: Step, members: set[str]) -> bool:
    """Tell whether a step reads a fiber of some tensors; a gather reads where to as well."""
    read = {tensor for tensor, how in step.reads if how in TOUCHING}
    read |= {"IX" for _, how in step.reads if how == "gathered"}
    return not read.isdisjoint(members)


@functools.cache
def assignments(count: int) -> npt.NDArray[np.int64]:
    axes = [np.arange(1, count + 1)] * count
    return (
        np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")])
        if count
        else (np.zeros((0, 1), np.int64))
    )


# Spellings

WHOLE = ("k",)
TILED = ("k1", "k0")
OTHER = ("n1", "n0")
SIZE = {"K": "12", "K0": "3", "N0": "2", "K1": "4", "N1": "6"}


@dataclass(frozen=True)
class Spelling:
    """How a program is written: every choice is drawn where it is needed, from ``seed``.

    ``splits`` are those that may be used; ``renamed`` lets variables take the names of a rank of
    equal size; ``copied`` puts copies in between; ``shuffled`` reorders steps and terms;
    ``literal`` writes sizes as numbers; ``plane`` lets both names meet in a tensor beside it.
    """

    seed: int = 0
    splits: tuple[tuple[str, ...], ...] = (WHOLE,)
    declared: tuple[str, ...] = ()
    renamed: bool = False
    bound: bool = False
    copied: bool = False
    shuffled: bool = False
    literal: bool = False
    plane: bool = False


class Writer:
    """Writes one program in one spelling."""

    def __init__(self, program: Program, spelling: Spelling) -> None:
        self.program, self.spelling = program, spelling
        self.rng = random.Random(spelling.seed)
        self.layout = {t: ("k",) for t in INPUTS}
        self.form = {t: "full" for t in INPUTS} | {s.name: s.form for s in program}
        self.lines: list[str] = []
        self.copies = 0

    def text(self) -> str:
        steps = self.shuffle_steps() if self.spelling.shuffled else list(self.program)
        for step in steps:
            self.write(step)
        ranks = ["K = 12" if self.spelling.literal else "K", "J = K"]
        used = {v for layout in self.spelling.splits if len(layout) == 2 for v in layout}
        splits = [
            f"split K -> {a}, {b}"
            for a, b in (("K1", "K0"), ("N1", "N0"))
            if a.lower() in used or a in self.spelling.declared
        ]
        if self.spelling.literal:
            ranks += [f"{r} = {SIZE[r]}" for r in ("K0", "N0") if any(r in s for s in splits)]
        last = steps[-1].name
        plane = self.spelling.plane
        inputs = "input X[K], Z[K], IX[K]" + (", W[K]" if plane else "")
        head = [f"rank {', '.join(ranks)}", *splits, inputs, f"output {last}"]
        head += ["PL[k,j] = W[k] * W[j]"] if plane else []
        return "\n".join([*head, *self.lines])

    def shuffle_steps(self) -> list[Step]:
        left = list(self.program)
        found: list[Step] = []
        while left:
            made = {*INPUTS, *(s.name for s in found)}
            ready = [s for s in left if all(t in made for t, _ in s.reads)]
            ready = [s for s in ready if s is not self.program[-1]] or ready
            found.append(self.rng.choice(ready))
            left.remove(found[-1])
        return found

    def size(self, rank: str) -> str:
        return SIZE[rank] if self.spelling.literal and self.rng.random() < 0.7 else rank

    def place(self, layout: tuple[str, ...]) -> str:
        """Return the coordinate on the axis of the variables of a layout."""
        if len(layout) == 1:
            return layout[0]
        scaled = [layout[0], self.size(layout[1].upper())]
        return f"{'*'.join(scaled)}+{layout[1]}"

    def layouts(self) -> tuple[str, ...]:
        return self.rng.choice(self.spelling.splits)

    def read(self, tensor: str, how: str, at: tuple[str, ...]) -> str:
        form = self.form[tensor]
        if form == "scalar":
            return f"{tensor}[]"
        if self.spelling.copied and self.rng.random() < 0.4:
            tensor = self.copy(tensor)
        layout, here = self.layout[tensor], self.place(at)
        if form == "tiles":
            tile = layout[0]
            same = at == (tile, tile[0] + "0")
            return (
                f"{tensor}[{tile}]"
                if same
                else f"{tensor}[({here})/{self.size(tile[0].upper() + '0')}]"
            )
        if layout == at and how == "aligned":
            return f"{tensor}[{','.join(at)}]"
        there = {
            "aligned": here,
            "shifted": f"{here}+1",
            "reversed": f"{self.size('K')}-1-({here})",
            "init": "0",
            "final": f"{self.size('K')}-1",
            "gathered": f"IX[{here}]",
        }[how]
        condition = f": {here}+1<{self.size('K')}" if how == "shifted" else ""
        return f"{tensor}[{self.split(there, layout, condition)}]"

    def split(self, there: str, layout: tuple[str, ...], condition: str = "") -> str:
        """Return the indices of a tensor of some layout at a coordinate of the axis."""
        if len(layout) == 1:
            return there + condition
        inner = self.size(layout[1].upper())
        return f"({there})/{inner}{condition},({there})%{inner}"

    def copy(self, tensor: str) -> str:
        """Write a copy of a tensor, in another layout where there are several."""
        self.copies += 1
        name = f"C{self.copies}"
        if self.form[tensor] == "full":
            layout = self.layouts()
            source = self.split(self.place(layout), self.layout[tensor])
            if layout == self.layout[tensor]:
                source = ",".join(layout)
        else:
            layout, source = self.layout[tensor], self.layout[tensor][0]
            self.lines.append(f"{name}[{source}] = {tensor}[{source}]")
            self.layout[name], self.form[name] = layout, self.form[tensor]
            return name
        self.lines.append(f"{name}[{','.join(layout)}] = {tensor}[{source}]")
        self.layout[name], self.form[name] = layout, self.form[tensor]
        return name

    def write(self, step: Step) -> None:
        name = step.name
        if not step.swept:
            terms = [f"{t}[]" for t, _ in step.reads]
            self.lines.append(f"{name}[] = 1 + {' + '.join(terms)}")
            return
        if step.way:
            self.write_scan(step)
            return
        if (
            any(self.form[t] == "tiles" for t, _ in step.reads)
            and step.reads[0][1] == "aligned"
            and self.form[step.reads[0][0]] == "tiles"
        ):
            at: tuple[str, ...] = self.layout[step.reads[0][0]][:1]
            tensor = step.reads[0][0]
            self.lines.append(f"{name}[] = 1 + {tensor}[{at[0]}] :: {step.action}({at[0]})")
            return
        at = self.layouts()
        if step.form == "tiles":
            split = [layout for layout in self.spelling.splits if len(layout) == 2]
            at = self.rng.choice(split)
        if at == WHOLE and (
            self.spelling.renamed or (self.spelling.bound and step.form == "scalar")
        ):
            at = (self.rng.choice("kj"),)
        terms = [self.read(t, how, at) for t, how in step.reads]
        if self.spelling.shuffled:
            self.rng.shuffle(terms)
        kept = {"full": at, "tiles": at[:1], "scalar": ()}[step.form]
        gone = [v for v in at if v not in kept]
        action = f" :: {step.action}({','.join(gone)})" if gone else ""
        self.lines.append(f"{name}[{','.join(kept)}] = 1 + {' + '.join(terms)}{action}")
        self.layout[name] = WHOLE if at == ("j",) else at

    def write_scan(self, step: Step) -> None:
        ((tensor, how),) = step.reads
        inner, outer = "jk" if not self.spelling.renamed else self.rng.choice(["jk", "kj"])
        sign = {"prefix": "<=", "suffix": ">="}[how]
        source = self.read(tensor, "aligned", (inner,))
        last = source.rindex("]")
        self.lines.append(f"{step.name}[{outer}] = {source[:last]}: {inner}{sign}{outer}]")
        self.layout[step.name] = WHOLE


def counted(text: str) -> tuple[object, dict[str, object]]:
    report = count_passes(parse(text), "K")
    return report.sweeps, {root: report.roots.get(root, 0) for root in INPUTS}


def needs_tiles(program: Program) -> bool:
    return any(step.form == "tiles" for step in program)


def check(seed: int, change: Spelling) -> None:
    program = draw_program(random.Random(seed))
    wanted = count_by_exhaustion(program)
    if needs_tiles(program) and TILED not in change.splits:
        change = replace(change, splits=(*change.splits, TILED))
    text = Writer(program, replace(change, seed=seed)).text()
    found = counted(text)
    assert found == wanted, f"found {found}, by exhaustion {wanted}:\n{text}"


SPELLINGS = {
    "plain": Spelling(),
    "with bound variables renamed": Spelling(bound=True),
    "with variables and ranks renamed": Spelling(renamed=True),
    "beside a plane of both names": Spelling(renamed=True, plane=True),
    "in tiles": Spelling(splits=(WHOLE, TILED)),
    "in tiles of two sizes": Spelling(splits=(WHOLE, TILED, OTHER)),
    "beside an unused split": Spelling(declared=("N1", "K1")),
    "through copies": Spelling(copied=True),
    "in another order": Spelling(shuffled=True),
    "with literal sizes": Spelling(literal=True, splits=(WHOLE, TILED)),
    "in every way at once": Spelling(
        splits=(WHOLE, TILED, OTHER), renamed=True, copied=True, shuffled=True, literal=True
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_counts_agree_with_exhaustion_however_they_are_spelled(spelling: Spelling) -> None:
    for seed in range(40):
        check(seed, spelling)


@pytest.mark.slow
@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_a_thousand_counts_agree_however_they_are_spelled(spelling: Spelling) -> None:
    for seed in range(1000, 2000):
        check(seed, spelling)
