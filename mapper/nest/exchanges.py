"""What each home of a nest exchanges with the one above it, and what the Einsums move so."""

from __future__ import annotations

from collections.abc import Mapping

from einfuse.mapper.machine.formula import Values

from .reuse import REGISTERS, Delivery, Problem, Traffic, Work
from .storage import Storage
from .transfers import ONE_MEMORY, Crossing, Sides, find_crossing


class Exchanges:
    """Words read and written by (Einsum, tensor, level), and those between memories and lanes.

    Args:
        problem: the rules.
        work: what each Einsum does.
    """

    def __init__(self, problem: Problem, work: Mapping[str, Work]) -> None:
        self.problem = problem
        self.work = work
        self.deliveries: list[Delivery] = []
        self._words: dict[tuple[str, str, str], list[Values]] = {}

    @property
    def traffic(self) -> dict[tuple[str, str, str], Traffic]:
        """The words of each (Einsum, tensor, level)."""
        return {key: Traffic(*words) for key, words in self._words.items()}

    def add(
        self, einsum: str, tensor: str, level: str, reads: Values = 0, writes: Values = 0
    ) -> None:
        """Count words that an Einsum reads and writes at a level."""
        entry = self._words.setdefault((einsum, tensor, level), [0.0, 0.0])
        entry[0] = entry[0] + reads
        entry[1] = entry[1] + writes

    def settle(self, home: Storage) -> None:
        """Count what a home exchanges with the one above it."""
        parent = home.parent
        if parent is None:
            return
        inside = home.level == REGISTERS
        stay = 1 - home.spilled
        if home.writers:
            einsum = home.writers[0][0]
            cross = self._crossing(einsum, home, parent, "outputs")
            again = cross.words - cross.once
            sent = cross.lane_words if inside else cross.own_words
            returned = sent - (cross.lane_once if inside else cross.own_once)
            self.add(einsum, home.tensor, home.level, writes=returned)
            self._access(parent, einsum, reads=stay * again, writes=stay * cross.words)
            if inside:
                self._deliver(einsum, home.tensor, cross, cross.words + again)
            if self.problem.drains == "read" and home.keep is not None:
                self.add(einsum, home.tensor, home.level, reads=stay * sent)
        elif home.readers and not home.forwarded:
            einsum = home.readers[0][0]
            cross = self._crossing(einsum, home, parent, "operands")
            einsum = home.copy or einsum
            filled = cross.lane_words if inside else cross.own_words
            self.add(einsum, home.tensor, home.level, writes=filled)
            self._access(parent, einsum, reads=stay * cross.words)
            if inside:
                self._deliver(einsum, home.tensor, cross, cross.words)

    def _crossing(self, einsum: str, home: Storage, parent: Storage, kind: str) -> Crossing:
        sides, active = self._sides(home, parent, kind), self.work[einsum].active
        return find_crossing(self.problem, home.loops, home.tiles, home.moved, sides, active)

    def _sides(self, home: Storage, parent: Storage, kind: str) -> Sides:
        instanced = self.problem.instanced
        if home.moved.plain and not instanced and not any(self.problem.shares.values()):
            return ONE_MEMORY
        inside = home.level == REGISTERS
        return Sides(kind, inside, home.level in instanced, parent.level in instanced)

    def _access(self, home: Storage, einsum: str, reads: Values = 0, writes: Values = 0) -> None:
        self.add(einsum, home.tensor, home.level, reads, writes)
        if home.keep is not None and home.keep.spill is not None:
            share, level = home.spilled, home.keep.spill.level
            self.add(einsum, home.tensor, level, share * reads, share * writes)

    def _deliver(self, einsum: str, tensor: str, cross: Crossing, words: Values) -> None:
        lanes = self.work[einsum].active * cross.lane_words / cross.words
        self.deliveries.append(Delivery(einsum, tensor, words, lanes))
