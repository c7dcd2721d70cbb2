"""How often the fibers of a rank must be swept: the 3-, 2-, 1-pass taxonomy, with proofs.

A cascade is an N-pass cascade over a rank if some input's fiber has to be traversed N times
under every mapping (FuseMax, arXiv 2406.10491, section III). Two numbers are counted at each
level of a partitioned rank:

- *sweeps*: the fewest ordered traversals of the level into which all its Einsums can be put;
- *passes* of a root: the fewest of them that read its lineage. Those that touch only summaries
  (a maximum per tile) count as sweeps, not as passes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.errors import EinfuseError, expect
from einfuse.einsum.language.expression import accesses
from einfuse.einsum.language.intervals import guarding_maxima
from einfuse.einsum.language.shape import check_own_ranges

from .coordinates import same_coordinates
from .dependence import Dependence
from .footprint import footprint_along
from .lineage import traces
from .partition import partition
from .placement import Barrier, Count, fewest_passes, positions


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an Einsum stands at the outermost level.

    ``index`` is its position in the text. ``sweep`` is 0 for an Einsum that has no variable over
    the rank; ``reads`` names the roots that it sweeps, each with the pass that it does so in.
    """

    index: int
    einsum: str
    sweep: int
    pass_number: int
    reads: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Gather:
    """An Einsum reads a tensor where a tensor of coordinates says.

    ``subset`` tells that it touches the selected coordinates only: no pass over the fiber.
    """

    einsum: str
    tensor: str
    subset: bool


@dataclass(frozen=True, slots=True)
class LevelReport:
    """The counts at one level of a partition, inside one tile of the levels above."""

    level: str
    sweep_count: Count
    root_counts: tuple[tuple[str, Count], ...]

    @property
    def passes(self) -> int | Fraction:
        """The passes of the root that needs most; 0 without a root."""
        return max((c.count for _, c in self.root_counts), default=0)

    @property
    def sweeps(self) -> int | Fraction:
        """The sweeps over the level."""
        return self.sweep_count.count

    @property
    def critical(self) -> Count:
        """The count of the first root that needs most passes."""
        found = (c for _, c in self.root_counts if c.count == self.passes)
        return next(found, Count(0))


@dataclass(frozen=True, slots=True)
class PassReport:
    """What `count_passes` finds; its string is a table.

    ``placements`` and ``gathers`` are those of the outermost level that the rank covers.
    ``passes_if_bounded`` is the count once the maxima in ``bounded`` are dropped: those that
    only guard an exponential whose argument is bounded anyway. It equals ``passes`` where there
    is none. The count itself is that of the cascade as written.
    """

    cascade: str
    rank: str
    level_reports: tuple[LevelReport, ...]
    placements: tuple[Placement, ...]
    gathers: tuple[Gather, ...]
    bounded: tuple[str, ...]
    passes_if_bounded: int | Fraction
    footprints: tuple[tuple[str, str], ...]

    @property
    def passes(self) -> int | Fraction:
        """Passes over full fibers at the outermost level: N of "N-pass"."""
        return self.level_reports[0].passes

    @property
    def sweeps(self) -> int | Fraction:
        """Sweeps of the outermost level."""
        return self.level_reports[0].sweeps

    @property
    def roots(self) -> dict[str, int | Fraction]:
        """Passes of every input that is full in the rank."""
        return {name: count.count for name, count in self.level_reports[0].root_counts}

    @property
    def levels(self) -> dict[str, tuple[int | Fraction, int | Fraction]]:
        """Passes and sweeps of every level of the partition, outermost first."""
        return {report.level: (report.passes, report.sweeps) for report in self.level_reports}

    @property
    def barriers(self) -> tuple[Barrier, ...]:
        """The barriers that prove the count: the chain of the first root that needs most."""
        return self.level_reports[0].critical.barriers

    @property
    def chains(self) -> dict[str, tuple[Barrier, ...]]:
        """The barriers that prove each root's count."""
        return {name: count.barriers for name, count in self.level_reports[0].root_counts}

    @property
    def footprint(self) -> dict[str, str]:
        """The live words of each level, in rank sizes."""
        return dict(self.footprints)

    @property
    def per_iteration(self) -> bool:
        """Whether the counts are slopes: so many more for every generation."""
        top = self.level_reports[0]
        return any(count.grows for _, count in top.root_counts) or top.sweep_count.grows

    @property
    def exact(self) -> bool:
        """False where opposite directions left too many orders to try all."""
        top = self.level_reports[0]
        return all(count.exact for count in (top.sweep_count, *(c for _, c in top.root_counts)))

    def __str__(self) -> str:
        return _table(self)


def count_passes(cascade: Cascade, rank: str | None = None) -> PassReport:
    """Return how many passes a cascade makes over a rank, level by level, with the proof.

    Args:
        cascade: what is computed.
        rank: a rank, whole or a level of a partition; `choose_rank` picks one if None.

    Raises:
        EinfuseError: the cascade has no such rank, or waits within a sweep for its own end;
            CascadeError where an index leaves its tensor at the sizes of the text.

    >>> from einfuse.einsum.language.parser import parse
    >>> text = "rank M\\ninput A[M]\\noutput Y\\nS[] = A[m] :: +(m)\\nY[m] = A[m] / S[]"
    >>> report = count_passes(parse(text), "M")
    >>> report.passes, report.sweeps, report.roots
    (2, 2, {'A': 2})
    >>> [(barrier.producer, barrier.consumer) for barrier in report.barriers]
    [('S', 'Y')]
    """
    expect(cascade, Cascade, "cascade", "a cascade (of einfuse.load_cascade or einfuse.parse)")
    check_own_ranges(cascade)
    if rank is None:
        rank = choose_rank(cascade)
    found = [_worst(cascade, rank)]
    family = found[0][0].partition
    finer = family.levels[slice(*family.covers[rank])][1:]
    found += [_worst(cascade, rank, level) for level in finer]
    dependences, reports = zip(*found, strict=True)
    top = dependences[0]
    bounded = guarding_maxima(cascade)
    relaxed = reports[0].passes
    if dropped := [e for e in top.edges if e.barrier and e.tensor in bounded]:
        kept = tuple(edge for edge in top.edges if edge not in dropped)
        relaxed = _level(replace(top, edges=kept)).passes
    return PassReport(
        cascade.name,
        rank,
        reports,
        _placements(top),
        _gathers(cascade, top),
        tuple(sorted({edge.tensor for edge in dropped})),
        relaxed,
        tuple(
            (r.level, str(footprint_along(d))) for r, d in zip(reports, dependences, strict=True)
        ),
    )


def _gathers(cascade: Cascade, top: Dependence) -> tuple[Gather, ...]:
    """Return who gathers what along the level, by the names of the text."""
    names = same_coordinates(cascade, top.partition.levels[top.level]).names
    ranks = {tensor.name: tensor.ranks for tensor in cascade.tensors}
    return tuple(
        dict.fromkeys(
            Gather(einsum.name, access.tensor, not top.indexed[i])
            for i, einsum in enumerate(cascade.einsums)
            for access in einsum.operands
            for rank, index in zip(ranks[access.tensor], access.indices, strict=True)
            if top.partition.covers_level(names[rank], top.level)
            and any(accesses(index.expression))
        )
    )


def choose_rank(cascade: Cascade) -> str:
    """Return the rank to ask about: most passes, then sweeps, then partitioned, then busiest.

    Only ranks that some Einsum folds or iterates over are candidates, if there are any: over
    the others every cascade makes one pass.
    """
    same = same_coordinates(cascade).cascade
    wholes = tuple(dict.fromkeys(partition(same, r).whole for r in same.rank_names))
    if not wholes:
        raise EinfuseError(f"{cascade.name}: expected a cascade with a rank; found none")
    folded = {same.rank_of(v) for e in same.einsums for r in e.reductions for v in r.variables}
    folded |= {iteration.rank for iteration in same.iterations}

    def merit(whole: str) -> tuple[bool, int | Fraction, int | Fraction, bool, int]:
        dependence, level = _worst(same, whole)
        family = dependence.partition
        return (
            bool(folded & family.covers.keys()) or level.passes > 1,
            level.passes,
            level.sweeps,
            len(family.levels) > 1,
            sum(dependence.indexed),
        )

    return max(wholes, key=merit)


def _worst(cascade: Cascade, rank: str, level: str | None = None) -> tuple[Dependence, LevelReport]:
    """Return the counts that hold for every axis of a rank, and the dependences that need most."""
    found = [(d, _level(d)) for d in traces(cascade, rank, level)]
    most, report = max(found, key=lambda f: (f[1].passes, f[1].sweeps))
    if len(found) == 1:
        return most, report
    roots: dict[str, Count] = {}
    for _, other in found:
        for root, count in other.root_counts:
            roots[root] = max(roots.get(root, count), count, key=lambda c: c.count)
    inputs = [t.name for t in cascade.input_tensors]
    ordered = tuple((root, roots[root]) for root in sorted(roots, key=inputs.index))
    sweeps = max((other.sweep_count for _, other in found), key=lambda c: c.count)
    return most, replace(report, sweep_count=sweeps, root_counts=ordered)


def _level(dependence: Dependence) -> LevelReport:
    name = dependence.partition.levels[dependence.level]
    return LevelReport(
        name,
        fewest_passes(dependence, dependence.sweepers, name),
        tuple(
            (root, fewest_passes(dependence, dependence.readers(root), root))
            for root in dependence.roots
        ),
    )


def _placements(dependence: Dependence) -> tuple[Placement, ...]:
    """Return the sweep and the passes of every Einsum, within the first generation."""
    sweeps = positions(dependence, dependence.sweepers)
    readers = {root: dependence.readers(root) for root in dependence.roots}
    passes = {root: positions(dependence, readers[root]) for root in dependence.roots}
    return tuple(
        Placement(
            i,
            einsum.name,
            sweeps[i] // 2 if dependence.indexed[i] else 0,
            max(((at[i] + 1) // 2 for at in passes.values()), default=0),
            tuple((root, at[i] // 2) for root, at in passes.items() if i in readers[root]),
        )
        for i, einsum in enumerate(dependence.einsums)
    )


def _table(report: PassReport) -> str:
    each = " per generation" if report.per_iteration else ""
    bound = "" if report.exact else " (upper bound: too many orders of directions to try)"
    lines = [
        f"{report.cascade} over {report.rank}: passes {report.passes}, sweeps {report.sweeps}"
        f"{each}{bound}"
    ]
    for level in report.level_reports:
        lines.append(f"  level {level.level}: passes {level.passes}, sweeps {level.sweeps}")
        lines.append(f"    live words: {report.footprint[level.level]}")
        for root, found in level.root_counts:
            lines += _proof(f"{root}: passes {found.count}", found)
        if level.sweeps != level.passes:
            lines += _proof(f"sweeps {level.sweeps}", level.sweep_count)
    for gather in report.gathers:
        what = "touches a subset, no pass" if gather.subset else "sweeps it out of order"
        lines.append(f"  {gather.einsum} gathers {gather.tensor}: {what}")
    if report.bounded:
        lines.append(
            f"  {', '.join(report.bounded)} only guards an exponential of bounded values: "
            f"passes {report.passes_if_bounded} without"
        )
    return "\n".join(lines)


def _proof(title: str, found: Count) -> list[str]:
    lines = [f"    {title}  {' -> '.join(found.path)}"]
    return lines + [f"      {b.producer} | {b.consumer}: {b.reason}" for b in found.barriers]
