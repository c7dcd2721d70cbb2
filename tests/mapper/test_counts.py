"""The reuse analysis against the brute force, on random cascades, nests and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.shape import bind
from einfuse.einsum.testing import cascades
from einfuse.mapper.errors import MappingError
from einfuse.mapper.nest.counting import count
from einfuse.mapper.nest.nest import Nest, parse_nest
from einfuse.mapper.nest.reuse import Counts, Problem
from einfuse.mapper.nest.workload import Facts, facts

from .brute_force import Found, interpret

MEMORIES = ("dram", "buffer", "staging")
CASCADES = {
    "product": "rank M, N, K\ninput A[M,K], B[K,N]\noutput C\nC[m,n] = A[m,k] * B[k,n]\n",
    "elementwise": "rank M, N\ninput A[M,N], B[N]\noutput C\nC[m,n] = exp(A[m,n] - B[n])\n",
    "fold": "rank M, N\ninput A[M,N]\noutput C\nC[n] = A[m,n] :: max(m)\n",
    "two folds": (
        "rank M, N, K\ninput A[M,K], B[K,N]\noutput C\nC[n] = A[m,k] * B[k,n] :: max(m)\n"
    ),
    "chain": (
        "rank M, N, K, J\ninput A[M,K], B[K,N], D[N,J]\noutput C\n"
        "T[m,n] = A[m,k] * B[k,n]\nC[m,j] = T[m,n] * D[n,j]\n"
    ),
    "softmax": (
        "rank M, P\ninput X[M,P]\noutput A\nG[p] = X[m,p] :: max(m)\nS[m,p] = exp(X[m,p] - G[p])\n"
        "D[p] = S[m,p] :: +(m)\nA[m,p] = S[m,p] / D[p]\n"
    ),
    "attention": (
        "rank E, M, P\ninput Q[E,P], K[E,M], V[M]\noutput O\nS[m,p] = Q[e,p] * K[e,m]\n"
        "G[p] = S[m,p] :: max(m)\nO[p] = exp(S[m,p] - G[p]) * V[m]\n"
    ),
    "tiled view": (
        "rank E, P, M1, M0\nsplit M -> M1, M0\ninput Q[E,P], K[E,M]\noutput G\ninit:\n"
        "L[e,m1,m0] = K[e, m1*M0+m0]\nS[m1,m0,p] = Q[e,p] * L[e,m1,m0]\n"
        "G[m1,p] = S[m1,m0,p] :: max(m0)\n"
    ),
    "running": (
        "rank P, M1, M0\niter m1 over M1\ninput X[M1,M0,P]\noutput Y\ninit:\nR[0,p] = -inf\n"
        "loop:\nL[m1,p] = X[m1,m0,p] :: max(m0)\nR[m1+1,p] = max(R[m1,p], L[m1,p])\n"
        "S[m1,m0,p] = exp(X[m1,m0,p] - R[m1+1,p])\nfinal:\nY[p] = exp(R[M1,p])\n"
    ),
    "rescaled": (
        "rank F, P, M1, M0\niter m1 over M1\ninput X[M1,M0,P], W[F,M1,M0]\noutput Y\ninit:\n"
        "N[f,0,p] = 0\nloop:\nT[f,m1,p] = X[m1,m0,p] * W[f,m1,m0]\n"
        "U[f,m1,p] = N[f,m1,p] * 0.5\nN[f,m1+1,p] = T[f,m1,p] + U[f,m1,p]\n"
        "final:\nY[f,p] = N[f,M1,p] * 2\n"
    ),
}


@dataclass(repr=False, eq=False)
class Case:
    """A drawn problem: everything that both sides are given."""

    name: str
    lines: list[Any]
    problem: Problem
    batch: tuple[str, ...]
    nest: Nest = field(init=False)

    def __post_init__(self) -> None:
        self.nest = parse_nest(self.lines)

    def __repr__(self) -> str:
        import yaml

        from einfuse.einsum.language.printer import render

        sizes = {k: int(v) for k, v in self.problem.sizes.items()}
        known = self.problem
        rules = f"{known.retention}, {known.edges}, {known.drains}, {known.lanes}, {known.shares}"
        rules += f", {sorted(known.instanced)}"
        text = render(self.problem.facts.cascade)
        return f"{text}at {sizes}; {rules}\n{yaml.safe_dump(self.lines)}"


def _mappable(cascade: Cascade) -> bool:
    """Whether the cascade computes anything, each tensor once."""
    try:
        return bool(facts(cascade).einsums)
    except MappingError:
        return False


SHARED = st.sampled_from(["any", "operands", "outputs", "none"])
_RANDOM = cascades(max_einsums=4, filters=False).filter(_mappable)


@st.composite
def cases(
    draw: Any,
    edges: tuple[str, ...] = ("whole", "exact"),
    largest: int = 5,
    texts: Mapping[str, str] | None = None,
) -> Case:
    """Draw a cascade, a shape, an architecture's lanes, the rules, and a nest."""
    names = [*sorted(CASCADES), "random", "random"] if texts is None else sorted(texts)
    name = draw(st.sampled_from(names))
    known = (texts or CASCADES).get(name)
    cascade = parse(known, name) if known else draw(_RANDOM)
    batch = draw(st.sampled_from([(), (), ("B",)]))
    wholes = {split.whole for split in cascade.splits}
    given = {rank.name for rank in cascade.ranks if rank.size is not None}
    free = [rank for rank in cascade.rank_names if rank not in wholes | given]
    chosen: dict[str, int] = {}
    points = 60  # the brute force walks every one of them
    for rank in draw(st.permutations([*free, *batch])):
        chosen[rank] = draw(st.integers(1, min(largest, points)))
        points //= chosen[rank]
    sizes = dict(bind(cascade, {rank: chosen[rank] for rank in free}))
    sizes |= {rank: chosen[rank] for rank in batch}
    problem = Problem(
        facts=facts(cascade, batch),
        sizes=sizes,
        names={},
        lanes={
            "array_2d": {
                **draw(st.sampled_from([{}, {}, {"instances": 2}, {"instances": 3}])),
                "rows": draw(st.integers(1, 3)),
                "columns": draw(st.integers(1, 3)),
            },
            "array_1d": {"lanes": draw(st.integers(1, 4))},
        },
        memories=MEMORIES,
        retention=draw(st.sampled_from(["trailing", "trailing", "explicit"])),
        edges=draw(st.sampled_from(edges)),
        drains=draw(st.sampled_from(["free", "read"])),
        shares=draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "array_2d": st.dictionaries(st.sampled_from(["instances", "rows"]), SHARED),
                    "array_1d": st.dictionaries(st.just("lanes"), SHARED),
                },
            )
        ),
        instanced=draw(st.sampled_from([frozenset[str](), frozenset({"staging"})])),
    )
    lines = _Draw(draw, cascade, problem).nest()
    return Case(name, lines, problem, batch)


class _Draw:
    """Draws a nest, outside in: loops, homes, then branches down to single Einsums."""

    def __init__(self, draw: Any, cascade: Cascade, problem: Problem) -> None:
        self.draw, self.cascade, self.problem = draw, cascade, problem
        self.facts: Facts = problem.facts
        self.ranks = sorted(r for r in problem.sizes if r not in _wholes(cascade))
        self.units = {
            name: draw(st.sampled_from(["array_2d", "array_1d"])) for name in self.facts.einsums
        }
        self.makers = {o.tensor: e.name for e in self.facts.einsums.values() for o in e.outputs}

    def nest(self) -> list[Any]:
        names = list(self.facts.einsums)
        ends = {self.facts.root(t) for t in (*self.cascade.inputs, *self.cascade.outputs)}
        outer = {tensor: "dram" for tensor in sorted(ends) if tensor in self.facts.ranks}
        lines: list[Any] = []
        for tensor in self.makers:
            if tensor not in outer and self.pick([True, False, False]):
                lines.append(f"keep {tensor} at dram")
                outer[tensor] = "dram"
        return lines + self.below(names, outer, set(), 0, set())

    def tile(self, rank: str) -> int:
        """A tile of a rank: of no more points than it has, as one that is written must be."""
        return self.draw(st.integers(1, min(3, int(self.problem.sizes[rank]))))

    def pick(self, choices: Any) -> Any:
        return self.draw(st.sampled_from(list(choices)))

    def below(
        self,
        names: list[str],
        homes: dict[str, str],
        forwarded: set[tuple[str, str]],
        depth: int,
        spatial: set[str],
    ) -> list[Any]:
        homes = dict(homes)
        lines: list[Any] = []
        for _ in range(self.draw(st.integers(0, 3))):
            lines += self.step(names, homes, spatial)
        if len(names) == 1:
            return lines + self.leaf(names[0], homes, forwarded)
        cut = self.draw(st.integers(1, len(names) - 1))
        parts = [names[:cut], names[cut:]]
        if len(names) - cut > 1 and self.draw(st.booleans()):
            parts = [names[:cut], names[cut : cut + 1], names[cut + 1 :]]
        forwarded = set(forwarded)
        for tensor, maker in self.makers.items():
            users = [n for n in names if self.reads(n, tensor)]
            apart = maker in names and any(
                (maker in part) != (user in part) for part in parts for user in users
            )
            carried = tensor in self.facts.carried and maker in names and users
            if (apart or carried) and tensor not in homes:
                if self.draw(st.booleans()):
                    forwarded |= {(user, tensor) for user in users}
                else:
                    lines.append(self.keep(tensor, homes))
        kind = self.pick(["branch", "pipeline"])
        children = [self.below(part, homes, forwarded, depth + 1, spatial) for part in parts]
        return [*lines, {kind: children}]

    def reads(self, einsum: str, tensor: str) -> bool:
        return any(o.tensor == tensor for o in self.facts.einsums[einsum].operands)

    def step(self, names: list[str], homes: dict[str, str], spatial: set[str]) -> list[Any]:
        kind = self.pick(["for", "for", "parallel", "keep", "keep"])
        rank = self.pick(self.ranks)
        if kind == "for":
            return [f"for {rank} in {self.tile(rank)}"]
        units = {self.units[n] for n in names}
        if kind == "parallel" and len(units) == 1 and "registers" not in homes.values():
            dimension = self.pick(self.dimensions(next(iter(units)), homes))
            return [f"parallel {rank} in {self.tile(rank)} over {dimension}"]
        if kind == "keep":
            open_ = [t for t in homes if homes[t] in ("dram", "buffer")]
            if open_:
                return [self.keep(self.pick(sorted(open_)), homes)]
        return []

    def dimensions(self, unit: str, homes: dict[str, str]) -> list[str]:
        """Those that a loop in space may use; not instances below a memory that each has."""
        held = self.problem.instanced & set(homes.values())
        return [d for d in self.problem.lanes[unit] if d != "instances" or not held]

    def keep(self, tensor: str, homes: dict[str, str]) -> str:
        levels = MEMORIES[MEMORIES.index(homes[tensor]) + 1 :] if tensor in homes else MEMORIES[1:]
        line = f"keep {tensor} at {self.pick(levels)}"
        level = line.rsplit(" ", 1)[1]
        options = self.draw(st.integers(0, 9))
        streamed = False
        if options == 0:
            line += " double"
        elif options == 1 and tensor in homes:
            line, streamed = line + " streamed", True
        elif options == 2 and tensor in homes and tensor in self.makers:
            line += " forwarded"
        elif options == 3:
            line += f" spilling {self.pick(['0.25', '0.5', '1'])} to dram"
        elif options == 4:
            under = sorted(
                t for t in homes if homes[t] == level and t != tensor and level != "dram"
            )
            line += f" overlaying {self.pick(under)}" if under else ""
        elif options == 5:
            line += f" copies {self.draw(st.integers(1, 3))}"
        if not streamed:
            homes[tensor] = level
        return line

    def leaf(self, name: str, homes: dict[str, str], forwarded: set[tuple[str, str]]) -> list[Any]:
        einsum, unit = self.facts.einsums[name], self.units[name]
        lines: list[Any] = []
        remaining = self.draw(st.permutations(sorted(einsum.ranks)))
        register: str | None = None
        spatial = [r for r in remaining if self.draw(st.integers(0, 2)) == 0]
        for rank in remaining:
            if rank in spatial and "registers" not in homes.values():
                if self.draw(st.booleans()):
                    lines.append(f"for {rank} in {self.tile(rank)}")
                dimension = self.pick(self.dimensions(unit, homes))
                lines.append(f"parallel {rank} over {dimension}")
            else:
                if self.draw(st.booleans()):
                    lines.append(f"for {rank} in {self.tile(rank)}")
                last = not any(r in spatial for r in remaining[remaining.index(rank) :])
                kept = [o.tensor for o in (*einsum.operands, *einsum.outputs) if o.tensor in homes]
                if last and register is None and kept and self.draw(st.integers(0, 3)) == 0:
                    register = self.pick(sorted(set(kept)))
                    lines.append(f"keep {register} at registers")
                    homes = {**homes, register: "registers"}
                lines.append(f"for {rank}")
        words = f"compute {name} on {unit}"
        ahead = sorted(
            {
                o.name
                for o in einsum.operands
                if (name, o.tensor) in forwarded or o.tensor not in homes
            }
        )
        more = [o.name for o in einsum.operands if o.tensor in self.makers and o.name not in ahead]
        if more and self.draw(st.integers(0, 4)) == 0:
            ahead.append(self.pick(more))
        if ahead:
            words += f" forwarding {', '.join(ahead)}"
        ranks = sorted(einsum.outputs[0].ranks)
        if ranks and self.draw(st.integers(0, 5)) == 0:
            words += f" accumulating {self.pick(ranks)}"
        return [*lines, words]


def _wholes(cascade: Cascade) -> set[str]:
    return {split.whole for split in cascade.splits}


def compare(case: Case, counts: Counts, found: Found) -> None:
    """Assert that both say the same of everything."""
    close = 1e-12
    keys = set(counts.traffic) | set(found.traffic)
    for key in sorted(keys):
        own = counts.traffic.get(key)
        reads, writes = found.traffic.get(key, (Fraction(0), Fraction(0)))
        have = (own.reads, own.writes) if own else (0, 0)
        assert have == pytest.approx((float(reads), float(writes)), rel=close, abs=close), key
    for name, work in counts.work.items():
        assert (work.steps, work.active) == (found.steps[name], found.active[name]), name
        total = {k: v * work.active for k, v in work.operations.items()}
        wanted = {k: float(v) for k, v in found.operations[name].items()}
        assert total == pytest.approx(wanted, rel=close), name
    for level, words in found.peak_words.items():
        if case.problem.edges == "whole" or not _takes_turns(case.lines):
            assert counts.peak_words[level] == pytest.approx(float(words), rel=close), level
        else:  # room as for full tiles
            assert counts.peak_words[level] >= float(words) - close, level


def _takes_turns(lines: list[Any]) -> bool:
    blocks = [line for line in lines if isinstance(line, dict)]
    return any("branch" in b or any(map(_takes_turns, b["pipeline"])) for b in blocks)


MOST_POINTS = 1500  # tiles may pad a tiny shape to more than the brute force can walk in time


def check(case: Case) -> None:
    counts = count(case.nest, case.problem)
    assume(sum(work.steps * work.active for work in counts.work.values()) <= MOST_POINTS)
    compare(case, counts, interpret(case.nest, case.problem, case.batch))


QUIET = list(HealthCheck)


@given(cases(("whole",)))
@settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
def test_whole_edges_count_as_the_brute_force_does(case: Case) -> None:
    check(case)


@given(cases(("exact",)))
@settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
def test_exact_edges_count_as_the_brute_force_does(case: Case) -> None:
    check(case)


@pytest.mark.slow
@given(cases())
@settings(max_examples=3000, deadline=None, suppress_health_check=QUIET)
def test_thousands_of_nests_count_as_the_brute_force_does(case: Case) -> None:
    check(case)


@given(cases(), st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
def test_arrays_count_as_their_points_do(case: Case, data: Any) -> None:
    problem = case.problem
    sizes = {
        rank: np.array([int(size), data.draw(st.integers(3, 6)), data.draw(st.integers(3, 6))])
        for rank, size in problem.sizes.items()
    }
    lanes = {
        unit: {d: np.array([n, data.draw(st.integers(1, 4)), 3]) for d, n in extents.items()}
        for unit, extents in problem.lanes.items()
    }
    together = count(case.nest, replace(problem, sizes=sizes, lanes=lanes))
    for point in range(3):
        alone = count(
            case.nest,
            replace(
                problem,
                sizes={rank: int(size[point]) for rank, size in sizes.items()},
                lanes={u: {d: int(n[point]) for d, n in e.items()} for u, e in lanes.items()},
            ),
        )

        def at(value: Any, point: int = point) -> Any:
            return np.broadcast_to(np.asarray(value, float), 3)[point]

        for key, traffic in alone.traffic.items():
            both = together.traffic[key]
            assert (at(both.reads), at(both.writes)) == (traffic.reads, traffic.writes), key
        for name, work in alone.work.items():
            assert at(together.work[name].steps) == work.steps
            assert at(together.work[name].active) == work.active
            for operation, done in work.operations.items():
                assert at(together.work[name].operations[operation]) == done
        for level, words in alone.peak_words.items():
            assert at(together.peak_words[level]) == words, level


def _product(lines: list[Any], sizes: dict[str, int], **rules: Any) -> tuple[Case, Counts]:
    cascade = parse(CASCADES["product"], "product")
    lanes = {"array_2d": {"rows": 2, "columns": 2}, "array_1d": {"lanes": 4}}
    problem = Problem(facts(cascade), sizes, {}, lanes, MEMORIES, **rules)
    case = Case("product", lines, problem, ())
    counts = count(case.nest, problem)
    compare(case, counts, interpret(case.nest, problem))
    return case, counts


SIZES = {"M": 4, "N": 6, "K": 3}
OUTER_PRODUCT = ["for M, K", "keep B at buffer", "for N", "compute C on array_2d"]


def test_a_trailing_loop_does_not_reload_what_it_does_not_index() -> None:
    """B[k,n] stands below M and K: 4 x 3 rows of 6 words; with N outside of K it is trailing."""
    _, counts = _product(OUTER_PRODUCT, SIZES)
    assert counts.traffic["C", "B", "dram"].reads == 4 * 3 * 6
    _, held = _product(["for K", "for M", *OUTER_PRODUCT[1:]], SIZES)
    assert held.traffic["C", "B", "dram"].reads == 3 * 6
    _, again = _product(["for K", "for M", *OUTER_PRODUCT[1:]], SIZES, retention="explicit")
    assert again.traffic["C", "B", "dram"].reads == 4 * 3 * 6


def test_sums_that_return_are_read_above_and_filled_below() -> None:
    """C[m,n] is swept by N inside K: it leaves 3 times, comes back twice."""
    _, counts = _product(OUTER_PRODUCT, SIZES)
    own = counts.traffic["C", "C", "dram"]
    assert (own.reads, own.writes) == (2 * 4 * 6, 3 * 4 * 6)


def test_lanes_that_share_a_word_read_it_once() -> None:
    lines = ["for M in 2", "for K", "for N in 2", "parallel M over rows", "parallel N over columns"]
    _, counts = _product([*lines, "compute C on array_2d"], SIZES)
    assert counts.traffic["C", "A", "dram"].reads == 4 * 3  # held while N goes on
    assert counts.traffic["C", "B", "dram"].reads == 2 * 3 * 6
    assert counts.traffic["C", "B", "registers"].reads == counts.work["C"].steps == 2 * 3 * 3


def test_lanes_that_add_to_a_word_write_it_once() -> None:
    lines = ["for M, N", "for K in 2", "parallel K over rows", "compute C on array_2d"]
    _, counts = _product(lines, SIZES)
    own = counts.traffic["C", "C", "dram"]
    assert (own.reads, own.writes) == (0, 4 * 6)


def test_more_work_than_lanes_goes_in_waves() -> None:
    lines = ["for N, K", "parallel M over rows", "compute C on array_2d"]
    _, counts = _product(lines, {"M": 5, "N": 1, "K": 1})
    assert (counts.work["C"].steps, counts.work["C"].active) == (3, 2)
    assert counts.traffic["C", "A", "dram"].reads == 6  # a ragged wave costs a whole one
    _, exact = _product(lines, {"M": 5, "N": 1, "K": 1}, edges="exact")
    assert exact.traffic["C", "A", "dram"].reads == 5


def test_loops_in_space_share_a_dimension_through_a_branch() -> None:
    cascade = parse(CASCADES["chain"], "chain")
    lanes = {"array_2d": {"rows": 4, "columns": 1}, "array_1d": {"lanes": 1}}
    lines = [
        "parallel M in 2 over rows",
        "keep T at buffer",
        {
            "branch": [
                ["for K, N", "parallel M over rows", "compute T on array_2d"],
                ["for J, N", "parallel M over rows", "compute C on array_2d"],
            ]
        },
    ]
    problem = Problem(facts(cascade), {"M": 8, "N": 2, "K": 3, "J": 2}, {}, lanes, MEMORIES)
    counts = count(parse_nest(lines), problem)
    assert counts.work["T"].active == counts.work["C"].active == 4
    assert counts.work["T"].steps == 8 / 4 * 2 * 3
    assert counts.peak_words["buffer"] == 4 * 2 * 2  # the tiles of four lanes


def test_a_tile_that_is_kept_over_a_branch_takes_room_beside_the_other_children() -> None:
    cascade = parse(CASCADES["chain"], "chain")
    lanes = {"array_2d": {"rows": 1, "columns": 1}, "array_1d": {"lanes": 1}}
    lines = [
        "for M",
        "keep T at dram",
        {
            "branch": [
                ["keep B at buffer", "for K, N", "compute T on array_2d"],
                ["keep D at buffer", "for N, J", "compute C on array_2d"],
            ]
        },
    ]
    problem = Problem(facts(cascade), {"M": 8, "N": 2, "K": 3, "J": 5}, {}, lanes, MEMORIES)
    kept = count(parse_nest(lines), problem)
    assert kept.peak_words["buffer"] == 3 * 2 + 2 * 5
    assert kept.traffic["T", "B", "dram"].reads == 3 * 2
    turns = count(parse_nest(lines), replace(problem, retention="explicit"))
    assert turns.peak_words["buffer"] == 2 * 5
    assert turns.traffic["T", "B", "dram"].reads == 8 * 3 * 2


def test_a_spilled_share_goes_to_its_level_and_crosses_no_more() -> None:
    """C leaves the buffer 3 times and returns twice; half of it is not there to leave."""
    lines = ["for K, M", "keep C at buffer spilling 0.5 to dram", "for N", "compute C on array_2d"]
    _, counts = _product(lines, SIZES)
    buffer, dram = (counts.traffic["C", "C", level] for level in ("buffer", "dram"))
    assert (buffer.reads, buffer.writes) == (2 * 24, 3 * 24 + 2 * 24)  # sums, and what returns
    assert (dram.reads, dram.writes) == (24 + 24, 36 + 36)  # crossing, and spilled accesses
    assert counts.peak_words["buffer"] == 6 / 2


def test_tensors_in_turn_in_one_place_take_the_room_of_the_largest() -> None:
    lines = [
        "keep A at buffer",  # 12 words
        "keep B at buffer overlaying A",  # 18
        "keep C at buffer overlaying B",  # 24
        "for M, N, K",
        "compute C on array_2d",
    ]
    _, counts = _product(lines, SIZES)
    assert counts.peak_words["buffer"] == 24
