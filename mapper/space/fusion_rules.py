"""Which Einsums may share a loop: the pass analysis applied to a mapping.

Einsums may share a loop over a rank if each of them runs over it and no barrier lies between any
two (`Dependence.can_share`). A tensor that an iterative rank carries on is whole only inside its
loop: those that make it and those that read it generation by generation stand in one loop over the
iterative rank, one generation at a time. What waits for a barrier stands outside the loop, and a
tensor between such loops has to live above them, in its full length.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from itertools import combinations

from einfuse.einsum import Cascade, trace
from einfuse.mapper.nest.workload import Facts


class Legality:
    """The sharing rules of a cascade; answers are kept."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.order = (
            *sorted(
                frozenset[str]().union(*(e.ranks for e in facts.einsums.values()))
                - set(facts.cascade.rank_names)
            ),
            *facts.cascade.rank_names,
        )
        self._shareable: dict[tuple[str, str, str], bool] = {}
        self._shared: dict[tuple[str, ...], tuple[str, ...]] = {}
        self.recurrences = _recurrences(facts)

    def may_share(self, rank: str, einsums: Sequence[str]) -> bool:
        """Tell whether Einsums may share a loop over a rank.

        >>> from einfuse.einsum.library.cascades import load
        >>> from einfuse.mapper.nest.workload import facts
        >>> rules = Legality(facts(load("attention/3-pass")))
        >>> rules.may_share("M", ("QK", "GM")), rules.may_share("M", ("GM", "SN"))
        (True, False)
        """
        if not all(rank in self.facts.einsums[name].ranks for name in einsums):
            return False
        return all(self._pair(rank, x, y) for x, y in combinations(einsums, 2))

    def shared(self, einsums: Sequence[str]) -> tuple[str, ...]:
        """The ranks over which all of some Einsums may share a loop, in the cascade's order."""
        key = tuple(einsums)
        if key not in self._shared:
            self._shared[key] = tuple(rank for rank in self.order if self.may_share(rank, key))
        return self._shared[key]

    def repeatable(self, einsums: Sequence[str], inside: Collection[str]) -> tuple[str, ...]:
        """The ranks over which some of these Einsums may share a loop above others that lack them.

        Those are computed anew in every iteration. None of them may read what one with the rank
        makes, for that is whole only behind the loop; what they make must stay inside; and nothing
        that they touch may be carried on.

        >>> from einfuse.einsum.library.cascades import load
        >>> from einfuse.mapper.nest.workload import facts
        >>> rules = Legality(facts(load("attention/3-pass")))
        >>> rules.repeatable(("A", "AV"), {"A"})
        ('F',)
        """
        every = self.facts.einsums

        def lacking(rank: str) -> list[str]:
            return [name for name in einsums if rank not in every[name].ranks]

        def fits(rank: str) -> bool:
            without = lacking(rank)
            having = [name for name in einsums if name not in without]
            later = {output.tensor for name in having for output in every[name].outputs}
            touched = [u for n in without for u in (*every[n].operands, *every[n].outputs)]
            made = {output.tensor for name in without for output in every[name].outputs}
            return (
                bool(without and having)
                and rank not in self.facts.iterative
                and made <= {*inside}
                and not {used.tensor for used in touched} & (later | self.facts.carried)
                and self.may_share(rank, having)
            )

        return tuple(rank for rank in self.order if fits(rank))

    def carried(self, einsums: Sequence[str]) -> frozenset[str]:
        """The iterative ranks that carry a tensor from one of some Einsums to another or itself."""
        return frozenset(rank for rank, members in self.recurrences if members & frozenset(einsums))

    def torn(self, einsums: Sequence[str]) -> bool:
        """Tell whether some but not all of the Einsums of a recurrence are among these."""
        own = frozenset(einsums)
        return any(members & own and not members <= own for _, members in self.recurrences)

    def _pair(self, rank: str, x: str, y: str) -> bool:
        key = (rank, x, y)
        if key not in self._shareable:
            cascade = self.facts.cascade
            known = rank in cascade.rank_names
            self._shareable[key] = not known or _trace(cascade, rank).can_share(x, y)
        return self._shareable[key]


@cache
def _trace(cascade: Cascade, rank: str):  # type: ignore[no-untyped-def]
    return trace(cascade, rank)


def _recurrences(facts: Facts) -> tuple[tuple[str, frozenset[str]], ...]:
    """Each iterative rank with the Einsums that have to share its loop, joined where they meet."""
    found: list[tuple[str, frozenset[str]]] = []
    for tensor in sorted(facts.carried):
        for rank in sorted(facts.ranks[tensor] & facts.iterative):
            members = frozenset(
                einsum.name
                for einsum in facts.einsums.values()
                for used in (*einsum.operands, *einsum.outputs)
                if used.tensor == tensor and rank in used.ranks
            )
            for other in [o for o in found if o[0] == rank and o[1] & members]:
                found.remove(other)
                members |= other[1]
            found.append((rank, members))
    return tuple(found)
