"""The cheapest tensors to hold between two sweeps, for every boundary in turn.

Tensors are the points of a network: an arc leads from what is read to what is computed from it. At
a boundary the *late* tensors, which a later sweep reads, have to be parted from the *early* ones,
which are there or could only be had by one more sweep (`cut`). From boundary to boundary the
network only grows; what nobody reads any more is contracted as it goes, so that a chain of a
thousand tensors stays a network of a few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .minimum_cut import minimum_cut


@dataclass(frozen=True, slots=True)
class Use:
    """A sweep that reads a tensor, to compute others: element by element if it is aligned."""

    tensor: str
    sweep: int
    outputs: tuple[str, ...]
    aligned: bool = True


class _Held(NamedTuple):
    """What would be held for a point of the network, and its price."""

    price: float
    tensor: str


def crossings(
    uses: Sequence[Use],
    made: Mapping[str, int],
    sources: frozenset[str],
    price: Callable[[str], float],
    last: int,
) -> Iterator[frozenset[str]]:
    """Yield the cheapest tensors to hold after sweep 1, 2, ... before the last.

    Args:
        uses: of the tensors that are swept.
        made: tensor -> the sweep that makes it; the first to read it where it is not there.
        sources: the tensors that are early: inputs, and summaries.
        price: the words of a tensor.
        last: the last sweep.

    >>> uses = [Use("K", 1, ("QK",)), Use("QK", 1, ()), Use("QK", 2, ())]
    >>> list(crossings(uses, {"QK": 1}, frozenset({"K"}), {"K": 64, "QK": 1}.get, 2))
    [frozenset({'QK'})]
    """
    network = _Network(uses, made, sources, price)
    for after in range(1, last):
        network.advance(after)
        yield network.cut(after)


def origins(uses: Sequence[Use], inputs: frozenset[str]) -> dict[str, frozenset[str]]:
    """Map every tensor to the inputs that it is computed from, element by element.

    >>> origins([Use("K", 1, ("QK",)), Use("QK", 1, ("SN",))], frozenset({"K"}))["SN"]
    frozenset({'K'})
    """
    found = {name: frozenset({name}) for name in inputs}
    grown = True
    while grown:
        grown = False
        for use in uses:
            own = found.get(use.tensor, frozenset())
            for output in use.outputs if use.aligned else ():
                before = found.get(output, frozenset())
                if not own <= before:
                    found[output] = before | own
                    grown = True
    return found


class _Network:
    """The network up to a boundary, what nobody reads any more contracted."""

    def __init__(
        self,
        uses: Sequence[Use],
        made: Mapping[str, int],
        sources: frozenset[str],
        price: Callable[[str], float],
    ) -> None:
        self.sources, self.price = sources, price
        first: dict[str, int] = {}
        self.last_use: dict[str, int] = {}
        for use in uses:
            first[use.tensor] = min(first.get(use.tensor, use.sweep), use.sweep)
            self.last_use[use.tensor] = max(self.last_use.get(use.tensor, 0), use.sweep)
        self.born = {tensor: made.get(tensor, sweep) for tensor, sweep in first.items()}
        self.uses_at: dict[int, list[Use]] = {}
        self.tensors_at: dict[int, list[str]] = {}
        self.settles: dict[str, int] = dict(self.last_use)
        self.complete: dict[str, int] = {}
        for use in uses:
            when = max(use.sweep, self.born[use.tensor])
            self.uses_at.setdefault(when, []).append(use)
            self.settles[use.tensor] = max(self.settles[use.tensor], when)
            for output in use.outputs:
                self.complete[output] = max(self.complete.get(output, 0), when)
        for tensor, sweep in self.born.items():
            self.tensors_at.setdefault(sweep, []).append(tensor)
        self.after: dict[str, set[str]] = {}
        self.before: dict[str, set[str]] = {}
        self.held: dict[str, _Held] = {}
        self.early: set[str] = set()
        self.late: set[str] = set()
        self.waiting: dict[int, list[str]] = {}
        self.boundary = -1

    def advance(self, boundary: int) -> None:
        """Take in what happens up to a boundary."""
        for sweep in range(
            self.boundary if self.boundary == 0 else self.boundary + 1, boundary + 1
        ):
            for tensor in self.tensors_at.get(sweep, ()):
                self._add(tensor)
                self.late.add(tensor)
                if tensor in self.sources:
                    self.early.add(tensor)
            for use in self.uses_at.get(sweep, ()):
                self._connect(use)
        self.boundary = boundary
        self.late = {t for t in self.late if self.last_use[t] > boundary}
        pending = list(self.after)
        while pending:
            pending += self._contract(pending.pop())

    def cut(self, boundary: int) -> frozenset[str]:
        """Return the cheapest tensors that part the early from the late."""
        arcs = [(a, b) for a, found in self.after.items() for b in found]
        early, late = self.early & set(self.after), self.late
        if not arcs:
            return frozenset(self.held[t].tensor for t in early & late)
        prices = {t: held.price for t, held in self.held.items()}
        return frozenset(self.held[t].tensor for t in minimum_cut(arcs, early, late, prices))

    def _add(self, tensor: str) -> None:
        if tensor not in self.after:
            self.after[tensor], self.before[tensor] = set(), set()
            self.held[tensor] = _Held(self.price(tensor), tensor)

    def _connect(self, use: Use) -> None:
        for output in use.outputs:
            self._add(output)
            if use.aligned:
                self.after[use.tensor].add(output)
                self.before[output].add(use.tensor)
            else:
                self.early.add(output)

    def _contract(self, tensor: str) -> list[str]:
        """Leave out a tensor that no later sweep reads; return what may follow it."""
        if tensor not in self.after or tensor in self.late:
            return []
        if self.settles.get(tensor, 0) > self.boundary:
            return []
        readers = self.after[tensor] - {tensor}
        if not readers:
            return self._remove(tensor)
        if len(readers) > 1:
            return []
        (reader,) = readers
        joins = self.before[reader] != {tensor} or self.complete[reader] > self.boundary
        if joins or reader in self.early or reader in self.sources or tensor in self.before[tensor]:
            return []
        if self.held[tensor].price < self.held[reader].price:
            self.held[reader] = self.held[tensor]
        if tensor in self.early:
            self.early.add(reader)
        sources = self.before[tensor]
        for source in sources:
            self.after[source].add(reader)
        self.before[reader] |= sources
        self._remove(tensor)
        return [reader, *sources]

    def _remove(self, tensor: str) -> list[str]:
        sources = self.before.pop(tensor) - {tensor}
        for source in sources:
            self.after[source].discard(tensor)
        for reader in self.after.pop(tensor) - {tensor}:
            self.before[reader].discard(tensor)
        self.early.discard(tensor)
        del self.held[tensor]
        return list(sources)
