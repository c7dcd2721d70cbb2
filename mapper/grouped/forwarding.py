"""What goes from register to register: tensors that a group makes and reads, and that have no home.

A tensor is forwarded if each of its words is made and read in one and the same lane: all that touch
it stand under the same loops, all of them over ranks that it has, and run on one unit, with the
same of its ranks (and no others) on the same dimensions, its *seat*; its tile has no more than a
word for each lane. Einsums that share such a tensor are decided together, tensor by tensor: an
Einsum's leaf is open as soon as all its tensors are decided.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from math import floor, inf, prod

from einfuse.mapper.nest.pieces import Leaf
from einfuse.mapper.space.space import MapSpace, Structure
from einfuse.mapper.space.structures import spans

_MOST = 8  # tensors that may be forwarded under the same loops


@dataclass(frozen=True, slots=True)
class Seat:
    """Where the words of a forwarded tensor are: ranks on dimensions of a unit."""

    unit: str
    spatial: frozenset[tuple[str, str]]

    def takes(self, leaf: Leaf) -> bool:
        """Whether an Einsum that runs so is at this seat."""
        return leaf.unit == self.unit and frozenset(leaf.spatial) == self.spatial


@dataclass(frozen=True, slots=True)
class State:
    """What was decided so far, as far as it bears on what is left.

    ``seated`` are Einsums that have to be at a seat, ``held`` the tensors that are forwarded,
    ``used`` the words of a lane's registers, by unit.
    """

    at: int = 0
    seated: frozenset[tuple[str, Seat]] = frozenset()
    held: frozenset[tuple[str, Seat]] = frozenset()
    used: frozenset[tuple[str, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Ready:
    """An Einsum all of whose tensors are decided: where it runs, and what it does not go home for.

    ``seat`` is None if it may run anywhere.
    """

    einsum: str
    seat: Seat | None
    held: frozenset[str]


@dataclass(frozen=True, slots=True)
class Decision:
    """A way to keep a tensor (``seat`` None: at its home), and what it settles."""

    tensor: str
    seat: Seat | None
    ready: tuple[Ready, ...]
    settled: tuple[tuple[str, Seat | None], ...]  # with all that share their room
    then: State | None


@dataclass(frozen=True)
class Strands:
    """The tensors that may be forwarded under the same loops, in order.

    Args:
        touched_by: tensor -> the Einsums that make and read it.
        seats: tensor -> where it may be forwarded.
        sharing: tensor -> those that may share its room, itself among them.
        words: the registers that a tensor takes in its lanes.
        limits: unit -> the words of a lane that are left for what is forwarded.
    """

    touched_by: Mapping[str, tuple[str, ...]]
    seats: Mapping[str, tuple[Seat, ...]]
    sharing: Mapping[str, tuple[str, ...]]
    words: Mapping[str, int]
    limits: Mapping[str, float]

    @property
    def einsums(self) -> tuple[str, ...]:
        """The Einsums that touch any of the tensors."""
        every = (name for tensor in self.seats for name in self.touched_by[tensor])
        return tuple(dict.fromkeys(every))

    def decide(self, state: State) -> Iterator[Decision]:
        """Yield the ways to keep the next tensor: at its home, and at each seat that is free."""
        tensor, *left = [*self.seats][state.at :]
        names = self.touched_by[tensor]
        seated = dict(state.seated)
        done = [n for n in names if not any(n in self.touched_by[other] for other in left)]
        sharers = self.sharing[tensor]
        complete = not any(other in left for other in sharers)
        for seat in (None, *self.seats[tensor]):
            if seat is not None and any(seated.get(name, seat) != seat for name in names):
                continue
            used = self._used(state, tensor, seat, left)
            if used is None:
                continue
            now = seated if seat is None else seated | dict.fromkeys(names, seat)
            held = dict(state.held) if seat is None else {**dict(state.held), tensor: seat}
            ready = tuple(
                Ready(n, now.get(n), frozenset(t for t in held if n in self.touched_by[t]))
                for n in done
            )
            wanted = {t for t in held if any(self._bears(t, other) for other in left)}
            then = State(
                state.at + 1,
                frozenset((n, s) for n, s in now.items() if n not in done),
                frozenset((t, s) for t, s in held.items() if t in wanted),
                used,
            )
            settled = tuple((t, held.get(t)) for t in sharers) if complete else ()
            yield Decision(tensor, seat, ready, settled, then if left else None)

    def _used(
        self, state: State, tensor: str, seat: Seat | None, left: Sequence[str]
    ) -> frozenset[tuple[str, int]] | None:
        """The registers in use with a tensor at a seat; None if they do not suffice.

        What cannot run out any more, whatever is forwarded later, is left out.
        """
        used = dict(state.used)
        if seat is not None:
            used[seat.unit] = used.get(seat.unit, 0) + self.words[tensor]
        later = sum(self.words[other] for other in left)
        scarce = {unit: n for unit, n in used.items() if n + later > self.limits[unit]}
        if any(words > self.limits[unit] for unit, words in used.items()):
            return None
        return frozenset(scarce.items())

    def _bears(self, tensor: str, other: str) -> bool:
        """Whether a decision on one tensor matters to another that is still open."""
        together = set(self.touched_by[tensor]) & set(self.touched_by[other])
        return bool(together) or other in self.sharing[tensor]


def find_seats(ranks: tuple[str, ...], units: Mapping[str, tuple[str, ...]]) -> Iterator[Seat]:
    """Yield the seats of a tensor: as many of its ranks in space as a unit has dimensions.

    Args:
        ranks: those of the tensor that have more than a point.
        units: unit -> its dimensions, of those that all who touch the tensor may run on.

    >>> len(list(find_seats(("M", "P"), {"array": ("rows", "columns"), "vector": ("lanes",)})))
    4
    """
    for unit, dimensions in units.items():
        most = min(len(ranks), len(dimensions))
        for chosen in permutations(dimensions, most):
            for own in combinations(ranks, most):
                yield Seat(unit, frozenset(zip(own, chosen, strict=True)))


def may_forward(space: MapSpace, tensor: str) -> bool:
    """Tell whether a tensor that stays inside a group may be forwarded at all."""
    given = space.constraints
    allowed = given.forward is None or tensor in given.forward
    bound = tensor in given.keep or tensor in given.double
    return allowed and not bound and tensor in space.facts.aligned - space.facts.carried


def find_bunches(structure: Structure) -> tuple[tuple[int, ...], ...]:
    """Return the blocks whose leaves stand under the same loops: those without loops are one.

    >>> find_bunches(Structure((("A",), ("B", "C"), ("D",)), ("P",), ((), ("M",), ()), 1, ()))
    ((0, 2), (1,))
    """
    numbers = range(len(structure.blocks))
    bare = tuple(number for number in numbers if not structure.inner[number])
    looped = tuple((number,) for number in numbers if structure.inner[number])
    return (bare, *looped) if bare else looped


def forwardable(
    space: MapSpace, structure: Structure, bunch: tuple[int, ...], sizes: Mapping[str, int]
) -> tuple[str, ...]:
    """Return the tensors that blocks under the same loops may forward, in the order they are made.

    No other Einsums touch them, and they depend on every loop above the leaves. Of many, those are
    open that have the most points: ways to forward them multiply.
    """
    names = {name for number in bunch for name in structure.blocks[number]}
    path = {r for r in (*structure.loops, *structure.inner[bunch[0]]) if sizes[r] > 1}
    roles = space.roles(structure.einsums)
    found = [
        tensor
        for tensor in roles.inside
        if may_forward(space, tensor)
        and len(roles.touched_by[tensor]) > 1
        and set(roles.touched_by[tensor]) <= names
        and path <= space.facts.ranks[tensor]
    ]
    largest = sorted(found, key=lambda t: -prod(sizes[r] for r in space.facts.ranks[t]))[:_MOST]
    return tuple(tensor for tensor in found if tensor in largest)


def find_strands(
    space: MapSpace,
    structure: Structure,
    may: Mapping[tuple[int, ...], tuple[str, ...]],
    bunch: tuple[int, ...],
    sharing: Mapping[str, tuple[str, ...]],
    ranks: Collection[str],
) -> Strands:
    """Return what blocks under the same loops may forward.

    A lane has a register for each tensor that an Einsum touches, and one for each word that is
    forwarded; where a group may overlap, that is one more for each tile between the first and the
    last that touch it. Bunches share what is left evenly where all of it would not fit.

    Args:
        space: the mappings.
        structure: of the group.
        may: what each of its bunches may forward (`forwardable`).
        bunch: the numbers of the blocks.
        sharing: tensor -> those that may share its room.
        ranks: those of which the loops above the leaves leave more than a point.
    """
    einsums, touched_by = structure.einsums, space.roles(structure.einsums).touched_by
    seats = seats_of(space, {t: touched_by[t] for t in may[bunch]}, ranks)
    apart = {} if space.overlap_depth(einsums) is None else spans(einsums, space.facts)
    words = {tensor: 1 + apart.get(tensor, 0) for own in may.values() for tensor in own}
    reserved = max(len(space.touched(name)) for name in einsums)
    limits: dict[str, float] = {}
    shares = max(1, sum(map(bool, may.values())))
    for unit in space.architecture.units:
        room = space.values[f"{unit}.registers.bytes"]
        left = inf if room is None else floor(room / space.values["word_bytes"]) - reserved
        limits[unit] = left if left >= sum(words.values()) else left // shares
    return Strands(touched_by, seats, sharing, {t: words[t] for t in seats}, limits)


def units_for(space: MapSpace, einsums: Collection[str]) -> tuple[str, ...]:
    """Return the units that all of some Einsums may run on."""
    units = space.architecture.units
    return tuple(u for u in units if all(u in space.units_of[name] for name in einsums))


def seats_of(
    space: MapSpace, touched_by: Mapping[str, tuple[str, ...]], ranks: Collection[str]
) -> dict[str, tuple[Seat, ...]]:
    """Return where tensors may be forwarded, on units that all who touch one may run on."""

    def seats(tensor: str, names: tuple[str, ...]) -> Iterator[Seat]:
        own = space.facts.ranks[tensor] & {*ranks}
        units = {unit: tuple(space.lanes[unit]) for unit in units_for(space, names)}
        return find_seats(tuple(r for r in space.legality.order if r in own), units)

    return {tensor: tuple(seats(tensor, names)) for tensor, names in touched_by.items()}


def find_chains(overlays: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return for each tensor those that may share its room, the first to be made first.

    >>> find_chains({"U": "T", "Y": "U"})["U"]
    ('T', 'U', 'Y')
    """
    chains: dict[str, tuple[str, ...]] = {}
    for made, read in overlays.items():
        chain = (*chains.get(read, (read,)), made)
        chains |= dict.fromkeys(chain, chain)
    return chains
