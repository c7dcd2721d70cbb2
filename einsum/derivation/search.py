"""Equivalent cascades that need fewer passes, found from the cascade alone.

`derive` searches. Straight-line forms are the closure of a cascade under deferral (rule D), one
reference at a time; from each, tiles (T) with running references (L, V) or with references of one
tile give the forms of fewer passes. What barriers remain, and why, is said. Nothing is matched by
name: a barrier is a fold whose elements read another fold over the same rank, and algebra decides
whether the fold can follow its reference. Every result is run against its origin on random numbers
before it is shown.

RedFuser (arXiv 2603.10026) and Neptune (arXiv 2510.08726) state related conditions for
compilers; the pass counts are those of FuseMax (arXiv 2406.10491).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import NamedTuple

import sympy as sp

from einfuse.einsum.analysis.operations import count_operations, total_operations
from einfuse.einsum.analysis.partition import partition
from einfuse.einsum.analysis.passes import PassReport, count_passes
from einfuse.einsum.language.cascade import Cascade, Rank
from einfuse.einsum.language.errors import EinfuseError, expect
from einfuse.einsum.language.printer import render
from einfuse.einsum.language.rules import validated
from einfuse.einsum.language.shape import bind_known

from .dataflow import Dataflow, Kind
from .deadline import LateError, check_time, time_limit
from .deferral import cancel, defer, deferral_hazards, redefined
from .localisation import localise
from .movement import move_of, movement_hazards
from .normal_form import NotDerivableError, factor_out, interchange, normalise
from .reassociation import reassociate
from .safety import overflows
from .selection import select_first
from .stages import cuts
from .streaming import stream
from .tiling import size_of, tile, tile_size
from .unroll import without_idle_iterations
from .vanishing import vanish
from .verification import Verification, without_sizes

_SEARCH = 0.6
"""The part of a time limit that the search may take; the rest is for verification."""


class Step(NamedTuple):
    """One application of a rule: its letter, what it did, and the cascade after it."""

    rule: str
    explanation: str
    text: str


@dataclass(frozen=True, slots=True)
class Derived:
    """An equivalent cascade with what it costs and how it was found.

    Attributes:
        cascade: the cascade.
        report: its pass analysis along the rank.
        operation_counts: operation class and count over all Einsums, formulas where sizes are open.
        steps: from the origin to this cascade; empty for the origin.
        exact: whether it is an algebraic identity of the origin (all rules are).
        hazards: why it is not safe in floating point; empty where it is.
        obstacles: why the barriers that it still has cannot be removed.
        costs: operation class, or footprint, and its value at each of many shapes.
    """

    cascade: Cascade
    report: PassReport
    operation_counts: tuple[tuple[str, sp.Expr], ...]
    steps: tuple[Step, ...] = ()
    exact: bool = True
    hazards: tuple[str, ...] = ()
    obstacles: tuple[str, ...] = ()
    costs: tuple[tuple[str, tuple[float, ...]], ...] = field(default=(), repr=False)

    @property
    def text(self) -> str:
        """The cascade as text."""
        return render(self.cascade)

    @property
    def passes(self) -> int | Fraction:
        """Passes over full fibers of the rank."""
        return self.report.passes

    @property
    def sweeps(self) -> int | Fraction:
        """Sweeps of the rank, those over summaries included."""
        return self.report.sweeps

    @property
    def operations(self) -> dict[str, sp.Expr]:
        """Operation class -> count over all Einsums."""
        return dict(self.operation_counts)

    @property
    def footprint(self) -> dict[str, str]:
        """Level of the rank -> live words, as a formula."""
        return self.report.footprint

    @property
    def stable(self) -> bool:
        """Whether it is safe in floating point."""
        return not self.hazards


def derive(
    cascade: Cascade,
    rank: str = "M",
    *,
    seconds: float | None = None,
    sizes: Mapping[str, int] | None = None,
) -> tuple[Derived, ...]:
    """Return equivalent cascades: the Pareto set over passes, sweeps, operations and footprint.

    One cascade replaces another only if it is no worse in any of them, at any shape, and no less
    stable. The origin comes first, then by passes, sweeps and length of derivation.

    Args:
        cascade: the origin.
        rank: the rank whose passes are to be reduced.
        seconds: stop after this time and return the best so far.
        sizes: sizes of ranks, which the derived texts then carry.

    Raises:
        EinfuseError: the cascade has no such rank, or a size is none of its ranks'.

    >>> from einfuse.einsum.library.cascades import load
    >>> found = derive(load("attention/3-pass-deferred"), "M")
    >>> sorted({(d.passes, d.sweeps) for d in found if d.stable})
    [(1, 1), (1, 2), (2, 2)]
    """
    expect(cascade, Cascade, "cascade", "a cascade (of einfuse.load_cascade or einfuse.parse)")
    expect({} if sizes is None else sizes, Mapping, "sizes", "rank -> size, a mapping")
    expect(0 if seconds is None else seconds, (int, float), "seconds", "a number")
    search = _Search(_with_sizes(cascade, sizes or {}), rank, dict(sizes or {}))
    return search.run(seconds)


@dataclass(frozen=True, slots=True)
class _Form:
    """A straight-line cascade on the way, with its derivation so far."""

    cascade: Cascade
    steps: tuple[Step, ...]
    hazards: tuple[str, ...] = ()

    def then(self, rule: str, explanation: str, cascade: Cascade) -> _Form:
        step = Step(rule, explanation, render(cascade))
        return replace(self, cascade=cascade, steps=(*self.steps, step))


class _Search:
    """The state of one `derive`."""

    def __init__(self, cascade: Cascade, rank: str, sizes: dict[str, int]) -> None:
        self.origin = without_idle_iterations(cascade)
        self.rank = rank
        self.sizes = sizes
        partition(cascade, rank)  # refuses an unknown rank
        self.level = _level(cascade, rank)
        self.variable = self.level.lower()
        self.verification = Verification(cascade, rank)
        self.found: dict[str, Derived] = {}
        self.reports: dict[str, PassReport] = {}

    def run(self, seconds: float | None) -> tuple[Derived, ...]:
        """Search and verify within a time, of which verification keeps its share."""
        start = time.monotonic()
        ends = [None if seconds is None else start + seconds * part for part in (_SEARCH, 1)]
        with time_limit(ends[0]):
            self._search()
        with time_limit(ends[1]):
            return self._verified()

    def _search(self) -> None:
        if self.origin.loop:
            with time_limit(None):
                self._add(_Form(self.origin, ()), self._of_loop())
            return
        late = "the time was over before all barriers had been looked at"
        try:
            normal = normalise(self.origin, self.variable)
            reasons = self._obstacles(Dataflow(normal, self.variable))
        except LateError:
            reasons = (late,)
        with time_limit(None):  # the origin is there in any case
            self._add(_Form(self.origin, ()), reasons)
        with suppress(LateError):
            for form in self._straight_forms():
                self._add_all(form)

    def _of_loop(self) -> tuple[str, ...]:
        """Return why an iterative origin keeps its barriers."""
        report = self._report(self.origin)
        when = " in every generation" if report.per_iteration else ""
        return (
            f"{self.origin.name} is iterative already; its loop is left as it is",
            *(f"{b.consumer} reads {b.tensor}{when}: {b.reason}" for b in report.barriers),
        )

    def _obstacles(self, flow: Dataflow) -> tuple[str, ...]:
        """Return why barriers stay: those of folds, and those of the order in which maps are read.

        No algebra removes the latter: what is read elsewhere has to be there first.
        """
        maps = {name for name, kind in flow.kinds.items() if kind is Kind.MAP}
        misaligned = (
            f"{b.consumer} reads {b.tensor} out of the order of {self.level}: {b.reason}"
            for b in self._report(flow.cascade).barriers
            if b.producer in maps
        )
        return tuple(dict.fromkeys((*obstacles(flow), *misaligned)))

    def _report(self, cascade: Cascade) -> PassReport:
        check_time()
        text = render(cascade)
        if text not in self.reports:
            rank = self.rank if self._knows(cascade) else self.level
            self.reports[text] = count_passes(cascade, rank)
        return replace(self.reports[text], cascade=cascade.name)

    def _straight_forms(self) -> Iterable[_Form]:
        """Yield the closure of the normal form under deferral, nearest first."""
        normal = normalise(self.origin, self.variable)
        first = _Form(self.origin, ())
        if normal != self.origin:
            explanation = "every fold has one operator; sums are taken before their division"
            first = first.then("H", explanation, normal)
        first = self._selected(self._read_off(self._without_zeros(first)))
        pending, seen = [first, *self._factored_out(first)], {render(first.cascade)}
        while pending:
            check_time()
            form = pending.pop(0)
            yield form
            for other in (*self._interchanges(form), *self._deferrals(form)):
                if render(other.cascade) not in seen:
                    seen.add(render(other.cascade))
                    pending.append(other)

    def _without_zeros(self, form: _Form) -> _Form:
        found = vanish(form.cascade)
        if found is None:
            return form
        cascade, names = found
        are = "is 0: its terms cancel" if len(names) == 1 else "are 0: their terms cancel"
        return form.then("Z", f"{', '.join(names)} {are}", normalise(cascade, self.variable))

    def _read_off(self, form: _Form) -> _Form:
        found = reassociate(Dataflow(form.cascade, self.variable))
        if found is None:
            return form
        explanation = "; ".join(
            f"{fold} sums over {self.level} first, which is {known}" for fold, known in found.folds
        )
        return form.then("A", explanation, normalise(found.cascade, self.variable))

    def _factored_out(self, form: _Form) -> Iterable[_Form]:
        found = factor_out(Dataflow(form.cascade, self.variable))
        if found is not None:
            explanation = f"factors that wait leave sums that are no folds over {self.level}"
            yield form.then("H", explanation, normalise(found, self.variable))

    def _selected(self, form: _Form) -> _Form:
        found = select_first(Dataflow(form.cascade, self.variable))
        if found is None:
            return form
        explanation = "elements are selected before what is increasing in them is applied"
        return form.then("K", explanation, normalise(found, self.variable))

    def _interchanges(self, form: _Form) -> Iterable[_Form]:
        joined = interchange(Dataflow(form.cascade, self.variable))
        if joined is not None:
            yield form.then("S", "sums inside of a fold are joined to it", joined)

    def _deferrals(self, form: _Form) -> Iterable[_Form]:
        flow = Dataflow(form.cascade, self.variable)
        references = dict.fromkeys(a.tensor for _, found in flow.barriers() for a in found)
        for reference in references:
            deferred = defer(flow, reference)
            if deferred is None:
                continue
            names = redefined(form.cascade, deferred)
            explanation = (
                f"{reference} leaves {', '.join(names)}: it does not vary along {self.level}, "
                "and the fold distributes over it"
            )
            other = form.then("D", explanation, deferred)
            hazards = deferral_hazards(flow, reference, deferred)
            other = replace(other, hazards=(*form.hazards, *hazards))
            simpler = cancel(Dataflow(deferred, self.variable))
            if simpler is not None:
                other = other.then("F", "what numerator and denominator share cancels", simpler)
            yield other

    def _add_all(self, form: _Form) -> None:
        flow = Dataflow(form.cascade, self.variable)
        reasons = self._obstacles(flow)
        if form.steps and form.cascade != self.origin:
            self._add(form, reasons)
        if not flow.barriers():
            return
        for found in self._running(form):
            self._add(found, reasons)
        for cut in cuts(flow):
            for found in self._running(replace(form, cascade=cut.rest)):
                self._add(replace(found, cascade=cut.joined(found.cascade)), reasons)

    def _running(self, form: _Form) -> Iterable[_Form]:
        """Yield a form with running values, and with values of each tile."""
        tiled = self._tiled(form)
        along = Dataflow(tiled.cascade, self._tile_variable(tiled))
        for rewrite, how in ((stream, "running values"), (localise, "values of each tile, merged")):
            check_time()
            try:
                found = rewrite(along)
            except NotDerivableError:
                continue
            vector = any(len(move.orbit.functions) > 1 for move in found.moves)
            explanation = f"{how}: {'; '.join(dict.fromkeys(map(str, found.moves)))}"
            streamed = tiled.then("V" if vector else "L", explanation, found.cascade)
            hazards = [h for move in found.moves for h in movement_hazards(along, move, found.held)]
            yield replace(streamed, hazards=(*tiled.hazards, *hazards))

    def _tile_variable(self, tiled: _Form) -> str:
        outer = [s.outer for s in tiled.cascade.splits if s.whole == self.level]
        return outer[-1].lower() if outer else self.variable

    def _tiled(self, form: _Form) -> _Form:
        """Return the form in tiles, unless its level is the outer one of a split already."""
        if any(s.outer == self.level for s in form.cascade.splits):
            return form
        outer, inner = _tile_names(form.cascade, self.level)
        whole = size_of(form.cascade, self.level)
        size = self.sizes.get(inner, bind_known(form.cascade).get(inner))
        if size is None and outer in self.sizes and whole is not None:
            size = whole // self.sizes[outer]
        if size is None and whole is not None:
            size = tile_size(whole)
        cascade = tile(form.cascade, self.variable, outer, inner, size)
        explanation = f"{self.level} in {outer} tiles of {inner}; inputs are read through views"
        return form.then("T", explanation, cascade)

    def _add(self, form: _Form, reasons: tuple[str, ...]) -> None:
        text = render(form.cascade)
        if text in self.found:
            return
        cascade = form.cascade
        if form.steps:
            rules = ", ".join(step.rule for step in form.steps)
            cascade = replace(cascade, name=f"{self.origin.name} ({rules})")
        report = self._report(cascade)
        counts = total_operations(count_operations(cascade).values())
        hazards = tuple(dict.fromkeys((*form.hazards, *overflows(cascade))))
        self.found[text] = Derived(
            cascade,
            report,
            tuple(sorted(counts.items())),
            form.steps,
            True,
            hazards,
            reasons,
            _costs(cascade, report, counts, self.level),
        )

    def _verified(self) -> tuple[Derived, ...]:
        """Return the Pareto set of what has been run against the origin and agrees with it."""
        found = tuple(self.found.values())
        checked = {found[0].text}
        while True:
            best = _pareto(found)
            pending = [d for d in best if d.text not in checked]
            if not pending:
                return _explained(best)
            verdicts: dict[str, Derived | None] = {}
            try:
                for derived in pending:
                    verdicts[derived.text] = self._verdict(derived)
            except LateError:
                for derived in found:
                    if derived.text not in checked:
                        verdicts.setdefault(derived.text, None)
            checked |= set(verdicts)
            found = tuple(v for d in found if (v := verdicts.get(d.text, d)) is not None)

    def _verdict(self, derived: Derived) -> Derived | None:
        """Return what a run leaves of a cascade: itself, itself as unstable, or nothing."""
        if not self.verification.agrees(derived.cascade):
            return None
        if derived.stable and not self.verification.stays_finite(derived.cascade):
            hazard = "not finite in float32 on scores of 1e4, where the origin is"
            return replace(derived, hazards=(hazard,))
        if derived.stable and not self.verification.agrees_when_masked(derived.cascade):
            hazard = "gives other numbers than the origin on inputs of -inf"
            return replace(derived, hazards=(hazard,))
        if derived.stable and not self.verification.keeps_digits(derived.cascade):
            hazard = "loses digits in float32 that the origin keeps, on inputs far from 0 or from 1"
            return replace(derived, hazards=(hazard,))
        return derived

    def _knows(self, cascade: Cascade) -> bool:
        split = {name for s in cascade.splits for name in (s.whole, s.outer, s.inner)}
        return self.rank in split | {r for t in cascade.tensors for r in t.ranks}


def obstacles(flow: Dataflow) -> tuple[str, ...]:
    """Return why barriers along a rank cannot be removed; empty where all can.

    >>> from einfuse.einsum.language.parser import parse
    >>> text = "rank M\\ninput X[M]\\noutput Y\\nS[] = abs(X[m]) :: +(m)\\nY[m] = X[m] / S[]"
    >>> print(*obstacles(Dataflow(parse(text), "m")))
    Y is as long as M and depends on S, which needs every m first: two passes at least
    """
    rank = flow.cascade.rank_of(flow.variable)
    found: list[str] = []
    for einsum, references in flow.barriers():
        names = ", ".join(dict.fromkeys(a.tensor for a in references))
        if flow.kinds[einsum.name] is Kind.MAP:
            found.append(
                f"{einsum.name} is as long as {rank} and depends on {names}, which needs every "
                f"{flow.variable} first: two passes at least"
            )
            continue
        try:
            move_of(flow, einsum)
        except NotDerivableError as error:
            found.append(str(error))
    for einsum in flow.einsums:
        if flow.kinds[einsum.name] is Kind.OPAQUE and flow.dependent(einsum.name):
            found.append(
                f"{einsum.name} selects coordinates or writes them out of order: its merge is that "
                "of sorted lists, which no factor or sum expresses"
            )
    return tuple(dict.fromkeys(found))


def _level(cascade: Cascade, rank: str) -> str:
    """Return the level that is rewritten: the outer one where Einsums run over it already."""
    used = {v for e in cascade.einsums for v in e.variables}
    for split in cascade.splits:
        if split.whole == rank and split.outer.lower() in used:
            return _level(cascade, split.outer)
    return rank


def _tile_names(cascade: Cascade, level: str) -> tuple[str, str]:
    """Return the names of a level's tiles: those of a split that is there, else new ones."""
    for split in cascade.splits:
        if split.whole == level:
            return split.outer, split.inner
    taken = set(cascade.rank_names) | {t.name for t in cascade.tensors}
    for outer, inner in ((f"{level}1", f"{level}0"), (f"{level}O", f"{level}I")):
        if not {outer, inner} & taken:
            return outer, inner
    number = 2
    while {f"{level}O{number}", f"{level}I{number}"} & taken:
        number += 1
    return f"{level}O{number}", f"{level}I{number}"


def _with_sizes(cascade: Cascade, sizes: Mapping[str, int]) -> Cascade:
    """Return the cascade with sizes in its text; those of tiles to come are kept apart."""
    known = set(cascade.rank_names)
    tiles = {name for rank in known for name in _tile_names(cascade, rank)}
    for name in sizes:
        if name not in known | tiles:
            raise EinfuseError(
                f"{cascade.name}: expected a size of {', '.join(sorted(known))}; found {name}"
            )
    given = {name: size for name, size in sizes.items() if name in known}
    declared = [Rank(r.name, given.pop(r.name, r.size), r.span) for r in cascade.ranks]
    declared += [Rank(name, size) for name, size in given.items()]
    return validated(replace(cascade, ranks=tuple(declared))) if sizes else cascade


def _explained(found: tuple[Derived, ...]) -> tuple[Derived, ...]:
    """Return the cascades with obstacles on those of the fewest passes only, if more than one."""
    fewest = min(d.passes for d in found)
    return tuple(
        d
        if d.passes == fewest and (fewest > 1 or d.report.per_iteration)
        else replace(d, obstacles=())
        for d in found
    )


def _pareto(found: tuple[Derived, ...]) -> tuple[Derived, ...]:
    """Return the origin and what nothing else replaces, by passes, sweeps and length."""
    origin, *others = found
    classes = tuple(dict.fromkeys(name for d in found for name, _ in d.costs))
    costs = {id(d): [d.passes, d.sweeps, *_in_order(d, classes)] for d in found}

    def replaces(first: Derived, second: Derived) -> bool:
        """Tell whether one is no worse in anything; of equals the shorter derivation stays."""
        a, b = costs[id(first)], costs[id(second)]
        if (second.stable and not first.stable) or any(x > y for x, y in zip(a, b, strict=True)):
            return False
        if a == b and first.stable == second.stable:
            return (len(first.steps), first.text) < (len(second.steps), second.text)
        return True

    kept = [d for d in others if not any(replaces(o, d) for o in found if o is not d)]
    return (origin, *sorted(kept, key=lambda d: (d.passes, d.sweeps, not d.stable, len(d.steps))))


def _in_order(derived: Derived, classes: tuple[str, ...]) -> list[float]:
    """Return the costs of a cascade by class, 0 for those that it has not."""
    known, none = dict(derived.costs), (0.0,) * len(_TILES)
    return [value for name in classes for value in known.get(name, none)]


_TILES = ((1, 1), (2, 1), (1, 2), (3, 4), (64, 2), (2, 64), (256, 64), (16, 4096))
"""Numbers of tiles, and their sizes, at which costs are compared."""

_OTHERS = (1, 64, 3, 1024, 16)
"""Sizes that the other ranks take in turn."""

_COUNTED = 4
"""The largest size where a filter's points are counted one by one."""


def _costs(
    cascade: Cascade, report: PassReport, operations: Mapping[str, sp.Expr], level: str
) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """Return the number of operations by class, and the footprint, at many shapes.

    A count that no formula closes is a sum over points, and is evaluated at small sizes only.
    """
    free = without_sizes(cascade)
    if free != cascade:
        operations = total_operations(count_operations(free).values())
        report = count_passes(free, report.rank)
    names = {rank: sp.Symbol(rank) for rank in cascade.rank_names}
    footprint = sp.sympify(next(iter(report.footprint.values()), "0"), locals=names)
    found = {**operations, "footprint": footprint}
    formulas = [f.xreplace({s: names[str(s)] for s in f.free_symbols}) for f in found.values()]
    symbols = sorted({s for f in formulas for s in f.free_symbols}, key=str)
    parts = next((s for s in cascade.splits if s.whole == level), None)
    shapes = []
    for turn, (count, size) in enumerate(_TILES):
        known = {level: count * size}
        if parts is not None:
            known |= {parts.outer: count, parts.inner: size}
        others = sorted({str(s) for s in symbols} - set(known))
        known |= {name: _OTHERS[(n + turn) % len(_OTHERS)] for n, name in enumerate(others)}
        shapes.append([known[str(s)] for s in symbols])
    closed = [f for f in formulas if not f.has(sp.Sum)]
    values = sp.lambdify(symbols, closed, modules="math")
    columns = iter(zip(*(map(float, values(*shape)) for shape in shapes), strict=True))
    return tuple(
        (name, _counted(formula, symbols, shapes) if formula.has(sp.Sum) else next(columns))
        for name, formula in zip(found, formulas, strict=True)
    )


def _counted(
    formula: sp.Expr, symbols: list[sp.Symbol], shapes: list[list[int]]
) -> tuple[float, ...]:
    check_time()
    value = sp.lambdify(symbols, formula, modules="math")
    small = [tuple(min(size, _COUNTED) for size in shape) for shape in shapes]
    known = {shape: float(value(*shape)) for shape in dict.fromkeys(small)}
    return tuple(known[shape] for shape in small)
